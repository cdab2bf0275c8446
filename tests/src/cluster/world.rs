//! What the random test asks of the API server, and what must follow from it: a model as simple as it can be, which shares nothing with
//! the gateway's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use rand::{Rng as _, rngs::StdRng, seq::IteratorRandom as _};
use serde_json::{Value, json};

use crate::{alike, topology::ipv6};

/// The namespaces in which everything happens.
pub const NAMESPACES: [&str; 2] = ["red", "blue"];
/// Services of one name in each of them.
const NAMES: u8 = 6;
/// ClusterIPs that Services ask for, so that one takes over another's.
const FIXED: [Ipv4Addr; 3] = [Ipv4Addr::new(10, 1, 200, 1), Ipv4Addr::new(10, 1, 200, 2), Ipv4Addr::new(10, 1, 200, 3)];

/// Namespace and name.
pub type Name = (&'static str, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cluster { dual: bool, fixed: Option<Ipv4Addr> },
    Headless,
    External,
}

/// A Service's port; the name says both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    number: u16,
    udp: bool,
}

impl Port {
    const ALL: [Self; 4] = [
        Self { number: 80, udp: false },
        Self { number: 80, udp: true },
        Self { number: 81, udp: false },
        Self { number: 82, udp: true },
    ];

    fn name(self) -> String {
        format!("{}{}", if self.udp { "u" } else { "p" }, self.number)
    }

    fn protocol(self) -> &'static str {
        if self.udp { "UDP" } else { "TCP" }
    }

    fn ip_protocol(self) -> u8 {
        if self.udp { 17 } else { 6 }
    }
}

#[derive(Debug)]
struct Made {
    kind: Kind,
    ports: BTreeSet<Port>,
    vips: Vec<IpAddr>,
    /// Its pods are chosen by the real controller.
    selector: bool,
    changed: Instant,
}

/// A slice of the test's own. Ports by name may differ from the Service's.
#[derive(Debug)]
struct Slice {
    ports: BTreeSet<Port>,
    ready: BTreeMap<IpAddr, bool>,
}

/// A pod that is there for one Service.
#[derive(Debug)]
struct Member {
    of: Name,
    ip: Ipv4Addr,
    ready: bool,
    /// Its ports' numbers begin here: pods of one Service listen on different ones under the same name.
    base: u16,
}

/// VIP, IP protocol and port → endpoints.
pub type Tables = BTreeMap<(IpAddr, u8, u16), BTreeSet<SocketAddr>>;

/// Everything that was asked for and stands.
#[derive(Debug, Default)]
pub struct World {
    services: BTreeMap<Name, Made>,
    /// By Service and number; also of Services that are not there.
    slices: BTreeMap<(Name, u8), Slice>,
    pods: BTreeMap<u8, Member>,
    /// Names that have been and are no more, and since when.
    gone: BTreeMap<Name, Instant>,
}

impl World {
    /// One random change, to a Service whose number is in `numbers` or to what belongs to it.
    ///
    /// # Errors
    /// What the API server says: the test asks for nothing that is forbidden.
    pub async fn step(&mut self, random: &mut StdRng, client: &Client, numbers: std::ops::Range<u8>) -> Result<()> {
        let namespace = NAMESPACES[random.random_range(0..NAMESPACES.len())];
        let name = format!("svc-{}", random.random_range(numbers.start..numbers.end.min(NAMES)));
        let key = (namespace, name.clone());
        let api = At { client, namespace };
        let Some(made) = self.services.get_mut(&key) else {
            // A slice may be there before its Service.
            if random.random_ratio(1, 4) {
                return self.put_slice(random, &api, &key).await;
            }
            return self.create(random, &api, &key).await;
        };
        made.changed = Instant::now();
        match random.random_range(0..14) {
            0 => self.delete(random, &api, &key).await,
            1 => {
                // The address goes from one Service to another, as fast as it can.
                let Kind::Cluster { fixed: Some(_), .. } = made.kind else { return Ok(()) };
                self.delete(random, &api, &key).await?;
                let heir = (namespace, format!("svc-{}", random.random_range(numbers.start..numbers.end.min(NAMES))));
                if self.services.contains_key(&heir) { Ok(()) } else { self.create(random, &api, &heir).await }
            }
            2 if made.kind != Kind::External => {
                let port = Port::ALL[random.random_range(0..Port::ALL.len())];
                if made.ports.len() < 2 || !made.ports.remove(&port) {
                    made.ports.insert(port);
                }
                api.put_service(&name, made).await
            }
            3 => {
                made.kind = match made.kind {
                    Kind::Cluster { .. } => Kind::External,
                    Kind::External => Kind::Cluster { dual: random.random(), fixed: None },
                    Kind::Headless => return Ok(()),
                };
                api.put_service(&name, made).await
            }
            4 => {
                let number = self.slices.keys().filter(|(of, _)| *of == key).map(|(_, n)| *n).choose(random);
                let Some(number) = number else { return Ok(()) };
                api.delete::<EndpointSlice>(&format!("{name}-{number}"), 0).await?;
                self.slices.remove(&(key, number));
                Ok(())
            }
            5..=8 if made.selector => self.change_pods(random, &api, &key).await,
            _ => self.put_slice(random, &api, &key).await,
        }
    }

    async fn create(&mut self, random: &mut StdRng, api: &At<'_>, key: &Name) -> Result<()> {
        let taken: BTreeSet<IpAddr> = self.services.values().flat_map(|made| made.vips.iter().copied()).collect();
        let fixed = FIXED.into_iter().filter(|ip| !taken.contains(&(*ip).into())).choose(random);
        let kind = match random.random_range(0..6) {
            0 => Kind::Headless,
            1 => Kind::External,
            2 => Kind::Cluster { dual: true, fixed: None },
            3 => Kind::Cluster { dual: false, fixed: None },
            _ => Kind::Cluster { dual: random.random(), fixed },
        };
        let port = Port::ALL[random.random_range(0..Port::ALL.len())];
        let ports = BTreeSet::from([Port::ALL[0], port]);
        // A Service of one name has a selector always or never: what a controller had made for one with a selector stays for ever when it
        // was away while the Service was deleted and made again without.
        let selector = key.1.ends_with(['0', '2', '4']);
        let mut made = Made { kind, ports, vips: vec![], selector, changed: Instant::now() };
        api.put_service(&key.1, &mut made).await?;
        self.services.insert(key.clone(), made);
        self.gone.remove(key);
        Ok(())
    }

    /// Its own slices go with it, or stay.
    async fn delete(&mut self, random: &mut StdRng, api: &At<'_>, key: &Name) -> Result<()> {
        api.delete::<Service>(&key.1, 0).await?;
        self.services.remove(key);
        self.gone.insert(key.clone(), Instant::now());
        if random.random_ratio(2, 3) {
            let own: Vec<u8> = self.slices.keys().filter(|(of, _)| of == key).map(|(_, number)| *number).collect();
            for number in own {
                api.delete::<EndpointSlice>(&format!("{}-{number}", key.1), 0).await?;
                self.slices.remove(&(key.clone(), number));
            }
        }
        Ok(())
    }

    async fn put_slice(&mut self, random: &mut StdRng, api: &At<'_>, key: &Name) -> Result<()> {
        // An address may well be in two slices of a Service, ready in both or in none. The last number is the one of IPv6.
        let number = random.random_range(0..4);
        let count = random.random_range(0..5);
        let ready = (0..count).map(|_| {
            let host = random.random_range(20..40);
            let ip = Ipv4Addr::new(10, 244, random.random_range(1..3), host);
            (if number == 3 { ipv6(ip).into() } else { ip.into() }, host % 4 != 0)
        });
        let ready = ready.collect();
        let missing = random.random_ratio(1, 5).then(|| Port::ALL[random.random_range(0..Port::ALL.len())]);
        let ports = Port::ALL.into_iter().filter(|port| Some(*port) != missing).collect();
        let slice = Slice { ports, ready };
        api.put_slice(&key.1, number, &slice).await?;
        self.slices.insert((key.clone(), number), slice);
        Ok(())
    }

    async fn change_pods(&mut self, random: &mut StdRng, api: &At<'_>, key: &Name) -> Result<()> {
        let own: Vec<u8> = self.pods.iter().filter(|(_, pod)| pod.of == *key).map(|(number, _)| *number).collect();
        let chosen = own.iter().choose(random).copied();
        match (random.random_range(0..3), chosen) {
            (0, Some(number)) => {
                api.delete::<Pod>(&format!("pod-{number}"), random.random_range(0..2)).await?;
                self.pods.remove(&number);
            }
            (1, Some(number)) => {
                if let Some(pod) = self.pods.get_mut(&number) {
                    pod.ready = !pod.ready;
                    api.tell_pod(number, pod).await?;
                }
            }
            _ if own.len() < 4 => {
                // Its number is not that of one that is still leaving.
                let Some(number) = (0..=155).filter(|n| !self.pods.contains_key(n)).choose(random) else {
                    return Ok(());
                };
                let ip = Ipv4Addr::new(10, 244, 1 + number % 2, 100 + number);
                let pod = Member {
                    of: key.clone(),
                    ip,
                    ready: random.random(),
                    base: 8000 + 500 * random.random_range(0..2),
                };
                if api.create_pod(number, &pod).await? {
                    api.tell_pod(number, &pod).await?;
                    self.pods.insert(number, pod);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What a client must find behind each VIP and port.
    pub fn tables(&self) -> Tables {
        let mut tables = Tables::new();
        for (key, made) in &self.services {
            for vip in &made.vips {
                for port in &made.ports {
                    let own = self.slices.iter().filter(|((of, _), slice)| of == key && slice.ports.contains(port));
                    let own = own.flat_map(|(_, slice)| &slice.ready).filter(|(_, ready)| **ready);
                    let own = own.map(|(ip, _)| SocketAddr::new(*ip, 8000 + port.number));
                    let pods = self.pods.values().filter(|pod| made.selector && pod.of == *key && pod.ready);
                    let pods = pods.flat_map(|pod| {
                        [pod.ip.into(), ipv6(pod.ip).into()]
                            .map(|ip: IpAddr| SocketAddr::new(ip, pod.base + port.number))
                    });
                    let endpoints = own.chain(pods).filter(|endpoint| endpoint.is_ipv4() == vip.is_ipv4()).collect();
                    tables.insert((*vip, port.ip_protocol(), port.number), endpoints);
                }
            }
        }
        tables
    }

    /// Every VIP.
    pub fn vips(&self) -> BTreeSet<IpAddr> {
        self.services.values().flat_map(|made| made.vips.iter().copied()).collect()
    }

    /// Every name that the state implies, and some that are not there; with the moment of the last change that they depend on.
    pub fn names(&self) -> Vec<(String, alike::Kind, Instant)> {
        let mut all = Vec::new();
        for (key @ (namespace, name), made) in &self.services {
            let fqdn = format!("{name}.{namespace}.svc.cluster.local");
            let mut say = |name: String, kind| all.push((name, kind, made.changed));
            if made.kind == Kind::External {
                say(fqdn, alike::Kind::External(false));
                continue;
            }
            say(fqdn.clone(), alike::Kind::Service);
            for port in &made.ports {
                let protocol = if port.udp { "udp" } else { "tcp" };
                say(format!("_{}._{protocol}.{fqdn}", port.name()), alike::Kind::Port);
            }
            for vip in &made.vips {
                say(alike::reverse(*vip), alike::Kind::Pointer);
            }
            let first = self.slices.iter().find(|((of, number), _)| of == key && *number < 3);
            if let Some((ip, ready)) = first.and_then(|(_, slice)| slice.ready.first_key_value()) {
                let kind = if *ready { alike::Kind::Endpoint } else { alike::Kind::Nothing };
                say(format!("{}.{fqdn}", ip.to_string().replace('.', "-")), kind);
            }
        }
        let nothing = alike::Kind::Nothing;
        all.extend(self.gone.iter().map(|((ns, name), at)| (format!("{name}.{ns}.svc.cluster.local"), nothing, *at)));
        all
    }
}

/// A namespace of the API server.
struct At<'c> {
    client: &'c Client,
    namespace: &'static str,
}

impl At<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    async fn delete<K>(&self, name: &str, grace: u32) -> Result<()>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let params = DeleteParams::default().grace_period(grace);
        self.api::<K>().delete(name, &params).await.with_context(|| format!("delete {name}"))?;
        Ok(())
    }

    async fn put_service(&self, name: &str, made: &mut Made) -> Result<()> {
        let port = |port: &Port| {
            let target = if made.selector { json!(port.name()) } else { json!(8000 + port.number) };
            json!({"name": port.name(), "port": port.number, "targetPort": target, "protocol": port.protocol()})
        };
        let ports: Vec<Value> = made.ports.iter().map(port).collect();
        let mut spec = match made.kind {
            Kind::Cluster { dual, fixed } => {
                let policy = if dual { "PreferDualStack" } else { "SingleStack" };
                let mut spec = json!({"type": "ClusterIP", "ports": ports, "ipFamilyPolicy": policy});
                if let Some(ip) = fixed {
                    spec["clusterIP"] = json!(ip);
                }
                spec
            }
            Kind::Headless => json!({"type": "ClusterIP", "ports": ports, "clusterIP": "None"}),
            Kind::External => json!({"type": "ExternalName", "externalName": "www.example.test"}),
        };
        if made.selector && made.kind != Kind::External {
            spec["selector"] = json!({"app": name});
        }
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        let params = PatchParams::apply("lab").force();
        let stored = self
            .api::<Service>()
            .patch(name, &params, &Patch::Apply(&object))
            .await
            .with_context(|| object.to_string())?;
        let ips = stored.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
        made.vips = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
        Ok(())
    }

    async fn put_slice(&self, service: &str, number: u8, slice: &Slice) -> Result<()> {
        let endpoint = |(ip, ready): (&IpAddr, &bool)| json!({"addresses": [ip], "conditions": {"ready": ready, "serving": ready, "terminating": false}});
        let port = |port: &Port| json!({"name": port.name(), "port": 8000 + port.number, "protocol": port.protocol()});
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "addressType": if number == 3 { "IPv6" } else { "IPv4" },
            "metadata": {"name": format!("{service}-{number}"), "labels": {"kubernetes.io/service-name": service}},
            "endpoints": slice.ready.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": slice.ports.iter().map(port).collect::<Vec<_>>(),
        });
        let (api, params) = (self.api::<EndpointSlice>(), PatchParams::apply("lab").force());
        api.patch(&format!("{service}-{number}"), &params, &Patch::Apply(&object))
            .await
            .with_context(|| object.to_string())?;
        Ok(())
    }

    /// False: one of that name is still leaving.
    async fn create_pod(&self, number: u8, pod: &Member) -> Result<bool> {
        let port = |port: Port| json!({"name": port.name(), "containerPort": pod.base + port.number, "protocol": port.protocol()});
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod-{number}"), "labels": {"app": pod.of.1}},
            "spec": {
                "nodeName": format!("worker{}", 1 + number % 2),
                "containers": [{"name": "web", "image": "lab/web", "ports": Port::ALL.map(port)}],
            },
        });
        let object: Pod = serde_json::from_value(object)?;
        match self.api::<Pod>().create(&PostParams::default(), &object).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error).context("create a pod"),
        }
    }

    async fn tell_pod(&self, number: u8, pod: &Member) -> Result<()> {
        let ready = if pod.ready { "True" } else { "False" };
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .map(|kind| json!({"type": kind, "status": if kind.ends_with("Ready") { ready } else { "True" }}));
        let status = json!({"status": {
            "phase": "Running", "podIP": pod.ip, "podIPs": [{"ip": pod.ip}, {"ip": ipv6(pod.ip)}], "conditions": conditions,
        }});
        let api = self.api::<Pod>();
        api.patch_status(&format!("pod-{number}"), &PatchParams::default(), &Patch::Merge(&status))
            .await
            .with_context(|| format!("status of pod-{number}"))?;
        Ok(())
    }
}
