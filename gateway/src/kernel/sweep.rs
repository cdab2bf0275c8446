//! Flow collection: walks the flow table, joins the two records of a flow, and deletes the flows that are dead. It works on
//! map descriptors of its own and never holds up a change of the cluster.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
};

use bytemuck::Pod;
use gateway_common::maps::{Endpoint, Flow, FlowKey, flow, tcp};

use super::{
    KernelError, Timeouts,
    family::Family,
    table::{Cursor, Table},
};

/// Records fetched by one system call.
const CHUNK: usize = 1024;
/// Clients without a next hop that one sweep reports.
const NEW_CLIENTS: usize = 4096;

/// The flow table of a family.
pub(super) type FlowTable<A> = Table<FlowKey<A>, Flow<A>>;

/// The maps that flows are in.
#[derive(Clone, Debug)]
pub(super) struct FlowMaps {
    pub(super) v4: FlowTable<[u8; 4]>,
    pub(super) v6: FlowTable<[u8; 16]>,
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
    pub(super) fn of<A>(proto: u8, forward: Option<&Flow<A>>, reverse: Option<&Flow<A>>) -> Self {
        if proto == 1 || proto == 58 {
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

impl Timeouts {
    fn shortest(&self) -> u32 {
        let all = [self.tcp_syn, self.tcp_established, self.tcp_fin, self.tcp_rst, self.udp, self.icmp];
        all.into_iter().min().unwrap_or_default()
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
    pub(super) clients: HashSet<IpAddr>,
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

    pub(super) const fn older(self, then: u64, seconds: u32) -> bool {
        self.since(then) > seconds as u64 * self.hz as u64
    }
}

/// The flow table of a family, and what its records refer to.
#[derive(Debug)]
pub(super) struct Flows<'m, A> {
    table: &'m FlowTable<A>,
    endpoints: &'m Table<u32, Endpoint>,
}

impl<'m, A: Family> Flows<'m, A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    pub(super) const fn new(table: &'m FlowTable<A>, endpoints: &'m Table<u32, Endpoint>) -> Self {
        Self { table, endpoints }
    }

    /// The other direction's record, if it is really this flow's.
    pub(super) fn twin(&self, key: &FlowKey<A>, record: &Flow<A>) -> io::Result<Option<(FlowKey<A>, Flow<A>)>> {
        let other = record.twin(key.proto);
        Ok(self.table.get(&other)?.filter(|r| r.twin(key.proto) == *key).map(|r| (other, r)))
    }

    /// Walks all records once, and adds to `swept` what it finds.
    fn sweep(&self, sweep: &Sweep<'_>, swept: &mut Swept) -> io::Result<()> {
        let mut generations: HashMap<u32, u32> = HashMap::new();
        let mut cursor = Cursor::default();
        let shortest = sweep.timeouts.shortest();
        loop {
            let records = self.table.walk(&mut cursor, CHUNK)?;
            if records.is_empty() {
                return Ok(());
            }
            for (key, record) in records {
                // Nothing younger than the shortest timeout can be dead, whatever its state.
                let alive =
                    !sweep.clock.older(record.seen, shortest) || !self.dead(sweep, &mut generations, &key, &record)?;
                if !alive {
                    // The records were copied a moment ago: only what still stands as it was is deleted. Both go with the first
                    // of the two that the walk meets.
                    if self.end(sweep.clock, &key, &record)? {
                        swept.ended += 1;
                    }
                } else if record.flags & flow::FORWARD != 0 {
                    swept.flows += 1;
                    let client = key.src.into();
                    if sweep.hop_of.contains_key(&client) || swept.clients.len() < sweep.hop_of.len() + NEW_CLIENTS {
                        swept.clients.insert(client);
                    }
                    swept.hops.insert(record.nexthop);
                } else {
                    swept.hops.insert(self.freshen(&key, record, sweep.hop_of)?);
                }
            }
        }
    }

    /// Gives a reverse record the next hop that leads to its client now; the hop it names then.
    fn freshen(&self, key: &FlowKey<A>, record: Flow<A>, hop_of: &HashMap<IpAddr, u32>) -> io::Result<u32> {
        match hop_of.get(&record.new_dst.into()) {
            Some(hop) if *hop != record.nexthop && record.nexthop != 0 => {
                // A packet counted between the two system calls is lost from the statistics, not from the flow.
                if let Some(now) = self.table.get(key)? {
                    self.table.replace(key, &Flow { nexthop: *hop, ..now })?;
                }
                Ok(*hop)
            }
            _ => Ok(record.nexthop),
        }
    }

    fn dead(
        &self,
        sweep: &Sweep<'_>,
        generations: &mut HashMap<u32, u32>,
        key: &FlowKey<A>,
        record: &Flow<A>,
    ) -> io::Result<bool> {
        let clock = sweep.clock;
        let other = self.twin(key, record)?.map(|(_, r)| r);
        // This copy may be older than the end of its flow, which its other half has met a moment ago.
        if other.is_none() && self.table.get(key)?.is_none() {
            return Ok(true);
        }
        let seen = other
            .map_or(record.seen, |o| if clock.since(o.seen) < clock.since(record.seen) { o.seen } else { record.seen });
        let forward = record.flags & flow::FORWARD != 0;
        let (out, back) = if forward { (Some(record), other.as_ref()) } else { (other.as_ref(), Some(record)) };
        let state = State::of(key.proto, out, back);
        if clock.older(seen, state.timeout(sweep.timeouts)) {
            return Ok(true);
        }
        // The endpoint is gone: the next packet would end the flow anyway; one that never comes should not keep the record.
        let generation = match generations.get(&record.endpoint) {
            Some(g) => *g,
            None => {
                let g = self.endpoints.get(&record.endpoint)?.map_or(0, |e| e.generation);
                generations.insert(record.endpoint, g);
                g
            }
        };
        Ok(generation != record.generation && clock.older(seen, sweep.timeouts.tcp_rst))
    }

    /// Deletes both records of a flow, unless one was used since it was copied. Says whether the first is gone.
    fn end(&self, clock: Clock, key: &FlowKey<A>, record: &Flow<A>) -> io::Result<bool> {
        let other = self.twin(key, record)?;
        // Ticks are counted to the moment when the sweep began: none means a packet since.
        if other.is_some_and(|(_, r)| clock.since(r.seen) == 0) {
            return Ok(false);
        }
        let Some(now) = self.table.get(key)? else { return Ok(false) };
        if now.seen != record.seen || now.created != record.created {
            return Ok(false);
        }
        let removed = self.table.remove(key)?;
        if let Some((other, _)) = other {
            self.table.remove(&other)?;
        }
        Ok(removed)
    }
}

/// What a sweep goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep<'s> {
    pub(super) timeouts: &'s Timeouts,
    pub(super) clock: Clock,
    /// Which next hop leads to a client now: what a reverse record should name.
    pub(super) hop_of: &'s HashMap<IpAddr, u32>,
}

impl Sweep<'_> {
    /// Walks all records of both families once.
    pub(super) fn run(&self, maps: &FlowMaps) -> Result<Swept, KernelError> {
        fn named<A: Family>(source: io::Error) -> KernelError {
            KernelError::map(A::FLOWS, source)
        }
        let mut swept = Swept::default();
        Flows::new(&maps.v4, &maps.endpoints).sweep(self, &mut swept).map_err(named::<[u8; 4]>)?;
        Flows::new(&maps.v6, &maps.endpoints).sweep(self, &mut swept).map_err(named::<[u8; 16]>)?;
        Ok(swept)
    }
}
