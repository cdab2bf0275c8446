//! The cluster zone: fed by the plans of Services, answered by the forwarder, pushed into the kernel by its differences.
//!
//! The kernel holds one entry a name and type, and one that says that the name exists; the forwarder makes the same entries when it is
//! asked, since to keep them all would take more memory than everything else. Below a zone that is complete, what has no entry does not exist. Where views see different records of one name and type, one entry cannot say it: the kernel's has
//! expired, which sends the query to the forwarder, and the forwarder builds the answer of that view.

mod answers;
mod hosts;
mod masks;
mod pods;
mod redirect;
mod reverse;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytemuck::Zeroable as _;
use gateway_common::{
    dns::{
        build::{Answer, key},
        emit::Request,
        resolve::{Lookup, Outcome, resolve},
        wire,
    },
    limits::{DNS_NAME, MAX_ZONES},
    maps::{self, DnsKey, dns_key},
};
use hickory_proto::{rr::Name as HickoryName, serialize::binary::BinDecodable as _};
use ipnet::IpNet;

use self::{
    answers::{Answers, Wanted},
    tree::{Data, Held, Name, Tree},
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
    owned: HashMap<ObjectName, Vec<Held>>,
    /// Entries there are, and how many of them fit into the kernel.
    entries: Count,
    /// What the kernel refused, and what it would not remove.
    pending: HashSet<DnsKey>,
    synced: bool,
    /// The zones, by their slots in the tables.
    slots: [Slot; MAX_ZONES],
    /// The same, as answers share them; `None`: there is no zone in the slot.
    zones: [Option<Arc<maps::Zone>>; MAX_ZONES],
    /// The cluster's domain, for its negative answers.
    domain: Arc<maps::Zone>,
    /// `pod` and the cluster's domain, when names of pods are answered.
    pods: Option<Box<[u8]>>,
    /// `local` is answered as a zone's apex.
    local: bool,
}

/// Numbers of entries.
#[derive(Clone, Copy, Default)]
struct Count {
    rrsets: usize,
    kernel: usize,
}

impl Count {
    fn of(name: &[u8], entries: &[Wanted]) -> Self {
        Self {
            rrsets: entries.iter().filter(|wanted| wanted.qtype != dns_key::EXISTS).count(),
            kernel: if name.len() <= DNS_NAME { entries.len() } else { 0 },
        }
    }
}

/// The zone seen from one query.
struct Asked<'a> {
    inner: &'a Inner,
    name: &'a [u8],
}

impl Lookup for Asked<'_> {
    type Entry = Arc<Answer>;
    type Zone = Arc<maps::Zone>;

    fn entry(&mut self, qtype: u16, bits: u8) -> Option<Arc<Answer>> {
        let wanted =
            if bits == 0 { self.inner.answers.wanted_of(&self.inner.tree, self.name, qtype) } else { Ok(None) };
        wanted.ok().flatten().filter(|wanted| !wanted.split).map(|wanted| wanted.answer)
    }

    fn zone(&mut self) -> Option<Arc<maps::Zone>> {
        let zones = self.inner.zones.iter().flatten();
        let within = |zone: &&Arc<maps::Zone>| name::is_within(self.name, &zone.name[..zone.name_len.into()]);
        zones.filter(within).max_by_key(|zone| zone.name_len).cloned()
    }

    fn now(&mut self) -> u64 {
        // Nothing in the zone ages.
        0
    }
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
        for (index, slot) in slots.iter_mut().enumerate().filter(|(_, slot)| slot.zone.name_len > 0) {
            publisher
                .set_zone(index, &slot.zone)
                .map_err(|source| DnsError::Zone { zone: config.domain.to_owned(), source })?;
            slot.in_kernel = slot.zone;
        }
        let mut inner = Inner {
            tree: Tree::new(vec![apex.into()]),
            answers,
            owned: HashMap::new(),
            entries: Count::default(),
            pending: HashSet::new(),
            synced: false,
            slots,
            zones: Default::default(),
            domain: Arc::new(zone),
            pods,
            local: config.local,
        };
        inner.set_slots();
        let zone = Self { publisher, inner: RwLock::new(inner) };
        zone.change(std::iter::once((None, &config.fixed[..])));
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
        self.apply_all([(service, plan.map_or(&[][..], |plan| &plan.records))]);
    }

    /// The same for the records of several Services at once, each of them once: what they have in common, the names above theirs, is
    /// looked at once.
    pub fn apply_all<'r>(&self, services: impl IntoIterator<Item = (&'r ObjectName, &'r [Record])>) {
        self.change(services.into_iter().map(|(service, records)| (Some(service), records)));
    }

    fn change<'r>(&self, changes: impl Iterator<Item = (Option<&'r ObjectName>, &'r [Record])>) {
        let mut inner = self.write();
        let mut known = HashMap::new();
        let changes: Vec<_> = changes
            .map(|(service, records)| {
                let old = service.and_then(|service| inner.owned.remove(service)).unwrap_or_default();
                (service, old, inner.tree.held(records, &mut known))
            })
            .collect();
        drop(known);
        let differences: Vec<_> = changes.iter().map(|(_, old, new)| difference(old, new)).collect();
        let changed = differences.iter().flat_map(|(come, gone)| come.iter().chain(gone));
        let before = inner.before(changed.flat_map(|record| record.names()).collect());
        // First what comes, then what goes: names that stay never cease to exist in between.
        differences.iter().flat_map(|(come, _)| come).for_each(|record| inner.tree.add(record));
        differences.iter().flat_map(|(_, gone)| gone).for_each(|record| inner.tree.remove(record));
        drop(differences);
        for (service, _, new) in changes {
            if let Some(service) = service
                && !new.is_empty()
            {
                inner.owned.insert(service.clone(), new);
            }
        }
        inner.renew_all(before, &self.publisher);
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
        if inner.tree.apexes()[1..].iter().map(|apex| &**apex).eq(new.iter().map(|apex| &**apex)) {
            return;
        }
        // While entries come and go, the kernel denies nothing in these zones.
        for slot in &mut inner.slots[first..] {
            slot.zone = maps::Zone::zeroed();
        }
        inner.set_slots();
        inner.settle(&self.publisher);
        let pointer = |record: &&Held| matches!(record.data, Data::Host(_)) || record.name.ends_with(b"\x04arpa\x00");
        let pointers: Vec<Held> = inner.owned.values().flatten().filter(pointer).cloned().collect();
        let names = |own: &[Held]| pointers.iter().chain(own).flat_map(Held::names).collect();
        let own = inner.own_names();
        let mut before = inner.before(names(&own));
        pointers.iter().chain(&own).for_each(|record| inner.tree.remove(record));
        inner.tree.set_reverse(new.into_iter().map(Name::from));
        let own = inner.own_names();
        // What is not there now was nothing before, or has been looked at.
        for (name, entries) in inner.before(names(&own)) {
            before.entry(name).or_insert(entries);
        }
        pointers.iter().chain(&own).for_each(|record| inner.tree.add(record));
        inner.renew_all(before, &self.publisher);
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
            let name = &key.name[..usize::from(key.len)];
            let wanted = inner.answers.wanted_of(&inner.tree, name, key.qtype).unwrap_or_default();
            inner.push(&key, wanted.as_ref(), &self.publisher);
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
        if let Some(answer) = answers::for_views(&inner.tree, name, qtype, views) {
            return Found::Answer(Arc::new(answer));
        }
        match resolve(&mut Asked { inner: &inner, name }, &request.query, view.into()) {
            Outcome::Answer(answer, _) => Found::Answer(answer),
            Outcome::NoData(zone) => Found::Negative(zone, wire::NOERROR),
            Outcome::NxDomain(zone) => Found::Negative(zone, wire::NXDOMAIN),
            Outcome::Miss | Outcome::Expired if !inside => inner.find_local(name, qtype, any),
            Outcome::Miss | Outcome::Expired => match node.and_then(|node| answers::alias(&node, name, views)) {
                Some(alias) => Found::Alias(alias),
                None => inner.find_pod(name, qtype, views, any),
            },
        }
    }

    /// The answer to ANY (RFC 8482) for a name.
    pub fn minimal_any(&self, name: &[u8]) -> Option<Answer> {
        self.read().answers.minimal_any(name)
    }

    /// The cluster's domain.
    pub fn domain(&self) -> HickoryName {
        // It has been read as a name before.
        HickoryName::from_bytes(self.read().tree.domain()).unwrap_or_default()
    }

    /// Whether a name is of the cluster's zone, or of a reverse zone that is known as a whole: no other server is asked for it.
    pub fn holds(&self, name: &[u8]) -> bool {
        self.read().tree.zone_of(name).is_some()
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
            rrsets: inner.entries.rrsets,
            kernel_entries: inner.entries.kernel - inner.pending.len().min(inner.entries.kernel),
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
    fn own_names(&self) -> Vec<Held> {
        let record = |apex: &Name| Held { name: Arc::clone(apex), data: Data::Exists, ttl: 0, views: ALL_VIEWS };
        self.tree.apexes()[1..].iter().map(record).collect()
    }

    /// Brings what the forwarder answers with to what the slots say.
    fn set_slots(&mut self) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            slot.zone.complete = u16::from(self.synced && slot.whole && slot.zone.name_len > 0);
            self.zones[index] = (slot.zone.name_len > 0).then(|| Arc::new(slot.zone));
        }
        self.domain = Arc::new(self.slots[DOMAIN].zone);
    }

    /// The entries, as they are, of everything that a change at these names may change: they, those above them, and those whose answers
    /// carry their addresses.
    fn before(&self, changed: BTreeSet<Name>) -> BTreeMap<Name, Vec<Wanted>> {
        let (mut names, mut above) = (BTreeSet::<Name>::new(), HashSet::<Name>::new());
        for name in &changed {
            names.extend(self.tree.pointing_to(name).cloned());
            for level in self.tree.levels(name).skip(1) {
                // What is above one that is known already is known, too.
                if above.contains(level) {
                    break;
                }
                above.insert(self.tree.shared(level));
            }
        }
        if changed.iter().any(|name| **name == *self.answers.name_server()) {
            names.extend(self.tree.apexes().iter().cloned());
        }
        names.extend(above);
        names.extend(changed);
        names.into_iter().map(|name| (Arc::clone(&name), self.wanted(&name))).collect()
    }

    fn wanted(&self, name: &[u8]) -> Vec<Wanted> {
        self.answers.wanted(&self.tree, name).unwrap_or_else(|error| {
            tracing::error!(name = name::to_text(name), "the zone has no answer for this name: {error}");
            Vec::new()
        })
    }

    /// Makes the entries of names what they should be, given what they were.
    fn renew_all(&mut self, before: BTreeMap<Name, Vec<Wanted>>, publisher: &Publisher) {
        for (name, old) in before {
            let new = self.wanted(&name);
            self.renew(&name, &old, &new, publisher);
        }
    }

    /// Brings a name's entries in the kernel from what they were to what they should be. Records go in before the name exists and out
    /// before it ceases to, so that a query in between is told of a type too few rather than sent away.
    fn renew(&mut self, name: &[u8], old: &[Wanted], new: &[Wanted], publisher: &Publisher) {
        let (less, more) = (Count::of(name, old), Count::of(name, new));
        self.entries.rrsets = self.entries.rrsets + more.rrsets - less.rrsets;
        self.entries.kernel = self.entries.kernel + more.kernel - less.kernel;
        for wanted in new.iter().filter(|wanted| !old.contains(wanted)) {
            if let Some(key) = key(name, wanted.qtype, 0) {
                self.push(&key, Some(wanted), publisher);
            }
        }
        for gone in old.iter().filter(|gone| !new.iter().any(|wanted| wanted.qtype == gone.qtype)) {
            if let Some(key) = key(name, gone.qtype, 0) {
                self.push(&key, None, publisher);
            }
        }
    }

    /// Brings one entry of the kernel to what it should be; what the kernel refuses is tried again later.
    fn push(&mut self, key: &DnsKey, wanted: Option<&Wanted>, publisher: &Publisher) {
        let done = match wanted {
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

/// What is in one sorted list and not in the other: of the new one, of the old one.
fn difference<'r>(old: &'r [Held], new: &'r [Held]) -> (Vec<&'r Held>, Vec<&'r Held>) {
    let absent = |from: &'r [Held], list: &'r [Held]| {
        list.iter().filter(|record| from.binary_search(record).is_err()).collect::<Vec<_>>()
    };
    (absent(old, new), absent(new, old))
}

fn found(answer: Option<Answer>) -> Found {
    answer.map_or(Found::Unknown, |answer| Found::Answer(Arc::new(answer)))
}
