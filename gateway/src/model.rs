//! The cluster as plain data: what the sources tell and the plan reads. Knows neither tokio nor Kubernetes nor aya.
//!
//! A source sends [`Event`]s; [`Cluster::apply`] keeps the index and says which Services must be planned anew.

mod cluster;
mod here;
mod names;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

pub use self::{
    cluster::Cluster,
    here::{Here, Identity},
    text::shared,
};

/// Namespace and name of an object. Clones are cheap: both texts are shared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// From its two parts.
    pub fn new(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
        Self { namespace: shared(namespace.as_ref()), name: shared(name.as_ref()) }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Transport protocol of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, 6.
    Tcp,
    /// UDP, 17.
    Udp,
    /// SCTP, 132.
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
    /// Lower case, as in SRV names and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
    /// From Kubernetes' spelling; `None` is TCP, Kubernetes' default.
    pub fn parse(s: Option<&str>) -> Option<Self> {
        match s {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty when the Service has one unnamed port.
    pub name: Arc<str>,
    /// Port on the VIP.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// What kind of Service it is, for names and VIPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// With these cluster IPs (possibly none yet).
    ClusterIp(Vec<IpAddr>),
    /// `clusterIP: None`.
    Headless,
    /// A CNAME to a name outside.
    ExternalName(String),
}

/// A Service, reduced to what is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// Kind and VIPs.
    pub kind: ServiceKind,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// ClientIP affinity timeout in seconds, when asked for.
    pub affinity: Option<u32>,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`.
    pub load_balancer_ips: Vec<IpAddr>,
}

impl Service {
    /// Its ClusterIPs; none for other kinds.
    pub fn cluster_ips(&self) -> &[IpAddr] {
        match &self.kind {
            ServiceKind::ClusterIp(ips) => ips,
            ServiceKind::Headless | ServiceKind::ExternalName(_) => &[],
        }
    }

    /// Its external and load-balancer addresses, each possibly several times; none for kinds without a VIP.
    pub fn outer_ips(&self) -> impl Iterator<Item = IpAddr> {
        let has_vip = matches!(self.kind, ServiceKind::ClusterIp(_));
        self.external_ips.iter().chain(&self.load_balancer_ips).copied().filter(move |_| has_vip)
    }
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name; matches [`ServicePort::name`].
    pub name: Arc<str>,
    /// Port; `None` means all ports (not served).
    pub port: Option<u16>,
    /// Protocol.
    pub protocol: Protocol,
}

/// Whom an endpoint is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `hints.forZones[].name`.
    pub zones: Vec<String>,
    /// `hints.forNodes[].name`.
    pub nodes: Vec<String>,
}

/// An endpoint of a slice. Large clusters have hundreds of thousands: what most do not have takes no more than a pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address: the first of its entry, which is the one that Kubernetes uses.
    pub address: IpAddr,
    /// `conditions.ready`; nil counts as true.
    pub ready: bool,
    /// `conditions.serving`; nil counts as `ready`.
    pub serving: bool,
    /// `conditions.terminating`; nil counts as false.
    pub terminating: bool,
    /// `hostname`.
    pub hostname: Option<Box<str>>,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints`, when there are any.
    pub hints: Option<Box<Hints>>,
}

/// An EndpointSlice (or an Endpoints object turned into one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// Name of its Service (label `kubernetes.io/service-name`), same namespace.
    pub service: Arc<str>,
    /// True when made from a `v1` Endpoints object: used only while the Service has no real slice.
    pub legacy: bool,
    /// Ports.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A node, for zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Internal addresses.
    pub addresses: Vec<IpAddr>,
}

/// A pod, for its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its addresses: one of each family at most.
    pub addresses: Vec<IpAddr>,
}

/// What a source tells. A source that lists anew sends [`Event::Snapshot`]: what it does not contain is gone.
#[derive(Clone, Debug)]
pub enum Event {
    /// Everything of every kind that the source has, replacing all before.
    Snapshot(Box<Objects>),
    /// Created or changed.
    Service(Service),
    /// Deleted.
    ServiceGone(ObjectName),
    /// Created or changed.
    Slice(Slice),
    /// Deleted.
    SliceGone(ObjectName),
    /// Created or changed.
    Namespace(String),
    /// Deleted.
    NamespaceGone(String),
    /// Created or changed.
    Node(Node),
    /// Deleted.
    NodeGone(String),
    /// Created or changed.
    Pod(Pod),
    /// Deleted, ended, or without an address.
    PodGone(ObjectName),
    /// The service CIDRs, whole.
    ServiceCidrs(Vec<IpNet>),
}

/// A whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Services.
    pub services: BTreeMap<ObjectName, Service>,
    /// Slices.
    pub slices: BTreeMap<ObjectName, Slice>,
    /// Namespaces that are known as objects (a Service's namespace exists without one).
    pub namespaces: BTreeSet<String>,
    /// Nodes.
    pub nodes: BTreeMap<String, Node>,
    /// Pods with an address, where the source is asked for them.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Service CIDRs from the API, when the source has them.
    pub service_cidrs: Option<Vec<IpNet>>,
}

/// What a batch of events touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services to plan anew (they may be gone).
    pub services: BTreeSet<ObjectName>,
    /// Namespaces that came, went or changed.
    pub namespaces: BTreeSet<String>,
    /// Pods that came, went or have another address.
    pub pods: BTreeSet<ObjectName>,
    /// Service CIDRs changed.
    pub cidrs: bool,
}
