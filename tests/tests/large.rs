//! Datagrams and echo requests of many fragments, and packets that a router on the way would cut: the gateway cuts them as well.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology,
    clients::udp,
    testing,
    topology::{Access, Offloads, both},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
const PORT: u16 = 9000;

fn lab(topology: Topology) -> Lab {
    let lab = Lab::build(Topology { offloads: Offloads::Wire, ..topology }).expect("the lab");
    let service = Service::of_pods("shop", "web", VIP, &lab.topology.pods).port("cut", "UDP", PORT, PORT).dual_stack();
    lab.manifests.put(&service).expect("a manifest");
    lab
}

#[test]
fn datagrams_of_sixty_kilobytes_go_through_a_cluster_ip_and_back() {
    let Some(_turn) = testing::turn(&["socat", "sha256sum"]) else { return };
    let lab = lab(Topology::with_pods(&[Node::Worker1]));
    let file = lab.dir().join("datagram");
    fs::write(&file, (0..60_000_u32).map(|i| (i * 7 % 251) as u8).collect::<Vec<_>>()).expect("a file");
    let file = file.display();
    let sum = |command: &str| {
        let said = lab.client().run("sh", &["-c", &format!("{command} | sha256sum")]);
        said.unwrap_or_else(|error| panic!("{error:#}"))
    };
    let expected = sum(&format!("cat {file}"));
    for mode in ["native", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        for vip in both(VIP) {
            let to = match vip {
                IpAddr::V4(vip) => format!("UDP4:{vip}:7"),
                IpAddr::V6(vip) => format!("UDP6:[{vip}]:7"),
            };
            // A datagram in one read and one write; the answer ends it, or five seconds do.
            assert_eq!(
                sum(&format!("socat -b 65000 -t 5 {to},shut-none - < {file} | head -c 60000")),
                expected,
                "{mode}, {to}"
            );
        }
        gateway.stop().expect("a clean end");
    }
}

#[test]
fn echo_requests_of_many_fragments_are_answered() {
    let Some(_turn) = testing::turn(&["ping"]) else { return };
    let lab = lab(Topology::with_pods(&[Node::Worker1]));
    for mode in ["native", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        for vip in both(VIP).map(|vip| vip.to_string()) {
            for size in ["2000", "9000", "60000"] {
                let said = lab.client().run("ping", &["-n", "-c2", "-i0.2", "-W3", "-s", size, &vip]);
                let said = said.unwrap_or_else(|error| panic!("{mode}, {vip}, {size} bytes: {error:#}"));
                assert!(said.contains(" 0% packet loss"), "{mode}, {vip}, {size} bytes: {said}");
            }
        }
        gateway.stop().expect("a clean end");
    }
}

/// Lets routers cut what the socket sends: "don't fragment" is not set.
fn may_be_cut(socket: &UdpSocket) {
    let dont = libc::IP_PMTUDISC_DONT;
    // SAFETY: the kernel reads four bytes of `dont`.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const dont).cast(),
            size_of_val(&dont) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "IP_MTU_DISCOVER: {}", std::io::Error::last_os_error());
}

/// Datagrams of sizes around the narrow way's, whole ones and such that come in fragments of their own, arrive on both sides.
fn cut_both_ways(lab: &Lab) {
    let server = lab.namespace("web-0").enter(|| UdpSocket::bind(("0.0.0.0", PORT))).expect("a server's socket");
    server.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    may_be_cut(&server);
    for mode in ["native", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        let client = lab.client().enter(|| udp((VIP, PORT).into(), Duration::from_secs(5))).expect("a client's socket");
        may_be_cut(&client);
        let mut buffer = vec![0; 65_536];
        // At first the way to the client is the routes', then a next hop that the gateway has learnt.
        for size in [1252, 1253, 1372, 1373, 1380, 1471, 1472, 4000, 30_000].repeat(2) {
            let sent: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
            client.send(&sent).expect("a datagram");
            let (len, peer) =
                server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{mode}, {size} bytes: {error}"));
            assert!(buffer[..len] == sent[..], "{mode}: {size} bytes arrived as {len}, or changed");
            server.send_to(&sent, peer).expect("an answer");
            let len = client.recv(&mut buffer).unwrap_or_else(|error| panic!("{mode}, {size} bytes back: {error}"));
            assert!(buffer[..len] == sent[..], "{mode}: {size} bytes came back as {len}, or changed");
            if size == 30_000 {
                thread::sleep(Duration::from_millis(1500));
            }
        }
        let counters = gateway.counters().expect("counters");
        assert!(counters.get("fragmented") >= 3, "{mode}: {counters:?}");
        assert_eq!(counters.get("too_big"), 0, "{mode}: nobody had to be told");
        gateway.stop().expect("a clean end");
    }
}

#[test]
fn what_may_be_fragmented_reaches_pods_over_a_narrower_overlay() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let overlay = Topology { overlay: true, overlay_mtu: Some(1400), ..Topology::with_pods(&[Node::Worker1]) };
    cut_both_ways(&lab(overlay));
}

#[test]
fn what_may_be_fragmented_reaches_clients_over_a_narrower_uplink() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = lab(Topology { access: Access::Router, ..Topology::with_pods(&[Node::Worker1]) });
    let to_clients = lab.node(Node::Gateway).run("ip", &["-4", "route", "get", "10.90.1.100"]).expect("a route");
    let via = to_clients.split_whitespace().skip_while(|word| *word != "via").nth(1).expect("a router").to_owned();
    lab.node(Node::Gateway)
        .ip(&[format!("route replace 10.90.1.0/24 via {via} mtu lock 1280")])
        .expect("a narrow route");
    cut_both_ways(&lab);
}
