//! What each room is told, out of a checked config.

use std::net::{IpAddr, SocketAddr};

use super::{Cache, Config, Deny, ReturnPath, Strangers};
use crate::{
    dns::{CacheConfig, DnsConfig, ForwardRule, Limits},
    kernel::{Settings, Sizes},
    model::ObjectName,
    plan::PlanConfig,
};

/// TTL of zone records in seconds: CoreDNS's `kubernetes` default is 5, its usual Corefile's 30.
pub const ZONE_TTL: u32 = 30;

impl Config {
    /// What the datapath is told. `sizes` come from the first plan.
    pub fn settings(&self, sizes: Sizes) -> Settings {
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
            dns: self.kernel_dns(),
            views: self.views.iter().map(|view| view.cidrs.clone()).collect(),
            claims: self.service_cidrs.clone(),
            timeouts: self.datapath.timeouts,
            sizes,
        }
    }

    /// The kernel answers port 53 only; a forwarder on another port is reached by its socket.
    fn kernel_dns(&self) -> Vec<IpAddr> {
        self.dns.listen.iter().filter(|address| address.port() == 53).map(SocketAddr::ip).collect()
    }

    /// What the resolver is told; `listen` are its addresses.
    pub fn dns_config(&self, listen: &[SocketAddr]) -> DnsConfig {
        let Cache { entries, max_ttl, negative_ttl, stale } = self.dns.cache;
        DnsConfig {
            listen: listen.to_vec(),
            cluster_domain: self.dns.cluster_domain.clone(),
            ttl: ZONE_TTL,
            zone_negative_ttl: ZONE_TTL,
            forward: self
                .dns
                .forward
                .iter()
                .map(|rule| ForwardRule {
                    zone: if rule.zone.is_empty() { ".".to_owned() } else { rule.zone.clone() },
                    to: rule.to.clone(),
                })
                .collect(),
            cache: CacheConfig {
                entries: usize::try_from(entries).unwrap_or(usize::MAX),
                max_ttl,
                negative_ttl,
                stale,
            },
            views: self.views.iter().map(|view| view.cidrs.clone()).collect(),
            limits: Limits::default(),
        }
    }

    /// What the plan needs beside the cluster; `listen` are the forwarder's addresses.
    pub fn plan_config(&self, listen: &[SocketAddr]) -> PlanConfig {
        PlanConfig {
            views: self.views.iter().map(|view| view.namespaces.clone()).collect(),
            cluster_domain: self.dns.cluster_domain.clone(),
            dns_listen: listen.to_vec(),
            dns_service: ObjectName::new("kube-system", "kube-dns"),
            ttl: ZONE_TTL,
        }
    }
}
