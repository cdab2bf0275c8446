//! Reads the maps back for people: flows and counters.

use std::{io, net::Ipv4Addr};

use aya::Ebpf;
use gateway_common::{
    Reason,
    maps::{Flow, FlowKey, flow},
};

use super::{
    Counters, FlowInfo, KernelError,
    sweep::{Clock, FlowMaps, State, twin},
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

/// At most `limit` flows, in no order.
pub(super) fn flows(maps: &FlowMaps, clock: Clock, limit: usize) -> io::Result<Vec<FlowInfo>> {
    let mut list = Vec::new();
    let mut cursor = Cursor::default();
    loop {
        let records = maps.flows.walk(&mut cursor, CHUNK)?;
        if records.is_empty() {
            return Ok(list);
        }
        for (key, record) in records {
            if record.flags & flow::FORWARD == 0 {
                continue;
            }
            if list.len() == limit {
                return Ok(list);
            }
            let back = twin(&maps.flows, &key, &record)?.map(|(_, r)| r);
            list.push(info(clock, &key, &record, back.as_ref()));
        }
    }
}

fn socket(addr: [u8; 4], port: [u8; 2]) -> String {
    format!("{}:{}", Ipv4Addr::from(addr), u16::from_be_bytes(port))
}

fn info(clock: Clock, key: &FlowKey<[u8; 4]>, out: &Flow<[u8; 4]>, back: Option<&Flow<[u8; 4]>>) -> FlowInfo {
    let idle = clock.seconds(out.seen);
    FlowInfo {
        protocol: match key.proto {
            6 => "tcp",
            17 => "udp",
            1 => "icmp",
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
