//! Who asks too much is limited, and who asked what is written down. Issue 4, "Policy and audit" and "Abuse".

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Service, Topology, clients,
    names::{dig, kdig},
    testing,
    topology::{CLIENT, GATEWAY, GUEST, Offloads, ipv6},
};
use hickory_proto::{
    op::{Edns, Message, Query},
    rr::RecordType,
};
use serde_json::Value;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
const WEB: &str = "web.shop.svc.cluster.local";
const PUBLIC: &str = "web.public.svc.cluster.local";
const TOOLS: [&str; 3] = ["dig", "kdig", "unbound"];

fn lab(offloads: Offloads) -> Lab {
    let topology = Topology { upstream: true, offloads, ..Topology::with_pods(&[Node::Worker1]) };
    let lab = Lab::build(topology.client("guest", GUEST)).expect("the lab");
    let pods = &lab.topology.pods;
    for service in [
        Service::of_pods("shop", "web", VIP, pods),
        Service::of_pods("public", "web", Ipv4Addr::new(10, 1, 0, 90), pods),
    ] {
        lab.manifests.put(&service).expect("a manifest");
    }
    lab
}

fn start<'lab>(lab: &'lab Lab, mode: &str, dns: &str) -> Gateway<'lab> {
    let config = GatewayConfig { dns: dns.to_owned(), ..GatewayConfig::mode(mode) };
    lab.gateway(&config.with_upstream()).expect("the gateway")
}

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.parse().expect("a name"), RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.to_vec().expect("a query")
}

/// What a client got for a burst: answers with records, and those cut short.
#[derive(Debug, Default, PartialEq, Eq)]
struct Got {
    whole: u64,
    cut: u64,
}

/// Asks `count` times without waiting, and takes what comes until nothing comes for a while.
fn burst(server: SocketAddr, name: &str, count: usize) -> Got {
    let socket: UdpSocket = clients::udp(server, Duration::from_millis(400)).expect("a socket");
    let packet = query(name);
    let mut got = Got::default();
    let mut take = |socket: &UdpSocket, flags| {
        let mut buffer = [0; 2048];
        while let Ok(len) = nix::sys::socket::recv(std::os::fd::AsRawFd::as_raw_fd(socket), &mut buffer, flags) {
            let answer = Message::from_vec(&buffer[..len]).expect("a readable answer");
            if answer.metadata.truncation {
                assert!(answer.answers.is_empty() && len <= packet.len(), "{answer:?}");
                got.cut += 1;
            } else {
                assert!(!answer.answers.is_empty(), "{answer:?}");
                got.whole += 1;
            }
        }
    };
    for _ in 0..count {
        socket.send(&packet).expect("sent");
        take(&socket, nix::sys::socket::MsgFlags::MSG_DONTWAIT);
    }
    take(&socket, nix::sys::socket::MsgFlags::empty());
    got
}

/// The rate, in answers a second.
const RATE: u64 = 20;

fn flood(mode: &str, offloads: Offloads) {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = lab(offloads);
    let gateway = start(&lab, mode, &format!("rateLimit: {{ responsesPerSecond: {RATE}, slip: 2 }}"));
    let server = SocketAddr::from((GATEWAY, 53));
    let server6 = SocketAddr::from((ipv6(GATEWAY), 53));
    // Answers that native XDP on a veth has no room for are TC's, and are counted once.
    dig(lab.client(), &GATEWAY.to_string(), &["+notcp", "+bufsize=1232", "+noadflag", "big.example.test", "A"])
        .expect("dig");
    std::thread::sleep(Duration::from_millis(1200));
    let got = lab.client().enter(|| burst(server, "big.example.test", RATE as usize));
    assert_eq!(got, Got { whole: RATE, cut: 0 }, "{mode}");

    for (server, client) in [(server, "IPv4"), (server6, "IPv6")] {
        let began = Instant::now();
        let before = gateway.counters().expect("counters");
        let got = lab.client().enter(|| burst(server, WEB, 1000));
        let after = gateway.counters().expect("counters");
        let grown = |reason: &str| after.get(reason) - before.get(reason);
        let most = RATE + RATE * (began.elapsed().as_secs() + 1);
        assert!(got.whole <= most, "{mode} {client}: {got:?}, at most {most} allowed");
        // With a checksum that is not whole yet, XDP leaves queries to TC; each is judged once.
        let told = [grown("dns_answered"), grown("dns_slipped"), grown("dns_limited")];
        assert_eq!(told[..2], [got.whole, got.cut], "{mode} {client}");
        assert_eq!(told.iter().sum::<u64>(), 1000, "{mode} {client}: {told:?}");
        assert!(told[1].abs_diff(told[2]) <= 1, "{mode} {client}: every second one slips: {told:?}");
        // Another network is served meanwhile.
        for _ in 0..3 {
            let answer = dig(lab.namespace("guest"), &server.ip().to_string(), &["+ignore", "+notcp", PUBLIC, "A"]);
            assert_eq!(answer.expect("dig").data("A"), ["10.1.0.90"], "{mode} {client}");
        }
    }
    let drops = gateway.command(&["drops"]).expect("gateway drops");
    assert!(drops.contains("dns_limited"), "{drops}");
    gateway.stop().expect("a clean end");
}

#[test]
fn a_client_that_floods_is_limited_and_others_are_served_in_native_xdp() {
    flood("native", Offloads::Wire);
}

#[test]
fn a_client_that_floods_is_limited_and_others_are_served_in_tc() {
    flood("tc", Offloads::Kernel);
}

#[test]
fn a_client_above_its_rate_asks_again_over_tcp_and_nobody_else_is_limited() {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = lab(Offloads::Kernel);
    let gateway = start(&lab, "auto", "rateLimit: { responsesPerSecond: 1, slip: 1, exemptViews: [guests] }");
    let server = GATEWAY.to_string();
    let ask = |args: &[&str]| dig(lab.client(), &server, args).expect("dig");
    for name in [WEB, "www.example.test"] {
        let cut = (0..10).filter(|_| ask(&["+notcp", "+ignore", name, "A"]).flag("tc")).count();
        assert!(cut >= 5, "{name}: {cut} of 10 cut at one a second");
        for _ in 0..3 {
            let answer = ask(&[name, "A"]);
            assert!(!answer.flag("tc") && answer.data("A").len() == 1, "{answer:?}");
            let answer = kdig(lab.client(), &server, &[name, "A"]).expect("kdig");
            assert!(!answer.flag("tc") && answer.data("A").len() == 1, "{answer:?}");
        }
    }
    let limited = |gateway: &Gateway<'_>| gateway.counters().expect("counters").get("dns_slipped");
    let before = limited(&gateway);
    for _ in 0..5 {
        let answer = dig(lab.namespace("guest"), &server, &["+notcp", "+ignore", PUBLIC, "A"]).expect("dig");
        assert_eq!(answer.data("A"), ["10.1.0.90"]);
    }
    assert_eq!(limited(&gateway), before, "an exempt view");
    gateway.stop().expect("a clean end");
}

#[test]
fn every_query_is_a_line_of_the_log_whoever_answered_it() {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = lab(Offloads::Kernel);
    let file = lab.dir().join("queries.log");
    let gateway = start(&lab, "auto", &format!("log: {{ file: {} }}", file.display()));
    let (server, server6) = (GATEWAY.to_string(), ipv6(GATEWAY).to_string());
    let ask = |server: &str, transport: &str, name: &str, rtype: &str| {
        dig(lab.client(), server, &[transport, name, rtype]).expect("dig");
    };
    ask(&server, "+notcp", "wEb.shop.svc.cluster.local", "A");
    ask(&server6, "+notcp", WEB, "AAAA");
    ask(&server, "+notcp", "nobody.shop.svc.cluster.local", "SRV");
    ask(&server, "+tcp", WEB, "A");
    ask(&server, "+notcp", "www.example.test", "A");
    ask(&server, "+notcp", "www.example.test", "A");
    let (client, client6) = (CLIENT.to_string(), ipv6(CLIENT).to_string());
    let expected = [
        format!("{client} developers udp {WEB} A NOERROR kernel"),
        format!("{client6} developers udp {WEB} AAAA NOERROR kernel"),
        format!("{client} developers udp nobody.shop.svc.cluster.local SRV NXDOMAIN kernel"),
        format!("{client} developers tcp {WEB} A NOERROR zone"),
        format!("{client} developers udp www.example.test A NOERROR upstream"),
        format!("{client} developers udp www.example.test A NOERROR kernel"),
    ];
    let told = |line: Value| {
        ["client", "view", "transport", "name", "type", "rcode", "source"]
            .map(|key| line[key].as_str().unwrap_or_default().to_owned())
            .join(" ")
    };
    let read = || -> Vec<String> {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| told(serde_json::from_str(line).expect("a JSON line"))).collect()
    };
    let until = Instant::now() + Duration::from_secs(10);
    while read().len() < expected.len() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut lines = read();
    // Kernel and forwarder write beside each other.
    let mut expected = expected.to_vec();
    lines.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lines, expected);

    // What the kernel tells in a burst, and just before the end, is not lost either.
    let got = lab.client().enter(|| burst((GATEWAY, 53).into(), WEB, 500));
    let lost = gateway.counters().expect("counters").get("dns_log_lost");
    gateway.stop().expect("a clean end");
    assert_eq!(got.cut, 0);
    assert_eq!((read().len() - expected.len()) as u64 + lost, got.whole);
}
