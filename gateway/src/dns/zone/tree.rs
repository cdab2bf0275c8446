//! The zones' names: which records each has, who may see them, which names exist only because of names below them, and whose answers
//! tell the addresses of which other names.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use gateway_common::dns::wire;

use super::{
    hosts::{self, Hosts},
    masks::Masks,
};
use crate::{
    dns::name,
    plan::{Record, RecordData},
};

/// A name in wire format. The tree, the records that point to the name and their owners share it: a large cluster has hundreds of thousands.
pub type Name = Arc<[u8]>;

/// Record data, with names in wire format.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// CNAME.
    Cname(Name),
    /// SRV: priority, weight, port, target.
    Srv(u16, u16, u16, Name),
    /// PTR.
    Ptr(Name),
    /// TXT: one string.
    Txt(Arc<str>),
    /// Only says that the name exists.
    Exists,
    /// Two records in one: the name of this address below the name, and the pointer back.
    Host(IpAddr),
}

impl Data {
    /// Record type; `None`: it only says that the name exists.
    pub const fn rtype(&self) -> Option<u16> {
        match self {
            Self::Address(IpAddr::V4(_)) => Some(wire::A),
            Self::Address(IpAddr::V6(_)) => Some(wire::AAAA),
            Self::Cname(_) => Some(wire::CNAME),
            Self::Srv(..) => Some(wire::SRV),
            Self::Ptr(_) => Some(wire::PTR),
            Self::Txt(_) => Some(wire::TXT),
            Self::Exists | Self::Host(_) => None,
        }
    }

    /// The name whose addresses go with the record.
    pub const fn target(&self) -> Option<&Name> {
        match self {
            Self::Srv(.., target) => Some(target),
            _ => None,
        }
    }
}

/// One owner's record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// Its name.
    pub name: Name,
    /// Its data.
    pub data: Data,
    /// TTL in seconds.
    pub ttl: u32,
    /// Views that see it.
    pub views: u64,
}

impl Held {
    /// The names whose records it changes.
    pub fn names(&self) -> Vec<Name> {
        match self.data {
            Data::Host(addr) => vec![hosts::own_name(addr, &self.name), hosts::pointer_name(addr)],
            _ => vec![Arc::clone(&self.name)],
        }
    }
}

/// How many owners have a record with that TTL for those views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    /// TTL in seconds.
    pub ttl: u32,
    /// How many.
    pub owners: u32,
    /// Views that see it.
    pub views: u64,
}

impl Holders {
    /// The owner of this one.
    pub fn of(record: &Held) -> Self {
        Self { ttl: record.ttl, owners: 1, views: record.views }
    }

    /// Whether it has that TTL for those views.
    pub fn is_of(&self, record: &Held) -> bool {
        (self.ttl, self.views) == (record.ttl, record.views)
    }
}

/// The records at a name. Most names of a cluster have one, of one owner.
#[expect(clippy::box_collection, reason = "the rare case must not make the common one larger")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Records {
    #[default]
    None,
    One(Data, Holders),
    Many(Box<BTreeMap<Data, Vec<Holders>>>),
}

impl Records {
    /// Whether the name had no such record before.
    fn add(&mut self, record: &Held) -> bool {
        let one = Holders::of(record);
        match self {
            Self::None => {
                *self = Self::One(record.data.clone(), one);
                true
            }
            Self::One(data, held) if *data == record.data && held.is_of(record) => {
                held.owners += 1;
                false
            }
            Self::One(data, held) => {
                let mut many = BTreeMap::from([(data.clone(), vec![*held])]);
                let holders = many.entry(record.data.clone()).or_default();
                let new = holders.is_empty();
                holders.push(one);
                *self = Self::Many(Box::new(many));
                new
            }
            Self::Many(many) => {
                let holders = many.entry(record.data.clone()).or_default();
                let new = holders.is_empty();
                match holders.iter_mut().find(|held| held.is_of(record)) {
                    Some(held) => held.owners += 1,
                    None => holders.push(one),
                }
                new
            }
        }
    }

    /// Whether the name has no such record any more.
    fn remove(&mut self, record: &Held) -> bool {
        let leaves = |held: &mut Holders| {
            held.owners -= u32::from(held.is_of(record));
            held.owners == 0
        };
        match self {
            Self::None => false,
            Self::One(data, held) => {
                let gone = *data == record.data && leaves(held);
                if gone {
                    *self = Self::None;
                }
                gone
            }
            Self::Many(many) => {
                let Some(holders) = many.get_mut(&record.data) else { return false };
                holders.retain_mut(|held| !leaves(held));
                let gone = holders.is_empty();
                if gone {
                    many.remove(&record.data);
                }
                if many.is_empty() {
                    *self = Self::None;
                }
                gone
            }
        }
    }

    fn each(&self) -> Vec<(&Data, &[Holders])> {
        match self {
            Self::None => Vec::new(),
            Self::One(data, held) => vec![(data, std::slice::from_ref(held))],
            Self::Many(many) => many.iter().map(|(data, holders)| (data, &**holders)).collect(),
        }
    }
}

/// A name's records, and for whom it exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    records: Records,
    /// Of every record here and below.
    exists: Masks,
}

/// The records of one type at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RrSet<'a> {
    /// Smallest TTL of its records: an RRset has one.
    pub ttl: u32,
    /// Its records in order, and who may see each.
    pub records: Vec<(&'a Data, u64)>,
}

impl RrSet<'_> {
    /// Views that see any of it.
    pub fn views(&self) -> u64 {
        self.records.iter().fold(0, |all, (_, views)| all | views)
    }

    /// Whether each view sees all of it or nothing.
    pub fn is_same_for_all(&self) -> bool {
        let all = self.views();
        self.records.iter().all(|(_, views)| *views == all)
    }
}

impl Node {
    /// Types that have records here, ascending.
    pub fn types(&self) -> Vec<u16> {
        let mut types: Vec<u16> = self.records.each().into_iter().filter_map(|(data, _)| data.rtype()).collect();
        types.sort_unstable();
        types.dedup();
        types
    }

    /// The records of one type; `None` when there are none.
    pub fn rrset(&self, of: u16) -> Option<RrSet<'_>> {
        let mut ttl = u32::MAX;
        let mut records = Vec::new();
        for (data, holders) in self.records.each().into_iter().filter(|(data, _)| data.rtype() == Some(of)) {
            ttl = holders.iter().fold(ttl, |least, held| least.min(held.ttl));
            records.push((data, holders.iter().fold(0, |all, held| all | held.views)));
        }
        (!records.is_empty()).then_some(RrSet { ttl, records })
    }

    /// Views for which the name exists.
    pub fn views(&self) -> u64 {
        self.exists.union()
    }
}

/// Names by wire format.
#[derive(Debug)]
pub struct Tree {
    /// The zones' own names: the cluster's domain, then the reverse zones.
    apexes: Vec<Name>,
    nodes: HashMap<Name, Node>,
    hosts: Hosts,
    /// Names that have a node, an endpoint or both.
    names: usize,
    /// Names whose records point to another, and by how many records, by that other name.
    pointing: HashMap<Name, Vec<(Name, u32)>>,
}

impl Tree {
    /// Empty zones of these names, none of them inside another; the cluster's domain first.
    pub fn new(apexes: Vec<Name>) -> Self {
        Self { apexes, nodes: HashMap::new(), hosts: Hosts::default(), names: 0, pointing: HashMap::new() }
    }

    /// The cluster's domain.
    pub fn domain(&self) -> &[u8] {
        self.apexes.first().map_or(&[], |apex| apex)
    }

    /// The zones' own names.
    pub fn apexes(&self) -> &[Name] {
        &self.apexes
    }

    /// Replaces the reverse zones. Whoever calls it has taken out every record below the old and the new ones, and puts them in again.
    pub fn set_reverse(&mut self, zones: impl IntoIterator<Item = Name>) {
        self.apexes.truncate(1);
        self.apexes.extend(zones);
    }

    /// The name of the zone that a name is in; `None`: it is in none.
    pub fn zone_of(&self, wire: &[u8]) -> Option<&[u8]> {
        self.apexes.iter().find(|apex| name::is_within(wire, apex)).map(|apex| &**apex)
    }

    /// A name and those above it up to its zone's; a name in no zone has none above it.
    pub fn levels<'w>(&self, wire: &'w [u8]) -> impl Iterator<Item = &'w [u8]> + use<'w> {
        let top = self.zone_of(wire).map_or(wire.len(), <[u8]>::len);
        name::upwards(wire).take_while(move |name| name.len() >= top)
    }

    /// Names whose answers carry the addresses of this one.
    pub fn pointing_to(&self, wire: &[u8]) -> impl Iterator<Item = &Name> {
        self.pointing.get(wire).into_iter().flatten().map(|(name, _)| name)
    }

    /// Names, those that only exist because of names below them included.
    pub const fn len(&self) -> usize {
        self.names
    }

    /// The name, when it exists for anybody.
    pub fn get(&self, wire: &[u8]) -> Option<Cow<'_, Node>> {
        let node = self.nodes.get(wire);
        let made = self.hosts.at(wire);
        if made.is_empty() {
            return node.map(Cow::Borrowed);
        }
        let mut node = node.cloned().unwrap_or_default();
        for record in made {
            node.records.add(&record);
            node.exists.add(record.views);
        }
        Some(Cow::Owned(node))
    }

    /// The name as the tree has it, so that it is kept once.
    pub fn shared(&self, wire: &[u8]) -> Name {
        self.nodes.get_key_value(wire).map_or_else(|| wire.into(), |(name, _)| Arc::clone(name))
    }

    /// Adds one owner's record.
    pub fn add(&mut self, record: &Held) {
        if let Data::Host(addr) = record.data {
            return self.add_host(addr, record);
        }
        if self.node(Arc::clone(&record.name)).records.add(record)
            && let Some(target) = record.data.target()
        {
            let names = self.pointing.entry(Arc::clone(target)).or_default();
            match names.iter_mut().find(|(name, _)| *name == record.name) {
                Some((_, records)) => *records += 1,
                None => names.push((Arc::clone(&record.name), 1)),
            }
        }
        for name in self.levels(&record.name) {
            self.join(name, record.views);
        }
    }

    /// The node of a name, made when there is none.
    fn node(&mut self, name: Name) -> &mut Node {
        match self.nodes.entry(name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                self.names += usize::from(!self.hosts.has(new.key()));
                new.insert(Node::default())
            }
        }
    }

    /// A record more that makes a name exist.
    fn join(&mut self, name: &[u8], views: u64) {
        match self.nodes.get_mut(name) {
            Some(node) => node.exists.add(views),
            None => self.node(name.into()).exists.add(views),
        }
    }

    fn add_host(&mut self, addr: IpAddr, record: &Held) {
        let names = record.names();
        self.names += names.iter().filter(|name| !self.has(name)).count();
        self.hosts.add(addr, record);
        for name in &names {
            for above in self.levels(name).skip(1) {
                self.join(above, record.views);
            }
        }
    }

    fn remove_host(&mut self, addr: IpAddr, record: &Held) {
        let names = record.names();
        self.hosts.remove(addr, record);
        self.names -= names.iter().filter(|name| !self.has(name)).count();
        for name in &names {
            for above in self.levels(name).skip(1) {
                self.leave(above, record.views);
            }
        }
    }

    fn has(&self, wire: &[u8]) -> bool {
        self.nodes.contains_key(wire) || self.hosts.has(wire)
    }

    /// A record less that makes a name exist.
    fn leave(&mut self, name: &[u8], views: u64) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.exists.remove(views);
        if node.exists.is_empty() {
            self.nodes.remove(name);
            self.names -= usize::from(!self.hosts.has(name));
        }
    }

    /// Takes one owner's record away.
    pub fn remove(&mut self, record: &Held) {
        if let Data::Host(addr) = record.data {
            return self.remove_host(addr, record);
        }
        if let Some(node) = self.nodes.get_mut(&record.name)
            && node.records.remove(record)
        {
            self.release(record);
        }
        for name in self.levels(&record.name) {
            self.leave(name, record.views);
        }
    }

    /// One record less points from a name to its target.
    fn release(&mut self, record: &Held) {
        let Some(target) = record.data.target() else { return };
        let Some(names) = self.pointing.get_mut(target) else { return };
        if let Some(at) = names.iter().position(|(name, _)| *name == record.name) {
            names[at].1 -= 1;
            if names[at].1 == 0 {
                names.swap_remove(at);
            }
        }
        if names.is_empty() {
            self.pointing.remove(target);
        }
    }

    /// A plan's records as the tree keeps them, sorted, each once, their names shared, those in `known` too. What is no DNS name is left
    /// out, and said.
    pub fn held<'r>(
        &self,
        records: impl IntoIterator<Item = &'r Record>,
        known: &mut HashMap<Box<[u8]>, Name>,
    ) -> Vec<Held> {
        let mut shared = |text: &str| {
            let Some(wire) = name::from_text(text) else {
                tracing::warn!(name = text, "not a DNS name: left out of the zone");
                return None;
            };
            Some(Arc::clone(known.entry(wire).or_insert_with_key(|wire| self.shared(wire))))
        };
        let mut held: Vec<Held> = records
            .into_iter()
            .filter_map(|record| {
                let data = match &record.data {
                    RecordData::Address(ip) => Data::Address(*ip),
                    RecordData::Cname(target) => Data::Cname(shared(target)?),
                    RecordData::Srv(priority, weight, port, target) => {
                        Data::Srv(*priority, *weight, *port, shared(target)?)
                    }
                    RecordData::Ptr(target) => Data::Ptr(shared(target)?),
                    RecordData::Txt(text) => Data::Txt(text.as_str().into()),
                    RecordData::Exists => Data::Exists,
                };
                Some(Held { name: shared(&record.name)?, data, ttl: record.ttl, views: record.views })
            })
            .collect();
        held.sort_unstable();
        held.dedup();
        hosts::fold(&held, self.domain(), |name| known.get(name).map_or_else(|| self.shared(name), Arc::clone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, views: u64, data: Data) -> Held {
        Held { name: wire(name), ttl: 30, views, data }
    }

    fn wire(text: &str) -> Name {
        name::from_text(text).expect("name").into()
    }

    fn address(last: u8) -> Data {
        Data::Address([10, 1, 0, last].into())
    }

    #[test]
    fn names_above_a_record_exist_for_whom_the_record_does_and_go_with_it() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let (a, b) =
            (record("a.shop.svc.cluster.local", 1, address(1)), record("b.ops.svc.cluster.local", 2, address(2)));
        assert_eq!(tree.levels(&a.name).count(), 4, "its own name, shop, svc and the apex");
        tree.add(&a);
        tree.add(&b);
        assert_eq!(tree.get(&wire("svc.cluster.local")).map(|node| node.views()), Some(3));
        assert_eq!(tree.get(&wire("shop.svc.cluster.local")).map(|node| node.views()), Some(1));
        assert!(tree.get(&wire("local")).is_none(), "nothing above the apex");
        tree.remove(&a);
        assert!(tree.get(&wire("shop.svc.cluster.local")).is_none());
        assert_eq!(tree.get(&wire("svc.cluster.local")).map(|node| node.views()), Some(2));
        tree.remove(&b);
        assert_eq!(tree.len(), 0);
    }

    #[test]
    fn a_record_of_two_owners_stays_until_both_are_gone() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let both = record("x.cluster.local", 1, address(1));
        tree.add(&both);
        tree.add(&both);
        tree.remove(&both);
        assert!(tree.get(&both.name).is_some_and(|node| node.rrset(1).is_some()));
        tree.remove(&both);
        assert!(tree.get(&both.name).is_none());
    }

    #[test]
    fn an_rrset_whose_records_have_different_views_says_so() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let name = wire("x.cluster.local");
        tree.add(&record("x.cluster.local", 1, address(1)));
        tree.add(&record("x.cluster.local", 3, address(2)));
        let node = tree.get(&name).expect("node");
        let rrset = node.rrset(1).expect("rrset");
        assert!(!rrset.is_same_for_all());
        assert_eq!(rrset.views(), 3);
    }

    #[test]
    fn an_rrset_has_its_smallest_ttl_and_the_views_of_all_its_owners() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let long = record("x.cluster.local", 1, address(1));
        let short = Held { ttl: 5, views: 2, ..long.clone() };
        tree.add(&long);
        tree.add(&short);
        let seen = |tree: &Tree| {
            tree.get(&long.name).and_then(|node| node.rrset(1).map(|set| (set.ttl, set.views(), set.records.len())))
        };
        assert_eq!(seen(&tree), Some((5, 3, 1)));
        tree.remove(&short);
        assert_eq!(seen(&tree), Some((30, 1, 1)));
        tree.remove(&long);
        assert_eq!(tree.len(), 0);
    }

    #[test]
    fn a_name_points_to_another_as_long_as_one_of_its_records_does() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let to = wire("web.cluster.local");
        let srv = |port| record("_a._tcp.web.cluster.local", 1, Data::Srv(0, 100, port, wire("web.cluster.local")));
        for port in [80, 80, 443] {
            tree.add(&srv(port));
        }
        for (port, points) in [(80, true), (443, true), (80, false)] {
            tree.remove(&srv(port));
            assert_eq!(tree.pointing_to(&to).count() == 1, points, "after {port}");
        }
        assert!(tree.pointing.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_reverse_zone_has_the_names_between_its_own_and_a_pointer() {
        let mut tree = Tree::new(vec![wire("cluster.local"), wire("1.10.in-addr.arpa")]);
        let ptr = record("1.0.1.10.in-addr.arpa", 1, Data::Ptr(wire("a.cluster.local")));
        tree.add(&ptr);
        assert_eq!(tree.get(&wire("0.1.10.in-addr.arpa")).map(|node| node.views()), Some(1));
        assert!(tree.get(&wire("1.10.in-addr.arpa")).is_some() && tree.get(&wire("10.in-addr.arpa")).is_none());
        tree.remove(&ptr);
        assert_eq!(tree.len(), 0);
    }

    #[test]
    fn a_name_outside_the_zone_makes_no_names_above_it() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let ptr = record("1.0.1.10.in-addr.arpa", 1, Data::Ptr(wire("a.cluster.local")));
        tree.add(&ptr);
        assert_eq!(tree.len(), 1);
        tree.remove(&ptr);
        assert_eq!(tree.len(), 0);
    }
}
