//! The cluster changes while clients are at work. Issue 2, "What it must show", 4 and 6.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology,
    clients::{Http, connections, http_get, snmp, tcp_refusal, udp, who},
    names::dig,
    testing,
    topology::{GATEWAY, Offloads},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
/// What is on its way when a change is live is over within this.
const LIVE: Duration = Duration::from_secs(1);
/// How long the load goes on between changes.
const PHASE: Duration = Duration::from_secs(2);

/// What the clients do, and what they have seen.
struct Load {
    stop: AtomicBool,
    /// Pods that may answer now. None: a change is under way, old and new may.
    allowed: Mutex<Option<BTreeSet<String>>>,
    /// Pods that serve before and after the present change: connections to them must not break.
    surviving: Mutex<BTreeSet<String>>,
    wrong: Mutex<Vec<String>>,
}

impl Load {
    fn complain(&self, what: String) {
        self.wrong.lock().expect("no panic").push(what);
    }

    /// An answer came from `pod`, to a question asked while `allowed` was as given.
    fn answered(&self, what: &str, pod: &str, allowed: Option<BTreeSet<String>>) {
        if allowed.is_some_and(|allowed| !allowed.contains(pod)) {
            self.complain(format!("{what}: {pod} answered, which is no endpoint"));
        }
    }

    fn allowed(&self) -> Option<BTreeSet<String>> {
        self.allowed.lock().expect("no panic").clone()
    }

    /// A client that keeps its connection and asks again and again; when its pod is gone, it connects anew.
    fn tcp(&self, to: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut http = match Http::connect(to) {
                Ok(http) => http,
                Err(error) => return self.complain(format!("connect: {error}")),
            };
            let mut mine = String::new();
            while !self.stop.load(Ordering::Relaxed) {
                let allowed = self.allowed();
                match http.get("/") {
                    Ok(response) => {
                        self.answered("TCP", &response.server, allowed);
                        mine = response.server;
                    }
                    Err(error) => {
                        let quiet = allowed.is_some() && self.allowed() == allowed;
                        if self.surviving.lock().expect("no panic").contains(&mine) || (mine.is_empty() && quiet) {
                            self.complain(format!("a connection to {mine:?}, which lives on, broke: {error:#}"));
                        }
                        break;
                    }
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// A client that keeps its socket: every datagram is answered, by a pod that is an endpoint.
    fn udp(&self, to: SocketAddr) {
        let socket = udp(to, Duration::from_secs(1)).expect("a socket");
        while !self.stop.load(Ordering::Relaxed) {
            let allowed = self.allowed();
            match who(&socket) {
                Ok((pod, _)) => self.answered("UDP", &pod, allowed),
                // What was on its way to a pod while that was removed may be lost.
                Err(error) if allowed.is_some() && self.allowed() == allowed => {
                    self.complain(format!("UDP: {error:#}"))
                }
                Err(_) => {}
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// IP packets that a pod has received.
fn received(lab: &Lab, pod: &str) -> u64 {
    lab.namespace(pod).enter(|| snmp("Ip", "InReceives")).expect("a counter")
}

/// Scales under load through these sets of pods (by number) and checks after each change.
fn changes_under_load(mode: &str, offloads: Offloads) {
    let Some(_turn) = testing::turn(&[]) else { return };
    let nodes = [Node::Worker1, Node::Worker2, Node::Gateway].into_iter().cycle().take(13);
    let topology = Topology { offloads, ..Topology::with_pods(&nodes.collect::<Vec<_>>()) };
    let lab = Lab::build(topology).expect("the lab");
    let name = |number: &usize| format!("web-{number}");
    // 3 -> 10 -> 2 of those -> all replaced.
    let steps: [Vec<usize>; 4] = [vec![0, 1, 2], (0..10).collect(), vec![1, 5], vec![10, 11, 12]];
    let service =
        |step: &[usize]| Service::of_pods("shop", "web", VIP, step.iter().map(|number| &lab.topology.pods[*number]));
    lab.manifests.put(&service(&steps[0])).expect("a manifest");
    let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
    let set = |step: &[usize]| step.iter().map(name).collect::<BTreeSet<String>>();
    let load = Load {
        stop: AtomicBool::new(false),
        allowed: Mutex::new(Some(set(&steps[0]))),
        surviving: Mutex::new(set(&steps[0])),
        wrong: Mutex::default(),
    };
    let load = &load;
    lab.client().enter(|| {
        thread::scope(|scope| {
            for _ in 0..30 {
                scope.spawn(|| load.tcp((VIP, 80).into()));
                scope.spawn(|| load.udp((VIP, 7).into()));
            }
            thread::sleep(PHASE);
            for (old, new) in steps.iter().zip(&steps[1..]) {
                *load.allowed.lock().expect("no panic") = None;
                *load.surviving.lock().expect("no panic") = &set(old) & &set(new);
                lab.manifests.put(&service(new)).expect("a manifest");
                gateway.serves(&service(new)).expect("a change is live");
                // What was on its way meanwhile has arrived.
                thread::sleep(LIVE);
                *load.allowed.lock().expect("no panic") = Some(set(new));
                *load.surviving.lock().expect("no panic") = set(new);
                let removed: Vec<String> = (&set(old) - &set(new)).into_iter().collect();
                let before: Vec<u64> = removed.iter().map(|pod| received(&lab, pod)).collect();
                let used = received(&lab, &name(&new[0]));
                thread::sleep(PHASE);
                assert!(received(&lab, &name(&new[0])) > used, "no packet reached {}", name(&new[0]));
                let after: Vec<u64> = removed.iter().map(|pod| received(&lab, pod)).collect();
                if before != after {
                    load.complain(format!(
                        "packets reached {removed:?} after their removal: {before:?}, then {after:?}"
                    ));
                }
            }
            load.stop.store(true, Ordering::Relaxed);
        });
    });
    let wrong = load.wrong.lock().expect("no panic").clone();
    assert!(wrong.is_empty(), "{} complaints, the first:\n{}", wrong.len(), wrong[..wrong.len().min(10)].join("\n"));
    let pods = lab.client().enter(|| connections((VIP, 80).into(), 300)).expect("connections");
    assert_eq!(pods.into_keys().collect::<BTreeSet<_>>(), set(&steps[3]));
    let counters = gateway.counters().expect("counters");
    assert!(counters.get("flow_moved") >= 1 && counters.get("endpoint_gone") >= 1, "{counters:?}");
    gateway.stop().expect("a clean end");
}

#[test]
fn endpoints_change_under_load_without_breaking_the_survivors_connections() {
    changes_under_load("auto", Offloads::Kernel);
}

#[test]
fn endpoints_change_under_load_in_native_xdp() {
    changes_under_load("native", Offloads::Wire);
}

#[test]
fn terminating_endpoints_keep_their_connections_and_get_no_new_ones() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = Lab::build(Topology::with_pods(&[Node::Worker1, Node::Worker2])).expect("the lab");
    let mut service = Service::of_pods("shop", "web", VIP, &lab.topology.pods[..1]);
    lab.manifests.put(&service).expect("a manifest");
    let gateway = lab.gateway(&GatewayConfig::default()).expect("the gateway");
    let mut old = lab.client().enter(|| Http::connect((VIP, 80).into())).expect("connect");
    assert_eq!(old.get("/").expect("HTTP").server, "web-0");
    service = service.endpoints(&lab.topology.pods);
    service.endpoints[0].ready = false;
    service.endpoints[0].terminating = true;
    lab.manifests.put(&service).expect("a manifest");
    gateway.serves(&service).expect("a change is live");
    let pods = lab.client().enter(|| connections((VIP, 80).into(), 100)).expect("connections");
    assert_eq!(pods.into_iter().collect::<Vec<_>>(), [("web-1".to_owned(), 100)]);
    assert_eq!(old.get("/").expect("the old connection lives on").server, "web-0");
    service = service.endpoints([lab.pod("web-1")]);
    lab.manifests.put(&service).expect("a manifest");
    gateway.serves(&service).expect("a change is live");
    let began = Instant::now();
    old.get("/").expect_err("the old connection has lost its pod");
    assert!(began.elapsed() < Duration::from_secs(3), "the client was told after {:?} only", began.elapsed());
    gateway.stop().expect("a clean end");
}

#[test]
fn a_service_that_is_renumbered_or_deleted_is_gone_for_names_and_packets_as_soon_as_the_change_is_live() {
    let Some(_turn) = testing::turn(&["dig"]) else { return };
    let lab = Lab::build(Topology::with_pods(&[Node::Worker1])).expect("the lab");
    let old = Service::of_pods("shop", "web", VIP, &lab.topology.pods);
    let new = Service { vip: Some(Ipv4Addr::new(10, 1, 0, 81)), ..old.clone() };
    lab.manifests.put(&old).expect("a manifest");
    let gateway = lab.gateway(&GatewayConfig::default()).expect("the gateway");
    let resolve = |tcp: &str| dig(lab.client(), &GATEWAY.to_string(), &[tcp, &old.fqdn(), "A"]).expect("an answer");
    let reached =
        |vip: Ipv4Addr| lab.client().enter(|| http_get((vip, 80).into(), "/").map(|response| response.server));
    let mut kept = lab.client().enter(|| Http::connect((VIP, 80).into())).expect("connect");
    let kept_udp = lab.client().enter(|| udp((VIP, 7).into(), Duration::from_millis(500))).expect("a socket");
    who(&kept_udp).expect("an answer");
    assert_eq!(resolve("+notcp").data("A"), ["10.1.0.80"]);
    assert_eq!(reached(VIP).expect("HTTP"), "web-0");

    lab.manifests.put(&new).expect("a manifest");
    gateway.serves(&new).expect("a change is live");
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(resolve(transport).data("A"), ["10.1.0.81"], "{transport}");
    }
    assert_eq!(reached(new.vip.expect("a VIP")).expect("HTTP"), "web-0");
    let refusal = lab.client().enter(|| tcp_refusal((VIP, 80).into(), Duration::from_secs(1)));
    assert!(refusal.kind.is_some(), "the old ClusterIP still answers");
    kept.get("/").expect_err("a connection to the old ClusterIP still answers");
    who(&kept_udp).expect_err("datagrams to the old ClusterIP are still answered");

    lab.manifests.remove(&new).expect("remove the manifest");
    gateway.serves_no_more(&new).expect("a change is live");
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(resolve(transport).status, "NXDOMAIN", "{transport}");
    }
    assert!(reached(new.vip.expect("a VIP")).is_err(), "the ClusterIP of a deleted Service still answers");

    lab.manifests.put(&old).expect("a manifest");
    gateway.serves(&old).expect("a change is live");
    assert_eq!(resolve("+notcp").data("A"), ["10.1.0.80"]);
    assert_eq!(reached(VIP).expect("HTTP"), "web-0");
    gateway.stop().expect("a clean end");
}
