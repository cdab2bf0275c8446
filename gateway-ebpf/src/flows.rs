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
        family::{Family, V4, V6},
        hash,
        headers::{TCP, UDP},
        parse::Packet,
        translate,
    },
};

use crate::{counters::count, net::Net, path::Role, settings::now};

#[map]
static FLOWS4: HashMap<FlowKey<[u8; 4]>, Flow<[u8; 4]>> = HashMap::with_max_entries(capacity::FLOWS, 0);
#[map]
static FLOWS6: HashMap<FlowKey<[u8; 16]>, Flow<[u8; 16]>> = HashMap::with_max_entries(capacity::FLOWS, 0);
#[map]
static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(capacity::ENDPOINTS, 0);
#[map]
static CLIENT_HOPS4: LruHashMap<[u8; 4], u32> = LruHashMap::with_max_entries(capacity::CLIENT_HOPS, 0);
#[map]
static CLIENT_HOPS6: LruHashMap<[u8; 16], u32> = LruHashMap::with_max_entries(capacity::CLIENT_HOPS, 0);

/// Where the other half of a record is, by the hash of the record's key: looked at when the record is not there. What stands there is a
/// hint, checked against the half that it leads to; flows that share a place take turns in it.
#[map]
static TWINS4: Array<FlowKey<[u8; 4]>> = Array::with_max_entries(capacity::TWINS, 0);
#[map]
static TWINS6: Array<FlowKey<[u8; 16]>> = Array::with_max_entries(capacity::TWINS, 0);

const _: () = assert!(capacity::TWINS.is_power_of_two());

#[map]
static DRAFT4: PerCpuArray<Draft<[u8; 4]>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static DRAFT6: PerCpuArray<Draft<[u8; 16]>> = PerCpuArray::with_max_entries(1, 0);

/// Scratch for the two records of a flow that begins, and their keys: the stack is too small for them.
#[repr(C)]
pub struct Draft<A> {
    forward: Flow<A>,
    reverse: Flow<A>,
    /// What a packet of the flow becomes.
    to: FlowKey<A>,
    /// Where the reverse record goes.
    back: FlowKey<A>,
    /// The packet that begins the flow.
    key: FlowKey<A>,
    /// Index of its endpoint, and that one's generation.
    endpoint: u32,
    generation: u32,
    /// Number of its Service.
    service: u32,
    /// Where the search for a source port begins.
    hash: u32,
    /// [`flow`] bits of the forward record.
    flags: u16,
    /// View of the client.
    view: u16,
    /// Attempts to be made.
    limit: u32,
}

/// The maps of a family's flows.
pub trait Table: Family {
    /// Its records.
    fn flows() -> &'static HashMap<FlowKey<Self::Addr>, Flow<Self::Addr>>;
    /// Next hops towards its clients.
    fn client_hops() -> &'static LruHashMap<Self::Addr, u32>;
    /// Where the halves of flows are.
    fn twins() -> &'static Array<FlowKey<Self::Addr>>;
    /// Its scratch.
    fn drafts() -> &'static PerCpuArray<Draft<Self::Addr>>;
    /// [`attempt`] as a function of its own.
    fn attempt(number: u32) -> u32;
}

/// What an attempt to begin a flow came to.
const BEGUN: u32 = 0;
const TAKEN: u32 = 1;
const FULL: u32 = 2;

/// A global function: the verifier looks at one attempt, not at all of them.
#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_attempt4(number: u32) -> u32 {
    attempt::<V4>(number)
}

/// As [`gateway_attempt4`].
#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_attempt6(number: u32) -> u32 {
    attempt::<V6>(number)
}

impl Table for V4 {
    #[inline(always)]
    fn flows() -> &'static HashMap<FlowKey<[u8; 4]>, Flow<[u8; 4]>> {
        &FLOWS4
    }
    #[inline(always)]
    fn client_hops() -> &'static LruHashMap<[u8; 4], u32> {
        &CLIENT_HOPS4
    }
    #[inline(always)]
    fn twins() -> &'static Array<FlowKey<[u8; 4]>> {
        &TWINS4
    }
    #[inline(always)]
    fn drafts() -> &'static PerCpuArray<Draft<[u8; 4]>> {
        &DRAFT4
    }
    #[inline(always)]
    fn attempt(number: u32) -> u32 {
        gateway_attempt4(number)
    }
}

impl Table for V6 {
    #[inline(always)]
    fn flows() -> &'static HashMap<FlowKey<[u8; 16]>, Flow<[u8; 16]>> {
        &FLOWS6
    }
    #[inline(always)]
    fn client_hops() -> &'static LruHashMap<[u8; 16], u32> {
        &CLIENT_HOPS6
    }
    #[inline(always)]
    fn twins() -> &'static Array<FlowKey<[u8; 16]>> {
        &TWINS6
    }
    #[inline(always)]
    fn drafts() -> &'static PerCpuArray<Draft<[u8; 16]>> {
        &DRAFT6
    }
    #[inline(always)]
    fn attempt(number: u32) -> u32 {
        gateway_attempt6(number)
    }
}

#[inline(always)]
fn draft<N: Table>() -> Option<&'static mut Draft<N::Addr>> {
    // SAFETY: the pointer is to this CPU's own slot, which one function at a time uses while a program runs.
    N::drafts().get_ptr_mut(0).map(|draft| unsafe { &mut *draft })
}

/// The key under which the other direction's record stands, in place.
#[inline(always)]
fn set_twin_key<A: Copy>(key: &mut FlowKey<A>, flow: &Flow<A>, proto: u8) {
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
pub enum Found<A: 'static> {
    /// Its record, and the index of its next hop.
    Flow(&'static mut Flow<A>, u32),
    /// Its endpoint is gone, and the flow with it.
    Gone,
    /// Its endpoint is gone, and it may go to another one.
    Moved,
    /// Nothing that may be used.
    Miss,
}

#[inline(always)]
fn get<N: Table>(key: &FlowKey<N::Addr>) -> Option<&'static mut Flow<N::Addr>> {
    // SAFETY: elements of a preallocated hash map stay mapped while the program runs. A record is written by the CPUs that
    // carry its direction and by the agent; its fields are plain integers, and a race costs at most a count.
    N::flows().get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
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
pub fn find<N: Net>(role: Role, packet: &Packet<N::Addr>) -> Found<N::Addr> {
    let Some(flow) = get::<N>(&packet.key) else { return Found::Miss };
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
    if opens && flow.tcp != 0 && over::<N>(&packet.key, flow) {
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

/// The record that packets of `key` would meet at a program of that role, and their next hop; for errors about the other direction.
#[inline(always)]
pub fn about<N: Net>(role: Role, key: &FlowKey<N::Addr>) -> Option<(&'static Flow<N::Addr>, u32)> {
    let flow: &'static Flow<N::Addr> = get::<N>(key)?;
    if flow.flags & flow::FORWARD == 0 {
        let leaves = flow.flags & flow::LOCAL != 0;
        return if leaves == (role == Role::Egress) { Some((flow, flow.nexthop)) } else { None };
    }
    if role != Role::Uplink {
        return None;
    }
    let endpoint = endpoint(flow.endpoint)?;
    if endpoint.generation == flow.generation { Some((flow, endpoint.nexthop)) } else { None }
}

/// A TCP conversation has ended: by a reset from either side, or by both sides' FIN.
#[inline(never)]
fn over<N: Net>(key: &FlowKey<N::Addr>, flow: &Flow<N::Addr>) -> bool {
    let back = get::<N>(&flow.twin(key.proto)).map_or(0, |twin| twin.tcp);
    (flow.tcp | back) & tcp::RST != 0 || flow.tcp & back & tcp::FIN != 0
}

/// Counts a packet in its record. Once a second the other direction's record is looked after.
#[inline(always)]
pub fn touch<N: Net>(packet: &Packet<N::Addr>, flow: &mut Flow<N::Addr>, hz: u64) {
    let now = now();
    flow.seen = now;
    flow.packets += 1;
    flow.bytes += u64::from(packet.total);
    flow.tcp |= packet.flags;
    if now.wrapping_sub(flow.checked) >= hz {
        flow.checked = now;
        look_after::<N>(&packet.key, flow);
    }
}

/// Rebuilds the other direction's record when it went missing, and learns the client's next hop.
#[inline(never)]
fn look_after<N: Net>(key: &FlowKey<N::Addr>, flow: &mut Flow<N::Addr>) {
    if flow.flags & flow::REVERSE != 0 {
        flow.nexthop = client_hop::<N>(&flow.new_dst);
        if endpoint(flow.endpoint).is_none_or(|endpoint| endpoint.generation != flow.generation) {
            return;
        }
    }
    let Some(draft) = draft::<N>() else { return };
    set_twin_key(&mut draft.back, flow, key.proto);
    remember::<N>(hash::source_port(&draft.back), key);
    let twin = &mut draft.reverse;
    translate::set_twin::<N>(twin, key, flow);
    if let Some(there) = get::<N>(&draft.back) {
        // Another flow took the port while the twin was missing: this one begins anew with its next packet.
        if flow.flags & flow::FORWARD != 0 && !translate::same(there, twin) {
            let _ = N::flows().remove(key);
        }
        return;
    }
    if twin.flags & flow::REVERSE != 0 {
        twin.nexthop = client_hop::<N>(&twin.new_dst);
    }
    if N::flows().insert(&draft.back, &*twin, u64::from(BPF_NOEXIST)).is_ok() {
        count(Reason::FlowRebuilt);
    }
}

/// Notes `key` as the other half of the record whose key has that hash.
#[inline(always)]
fn remember<N: Net>(hash: u32, key: &FlowKey<N::Addr>) {
    if let Some(place) = N::twins().get_ptr_mut(hash & (capacity::TWINS - 1)) {
        // SAFETY: elements of an array map live as long as the program; a key that another CPU writes at the same time is a wrong
        // hint, which is found out.
        unsafe { *place = *key };
    }
}

/// A packet without a record may be a reply: it goes to where replies go.
#[inline(always)]
pub fn may_be_reply<N: Net>(config: &Config, packet: &Packet<N::Addr>) -> bool {
    let offset = u16::from_be_bytes(packet.key.dport).wrapping_sub(config.snat_port);
    config.flags & config::ROUTED != 0 || offset < config.snat_ports
}

/// Rebuilds the record of a packet from that of the other direction; false: there is none, or its endpoint is gone.
#[inline(never)]
pub fn restore<N: Net>(packet: &Packet<N::Addr>) -> bool {
    let key = &packet.key;
    let Some(place) = N::twins().get_ptr(hash::source_port(key) & (capacity::TWINS - 1)) else { return false };
    let Some(draft) = draft::<N>() else { return false };
    // SAFETY: as in `remember`.
    draft.back = unsafe { *place };
    if draft.back.proto != key.proto {
        return false;
    }
    let Some(other) = get::<N>(&draft.back) else { return false };
    // Field by field: the verifier sees through a comparison of the whole key badly.
    let ours = other.new_dst == key.src
        && other.new_src == key.dst
        && other.new_dport == key.sport
        && other.new_sport == key.dport;
    if !ours || endpoint(other.endpoint).is_none_or(|endpoint| endpoint.generation != other.generation) {
        return false;
    }
    let record = &mut draft.reverse;
    translate::set_twin::<N>(record, &draft.back, other);
    if record.flags & flow::REVERSE != 0 {
        record.nexthop = client_hop::<N>(&record.new_dst);
    }
    let rebuilt = N::flows().insert(key, &*record, u64::from(BPF_NOEXIST)).is_ok();
    if rebuilt {
        count(Reason::FlowRebuilt);
    }
    rebuilt
}

/// The next hop towards a client, 0 while unknown.
#[inline(always)]
fn client_hop<N: Net>(client: &N::Addr) -> u32 {
    // SAFETY: the value is one integer, read at once.
    unsafe { N::client_hops().get(client) }.copied().unwrap_or(0)
}

/// Drafts a flow from `packet` to the endpoint at `index`, for [`attempts`].
#[inline(always)]
pub fn draft_flow<N: Net>(
    config: &Config,
    packet: &Packet<N::Addr>,
    view: u32,
    service: &Service,
    index: u32,
) -> Result<(), Reason> {
    let Some(endpoint) = endpoint(index) else { return Err(Reason::NoEndpoint) };
    let key = &packet.key;
    let local = endpoint.flags & endpoint::LOCAL != 0;
    let keeps = local || config.flags & config::ROUTED != 0;
    let hash = hash::source_port(key);
    let (_, used) = N::snat(config);
    let used = if keeps { 1 } else { used };
    if config.snat_ports == 0 || used == 0 || (endpoint.flags & endpoint::V6 != 0) != (N::VERSION == 6) {
        return Err(Reason::SnatExhausted);
    }
    let Some(draft) = draft::<N>() else { return Err(Reason::HelperFailed) };
    draft.key = *key;
    draft.to.dst = N::narrow(&endpoint.addr);
    draft.to.dport = endpoint.port;
    draft.endpoint = index;
    draft.generation = endpoint.generation;
    draft.service = service.id;
    draft.hash = hash;
    draft.flags = flow::FORWARD | if local { flow::LOCAL } else { 0 } | if keeps { flow::ROUTED } else { 0 };
    draft.view = view as u16;
    draft.limit = used * SNAT_ATTEMPTS;
    Ok(())
}

/// Begins the flow that is drafted: source ports of one address are tried first, then those of the next. `None`: it has begun.
#[inline(always)]
pub fn attempts<N: Net>() -> Option<Reason> {
    let limit = draft::<N>().map_or(0, |draft| draft.limit);
    let mut number = 0;
    while number < SNAT_ATTEMPTS * MAX_SNAT_ADDRESSES as u32 {
        if number >= limit {
            break;
        }
        match N::attempt(number) {
            BEGUN => return None,
            TAKEN => number += 1,
            FULL => return Some(Reason::FlowTableFull),
            _ => return Some(Reason::HelperFailed),
        }
    }
    Some(Reason::SnatExhausted)
}

/// Tries to begin the flow that is drafted with the source port of that number: both records, the reverse one first.
#[inline(always)]
fn attempt<N: Net>(number: u32) -> u32 {
    const LOST: u32 = 3;
    let Some(config) = crate::settings::config() else { return LOST };
    let Some(draft) = draft::<N>() else { return LOST };
    let Draft { forward, reverse, to, back, key, .. } = draft;
    let keeps = draft.flags & flow::ROUTED != 0;
    let (addresses, used) = N::snat(config);
    // The upper half of the hash decides the port.
    let address = ((draft.hash & 0xffff) + number / SNAT_ATTEMPTS).checked_rem(used).unwrap_or(0);
    // The verifier does not follow a remainder's bound; it does follow a mask's.
    let address = core::hint::black_box(address) as usize & (MAX_SNAT_ADDRESSES - 1);
    to.src = if keeps { key.src } else { addresses[address] };
    to.sport = key.sport;
    to.proto = key.proto;
    to.pad = [0; 3];
    // A client that keeps its address also keeps its port, unless it uses that port towards two VIPs of one endpoint.
    if !keeps || number > 0 {
        let offset = hash::port_candidate(draft.hash, number, config.snat_ports);
        to.sport = config.snat_port.wrapping_add(offset).to_be_bytes();
    }
    translate::set_record::<N>(forward, key, to);
    forward.seen = now();
    forward.checked = forward.seen;
    forward.created = forward.seen;
    forward.endpoint = draft.endpoint;
    forward.generation = draft.generation;
    forward.service = draft.service;
    forward.flags = draft.flags;
    forward.view = draft.view as u8;
    translate::set_twin::<N>(reverse, key, forward);
    reverse.nexthop = client_hop::<N>(&key.src);
    set_twin_key(back, forward, key.proto);
    match N::flows().insert(&*back, &*reverse, u64::from(BPF_NOEXIST)) {
        Ok(()) => {}
        Err(EEXIST) => match get::<N>(back) {
            // Ours: the forward record was lost, or its conversation is over.
            Some(old) if translate::same(old, reverse) => *old = *reverse,
            _ => return TAKEN,
        },
        Err(_) => return FULL,
    }
    if N::flows().insert(&*key, &*forward, u64::from(BPF_ANY)).is_err() {
        let _ = N::flows().remove(&*back);
        return FULL;
    }
    count(Reason::FlowCreated);
    remember::<N>(draft.hash, back);
    remember::<N>(hash::source_port(back), key);
    let own = N::address(config);
    if draft.flags & flow::LOCAL != 0 && key.proto == UDP && *own != to.dst && *own != N::ZERO {
        answers_from_own::<N>(own);
    }
    BEGUN
}

/// A UDP server of this node that listens on every address answers from the one of the way out, not from the one it was asked on.
/// So a second reverse record takes the answers of the node's own address; it lives and dies by its own use.
#[inline(never)]
fn answers_from_own<N: Net>(own: &N::Addr) {
    let Some(Draft { forward, reverse, to, back, key, .. }) = draft::<N>() else { return };
    back.src = *own;
    to.src = key.dst;
    to.dst = key.src;
    to.sport = key.dport;
    to.dport = key.sport;
    translate::set_record::<N>(reverse, back, to);
    reverse.seen = forward.seen;
    reverse.checked = forward.seen;
    reverse.created = forward.seen;
    reverse.endpoint = forward.endpoint;
    reverse.generation = forward.generation;
    reverse.service = forward.service;
    reverse.flags = forward.flags ^ (flow::FORWARD | flow::REVERSE);
    reverse.view = forward.view;
    if N::flows().insert(&*back, &*reverse, u64::from(BPF_NOEXIST)) == Err(EEXIST)
        && let Some(old) = get::<N>(back)
        && translate::same(old, reverse)
    {
        *old = *reverse;
    }
}
