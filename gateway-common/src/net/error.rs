//! What a sender is told when its packet cannot be carried: ICMP errors and TCP resets.

use super::{
    checksum::{finish, sum},
    family::Family,
    headers::{ICMP_LEN, Icmp, TCP, TCP_LEN, Tcp},
};
use crate::maps::tcp;

/// An ICMP error message, aligned so that the kernel's stack is read by words.
#[repr(C, align(4))]
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
    /// That protocol is not spoken here.
    pub const PROTOCOL_UNREACHABLE: Self = Self { kind: 3, code: 2, mtu: 0 };
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

impl Error {
    /// Type, code and what ICMP (RFC 792, RFC 1191) or ICMPv6 (RFC 4443 section 3) says in the four bytes behind the checksum.
    #[inline(always)]
    pub const fn wire<N: Family>(self) -> (u8, u8, [u8; 4]) {
        let mtu = self.mtu.to_be_bytes();
        if N::VERSION == 4 {
            return (self.kind, self.code, [0, 0, mtu[0], mtu[1]]);
        }
        match (self.kind, self.code) {
            (11, _) => (3, 0, [0; 4]),
            (3, 4) => (2, 0, [0, 0, mtu[0], mtu[1]]),
            // The next header is not known here: the byte that says it is the sixth.
            (3, 2) => (4, 1, [0, 0, 0, 6]),
            (3, 3) => (1, 4, [0; 4]),
            (3, 13) => (1, 1, [0; 4]),
            _ => (1, 3, [0; 4]),
        }
    }

    /// The VIP speaks about its ports and about the way's width; about everything else it is the gateway that speaks.
    #[inline(always)]
    pub const fn is_the_vips(self) -> bool {
        self.kind == 3 && matches!(self.code, 3 | 4)
    }
}

/// The headers of an error from `from` to `to`, before its quote of `quote` bytes, whose sum is `quote_sum`.
#[inline(always)]
pub fn head<N: Family>(from: &N::Addr, to: &N::Addr, error: Error, quote: u16, quote_sum: u32) -> (N::Header, Icmp) {
    let (kind, code, rest) = error.wire::<N>();
    let mut icmp = Icmp { kind, code, check: [0, 0], rest };
    let len = ICMP_LEN as u16 + quote;
    let pseudo = if N::VERSION == 4 { 0 } else { u32::from(N::pseudo(from, to, N::ICMP, len)) };
    icmp.check = finish(sum(bytemuck::bytes_of(&icmp)) + quote_sum + pseudo);
    // "Internetwork control" precedence, as RFC 1812 section 4.3.2.5 asks for.
    (N::own(from, to, N::ICMP, 0xc0, len), icmp)
}

/// The reset that answers a segment from `src` to `dst` (RFC 9293 section 3.10.7.1). `payload`: the segment's bytes of data. With `partial` the
/// checksum field holds what the kernel completes.
#[inline(always)]
pub fn reset<N: Family>(
    (src, dst): (&N::Addr, &N::Addr),
    segment: &Tcp,
    payload: u32,
    partial: bool,
) -> (N::Header, Tcp) {
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
    let pseudo = N::pseudo(dst, src, TCP, TCP_LEN as u16);
    out.check = if partial { pseudo.to_ne_bytes() } else { finish(sum(bytemuck::bytes_of(&out)) + u32::from(pseudo)) };
    (N::own(dst, src, TCP, 0, TCP_LEN as u16), out)
}

/// Sum of a quoted segment whose transport checksum the kernel still has to complete: once it is, the segment adds up to the complement
/// of what its checksum field holds now. What is before it (IPv4's header adds up to nothing, IPv6's does not) is the caller's.
#[inline(always)]
pub const fn partial_quote_sum(check: [u8; 2]) -> u32 {
    !u16::from_ne_bytes(check) as u32
}
