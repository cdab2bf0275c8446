//! What comes back from endpoints, and what only looks so.

use gateway_common::maps::config;

use super::{
    Case, Row,
    checks::{HOST_UNREACHABLE, TIME_EXCEEDED, Told, expect, from_local, to_client, told, too_big},
    on, pass, sent,
};
use crate::{
    cast::{Cast, hop, narrow_mtu, port},
    packets::{ACK, Ends, FIN, SYN, look, tcp, tcp_with, udp, with_ttl},
    world::{Action, Role, World},
};

const REPLIED: &[(&str, u64)] = &[("replied", 1)];

/// Begins a flow of that client port and says how the endpoint answers.
pub fn answered(world: &mut World, frame: &[u8]) -> Ends {
    let outcome = world.uplink(frame);
    assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.counted);
    look(&outcome.frame).expect("a good frame").back()
}

pub fn rows(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let web = move |sport, dport| Ends::new(c.client, sport, c.web, dport);
    let over_tcp = move |world: &mut World| answered(world, &tcp(web(1, port::HTTP), SYN, b""));
    let over_udp = move |world: &mut World| answered(world, &udp(web(1, port::ECHO_UDP), b"ping"));
    let mut rows = Vec::new();
    for role in [Role::Cluster, Role::Uplink] {
        // A pod behind the uplink: its answers have the tags of the side that they came by, like the client they go to.
        let seen = move |port| {
            move |case: &Case<'_>| {
                let on = if role == Role::Uplink { case.back.clone() } else { case.on.clone() };
                to_client(port, 1)(&Case { on, back: case.back.clone(), ..*case })
            }
        };
        let replied = move |port| sent(REPLIED, seen(port));
        rows.extend([
            Row::made("a reply", move |world| tcp(over_tcp(world), SYN | ACK, b""), replied(port::HTTP)).at(role),
            Row::made(
                "a reply of odd length",
                move |world| tcp(over_tcp(world), ACK | FIN, &[3; 1001]),
                replied(port::HTTP),
            )
            .at(role),
            Row::made(
                "a reply with options",
                move |world| {
                    tcp_with(over_tcp(world), SYN | ACK, &[2, 4, 5, 180, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0], b"")
                },
                replied(port::HTTP),
            )
            .at(role),
            Row::made("a datagram back", move |world| udp(over_udp(world), b"pong!"), replied(port::ECHO_UDP)).at(role),
            Row::made(
                "the last but one hop back",
                move |world| with_ttl(udp(over_udp(world), b""), 2),
                replied(port::ECHO_UDP),
            )
            .at(role),
            Row::made(
                "a datagram back without a checksum",
                move |world| {
                    let mut frame = udp(over_udp(world), b"pong!");
                    frame[c.l4() + 6..c.l4() + 8].fill(0);
                    frame
                },
                replied(port::ECHO_UDP),
            )
            .at(role),
        ]);
    }
    let other = c.neighbour(55);
    let by_routes = move |case: &Case<'_>| {
        let new = look(&case.after.frame)?;
        expect(new.ends() == Ends::new(c.web, port::HTTP, other, 2), "ends", &new)
    };
    let big: Told = too_big([narrow_mtu(&crate::cast::V4), narrow_mtu(&crate::cast::V6)]);
    rows.extend([
        Row::made(
            "a reply to a client whose next hop is not known yet",
            move |world| tcp(answered(world, &tcp(Ends::new(other, 2, c.web, port::HTTP), SYN, b"")), SYN | ACK, b""),
            sent(REPLIED, by_routes),
        )
        .xdp(pass(&[("next_hop_tc", 1)]))
        .at(Role::Cluster),
        Row::made(
            "TTL of a reply ends here",
            move |world| with_ttl(tcp(over_tcp(world), SYN | ACK, b""), 1),
            sent(&[("ttl_exceeded", 1)], told(TIME_EXCEEDED)),
        )
        .at(Role::Cluster),
        Row::made(
            "a reply bigger than the client's way",
            move |world| {
                world.set_client_hop(c.client, hop::NARROW);
                udp(over_udp(world), &[1; 1300])
            },
            sent(&[("too_big", 1)], told(big)),
        )
        .xdp(pass(&[("too_big_tc", 1)]))
        .at(Role::Cluster),
        Row::made(
            "a reply to a client without a route",
            move |world| {
                world.set_client_hop(c.client, hop::UNUSABLE);
                udp(over_udp(world), b"")
            },
            sent(&[("no_route", 1)], told(HOST_UNREACHABLE)),
        )
        .at(Role::Cluster),
        Row::made(
            "from another port of the endpoint",
            move |world| udp(Ends { sport: 9, ..over_udp(world) }, b""),
            pass(&[("not_ours", 1)]),
        )
        .at(Role::Cluster),
        Row::made(
            "from another pod",
            move |world| udp(Ends { src: c.pod2, ..over_udp(world) }, b""),
            pass(&[("not_ours", 1)]),
        )
        .at(Role::Cluster),
        Row::new("to the node itself", tcp(Ends::new(c.pod, 1, c.own, 22), SYN, b""), pass(&[("not_ours", 1)]))
            .at(Role::Cluster),
        Row::new("a VIP, from the cluster side", tcp(web(3, port::HTTP), SYN, b""), pass(&[("not_ours", 1)]))
            .at(Role::Cluster),
        Row::made(
            "a known flow's own packet, from the cluster side",
            move |world| {
                over_tcp(world);
                tcp(web(1, port::HTTP), ACK, b"")
            },
            pass(&[("not_ours", 1)]),
        )
        .at(Role::Cluster),
    ]);
    rows.push(
        Row::made(
            "a reply to a client that keeps its address",
            move |world| {
                world.configure(|config| config.flags = config::ROUTED);
                let back = over_tcp(world);
                assert_eq!((back.dst, back.dport), (c.client, 1));
                tcp(back, SYN | ACK, b"")
            },
            sent(REPLIED, to_client(port::HTTP, 1)),
        )
        .at(Role::Cluster),
    );
    rows.extend(of_this_node(cast));
    rows
}

/// Replies of this node's own sockets are translated where they leave, and nowhere else.
fn of_this_node(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let begin = move |world: &mut World| {
        let web = |dport| Ends::new(c.client, 4, c.web, dport);
        assert_eq!(world.uplink(&tcp(web(port::LOCAL), SYN, b"")).action, Action::Pass);
        assert_eq!(world.uplink(&udp(web(port::LOCAL_UDP), b"")).action, Action::Pass);
    };
    let back = Ends::new(c.own, 6443, c.client, 4);
    let made = move |frame: Vec<u8>| {
        move |world: &mut World| {
            begin(world);
            frame.clone()
        }
    };
    let replied = |port| on(REPLIED, from_local(port, 4));
    vec![
        Row::made("a reply of this node", made(tcp(back, SYN | ACK, b"")), replied(port::LOCAL)).at(Role::Egress),
        Row::made("a datagram of this node", made(udp(back, b"pong")), replied(port::LOCAL_UDP)).at(Role::Egress),
        Row::made(
            "a reply of this node that may go one hop",
            made(with_ttl(udp(back, b""), 1)),
            replied(port::LOCAL_UDP),
        )
        .at(Role::Egress),
        Row::made("a reply of this node, from outside", made(tcp(back, SYN | ACK, b"")), pass(&[("not_ours", 1)])),
        Row::made("as above, from the cluster side", made(tcp(back, SYN | ACK, b"")), pass(&[("not_ours", 1)]))
            .at(Role::Cluster),
        Row::made("another socket of this node", made(tcp(Ends::new(c.own, 22, c.client, 4), ACK, b"")), pass(&[]))
            .at(Role::Egress),
        Row::made(
            "a pod's reply, translated before, on its way out",
            move |world| tcp(answered(world, &tcp(Ends::new(c.client, 5, c.web, port::HTTP), SYN, b"")), ACK, b""),
            pass(&[]),
        )
        .at(Role::Egress),
    ]
}
