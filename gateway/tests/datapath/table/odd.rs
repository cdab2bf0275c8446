//! What nobody should forward, and what is not the gateway's business.

use super::{
    Row,
    checks::{HOST_UNREACHABLE, PROHIBITED, PROTOCOL_UNREACHABLE, TIME_EXCEEDED, told},
    dropped, pass, sent,
};
use crate::{
    cast::{CLIENT_MAC, Cast, GATEWAY_MAC, port},
    packets::{Ends, L3, SYN, at, ip, tcp, udp, with_ip, with_len, with_ttl},
    world::Role,
};

pub fn rows(cast: &Cast) -> Vec<Row> {
    let mut rows = malformed(cast);
    rows.extend(if cast.v6 { headers6(cast) } else { headers4(cast) });
    rows.extend(protocols(cast));
    rows.extend(links(cast));
    rows
}

/// The same oddity to a Service, where it is dropped, and to somebody else, who gets it.
fn twice(cast: &Cast, name: &str, reason: &'static str, make: impl Fn(Ends) -> Vec<u8>) -> [Row; 3] {
    let c = *cast;
    let to = |dst| make(Ends::new(c.client, 50, dst, port::HTTP));
    [
        Row::new(name, to(c.web), dropped(&[(reason, 1)])),
        Row::new(
            format!("{name}, of a stranger"),
            make(Ends::new(c.stranger, 50, c.web, port::HTTP)),
            dropped(&[("stranger", 1)]),
        ),
        Row::new(format!("{name}, to somebody else"), to(c.away), pass(&[("unparsed", 1)])),
    ]
}

fn malformed(cast: &Cast) -> Vec<Row> {
    let (c, l4) = (*cast, cast.l4());
    let segment = |ends| tcp(ends, SYN, b"0123456789");
    let datagram = |ends| udp(ends, b"abcd");
    let cut = |mut frame: Vec<u8>, by: usize| {
        frame.truncate(frame.len() - by);
        frame
    };
    let mut rows = Vec::new();
    rows.extend(twice(cast, "longer than its frame", "malformed", move |ends| cut(segment(ends), 1)));
    rows.extend(twice(cast, "much longer than its frame", "malformed", move |ends| with_len(segment(ends), 1400)));
    rows.extend(twice(cast, "TCP offset below 5", "malformed", move |ends| at(segment(ends), l4 + 12, 0x40)));
    rows.extend(twice(cast, "TCP offset of 0", "malformed", move |ends| at(segment(ends), l4 + 12, 0)));
    rows.extend(twice(cast, "a TCP header longer than its packet", "malformed", move |ends| {
        at(segment(ends), l4 + 12, 0xf0)
    }));
    rows.extend(twice(cast, "a TCP header cut short", "malformed", move |ends| with_len(segment(ends), 19)));
    rows.extend(twice(cast, "a UDP header cut short", "malformed", move |ends| with_len(datagram(ends), 7)));
    rows.extend(twice(cast, "UDP longer than its packet", "malformed", move |ends| at(datagram(ends), l4 + 5, 13)));
    rows.extend(twice(cast, "UDP shorter than its header", "malformed", move |ends| at(datagram(ends), l4 + 5, 7)));
    rows.extend(twice(cast, "UDP without a length", "malformed", move |ends| at(datagram(ends), l4 + 5, 0)));
    rows.extend(twice(cast, "nothing behind its IP header", "malformed", move |ends| with_len(segment(ends), 0)));
    rows.extend(twice(cast, "another version than its EtherType says", "malformed", move |ends| {
        with_ip(segment(ends), |ip| ip[0] = if c.v6 { 0x45 } else { 0x65 })
    }));
    rows
}

fn headers4(cast: &Cast) -> Vec<Row> {
    let segment = |ends| tcp(ends, SYN, b"0123456789");
    let with_options = |ends, options: &[u8]| {
        let frame = segment(ends);
        let words = (options.len() / 4) as u8;
        let frame = [&frame[..L3 + 20], options, &frame[L3 + 20..]].concat();
        with_ip(at(frame, L3, 0x45 + words), |ip| ip[3] += words * 4)
    };
    let mut rows = Vec::new();
    for ihl in [0, 1, 4] {
        let name = format!("a header of {ihl} words");
        rows.extend(twice(cast, &name, "malformed", move |ends| {
            let frame = tcp(ends, SYN, b"0123456789");
            at(frame, L3, 0x40 | ihl)
        }));
    }
    let mut short = tcp(Ends::new(cast.client, 1, cast.web, port::HTTP), SYN, b"");
    short.truncate(L3 + 19);
    rows.push(Row::new("a frame that ends in its header", short, pass(&[("unparsed", 1)])).short());
    rows.extend(twice(cast, "shorter than its header", "malformed", |ends| {
        with_ip(tcp(ends, SYN, b""), |ip| (ip[2], ip[3]) = (0, 19))
    }));
    rows.extend(twice(cast, "no length at all", "malformed", |ends| {
        with_ip(tcp(ends, SYN, b""), |ip| (ip[2], ip[3]) = (0, 0))
    }));
    rows.extend(twice(cast, "an option", "ip_options", move |ends| with_options(ends, &[1, 1, 1, 0])));
    rows.extend(twice(cast, "router alert", "ip_options", move |ends| with_options(ends, &[148, 4, 0, 0])));
    let record = {
        let mut option = [0; 40];
        (option[0], option[1], option[2]) = (7, 39, 4);
        option
    };
    rows.extend(twice(cast, "as many options as there can be", "ip_options", move |ends| with_options(ends, &record)));
    rows.extend(twice(cast, "a header longer than its packet", "ip_options", |ends| {
        at(with_len(tcp(ends, SYN, b""), 10), L3, 0x4f)
    }));
    rows
}

fn headers6(cast: &Cast) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, kind) in [
        ("hop-by-hop options", 0),
        ("a routing header", 43),
        ("ESP", 50),
        ("an authentication header", 51),
        ("destination options", 60),
        ("a mobility header", 135),
        ("a HIP header", 139),
        ("a shim6 header", 140),
    ] {
        rows.extend(twice(cast, name, "ip_options", move |ends| {
            let frame = tcp(ends, SYN, b"0123456789");
            let header = [6, 0, 1, 4, 0, 0, 0, 0];
            let frame = [&frame[..L3 + 40], &header, &frame[L3 + 40..]].concat();
            let len = frame.len() - L3 - 40;
            at(with_len(frame, len), L3 + 6, kind)
        }));
    }
    rows.extend(twice(cast, "no next header", "ip_options", |ends| at(with_len(tcp(ends, SYN, b""), 0), L3 + 6, 59)));
    let mut short = tcp(Ends::new(cast.client, 1, cast.web, port::HTTP), SYN, b"");
    short.truncate(L3 + 39);
    rows.push(Row::new("a frame that ends in its header", short, pass(&[("unparsed", 1)])).short());
    rows
}

fn protocols(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let mut rows = Vec::new();
    for (name, proto) in [("SCTP", 132), ("GRE", 47), ("UDP-Lite", 136), ("DCCP", 33), ("an unassigned protocol", 200)]
    {
        let from = |src, dst| ip(src, dst, proto, &[0; 21]);
        let refused = |reason, what| sent(&[(reason, 1)], told(what));
        rows.extend([
            Row::new(
                format!("{name} to a VIP"),
                from(c.client, c.web),
                refused("unknown_protocol", PROTOCOL_UNREACHABLE),
            ),
            Row::new(
                format!("{name} to an unused address"),
                from(c.client, c.unused),
                refused("unknown_vip", HOST_UNREACHABLE),
            ),
            Row::new(format!("{name} of a guest"), from(c.guest, c.web), refused("view_denied", PROHIBITED)),
            Row::new(
                format!("{name} at its last hop"),
                with_ttl(from(c.client, c.web), 1),
                refused("ttl_exceeded", TIME_EXCEEDED),
            ),
            Row::new(format!("{name} of a stranger"), from(c.stranger, c.web), dropped(&[("stranger", 1)])),
            Row::new(format!("{name} to the node"), from(c.client, c.own), pass(&[("not_ours", 1)])),
            Row::new(format!("{name} from the cluster side"), from(c.pod, c.own), pass(&[("not_ours", 1)]))
                .at(Role::Cluster),
        ]);
    }
    rows
}

/// What is in front of IP, and what is not IP.
fn links(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    let of = |kind: [u8; 2]| {
        let mut frame = [&[0xff; 6][..], &CLIENT_MAC].concat();
        frame.extend(kind);
        frame.resize(64, 0);
        frame
    };
    let other = || pass(&[("not_ours", 1)]);
    let mut rows = vec![
        Row::new("not a Service address", tcp(Ends::new(c.client, 51, c.away, 80), SYN, b"data"), other()),
        Row::new("the node itself", tcp(Ends::new(c.client, 51, c.own, 22), SYN, b""), other()),
        Row::new("a pod's own address", udp(Ends::new(c.client, 51, c.pod, 7007), b""), other()),
        Row::new(
            "from the gateway's own address",
            udp(Ends::new(c.own, 51, c.web, port::ECHO_UDP), b""),
            dropped(&[("stranger", 1)]),
        ),
    ];
    for (name, kind) in [
        ("ARP", [8, 6]),
        ("LLDP", [0x88, 0xcc]),
        ("PPPoE", [0x88, 0x64]),
        ("MPLS", [0x88, 0x47]),
        ("a length", [0, 46]),
    ] {
        rows.push(Row::new(name, of(kind), other()));
        let mut ours = of(kind);
        ours[..6].copy_from_slice(&GATEWAY_MAC);
        rows.push(Row::new(format!("{name} to the gateway"), ours, other()));
    }
    rows
}
