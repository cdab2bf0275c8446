//! What the kernel room tells people: attachments, Services, flows, counters.

use std::{collections::BTreeMap, net::IpAddr};

/// An attached interface, for `gateway status`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Name.
    pub interface: String,
    /// `uplink` or `cluster`.
    pub role: &'static str,
    /// `native`, `generic` or null.
    pub xdp: Option<&'static str>,
    /// TC ingress (and egress on uplinks).
    pub tc: bool,
}

/// A flow as people see it, for `gateway flows`.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowInfo {
    /// `tcp`, `udp`.
    pub protocol: &'static str,
    /// Client `ip:port`.
    pub client: String,
    /// VIP `ip:port`.
    pub vip: String,
    /// Endpoint `ip:port`.
    pub endpoint: String,
    /// What the endpoint sees as source, `ip:port`.
    pub source: String,
    /// `syn`, `established`, `fin`, `rst`, `udp`.
    pub state: &'static str,
    /// Seconds since the last packet of either direction.
    pub idle: f64,
    /// Seconds since it began.
    pub age: f64,
    /// Packets client → endpoint.
    pub packets_out: u64,
    /// Packets endpoint → client.
    pub packets_in: u64,
    /// Bytes client → endpoint.
    pub bytes_out: u64,
    /// Bytes endpoint → client.
    pub bytes_in: u64,
    /// Number of the view.
    pub view: u8,
}

/// Counters by [`gateway_common::Reason::name`].
pub type Counters = BTreeMap<&'static str, u64>;

/// A Service port as it stands in the datapath, for `gateway services`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceInfo {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The VIP.
    pub vip: IpAddr,
    /// Port.
    pub port: u16,
    /// `tcp`, `udp`.
    pub protocol: &'static str,
    /// Bit n: view n may see it.
    pub views: u64,
    /// Its number in flow records.
    pub id: u32,
    /// False while another Service, applied later, has the same VIP and port.
    pub active: bool,
    /// UDP queries to it are answered in the kernel.
    pub dns: bool,
    /// ClientIP affinity in seconds; 0: none.
    pub affinity: u32,
    /// Length of its Maglev table.
    pub slots: u32,
    /// Endpoints, draining ones included, sorted.
    pub endpoints: Vec<BackendInfo>,
}

/// An endpoint of a [`ServiceInfo`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendInfo {
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
    /// Keeps the flows it has, gets no new ones.
    pub draining: bool,
    /// An address of this node.
    pub local: bool,
    /// Interface towards it; null without a route and for local ones.
    pub interface: Option<String>,
    /// Its next hop's MAC is known.
    pub resolved: bool,
    /// Generation of its index.
    pub generation: u32,
}
