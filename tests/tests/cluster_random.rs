//! Random changes through a real API server, with watches that break, compaction and restarts. At quiet moments the gateway's tables
//! equal what a simple model says, and its answers equal CoreDNS'. Issue 5, "What it must show", 3 and 4.
//!
//! The seed is printed; `GATEWAY_LAB_SEED` runs one again or, as `random`, a new one; `GATEWAY_LAB_STEPS` makes it
//! longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Topology,
    cluster::{self, COREDNS, Cluster},
    names::dig,
    process::{NotYet, wait_for},
    testing,
    topology::GATEWAY,
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

const NAMESPACES: [&str; 2] = ["red", "blue"];
const ROUNDS: usize = 3;
/// All is as it must be within this after the last change, on a busy machine and after a broken watch.
const QUIET: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cluster,
    Headless,
    External,
}

/// A slice as the test made it: address, ready.
type Slice = BTreeMap<Ipv4Addr, bool>;

/// The simple model: what the test has asked for.
#[derive(Debug)]
struct Made {
    kind: Kind,
    ports: BTreeSet<u16>,
    vip: Option<IpAddr>,
    /// By number.
    slices: BTreeMap<u8, Slice>,
}

#[derive(Debug, Default)]
struct World {
    services: BTreeMap<(&'static str, String), Made>,
    /// Names that have been and are no more.
    gone: BTreeSet<(&'static str, String)>,
}

fn port_name(port: u16) -> String {
    format!("p{port}")
}

impl World {
    /// One random change.
    async fn step(&mut self, random: &mut StdRng, client: &Client) -> Result<()> {
        let namespace = NAMESPACES[random.random_range(0..NAMESPACES.len())];
        let name = format!("svc-{}", random.random_range(0..6));
        let key = (namespace, name.clone());
        let services = Api::<Service>::namespaced(client.clone(), namespace);
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
        let Some(made) = self.services.get_mut(&key) else {
            let kind = [Kind::Cluster, Kind::Cluster, Kind::Headless, Kind::External][random.random_range(0..4)];
            let mut made = Made { kind, ports: BTreeSet::from([80]), vip: None, slices: BTreeMap::new() };
            put_service(&services, &name, &mut made).await?;
            self.services.insert(key.clone(), made);
            self.gone.remove(&key);
            return Ok(());
        };
        match random.random_range(0..10) {
            0 => {
                services.delete(&name, &DeleteParams::default()).await.context("delete a Service")?;
                for number in made.slices.keys() {
                    slices
                        .delete(&format!("{name}-{number}"), &DeleteParams::default())
                        .await
                        .context("delete a slice")?;
                }
                self.services.remove(&key);
                self.gone.insert(key);
            }
            1 if made.kind != Kind::External => {
                let port = [80, 81, 82][random.random_range(0..3)];
                if made.ports.len() < 2 || !made.ports.remove(&port) {
                    made.ports.insert(port);
                }
                put_service(&services, &name, made).await?;
                for (number, slice) in &made.slices {
                    put_slice(&slices, &name, *number, slice, &made.ports).await?;
                }
            }
            2 => {
                if let Some((number, _)) = made.slices.pop_first() {
                    slices
                        .delete(&format!("{name}-{number}"), &DeleteParams::default())
                        .await
                        .context("delete a slice")?;
                }
            }
            _ if made.kind != Kind::External => {
                // An address may well be in two slices of a Service, ready in both or in none.
                let number = random.random_range(0..3);
                let count = random.random_range(0..5);
                let slice = (0..count)
                    .map(|_| {
                        let host = random.random_range(20..40);
                        (Ipv4Addr::new(10, 244, random.random_range(1..3), host), host % 4 != 0)
                    })
                    .collect();
                put_slice(&slices, &name, number, &slice, &made.ports).await?;
                made.slices.insert(number, slice);
            }
            _ => {}
        }
        Ok(())
    }

    /// What a client must find behind each VIP and port.
    fn tables(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut tables = BTreeMap::new();
        for made in self.services.values() {
            for (vip, port) in made.vip.iter().flat_map(|vip| made.ports.iter().map(move |port| (vip, port))) {
                let ready = made.slices.values().flatten().filter(|(_, ready)| **ready);
                tables.insert(format!("{vip}:{port}"), ready.map(|(ip, _)| format!("{ip}:{}", 8000 + port)).collect());
            }
        }
        tables
    }

    /// Every question that the state implies, and some about what is not there.
    fn questions(&self) -> Vec<(String, &'static str)> {
        let mut all = Vec::new();
        for ((namespace, name), made) in &self.services {
            let fqdn = format!("{name}.{namespace}.svc.cluster.local");
            all.push((fqdn.clone(), "A"));
            if made.kind == Kind::External {
                continue;
            }
            all.extend([(fqdn.clone(), "AAAA"), (fqdn.clone(), "SRV"), (format!("no.such.{fqdn}"), "A")]);
            all.extend(made.ports.iter().map(|port| (format!("_{}._tcp.{fqdn}", port_name(*port)), "SRV")));
            all.push((format!("_none._tcp.{fqdn}"), "SRV"));
            if let Some(IpAddr::V4(vip)) = made.vip {
                all.push((reverse(vip), "PTR"));
            }
            let first = made.slices.values().flatten().next();
            if let Some((ip, _)) = first {
                all.push((format!("{}.{fqdn}", ip.to_string().replace('.', "-")), "A"));
                all.push((reverse(*ip), "PTR"));
            }
        }
        all.extend(self.gone.iter().map(|(namespace, name)| (format!("{name}.{namespace}.svc.cluster.local"), "A")));
        all
    }
}

fn reverse(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}

async fn put_service(api: &Api<Service>, name: &str, made: &mut Made) -> Result<()> {
    let ports: Vec<Value> = made
        .ports
        .iter()
        .map(|port| json!({"name": port_name(*port), "port": port, "targetPort": 8000 + port, "protocol": "TCP"}))
        .collect();
    let spec = match made.kind {
        Kind::Cluster => json!({"ports": ports}),
        Kind::Headless => json!({"ports": ports, "clusterIP": "None"}),
        Kind::External => json!({"type": "ExternalName", "externalName": "www.example.test"}),
    };
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let params = PatchParams::apply("lab").force();
    let stored = api.patch(name, &params, &Patch::Apply(&object)).await.with_context(|| object.to_string())?;
    made.vip = stored.spec.and_then(|spec| spec.cluster_ip).and_then(|ip| ip.parse().ok());
    Ok(())
}

async fn put_slice(
    api: &Api<EndpointSlice>,
    service: &str,
    number: u8,
    slice: &Slice,
    ports: &BTreeSet<u16>,
) -> Result<()> {
    let endpoints: Vec<Value> = slice
        .iter()
        .map(|(ip, ready)| json!({"addresses": [ip], "conditions": {"ready": ready, "serving": ready, "terminating": false}}))
        .collect();
    let ports: Vec<Value> =
        ports.iter().map(|port| json!({"name": port_name(*port), "port": 8000 + port, "protocol": "TCP"})).collect();
    let name = format!("{service}-{number}");
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": ports,
    });
    let params = PatchParams::apply("lab").force();
    api.patch(&name, &params, &Patch::Apply(&object)).await.with_context(|| object.to_string())?;
    Ok(())
}

/// What the gateway has behind each VIP and port of the test's namespaces.
fn tables(gateway: &Gateway<'_>) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let services = gateway.json("services")?;
    let mut tables = BTreeMap::new();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for service in services.as_array().context("a list of services")? {
        if !NAMESPACES.contains(&service["namespace"].as_str().unwrap_or_default()) {
            continue;
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            let endpoint = |value: &Value| match value["addr"].as_str() {
                Some(address) => format!("{address}:{}", value["port"]),
                None => text(value),
            };
            let endpoints = port["endpoints"].as_array().into_iter().flatten().map(endpoint).collect();
            tables.insert(format!("{}:{}", text(&port["vip"]), port["port"]), endpoints);
        }
    }
    Ok(tables)
}

/// What a server says to a question: code and records, in an order of their own, without TTLs.
fn answer(lab: &Lab, server: IpAddr, name: &str, rtype: &str) -> Result<(String, BTreeSet<String>)> {
    let answer = dig(lab.client(), &server.to_string(), &[name, rtype])?;
    let line = |r: gateway_lab::names::Record| {
        let mut data: Vec<&str> = r.data.split_whitespace().collect();
        if r.rtype == "SRV" && data.len() == 4 {
            // Weights are a share of a hundred; CoreDNS counts an address that is in two slices twice.
            data[1] = "weight";
        }
        format!("{} {} {}", r.name, r.rtype, data.join(" ")).to_lowercase()
    };
    Ok((answer.status, answer.answers.into_iter().map(line).collect()))
}

/// Waits until the gateway's tables are the model's, and its answers CoreDNS'.
fn agree(lab: &Lab, gateway: &Gateway<'_>, world: &World, moment: &str) {
    let expected = world.tables();
    wait_for("the tables", QUIET, || {
        let found = tables(gateway)?;
        if found == expected { Ok(()) } else { Err(NotYet::Later(anyhow!("{found:#?}\nand not\n{expected:#?}"))) }
    })
    .unwrap_or_else(|error| panic!("{moment}: {error:#}"));
    let questions = world.questions();
    for (name, rtype) in &questions {
        wait_for("the same answer", QUIET, || {
            let (ours, theirs) = (answer(lab, GATEWAY.into(), name, rtype)?, answer(lab, COREDNS.into(), name, rtype)?);
            if ours == theirs {
                return Ok(());
            }
            Err(NotYet::Later(anyhow!("{name} {rtype}: the gateway says {ours:?}, CoreDNS {theirs:?}")))
        })
        .unwrap_or_else(|error| panic!("{moment}: {error:#}"));
    }
    println!("{moment}: {} VIPs and ports, {} answers alike", expected.len(), questions.len());
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
    let steps = number("GATEWAY_LAB_STEPS").unwrap_or(150);
    println!("GATEWAY_LAB_SEED={seed} GATEWAY_LAB_STEPS={steps}");
    let mut random = StdRng::seed_from_u64(seed);

    let lab = Lab::build(Topology { upstream: true, ..Topology::with_pods(&[Node::Worker1]) }).expect("the lab");
    let cluster = Cluster::start(&lab).expect("the cluster");
    cluster.apply_yaml(cluster::RBAC).expect("deploy/rbac.yaml");
    for namespace in NAMESPACES {
        cluster.kubectl(&["create", "namespace", namespace]).expect("a namespace");
    }
    cluster.start_coredns().expect("CoreDNS");
    let kubeconfig = cluster.account("gateway-system", "gateway").expect("the gateway's token");
    let config = GatewayConfig { kubeconfig: Some(kubeconfig), ..GatewayConfig::default().with_upstream() };
    let mut gateway = lab.gateway(&config).expect("the gateway");

    let mut world = World::default();
    for round in 0..ROUNDS {
        let changes = |world: &mut World, random: &mut StdRng, count: u64| {
            cluster
                .api(async |client| {
                    for _ in 0..count {
                        world.step(random, &client).await?;
                    }
                    Ok(())
                })
                .expect("the changes");
        };
        changes(&mut world, &mut random, steps / ROUNDS as u64 / 2);
        match round {
            // The API server dies and comes back; what happens before the gateway is back at it is history that etcd has forgotten.
            0 => {
                cluster.kill_apiserver();
                cluster.start_apiserver().expect("the API server");
                changes(&mut world, &mut random, steps / ROUNDS as u64 / 4);
                cluster.compact().expect("compaction");
            }
            // etcd dies under the API server.
            1 => {
                cluster.kill_etcd();
                cluster.start_etcd().expect("etcd");
                cluster.wait_ready().expect("the API server");
            }
            // The agent dies, and another one begins from a fresh list.
            _ => {
                gateway.kill().expect("kill the gateway");
                gateway = lab.gateway(&config).expect("the next gateway");
            }
        }
        changes(&mut world, &mut random, steps / ROUNDS as u64 / 2);
        agree(&lab, &gateway, &world, &format!("seed {seed}, after round {round}"));
    }
    // A fresh agent reads the same out of a fresh list.
    gateway.stop().expect("a clean end");
    let fresh = lab.gateway(&config).expect("a fresh gateway");
    agree(&lab, &fresh, &world, &format!("seed {seed}, a fresh agent"));
    fresh.stop().expect("a clean end");
}
