//! What a frame must have become.

use std::net::IpAddr;

use super::Case;
use crate::{
    cast::{CLIENT_MAC, GATEWAY_MAC, POD_MAC},
    packets::{L3, RST, Seen, header_len, look, quote},
    world::Tier,
};

type Verdict = Result<(), String>;

pub fn expect(seen: bool, what: &str, of: &Seen) -> Verdict {
    if seen { Ok(()) } else { Err(format!("{what}: {of:?}")) }
}

/// What XDP writes in front of a packet that goes on; in TC the kernel writes it later.
fn goes_on(case: &Case<'_>, new: &Seen, mac: [u8; 6]) -> Verdict {
    if case.tier == Tier::Tc {
        return Ok(());
    }
    expect(new.mac_dst == mac && new.mac_src == GATEWAY_MAC, "MACs", new)?;
    expect(case.after.tags == case.on, &format!("tags {:?}, should be {:?}", case.after.tags, case.on), new)
}

/// What is in front of a packet that goes back to whom it came from.
fn goes_back(case: &Case<'_>, new: &Seen) -> Verdict {
    expect(new.mac_dst == CLIENT_MAC && new.mac_src == GATEWAY_MAC, "MACs", new)?;
    expect(case.after.tags == case.back, &format!("tags {:?}, should be {:?}", case.after.tags, case.back), new)
}

/// Everything that a translation leaves alone.
fn content(case: &Case<'_>, old: &Seen, new: &Seen) -> Verdict {
    expect(new.proto == old.proto && new.kept == old.kept && new.fragment == old.fragment, "header", new)?;
    expect((new.flags, new.seq, new.ack) == (old.flags, old.seq, old.ack), "flags and numbers", new)?;
    expect(new.options == old.options && new.payload == old.payload, "content", new)?;
    expect(new.unchecked == old.unchecked, "checksum or not", new)?;
    expect(case.before.len() == case.after.frame.len() && new.len == old.len, "length", new)
}

/// Translated towards a pod, from the gateway's address.
pub fn to_pod(case: &Case<'_>) -> Verdict {
    let (old, new) = (look(case.before)?, look(&case.after.frame)?);
    expect(new.src == case.cast.own && new.dst == case.cast.pod, "addresses", &new)?;
    expect((10_000..30_000).contains(&new.sport) && new.dport >= 7007, "ports", &new)?;
    expect(new.ttl == old.ttl - 1, "TTL", &new)?;
    content(case, &old, &new)?;
    goes_on(case, &new, POD_MAC)
}

/// As [`to_pod`], of a client that keeps its address and port.
pub fn to_pod_routed(case: &Case<'_>) -> Verdict {
    let (old, new) = (look(case.before)?, look(&case.after.frame)?);
    expect(new.src == old.src && new.sport == old.sport, "source", &new)?;
    expect(new.dst == case.cast.pod && new.dport == 8080 && new.ttl == old.ttl - 1, "destination and TTL", &new)?;
    content(case, &old, &new)?;
    goes_on(case, &new, POD_MAC)
}

/// Destination translated, source and TTL as they were: up this node's own stack.
pub fn to_local(case: &Case<'_>) -> Verdict {
    let (old, new) = (look(case.before)?, look(&case.after.frame)?);
    expect(new.src == old.src && new.sport == old.sport, "source", &new)?;
    expect(new.dst == case.cast.own && new.dport == 6443 && new.ttl == old.ttl, "destination and TTL", &new)?;
    content(case, &old, &new)
}

/// From the VIP and that port, to the client's.
pub fn to_client(port: u16, client_port: u16) -> impl Fn(&Case<'_>) -> Verdict {
    move |case| {
        let (old, new) = (look(case.before)?, look(&case.after.frame)?);
        expect(new.src == case.cast.web && new.sport == port, "source", &new)?;
        expect(new.dst == case.cast.client && new.dport == client_port, "destination", &new)?;
        expect(new.ttl == old.ttl - 1, "TTL", &new)?;
        content(case, &old, &new)?;
        goes_on(case, &new, CLIENT_MAC)
    }
}

/// As [`to_client`], on its way out of this node's own socket.
pub fn from_local(port: u16, client_port: u16) -> impl Fn(&Case<'_>) -> Verdict {
    move |case| {
        let (old, new) = (look(case.before)?, look(&case.after.frame)?);
        expect(new.src == case.cast.web && new.sport == port, "source", &new)?;
        expect(new.dst == case.cast.client && new.dport == client_port, "destination", &new)?;
        expect(new.ttl == old.ttl, "TTL", &new)?;
        content(case, &old, &new)
    }
}

/// An ICMP error back to the sender: type and code for either family, from whom, and what is behind the checksum.
#[derive(Clone, Copy)]
pub struct Told {
    pub v4: (u8, u8),
    pub v6: (u8, u8),
    /// `None`: whom the packet was for.
    pub from: Option<fn(&Case<'_>) -> IpAddr>,
    /// IPv4, IPv6.
    pub rest: [[u8; 4]; 2],
}

fn own(case: &Case<'_>) -> IpAddr {
    case.cast.own
}

pub const PORT_UNREACHABLE: Told = Told { v4: (3, 3), v6: (1, 4), from: None, rest: [[0; 4]; 2] };
pub const HOST_UNREACHABLE: Told = Told { v4: (3, 1), v6: (1, 3), from: Some(own), rest: [[0; 4]; 2] };
pub const PROHIBITED: Told = Told { v4: (3, 13), v6: (1, 1), from: Some(own), rest: [[0; 4]; 2] };
/// IPv6 points to the byte that names the protocol.
pub const PROTOCOL_UNREACHABLE: Told = Told { v4: (3, 2), v6: (4, 1), from: Some(own), rest: [[0; 4], [0, 0, 0, 6]] };
pub const TIME_EXCEEDED: Told = Told { v4: (11, 0), v6: (3, 0), from: Some(own), rest: [[0; 4]; 2] };

/// The way takes so many bytes.
pub const fn too_big(mtu: [u16; 2]) -> Told {
    Told {
        v4: (3, 4),
        v6: (2, 0),
        from: None,
        rest: [[0, 0, (mtu[0] >> 8) as u8, mtu[0] as u8], [0, 0, (mtu[1] >> 8) as u8, mtu[1] as u8]],
    }
}

pub fn told(what: Told) -> impl Fn(&Case<'_>) -> Verdict {
    move |case| {
        let (old, new) = (look(case.before)?, look(&case.after.frame)?);
        let (kind, code) = if case.cast.v6 { what.v6 } else { what.v4 };
        expect(new.proto == case.cast.icmp() && (new.flags, new.code) == (kind, code), "type and code", &new)?;
        expect(new.src == what.from.map_or(old.dst, |from| from(case)) && new.dst == old.src, "addresses", &new)?;
        expect(new.rest == what.rest[usize::from(case.cast.v6)], "what is behind the checksum", &new)?;
        // All of the packet, as it was, up to an error of 576 bytes (ICMPv6: 1,280).
        let most = if case.cast.v6 { 1280 - 48 } else { 576 - 28 };
        let quote = &case.before[L3..old.len.min(L3 + most)];
        expect(new.payload == quote, "the quote is the packet itself", &new)?;
        expect(case.after.frame.len() == new.len && new.ttl == 64, "length and TTL", &new)?;
        goes_back(case, &new)
    }
}

/// A reset that answers a segment with an acknowledgement.
pub fn reset(case: &Case<'_>) -> Verdict {
    let (old, new) = (look(case.before)?, look(&case.after.frame)?);
    expect(new.ends() == old.back(), "ends", &new)?;
    let len = case.cast.l4() + 20;
    let bare = new.flags == RST && new.seq == old.ack && case.after.frame.len() == len && new.len == len;
    expect(bare, "a reset that acknowledges nothing", &new)?;
    goes_back(case, &new)
}

/// An echo request turned round.
pub fn echoed(case: &Case<'_>) -> Verdict {
    let (old, new) = (look(case.before)?, look(&case.after.frame)?);
    let kind = if case.cast.v6 { 129 } else { 0 };
    expect(new.proto == old.proto && (new.flags, new.code) == (kind, 0), "type and code", &new)?;
    expect(new.src == old.dst && new.dst == old.src && new.ttl == 64, "addresses and TTL", &new)?;
    expect(new.rest == old.rest && new.payload == old.payload && new.kept == old.kept, "data", &new)?;
    expect(new.len == old.len && case.after.frame.len() == case.before.len(), "length", &new)?;
    goes_back(case, &new)
}

/// An ICMP error that quotes `packet`, as it was before its translation, up to `len` bytes behind its IP header, from that address to
/// that one. All but its addresses and the quote is as it was.
pub fn relayed(
    packet: Vec<u8>,
    len: usize,
    (src, dst): (IpAddr, IpAddr),
    hop: bool,
    mac: [u8; 6],
) -> impl Fn(&Case<'_>) -> Verdict {
    move |case| {
        let (old, new) = (look(case.before)?, look(&case.after.frame)?);
        expect(new.src == src && new.dst == dst, "addresses", &new)?;
        expect(new.ttl == old.ttl - u8::from(hop) && new.kept == old.kept, "header", &new)?;
        expect((new.flags, new.code, new.rest) == (old.flags, old.code, old.rest), "type, code and the rest", &new)?;
        expect(
            new.payload == quote(&packet, len),
            &format!("the quote, should be {:02x?}", quote(&packet, len)),
            &new,
        )?;
        expect(case.before.len() == case.after.frame.len() && new.len == old.len, "length", &new)?;
        if hop { goes_on(case, &new, mac) } else { Ok(()) }
    }
}

/// A fragment turned round: what it carries is as it was.
pub fn turned(case: &Case<'_>) -> Verdict {
    let (old, new) = (look(case.before)?, look(&case.after.frame)?);
    expect(new.src == old.dst && new.dst == old.src && new.fragment == old.fragment, "header", &new)?;
    expect(new.kept == old.kept && new.len == old.len, "header", &new)?;
    expect(new.payload == old.payload, "data", &new)?;
    goes_back(case, &new)
}

/// A fragment on its way to the pod; its ports and checksum are looked at when the datagram is whole.
pub fn part_to_pod(case: &Case<'_>) -> Verdict {
    let (old, new) = (look(case.before)?, look(&case.after.frame)?);
    expect(new.src == case.cast.own && new.dst == case.cast.pod && new.ttl == old.ttl - 1, "addresses", &new)?;
    expect(new.fragment == old.fragment && new.kept == old.kept && new.proto == old.proto, "header", &new)?;
    let head = if old.fragment.is_some_and(|(offset, _)| offset == 0) { 8 } else { 0 };
    expect(new.payload[head..] == old.payload[head..], "data", &new)?;
    expect(new.len == old.len && header_len(case.before) == header_len(&case.after.frame), "length", &new)?;
    goes_on(case, &new, POD_MAC)
}
