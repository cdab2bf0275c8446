//! The cluster zone: fed by the plans of Services, answered by the forwarder, pushed into the kernel by its differences.
//!
//! Forwarder and kernel hold one entry a name and type, and one that says that the name exists; below a zone that is complete, what
//! has no entry does not exist. Where views see different records of one name and type, one entry cannot say it: the kernel's has
//! expired, which sends the query to the forwarder, and the forwarder builds the answer of that view.

mod answers;
mod tree;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use gateway_common::{
    dns::{
        build::{Answer, BuildError, key},
        emit::Request,
        resolve::Outcome,
        table::Table,
        wire,
    },
    maps::{self, DnsKey, dns_key},
};

use self::{
    answers::{Answers, Wanted},
    tree::Tree,
};
use super::{DnsError, learn::Rr, name, publish::Publisher, stats::ZoneInfo};
use crate::{
    model::ObjectName,
    plan::{Record, ServicePlan},
};

/// Type HINFO.
pub const TYPE_HINFO: u16 = 13;
/// Type ANY.
pub const TYPE_ANY: u16 = 255;
/// Every view.
pub const ALL_VIEWS: u64 = u64::MAX;

/// Slot of the cluster zone in the kernel's table.
const SLOT: usize = 0;
/// `expires` of entries that send a query to the forwarder: long ago, but not 0, which is never.
const ASK_FORWARDER: u64 = 1;

/// What the zone says about a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The name is not in the zone.
    Elsewhere,
    /// This answer.
    Answer(Arc<Answer>),
    /// No records of that type (NOERROR), or no such name (NXDOMAIN).
    Negative(Arc<maps::Zone>, u16),
    /// A CNAME, whose target must be asked for.
    Alias(Rr),
    /// The zone is not loaded yet.
    Unknown,
}

struct Inner {
    tree: Tree,
    answers: Answers,
    owned: HashMap<ObjectName, BTreeSet<Record>>,
    /// What the forwarder answers from.
    table: Table,
    /// Names and types whose answer depends on the view.
    split: HashSet<(Box<[u8]>, u16)>,
    /// The types in the tables, by name.
    types: HashMap<Box<[u8]>, Vec<u16>>,
    /// What the kernel should hold: the names that are not too long for it.
    kernel: HashMap<DnsKey, Wanted>,
    /// What the kernel refused, and what it would not remove.
    pending: HashSet<DnsKey>,
    synced: bool,
    /// The zone in the forwarder's table; complete when the first snapshot is in.
    zone: Arc<maps::Zone>,
    in_kernel: maps::Zone,
}

/// The zone.
pub struct Zone {
    publisher: Arc<Publisher>,
    inner: RwLock<Inner>,
}

/// What the zone is told once.
pub struct ZoneConfig<'a> {
    /// The cluster domain.
    pub domain: &'a str,
    /// TTL of the records at the apex.
    pub ttl: u32,
    /// TTL of negative answers.
    pub negative_ttl: u32,
    /// Serial of the SOA.
    pub serial: u32,
    /// Records that no Service owns.
    pub fixed: Vec<Record>,
}

impl Zone {
    /// The zone with nothing but its apex, in the kernel too, where misses still go to the forwarder.
    ///
    /// # Errors
    /// When the domain is no name or too long, or the kernel does not take the zone.
    pub fn new(config: &ZoneConfig<'_>, publisher: Arc<Publisher>) -> Result<Self, DnsError> {
        let bad = || DnsError::Name { key: "dns.clusterDomain".to_owned(), name: config.domain.to_owned() };
        let apex = name::from_text(config.domain).filter(|apex| apex.len() > 1).ok_or_else(bad)?;
        let (answers, zone) = Answers::new(apex.clone(), config).map_err(DnsError::ClusterDomain)?;
        publisher.set_zone(SLOT, &zone).map_err(|source| DnsError::Zone { zone: config.domain.to_owned(), source })?;
        let mut table = Table::default();
        table.set_zone(SLOT, zone);
        let inner = Inner {
            tree: Tree::new(apex),
            answers,
            owned: HashMap::new(),
            table,
            split: HashSet::new(),
            types: HashMap::new(),
            kernel: HashMap::new(),
            pending: HashSet::new(),
            synced: false,
            zone: Arc::new(zone),
            in_kernel: zone,
        };
        let zone = Self { publisher, inner: RwLock::new(inner) };
        zone.change(None, config.fixed.iter().cloned().collect());
        Ok(zone)
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces a Service's records; `None`: it is gone. When this returns, neither the forwarder nor the kernel gives an old answer.
    pub fn apply(&self, service: &ObjectName, plan: Option<&ServicePlan>) {
        self.change(Some(service), plan.map(|plan| plan.records.iter().cloned().collect()).unwrap_or_default());
    }

    fn change(&self, service: Option<&ObjectName>, new: BTreeSet<Record>) {
        let mut inner = self.write();
        let old = service.and_then(|service| inner.owned.remove(service)).unwrap_or_default();
        let mut touched = BTreeSet::new();
        // First what comes, then what goes: names that stay never cease to exist in between.
        for (records, adds) in [(new.difference(&old), true), (old.difference(&new), false)] {
            for record in records {
                let Some(wire) = name::from_text(&record.name) else {
                    tracing::warn!(name = record.name, "not a DNS name: left out of the zone");
                    continue;
                };
                touched.extend(if adds { inner.tree.add(&wire, record) } else { inner.tree.remove(&wire, record) });
            }
        }
        if let Some(service) = service
            && !new.is_empty()
        {
            inner.owned.insert(service.clone(), new);
        }
        for name in &touched {
            if let Err(error) = inner.renew(name, &self.publisher) {
                tracing::error!(name = name::to_text(name), "the zone has no answer for this name: {error}");
            }
        }
        inner.settle(&self.publisher);
    }

    /// The first snapshot is in: what is not in the zone does not exist.
    pub fn synced(&self) {
        let mut inner = self.write();
        inner.synced = true;
        let zone = maps::Zone { complete: 1, ..*inner.zone };
        inner.zone = Arc::new(zone);
        inner.table.set_zone(SLOT, zone);
        inner.settle(&self.publisher);
    }

    /// Tries again what the kernel refused.
    pub fn retry(&self) {
        if self.read().pending.is_empty() {
            return;
        }
        let mut inner = self.write();
        for key in inner.pending.clone() {
            inner.push(&key, &self.publisher);
        }
        inner.settle(&self.publisher);
    }

    /// What the zone says to a client in `view`; `any`: about ANY.
    pub fn find(&self, request: &Request, view: u8, any: bool) -> Found {
        let inner = self.read();
        let (name, qtype) = (request.name(), request.query.qtype);
        let views = 1_u64.checked_shl(view.into()).unwrap_or(0);
        let node = inner.tree.get(name).filter(|node| node.views() & views != 0);
        let inside = name::is_within(name, inner.tree.apex());
        if any && inside && node.is_some() {
            return inner.answers.minimal_any(name).map_or(Found::Unknown, |answer| Found::Answer(Arc::new(answer)));
        }
        if !inner.split.is_empty()
            && inner.split.contains(&(name.into(), qtype))
            && let Some(answer) = node.and_then(|node| answers::for_views(node, name, qtype, views))
        {
            return Found::Answer(Arc::new(answer));
        }
        match inner.table.resolve(request, view.into(), 0) {
            Outcome::Answer(answer, _) => Found::Answer(answer),
            Outcome::NoData(zone) => Found::Negative(zone, wire::NOERROR),
            Outcome::NxDomain(zone) => Found::Negative(zone, wire::NXDOMAIN),
            Outcome::Miss | Outcome::Expired if !inside => Found::Elsewhere,
            Outcome::Miss | Outcome::Expired => match node.and_then(|node| answers::alias(node, name, views)) {
                Some(alias) => Found::Alias(alias),
                // The alias is there, but for other views.
                None if inner.synced => Found::Negative(Arc::clone(&inner.zone), wire::NOERROR),
                None => Found::Unknown,
            },
        }
    }

    /// The answer to ANY (RFC 8482) for a name.
    pub fn minimal_any(&self, name: &[u8]) -> Option<Answer> {
        self.read().answers.minimal_any(name)
    }

    /// For people.
    pub fn info(&self) -> ZoneInfo {
        let inner = self.read();
        ZoneInfo {
            name: name::to_text(inner.tree.apex()),
            serial: inner.answers.serial(),
            synced: inner.synced,
            complete_in_kernel: inner.in_kernel.complete != 0,
            names: inner.tree.len(),
            rrsets: inner.table.iter().filter(|(_, qtype, ..)| *qtype != dns_key::EXISTS).count() + inner.split.len(),
            kernel_entries: inner.kernel.len() - inner.pending.len().min(inner.kernel.len()),
            pending: inner.pending.len(),
        }
    }
}

impl Inner {
    /// Makes the entries of a name what they should be, here and in the kernel. Records go in before the name exists and out before
    /// it ceases to, so that a query in between is told of a type too few rather than sent away.
    fn renew(&mut self, name: &[u8], publisher: &Publisher) -> Result<(), BuildError> {
        let wanted = self.answers.wanted(&self.tree, name)?;
        let types: Vec<u16> = wanted.iter().map(|wanted| wanted.qtype).collect();
        let before = match types.is_empty() {
            true => self.types.remove(name),
            false => self.types.insert(name.into(), types.clone()),
        };
        for wanted in wanted {
            let qtype = wanted.qtype;
            if wanted.split {
                self.split.insert((name.into(), qtype));
                self.table.remove(name, qtype, 0);
            } else {
                self.split.remove(&(name.into(), qtype));
                self.table.put(name, qtype, 0, Arc::clone(&wanted.answer));
            }
            if let Some(key) = key(name, qtype, 0)
                && self.kernel.get(&key) != Some(&wanted)
            {
                self.kernel.insert(key, wanted);
                self.push(&key, publisher);
            }
        }
        for qtype in before.unwrap_or_default().into_iter().filter(|qtype| !types.contains(qtype)) {
            self.split.remove(&(name.into(), qtype));
            self.table.remove(name, qtype, 0);
            if let Some(key) = key(name, qtype, 0) {
                self.kernel.remove(&key);
                self.push(&key, publisher);
            }
        }
        Ok(())
    }

    /// Brings one entry of the kernel to what it should be; what the kernel refuses is tried again later.
    fn push(&mut self, key: &DnsKey, publisher: &Publisher) {
        let done = match self.kernel.get(key) {
            Some(wanted) => publisher.put_zone(key, &wanted.answer, wanted.split.then_some(ASK_FORWARDER)),
            None => publisher.remove_zone(key),
        };
        match done {
            Ok(()) => {
                self.pending.remove(key);
            }
            Err(error) => {
                if self.pending.is_empty() {
                    let zone = name::to_text(self.tree.apex());
                    tracing::warn!(
                        "the kernel's table of answers refused an entry of {zone}, the forwarder answers what \
                                    it lacks: {error}"
                    );
                }
                self.pending.insert(*key);
                self.settle(publisher);
                // What is there under that key may be old; when it cannot be removed either, the next try does it.
                drop(publisher.remove_zone(key));
            }
        }
    }

    /// The kernel may say that a name does not exist only while it has all that do.
    fn settle(&mut self, publisher: &Publisher) {
        let complete = u16::from(self.synced && self.pending.is_empty());
        if self.in_kernel.complete == complete {
            return;
        }
        let zone = maps::Zone { complete, ..self.in_kernel };
        match publisher.set_zone(SLOT, &zone) {
            Ok(()) => self.in_kernel = zone,
            Err(error) => {
                let name = name::to_text(self.tree.apex());
                tracing::warn!("the kernel's zone table refused the state of {name}: {error}");
            }
        }
    }
}
