//! ICMP errors about flows: from both sides, by whom the packet was for and by routers on its way.

use std::net::IpAddr;

use gateway_common::maps::config;

use super::{Row, checks::relayed, dropped, on, pass, replies::answered, sent};
use crate::{
    cast::{CLIENT_MAC, Cast, POD_MAC, hop, port},
    packets::{ACK, Ends, SYN, at, fragment, icmp, quote, tcp, tcp_with, udp, with_ip, with_ttl},
    world::{Action, Role, World},
};

const RELAYED: &[(&str, u64)] = &[("icmp_relayed", 1)];

/// Types and codes with what is behind their checksum.
fn kinds(cast: &Cast) -> Vec<(u8, u8, [u8; 4])> {
    if cast.v6 {
        return vec![
            (1, 0, [0; 4]),
            (1, 1, [0; 4]),
            (1, 3, [0; 4]),
            (1, 4, [0; 4]),
            (2, 0, [0, 0, 5, 0]),
            (3, 0, [0; 4]),
            (3, 1, [0; 4]),
            (4, 0, [0, 0, 0, 4]),
            (4, 1, [0, 0, 0, 40]),
        ];
    }
    vec![
        (3, 0, [0; 4]),
        (3, 1, [0; 4]),
        (3, 2, [0; 4]),
        (3, 3, [0; 4]),
        (3, 4, [0, 0, 2, 88]),
        (3, 4, [0; 4]),
        (3, 13, [0; 4]),
        (11, 0, [0; 4]),
        (11, 1, [0; 4]),
        (12, 0, [8, 0, 0, 0]),
    ]
}

/// A flow: what its endpoint got, what it answered, what the client got.
struct Flow {
    arrived: Vec<u8>,
    answer: Vec<u8>,
    came_back: Vec<u8>,
}

/// A packet and the place where it is thrown away, a hop or two later.
fn flow(world: &mut World, frame: Vec<u8>) -> Flow {
    let ends = answered(world, &frame);
    let arrived = with_ttl(world.uplink(&frame).frame, 9);
    let answer = if frame.len() > 23 && (frame[23] == 17 || frame[20] == 17) {
        udp(ends, b"an answer")
    } else {
        tcp(ends, SYN | ACK, b"an answer")
    };
    let came_back = with_ttl(world.cluster(&answer).frame, 9);
    Flow { arrived, answer: with_ttl(answer, 9), came_back }
}

fn requests(c: Cast) -> [(&'static str, Vec<u8>); 4] {
    let web = |dport| Ends::new(c.client, 70, c.web, dport);
    let mut unchecked = udp(web(port::ECHO_UDP), b"without");
    unchecked[c.l4() + 6..c.l4() + 8].fill(0);
    [
        ("a segment", tcp(web(port::HTTP), ACK, b"some data")),
        ("a segment with options", tcp_with(web(port::HTTP), SYN, &[2, 4, 5, 180, 1, 1, 4, 2], b"")),
        ("a datagram", udp(web(port::ECHO_UDP), b"some data!")),
        ("a datagram without a checksum", unchecked),
    ]
}

pub fn rows(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let mut rows = Vec::new();
    let long = udp(Ends::new(c.client, 71, c.web, port::ECHO_UDP), &[0x5a; 1001]);
    let [(_, segment), .., (_, datagram), _] = requests(c);
    // Every kind about two packets; every packet and length of quote with one kind.
    for (kind, code, rest) in kinds(cast) {
        for (what, frame) in [("segment", &segment), ("datagram", &datagram)] {
            rows.extend(both_ways(
                c,
                &format!("type {kind} code {code} about a {what}"),
                frame,
                (kind, code, rest),
                28,
            ));
        }
    }
    let usual = if c.v6 { (1, 4, [0; 4]) } else { (3, 3, [0; 4]) };
    for (what, frame) in requests(c) {
        for len in [8, 9, 16, 18, 20, 24, 29, 500] {
            rows.extend(both_ways(c, &format!("about {len} bytes of {what}"), &frame, usual, len));
        }
    }
    rows.extend(both_ways(c, "about much of a long datagram", &long, usual, if c.v6 { 1000 } else { 528 }));
    rows.extend(routed(c, &segment, usual));
    rows.extend(extended(c, &segment));
    rows.extend(nobodys(cast, &segment));
    rows.extend(of_this_node(cast));
    rows.extend(about_parts(cast));
    rows
}

/// From the endpoint's side to the client and from the client's side to the endpoint; by those two, and by a router.
fn both_ways(c: Cast, name: &str, frame: &[u8], (kind, code, rest): (u8, u8, [u8; 4]), len: usize) -> Vec<Row> {
    let error = move |from: IpAddr, to: IpAddr, quoted: &[u8]| icmp(from, to, kind, code, rest, quote(quoted, len));
    let mut rows = Vec::new();
    for (who, from, as_if) in [("the pod", c.pod, c.web), ("a router", c.router, c.router)] {
        let (sent_frame, begin) = (frame.to_vec(), frame.to_vec());
        rows.push(
            Row::made(
                format!("{who}'s error to the client, {name}"),
                move |world| error(from, c.own, &flow(world, begin.clone()).arrived),
                sent(RELAYED, relayed(with_ttl(sent_frame, 9), len, (as_if, c.client), true, CLIENT_MAC)),
            )
            .at(Role::Cluster),
        );
    }
    for (who, from, as_if) in [("the client", c.client, c.own), ("a router", c.router, c.router)] {
        let begin = frame.to_vec();
        // What the endpoint answers depends on the port that the gateway chose: the same one each time.
        let quoted = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let expected = quoted.clone();
        rows.push(Row::made(
            format!("{who}'s error to the pod, {name}"),
            move |world| {
                let flow = flow(world, begin.clone());
                *quoted.borrow_mut() = flow.answer;
                error(from, c.web, &flow.came_back)
            },
            sent(RELAYED, move |case| relayed(expected.borrow().clone(), len, (as_if, c.pod), true, POD_MAC)(case)),
        ));
    }
    rows
}

/// With an extension behind the quote (RFC 4884, here RFC 4950's label): 128 bytes of quote, whose length the header says.
fn extended(c: Cast, frame: &[u8]) -> Vec<Row> {
    let (kind, rest) = if c.v6 { (3, [16, 0, 0, 0]) } else { (11, [0, 32, 0, 0]) };
    let full = |mut frame: Vec<u8>| {
        frame.resize(14 + 128, 0);
        frame.extend([0x20, 0, 0x9b, 0xe6, 0, 8, 1, 1, 0x12, 0x34, 0x51, 1]);
        frame
    };
    let (original, begin, again) = (full(with_ttl(frame.to_vec(), 9)), frame.to_vec(), frame.to_vec());
    vec![
        Row::made(
            "an extended error to the client",
            move |world| icmp(c.router, c.own, kind, 0, rest, &full(flow(world, begin.clone()).arrived)[14..]),
            sent(RELAYED, relayed(original, 1000, (c.router, c.client), true, CLIENT_MAC)),
        )
        .at(Role::Cluster),
        Row::made(
            "an extended error to the pod",
            move |world| {
                world.configure(|config| config.flags = config::ROUTED);
                icmp(c.router, c.web, kind, 0, rest, &full(flow(world, again.clone()).came_back)[14..])
            },
            sent(
                RELAYED,
                relayed(
                    full(with_ttl(tcp(Ends::new(c.pod, 8080, c.client, 70), SYN | ACK, b"an answer"), 9)),
                    1000,
                    (c.router, c.pod),
                    true,
                    POD_MAC,
                ),
            ),
        ),
    ]
}

/// Where the client keeps its address: the endpoint's side speaks to it.
fn routed(c: Cast, frame: &[u8], (kind, code, rest): (u8, u8, [u8; 4])) -> Vec<Row> {
    let route = |world: &mut World| world.configure(|config| config.flags = config::ROUTED);
    let mut rows = Vec::new();
    for (who, from, as_if) in [("the pod", c.pod, c.web), ("a router", c.router, c.router)] {
        let (original, begin) = (with_ttl(frame.to_vec(), 9), frame.to_vec());
        rows.push(
            Row::made(
                format!("{who}'s error to a client that keeps its address"),
                move |world| {
                    route(world);
                    icmp(from, c.client, kind, code, rest, quote(&flow(world, begin.clone()).arrived, 28))
                },
                sent(RELAYED, relayed(original, 28, (as_if, c.client), true, CLIENT_MAC)),
            )
            .at(Role::Cluster),
        );
    }
    for (who, from) in [("the client", c.client), ("a router", c.router)] {
        let begin = frame.to_vec();
        let answer = with_ttl(tcp(Ends::new(c.pod, 8080, c.client, 70), SYN | ACK, b"an answer"), 9);
        rows.push(Row::made(
            format!("{who}'s error to the pod, where the client keeps its address"),
            move |world| {
                route(world);
                icmp(from, c.web, kind, code, rest, quote(&flow(world, begin.clone()).came_back, 28))
            },
            sent(RELAYED, relayed(answer, 28, (from, c.pod), true, POD_MAC)),
        ));
    }
    rows
}

/// Errors that no flow's sender should hear of.
fn nobodys(cast: &Cast, segment: &[u8]) -> Vec<Row> {
    let c = *cast;
    let (kind, code) = if c.v6 { (1, 4) } else { (3, 3) };
    let ignored = || dropped(&[("icmp_ignored", 1)]);
    let error = move |from: IpAddr, to: IpAddr, quoted: &[u8]| icmp(from, to, kind, code, [0; 4], quoted);
    let other = tcp(Ends::new(c.web, 9, c.client, 9), ACK, b"");
    let begin = segment.to_vec();
    let about = move |change: fn(Vec<u8>) -> Vec<u8>, len: usize| {
        let begin = begin.clone();
        move |world: &mut World| {
            let flow = flow(world, begin.clone());
            error(c.client, c.web, quote(&change(flow.came_back), len))
        }
    };
    let begin = segment.to_vec();
    let spoofed = move |world: &mut World| {
        let flow = flow(world, begin.clone());
        // Quotes what went to the client, and goes to another VIP: it cannot be the client's answer to that packet.
        error(c.client, c.vip(8), quote(&flow.came_back, 28))
    };
    let begin = segment.to_vec();
    let last = move |world: &mut World| {
        let flow = flow(world, begin.clone());
        with_ttl(error(c.client, c.web, quote(&flow.came_back, 28)), 1)
    };
    let begin = segment.to_vec();
    let unresolved = move |world: &mut World| {
        let flow = flow(world, begin.clone());
        for (key, mut record) in world.records(crate::world::REVERSE) {
            record.nexthop = hop::UNRESOLVED;
            world.set_flow(&key, &record);
        }
        error(c.pod, c.own, quote(&flow.arrived, 28))
    };
    let mut rows = vec![
        Row::new("an error about no flow", error(c.client, c.web, quote(&other, 28)), ignored()),
        Row::new("a stranger's error about no flow", error(c.stranger, c.web, quote(&other, 28)), ignored()),
        Row::new(
            "an error about no flow to an unused address",
            error(c.client, c.unused, quote(&other, 28)),
            ignored(),
        ),
        Row::new("an error to the node", error(c.client, c.own, quote(&other, 28)), pass(&[("not_ours", 1)])),
        Row::new("an error to the node, from the cluster side", error(c.pod, c.own, quote(&other, 28)), pass(&[]))
            .at(Role::Cluster),
        Row::new("an error that quotes nothing", error(c.client, c.web, b""), ignored()),
        Row::new(
            "an error that quotes half a header",
            error(c.client, c.web, quote(&other, 28)[..c.header() - 1].as_ref()),
            ignored(),
        ),
        Row::made("an error that quotes seven bytes", about(|frame| frame, 7), ignored()),
        Row::made("an error about another version's packet", about(|frame| at(frame, 14, 0x05), 28), ignored()),
        Row::made(
            "an error about another protocol",
            about(
                |frame| {
                    let at = if frame[12] == 8 { 23 } else { 20 };
                    self::at(frame, at, 132)
                },
                28,
            ),
            ignored(),
        ),
        Row::made("an error that goes to somebody else than the quoted sender", spoofed, ignored()),
        Row::made("an error about a flow, at the end of its TTL", last, dropped(&[("ttl_exceeded", 1)])),
        Row::made(
            "an error to a client whose next hop is not resolved",
            unresolved,
            sent(RELAYED, |case| {
                let new = crate::packets::look(&case.after.frame)?;
                if new.dst == case.cast.client { Ok(()) } else { Err(format!("{new:?}")) }
            }),
        )
        .xdp(pass(&[("next_hop_tc", 1)]))
        .at(Role::Cluster),
    ];
    if !c.v6 {
        rows.extend([
            Row::made("an error about a packet with options", about(|frame| at(frame, 14, 0x46), 28), ignored()),
            Row::made("an error about a later fragment", about(|frame| with_ip(frame, |ip| ip[7] = 3), 28), ignored()),
        ]);
        let begin = segment.to_vec();
        // Towards the client it would name a router that the client has never heard of, about a way that is not its own.
        rows.push(
            Row::made(
                "a redirect about a flow is the node's own business",
                move |world| {
                    let flow = flow(world, begin.clone());
                    icmp(c.router, c.own, 5, 1, [10, 2, 3, 4], quote(&flow.arrived, 8))
                },
                pass(&[("not_ours", 1)]),
            )
            .at(Role::Cluster),
        );
    }
    rows
}

/// Errors to and from this node's own sockets.
fn of_this_node(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let (kind, code) = if c.v6 { (1, 4) } else { (3, 3) };
    let request = udp(Ends::new(c.client, 72, c.web, port::LOCAL_UDP), b"anybody?");
    let answer = udp(Ends::new(c.own, 6443, c.client, 72), b"here");
    let begin = {
        let request = request.clone();
        move |world: &mut World| {
            let outcome = world.uplink(&request);
            assert_eq!(outcome.action, Action::Pass);
            outcome.frame
        }
    };
    let there = begin.clone();
    let answered = answer.clone();
    vec![
        Row::made(
            "this node's error to the client",
            move |world| icmp(c.own, c.client, kind, code, [0; 4], quote(&begin(world), 16)),
            on(RELAYED, relayed(request, 16, (c.web, c.client), false, CLIENT_MAC)),
        )
        .at(Role::Egress),
        Row::made(
            "the client's error to this node",
            move |world| {
                there(world);
                let outcome = world.run(Role::Egress, &answered);
                icmp(c.client, c.web, kind, code, [0; 4], quote(&outcome.frame, 12))
            },
            on(RELAYED, relayed(answer, 12, (c.client, c.own), false, POD_MAC)),
        ),
        Row::new(
            "this node's error about something else",
            icmp(c.own, c.client, kind, code, [0; 4], quote(&udp(Ends::new(c.client, 1, c.own, 2), b"8 bytes."), 16)),
            pass(&[]),
        )
        .at(Role::Egress),
    ]
}

/// Errors about fragments: the first one has the ports.
fn about_parts(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let whole = udp(Ends::new(c.client, 73, c.web, port::ECHO_UDP), &[6; 1208]);
    let first = fragment(&whole, 0, 608);
    let begin = first.clone();
    let (kind, code, rest) = if c.v6 { (2, 0, [0, 0, 5, 0]) } else { (3, 4, [0, 0, 2, 88]) };
    let len = if c.v6 { 100 } else { 40 };
    let from_router = move |part: Vec<u8>| {
        let begin = begin.clone();
        move |world: &mut World| {
            world.uplink(&begin);
            let outcome = world.uplink(&part);
            icmp(c.router, c.own, kind, code, rest, quote(&with_ttl(outcome.frame, 9), len))
        }
    };
    let mut rows = Vec::new();
    let again = fragment(&whole, 608, 1216);
    // A later fragment has no ports: nobody can be told.
    rows.push(Row::made("an error about a later part", from_router(again), pass(&[])).at(Role::Cluster));
    let begin = first.clone();
    rows.push(
        Row::made(
            "an error about the first part",
            move |world| {
                let outcome = world.uplink(&begin);
                icmp(c.router, c.own, kind, code, rest, quote(&with_ttl(outcome.frame, 9), len))
            },
            sent(RELAYED, relayed(with_ttl(first, 9), len, (c.router, c.client), true, CLIENT_MAC)),
        )
        .at(Role::Cluster),
    );
    rows
}
