//! Source ports and the flow table, when there are no more of them.

use std::collections::BTreeSet;

use gateway_common::maps::config;

use crate::{
    cast::{Cast, V4, V6, port},
    packets::{ACK, Ends, SYN, look, tcp, udp},
    world::{Action, FORWARD, Key, REVERSE, Record, Tier, World, everywhere, skip},
};

const ECHO: u16 = port::ECHO_UDP;

fn ask(c: Cast, sport: u16) -> Vec<u8> {
    udp(Ends::new(c.client, sport, c.web, ECHO), b"?")
}

#[test]
fn ports_towards_an_endpoint_run_out_then_the_next_address_is_used_then_flows_are_refused_and_counted() {
    everywhere(|world| {
        let c = world.cast;
        for addresses in [1, 2] {
            world.begin(world.tier, c.v6, (0, 0));
            world.configure(|config| {
                config.snat_ports = 8;
                (config.snat4_len, config.snat6_len) = (addresses, addresses);
            });
            let (mut used, mut refused) = (BTreeSet::new(), 0);
            for sport in 2000..2200 {
                let outcome = world.uplink(&ask(c, sport));
                if outcome.action == Action::Redirect {
                    let seen = look(&outcome.frame).expect("a good frame");
                    assert!(used.insert((seen.src, seen.sport)), "{:?} {} is taken", seen.src, seen.sport);
                } else {
                    assert_eq!((outcome.action, outcome.counted), (Action::Drop, [("snat_exhausted", 1)].into()));
                    refused += 1;
                }
            }
            let all: BTreeSet<_> = [c.own, c.second][..addresses as usize]
                .iter()
                .flat_map(|&address| (10_000..10_008).map(move |port| (address, port)))
                .collect();
            assert_eq!(used, all, "every port of every address, and no other");
            assert_eq!(refused, 200 - all.len());
            assert_eq!(world.flows().len(), 2 * all.len(), "no half of a flow that was refused");
            // Those that are there go on, each under its own port.
            for (key, _) in world.records(FORWARD) {
                let outcome = world.uplink(&ask(c, u16::from_be_bytes(key.sport)));
                assert_eq!(outcome.counted, [("forwarded", 1)].into());
                let back = look(&outcome.frame).expect("a good frame").back();
                let reply = look(&world.cluster(&udp(back, b"!")).frame).expect("a good frame");
                assert_eq!(reply.ends(), Ends::new(c.web, ECHO, c.client, u16::from_be_bytes(key.sport)));
            }
            // Towards another endpoint, and in another protocol, the same ports are free.
            let other = world.uplink(&udp(Ends::new(c.client, 1, c.web, port::TWO), b"?"));
            assert_eq!(other.action, Action::Redirect, "{:?}", other.counted);
            let other = world.uplink(&tcp(Ends::new(c.client, 1, c.web, port::HTTP), SYN, b""));
            assert_eq!(other.action, Action::Redirect, "{:?}", other.counted);
            // A flow that ends makes room for another.
            let ours = |(key, _): &(Key, Record)| key.dport == ECHO.to_be_bytes();
            let (key, _) = world.records(FORWARD).into_iter().find(ours).expect("a flow");
            let half = |(_, flow): &(Key, Record)| flow.new_dport == key.sport && flow.new_sport == key.dport;
            let (back, _) = world.records(REVERSE).into_iter().find(half).expect("its other half");
            world.remove_flow(&key);
            world.remove_flow(&back);
            let mut tries = 3000..3100;
            assert!(tries.any(|sport| world.uplink(&ask(c, sport)).action == Action::Redirect), "the port is free");
        }
    });
}

#[test]
fn a_client_that_keeps_its_address_keeps_its_port_when_those_of_the_gateway_are_gone() {
    everywhere(|world| {
        let c = world.cast;
        world.configure(|config| {
            config.flags = config::ROUTED;
            config.snat_ports = 1;
        });
        for sport in 4000..4020 {
            let outcome = world.uplink(&ask(c, sport));
            let seen = look(&outcome.frame).expect("a good frame");
            assert_eq!((outcome.action, seen.src, seen.sport), (Action::Redirect, c.client, sport));
        }
    });
}

/// A table too small for what comes: what there is goes on both ways, and what does not begin leaves no half behind.
#[test]
fn a_full_table_keeps_the_flows_in_use_and_refuses_others_whole() {
    if skip() {
        return;
    }
    let mut world = World::sized(32);
    for (tier, v6) in [(Tier::Xdp, false), (Tier::Xdp, true), (Tier::Tc, false), (Tier::Tc, true)] {
        world.begin(tier, v6, (0, 0));
        let c = if v6 { V6 } else { V4 };
        let open = |sport| tcp(Ends::new(c.client, sport, c.web, port::HTTP), SYN, b"");
        let mut established = Vec::new();
        for sport in 1..=8 {
            let outcome = world.uplink(&open(sport));
            assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.counted);
            let back = look(&outcome.frame).expect("a good frame").back();
            assert_eq!(world.cluster(&tcp(back, SYN | ACK, b"")).action, Action::Redirect);
            established.push((sport, back));
        }
        let mut refused = 0;
        for sport in 3000..3200 {
            let outcome = world.uplink(&ask(c, sport));
            if outcome.action == Action::Drop {
                assert_eq!(outcome.counted, [("flow_table_full", 1)].into());
                refused += 1;
            }
            // All the while those in use go on, in either direction.
            let (sport, back) = established[usize::from(sport) % established.len()];
            let there = world.uplink(&tcp(Ends::new(c.client, sport, c.web, port::HTTP), ACK, b"still here"));
            assert_eq!((there.action, there.counted), (Action::Redirect, [("forwarded", 1)].into()));
            assert_eq!(look(&there.frame).expect("a good frame").back(), back);
            let here = world.cluster(&tcp(back, ACK, b"so am I"));
            assert_eq!((here.action, here.counted), (Action::Redirect, [("replied", 1)].into()));
        }
        assert!(refused > 0, "{tier:?}, IPv6 {v6}: none was refused");
        let forward = world.records(FORWARD);
        let back: BTreeSet<_> = world.records(REVERSE).iter().map(|(_, flow)| (flow.new_dst, flow.new_dport)).collect();
        for (key, _) in &forward {
            assert!(back.contains(&(key.src, key.sport)), "a half without its other one: {key:?}");
        }
        assert_eq!(forward.len(), back.len());
    }
}
