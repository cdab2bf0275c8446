//! Pure: one Service of the model → its entries in the datapath and its names in the zone.
//! Work per change is proportional to the change, because a Service is planned alone.

mod dns_servers;
mod endpoints;
mod problem;
mod records;
#[cfg(test)]
mod tests;
mod vips;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

pub use self::{
    dns_servers::{DnsServers, dns_servers},
    problem::{Problem, Reason},
    records::{DNS_SCHEMA_TTL, DNS_SCHEMA_VERSION, host_label, reverse_name, zone_records},
};
use self::{
    endpoints::{Backends, Reach, usable},
    problem::Problems,
    vips::{Vip, vips},
};
use crate::model::{Cluster, ObjectName, Protocol, Service, ServiceKind, ServicePort};

/// An endpoint of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Endpoint {
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
}

/// One VIP and port. Clones share its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The VIP.
    pub vip: IpAddr,
    /// Port on it.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Bit n: view n may see it.
    pub views: u64,
    /// Endpoints that new flows go to, sorted, without duplicates, of the VIP's family.
    pub endpoints: Arc<[Endpoint]>,
    /// Endpoints that keep the flows they have (terminating but serving, for TCP not ready, or too far for new ones), sorted; none of the
    /// others is among them.
    pub draining: Arc<[Endpoint]>,
    /// ClientIP affinity in seconds; 0: none.
    pub affinity: u32,
    /// The cluster DNS Service's port 53.
    pub dns: bool,
}

/// Record data of the cluster zone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordData {
    /// A or AAAA.
    Address(IpAddr),
    /// CNAME: the target, lower case, without the last dot.
    Cname(String),
    /// SRV: priority, weight, port, target.
    Srv(u16, u16, u16, String),
    /// PTR: target.
    Ptr(String),
    /// TXT: one string.
    Txt(String),
    /// Only says that the name exists.
    Exists,
}

/// A record of the cluster zone. Several Services may own records of the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// Absolute name, lower case, without the last dot.
    pub name: String,
    /// TTL in seconds.
    pub ttl: u32,
    /// Bit n: view n may see it.
    pub views: u64,
    /// Data.
    pub data: RecordData,
}

/// Everything a Service is to the datapath and the zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// VIPs; each must exist in the datapath even when it has no port or endpoint.
    pub vips: Vec<IpAddr>,
    /// Views of those VIPs.
    pub views: u64,
    /// VIP ports.
    pub frontends: Vec<Frontend>,
    /// Records, sorted, without duplicates. Ancestors of their names exist implicitly (empty non-terminals), up to the zone.
    pub records: Vec<Record>,
    /// What cannot be served, in words, with what to do.
    pub problems: Vec<Problem>,
}

/// What changes a plan but is not in the cluster.
#[derive(Clone, Debug)]
pub struct PlanConfig {
    /// Per view (index = bit): the namespaces it may see; `None` is every one.
    pub views: Vec<Option<Vec<String>>>,
    /// `dns.clusterDomain`, lower case, without the last dot.
    pub cluster_domain: String,
    /// Where queries to the cluster DNS Service go that the kernel does not answer: the forwarder's own addresses.
    /// Empty: that Service is served like any other.
    pub dns_listen: Vec<std::net::SocketAddr>,
    /// The cluster DNS Service; `kube-system/kube-dns`.
    pub dns_service: ObjectName,
    /// TTL of zone records in seconds.
    pub ttl: u32,
    /// `dns.pods`.
    pub pods: Pods,
    /// Which further addresses of a Service are VIPs.
    pub vips: VipKinds,
    /// The gateway's own addresses: never VIPs, whatever a Service says.
    pub own: Vec<IpAddr>,
}

/// `dns.pods`: what is said of `10-42-0-7.shop.pod.cluster.local`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pods {
    /// No such name.
    #[default]
    Disabled,
    /// The address in it, where the namespace exists.
    Insecure,
    /// The address in it, where a pod of that namespace has it.
    Verified,
}

/// The addresses of a Service that are VIPs beside its ClusterIPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipKinds {
    /// `spec.externalIPs`.
    pub external: bool,
    /// `status.loadBalancer.ingress[].ip`.
    pub load_balancer: bool,
}

impl PlanConfig {
    /// Which views may see a namespace, as a mask.
    pub fn views_of(&self, namespace: &str) -> u64 {
        let sees =
            |allowed: &Option<Vec<String>>| allowed.as_ref().is_none_or(|names| names.iter().any(|n| n == namespace));
        self.views
            .iter()
            .take(64)
            .enumerate()
            .filter(|(_, allowed)| sees(allowed))
            .fold(0, |mask, (bit, _)| mask | 1 << bit)
    }

    /// The forwarder's addresses of `vip`'s family that a packet from outside can be sent to.
    fn listeners(&self, vip: IpAddr) -> Vec<Endpoint> {
        let mut listeners: Vec<_> = self
            .dns_listen
            .iter()
            .map(|socket| Endpoint { addr: socket.ip(), port: socket.port() })
            .filter(|endpoint| endpoint.addr.is_ipv4() == vip.is_ipv4() && usable(endpoint.addr).is_ok())
            .collect();
        listeners.sort_unstable();
        listeners.dedup();
        listeners
    }
}

/// Plans one Service; `None` when there is no such Service, and everything of it must go.
pub fn plan_service(cluster: &Cluster, name: &ObjectName, config: &PlanConfig) -> Option<ServicePlan> {
    let service = cluster.objects.services.get(name)?;
    let mut problems = Problems::new(name);
    let own = vips(cluster, service, config, &mut problems);
    let vips: Vec<IpAddr> = own.iter().map(|vip| vip.addr).collect();
    let views = config.views_of(&name.namespace);
    let backends = Backends::collect(cluster, service, &vips, &mut problems);
    let ports = ports(service, &mut problems);
    let mut frontends = Vec::with_capacity(vips.len() * ports.len());
    for vip in &own {
        for port in ports.iter().filter(|port| port.protocol != Protocol::Sctp && vip.has(port)) {
            frontends.push(frontend(service, vip, port, views, &backends, config));
        }
    }
    let records = if views == 0 {
        Vec::new()
    } else {
        // Names lead to ClusterIPs alone, as in the cluster.
        let named: Vec<IpAddr> = own.iter().filter(|vip| vip.cluster).map(|vip| vip.addr).collect();
        records::of(service, &named, &ports, &backends, views, config, &mut problems)
    };
    Some(ServicePlan { vips, views, frontends, records, problems: problems.finish() })
}

/// Plans the names of a namespace; `None` when there is no such object. The namespace of a Service exists without one.
pub fn plan_namespace(cluster: &Cluster, name: &str, config: &PlanConfig) -> Option<ServicePlan> {
    let namespace = cluster.objects.namespaces.get(name)?;
    let views = config.views_of(namespace);
    let records = if views == 0 { Vec::new() } else { records::of_namespace(namespace, views, config).collect() };
    Some(ServicePlan { views, records, ..ServicePlan::default() })
}

/// Plans the names of a pod; `None` when there is no such pod, or pods have no names of their own.
pub fn plan_pod(cluster: &Cluster, name: &ObjectName, config: &PlanConfig) -> Option<ServicePlan> {
    let pod = cluster.objects.pods.get(name).filter(|_| config.pods == Pods::Verified)?;
    let views = config.views_of(&name.namespace);
    let records = if views == 0 { Vec::new() } else { records::of_pod(pod, views, config) };
    Some(ServicePlan { views, records, ..ServicePlan::default() })
}

fn frontend(
    service: &Service,
    vip: &Vip,
    port: &ServicePort,
    views: u64,
    backends: &Backends,
    config: &PlanConfig,
) -> Frontend {
    // The policy is about traffic inside the cluster, which is what comes to a ClusterIP.
    let reach = if vip.cluster && service.internal_local { Reach::Node } else { Reach::Cluster };
    let vip = vip.addr;
    let (mut endpoints, mut draining) = backends.of_port(port, vip, reach);
    let mut dns = false;
    if service.name == config.dns_service && port.port == 53 {
        let listeners = config.listeners(vip);
        if !listeners.is_empty() {
            (endpoints, draining) = (listeners, Vec::new());
            dns = port.protocol == Protocol::Udp;
        }
    }
    let affinity = service.affinity.unwrap_or(0);
    let (endpoints, draining) = (endpoints.into(), draining.into());
    Frontend { vip, port: port.port, protocol: port.protocol, views, endpoints, draining, affinity, dns }
}

/// The ports that can be served, each number and protocol once.
fn ports<'s>(service: &'s Service, problems: &mut Problems) -> Vec<&'s ServicePort> {
    let mut seen = BTreeSet::new();
    let mut ports = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let (number, protocol) = (port.port, port.protocol);
        if number == 0 {
            problems.say(Reason::PortLeftOut, format!("port 0 ({}) is not a port; write 1 to 65535", protocol.name()));
        } else if !seen.insert((number, protocol)) {
            problems.say(
                Reason::PortLeftOut,
                format!("port {number}/{} is there twice; the first is served", protocol.name()),
            );
        } else {
            if protocol == Protocol::Sctp && matches!(service.kind, ServiceKind::ClusterIp(_)) {
                problems.say(
                    Reason::ProtocolNotForwarded,
                    format!("port {number}/sctp is not forwarded: the gateway serves TCP and UDP"),
                );
            }
            ports.push(port);
        }
    }
    ports
}
