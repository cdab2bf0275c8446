//! Random changes through a real API server, with watches that break, compaction, restarts of API server, etcd and agent. At quiet moments
//! the kernel's maps equal what a simple model says and its answers equal CoreDNS'; a fresh agent makes the same maps of a fresh list.
//! While changes go on, names that have been left alone for 5 s are answered as CoreDNS does. Issue 5, "What it must show", 3 and 4.
//!
//! The seed is printed; `GATEWAY_LAB_SEED` runs one again or, as `random`, a new one; `GATEWAY_LAB_STEPS` makes it
//! longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Topology,
    alike::{self, Kind},
    clients::http_get,
    cluster::{
        self, COREDNS, Cluster,
        proxy::Proxy,
        world::{NAMESPACES, Tables, World},
    },
    process::{NotYet, wait_for},
    testing,
    topology::GATEWAY,
};
use hickory_proto::rr::RecordType;
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::Value;

/// Each kind of trouble once; longer runs go round again.
const TROUBLES: u64 = 5;
/// Changes between two rounds of trouble in a run that is longer.
const PER_ROUND: u64 = 200;
/// All is as it must be within this after the last change, on a busy machine and after a broken watch.
const QUIET: Duration = Duration::from_secs(60);
/// Answers may differ for so long after a change.
const SETTLES: Duration = Duration::from_secs(5);

/// The datapath's VIPs and ports, read from the kernel's maps; those that the test did not make are left out.
fn tables(lab: &Lab, vips: &BTreeSet<IpAddr>) -> Result<Tables> {
    let told = lab.node(Node::Gateway).enter(|| http_get(([127, 0, 0, 1], 9153).into(), "/api/v1/maps"))?;
    let entries: Vec<Value> = serde_json::from_str(&told.text()).context("/api/v1/maps")?;
    let (mut tables, mut found) = (Tables::new(), BTreeSet::new());
    for entry in &entries {
        anyhow::ensure!(entry["broken"] == 0, "places that lead nowhere: {entry}");
        let vip: IpAddr = serde_json::from_value(entry["vip"].clone())?;
        let number = |key: &str| entry[key].as_u64().with_context(|| format!("{key} of {entry}"));
        let key = (vip, u8::try_from(number("protocol")?)?, u16::try_from(number("port")?)?);
        let endpoints: BTreeSet<SocketAddr> = serde_json::from_value(entry["endpoints"].clone())?;
        // The control plane's own Service.
        if vip != IpAddr::from([10, 1, 0, 1]) {
            if key.2 == 0 {
                found.insert(vip);
            } else {
                tables.insert(key, endpoints);
            }
        }
    }
    anyhow::ensure!(found == *vips, "VIPs {found:?} and not {vips:?}");
    Ok(tables)
}

/// The gateway and CoreDNS, asked for these names in every type, with EDNS and without. Gives how many questions that were.
fn alike(lab: &Lab, names: &BTreeMap<String, Kind>) -> Result<usize> {
    let questions: Vec<_> = alike::questions(names)
        .into_iter()
        .filter(|question| matches!(question.edns, None | Some((1232, false))))
        // Of names that do not exist CoreDNS has an opinion of its own (docs/dns.md), and which of them do depends on endpoints.
        .filter(|question| !matches!(question.rtype, RecordType::SOA | RecordType::TXT))
        .collect();
    let report = alike::compare(lab.client(), (GATEWAY, 53).into(), (COREDNS, 53).into(), &questions)?;
    match report.unknown.first() {
        None => Ok(report.asked),
        Some(difference) => Err(anyhow!("{} of {} answers differ: {difference}", report.unknown.len(), report.asked)),
    }
}

/// Waits until the kernel's maps are the model's, and the answers CoreDNS'. Gives the maps.
fn agree(lab: &Lab, cluster: &Cluster<'_>, world: &World, moment: &str) -> Tables {
    let (expected, vips) = (world.tables(), world.vips());
    wait_for("the kernel's maps", QUIET, || {
        let found = tables(lab, &vips)?;
        if found == expected {
            return Ok(());
        }
        let ours: Vec<_> = found.iter().filter(|(key, value)| expected.get(*key) != Some(*value)).collect();
        let model: Vec<_> = expected.iter().filter(|(key, value)| found.get(*key) != Some(*value)).collect();
        Err(NotYet::Later(anyhow!("the kernel has {ours:#?}\nand the model {model:#?}")))
    })
    .unwrap_or_else(|error| {
        let objects = ["services", "pods", "endpointslices"].map(|kind| {
            cluster.kubectl(&["get", kind, "-A", "-o", "wide"]).unwrap_or_else(|error| format!("{error:#}"))
        });
        panic!("{moment}: {error:#}\n{}", objects.join("\n"));
    });
    let names = world.names().into_iter().map(|(name, kind, _)| (name, kind)).collect();
    let asked = wait_for("the same answers", QUIET, || Ok(alike(lab, &names)?))
        .unwrap_or_else(|error| panic!("{moment}: {error:#}"));
    println!("{moment}: {} VIPs and ports, {asked} answers alike", expected.len());
    expected
}

struct Run<'l> {
    lab: &'l Lab,
    cluster: &'l Cluster<'l>,
    proxy: &'l Proxy,
    random: StdRng,
    world: World,
    steps: u64,
}

impl Run<'_> {
    /// So many changes; the connections to the API server break now and then.
    fn change(&mut self, count: u64) {
        let Self { cluster, proxy, random, world, steps, .. } = self;
        let work = async |client| {
            for _ in 0..count {
                world.step(random, &client, 0..u8::MAX).await?;
                *steps += 1;
                if steps.is_multiple_of(40) {
                    proxy.cut();
                }
            }
            Ok(())
        };
        cluster.api(work).expect("the changes");
    }

    /// One round of trouble, with changes before, during and after it.
    fn trouble<'g>(&mut self, kind: u64, gateway: Gateway<'g>, start: &dyn Fn() -> Gateway<'g>) -> Gateway<'g> {
        match kind {
            // Nobody gets through, and when the watches come back the API server has forgotten where they were: 410 Gone.
            0 => {
                self.proxy.close(true);
                self.proxy.cut();
                self.cluster.kill_apiserver();
                self.cluster.start_apiserver().expect("the API server");
                self.change(30);
                self.cluster.compact().expect("compaction");
                self.proxy.close(false);
            }
            // The API server dies under its watches, and etcd forgets.
            1 => {
                self.cluster.kill_apiserver();
                self.cluster.start_apiserver().expect("the API server");
                self.change(10);
                self.cluster.compact().expect("compaction");
            }
            // etcd dies under the API server.
            2 => {
                self.cluster.kill_etcd();
                self.cluster.start_etcd().expect("etcd");
                self.cluster.wait_ready().expect("the API server");
            }
            // The agent is killed; what happens meanwhile, the next one reads from a fresh list.
            3 => {
                gateway.kill().expect("kill the gateway");
                self.change(20);
                return start();
            }
            // Its watches break again and again in the middle of changes.
            _ => {
                for _ in 0..10 {
                    self.change(3);
                    self.proxy.cut();
                }
            }
        }
        gateway
    }

    /// Changes go on in two Services at a time; every name that has been left alone for [`SETTLES`] is answered as CoreDNS does.
    fn compare_while_changing(&mut self, within: Duration) {
        let (lab, cluster) = (self.lab, self.cluster);
        let names = Mutex::new(self.world.names());
        let over = AtomicBool::new(false);
        let asked = thread::scope(|scope| {
            let asker = scope.spawn(|| {
                let mut asked = 0;
                let quiet = |at: &Instant| at.elapsed() > SETTLES;
                while !over.load(Ordering::SeqCst) {
                    let now = names.lock().expect("the names").clone();
                    for (name, kind, _) in now.into_iter().filter(|(_, _, at)| quiet(at)) {
                        // What was changed while it was asked may differ.
                        let same = |(n, k, at): &(String, Kind, Instant)| *n == name && *k == kind && quiet(at);
                        match alike(lab, &BTreeMap::from([(name.clone(), kind)])) {
                            Ok(questions) => asked += questions,
                            Err(error) if names.lock().expect("the names").iter().any(same) => {
                                return Err(error.context(format!("nothing was changed for {SETTLES:?}")));
                            }
                            Err(_) => {}
                        }
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                Ok(asked)
            });
            let began = Instant::now();
            let work = async |client: kube::Client| {
                while began.elapsed() < within && !asker.is_finished() {
                    // Another pair each 2 s.
                    let pair = u8::try_from(began.elapsed().as_secs() / 2 % 3).unwrap_or(0) * 2;
                    self.world.step(&mut self.random, &client, pair..pair + 2).await?;
                    *names.lock().expect("the names") = self.world.names();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(())
            };
            let changed = cluster.api(work);
            over.store(true, Ordering::SeqCst);
            let asked = asker.join().expect("the asker");
            changed.expect("the changes");
            asked.expect("answers alike")
        });
        println!("while changes went on: {asked} answers alike");
        assert!(asked > 0, "nothing was compared");
    }
}

#[test]
fn random_changes_end_in_the_state_that_a_simple_model_and_coredns_have() {
    let Some(_turn) = testing::turn(&["dig", "curl", "openssl", "unbound"]) else { return };
    if let Err(why) = cluster::program() {
        println!("SKIP: {why}");
        return;
    }
    let number = |key: &str| std::env::var(key).ok().and_then(|text| text.parse().ok());
    // The same on every run unless asked: what a run of the whole suite finds should be what was changed.
    let any = std::env::var("GATEWAY_LAB_SEED").is_ok_and(|text| text == "random");
    let seed: u64 = if any { rand::random() } else { number("GATEWAY_LAB_SEED").unwrap_or(1) };
    let steps: u64 = number("GATEWAY_LAB_STEPS").unwrap_or(TROUBLES * PER_ROUND);
    println!("GATEWAY_LAB_SEED={seed} GATEWAY_LAB_STEPS={steps}");

    let lab = Lab::build(Topology { upstream: true, ..Topology::with_pods(&[]) }).expect("the lab");
    let cluster = Cluster::start(&lab).expect("the cluster");
    cluster.apply_yaml(cluster::RBAC).expect("deploy/rbac.yaml");
    for namespace in NAMESPACES {
        cluster.kubectl(&["create", "namespace", namespace]).expect("a namespace");
    }
    cluster.start_coredns().expect("CoreDNS");
    let proxy = Proxy::start(lab.node(Node::Gateway), (cluster::CONTROL, cluster::PORT).into()).expect("the proxy");
    let kubeconfig = cluster.account_at("gateway-system", "gateway", proxy.address).expect("the gateway's token");
    let config = GatewayConfig { kubeconfig: Some(kubeconfig), ..GatewayConfig::default().with_upstream() };
    let start = || lab.gateway(&config).expect("the gateway");
    let mut gateway = start();

    let random = StdRng::seed_from_u64(seed);
    let mut run = Run { lab: &lab, cluster: &cluster, proxy: &proxy, random, world: World::default(), steps: 0 };
    let rounds = steps.div_ceil(PER_ROUND).max(TROUBLES);
    for round in 0..rounds {
        let began = Instant::now();
        run.change(steps / rounds / 2);
        gateway = run.trouble(round % TROUBLES, gateway, &start);
        run.change(steps / rounds / 2);
        agree(&lab, &cluster, &run.world, &format!("seed {seed}, after round {round}, {} changes", run.steps));
        println!("the round took {:?}", began.elapsed());
    }
    run.compare_while_changing(Duration::from_secs(12));
    let before = agree(&lab, &cluster, &run.world, &format!("seed {seed}, after the last change"));
    assert!(proxy.accepted() > 10, "the watches were broken: {} connections", proxy.accepted());
    // A fresh agent reads the same out of a fresh list.
    gateway.stop().expect("a clean end");
    let fresh = start();
    let after = tables(&lab, &run.world.vips()).expect("the maps of a fresh agent");
    assert_eq!(before, after, "seed {seed}: a fresh agent has the same in its maps");
    fresh.stop().expect("a clean end");
}
