//! A lab that stands: namespaces, links, routes, servers, and the gateway once a test has started it.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};

use crate::{
    agent::{Gateway, GatewayConfig},
    manifests::Manifests,
    netns::{Namespace, Record, ip_batch},
    process::{NotYet, Process, wait_for},
    topology::{
        Access, ECHO_PORT, GATEWAY, HTTP_PORT, Node, Offloads, Pod, ROUTER_LAN, ROUTER_OFFICE, SERVICE_CIDR, Topology,
        UPSTREAM, Wiring,
    },
    upstream,
};

/// UDP port and number of the overlay, as flannel has them.
const VXLAN: (u16, u8) = (8472, 1);

/// A lab. Everything in it is gone when it is dropped.
#[derive(Debug)]
pub struct Lab {
    // Fields drop in this order: programs before their namespaces.
    pods: Mutex<BTreeMap<String, Process>>,
    upstream: Mutex<Option<Process>>,
    /// What the gateway reads as its cluster.
    pub manifests: Manifests,
    /// What it was built from.
    pub topology: Topology,
    namespaces: BTreeMap<String, Namespace>,
    record: Record,
}

impl Lab {
    /// Builds the lab and starts its servers.
    ///
    /// # Errors
    /// What could not be built, and why.
    pub fn build(topology: Topology) -> Result<Self> {
        let record = Record::begin()?;
        let mut names = vec!["switch"];
        names.extend(Node::ALL.map(Node::name));
        names.extend(topology.clients.iter().map(|client| client.name.as_str()));
        names.extend(topology.pods.iter().filter(|pod| !pod.host_network()).map(|pod| pod.name.as_str()));
        if topology.upstream {
            names.push("upstream");
        }
        if topology.access == Access::Router {
            names.push("router");
        }
        let made = record.namespaces(&names)?;
        let namespaces = names.iter().map(|name| (*name).to_owned()).zip(made).collect();
        let manifests = Manifests::create(&record.dir.join("cluster"))?;
        let lab = Self { pods: Mutex::default(), upstream: Mutex::default(), manifests, topology, namespaces, record };
        lab.wire()?;
        lab.serve()?;
        Ok(lab)
    }

    /// The directory of this lab's files.
    pub fn dir(&self) -> &Path {
        &self.record.dir
    }

    /// A namespace by its short name: a node, a client, a pod, `switch`, `router`, `upstream`.
    ///
    /// # Panics
    /// When the topology has no such machine.
    pub fn namespace(&self, name: &str) -> &Namespace {
        self.namespaces.get(name).unwrap_or_else(|| panic!("this lab has no `{name}`"))
    }

    /// The client's namespace.
    pub fn client(&self) -> &Namespace {
        self.namespace(&self.topology.clients[0].name)
    }

    /// A node's namespace.
    pub fn node(&self, node: Node) -> &Namespace {
        self.namespace(node.name())
    }

    /// A pod of the topology.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn pod(&self, name: &str) -> &Pod {
        self.topology.pods.iter().find(|pod| pod.name == name).unwrap_or_else(|| panic!("this lab has no pod `{name}`"))
    }

    /// Ends a pod's servers.
    pub fn stop_pod(&self, name: &str) {
        locked(&self.pods).remove(name);
    }

    /// Starts the gateway with this config and waits until it is ready.
    ///
    /// # Errors
    /// Why it did not become ready, with its log.
    pub fn gateway(&self, config: &GatewayConfig) -> Result<Gateway<'_>> {
        Gateway::start(self, config)
    }

    /// What the upstream DNS server has logged.
    pub fn upstream_log(&self) -> String {
        locked(&self.upstream).as_ref().map(Process::said).unwrap_or_default()
    }

    /// Stops the upstream DNS server.
    pub fn stop_upstream(&self) {
        *locked(&self.upstream) = None;
    }

    /// What a client adds to reach the cluster: the route. The other line is its name server.
    pub fn client_route(&self) -> String {
        let via = match self.topology.access {
            Access::Flat => GATEWAY,
            Access::Router => ROUTER_OFFICE,
        };
        format!("route add {SERVICE_CIDR} via {via}")
    }

    fn full(&self, name: &str) -> &str {
        &self.namespace(name).name
    }

    fn wire(&self) -> Result<()> {
        self.links()?;
        self.switch()?;
        for node in Node::ALL {
            self.node_up(node)?;
        }
        for client in &self.topology.clients {
            self.client_up(&client.name, client.address)?;
        }
        if self.topology.access == Access::Router {
            self.router()?;
        }
        if self.topology.upstream {
            self.namespace("upstream").ip(&[
                "link set lo up".to_owned(),
                format!("addr add {UPSTREAM}/{} dev eth0", self.prefix()),
                "link set eth0 up".to_owned(),
            ])?;
        }
        for pod in self.topology.pods.iter().filter(|pod| !pod.host_network()) {
            self.pod_up(pod)?;
        }
        if self.topology.overlay {
            self.overlay()?;
        }
        self.offloads()
    }

    fn prefix(&self) -> u8 {
        if self.topology.access == Access::Flat { 16 } else { 24 }
    }

    /// Every veth pair, in one go.
    fn links(&self) -> Result<()> {
        let pair = |near: (&str, &str), far: (&str, &str), mtu: u16| {
            format!(
                "link add name {} mtu {mtu} netns {} type veth peer name {} mtu {mtu} netns {}",
                near.1,
                self.full(near.0),
                far.1,
                self.full(far.0)
            )
        };
        let mtu = self.topology.mtu;
        let mut lines: Vec<String> = Vec::new();
        for node in Node::ALL {
            lines.push(pair((node.name(), "eth0"), ("switch", &format!("to-{}", node.name())), mtu));
        }
        let clients_at = if self.topology.access == Access::Flat { "switch" } else { "router" };
        for client in &self.topology.clients {
            lines.push(pair((&client.name, "eth0"), (clients_at, &format!("to-{}", client.name)), mtu));
        }
        if self.topology.access == Access::Router {
            lines.push(pair(("router", "eth0"), ("switch", "to-router"), mtu));
        }
        if self.topology.upstream {
            lines.push(pair(("upstream", "eth0"), ("switch", "to-upstream"), mtu));
        }
        for pod in self.topology.pods.iter().filter(|pod| !pod.host_network()) {
            lines.push(pair(
                (&pod.name, "eth0"),
                (pod.node.name(), &format!("veth-{}", pod.name)),
                self.topology.pod_mtu(),
            ));
        }
        ip_batch(None, &lines)
    }

    fn switch(&self) -> Result<()> {
        let mut lines = vec!["link add lan type bridge".to_owned()];
        let mut ports: Vec<String> = Node::ALL.iter().map(|node| format!("to-{}", node.name())).collect();
        if self.topology.access == Access::Flat {
            ports.extend(self.topology.clients.iter().map(|client| format!("to-{}", client.name)));
        } else {
            ports.push("to-router".into());
        }
        if self.topology.upstream {
            ports.push("to-upstream".into());
        }
        lines.extend(ports.iter().map(|port| format!("link set {port} master lan up")));
        lines.push("link set lan up".into());
        self.namespace("switch").ip(&lines)
    }

    fn node_up(&self, node: Node) -> Result<()> {
        let namespace = self.node(node);
        namespace.set_sysctl("net/ipv4/ip_forward", "1")?;
        for scope in ["all", "default", "eth0"] {
            namespace.set_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("addr add {}/{} dev eth0", node.address(), self.prefix()),
            "link set eth0 up".to_owned(),
        ];
        if self.topology.access == Access::Router {
            lines.push(format!("route add default via {ROUTER_LAN}"));
        }
        if self.topology.return_route && node != Node::Gateway {
            lines.extend(
                self.topology.clients.iter().map(|client| format!("route add {} via {GATEWAY}", client.address)),
            );
        }
        if !self.topology.overlay {
            lines.extend(
                Node::ALL
                    .iter()
                    .filter(|other| **other != node)
                    .map(|other| format!("route add 10.244.{}.0/24 via {}", other.number(), other.address())),
            );
        }
        if self.topology.wiring == Wiring::Bridge {
            lines.extend([
                format!("link add cni0 mtu {} type bridge", self.topology.pod_mtu()),
                format!("addr add {}/24 dev cni0", node.pod_address(1)),
                "link set cni0 up".to_owned(),
            ]);
        }
        namespace.ip(&lines)
    }

    fn client_up(&self, name: &str, address: Ipv4Addr) -> Result<()> {
        let mut lines = vec!["link set lo up".to_owned()];
        match self.topology.access {
            Access::Flat => lines.extend([format!("addr add {address}/16 dev eth0"), "link set eth0 up".to_owned()]),
            Access::Router => lines.extend([
                format!("addr add {address}/32 dev eth0"),
                "link set eth0 up".to_owned(),
                format!("route add {ROUTER_OFFICE} dev eth0"),
                format!("route add default via {ROUTER_OFFICE}"),
            ]),
        }
        if self.topology.client_route {
            lines.push(self.client_route());
        }
        self.namespace(name).ip(&lines)
    }

    fn router(&self) -> Result<()> {
        let router = self.namespace("router");
        router.set_sysctl("net/ipv4/ip_forward", "1")?;
        for scope in ["all", "default", "eth0"] {
            router.set_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        let mut lines = vec![
            "link set lo up".to_owned(),
            "link add office type bridge".to_owned(),
            format!("addr add {ROUTER_OFFICE}/24 dev office"),
            "link set office up".to_owned(),
            format!("addr add {ROUTER_LAN}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add {SERVICE_CIDR} via {GATEWAY}"),
        ];
        for client in &self.topology.clients {
            lines.push(format!("link set to-{} master office up", client.name));
            lines.push(format!("route replace {} dev office", client.address));
        }
        router.ip(&lines)
    }

    fn pod_up(&self, pod: &Pod) -> Result<()> {
        let gateway = pod.node.pod_address(1);
        let mut inside = vec!["link set lo up".to_owned()];
        match self.topology.wiring {
            Wiring::Bridge => {
                self.node(pod.node).ip(&[format!("link set veth-{} master cni0 up", pod.name)])?;
                inside.extend([format!("addr add {}/24 dev eth0", pod.address), "link set eth0 up".to_owned()]);
            }
            Wiring::Veth => {
                self.node(pod.node).ip(&[
                    format!("addr add {gateway}/32 dev veth-{}", pod.name),
                    format!("link set veth-{} up", pod.name),
                    format!("route add {}/32 dev veth-{}", pod.address, pod.name),
                ])?;
                inside.extend([
                    format!("addr add {}/32 dev eth0", pod.address),
                    "link set eth0 up".to_owned(),
                    format!("route add {gateway} dev eth0"),
                ]);
            }
        }
        inside.push(format!("route add default via {gateway}"));
        self.namespace(&pod.name).ip(&inside)
    }

    /// As flannel does it: one VXLAN device a node, its address the first of the pod CIDR, entries for the others by hand.
    fn overlay(&self) -> Result<()> {
        let (port, vni) = VXLAN;
        let mac = |node: Node| format!("02:42:0a:f4:{:02x}:00", node.number());
        for node in Node::ALL {
            let mut lines = vec![
                format!(
                    "link add flannel.1 mtu {} address {} type vxlan id {vni} local {} dev eth0 dstport {port} nolearning",
                    self.topology.pod_mtu(),
                    mac(node),
                    node.address()
                ),
                format!("addr add {}/32 dev flannel.1", node.pod_address(0)),
                "link set flannel.1 up".to_owned(),
            ];
            let mut entries = Vec::new();
            for other in Node::ALL.into_iter().filter(|other| *other != node) {
                lines.push(format!(
                    "neigh add {} lladdr {} dev flannel.1 nud permanent",
                    other.pod_address(0),
                    mac(other)
                ));
                lines.push(format!(
                    "route add 10.244.{}.0/24 via {} dev flannel.1 onlink",
                    other.number(),
                    other.pod_address(0)
                ));
                entries.push(format!("fdb append {} dev flannel.1 dst {}", mac(other), other.address()));
            }
            self.node(node).ip(&lines)?;
            for entry in entries {
                self.node(node).run("bridge", &entry.split(' ').collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    fn offloads(&self) -> Result<()> {
        let set = |namespace: &str, device: &str, feature: &str, value: &str| {
            self.namespace(namespace).run("ethtool", &["-K", device, feature, value]).map(drop)
        };
        if self.topology.offloads == Offloads::Kernel {
            return Ok(());
        }
        // A veth takes frames that XDP sends it only while GRO is on at the far end.
        set("switch", "to-gateway", "gro", "on")?;
        for pod in self.topology.pods.iter().filter(|pod| pod.node == Node::Gateway && !pod.host_network()) {
            set(&pod.name, "eth0", "gro", "on")?;
        }
        if self.topology.offloads == Offloads::Wire {
            let senders = Node::ALL.map(Node::name).into_iter();
            let senders = senders.chain(self.topology.clients.iter().map(|client| client.name.as_str()));
            let senders =
                senders.chain(self.topology.pods.iter().filter(|pod| !pod.host_network()).map(|pod| pod.name.as_str()));
            for sender in senders {
                set(sender, "eth0", "tx", "off")?;
            }
        }
        Ok(())
    }

    fn serve(&self) -> Result<()> {
        let binary = own_binary()?;
        let mut pods = locked(&self.pods);
        for pod in &self.topology.pods {
            let namespace = self.namespace(if pod.host_network() { pod.node.name() } else { &pod.name });
            let mut command = namespace.command(&binary);
            command.args(["serve", "--name", &pod.name]);
            command.args(["--http", &HTTP_PORT.to_string(), "--echo", &ECHO_PORT.to_string()]);
            let process = Process::start(&pod.name, command, &self.dir().join(format!("{}.log", pod.name)))?;
            pods.insert(pod.name.clone(), process);
        }
        for process in pods.values_mut() {
            wait_for("the pod's servers", Duration::from_secs(10), || match process.ended() {
                Some(status) => Err(NotYet::Never(anyhow!("{} ended: {status}: {}", process.name, process.said()))),
                None if process.said().contains("serving") => Ok(()),
                None => Err(NotYet::Later(anyhow!("{} is silent", process.name))),
            })?;
        }
        if self.topology.upstream {
            *locked(&self.upstream) = Some(upstream::start(self.namespace("upstream"), self.dir())?);
        }
        Ok(())
    }
}

/// A panic of another thread says nothing about the processes.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The `gateway-lab` binary, whose `serve` the pods run: this one, or the one that cargo built beside a test.
fn own_binary() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    if this.file_name().is_some_and(|name| name == "gateway-lab") {
        return Ok(this);
    }
    let built = this.parent().and_then(Path::parent).map(|dir| dir.join("gateway-lab"));
    built.filter(|path| path.exists()).context("gateway-lab: not built; run `cargo build -p gateway-lab`")
}
