//! The shapes of `/api/v1/...`. Programs read them: extend, do not rename.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use gateway_common::Reason;
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    kernel::{Attachment, Counters, Mode},
    model::{ObjectName, Protocol},
    plan::{Endpoint, ServicePlan},
};

/// Whether the agent serves, and what is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Datapath attached, first state of the cluster applied, forwarder listening.
    pub ready: bool,
    /// Why not, or what is wrong although it serves.
    pub why: Vec<String>,
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ready, self.why.is_empty()) {
            (true, true) => f.write_str("ready"),
            (true, false) => write!(f, "ready, degraded: {}", self.why.join("; ")),
            (false, true) => f.write_str("not ready: starting"),
            (false, false) => write!(f, "not ready: {}", self.why.join("; ")),
        }
    }
}

/// `/api/v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: &'static str,
    /// It serves.
    pub ready: bool,
    /// Why not, or what is wrong although it serves.
    pub degraded: Vec<String>,
    /// Seconds since it started.
    pub uptime: f64,
    /// The config file.
    pub config: String,
    /// `datapath.mode`.
    pub mode: Mode,
    /// Addresses to which clients route the service CIDRs.
    pub addresses: Vec<IpAddr>,
    /// Attached interfaces.
    pub interfaces: Vec<Attachment>,
    /// The views, by number.
    pub views: Vec<View>,
    /// Where the cluster's state comes from, and how that goes.
    pub source: Source,
    /// Claimed service CIDRs.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Vec<IpNet>,
    /// The gateway's own node, and its zone, as zone hints and `internalTrafficPolicy` take them; null: not known.
    pub node: Option<String>,
    /// See `node`.
    pub zone: Option<String>,
    /// `dns.clusterDomain`.
    pub cluster_domain: String,
    /// Addresses of the forwarder.
    pub dns: Vec<SocketAddr>,
    /// How many there are.
    pub counts: Counts,
    /// Objects that cannot be served as they are, with what to do.
    pub problems: Vec<String>,
    /// Packets by reason.
    pub counters: Counters,
}

/// A view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Its number.
    pub id: usize,
    /// Its name.
    pub name: String,
    /// Client subnets.
    pub cidrs: Vec<IpNet>,
    /// Namespaces; `["*"]`: every one.
    pub namespaces: Vec<String>,
}

/// The source.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// `manifests` or `kubernetes`.
    pub kind: &'static str,
    /// Directory, or kubeconfig and context.
    pub location: String,
    /// The first state is here.
    pub synced: bool,
    /// It is reached now.
    pub connected: bool,
    /// Seconds for which it has not been; null while it is.
    pub unreached: Option<f64>,
    /// Files and objects that could not be read.
    pub problems: Vec<String>,
    /// Seconds since the last change; null before the first.
    pub last_change: Option<f64>,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Services.
    pub services: usize,
    /// VIPs and ports.
    pub frontends: usize,
    /// Endpoints of those.
    pub endpoints: usize,
    /// Records of the cluster zone that come from Services.
    pub records: usize,
    /// Flows now.
    pub flows: usize,
}

/// An item of `/api/v1/services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// VIPs; empty: headless or an external name.
    pub vips: Vec<IpAddr>,
    /// Names of the views that may see it.
    pub views: Vec<String>,
    /// VIP ports.
    pub ports: Vec<Port>,
    /// Records in the zone.
    pub records: usize,
    /// What cannot be served, with what to do.
    pub problems: Vec<String>,
}

/// A VIP and port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// The VIP.
    pub vip: IpAddr,
    /// Port on it.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Where new flows go.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that keep the flows they have.
    pub draining: Vec<Endpoint>,
    /// ClientIP affinity in seconds; 0: none.
    pub affinity: u32,
    /// UDP queries are answered in the kernel.
    pub dns: bool,
}

impl Service {
    /// From a plan, which had so many records; `views` are the views' names by number.
    pub fn new(name: &ObjectName, plan: &ServicePlan, records: usize, views: &[String]) -> Self {
        let may = |(id, view): (usize, &String)| (plan.views >> id & 1 == 1).then(|| view.clone());
        let port = |frontend: &crate::plan::Frontend| Port {
            vip: frontend.vip,
            port: frontend.port,
            protocol: frontend.protocol,
            endpoints: frontend.endpoints.to_vec(),
            draining: frontend.draining.to_vec(),
            affinity: frontend.affinity,
            dns: frontend.dns,
        };
        Self {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            vips: plan.vips.clone(),
            views: views.iter().enumerate().filter_map(may).collect(),
            ports: plan.frontends.iter().map(port).collect(),
            records,
            problems: plan.problems.iter().map(ToString::to_string).collect(),
        }
    }
}

/// An item of `/api/v1/drops`: one counted reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drop {
    /// Its name, as in metrics.
    pub reason: &'static str,
    /// `served`, `rejected`, `dropped` or `passed`.
    pub class: &'static str,
    /// Packets.
    pub packets: u64,
    /// What it means.
    pub meaning: &'static str,
}

impl Drop {
    /// Every reason, those that lose packets first.
    pub fn all(counters: &BTreeMap<&'static str, u64>) -> Vec<Self> {
        let mut all: Vec<_> = Reason::ALL
            .iter()
            .map(|reason| Self {
                reason: reason.name(),
                class: reason.class().name(),
                packets: counters.get(reason.name()).copied().unwrap_or_default(),
                meaning: reason.help().trim(),
            })
            .collect();
        all.sort_by_key(|drop| match drop.class {
            "dropped" => 0,
            "rejected" => 1,
            "passed" => 2,
            _ => 3,
        });
        all
    }
}
