//! The config file as it is written: every key, its default, and nothing decided yet. Values stay strings where their
//! meaning needs checking, so that an error can name the key.

use serde::{Deserialize, Deserializer};

use crate::{
    dns,
    kernel::{Mode, Timeouts},
    plan::Pods,
};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub uplinks: Vec<String>,
    #[serde(default)]
    pub cluster_interfaces: Vec<String>,
    #[serde(default)]
    pub clients: Vec<Client>,
    #[serde(default)]
    pub source: Source,
    #[serde(default, rename = "serviceCIDRs")]
    pub service_cidrs: Vec<String>,
    #[serde(default)]
    pub return_path: ReturnPath,
    #[serde(default)]
    pub snat: Snat,
    #[serde(default)]
    pub deny: Deny,
    #[serde(default)]
    pub strangers: Strangers,
    #[serde(default)]
    pub dns: Dns,
    #[serde(default)]
    pub datapath: Datapath,
    #[serde(default)]
    pub node: Option<String>,
    #[serde(default = "http")]
    pub http: String,
    #[serde(default = "log")]
    pub log: String,
}

pub(super) fn http() -> String {
    "127.0.0.1:9153".to_owned()
}

fn log() -> String {
    "info".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Client {
    pub name: String,
    #[serde(default)]
    pub cidrs: Vec<String>,
    #[serde(default = "every_namespace")]
    pub namespaces: Vec<String>,
}

fn every_namespace() -> Vec<String> {
    vec!["*".to_owned()]
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Source {
    #[serde(default)]
    pub manifests: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub kubernetes: Option<Kubernetes>,
}

/// `kubernetes:` with nothing behind it asks for the in-cluster client, so a null is not an absent key.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Kubernetes>, D::Error> {
    Ok(Some(Option::deserialize(deserializer)?.unwrap_or_default()))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Kubernetes {
    #[serde(default)]
    pub kubeconfig: Option<String>,
    #[serde(default)]
    pub context: Option<String>,
    #[serde(default)]
    pub status: Option<bool>,
}

/// `returnPath`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReturnPath {
    /// The endpoint sees an address of the gateway.
    #[default]
    Snat,
    /// The endpoint sees the client's address.
    Routed,
}

/// `deny`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Deny {
    /// "Administratively prohibited".
    #[default]
    Reject,
    /// Silence.
    Drop,
}

/// `strangers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strangers {
    /// Dropped and counted.
    #[default]
    Drop,
    /// Left to the node.
    Pass,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Snat {
    pub addresses: Vec<String>,
    pub ports: String,
}

impl Default for Snat {
    fn default() -> Self {
        Self { addresses: Vec::new(), ports: "10000-29999".to_owned() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Dns {
    pub listen: Vec<String>,
    pub cluster_domain: String,
    pub pods: Pods,
    pub local_zone: bool,
    pub upstreams: Vec<String>,
    pub forward: Option<Vec<Forward>>,
    pub tls: Tls,
    pub cache: Cache,
    pub log: Log,
    pub rate_limit: RateLimit,
    pub limits: DnsLimits,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            pods: Pods::default(),
            local_zone: false,
            upstreams: Vec::new(),
            forward: None,
            tls: Tls::default(),
            cache: Cache::default(),
            log: Log::default(),
            rate_limit: RateLimit::default(),
            limits: DnsLimits::default(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Forward {
    pub zone: String,
    #[serde(default)]
    pub views: Vec<String>,
    #[serde(default)]
    pub to: Vec<String>,
    #[serde(default)]
    pub redirect: Vec<String>,
    #[serde(default)]
    pub mixed_case: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Tls {
    pub ca_file: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Log {
    pub file: Option<String>,
    pub sample: f64,
    pub max_size: Size,
    pub keep: u32,
}

impl Default for Log {
    fn default() -> Self {
        Self { file: None, sample: 1.0, max_size: Size::Bytes(64 << 20), keep: 4 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RateLimit {
    pub responses_per_second: u32,
    pub slip: u32,
    pub ipv4_prefix_length: u8,
    pub ipv6_prefix_length: u8,
    pub exempt_views: Vec<String>,
}

impl Default for RateLimit {
    fn default() -> Self {
        let dns::RateLimit { rate, slip, prefix4, prefix6, exempt: _ } = dns::RateLimit::default();
        Self {
            responses_per_second: rate,
            slip,
            ipv4_prefix_length: prefix4,
            ipv6_prefix_length: prefix6,
            exempt_views: Vec::new(),
        }
    }
}

/// A number of bytes, or one with a unit.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Size {
    Bytes(u64),
    Text(String),
}

impl Size {
    /// In bytes.
    pub fn bytes(&self) -> Result<u64, String> {
        match self {
            Self::Bytes(bytes) => Ok(*bytes),
            Self::Text(text) => super::values::size(text),
        }
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Size::deserialize(deserializer)?.bytes().map_err(serde::de::Error::custom)
}

/// `dns.limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DnsLimits {
    /// Most queries that wait for upstreams at a time.
    pub outstanding: u32,
    /// Of these, one client's.
    pub per_client: u32,
}

impl Default for DnsLimits {
    fn default() -> Self {
        Self { outstanding: 4_096, per_client: 512 }
    }
}

/// `dns.cache`; times in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cache {
    /// Most answers kept.
    pub entries: u32,
    /// Most bytes of memory that they take.
    #[serde(deserialize_with = "bytes")]
    pub memory: u64,
    /// Longest time an answer is kept.
    pub max_ttl: u32,
    /// Longest time a negative answer is kept.
    pub negative_ttl: u32,
    /// How long an expired answer may still be served when upstreams fail.
    pub stale: u32,
    /// How long a failure is remembered.
    pub failure_ttl: u32,
}

impl Default for Cache {
    fn default() -> Self {
        Self { entries: 65_536, memory: 64 << 20, max_ttl: 3_600, negative_ttl: 5, stale: 3_600, failure_ttl: 2 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Datapath {
    pub mode: Mode,
    pub flows: u32,
    pub pin: Option<String>,
    pub timeouts: Timeouts,
    pub vips: Vec<VipKind>,
    pub mss_clamp: MssClampText,
}

/// `datapath.mssClamp` as written: a word or a number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum MssClampText {
    Number(u32),
    Word(String),
}

/// An entry of `datapath.vips`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum VipKind {
    /// `spec.clusterIPs`.
    #[serde(rename = "clusterIP")]
    ClusterIp,
    /// `spec.externalIPs`.
    #[serde(rename = "externalIP")]
    ExternalIp,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
}

impl Default for Datapath {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            flows: 262_144,
            pin: None,
            timeouts: Timeouts::default(),
            vips: vec![VipKind::ClusterIp],
            mss_clamp: MssClampText::Word("off".to_owned()),
        }
    }
}
