//! Every row of "what happens to a packet", in XDP and in TC from the same table.

use gateway_common::maps::config;

use crate::{
    packets::{ACK, Ends, L3, L4, RST, SYN, Seen, ip, look, partial, tcp, udp, with_ip, with_ttl},
    world::{
        Action, CLIENT, CLIENT_MAC, GATEWAY_MAC, GUEST, OWN, POD, POD_MAC, STRANGER, Tier, WEB, World, hop, port, save,
        skip,
    },
};

type Check = fn(&[u8], &[u8]) -> Result<(), String>;

/// What one tier does with a row's frame.
struct Expect {
    action: Action,
    counted: &'static [(&'static str, u64)],
    check: Check,
}

struct Row {
    name: &'static str,
    program: fn(Tier) -> &'static str,
    prepare: fn(&mut World),
    frame: Vec<u8>,
    xdp: Expect,
    tc: Expect,
}

fn uplink(tier: Tier) -> &'static str {
    if tier == Tier::Xdp { "xdp_uplink" } else { "tc_uplink" }
}

fn cluster(tier: Tier) -> &'static str {
    if tier == Tier::Xdp { "xdp_cluster" } else { "tc_cluster" }
}

fn same(before: &[u8], after: &[u8]) -> Result<(), String> {
    if before == after { Ok(()) } else { Err("the frame was changed".into()) }
}

fn anything(_: &[u8], _: &[u8]) -> Result<(), String> {
    Ok(())
}

fn nothing(_: &mut World) {}

const fn pass(counted: &'static [(&'static str, u64)]) -> Expect {
    Expect { action: Action::Pass, counted, check: same }
}

const fn dropped(counted: &'static [(&'static str, u64)]) -> Expect {
    Expect { action: Action::Drop, counted, check: anything }
}

const fn sent(counted: &'static [(&'static str, u64)], check: Check) -> Expect {
    Expect { action: Action::Redirect, counted, check }
}

/// The same in both tiers.
macro_rules! row {
    ($name:literal, $frame:expr, $expect:expr) => {
        row!($name, uplink, nothing, $frame, $expect, $expect)
    };
    ($name:literal, $prepare:expr, $frame:expr, $expect:expr) => {
        row!($name, uplink, $prepare, $frame, $expect, $expect)
    };
    ($name:literal, $program:expr, $prepare:expr, $frame:expr, $xdp:expr, $tc:expr) => {
        Row { name: $name, program: $program, prepare: $prepare, frame: $frame, xdp: $xdp, tc: $tc }
    };
}

fn expect(seen: bool, what: &str, of: &Seen) -> Result<(), String> {
    if seen { Ok(()) } else { Err(format!("{what}: {of:?}")) }
}

/// Translated towards the pod, from the gateway's address.
fn to_pod(before: &[u8], after: &[u8]) -> Result<(), String> {
    let (old, new) = (look(before)?, look(after)?);
    expect(new.src == OWN && new.dst == POD, "addresses", &new)?;
    expect((10_000..30_000).contains(&new.sport) && new.dport >= 7007, "ports", &new)?;
    expect(new.ttl == old.ttl - 1, "TTL", &new)?;
    expect(new.payload == old.payload && new.flags == old.flags && new.unchecked == old.unchecked, "content", &new)?;
    expect(before.len() == after.len(), "length", &new)
}

/// As [`to_pod`], with the next hop's MAC: what XDP writes itself.
fn to_pod_mac(before: &[u8], after: &[u8]) -> Result<(), String> {
    to_pod(before, after)?;
    let new = look(after)?;
    expect(new.mac_dst == POD_MAC && new.mac_src == GATEWAY_MAC, "MACs", &new)
}

fn icmp(before: &[u8], after: &[u8], from: [u8; 4], kind: u8, code: u8) -> Result<Seen, String> {
    let (old, new) = (look_ip(before), look(after)?);
    expect(new.proto == 1 && new.flags == kind && new.code == code, "type and code", &new)?;
    expect(new.src == from && new.dst == old.0, "addresses", &new)?;
    expect(new.mac_dst == CLIENT_MAC && new.mac_src == GATEWAY_MAC, "MACs", &new)?;
    let total = usize::from(u16::from_be_bytes([before[L3 + 2], before[L3 + 3]]));
    expect(new.payload == before[L3..L3 + total.min(548)], "the quote is the packet itself", &new)?;
    expect(after.len() == L4 + 8 + total.min(548), "length", &new)?;
    Ok(new)
}

fn look_ip(frame: &[u8]) -> ([u8; 4], [u8; 4]) {
    (frame[26..30].try_into().expect("four"), frame[30..34].try_into().expect("four"))
}

fn port_unreachable(before: &[u8], after: &[u8]) -> Result<(), String> {
    icmp(before, after, look_ip(before).1, 3, 3).map(drop)
}
fn host_unreachable(before: &[u8], after: &[u8]) -> Result<(), String> {
    icmp(before, after, OWN, 3, 1).map(drop)
}
fn prohibited(before: &[u8], after: &[u8]) -> Result<(), String> {
    icmp(before, after, OWN, 3, 13).map(drop)
}
fn protocol_unreachable(before: &[u8], after: &[u8]) -> Result<(), String> {
    icmp(before, after, OWN, 3, 2).map(drop)
}
fn time_exceeded(before: &[u8], after: &[u8]) -> Result<(), String> {
    icmp(before, after, OWN, 11, 0).map(drop)
}
fn too_big(before: &[u8], after: &[u8]) -> Result<(), String> {
    let seen = icmp(before, after, look_ip(before).1, 3, 4)?;
    expect(seen.mtu == 600, "MTU", &seen)
}

/// A part of a datagram to [`port::ECHO_UDP`]: 8 bytes of header and 8 of 40 bytes of data.
fn first_fragment() -> Vec<u8> {
    let mut frame = with_ip(udp(web(71, port::ECHO_UDP), b"8 bytes!"), |ip| (ip[4], ip[5], ip[6]) = (1, 2, 0x20));
    frame[L4 + 4..L4 + 6].copy_from_slice(&48u16.to_be_bytes());
    frame
}

/// Another part, from that many units of 8 bytes on.
fn later_fragment(offset: u8) -> Vec<u8> {
    with_ip(ip(CLIENT, WEB, 17, b"the middle: 16 b"), |ip| (ip[4], ip[5], ip[6], ip[7]) = (1, 2, 0x20, offset))
}

/// Addressed to the pod; what is behind the IP header is the caller's.
fn to_pod_part(before: &[u8], after: &[u8]) -> Result<(), String> {
    let (src, dst) = look_ip(after);
    if (src, dst) != (OWN, POD) {
        return Err(format!("addresses: {src:?} {dst:?}"));
    }
    let header = etherparse::Ipv4Header::from_slice(&after[L3..]).map_err(|e| e.to_string())?.0;
    if header.header_checksum != header.calc_header_checksum() || header.time_to_live != before[L3 + 8] - 1 {
        return Err(format!("header: {header:?}"));
    }
    if after[L3 + 4..L3 + 8] != before[L3 + 4..L3 + 8] || after.len() != before.len() {
        return Err("identification, flags, offset or length".into());
    }
    // The first one has ports and checksum before its data, later ones nothing but data.
    let data = if header.fragment_offset.value() == 0 { L4 + 8 } else { L4 };
    if after[data..] == before[data..] { Ok(()) } else { Err("data".into()) }
}

/// A frame with 802.1Q tags behind its MACs.
fn tagged_frame(frame: &[u8], tags: &[[u8; 2]]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    for [high, low] in tags {
        out.extend([0x81, 0, *high, *low]);
    }
    out.extend_from_slice(&frame[12..]);
    out
}

/// A connection to the web Service, tagged.
fn with_tags(tags: &[[u8; 2]]) -> Vec<u8> {
    tagged_frame(&tcp(web(80, port::HTTP), SYN, b"data"), tags)
}

/// Sent to the pod, whose next hop has no tags.
fn untagged_to_pod(before: &[u8], after: &[u8]) -> Result<(), String> {
    let tags = before.len() - after.len();
    let bare = [&before[..12], &before[12 + tags..]].concat();
    to_pod_mac(&bare, after)
}

/// Port unreachable behind the tags that the packet had.
fn tagged_error(before: &[u8], after: &[u8]) -> Result<(), String> {
    if after[12..20] != before[12..20] {
        return Err(format!("tags: {:?}", &after[12..20]));
    }
    let bare = |frame: &[u8]| [&frame[..12], &frame[20..]].concat();
    port_unreachable(&bare(before), &bare(after))
}

/// An echo request to the VIP.
fn ping() -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC);
    let mut frame = Vec::new();
    builder.ipv4(CLIENT, WEB, 64).icmpv4_echo_request(7, 1).write(&mut frame, b"an odd number").expect("a frame");
    frame
}

/// The request turned round, under good checksums.
fn echoed(before: &[u8], after: &[u8]) -> Result<(), String> {
    let (old, new) = (look(before)?, look(after)?);
    expect(new.proto == 1 && new.flags == 0 && new.code == 0, "type and code", &new)?;
    expect(new.src == old.dst && new.dst == old.src && new.payload == old.payload, "addresses and data", &new)?;
    expect(new.mac_dst == CLIENT_MAC && new.mac_src == GATEWAY_MAC && new.ttl == 64, "MACs and TTL", &new)
}

/// The VIP has an endpoint.
fn serving(world: &mut World) {
    world.set_vip_endpoints(WEB, 1);
}

/// Destination translated, source and TTL as they were: up this node's own stack.
fn to_local(before: &[u8], after: &[u8]) -> Result<(), String> {
    let (old, new) = (look(before)?, look(after)?);
    expect(new.src == CLIENT && new.sport == old.sport, "source", &new)?;
    expect(new.dst == OWN && new.dport == 6443, "destination", &new)?;
    expect(new.ttl == old.ttl && new.payload == old.payload, "content", &new)
}

fn to_pod_routed(before: &[u8], after: &[u8]) -> Result<(), String> {
    let (old, new) = (look(before)?, look(after)?);
    expect(new.src == CLIENT && new.sport == old.sport && new.dst == POD && new.dport == 8080, "ends", &new)?;
    expect(new.ttl == 63, "TTL", &new)
}

fn reset(before: &[u8], after: &[u8]) -> Result<(), String> {
    let (old, new) = (look(before)?, look(after)?);
    expect(new.src == old.dst && new.dst == old.src && new.sport == old.dport && new.dport == old.sport, "ends", &new)?;
    expect(new.flags == RST && new.seq == old.ack && after.len() == 54, "a reset that acknowledges nothing", &new)?;
    expect(new.mac_dst == CLIENT_MAC && new.mac_src == GATEWAY_MAC, "MACs", &new)
}

fn web(sport: u16, dport: u16) -> Ends {
    Ends::new(CLIENT, sport, WEB, dport)
}

fn set_flags(world: &mut World, flags: u32) {
    let mut config = World::config();
    config.flags = flags;
    world.set_config(config);
}

/// A flow to a pod that has gone since.
fn lose_endpoint(world: &mut World, frame: &[u8], index: u32) {
    assert_eq!(world.uplink(frame).action, Action::Redirect);
    let mut endpoint = world.endpoint(index);
    endpoint.generation += 1;
    world.set_endpoint(index, endpoint);
}

const NEW: &[(&str, u64)] = &[("flow_created", 1), ("forwarded", 1)];

fn rows() -> Vec<Row> {
    let xdp_tc = |xdp: Check, tc: Check| (sent(NEW, xdp), sent(NEW, tc));
    let mut rows = Vec::new();

    let (xdp, tc) = xdp_tc(to_pod_mac, to_pod);
    rows.push(row!("TCP SYN to a Service", uplink, nothing, tcp(web(1, port::HTTP), SYN, b""), xdp, tc));
    let (xdp, tc) = xdp_tc(to_pod_mac, to_pod);
    let odd = tcp(web(2, port::HTTP), ACK, &[7; 1233]);
    rows.push(row!("TCP data of odd length begins a flow too", uplink, nothing, odd, xdp, tc));
    let (xdp, tc) = xdp_tc(to_pod_mac, to_pod);
    rows.push(row!("UDP to a Service", uplink, nothing, udp(web(3, port::ECHO_UDP), b"hello"), xdp, tc));
    let (xdp, tc) = xdp_tc(to_pod_mac, to_pod);
    let mut unchecked = udp(web(4, port::ECHO_UDP), b"hello");
    unchecked[L4 + 6..L4 + 8].fill(0);
    rows.push(row!("UDP without a checksum stays without", uplink, nothing, unchecked, xdp, tc));
    let (xdp, tc) = xdp_tc(to_pod_mac, to_pod);
    let mut padded = udp(web(5, port::ECHO_UDP), b"x");
    padded.resize(60, 0xee);
    rows.push(row!("Ethernet padding is nobody's data", uplink, nothing, padded, xdp, tc));
    let (xdp, tc) = xdp_tc(to_pod_mac, to_pod);
    rows.push(row!("an empty datagram", uplink, nothing, udp(web(6, port::ECHO_UDP), b""), xdp, tc));

    rows.push(row!("no endpoint", tcp(web(10, port::EMPTY), SYN, b""), sent(&[("no_endpoint", 1)], port_unreachable)));
    rows.push(row!("unknown port", tcp(web(11, 9999), SYN, b""), sent(&[("unknown_port", 1)], port_unreachable)));
    rows.push(row!(
        "unknown port, a datagram longer than what is quoted",
        udp(web(11, 9999), &[5; 1001]),
        sent(&[("unknown_port", 1)], port_unreachable)
    ));
    rows.push(row!(
        "service CIDR but no VIP",
        udp(Ends::new(CLIENT, 12, [10, 1, 9, 9], 53), b"?"),
        sent(&[("unknown_vip", 1)], host_unreachable)
    ));
    rows.push(row!(
        "a Service the view may not see",
        tcp(Ends::new(GUEST, 13, WEB, port::HTTP), SYN, b""),
        sent(&[("view_denied", 1)], prohibited)
    ));
    rows.push(row!(
        "a view learns nothing about ports it may not see",
        tcp(Ends::new(GUEST, 13, WEB, 9999), SYN, b""),
        sent(&[("view_denied", 1)], prohibited)
    ));
    rows.push(row!(
        "a Service the view may not see, deny: drop",
        |world| set_flags(world, config::DENY_DROP),
        tcp(Ends::new(GUEST, 14, WEB, port::HTTP), SYN, b""),
        dropped(&[("view_dropped", 1)])
    ));
    let strange = Ends::new(STRANGER, 15, WEB, port::HTTP);
    rows.push(row!("a stranger", tcp(strange, SYN, b""), dropped(&[("stranger", 1)])));
    rows.push(row!(
        "a stranger, strangers: pass",
        |world| set_flags(world, config::STRANGERS_PASS),
        tcp(strange, SYN, b""),
        pass(&[("stranger_passed", 1)])
    ));
    let asks = Ends::new(STRANGER, 16, OWN, 53);
    rows.push(row!("a stranger's query", udp(asks, b"?"), dropped(&[("stranger", 1)])));
    rows.push(row!("a stranger's query over TCP", tcp(asks, SYN, b""), dropped(&[("stranger", 1)])));
    let asks = Ends::new(CLIENT, 16, OWN, 53);
    rows.push(row!("a query over TCP goes to the forwarder", tcp(asks, SYN, b""), pass(&[("not_ours", 1)])));

    let last = with_ttl(tcp(web(20, port::HTTP), SYN, b""), 1);
    rows.push(row!("TTL ends here", last, sent(&[("ttl_exceeded", 1)], time_exceeded)));
    rows.push(row!(
        "no more errors than the rate allows",
        |world| {
            let mut config = World::config();
            config.icmp_rate = 0;
            world.set_config(config);
        },
        tcp(web(21, 9999), SYN, b""),
        dropped(&[("rate_limited", 1)])
    ));

    let up: &[_] = &[("flow_created", 1), ("forwarded", 1), ("local", 1)];
    let local = || Expect { action: Action::Pass, counted: up, check: to_local };
    rows.push(row!("endpoint on this node", tcp(web(30, port::LOCAL), SYN, b"data"), local()));
    let last = with_ttl(tcp(web(31, port::LOCAL), SYN, b""), 1);
    rows.push(row!("the last hop is this node", last, local()));

    rows.push(row!(
        "next hop not resolved",
        uplink,
        nothing,
        tcp(web(40, port::UNRESOLVED), SYN, b""),
        pass(&[("flow_created", 1), ("next_hop_tc", 1)]),
        sent(NEW, to_pod)
    ));
    rows.push(row!(
        "next hop not known yet: the node's routes say",
        uplink,
        nothing,
        tcp(web(41, port::UNKNOWN_HOP), SYN, b""),
        pass(&[("flow_created", 1), ("next_hop_tc", 1)]),
        sent(NEW, to_pod)
    ));
    rows.push(row!(
        "no route",
        tcp(web(42, port::NO_ROUTE), SYN, b""),
        dropped(&[("flow_created", 1), ("no_route", 1)])
    ));
    rows.push(row!(
        "bigger than the way out",
        uplink,
        nothing,
        tcp(web(43, port::NARROW), ACK, &[1; 700]),
        pass(&[("flow_created", 1), ("too_big_tc", 1)]),
        sent(&[("flow_created", 1), ("too_big", 1)], too_big)
    ));
    rows.push(row!(
        "a checksum that somebody still has to complete",
        uplink,
        nothing,
        partial(tcp(web(44, port::HTTP), SYN, b"")),
        pass(&[("partial_checksum", 1)]),
        Expect { action: Action::Redirect, counted: NEW, check: anything }
    ));
    rows.push(row!(
        "return path routed",
        |world| set_flags(world, config::ROUTED),
        tcp(web(45, port::HTTP), SYN, b""),
        sent(NEW, to_pod_routed)
    ));
    rows.push(row!(
        "no source address",
        |world| {
            let mut config = World::config();
            config.snat4_len = 0;
            world.set_config(config);
        },
        tcp(web(46, port::HTTP), SYN, b""),
        dropped(&[("snat_exhausted", 1)])
    ));

    rows.extend(odd_rows());
    rows.extend(gone_rows());
    rows
}

/// What nobody should forward, and what is not the gateway's business.
fn odd_rows() -> Vec<Row> {
    let base = || tcp(web(50, port::HTTP), SYN, b"0123456789");
    let away = || tcp(Ends::new(CLIENT, 51, [192, 0, 2, 1], 80), SYN, b"0123456789");
    let short = |mut frame: Vec<u8>| {
        frame.truncate(50);
        frame
    };
    let at = |mut frame: Vec<u8>, index: usize, value: u8| {
        frame[index] = value;
        frame
    };
    let with_options = |frame: Vec<u8>| {
        let mut frame = frame;
        frame.splice(L4..L4, [1, 1, 1, 0]);
        with_ip(frame, |ip| {
            ip[0] = 0x46;
            ip[3] += 4;
        })
    };
    let mut arp = [[0xff; 6], CLIENT_MAC].concat();
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.resize(60, 0);
    let mut v6 = [GATEWAY_MAC, CLIENT_MAC].concat();
    v6.extend([0x86, 0xdd, 0x60]);
    v6.resize(80, 0);
    let mut tagged = base();
    tagged.splice(12..12, [0x81, 0, 0, 100]);
    let query = |end: usize, kind: u8| {
        let mut message = vec![0; end];
        message[0] = kind;
        message
    };
    let short_udp = || udp(web(52, port::ECHO_UDP), b"abcd");
    vec![
        row!("longer than its frame", short(base()), dropped(&[("malformed", 1)])),
        row!("shorter than its header", with_ip(base(), |ip| (ip[2], ip[3]) = (0, 19)), dropped(&[("malformed", 1)])),
        row!("version 6 in an IPv4 frame", with_ip(base(), |ip| ip[0] = 0x65), dropped(&[("malformed", 1)])),
        row!("IHL below 5", with_ip(base(), |ip| ip[0] = 0x44), dropped(&[("malformed", 1)])),
        row!("TCP offset below 5", at(base(), L4 + 12, 0x40), dropped(&[("malformed", 1)])),
        row!("TCP header longer than its packet", at(base(), L4 + 12, 0xf0), dropped(&[("malformed", 1)])),
        row!("a TCP header cut short", with_ip(base(), |ip| (ip[2], ip[3]) = (0, 39)), dropped(&[("malformed", 1)])),
        row!("a UDP header cut short", with_ip(short_udp(), |ip| ip[3] = 27), dropped(&[("malformed", 1)])),
        row!("UDP longer than its packet", at(short_udp(), L4 + 5, 13), dropped(&[("malformed", 1)])),
        row!("UDP shorter than its header", at(short_udp(), L4 + 5, 7), dropped(&[("malformed", 1)])),
        row!("IP options", with_options(base()), dropped(&[("ip_options", 1)])),
        row!(
            "a first fragment that is no multiple of eight bytes",
            with_ip(tcp(web(70, port::HTTP), SYN, b"odd"), |ip| ip[6] = 0x20),
            dropped(&[("malformed", 1)])
        ),
        row!(
            "a first fragment without its whole transport header",
            with_ip(ip(CLIENT, WEB, 6, &[0; 16]), |ip| ip[6] = 0x20),
            dropped(&[("malformed", 1)])
        ),
        row!(
            "a first fragment goes like any packet",
            uplink,
            nothing,
            first_fragment(),
            sent(&[("flow_created", 1), ("forwarded", 1)], to_pod_part),
            sent(&[("flow_created", 1), ("forwarded", 1)], to_pod_part)
        ),
        row!(
            "a later fragment follows its first one",
            uplink,
            |world| {
                world.run(uplink(world.tier()), &first_fragment());
            },
            later_fragment(2),
            sent(&[("forwarded", 1)], to_pod_part),
            sent(&[("forwarded", 1)], to_pod_part)
        ),
        row!(
            "a later fragment that overlaps",
            |world| {
                world.run(uplink(world.tier()), &first_fragment());
            },
            later_fragment(1),
            dropped(&[("fragment_overlap", 1)])
        ),
        row!(
            "a later fragment before its first one",
            uplink,
            nothing,
            with_ip(base(), |ip| (ip[4], ip[7]) = (77, 3)),
            pass(&[("fragment_tc", 1)]),
            dropped(&[("fragment", 1)])
        ),
        row!(
            "a stranger's fragment",
            uplink,
            nothing,
            with_ip(tcp(Ends::new(STRANGER, 1, WEB, 80), SYN, b""), |ip| ip[7] = 3),
            pass(&[("fragment_tc", 1)]),
            dropped(&[("stranger", 1)])
        ),
        row!("an echo request to a VIP with endpoints", serving, ping(), sent(&[("echo", 1)], echoed)),
        row!(
            "an echo request to a VIP without",
            ip(CLIENT, WEB, 1, &query(36, 8)),
            sent(&[("no_endpoint", 1)], host_unreachable)
        ),
        row!(
            "an echo request to no VIP",
            serving,
            ip(CLIENT, [10, 1, 8, 8], 1, &query(36, 8)),
            sent(&[("unknown_vip", 1)], host_unreachable)
        ),
        row!(
            "an echo request of a view that may not",
            serving,
            ip(GUEST, WEB, 1, &query(36, 8)),
            sent(&[("view_denied", 1)], prohibited)
        ),
        row!(
            "an echo request of a stranger",
            serving,
            ip(STRANGER, WEB, 1, &query(36, 8)),
            dropped(&[("stranger", 1)])
        ),
        row!("an echo request to the node", serving, ip(CLIENT, OWN, 1, &query(36, 8)), pass(&[("not_ours", 1)])),
        row!(
            "a timestamp request to a VIP",
            serving,
            ip(CLIENT, WEB, 1, &query(36, 13)),
            dropped(&[("icmp_ignored", 1)])
        ),
        row!("SCTP to a VIP", ip(CLIENT, WEB, 132, &[0; 20]), sent(&[("unknown_protocol", 1)], protocol_unreachable)),
        row!(
            "SCTP to the service CIDR but no VIP",
            ip(CLIENT, [10, 1, 8, 8], 132, &[0; 20]),
            sent(&[("unknown_vip", 1)], host_unreachable)
        ),
        row!("SCTP of a view that may not", ip(GUEST, WEB, 132, &[0; 20]), sent(&[("view_denied", 1)], prohibited)),
        row!("SCTP of a stranger", ip(STRANGER, WEB, 132, &[0; 20]), dropped(&[("stranger", 1)])),
        row!("an ICMP error about no flow", ip(CLIENT, WEB, 1, &query(36, 3)), dropped(&[("icmp_ignored", 1)])),
        row!(
            "an ICMP error of a stranger about no flow",
            ip(STRANGER, WEB, 1, &query(36, 3)),
            dropped(&[("icmp_ignored", 1)])
        ),
        row!("not a Service address", away(), pass(&[("not_ours", 1)])),
        row!("not a Service address, truncated", short(away()), pass(&[("unparsed", 1)])),
        row!("not a Service address, options", with_options(away()), pass(&[("unparsed", 1)])),
        row!(
            "not a Service address, fragment",
            uplink,
            nothing,
            with_ip(away(), |ip| ip[7] = 3),
            pass(&[("fragment_tc", 1)]),
            pass(&[("unparsed", 1)])
        ),
        row!("another protocol to the node", ip(CLIENT, OWN, 47, &[0; 20]), pass(&[("not_ours", 1)])),
        row!("ARP", arp, pass(&[("not_ours", 1)])),
        row!("IPv6 that ends in its header", v6, pass(&[("unparsed", 1)])),
        row!(
            "a VLAN device's frame, one tag",
            uplink,
            |world| world.set_vlan([[0, 5], [0, 0]]),
            with_tags(&[[0, 5]]),
            sent(&[("flow_created", 1), ("forwarded", 1)], untagged_to_pod),
            pass(&[("not_ours", 1)])
        ),
        row!(
            "a VLAN device's frame, two tags",
            uplink,
            |world| world.set_vlan([[0, 5], [1, 6]]),
            with_tags(&[[0, 5], [1, 6]]),
            sent(&[("flow_created", 1), ("forwarded", 1)], untagged_to_pod),
            pass(&[("not_ours", 1)])
        ),
        row!(
            "an error to a VLAN device's client keeps the tags",
            uplink,
            |world| world.set_vlan([[0, 5], [1, 6]]),
            tagged_frame(&tcp(web(81, 9999), SYN, b""), &[[0, 5], [1, 6]]),
            sent(&[("unknown_port", 1)], tagged_error),
            pass(&[("not_ours", 1)])
        ),
        row!("another VLAN", uplink, nothing, tagged, pass(&[("not_ours", 1)]), pass(&[("not_ours", 1)])),
        row!("a group's MAC", at(base(), 0, 0x03), pass(&[("not_ours", 1)])),
        row!(
            "a Service address from the cluster side",
            cluster,
            nothing,
            base(),
            pass(&[("not_ours", 1)]),
            pass(&[("not_ours", 1)])
        ),
    ]
}

/// Flows whose endpoint is gone.
fn gone_rows() -> Vec<Row> {
    let frame = || tcp(web(60, port::HTTP), ACK, b"data");
    let gone =
        |world: &mut World| lose_endpoint(world, &tcp(web(60, port::HTTP), ACK, b"data"), crate::world::ep::HTTP);
    vec![
        row!("TCP whose endpoint is gone", gone, frame(), sent(&[("endpoint_gone", 1)], reset)),
        row!(
            "a reset to an endpoint that is gone is not answered",
            gone,
            tcp(web(60, port::HTTP), RST, b""),
            dropped(&[("endpoint_gone", 1)])
        ),
        row!(
            "no more resets than the rate allows",
            |world| {
                lose_endpoint(world, &tcp(web(60, port::HTTP), ACK, b"data"), crate::world::ep::HTTP);
                let mut config = World::config();
                config.icmp_rate = 0;
                world.set_config(config);
            },
            frame(),
            dropped(&[("rate_limited", 1)])
        ),
        row!(
            "a new connection on the port of one whose endpoint is gone",
            uplink,
            gone,
            tcp(web(60, port::HTTP), SYN, b""),
            sent(&[("flow_created", 1), ("flow_moved", 1), ("forwarded", 1)], to_pod_mac),
            sent(&[("flow_created", 1), ("flow_moved", 1), ("forwarded", 1)], to_pod)
        ),
        row!(
            "UDP whose endpoint is gone moves on",
            uplink,
            |world| lose_endpoint(world, &udp(web(61, port::ECHO_UDP), b"one"), crate::world::ep::ECHO),
            udp(web(61, port::ECHO_UDP), b"two"),
            sent(&[("flow_created", 1), ("flow_moved", 1), ("forwarded", 1)], to_pod_mac),
            sent(&[("flow_created", 1), ("flow_moved", 1), ("forwarded", 1)], to_pod)
        ),
    ]
}

fn run(tier: Tier) {
    if skip() {
        return;
    }
    let mut world = World::new(tier);
    world.set_client_hop(CLIENT, hop::CLIENT);
    let mut failures = Vec::new();
    for row in rows() {
        world.reset();
        (row.prepare)(&mut world);
        let expect = if tier == Tier::Xdp { &row.xdp } else { &row.tc };
        let outcome = world.run((row.program)(tier), &row.frame);
        let counted: Vec<(&str, u64)> = outcome.counted.iter().map(|(&name, &n)| (name, n)).collect();
        let mut wrong = Vec::new();
        if outcome.action != expect.action {
            wrong.push(format!("{:?}, should be {:?}", outcome.action, expect.action));
        }
        if counted != expect.counted {
            wrong.push(format!("counted {counted:?}, should be {:?}", expect.counted));
        }
        if outcome.action == expect.action
            && let Err(why) = (expect.check)(&row.frame, &outcome.frame)
        {
            wrong.push(why);
        }
        if !wrong.is_empty() {
            let path = save(&format!("{tier:?}-{}", row.name), &[&row.frame, &outcome.frame]);
            failures.push(format!("{}: {} ({})", row.name, wrong.join("; "), path.display()));
        }
    }
    assert!(failures.is_empty(), "{tier:?}:\n{}", failures.join("\n"));
}

#[test]
fn what_happens_to_a_packet_in_xdp() {
    run(Tier::Xdp);
}

#[test]
fn what_happens_to_a_packet_in_tc() {
    run(Tier::Tc);
}
