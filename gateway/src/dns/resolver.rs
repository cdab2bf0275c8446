//! The room's door: starts the parts and joins them.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use gateway_common::dns::log::Asked;
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{
    ClusterDns, DnsConfig, DnsError, ForwardRule, SharedStore,
    cache::Cache,
    clock,
    forwarder::Forwarder,
    limit::Limiter,
    log::QueryLog,
    name,
    publish::Publisher,
    rules::Rules,
    server::{Listener, Server},
    stats::{Counters, Snapshot, Stats},
    upstream::tls::Trust,
    views::ViewTable,
    zone::{ALL_VIEWS, Zone, ZoneConfig},
};
use crate::{
    model::ObjectName,
    plan::{DNS_SCHEMA_TTL, DNS_SCHEMA_VERSION, Record, RecordData, ServicePlan},
};

/// How often expired answers are taken out of the kernel. It does not serve them meanwhile.
const SWEEP: Duration = Duration::from_secs(1);

/// The resolver; see [`Resolver::start`].
#[derive(Debug)]
pub struct Resolver;

impl Resolver {
    /// Binds the listeners and begins to answer. Until [`ResolverHandle::synced`] is called, names of the cluster zone that are not
    /// there (yet) get SERVFAIL, and the kernel passes them on.
    ///
    /// # Errors
    /// When an address cannot be listened on, or the config asks for what cannot be.
    pub async fn start(config: DnsConfig, store: SharedStore) -> Result<ResolverHandle, DnsError> {
        raise_file_limit();
        let mut listeners = Vec::with_capacity(config.listen.len());
        for addr in &config.listen {
            listeners.push(Listener::bind(*addr).await?);
        }
        let addresses: Vec<SocketAddr> = listeners.iter().map(Listener::addr).collect();
        let trust = Trust::read(config.ca_file.as_deref())?;
        let rules = Rules::new(&config.forward, trust, &addresses, &config.cluster, None)?;
        let log = match &config.log {
            Some(log) => Some(
                QueryLog::open(log, config.view_names.clone())
                    .map_err(|source| DnsError::Log { path: log.file.clone(), source })?,
            ),
            None => None,
        };
        let stats = Arc::new(Stats::default());
        let publisher = Arc::new(Publisher::new(store, Arc::clone(&stats)));
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let zone = ZoneConfig {
            domain: &config.cluster_domain,
            ttl: config.ttl,
            negative_ttl: config.zone_negative_ttl,
            // Serials are numbers of 32 bits that wrap (RFC 1982).
            serial: (since_epoch.as_secs() & u64::from(u32::MAX)) as u32,
            fixed: fixed_records(&config, &addresses),
            pods: config.pods,
            local: config.local_zone,
        };
        let zone = Zone::new(&zone, Arc::clone(&publisher))?;
        let cache = Arc::new(Cache::new(config.cache, zone.domain(), publisher, Arc::clone(&stats)));
        let views = ViewTable::new(&config.views);
        let forwarder = Arc::new(
            Forwarder::new(zone, cache, rules, views, stats).with_log(log).with_limit(Limiter::new(&config.rate_limit)),
        );
        let server = Arc::new(Server::new(Arc::clone(&forwarder), config.limits));
        for listener in listeners {
            listener.serve(&server);
        }
        server.tasks.spawn(keep_house(Arc::clone(&server), Arc::clone(&forwarder)));
        Ok(ResolverHandle { forwarder, server, addresses: addresses.into() })
    }
}

/// Each question to an upstream has a socket of its own, and the usual soft limit of 1,024 files is less than a burst of them.
fn raise_file_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is, bursts of DNS queries may fail: {error}");
    }
}

/// Records that no Service owns: the zone's version, and the address of its name server.
fn fixed_records(config: &DnsConfig, addresses: &[SocketAddr]) -> Vec<Record> {
    let domain = config.cluster_domain.trim_end_matches('.').to_ascii_lowercase();
    let record =
        |name: &str, data| Record { name: format!("{name}.{domain}"), ttl: config.ttl, views: ALL_VIEWS, data };
    let version = record("dns-version", RecordData::Txt(DNS_SCHEMA_VERSION.to_owned()));
    let mut records = vec![Record { ttl: DNS_SCHEMA_TTL, ..version }];
    let reachable = addresses.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
    records.extend(reachable.map(|ip| record("ns.dns", RecordData::Address(ip))));
    if records.len() == 1 {
        records.push(record("ns.dns", RecordData::Exists));
    }
    records
}

/// Ageing of the cache, and another try for what the kernel refused.
async fn keep_house(server: Arc<Server>, forwarder: Arc<Forwarder>) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = server.cancel.cancelled() => return,
        }
        let rules = forwarder.rules();
        for ask in forwarder.cache.sweep(clock::now()) {
            if let Some(route) = rules.by_id(ask.via) {
                let views = rules.views_of(&ask.name, ask.via);
                forwarder.cache.refresh(ask, route, views);
            }
        }
        forwarder.zone.retry();
    }
}

/// A running resolver. Clones are the same resolver.
#[derive(Clone)]
pub struct ResolverHandle {
    forwarder: Arc<Forwarder>,
    server: Arc<Server>,
    addresses: Arc<[SocketAddr]>,
}

impl ResolverHandle {
    /// Replaces what a Service is to the zone, in the forwarder and in the kernel; `None`: the Service is gone. When it returns, no
    /// query gets the old answer.
    pub fn apply(&self, service: &ObjectName, plan: Option<&ServicePlan>) {
        self.forwarder.zone.apply(service, plan);
    }

    /// The same for the records of several Services at once, each of them once.
    pub fn apply_all<'r>(&self, services: impl IntoIterator<Item = (&'r ObjectName, &'r [Record])>) {
        self.forwarder.zone.apply_all(services);
    }

    /// The first snapshot of the cluster is in: from now on, a name of the cluster zone that is not there does not exist.
    pub fn synced(&self) {
        self.forwarder.zone.synced();
    }

    /// The ranges of VIPs, whose reverse zones are answered as a whole.
    pub fn set_service_cidrs(&self, ranges: &[IpNet]) {
        self.forwarder.zone.set_service_cidrs(ranges);
    }

    /// Replaces the views' prefixes; index = view number.
    pub fn set_views(&self, views: &[Vec<IpNet>]) {
        self.forwarder.set_views(ViewTable::new(views));
    }

    /// Replaces the zone rules. Answers stay, but for names that others answer for now; servers that stay keep their health and their
    /// sessions.
    ///
    /// # Errors
    /// What is wrong with the new rules; the old ones stay.
    pub fn set_rules(
        &self,
        forward: &[ForwardRule],
        ca_file: Option<&Path>,
        cluster: &ClusterDns,
    ) -> Result<(), DnsError> {
        let before = self.forwarder.rules();
        let after = Arc::new(Rules::new(forward, Trust::read(ca_file)?, &self.addresses, cluster, Some(&before))?);
        self.forwarder.set_rules(Arc::clone(&after));
        self.forwarder.cache.retain(|ask| before.carried(&after, &ask.name, ask.via));
        Ok(())
    }

    /// Replaces the servers of the cluster's DNS, for questions on their way, too. Answers stay; servers that stay keep their health.
    /// What failed for want of a server is asked again at once.
    pub fn set_cluster(&self, servers: &[SocketAddr]) {
        self.forwarder.rules().set_cluster(servers);
        self.forwarder.cache.forget_failures();
    }

    /// What the forwarder does with a client's question for a name that is not of the cluster's zone, in words; `None`: it is, or the
    /// client is in no view.
    pub fn explain(&self, from: IpAddr, name: &str) -> Option<String> {
        let view = self.forwarder.view_of(from)?;
        let name = name::from_text(name).filter(|name| !self.forwarder.zone.holds(name))?;
        Some(self.forwarder.rules().explain(&name, view))
    }

    /// Logs a query that the kernel answered.
    pub fn log_kernel(&self, asked: &Asked) {
        self.forwarder.log_kernel(asked);
    }

    /// Opens the query log's file anew.
    pub fn reopen_log(&self) {
        self.forwarder.reopen_log();
    }

    /// Addresses listened on, with the real port where the config said 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.to_vec()
    }

    /// The counters now.
    pub fn counters(&self) -> Counters {
        Counters { log_lost: self.forwarder.log_lost(), ..self.forwarder.stats.read() }
    }

    /// What it holds; at most `limit` learnt answers.
    pub fn snapshot(&self, limit: usize) -> Snapshot {
        Snapshot {
            listen: self.addresses.iter().map(ToString::to_string).collect(),
            zones: vec![self.forwarder.zone.info()],
            cached: self.forwarder.cache.count(),
            cached_bytes: self.forwarder.cache.bytes(),
            cache: self.forwarder.cache.info(limit),
            upstreams: self.forwarder.rules().infos(),
            counters: self.counters(),
        }
    }

    /// Stops listening and ends what is in work. The kernel keeps what it has.
    pub async fn shutdown(&self) {
        self.server.cancel.cancel();
        self.server.tasks.close();
        self.server.tasks.wait().await;
    }
}
