//! The flow table: looked up once a packet, its two records kept in step.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use gateway_common::{
    Reason,
    limits::{MAX_SNAT_ADDRESSES, SNAT_ATTEMPTS, capacity},
    maps::{Config, Endpoint, Flow, FlowKey, Service, config, endpoint, flow, tcp},
    net::{
        hash,
        headers::{TCP, UDP},
        parse::Packet4,
        translate::{self, Flow4, Key4},
    },
};

use crate::{counters::count, path::Role, settings::now};

#[map]
static FLOWS4: HashMap<FlowKey<[u8; 4]>, Flow4> = HashMap::with_max_entries(capacity::FLOWS, 0);
#[map]
static FLOWS6: HashMap<FlowKey<[u8; 16]>, Flow<[u8; 16]>> = HashMap::with_max_entries(capacity::FLOWS, 0);
#[map]
static CLIENT_HOPS6: LruHashMap<[u8; 16], u32> = LruHashMap::with_max_entries(capacity::CLIENT_HOPS, 0);
#[map]
static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(capacity::ENDPOINTS, 0);
#[map]
static CLIENT_HOPS4: LruHashMap<[u8; 4], u32> = LruHashMap::with_max_entries(capacity::CLIENT_HOPS, 0);

/// Scratch for the two records of a flow that begins, and their keys: the stack is too small for them.
#[map]
static DRAFT: PerCpuArray<Draft> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
struct Draft {
    forward: Flow4,
    reverse: Flow4,
    /// What a packet of the flow becomes.
    to: Key4,
    /// Where the reverse record goes.
    back: Key4,
}

#[inline(always)]
fn draft() -> Option<&'static mut Draft> {
    // SAFETY: the pointer is to this CPU's own slot, which one function at a time uses while a program runs.
    DRAFT.get_ptr_mut(0).map(|draft| unsafe { &mut *draft })
}

/// The key under which the other direction's record stands, in place.
#[inline(always)]
fn set_twin_key(key: &mut Key4, flow: &Flow4, proto: u8) {
    key.src = flow.new_dst;
    key.dst = flow.new_src;
    key.sport = flow.new_dport;
    key.dport = flow.new_sport;
    key.proto = proto;
    key.pad = [0; 3];
}

/// The kernel's "there is one already".
const EEXIST: i32 = -17;

const _: () = assert!(MAX_SNAT_ADDRESSES.is_power_of_two());

/// What the table knows about a packet.
pub enum Found {
    /// Its record, and the index of its next hop.
    Flow(&'static mut Flow4, u32),
    /// Its endpoint is gone, and the flow with it.
    Gone,
    /// Its endpoint is gone, and it may go to another one.
    Moved,
    /// Nothing that may be used.
    Miss,
}

#[inline(always)]
fn get(key: &Key4) -> Option<&'static mut Flow4> {
    // SAFETY: elements of a preallocated hash map stay mapped while the program runs. A record is written by the CPUs that
    // carry its direction and by the agent; its fields are plain integers, and a race costs at most a count.
    FLOWS4.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// The endpoint at an index, while there is one.
#[inline(always)]
pub fn endpoint(index: u32) -> Option<&'static Endpoint> {
    // SAFETY: elements of an array map live as long as the program; the agent's writes change plain integers.
    let endpoint = ENDPOINTS.get_ptr(index).map(|endpoint| unsafe { &*endpoint })?;
    if index == 0 || endpoint.generation == 0 { None } else { Some(endpoint) }
}

/// Finds the record that carries this packet.
#[inline(always)]
pub fn find(role: Role, packet: &Packet4) -> Found {
    let Some(flow) = get(&packet.key) else { return Found::Miss };
    if flow.flags & flow::FORWARD == 0 {
        // Replies of this node's own sockets leave it, all others come in.
        let leaves = flow.flags & flow::LOCAL != 0;
        return if leaves == (role == Role::Egress) {
            let hop = flow.nexthop;
            Found::Flow(flow, hop)
        } else {
            Found::Miss
        };
    }
    if role != Role::Uplink {
        return Found::Miss;
    }
    let opens = packet.key.proto == TCP && packet.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    if opens && flow.tcp != 0 && over(&packet.key, flow) {
        return Found::Miss;
    }
    match endpoint(flow.endpoint) {
        Some(endpoint) if endpoint.generation == flow.generation => Found::Flow(flow, endpoint.nexthop),
        _ if packet.key.proto == TCP && !opens => {
            flow.tcp |= tcp::RST;
            Found::Gone
        }
        _ => Found::Moved,
    }
}

/// A TCP conversation has ended: by a reset from either side, or by both sides' FIN.
#[inline(never)]
fn over(key: &Key4, flow: &Flow4) -> bool {
    let back = get(&flow.twin(key.proto)).map_or(0, |twin| twin.tcp);
    (flow.tcp | back) & tcp::RST != 0 || flow.tcp & back & tcp::FIN != 0
}

/// Counts a packet in its record. Once a second the other direction's record is looked after.
#[inline(always)]
pub fn touch(packet: &Packet4, flow: &mut Flow4, hz: u64) {
    let now = now();
    flow.seen = now;
    flow.packets += 1;
    flow.bytes += u64::from(packet.total);
    flow.tcp |= packet.flags;
    if now.wrapping_sub(flow.checked) >= hz {
        flow.checked = now;
        look_after(&packet.key, flow);
    }
}

/// Rebuilds the other direction's record when it went missing, and learns the client's next hop.
#[inline(never)]
fn look_after(key: &Key4, flow: &mut Flow4) {
    if flow.flags & flow::REVERSE != 0 {
        flow.nexthop = client_hop(flow.new_dst);
        if endpoint(flow.endpoint).is_none_or(|endpoint| endpoint.generation != flow.generation) {
            return;
        }
    }
    let Some(draft) = draft() else { return };
    set_twin_key(&mut draft.back, flow, key.proto);
    let twin = &mut draft.reverse;
    translate::set_twin(twin, key, flow);
    if let Some(there) = get(&draft.back) {
        // Another flow took the port while the twin was missing: this one begins anew with its next packet.
        if flow.flags & flow::FORWARD != 0 && !translate::same(there, twin) {
            let _ = FLOWS4.remove(key);
        }
        return;
    }
    if twin.flags & flow::REVERSE != 0 {
        twin.nexthop = client_hop(twin.new_dst);
    }
    if FLOWS4.insert(&draft.back, &*twin, u64::from(BPF_NOEXIST)).is_ok() {
        count(Reason::FlowRebuilt);
    }
}

/// The next hop towards a client, 0 while unknown.
#[inline(always)]
fn client_hop(client: [u8; 4]) -> u32 {
    // SAFETY: the value is one integer, read at once.
    unsafe { CLIENT_HOPS4.get(client) }.copied().unwrap_or(0)
}

/// Begins a flow from `packet` to the endpoint at `index`: both records, the reverse one first, so that no reply meets a gap.
#[inline(never)]
pub fn create(config: &Config, packet: &Packet4, view: u32, service: &Service, index: u32) -> Result<(), Reason> {
    let Some(endpoint) = endpoint(index) else { return Err(Reason::NoEndpoint) };
    let key = &packet.key;
    let local = endpoint.flags & endpoint::LOCAL != 0;
    let keeps = local || config.flags & config::ROUTED != 0;
    let hash = hash::source_port(key);
    if config.snat_ports == 0 || (!keeps && config.snat4_len == 0) {
        return Err(Reason::SnatExhausted);
    }
    let Some(Draft { forward, reverse, to, back }) = draft() else { return Err(Reason::HelperFailed) };
    let addr = &endpoint.addr;
    to.src = if keeps { key.src } else { snat_address(config, hash) };
    to.dst = [addr[0], addr[1], addr[2], addr[3]];
    to.sport = key.sport;
    to.dport = endpoint.port;
    let flags = flow::FORWARD | if local { flow::LOCAL } else { 0 } | if keeps { flow::ROUTED } else { 0 };
    let mut attempt = 0;
    while attempt < SNAT_ATTEMPTS {
        // A client that keeps its address also keeps its port, unless it uses that port towards two VIPs of one endpoint.
        if !keeps || attempt > 0 {
            let offset = hash::port_candidate(hash, attempt, config.snat_ports);
            to.sport = config.snat_port.wrapping_add(offset).to_be_bytes();
        }
        attempt += 1;
        translate::set_record(forward, key, to);
        forward.seen = now();
        forward.checked = forward.seen;
        forward.created = forward.seen;
        forward.endpoint = index;
        forward.generation = endpoint.generation;
        forward.service = service.id;
        forward.flags = flags;
        forward.view = view as u8;
        translate::set_twin(reverse, key, forward);
        reverse.nexthop = client_hop(key.src);
        set_twin_key(back, forward, key.proto);
        match FLOWS4.insert(&*back, &*reverse, u64::from(BPF_NOEXIST)) {
            Ok(()) => {}
            Err(EEXIST) => match get(back) {
                // Ours: the forward record was lost, or its conversation is over.
                Some(old) if translate::same(old, reverse) => *old = *reverse,
                _ => continue,
            },
            Err(_) => return Err(Reason::FlowTableFull),
        }
        if FLOWS4.insert(key, &*forward, u64::from(BPF_ANY)).is_err() {
            let _ = FLOWS4.remove(&*back);
            return Err(Reason::FlowTableFull);
        }
        count(Reason::FlowCreated);
        if local && key.proto == UDP && config.own4 != to.dst && config.own4 != [0; 4] {
            answers_from_own(config.own4, key, forward);
        }
        return Ok(());
    }
    Err(Reason::SnatExhausted)
}

/// A UDP server of this node that listens on every address answers from the one of the way out, not from the one it was asked on.
/// So a second reverse record takes the answers of the node's own address; it lives and dies by its own use.
#[inline(never)]
fn answers_from_own(own: [u8; 4], key: &Key4, forward: &Flow4) {
    let Some(Draft { reverse, to, back, .. }) = draft() else { return };
    back.src = own;
    to.src = key.dst;
    to.dst = key.src;
    to.sport = key.dport;
    to.dport = key.sport;
    translate::set_record(reverse, back, to);
    reverse.seen = forward.seen;
    reverse.checked = forward.seen;
    reverse.created = forward.seen;
    reverse.endpoint = forward.endpoint;
    reverse.generation = forward.generation;
    reverse.service = forward.service;
    reverse.flags = forward.flags ^ (flow::FORWARD | flow::REVERSE);
    reverse.view = forward.view;
    if FLOWS4.insert(&*back, &*reverse, u64::from(BPF_NOEXIST)) == Err(EEXIST)
        && let Some(old) = get(back)
        && translate::same(old, reverse)
    {
        *old = *reverse;
    }
}

#[inline(always)]
fn snat_address(config: &Config, hash: u32) -> [u8; 4] {
    // The upper half of the hash decides the port.
    let index = (hash & 0xffff).checked_rem(config.snat4_len).unwrap_or(0);
    // The verifier does not follow a remainder's bound; it does follow a mask's.
    let index = core::hint::black_box(index) as usize & (MAX_SNAT_ADDRESSES - 1);
    config.snat4[index]
}
