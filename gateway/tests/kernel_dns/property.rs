//! Kernel and forwarder say the same, byte for byte, on generated zones and queries that hickory builds.

use std::net::IpAddr;

use gateway_common::{
    Reason,
    dns::{
        build::{EntryBuilder, Record, Soa, exists, exists_as_alias, zone},
        emit::Request,
        name::to_wire,
        resolve::Outcome,
        wire,
    },
    maps::dns_key,
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RecordType, rdata::opt::EdnsOption},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{
    SECOND,
    programs::{Bench, CLIENT, CLIENT6, Did, OTHER, OTHER6, TIERS, Tier, VLANS, now},
    wire_name,
};

/// Queries in all; `GATEWAY_FUZZ_FRAMES` asks for more.
const QUERIES: usize = 100_000;
/// Queries to one generated zone.
const ROUND: usize = 5_000;
/// The kernel's clock and the one here are read at different times, and its coarse clock lags behind.
const LAG: u64 = SECOND / 40;

/// Names whose length matters: 64 and 65 bytes in wire format, and none.
const EDGES: [&str; 4] = [
    "a-name-that-is-just-as-long-as-it-can-b.shop.svc.cluster.local",
    "a-name-that-is-one-longer-than-it-may-be.shop.svc.cluster.local",
    "cluster.local",
    ".",
];
const TYPES: [u16; 7] = [wire::A, wire::AAAA, wire::TXT, wire::CNAME, wire::SRV, wire::PTR, 65];

fn label(rng: &mut StdRng) -> String {
    let len = *[1, 2, 3, 5, 8, 13, 30].choose(rng).expect("some");
    (0..len).map(|_| char::from(*b"abcdefghijklmnopqrstuvwxyz0123456789-_".choose(rng).expect("some"))).collect()
}

/// Names of a cluster and of the world outside.
fn names(rng: &mut StdRng) -> Vec<String> {
    let mut names: Vec<String> = EDGES.map(str::to_owned).into();
    for _ in 0..12 {
        let service = format!("{}.{}.svc.cluster.local", label(rng), label(rng));
        if rng.random_ratio(1, 3) {
            names.push(format!("{}.{service}", label(rng)));
            names.push(format!("_{}._tcp.{service}", label(rng)));
        }
        names.push(service);
        names.push(format!("{}.{}.example.{}", label(rng), label(rng), ["com", "org"].choose(rng).expect("some")));
        names.push(format!("{}.2.1.10.in-addr.arpa", rng.random_range(0..256)));
    }
    names.retain(|name| to_wire(name).is_ok());
    names
}

/// Entries of every kind for the names, and the zones that they are in.
fn fill(bench: &mut Bench, rng: &mut StdRng, names: &[String]) {
    bench.clear();
    let (mname, rname) = (wire_name("ns.dns.cluster.local"), wire_name("hostmaster.cluster.local"));
    let serial = rng.random();
    let soa = Soa { mname: &mname, rname: &rname, serial, refresh: 7200, retry: 1800, expire: 86400, minimum: 5 };
    let zones = ["cluster.local", "10.in-addr.arpa", "pod.cluster.local"];
    for (index, name) in zones.into_iter().enumerate() {
        let complete = rng.random_ratio([9, 5, 1][index], 10);
        bench.set_zone(index, zone(&wire_name(name), &soa, rng.random_range(1..60), complete).expect("a zone"));
    }
    for text in names {
        let name = wire_name(text);
        let zone = zones.iter().any(|zone| text.ends_with(zone));
        let seen = *[0b01, 0b10, 0b11, 0b11].choose(rng).expect("some");
        if zone {
            let alias = rng.random_ratio(1, 8);
            let entry = if alias { exists_as_alias(&name, seen) } else { exists(&name, seen) };
            bench.put(&name, dns_key::EXISTS, 0, entry.expect("a name"));
        }
        for qtype in TYPES {
            if rng.random() {
                continue;
            }
            let views = if rng.random_ratio(1, 4) { 0b10 } else { seen };
            let (bits, mut builder) = if zone {
                (0, EntryBuilder::zone(&name, views).expect("a name"))
            } else {
                let stored = now() - rng.random_range(0..400 * SECOND);
                (
                    rng.random_range(0..4),
                    EntryBuilder::learnt(&name, views, stored, stored + 300 * SECOND).expect("a name"),
                )
            };
            for i in 0..*[1, 1, 2, 5, 10, 11, 30, 90].choose(rng).expect("some") {
                let data: Vec<u8> = match qtype {
                    wire::A => vec![10, 1, 0, i],
                    wire::AAAA => [&[0xfd; 15][..], &[i]].concat(),
                    wire::CNAME | wire::PTR => wire_name("target.example.net"),
                    wire::SRV => [&[0, 0, 0, 100, 0, i][..], &name].concat(),
                    _ => [&[40; 1][..], &[b'x'; 40]].concat(),
                };
                let ttl = 300 + rng.random_range(0..2) * 100;
                builder.answer(Record::new(&name, qtype, ttl, &data)).expect("a record");
            }
            bench.put(&name, qtype, bits, builder.build().expect("an answer"));
        }
    }
}

/// A query as hickory writes it: for a name that is there, one below it, or another one.
fn query(rng: &mut StdRng, names: &[String]) -> Vec<u8> {
    let mut text = names.choose(rng).expect("some").clone();
    match rng.random_range(0..10) {
        0 => text = format!("{}.{text}", label(rng)),
        1 => text = text.split_once('.').map_or_else(String::new, |(_, above)| above.to_owned()),
        _ => {}
    }
    let labels: Vec<Vec<u8>> = text
        .split('.')
        .filter(|label| !label.is_empty())
        .map(|label| {
            let mut label = label.as_bytes().to_vec();
            label.iter_mut().filter(|_| rng.random()).for_each(u8::make_ascii_uppercase);
            label
        })
        .collect();
    let name = Name::from_labels(labels.iter().map(Vec::as_slice)).expect("a name");
    let mut message = Message::new(rng.random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = rng.random();
    message.metadata.authentic_data = rng.random();
    message.metadata.checking_disabled = rng.random_ratio(1, 3);
    message.add_query(Query::query(name, RecordType::from(*TYPES.choose(rng).expect("some"))));
    if rng.random() {
        let mut edns = Edns::new();
        let size = *[rng.random_range(0..1300), 512, 1232, 4096].choose(rng).expect("some");
        edns.set_max_payload(size).set_version(0).set_dnssec_ok(rng.random_ratio(1, 3));
        for _ in 0..rng.random_range(0..4) {
            let data = (0..rng.random_range(0..12)).map(|_| rng.random()).collect();
            edns.options_mut().insert(EdnsOption::Unknown(rng.random_range(20..60_000), data));
        }
        message.set_edns(edns);
    }
    message.to_vec().expect("hickory encodes it")
}

/// What the forwarder's code says at a time, when the kernel can hold it.
fn forwarder(bench: &Bench, request: &Request, view: u32, turn: u64, at: u64) -> Did {
    let outcome = bench.table.resolve(request, view, at);
    // What the kernel cannot hold it passes on: longer names, and more TTLs than it ages.
    let held = request.name().len() <= 64
        && match &outcome {
            Outcome::Answer(answer, _) => answer.to_kernel(1).is_some(),
            _ => true,
        };
    let answer = request.emit_outcome(&outcome, request.query.limit(), turn);
    answer.filter(|_| held).map_or(Did::Passed, Did::Answered)
}

#[test]
fn kernel_and_forwarder_give_the_same_answer_byte_for_byte() {
    assert_eq!([EDGES[0], EDGES[1]].map(|name| wire_name(name).len()), [64, 65]);
    let queries = std::env::var("GATEWAY_FUZZ_FRAMES").ok().and_then(|n| n.parse().ok()).unwrap_or(QUERIES);
    let mut bench = Bench::new();
    let clients: [(u32, IpAddr); 4] = [(0, CLIENT.into()), (1, OTHER.into()), (0, CLIENT6.into()), (1, OTHER6.into())];
    let (mut answered, mut passed, mut unsure) = (0, 0, 0);
    for round in 0..queries.div_ceil(ROUND) {
        let mut rng = StdRng::seed_from_u64(round as u64);
        let names = names(&mut rng);
        fill(&mut bench, &mut rng, &names);
        for i in 0..ROUND {
            let message = query(&mut rng, &names);
            let request = Request::parse(&message).expect("understood");
            let (view, client) = clients[i / 2 % 4];
            // Tags are XDP's, the even turns'.
            let tags: &[u16] = if i % 2 == 0 { [&[][..], VLANS[0], VLANS[1]][i / 8 % 3] } else { &[] };
            let zone = bench.table.get(request.name(), request.query.qtype, 0);
            let zone = zone.is_some_and(|answer| answer.head().expires == 0);
            let turn = bench.hits(&request, if zone { 0 } else { request.query.bits });
            let before = now();
            let mut did = bench.ask_tagged(TIERS[i % 2], client, tags, &message);
            let after = now();
            let times = [before - LAG, before, after, after + LAG];
            let said = times.map(|at| forwarder(&bench, &request, view, turn, at));
            // One checksum in 65,536 looks like one that is still to be completed, and XDP leaves it to TC.
            if !said.contains(&did) && TIERS[i % 2] == Tier::Xdp {
                let counted = bench.count(Reason::PartialChecksum);
                let again = bench.ask_tagged(Tier::Xdp, client, tags, &message);
                let partial = bench.count(Reason::PartialChecksum) > counted;
                assert!(partial && again == Did::Passed, "query {i} of round {round}: {message:02x?}\n{did:02x?}");
                did = bench.ask(Tier::Tc, client, &message);
            }
            match did {
                Did::Answered(_) => answered += 1,
                Did::Passed => passed += 1,
                Did::Dropped => panic!("query {i} of round {round} was dropped: {message:02x?}"),
            }
            // Where a TTL's second or an entry's life ended meanwhile, either is right.
            unsure += usize::from(said[0] != said[3]);
            let slow = after - before > SECOND;
            assert!(
                slow || said.contains(&did),
                "query {i} of round {round}: {message:02x?}\n{did:02x?}\n{:02x?}",
                said[0]
            );
        }
    }
    println!("{answered} answered, {passed} passed on, {unsure} while a second ended");
    assert!(answered > queries / 3 && passed > queries / 10 && unsure < queries / 5, "too one-sided");
}
