//! What a sender is told when its packet cannot be carried: ICMP errors and TCP resets.

use bytemuck::{Pod, Zeroable};

use super::{
    checksum::{finish, pseudo4, sum},
    headers::{ETH_LEN, ETHERTYPE_IPV4, Ethernet, ICMP, ICMP_LEN, IPV4_LEN, Icmp, Ipv4, TCP, TCP_LEN, Tcp},
};
use crate::maps::tcp;

/// Bytes put before the offending packet's IP header, without Ethernet.
pub const ERROR_LEN: usize = IPV4_LEN + ICMP_LEN;
/// Most of the offending packet that is quoted: the error is at most 576 bytes (RFC 1812 section 4.3.2.3).
pub const MAX_QUOTE: usize = 576 - ERROR_LEN;

/// An ICMP error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// Next hop's MTU; only for [`Error::too_big`].
    pub mtu: u16,
}

impl Error {
    /// No host there.
    pub const HOST_UNREACHABLE: Self = Self { kind: 3, code: 1, mtu: 0 };
    /// Nobody serves that port.
    pub const PORT_UNREACHABLE: Self = Self { kind: 3, code: 3, mtu: 0 };
    /// A filter says no.
    pub const PROHIBITED: Self = Self { kind: 3, code: 13, mtu: 0 };
    /// TTL ended on the way.
    pub const TIME_EXCEEDED: Self = Self { kind: 11, code: 0, mtu: 0 };
    /// Fragmentation needed and "don't fragment" set.
    pub const fn too_big(mtu: u16) -> Self {
        Self { kind: 3, code: 4, mtu }
    }
}

/// Everything that stands before the quote. Ethernet may be left out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ErrorHead {
    /// Back to where the frame came from.
    pub eth: Ethernet,
    /// From the gateway or the VIP to the sender.
    pub ip: Ipv4,
    /// The error.
    pub icmp: Icmp,
}

/// Bytes of an [`ErrorHead`].
pub const HEAD_LEN: usize = ETH_LEN + ERROR_LEN;

/// A frame's Ethernet header turned round.
#[inline(always)]
pub const fn turned(eth: &Ethernet) -> Ethernet {
    Ethernet { dst: eth.src, src: eth.dst, kind: ETHERTYPE_IPV4 }
}

/// An IPv4 header of our own making. `len`: bytes behind it.
#[inline(always)]
pub fn own_ipv4(src: [u8; 4], dst: [u8; 4], proto: u8, tos: u8, len: u16) -> Ipv4 {
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
        src,
        dst,
    };
    ip.check = finish(sum(bytemuck::bytes_of(&ip)));
    ip
}

/// The head of an error about a packet that came with `eth` from `to`. `quote_sum` is the sum of the `quote` bytes of that
/// packet which follow.
#[inline(always)]
pub fn head(eth: &Ethernet, from: [u8; 4], to: [u8; 4], error: Error, quote: u16, quote_sum: u32) -> ErrorHead {
    let mtu = error.mtu.to_be_bytes();
    let mut icmp = Icmp { kind: error.kind, code: error.code, check: [0, 0], rest: [0, 0, mtu[0], mtu[1]] };
    icmp.check = finish(sum(bytemuck::bytes_of(&icmp)) + quote_sum);
    // "Internetwork control" precedence, as RFC 1812 section 4.3.2.5 asks for.
    let ip = own_ipv4(from, to, ICMP, 0xc0, ICMP_LEN as u16 + quote);
    ErrorHead { eth: turned(eth), ip, icmp }
}

/// The reset that answers a segment (RFC 9293 section 3.10.7.1). `payload`: the segment's bytes of data. With `partial` the
/// checksum field holds what the kernel completes.
#[inline(always)]
pub fn reset(ip: &Ipv4, segment: &Tcp, payload: u32, partial: bool) -> (Ipv4, Tcp) {
    let mut out = Tcp {
        sport: segment.dport,
        dport: segment.sport,
        seq: segment.ack,
        ack: [0; 4],
        offset: 0x50,
        flags: tcp::RST,
        window: [0; 2],
        check: [0; 2],
        urgent: [0; 2],
    };
    if segment.flags & tcp::ACK == 0 {
        let ghosts = (segment.flags & tcp::SYN != 0) as u32 + (segment.flags & tcp::FIN != 0) as u32;
        let next = u32::from_be_bytes(segment.seq).wrapping_add(payload).wrapping_add(ghosts);
        out.seq = [0; 4];
        out.ack = next.to_be_bytes();
        out.flags = tcp::RST | tcp::ACK;
    }
    let pseudo = pseudo4(ip.dst, ip.src, TCP, TCP_LEN as u16);
    out.check = if partial { pseudo.to_ne_bytes() } else { finish(sum(bytemuck::bytes_of(&out)) + u32::from(pseudo)) };
    (own_ipv4(ip.dst, ip.src, TCP, 0, TCP_LEN as u16), out)
}

/// Sum of a quote whose transport checksum the kernel still has to complete: the IP header adds up to nothing, and the
/// completed segment to the complement of what its checksum field holds now.
#[inline(always)]
pub const fn partial_quote_sum(check: [u8; 2]) -> u32 {
    !u16::from_ne_bytes(check) as u32
}
