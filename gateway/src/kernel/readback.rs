//! Reads the maps back for people: flows and counters.

use std::io;

use aya::Ebpf;
use bytemuck::Pod;
use gateway_common::{
    Reason,
    maps::{Flow, FlowKey, flow},
};

use super::{
    Counters, FlowInfo, KernelError,
    family::Family,
    sweep::{Clock, FlowMaps, FlowTable, Flows, State},
    table::{Cursor, Table},
};

/// Records fetched by one system call.
const CHUNK: usize = 256;

/// `COUNTERS`: an array of counters for each CPU.
#[derive(Debug)]
pub(super) struct PerCpuCounters {
    table: Table<u32, u64>,
    cpus: usize,
}

impl PerCpuCounters {
    pub(super) fn open(ebpf: &Ebpf) -> Result<Self, KernelError> {
        let table = Table::open(ebpf, "COUNTERS")?;
        let cpus = aya::util::nr_cpus().map_err(|(what, source)| KernelError::Os { what, source })?;
        Ok(Self { table, cpus })
    }

    /// Every counter, summed over the CPUs.
    pub(super) fn read(&self) -> Counters {
        let sum = |r: Reason| self.table.get_per_cpu(&(r as u32), self.cpus).map_or(0, |cpus| cpus.iter().sum());
        Reason::ALL.iter().map(|r| (r.name(), sum(*r))).collect()
    }
}

/// At most `limit` flows of either family, in no order.
pub(super) fn flows(maps: &FlowMaps, clock: Clock, limit: usize) -> Result<Vec<FlowInfo>, KernelError> {
    let mut list = Vec::new();
    let v4 = read(&maps.v4, maps, clock, limit, &mut list);
    v4.map_err(|source| KernelError::map(<[u8; 4]>::FLOWS, source))?;
    let v6 = read(&maps.v6, maps, clock, limit, &mut list);
    v6.map_err(|source| KernelError::map(<[u8; 16]>::FLOWS, source))?;
    Ok(list)
}

fn read<A: Family>(
    table: &FlowTable<A>,
    maps: &FlowMaps,
    clock: Clock,
    limit: usize,
    list: &mut Vec<FlowInfo>,
) -> io::Result<()>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let flows = Flows::new(table, &maps.endpoints);
    let mut cursor = Cursor::default();
    loop {
        let records = table.walk(&mut cursor, CHUNK)?;
        if records.is_empty() {
            return Ok(());
        }
        for (key, record) in records {
            if record.flags & flow::FORWARD == 0 {
                continue;
            }
            if list.len() >= limit {
                return Ok(());
            }
            let back = flows.twin(&key, &record)?.map(|(_, r)| r);
            list.push(info(clock, &key, &record, back.as_ref()));
        }
    }
}

fn info<A: Family>(clock: Clock, key: &FlowKey<A>, out: &Flow<A>, back: Option<&Flow<A>>) -> FlowInfo {
    let socket = |addr: A, port| addr.socket(port).to_string();
    let idle = clock.seconds(out.seen);
    FlowInfo {
        protocol: match key.proto {
            6 => "tcp",
            17 => "udp",
            1 => "icmp",
            58 => "icmpv6",
            _ => "other",
        },
        client: socket(key.src, key.sport),
        vip: socket(key.dst, key.dport),
        endpoint: socket(out.new_dst, out.new_dport),
        source: socket(out.new_src, out.new_sport),
        state: State::of(key.proto, Some(out), back).name(),
        idle: back.map_or(idle, |b| idle.min(clock.seconds(b.seen))),
        age: clock.seconds(out.created),
        packets_out: out.packets,
        packets_in: back.map_or(0, |b| b.packets),
        bytes_out: out.bytes,
        bytes_in: back.map_or(0, |b| b.bytes),
        view: out.view,
    }
}
