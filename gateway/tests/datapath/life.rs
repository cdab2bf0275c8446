//! A flow's life over several packets: both directions, lost records, endings, collisions.

use gateway_common::maps::{Service, config, service};

use crate::{
    cast::{CLIENT_MAC, Cast, GATEWAY_MAC, ep, hop, port},
    packets::{ACK, Ends, FIN, RST, SYN, Seen, look, tcp, udp},
    world::{Action, FORWARD, REVERSE, Role, Tier, World, everywhere},
};

fn web(c: Cast, sport: u16, dport: u16) -> Ends {
    Ends::new(c.client, sport, c.web, dport)
}

/// Sends a client's frame on and says what the endpoint gets.
fn send(world: &mut World, frame: &[u8]) -> Seen {
    let outcome = world.uplink(frame);
    assert_eq!(outcome.action, Action::Redirect, "{:?}: {:?}", world.tier, outcome.counted);
    look(&outcome.frame).expect("a good frame")
}

#[test]
fn replies_come_back_from_the_vip_on_either_side() {
    everywhere(|world| {
        let c = world.cast;
        for (proto, dport) in [(6, port::HTTP), (17, port::ECHO_UDP)] {
            let frame = if proto == 6 { tcp(web(c, 1, dport), SYN, b"") } else { udp(web(c, 1, dport), b"ping") };
            let seen = send(world, &frame);
            let back = seen.back();
            let reply = if proto == 6 { tcp(back, SYN | ACK, b"") } else { udp(back, b"pong!") };
            for program in [World::cluster, World::uplink] {
                let outcome = program(world, &reply);
                assert_eq!(outcome.action, Action::Redirect);
                assert_eq!(outcome.counted, [("replied", 1)].into(), "{:?}", world.tier);
                let new = look(&outcome.frame).expect("a good frame");
                assert_eq!((new.src, new.sport, new.dst, new.dport, new.ttl), (c.web, dport, c.client, 1, 63));
                if world.tier == Tier::Xdp {
                    assert_eq!((new.mac_dst, new.mac_src), (CLIENT_MAC, GATEWAY_MAC));
                }
            }
        }
    });
}

#[test]
fn a_reply_whose_client_hop_is_not_known_goes_by_the_routes_in_tc() {
    everywhere(|world| {
        let c = world.cast;
        let seen = send(world, &tcp(Ends::new(c.neighbour(55), 2, c.web, port::HTTP), SYN, b""));
        let outcome = world.cluster(&tcp(seen.back(), SYN | ACK, b""));
        match world.tier {
            Tier::Xdp => assert_eq!((outcome.action, outcome.counted), (Action::Pass, [("next_hop_tc", 1)].into())),
            Tier::Tc => {
                assert_eq!((outcome.action, outcome.counted), (Action::Redirect, [("replied", 1)].into()));
                assert_eq!(look(&outcome.frame).expect("a good frame").src, c.web);
            }
        }
    });
}

#[test]
fn a_local_endpoints_reply_is_caught_where_it_leaves_and_nowhere_else() {
    everywhere(|world| {
        let c = world.cast;
        assert_eq!(world.uplink(&tcp(web(c, 4, port::LOCAL), SYN, b"")).action, Action::Pass);
        let reply = tcp(Ends::new(c.own, 6443, c.client, 4), SYN | ACK, b"");
        let outcome = world.run(Role::Egress, &reply);
        assert_eq!((outcome.action, outcome.counted), (Action::Pass, [("replied", 1)].into()));
        let new = look(&outcome.frame).expect("a good frame");
        assert_eq!((new.src, new.sport, new.dst, new.dport, new.ttl), (c.web, port::LOCAL, c.client, 4, 64));
        let outcome = world.uplink(&reply);
        assert_eq!((outcome.action, outcome.frame), (Action::Pass, reply.clone()), "a spoofed reply from outside");
        let other = tcp(Ends::new(c.own, 22, c.client, 4), ACK, b"");
        let outcome = world.run(Role::Egress, &other);
        assert_eq!((outcome.action, outcome.frame), (Action::Pass, other));
        assert!(outcome.counted.is_empty());
        let seen = send(world, &tcp(web(c, 5, port::HTTP), SYN, b""));
        let leaving = tcp(seen.back(), ACK, b"");
        assert_eq!(
            world.run(Role::Egress, &leaving).frame,
            leaving,
            "replies of pods are translated where they come in"
        );
    });
}

#[test]
fn the_cluster_side_never_carries_forward() {
    everywhere(|world| {
        let c = world.cast;
        let frame = tcp(web(c, 6, port::HTTP), SYN, b"");
        send(world, &frame);
        let outcome = world.cluster(&frame);
        assert_eq!((outcome.action, outcome.frame), (Action::Pass, frame));
        assert_eq!(outcome.counted, [("not_ours", 1)].into());
    });
}

#[test]
fn a_flow_keeps_its_translation_and_counts_its_packets() {
    everywhere(|world| {
        let c = world.cast;
        let first = send(world, &tcp(web(c, 7, port::HTTP), SYN, b""));
        let outcome = world.uplink(&tcp(web(c, 7, port::HTTP), ACK, b"more"));
        assert_eq!(outcome.counted, [("forwarded", 1)].into());
        let second = look(&outcome.frame).expect("a good frame");
        assert_eq!((first.sport, first.dst, first.dport), (second.sport, second.dst, second.dport));
        let (_, forward) = world.records(FORWARD)[0];
        assert_eq!((forward.packets, forward.bytes, forward.tcp), (2, 2 * (c.header() as u64 + 20) + 4, SYN | ACK));
        assert!(forward.created > 0 && forward.seen >= forward.created);
        let (_, reverse) = world.records(REVERSE)[0];
        assert_eq!((reverse.packets, reverse.nexthop, reverse.endpoint), (0, hop::CLIENT, ep::HTTP));
    });
}

#[test]
fn a_flow_whose_port_was_taken_meanwhile_begins_anew() {
    everywhere(|world| {
        let c = world.cast;
        let frame = tcp(web(c, 15, port::HTTP), ACK, b"x");
        let seen = send(world, &frame);
        let (key, mut thief) = world.records(REVERSE)[0];
        thief.new_dport = 16u16.to_be_bytes();
        world.set_flow(&key, &thief);
        world.age(FORWARD);
        send(world, &frame);
        let again = send(world, &frame);
        assert_ne!(again.sport, seen.sport);
        let back = look(&world.cluster(&tcp(again.back(), ACK, b"y")).frame).expect("a good frame");
        assert_eq!((back.src, back.dport), (c.web, 15));
    });
}

#[test]
fn the_clients_next_hop_is_learnt_within_a_second() {
    everywhere(|world| {
        let c = world.cast;
        let client = c.neighbour(77);
        let seen = send(world, &tcp(Ends::new(client, 10, c.web, port::HTTP), SYN, b""));
        world.set_client_hop(client, hop::CLIENT);
        world.age(REVERSE);
        // XDP has left it to TC until then. There the first packet learns it, the next one uses it.
        let tier = std::mem::replace(&mut world.tier, Tier::Tc);
        for _ in 0..2 {
            world.cluster(&tcp(seen.back(), ACK, b""));
        }
        world.tier = tier;
        assert_eq!(world.records(REVERSE)[0].1.nexthop, hop::CLIENT);
        assert_eq!(world.cluster(&tcp(seen.back(), ACK, b"")).action, Action::Redirect);
    });
}

#[test]
fn a_clients_port_may_be_used_again_after_a_conversation() {
    everywhere(|world| {
        let c = world.cast;
        let syn = tcp(web(c, 11, port::HTTP), SYN, b"");
        let seen = send(world, &syn);
        let back = seen.back();
        assert_eq!(world.uplink(&syn).counted, [("forwarded", 1)].into(), "a SYN sent again is the same flow");
        send(world, &tcp(web(c, 11, port::HTTP), FIN | ACK, b""));
        assert_eq!(world.uplink(&syn).counted, [("forwarded", 1)].into(), "one side has more to say");
        world.cluster(&tcp(back, FIN | ACK, b""));
        let outcome = world.uplink(&syn);
        assert_eq!(outcome.counted, [("flow_created", 1), ("forwarded", 1)].into(), "both sides are done");
        assert_eq!(world.records(FORWARD)[0].1.tcp, SYN);
        world.cluster(&tcp(back, RST | ACK, b""));
        assert_eq!(world.uplink(&syn).counted, [("flow_created", 1), ("forwarded", 1)].into(), "reset");
        assert_eq!(world.flows().len(), 2);
    });
}

#[test]
fn clients_spread_over_all_endpoints() {
    everywhere(|world| {
        let c = world.cast;
        let mut hits = std::collections::BTreeMap::new();
        for sport in 0..200 {
            *hits.entry(send(world, &udp(web(c, 1000 + sport, port::TWO), b"?")).dst).or_insert(0) += 1;
        }
        assert_eq!(hits.len(), 2);
        assert!(hits.values().all(|&n| n > 60), "{hits:?}");
    });
}

#[test]
fn a_routed_client_that_uses_a_port_twice_gets_another_one() {
    everywhere(|world| {
        let c = world.cast;
        let mut config = World::config();
        config.flags = config::ROUTED;
        world.set_config(config);
        // A second VIP with the same pod behind it.
        let other = c.vip(8);
        let service = world.service_value(port::HTTP, 1);
        world.set_service(other, port::HTTP, 6, service);
        let one = send(world, &tcp(web(c, 12, port::HTTP), SYN, b""));
        let two = send(world, &tcp(Ends::new(c.client, 12, other, port::HTTP), SYN, b""));
        assert_eq!((one.src, one.sport, two.src), (c.client, 12, c.client));
        assert_ne!(one.sport, two.sport);
        let back = look(&world.cluster(&tcp(two.back(), ACK, b"")).frame).expect("a good frame");
        assert_eq!((back.src, back.dport), (other, 12));
    });
}

#[test]
fn a_service_that_changes_hands_is_not_half_seen() {
    everywhere(|world| {
        let c = world.cast;
        // The slot leads to an endpoint of another Service: what a reader sees between two writes of the agent.
        let mut endpoint = world.endpoint(ep::HTTP);
        endpoint.service += 1;
        world.set_endpoint(ep::HTTP, endpoint);
        let outcome = world.uplink(&tcp(web(c, 13, port::HTTP), SYN, b""));
        assert_eq!((outcome.action, outcome.counted), (Action::Redirect, [("no_endpoint", 1)].into()));
        assert!(world.flows().is_empty());
    });
}

#[test]
fn the_cluster_dns_service_is_forwarded_when_the_kernel_has_no_answer() {
    everywhere(|world| {
        let c = world.cast;
        let endpoints = [(ep::STICKY, c.pod, 5353, hop::POD)];
        world.service(c.web, 53, 17, &endpoints);
        let mut config = World::config();
        config.flags = config::DNS;
        world.set_config(config);
        let value = Service { flags: service::DNS, ..world.service_value(53, 1) };
        world.set_service(c.web, 53, 17, value);
        assert_eq!(send(world, &udp(web(c, 14, 53), b"not a query")).dport, 5353);
        let outcome = world.uplink(&udp(Ends::new(c.guest, 14, c.web, 53), b"not a query"));
        assert!(outcome.counted.contains_key("view_denied"), "{:?}", outcome.counted);
    });
}
