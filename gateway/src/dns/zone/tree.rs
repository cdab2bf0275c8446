//! The zone's names: which records each has, who may see them, and which names exist only because of names below them.

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

/// Names by wire format.
#[derive(Debug)]
pub struct Tree {
    apex: Box<[u8]>,
    nodes: HashMap<Box<[u8]>, Node>,
}

impl Tree {
    /// An empty zone.
    pub fn new(apex: Box<[u8]>) -> Self {
        Self { apex, nodes: HashMap::new() }
    }

    /// The zone's own name.
    pub fn apex(&self) -> &[u8] {
        &self.apex
    }

    /// Names, those that only exist because of names below them included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The name, when it exists for anybody.
    pub fn get(&self, wire: &[u8]) -> Option<&Node> {
        self.nodes.get(wire)
    }

    /// Adds one owner's record. Returns the names whose entries may differ now: its own, and those above it up to the apex that
    /// exist for other views than before.
    pub fn add(&mut self, wire: &[u8], record: &Record) -> Vec<Box<[u8]>> {
        let node = self.nodes.entry(wire.into()).or_default();
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

    /// Changes the masks of a name and of those above it, up to the apex; a name outside the zone has none above it.
    fn each_level(&mut self, wire: &[u8], change: impl Fn(&mut Masks)) -> Vec<Box<[u8]>> {
        let levels = if name::is_within(wire, &self.apex) { usize::MAX } else { 1 };
        let mut touched = Vec::with_capacity(4);
        for (above, name) in name::upwards(wire).take(levels).enumerate() {
            let node = self.nodes.entry(name.into()).or_default();
            let before = node.exists.union();
            let had_owners = !node.exists.is_empty();
            change(&mut node.exists);
            if above == 0 || before != node.exists.union() || had_owners == node.exists.is_empty() {
                touched.push(name.into());
            }
            if name.len() == self.apex.len() {
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
        let mut tree = Tree::new(wire("cluster.local"));
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
        let mut tree = Tree::new(wire("cluster.local"));
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
        let mut tree = Tree::new(wire("cluster.local"));
        let name = wire("x.cluster.local");
        tree.add(&name, &record("x.cluster.local", 1, address(1)));
        tree.add(&name, &record("x.cluster.local", 3, address(2)));
        let rrset = tree.get(&name).and_then(|node| node.rrset(1)).expect("rrset");
        assert!(!rrset.is_same_for_all());
        assert_eq!(rrset.views(), 3);
    }

    #[test]
    fn a_name_outside_the_zone_makes_no_names_above_it() {
        let mut tree = Tree::new(wire("cluster.local"));
        let ptr = record("1.0.1.10.in-addr.arpa", 1, RecordData::Ptr("a.cluster.local".to_owned()));
        tree.add(&wire(&ptr.name), &ptr);
        assert_eq!(tree.len(), 1);
        tree.remove(&wire(&ptr.name), &ptr);
        assert_eq!(tree.len(), 0);
    }
}
