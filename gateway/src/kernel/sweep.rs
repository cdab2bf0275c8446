//! Flow collection: walks the flow table, joins the two records of a flow, and deletes the flows that are dead. It works on
//! map descriptors of its own and never holds up a change of the cluster.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::Ipv4Addr,
};

use gateway_common::maps::{Endpoint, Flow, FlowKey, flow, tcp};

use super::{
    Timeouts,
    table::{Cursor, Table},
};

/// Records fetched by one system call.
const CHUNK: usize = 1024;
/// Clients without a next hop that one sweep reports.
const NEW_CLIENTS: usize = 4096;

type Key = FlowKey<[u8; 4]>;
type Record = Flow<[u8; 4]>;

/// The maps that flows are in.
#[derive(Clone, Debug)]
pub(super) struct FlowMaps {
    pub(super) flows: Table<Key, Record>,
    pub(super) endpoints: Table<u32, Endpoint>,
}

/// What the two records of a flow say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Syn,
    Established,
    Fin,
    Rst,
    Udp,
    Icmp,
}

impl State {
    /// From the records of both directions.
    pub(super) fn of(proto: u8, forward: Option<&Record>, reverse: Option<&Record>) -> Self {
        if proto == 1 {
            return Self::Icmp;
        }
        if proto != 6 {
            return Self::Udp;
        }
        let (out, back) = (forward.map_or(0, |f| f.tcp), reverse.map_or(0, |f| f.tcp));
        if (out | back) & tcp::RST != 0 {
            Self::Rst
        } else if out & back & tcp::FIN != 0 {
            Self::Fin
        } else if back & tcp::ACK != 0 && out & tcp::ACK != 0 {
            Self::Established
        } else {
            Self::Syn
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Established => "established",
            Self::Fin => "fin",
            Self::Rst => "rst",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }

    const fn timeout(self, t: &Timeouts) -> u32 {
        match self {
            Self::Syn => t.tcp_syn,
            Self::Established => t.tcp_established,
            Self::Fin => t.tcp_fin,
            Self::Rst => t.tcp_rst,
            Self::Udp => t.udp,
            Self::Icmp => t.icmp,
        }
    }
}

/// What a sweep found.
#[derive(Clone, Debug, Default)]
pub(super) struct Swept {
    /// Flows that live.
    pub(super) flows: usize,
    /// Flows that were deleted.
    pub(super) ended: usize,
    /// Every client of a living flow.
    pub(super) clients: HashSet<[u8; 4]>,
    /// Next hops that records name.
    pub(super) hops: HashSet<u32>,
}

/// The clock of one sweep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// `bpf_jiffies64` now.
    pub(super) now: u64,
    /// Ticks a second.
    pub(super) hz: u32,
}

impl Clock {
    /// Ticks since `then`; a record written after `now` was read is not old.
    pub(super) const fn since(self, then: u64) -> u64 {
        let ticks = self.now.wrapping_sub(then);
        if ticks > u64::MAX / 2 { 0 } else { ticks }
    }

    /// The same in seconds.
    pub(super) fn seconds(self, then: u64) -> f64 {
        // Both are far below 2^52.
        self.since(then) as f64 / f64::from(self.hz.max(1))
    }

    const fn older(self, then: u64, seconds: u32) -> bool {
        self.since(then) > seconds as u64 * self.hz as u64
    }
}

/// The other direction's record, if it is really this flow's.
pub(super) fn twin(flows: &Table<Key, Record>, key: &Key, record: &Record) -> io::Result<Option<(Key, Record)>> {
    let other = record.twin(key.proto);
    Ok(flows.get(&other)?.filter(|r| r.twin(key.proto) == *key).map(|r| (other, r)))
}

/// Walks all records once. `hop_of` says which next hop leads to a client now (what a reverse record should name).
pub(super) fn sweep(
    maps: &FlowMaps,
    timeouts: &Timeouts,
    clock: Clock,
    hop_of: &HashMap<[u8; 4], u32>,
) -> io::Result<Swept> {
    let mut swept = Swept::default();
    let mut generations: HashMap<u32, u32> = HashMap::new();
    let mut cursor = Cursor::default();
    // Nothing younger than this can be dead, whatever its state.
    let shortest =
        [timeouts.tcp_syn, timeouts.tcp_established, timeouts.tcp_fin, timeouts.tcp_rst, timeouts.udp, timeouts.icmp]
            .into_iter()
            .min()
            .unwrap_or_default();
    loop {
        let records = maps.flows.walk(&mut cursor, CHUNK)?;
        if records.is_empty() {
            return Ok(swept);
        }
        for (key, record) in records {
            let forward = record.flags & flow::FORWARD != 0;
            let alive =
                !clock.older(record.seen, shortest) || !dead(maps, timeouts, clock, &mut generations, &key, &record)?;
            if !alive {
                // The records were copied a moment ago: only what still stands as it was is deleted. Both go with the first of
                // the two that the walk meets.
                if end(maps, clock, &key, &record)? {
                    swept.ended += 1;
                }
                continue;
            }
            if forward {
                swept.flows += 1;
                if hop_of.contains_key(&key.src) || swept.clients.len() < hop_of.len() + NEW_CLIENTS {
                    swept.clients.insert(key.src);
                }
                swept.hops.insert(record.nexthop);
            } else {
                swept.hops.insert(freshen(maps, &key, record, hop_of)?);
            }
        }
    }
}

/// Gives a reverse record the next hop that leads to its client now; the hop it names then.
fn freshen(maps: &FlowMaps, key: &Key, record: Record, hop_of: &HashMap<[u8; 4], u32>) -> io::Result<u32> {
    match hop_of.get(&record.new_dst) {
        Some(hop) if *hop != record.nexthop && record.nexthop != 0 => {
            // A packet counted between the two system calls is lost from the statistics, not from the flow.
            if let Some(now) = maps.flows.get(key)? {
                maps.flows.replace(key, &Record { nexthop: *hop, ..now })?;
            }
            Ok(*hop)
        }
        _ => Ok(record.nexthop),
    }
}

fn dead(
    maps: &FlowMaps,
    timeouts: &Timeouts,
    clock: Clock,
    generations: &mut HashMap<u32, u32>,
    key: &Key,
    record: &Record,
) -> io::Result<bool> {
    let other = twin(&maps.flows, key, record)?.map(|(_, r)| r);
    // This copy may be older than the end of its flow, which its other half has met a moment ago.
    if other.is_none() && maps.flows.get(key)?.is_none() {
        return Ok(true);
    }
    let seen = other
        .map_or(record.seen, |o| if clock.since(o.seen) < clock.since(record.seen) { o.seen } else { record.seen });
    let forward = record.flags & flow::FORWARD != 0;
    let (out, back) = if forward { (Some(record), other.as_ref()) } else { (other.as_ref(), Some(record)) };
    let state = State::of(key.proto, out, back);
    if clock.older(seen, state.timeout(timeouts)) {
        return Ok(true);
    }
    // The endpoint is gone: the next packet would end the flow anyway; one that never comes should not keep the record.
    let generation = match generations.get(&record.endpoint) {
        Some(g) => *g,
        None => {
            let g = maps.endpoints.get(&record.endpoint)?.map_or(0, |e| e.generation);
            generations.insert(record.endpoint, g);
            g
        }
    };
    Ok(generation != record.generation && clock.older(seen, timeouts.tcp_rst))
}

/// Deletes both records of a flow, unless one was used since it was copied. Says whether the first is gone.
fn end(maps: &FlowMaps, clock: Clock, key: &Key, record: &Record) -> io::Result<bool> {
    let other = twin(&maps.flows, key, record)?;
    // Ticks are counted to the moment when the sweep began: none means a packet since.
    if other.is_some_and(|(_, r)| clock.since(r.seen) == 0) {
        return Ok(false);
    }
    let Some(now) = maps.flows.get(key)? else { return Ok(false) };
    if now.seen != record.seen || now.created != record.created {
        return Ok(false);
    }
    let removed = maps.flows.remove(key)?;
    if let Some((other, _)) = other {
        maps.flows.remove(&other)?;
    }
    Ok(removed)
}

/// A client's address as text, for logs.
pub(super) fn client(addr: [u8; 4]) -> std::net::IpAddr {
    Ipv4Addr::from(addr).into()
}
