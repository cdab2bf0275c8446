//! The task that owns the cluster's state: batches of events in, plans out to the datapath and the zone.

use std::{
    collections::BTreeSet,
    panic::resume_unwind,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    datapath::Datapath,
    names::{self, Names},
    queries::Carrier,
    reload::Reload,
    state::{Planned, State},
};
use crate::{
    config::{Config, Source},
    dns::{Resolver, ResolverHandle},
    kernel::{KernelError, Mode, Sizes},
    model::{Cluster, Dirty, Event, ObjectName},
    node,
    plan::{self, DnsServers, PlanConfig, Problem, Reason, Record, ServicePlan},
    source::{self, Feedback, SourceConfig, SourceHandle},
};

/// Batches that wait while one is applied; a source that is faster is slowed down.
const BATCHES: usize = 64;
/// Services or pods that go into the zone at once, when many come; of the first state, how many times as many may wait for it.
const CHUNK: usize = 128;
const CHUNKS: usize = 2;
/// After which what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Owner {
    state: Arc<State>,
    cluster: Cluster,
    plan: PlanConfig,
    datapath: Arc<Datapath>,
    resolver: ResolverHandle,
    queries: Option<Carrier>,
    names: Names,
    events: mpsc::Receiver<Vec<Event>>,
    /// Stops with it.
    _source: SourceHandle,
    retry: Option<Instant>,
}

impl Owner {
    /// From nothing to serving.
    ///
    /// # Errors
    /// What keeps it from serving; whatever was attached is off again.
    pub async fn start(state: Arc<State>) -> Result<Self> {
        let config = &state.config;
        interfaces_exist(config)?;
        let listen = super::listen(config);
        let reachable = super::reachable(config, &listen);
        let plan = config.plan_config(&reachable);
        let (sender, mut events) = mpsc::channel(BATCHES);
        let source = source::start(source_config(config), sender).await?;
        let _first = state.source.set(source.status());
        if let Source::Kubernetes { kubeconfig, context, status: true } = &config.source {
            let _first = state.feedback.set(Feedback::start(kubeconfig.clone(), context.clone()).await?);
        }
        let mut cluster = Cluster::seen_from(config.identity(&reachable));
        let first = events.recv().await.context("source: it ended before it told anything; see the log")?;
        let dirty = cluster.apply(first);
        let began = Instant::now();
        let (namespaces, pods) = (dirty.namespaces, Vec::from_iter(dirty.pods));
        let plans = tokio::task::block_in_place(|| plan_all(&cluster, dirty.services, &plan));
        let planned = began.elapsed();
        let cidrs = if config.service_cidrs.is_empty() {
            cluster.objects.service_cidrs.clone().unwrap_or_default()
        } else {
            config.service_cidrs.clone()
        };
        if cidrs.is_empty() && config.datapath.mode != Mode::Off {
            let status = source.status();
            let problems = &status.borrow().problems;
            let why = problems.iter().find(|problem| problem.starts_with("servicecidrs"));
            let why = why.map_or("the cluster's API tells none", String::as_str);
            bail!("serviceCIDRs: {why}: give them, like [10.96.0.0/12]");
        }
        state.change(|held| held.cidrs.clone_from(&cidrs));
        look_around(&state, &cluster);

        let datapath = Arc::new(Datapath::load(config, sizes(config, &plans, pods.len()), &cidrs, &listen)?);
        let loaded = began.elapsed();
        // Loading has told by now when it is the uplinks themselves that are missing.
        if listen.is_empty() {
            bail!("dns.listen: the uplinks have no usable address: name the addresses to answer on");
        }
        let names = Names::new(config);
        let found = names.find(&cluster, &cidrs, &plan);
        let mut dns = config.dns_config(&listen);
        dns.cluster = names.meaning(found.as_ref());
        let resolver = Resolver::start(dns, datapath.answers()).await?;
        let queries = datapath.queries().map(|queries| Carrier::start(queries, resolver.clone()));
        let mut owner =
            Self { state, cluster, plan, datapath, resolver, queries, names, events, _source: source, retry: None };
        names::tell(&owner.state, found);
        owner.resolver.set_service_cidrs(&cidrs);
        owner.publish();
        owner.name_namespaces(&namespaces);
        owner.fill(plans).await?;
        for pods in pods.chunks(CHUNK) {
            owner.name_pods(pods);
            tokio::task::yield_now().await;
        }
        owner.resolver.synced();
        let filled = began.elapsed();
        tokio::task::block_in_place(|| owner.datapath.attach())?;
        for spared in owner.state.spared() {
            tracing::warn!("{spared}");
        }
        tracing::debug!(?planned, ?loaded, ?filled, attached = ?began.elapsed(), "the first state, since it came");
        // Lists and plans were several times what is kept.
        super::memory::give_back();
        owner.state.ready.store(true, Ordering::Release);
        owner.show_place();
        Ok(owner)
    }

    /// Lets HTTP read, and gives the zone what comes from no Service.
    fn publish(&self) {
        let _first = self.state.datapath.set(self.datapath.clone());
        let _first = self.state.resolver.set(self.resolver.clone());
        let records = plan::zone_records(&self.plan);
        // No object has an empty name, so nothing else can own these records.
        self.resolver.apply(&ObjectName::new("", ""), Some(&ServicePlan { records, ..ServicePlan::default() }));
    }

    /// Follows the cluster until it is cancelled, which it may be at any await: a batch is applied without one.
    pub async fn serve(&mut self, reload: &mut Reload) {
        let mut source_lives = true;
        loop {
            let retry = self.retry;
            tokio::select! {
                batch = self.events.recv(), if source_lives => match batch {
                    Some(batch) => self.take(batch),
                    None => {
                        source_lives = false;
                        tracing::error!("the source ended: the last state stays; restart the agent to follow the cluster again");
                        self.state.change(|held| held.trouble.push("the source ended: restart the agent".to_owned()));
                    }
                },
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => self.try_again(),
                () = reload.wanted() => tokio::task::block_in_place(|| reload.read(|new| self.take_rules(new))),
            }
        }
    }

    /// Takes in a batch and whatever waits behind it: many events of one Service are one change.
    fn take(&mut self, batch: Vec<Event>) {
        let mut events = batch;
        while let Ok(more) = self.events.try_recv() {
            events.extend(more);
        }
        let dirty = self.cluster.apply(events);
        look_around(&self.state, &self.cluster);
        self.show_place();
        self.change(dirty);
    }

    fn change(&mut self, dirty: Dirty) {
        if dirty.cidrs {
            self.set_cidrs();
        }
        let moved = self.state.held(|held| self.names.concern(&self.cluster, &dirty, held.cluster_dns.as_ref()));
        self.name_namespaces(&dirty.namespaces);
        for pods in dirty.pods.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
            self.name_pods(pods);
        }
        // What goes, goes first: it makes room, and gives up addresses that others may have taken over.
        let (come, gone): (Vec<_>, Vec<_>) = dirty
            .services
            .into_iter()
            .map(|name| (plan::plan_service(&self.cluster, &name, &self.plan), name))
            .partition(|(plan, _)| plan.is_some());
        for (plan, name) in gone.into_iter().chain(come) {
            self.replace(name, plan);
        }
        if moved {
            self.find_dns();
        }
    }

    /// Looks for the cluster's own DNS anew, when something that it follows from changed.
    fn find_dns(&self) {
        let found = self.state.held(|held| self.names.find(&self.cluster, &held.cidrs, &self.plan));
        let servers =
            |found: &Option<DnsServers>| found.as_ref().map(|found| found.servers.clone()).unwrap_or_default();
        let before = self.state.held(|held| servers(&held.cluster_dns));
        let now = servers(&found);
        if now != before {
            tracing::info!(servers = super::list(&now), "the cluster's DNS has other endpoints");
            self.resolver.set_cluster(&now);
        }
        names::tell(&self.state, found);
    }

    /// Takes over what a new config says about names outside.
    fn take_rules(&mut self, new: &Config) -> Result<()> {
        let (names, rules) = (Names::new(new), new.forward_rules());
        let found = self.state.held(|held| names.find(&self.cluster, &held.cidrs, &self.plan));
        self.resolver.set_rules(&rules, new.dns.ca_file.as_deref(), &names.meaning(found.as_ref()))?;
        tracing::info!(rules = rules.len(), "the zone rules of the config are in force");
        self.names = names;
        names::tell(&self.state, found);
        Ok(())
    }

    /// A namespace's own names exist with it. No Service has an empty name, so nothing else can own these records.
    fn name_namespaces(&self, namespaces: &BTreeSet<String>) {
        let plan = |namespace: &String| {
            let plan = plan::plan_namespace(&self.cluster, namespace, &self.plan);
            (ObjectName::new(namespace, ""), plan.map(|plan| plan.records).unwrap_or_default())
        };
        if namespaces.is_empty() {
            return;
        }
        let named: Vec<_> = namespaces.iter().map(plan).collect();
        self.resolver.apply_all(named.iter().map(|(owner, records)| (owner, &records[..])));
    }

    /// Pods' names. No Service has a name with a slash in it.
    fn name_pods(&self, pods: &[ObjectName]) {
        let plan = |name: &ObjectName| {
            let plan = plan::plan_pod(&self.cluster, name, &self.plan);
            let owner = ObjectName::new(&name.namespace, format!("pod/{}", name.name));
            (owner, plan.map(|plan| plan.records).unwrap_or_default())
        };
        let named: Vec<_> = pods.iter().map(plan).collect();
        self.resolver.apply_all(named.iter().map(|(owner, records)| (owner, &records[..])));
    }

    /// The first plans, into a datapath that serves nobody yet: names and packets' entries at the same time, because either take seconds in
    /// a large cluster.
    async fn fill(&mut self, plans: Vec<(ObjectName, ServicePlan)>) -> Result<()> {
        let (names, chunks) = std::sync::mpsc::sync_channel::<Vec<(ObjectName, Vec<Record>)>>(CHUNKS);
        let resolver = self.resolver.clone();
        // Ends when its sender does: soon, also when a signal ends the start.
        let zone = tokio::task::spawn_blocking(move || {
            for chunk in chunks {
                resolver.apply_all(chunk.iter().map(|(name, records)| (name, &records[..])));
            }
        });
        let mut plans = plans.into_iter().peekable();
        while plans.peek().is_some() {
            let mut chunk: Vec<_> = plans.by_ref().take(CHUNK).collect();
            let records = chunk.iter_mut().map(|(name, plan)| (name.clone(), std::mem::take(&mut plan.records)));
            let records: Vec<_> = records.collect();
            let counts: Vec<usize> = records.iter().map(|(_, records)| records.len()).collect();
            let sent = tokio::task::block_in_place(|| names.send(records));
            sent.map_err(|_| anyhow!("the task that fills the zone has ended; see the log"))?;
            for ((name, plan), records) in chunk.into_iter().zip(counts) {
                let result = self.datapath.apply(&name, Some(&plan));
                self.keep(name, Some(Planned { plan, records }), result);
            }
            // A signal must be able to end it.
            tokio::task::yield_now().await;
        }
        drop(names);
        zone.await.context("filling the zone")
    }

    /// Names of what is gone go before its packets are refused; names of what comes are told when its packets are served.
    fn replace(&mut self, name: ObjectName, plan: Option<ServicePlan>) {
        if plan.is_none() {
            self.resolver.apply(&name, None);
        }
        let result = self.datapath.apply(&name, plan.as_ref());
        if plan.is_some() {
            self.resolver.apply(&name, plan.as_ref());
        }
        self.keep(name, plan.map(Planned::from), result);
    }

    /// Remembers what is in force, and tells what is news of it.
    fn keep(&mut self, name: ObjectName, plan: Option<Planned>, result: Result<(), KernelError>) {
        self.state.changes.fetch_add(1, Ordering::Relaxed);
        self.settle(&name, result);
        let problems = plan.as_ref().map(|plan| plan.problems.clone()).unwrap_or_default();
        let before = self.state.change(|held| match plan {
            Some(plan) => held.plans.insert(name.clone(), plan),
            None => held.plans.remove(&name),
        });
        let before = before.map(|before| before.problems.clone()).unwrap_or_default();
        // Each once, when it comes.
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!("{problem}");
        }
        for problem in before.iter().filter(|problem| !problems.contains(problem)) {
            tracing::info!("no longer: {problem}");
        }
        self.tell(&name);
    }

    /// Shows the cluster a gateway on this node.
    fn show_place(&self) {
        if let Some(feedback) = self.state.feedback.get() {
            feedback.place(self.cluster.here().node.as_deref());
        }
    }

    /// Tells the cluster what is wrong with a Service, or that nothing is. It is written later, by others.
    fn tell(&self, name: &ObjectName) {
        let Some(feedback) = self.state.feedback.get() else { return };
        self.state.held(|held| {
            let Some(plan) = held.plans.get(name) else { return feedback.gone(name) };
            let refused = held.refused.get(name).map(|(reason, error)| {
                Problem::new(name, *reason, &format!("the datapath refused it; it is tried again: {error}"))
            });
            feedback.problems(name, plan.problems.iter().chain(&refused).map(|p| (p.reason.name(), &**p)));
        });
    }

    /// Remembers what the kernel refused, so that it is tried again and told.
    fn settle(&mut self, name: &ObjectName, result: Result<(), KernelError>) {
        match result {
            Ok(()) => {
                if self.state.change(|held| held.refused.remove(name)).is_some() {
                    tracing::info!(service = %name, "the datapath took it");
                }
            }
            Err(error) => {
                let full = matches!(error, KernelError::Full { .. });
                let reason = if full { Reason::TableFull } else { Reason::DatapathRefused };
                let error = error.to_string();
                self.state.errors.fetch_add(1, Ordering::Relaxed);
                let refused = (reason, error.clone());
                if self.state.change(|held| held.refused.insert(name.clone(), refused.clone())).as_ref()
                    != Some(&refused)
                {
                    tracing::error!(service = %name, %error, "the datapath refused it; it is tried again");
                }
                self.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    fn try_again(&mut self) {
        self.retry = None;
        for name in self.state.held(|held| held.refused.keys().cloned().collect::<Vec<_>>()) {
            let plan = self.state.held(|held| held.plans.get(&name).map(|plan| ServicePlan::clone(plan)));
            let result = self.datapath.apply(&name, plan.as_ref());
            self.settle(&name, result);
            self.tell(&name);
        }
    }

    fn set_cidrs(&mut self) {
        // A configured list is the operator's word against the API's.
        if !self.state.config.service_cidrs.is_empty() {
            return;
        }
        let Some(cidrs) = self.cluster.objects.service_cidrs.clone().filter(|cidrs| !cidrs.is_empty()) else {
            tracing::warn!("the API tells no service CIDR any more: the last ones stay claimed");
            return;
        };
        match self.datapath.set_claims(&cidrs) {
            Ok(()) => {
                tracing::info!(cidrs = super::list(&cidrs), "service CIDRs changed");
                self.resolver.set_service_cidrs(&cidrs);
                self.state.change(|held| held.cidrs = cidrs);
            }
            Err(error) => {
                self.state.errors.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "the datapath refused the new service CIDRs: the last ones stay claimed");
            }
        }
    }

    /// Ends: no new queries, then the programs off.
    ///
    /// # Errors
    /// What could not be taken off.
    pub async fn stop(self) -> Result<()> {
        self.state.ready.store(false, Ordering::Release);
        self.resolver.shutdown().await;
        let stopped = tokio::task::block_in_place(|| self.datapath.stop());
        if let Some(queries) = self.queries {
            queries.stop().await;
        }
        if let Some(feedback) = self.state.feedback.get() {
            feedback.stop().await;
        }
        Ok(stopped?)
    }
}

/// Plans the first state, on every CPU.
fn plan_all(cluster: &Cluster, names: BTreeSet<ObjectName>, config: &PlanConfig) -> Vec<(ObjectName, ServicePlan)> {
    let plan = |name: ObjectName| plan::plan_service(cluster, &name, config).map(|plan| (name, plan));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let share = names.len().div_ceil(cpus).max(CHUNK);
    let mut names = names.into_iter();
    std::thread::scope(|scope| {
        let shares = std::iter::from_fn(|| {
            let share: Vec<_> = names.by_ref().take(share).collect();
            (!share.is_empty()).then_some(share)
        });
        let planners: Vec<_> =
            shares.map(|share| scope.spawn(move || share.into_iter().filter_map(plan).collect::<Vec<_>>())).collect();
        let planned = planners.into_iter().map(|planner| planner.join().unwrap_or_else(|panic| resume_unwind(panic)));
        planned.flatten().collect()
    })
}

/// Tells people the gateway's own place in the cluster, when it is news.
fn look_around(state: &State, cluster: &Cluster) {
    let here = cluster.here();
    if state.held(|held| held.here == *here) {
        return;
    }
    let known = |name: &Option<String>| name.clone().unwrap_or_else(|| "unknown".to_owned());
    let (node, zone) = (known(&here.node), known(&here.zone));
    // An agent that is refused says why and nothing else.
    if state.ready.load(Ordering::Acquire) {
        tracing::info!(node, zone, "this gateway's own place in the cluster");
    } else {
        tracing::debug!(node, zone, "this gateway's own place in the cluster");
    }
    state.change(|held| held.here.clone_from(here));
}

fn source_config(config: &Config) -> SourceConfig {
    match &config.source {
        Source::Manifests(directory) => SourceConfig::Manifests(directory.clone()),
        Source::Kubernetes { kubeconfig, context, .. } => SourceConfig::Kubernetes {
            kubeconfig: kubeconfig.clone(),
            context: context.clone(),
            extra: config.source_extra(),
        },
    }
}

/// What the maps must hold now; the kernel room leaves room for growth.
fn sizes(config: &Config, plans: &[(ObjectName, ServicePlan)], pods: usize) -> Sizes {
    let count = |of: fn(&ServicePlan) -> usize| {
        u32::try_from(plans.iter().map(|(_, plan)| of(plan)).sum::<usize>()).unwrap_or(u32::MAX)
    };
    // A name has an entry for itself and one for each type; a pod has a name, or one of each family.
    let pods = u32::try_from(pods.saturating_mul(4)).unwrap_or(u32::MAX);
    let zone = count(|plan| 2 * plan.records.len()).saturating_add(pods);
    Sizes {
        services: count(|plan| plan.vips.len() + plan.frontends.len()),
        endpoints: count(|plan| plan.frontends.iter().map(|f| f.endpoints.len() + f.draining.len()).sum()),
        answers: zone.saturating_add(config.dns.cache.entries),
    }
}

/// Before the source is waited for: what is missing on this node is an error even when the API server does not answer.
fn interfaces_exist(config: &Config) -> Result<(), KernelError> {
    if config.datapath.mode == Mode::Off {
        return Ok(());
    }
    let there = node::interfaces();
    for (key, names) in [("uplinks", &config.uplinks), ("clusterInterfaces", &config.cluster_interfaces)] {
        if let Some(name) = names.iter().find(|&name| !there.contains(name)) {
            return Err(KernelError::NoInterface { key, name: name.clone(), known: there.join(", ") });
        }
    }
    Ok(())
}
