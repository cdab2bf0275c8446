//! EDNS as odd as it comes, in frames: answered as the forwarder would, or left to it. `dns_resolver/edns.rs` has what it says then.

use std::net::IpAddr;

use gateway_common::{Reason, dns::wire};

use crate::{
    WEB, cluster, forwarder,
    programs::{CLIENT, CLIENT6, Did, TIERS},
    query::Ask,
};

/// OPT: size, extended RCODE, version, flags, options.
fn opt(size: u16, extended: u8, version: u8, flags: u16, options: &[u8]) -> Vec<u8> {
    let [high, low] = (options.len() as u16).to_be_bytes();
    let [s0, s1] = size.to_be_bytes();
    let [f0, f1] = flags.to_be_bytes();
    [&[0, 0, 41, s0, s1, extended, version, f0, f1, high, low][..], options].concat()
}

#[test]
fn what_is_well_formed_is_answered_without_options_and_the_rest_is_the_forwarders() {
    let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    let empty = [0xfd, 0xe9, 0, 0];
    let cases = [
        ("plain", opt(1232, 0, 0, 0, &[]), true),
        ("size 0", opt(0, 0, 0, 0, &[]), true),
        ("size 65535", opt(65535, 0, 0, 0, &[]), true),
        ("DO", opt(4096, 0, 0, 0x8000, &[]), true),
        ("unknown flags", opt(4096, 0, 0, 0x7fff, &[]), true),
        ("a cookie", opt(1232, 0, 0, 0, &cookie), true),
        ("unknown options", opt(1232, 0, 0, 0, &[&empty[..], &cookie].concat()), true),
        ("more options than are looked at", opt(1232, 0, 0, 0, &empty.repeat(30)), false),
        ("an extended RCODE", opt(1232, 7, 0, 0, &[]), false),
        ("version 1", opt(1232, 0, 1, 0, &[]), false),
        ("version 255", opt(1232, 0, 255, 0x8000, &cookie), false),
        ("an option longer than OPT", opt(1232, 0, 0, 0, &cookie[..11]), false),
        ("half an option's head", opt(1232, 0, 0, 0, &cookie[..3]), false),
        ("OPT longer than the message", opt(1232, 0, 0, 0, &cookie)[..20].to_vec(), false),
        ("OPT cut short", opt(1232, 0, 0, 0, &[])[..10].to_vec(), false),
        ("bytes behind OPT", [opt(1232, 0, 0, 0, &[]), vec![0]].concat(), false),
        ("two OPT records", opt(1232, 0, 0, 0, &[]).repeat(2), false),
        ("OPT with a name", [&[1, b'x'][..], &opt(1232, 0, 0, 0, &[])].concat(), false),
    ];
    let mut bench = cluster();
    for (what, additional, answered) in cases {
        for name in [WEB, "nobody.shop.svc.cluster.local"] {
            let mut message = Ask::new(name, wire::A).mixed_case().message();
            message[11] = if what.starts_with("two") { 2 } else { 1 };
            message.extend(&additional);
            for tier in TIERS {
                for client in [IpAddr::from(CLIENT), CLIENT6.into()] {
                    let unsupported = bench.count(Reason::DnsUnsupported);
                    let did = bench.ask(tier, client, &message);
                    if answered {
                        let expected = forwarder(&mut bench, 0, &message, 0).expect("known");
                        assert_eq!(expected[expected.len() - 2..], [0, 0], "no options come back");
                        assert_eq!(did, Did::Answered(expected), "{tier:?} {client} {what}");
                    } else {
                        assert_eq!(did, Did::Passed, "{tier:?} {client} {what}");
                        assert_eq!(bench.count(Reason::DnsUnsupported), unsupported + 1, "{tier:?} {client} {what}");
                    }
                }
            }
        }
    }
}

#[test]
fn any_and_other_questions_for_no_data_are_the_forwarders() {
    let mut bench = cluster();
    for qtype in [0, wire::OPT_TYPE, 128, 249, 250, 251, 252, 253, 254, 255] {
        for tier in TIERS {
            for client in [IpAddr::from(CLIENT), CLIENT6.into()] {
                for ask in [Ask::new(WEB, qtype), Ask::new("nobody.shop.svc.cluster.local", qtype).edns(1232)] {
                    assert_eq!(bench.ask(tier, client, &ask.message()), Did::Passed, "{tier:?} {client} type {qtype}");
                }
            }
        }
    }
    assert_eq!(bench.count(Reason::DnsUnsupported), 80);
}
