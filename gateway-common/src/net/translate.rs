//! A packet's headers rewritten by a [`Flow`], and the two records of a flow from one another.

use super::{
    checksum::{delta2, delta4, fold, update, update_udp},
    headers::{Ipv4, Ports, TCP},
};
use crate::maps::{Flow, FlowKey, flow};

/// An IPv4 flow record.
pub type Flow4 = Flow<[u8; 4]>;
/// An IPv4 tuple.
pub type Key4 = FlowKey<[u8; 4]>;

/// Addresses and header checksum; with `hop`, the TTL too, which the caller knows to be above 1.
#[inline(always)]
pub fn ipv4(ip: &mut Ipv4, flow: &Flow4, hop: bool) {
    let mut delta = u32::from(flow.l3_delta);
    if hop {
        let old = [ip.ttl, ip.proto];
        ip.ttl = ip.ttl.wrapping_sub(1);
        delta += delta2(old, [ip.ttl, ip.proto]);
    }
    ip.check = update(ip.check, delta);
    ip.src = flow.new_src;
    ip.dst = flow.new_dst;
}

/// Ports.
#[inline(always)]
pub fn ports(ports: &mut Ports, flow: &Flow4) {
    ports.sport = flow.new_sport;
    ports.dport = flow.new_dport;
}

/// A whole transport checksum after the translation.
#[inline(always)]
pub fn transport_check(check: [u8; 2], proto: u8, flow: &Flow4) -> [u8; 2] {
    let delta = u32::from(flow.l4_delta) + u32::from(flow.port_delta);
    if proto == TCP { update(check, delta) } else { update_udp(check, delta) }
}

/// A record that turns packets of `key` into packets of `to`; the caller fills in the rest.
#[inline(always)]
pub fn record(key: &Key4, to: &Key4) -> Flow4 {
    let addresses = fold(delta4(key.src, to.src) + delta4(key.dst, to.dst));
    Flow {
        seen: 0,
        checked: 0,
        created: 0,
        packets: 0,
        bytes: 0,
        endpoint: 0,
        generation: 0,
        nexthop: 0,
        service: 0,
        l3_delta: addresses,
        l4_delta: addresses,
        port_delta: fold(delta2(key.sport, to.sport) + delta2(key.dport, to.dport)),
        flags: 0,
        new_sport: to.sport,
        new_dport: to.dport,
        tcp: 0,
        view: 0,
        pad: [0; 2],
        new_src: to.src,
        new_dst: to.dst,
    }
}

/// The other direction's record, made from this one, which stands under `key`. Its counters begin at zero.
#[inline(always)]
pub fn twin(key: &Key4, of: &Flow4) -> Flow4 {
    Flow {
        seen: of.seen,
        checked: of.seen,
        created: of.created,
        packets: 0,
        bytes: 0,
        endpoint: of.endpoint,
        generation: of.generation,
        nexthop: 0,
        service: of.service,
        // Undoing a change is its complement, in ones' complement arithmetic.
        l3_delta: !of.l3_delta,
        l4_delta: !of.l4_delta,
        port_delta: !of.port_delta,
        flags: of.flags ^ (flow::FORWARD | flow::REVERSE),
        new_sport: key.dport,
        new_dport: key.sport,
        tcp: 0,
        view: of.view,
        pad: [0; 2],
        new_src: key.dst,
        new_dst: key.src,
    }
}

/// Two records translate alike: the one that stands there is ours already.
#[inline(always)]
pub fn same(a: &Flow4, b: &Flow4) -> bool {
    a.new_src == b.new_src && a.new_dst == b.new_dst && a.new_sport == b.new_sport && a.new_dport == b.new_dport
}
