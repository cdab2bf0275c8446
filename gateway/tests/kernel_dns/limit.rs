//! Response rate limiting in the kernel.

use std::net::{IpAddr, Ipv4Addr};

use gateway_common::{
    Reason,
    dns::{emit::Request, limit::Limit, log::NONE, wire},
};

use crate::{
    WEB, filled,
    programs::{Bench, CLIENT, CLIENT6, Did, OTHER, OTHER6, TIERS},
    query::Ask,
};

/// Slow, so that a test that is held up sees no refill: an answer a second after the first few.
fn limited(rate: u32, slip: u32, exempt: u64) -> Bench {
    filled(Bench::with(&Limit { rate, slip, exempt, ..Limit::OFF }.prefixes(24, 64), NONE))
}

fn slipped(message: &[u8]) -> Did {
    Did::Answered(Request::parse(message).expect("a query").emit_slip())
}

#[test]
fn above_its_rate_a_prefix_gets_every_second_answer_cut_and_others_are_served() {
    for tier in TIERS {
        let mut bench = limited(1, 2, 0);
        let message = Ask::new(WEB, wire::A).edns(1232).mixed_case().message();
        assert!(matches!(bench.ask(tier, CLIENT, &message), Did::Answered(_)));
        // A second may pass and bring one more.
        let before = [Reason::DnsAnswered, Reason::DnsSlipped, Reason::DnsLimited].map(|reason| bench.count(reason));
        let (mut cut, mut dropped, mut whole) = (0, 0, 0);
        for i in 0..60u8 {
            // The whole /24 shares the rate.
            let [a, b, c, _] = CLIENT.octets();
            match bench.ask(tier, Ipv4Addr::new(a, b, c, 1 + i), &message) {
                Did::Dropped => dropped += 1,
                did if did == slipped(&message) => cut += 1,
                Did::Answered(_) => whole += 1,
                Did::Passed => panic!("passed"),
            }
        }
        assert_eq!(cut, (60 - whole) / 2, "{tier:?}");
        assert!(whole <= 10, "{tier:?}: {whole} whole ones at one a second");
        let after = [Reason::DnsAnswered, Reason::DnsSlipped, Reason::DnsLimited].map(|reason| bench.count(reason));
        assert_eq!([0, 1, 2].map(|i| after[i] - before[i]), [whole, cut, dropped], "{tier:?}");
        for other in [OTHER.into(), IpAddr::from(OTHER6)] {
            assert!(matches!(bench.ask(tier, other, &message), Did::Answered(answer) if answer[7] == 1), "{other}");
        }
    }
}

#[test]
fn what_slips_is_the_same_for_every_answer_with_and_without_edns_in_both_families() {
    for tier in TIERS {
        let mut bench = limited(1, 1, 0);
        for client in [IpAddr::from(CLIENT), CLIENT6.into()] {
            while matches!(bench.ask(tier, client, &Ask::new(WEB, wire::A).message()), Did::Answered(answer) if answer[7] == 1)
            {
            }
            for name in [WEB, "nobody.shop.svc.cluster.local", "many.shop.svc.cluster.local", "svc.cluster.local"] {
                for edns in [None, Some(512), Some(4096)] {
                    let mut ask = Ask::new(name, wire::A).mixed_case();
                    ask.edns = edns.map(|size| (size, true, vec![0, 10, 0, 2, 1, 2]));
                    let message = ask.message();
                    let did = bench.ask(tier, client, &message);
                    let refilled = matches!(&did, Did::Answered(answer) if answer[2] & 2 == 0);
                    assert!(refilled || did == slipped(&message), "{tier:?} {client} {ask:?}: {did:02x?}");
                    assert!(refilled || did.answer().len() <= message.len(), "no longer than the query");
                }
            }
        }
    }
}

#[test]
fn what_the_forwarder_must_answer_costs_nothing_and_exempt_views_are_not_counted() {
    for tier in TIERS {
        let mut bench = limited(1, 0, 0b10);
        for _ in 0..5 {
            let miss = Ask::new("www.example.com", wire::A).message();
            assert_eq!(bench.ask(tier, CLIENT, &miss), Did::Passed, "{tier:?}");
        }
        let message = Ask::new(WEB, wire::A).message();
        assert!(matches!(bench.ask(tier, CLIENT, &message), Did::Answered(_)), "{tier:?}: the misses were counted");
        for _ in 0..20 {
            assert!(matches!(bench.ask(tier, OTHER, &message), Did::Answered(_)), "{tier:?}: an exempt view");
        }
    }
}
