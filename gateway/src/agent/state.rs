//! What the agent knows about itself, read by HTTP while the owner task changes it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use ipnet::IpNet;
use serde_json::json;
use tokio::sync::watch;

use super::datapath::Datapath;
use crate::{
    config::{Config, Source},
    dns::ResolverHandle,
    http::{
        Agent,
        metrics::Family,
        report::{self, Counts, Drop, Readiness, Status},
    },
    kernel::{Counters, Entry, Explanation, FlowInfo, Question},
    model::{Here, ObjectName},
    node,
    plan::{DnsServers, Reason, ServicePlan},
    source::{Feedback, SourceStatus},
};

/// Learnt answers that `gateway dns` shows at most.
const CACHE_SHOWN: usize = 1_000;

/// Problems of the source that `/readyz` tells at most.
const PROBLEMS_TOLD: usize = 5;

/// See the module.
pub(super) struct State {
    pub config: Config,
    pub path: PathBuf,
    started: Instant,
    view_names: Vec<String>,
    pub datapath: OnceLock<Arc<Datapath>>,
    pub resolver: OnceLock<ResolverHandle>,
    pub source: OnceLock<watch::Receiver<SourceStatus>>,
    pub feedback: OnceLock<Feedback>,
    pub ready: AtomicBool,
    pub changes: AtomicU64,
    pub errors: AtomicU64,
    held: RwLock<Held>,
}

/// What follows from the cluster's state.
#[derive(Default)]
pub(super) struct Held {
    pub plans: BTreeMap<ObjectName, Planned>,
    pub cidrs: Vec<IpNet>,
    pub here: Here,
    /// What the kernel refused, by Service; the owner tries again.
    pub refused: BTreeMap<ObjectName, (Reason, String)>,
    /// What is wrong with the config file, or waits for a restart.
    pub config: Option<String>,
    /// The cluster's own DNS, when a zone rule asks it.
    pub cluster_dns: Option<DnsServers>,
    /// What else is wrong, in words.
    pub trouble: Vec<String>,
}

/// A plan in force. Its records are the zone's alone: they are most of a large cluster's memory.
pub(super) struct Planned {
    /// Without its records.
    pub plan: ServicePlan,
    /// How many records it had.
    pub records: usize,
}

impl From<ServicePlan> for Planned {
    fn from(mut plan: ServicePlan) -> Self {
        let records = std::mem::take(&mut plan.records).len();
        Self { plan, records }
    }
}

impl std::ops::Deref for Planned {
    type Target = ServicePlan;

    fn deref(&self) -> &ServicePlan {
        &self.plan
    }
}

impl State {
    pub fn new(config: Config, path: PathBuf) -> Self {
        Self {
            view_names: config.views.iter().map(|view| view.name.clone()).collect(),
            held: RwLock::new(Held { cidrs: config.service_cidrs.clone(), ..Held::default() }),
            config,
            path,
            started: Instant::now(),
            datapath: OnceLock::new(),
            resolver: OnceLock::new(),
            source: OnceLock::new(),
            feedback: OnceLock::new(),
            ready: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    pub fn held<T>(&self, read: impl FnOnce(&Held) -> T) -> T {
        read(&self.held.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn change<T>(&self, write: impl FnOnce(&mut Held) -> T) -> T {
        write(&mut self.held.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn source_status(&self) -> SourceStatus {
        self.source.get().map_or_else(SourceStatus::default, |status| status.borrow().clone())
    }

    pub fn listen(&self) -> Vec<SocketAddr> {
        self.resolver.get().map(ResolverHandle::addresses).unwrap_or_default()
    }

    pub fn services(&self) -> usize {
        self.held(|held| held.plans.len())
    }
}

impl State {
    /// Attached interfaces, for the log. Only for threads that may block.
    pub fn interfaces(&self) -> String {
        let attached = self.datapath.get().map(|datapath| datapath.attachments()).unwrap_or_default();
        let one = |attachment: &crate::kernel::Attachment| {
            let xdp = attachment.xdp.map(|xdp| format!("{xdp} xdp+")).unwrap_or_default();
            format!("{}({} {xdp}tc)", attachment.interface, attachment.role)
        };
        attached.iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// Addresses to which clients route.
    fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = node::uplink_addresses(&self.config.uplinks);
        if addresses.is_empty() {
            addresses = self.listen().iter().map(SocketAddr::ip).collect();
        }
        addresses
    }

    fn counts(&self) -> Counts {
        let mut counts = self.held(|held| {
            let mut counts = Counts { services: held.plans.len(), ..Counts::default() };
            for plan in held.plans.values() {
                counts.frontends += plan.frontends.len();
                counts.endpoints += plan.frontends.iter().map(|frontend| frontend.endpoints.len()).sum::<usize>();
                counts.records += plan.records;
            }
            counts
        });
        counts.flows = self.datapath.get().map(|datapath| datapath.flow_count()).unwrap_or_default();
        counts
    }

    fn source_report(&self) -> report::Source {
        let status = self.source_status();
        let (kind, location) = match &self.config.source {
            Source::Manifests(directory) => ("manifests", directory.display().to_string()),
            Source::Kubernetes { .. } => ("kubernetes", status.location),
        };
        report::Source {
            kind,
            location,
            synced: status.synced,
            connected: status.connected,
            problems: status.problems,
            unreached: status.lost.map(|lost| lost.elapsed().as_secs_f64()),
            last_change: status.last_change.and_then(|at| at.elapsed().ok()).map(|since| since.as_secs_f64()),
        }
    }
}

impl Agent for State {
    fn readiness(&self) -> Readiness {
        let ready = self.ready.load(Ordering::Acquire);
        let status = self.source_status();
        let mut why = Vec::new();
        if !ready && !status.synced {
            why.push("the first state of the cluster is not here yet".to_owned());
        }
        if self.source.get().is_some() && !status.connected {
            let since = status.lost.map_or(0, |lost| lost.elapsed().as_secs());
            why.push(format!("source {} is not reached for {since} s", status.location));
        }
        if !ready {
            // Nobody has asked for a status yet: what keeps it from serving is told whole.
            why.extend(status.problems.iter().take(PROBLEMS_TOLD).map(|problem| format!("source: {problem}")));
        } else if !status.problems.is_empty() {
            why.push(format!("source: {} problems, see `gateway status`", status.problems.len()));
        }
        self.held(|held| {
            if let Some((name, (_, error))) = held.refused.first_key_value() {
                why.push(format!("the datapath refuses {} services, like {name}: {error}", held.refused.len()));
            }
            if let Some(dns) = held.cluster_dns.as_ref().filter(|dns| dns.servers.is_empty()) {
                why.extend(dns.problems.iter().cloned());
            }
            why.extend(held.trouble.iter().cloned());
        });
        Readiness { ready, why }
    }

    fn status(&self) -> Status {
        let readiness = self.readiness();
        let Here { node, zone } = self.held(|held| held.here.clone());
        let view = |(id, view): (usize, &crate::config::View)| report::View {
            id,
            name: view.name.clone(),
            cidrs: view.cidrs.clone(),
            namespaces: view.namespaces.clone().unwrap_or_else(|| vec!["*".to_owned()]),
        };
        Status {
            version: env!("CARGO_PKG_VERSION"),
            ready: readiness.ready,
            degraded: readiness.why,
            uptime: self.started.elapsed().as_secs_f64(),
            config: self.path.display().to_string(),
            mode: self.config.datapath.mode,
            addresses: self.addresses(),
            interfaces: self.datapath.get().map(|datapath| datapath.attachments()).unwrap_or_default(),
            views: self.config.views.iter().enumerate().map(view).collect(),
            source: self.source_report(),
            service_cidrs: self.held(|held| held.cidrs.clone()),
            node,
            zone,
            cluster_domain: self.config.dns.cluster_domain.clone(),
            dns: super::reachable(&self.config, &self.listen()),
            counts: self.counts(),
            problems: self.held(|held| {
                let plans = held.plans.values().flat_map(|plan| &plan.problems);
                let dns = held.cluster_dns.iter().filter(|dns| !dns.servers.is_empty()).flat_map(|dns| &dns.problems);
                held.config
                    .iter()
                    .chain(dns)
                    .cloned()
                    .chain(plans.map(ToString::to_string))
                    .chain(self.spared())
                    .collect()
            }),
            counters: self.counters(),
        }
    }

    fn services(&self) -> Vec<report::Service> {
        self.held(|held| {
            let report = |(name, plan): (&ObjectName, &Planned)| {
                report::Service::new(name, plan, plan.records, &self.view_names)
            };
            held.plans.iter().map(report).collect()
        })
    }

    fn contents(&self) -> Vec<Entry> {
        self.datapath.get().map(|datapath| datapath.contents()).unwrap_or_default()
    }

    fn flows(&self, limit: usize) -> Vec<FlowInfo> {
        self.datapath.get().map(|datapath| datapath.flows(limit)).unwrap_or_default()
    }

    fn dns(&self) -> serde_json::Value {
        let snapshot = self.resolver.get().map(|resolver| resolver.snapshot(CACHE_SHOWN));
        // Numbers, strings and lists only: that cannot fail.
        let mut value = serde_json::to_value(snapshot).unwrap_or_default();
        if let (Some(told), Some(found)) = (value.as_object_mut(), self.held(|held| held.cluster_dns.clone())) {
            let servers: Vec<String> = found.servers.iter().map(ToString::to_string).collect();
            told.insert("clusterDns".to_owned(), json!({ "servers": servers, "problems": found.problems }));
        }
        value
    }

    fn explain(&self, question: &Question) -> Explanation {
        let none =
            || Explanation::default().end("passed", "datapath.mode is off: packets and queries are the node's own");
        let told = self
            .datapath
            .get()
            .map_or_else(none, |datapath| datapath.explain(question, &self.view_names).unwrap_or_else(none));
        // What the datapath leaves to the forwarder, that does by its rules.
        match (told.verdict, &question.name, self.resolver.get()) {
            ("passed", Some(name), Some(resolver)) => match resolver.explain(question.from, name) {
                Some(rule) => told.end("passed", rule),
                None => told,
            },
            _ => told,
        }
    }

    fn drops(&self) -> Vec<Drop> {
        Drop::all(&self.counters())
    }

    fn metrics(&self) -> Vec<Family> {
        self.families()
    }
}

impl State {
    /// The node's own addresses in service CIDRs, in words.
    pub(super) fn spared(&self) -> Vec<String> {
        let spared = self.datapath.get().map(|datapath| datapath.spared()).unwrap_or_default();
        spared.into_iter().map(|(addr, cidr)| node::spared(addr, cidr)).collect()
    }

    fn counters(&self) -> Counters {
        self.datapath.get().map(|datapath| datapath.counters()).unwrap_or_default()
    }
}
