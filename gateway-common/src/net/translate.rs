//! A packet's headers rewritten by a [`Flow`], and the two records of a flow from one another.

use bytemuck::Zeroable;

use super::{
    checksum::{delta2, fold, update, update_udp},
    family::{Family, V4},
    headers::{Ports, TCP},
};
use crate::maps::{Address, Flow, FlowKey, flow};

/// An IPv4 flow record.
pub type Flow4 = Flow<[u8; 4]>;
/// An IPv4 tuple.
pub type Key4 = FlowKey<[u8; 4]>;

/// Addresses and header checksum; with `hop`, the TTL or hop limit too, which the caller knows to be above 1.
#[inline(always)]
pub fn ip<N: Family>(header: &mut N::Header, flow: &Flow<N::Addr>, hop: bool) {
    N::rewrite(header, &flow.new_src, &flow.new_dst, flow.l3_delta, hop);
}

/// Ports.
#[inline(always)]
pub fn ports<A: Address>(ports: &mut Ports, flow: &Flow<A>) {
    ports.sport = flow.new_sport;
    ports.dport = flow.new_dport;
}

/// A whole transport checksum after the translation.
#[inline(always)]
pub fn transport_check<A: Address>(check: [u8; 2], proto: u8, flow: &Flow<A>) -> [u8; 2] {
    let delta = u32::from(flow.l4_delta) + u32::from(flow.port_delta);
    if proto == TCP { update(check, delta) } else { update_udp(check, delta) }
}

/// Makes `flow` a record that turns packets of `key` into packets of `to`; the caller fills in the rest. In place: the kernel's
/// stack has no room for records.
#[inline(always)]
pub fn set_record<N: Family>(flow: &mut Flow<N::Addr>, key: &FlowKey<N::Addr>, to: &FlowKey<N::Addr>) {
    let addresses = fold(N::delta(&key.src, &to.src) + N::delta(&key.dst, &to.dst));
    flow.seen = 0;
    flow.checked = 0;
    flow.created = 0;
    flow.packets = 0;
    flow.bytes = 0;
    flow.endpoint = 0;
    flow.generation = 0;
    flow.nexthop = 0;
    flow.service = 0;
    flow.l3_delta = if N::VERSION == 4 { addresses } else { 0 };
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
pub fn set_twin<N: Family>(flow: &mut Flow<N::Addr>, key: &FlowKey<N::Addr>, of: &Flow<N::Addr>) {
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
    flow.l3_delta = if N::VERSION == 4 { !of.l3_delta } else { 0 };
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
pub fn record_of<N: Family>(key: &FlowKey<N::Addr>, to: &FlowKey<N::Addr>) -> Flow<N::Addr>
where
    Flow<N::Addr>: Zeroable,
{
    let mut flow = Flow::zeroed();
    set_record::<N>(&mut flow, key, to);
    flow
}

/// [`set_twin`] as a value, for the host.
pub fn twin_of<N: Family>(key: &FlowKey<N::Addr>, of: &Flow<N::Addr>) -> Flow<N::Addr>
where
    Flow<N::Addr>: Zeroable,
{
    let mut flow = Flow::zeroed();
    set_twin::<N>(&mut flow, key, of);
    flow
}

/// [`record_of`] for IPv4.
pub fn record(key: &Key4, to: &Key4) -> Flow4 {
    record_of::<V4>(key, to)
}

/// [`twin_of`] for IPv4.
pub fn twin(key: &Key4, of: &Flow4) -> Flow4 {
    twin_of::<V4>(key, of)
}

/// Two records translate alike: the one that stands there is ours already.
#[inline(always)]
pub fn same<A: Address>(a: &Flow<A>, b: &Flow<A>) -> bool {
    a.new_src == b.new_src && a.new_dst == b.new_dst && a.new_sport == b.new_sport && a.new_dport == b.new_dport
}
