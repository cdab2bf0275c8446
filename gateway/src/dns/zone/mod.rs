//! The cluster zone: fed by the plans of Services, answered by the forwarder, pushed into the kernel by its differences.
//!
//! Forwarder and kernel hold one entry a name and type, and one that says that the name exists; below a zone that is complete, what
//! has no entry does not exist. Where views see different records of one name and type, one entry cannot say it: the kernel's has
//! expired, which sends the query to the forwarder, and the forwarder builds the answer of that view.

mod answers;
mod pods;
mod redirect;
mod reverse;
mod tree;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytemuck::Zeroable as _;
use gateway_common::{
    dns::{
        build::{Answer, BuildError, key},
        emit::Request,
        resolve::Outcome,
        table::Table,
        wire,
    },
    limits::MAX_ZONES,
    maps::{self, DnsKey, dns_key},
};
use ipnet::IpNet;

use self::{
    answers::{Answers, Wanted},
    tree::Tree,
};
use super::{DnsError, learn::Rr, name, publish::Publisher, stats::ZoneInfo};
use crate::{
    model::ObjectName,
    plan::{Record, RecordData, ServicePlan},
};

/// Type HINFO.
pub const TYPE_HINFO: u16 = 13;
/// Type ANY.
pub const TYPE_ANY: u16 = 255;
/// Every view.
pub const ALL_VIEWS: u64 = u64::MAX;

/// Slot of the cluster zone in the kernel's table.
const DOMAIN: usize = 0;
/// Slot of the names of pods, when they are answered from the name alone: the forwarder does that.
const PODS: usize = 1;
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
    /// The zones, by their slots in the tables.
    slots: [Slot; MAX_ZONES],
    /// The cluster's domain, for its negative answers.
    domain: Arc<maps::Zone>,
    /// `pod` and the cluster's domain, when names of pods are answered.
    pods: Option<Box<[u8]>>,
    /// `local` is answered as a zone's apex.
    local: bool,
}

/// A slot of the zone tables; all zero when there is no zone in it.
#[derive(Clone, Copy)]
struct Slot {
    zone: maps::Zone,
    /// Everything in it is known, once the first snapshot is in.
    whole: bool,
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
    /// Names of pods are answered from the name alone, where their namespace exists.
    pub pods: bool,
    /// The SOA of `local` is answered.
    pub local: bool,
}

impl Zone {
    /// The zone with nothing but its apex, in the kernel too, where misses still go to the forwarder.
    ///
    /// # Errors
    /// When the domain is no name or too long, or the kernel does not take the zone.
    pub fn new(config: &ZoneConfig<'_>, publisher: Arc<Publisher>) -> Result<Self, DnsError> {
        let bad = || DnsError::Name { key: "dns.clusterDomain".to_owned(), name: config.domain.to_owned() };
        let apex = name::from_text(config.domain).filter(|apex| apex.len() > 1).ok_or_else(bad)?;
        let answers = Answers::new(&apex, config);
        let zone = answers.zone(&apex).map_err(DnsError::ClusterDomain)?;
        let pods = config.pods.then(|| [&b"\x03pod"[..], &apex].concat().into_boxed_slice());
        let empty = Slot { zone: maps::Zone::zeroed(), whole: false, in_kernel: maps::Zone::zeroed() };
        let mut slots = [empty; MAX_ZONES];
        slots[DOMAIN] = Slot { zone, whole: true, ..empty };
        if let Some(pods) = &pods {
            slots[PODS].zone = answers.zone(pods).map_err(DnsError::ClusterDomain)?;
        }
        let mut table = Table::default();
        for (index, slot) in slots.iter_mut().enumerate().filter(|(_, slot)| slot.zone.name_len > 0) {
            publisher
                .set_zone(index, &slot.zone)
                .map_err(|source| DnsError::Zone { zone: config.domain.to_owned(), source })?;
            slot.in_kernel = slot.zone;
            table.set_zone(index, slot.zone);
        }
        let inner = Inner {
            tree: Tree::new(vec![apex]),
            answers,
            owned: HashMap::new(),
            table,
            split: HashSet::new(),
            types: HashMap::new(),
            kernel: HashMap::new(),
            pending: HashSet::new(),
            synced: false,
            slots,
            domain: Arc::new(zone),
            pods,
            local: config.local,
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
        inner.renew_all(touched, &self.publisher);
        inner.settle(&self.publisher);
    }

    /// The first snapshot is in: what is not in the zone does not exist.
    pub fn synced(&self) {
        let mut inner = self.write();
        inner.synced = true;
        inner.set_slots();
        inner.settle(&self.publisher);
    }

    /// The ranges of VIPs: their reverse zones are known as a whole, too. Costs as much as there are pointers when they change.
    pub fn set_service_cidrs(&self, ranges: &[IpNet]) {
        let mut inner = self.write();
        let first = if inner.pods.is_some() { PODS + 1 } else { PODS };
        let new = reverse::zones(ranges, MAX_ZONES - first);
        if inner.tree.apexes()[1..] == new {
            return;
        }
        // While entries come and go, the kernel denies nothing in these zones.
        for slot in &mut inner.slots[first..] {
            slot.zone = maps::Zone::zeroed();
        }
        inner.set_slots();
        inner.settle(&self.publisher);
        let pointers: Vec<(Box<[u8]>, Record)> = inner
            .owned
            .values()
            .flatten()
            .filter(|record| record.name.ends_with(".arpa"))
            .filter_map(|record| Some((name::from_text(&record.name)?, record.clone())))
            .collect();
        let mut touched = BTreeSet::new();
        for (wire, record) in pointers.iter().chain(&inner.own_names()) {
            touched.extend(inner.tree.remove(wire, record));
        }
        inner.tree.set_reverse(new);
        for (wire, record) in pointers.iter().chain(&inner.own_names()) {
            touched.extend(inner.tree.add(wire, record));
        }
        inner.renew_all(touched, &self.publisher);
        for (index, apex) in inner.tree.apexes()[1..].to_vec().iter().enumerate() {
            match inner.answers.zone(apex) {
                Ok(zone) => {
                    let slot = &mut inner.slots[first + index];
                    (slot.zone, slot.whole) = (zone, true);
                }
                Err(error) => tracing::warn!(zone = name::to_text(apex), "not known as a whole: {error}"),
            }
        }
        inner.set_slots();
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
        let inside = inner.tree.zone_of(name).is_some();
        if any && inside && node.is_some() {
            return found(inner.answers.minimal_any(name));
        }
        if !inner.split.is_empty()
            && inner.split.contains(&(name.into(), qtype))
            && let Some(answer) = answers::for_views(&inner.tree, name, qtype, views)
        {
            return Found::Answer(Arc::new(answer));
        }
        match inner.table.resolve(request, view.into(), 0) {
            Outcome::Answer(answer, _) => Found::Answer(answer),
            Outcome::NoData(zone) => Found::Negative(zone, wire::NOERROR),
            Outcome::NxDomain(zone) => Found::Negative(zone, wire::NXDOMAIN),
            Outcome::Miss | Outcome::Expired if !inside => inner.find_local(name, qtype, any),
            Outcome::Miss | Outcome::Expired => match node.and_then(|node| answers::alias(node, name, views)) {
                Some(alias) => Found::Alias(alias),
                None => inner.find_pod(name, qtype, views, any),
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
            name: name::to_text(inner.tree.domain()),
            serial: inner.answers.serial(),
            synced: inner.synced,
            complete_in_kernel: inner.slots[DOMAIN].in_kernel.complete != 0,
            names: inner.tree.len(),
            rrsets: inner.table.iter().filter(|(_, qtype, ..)| *qtype != dns_key::EXISTS).count() + inner.split.len(),
            kernel_entries: inner.kernel.len() - inner.pending.len().min(inner.kernel.len()),
            pending: inner.pending.len(),
        }
    }
}

impl Inner {
    /// What the tables leave open: a name of a pod, whose namespace exists for this view; a name that is there without what was asked
    /// for (an alias for other views); or nothing.
    fn find_pod(&self, name: &[u8], qtype: u16, views: u64, any: bool) -> Found {
        let visible = |name: &[u8]| self.tree.get(name).is_some_and(|node| node.views() & views != 0);
        let pod = self.pods.as_ref().and_then(|zone| pods::parse(name, zone));
        let negative = |rcode| Found::Negative(Arc::clone(&self.domain), rcode);
        match pod.filter(|(_, namespace)| visible(namespace)) {
            Some(_) if any => found(self.answers.minimal_any(name)),
            Some((addr, _)) if qtype == if addr.is_ipv4() { wire::A } else { wire::AAAA } => {
                found(self.answers.addresses(name, std::iter::once(addr)))
            }
            Some(_) => negative(wire::NOERROR),
            None if !self.synced => Found::Unknown,
            None if visible(name) => negative(wire::NOERROR),
            None => negative(wire::NXDOMAIN),
        }
    }

    /// The reverse zones' own names, which exist for everyone.
    fn own_names(&self) -> Vec<(Box<[u8]>, Record)> {
        let record = |apex| Record { name: name::to_text(apex), ttl: 0, views: ALL_VIEWS, data: RecordData::Exists };
        self.tree.apexes()[1..].iter().map(|apex| (apex.clone(), record(apex))).collect()
    }

    /// Brings the forwarder's table to what the slots say.
    fn set_slots(&mut self) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            slot.zone.complete = u16::from(self.synced && slot.whole && slot.zone.name_len > 0);
            self.table.set_zone(index, slot.zone);
        }
        self.domain = Arc::new(self.slots[DOMAIN].zone);
    }

    /// Renews names whose records changed, and those that tell their addresses.
    fn renew_all(&mut self, mut names: BTreeSet<Box<[u8]>>, publisher: &Publisher) {
        let mut pointing: Vec<Box<[u8]>> = names.iter().flat_map(|name| self.tree.pointing_to(name)).cloned().collect();
        if names.contains(self.answers.name_server()) {
            pointing.extend_from_slice(self.tree.apexes());
        }
        names.extend(pointing);
        for name in &names {
            if let Err(error) = self.renew(name, publisher) {
                tracing::error!(name = name::to_text(name), "the zone has no answer for this name: {error}");
            }
        }
    }

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
                    let zone = name::to_text(self.tree.domain());
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
        let all = self.pending.is_empty();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let zone = maps::Zone { complete: slot.zone.complete * u16::from(all), ..slot.zone };
            if slot.in_kernel == zone {
                continue;
            }
            match publisher.set_zone(index, &zone) {
                Ok(()) => slot.in_kernel = zone,
                Err(error) => {
                    let named = if zone.name_len > 0 { &zone } else { &slot.in_kernel };
                    let name = name::to_text(&named.name[..named.name_len.into()]);
                    tracing::warn!("the kernel's zone table refused the state of {name}: {error}");
                }
            }
        }
    }
}

fn found(answer: Option<Answer>) -> Found {
    answer.map_or(Found::Unknown, |answer| Found::Answer(Arc::new(answer)))
}
