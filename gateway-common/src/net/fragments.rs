//! Which fragments of a datagram have gone through: overlapping ones are refused (RFC 5722, RFC 8200 section 4.5).

use super::{
    checksum::{finish, sum},
    headers::{IPV4_LEN, Ipv4},
};
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

/// "More fragments" in the first byte of IPv4's flags and offset.
const MORE: u8 = 0x20;

/// Bytes behind the IPv4 header in each fragment but the last, for a way with that MTU; 0: there is no room.
#[inline(always)]
pub const fn room(mtu: u16) -> u32 {
    (mtu.saturating_sub(IPV4_LEN as u16) & !7) as u32
}

/// The header of a piece of the packet with that header: `len` bytes that stood `at` bytes (a multiple of 8) behind it. The packet may be a
/// fragment itself.
#[inline(always)]
pub fn header(of: &Ipv4, at: u16, len: u16, last: bool) -> Ipv4 {
    let mut ip = *of;
    let offset = (u16::from_be_bytes(of.fragment) & 0x1fff).wrapping_add(at / 8) & 0x1fff;
    let [high, low] = offset.to_be_bytes();
    ip.fragment = [high | of.fragment[0] & MORE | if last { 0 } else { MORE }, low];
    ip.total_len = len.wrapping_add(IPV4_LEN as u16).to_be_bytes();
    ip.check = [0; 2];
    ip.check = finish(sum(bytemuck::bytes_of(&ip)));
    ip
}

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
    fn pieces_of_a_packet_and_of_a_fragment_fit_together() {
        let whole = Ipv4 { id: [7, 9], ttl: 63, proto: 17, version_ihl: 0x45, ..Ipv4::zeroed() };
        assert_eq!((room(1400), room(68), room(20), room(0)), (1376, 48, 0, 0));
        let [a, b] = [(0, 1376, false), (1376, 104, true)].map(|(at, len, last)| header(&whole, at, len, last));
        assert_eq!((a.fragment, a.total(), b.fragment, b.total()), ([0x20, 0], 1396, [0, 172], 124));
        assert_eq!((a.id, a.ttl, sum(bytemuck::bytes_of(&a)) % 0xffff), ([7, 9], 63, 0));
        // A fragment with others behind it, at 1,480 bytes: its last piece says "more", too.
        let middle = Ipv4 { fragment: [0x20, 185], ..whole };
        let [a, b] = [(0, 1376, false), (1376, 104, true)].map(|(at, len, last)| header(&middle, at, len, last));
        assert_eq!((a.fragment, b.fragment), ([0x20, 185], [0x21, 101]));
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
