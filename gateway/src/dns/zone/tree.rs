//! The zones' names: which records each has, who may see them, which names exist only because of names below them, and whose answers
//! tell the addresses of which other names.

use std::collections::{BTreeMap, HashMap};

use gateway_common::dns::wire;

use crate::{
    dns::name,
    plan::{Record, RecordData},
};

/// A multiset of view masks; what any of its members lets see is visible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Masks(BTreeMap<u64, u32>);

impl Masks {
    fn add(&mut self, mask: u64) {
        *self.0.entry(mask).or_default() += 1;
    }

    fn remove(&mut self, mask: u64) {
        if let Some(count) = self.0.get_mut(&mask) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&mask);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn union(&self) -> u64 {
        self.0.keys().fold(0, |all, mask| all | mask)
    }
}

/// Who owns one record: for each TTL asked for, the masks of its owners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Holders(BTreeMap<u32, Masks>);

impl Holders {
    fn views(&self) -> u64 {
        self.0.values().fold(0, |all, masks| all | masks.union())
    }

    fn ttl(&self) -> u32 {
        self.0.keys().next().copied().unwrap_or(0)
    }
}

/// A name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    records: BTreeMap<RecordData, Holders>,
    /// Of every record here and below.
    exists: Masks,
}

/// The records of one type at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RrSet<'a> {
    /// Smallest TTL of its records: an RRset has one.
    pub ttl: u32,
    /// Its records in order, and who may see each.
    pub records: Vec<(&'a RecordData, u64)>,
}

impl RrSet<'_> {
    /// Views that see any of it.
    pub fn views(&self) -> u64 {
        self.records.iter().fold(0, |all, (_, views)| all | views)
    }

    /// Whether each view sees all of it or nothing.
    pub fn is_same_for_all(&self) -> bool {
        self.records.iter().all(|(_, views)| *views == self.views())
    }
}

/// Record type of zone data; `None`: it only says that the name exists.
pub fn rtype(data: &RecordData) -> Option<u16> {
    match data {
        RecordData::Address(std::net::IpAddr::V4(_)) => Some(wire::A),
        RecordData::Address(std::net::IpAddr::V6(_)) => Some(wire::AAAA),
        RecordData::Cname(_) => Some(wire::CNAME),
        RecordData::Srv(..) => Some(wire::SRV),
        RecordData::Ptr(_) => Some(wire::PTR),
        RecordData::Txt(_) => Some(wire::TXT),
        RecordData::Exists => None,
    }
}

/// The name whose addresses go with a record.
pub fn target(data: &RecordData) -> Option<Box<[u8]>> {
    match data {
        RecordData::Srv(.., target) => name::from_text(target),
        _ => None,
    }
}

impl Node {
    /// Types that have records here, ascending.
    pub fn types(&self) -> Vec<u16> {
        let mut types: Vec<u16> = self.records.keys().filter_map(rtype).collect();
        types.sort_unstable();
        types.dedup();
        types
    }

    /// The records of one type; `None` when there are none.
    pub fn rrset(&self, of: u16) -> Option<RrSet<'_>> {
        let mut ttl = u32::MAX;
        let mut records = Vec::new();
        for (data, holders) in self.records.iter().filter(|(data, _)| rtype(data) == Some(of)) {
            ttl = ttl.min(holders.ttl());
            records.push((data, holders.views()));
        }
        (!records.is_empty()).then_some(RrSet { ttl, records })
    }

    /// Views for which the name exists.
    pub fn views(&self) -> u64 {
        self.exists.union()
    }
}

/// A name in wire format.
type Name = Box<[u8]>;

/// Names by wire format.
#[derive(Debug)]
pub struct Tree {
    /// The zones' own names: the cluster's domain, then the reverse zones.
    apexes: Vec<Box<[u8]>>,
    nodes: HashMap<Box<[u8]>, Node>,
    /// Names whose records point to another, and by how many records, by that other name.
    pointing: HashMap<Name, BTreeMap<Name, usize>>,
}

impl Tree {
    /// Empty zones of these names, none of them inside another; the cluster's domain first.
    pub fn new(apexes: Vec<Box<[u8]>>) -> Self {
        Self { apexes, nodes: HashMap::new(), pointing: HashMap::new() }
    }

    /// The cluster's domain.
    pub fn domain(&self) -> &[u8] {
        self.apexes.first().map_or(&[], |apex| apex)
    }

    /// The zones' own names.
    pub fn apexes(&self) -> &[Box<[u8]>] {
        &self.apexes
    }

    /// Replaces the reverse zones. Whoever calls it has taken out every record below the old and the new ones, and puts them in again.
    pub fn set_reverse(&mut self, zones: impl IntoIterator<Item = Box<[u8]>>) {
        self.apexes.truncate(1);
        self.apexes.extend(zones);
    }

    /// The name of the zone that a name is in; `None`: it is in none.
    pub fn zone_of(&self, wire: &[u8]) -> Option<&[u8]> {
        self.apexes.iter().find(|apex| name::is_within(wire, apex)).map(|apex| &**apex)
    }

    /// Names whose answers carry the addresses of this one.
    pub fn pointing_to(&self, wire: &[u8]) -> impl Iterator<Item = &Box<[u8]>> {
        self.pointing.get(wire).into_iter().flat_map(BTreeMap::keys)
    }

    /// Names, those that only exist because of names below them included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The name, when it exists for anybody.
    pub fn get(&self, wire: &[u8]) -> Option<&Node> {
        self.nodes.get(wire)
    }

    /// Adds one owner's record. Returns the names whose entries may differ now: its own, and those above it up to its zone's that
    /// exist for other views than before.
    pub fn add(&mut self, wire: &[u8], record: &Record) -> Vec<Box<[u8]>> {
        let node = self.nodes.entry(wire.into()).or_default();
        if !node.records.contains_key(&record.data)
            && let Some(target) = target(&record.data)
        {
            *self.pointing.entry(target).or_default().entry(wire.into()).or_default() += 1;
        }
        let holders = node.records.entry(record.data.clone()).or_default();
        holders.0.entry(record.ttl).or_default().add(record.views);
        self.each_level(wire, |masks| masks.add(record.views))
    }

    /// Takes one owner's record away; the rest as [`Tree::add`].
    pub fn remove(&mut self, wire: &[u8], record: &Record) -> Vec<Box<[u8]>> {
        if let Some(node) = self.nodes.get_mut(wire)
            && let Some(holders) = node.records.get_mut(&record.data)
            && let Some(masks) = holders.0.get_mut(&record.ttl)
        {
            masks.remove(record.views);
            if masks.is_empty() {
                holders.0.remove(&record.ttl);
            }
            if holders.0.is_empty() {
                node.records.remove(&record.data);
                self.release(wire, &record.data);
            }
        }
        let touched = self.each_level(wire, |masks| masks.remove(record.views));
        for name in &touched {
            if self.nodes.get(name).is_some_and(|node| node.exists.is_empty()) {
                self.nodes.remove(name);
            }
        }
        touched
    }

    /// One record less points from a name to its target.
    fn release(&mut self, wire: &[u8], data: &RecordData) {
        let Some(target) = target(data) else { return };
        let Some(names) = self.pointing.get_mut(&target) else { return };
        if let Some(records) = names.get_mut(wire) {
            *records -= 1;
            if *records == 0 {
                names.remove(wire);
            }
        }
        if names.is_empty() {
            self.pointing.remove(&target);
        }
    }

    /// Changes the masks of a name and of those above it, up to its zone's; a name in no zone has none above it.
    fn each_level(&mut self, wire: &[u8], change: impl Fn(&mut Masks)) -> Vec<Box<[u8]>> {
        let top = self.zone_of(wire).map_or(wire.len(), <[u8]>::len);
        let mut touched = Vec::with_capacity(4);
        for (above, name) in name::upwards(wire).enumerate() {
            let node = self.nodes.entry(name.into()).or_default();
            let before = node.exists.union();
            let had_owners = !node.exists.is_empty();
            change(&mut node.exists);
            if above == 0 || before != node.exists.union() || had_owners == node.exists.is_empty() {
                touched.push(name.into());
            }
            if name.len() == top {
                break;
            }
        }
        touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, views: u64, data: RecordData) -> Record {
        Record { name: name.to_owned(), ttl: 30, views, data }
    }

    fn wire(text: &str) -> Box<[u8]> {
        name::from_text(text).expect("name")
    }

    fn address(last: u8) -> RecordData {
        RecordData::Address([10, 1, 0, last].into())
    }

    #[test]
    fn names_above_a_record_exist_for_whom_the_record_does_and_go_with_it() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let (a, b) =
            (record("a.shop.svc.cluster.local", 1, address(1)), record("b.ops.svc.cluster.local", 2, address(2)));
        let touched = tree.add(&wire(&a.name), &a);
        assert_eq!(touched.len(), 4, "its own name, shop, svc and the apex: {touched:?}");
        tree.add(&wire(&b.name), &b);
        assert_eq!(tree.get(&wire("svc.cluster.local")).map(Node::views), Some(3));
        assert_eq!(tree.get(&wire("shop.svc.cluster.local")).map(Node::views), Some(1));
        assert!(tree.get(&wire("local")).is_none(), "nothing above the apex");
        let touched = tree.remove(&wire(&a.name), &a);
        assert_eq!(touched.len(), 4);
        assert!(tree.get(&wire("shop.svc.cluster.local")).is_none());
        assert_eq!(tree.get(&wire("svc.cluster.local")).map(Node::views), Some(2));
        tree.remove(&wire(&b.name), &b);
        assert_eq!(tree.len(), 0);
    }

    #[test]
    fn a_record_of_two_owners_stays_until_both_are_gone() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let both = record("x.cluster.local", 1, address(1));
        tree.add(&wire(&both.name), &both);
        let touched = tree.add(&wire(&both.name), &both);
        assert_eq!(touched, [wire(&both.name)], "nothing above it changed");
        tree.remove(&wire(&both.name), &both);
        assert!(tree.get(&wire(&both.name)).is_some_and(|node| node.rrset(1).is_some()));
        tree.remove(&wire(&both.name), &both);
        assert!(tree.get(&wire(&both.name)).is_none());
    }

    #[test]
    fn an_rrset_whose_records_have_different_views_says_so() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let name = wire("x.cluster.local");
        tree.add(&name, &record("x.cluster.local", 1, address(1)));
        tree.add(&name, &record("x.cluster.local", 3, address(2)));
        let rrset = tree.get(&name).and_then(|node| node.rrset(1)).expect("rrset");
        assert!(!rrset.is_same_for_all());
        assert_eq!(rrset.views(), 3);
    }

    #[test]
    fn a_name_points_to_another_as_long_as_one_of_its_records_does() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let (from, to) = (wire("_a._tcp.web.cluster.local"), wire("web.cluster.local"));
        let srv = |port| {
            let data = RecordData::Srv(0, 100, port, "web.cluster.local".to_owned());
            record("_a._tcp.web.cluster.local", 1, data)
        };
        for port in [80, 80, 443] {
            tree.add(&from, &srv(port));
        }
        for (port, points) in [(80, true), (443, true), (80, false)] {
            tree.remove(&from, &srv(port));
            assert_eq!(tree.pointing_to(&to).count() == 1, points, "after {port}");
        }
        assert!(tree.pointing.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_reverse_zone_has_the_names_between_its_own_and_a_pointer() {
        let mut tree = Tree::new(vec![wire("cluster.local"), wire("1.10.in-addr.arpa")]);
        let ptr = record("1.0.1.10.in-addr.arpa", 1, RecordData::Ptr("a.cluster.local".to_owned()));
        tree.add(&wire(&ptr.name), &ptr);
        assert_eq!(tree.get(&wire("0.1.10.in-addr.arpa")).map(Node::views), Some(1));
        assert!(tree.get(&wire("1.10.in-addr.arpa")).is_some() && tree.get(&wire("10.in-addr.arpa")).is_none());
        tree.remove(&wire(&ptr.name), &ptr);
        assert_eq!(tree.len(), 0);
    }

    #[test]
    fn a_name_outside_the_zone_makes_no_names_above_it() {
        let mut tree = Tree::new(vec![wire("cluster.local")]);
        let ptr = record("1.0.1.10.in-addr.arpa", 1, RecordData::Ptr("a.cluster.local".to_owned()));
        tree.add(&wire(&ptr.name), &ptr);
        assert_eq!(tree.len(), 1);
        tree.remove(&wire(&ptr.name), &ptr);
        assert_eq!(tree.len(), 0);
    }
}
