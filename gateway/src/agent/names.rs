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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::{Event, ObjectName, Objects};

    fn names(dns: &str) -> Names {
        let text = format!(
            "clients: [{{name: a, cidrs: [10.90.0.0/16]}}]\nsource: {{manifests: m}}\nserviceCIDRs: [10.1.0.0/16]\n\
             dns: {{listen: [192.0.2.1], {dns}}}\n"
        );
        Names::new(&Config::parse(&text, Path::new("gateway.yaml")).expect("a config"))
    }

    fn service(namespace: &str, name: &str, ip: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: {ip}, ports: [{{name: dns, \
             port: 53, protocol: UDP}}]}}\n---\n"
        )
    }

    #[test]
    fn only_what_it_follows_from_concerns_it() {
        let yaml = service("kube-system", "kube-dns", "10.1.0.10")
            + &service("dns", "own", "10.1.0.11")
            + &service("shop", "web", "10.1.0.12");
        let (objects, _): (Objects, _) = crate::source::parse(&yaml).expect("objects");
        let mut cluster = Cluster::default();
        cluster.apply([Event::Snapshot(Box::new(objects))]);
        let config = Config::parse(
            "clients: [{name: a, cidrs: [10.90.0.0/16]}]\nsource: {manifests: m}\nserviceCIDRs: [10.1.0.0/16]\n",
            Path::new("gateway.yaml"),
        );
        let plan = config.expect("a config").plan_config(&[]);
        let dirty = |name: &str| {
            let (namespace, name) = name.split_once('/').expect("two parts");
            Dirty { services: [ObjectName::new(namespace, name)].into(), ..Dirty::default() }
        };
        let concerned = |dns: &str, found_before: bool| {
            let names = names(dns);
            let found = names.find(&cluster, &[], &plan).filter(|_| found_before);
            let all = ["kube-system/kube-dns", "dns/own", "shop/web"];
            all.map(|name| names.concern(&cluster, &dirty(name), found.as_ref()))
        };
        assert_eq!(concerned("pods: disabled", true), [false; 3], "nobody asks");
        assert_eq!(concerned("forward: [{zone: a, to: [cluster]}]", true), [true, false, false]);
        assert_eq!(concerned("upstreams: [10.1.0.11, 9.9.9.9]", true), [false, true, false]);
        // A Service that comes to own the address.
        let came = names("upstreams: [10.1.0.12]");
        let none = DnsServers::default();
        assert!(came.concern(&cluster, &dirty("shop/web"), Some(&none)));
        assert!(!came.concern(&cluster, &dirty("dns/own"), Some(&none)));
        let cidrs = Dirty { cidrs: true, ..Dirty::default() };
        assert!(came.concern(&cluster, &cidrs, Some(&none)));
        assert!(!names("forward: [{zone: a, to: [cluster]}]").concern(&cluster, &cidrs, Some(&none)));
    }
}
