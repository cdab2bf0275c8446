//! The packet that an ICMP error quotes, and what it becomes (RFC 5508 section 4, RFC 7915 section 4.5 for what is quoted).
//!
//! An error about a packet of a flow goes to whoever sent that packet, and must quote it as its sender sent it. The record that
//! translates the *other* direction has all that is needed: undoing its addresses and ports is the same change to every sum.

use super::{
    Bytes,
    checksum::{delta2, fold, update},
    family::{Family, V4, V6},
    headers::{FRAGMENT, FRAGMENT_LEN, Fragment6, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6, Ports, TCP, UDP},
    translate::transport_check,
};
use crate::maps::{Flow, FlowKey};

/// A quoted TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner<A> {
    /// Its tuple as it is quoted.
    pub key: FlowKey<A>,
    /// Where its IP header begins.
    pub l3: usize,
    /// Where its transport header begins.
    pub l4: usize,
    /// Its transport checksum, when the quote reaches that far.
    pub check: Option<[u8; 2]>,
}

impl<A: crate::maps::Address> Inner<A> {
    /// The tuple of a packet that answers the quoted one: its record says what the quoted one was before.
    #[inline(always)]
    pub const fn flipped(&self) -> FlowKey<A> {
        FlowKey::new(self.key.dst, self.key.src, self.key.dport, self.key.sport, self.key.proto)
    }

    /// Where its transport checksum is.
    #[inline(always)]
    pub const fn check_at(&self) -> usize {
        self.l4 + if self.key.proto == TCP { 16 } else { 6 }
    }
}

/// What can be quoted.
pub trait Quoted: Family {
    /// The quoted packet at `l3`; `end` is where the quote ends. `None`: not one that can belong to a flow.
    fn quoted(frame: &impl Bytes, l3: usize, end: usize) -> Option<Inner<Self::Addr>>;
    /// The checksum of a quoted header after its addresses change by `delta`; nothing for IPv6.
    fn requote(header: &mut Self::Header, src: &Self::Addr, dst: &Self::Addr, delta: u16);
}

#[inline(always)]
fn tuple<A: crate::maps::Address>(
    frame: &impl Bytes,
    (src, dst, proto): (A, A, u8),
    l3: usize,
    l4: usize,
    end: usize,
) -> Option<Inner<A>> {
    if proto != TCP && proto != UDP {
        return None;
    }
    // RFC 792 quotes at least 8 bytes of what is behind the IP header.
    if l4 + 8 > end {
        return None;
    }
    let ports = frame.get::<Ports>(l4)?;
    let mut inner = Inner { key: FlowKey::new(src, dst, ports.sport, ports.dport, proto), l3, l4, check: None };
    if inner.check_at() + 2 <= end {
        inner.check = Some(*frame.get::<[u8; 2]>(inner.check_at())?);
    }
    Some(inner)
}

impl Quoted for V4 {
    #[inline(always)]
    fn quoted(frame: &impl Bytes, l3: usize, end: usize) -> Option<Inner<[u8; 4]>> {
        if l3 + IPV4_LEN > end {
            return None;
        }
        let ip = frame.get::<Ipv4>(l3)?;
        // A later fragment has no ports.
        if ip.version_ihl != 0x45 || u16::from_be_bytes(ip.fragment) & 0x1fff != 0 {
            return None;
        }
        tuple(frame, (ip.src, ip.dst, ip.proto), l3, l3 + IPV4_LEN, end)
    }
    #[inline(always)]
    fn requote(ip: &mut Ipv4, src: &[u8; 4], dst: &[u8; 4], delta: u16) {
        V4::rewrite(ip, src, dst, delta, false);
    }
}

impl Quoted for V6 {
    #[inline(always)]
    fn quoted(frame: &impl Bytes, l3: usize, end: usize) -> Option<Inner<[u8; 16]>> {
        if l3 + IPV6_LEN > end {
            return None;
        }
        let ip = frame.get::<Ipv6>(l3)?;
        if ip.version_class_label[0] >> 4 != 6 {
            return None;
        }
        let (src, dst, next, l4) = (ip.src, ip.dst, ip.next, l3 + IPV6_LEN);
        if next != FRAGMENT {
            return tuple(frame, (src, dst, next), l3, l4, end);
        }
        if l4 + FRAGMENT_LEN > end {
            return None;
        }
        let head = frame.get::<Fragment6>(l4)?;
        // A later fragment has no ports.
        if u16::from_be_bytes(head.offset) >> 3 != 0 {
            return None;
        }
        tuple(frame, (src, dst, head.next), l3, l4 + FRAGMENT_LEN, end)
    }
    #[inline(always)]
    fn requote(ip: &mut Ipv6, src: &[u8; 16], dst: &[u8; 16], delta: u16) {
        V6::rewrite(ip, src, dst, delta, false);
    }
}

/// What an error becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The quoted transport checksum, when it is quoted.
    pub check: Option<[u8; 2]>,
    /// Change of the error's own checksum.
    pub delta: u16,
}

/// How the error's checksum and the quoted one change when the quoted packet is made what it was before `flow`'s translation (`flow` is
/// the record under [`Inner::flipped`]) and the error itself goes from `outer.0` to `outer.1` instead of as it came, which was
/// `came.0` to `came.1`.
#[inline(always)]
pub fn edit<N: Family>(
    inner: &Inner<N::Addr>,
    flow: &Flow<N::Addr>,
    came: (&N::Addr, &N::Addr),
    outer: (&N::Addr, &N::Addr),
) -> Edit {
    let mut delta = u32::from(flow.port_delta);
    let check = inner.check.map(|check| transport_check(check, inner.key.proto, flow));
    if let (Some(old), Some(new)) = (inner.check, check) {
        delta += delta2(old, new);
    }
    // IPv4's header checksum makes up for its addresses, and ICMP has no pseudo-header.
    if N::VERSION == 6 {
        delta += u32::from(flow.l4_delta);
        delta += u32::from(fold(N::delta(came.0, outer.0))) + u32::from(fold(N::delta(came.1, outer.1)));
    }
    Edit { check, delta: fold(delta) }
}

/// The error's checksum after [`edit`].
#[inline(always)]
pub const fn checksum(check: [u8; 2], edit: &Edit) -> [u8; 2] {
    update(check, edit.delta as u32)
}
