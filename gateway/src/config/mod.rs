//! The config file: read, checked as a whole, and turned into what each room needs.
//!
//! An error is one line: the file, the key as a path (`dns.forward[1].zone`), and what to write instead.

mod check;
mod convert;
mod file;
mod values;

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

pub use file::{Cache, Deny, DnsLimits, ReturnPath, Strangers};

pub use crate::plan::Pods;
use crate::{
    dns::{LogConfig, RateLimit, Target, To},
    kernel::{Mode, MssClamp, Timeouts},
    plan::VipKinds,
};

/// Why a config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}: give an existing file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not YAML, a key that is not known, or a value of the wrong kind.
    #[error("{}: {message}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// The key, the line and what is expected there.
        message: String,
    },
    /// A value that cannot be.
    #[error("{}: {key}: {message}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, like `dns.forward[1].zone`.
        key: String,
        /// What is wrong, and what to do.
        message: String,
    },
}

/// A view: client subnets and what they may see. Its number is its place in [`Config::views`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Name.
    pub name: String,
    /// Client subnets.
    pub cidrs: Vec<IpNet>,
    /// Namespaces it may see; `None`: every one.
    pub namespaces: Option<Vec<String>>,
}

/// Where the cluster's state comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests. A relative path in the file is relative to the file's own directory.
    Manifests(PathBuf),
    /// The API server; in-cluster when both are absent.
    Kubernetes {
        /// A kubeconfig file.
        kubeconfig: Option<PathBuf>,
        /// A context in it.
        context: Option<String>,
        /// `status`: a Lease and Events are written where that is permitted.
        status: bool,
    },
}

/// Names of one zone go to these servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The zone, lower case, without the last dot; the root is empty.
    pub zone: String,
    /// Whose questions; bit = view number, all bits: those of every view without a rule of its own.
    pub views: u64,
    /// The servers; empty, and no `redirect`: refused.
    pub to: Vec<To>,
    /// What its names lead to instead: addresses, or one name.
    pub redirect: Vec<Target>,
    /// Questions are asked in random case.
    pub mixed_case: bool,
}

/// `dns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of the forwarder; empty: the uplinks', port 53.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain, lower case, without the last dot.
    pub cluster_domain: String,
    /// The SOA of `local` is answered.
    pub local_zone: bool,
    /// Names of pods.
    pub pods: Pods,
    /// The cluster's DNS; empty: the `kube-system/kube-dns` Service.
    pub upstreams: Vec<SocketAddr>,
    /// Zone rules; the longest zone decides.
    pub forward: Vec<Forward>,
    /// Certificate authorities for servers over TLS, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The cache's limits.
    pub cache: Cache,
    /// The query log; `None`: off.
    pub log: Option<LogConfig>,
    /// How many answers over UDP a source prefix gets.
    pub rate_limit: RateLimit,
    /// Bounds on what waits for upstreams.
    pub limits: DnsLimits,
}

/// `datapath`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datapath {
    /// How programs are attached.
    pub mode: Mode,
    /// Most flows at a time.
    pub flows: u32,
    /// A bpffs directory.
    pub pin: Option<PathBuf>,
    /// When an idle flow is dead.
    pub timeouts: Timeouts,
    /// Which addresses of a Service are VIPs beside its ClusterIPs.
    pub vips: VipKinds,
    /// Largest TCP segment announced.
    pub mss_clamp: MssClamp,
}

/// A config that was checked as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Interfaces through which clients come; empty: those of the default routes.
    pub uplinks: Vec<String>,
    /// Interfaces through which endpoints are reached; empty: found by route look-up.
    pub cluster_interfaces: Vec<String>,
    /// The views; at least one.
    pub views: Vec<View>,
    /// The source.
    pub source: Source,
    /// Service CIDRs; empty: from the API.
    pub service_cidrs: Vec<IpNet>,
    /// How replies come back.
    pub return_path: ReturnPath,
    /// Source addresses of `snat`; empty: the uplink's.
    pub snat_addresses: Vec<IpAddr>,
    /// Source ports of `snat`.
    pub snat_ports: RangeInclusive<u16>,
    /// What a client gets for what its view may not see.
    pub deny: Deny,
    /// What happens to packets from no view.
    pub strangers: Strangers,
    /// Names.
    pub dns: Dns,
    /// The datapath.
    pub datapath: Datapath,
    /// Name of the gateway's own Node object; none: found.
    pub node: Option<String>,
    /// Address of metrics, health and API.
    pub http: SocketAddr,
    /// Log filter.
    pub log: String,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], with the first thing that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Address of a running agent's HTTP, by the file that it was started with: known while the rest of a file that is being edited
    /// is wrong, which is when people ask the agent what is wrong.
    ///
    /// # Errors
    /// As [`Config::load`], when not even that key can be read.
    pub fn http_of(path: &Path) -> Result<SocketAddr, ConfigError> {
        let http = |text: String| {
            let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).ok()?;
            value.get("http").map_or_else(|| file::http().parse().ok(), |http| http.as_str()?.parse().ok())
        };
        match Self::load(path) {
            Ok(config) => Ok(config.http),
            Err(error) => std::fs::read_to_string(path).ok().and_then(http).ok_or(error),
        }
    }

    /// Checks a file's text; `path` is for messages and relative paths.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: file::File = serde_yaml_ng::from_str(text)
            .map_err(|error| ConfigError::Form { path: path.to_owned(), message: one_line(&error.to_string()) })?;
        check::check(file, path.parent().unwrap_or(Path::new(""))).map_err(|problem| ConfigError::Value {
            path: path.to_owned(),
            key: problem.key,
            message: one_line(&problem.message),
        })
    }
}

/// serde speaks of fields and puts the path of the struct before the message; people look for the key.
fn one_line(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some(at) = message.find("unknown field `") else {
        return message;
    };
    let (place, rest) = message.split_at(at);
    let rest = &rest["unknown field `".len()..];
    let Some((key, rest)) = rest.split_once('`') else {
        return message;
    };
    let place = place.strip_suffix(": ").unwrap_or(place);
    let dot = if place.is_empty() { "" } else { "." };
    let known = rest.strip_prefix(", expected ").unwrap_or(rest).replace("one of ", "");
    format!("{place}{dot}{key}: unknown key: remove it, or use {}", known.replace('`', ""))
}

#[cfg(test)]
mod tests;
