//! The lab itself, before any gateway: a test that fails here says that the others' failures mean nothing.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use gateway_lab::{
    Lab, Node, Topology, clients,
    names::{dig, with_resolver},
    netns, testing,
    topology::{Access, ECHO_PORT, HTTP_PORT, Offloads, UPSTREAM, Wiring, both},
};

/// Every pod answers HTTP, a download and datagrams, asked from the gateway node, over this topology.
fn pods_answer(topology: Topology) {
    let lab = Lab::build(topology).expect("the lab");
    let largest = usize::from(lab.topology.pod_mtu()) - 28;
    for pod in &lab.topology.pods {
        lab.node(Node::Gateway).enter(|| {
            for address in both(pod.address) {
                let http = SocketAddr::from((address, HTTP_PORT));
                let response = clients::http_get(http, "/").expect("HTTP");
                assert_eq!(response.server, pod.name);
                let seen = response.text().trim_end().rsplit_once(' ').and_then(|(_, seen)| seen.parse().ok());
                assert_eq!(seen.map(|seen: IpAddr| seen.is_ipv4()), Some(address.is_ipv4()), "{}", response.text());
                let download = clients::Http::connect(http).expect("connect").download(5_000_001);
                assert_eq!(download.expect("download"), pod.name);
                let largest = if address.is_ipv4() { largest } else { largest - 20 };
                clients::datagrams((address, ECHO_PORT).into(), largest, largest, 3).expect("datagrams");
            }
        });
    }
}

#[test]
fn pods_on_every_node_answer_over_routes_bridges_and_host_networks() {
    let Some(_turn) = testing::turn(&[]) else { return };
    pods_answer(Topology::with_pods(&Node::ALL).host_pod(Node::Worker1).host_pod(Node::Gateway));
}

#[test]
fn pods_on_every_node_answer_over_bare_veths() {
    let Some(_turn) = testing::turn(&[]) else { return };
    pods_answer(Topology { wiring: Wiring::Veth, offloads: Offloads::Wire, ..Topology::with_pods(&Node::ALL) });
}

#[test]
fn pods_on_every_node_answer_over_the_overlay() {
    let Some(_turn) = testing::turn(&[]) else { return };
    pods_answer(Topology { overlay: true, offloads: Offloads::PeersTakeXdp, ..Topology::with_pods(&Node::ALL) });
}

#[test]
fn clients_reach_the_gateway_node_flat_and_through_the_router_but_no_cluster_ip() {
    let Some(_turn) = testing::turn(&[]) else {
        return;
    };
    for access in [Access::Flat, Access::Router] {
        let lab = Lab::build(Topology { access, ..Topology::default().host_pod(Node::Gateway) }).expect("the lab");
        lab.client().enter(|| {
            let node = SocketAddr::from((Node::Gateway.address(), HTTP_PORT));
            assert_eq!(clients::http_get(node, "/").expect("HTTP").text(), "web-0 serves 10.90.1.100\n");
            let vip = clients::tcp_refusal("10.1.0.80:80".parse().expect("an address"), Duration::from_millis(500));
            assert!(vip.kind.is_some(), "a ClusterIP answers without a gateway");
        });
    }
}

#[test]
fn connections_are_counted_by_pod() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = Lab::build(Topology::with_pods(&[Node::Worker1])).expect("the lab");
    let to = (lab.pod("web-0").address, HTTP_PORT).into();
    let pods = lab.node(Node::Gateway).enter(|| clients::connections(to, 1000)).expect("connections");
    assert_eq!(pods.into_iter().collect::<Vec<_>>(), [("web-0".to_owned(), 1000)]);
}

#[test]
fn the_upstream_answers_names_outside_by_udp_and_tcp_and_knows_no_others() {
    let Some(_turn) = testing::turn(&["unbound", "dig", "getent"]) else {
        return;
    };
    let lab = Lab::build(Topology { upstream: true, ..Topology::default() }).expect("the lab");
    let ask = |args: &[&str]| dig(lab.client(), &UPSTREAM.to_string(), args).expect("dig");
    assert_eq!(ask(&["www.example.test", "A"]).data("A"), ["192.0.2.80"]);
    assert_eq!(ask(&["+tcp", "example.test", "MX"]).data("MX"), ["10 mail.example.test."]);
    assert_eq!(ask(&["huge.example.test", "TXT"]).data("TXT").len(), 24);
    assert!(ask(&["+ignore", "+noedns", "big.example.test", "A"]).flag("tc"));
    assert_eq!(ask(&["nobody.example.test", "A"]).status, "NXDOMAIN");
    assert_eq!(ask(&["elsewhere.test", "A"]).status, "NXDOMAIN");
    let resolv = format!("nameserver {UPSTREAM}\nsearch example.test\n");
    let hosts = with_resolver(lab.client(), lab.dir(), &resolv, "getent", &["ahostsv4", "www"]).expect("getent");
    assert!(hosts.starts_with("192.0.2.80"), "{hosts}");
}

#[test]
fn two_routers_stand_between_client_and_node_and_their_link_is_narrow() {
    let Some(_turn) = testing::turn(&["ping"]) else { return };
    let access = Access::Routers { mtu: 1280 };
    let lab = Lab::build(Topology { access, ..Topology::default().host_pod(Node::Gateway) }).expect("the lab");
    for (address, header) in both(Node::Gateway.address()).into_iter().zip([28, 48]) {
        let to = SocketAddr::from((address, HTTP_PORT));
        lab.client().enter(|| clients::Http::connect(to).expect("connect").download(5_000_001).expect("a download"));
        let ping = |size: usize| {
            lab.client().run("ping", &["-nc1", "-W2", "-Mdo", "-s", &size.to_string(), &address.to_string()])
        };
        ping(1280 - header).expect("what fits passes");
        let said = format!("{:#}", ping(1281 - header).expect_err("what does not fit is told"));
        assert!(said.contains("1280"), "{said}");
    }
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next_and_nothing_else_is() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let mine = Lab::build(Topology::default()).expect("the lab");
    // A record as a killed run leaves it: the owner's pid belongs to nobody who began at that time.
    let dead = netns::Record::begin().expect("a record");
    let names: Vec<String> = dead.namespaces(&["a", "b"]).expect("namespaces").into_iter().map(|ns| ns.name).collect();
    std::fs::write(dead.dir.join("owner"), "1 1").expect("the owner");
    assert_eq!(netns::sweep().expect("sweep"), 1);
    let left = netns::recorded();
    assert!(names.iter().all(|name| !left.contains(name)), "{left:?}");
    assert!(left.contains(&mine.client().name));
    assert!(!dead.dir.exists());
    std::mem::forget(dead);
    let client = mine.client().path();
    drop(mine);
    assert!(!client.exists());
}
