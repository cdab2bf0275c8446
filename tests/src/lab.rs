//! A lab that stands: namespaces, links, routes, servers, and the gateway once a test has started it.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;

use crate::{
    agent::{Gateway, GatewayConfig},
    manifests::Manifests,
    netns::{Namespace, Record},
    process::{NotYet, Process, wait_for},
    topology::{
        Access, ECHO_PORT, GATEWAY, HTTP_PORT, Node, Pod, ROUTER_OFFICE, SERVICE_CIDR, SERVICE_CIDR6, Topology, ipv6,
    },
    upstream,
};

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
        if topology.access != Access::Flat {
            names.push("router");
        }
        if matches!(topology.access, Access::Routers { .. }) {
            names.push("edge");
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

    /// A namespace by its short name: a node, a client, a pod, `switch`, `router`, `edge`, `upstream`.
    ///
    /// # Panics
    /// When the topology has no such machine.
    pub fn namespace(&self, name: &str) -> &Namespace {
        self.namespaces.get(name).unwrap_or_else(|| panic!("this lab has no `{name}`"))
    }

    /// Every machine's namespace.
    pub(crate) fn machines(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
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

    fn start_pod(&self, pod: &Pod) -> Result<()> {
        let namespace = self.namespace(if pod.host_network() { pod.node.name() } else { &pod.name });
        let mut command = namespace.command(own_binary()?);
        command.args(["serve", "--name", &pod.name]);
        command.args(["--http", &HTTP_PORT.to_string(), "--echo", &ECHO_PORT.to_string()]);
        let log = self.dir().join(format!("{}.log", pod.name));
        // Of an earlier start.
        let _ = fs::remove_file(&log);
        locked(&self.pods).insert(pod.name.clone(), Process::start(&pod.name, command, &log)?);
        Ok(())
    }

    /// Starts a pod's servers again and waits until they serve.
    ///
    /// # Errors
    /// Why they do not.
    pub fn restart_pod(&self, name: &str) -> Result<()> {
        self.stop_pod(name);
        self.start_pod(self.pod(name))?;
        locked(&self.pods).get_mut(name).map_or(Ok(()), serving)
    }

    /// Tells a pod's servers to finish what they have: from now on each answer closes its connection.
    ///
    /// # Errors
    /// When they have ended.
    pub fn drain_pod(&self, name: &str) -> Result<()> {
        locked(&self.pods).get(name).context("the pod's servers have ended")?.signal(Signal::SIGTERM)
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
        format!("route add {SERVICE_CIDR} via {}", self.client_hop())
    }

    /// The same for IPv6.
    pub fn client_route6(&self) -> String {
        format!("route add {SERVICE_CIDR6} via {}", ipv6(self.client_hop()))
    }

    fn client_hop(&self) -> Ipv4Addr {
        if self.topology.access == Access::Flat { GATEWAY } else { ROUTER_OFFICE }
    }

    fn serve(&self) -> Result<()> {
        for pod in &self.topology.pods {
            self.start_pod(pod)?;
        }
        for process in locked(&self.pods).values_mut() {
            serving(process)?;
        }
        if self.topology.upstream {
            *locked(&self.upstream) = Some(upstream::start(self.namespace("upstream"), self.dir())?);
        }
        Ok(())
    }
}

/// Waits until a pod's servers serve.
fn serving(process: &mut Process) -> Result<()> {
    wait_for("the pod's servers", Duration::from_secs(10), || match process.ended() {
        Some(status) => Err(NotYet::Never(anyhow!("{} ended: {status}: {}", process.name, process.said()))),
        None if process.said().contains("serving") => Ok(()),
        None => Err(NotYet::Later(anyhow!("{} is silent", process.name))),
    })
}

/// A panic of another thread says nothing about the processes.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The `gateway-lab` binary, whose `serve` the pods run: this one, or the one that cargo built beside a
/// test or a benchmark.
fn own_binary() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    if this.file_name().is_some_and(|name| name == "gateway-lab") {
        return Ok(this);
    }
    // Programs are beside it, tests a directory deeper.
    let mut built = this.ancestors().skip(1).take(2).map(|dir| dir.join("gateway-lab"));
    built.find(|path| path.exists()).context("gateway-lab: not built; run `cargo build -p gateway-lab`")
}
