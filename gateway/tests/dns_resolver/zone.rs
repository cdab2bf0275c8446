//! The cluster zone.

use std::str::FromStr;

use gateway::{dns::clock, plan::RecordData};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, RecordType},
};

use crate::{
    fake::Fake,
    support::{
        BOTH, DEVELOPER, GUEST, Lab, STRANGER, a, addresses, config, forward, query, query_edns, tcp, udp, udp_within,
    },
};

const WEB: &str = "web.shop.svc.cluster.local";

fn many(name: &str, count: u8) -> Vec<(&str, u64, RecordData)> {
    (1..=count).map(|last| (name, BOTH, a(&format!("10.244.0.{last}")))).collect()
}

#[tokio::test]
async fn forwarder_and_kernel_give_the_same_bytes() {
    let lab = Lab::synced(config()).await;
    lab.service("web", &[(WEB, 1, a("10.1.0.10")), (WEB, 1, a("fd00::10"))]);
    lab.service("all", &[("all.ops.svc.cluster.local", BOTH, a("10.1.0.11"))]);
    lab.service("big", &many("big.shop.svc.cluster.local", 1));
    lab.service("txt", &[("t.shop.svc.cluster.local", BOTH, RecordData::Txt("x".repeat(700)))]);
    lab.service("srv", &[("_http._tcp.web.shop.svc.cluster.local", 1, RecordData::Srv(0, 100, 80, WEB.to_owned()))]);
    lab.service("alias", &[("ext.shop.svc.cluster.local", BOTH, RecordData::Cname("www.example.org".to_owned()))]);
    let names = [
        WEB,
        "wEb.ShOp.SVC.cluster.LOCAL",
        "all.ops.svc.cluster.local",
        "big.shop.svc.cluster.local",
        "t.shop.svc.cluster.local",
        "_http._tcp.web.shop.svc.cluster.local",
        "_tcp.web.shop.svc.cluster.local",
        "shop.svc.cluster.local",
        "ops.svc.cluster.local",
        "svc.cluster.local",
        "cluster.local",
        "dns-version.cluster.local",
        "ns.dns.cluster.local",
        "nothing.cluster.local",
        "no.such.shop.svc.cluster.local",
        "ext.shop.svc.cluster.local",
        "acluster.local",
    ];
    let types = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::TXT,
        RecordType::SRV,
        RecordType::SOA,
        RecordType::NS,
        RecordType::CNAME,
        RecordType::MX,
        RecordType::Unknown(65_000),
    ];
    let mut compared = 0;
    for name in names {
        for qtype in types {
            for packet in [query(name, qtype), query_edns(name, qtype, 1232, false), query_edns(name, qtype, 600, true)]
            {
                for (view, client) in [(0, DEVELOPER), (1, GUEST)] {
                    let ours = udp(lab.addr, client, &packet).await.expect("an answer");
                    if let Some(kernel) = lab.kernel.answer(&packet, view, clock::now()) {
                        assert_eq!(ours, kernel, "{name} {qtype} for {client}");
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 750, "the kernel answers nearly all of them, but for aliases and names outside: {compared}");
}

#[tokio::test]
async fn a_deleted_service_is_gone_at_once_with_the_names_above_it() {
    let lab = Lab::synced(config()).await;
    let empty = lab.kernel.len();
    lab.service("web", &[(WEB, BOTH, a("10.1.0.10"))]);
    assert_eq!(addresses(&lab.ask(WEB, RecordType::A).await), ["10.1.0.10"]);
    assert!(lab.kernel.has(WEB, 1) && lab.kernel.has("shop.svc.cluster.local", 0));
    lab.gone("web");
    for name in [WEB, "shop.svc.cluster.local", "svc.cluster.local"] {
        let answer = lab.ask(name, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert!(answer.metadata.authoritative);
        assert_eq!(answer.authorities.len(), 1, "with the SOA");
        assert_eq!(answer.authorities[0].ttl, 30);
    }
    assert_eq!(lab.kernel.len(), empty, "nothing of it is left in the kernel");
    assert!(!lab.kernel.has(WEB, 1));
}

#[tokio::test]
async fn a_renumbered_service_has_only_its_new_address() {
    let lab = Lab::synced(config()).await;
    lab.service("web", &[(WEB, BOTH, a("10.1.0.10"))]);
    lab.service("web", &[(WEB, BOTH, a("10.1.0.99"))]);
    assert_eq!(addresses(&lab.ask(WEB, RecordType::A).await), ["10.1.0.99"]);
    let packet = query(WEB, RecordType::A);
    let kernel = lab.kernel.answer(&packet, 0, clock::now()).expect("the kernel answers");
    assert_eq!(addresses(&Message::from_vec(&kernel).expect("answer")), ["10.1.0.99"]);
}

#[tokio::test]
async fn work_is_proportional_to_the_change() {
    let lab = Lab::synced(config()).await;
    for service in 0..500 {
        let name = format!("s{service}.shop.svc.cluster.local");
        lab.service(&format!("s{service}"), &[(&name, BOTH, a("10.1.0.10"))]);
    }
    let before = lab.kernel.with(|tables| tables.writes);
    lab.service("s7", &[("s7.shop.svc.cluster.local", BOTH, a("10.1.0.11"))]);
    assert_eq!(lab.kernel.with(|tables| tables.writes) - before, 1, "one entry differs, one is written");
    lab.service("s7", &[("s7.shop.svc.cluster.local", BOTH, a("10.1.0.11"))]);
    assert_eq!(lab.kernel.with(|tables| tables.writes) - before, 1, "nothing differs, nothing is written");
}

#[tokio::test]
async fn a_view_resolves_only_what_it_may_reach() {
    let lab = Lab::synced(config()).await;
    lab.service("web", &[(WEB, 1, a("10.1.0.10"))]);
    assert_eq!(addresses(&lab.ask_from(DEVELOPER, WEB, RecordType::A).await), ["10.1.0.10"]);
    for (name, qtype) in [(WEB, RecordType::A), (WEB, RecordType::TXT), ("shop.svc.cluster.local", RecordType::A)] {
        let answer = lab.ask_from(GUEST, name, qtype).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name} does not exist for a guest");
    }
    assert_eq!(lab.ask_from(GUEST, "cluster.local", RecordType::SOA).await.answers.len(), 1);
}

#[tokio::test]
async fn strangers_get_nothing_and_are_counted() {
    let lab = Lab::synced(config()).await;
    let packet = query("cluster.local", RecordType::SOA);
    assert!(udp_within(lab.addr, STRANGER, &packet, std::time::Duration::from_millis(300)).await.is_none());
    assert_eq!(lab.dns.counters().dropped["stranger"], 1);
    lab.dns.set_views(&[vec!["127.0.0.0/8".parse().expect("prefix")]]);
    assert!(udp(lab.addr, STRANGER, &packet).await.is_some(), "views can change while it runs");
}

#[tokio::test]
async fn records_of_one_name_for_different_views_are_never_mixed() {
    let lab = Lab::synced(config()).await;
    lab.service("one", &[(WEB, 1, a("10.1.0.1"))]);
    lab.service("two", &[(WEB, 2, a("10.1.0.2")), (WEB, 2, a("10.1.0.3"))]);
    assert_eq!(addresses(&lab.ask_from(DEVELOPER, WEB, RecordType::A).await), ["10.1.0.1"]);
    assert_eq!(addresses(&lab.ask_from(GUEST, WEB, RecordType::A).await), ["10.1.0.2", "10.1.0.3"]);
    for (packet, view) in [(query(WEB, RecordType::A), 0), (query_edns(WEB, RecordType::A, 1232, true), 1)] {
        assert_eq!(lab.kernel.answer(&packet, view, clock::now()), None, "the kernel leaves it to the forwarder");
    }
    lab.gone("two");
    let packet = query(WEB, RecordType::A);
    let kernel = lab.kernel.answer(&packet, 0, clock::now()).expect("the kernel answers again");
    assert_eq!(addresses(&Message::from_vec(&kernel).expect("answer")), ["10.1.0.1"]);
    assert_eq!(lab.ask_from(GUEST, WEB, RecordType::A).await.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn before_the_first_snapshot_nothing_is_denied() {
    let lab = Lab::start(config()).await;
    assert_eq!(lab.rcode(WEB, RecordType::A).await, ResponseCode::ServFail);
    assert!(!lab.kernel.is_complete());
    assert_eq!(lab.kernel.answer(&query(WEB, RecordType::A), 0, clock::now()), None);
    lab.service("web", &[(WEB, BOTH, a("10.1.0.10"))]);
    assert_eq!(addresses(&lab.ask(WEB, RecordType::A).await), ["10.1.0.10"], "what is known is answered");
    lab.dns.synced();
    assert!(lab.kernel.is_complete());
    assert_eq!(lab.rcode("other.shop.svc.cluster.local", RecordType::A).await, ResponseCode::NXDomain);
}

#[tokio::test]
async fn a_kernel_table_that_is_full_never_denies_what_exists() {
    let lab = Lab::synced(config()).await;
    let fits = lab.kernel.len() + 6;
    lab.kernel.with(|tables| tables.capacity = Some(fits));
    for service in 0..8 {
        let name = format!("s{service}.shop.svc.cluster.local");
        lab.service(&format!("s{service}"), &[(&name, BOTH, a("10.1.0.10"))]);
    }
    assert!(!lab.kernel.is_complete());
    for service in 0..8 {
        let name = format!("s{service}.shop.svc.cluster.local");
        assert_eq!(addresses(&lab.ask(&name, RecordType::A).await), ["10.1.0.10"], "the forwarder has it");
        let packet = query(&name, RecordType::A);
        if let Some(answer) = lab.kernel.answer(&packet, 0, clock::now()) {
            assert_eq!(addresses(&Message::from_vec(&answer).expect("answer")), ["10.1.0.10"], "the kernel is right");
        }
    }
    lab.kernel.with(|tables| tables.capacity = None);
    crate::support::eventually("the kernel has it all", || lab.kernel.is_complete()).await;
    assert!(lab.kernel.answer(&query("s7.shop.svc.cluster.local", RecordType::A), 0, clock::now()).is_some());
}

#[tokio::test]
async fn an_alias_leads_to_its_target_inside_and_outside_the_zone() {
    let upstream = Fake::good(300).await;
    let mut config = config();
    config.forward = vec![forward("example.org", &[upstream.addr])];
    let lab = Lab::synced(config).await;
    let alias = |target: &str| RecordData::Cname(target.to_owned());
    lab.service("web", &[(WEB, 1, a("10.1.0.10"))]);
    lab.service("inside", &[("in.shop.svc.cluster.local", BOTH, alias(WEB))]);
    lab.service("outside", &[("out.shop.svc.cluster.local", BOTH, alias("www.example.org"))]);
    lab.service("refused", &[("no.shop.svc.cluster.local", BOTH, alias("www.example.net"))]);
    lab.service("loop", &[("loop.shop.svc.cluster.local", BOTH, alias("loop.shop.svc.cluster.local"))]);

    let inside = lab.ask("in.shop.svc.cluster.local", RecordType::A).await;
    assert_eq!((inside.answers.len(), addresses(&inside)), (2, vec!["10.1.0.10".to_owned()]));
    assert!(matches!(inside.answers[0].data, RData::CNAME(_)));
    assert_eq!(inside.answers[1].name, Name::from_str(&format!("{WEB}.")).expect("name"));
    let hidden = lab.ask_from(GUEST, "in.shop.svc.cluster.local", RecordType::A).await;
    assert_eq!(hidden.metadata.response_code, ResponseCode::NXDomain, "views hold behind an alias");
    assert_eq!(hidden.answers.len(), 1);

    let outside = lab.ask("out.shop.svc.cluster.local", RecordType::A).await;
    assert_eq!((outside.answers.len(), addresses(&outside)), (2, vec!["192.0.2.1".to_owned()]));
    let only = lab.ask("no.shop.svc.cluster.local", RecordType::A).await;
    assert_eq!((only.metadata.response_code, only.answers.len()), (ResponseCode::NoError, 1));
    let cname = lab.ask("out.shop.svc.cluster.local", RecordType::CNAME).await;
    assert_eq!(cname.answers.len(), 1);
    assert_eq!(lab.rcode("loop.shop.svc.cluster.local", RecordType::A).await, ResponseCode::ServFail);
}

#[tokio::test]
async fn names_too_long_for_the_kernel_are_answered_alike() {
    let lab = Lab::synced(config()).await;
    let long = format!("{}.{}.shop.svc.cluster.local", "p".repeat(60), "s".repeat(60));
    lab.service("long", &[(&long, 1, a("10.244.0.1"))]);
    let answer = lab.ask(&long, RecordType::A).await;
    assert_eq!(addresses(&answer), ["10.244.0.1"]);
    assert!(answer.metadata.authoritative);
    assert_eq!(lab.ask(&long, RecordType::TXT).await.authorities.len(), 1);
    assert_eq!(lab.rcode(&format!("x.{long}"), RecordType::A).await, ResponseCode::NXDomain);
    assert_eq!(lab.ask_from(GUEST, &long, RecordType::A).await.metadata.response_code, ResponseCode::NXDomain);
    lab.gone("long");
    assert_eq!(lab.rcode(&long, RecordType::A).await, ResponseCode::NXDomain);
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_cut_over_udp_and_whole_over_tcp() {
    let lab = Lab::synced(config()).await;
    let name = "pods.shop.svc.cluster.local";
    lab.service("pods", &many(name, 100));
    for packet in [query(name, RecordType::A), query_edns(name, RecordType::A, 4096, false)] {
        let cut = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
        let message = Message::from_vec(&cut).expect("answer");
        assert!(message.metadata.truncation && message.answers.is_empty());
        assert_eq!(lab.kernel.answer(&packet, 0, clock::now()), Some(cut), "the kernel cuts it too");
        let whole = Message::from_vec(&tcp(lab.addr, &packet).await).expect("answer");
        assert_eq!(whole.answers.len(), 100);
    }
    lab.service("pods", &many(name, 40));
    let small = Message::from_vec(&udp(lab.addr, DEVELOPER, &query(name, RecordType::A)).await.expect("an answer"));
    assert!(small.expect("answer").metadata.truncation, "640 bytes are too many without EDNS");
    let packet = query_edns(name, RecordType::A, 1232, false);
    let fits = Message::from_vec(&udp(lab.addr, DEVELOPER, &packet).await.expect("an answer")).expect("answer");
    assert_eq!(fits.answers.len(), 40);
}

#[tokio::test]
async fn address_records_take_turns() {
    let lab = Lab::synced(config()).await;
    lab.service("pods", &many(WEB, 3));
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let answer = lab.ask(WEB, RecordType::A).await;
        first.insert(answer.answers[0].data.to_string());
        assert_eq!(addresses(&answer).len(), 3);
    }
    assert_eq!(first.len(), 3, "each was the first once");
}

#[tokio::test]
async fn any_is_answered_minimally_and_transfers_are_refused() {
    let lab = Lab::synced(config()).await;
    lab.service("web", &[(WEB, BOTH, a("10.1.0.10"))]);
    let any = lab.ask(WEB, RecordType::ANY).await;
    assert_eq!((any.answers.len(), any.answers[0].record_type()), (1, RecordType::HINFO));
    assert_eq!(any.queries[0].query_type(), RecordType::ANY);
    assert_eq!(lab.rcode("nothing.cluster.local", RecordType::ANY).await, ResponseCode::NXDomain);
    for qtype in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(lab.rcode("cluster.local", qtype).await, ResponseCode::Refused);
    }
}

#[tokio::test]
async fn the_apex_and_the_version_are_there() {
    let lab = Lab::synced(config()).await;
    let soa = lab.ask("cluster.local", RecordType::SOA).await;
    let RData::SOA(soa) = &soa.answers[0].data else { panic!("{soa}") };
    assert_eq!(soa.mname.to_ascii(), "ns.dns.cluster.local.");
    assert_eq!(soa.rname.to_ascii(), "hostmaster.cluster.local.");
    assert_eq!((soa.refresh, soa.retry, soa.expire, soa.minimum), (7200, 1800, 86_400, 30));
    assert_eq!(lab.ask("cluster.local", RecordType::NS).await.answers.len(), 1);
    assert_eq!(lab.ask("dns-version.cluster.local", RecordType::TXT).await.answers.len(), 1);
    assert_eq!(lab.rcode("ns.dns.cluster.local", RecordType::A).await, ResponseCode::NoError);
}

#[tokio::test]
async fn a_pointer_outside_the_zone_is_answered_and_its_neighbours_are_not_denied() {
    let lab = Lab::synced(config()).await;
    lab.service("web", &[("10.0.1.10.in-addr.arpa", 1, RecordData::Ptr(WEB.to_owned()))]);
    assert_eq!(lab.ask("10.0.1.10.in-addr.arpa", RecordType::PTR).await.answers.len(), 1);
    let hidden = lab.ask_from(GUEST, "10.0.1.10.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(hidden.metadata.response_code, ResponseCode::Refused);
    assert_eq!(lab.rcode("11.0.1.10.in-addr.arpa", RecordType::PTR).await, ResponseCode::Refused);
}

#[tokio::test]
async fn what_was_learnt_about_a_name_never_replaces_what_the_zone_says() {
    let name = "10.0.1.10.in-addr.arpa";
    let upstream = Fake::start(|query, _| vec![crate::fake::nxdomain(query, 300, 1)]).await;
    let mut config = config();
    config.forward = vec![forward(".", &[upstream.addr])];
    let lab = Lab::synced(config).await;
    let packet = query(name, RecordType::PTR);
    let kernel = |view| {
        let answer = lab.kernel.answer(&packet, view, clock::now())?;
        Some(Message::from_vec(&answer).expect("answer").answers.len())
    };
    assert_eq!(lab.rcode(name, RecordType::PTR).await, ResponseCode::NXDomain);
    assert_eq!(kernel(0), Some(0), "learnt while there was no such Service");
    lab.service("web", &[(name, 1, RecordData::Ptr(WEB.to_owned()))]);
    assert_eq!(kernel(0), Some(1));
    let hidden = lab.ask_from(GUEST, name, RecordType::PTR).await;
    assert_eq!(hidden.metadata.response_code, ResponseCode::NXDomain, "who may not see it gets the upstream's answer");
    assert_eq!((kernel(0), kernel(1)), (Some(1), None));
    tokio::time::sleep(std::time::Duration::from_millis(2300)).await;
    assert_eq!(kernel(0), Some(1), "the end of what was learnt is not the end of the zone's");
}

#[tokio::test]
async fn a_service_of_more_endpoints_than_a_message_holds_still_loses_those_that_go() {
    let lab = Lab::synced(config()).await;
    let name = "huge.shop.svc.cluster.local";
    let records = |from: u32, count: u32| -> Vec<(&str, u64, RecordData)> {
        (from..from + count).map(|n| (name, BOTH, RecordData::Address(std::net::Ipv4Addr::from(n).into()))).collect()
    };
    let whole = async || {
        let answer = tcp(lab.addr, &query(name, RecordType::A)).await;
        Message::from_vec(&answer).expect("answer").answers
    };
    lab.service("huge", &records(0x0a00_0000, 6000));
    let many = whole().await;
    assert!((3000..5000).contains(&many.len()), "{}", many.len());
    lab.service("huge", &records(0x0a10_0000, 6000));
    let moved = whole().await;
    assert!(!moved.iter().any(|record| many.iter().any(|old| old.data == record.data)), "only the new ones");
}
