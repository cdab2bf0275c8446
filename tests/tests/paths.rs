//! Return paths, and what clients are told that may or can not be served. Issue 2, "What it must show", 3, and the datapath's rejections.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use gateway_lab::{
    Counters, Gateway, GatewayConfig, Lab, Node, Service, Topology,
    clients::{Http, datagrams, http_get, tcp_refusal, udp, udp_refusal, who},
    testing,
    topology::{CLIENT, GATEWAY, GUEST, Offloads, STRANGER},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 90);
const EMPTY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 99);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 77, 77);
/// "At once", on a busy machine; giving up takes much longer.
const AT_ONCE: Duration = Duration::from_millis(800);
const PATIENCE: Duration = Duration::from_secs(2);

/// The address that a pod sees for the client, by TCP and UDP, after a download and datagrams that must arrive.
fn seen_by_pod(lab: &Lab, pod: &str, return_path: &str, mode: &str) -> Ipv4Addr {
    lab.manifests.put(&Service::of_pods("shop", "web", VIP, [lab.pod(pod)])).expect("a manifest");
    let config = GatewayConfig { return_path: return_path.into(), ..GatewayConfig::mode(mode) };
    let gateway = lab.gateway(&config).expect("the gateway");
    let (text, seen) = lab.client().enter(|| {
        let mut http = Http::connect((VIP, 80).into()).expect("connect");
        http.download(20_000_000).expect("a download");
        datagrams((VIP, 7).into(), 1472, 1472, 2).expect("datagrams");
        let text = http.get("/").expect("HTTP").text();
        (text, who(&udp((VIP, 7).into(), PATIENCE).expect("a socket")).expect("an answer").1)
    });
    assert_eq!(text, format!("{pod} serves {}\n", seen.ip()), "TCP and UDP come from one address");
    gateway.stop().expect("a clean end");
    match seen.ip() {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(address) => panic!("{address} over IPv4"),
    }
}

#[test]
fn pods_see_the_gateway_on_the_snat_path_and_the_client_on_the_routed_one() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let topology = Topology::with_pods(&[Node::Worker1, Node::Gateway]).host_pod(Node::Worker2).host_pod(Node::Gateway);
    let lab = Lab::build(Topology { return_route: true, offloads: Offloads::Wire, ..topology }).expect("the lab");
    for mode in ["native", "tc"] {
        for pod in ["web-0", "web-1", "web-2"] {
            assert_eq!(seen_by_pod(&lab, pod, "snat", mode), GATEWAY, "{pod}, {mode}");
            assert_eq!(seen_by_pod(&lab, pod, "routed", mode), CLIENT, "{pod}, {mode}");
        }
        // The node's own sockets: its own address as source would be a martian, so the client's stays.
        for path in ["snat", "routed"] {
            assert_eq!(seen_by_pod(&lab, "web-3", path, mode), CLIENT, "{path}, {mode}");
        }
    }
}

/// A lab with a client, a guest and a stranger; Services in `shop` and `public`, and one without endpoints.
fn three_kinds() -> Lab {
    let topology = Topology::with_pods(&[Node::Worker1]).client("guest", GUEST).client("stranger", STRANGER);
    let lab = Lab::build(topology).expect("the lab");
    for (namespace, name, vip) in [("shop", "web", VIP), ("public", "web", PUBLIC)] {
        lab.manifests.put(&Service::of_pods(namespace, name, vip, &lab.topology.pods)).expect("a manifest");
    }
    lab.manifests.put(&Service::of_pods("shop", "empty", EMPTY, [])).expect("a manifest");
    lab
}

/// What a reason grew by while `work` ran.
fn counted(gateway: &Gateway<'_>, reason: &str, work: impl FnOnce()) -> u64 {
    let count = |counters: Counters| counters.get(reason);
    let before = count(gateway.counters().expect("counters"));
    work();
    count(gateway.counters().expect("counters")) - before
}

/// TCP, and UDP where Linux tells sockets, end with that error at once, and the datapath counts the reason.
fn told(
    lab: &Lab,
    gateway: &Gateway<'_>,
    from: &str,
    to: (Ipv4Addr, u16),
    kind: ErrorKind,
    udp_too: bool,
    reason: &str,
) {
    let to = SocketAddr::from(to);
    let grown = counted(gateway, reason, || {
        let refusal = lab.namespace(from).enter(|| tcp_refusal(to, PATIENCE));
        assert_eq!(refusal.kind, Some(kind), "TCP from {from} to {to}");
        assert!(refusal.after < AT_ONCE, "TCP from {from} to {to}: {:?}", refusal.after);
        if udp_too {
            let refusal = lab.namespace(from).enter(|| udp_refusal(to, PATIENCE));
            assert_eq!(refusal.kind, Some(kind), "UDP from {from} to {to}");
            assert!(refusal.after < AT_ONCE, "UDP from {from} to {to}: {:?}", refusal.after);
        }
    });
    assert!(grown > u64::from(udp_too), "{reason} +{grown}");
}

/// Neither TCP nor UDP hears anything, and the datapath counts the reason.
fn silent(lab: &Lab, gateway: &Gateway<'_>, from: &str, to: (Ipv4Addr, u16), reason: &str) {
    let to = SocketAddr::from(to);
    let grown = counted(gateway, reason, || {
        for refusal in lab.namespace(from).enter(|| [tcp_refusal(to, AT_ONCE), udp_refusal(to, AT_ONCE)]) {
            assert_eq!(refusal.kind, Some(ErrorKind::TimedOut), "from {from} to {to}");
        }
    });
    assert!(grown >= 2, "{reason} +{grown}");
}

#[test]
fn clients_are_told_at_once_what_cannot_be_served() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = three_kinds();
    for mode in ["native", "generic", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        told(&lab, &gateway, "client", (VIP, 81), ErrorKind::ConnectionRefused, true, "unknown_port");
        told(&lab, &gateway, "client", (EMPTY, 80), ErrorKind::ConnectionRefused, false, "no_endpoint");
        told(&lab, &gateway, "client", (EMPTY, 7), ErrorKind::ConnectionRefused, true, "no_endpoint");
        // Linux does not pass "host unreachable" on to UDP sockets.
        told(&lab, &gateway, "client", (NOBODY, 80), ErrorKind::HostUnreachable, false, "unknown_vip");
        lab.client().enter(|| http_get((VIP, 80).into(), "/").expect("what can be served is"));
        gateway.stop().expect("a clean end");
    }
}

#[test]
fn views_decide_what_a_client_reaches() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = three_kinds();
    let gateway = lab.gateway(&GatewayConfig::mode("tc")).expect("the gateway");
    lab.namespace("guest").enter(|| http_get((PUBLIC, 80).into(), "/").expect("guests see `public`"));
    told(&lab, &gateway, "guest", (VIP, 7), ErrorKind::HostUnreachable, true, "view_denied");
    silent(&lab, &gateway, "stranger", (PUBLIC, 7), "stranger");
    gateway.stop().expect("a clean end");

    let config = GatewayConfig { deny: "drop".into(), strangers: "pass".into(), ..GatewayConfig::mode("auto") };
    let gateway = lab.gateway(&config).expect("the gateway");
    silent(&lab, &gateway, "guest", (VIP, 7), "view_dropped");
    // Left to the node, which has no route to a ClusterIP and no more business with it than before.
    let passed = counted(&gateway, "stranger_passed", || {
        let refusal = lab.namespace("stranger").enter(|| tcp_refusal((VIP, 80).into(), PATIENCE));
        assert!(refusal.kind.is_some());
    });
    assert!(passed >= 1);
    gateway.stop().expect("a clean end");
}

#[test]
fn what_is_not_the_gateways_business_passes_untouched() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let topology = Topology::with_pods(&[Node::Worker1]).host_pod(Node::Gateway).client("stranger", STRANGER);
    let lab = Lab::build(topology).expect("the lab");
    lab.manifests.put(&Service::of_pods("shop", "web", VIP, [lab.pod("web-0")])).expect("a manifest");
    for mode in ["native", "generic", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        for machine in ["client", "stranger", "worker2"] {
            lab.namespace(machine).enter(|| {
                let node =
                    Http::connect((GATEWAY, 8080).into()).map(|mut http| http.download(5_000_000).expect("a download"));
                assert_eq!(node.expect("the node's own server"), "web-1", "{machine}, {mode}");
                datagrams((GATEWAY, 7007).into(), 300, 1472, 1).expect("the node's own echo server");
            });
        }
        lab.node(Node::Gateway)
            .enter(|| http_get((lab.pod("web-0").address, 8080).into(), "/").expect("the node reaches pods"));
        gateway.stop().expect("a clean end");
    }
}

#[test]
fn what_is_too_big_for_the_way_or_has_come_too_far_is_answered_so_that_senders_can_act() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = Lab::build(Topology { overlay: true, ..Topology::with_pods(&[Node::Worker1]) }).expect("the lab");
    lab.manifests.put(&Service::of_pods("shop", "web", VIP, &lab.topology.pods)).expect("a manifest");
    for mode in ["native", "generic", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        let too_big = counted(&gateway, "too_big", || {
            lab.client().enter(|| {
                let socket = udp((VIP, 7).into(), AT_ONCE).expect("a socket");
                socket.send(&[1; 1472]).expect("a datagram as big as the client's own network takes");
                let answer = socket.recv(&mut [0; 2000]).expect_err("it cannot be carried");
                // Linux tells a connected socket at once. What it sends from then on it cuts into fragments, by itself.
                assert_eq!(answer.raw_os_error(), Some(libc::EMSGSIZE), "{mode}: {answer}");
                socket.send(&[2; 1422]).expect("a datagram that fits");
                assert_eq!(socket.recv(&mut [0; 2000]).expect("its echo"), 1422, "{mode}");
            });
        });
        assert_eq!(too_big, 1, "{mode}");
        // Forget what was learnt, and send with a hop limit that ends at the gateway.
        lab.client().ip(&["route flush cache"]).expect("ip");
        let route = lab.client_route().replace("add", "replace");
        lab.client().ip(&[route.clone() + " hoplimit 1"]).expect("ip");
        let pods = lab.client().enter(|| tcp_refusal((VIP, 80).into(), PATIENCE));
        assert_eq!(pods.kind, Some(ErrorKind::HostUnreachable), "{mode}");
        assert!(pods.after < AT_ONCE, "{mode}: {:?}", pods.after);
        assert!(gateway.counters().expect("counters").get("ttl_exceeded") >= 1, "{mode}");
        lab.client().ip(&[route]).expect("ip");
        lab.client().enter(|| http_get((VIP, 80).into(), "/").expect("HTTP"));
        gateway.stop().expect("a clean end");
    }
}
