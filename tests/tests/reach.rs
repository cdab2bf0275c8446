//! The tracing programs, to a ClusterIP as to a machine. Issue 3, "What it must show", 2.

use std::net::Ipv4Addr;

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology, testing,
    topology::{Access, GATEWAY, Offloads, ROUTER_OFFICE, TRANSIT_LAN},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);

#[test]
fn traceroute_shows_the_routers_and_the_gateway_and_arrives() {
    let Some(_turn) = testing::turn(&["traceroute"]) else { return };
    let access = Access::Routers { mtu: 1500 };
    let topology = Topology { access, offloads: Offloads::Wire, ..Topology::with_pods(&[Node::Worker1]) };
    let lab = Lab::build(topology).expect("the lab");
    lab.manifests.put(&Service::of_pods("shop", "web", VIP, &lab.topology.pods)).expect("a manifest");
    let vip = VIP.to_string();
    for mode in ["native", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        for way in [["-U", "-p7"], ["-T", "-p80"]] {
            let args: Vec<&str> = ["-n", "-w5", "-q1", "-m8", "-N1"].into_iter().chain(way).chain([&*vip]).collect();
            let said = lab.client().run("traceroute", &args).unwrap_or_else(|error| panic!("{mode}: {error:#}"));
            for hop in [ROUTER_OFFICE, TRANSIT_LAN, GATEWAY] {
                assert!(said.contains(&format!(" {hop} ")), "{mode}: {way:?} does not show {hop}:\n{said}");
            }
            // In the first line it is what was asked for.
            assert!(said.lines().skip(1).any(|line| line.contains(&vip)), "{mode}: {way:?} does not arrive:\n{said}");
        }
        gateway.stop().expect("a clean end");
    }
}
