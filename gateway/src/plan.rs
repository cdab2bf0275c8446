//! Pure: one Service of the model → its entries in the datapath and its names in the zone.
//! Work per change is proportional to the change, because a Service is planned alone.

use std::net::IpAddr;

use crate::model::{ObjectName, Protocol};

/// An endpoint of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Endpoint {
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
}

/// One VIP and port.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
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
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that keep the flows they have (terminating but serving), sorted.
    pub draining: Vec<Endpoint>,
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
    pub problems: Vec<String>,
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
}
