//! Promises about the kernel's DNS answers.

use bytemuck::Zeroable as _;
use gateway_common::{
    limits::MAX_ZONES,
    maps::{DnsEntry, DnsKey, DnsLarge, Zone, dns_entry},
};

use super::{Row, net::skip, settings};
use crate::kernel::Mode;

fn key(name: u8) -> DnsKey {
    let mut key = DnsKey { qtype: 1, len: 3, ..DnsKey::zeroed() };
    key.name[..3].copy_from_slice(&[1, name, 0]);
    key
}

#[test]
fn a_large_body_comes_and_goes_with_its_answer() {
    if skip() {
        return;
    }
    let row = Row::new();
    let settings = settings(Mode::Tc);
    row.node.run(move || {
        let kernel = crate::kernel::Kernel::load(&settings).unwrap();
        let store = kernel.answers();
        let (keys, entries, bodies) = kernel.shared.answer_maps();
        let count = || {
            let mut cursor = crate::kernel::table::Cursor::default();
            bodies.walk(&mut cursor, 16).unwrap().len()
        };
        let small = DnsEntry { views: 1, hits: 7, ..DnsEntry::zeroed() };
        let large = DnsEntry { views: 1, large: u32::MAX, ..DnsEntry::zeroed() };
        let body = |fill: u8| DnsLarge { body: [fill; size_of::<DnsLarge>()] };

        store.put(&key(b'a'), &small, None).unwrap();
        assert_eq!((store.hits(&key(b'a')), count()), (Some(7), 0));
        store.put(&key(b'a'), &large, Some(&body(1))).unwrap();
        store.put(&key(b'b'), &large, Some(&body(2))).unwrap();
        assert_eq!(count(), 2);
        for (name, fill) in [(b'a', 1), (b'b', 2)] {
            let entry = entries.get(&keys.hash(&key(name))).unwrap().unwrap();
            assert_eq!(bodies.get(&entry.large).unwrap(), Some(body(fill)), "each answer leads to its own body");
        }
        store.put(&key(b'a'), &large, Some(&body(3))).unwrap();
        assert_eq!(count(), 2, "the body that was replaced is gone");
        store.put(&key(b'a'), &small, None).unwrap();
        store.remove(&key(b'b')).unwrap();
        assert_eq!(count(), 0);
        store.remove(&key(b'b')).unwrap();
        assert_eq!(store.hits(&key(b'b')), None);

        store.set_zone(MAX_ZONES - 1, &Zone::zeroed()).unwrap();
        assert!(store.set_zone(MAX_ZONES, &Zone::zeroed()).is_err());
    });
}

/// Two names that the hash takes for one ([`gateway_common::dns::hash`]).
#[test]
fn of_two_answers_with_one_hash_a_zones_stays_and_nobody_removes_the_others() {
    if skip() {
        return;
    }
    let row = Row::new();
    let settings = settings(Mode::Tc);
    row.node.run(move || {
        let kernel = crate::kernel::Kernel::load(&settings).unwrap();
        let store = kernel.answers();
        let (keys, entries, bodies) = kernel.shared.answer_maps();
        let (ours, theirs) = (key(b'_'), key(0x7f));
        assert_eq!(keys.hash(&ours), keys.hash(&theirs));
        let zone = DnsEntry { views: 1, flags: dns_entry::ZONE, ..DnsEntry::zeroed() };
        let learnt = DnsEntry { views: 1, large: u32::MAX, ..DnsEntry::zeroed() };
        let body = DnsLarge { body: [1; size_of::<DnsLarge>()] };
        let there = || entries.get(&keys.hash(&ours)).unwrap().map(|entry| entry.name);

        store.put(&theirs, &learnt, Some(&body)).unwrap();
        store.put(&ours, &zone, None).unwrap();
        assert_eq!(there(), Some(ours.name), "what was learnt gives way to the zone");
        assert_eq!((store.hits(&ours), store.hits(&theirs)), (Some(0), None));
        store.remove(&theirs).unwrap();
        assert_eq!(there(), Some(ours.name), "an entry is removed by its own name only");
        let mut cursor = crate::kernel::table::Cursor::default();
        assert_eq!(bodies.walk(&mut cursor, 16).unwrap().len(), 0, "the body that gave way is gone with its answer");

        let refused = store.put(&theirs, &learnt, Some(&body)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(there(), Some(ours.name));
        store.put(&ours, &zone, None).unwrap();
        store.remove(&ours).unwrap();
        assert_eq!(there(), None);
    });
}
