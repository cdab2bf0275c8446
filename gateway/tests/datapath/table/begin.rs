//! Packets that begin flows, or do not.

use gateway_common::maps::config;

use super::{
    Row,
    checks::{
        HOST_UNREACHABLE, PORT_UNREACHABLE, PROHIBITED, TIME_EXCEEDED, reset, to_local, to_pod, to_pod_routed, told,
        too_big,
    },
    dropped, on, pass, sent,
};
use crate::{
    cast::{Cast, ep, narrow_mtu, port},
    packets::{ACK, Ends, FIN, RST, SYN, at, look, partial, tcp, tcp_with, udp, with_len, with_ttl},
    world::{Action, World},
};

pub const NEW: &[(&str, u64)] = &[("flow_created", 1), ("forwarded", 1)];

pub fn rows(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let web = move |sport, dport| Ends::new(c.client, sport, c.web, dport);
    let mut rows = vec![
        Row::new("TCP SYN to a Service", tcp(web(1, port::HTTP), SYN, b""), sent(NEW, to_pod)),
        Row::new(
            "TCP data of odd length begins a flow too",
            tcp(web(2, port::HTTP), ACK, &[7; 1233]),
            sent(NEW, to_pod),
        ),
        Row::new(
            "TCP options stay",
            tcp_with(web(2, port::HTTP), SYN, &[2, 4, 5, 180, 1, 3, 3, 7, 1, 1, 4, 2], b""),
            sent(NEW, to_pod),
        ),
        Row::new("a FIN or a reset too", tcp(web(2, port::HTTP), FIN | RST | ACK, b""), sent(NEW, to_pod)),
        Row::new("UDP to a Service", udp(web(3, port::ECHO_UDP), b"hello"), sent(NEW, to_pod)),
        Row::new(
            "as long as the way is wide",
            udp(web(3, port::ECHO_UDP), &vec![9; 1500 - c.header() - 8]),
            sent(NEW, to_pod),
        ),
        Row::new("an empty datagram", udp(web(6, port::ECHO_UDP), b""), sent(NEW, to_pod)),
        Row::new("the last but one hop", with_ttl(tcp(web(7, port::HTTP), SYN, b""), 2), sent(NEW, to_pod)),
        Row::new(
            "what guests may see, a guest sees",
            tcp(Ends::new(c.guest, 8, c.web, port::GUESTS), SYN, b""),
            sent(NEW, to_pod),
        ),
    ];
    let mut unchecked = udp(web(4, port::ECHO_UDP), b"hello");
    unchecked[c.l4() + 6..c.l4() + 8].fill(0);
    rows.push(Row::new("UDP without a checksum stays without", unchecked, sent(NEW, to_pod)));
    let mut padded = udp(web(5, port::ECHO_UDP), b"x");
    padded.resize(padded.len() + 17, 0xee);
    rows.push(Row::new("Ethernet padding is nobody's data", padded, sent(NEW, to_pod)));
    // A datagram may be shorter than what IP carries (RFC 768 has a length of its own): what is behind it stays there.
    let mut trailed = udp(web(5, port::ECHO_UDP), b"a datagram");
    trailed.extend(b"and more");
    let len = trailed.len() - c.l4();
    rows.push(Row::new("data behind a datagram", with_len(trailed, len), sent(NEW, to_pod)));
    rows.extend(checksums_at_the_edge(cast));
    rows.extend(refused(cast));
    rows.extend(ways(cast));
    rows
}

/// A datagram whose checksum is 0xffff, "none" being 0, before its translation; and another one's, after it.
fn checksums_at_the_edge(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let ends = Ends::new(c.client, 9, c.web, port::ECHO_UDP);
    let at_edge = move |checksum: [u8; 2]| udp(ends, &checksum);
    let check = move |frame: &[u8]| [frame[c.l4() + 6], frame[c.l4() + 7]];
    let shown = move |case: &super::Case<'_>| {
        to_pod(case)?;
        let after = check(&case.after.frame);
        if after == [0xff; 2] { Ok(()) } else { Err(format!("checksum {after:02x?}")) }
    };
    let before = udp(ends, &check(&udp(ends, &[0; 2])));
    assert_eq!(check(&before), [0xff; 2]);
    vec![
        Row::new("a checksum of all ones", before, sent(NEW, to_pod)),
        Row::made(
            "a checksum that would become none",
            move |world| {
                let outcome = world.uplink(&at_edge([0; 2]));
                at_edge(check(&outcome.frame))
            },
            sent(&[("forwarded", 1)], shown),
        ),
    ]
}

/// Those who do not get through.
fn refused(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let web = move |sport, dport| Ends::new(c.client, sport, c.web, dport);
    let strange = Ends::new(c.stranger, 15, c.web, port::HTTP);
    let guest = move |dport| tcp(Ends::new(c.guest, 13, c.web, dport), SYN, b"");
    let unreachable = |reason| sent(&[(reason, 1)], told(PORT_UNREACHABLE));
    let nobody = || sent(&[("unknown_vip", 1)], told(HOST_UNREACHABLE));
    let prohibited = || sent(&[("view_denied", 1)], told(PROHIBITED));
    let ended = || sent(&[("ttl_exceeded", 1)], told(TIME_EXCEEDED));
    let mut rows = vec![
        Row::new("no endpoint", tcp(web(10, port::EMPTY), SYN, b""), unreachable("no_endpoint")),
        Row::new("no endpoint, UDP", udp(web(10, port::EMPTY), b"hello?"), unreachable("no_endpoint")),
        Row::new("unknown port", tcp(web(11, 9999), SYN, b""), unreachable("unknown_port")),
        Row::new("the other protocol's port", udp(web(11, port::HTTP), b""), unreachable("unknown_port")),
        Row::new(
            "the node's own ssh, at an address in the service CIDR",
            tcp(Ends::new(c.client, 12, c.spared, 22), SYN, b""),
            pass(&[("not_ours", 1)]),
        ),
        Row::new(
            "a stranger at that address",
            tcp(Ends::new(c.stranger, 12, c.spared, 22), SYN, b""),
            pass(&[("not_ours", 1)]),
        ),
        Row::new("unused address", udp(Ends::new(c.client, 12, c.unused, 53), b"?"), nobody()),
        Row::new("unused address, the node's ssh", tcp(Ends::new(c.client, 12, c.unused, 22), SYN, b""), nobody()),
        Row::new("a guest, at what it may not see", guest(port::HTTP), prohibited()),
        Row::new("a guest learns nothing about ports", guest(9999), prohibited()),
        Row::new("nor about endpoints", guest(port::EMPTY), prohibited()),
        Row::made(
            "a guest, deny: drop",
            move |world| {
                world.configure(|config| config.flags = config::DENY_DROP);
                guest(port::HTTP)
            },
            dropped(&[("view_dropped", 1)]),
        ),
        Row::new("a stranger", tcp(strange, SYN, b""), dropped(&[("stranger", 1)])),
        Row::new(
            "a stranger at an unused address",
            tcp(Ends::new(c.stranger, 15, c.unused, 22), SYN, b""),
            dropped(&[("stranger", 1)]),
        ),
        Row::made(
            "a stranger, strangers: pass",
            move |world| {
                world.configure(|config| config.flags = config::STRANGERS_PASS);
                tcp(strange, SYN, b"")
            },
            pass(&[("stranger_passed", 1)]),
        ),
        Row::new(
            "a VIP as its own client",
            tcp(Ends::new(c.web, 15, c.web, 80), SYN, b""),
            dropped(&[("stranger", 1)]),
        ),
        Row::new("TTL ends here", with_ttl(tcp(web(20, port::HTTP), SYN, b""), 1), ended()),
        Row::new("TTL had ended before", with_ttl(udp(web(20, port::ECHO_UDP), b""), 0), ended()),
        Row::new("TTL ends before the port is unknown", with_ttl(udp(web(20, 9999), b""), 1), ended()),
        Row::new(
            "TTL ends before the address is unused",
            with_ttl(udp(Ends::new(c.client, 20, c.unused, 9), b""), 1),
            ended(),
        ),
        Row::made(
            "TTL of a known flow ends here",
            move |world| {
                world.uplink(&tcp(web(20, port::HTTP), SYN, b""));
                with_ttl(tcp(web(20, port::HTTP), ACK, b""), 1)
            },
            ended(),
        ),
        Row::made(
            "no more errors than the rate allows",
            move |world| {
                world.configure(|config| config.icmp_rate = 0);
                tcp(web(21, 9999), SYN, b"")
            },
            dropped(&[("rate_limited", 1)]),
        ),
        Row::made(
            "no source address",
            move |world| {
                world.configure(|config| (config.snat4_len, config.snat6_len) = (0, 0));
                tcp(web(46, port::HTTP), SYN, b"")
            },
            dropped(&[("snat_exhausted", 1)]),
        ),
    ];
    for len in [0, 1, 520, 521, 1001, 1204, 1205] {
        let name = format!("an error about {len} bytes");
        rows.push(Row::new(name, udp(web(11, 9999), &vec![5; len]), unreachable("unknown_port")));
    }
    for sport in [53, 9] {
        for (proto, query) in [
            ("TCP", tcp(Ends::new(c.stranger, sport, c.own, 53), SYN, b"")),
            ("UDP", udp(Ends::new(c.stranger, sport, c.own, 53), b"?")),
        ] {
            rows.push(Row::new(format!("a stranger's query over {proto}"), query, dropped(&[("stranger", 1)])));
        }
    }
    let asks = Ends::new(c.client, 16, c.own, 53);
    rows.push(Row::new("a query over TCP goes to the forwarder", tcp(asks, SYN, b""), pass(&[("not_ours", 1)])));
    rows
}

/// Ways to endpoints.
fn ways(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let web = move |sport, dport| Ends::new(c.client, sport, c.web, dport);
    let up: &[_] = &[("flow_created", 1), ("forwarded", 1), ("local", 1)];
    let later = |reason| pass(&[("flow_created", 1), (reason, 1)]);
    let narrow = usize::from(narrow_mtu(cast)) - c.header();
    let big = move || told(too_big([narrow_mtu(&crate::cast::V4), narrow_mtu(&crate::cast::V6)]));
    let refused = move || sent(&[("flow_created", 1), ("too_big", 1)], big());
    vec![
        Row::new("endpoint on this node", tcp(web(30, port::LOCAL), SYN, b"data"), on(up, to_local)),
        Row::new("endpoint on this node, UDP", udp(web(30, port::LOCAL_UDP), b"data"), on(up, to_local)),
        Row::new("the last hop is this node", with_ttl(tcp(web(31, port::LOCAL), SYN, b""), 1), on(up, to_local)),
        Row::new("next hop not resolved", tcp(web(40, port::UNRESOLVED), SYN, b""), sent(NEW, to_pod))
            .xdp(later("next_hop_tc")),
        Row::new(
            "next hop not known: the node's routes say",
            tcp(web(41, port::UNKNOWN_HOP), SYN, b""),
            sent(NEW, to_pod),
        )
        .xdp(later("next_hop_tc")),
        Row::new("next hop without a link layer", tcp(web(41, port::BARE), SYN, b""), sent(NEW, to_pod))
            .xdp(later("next_hop_tc")),
        Row::new(
            "no route",
            tcp(web(42, port::NO_ROUTE), SYN, b""),
            sent(&[("flow_created", 1), ("no_route", 1)], told(HOST_UNREACHABLE)),
        ),
        Row::new(
            "just as long as the way out allows",
            tcp(web(43, port::NARROW), ACK, &vec![1; narrow - 20]),
            sent(NEW, to_pod),
        ),
        Row::new("bigger than the way out", tcp(web(43, port::NARROW), ACK, &vec![1; narrow - 19]), refused())
            .xdp(later("too_big_tc")),
        Row::new("a datagram bigger than the way out", udp(web(43, port::NARROW_UDP), &vec![1; narrow - 7]), refused())
            .xdp(later("too_big_tc")),
        // The test run's buffer does not know that its checksum is partial; that one comes out complete is the wire's to show.
        Row::new(
            "a checksum that somebody still has to complete",
            partial(tcp(web(44, port::HTTP), SYN, b"")),
            sent(NEW, |_| Ok(())),
        )
        .xdp(pass(&[("partial_checksum", 1)])),
        Row::new(
            "an unknown port, and a checksum that somebody still has to complete",
            partial(udp(web(44, 9999), b"odd")),
            sent(&[("unknown_port", 1)], |_| Ok(())),
        )
        .xdp(pass(&[("partial_checksum", 1)])),
        Row::made(
            "return path routed",
            move |world| {
                world.configure(|config| config.flags = config::ROUTED);
                tcp(web(45, port::HTTP), SYN, b"")
            },
            sent(NEW, to_pod_routed),
        ),
    ]
}

/// Flows whose endpoint is gone.
pub fn gone(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let web = move |sport, dport| Ends::new(c.client, sport, c.web, dport);
    let lost = move |world: &mut World| {
        assert_eq!(world.uplink(&tcp(web(60, port::HTTP), ACK, b"data")).action, Action::Redirect);
        world.lose_endpoint(ep::HTTP);
    };
    let moved: &[_] = &[("flow_created", 1), ("flow_moved", 1), ("forwarded", 1)];
    let after = move |frame: Vec<u8>| {
        move |world: &mut World| {
            lost(world);
            frame.clone()
        }
    };
    let answered = |case: &super::Case<'_>| {
        let (old, new) = (look(case.before)?, look(&case.after.frame)?);
        let right = new.ends() == old.back() && new.flags == RST | ACK && new.seq == 0;
        if right && new.ack == old.seq + 4 { Ok(()) } else { Err(format!("{new:?}")) }
    };
    vec![
        Row::made(
            "TCP whose endpoint is gone",
            after(tcp(web(60, port::HTTP), ACK, b"data")),
            sent(&[("endpoint_gone", 1)], reset),
        ),
        Row::made(
            "TCP whose endpoint is gone, without an acknowledgement",
            after(tcp(web(60, port::HTTP), FIN, b"end")),
            sent(&[("endpoint_gone", 1)], answered),
        ),
        Row::made(
            "TCP whose endpoint is gone, at its last hop",
            after(with_ttl(tcp(web(60, port::HTTP), ACK, b"data"), 1)),
            sent(&[("endpoint_gone", 1)], reset),
        ),
        Row::made(
            "a reset to an endpoint that is gone is not answered",
            after(tcp(web(60, port::HTTP), RST, b"")),
            dropped(&[("endpoint_gone", 1)]),
        ),
        Row::made(
            "no more resets than the rate allows",
            move |world| {
                lost(world);
                world.configure(|config| config.icmp_rate = 0);
                tcp(web(60, port::HTTP), ACK, b"data")
            },
            dropped(&[("rate_limited", 1)]),
        ),
        Row::made(
            "a new connection on the port of one whose endpoint is gone",
            after(tcp(web(60, port::HTTP), SYN, b"")),
            sent(moved, to_pod),
        ),
        Row::made(
            "UDP whose endpoint is gone moves on",
            move |world| {
                world.uplink(&udp(web(61, port::ECHO_UDP), b"one"));
                world.lose_endpoint(ep::ECHO);
                udp(web(61, port::ECHO_UDP), b"two")
            },
            sent(moved, to_pod),
        ),
        Row::new("a group's MAC", at(tcp(web(62, port::HTTP), SYN, b""), 0, 3), pass(&[("not_ours", 1)])),
    ]
}
