//! Every datapath mode, to endpoints in every place: downloads arrive whole, datagrams of every size come back, a thousand connections at
//! once are answered and spread. Issue 2, "What it must show", 2.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology,
    clients::{self, Http, connections, datagrams, http_get, snmp},
    testing,
    topology::{Access, Offloads, Pod, Wiring},
};

/// Bytes of a download.
const DOWNLOAD: u64 = 100_000_000;
/// Bytes that go up, and come down again.
const UPLOAD: u64 = 20_000_000;
/// Datagrams to a Service: every size, several times.
const DATAGRAMS: usize = 10_000;
/// Connections open at once.
const CONNECTIONS: usize = 1_000;

/// One Service for each place where its pods are.
fn by_place(lab: &Lab) -> Vec<(&'static str, Service)> {
    let place = |pod: &Pod| match (pod.node, pod.host_network()) {
        (Node::Gateway, true) => "the gateway node's own address",
        (Node::Gateway, false) => "pods on the gateway node",
        (_, true) => "another node's own address",
        (_, false) => "pods on other nodes",
    };
    let mut places = BTreeMap::<&str, Vec<&Pod>>::new();
    for pod in &lab.topology.pods {
        places.entry(place(pod)).or_default().push(pod);
    }
    let service = |(index, (place, pods)): (usize, (&'static str, Vec<&Pod>))| {
        let number = u8::try_from(index).expect("a few places");
        (place, Service::of_pods("shop", &format!("place-{number}"), Ipv4Addr::new(10, 1, 0, 80 + number), pods))
    };
    places.into_iter().enumerate().map(service).collect()
}

/// All of it, in this mode over this topology.
fn carries(config: &GatewayConfig, topology: Topology) {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = Lab::build(topology).expect("the lab");
    let services = by_place(&lab);
    for (_, service) in &services {
        lab.manifests.put(service).expect("a manifest");
    }
    let gateway = lab.gateway(config).expect("the gateway");
    let status = gateway.json("status").expect("status");
    let uplink = status["interfaces"].as_array().and_then(|all| all.iter().find(|one| one["interface"] == "eth0"));
    let tier = match config.mode.as_str() {
        "native" | "generic" => Some(config.mode.as_str()),
        _ => None,
    };
    assert_eq!(uplink.expect("eth0 is attached")["xdp"].as_str(), tier, "{status}");

    // XDP leaves packets to a client to TC until the agent has seen the first of them.
    let first = SocketAddr::from((services[0].1.vip.expect("a VIP"), 80));
    lab.client().enter(|| http_get(first, "/")).expect("HTTP");
    thread::sleep(Duration::from_secs(3));

    for (place, service) in &services {
        let vip = service.vip.expect("a VIP");
        let (http, echo) = (SocketAddr::from((vip, 80)), SocketAddr::from((vip, 7)));
        let began = Instant::now();
        let before = gateway.counters().expect("counters");
        // The endpoint behind the overlay takes smaller datagrams; that it says so by ICMP is another test's.
        let on_gateway = service.endpoints.iter().all(|endpoint| endpoint.node == Node::Gateway.name());
        let host = service.endpoints.iter().all(|endpoint| endpoint.address.octets()[0..2] == [10, 90]);
        let mtu = if host || (on_gateway && !lab.topology.overlay) { lab.topology.mtu } else { lab.topology.pod_mtu() };
        let pods = lab.client().enter(|| {
            datagrams(echo, DATAGRAMS, usize::from(mtu) - 28, 10).unwrap_or_else(|error| panic!("{place}: {error:#}"));
            let lost = snmp("Tcp", "RetransSegs").expect("a counter");
            let pods = connections(http, CONNECTIONS).unwrap_or_else(|error| panic!("{place}: {error:#}"));
            let lost = snmp("Tcp", "RetransSegs").expect("a counter") - lost;
            assert!(lost <= CONNECTIONS as u64 / 50, "{place}: {lost} segments were sent again");
            let download =
                Http::connect(http).map_err(anyhow::Error::from).and_then(|mut http| http.download(DOWNLOAD));
            download.unwrap_or_else(|error| panic!("{place}: {error:#}"));
            clients::echo(echo, UPLOAD).unwrap_or_else(|error| panic!("{place}: {error:#}"));
            pods
        });
        // A third of a thousand has a standard deviation of 15: a share that is off by a quarter is not chance.
        let share = CONNECTIONS / service.endpoints.len();
        assert_eq!(pods.len(), service.endpoints.len(), "{place}: {pods:?}");
        assert!(pods.values().all(|count| count.abs_diff(share) <= share / 4), "{place}: {pods:?}");
        let after = gateway.counters().expect("counters");
        let grown = |reason: &str| after.get(reason) - before.get(reason);
        assert!(grown("flow_created") >= CONNECTIONS as u64, "{place}: {after:?}");
        assert!(grown("replied") >= (DATAGRAMS + CONNECTIONS) as u64, "{place}: {after:?}");
        // On wires that a network card could have, XDP sends by itself whatever way leads out of a device that takes frames.
        let frames = !lab.topology.overlay && (!on_gateway || lab.topology.wiring == Wiring::Veth);
        if tier.is_some() && lab.topology.offloads == Offloads::Wire && frames {
            let to_tc = grown("partial_checksum") + grown("next_hop_tc") + grown("too_big_tc");
            assert!(to_tc <= grown("forwarded") / 20, "{place}: XDP left {to_tc} packets to TC: {after:?}");
        }
        println!("{} to {place}: {:.1} s", config.mode, began.elapsed().as_secs_f32());
    }
    gateway.stop().expect("a clean end");
}

/// Pods on both workers and the gateway node (bridge), and on the own addresses of a worker and the gateway.
fn everywhere() -> Topology {
    Topology::with_pods(&[Node::Worker1, Node::Worker2, Node::Gateway, Node::Gateway])
        .host_pod(Node::Worker1)
        .host_pod(Node::Gateway)
}

/// Pods on the gateway node behind bare veths.
fn bare_veth() -> Topology {
    Topology { wiring: Wiring::Veth, ..Topology::with_pods(&[Node::Gateway, Node::Gateway]) }
}

/// Pods of other nodes behind VXLAN.
fn overlay() -> Topology {
    Topology { overlay: true, ..Topology::with_pods(&[Node::Worker1, Node::Worker2]) }
}

#[test]
fn native_xdp_carries_everything_everywhere() {
    carries(&GatewayConfig::mode("native"), Topology { offloads: Offloads::Wire, ..everywhere() });
}

#[test]
fn native_xdp_carries_everything_to_bare_veths_with_partial_checksums() {
    carries(&GatewayConfig::mode("native"), Topology { offloads: Offloads::PeersTakeXdp, ..bare_veth() });
}

#[test]
fn native_xdp_carries_everything_over_the_overlay() {
    carries(&GatewayConfig::mode("native"), Topology { offloads: Offloads::Wire, ..overlay() });
}

#[test]
fn generic_xdp_carries_everything_everywhere() {
    carries(&GatewayConfig::mode("generic"), everywhere());
}

#[test]
fn generic_xdp_carries_everything_to_bare_veths_with_whole_checksums() {
    carries(&GatewayConfig::mode("generic"), Topology { offloads: Offloads::Wire, ..bare_veth() });
}

#[test]
fn generic_xdp_carries_everything_over_the_overlay() {
    carries(&GatewayConfig::mode("generic"), overlay());
}

#[test]
fn tc_carries_everything_everywhere_for_clients_behind_a_router() {
    carries(&GatewayConfig::mode("tc"), Topology { access: Access::Router, ..everywhere() });
}

#[test]
fn tc_carries_everything_to_bare_veths() {
    carries(&GatewayConfig::mode("tc"), bare_veth());
}

#[test]
fn tc_carries_everything_over_the_overlay_both_ways() {
    // The overlay device's address as source: replies come back through the overlay, too.
    let config = GatewayConfig { snat_addresses: vec![Node::Gateway.pod_address(0)], ..GatewayConfig::mode("tc") };
    carries(&config, overlay());
}

#[test]
fn auto_carries_everything_everywhere_and_finds_its_uplink() {
    let config = GatewayConfig { uplinks: Vec::new(), ..GatewayConfig::mode("auto") };
    carries(&config, Topology { access: Access::Router, ..everywhere() });
}

#[test]
fn auto_carries_everything_to_bare_veths() {
    carries(&GatewayConfig::mode("auto"), bare_veth());
}

#[test]
fn auto_carries_everything_over_the_overlay() {
    carries(&GatewayConfig::mode("auto"), overlay());
}
