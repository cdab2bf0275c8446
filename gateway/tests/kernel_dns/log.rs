//! The kernel's part of the query log.

use std::net::{IpAddr, Ipv6Addr};

use gateway_common::{
    Reason,
    dns::{
        limit::Limit,
        log::{ALL, Asked, share},
        wire,
    },
};

use crate::{
    WEB, filled,
    programs::{Bench, CLIENT, CLIENT6, Did, OTHER, RING, TIERS, now},
    query::Ask,
    wire_name,
};

#[test]
fn each_answered_query_is_told_with_who_what_and_the_code() {
    let mut bench = filled(Bench::with(&Limit::OFF, ALL));
    for tier in TIERS {
        for (client, view, name, qtype, rcode) in [
            (IpAddr::from(CLIENT), 0, WEB, wire::A, wire::NOERROR),
            (CLIENT6.into(), 0, WEB, wire::AAAA, wire::NOERROR),
            (OTHER.into(), 1, "nobody.shop.svc.cluster.local", wire::SRV, wire::NXDOMAIN),
        ] {
            let before = now();
            assert!(matches!(bench.ask(tier, client, &Ask::new(name, qtype).mixed_case().message()), Did::Answered(_)));
            let logged = bench.logged();
            let [asked] = logged[..] else { panic!("{tier:?} {name}: {logged:?}") };
            assert_eq!(Ipv6Addr::from(asked.source()).to_canonical(), client, "{tier:?}");
            assert_eq!((asked.view, asked.name(), asked.qtype), (view, &wire_name(name)[..], qtype), "{tier:?}");
            assert_eq!(asked.flags & wire::RCODE, rcode, "{tier:?}");
            // The clock is a coarse one: up to a tick behind.
            assert!(asked.at + 10_000_000 >= before && asked.at <= now(), "{tier:?}: {} after {before}", asked.at);
        }
        let passed = Ask::new("www.example.com", wire::A).message();
        assert_eq!(bench.ask(tier, CLIENT, &passed), Did::Passed);
        assert_eq!(bench.logged(), [], "what the forwarder answers, it logs");
    }
}

#[test]
fn a_full_ring_costs_lines_and_no_answers() {
    let mut bench = filled(Bench::with(&Limit::OFF, ALL));
    let message = Ask::new(WEB, wire::A).message();
    for tier in TIERS {
        let lost = bench.count(Reason::DnsLogLost);
        let asked = 2 * RING as usize / size_of::<Asked>();
        for _ in 0..asked {
            assert!(matches!(bench.ask(tier, CLIENT, &message), Did::Answered(_)), "{tier:?}");
        }
        let logged = bench.logged().len();
        assert!(logged > 0 && logged < asked, "{tier:?}: {logged} of {asked}");
        assert_eq!(bench.count(Reason::DnsLogLost) - lost, (asked - logged) as u64, "{tier:?}");
    }
}

#[test]
fn a_share_of_the_queries_is_told_when_only_a_share_is_wanted() {
    let mut bench = filled(Bench::with(&Limit::OFF, share(250_000)));
    let message = Ask::new(WEB, wire::A).message();
    let mut logged = 0;
    for i in 0..2_000 {
        assert!(matches!(bench.ask(TIERS[i % 2], CLIENT, &message), Did::Answered(_)));
        logged += bench.logged().len();
    }
    // Twelve standard deviations.
    assert!((268..=732).contains(&logged), "{logged} of 2000 with a share of a quarter");
}

#[test]
fn without_a_log_nothing_is_told() {
    let mut bench = crate::cluster();
    assert!(matches!(bench.ask(TIERS[0], CLIENT, &Ask::new(WEB, wire::A).message()), Did::Answered(_)));
    assert_eq!(bench.logged(), []);
}
