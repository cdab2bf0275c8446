//! Kernel and forwarder say the same, byte for byte, on generated tables and queries.

use std::net::IpAddr;

use gateway_common::{
    dns::{
        build::{EntryBuilder, Record, exists},
        emit::Request,
        wire,
    },
    maps::dns_key,
};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use crate::{
    SECOND, cluster,
    programs::{Bench, CLIENT, CLIENT6, Did, OTHER, OTHER6, TIERS, VLANS, now},
    query::Ask,
    wire_name,
};

const QUERIES: usize = 2_000;

/// Names that queries are about: of the zone, learnt, and neither; of every length parity, up to the kernel's limit and beyond.
const NAMES: [&str; 14] = [
    "cluster.local",
    "web.shop.svc.cluster.local",
    "many.shop.svc.cluster.local",
    "away.shop.svc.cluster.local",
    "nothing.shop.svc.cluster.local",
    "p-0.db.shop.svc.cluster.local",
    "p-10.db.shop.svc.cluster.local",
    // 64 and 65 bytes in wire format.
    "a-name-that-is-just-as-long-as-it-can-b.shop.svc.cluster.local",
    "a-name-that-is-one-longer-than-it-may-be.shop.svc.cluster.local",
    "www.example.com",
    "w3.example.com",
    "mail.example.org",
    "example",
    ".",
];
const TYPES: [u16; 6] = [wire::A, wire::AAAA, wire::TXT, wire::CNAME, wire::SRV, 65];

/// Entries of every kind, chosen by the runner's seed.
fn fill(bench: &mut Bench, runner: &mut TestRunner) {
    let mut draw = |most: usize| (0..most).new_tree(runner).expect("a number").current();
    for name in NAMES.map(wire_name) {
        let zone = name.ends_with(&wire_name("cluster.local"));
        for qtype in TYPES {
            if draw(2) == 0 {
                continue;
            }
            let views = [0b01, 0b10, 0b11][draw(3)];
            let (bits, mut builder) = if zone {
                bench.put(&name, dns_key::EXISTS, 0, exists(&name, views).expect("a name"));
                (0, EntryBuilder::zone(&name, views).expect("a name"))
            } else {
                // In the middle of a second, so that kernel and test see the same age; sometimes long expired.
                let stored = now() - draw(400) as u64 * SECOND - SECOND / 2;
                (draw(4) as u8, EntryBuilder::learnt(&name, views, stored, stored + 300 * SECOND).expect("a name"))
            };
            let count = [1, 1, 2, 5, 10, 11, 30, 90][draw(8)];
            for i in 0..count {
                let data: Vec<u8> = match qtype {
                    wire::A => vec![10, 1, 0, i],
                    wire::AAAA => [&[0xfd; 15][..], &[i]].concat(),
                    wire::CNAME => wire_name("target.example.net"),
                    _ => [&[2 + draw(30) as u8; 1][..], &[b'x'; 40]].concat(),
                };
                builder.answer(Record::new(&name, qtype, 300 + draw(2) as u32 * 100, &data)).expect("a record");
            }
            bench.put(&name, qtype, bits, builder.build().expect("an answer"));
        }
    }
}

fn ask() -> impl Strategy<Value = Ask> {
    let option = (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..12))
        .prop_map(|(code, data)| [&code.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), &data].concat());
    let options = proptest::collection::vec(option, 0..4).prop_map(|options| options.concat());
    let size = prop_oneof![0..1300u16, Just(512), Just(1232), Just(4096)];
    let edns = proptest::option::of((size, any::<bool>(), options));
    let name = (0..NAMES.len(), any::<u64>()).prop_map(|(index, case)| {
        let mut name = wire_name(NAMES[index]);
        for (i, byte) in name.iter_mut().enumerate() {
            if case >> (i % 64) & 1 != 0 {
                byte.make_ascii_uppercase();
            }
        }
        name
    });
    (any::<u16>(), any::<[bool; 3]>(), name, 0..TYPES.len(), edns).prop_map(|(id, [rd, ad, cd], name, qtype, edns)| {
        let mut flags = 0;
        for (set, flag) in [(rd, wire::RD), (ad, wire::AD), (cd, wire::CD)] {
            if set {
                flags |= flag;
            }
        }
        Ask { id, flags, name, qtype: TYPES[qtype], edns }
    })
}

#[test]
fn kernel_and_forwarder_give_the_same_answer_byte_for_byte() {
    assert_eq!([7, 8].map(|i| wire_name(NAMES[i]).len()), [64, 65]);
    let mut bench = cluster();
    let mut runner = TestRunner::deterministic();
    fill(&mut bench, &mut runner);
    let (mut answered, mut passed) = (0, 0);
    for i in 0..QUERIES {
        let ask = ask().new_tree(&mut runner).expect("a query").current();
        let message = ask.message();
        let request = Request::parse(&message).expect("understood");
        let clients: [(u32, IpAddr); 4] =
            [(0, CLIENT.into()), (1, OTHER.into()), (0, CLIENT6.into()), (1, OTHER6.into())];
        let (view, client) = clients[i / 2 % 4];
        // Tags are XDP's, the even turns'.
        let tags: &[u16] = if i % 2 == 0 { [&[][..], VLANS[0], VLANS[1]][i / 8 % 3] } else { &[] };
        let zone = bench.table.get(request.name(), ask.qtype, 0).is_some_and(|answer| answer.head().expires == 0);
        let turn = bench.hits(&request, if zone { 0 } else { request.query.bits });
        let outcome = bench.table.resolve(&request, view, now());
        let expected = request.emit_outcome(&outcome, request.query.limit(), turn);
        // What the kernel cannot hold it passes on: longer names, and more TTLs than it ages.
        let held = request.name().len() <= 64
            && match &outcome {
                gateway_common::dns::resolve::Outcome::Answer(answer, _) => answer.to_kernel(1).is_some(),
                _ => true,
            };
        let expected = expected.filter(|_| held).map_or(Did::Passed, Did::Answered);
        match expected {
            Did::Answered(_) => answered += 1,
            Did::Passed => passed += 1,
            Did::Dropped => panic!("query {i} was dropped"),
        }
        assert_eq!(bench.ask_tagged(TIERS[i % 2], client, tags, &message), expected, "query {i}: {ask:02x?}");
    }
    assert!(answered > QUERIES / 4 && passed > QUERIES / 10, "{answered} answered, {passed} passed: too one-sided");
}
