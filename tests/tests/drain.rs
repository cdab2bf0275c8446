//! All endpoints are replaced, one after the other, while clients with kept connections ask as fast as they can: nothing fails. Issue 3,
//! "What it must show", 4.

use std::{collections::BTreeSet, net::Ipv4Addr, thread, time::Duration};

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology, clients::connections, manifests::Endpoint, process::Process, testing,
    topology::Offloads,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
/// What is on its way when a change is live is over within this.
const LIVE: Duration = Duration::from_secs(1);
/// Pods at a time; there are twice as many, so that the old ones and the new ones are others.
const PODS: usize = 3;
const TURNS: usize = 3;

/// Three turns, in each of which every pod is replaced as a Deployment does it: the new one is ready, the old one terminates and finishes what it
/// has, the old one is gone.
fn rolls(mode: &str, offloads: Offloads) {
    let Some(_turn) = testing::turn(&["wrk"]) else { return };
    let nodes = [Node::Worker1, Node::Worker2, Node::Gateway];
    let nodes: Vec<Node> = nodes.into_iter().cycle().take(2 * PODS).collect();
    let lab = Lab::build(Topology { offloads, ..Topology::with_pods(&nodes) }).expect("the lab");
    let name = |number: usize| format!("web-{number}");
    let mut serving: Vec<usize> = (0..PODS).collect();
    let put = |serving: &[usize], leaving: Option<usize>| {
        let mut service = Service::of_pods("shop", "web", VIP, []);
        service.endpoints = serving.iter().map(|pod| Endpoint::from(&lab.topology.pods[*pod])).collect();
        for endpoint in service.endpoints.iter_mut().filter(|one| leaving.is_some_and(|pod| one.pod == name(pod))) {
            (endpoint.ready, endpoint.terminating) = (false, true);
        }
        lab.manifests.put(&service).expect("a manifest");
        service
    };
    put(&serving, None);
    let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");

    let mut wrk = lab.client().command("wrk");
    // Longer than everything that follows; it is told to stop.
    wrk.args(["-t1", "-c30", "-d300s", "--timeout", "10s", "http://10.1.0.80/"]);
    let mut wrk = Process::start("wrk", wrk, &lab.dir().join("wrk.log")).expect("wrk");
    for _ in 0..TURNS {
        for place in 0..PODS {
            let (old, new) = (serving[place], (serving[place] + PODS) % (2 * PODS));
            lab.restart_pod(&name(new)).expect("the new pod serves");
            let mut during = serving.clone();
            during.push(new);
            gateway.serves(&put(&during, Some(old))).expect("a change is live");
            // What was on its way meanwhile has arrived.
            thread::sleep(LIVE / 2);
            lab.drain_pod(&name(old)).expect("the old pod serves");
            // Each connection has had its next answer long before.
            thread::sleep(LIVE / 2);
            serving[place] = new;
            gateway.serves(&put(&serving, None)).expect("a change is live");
            thread::sleep(LIVE / 4);
            lab.stop_pod(&name(old));
            assert!(wrk.ended().is_none(), "wrk has ended: {}", wrk.said());
        }
    }
    // SIGINT makes it tell its figures.
    let status = wrk.stop(nix::sys::signal::Signal::SIGINT, Duration::from_secs(20)).expect("wrk ends");
    let said = wrk.said();
    assert!(status.success() && said.contains("requests in"), "{status}: {said}");
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{mode}: {said}");
    let pods = lab.client().enter(|| connections((VIP, 80).into(), 100)).expect("connections");
    assert_eq!(pods.into_keys().collect::<BTreeSet<_>>(), serving.into_iter().map(name).collect());
    gateway.stop().expect("a clean end");
}

#[test]
fn three_rolling_replacements_fail_no_request_in_tc() {
    rolls("tc", Offloads::Kernel);
}

#[test]
fn three_rolling_replacements_fail_no_request_in_native_xdp() {
    rolls("native", Offloads::Wire);
}
