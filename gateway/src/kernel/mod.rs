//! The only room that knows aya: load, attach, apply the difference, keep next hops fresh, sweep, read back.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive, path::PathBuf};

use ipnet::IpNet;

/// `datapath.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Native XDP with TC behind it where the driver has it; TC alone on veth, bridges and tunnels.
    #[default]
    Auto,
    /// Native XDP with TC behind it, or an error.
    Native,
    /// Generic XDP with TC behind it.
    Generic,
    /// TC alone.
    Tc,
    /// No datapath: the forwarder alone.
    Off,
}

/// What the datapath is told once, when it is loaded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Interfaces through which clients come; empty: those of the default routes.
    pub uplinks: Vec<String>,
    /// Interfaces through which endpoints are reached; empty: found by route look-up and followed.
    pub cluster_interfaces: Vec<String>,
    /// Attach mode.
    pub mode: Mode,
    /// Capacity in flows.
    pub flows: u32,
    /// bpffs directory.
    pub pin: Option<PathBuf>,
    /// Source addresses; empty: the first global address of the first uplink, of each family.
    pub snat_addresses: Vec<IpAddr>,
    /// Reserved source ports.
    pub snat_ports: RangeInclusive<u16>,
    /// Return path `routed`.
    pub routed: bool,
    /// `deny: drop`.
    pub deny_drop: bool,
    /// `strangers: pass`.
    pub strangers_pass: bool,
    /// Addresses on which the kernel answers UDP port 53; empty: the uplinks' addresses.
    pub dns: Vec<IpAddr>,
    /// The views' prefixes; index = view id.
    pub views: Vec<Vec<IpNet>>,
    /// Claimed prefixes at start: the service CIDRs.
    pub claims: Vec<IpNet>,
    /// Timeouts of flows.
    pub timeouts: Timeouts,
    /// Sizes of the maps that depend on the cluster.
    pub sizes: Sizes,
}

/// Idle times in seconds after which a flow is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// TCP: SYN seen one way only.
    pub tcp_syn: u32,
    /// TCP: established.
    pub tcp_established: u32,
    /// TCP: FIN seen both ways.
    pub tcp_fin: u32,
    /// TCP: RST seen.
    pub tcp_rst: u32,
    /// UDP.
    pub udp: u32,
    /// ICMP.
    pub icmp: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        // RFC 5382 REQ-5 and RFC 4787 REQ-5 give the floors for established TCP and UDP; the others are Linux conntrack's.
        Self { tcp_syn: 60, tcp_established: 7440, tcp_fin: 60, tcp_rst: 10, udp: 120, icmp: 30 }
    }
}

/// Map capacities chosen from the first plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Service entries.
    pub services: u32,
    /// Endpoints.
    pub endpoints: u32,
    /// DNS answers, zone and cache together.
    pub answers: u32,
}

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

/// The BPF object, built by `build.rs` and carried inside the binary.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gateway-ebpf"));
