//! Both families, behind no tag, one and two: what the tests of answers say of IPv4 holds for all frames.

use std::net::IpAddr;

use gateway_common::{
    Reason,
    dns::{emit::Request, wire},
};

use crate::{
    SECOND, WEB, a, cluster, forwarder,
    frames::{checked, frame, l3, l4, pseudo_sum},
    learnt,
    programs::{Bench, CLIENT, CLIENT6, Did, OTHER, OTHER6, TIERS, Tier, VLANS},
    query::Ask,
    wire_name,
};

/// A client of each view and family.
const CLIENTS: [(u32, IpAddr); 4] =
    [(0, IpAddr::V4(CLIENT)), (1, IpAddr::V4(OTHER)), (0, IpAddr::V6(CLIENT6)), (1, IpAddr::V6(OTHER6))];
const FAMILIES: [IpAddr; 2] = [IpAddr::V4(CLIENT), IpAddr::V6(CLIENT6)];

/// Tiers and the tags behind which they answer. A tagged frame in TC is its VLAN device's, where it has no tag any more.
fn ways() -> impl Iterator<Item = (Tier, &'static [u16])> {
    let untagged = TIERS.map(|tier| (tier, &[][..]));
    untagged.into_iter().chain(VLANS.map(|tags| (Tier::Xdp, tags)))
}

/// Names of even and odd length; what each kind of answer is counted as.
fn kinds(bench: &mut Bench) -> Vec<(Ask, Reason)> {
    for name in ["ab.shop.svc.cluster.local", "abc.shop.svc.cluster.local"] {
        bench.put(&wire_name(name), wire::A, 0, a(name, 3).build().expect("an answer"));
    }
    learnt(bench, "www.example.com", 0, 7 * SECOND + SECOND / 2, 300);
    let edns = |name: &str, qtype, size| Ask::new(name, qtype).mixed_case().edns(size);
    vec![
        (Ask::new(WEB, wire::A), Reason::DnsAnswered),
        (edns(WEB, wire::A, 1232), Reason::DnsAnswered),
        (edns("ab.shop.svc.cluster.local", wire::A, 512), Reason::DnsAnswered),
        (edns("abc.shop.svc.cluster.local", wire::A, 4096), Reason::DnsAnswered),
        (Ask::new("abc.shop.svc.cluster.local", wire::A), Reason::DnsAnswered),
        (edns("www.example.com", wire::A, 1232), Reason::DnsAnswered),
        (edns("many.shop.svc.cluster.local", wire::A, 1232), Reason::DnsAnswered),
        (Ask::new("many.shop.svc.cluster.local", wire::A), Reason::DnsTruncated),
        (edns("many.shop.svc.cluster.local", wire::A, 600), Reason::DnsTruncated),
        (edns("nobody.shop.svc.cluster.local", wire::AAAA, 1232), Reason::DnsNxDomain),
        (Ask::new("nob.shop.svc.cluster.local", wire::SRV), Reason::DnsNxDomain),
        (Ask::new(WEB, wire::AAAA), Reason::DnsNoData),
    ]
}

#[test]
fn every_kind_of_answer_is_the_forwarders_in_both_families_and_behind_tags() {
    let mut bench = cluster();
    let kinds = kinds(&mut bench);
    for (view, client) in CLIENTS {
        for (tier, tags) in ways() {
            for (ask, reason) in &kinds {
                let message = ask.message();
                let turn = bench.hits(&Request::parse(&message).expect("a query"), 0);
                let expected = forwarder(&mut bench, view, &message, turn).expect("known");
                let before = bench.count(*reason);
                let did = bench.ask_tagged(tier, client, tags, &message);
                assert_eq!(did, Did::Answered(expected), "{tier:?} {client} {tags:?} {ask:02x?}");
                assert_eq!(bench.count(*reason), before + 1, "{tier:?} {client} {tags:?} {ask:02x?}");
            }
            let miss = Ask::new("www.example.org", wire::A).edns(1232).message();
            assert_eq!(bench.ask_tagged(tier, client, tags, &miss), Did::Passed, "{tier:?} {client} {tags:?}");
        }
    }
}

#[test]
fn a_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    let mut bench = cluster();
    for client in FAMILIES {
        for (tier, tags) in ways() {
            for name in [WEB, "nobody.shop.svc.cluster.local"] {
                let mut ask = Ask::new(name, wire::A).edns(1232);
                let (_, answer) = bench.run(tier, &frame(client, tags, &ask.message()));
                let at = l4(client, tags) + 6;
                // What is missing to a sum of all ones, put into the ID.
                let sum = u32::from(ask.id) + u32::from(u16::from_be_bytes([answer[at], answer[at + 1]]));
                ask.id = (sum + (sum >> 16)) as u16;
                let (_, answer) = bench.run(tier, &frame(client, tags, &ask.message()));
                assert_eq!(answer[at..at + 2], [0xff, 0xff], "{tier:?} {client} {tags:?} {name}");
                checked(client, tags, &answer);
            }
        }
    }
    assert_eq!(bench.count(Reason::DnsUnsupported), 0);
}

#[test]
fn what_stands_behind_the_datagram_is_not_answered_and_not_sent_back() {
    let bench = cluster();
    for client in FAMILIES {
        for (tier, tags) in ways() {
            for ask in [Ask::new(WEB, wire::A), Ask::new("nobody.shop.svc.cluster.local", wire::A).edns(512)] {
                let plain = frame(client, tags, &ask.message());
                let (_, expected) = bench.run(tier, &plain);
                for padding in [1, 2, 7, 46, 200] {
                    let padded = [&plain[..], &[0xa5].repeat(padding)].concat();
                    let (_, answer) = bench.run(tier, &padded);
                    assert_eq!(answer, expected, "{tier:?} {client} {tags:?} {padding} bytes of padding");
                    checked(client, tags, &answer);
                }
            }
        }
    }
}

#[test]
fn datagrams_over_ipv6_that_are_not_to_be_taken_are_left_to_the_node() {
    let bench = cluster();
    let message = Ask::new(WEB, wire::A).message();
    type Change = fn(&mut Vec<u8>, usize, usize);
    let changes: [(&str, Change); 7] = [
        ("no checksum (RFC 8200 section 8.1)", |frame, _, l4| frame[l4 + 6..l4 + 8].fill(0)),
        ("a payload shorter than the datagram", |frame, l3, _| frame[l3 + 5] -= 1),
        ("a payload longer than the frame", |frame, l3, _| frame[l3 + 5] += 1),
        ("a datagram longer than the payload", |frame, _, l4| frame[l4 + 5] += 1),
        ("a datagram shorter than its header", |frame, _, l4| frame[l4 + 4..l4 + 6].copy_from_slice(&[0, 7])),
        ("a datagram without a message", |frame, _, l4| frame[l4 + 4..l4 + 6].copy_from_slice(&[0, 8])),
        ("another port", |frame, _, l4| frame[l4 + 3] += 1),
    ];
    for (tier, tags) in ways() {
        for (what, change) in changes {
            let mut query = frame(CLIENT6, tags, &message);
            change(&mut query, l3(tags), l4(CLIENT6, tags));
            let (verdict, after) = bench.run(tier, &query);
            assert!(matches!(verdict, 2 | u32::MAX), "{tier:?} {tags:?} {what}: verdict {verdict}");
            assert_eq!(after, query, "{tier:?} {tags:?} {what}");
        }
    }
}

#[test]
fn a_checksum_over_ipv6_that_may_be_partial_is_left_to_tc_by_xdp() {
    let mut bench = cluster();
    let message = Ask::new(WEB, wire::A).message();
    for tags in [&[][..], VLANS[0], VLANS[1]] {
        let mut query = frame(CLIENT6, tags, &message);
        let at = l4(CLIENT6, tags) + 6;
        query[at..at + 2].copy_from_slice(&pseudo_sum(CLIENT6, 8 + message.len()).to_be_bytes());
        let before = bench.count(Reason::PartialChecksum);
        let (verdict, after) = bench.run(Tier::Xdp, &query);
        assert_eq!((verdict, after), (2, query), "{tags:?}");
        assert_eq!(bench.count(Reason::PartialChecksum), before + 1);
    }
}

#[test]
fn tagged_frames_are_taken_only_where_the_agent_says_so() {
    let mut bench = cluster();
    let message = Ask::new(WEB, wire::A).message();
    for client in FAMILIES {
        for tags in [&[101][..], &[200], &[200, 301], &[300, 200]] {
            assert_eq!(bench.ask_tagged(Tier::Xdp, client, tags, &message), Did::Passed, "{client} {tags:?}");
        }
        for tags in VLANS {
            assert_eq!(bench.ask_tagged(Tier::Tc, client, tags, &message), Did::Passed, "{client} {tags:?}");
        }
    }
}
