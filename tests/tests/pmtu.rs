//! Ways narrower than their ends: path MTU discovery through the gateway, without clamping. Issue 3, "What it must show", 3.

use std::net::{Ipv4Addr, SocketAddr};

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology,
    clients::{self, Http},
    testing,
    topology::{Access, Offloads, both},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
const BYTES: u64 = 30_000_000;

/// A download and an upload arrive whole, in every tier.
fn carries(topology: Topology, families: &[usize], config: impl Fn(&str) -> GatewayConfig) {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = Lab::build(Topology { offloads: Offloads::Wire, ..topology }).expect("the lab");
    lab.manifests.put(&Service::of_pods("shop", "web", VIP, &lab.topology.pods).dual_stack()).expect("a manifest");
    for mode in ["native", "tc"] {
        let gateway = lab.gateway(&config(mode)).expect("the gateway");
        for family in families {
            let vip = both(VIP)[*family];
            lab.client().enter(|| {
                let download = Http::connect(SocketAddr::from((vip, 80))).map_err(anyhow::Error::from);
                let download = download.and_then(|mut http| http.download(BYTES));
                download.unwrap_or_else(|error| panic!("{mode}, {vip}: download: {error:#}"));
                let upload = clients::echo(SocketAddr::from((vip, 7)), BYTES / 3);
                upload.unwrap_or_else(|error| panic!("{mode}, {vip}: upload: {error:#}"));
            });
        }
        // What was learnt is forgotten before the next tier.
        for machine in ["client", "web-0"] {
            lab.namespace(machine).ip(&["route flush cache"]).expect("ip");
        }
        gateway.stop().expect("a clean end");
    }
}

/// Pods with an MTU of 1500 behind an overlay of 1400, which nobody but its device knows.
fn overlay() -> Topology {
    Topology { overlay: true, overlay_mtu: Some(1400), ..Topology::with_pods(&[Node::Worker1]) }
}

fn narrow_client() -> Topology {
    Topology { access: Access::Routers { mtu: 1280 }, ..Topology::with_pods(&[Node::Worker1]) }
}

#[test]
fn transfers_arrive_over_an_overlay_of_1400_behind_an_uplink_of_1500() {
    carries(overlay(), &[0], GatewayConfig::mode);
}

#[test]
fn transfers_arrive_over_that_overlay_when_replies_come_back_through_it() {
    let address = Node::Gateway.pod_address(0);
    carries(overlay(), &[0], |mode| GatewayConfig { snat_addresses: vec![address], ..GatewayConfig::mode(mode) });
}

#[test]
fn transfers_arrive_at_a_client_behind_a_link_of_1280() {
    carries(narrow_client(), &[0], GatewayConfig::mode);
}

#[test]
fn transfers_of_ipv6_arrive_over_an_overlay_of_1400_and_at_a_client_behind_1280() {
    carries(overlay(), &[1], GatewayConfig::mode);
    carries(narrow_client(), &[1], GatewayConfig::mode);
}
