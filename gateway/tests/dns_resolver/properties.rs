//! Properties: the way to a state does not matter, and no message breaks anything.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use gateway::{
    dns::{
        CacheConfig, SharedStore,
        cache::Cache,
        forwarder::{Forwarder, Step},
        learn::learn,
        publish::Publisher,
        rules::Rules,
        stats::{Stats, Transport},
        upstream::Ask,
        views::ViewTable,
        zone::{self, ZoneConfig},
    },
    model::ObjectName,
    plan::{Record, RecordData, ServicePlan},
};
use gateway_common::maps::Zone;
use hickory_proto::{
    op::Message,
    rr::{Name, RecordType},
};
use proptest::{
    prelude::{ProptestConfig, Strategy, any},
    prop_assert, prop_assert_eq, proptest,
    sample::select,
};

use crate::{
    fake,
    recorder::Recorder,
    support::{DEVELOPER, query, query_edns},
};

fn cluster_domain() -> Name {
    Name::from_ascii("cluster.local.").expect("a name")
}

const NAMES: [&str; 8] = [
    "web.shop.svc.cluster.local",
    "shop.svc.cluster.local",
    "a.web.shop.svc.cluster.local",
    "db.ops.svc.cluster.local",
    "_http._tcp.web.shop.svc.cluster.local",
    "cluster.local",
    "10.0.1.10.in-addr.arpa",
    "a-name-that-is-too-long-for-the-kernel-but-not-for-the-zone.web.shop.svc.cluster.local",
];

fn zone() -> (zone::Zone, Arc<Recorder>, Arc<Publisher>, Arc<Stats>) {
    let kernel = Arc::new(Recorder::default());
    let stats = Arc::new(Stats::default());
    let store: SharedStore = Arc::<Recorder>::clone(&kernel);
    let publisher = Arc::new(Publisher::new(store, Arc::clone(&stats)));
    let config = ZoneConfig {
        domain: "cluster.local",
        ttl: 30,
        negative_ttl: 30,
        serial: 1,
        fixed: Vec::new(),
        pods: false,
        local: false,
    };
    let zone = zone::Zone::new(&config, Arc::clone(&publisher)).expect("a zone");
    zone.synced();
    (zone, kernel, publisher, stats)
}

fn data() -> impl Strategy<Value = RecordData> {
    proptest::prop_oneof![
        (1..4_u8).prop_map(|last| RecordData::Address([10, 1, 0, last].into())),
        proptest::strategy::Just(RecordData::Address("fd00::1".parse().expect("address"))),
        proptest::strategy::Just(RecordData::Cname("www.example.org".to_owned())),
        proptest::strategy::Just(RecordData::Txt("text".to_owned())),
        proptest::strategy::Just(RecordData::Srv(0, 100, 80, "web.shop.svc.cluster.local".to_owned())),
        proptest::strategy::Just(RecordData::Ptr("web.shop.svc.cluster.local".to_owned())),
        proptest::strategy::Just(RecordData::Exists),
    ]
}

fn record() -> impl Strategy<Value = Record> {
    (select(&NAMES[..]), 0..4_u64, select(&[5_u32, 30][..]), data()).prop_map(|(name, views, ttl, data)| Record {
        name: name.to_owned(),
        ttl,
        views,
        data,
    })
}

fn plans() -> impl Strategy<Value = Vec<(u8, Vec<Record>)>> {
    proptest::collection::vec((0..4_u8, proptest::collection::vec(record(), 0..6)), 1..25)
}

fn plan(records: &[Record]) -> ServicePlan {
    let mut records = records.to_vec();
    records.sort();
    records.dedup();
    ServicePlan { records, ..ServicePlan::default() }
}

fn service(number: u8) -> ObjectName {
    ObjectName::new("shop", format!("s{number}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_changes_the_kernel_holds_what_a_fresh_zone_would_put_there(changes in plans()) {
        let (changed, kernel, ..) = zone();
        let mut last = BTreeMap::new();
        let ranges = ["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/12"].map(|range| range.parse().expect("a range"));
        let mut range = &ranges[..0];
        for (turn, (number, records)) in changes.iter().enumerate() {
            if number % 2 == 0 {
                range = &ranges[turn % 3..][..1];
                changed.set_service_cidrs(range);
            }
            let gone = records.is_empty();
            changed.apply(&service(*number), (!gone).then(|| plan(records)).as_ref());
            last.insert(*number, records);
        }
        let (fresh, expected, ..) = zone();
        fresh.set_service_cidrs(range);
        for (number, records) in &last {
            fresh.apply(&service(*number), Some(&plan(records)));
        }
        let used = |zones: &HashMap<usize, Zone>| {
            zones.iter().filter(|(_, zone)| zone.name_len > 0).map(|(slot, zone)| (*slot, *zone)).collect::<BTreeMap<_, _>>()
        };
        let tables = |recorder: &Recorder| recorder.with(|tables| (tables.entries.clone(), used(&tables.zones)));
        prop_assert_eq!(tables(&kernel), tables(&expected));
        for number in last.keys() {
            changed.apply(&service(*number), None);
        }
        changed.set_service_cidrs(&[]);
        prop_assert!(kernel.len() == 0, "nothing is left when all are gone: {}", kernel.len());
    }

    #[test]
    fn no_server_message_breaks_the_cache(at in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..8), cut in any::<u16>()) {
        let ask = Ask { name: b"\x03www\x07example\x03org\x00"[..].into(), qtype: 1, flags: 0, via: 0 };
        let question = Message::from_vec(&query("www.example.org", RecordType::A)).expect("query");
        for mut bytes in [fake::answer(&question, 300), fake::nxdomain(&question, 300, 20)] {
            for (at, byte) in &at {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *byte;
            }
            if cut % 4 == 0 {
                bytes.truncate(usize::from(cut) % (bytes.len() + 1));
            }
            let Ok(message) = Message::from_vec(&bytes) else { continue };
            let config = CacheConfig { negative_ttl: 60, ..CacheConfig::default() };
            if let Ok(learnt) = learn(&ask, &message, &config, &cluster_domain())
                && let Ok(answer) = learnt.build(&ask.name, 1_000_000_000)
            {
                prop_assert!(learnt.ttl <= 3600);
                let request = gateway_common::dns::emit::Request::parse(&query("www.example.org", RecordType::A)).expect("query");
                let sending = gateway_common::dns::emit::Sending::tcp(5, 0);
                prop_assert!(Message::from_vec(&request.emit(&answer, &sending)).is_ok());
            }
        }
    }
}

#[test]
fn a_hundred_thousand_mutated_queries_get_readable_answers_or_none() {
    let (zone, kernel, publisher, stats) = zone();
    zone.apply(
        &service(0),
        Some(&plan(&[Record {
            name: NAMES[0].to_owned(),
            ttl: 30,
            views: 1,
            data: RecordData::Address([10, 1, 0, 1].into()),
        }])),
    );
    let cache = Arc::new(Cache::new(CacheConfig::default(), cluster_domain(), publisher, Arc::clone(&stats)));
    let views = ViewTable::new(&[vec!["127.0.0.0/8".parse().expect("prefix")]]);
    let forwarder = Forwarder::new(zone, cache, Rules::default(), views, stats);
    let client: IpAddr = DEVELOPER.parse().expect("address");
    let seeds = [
        query(NAMES[0], RecordType::A),
        query_edns("nothing.cluster.local", RecordType::TXT, 1232, true),
        query_edns("www.example.org", RecordType::ANY, 512, false),
    ];
    // A generator of its own: the same messages in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).expect("small")
    };
    let (mut replies, mut same) = (0, 0);
    for turn in 0..100_000 {
        let mut packet = seeds[turn % seeds.len()].clone();
        for _ in 0..random(4) {
            let at = random(packet.len());
            packet[at] = u8::try_from(random(256)).expect("a byte");
        }
        match random(10) {
            0 => packet.truncate(random(packet.len() + 1)),
            1 => packet.extend(vec![0; random(40)]),
            _ => {}
        }
        for transport in [Transport::Udp, Transport::Tcp] {
            let Step::Reply(reply) = forwarder.begin(&packet, client, transport) else { continue };
            let message = Message::from_vec(&reply).unwrap_or_else(|error| panic!("{packet:02x?}: {error}"));
            assert_eq!(message.metadata.id.to_be_bytes(), packet[..2]);
            assert!(transport == Transport::Tcp || reply.len() <= 1232);
            replies += 1;
            if let Some(kernel) = kernel.answer(&packet, 0, 1)
                && transport == Transport::Udp
            {
                assert_eq!(reply, kernel, "{packet:02x?}");
                same += 1;
            }
        }
    }
    assert!(replies > 100_000 && same > 10_000, "{replies} answers, {same} the kernel's too");
}
