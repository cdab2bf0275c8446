//! A full flow table and source ports that run out: what is established goes on, what cannot begin is counted. Issue 3, "What it must show", 5.

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::Duration,
};

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology,
    bpffs::{Bpffs, PinnedMap},
    clients::{Http, udp, who},
    testing,
    topology::{Offloads, both},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);

fn lab() -> Lab {
    let topology = Topology { offloads: Offloads::Wire, ..Topology::with_pods(&[Node::Worker1]) };
    let lab = Lab::build(topology).expect("the lab");
    lab.manifests.put(&Service::of_pods("shop", "web", VIP, &lab.topology.pods).dual_stack()).expect("a manifest");
    lab
}

/// Opens this many connections, one after the other, each of which has had an answer.
fn open(count: usize) -> Vec<Http> {
    let connection = |_| {
        let mut http = Http::connect((VIP, 80).into()).expect("connect");
        http.get("/").expect("HTTP");
        http
    };
    (0..count).map(connection).collect()
}

/// At twice as many flows as the table takes, a thousand connections that are in use now and then all survive.
fn long_lived_connections_survive(mode: &str) {
    const FLOWS: usize = 4_000;
    const LONG: usize = 1_000;
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = lab();
    let config = GatewayConfig { extra: format!("  flows: {FLOWS}\n"), ..GatewayConfig::mode(mode) };
    let gateway = lab.gateway(&config).expect("the gateway");
    lab.client().enter(|| {
        let mut long = open(LONG);
        for round in 0..8 {
            // Each socket is a flow of its own. Nobody waits: a flow that is refused has no answer.
            for number in 0..2 * FLOWS / 8 {
                let socket = udp((VIP, 7).into(), Duration::from_secs(1)).expect("a socket");
                socket.send(b"short").expect("a datagram");
                if number % 20 == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
            }
            for (number, http) in long.iter_mut().enumerate() {
                http.get("/").unwrap_or_else(|error| panic!("{mode}: round {round}, connection {number}: {error:#}"));
            }
        }
    });
    let counters = gateway.counters().expect("counters");
    // A few sockets may have had the port of an earlier one.
    let (begun, refused) = (counters.get("flow_created"), counters.get("flow_table_full"));
    assert!(begun + refused >= (2 * FLOWS * 9 / 10) as u64, "{mode}: {begun} flows begun and {refused} refused");
    assert!(refused > 0, "{mode}: a full table refuses, and counts it");
    gateway.stop().expect("a clean end");
}

#[test]
fn a_thousand_long_lived_connections_survive_a_full_table_in_native_xdp() {
    long_lived_connections_survive("native");
}

#[test]
fn a_thousand_long_lived_connections_survive_a_full_table_in_tc() {
    long_lived_connections_survive("tc");
}

#[test]
fn source_ports_that_run_out_refuse_new_flows_and_break_no_old_ones() {
    const PORTS: usize = 64;
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = lab();
    for mode in ["native", "tc"] {
        let config = GatewayConfig { extra: "snat:\n  ports: 10000-10063\n".into(), ..GatewayConfig::mode(mode) };
        let gateway = lab.gateway(&config).expect("the gateway");
        lab.client().enter(|| {
            let mut open: Vec<UdpSocket> = Vec::new();
            let mut refused = 0;
            for _ in 0..2 * PORTS {
                let socket = udp((VIP, 7).into(), Duration::from_millis(100)).expect("a socket");
                match who(&socket) {
                    Ok(_) => open.push(socket),
                    Err(_) => refused += 1,
                }
            }
            // Not every port must be found by a few candidates, but most are.
            assert!((PORTS / 2..=PORTS).contains(&open.len()), "{mode}: {} flows over {PORTS} ports", open.len());
            assert!(refused >= PORTS, "{mode}: {refused}");
            for (number, socket) in open.iter().enumerate() {
                socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
                who(socket).unwrap_or_else(|error| panic!("{mode}: flow {number} broke: {error:#}"));
            }
        });
        let counters = gateway.counters().expect("counters");
        assert!(counters.get("snat_exhausted") >= PORTS as u64, "{mode}: {counters:?}");
        gateway.stop().expect("a clean end");
    }
}

/// A connection is used while one record after the other is removed: each is rebuilt by the first packet that misses it.
fn either_half_may_be_lost(mode: &str) {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = lab();
    let bpffs = Bpffs::mount();
    let gateway = lab.gateway(&bpffs.config(mode)).expect("the gateway");
    let mut removed = 0;
    for (family, name) in ["FLOWS4", "FLOWS6"].into_iter().enumerate() {
        let flows = PinnedMap::open(&bpffs.find(name).expect("it is pinned")).expect(name);
        let vip = both(VIP)[family];
        lab.client().enter(|| {
            let mut http = Http::connect((vip, 80).into()).expect("connect");
            http.get("/").expect("HTTP");
            let socket = udp((vip, 7).into(), Duration::from_secs(10)).expect("a socket");
            let before = who(&socket).expect("an answer");
            for round in 0..2 {
                let keys = flows.keys().expect("keys");
                assert_eq!(keys.len(), 4, "{mode}, {vip}: two flows have two records each");
                for key in keys {
                    flows.remove(&key).expect("a record");
                    http.get("/").unwrap_or_else(|error| panic!("{mode}, {vip}, round {round}: {error:#}"));
                    let after = who(&socket).unwrap_or_else(|error| panic!("{mode}, {vip}, round {round}: {error:#}"));
                    assert_eq!(after, before, "{mode}, {vip}, round {round}");
                    removed += 1;
                }
            }
            // Half of the records go while a download is on its way, one after the other.
            let keys = flows.keys().expect("keys");
            let done = std::sync::atomic::AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    for key in keys.iter().cycle() {
                        if done.load(std::sync::atomic::Ordering::Relaxed) {
                            break;
                        }
                        // Gone already when its flow has been silent since.
                        let _ = flows.remove(key);
                        thread::sleep(Duration::from_millis(20));
                    }
                });
                let downloaded = http.download(20_000_000);
                done.store(true, std::sync::atomic::Ordering::Relaxed);
                downloaded.unwrap_or_else(|error| panic!("{mode}, {vip}: a download: {error:#}"));
            });
        });
    }
    let rebuilt = gateway.counters().expect("counters").get("flow_rebuilt");
    assert!(rebuilt >= removed, "{mode}: {rebuilt} records rebuilt, {removed} removed");
    gateway.end().expect("a clean end");
    let file = lab.dir().join("gateway.yaml");
    let args = ["detach", "--config", file.to_str().expect("UTF-8")];
    let binary = gateway_lab::agent::binary().expect("the agent's binary");
    lab.node(Node::Gateway).run(&binary.to_string_lossy(), &args).expect("detach");
}

#[test]
fn either_half_of_a_flows_records_may_be_lost_and_the_connection_does_not_notice_in_native_xdp() {
    either_half_may_be_lost("native");
}

#[test]
fn either_half_of_a_flows_records_may_be_lost_and_the_connection_does_not_notice_in_tc() {
    either_half_may_be_lost("tc");
}
