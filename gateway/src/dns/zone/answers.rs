//! How the zone's records become answers.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use gateway_common::{
    dns::{
        build::{self, Answer, BuildError, EntryBuilder, Record, Soa},
        wire,
    },
    limits::DNS_MAX_UDP,
    maps::{self, dns_key},
};

use super::{
    ALL_VIEWS, TYPE_HINFO, ZoneConfig,
    tree::{Data, Node, RrSet, Tree},
};
use crate::dns::{learn::Rr, name};

/// Bytes of records in one answer: what is left of a message without header, question and OPT, rounded down. A headless Service of
/// some thousands of endpoints has more; no client can be given them all at once.
const MAX_BODY: usize = 64_000;
/// A pointer has 14 bits.
const POINTER_REACH: usize = 1 << 14;
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

/// The zones' own records, and how answers are made.
pub struct Answers {
    soa: Vec<u8>,
    soa_ttl: u32,
    ns: Vec<u8>,
    mailbox: Vec<u8>,
    ttl: u32,
    negative_ttl: u32,
    serial: u32,
}

impl Answers {
    /// The maker for the cluster's domain and its reverse zones, which have the same name server.
    pub fn new(domain: &[u8], config: &ZoneConfig<'_>) -> Self {
        let below = |labels: &[u8]| [labels, domain].concat();
        let mut answers = Self {
            soa: Vec::new(),
            soa_ttl: config.ttl.min(config.negative_ttl),
            ns: below(b"\x02ns\x03dns"),
            mailbox: below(b"\x0ahostmaster"),
            ttl: config.ttl,
            negative_ttl: config.negative_ttl,
            serial: config.serial,
        };
        answers.soa = answers.soa().rdata();
        answers
    }

    fn soa(&self) -> Soa<'_> {
        Soa {
            mname: &self.ns,
            rname: &self.mailbox,
            serial: self.serial,
            refresh: 7200,
            retry: 1800,
            expire: 86_400,
            minimum: self.negative_ttl,
        }
    }

    /// A zone for the tables, not complete yet.
    pub fn zone(&self, apex: &[u8]) -> Result<maps::Zone, BuildError> {
        build::zone(apex, &self.soa(), self.ttl, false)
    }

    /// Serial of the SOA.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The name that the NS records say, whose addresses go with them.
    pub fn name_server(&self) -> &[u8] {
        &self.ns
    }

    /// The entries that a name should have, the one that says that it exists last.
    pub fn wanted(&self, tree: &Tree, name: &[u8]) -> Result<Vec<Wanted>, BuildError> {
        let Some(node) = tree.get(name) else { return Ok(Vec::new()) };
        let own = if is_apex(tree, name) { &[wire::SOA, wire::NS][..] } else { &[] };
        let types = own.iter().copied().chain(node.types()).chain([dns_key::EXISTS]);
        types.filter_map(|qtype| self.entry(tree, &node, name, qtype).transpose()).collect()
    }

    /// The entry that a name should have for one type.
    pub fn wanted_of(&self, tree: &Tree, name: &[u8], qtype: u16) -> Result<Option<Wanted>, BuildError> {
        tree.get(name).map_or(Ok(None), |node| self.entry(tree, &node, name, qtype))
    }

    fn entry(&self, tree: &Tree, node: &Node, name: &[u8], qtype: u16) -> Result<Option<Wanted>, BuildError> {
        let whole = |answer: Answer| Ok(Some(Wanted { qtype, answer: Arc::new(answer), split: false }));
        let own = match qtype {
            wire::SOA => Some((self.soa_ttl, &self.soa)),
            wire::NS => Some((self.ttl, &self.ns)),
            _ => None,
        };
        if let Some((ttl, rdata)) = own {
            if !is_apex(tree, name) {
                return Ok(None);
            }
            let mut builder = EntryBuilder::zone(name, node.views())?;
            builder.answer(Record::new(name, qtype, ttl, rdata))?;
            if qtype == wire::NS {
                addresses(&mut builder, tree, [&*self.ns], node.views())?;
            }
            return whole(builder.build()?);
        }
        if qtype == dns_key::EXISTS {
            return match (tree.zone_of(name), node.rrset(wire::CNAME)) {
                (None, _) => Ok(None),
                (_, Some(_)) => whole(build::exists_as_alias(name, node.views())?),
                (_, None) => whole(build::exists(name, node.views())?),
            };
        }
        match node.rrset(qtype) {
            None => Ok(None),
            Some(set) if set.is_same_for_all() => whole(answer(tree, name, qtype, &set, set.views())?),
            Some(set) => {
                let answer = EntryBuilder::zone(name, set.views())?.build()?;
                Ok(Some(Wanted { qtype, answer: Arc::new(answer), split: true }))
            }
        }
    }

    /// Addresses of one family that no record of the zone holds.
    pub fn addresses(&self, name: &[u8], all: impl Iterator<Item = IpAddr>) -> Option<Answer> {
        let mut builder = EntryBuilder::zone(name, ALL_VIEWS).ok()?;
        for addr in all {
            let data = Data::Address(addr);
            builder.answer(Record::new(name, data.rtype()?, self.ttl, &rdata(&data)?)).ok()?;
        }
        builder.build().ok()
    }

    /// An alias that no record of the zone holds.
    pub fn cname(&self, name: &[u8], target: &[u8]) -> Rr {
        let (owner, rdata) = (name.to_vec(), target.to_vec());
        Rr { owner, rtype: wire::CNAME, class: wire::IN, ttl: self.ttl, rdata }
    }

    /// That alias as an answer.
    pub fn alias(&self, name: &[u8], target: &[u8]) -> Option<Answer> {
        let mut builder = EntryBuilder::zone(name, ALL_VIEWS).ok()?;
        builder.answer(self.cname(name, target).as_record()).ok()?;
        builder.build().ok()
    }

    /// An SOA for another apex.
    pub fn soa_of(&self, apex: &[u8]) -> Option<Answer> {
        let mut builder = EntryBuilder::zone(apex, ALL_VIEWS).ok()?;
        builder.answer(Record::new(apex, wire::SOA, self.soa_ttl, &self.soa)).ok()?;
        builder.build().ok()
    }

    /// RFC 8482: one record, that says why there are not more.
    pub fn minimal_any(&self, name: &[u8]) -> Option<Answer> {
        let mut builder = EntryBuilder::zone(name, ALL_VIEWS).ok()?;
        builder.answer(Record::new(name, TYPE_HINFO, self.ttl, MINIMAL_ANY)).ok()?;
        builder.build().ok()
    }
}

fn is_apex(tree: &Tree, name: &[u8]) -> bool {
    tree.apexes().iter().any(|apex| **apex == *name)
}

/// What some views see of a set whose records not all views see; `None`: nothing, or it is the same for all.
pub fn for_views(tree: &Tree, name: &[u8], qtype: u16, views: u64) -> Option<Answer> {
    let node = tree.get(name)?;
    let set = node.rrset(qtype)?;
    let split = !set.is_same_for_all() && set.views() & views != 0;
    split.then(|| answer(tree, name, qtype, &set, views).ok()).flatten()
}

/// The alias that some views see at a name.
pub fn alias(node: &Node, name: &[u8], views: u64) -> Option<Rr> {
    let set = node.rrset(wire::CNAME)?;
    let (data, _) = set.records.iter().find(|(_, mask)| mask & views != 0)?;
    Some(Rr { owner: name.to_vec(), rtype: wire::CNAME, class: wire::IN, ttl: set.ttl, rdata: rdata(data)? })
}

fn answer(tree: &Tree, name: &[u8], qtype: u16, set: &RrSet<'_>, views: u64) -> Result<Answer, BuildError> {
    let mut builder = EntryBuilder::zone(name, views)?;
    let mut room = MAX_BODY;
    let visible = || set.records.iter().filter(|(_, mask)| mask & views != 0).map(|(data, _)| *data);
    for rdata in visible().filter_map(rdata) {
        // A pointer, type, class, TTL and length before the data.
        let Some(left) = room.checked_sub(12 + rdata.len()) else {
            // The plan of the Service has said it, once.
            tracing::debug!(name = name::to_text(name), "more records than a DNS message holds: the rest is left out");
            break;
        };
        room = left;
        builder.answer(Record::new(name, qtype, set.ttl, &rdata))?;
    }
    let targets: BTreeSet<&[u8]> = visible().filter_map(|data| data.target().map(|target| &**target)).collect();
    addresses(&mut builder, tree, targets, views)?;
    builder.build()
}

/// Puts the addresses of names into the additional section: those that every one of `views` sees, and whole names only, as long as
/// they do not make a message that UDP carries one that it does not.
fn addresses<'t>(
    builder: &mut EntryBuilder,
    tree: &Tree,
    targets: impl IntoIterator<Item = &'t [u8]>,
    views: u64,
) -> Result<(), BuildError> {
    let udp = usize::from(DNS_MAX_UDP);
    let most = if builder.message_len() <= udp { udp } else { MAX_BODY };
    for target in targets {
        let Some(node) = tree.get(target) else { continue };
        let mut records = Vec::new();
        for qtype in [wire::A, wire::AAAA] {
            let Some(set) = node.rrset(qtype) else { continue };
            let seen = set.records.iter().filter(|(_, mask)| mask & views == views);
            records.extend(seen.filter_map(|(data, _)| Some((qtype, set.ttl, rdata(data)?))));
        }
        // At worst the owner is spelt out, because a pointer does not reach so far.
        let owner = if builder.message_len() < POINTER_REACH { 2 } else { target.len() };
        let size: usize = records.iter().map(|(.., rdata)| owner + 10 + rdata.len()).sum();
        if builder.message_len() + size > most {
            continue;
        }
        for (qtype, ttl, rdata) in records {
            builder.additional(Record::new(target, qtype, ttl, &rdata))?;
        }
    }
    Ok(())
}

/// Data in wire format, names spelt out; `None` for what is no record.
fn rdata(data: &Data) -> Option<Vec<u8>> {
    Some(match data {
        Data::Address(IpAddr::V4(addr)) => addr.octets().to_vec(),
        Data::Address(IpAddr::V6(addr)) => addr.octets().to_vec(),
        Data::Cname(target) | Data::Ptr(target) => target.to_vec(),
        Data::Srv(priority, weight, port, target) => {
            let numbers = [*priority, *weight, *port].map(u16::to_be_bytes).concat();
            [&numbers[..], target].concat()
        }
        Data::Txt(text) => {
            // A string holds at most 255 bytes; a longer one goes on in the next.
            let mut strings = Vec::with_capacity(text.len() + 1);
            let chunks: Vec<&[u8]> = if text.is_empty() { vec![&[]] } else { text.as_bytes().chunks(255).collect() };
            for chunk in chunks {
                strings.push(u8::try_from(chunk.len()).ok()?);
                strings.extend_from_slice(chunk);
            }
            strings
        }
        Data::Exists | Data::Host(_) => return None,
    })
}
