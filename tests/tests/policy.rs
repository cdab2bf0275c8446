//! What a Service's own fields decide: its further addresses, zone hints, `internalTrafficPolicy`, session affinity. Issue 3.

use std::{collections::BTreeSet, io::ErrorKind, net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Service, Topology,
    clients::{connections, http_get, tcp_refusal, udp, udp_refusal, who},
    process::{NotYet, wait_for},
    testing,
    topology::GATEWAY,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const INGRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
const PATIENCE: Duration = Duration::from_secs(2);
/// A change of the manifests is live within a second; this is for a busy machine.
const LIVE: Duration = Duration::from_secs(5);

/// A config with this line inside `datapath` and this one at top level.
fn config(mode: &str, datapath: &str, top: &str) -> GatewayConfig {
    GatewayConfig { extra: format!("  {datapath}\n{top}\n"), ..GatewayConfig::mode(mode) }
}

/// Names of the pods that answer `count` new connections, and as many new UDP sockets.
fn answering(lab: &Lab, address: Ipv4Addr, count: usize) -> BTreeSet<String> {
    lab.client().enter(|| {
        let tcp = connections((address, 80).into(), count).expect("connections");
        let udp = (0..count).map(|_| who(&udp((address, 7).into(), PATIENCE).expect("a socket")).expect("an answer").0);
        tcp.into_keys().chain(udp).collect()
    })
}

/// Waits until new connections are answered by these pods and no others.
fn becomes(lab: &Lab, pods: &[&str]) {
    let wanted: BTreeSet<String> = pods.iter().map(|pod| (*pod).to_owned()).collect();
    let change = || -> Result<()> {
        let now = lab.client().enter(|| connections((VIP, 80).into(), 20))?.into_keys().collect::<BTreeSet<_>>();
        ensure!(now == wanted, "{now:?} answer");
        Ok(())
    };
    wait_for("the right pods", LIVE, || change().map_err(NotYet::Later)).expect("a change is live");
    // No sockets here: a new one may get the port of an old one, whose flow may still be there and stay where it is.
    let now = lab.client().enter(|| connections((VIP, 80).into(), 60)).expect("connections");
    assert_eq!(now.into_keys().collect::<BTreeSet<_>>(), wanted);
}

fn refused(lab: &Lab, address: Ipv4Addr) {
    let [tcp, udp] = lab
        .client()
        .enter(|| [tcp_refusal((address, 80).into(), PATIENCE), udp_refusal((address, 7).into(), PATIENCE)]);
    assert_eq!(
        (tcp.kind, udp.kind),
        (Some(ErrorKind::ConnectionRefused), Some(ErrorKind::ConnectionRefused)),
        "{address}"
    );
}

/// Nothing serves that address: the client hears nothing, or that there is no way.
fn unserved(lab: &Lab, address: Ipv4Addr) {
    let kind = lab.client().enter(|| tcp_refusal((address, 80).into(), Duration::from_millis(500))).kind;
    assert!(kind.is_some_and(|kind| kind != ErrorKind::ConnectionRefused), "{address}: {kind:?}");
}

fn problems(gateway: &Gateway<'_>) -> String {
    gateway.json("status").expect("status")["problems"].to_string()
}

/// A Node object; `zone` empty: without the label.
fn node(name: &str, address: Ipv4Addr, zone: &str) -> String {
    let labels =
        if zone.is_empty() { String::new() } else { format!("\n  labels: {{topology.kubernetes.io/zone: {zone}}}") };
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}{labels}\nstatus:\n  addresses: [{{type: InternalIP, address: {address}}}]\n"
    )
}

#[test]
fn external_and_load_balancer_addresses_are_served_when_asked_for_and_not_otherwise() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = Lab::build(Topology::with_pods(&[Node::Worker1, Node::Worker2])).expect("the lab");
    lab.client()
        .ip(&[EXTERNAL, INGRESS].map(|address| format!("route add {address} via {GATEWAY}")))
        .expect("the client's routes");
    let service = Service {
        external_ips: vec![EXTERNAL, GATEWAY],
        ingress: vec![INGRESS],
        ..Service::of_pods("shop", "web", VIP, &lab.topology.pods)
    };
    lab.manifests.put(&service).expect("a manifest");
    let all = BTreeSet::from(["web-0".to_owned(), "web-1".to_owned()]);
    for mode in ["native", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        assert_eq!(answering(&lab, VIP, 20), all, "{mode}");
        unserved(&lab, EXTERNAL);
        unserved(&lab, INGRESS);
        assert_eq!(problems(&gateway), "[]", "{mode}: what is not asked for is no problem");
        gateway.stop().expect("a clean end");

        let gateway = lab.gateway(&config(mode, "vips: [clusterIP, externalIP]", "")).expect("the gateway");
        assert_eq!(answering(&lab, VIP, 20), all, "{mode}");
        assert_eq!(answering(&lab, EXTERNAL, 20), all, "{mode}");
        unserved(&lab, INGRESS);
        let refusal = lab.client().enter(|| tcp_refusal((EXTERNAL, 81).into(), PATIENCE));
        assert_eq!(refusal.kind, Some(ErrorKind::ConnectionRefused), "{mode}: a port that the Service does not have");
        assert!(problems(&gateway).contains("externalIP 10.90.2.100 is left out"), "{}", problems(&gateway));
        gateway.stop().expect("a clean end");
    }
    let gateway = lab.gateway(&config("auto", "vips: [clusterIP, externalIP, loadBalancer]", "")).expect("the gateway");
    assert_eq!(answering(&lab, INGRESS, 20), all);
    assert_eq!(answering(&lab, EXTERNAL, 20), all);
    // It goes when the Service gives it up.
    lab.manifests.put(&Service { ingress: vec![], ..service }).expect("a manifest");
    let gone = || match lab.client().enter(|| http_get((INGRESS, 80).into(), "/")) {
        Ok(_) => Err(NotYet::Later(anyhow::anyhow!("{INGRESS} still answers"))),
        Err(_) => Ok(()),
    };
    wait_for("the address to go", LIVE, gone).expect("a change is live");
    unserved(&lab, INGRESS);
    assert_eq!(answering(&lab, EXTERNAL, 20), all);
    gateway.stop().expect("a clean end");
}

#[test]
fn a_local_policy_keeps_to_pods_on_the_gateways_own_node() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = Lab::build(Topology::with_pods(&[Node::Worker1, Node::Gateway, Node::Gateway])).expect("the lab");
    let of = |pods: &[&str], internal_local| {
        let service = Service::of_pods("shop", "web", VIP, pods.iter().map(|pod| lab.pod(pod)));
        lab.manifests.put(&Service { internal_local, ..service }).expect("a manifest");
    };
    of(&["web-0", "web-1", "web-2"], true);
    for mode in ["native", "tc"] {
        // Found by `node`, as there is no Node object.
        let gateway = lab.gateway(&config(mode, "", "node: gateway")).expect("the gateway");
        becomes(&lab, &["web-1", "web-2"]);
        of(&["web-0"], true);
        let local = || {
            let kind = lab.client().enter(|| tcp_refusal((VIP, 80).into(), PATIENCE)).kind;
            if kind.is_some() { Ok(()) } else { Err(NotYet::Later(anyhow::anyhow!("somebody answers"))) }
        };
        wait_for("no pod here", LIVE, local).expect("a change is live");
        refused(&lab, VIP);
        of(&["web-0", "web-1", "web-2"], false);
        becomes(&lab, &["web-0", "web-1", "web-2"]);
        of(&["web-0", "web-1", "web-2"], true);
        gateway.stop().expect("a clean end");
    }
}

#[test]
fn zone_hints_keep_traffic_in_the_gateways_zone() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = Lab::build(Topology::with_pods(&[Node::Worker1, Node::Worker2, Node::Gateway])).expect("the lab");
    let mut service = Service::of_pods("shop", "web", VIP, &lab.topology.pods);
    for (endpoint, zone) in service.endpoints.iter_mut().zip(["a", "b", "a"]) {
        endpoint.zones = vec![zone];
    }
    lab.manifests.put(&service).expect("a manifest");
    // Found by its address: the host that runs the tests has another name.
    let here = |zone: &str| lab.manifests.write("node.yaml", &node("some-node", GATEWAY, zone)).expect("a manifest");
    here("a");
    let gateway = lab.gateway(&GatewayConfig::mode("auto")).expect("the gateway");
    let status = gateway.json("status").expect("status");
    assert_eq!((&status["node"], &status["zone"]), (&"some-node".into(), &"a".into()));
    becomes(&lab, &["web-0", "web-2"]);
    // A connection that is there stays where it is when the zone moves away under it.
    let stays = lab.client().enter(|| udp((VIP, 7).into(), PATIENCE).expect("a socket"));
    let pod = who(&stays).expect("an answer").0;
    here("b");
    becomes(&lab, &["web-1"]);
    assert_eq!(who(&stays).expect("an answer").0, pod);
    for elsewhere in ["c", ""] {
        here(elsewhere);
        let zone = if elsewhere.is_empty() { serde_json::Value::Null } else { elsewhere.into() };
        let seen = || -> Result<()> {
            let status = gateway.json("status")?;
            ensure!(status["zone"] == zone, "{}", status["zone"]);
            Ok(())
        };
        wait_for("the zone", LIVE, || seen().map_err(NotYet::Later)).expect("a change is live");
        becomes(&lab, &["web-0", "web-1", "web-2"]);
    }
    here("a");
    becomes(&lab, &["web-0", "web-2"]);
    service.endpoints[1].zones.clear();
    lab.manifests.put(&service).expect("a manifest");
    becomes(&lab, &["web-0", "web-1", "web-2"]);
    gateway.stop().expect("a clean end");
}

#[test]
fn a_client_with_affinity_stays_with_one_endpoint() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let nodes: Vec<Node> = [Node::Worker1, Node::Worker2, Node::Gateway].into_iter().cycle().take(6).collect();
    let topology = nodes.iter().fold(Topology::default(), |topology, node| topology.pod(*node));
    let topology =
        (1..=7).fold(topology, |topology, n| topology.client(&format!("c{n}"), Ipv4Addr::new(10, 90, 1, 10 + n)));
    let lab = Lab::build(topology).expect("the lab");
    let service = Service::of_pods("shop", "web", VIP, &lab.topology.pods);
    for mode in ["native", "tc"] {
        lab.manifests.put(&service).expect("a manifest");
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        // By TCP alone: a datagram from a port that was used before goes on where that port's flow went.
        let free = lab.client().enter(|| connections((VIP, 80).into(), 50)).expect("connections");
        assert!(free.len() > 1, "without affinity a client goes everywhere");
        lab.manifests.put(&Service { affinity: Some(600), ..service.clone() }).expect("a manifest");
        let shown = || -> Result<()> {
            let services = gateway.json("services")?;
            ensure!(services[0]["ports"][0]["affinity"] == 600, "{services}");
            Ok(())
        };
        wait_for("the affinity", LIVE, || shown().map_err(NotYet::Later)).expect("a change is live");
        let mut used = BTreeSet::new();
        for client in &lab.topology.clients {
            let pods = lab.namespace(&client.name).enter(|| {
                let tcp = connections((VIP, 80).into(), 50).expect("connections").into_keys().collect::<BTreeSet<_>>();
                let socket = || udp((VIP, 7).into(), PATIENCE).expect("a socket");
                let udp = (0..50).map(|_| who(&socket()).expect("an answer").0).collect::<BTreeSet<_>>();
                // Each port of a Service chooses for itself, as in kube-proxy.
                [tcp, udp]
            });
            assert_eq!(pods.each_ref().map(BTreeSet::len), [1, 1], "{}, {mode}: {pods:?}", client.name);
            used.extend(pods.into_iter().flatten());
        }
        assert!(used.len() > 1, "{mode}: eight clients are not all sent to {used:?}");
        gateway.stop().expect("a clean end");
    }
}
