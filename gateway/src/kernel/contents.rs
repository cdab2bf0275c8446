//! What the maps of Services say, read from the maps themselves: for people who do not trust the plan, and for tests that do not either.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
};

use bytemuck::Pod;
use gateway_common::maps::{Service, ServiceKey, endpoint, service};

use super::{
    KernelError,
    family::Family,
    services::Maps,
    table::{Cursor, Table},
};

/// Entries fetched by one system call.
const CHUNK: usize = 256;

/// A VIP and port as the datapath finds it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The VIP.
    pub vip: IpAddr,
    /// Port; 0: the VIP itself.
    pub port: u16,
    /// IP protocol; 0: the VIP itself.
    pub protocol: u8,
    /// Bit n: view n may see it.
    pub views: u64,
    /// UDP queries to it are answered in the kernel.
    pub dns: bool,
    /// ClientIP affinity in seconds; 0: none.
    pub affinity: u32,
    /// Endpoints that its table leads to.
    pub endpoints: BTreeSet<SocketAddr>,
    /// Places of the table that lead nowhere: 0, or the datapath refuses flows that it should serve.
    pub broken: usize,
}

/// Everything, sorted. Nothing is locked: an entry that changes meanwhile is told as it was or as it is.
pub(super) fn read(maps: &Maps) -> Result<Vec<Entry>, KernelError> {
    let mut entries = Vec::new();
    one(maps, &maps.services.v4, &mut entries).map_err(|source| KernelError::map(<[u8; 4]>::SERVICES, source))?;
    one(maps, &maps.services.v6, &mut entries).map_err(|source| KernelError::map(<[u8; 16]>::SERVICES, source))?;
    entries.sort();
    Ok(entries)
}

fn one<A: Family>(maps: &Maps, table: &Table<ServiceKey<A>, Service>, entries: &mut Vec<Entry>) -> io::Result<()>
where
    ServiceKey<A>: Pod,
{
    let mut cursor = Cursor::default();
    loop {
        let chunk = table.walk(&mut cursor, CHUNK)?;
        if chunk.is_empty() {
            return Ok(());
        }
        for (key, value) in chunk {
            let (endpoints, broken) = endpoints(maps, &value)?;
            entries.push(Entry {
                vip: key.addr.into(),
                port: u16::from_be_bytes(key.port),
                protocol: key.proto,
                views: value.views,
                dns: value.flags & service::DNS != 0,
                affinity: value.affinity,
                endpoints,
                broken,
            });
        }
    }
}

/// What the slots of a Service lead to.
fn endpoints(maps: &Maps, value: &Service) -> io::Result<(BTreeSet<SocketAddr>, usize)> {
    let mut indices = BTreeSet::new();
    for place in value.slots..value.slots.saturating_add(value.slot_count) {
        indices.extend(maps.maglev.get(&place)?);
    }
    let (mut found, mut broken) = (BTreeSet::new(), 0);
    for index in indices {
        match maps.endpoints.get(&index)?.filter(|e| e.generation != 0 && e.service == value.id) {
            Some(e) => {
                let addr = if e.flags & endpoint::V6 != 0 {
                    IpAddr::from(e.addr)
                } else {
                    let [a, b, c, d, ..] = e.addr;
                    IpAddr::from([a, b, c, d])
                };
                found.insert(SocketAddr::new(addr, u16::from_be_bytes(e.port)));
            }
            None => broken += 1,
        }
    }
    Ok((found, broken))
}
