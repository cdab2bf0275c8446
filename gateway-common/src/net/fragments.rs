//! Which fragments of a datagram have gone through: overlapping ones are refused (RFC 5722, RFC 8200 section 4.5).

use crate::{
    limits::{FRAGMENT_SECONDS, MAX_FRAGMENTS},
    maps::{FRAGMENTS_REFUSED, Fragments},
};

/// What a fragment is to what came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// New: it goes through.
    New,
    /// The same range again: dropped, the datagram is none the worse for it.
    Again,
    /// Overlaps, or there are too many: the datagram is refused as a whole.
    Refused,
}

/// The range of a fragment in units of 8 bytes.
#[inline(always)]
pub const fn range(offset: u16, bytes: u32) -> [u16; 2] {
    [offset, offset.wrapping_add(bytes.div_ceil(8) as u16)]
}

/// The datagram is too old for more of it to come.
#[inline(always)]
pub const fn is_over(entry: &Fragments, now: u64, hz: u64) -> bool {
    now.wrapping_sub(entry.at) > FRAGMENT_SECONDS * hz
}

/// All of the datagram has gone through: the next first fragment with its identification begins another one. At 2,184 datagrams a second
/// between two hosts IPv4's 16 bits come round within [`FRAGMENT_SECONDS`].
#[inline(always)]
pub const fn is_complete(entry: &Fragments) -> bool {
    entry.end != 0 && entry.units == entry.end
}

/// Takes a fragment in. `last`: no other one is behind it.
#[inline(always)]
pub fn admit(entry: &mut Fragments, [from, to]: [u16; 2], last: bool) -> Fit {
    let count = entry.count;
    if count >= MAX_FRAGMENTS as u32 {
        entry.count = FRAGMENTS_REFUSED;
        return Fit::Refused;
    }
    let mut i = 0;
    while i < MAX_FRAGMENTS {
        if i as u32 >= count {
            break;
        }
        let [a, b] = entry.ranges[i];
        if a == from && b == to {
            return Fit::Again;
        }
        if from < b && a < to {
            entry.count = FRAGMENTS_REFUSED;
            return Fit::Refused;
        }
        i += 1;
    }
    entry.ranges[count as usize & (MAX_FRAGMENTS - 1)] = [from, to];
    entry.count = count + 1;
    entry.units = entry.units.wrapping_add(to.wrapping_sub(from) as u32);
    if last {
        entry.end = to as u32;
    }
    Fit::New
}

const _: () = assert!(MAX_FRAGMENTS.is_power_of_two());

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    #[test]
    fn fragments_in_any_order_go_through_once_and_an_overlap_ends_the_datagram() {
        let mut entry = Fragments::zeroed();
        assert_eq!(admit(&mut entry, range(0, 1480), false), Fit::New);
        assert_eq!(admit(&mut entry, range(370, 100), false), Fit::New);
        assert_eq!(admit(&mut entry, range(185, 1480), false), Fit::New);
        assert_eq!(admit(&mut entry, range(185, 1480), false), Fit::Again);
        assert_eq!(admit(&mut entry, range(184, 1480), false), Fit::Refused);
        assert_eq!(admit(&mut entry, range(400, 8), false), Fit::Refused);
    }

    #[test]
    fn a_datagram_is_complete_when_nothing_is_missing() {
        let mut entry = Fragments::zeroed();
        for (offset, bytes, last, complete) in [(0, 16, false, false), (4, 9, true, false), (2, 16, false, true)] {
            assert_eq!(admit(&mut entry, range(offset, bytes), last), Fit::New);
            assert_eq!(is_complete(&entry), complete, "at {offset}");
        }
    }

    #[test]
    fn sixty_four_kibibytes_over_the_smallest_ipv6_link_fit() {
        let mut entry = Fragments::zeroed();
        let mut at = 0u32;
        while at < 65_527 {
            let len = (65_527 - at).min(1232);
            assert_eq!(admit(&mut entry, range((at / 8) as u16, len), false), Fit::New, "at {at}");
            at += len;
        }
        let mut entry = Fragments::zeroed();
        for i in 0..MAX_FRAGMENTS as u16 {
            assert_eq!(admit(&mut entry, [i * 2, i * 2 + 1], false), Fit::New);
        }
        assert_eq!(admit(&mut entry, [1000, 1001], false), Fit::Refused);
    }
}
