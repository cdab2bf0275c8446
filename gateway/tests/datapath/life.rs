//! A flow's life over several packets: both directions, lost records, endings, collisions.

use gateway_common::maps::{config, flow, service};

use crate::{
    packets::{ACK, Ends, FIN, RST, SYN, Seen, look, tcp, udp, with_ttl},
    world::{
        Action, CLIENT, CLIENT_MAC, Flow4, GATEWAY_MAC, Key4, OWN, POD, POD2, Tier, WEB, World, ep, hop, port, skip,
    },
};

fn both(test: fn(&mut World)) {
    if skip() {
        return;
    }
    for tier in [Tier::Xdp, Tier::Tc] {
        let mut world = World::new(tier);
        world.set_client_hop(CLIENT, hop::CLIENT);
        test(&mut world);
    }
}

fn web(sport: u16, dport: u16) -> Ends {
    Ends::new(CLIENT, sport, WEB, dport)
}

/// Sends a client's frame on and says what the endpoint gets.
fn send(world: &mut World, frame: &[u8]) -> Seen {
    let outcome = world.uplink(frame);
    assert_eq!(outcome.action, Action::Redirect, "{:?}: {:?}", world.tier, outcome.counted);
    look(&outcome.frame).expect("a good frame")
}

fn answer_to(seen: &Seen) -> Ends {
    Ends::new(seen.dst, seen.dport, seen.src, seen.sport)
}

fn records(world: &mut World, direction: u16) -> Vec<(Key4, Flow4)> {
    world.flows().into_iter().filter(|(_, flow)| flow.flags & direction != 0).collect()
}

#[test]
fn replies_come_back_from_the_vip_on_either_side() {
    both(|world| {
        for (proto, dport) in [(6, port::HTTP), (17, port::ECHO_UDP)] {
            let frame = if proto == 6 { tcp(web(1, dport), SYN, b"") } else { udp(web(1, dport), b"ping") };
            let seen = send(world, &frame);
            let back = answer_to(&seen);
            let reply = if proto == 6 { tcp(back, SYN | ACK, b"") } else { udp(back, b"pong!") };
            for program in [World::cluster, World::uplink] {
                let outcome = program(world, &reply);
                assert_eq!(outcome.action, Action::Redirect);
                assert_eq!(outcome.counted, [("replied", 1)].into(), "{:?}", world.tier);
                let new = look(&outcome.frame).expect("a good frame");
                assert_eq!((new.src, new.sport, new.dst, new.dport, new.ttl), (WEB, dport, CLIENT, 1, 63));
                if world.tier == Tier::Xdp {
                    assert_eq!((new.mac_dst, new.mac_src), (CLIENT_MAC, GATEWAY_MAC));
                }
            }
        }
    });
}

#[test]
fn a_reply_whose_client_hop_is_not_known_goes_by_the_routes_in_tc() {
    both(|world| {
        let seen = send(world, &tcp(Ends::new([10, 90, 1, 55], 2, WEB, port::HTTP), SYN, b""));
        let outcome = world.cluster(&tcp(answer_to(&seen), SYN | ACK, b""));
        match world.tier {
            Tier::Xdp => assert_eq!((outcome.action, outcome.counted), (Action::Pass, [("next_hop_tc", 1)].into())),
            Tier::Tc => {
                assert_eq!((outcome.action, outcome.counted), (Action::Redirect, [("replied", 1)].into()));
                assert_eq!(look(&outcome.frame).expect("a good frame").src, WEB);
            }
        }
    });
}

#[test]
fn a_reply_at_the_end_of_its_ttl_is_reported_to_its_sender() {
    both(|world| {
        let seen = send(world, &tcp(web(3, port::HTTP), SYN, b""));
        let outcome = world.cluster(&with_ttl(tcp(answer_to(&seen), SYN | ACK, b""), 1));
        assert_eq!((outcome.action, outcome.counted), (Action::Redirect, [("ttl_exceeded", 1)].into()));
        let new = look(&outcome.frame).expect("a good frame");
        assert_eq!((new.src, new.dst, new.flags), (OWN, POD, 11));
    });
}

#[test]
fn a_local_endpoints_reply_is_caught_where_it_leaves_and_nowhere_else() {
    both(|world| {
        assert_eq!(world.uplink(&tcp(web(4, port::LOCAL), SYN, b"")).action, Action::Pass);
        let reply = tcp(Ends::new(OWN, 6443, CLIENT, 4), SYN | ACK, b"");
        let outcome = world.run("tc_egress", &reply);
        assert_eq!((outcome.action, outcome.counted), (Action::Pass, [("replied", 1)].into()));
        let new = look(&outcome.frame).expect("a good frame");
        assert_eq!((new.src, new.sport, new.dst, new.dport, new.ttl), (WEB, port::LOCAL, CLIENT, 4, 64));
        let outcome = world.uplink(&reply);
        assert_eq!((outcome.action, outcome.frame), (Action::Pass, reply.clone()), "a spoofed reply from outside");
        let other = tcp(Ends::new(OWN, 22, CLIENT, 4), ACK, b"");
        let outcome = world.run("tc_egress", &other);
        assert_eq!((outcome.action, outcome.frame), (Action::Pass, other));
        assert!(outcome.counted.is_empty());
        let seen = send(world, &tcp(web(5, port::HTTP), SYN, b""));
        let leaving = tcp(answer_to(&seen), ACK, b"");
        assert_eq!(
            world.run("tc_egress", &leaving).frame,
            leaving,
            "replies of pods are translated where they come in"
        );
    });
}

#[test]
fn the_cluster_side_never_carries_forward() {
    both(|world| {
        let frame = tcp(web(6, port::HTTP), SYN, b"");
        send(world, &frame);
        let outcome = world.cluster(&frame);
        assert_eq!((outcome.action, outcome.frame), (Action::Pass, frame));
        assert_eq!(outcome.counted, [("not_ours", 1)].into());
    });
}

#[test]
fn a_flow_keeps_its_translation_and_counts_its_packets() {
    both(|world| {
        let first = send(world, &tcp(web(7, port::HTTP), SYN, b""));
        let outcome = world.uplink(&tcp(web(7, port::HTTP), ACK, b"more"));
        assert_eq!(outcome.counted, [("forwarded", 1)].into());
        let second = look(&outcome.frame).expect("a good frame");
        assert_eq!((first.sport, first.dst, first.dport), (second.sport, second.dst, second.dport));
        let (_, forward) = records(world, flow::FORWARD)[0];
        assert_eq!((forward.packets, forward.bytes, forward.tcp), (2, 40 + 44, SYN | ACK));
        assert!(forward.created > 0 && forward.seen >= forward.created);
        let (_, reverse) = records(world, flow::REVERSE)[0];
        assert_eq!((reverse.packets, reverse.nexthop, reverse.endpoint), (0, hop::CLIENT, ep::HTTP));
    });
}

#[test]
fn a_lost_forward_record_comes_back_the_same() {
    both(|world| {
        let first = send(world, &tcp(web(8, port::HTTP), SYN, b""));
        let (key, _) = records(world, flow::FORWARD)[0];
        world.remove_flow(&key);
        let second = send(world, &tcp(web(8, port::HTTP), ACK, b"x"));
        assert_eq!((first.sport, first.dst), (second.sport, second.dst));
        assert_eq!(world.flows().len(), 2);
    });
}

/// Makes a record look as if its other half had not been looked after for a second.
fn age(world: &mut World, direction: u16) {
    for (key, mut record) in records(world, direction) {
        record.checked = 0;
        world.set_flow(&key, &record);
    }
}

#[test]
fn either_record_is_rebuilt_from_the_other_within_a_second() {
    both(|world| {
        let frame = tcp(web(9, port::HTTP), ACK, b"x");
        let seen = send(world, &frame);
        let reply = tcp(answer_to(&seen), ACK, b"y");
        let (reverse, before) = records(world, flow::REVERSE)[0];
        world.remove_flow(&reverse);
        assert!(!world.uplink(&frame).counted.contains_key("flow_rebuilt"), "not with every packet");
        age(world, flow::FORWARD);
        assert_eq!(world.uplink(&frame).counted, [("flow_rebuilt", 1), ("forwarded", 1)].into());
        let after = world.flow(&reverse).expect("the reverse record");
        let rebuilt = (after.new_src, after.new_dst, after.new_sport, after.new_dport, after.nexthop);
        assert_eq!(rebuilt, (before.new_src, before.new_dst, before.new_sport, before.new_dport, before.nexthop));
        assert_eq!(look(&world.cluster(&reply).frame).expect("a good frame").dport, 9);

        let (forward, before) = records(world, flow::FORWARD)[0];
        world.remove_flow(&forward);
        age(world, flow::REVERSE);
        assert_eq!(world.cluster(&reply).counted, [("flow_rebuilt", 1), ("replied", 1)].into());
        let after = world.flow(&forward).expect("the forward record");
        assert_eq!((after.endpoint, after.generation, after.flags), (before.endpoint, before.generation, before.flags));
        assert_eq!(send(world, &frame).sport, seen.sport);
    });
}

#[test]
fn a_packet_whose_record_is_lost_rebuilds_it_from_the_other_half_and_goes_on() {
    both(|world| {
        for routed in [false, true] {
            let mut config = World::config();
            config.flags = if routed { config::ROUTED } else { 0 };
            world.set_config(config);
            let frame = tcp(web(20 + u16::from(routed), port::HTTP), ACK, b"x");
            let seen = send(world, &frame);
            let reply = tcp(answer_to(&seen), ACK, b"y");
            let was = world.cluster(&reply);
            let (reverse, before) = *records(world, flow::REVERSE).last().expect("a record");
            world.remove_flow(&reverse);
            let outcome = world.cluster(&reply);
            assert_eq!(outcome.counted, [("flow_rebuilt", 1), ("replied", 1)].into(), "{:?}", world.tier);
            assert_eq!(outcome.frame, was.frame);
            let after = world.flow(&reverse).expect("the reverse record");
            assert_eq!((after.nexthop, after.endpoint, after.flags), (before.nexthop, before.endpoint, before.flags));

            // The Service has other endpoints meanwhile: a flow that began now would go there.
            let (forward, _) = *records(world, flow::FORWARD).last().expect("a record");
            world.remove_flow(&forward);
            world.service(WEB, port::HTTP, 6, &[(ep::STICKY, POD2, 8080, hop::POD2, 0)]);
            let outcome = world.uplink(&frame);
            assert_eq!(outcome.counted, [("flow_rebuilt", 1), ("forwarded", 1)].into(), "{:?}", world.tier);
            let again = look(&outcome.frame).expect("a good frame");
            assert_eq!((again.dst, again.sport), (seen.dst, seen.sport));
            world.reset();
            world.set_client_hop(CLIENT, hop::CLIENT);
        }
        // The node's own conversation with the endpoint, and one of a pod behind the node's address.
        let frame = udp(web(22, port::ECHO_UDP), b"x");
        let seen = send(world, &frame);
        for sport in [40_000, seen.sport ^ 1] {
            let own = udp(Ends::new(POD, 7007, OWN, sport), b"y");
            let outcome = world.cluster(&own);
            assert_eq!((outcome.action, outcome.frame), (Action::Pass, own), "{sport}");
            assert_eq!(outcome.counted, [("not_ours", 1)].into());
        }
        // An endpoint that is gone has no flow to be rebuilt.
        let (reverse, _) = records(world, flow::REVERSE)[0];
        world.remove_flow(&reverse);
        let endpoint = world.endpoint(ep::ECHO);
        world
            .set_endpoint(ep::ECHO, gateway_common::maps::Endpoint { generation: endpoint.generation + 1, ..endpoint });
        let reply = udp(answer_to(&seen), b"y");
        let outcome = world.cluster(&reply);
        assert_eq!((outcome.action, outcome.frame, outcome.counted), (Action::Pass, reply, [("not_ours", 1)].into()));
    });
}

#[test]
fn a_local_endpoints_answer_rebuilds_its_record_where_it_leaves() {
    both(|world| {
        let frame = tcp(web(23, port::LOCAL), ACK, b"x");
        assert_eq!(world.uplink(&frame).action, Action::Pass);
        let (reverse, _) = records(world, flow::REVERSE)[0];
        world.remove_flow(&reverse);
        let outcome = world.run("tc_egress", &tcp(Ends::new(OWN, 6443, CLIENT, 23), ACK, b"y"));
        assert_eq!((outcome.action, outcome.counted), (Action::Pass, [("flow_rebuilt", 1), ("replied", 1)].into()));
        let new = look(&outcome.frame).expect("a good frame");
        assert_eq!((new.src, new.sport, new.dport), (WEB, port::LOCAL, 23));
    });
}

#[test]
fn a_flow_whose_port_was_taken_meanwhile_begins_anew() {
    both(|world| {
        let frame = tcp(web(15, port::HTTP), ACK, b"x");
        let seen = send(world, &frame);
        let (key, mut thief) = records(world, flow::REVERSE)[0];
        thief.new_dport = 16u16.to_be_bytes();
        world.set_flow(&key, &thief);
        age(world, flow::FORWARD);
        send(world, &frame);
        let again = send(world, &frame);
        assert_ne!(again.sport, seen.sport);
        let back = look(&world.cluster(&tcp(answer_to(&again), ACK, b"y")).frame).expect("a good frame");
        assert_eq!((back.src, back.dport), (WEB, 15));
    });
}

#[test]
fn the_clients_next_hop_is_learnt_within_a_second() {
    both(|world| {
        let client = [10, 90, 1, 77];
        let seen = send(world, &tcp(Ends::new(client, 10, WEB, port::HTTP), SYN, b""));
        world.set_client_hop(client, hop::CLIENT);
        age(world, flow::REVERSE);
        // The first packet learns it, the next one uses it.
        for _ in 0..2 {
            world.run("tc_cluster", &tcp(answer_to(&seen), ACK, b""));
        }
        assert_eq!(records(world, flow::REVERSE)[0].1.nexthop, hop::CLIENT);
        assert_eq!(world.cluster(&tcp(answer_to(&seen), ACK, b"")).action, Action::Redirect);
    });
}

#[test]
fn a_clients_port_may_be_used_again_after_a_conversation() {
    both(|world| {
        let syn = tcp(web(11, port::HTTP), SYN, b"");
        let seen = send(world, &syn);
        let back = answer_to(&seen);
        assert_eq!(world.uplink(&syn).counted, [("forwarded", 1)].into(), "a SYN sent again is the same flow");
        send(world, &tcp(web(11, port::HTTP), FIN | ACK, b""));
        assert_eq!(world.uplink(&syn).counted, [("forwarded", 1)].into(), "one side has more to say");
        world.cluster(&tcp(back, FIN | ACK, b""));
        let outcome = world.uplink(&syn);
        assert_eq!(outcome.counted, [("flow_created", 1), ("forwarded", 1)].into(), "both sides are done");
        assert_eq!(records(world, flow::FORWARD)[0].1.tcp, SYN);
        world.cluster(&tcp(back, RST | ACK, b""));
        assert_eq!(world.uplink(&syn).counted, [("flow_created", 1), ("forwarded", 1)].into(), "reset");
        assert_eq!(world.flows().len(), 2);
    });
}

#[test]
fn clients_spread_over_all_endpoints_and_a_sticky_one_stays() {
    both(|world| {
        let mut hits = std::collections::BTreeMap::new();
        for sport in 0..200 {
            *hits.entry(send(world, &udp(web(1000 + sport, port::TWO), b"?")).dst).or_insert(0) += 1;
        }
        assert_eq!(hits.len(), 2);
        assert!(hits.values().all(|&n| n > 60), "{hits:?}");
        let two = [(ep::STICKY, POD, 9088, hop::POD, 0), (ep::STICKY + 1, POD2, 9088, hop::POD2, 0)];
        world.service(WEB, port::STICKY, 17, &two);
        let first = send(world, &udp(web(1, port::STICKY), b"?")).dst;
        for sport in 2..30 {
            assert_eq!(send(world, &udp(web(sport, port::STICKY), b"?")).dst, first);
        }
    });
}

#[test]
fn flows_never_share_a_source_port_towards_one_endpoint() {
    both(|world| {
        let mut config = World::config();
        config.snat_ports = 20;
        world.set_config(config);
        let mut ports = std::collections::BTreeSet::new();
        let mut refused = 0;
        for sport in 0..40 {
            let outcome = world.uplink(&udp(web(2000 + sport, port::ECHO_UDP), b"?"));
            match outcome.action {
                Action::Redirect => assert!(ports.insert(look(&outcome.frame).expect("a good frame").sport)),
                _ => {
                    assert_eq!((outcome.action, outcome.counted), (Action::Drop, [("snat_exhausted", 1)].into()));
                    refused += 1;
                }
            }
        }
        assert!(ports.iter().all(|port| (10_000..10_020).contains(port)));
        assert!(ports.len() >= 16 && refused == 40 - ports.len(), "{} ports, {refused} refused", ports.len());
    });
}

#[test]
fn a_routed_client_that_uses_a_port_twice_gets_another_one() {
    both(|world| {
        let mut config = World::config();
        config.flags = config::ROUTED;
        world.set_config(config);
        // A second VIP with the same pod behind it.
        let other = [10, 1, 0, 8];
        let service = gateway_common::maps::Service {
            views: 1,
            id: u32::from(port::HTTP) + 1,
            flags: 0,
            slots: u32::from(port::HTTP) * 8,
            slot_count: 1,
            affinity: 0,
            endpoints: 1,
        };
        world.set_service(gateway_common::maps::ServiceKey::new(other, port::HTTP, 6), service);
        let one = send(world, &tcp(web(12, port::HTTP), SYN, b""));
        let two = send(world, &tcp(Ends::new(CLIENT, 12, other, port::HTTP), SYN, b""));
        assert_eq!((one.src, one.sport, two.src), (CLIENT, 12, CLIENT));
        assert_ne!(one.sport, two.sport);
        let back = look(&world.cluster(&tcp(answer_to(&two), ACK, b"")).frame).expect("a good frame");
        assert_eq!((back.src, back.dport), (other, 12));
    });
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_old_ones() {
    if skip() {
        return;
    }
    for tier in [Tier::Xdp, Tier::Tc] {
        let mut world = World::sized(tier, 8);
        let mut refused = 0;
        for sport in 0..200 {
            let outcome = world.uplink(&udp(web(3000 + sport, port::ECHO_UDP), b"?"));
            if outcome.action == Action::Drop {
                assert_eq!(outcome.counted, [("flow_table_full", 1)].into());
                refused += 1;
            }
        }
        assert!(refused > 100, "{refused} refused");
        let forward = records(&mut world, flow::FORWARD);
        assert!(!forward.is_empty());
        assert_eq!(forward.len(), records(&mut world, flow::REVERSE).len(), "no half is left behind");
        for (key, _) in forward {
            let again = udp(Ends::new(CLIENT, u16::from_be_bytes(key.sport), WEB, port::ECHO_UDP), b"!");
            assert_eq!(world.uplink(&again).counted, [("forwarded", 1)].into());
        }
    }
}

#[test]
fn a_service_that_changes_hands_is_not_half_seen() {
    both(|world| {
        // The slot leads to an endpoint of another Service: what a reader sees between two writes of the agent.
        let mut endpoint = world.endpoint(ep::HTTP);
        endpoint.service += 1;
        world.set_endpoint(ep::HTTP, endpoint);
        let outcome = world.uplink(&tcp(web(13, port::HTTP), SYN, b""));
        assert_eq!((outcome.action, outcome.counted), (Action::Redirect, [("no_endpoint", 1)].into()));
        assert!(world.flows().is_empty());
    });
}

#[test]
fn the_cluster_dns_service_is_forwarded_when_the_kernel_has_no_answer() {
    both(|world| {
        let endpoints = [(ep::STICKY, POD, 5353, hop::POD, 0)];
        world.service(WEB, 53, 17, &endpoints);
        let mut config = World::config();
        config.flags = config::DNS;
        world.set_config(config);
        let id = 54;
        let value = gateway_common::maps::Service {
            views: 1,
            id,
            flags: service::DNS,
            slots: 53 * 8,
            slot_count: 1,
            affinity: 0,
            endpoints: 1,
        };
        world.set_service(gateway_common::maps::ServiceKey::new(WEB, 53, 17), value);
        assert_eq!(send(world, &udp(web(14, 53), b"not a query")).dport, 5353);
        let outcome = world.uplink(&udp(Ends::new([10, 90, 3, 7], 14, WEB, 53), b"not a query"));
        assert!(outcome.counted.contains_key("view_denied"), "{:?}", outcome.counted);
    });
}
