//! VLAN tags, in XDP: as many in as out or not, theirs or nobody's.

use gateway_common::maps::{nexthop, vlan};

use super::replies::answered;
use crate::{
    cast::{CLIENT_MAC, GATEWAY_MAC, POD_MAC, hop, port},
    packets::{ACK, Ends, SYN, fragment, icmp, look, may_fragment, ping, quote, tagged, tcp, udp},
    world::{Action, Outcome, Role, Tier, World, in_turn, skip},
};

fn in_xdp(test: fn(&mut World)) {
    if skip() {
        return;
    }
    in_turn(|world| {
        for v6 in [false, true] {
            world.begin(Tier::Xdp, v6, (0, 0));
            test(world);
        }
    });
}

/// Sent out, with that MAC and the tags of that side.
fn left(world: &World, outcome: &Outcome, mac: [u8; 6], side: Role) {
    let what = format!("tags {:?}, IPv6 {}: {outcome:?}", world.tags, world.cast.v6);
    assert_eq!(outcome.action, Action::Redirect, "{what}");
    assert_eq!(outcome.tags, world.tags_of(side), "{what}");
    let seen = look(&outcome.frame).unwrap_or_else(|e| panic!("{e}, {what}"));
    assert_eq!((seen.mac_dst, seen.mac_src), (mac, GATEWAY_MAC), "{what}");
}

#[test]
fn frames_change_from_any_number_of_tags_to_any_other() {
    in_xdp(|world| {
        let c = world.cast;
        for tags in (0..3).flat_map(|client| (0..3).map(move |pod| (client, pod))) {
            world.begin(Tier::Xdp, c.v6, tags);
            let web = |dport| Ends::new(c.client, 1, c.web, dport);
            for len in [0, 1, 700, 1400] {
                let first = world.uplink(&tcp(web(port::HTTP), SYN, &vec![8; len]));
                left(world, &first, POD_MAC, Role::Cluster);
                let back = look(&first.frame).expect("a good frame").back();
                let reply = world.cluster(&tcp(back, SYN | ACK, &vec![9; len]));
                left(world, &reply, CLIENT_MAC, Role::Uplink);
                assert_eq!(look(&reply.frame).expect("a good frame").payload.len(), len);
                let error = icmp(c.pod, c.own, if c.v6 { 1 } else { 3 }, 1, [0; 4], quote(&first.frame, 28));
                let outcome = world.cluster(&error);
                left(world, &outcome, CLIENT_MAC, Role::Uplink);
            }
            let datagram = may_fragment(udp(web(port::ECHO_UDP), &[1; 900]));
            for (from, to) in [(0, 400), (400, 908)] {
                let outcome = world.uplink(&fragment(&datagram, from, to));
                left(world, &outcome, POD_MAC, Role::Cluster);
            }
            world.set_vip_endpoints(c.web, 1);
            let outcome = world.uplink(&ping(c.client, c.web, &[2; 333]));
            left(world, &outcome, CLIENT_MAC, Role::Uplink);
            let outcome = world.uplink(&udp(web(9999), &[2; 333]));
            left(world, &outcome, CLIENT_MAC, Role::Uplink);
        }
    });
}

#[test]
fn the_outer_of_two_tags_may_be_a_providers() {
    in_xdp(|world| {
        let c = world.cast;
        world.begin(Tier::Xdp, c.v6, (1, 2));
        let mut tagged = world.hop(hop::POD);
        tagged.flags |= nexthop::SERVICE_TAG;
        world.set_hop(hop::POD, tagged);
        let outcome = world.uplink(&tcp(Ends::new(c.client, 1, c.web, port::HTTP), SYN, b""));
        let mut tags = world.tags_of(Role::Cluster);
        tags[0][..2].copy_from_slice(&[0x88, 0xa8]);
        assert_eq!((outcome.action, outcome.tags), (Action::Redirect, tags));
    });
}

#[test]
fn tags_that_nobody_has_told_of_pass() {
    in_xdp(|world| {
        let c = world.cast;
        world.begin(Tier::Xdp, c.v6, (2, 1));
        let frame = tcp(Ends::new(c.client, 1, c.web, port::HTTP), SYN, b"");
        // Untagged frames are the lower device's own, which is an uplink here.
        for tags in
            [&[[0, 5]][..], &[[1, 6]], &[[1, 6], [0, 5]], &[[0, 5], [1, 7]], &[[0, 5], [1, 6], [0, 1]], &[[0, 0]]]
        {
            let frame = tagged(&frame, tags);
            let (code, out, _) = world.run_program("xdp_uplink", &frame, 1);
            assert_eq!((code, out), (2, frame), "{tags:?}");
        }
        // A VLAN of the cluster side begins no flow on an uplink's program.
        let frame = tagged(&frame, &[[0, 15]]);
        assert_eq!(world.run_program("xdp_uplink", &frame, 1).0, 2);
        // Priority and drop eligibility are not part of a VLAN's number.
        let frame = tagged(&tcp(Ends::new(c.client, 1, c.web, port::HTTP), SYN, b""), &[[0xb0, 5], [0x71, 6]]);
        assert_eq!(world.run_program("xdp_uplink", &frame, 1).0, 4);
    });
}

#[test]
fn a_pod_behind_a_clients_vlan_is_answered_for() {
    in_xdp(|world| {
        let c = world.cast;
        world.begin(Tier::Xdp, c.v6, (1, 1));
        world.set_vlan([[0, 15], [0, 0]], vlan::UPLINK);
        let ends = answered(world, &tcp(Ends::new(c.client, 1, c.web, port::HTTP), SYN, b""));
        let reply = tagged(&tcp(ends, SYN | ACK, b""), &[[0, 15]]);
        let (code, out, _) = world.run_program("xdp_uplink", &reply, 1);
        assert_eq!((code, &out[12..16]), (4, &[0x81, 0, 0, 5][..]));
    });
}
