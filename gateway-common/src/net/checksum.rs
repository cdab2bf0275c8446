//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).
//!
//! Words are summed as they lie in memory: the sum does not depend on byte order, and what comes out is what the
//! kernel's checksum helpers take. A *delta* is the folded sum of `!old + new` of every word that changes; adding a
//! delta to the complement of a checksum updates it.

/// Folds carries until 16 bits are left.
#[inline(always)]
pub const fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The two words of four bytes, added.
#[inline(always)]
pub const fn words(bytes: [u8; 4]) -> u32 {
    let v = u32::from_ne_bytes(bytes);
    (v & 0xffff) + (v >> 16)
}

/// What replacing four bytes at an even offset adds to a delta.
#[inline(always)]
pub const fn delta4(old: [u8; 4], new: [u8; 4]) -> u32 {
    words(new) + words((!u32::from_ne_bytes(old)).to_ne_bytes())
}

/// What replacing two bytes at an even offset adds to a delta.
#[inline(always)]
pub const fn delta2(old: [u8; 2], new: [u8; 2]) -> u32 {
    u16::from_ne_bytes(new) as u32 + !u16::from_ne_bytes(old) as u32
}

/// A checksum after a change: IPv4 header, ICMP, TCP.
#[inline(always)]
pub const fn update(check: [u8; 2], delta: u32) -> [u8; 2] {
    (!fold(!u16::from_ne_bytes(check) as u32 + delta)).to_ne_bytes()
}

/// A UDP checksum after a change: zero means "none" and stays; a sum that comes out as zero is sent as 0xffff.
#[inline(always)]
pub const fn update_udp(check: [u8; 2], delta: u32) -> [u8; 2] {
    if u16::from_ne_bytes(check) == 0 {
        return check;
    }
    let new = update(check, delta);
    if u16::from_ne_bytes(new) == 0 { [0xff, 0xff] } else { new }
}

/// Folded sum of the IPv4 pseudo-header; `len` is the bytes of header and data of the transport.
///
/// It is also what a sender that leaves the checksum to its hardware puts into the checksum field.
#[inline(always)]
pub const fn pseudo4(src: [u8; 4], dst: [u8; 4], proto: u8, len: u16) -> u16 {
    let tail = u16::from_ne_bytes([0, proto]) as u32 + u16::from_ne_bytes(len.to_be_bytes()) as u32;
    fold(words(src) + words(dst) + tail)
}

/// Unfolded sum of bytes at an even offset; an odd last byte counts as if a zero byte followed. At most 64 KiB.
#[inline(always)]
pub fn sum(bytes: &[u8]) -> u32 {
    let mut total = 0u32;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        total += u32::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u32::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// The checksum of a folded or unfolded sum, as it is written.
#[inline(always)]
pub const fn finish(sum: u32) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rfc_1071_example_sums_as_printed() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn udp_zero_stays_and_a_computed_zero_is_sent_as_ones() {
        assert_eq!(update_udp([0, 0], 0x1234), [0, 0]);
        // !0x0102 + delta folds to 0xffff, whose complement is zero.
        let delta = u32::from(u16::from_ne_bytes([0x01, 0x02]));
        assert_eq!(update([0x01, 0x02], delta), [0, 0]);
        assert_eq!(update_udp([0x01, 0x02], delta), [0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn incremental_equals_recomputed(mut data in proptest::collection::vec(any::<u8>(), 8..128), at in 0usize..128, new: [u8; 4]) {
            // A sum of zero only comes from all-zero data, which no header is.
            data[0] |= 1;
            let at = (at % (data.len() - 6) + 2) & !1;
            prop_assume!(at >= 2 && at + 4 <= data.len());
            let before = finish(sum(&data));
            let old: [u8; 4] = data[at..at + 4].try_into().unwrap();
            data[at..at + 4].copy_from_slice(&new);
            let after = finish(sum(&data));
            prop_assert_eq!(update(before, delta4(old, new)), after);
            let halves = delta2([old[0], old[1]], [new[0], new[1]]) + delta2([old[2], old[3]], [new[2], new[3]]);
            prop_assert_eq!(update(before, u32::from(fold(halves))), after);
        }
    }
}
