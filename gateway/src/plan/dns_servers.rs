//! Where the cluster's own DNS is asked: at its endpoints, not at its VIP, since nobody says that this node has a kube-proxy.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;

use super::{Backends, PlanConfig, Problems, Reach};
use crate::model::{Cluster, ObjectName, Protocol, Service, ServiceKind, ServicePort};

/// Port of DNS.
const DNS: u16 = 53;

/// The servers of the cluster's own DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsServers {
    /// Each once, in the order of the config; of a Service, those of its first family first, sorted.
    pub servers: Vec<SocketAddr>,
    /// What is wrong, in words, with what to do.
    pub problems: Vec<String>,
    /// The Services that this follows from: a change of another one changes nothing, unless it comes to own an address of the config.
    pub services: BTreeSet<ObjectName>,
}

/// Finds them: behind the addresses of `upstreams` (`dns.upstreams`) or, without any, behind the cluster DNS Service. Takes as long as
/// those have endpoints. `cidrs` are the service CIDRs.
pub fn dns_servers(cluster: &Cluster, upstreams: &[SocketAddr], cidrs: &[IpNet], config: &PlanConfig) -> DnsServers {
    let mut found = DnsServers::default();
    if upstreams.is_empty() {
        found.add_service(cluster, config);
    }
    for (index, upstream) in upstreams.iter().enumerate() {
        if let Err(why) = found.add_upstream(cluster, *upstream, cidrs, config) {
            found.problems.push(format!("dns.upstreams[{index}]: {why}"));
        }
    }
    found
}

impl DnsServers {
    /// The cluster DNS Service.
    fn add_service(&mut self, cluster: &Cluster, config: &PlanConfig) {
        let name = &config.dns_service;
        self.services.insert(name.clone());
        let what = format!("dns.forward: `cluster` is Service {name}");
        let Some(service) = cluster.objects.services.get(name) else {
            return self.problems.push(format!("{what}, and there is none: name the cluster's DNS in dns.upstreams"));
        };
        let vips = match &service.kind {
            ServiceKind::ClusterIp(vips) if !vips.is_empty() => vips.clone(),
            ServiceKind::ClusterIp(_) | ServiceKind::Headless => {
                vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
            }
            ServiceKind::ExternalName(_) => {
                return self
                    .problems
                    .push(format!("{what}, which is an ExternalName: name the cluster's DNS in dns.upstreams"));
            }
        };
        let udp = || service.ports.iter().filter(|port| port.protocol == Protocol::Udp);
        let Some(port) = udp().find(|port| &*port.name == "dns").or_else(|| udp().find(|port| port.port == DNS)) else {
            return self.problems.push(format!("{what}, which has no UDP port `dns` or 53: use dns.upstreams"));
        };
        let mut none = true;
        for vip in vips {
            none &= !self.add_endpoints(cluster, service, port, vip, config);
        }
        if none {
            self.problems.push(format!("{what}, which has no endpoint that is ready or serving"));
        }
    }

    fn add_upstream(
        &mut self,
        cluster: &Cluster,
        upstream: SocketAddr,
        cidrs: &[IpNet],
        config: &PlanConfig,
    ) -> Result<(), String> {
        let (vip, number) = (upstream.ip(), upstream.port());
        let service = cluster.owner(vip).and_then(|name| cluster.objects.services.get(name));
        let Some(service) = service else {
            // Somebody may know better: it is asked all the same.
            self.add(upstream, config);
            return match cidrs.iter().any(|cidr| cidr.contains(&vip)) {
                true => Err(format!("{vip} is in a service CIDR, but no Service has it")),
                false if config.dns_listen.contains(&upstream) => {
                    Err(format!("{upstream} is the address the gateway itself listens on: it is not asked"))
                }
                false => Ok(()),
            };
        };
        let name = &service.name;
        self.services.insert(name.clone());
        let of_port = |port: &&ServicePort| port.protocol == Protocol::Udp && port.port == number;
        let Some(port) = service.ports.iter().find(of_port) else {
            return Err(format!("{vip} is Service {name}, which has no UDP port {number}"));
        };
        match self.add_endpoints(cluster, service, port, vip, config) {
            true => Ok(()),
            false => Err(format!("{vip} is Service {name}, which has no endpoint that is ready or serving")),
        }
    }

    /// Adds where new flows to that port of the VIP would go; says whether there is any.
    fn add_endpoints(
        &mut self,
        cluster: &Cluster,
        service: &Service,
        port: &ServicePort,
        vip: IpAddr,
        config: &PlanConfig,
    ) -> bool {
        // The plan of the Service says what is wrong with its slices.
        let mut said = Problems::new(&service.name);
        let backends = Backends::collect(cluster, service, service.cluster_ips(), &mut said);
        let reach = if service.internal_local { Reach::Node } else { Reach::Cluster };
        let (endpoints, _) = backends.of_port(port, vip, reach);
        for endpoint in &endpoints {
            self.add(SocketAddr::new(endpoint.addr, endpoint.port), config);
        }
        !endpoints.is_empty()
    }

    /// The gateway never asks itself.
    fn add(&mut self, server: SocketAddr, config: &PlanConfig) {
        if !self.servers.contains(&server) && !config.dns_listen.contains(&server) {
            self.servers.push(server);
        }
    }
}
