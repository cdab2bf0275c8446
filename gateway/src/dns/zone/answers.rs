//! How the zone's records become answers.

use std::sync::Arc;

use gateway_common::{
    dns::{
        build::{self, Answer, BuildError, EntryBuilder, Record, Soa},
        wire,
    },
    maps::{self, dns_key},
};

use super::{
    ALL_VIEWS, TYPE_HINFO, ZoneConfig,
    tree::{Node, RrSet, Tree},
};
use crate::{
    dns::{learn::Rr, name},
    plan::RecordData,
};

/// Bytes of records in one answer: what is left of a message without header, question and OPT, rounded down. A headless Service of
/// some thousands of endpoints has more; no client can be given them all at once.
const MAX_BODY: usize = 64_000;
/// HINFO "RFC8482" "".
const MINIMAL_ANY: &[u8] = b"\x07RFC8482\x00";

/// An entry that a name should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Type, or [`dns_key::EXISTS`].
    pub qtype: u16,
    /// The answer.
    pub answer: Arc<Answer>,
    /// Views see different records: one entry cannot say that, the forwarder builds each answer.
    pub split: bool,
}

/// The zone's own records, and how answers are made.
pub struct Answers {
    apex: Box<[u8]>,
    soa: Vec<u8>,
    soa_ttl: u32,
    ns: Vec<u8>,
    ttl: u32,
    serial: u32,
}

impl Answers {
    /// The maker, and the zone for the tables, not complete yet.
    pub fn new(apex: Box<[u8]>, config: &ZoneConfig<'_>) -> Result<(Self, maps::Zone), BuildError> {
        let below = |labels: &[u8]| [labels, &apex[..]].concat();
        let ns = below(b"\x02ns\x03dns");
        let soa = Soa {
            mname: &ns,
            rname: &below(b"\x0ahostmaster"),
            serial: config.serial,
            refresh: 7200,
            retry: 1800,
            expire: 86_400,
            minimum: config.negative_ttl,
        };
        let zone = build::zone(&apex, &soa, config.ttl, false)?;
        let (soa, soa_ttl) = (soa.rdata(), config.ttl.min(config.negative_ttl));
        Ok((Self { soa, soa_ttl, ns, ttl: config.ttl, serial: config.serial, apex }, zone))
    }

    /// Serial of the SOA.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The entries that a name should have, the one that says that it exists last.
    pub fn wanted(&self, tree: &Tree, name: &[u8]) -> Result<Vec<Wanted>, BuildError> {
        let Some(node) = tree.get(name) else { return Ok(Vec::new()) };
        let mut wanted = Vec::with_capacity(4);
        if *name == *self.apex {
            for (qtype, ttl, rdata) in [(wire::SOA, self.soa_ttl, &self.soa), (wire::NS, self.ttl, &self.ns)] {
                let mut builder = EntryBuilder::zone(name, node.views())?;
                builder.answer(Record::new(name, qtype, ttl, rdata))?;
                wanted.push(Wanted { qtype, answer: Arc::new(builder.build()?), split: false });
            }
        }
        for qtype in node.types() {
            let Some(set) = node.rrset(qtype) else { continue };
            let split = !set.is_same_for_all();
            let answer = if split {
                EntryBuilder::zone(name, set.views())?.build()?
            } else {
                answer(name, qtype, &set, set.views())?
            };
            wanted.push(Wanted { qtype, answer: Arc::new(answer), split });
        }
        if name::is_within(name, &self.apex) {
            let answer = match node.rrset(wire::CNAME) {
                Some(_) => build::exists_as_alias(name, node.views())?,
                None => build::exists(name, node.views())?,
            };
            wanted.push(Wanted { qtype: dns_key::EXISTS, answer: Arc::new(answer), split: false });
        }
        Ok(wanted)
    }

    /// RFC 8482: one record, that says why there are not more.
    pub fn minimal_any(&self, name: &[u8]) -> Option<Answer> {
        let mut builder = EntryBuilder::zone(name, ALL_VIEWS).ok()?;
        builder.answer(Record::new(name, TYPE_HINFO, self.ttl, MINIMAL_ANY)).ok()?;
        builder.build().ok()
    }
}

/// What some views see of a set whose records not all views see; `None`: nothing.
pub fn for_views(node: &Node, name: &[u8], qtype: u16, views: u64) -> Option<Answer> {
    let set = node.rrset(qtype)?;
    (set.views() & views != 0).then(|| answer(name, qtype, &set, views).ok()).flatten()
}

/// The alias that some views see at a name.
pub fn alias(node: &Node, name: &[u8], views: u64) -> Option<Rr> {
    let set = node.rrset(wire::CNAME)?;
    let (data, _) = set.records.iter().find(|(_, mask)| mask & views != 0)?;
    Some(Rr { owner: name.to_vec(), rtype: wire::CNAME, class: wire::IN, ttl: set.ttl, rdata: rdata(data)? })
}

fn answer(name: &[u8], qtype: u16, set: &RrSet<'_>, views: u64) -> Result<Answer, BuildError> {
    let mut builder = EntryBuilder::zone(name, views)?;
    let mut room = MAX_BODY;
    let visible = set.records.iter().filter(|(_, mask)| mask & views != 0);
    for rdata in visible.filter_map(|(data, _)| rdata(data)) {
        // A pointer, type, class, TTL and length before the data.
        let Some(left) = room.checked_sub(12 + rdata.len()) else {
            tracing::warn!(name = name::to_text(name), "more records than a DNS message holds: the rest is left out");
            break;
        };
        room = left;
        builder.answer(Record::new(name, qtype, set.ttl, &rdata))?;
    }
    builder.build()
}

/// Data in wire format, names spelt out; `None` when a name in it is none.
fn rdata(data: &RecordData) -> Option<Vec<u8>> {
    Some(match data {
        RecordData::Address(std::net::IpAddr::V4(addr)) => addr.octets().to_vec(),
        RecordData::Address(std::net::IpAddr::V6(addr)) => addr.octets().to_vec(),
        RecordData::Cname(target) | RecordData::Ptr(target) => name::from_text(target)?.into_vec(),
        RecordData::Srv(priority, weight, port, target) => {
            let numbers = [*priority, *weight, *port].map(u16::to_be_bytes).concat();
            [&numbers[..], &name::from_text(target)?].concat()
        }
        RecordData::Txt(text) => {
            // A string holds at most 255 bytes; a longer one goes on in the next.
            let mut strings = Vec::with_capacity(text.len() + 1);
            let chunks: Vec<&[u8]> = if text.is_empty() { vec![&[]] } else { text.as_bytes().chunks(255).collect() };
            for chunk in chunks {
                strings.push(u8::try_from(chunk.len()).ok()?);
                strings.extend_from_slice(chunk);
            }
            strings
        }
        RecordData::Exists => return None,
    })
}
