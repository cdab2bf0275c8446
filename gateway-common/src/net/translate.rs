//! A packet's headers rewritten by a [`Flow`], and the two records of a flow from one another.

use bytemuck::Zeroable as _;

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

/// Makes `flow` a record that turns packets of `key` into packets of `to`; the caller fills in the rest. In place: the kernel's
/// stack has no room for records.
#[inline(always)]
pub fn set_record(flow: &mut Flow4, key: &Key4, to: &Key4) {
    let addresses = fold(delta4(key.src, to.src) + delta4(key.dst, to.dst));
    flow.seen = 0;
    flow.checked = 0;
    flow.created = 0;
    flow.packets = 0;
    flow.bytes = 0;
    flow.endpoint = 0;
    flow.generation = 0;
    flow.nexthop = 0;
    flow.service = 0;
    flow.l3_delta = addresses;
    flow.l4_delta = addresses;
    flow.port_delta = fold(delta2(key.sport, to.sport) + delta2(key.dport, to.dport));
    flow.flags = 0;
    flow.new_sport = to.sport;
    flow.new_dport = to.dport;
    flow.tcp = 0;
    flow.view = 0;
    flow.pad = [0; 2];
    flow.new_src = to.src;
    flow.new_dst = to.dst;
}

/// Makes `flow` the other direction's record of `of`, which stands under `key`. Its counters begin at zero.
#[inline(always)]
pub fn set_twin(flow: &mut Flow4, key: &Key4, of: &Flow4) {
    flow.seen = of.seen;
    flow.checked = of.seen;
    flow.created = of.created;
    flow.packets = 0;
    flow.bytes = 0;
    flow.endpoint = of.endpoint;
    flow.generation = of.generation;
    flow.nexthop = 0;
    flow.service = of.service;
    // Undoing a change is its complement, in ones' complement arithmetic.
    flow.l3_delta = !of.l3_delta;
    flow.l4_delta = !of.l4_delta;
    flow.port_delta = !of.port_delta;
    flow.flags = of.flags ^ (flow::FORWARD | flow::REVERSE);
    flow.new_sport = key.dport;
    flow.new_dport = key.sport;
    flow.tcp = 0;
    flow.view = of.view;
    flow.pad = [0; 2];
    flow.new_src = key.dst;
    flow.new_dst = key.src;
}

/// [`set_record`] as a value, for the host.
pub fn record(key: &Key4, to: &Key4) -> Flow4 {
    let mut flow = Flow4::zeroed();
    set_record(&mut flow, key, to);
    flow
}

/// [`set_twin`] as a value, for the host.
pub fn twin(key: &Key4, of: &Flow4) -> Flow4 {
    let mut flow = Flow4::zeroed();
    set_twin(&mut flow, key, of);
    flow
}

/// Two records translate alike: the one that stands there is ours already.
#[inline(always)]
pub fn same(a: &Flow4, b: &Flow4) -> bool {
    a.new_src == b.new_src && a.new_dst == b.new_dst && a.new_sport == b.new_sport && a.new_dport == b.new_dport
}
