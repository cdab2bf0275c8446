//! What each room is told, out of a checked config.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use super::{Cache, Config, Deny, DnsLimits, Forward, Pods, ReturnPath, Strangers};
use crate::{
    dns::{CacheConfig, ClusterDns, DnsConfig, ForwardRule, Limits, To},
    kernel::{Mode, Settings, Sizes},
    model::{Identity, ObjectName},
    node,
    plan::PlanConfig,
    source::{Extra, ServiceCidrs},
};

/// TTL of zone records in seconds: CoreDNS's `kubernetes` default is 5, its usual Corefile's 30.
pub const ZONE_TTL: u32 = 30;

impl Config {
    /// What the datapath is told: `sizes` come from the first plan, `claims` are the service CIDRs, `listen` the forwarder's addresses.
    pub fn settings(&self, sizes: Sizes, claims: &[IpNet], listen: &[SocketAddr]) -> Settings {
        Settings {
            uplinks: self.uplinks.clone(),
            cluster_interfaces: self.cluster_interfaces.clone(),
            mode: self.datapath.mode,
            flows: self.datapath.flows,
            pin: self.datapath.pin.clone(),
            snat_addresses: self.snat_addresses.clone(),
            snat_ports: self.snat_ports.clone(),
            routed: self.return_path == ReturnPath::Routed,
            deny_drop: self.deny == Deny::Drop,
            strangers_pass: self.strangers == Strangers::Pass,
            dns: kernel_dns(listen),
            views: self.views.iter().map(|view| view.cidrs.clone()).collect(),
            claims: claims.to_vec(),
            timeouts: self.datapath.timeouts,
            mss_clamp: self.datapath.mss_clamp,
            dns_limit: self.dns.rate_limit,
            dns_log: self.dns.log.as_ref().map_or(0, |log| log.per_million),
            sizes,
        }
    }

    /// What the resolver is told; `listen` are its addresses. The servers of the cluster's DNS are to be found yet.
    pub fn dns_config(&self, listen: &[SocketAddr]) -> DnsConfig {
        let Cache { entries, memory, max_ttl, negative_ttl, stale, failure_ttl } = self.dns.cache;
        let DnsLimits { outstanding, per_client } = self.dns.limits;
        let bound = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
        DnsConfig {
            listen: listen.to_vec(),
            cluster_domain: self.dns.cluster_domain.clone(),
            ttl: ZONE_TTL,
            zone_negative_ttl: ZONE_TTL,
            pods: self.dns.pods == Pods::Insecure,
            local_zone: self.dns.local_zone,
            forward: self.forward_rules(),
            cluster: ClusterDns { configured: self.dns.upstreams.clone(), servers: Vec::new() },
            ca_file: self.dns.ca_file.clone(),
            cache: CacheConfig {
                entries: bound(entries),
                memory: usize::try_from(memory).unwrap_or(usize::MAX),
                max_ttl,
                negative_ttl,
                stale,
                failure_ttl,
            },
            views: self.views.iter().map(|view| view.cidrs.clone()).collect(),
            view_names: self.views.iter().map(|view| view.name.clone()).collect(),
            log: self.dns.log.clone(),
            rate_limit: self.dns.rate_limit,
            limits: Limits { waiting: bound(outstanding), waiting_per_client: bound(per_client), ..Limits::default() },
        }
    }

    /// Whether a zone rule asks the cluster's own DNS.
    pub fn asks_cluster(&self) -> bool {
        self.dns.forward.iter().any(|rule| rule.to.contains(&To::Cluster))
    }

    /// Who is asked for which names.
    pub fn forward_rules(&self) -> Vec<ForwardRule> {
        let rule = |rule: &Forward| ForwardRule {
            zone: if rule.zone.is_empty() { ".".to_owned() } else { rule.zone.clone() },
            views: rule.views,
            to: rule.to.clone(),
            redirect: rule.redirect.clone(),
            mixed_case: rule.mixed_case,
        };
        self.dns.forward.iter().map(rule).collect()
    }

    /// What the plan needs beside the cluster; `listen` are the forwarder's addresses.
    pub fn plan_config(&self, listen: &[SocketAddr]) -> PlanConfig {
        PlanConfig {
            views: self.views.iter().map(|view| view.namespaces.clone()).collect(),
            cluster_domain: self.dns.cluster_domain.clone(),
            dns_listen: listen.to_vec(),
            dns_service: ObjectName::new("kube-system", "kube-dns"),
            ttl: ZONE_TTL,
            vips: self.datapath.vips,
            own: self.own_addresses(listen),
            pods: self.dns.pods,
        }
    }

    /// Which kinds the source must tell beside those that it always does.
    pub fn source_extra(&self) -> Extra {
        let service_cidrs = match self.service_cidrs.is_empty() {
            false => ServiceCidrs::Given,
            true if self.datapath.mode == Mode::Off => ServiceCidrs::Wanted,
            true => ServiceCidrs::Required,
        };
        Extra { service_cidrs, pods: self.dns.pods == Pods::Verified }
    }

    /// What is known of this node before the cluster is: `node`, else the environment's `NODE_NAME`, else its host name, which are
    /// looked for among the cluster's nodes as are its addresses.
    pub fn identity(&self, listen: &[SocketAddr]) -> Identity {
        let sure = self.node.clone().or_else(|| std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty()));
        let names = match sure {
            Some(name) => vec![name],
            // As the kubelet makes a node's name of it.
            None => node::sysctl("kernel/hostname").map(|name| name.trim().to_ascii_lowercase()).into_iter().collect(),
        };
        let mut addresses = self.own_addresses(listen);
        addresses.extend(node::interfaces().iter().flat_map(|name| node::addresses(name)));
        Identity { names, addresses }
    }

    /// The addresses under which clients and endpoints know the gateway.
    fn own_addresses(&self, listen: &[SocketAddr]) -> Vec<IpAddr> {
        let mut own = node::uplink_addresses(&self.uplinks);
        own.extend(&self.snat_addresses);
        own.extend(listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()));
        own.sort_unstable();
        own.dedup();
        own
    }
}

/// The kernel answers where the forwarder does, and only port 53.
fn kernel_dns(listen: &[SocketAddr]) -> Vec<IpAddr> {
    let dns: Vec<IpAddr> = listen.iter().filter(|address| address.port() == 53).map(SocketAddr::ip).collect();
    // The wildcard: clients ask the uplinks' addresses. An empty list means those.
    if dns.iter().any(IpAddr::is_unspecified) {
        return Vec::new();
    }
    // An empty list means the uplinks' addresses, where another program may have port 53. No packet is sent to this one.
    if dns.is_empty() { vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)] } else { dns }
}
