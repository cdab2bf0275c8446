//! A table in the kernel's place.

use std::{collections::HashMap, io, sync::Mutex};

use gateway::dns::AnswerStore;
use gateway_common::{
    dns::{
        emit::Request,
        name::is_below,
        reply::{Reply, aged, opt},
        resolve::{Lookup, Outcome, resolve},
        wire,
    },
    maps::{DnsEntry, DnsKey, DnsLarge, Zone, dns_entry, dns_key},
};

#[derive(Default)]
pub struct Tables {
    pub entries: HashMap<DnsKey, (DnsEntry, Option<DnsLarge>)>,
    pub zones: HashMap<usize, Zone>,
    /// Puts and removals so far.
    pub writes: usize,
    /// Entries that fit; more are refused like a full map refuses them.
    pub capacity: Option<usize>,
}

#[derive(Default)]
pub struct Recorder(pub Mutex<Tables>);

impl Recorder {
    pub fn with<T>(&self, f: impl FnOnce(&mut Tables) -> T) -> T {
        f(&mut self.0.lock().expect("no test panics with the lock"))
    }

    pub fn len(&self) -> usize {
        self.with(|tables| tables.entries.len())
    }

    pub fn has(&self, name: &str, qtype: u16) -> bool {
        let name = gateway_common::dns::name::to_wire(name).expect("name");
        self.with(|tables| {
            tables.entries.keys().any(|key| key.name[..key.len.into()] == name[..] && key.qtype == qtype)
        })
    }

    pub fn is_complete(&self) -> bool {
        self.with(|tables| tables.zones.get(&0).is_some_and(|zone| zone.complete != 0))
    }

    /// What the kernel would answer; `None`: it passes the query on.
    pub fn answer(&self, packet: &[u8], view: u32, now: u64) -> Option<Vec<u8>> {
        let request = Request::parse(packet).ok()?;
        let key = request.key()?;
        let query = request.query;
        self.with(|tables| {
            let outcome = resolve(&mut At { tables, key, now }, &query, view);
            let (reply, body) = match outcome {
                Outcome::Answer(entry, age) => {
                    // Zone data is there once, whatever DO and CD the query has.
                    let flags = if entry.flags & dns_entry::ZONE == 0 { query.bits } else { 0 };
                    let key = DnsKey { qtype: query.qtype, flags, ..key };
                    let large = tables.entries.get(&key).and_then(|(_, large)| *large);
                    let len = usize::from(entry.len);
                    let reply = Reply::of_entry(&query, entry, query.limit());
                    let mut body = match (reply.truncated, large) {
                        (true, _) => Vec::new(),
                        (_, Some(large)) => large.body[..len].to_vec(),
                        (_, None) => entry.body[..len].to_vec(),
                    };
                    for at in entry.ttls[..entry.ttl_count.into()].iter().map(|at| usize::from(*at)) {
                        if let Some(field) = body.get_mut(at..at + 4) {
                            let ttl = u32::from_be_bytes(field.try_into().expect("four bytes"));
                            field.copy_from_slice(&aged(ttl, age).to_be_bytes());
                        }
                    }
                    (reply, body)
                }
                Outcome::NoData(zone) => negative(&query, zone, wire::NOERROR),
                Outcome::NxDomain(zone) => negative(&query, zone, wire::NXDOMAIN),
                Outcome::Miss | Outcome::Expired => return None,
            };
            let mut message: Vec<u8> = reply.header(&query).into_iter().flat_map(u16::to_be_bytes).collect();
            message.extend(request.question());
            message.extend(body);
            if reply.edns {
                message.extend(opt(query.bits & dns_key::DO != 0));
            }
            Some(message)
        })
    }
}

fn negative(query: &gateway_common::dns::question::Query, zone: &Zone, rcode: u16) -> (Reply, Vec<u8>) {
    let reply = Reply::of_zone(query, zone, rcode, query.limit());
    let body = match reply.truncated {
        true => Vec::new(),
        false => [&reply.owner.to_be_bytes()[..], &zone.soa[..zone.soa_len.into()]].concat(),
    };
    (reply, body)
}

struct At<'a> {
    tables: &'a Tables,
    key: DnsKey,
    now: u64,
}

impl<'a> Lookup for At<'a> {
    type Entry = &'a DnsEntry;
    type Zone = &'a Zone;
    fn entry(&mut self, qtype: u16, bits: u8) -> Option<&'a DnsEntry> {
        self.tables.entries.get(&DnsKey { qtype, flags: bits, ..self.key }).map(|(entry, _)| entry)
    }
    fn zone(&mut self) -> Option<&'a Zone> {
        let zones = self.tables.zones.values().filter(|zone| zone.name_len > 0);
        zones
            .filter(|zone| is_below(&self.key, self.key.len.into(), &zone.name, zone.name_len.into()))
            .max_by_key(|zone| zone.name_len)
    }
    fn now(&mut self) -> u64 {
        self.now
    }
}

impl AnswerStore for Recorder {
    fn put(&self, key: &DnsKey, entry: &DnsEntry, large: Option<&DnsLarge>) -> io::Result<()> {
        assert_eq!(entry.large != 0, large.is_some(), "a long body goes with its number");
        self.with(|tables| {
            tables.writes += 1;
            let full = tables.capacity.is_some_and(|capacity| tables.entries.len() >= capacity);
            if full && !tables.entries.contains_key(key) {
                return Err(io::Error::from_raw_os_error(7));
            }
            tables.entries.insert(*key, (*entry, large.copied()));
            Ok(())
        })
    }
    fn remove(&self, key: &DnsKey) -> io::Result<()> {
        self.with(|tables| {
            tables.writes += 1;
            tables.entries.remove(key);
        });
        Ok(())
    }
    fn hits(&self, key: &DnsKey) -> Option<u64> {
        self.with(|tables| tables.entries.get(key).map(|(entry, _)| entry.hits))
    }
    fn set_zone(&self, index: usize, zone: &Zone) -> io::Result<()> {
        self.with(|tables| tables.zones.insert(index, *zone));
        Ok(())
    }
}
