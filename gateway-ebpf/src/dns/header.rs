//! A query's headers from IP to DNS as one piece, and how they become the answer's.

use gateway_common::{
    dns::limit::mapped,
    net::{
        checksum::{finish, fold},
        family::{Family, V4, V6},
        headers::UDP,
    },
};

use crate::net::Net;

/// Time to live and hop limit of answers.
const TTL: u8 = 64;
/// "Don't fragment".
const DONT_FRAGMENT: u16 = 0x4000u16.to_be();

/// IPv4 without options, UDP and DNS header, in fields as large as they can be read at once. BPF's loads and stores take any
/// address, whatever the compiler believes of a frame's alignment.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Head4 {
    version_tos: [u8; 2],
    total: u16,
    id: u16,
    fragment: u16,
    ttl_proto: [u8; 2],
    check: u16,
    src: u32,
    dst: u32,
    udp: Ports,
    dns: Dns,
}

/// The same of IPv6.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Head6 {
    /// Version, traffic class, flow label.
    flow: u32,
    payload: u16,
    next_hops: [u8; 2],
    src: [u32; 4],
    dst: [u32; 4],
    udp: Ports,
    dns: Dns,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ports {
    sport: u16,
    dport: u16,
    len: u16,
    check: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Dns(pub [u16; 6]);

/// What of the query's headers the rest needs.
pub struct Asked {
    /// Who asks, as [`super::Scratch::source`].
    pub source: [u32; 4],
    /// Sum of addresses and protocol, which the answer's pseudo-header shares.
    pub pseudo: u32,
    /// Sum of both ports.
    pub ports: u32,
    /// UDP length, host order.
    pub len: u16,
    pub check: u16,
}

/// An IP header without options or extension headers, with UDP's and DNS' behind it.
pub trait Header: Copy {
    /// Bytes of the IP header.
    const IP: usize;
    /// Its family.
    type Family: Net;
    /// What it says; `None`: it is something else, or not to be answered.
    ///
    /// # Safety
    /// The pointer must be to as many bytes as are in the frame, whatever their alignment.
    unsafe fn asked(ip: *const Self) -> Option<Asked>;
    /// Source and destination.
    ///
    /// # Safety
    /// As above.
    unsafe fn ends(ip: *const Self) -> [<Self::Family as Family>::Addr; 2];
    /// Bytes of the IP packet.
    ///
    /// # Safety
    /// As above.
    unsafe fn total(ip: *const Self) -> u32;
    /// The DNS header, network order.
    ///
    /// # Safety
    /// As above.
    unsafe fn dns(ip: *const Self) -> [u16; 6];
    /// Makes it the header of an answer with that UDP length and checksum, and that DNS header in network order.
    ///
    /// # Safety
    /// As above.
    unsafe fn answer(ip: *mut Self, udp_len: u16, udp_check: u16, dns: [u16; 6]);
}

impl Header for Head4 {
    const IP: usize = 20;
    type Family = V4;

    #[inline(always)]
    unsafe fn asked(ip: *const Self) -> Option<Asked> {
        // SAFETY: the caller vouches for the pointer, and any bytes are integers.
        unsafe {
            if (*ip).version_tos[0] != 0x45 || (*ip).ttl_proto[1] != UDP || (*ip).fragment & 0x3fffu16.to_be() != 0 {
                return None;
            }
            Some(Asked {
                source: mapped((*ip).src),
                pseudo: add((*ip).src) + add((*ip).dst) + u32::from(u16::from_ne_bytes([0, UDP])),
                ports: u32::from((*ip).udp.sport) + u32::from((*ip).udp.dport),
                len: u16::from_be((*ip).udp.len),
                check: (*ip).udp.check,
            })
        }
    }

    #[inline(always)]
    unsafe fn ends(ip: *const Self) -> [[u8; 4]; 2] {
        // SAFETY: the caller vouches for the pointer.
        unsafe { [(*ip).src.to_ne_bytes(), (*ip).dst.to_ne_bytes()] }
    }

    #[inline(always)]
    unsafe fn total(ip: *const Self) -> u32 {
        // SAFETY: the caller vouches for the pointer.
        unsafe { u32::from(u16::from_be((*ip).total)) }
    }

    #[inline(always)]
    unsafe fn dns(ip: *const Self) -> [u16; 6] {
        // SAFETY: the caller vouches for the pointer.
        unsafe { (*ip).dns.0 }
    }

    #[inline(always)]
    unsafe fn answer(ip: *mut Self, udp_len: u16, udp_check: u16, dns: [u16; 6]) {
        // SAFETY: the caller vouches for the pointer.
        unsafe {
            let (src, dst) = ((*ip).src, (*ip).dst);
            let total = (Self::IP as u16 + udp_len).to_be();
            let [_, tos] = (*ip).version_tos;
            // An atomic datagram needs no identification (RFC 6864).
            let fixed = add(u32::from_ne_bytes([0x45, tos, TTL, UDP])) + u32::from(DONT_FRAGMENT);
            (*ip).version_tos[0] = 0x45;
            (*ip).total = total;
            (*ip).id = 0;
            (*ip).fragment = DONT_FRAGMENT;
            (*ip).ttl_proto = [TTL, UDP];
            (*ip).check = u16::from_ne_bytes(finish(add(src) + add(dst) + fixed + u32::from(total)));
            ((*ip).src, (*ip).dst) = (dst, src);
            turn(&raw mut (*ip).udp, udp_len, udp_check);
            (*ip).dns = Dns(dns);
        }
    }
}

impl Header for Head6 {
    const IP: usize = 40;
    type Family = V6;

    #[inline(always)]
    unsafe fn asked(ip: *const Self) -> Option<Asked> {
        // SAFETY: the caller vouches for the pointer, and any bytes are integers.
        unsafe {
            // RFC 8200 section 8.1: a UDP datagram over IPv6 without a checksum is not to be taken.
            if u32::from_be((*ip).flow) >> 28 != 6
                || (*ip).next_hops[0] != UDP
                || u16::from_be((*ip).payload) < u16::from_be((*ip).udp.len)
                || (*ip).udp.check == 0
            {
                return None;
            }
            let (source, dst) = ((*ip).src, (*ip).dst);
            let (src, dst) = (
                add(source[0]) + add(source[1]) + add(source[2]) + add(source[3]),
                add(dst[0]) + add(dst[1]) + add(dst[2]) + add(dst[3]),
            );
            Some(Asked {
                source,
                pseudo: src + dst + u32::from(u16::from_ne_bytes([0, UDP])),
                ports: u32::from((*ip).udp.sport) + u32::from((*ip).udp.dport),
                len: u16::from_be((*ip).udp.len),
                check: (*ip).udp.check,
            })
        }
    }

    #[inline(always)]
    unsafe fn ends(ip: *const Self) -> [[u8; 16]; 2] {
        // SAFETY: the caller vouches for the pointer.
        unsafe { [bytemuck::cast((*ip).src), bytemuck::cast((*ip).dst)] }
    }

    #[inline(always)]
    unsafe fn total(ip: *const Self) -> u32 {
        // SAFETY: the caller vouches for the pointer.
        unsafe { Self::IP as u32 + u32::from(u16::from_be((*ip).payload)) }
    }

    #[inline(always)]
    unsafe fn dns(ip: *const Self) -> [u16; 6] {
        // SAFETY: the caller vouches for the pointer.
        unsafe { (*ip).dns.0 }
    }

    #[inline(always)]
    unsafe fn answer(ip: *mut Self, udp_len: u16, udp_check: u16, dns: [u16; 6]) {
        // SAFETY: the caller vouches for the pointer. Traffic class and flow label stay the query's.
        unsafe {
            (*ip).payload = udp_len.to_be();
            (*ip).next_hops = [UDP, TTL];
            ((*ip).src, (*ip).dst) = ((*ip).dst, (*ip).src);
            turn(&raw mut (*ip).udp, udp_len, udp_check);
            (*ip).dns = Dns(dns);
        }
    }
}

#[inline(always)]
const fn add(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// UDP header of the answer.
///
/// # Safety
/// The pointer must be valid, whatever its alignment.
#[inline(always)]
unsafe fn turn(udp: *mut Ports, len: u16, check: u16) {
    // SAFETY: the caller vouches for the pointer.
    unsafe { *udp = Ports { sport: (*udp).dport, dport: (*udp).sport, len: len.to_be(), check } }
}

/// The answer's UDP checksum, from the sum of its message.
#[inline(always)]
pub const fn udp_check(asked: &Asked, udp_len: u16, message: u16) -> u16 {
    let sum = asked.pseudo + asked.ports + 2 * udp_len.to_be() as u32 + message.to_be() as u32;
    match !fold(sum) {
        0 => 0xFFFF,
        check => check,
    }
}
