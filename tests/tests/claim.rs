//! What is sent to the service CIDR reaches neither the node's own daemons nor the router again. Issue 3, "The claim on the service CIDR".

use std::{net::Ipv4Addr, time::Duration};

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology,
    clients::{http_get, tcp_refusal, udp, udp_refusal},
    testing,
    topology::{Access, ECHO_PORT, HTTP_PORT, Offloads},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
const UNUSED: Ipv4Addr = Ipv4Addr::new(10, 1, 77, 77);
const PATIENCE: Duration = Duration::from_millis(500);

/// The gateway node has a daemon on every address, and holds both addresses itself, as a node of kube-proxy's IPVS mode does.
fn lab() -> Lab {
    let topology = Topology::with_pods(&[Node::Worker1]).host_pod(Node::Gateway);
    let lab = Lab::build(Topology { access: Access::Router, offloads: Offloads::Wire, ..topology }).expect("the lab");
    lab.manifests.put(&Service::of_pods("shop", "web", VIP, [lab.pod("web-0")])).expect("a manifest");
    lab
}

#[test]
fn the_nodes_own_daemons_answer_on_no_cluster_ip() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = lab();
    let node = lab.node(Node::Gateway);
    node.ip(&[VIP, UNUSED].map(|address| format!("addr add {address}/32 dev lo"))).expect("ip");
    for address in [VIP, UNUSED] {
        let response = lab.client().enter(|| http_get((address, HTTP_PORT).into(), "/"));
        assert_eq!(response.expect("without a gateway the daemon answers").server, "web-1");
    }
    for mode in ["native", "generic", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        for address in [VIP, UNUSED] {
            lab.client().enter(|| {
                let tcp = tcp_refusal((address, HTTP_PORT).into(), PATIENCE);
                assert!(tcp.kind.is_some(), "{mode}: the daemon answers on {address}");
                let udp = udp_refusal((address, ECHO_PORT).into(), PATIENCE);
                assert!(udp.kind.is_some(), "{mode}: the daemon answers on {address} by UDP");
            });
        }
        let response = lab.client().enter(|| http_get((VIP, 80).into(), "/"));
        assert_eq!(response.expect("HTTP").server, "web-0", "{mode}");
        gateway.stop().expect("a clean end");
    }
}

/// Packets that the router has sent to the nodes.
fn sent_by_router(lab: &Lab) -> u64 {
    let text = lab.namespace("router").run("ip", &["-j", "-s", "link", "show", "eth0"]).expect("ip");
    let links: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    links[0]["stats64"]["tx"]["packets"].as_u64().expect("a count")
}

#[test]
fn nothing_that_is_sent_to_the_service_cidr_loops_back_to_the_router() {
    const DATAGRAMS: u64 = 100;
    let Some(_turn) = testing::turn(&["ping"]) else { return };
    let lab = lab();
    let strays = || {
        lab.client().enter(|| {
            for port in [7, 9999] {
                let socket = udp((UNUSED, port).into(), PATIENCE).expect("a socket");
                for _ in 0..DATAGRAMS / 2 {
                    // An error about an earlier one is told in place of this one.
                    let _ = socket.send(b"stray");
                }
            }
            // Fragments, nothing of which can be translated.
            let socket = udp((UNUSED, 7).into(), PATIENCE).expect("a socket");
            let _ = socket.send(&[0; 4000]);
            tcp_refusal((UNUSED, 80).into(), PATIENCE);
        });
        let unused = UNUSED.to_string();
        // IP options, echo requests, and a protocol that nobody speaks: no answer is a failure of ping.
        for args in [&["-nRc3", "-i0.2", "-W1"][..], &["-nc3", "-i0.2", "-W1"], &["-nc3", "-i0.2", "-W1", "-s4000"]] {
            let args: Vec<&str> = args.iter().copied().chain([unused.as_str()]).collect();
            assert!(lab.client().run("ping", &args).is_err(), "{unused} answers ping {args:?}");
        }
    };
    let counted = |what: &dyn Fn()| {
        let before = sent_by_router(&lab);
        what();
        sent_by_router(&lab) - before
    };
    let looped = counted(&strays);
    assert!(looped > 20 * DATAGRAMS, "without a gateway they loop: {looped}");
    for mode in ["native", "generic", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        let sent = counted(&strays);
        assert!(sent <= DATAGRAMS + 60, "{mode}: the router sent {sent} packets for {DATAGRAMS} and a few more");
        gateway.stop().expect("a clean end");
    }
}
