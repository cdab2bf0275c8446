//! Fragments of datagrams and segments.

use super::{
    Row,
    begin::NEW,
    checks::{PORT_UNREACHABLE, TIME_EXCEEDED, expect, part_to_pod, told, too_big},
    dropped, on, pass, sent,
};
use crate::{
    cast::{Cast, ep, narrow_mtu, port},
    packets::{ACK, Ends, L3, at, fragment, ip, look, may_fragment, tcp, udp, with_ip, with_len, with_ttl},
    world::{Role, World, everywhere},
};

const ON: &[(&str, u64)] = &[("forwarded", 1)];

/// Where the fragmentation field of an IPv6 fragment is.
const OFFSET6: usize = L3 + 42;

pub fn rows(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let web = move |dport| Ends::new(c.client, 90, c.web, dport);
    let whole = may_fragment(udp(web(port::ECHO_UDP), &[0x3c; 1001]));
    let part = {
        let whole = whole.clone();
        move |from, to| fragment(&whole, from, to)
    };
    // Behind those parts that went before.
    let behind = {
        let part = part.clone();
        move |before: &'static [(usize, usize)], from, to| {
            let part = part.clone();
            move |world: &mut World| {
                for &(from, to) in before {
                    world.uplink(&part(from, to));
                }
                part(from, to)
            }
        }
    };
    let overlap = || dropped(&[("fragment_overlap", 1)]);
    let early = |counted: &'static str| dropped(&[(counted, 1)]);
    let segment = may_fragment(tcp(web(port::HTTP), ACK, &[0x42; 500]));
    let mut rows = vec![
        Row::new("the first part goes like any packet", part(0, 400), sent(NEW, part_to_pod)),
        Row::new("the first part of a segment", fragment(&segment, 0, 200), sent(NEW, part_to_pod_tcp)),
        Row::made("the middle follows", behind(&[(0, 400)], 400, 800), sent(ON, part_to_pod)),
        Row::made("the end follows, of odd length", behind(&[(0, 400), (400, 800)], 800, 1009), sent(ON, part_to_pod)),
        Row::made("the end before the middle", behind(&[(0, 400)], 800, 1009), sent(ON, part_to_pod)),
        Row::made("the middle after the end", behind(&[(0, 400), (800, 1009)], 400, 800), sent(ON, part_to_pod)),
        Row::made("the middle once more", behind(&[(0, 400), (400, 800)], 400, 800), overlap()),
        Row::made("the first part once more", behind(&[(0, 400)], 0, 400), overlap()),
        Row::made("overlaps what came before it", behind(&[(0, 400)], 392, 800), overlap()),
        Row::made("overlaps what came behind it", behind(&[(0, 400), (800, 1009)], 400, 808), overlap()),
        Row::made("lies within another", behind(&[(0, 400)], 96, 200), overlap()),
        Row::made("covers others", behind(&[(0, 400), (480, 560)], 400, 800), overlap()),
        Row::made("an overlap ends the datagram", behind(&[(0, 400), (392, 800)], 800, 1009), overlap()),
        Row::made(
            "the first part of the next datagram with that identification",
            behind(&[(0, 400), (800, 1009), (400, 800)], 0, 400),
            sent(ON, part_to_pod),
        ),
        Row::made(
            "the end once more, of a whole datagram",
            behind(&[(0, 400), (400, 800), (800, 1009)], 800, 1009),
            overlap(),
        ),
        Row::made(
            "the middle when its datagram's time is over",
            {
                let part = part.clone();
                move |world| {
                    // 30 seconds of one tick each.
                    world.configure(|config| config.hz = 1);
                    world.uplink(&part(0, 400));
                    std::thread::sleep(std::time::Duration::from_millis(400));
                    part(400, 800)
                }
            },
            early("fragment"),
        )
        .xdp(pass(&[("fragment_tc", 1)])),
        Row::made(
            "the first part to an endpoint that is gone moves on",
            {
                let part = part.clone();
                move |world| {
                    world.uplink(&udp(web(port::ECHO_UDP), b"before"));
                    world.lose_endpoint(ep::ECHO);
                    part(0, 400)
                }
            },
            sent(&[("flow_created", 1), ("flow_moved", 1), ("forwarded", 1)], part_to_pod),
        ),
        Row::new("the middle before the first part", part(400, 800), early("fragment"))
            .xdp(pass(&[("fragment_tc", 1)])),
        Row::new("the end before the first part", part(800, 1009), early("fragment")).xdp(pass(&[("fragment_tc", 1)])),
        Row::made(
            "the middle of another datagram",
            {
                let (part, whole) = (part.clone(), whole.clone());
                move |world| {
                    world.uplink(&part(0, 400));
                    let other = fragment(&whole, 400, 800);
                    if c.v6 { at(other, OFFSET6 + 5, 1) } else { with_ip(other, |ip| ip[5] = 1) }
                }
            },
            early("fragment"),
        )
        .xdp(pass(&[("fragment_tc", 1)])),
        Row::new(
            "the middle of a stranger's",
            fragment(&may_fragment(udp(Ends::new(c.stranger, 9, c.web, port::ECHO_UDP), &[0; 800])), 80, 160),
            early("stranger"),
        )
        .xdp(pass(&[("fragment_tc", 1)])),
        Row::new(
            "a stranger's first part",
            fragment(&may_fragment(udp(Ends::new(c.stranger, 9, c.web, port::ECHO_UDP), &[0; 800])), 0, 160),
            early("stranger"),
        ),
        Row::new(
            "the middle of what is not ours",
            fragment(&may_fragment(udp(Ends::new(c.client, 9, c.away, 9), &[0; 800])), 80, 160),
            pass(&[("unparsed", 1)]),
        )
        .xdp(pass(&[("fragment_tc", 1)])),
        Row::new(
            "the first part of what is not ours",
            fragment(&may_fragment(udp(Ends::new(c.client, 9, c.away, 9), &[0; 800])), 0, 160),
            pass(&[("not_ours", 1)]),
        ),
        Row::new(
            "the first part to an unknown port",
            fragment(&may_fragment(udp(web(9999), &[0; 800])), 0, 160),
            sent(&[("unknown_port", 1)], told(PORT_UNREACHABLE)),
        ),
        Row::new(
            "the first part at its last hop",
            with_ttl(part(0, 400), 1),
            sent(&[("ttl_exceeded", 1)], told(TIME_EXCEEDED)),
        ),
        Row::made(
            "a later part at its last hop",
            {
                let part = part.clone();
                move |world| {
                    world.uplink(&part(0, 400));
                    with_ttl(part(400, 800), 1)
                }
            },
            dropped(&[("ttl_exceeded", 1)]),
        ),
    ];
    rows.extend(odd(cast));
    rows.extend(back(cast));
    rows.extend(of_this_node(cast));
    rows
}

/// Parts of datagrams to this node's own sockets, and of theirs: the stack cuts them before they pass the egress.
fn of_this_node(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let request = may_fragment(udp(Ends::new(c.client, 93, c.web, port::LOCAL_UDP), &[0x11; 900]));
    let answer = may_fragment(udp(Ends::new(c.own, 6443, c.client, 93), &[0x22; 900]));
    let to = |src, sport, dst, dport| {
        move |case: &super::Case<'_>| {
            let (old, new) = (look(case.before)?, look(&case.after.frame)?);
            expect((new.src, new.dst, new.ttl) == (src, dst, old.ttl), "addresses and TTL", &new)?;
            let head = if old.fragment.is_some_and(|(offset, _)| offset == 0) { 8 } else { 0 };
            expect(head == 0 || (new.sport, new.dport) == (sport, dport), "ports", &new)?;
            expect(
                new.kept == old.kept && new.payload[head..] == old.payload[head..] && new.len == old.len,
                "content",
                &new,
            )
        }
    };
    let up = to(c.client, 93, c.own, 6443);
    let down = to(c.web, port::LOCAL_UDP, c.client, 93);
    let (there, part) = (request.clone(), request.clone());
    let (begun, first, later) = (request.clone(), answer.clone(), answer);
    vec![
        Row::new(
            "the first part to this node",
            fragment(&request, 0, 400),
            on(&[("flow_created", 1), ("forwarded", 1), ("local", 1)], up),
        ),
        Row::made(
            "a later part to this node",
            move |world| {
                world.uplink(&fragment(&there, 0, 400));
                fragment(&part, 400, 908)
            },
            on(&[("forwarded", 1), ("local", 1)], up),
        ),
        Row::made(
            "the first part of this node's answer",
            move |world| {
                world.uplink(&begun);
                fragment(&first, 0, 400)
            },
            on(&[("replied", 1)], down),
        )
        .at(Role::Egress),
        Row::made(
            "a later part of this node's answer",
            move |world| {
                world.uplink(&request);
                world.run(Role::Egress, &fragment(&later, 0, 400));
                fragment(&later, 400, 908)
            },
            on(&[("replied", 1)], down),
        )
        .at(Role::Egress),
    ]
}

/// What the first part of a segment became: its header is longer than a datagram's.
fn part_to_pod_tcp(case: &super::Case<'_>) -> Result<(), String> {
    let (old, new) = (look(case.before)?, look(&case.after.frame)?);
    expect(new.src == case.cast.own && new.dst == case.cast.pod && new.dport == 8080, "addresses", &new)?;
    expect(new.kept == old.kept && new.len == old.len && new.ttl == 63, "header", &new)?;
    expect(new.payload[4..16] == old.payload[4..16] && new.payload[18..] == old.payload[18..], "content", &new)
}

/// What no honest sender makes, and ways that are too narrow.
fn odd(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let web = move |dport| Ends::new(c.client, 91, c.web, dport);
    let whole = may_fragment(udp(web(port::ECHO_UDP), &[0x3c; 1001]));
    let malformed = || dropped(&[("malformed", 1)]);
    let foreign = may_fragment(ip(c.client, c.web, 132, &[0; 200]));
    let short = may_fragment(ip(c.client, c.web, 6, &[0; 200]));
    let head = if c.v6 { 8 } else { 0 };
    let big = [narrow_mtu(&crate::cast::V4), narrow_mtu(&crate::cast::V6)];
    let narrow = usize::from(narrow_mtu(cast)) / 8 * 8;
    let long = udp(web(port::NARROW_UDP), &vec![1; 3000]);
    let mut rows = vec![
        Row::new(
            "a part that is no multiple of eight bytes",
            with_len(fragment(&whole, 0, 400), 397 + head),
            malformed(),
        ),
        Row::new("a first part without its whole transport header", fragment(&short, 0, 16), malformed()),
        Row::new("a first part of a tiny datagram", with_len(fragment(&whole, 0, 400), head), malformed()),
        Row::new(
            "a first part of an unknown protocol",
            fragment(&foreign, 0, 80),
            sent(&[("unknown_protocol", 1)], |_| Ok(())),
        ),
        Row::new("a later part of an unknown protocol", fragment(&foreign, 80, 160), dropped(&[("fragment", 1)]))
            .xdp(pass(&[("fragment_tc", 1)])),
        Row::new("a part, from the cluster side", fragment(&whole, 0, 400), pass(&[("not_ours", 1)])).at(Role::Cluster),
        Row::new("a later part, from the cluster side", fragment(&whole, 400, 800), pass(&[("not_ours", 1)]))
            .xdp(pass(&[("fragment_tc", 1)]))
            .at(Role::Cluster),
    ];
    let beyond = {
        let later = fragment(&whole, 800, 1009);
        if c.v6 {
            at(at(later, OFFSET6, 0xff), OFFSET6 + 1, 0xf8)
        } else {
            with_ip(later, |ip| (ip[6], ip[7]) = (0x1f, 0xff))
        }
    };
    rows.push(Row::new("a part beyond what a datagram can be", beyond, malformed()));
    // IPv6 is never fragmented on the way, IPv4 not with "don't fragment".
    let first = fragment(&long, 0, narrow);
    let first = if c.v6 { first } else { with_ip(first, |ip| ip[6] |= 0x40) };
    let refused = Row::new(
        "a first part bigger than the way out",
        first,
        sent(&[("flow_created", 1), ("too_big", 1)], told(too_big(big))),
    )
    .xdp(pass(&[("flow_created", 1), ("too_big_tc", 1)]));
    rows.push(refused);
    if c.v6 {
        let mut atomic = fragment(&udp(web(port::ECHO_UDP), b"all of it"), 0, 17);
        rows.push(Row::new("a datagram in one fragment", atomic.clone(), sent(NEW, part_to_pod)));
        atomic.truncate(L3 + 40 + 7);
        rows.push(Row::new("half a fragment header", with_len(atomic, 7), malformed()));
    }
    rows
}

/// A datagram's parts on their way back.
fn back(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let answer = move |world: &mut World| {
        let request = udp(Ends::new(c.client, 92, c.web, port::ECHO_UDP), b"?");
        may_fragment(udp(super::replies::answered(world, &request), &[0x77; 700]))
    };
    let check = move |case: &super::Case<'_>| {
        let (old, new) = (look(case.before)?, look(&case.after.frame)?);
        expect(new.src == c.web && new.dst == c.client && new.ttl == 63, "addresses", &new)?;
        let head = if old.sport == 0 { 0 } else { 8 };
        expect(head == 0 || (new.sport, new.dport) == (port::ECHO_UDP, 92), "ports", &new)?;
        expect(
            new.kept == old.kept && new.payload[head..] == old.payload[head..] && new.len == old.len,
            "content",
            &new,
        )
    };
    vec![
        Row::made(
            "the first part of an answer",
            move |world| fragment(&answer(world), 0, 304),
            sent(&[("replied", 1)], check),
        )
        .at(Role::Cluster),
        Row::made(
            "a later part of an answer",
            move |world| {
                let answer = answer(world);
                world.cluster(&fragment(&answer, 0, 304));
                fragment(&answer, 304, 708)
            },
            sent(&[("replied", 1)], check),
        )
        .at(Role::Cluster),
    ]
}

/// 64 KiB, in several orders behind the first part: what arrives is put together as its receiver would.
#[test]
fn datagrams_arrive_whole_in_whatever_order_their_parts_come() {
    everywhere(|world| {
        let c = world.cast;
        let data: Vec<u8> = (0..65_000u32).map(|i| (i * i % 251) as u8).collect();
        for (round, step) in [1, 7, 43, 52].into_iter().enumerate() {
            let sport = 200 + round as u16;
            let whole = may_fragment(udp(Ends::new(c.client, sport, c.web, port::ECHO_UDP), &data));
            let size = if c.v6 { 1232 } else { 1480 };
            let (end, parts) = (data.len() + 8, (data.len() + 8).div_ceil(size));
            let mut arrived = Vec::new();
            let mut order: Vec<usize> = (0..parts).collect();
            order.sort_by_key(|i| i * step % 61);
            for i in order {
                let part = fragment(&whole, i * size, end.min((i + 1) * size));
                let part =
                    if c.v6 { at(part, OFFSET6 + 2, round as u8) } else { with_ip(part, |ip| ip[4] = round as u8) };
                let outcome = world.uplink(&part);
                assert!(outcome.counted.contains_key("forwarded"), "part {i}, {:?}: {:?}", world.tier, outcome.counted);
                arrived.push(outcome.frame);
            }
            let seen = crate::packets::reassemble(&arrived).and_then(|frame| look(&frame)).expect("a whole datagram");
            assert!(seen.payload == data && seen.dst == c.pod, "step {step}, {:?}", world.tier);
        }
    });
}
