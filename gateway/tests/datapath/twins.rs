//! Either half of a flow removed by hand: it is rebuilt, and the conversation goes on as if nothing had happened.

use gateway_common::maps::config;

use crate::{
    cast::{ep, hop, port},
    packets::{ACK, Ends, SYN, Seen, look, tcp, udp},
    world::{Action, FORWARD, Key, REVERSE, Record, Role, World, everywhere},
};

/// A conversation with a pod, in one protocol.
struct Talk {
    proto: u8,
    ends: Ends,
    /// Of what answers.
    back: Ends,
}

impl Talk {
    fn begin(world: &mut World, proto: u8, sport: u16) -> Self {
        let dport = if proto == 6 { port::HTTP } else { port::ECHO_UDP };
        let ends = Ends::new(world.cast.client, sport, world.cast.web, dport);
        let first = if proto == 6 { tcp(ends, SYN, b"") } else { udp(ends, b"first") };
        let outcome = world.uplink(&first);
        assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.counted);
        let back = look(&outcome.frame).expect("a good frame").back();
        Self { proto, ends, back }
    }

    fn packet(&self, ends: Ends) -> Vec<u8> {
        if self.proto == 6 { tcp(ends, ACK, b"data") } else { udp(ends, b"data") }
    }

    /// A packet of the client's, as it arrives.
    fn says(&self, world: &mut World) -> (Seen, Vec<&'static str>) {
        let outcome = world.uplink(&self.packet(self.ends));
        assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.counted);
        (look(&outcome.frame).expect("a good frame"), outcome.counted.into_keys().collect())
    }

    /// A packet of the endpoint's, as it arrives.
    fn hears(&self, world: &mut World) -> (Seen, Vec<&'static str>) {
        let outcome = world.cluster(&self.packet(self.back));
        assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.counted);
        (look(&outcome.frame).expect("a good frame"), outcome.counted.into_keys().collect())
    }

    fn goes_on(&self, world: &mut World) {
        assert_eq!(self.says(world).0.back(), self.back, "the same endpoint from the same source");
        let heard = self.hears(world).0;
        assert_eq!(heard.ends(), Ends::new(self.ends.dst, self.ends.dport, self.ends.src, self.ends.sport));
    }

    /// Its record of that direction.
    fn half(&self, world: &mut World, direction: u16) -> (Key, Record) {
        let sport = self.ends.sport.to_be_bytes();
        let ours = |key: &Key, flow: &Record| {
            key.proto == self.proto && if direction == FORWARD { key.sport == sport } else { flow.new_dport == sport }
        };
        world.records(direction).into_iter().find(|(key, flow)| ours(key, flow)).expect("its record")
    }
}

/// What a record says of the translation: all but clocks and counts.
fn meaning(flow: &Record) -> Record {
    Record { seen: 0, checked: 0, created: 0, packets: 0, bytes: 0, tcp: 0, nexthop: 0, ..*flow }
}

fn both_protocols(test: fn(&mut World, &Talk)) {
    everywhere(|world| {
        for proto in [6, 17] {
            world.begin(world.tier, world.cast.v6, (0, 0));
            // Others are there too, and stay.
            let others: Vec<Talk> = (1..5).map(|sport| Talk::begin(world, proto, sport)).collect();
            let talk = Talk::begin(world, proto, 100);
            talk.goes_on(world);
            test(world, &talk);
            talk.goes_on(world);
            assert_eq!(world.flows().len(), 2 * (others.len() + 1), "no record too many");
            for other in others {
                other.goes_on(world);
            }
        }
    });
}

#[test]
fn the_clients_half_comes_back_with_the_clients_next_packet() {
    both_protocols(|world, talk| {
        let (key, before) = talk.half(world, FORWARD);
        world.remove_flow(&key);
        let (seen, counted) = talk.says(world);
        assert_eq!(seen.back(), talk.back, "the same translation");
        assert_eq!(counted, ["flow_rebuilt", "forwarded"]);
        assert_eq!(meaning(&talk.half(world, FORWARD).1), meaning(&before));
    });
}

#[test]
fn the_endpoints_half_comes_back_with_the_endpoints_next_packet() {
    both_protocols(|world, talk| {
        let was = talk.hears(world).0;
        let (key, before) = talk.half(world, REVERSE);
        world.remove_flow(&key);
        let (seen, counted) = talk.hears(world);
        assert_eq!((seen, counted), (was, vec!["flow_rebuilt", "replied"]));
        let (_, after) = talk.half(world, REVERSE);
        assert_eq!((meaning(&after), after.nexthop), (meaning(&before), before.nexthop));
    });
}

#[test]
fn the_clients_half_comes_back_with_the_endpoints_packets() {
    both_protocols(|world, talk| {
        let (key, before) = talk.half(world, FORWARD);
        world.remove_flow(&key);
        world.age(REVERSE);
        let (_, counted) = talk.hears(world);
        assert_eq!(counted, ["flow_rebuilt", "replied"]);
        assert_eq!(meaning(&talk.half(world, FORWARD).1), meaning(&before));
        assert_eq!(talk.says(world).1, ["forwarded"], "found, not begun anew");
    });
}

#[test]
fn the_endpoints_half_comes_back_with_the_clients_packets() {
    both_protocols(|world, talk| {
        let (key, before) = talk.half(world, REVERSE);
        world.remove_flow(&key);
        world.age(FORWARD);
        let (_, counted) = talk.says(world);
        assert_eq!(counted, ["flow_rebuilt", "forwarded"]);
        let (_, after) = talk.half(world, REVERSE);
        assert_eq!((meaning(&after), after.nexthop), (meaning(&before), before.nexthop));
    });
}

#[test]
fn both_halves_come_back_as_they_were() {
    both_protocols(|world, talk| {
        let halves = [talk.half(world, FORWARD), talk.half(world, REVERSE)];
        for (key, _) in &halves {
            world.remove_flow(key);
        }
        assert_eq!(talk.says(world).0.back(), talk.back, "the same translation");
        for ((_, before), direction) in halves.iter().zip([FORWARD, REVERSE]) {
            assert_eq!(meaning(&talk.half(world, direction).1), meaning(before));
        }
    });
}

#[test]
fn halves_of_a_conversation_with_this_node_come_back_too() {
    everywhere(|world| {
        let c = world.cast;
        let request = tcp(Ends::new(c.client, 9, c.web, port::LOCAL), ACK, b"x");
        let reply = tcp(Ends::new(c.own, 6443, c.client, 9), ACK, b"y");
        assert_eq!(world.uplink(&request).action, Action::Pass);
        for (lost, other) in [(FORWARD, REVERSE), (REVERSE, FORWARD)] {
            let (key, before) = world.records(lost)[0];
            world.remove_flow(&key);
            world.age(other);
            let outcome = if other == FORWARD { world.uplink(&request) } else { world.run(Role::Egress, &reply) };
            assert_eq!(outcome.counted.get("flow_rebuilt"), Some(&1), "{:?}", outcome.counted);
            assert_eq!(meaning(&world.records(lost)[0].1), meaning(&before));
            let back = look(&world.run(Role::Egress, &reply).frame).expect("a good frame");
            assert_eq!(back.ends(), Ends::new(c.web, port::LOCAL, c.client, 9));
            let there = look(&world.uplink(&request).frame).expect("a good frame");
            assert_eq!(there.ends(), Ends::new(c.client, 9, c.own, 6443));
        }
    });
}

#[test]
fn a_half_that_is_rebuilt_keeps_its_endpoint_whatever_the_service_has_by_then() {
    everywhere(|world| {
        let c = world.cast;
        for routed in [false, true] {
            world.begin(world.tier, c.v6, (0, 0));
            world.configure(|config| config.flags = if routed { config::ROUTED } else { 0 });
            let talk = Talk::begin(world, 6, 20);
            talk.goes_on(world);
            let (key, _) = talk.half(world, FORWARD);
            world.remove_flow(&key);
            world.service(c.web, port::HTTP, 6, &[(ep::STICKY, c.pod2, 8080, hop::POD2)]);
            talk.goes_on(world);
            assert_eq!(talk.half(world, FORWARD).1.endpoint, ep::HTTP);
        }
    });
}

#[test]
fn what_only_looks_like_a_reply_is_left_alone() {
    everywhere(|world| {
        let c = world.cast;
        let talk = Talk::begin(world, 17, 22);
        for dport in [40_000, talk.back.dport ^ 1] {
            let own = udp(Ends { dport, ..talk.back }, b"y");
            let outcome = world.cluster(&own);
            assert_eq!((outcome.action, outcome.frame), (Action::Pass, own), "{dport}");
            assert_eq!(outcome.counted, [("not_ours", 1)].into());
        }
        // An endpoint that is gone has no flow to be rebuilt.
        let (key, _) = talk.half(world, REVERSE);
        world.remove_flow(&key);
        world.lose_endpoint(ep::ECHO);
        let reply = udp(talk.back, b"y");
        let outcome = world.cluster(&reply);
        assert_eq!((outcome.action, outcome.frame, outcome.counted), (Action::Pass, reply, [("not_ours", 1)].into()));
        assert_eq!(c.client, talk.ends.src);
    });
}

#[test]
fn an_answer_of_this_node_rebuilds_its_record_where_it_leaves() {
    everywhere(|world| {
        let c = world.cast;
        assert_eq!(world.uplink(&tcp(Ends::new(c.client, 23, c.web, port::LOCAL), ACK, b"x")).action, Action::Pass);
        let (key, _) = world.records(REVERSE)[0];
        world.remove_flow(&key);
        let outcome = world.run(Role::Egress, &tcp(Ends::new(c.own, 6443, c.client, 23), ACK, b"y"));
        assert_eq!((outcome.action, outcome.counted), (Action::Pass, [("flow_rebuilt", 1), ("replied", 1)].into()));
        let new = look(&outcome.frame).expect("a good frame");
        assert_eq!(new.ends(), Ends::new(c.web, port::LOCAL, c.client, 23));
    });
}
