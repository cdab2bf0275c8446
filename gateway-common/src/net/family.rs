//! What IPv4 and IPv6 do differently, so that everything else is written once.

use bytemuck::Pod;

use super::{
    checksum::{delta2, delta4, finish, fold, sum, update},
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, ICMPV6, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6},
};
use crate::maps::Address;

/// An address family.
pub trait Family: Copy {
    /// Its addresses.
    type Addr: Address;
    /// Its header, without options and extension headers.
    type Header: Pod;
    /// Bytes of [`Self::Header`].
    const LEN: usize;
    /// EtherType.
    const ETHERTYPE: [u8; 2];
    /// Protocol number of its ICMP.
    const ICMP: u8;
    /// 4 or 6.
    const VERSION: u8;
    /// Most of an offending packet that an error quotes: 576 bytes in all for ICMP (RFC 1812 section 4.3.2.3), 1,280 for ICMPv6
    /// (RFC 4443 section 2.4).
    const MAX_QUOTE: usize;
    /// Smallest MTU that a link may have.
    const MIN_MTU: u16;

    /// Folded sum of the pseudo-header; `len` is the bytes of header and data of the transport.
    fn pseudo(src: &Self::Addr, dst: &Self::Addr, proto: u8, len: u16) -> u16;
    /// What replacing an address adds to a delta.
    fn delta(old: &Self::Addr, new: &Self::Addr) -> u32;
    /// Writes the addresses, corrects the header checksum by `delta` where there is one, and with `hop` takes one off the TTL or hop
    /// limit, which the caller knows to be above 1.
    fn rewrite(header: &mut Self::Header, src: &Self::Addr, dst: &Self::Addr, delta: u16, hop: bool);
    /// Puts source and destination in each other's place and sets the TTL or hop limit to `ttl`.
    fn turn(header: &mut Self::Header, ttl: u8);
    /// A header of our own making. `len`: bytes behind it.
    fn own(src: &Self::Addr, dst: &Self::Addr, proto: u8, tos: u8, len: u16) -> Self::Header;
    /// In the first bytes of sixteen.
    fn wide(addr: &Self::Addr) -> [u8; 16];
    /// From the first bytes of sixteen.
    fn narrow(addr: &[u8; 16]) -> Self::Addr;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6;

impl Family for V4 {
    type Addr = [u8; 4];
    type Header = Ipv4;
    const LEN: usize = IPV4_LEN;
    const ETHERTYPE: [u8; 2] = ETHERTYPE_IPV4;
    const ICMP: u8 = ICMP;
    const VERSION: u8 = 4;
    const MAX_QUOTE: usize = 576 - IPV4_LEN - 8;
    const MIN_MTU: u16 = 68;

    #[inline(always)]
    fn pseudo(src: &[u8; 4], dst: &[u8; 4], proto: u8, len: u16) -> u16 {
        super::checksum::pseudo4(*src, *dst, proto, len)
    }
    #[inline(always)]
    fn delta(old: &[u8; 4], new: &[u8; 4]) -> u32 {
        delta4(*old, *new)
    }
    #[inline(always)]
    fn rewrite(ip: &mut Ipv4, src: &[u8; 4], dst: &[u8; 4], delta: u16, hop: bool) {
        let mut delta = u32::from(delta);
        if hop {
            let old = [ip.ttl, ip.proto];
            ip.ttl = ip.ttl.wrapping_sub(1);
            delta += delta2(old, [ip.ttl, ip.proto]);
        }
        ip.check = update(ip.check, delta);
        ip.src = *src;
        ip.dst = *dst;
    }
    #[inline(always)]
    fn turn(ip: &mut Ipv4, ttl: u8) {
        let old = [ip.ttl, ip.proto];
        ip.ttl = ttl;
        ip.check = update(ip.check, delta2(old, [ip.ttl, ip.proto]));
        core::mem::swap(&mut ip.src, &mut ip.dst);
    }
    #[inline(always)]
    fn own(src: &[u8; 4], dst: &[u8; 4], proto: u8, tos: u8, len: u16) -> Ipv4 {
        let mut ip = Ipv4 {
            version_ihl: 0x45,
            tos,
            total_len: (len + IPV4_LEN as u16).to_be_bytes(),
            // An atomic datagram needs no identification (RFC 6864).
            id: [0, 0],
            fragment: [0x40, 0],
            ttl: 64,
            proto,
            check: [0, 0],
            src: *src,
            dst: *dst,
        };
        ip.check = finish(sum(bytemuck::bytes_of(&ip)));
        ip
    }
    #[inline(always)]
    fn wide(a: &[u8; 4]) -> [u8; 16] {
        [a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }
    #[inline(always)]
    fn narrow(a: &[u8; 16]) -> [u8; 4] {
        [a[0], a[1], a[2], a[3]]
    }
}

/// An IPv6 address as two words as they lie in memory. Of a copy of sixteen bytes the compiler makes one byte by byte, as it knows
/// nothing of their alignment.
#[inline(always)]
pub const fn halves(a: &[u8; 16]) -> [u64; 2] {
    [
        u64::from_ne_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]),
        u64::from_ne_bytes([a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]]),
    ]
}

/// The same as four words: the kernel's stack takes larger ones at multiples of eight only.
#[inline(always)]
pub const fn quarters(a: &[u8; 16]) -> [u32; 4] {
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}

/// Copies an IPv6 address a word at a time.
#[inline(always)]
pub fn copy16(to: &mut [u8; 16], from: &[u8; 16]) {
    let [high, low] = halves(from);
    let (first, second) = to.split_at_mut(8);
    first.copy_from_slice(&high.to_ne_bytes());
    second.copy_from_slice(&low.to_ne_bytes());
}

/// Sum of an address.
#[inline(always)]
const fn sum16(a: &[u8; 16]) -> u32 {
    let [a, b, c, d] = quarters(a);
    let sum = a as u64 + b as u64 + c as u64 + d as u64;
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    (sum >> 16) as u32 + (sum & 0xffff) as u32
}

impl Family for V6 {
    type Addr = [u8; 16];
    type Header = Ipv6;
    const LEN: usize = IPV6_LEN;
    const ETHERTYPE: [u8; 2] = ETHERTYPE_IPV6;
    const ICMP: u8 = ICMPV6;
    const VERSION: u8 = 6;
    const MAX_QUOTE: usize = 1280 - IPV6_LEN - 8;
    const MIN_MTU: u16 = 1280;

    #[inline(always)]
    fn pseudo(src: &[u8; 16], dst: &[u8; 16], proto: u8, len: u16) -> u16 {
        let tail = u32::from(u16::from_ne_bytes([0, proto])) + u32::from(u16::from_ne_bytes(len.to_be_bytes()));
        fold(sum16(src) + sum16(dst) + tail)
    }
    #[inline(always)]
    fn delta(old: &[u8; 16], new: &[u8; 16]) -> u32 {
        // Taking a sum away is adding its complement.
        sum16(new) + u32::from(!fold(sum16(old)))
    }
    #[inline(always)]
    fn rewrite(ip: &mut Ipv6, src: &[u8; 16], dst: &[u8; 16], _delta: u16, hop: bool) {
        if hop {
            ip.hop_limit = ip.hop_limit.wrapping_sub(1);
        }
        copy16(&mut ip.src, src);
        copy16(&mut ip.dst, dst);
    }
    #[inline(always)]
    fn turn(ip: &mut Ipv6, ttl: u8) {
        ip.hop_limit = ttl;
        core::mem::swap(&mut ip.src, &mut ip.dst);
    }
    #[inline(always)]
    fn own(src: &[u8; 16], dst: &[u8; 16], proto: u8, tos: u8, len: u16) -> Ipv6 {
        Ipv6 {
            version_class_label: [0x60 | tos >> 4, tos << 4, 0, 0],
            payload: len.to_be_bytes(),
            next: proto,
            hop_limit: 64,
            src: *src,
            dst: *dst,
        }
    }
    #[inline(always)]
    fn wide(a: &[u8; 16]) -> [u8; 16] {
        *a
    }
    #[inline(always)]
    fn narrow(a: &[u8; 16]) -> [u8; 16] {
        *a
    }
}
