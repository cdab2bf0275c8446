//! The only room that knows aya: load, attach, apply the difference, keep next hops fresh, sweep, read back.
//!
//! ```text
//! Kernel::load(&settings)?      maps and programs; nothing attached
//!       .apply(name, plan)?     as often as the cluster changes, before and after attaching
//!       .attach()?              programs onto interfaces; background threads start
//!       .detach()?              everything off again (dropping does it, too), but for what is pinned
//! ```
//!
//! [`Kernel`] is shared as `Arc<Kernel>`: every call takes `&self` and none waits for the network. What goes on by itself (netlink
//! events, neighbours, dead flows) does so in two threads of its own, in the network namespace of the thread that called
//! [`Kernel::attach`]. [`Kernel::load`] and [`Kernel::attach`] belong into the same one.

mod answers;
mod attach;
mod claims;
mod contents;
mod error;
mod explain;
mod family;
mod hops;
mod info;
mod load;
mod mirror;
mod netlink;
mod pin;
mod places;
mod ports;
mod queries;
mod readback;
mod services;
mod state;
mod sweep;
mod sysctl;
mod table;
#[cfg(test)]
mod tests;
mod vlan;
mod worker;

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;

pub use self::{
    contents::Entry,
    error::KernelError,
    explain::{Choice, Explanation, Question},
    info::{Attachment, BackendInfo, Counters, FlowInfo, ServiceInfo},
    pin::check_pin,
    queries::Queries,
    services::Totals,
};
use self::{state::Shared, worker::Worker};
use crate::{
    dns::{AnswerStore, RateLimit},
    model::ObjectName,
    plan::ServicePlan,
};

/// `datapath.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Native XDP with TC behind it where the driver has it; TC alone on veth, bridges and tunnels.
    #[default]
    Auto,
    /// Native XDP with TC behind it, or an error.
    Native,
    /// Generic XDP with TC behind it.
    Generic,
    /// TC alone.
    Tc,
    /// No datapath: the forwarder alone.
    Off,
}

/// `datapath.mssClamp`: what becomes of the segment size that TCP's ends announce (RFC 9293 section 3.7.1) when it is larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MssClamp {
    /// Nothing: path MTU discovery works through the gateway.
    #[default]
    Off,
    /// What the way out takes.
    Auto,
    /// So many bytes.
    Bytes(u16),
}

/// What the datapath is told once, when it is loaded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Interfaces through which clients come; empty: those of the default routes.
    pub uplinks: Vec<String>,
    /// Interfaces through which endpoints are reached; empty: found by route look-up and followed.
    pub cluster_interfaces: Vec<String>,
    /// Attach mode.
    pub mode: Mode,
    /// Capacity in flows.
    pub flows: u32,
    /// bpffs directory.
    pub pin: Option<PathBuf>,
    /// Source addresses; empty: the first global address of the first uplink, of each family.
    pub snat_addresses: Vec<IpAddr>,
    /// Reserved source ports.
    pub snat_ports: RangeInclusive<u16>,
    /// Return path `routed`.
    pub routed: bool,
    /// `deny: drop`.
    pub deny_drop: bool,
    /// `strangers: pass`.
    pub strangers_pass: bool,
    /// Addresses on which the kernel answers UDP port 53; empty: the uplinks' addresses.
    pub dns: Vec<IpAddr>,
    /// The views' prefixes; index = view id.
    pub views: Vec<Vec<IpNet>>,
    /// Claimed prefixes at start: the service CIDRs.
    pub claims: Vec<IpNet>,
    /// Timeouts of flows.
    pub timeouts: Timeouts,
    /// Largest TCP segment announced.
    pub mss_clamp: MssClamp,
    /// How many DNS answers a source prefix gets.
    pub dns_limit: RateLimit,
    /// How many of a million DNS queries answered in the kernel are logged.
    pub dns_log: u32,
    /// Sizes of the maps that depend on the cluster.
    pub sizes: Sizes,
}

impl Settings {
    /// Whether somebody of that family is a client.
    pub(crate) fn has_clients(&self, v6: bool) -> bool {
        self.views.iter().flatten().any(|net| net.addr().is_ipv6() == v6)
    }
}

/// Idle times in seconds after which a flow is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// TCP: SYN seen one way only.
    pub tcp_syn: u32,
    /// TCP: established.
    pub tcp_established: u32,
    /// TCP: FIN seen both ways.
    pub tcp_fin: u32,
    /// TCP: RST seen.
    pub tcp_rst: u32,
    /// UDP.
    pub udp: u32,
    /// ICMP.
    pub icmp: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        // RFC 5382 REQ-5 and RFC 4787 REQ-5 give the floors for established TCP and UDP; the others are Linux conntrack's.
        Self { tcp_syn: 60, tcp_established: 7440, tcp_fin: 60, tcp_rst: 10, udp: 120, icmp: 30 }
    }
}

/// Map capacities chosen from the first plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Service entries.
    pub services: u32,
    /// Endpoints.
    pub endpoints: u32,
    /// DNS answers, zone and cache together.
    pub answers: u32,
}

/// The BPF object, built by `build.rs` and carried inside the binary.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gateway-ebpf"));

/// The datapath. Dropping it takes everything off the node, but for what is pinned.
#[derive(Debug)]
pub struct Kernel {
    shared: Arc<Shared>,
    worker: Mutex<Option<Worker>>,
}

impl Kernel {
    /// Loads maps and programs and fills `CONFIG`, `VIEWS4/6` and `CLAIMS4/6`; reserves the source ports. Nothing is attached.
    ///
    /// # Errors
    /// Names the interface, key, program or right that is missing and what to do; nothing is left behind.
    pub fn load(settings: &Settings) -> Result<Self, KernelError> {
        if settings.mode == Mode::Off {
            return Err(KernelError::Off);
        }
        Ok(Self { shared: Arc::new(Shared::load(settings)?), worker: Mutex::new(None) })
    }

    /// Attaches to the uplinks and to the cluster interfaces, and from now on follows links, routes and neighbours: an interface
    /// that vanishes and returns is attached again, one through which an endpoint is reached from now on is attached then.
    ///
    /// With pins of an earlier agent, whatever has been applied takes the place of that agent's datapath now, and what it knew beside
    /// that is gone.
    ///
    /// # Errors
    /// When an uplink, or an interface of `clusterInterfaces`, cannot be attached as the mode asks; nothing stays attached, but for what
    /// was pinned before.
    pub fn attach(&self) -> Result<Vec<Attachment>, KernelError> {
        // The next hops of clients that have flows, before the programs ask for them.
        self.shared.sweep()?;
        self.shared.state().attach()?;
        let mut worker = self.worker();
        if worker.is_none() {
            match Worker::start(&self.shared) {
                Ok(started) => *worker = Some(started),
                Err(error) => {
                    self.shared.state().take_off();
                    return Err(error);
                }
            }
        }
        Ok(self.attachments())
    }

    /// Makes the datapath hold what `plan` says of that Service; `None` takes it out. A packet sees the state before or after.
    ///
    /// # Errors
    /// When a map is full or refuses. What could not be done stays as it was, the rest is done.
    pub fn apply(&self, name: &ObjectName, plan: Option<&ServicePlan>) -> Result<(), KernelError> {
        self.shared.state().apply(name, plan)
    }

    /// Replaces the claimed prefixes (the service CIDRs). VIPs outside them are claimed by themselves.
    ///
    /// # Errors
    /// When the map is full or refuses.
    pub fn set_claims(&self, cidrs: &[IpNet]) -> Result<(), KernelError> {
        self.shared.state().set_claims(cidrs)
    }

    /// Addresses of this node's own that a service CIDR contains, with that CIDR: packets to them stay the node's.
    pub fn spared(&self) -> Vec<(IpAddr, IpNet)> {
        self.shared.state().spared()
    }

    /// The kernel's DNS answers.
    pub fn answers(&self) -> Arc<dyn AnswerStore> {
        self.shared.answers()
    }

    /// The queries that the kernel answers, for the query log, from now on; `None` without one, and the second time.
    pub fn queries(&self) -> Option<Queries> {
        self.shared.state().queries.take()
    }

    /// What the datapath has counted, by reason, since it was loaded.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// At most `limit` flows, in no order. Reads the flow table: not for the fast path.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn flows(&self, limit: usize) -> Result<Vec<FlowInfo>, KernelError> {
        self.shared.flows(limit)
    }

    /// What the maps of Services say. Reads them whole: not for the fast path.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn contents(&self) -> Result<Vec<Entry>, KernelError> {
        self.shared.contents()
    }

    /// Number of flows, as the last sweep counted them, at most a few seconds ago.
    pub fn flow_count(&self) -> usize {
        self.shared.flow_count()
    }

    /// Every Service port in the datapath, with its endpoints, sorted by name.
    pub fn services(&self) -> Vec<ServiceInfo> {
        self.shared.state().services()
    }

    /// How many Services, ports and endpoints the datapath has.
    pub fn totals(&self) -> Totals {
        self.shared.state().totals()
    }

    /// What is attached now.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.shared.state().attachments()
    }

    /// Names of the uplinks: configured, or those of the default routes.
    pub fn uplinks(&self) -> Vec<String> {
        self.shared.state().uplinks().to_vec()
    }

    /// Global addresses of the uplinks now; the first one of each family is the gateway's own.
    pub fn uplink_addresses(&self) -> Vec<IpAddr> {
        self.shared.state().uplink_addresses().to_vec()
    }

    /// Addresses on which the kernel answers DNS: configured, or the uplinks' addresses.
    pub fn dns_addresses(&self) -> Vec<IpAddr> {
        self.shared.state().dns_addresses()
    }

    /// Collects dead flows now, as the background does every few seconds; how many flows were ended.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn sweep(&self) -> Result<usize, KernelError> {
        self.shared.sweep().map(|swept| swept.ended)
    }

    /// What the datapath would do with a packet or query; `views` are the views' names. Changes nothing.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn explain(&self, question: &Question, views: &[String]) -> Result<Explanation, KernelError> {
        self.shared.explain(question, views)
    }

    /// Takes everything off the node: programs and sysctls. Done again by nobody: dropping afterwards does nothing. A pinned datapath
    /// stays, and goes on: [`Self::detach_all`] takes it off.
    ///
    /// # Errors
    /// When a sysctl cannot be put back; programs are off all the same.
    pub fn detach(&self) -> Result<(), KernelError> {
        // The threads first: they would attach again.
        drop(self.worker().take());
        if self.shared.state().is_pinned() {
            self.shared.state().let_go();
            return Ok(());
        }
        self.shared.state().take_off();
        self.shared.state().restore()
    }

    /// For `gateway detach`: takes pinned programs and maps off, and puts back what an agent that was killed has left. Programs that
    /// are not pinned go with their agent. Says what was done.
    ///
    /// # Errors
    /// When a pin cannot be taken away or a sysctl cannot be put back.
    pub fn detach_all(pin: Option<&Path>) -> Result<Vec<String>, KernelError> {
        let mut done = pin.map(pin::remove_all).transpose()?.unwrap_or_default();
        let Some(sysctls) = sysctl::Sysctls::left_behind() else { return Ok(done) };
        sysctls.restore()?;
        done.extend(sysctls.names().map(|name| format!("{name} is as it was before")));
        Ok(done)
    }

    fn worker(&self) -> MutexGuard<'_, Option<Worker>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!("{error}");
        }
    }
}
