//! The cluster's own DNS: what the config says of it, and where it is now.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::state::State;
use crate::{
    config::Config,
    dns::ClusterDns,
    model::{Cluster, Dirty},
    plan::{self, DnsServers, PlanConfig},
};

/// What the config in force says.
pub(super) struct Names {
    /// `dns.upstreams`.
    upstreams: Vec<SocketAddr>,
    /// Some zone rule asks the cluster's DNS: else nobody wants to know where it is.
    asked: bool,
}

impl Names {
    /// From a config.
    pub fn new(config: &Config) -> Self {
        let (upstreams, asked) = (config.dns.upstreams.clone(), config.asks_cluster());
        if !upstreams.is_empty() && !asked {
            tracing::warn!("dns.upstreams: nobody asks them: no rule of dns.forward has `cluster` among its servers");
        }
        Self { upstreams, asked }
    }

    /// Where it is; `None`: nobody wants to know.
    pub fn find(&self, cluster: &Cluster, cidrs: &[IpNet], plan: &PlanConfig) -> Option<DnsServers> {
        self.asked.then(|| plan::dns_servers(cluster, &self.upstreams, cidrs, plan))
    }

    /// What `cluster` means in zone rules.
    pub fn meaning(&self, found: Option<&DnsServers>) -> ClusterDns {
        let servers = found.map(|found| found.servers.clone()).unwrap_or_default();
        ClusterDns { configured: self.upstreams.clone(), servers }
    }

    /// Whether it may be elsewhere after a change. Looks at what changed and at nothing else.
    pub fn concern(&self, cluster: &Cluster, dirty: &Dirty, before: Option<&DnsServers>) -> bool {
        if !self.asked {
            return false;
        }
        let owns = |name| {
            let service = cluster.objects.services.get(name);
            service.is_some_and(|s| s.cluster_ips().iter().any(|ip| self.upstreams.iter().any(|u| u.ip() == *ip)))
        };
        let follows = |name| before.is_none_or(|before| before.services.contains(name));
        // Service CIDRs only matter to what is said of an address that no Service has.
        dirty.cidrs && !self.upstreams.is_empty() || dirty.services.iter().any(|name| follows(name) || owns(name))
    }
}

/// Tells people where it is, and what is wrong with it, each thing once.
pub(super) fn tell(state: &State, found: Option<DnsServers>) {
    let problems = |found: &Option<DnsServers>| found.as_ref().map(|f| f.problems.clone()).unwrap_or_default();
    let now = problems(&found);
    let before = state.change(|held| std::mem::replace(&mut held.cluster_dns, found));
    let before = problems(&before);
    for problem in now.iter().filter(|problem| !before.contains(problem)) {
        tracing::warn!("{problem}");
    }
    for problem in before.iter().filter(|problem| !now.contains(problem)) {
        tracing::info!("no longer: {problem}");
    }
}
