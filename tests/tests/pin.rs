//! A pinned datapath outlives its agent, and the next agent takes it over without a packet noticing. Issue 3, "Restart".

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology,
    agent::{binary, left_on},
    bpffs::Bpffs,
    clients::{Http, http_get, udp, who},
    names::dig,
    testing,
    topology::{GATEWAY, Offloads},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
const NAME: &str = "web.shop.svc.cluster.local";

fn lab(offloads: Offloads) -> Lab {
    let topology = Topology { offloads, ..Topology::with_pods(&[Node::Worker1, Node::Worker2]) };
    let lab = Lab::build(topology).expect("the lab");
    serve(&lab, 2);
    lab
}

/// The Service with the first pods of the lab.
fn serve(lab: &Lab, pods: usize) {
    lab.manifests.put(&Service::of_pods("shop", "web", VIP, &lab.topology.pods[..pods])).expect("a manifest");
}

/// A connection to that pod.
fn connected_to(pod: &str) -> Http {
    let to = || {
        let mut http = Http::connect((VIP, 80).into()).expect("a connection");
        (http.get("/").expect("HTTP").server == pod).then_some(http)
    };
    (0..100).find_map(|_| to()).expect("both pods get connections")
}

fn detach(lab: &Lab, bpffs: &Bpffs) {
    let file = lab.dir().join("gateway.yaml");
    let binary = binary().expect("the agent's binary");
    let args = ["detach", "--config", file.to_str().expect("UTF-8")];
    lab.node(Node::Gateway).run(&binary.to_string_lossy(), &args).expect("detach");
    assert_eq!(left_on(lab.node(Node::Gateway)).expect("a look"), Vec::<String>::new());
    assert!(!bpffs.pins().exists(), "pins are left");
}

/// Ends the load when the test ends, however it does: else the threads' scope would wait for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A transfer, a connection that is kept and datagrams go on while the agent is killed and another one takes over.
fn survives_a_kill(mode: &str, offloads: Offloads) {
    let Some(_turn) = testing::turn(&["dig"]) else { return };
    let bpffs = Bpffs::mount();
    let lab = lab(offloads);
    let config = bpffs.config(mode);
    let [stays, goes] = [0, 1].map(|n| lab.topology.pods[n].name.clone());
    let gateway = lab.gateway(&config).expect("the gateway");
    let (mut kept, mut lost) = lab.client().enter(|| (connected_to(&stays), connected_to(&goes)));
    // Native XDP on veth has queues of 256 frames: the transfer itself makes some datagrams get lost.
    let tries: u64 = if mode == "native" { 5 } else { 1 };
    let stop = AtomicBool::new(false);
    let (asked, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let load = Stop(&stop);
        let transfer = scope.spawn(|| {
            lab.client().enter(|| {
                let mut http = connected_to(&stays);
                while !stop.load(Ordering::Relaxed) {
                    http.download(4 << 20).expect("the transfer goes on");
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        let datagrams = scope.spawn(|| {
            lab.client().enter(|| {
                let mut socket = udp((VIP, 7).into(), Duration::from_millis(1000 / tries)).expect("a socket");
                while !stop.load(Ordering::Relaxed) {
                    let answered = (0..tries).any(|_| who(&socket).is_ok());
                    assert!(answered, "a datagram got no answer");
                    if asked.fetch_add(1, Ordering::Relaxed) % 10 == 9 {
                        // New flows begin all the time, too.
                        socket = udp((VIP, 7).into(), Duration::from_millis(1000 / tries)).expect("a socket");
                    }
                    thread::sleep(Duration::from_millis(2));
                }
            });
        });
        let goes_on = |what: &str| {
            let before = (turns.load(Ordering::Relaxed), asked.load(Ordering::Relaxed));
            let end = Instant::now() + Duration::from_secs(20);
            while turns.load(Ordering::Relaxed) < before.0 + 2 || asked.load(Ordering::Relaxed) < before.1 + 20 {
                let ended = transfer.is_finished() || datagrams.is_finished();
                assert!(!ended && Instant::now() < end, "{what}: the transfer and the datagrams do not go on");
                thread::sleep(Duration::from_millis(10));
            }
        };
        goes_on("at first");
        gateway.kill().expect("a kill");
        goes_on("without an agent");
        lab.client().enter(|| {
            assert_eq!(kept.get("/").expect("the connection lives").server, stays);
            assert_eq!(lost.get("/").expect("the connection lives").server, goes);
            http_get((VIP, 80).into(), "/").expect("new connections work");
        });
        let answer = dig(lab.client(), &GATEWAY.to_string(), &[NAME, "A"]).expect("the kernel answers alone");
        assert_eq!(answer.data("A"), [VIP.to_string()]);

        // The same cluster: nobody notices the take-over.
        let gateway = lab.gateway(&config).expect("the gateway starts again");
        goes_on("with the next agent");
        lab.client().enter(|| {
            assert_eq!(kept.get("/").expect("the connection lives").server, stays);
            assert_eq!(lost.get("/").expect("the connection lives").server, goes);
        });
        gateway.kill().expect("a kill");

        // An endpoint that goes while nobody looks.
        serve(&lab, 1);
        let gateway = lab.gateway(&config).expect("the gateway starts again");
        goes_on("with one endpoint less");
        lab.client().enter(|| {
            assert_eq!(kept.get("/").expect("the connection lives").server, stays);
            lost.get("/").expect_err("flows of an endpoint that is gone end");
            for _ in 0..20 {
                assert_eq!(http_get((VIP, 80).into(), "/").expect("HTTP").server, stays);
            }
        });
        drop(load);
        // SIGTERM leaves the datapath, too.
        gateway.end().expect("a clean end");
    });
    lab.client().enter(|| {
        assert_eq!(kept.get("/").expect("the connection lives").server, stays);
        http_get((VIP, 80).into(), "/").expect("new connections work");
    });
    assert!(!left_on(lab.node(Node::Gateway)).expect("a look").is_empty());
    detach(&lab, &bpffs);
    lab.client().enter(|| http_get((VIP, 80).into(), "/").expect_err("nobody forwards any more"));
}

#[test]
fn a_pinned_datapath_survives_its_agent_in_tc() {
    survives_a_kill("tc", Offloads::Kernel);
}

#[test]
fn a_pinned_datapath_survives_its_agent_in_native_xdp() {
    survives_a_kill("native", Offloads::Wire);
}

#[test]
fn a_mode_that_changes_replaces_the_programs() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let bpffs = Bpffs::mount();
    let lab = lab(Offloads::Kernel);
    let mut kept = None;
    for mode in ["native", "tc", "generic", "native", "auto"] {
        let gateway = lab.gateway(&bpffs.config(mode)).expect("the gateway");
        lab.client().enter(|| {
            let http = kept.get_or_insert_with(|| Http::connect((VIP, 80).into()).expect("a connection"));
            http.get("/").expect("the connection lives");
        });
        let status = gateway.json("status").expect("status").to_string();
        let xdp = lab.node(Node::Gateway).run("ip", &["-d", "link", "show", "dev", "eth0"]).expect("ip");
        let wants = ["native", "generic"].contains(&mode);
        assert_eq!(xdp.contains("prog/xdp"), wants, "{mode}: {xdp}\n{status}");
        gateway.kill().expect("a kill");
    }
    // Another layout version's pins are no obstacle, and go.
    let old = bpffs.pins().join("v999");
    fs::rename(bpffs.pins().join(version(&bpffs.pins())), &old).expect("a directory");
    let gateway = lab.gateway(&bpffs.config("native")).expect("the gateway");
    assert!(!old.exists(), "the other version's pins are left");
    lab.client().enter(|| http_get((VIP, 80).into(), "/").expect("HTTP"));
    gateway.kill().expect("a kill");
    detach(&lab, &bpffs);
}

fn version(pins: &Path) -> String {
    let entry = fs::read_dir(pins).expect("pins").next().expect("a version").expect("its name");
    entry.file_name().into_string().expect("UTF-8")
}

#[test]
fn a_start_that_fails_leaves_a_running_datapath_alone_and_otherwise_nothing() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let bpffs = Bpffs::mount();
    let lab = lab(Offloads::Kernel);
    let wrong = GatewayConfig { uplinks: vec!["eth0".into()], ..bpffs.config("native") };
    let taken = || {
        let node = lab.node(Node::Gateway);
        node.enter(|| std::net::UdpSocket::bind((GATEWAY, 53)).expect("port 53"))
    };
    let socket = taken();
    lab.gateway(&wrong).map(drop).expect_err("port 53 is taken");
    assert_eq!(left_on(lab.node(Node::Gateway)).expect("a look"), Vec::<String>::new());
    assert!(!bpffs.pins().exists(), "pins are left");
    drop(socket);

    lab.gateway(&wrong).expect("the gateway").kill().expect("a kill");
    let socket = taken();
    lab.gateway(&wrong).map(drop).expect_err("port 53 is taken");
    lab.client().enter(|| http_get((VIP, 80).into(), "/").expect("the datapath goes on"));
    drop(socket);
    detach(&lab, &bpffs);

    let nowhere = lab.dir().join("pins");
    let wrong = GatewayConfig { extra: format!("  pin: {}\n", nowhere.display()), ..GatewayConfig::default() };
    let error = format!("{:#}", lab.gateway(&wrong).map(drop).expect_err("not a BPF file system"));
    assert!(error.contains("mount -t bpf"), "{error}");
}
