//! Names: the cluster zone, the forwarder for everything else, the cache, and the publisher that teaches the kernel.
//!
//! One query's way through here: [`server`] takes it from a socket, [`forwarder`] asks the [`zone`], then the [`cache`], then the
//! servers of the zone rule ([`rules`], [`upstream`]). What was learnt goes through [`learn`] into the cache and into the kernel.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use gateway_common::{
    dns::build::BuildError,
    maps::{DnsEntry, DnsKey, DnsLarge, Zone},
};
use ipnet::IpNet;

pub mod cache;
pub mod clock;
mod connections;
pub mod errors;
pub mod forwarder;
pub mod learn;
pub mod limit;
pub mod log;
pub mod name;
mod places;
pub mod publish;
pub mod query;
pub mod rules;
pub mod server;
pub mod stats;
pub mod udp;
pub mod upstream;
pub mod views;
pub mod zone;

mod resolver;

pub use limit::RateLimit;
pub use log::LogConfig;
pub use resolver::{Resolver, ResolverHandle};
pub use upstream::{Upstream, tls::TrustError};

/// The kernel's answers, as the zone and the cache see them. The kernel module implements it over the BPF maps; with
/// `datapath.mode: off` and in tests it is a table in memory or nothing.
///
/// Every call is atomic for a query: it sees the entry before or after, whole.
pub trait AnswerStore: Send + Sync {
    /// Inserts or replaces. `large` goes with `entry.large != 0` and is written first, under a number that the store chooses.
    ///
    /// # Errors
    /// When the map refuses: full, or gone. The caller counts it; the forwarder answers meanwhile.
    fn put(&self, key: &DnsKey, entry: &DnsEntry, large: Option<&DnsLarge>) -> std::io::Result<()>;
    /// Removes; no error when absent. A body in `LARGE` goes with it.
    ///
    /// # Errors
    /// As `put`.
    fn remove(&self, key: &DnsKey) -> std::io::Result<()>;
    /// Hits that the kernel has counted for that entry.
    fn hits(&self, key: &DnsKey) -> Option<u64>;
    /// Sets zone slot `index`.
    ///
    /// # Errors
    /// As `put`.
    fn set_zone(&self, index: usize, zone: &Zone) -> std::io::Result<()>;
}

/// No kernel: the forwarder alone (`datapath.mode: off`).
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStore;

impl AnswerStore for NoStore {
    fn put(&self, _: &DnsKey, _: &DnsEntry, _: Option<&DnsLarge>) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, _: &DnsKey) -> io::Result<()> {
        Ok(())
    }
    fn hits(&self, _: &DnsKey) -> Option<u64> {
        None
    }
    fn set_zone(&self, _: usize, _: &Zone) -> io::Result<()> {
        Ok(())
    }
}

/// `dns.forward[]`: what happens to questions below a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardRule {
    /// The zone: `.`, `example.org`, with or without the last dot.
    pub zone: String,
    /// Whose questions; bit = view number. All bits: those of every view that has no rule of its own for the zone.
    pub views: u64,
    /// Servers, asked in this order; none, and nothing in `redirect`: refused.
    pub to: Vec<To>,
    /// What names in the zone lead to: addresses, or one name.
    pub redirect: Vec<Target>,
    /// Questions are asked in random case, which the answer must have too: harder to guess.
    pub mixed_case: bool,
}

impl Default for ForwardRule {
    fn default() -> Self {
        Self { zone: ".".to_owned(), views: zone::ALL_VIEWS, to: Vec::new(), redirect: Vec::new(), mixed_case: false }
    }
}

/// Whom a rule asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum To {
    /// This server.
    Server(Upstream),
    /// The cluster's own DNS: whatever servers it has at the time.
    Cluster,
}

impl From<Upstream> for To {
    fn from(server: Upstream) -> Self {
        Self::Server(server)
    }
}

impl From<SocketAddr> for To {
    fn from(server: SocketAddr) -> Self {
        Self::Server(server.into())
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(server) => server.fmt(f),
            Self::Cluster => f.write_str("cluster"),
        }
    }
}

/// What [`To::Cluster`] means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDns {
    /// `dns.upstreams`; empty: the cluster DNS Service. What was learnt stays as long as this does, whatever servers come and go.
    pub configured: Vec<SocketAddr>,
    /// Its servers now. None: questions for it fail.
    pub servers: Vec<SocketAddr>,
}

/// What a rule redirects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address.
    Address(IpAddr),
    /// A name, of the cluster or outside.
    Name(String),
}

impl Target {
    fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(addr) => Some(*addr),
            Self::Name(_) => None,
        }
    }
}

/// `dns.cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Answers kept, in user space and in the kernel.
    pub entries: usize,
    /// Bytes of memory that they may take in user space.
    pub memory: usize,
    /// Longest TTL in seconds, whatever the server said.
    pub max_ttl: u32,
    /// Longest time in seconds that "no such name" and "no such type" are kept.
    pub negative_ttl: u32,
    /// Seconds for which an expired answer may be given while no server answers; 0: never.
    pub stale: u32,
    /// Seconds for which a failure is remembered; nobody is asked meanwhile.
    pub failure_ttl: u32,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { entries: 65_536, memory: 64 << 20, max_ttl: 3600, negative_ttl: 5, stale: 3600, failure_ttl: 2 }
    }
}

/// What the resolver is told once, at start.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Addresses to listen on, UDP and TCP. Port 0 takes a free one, the same for both.
    pub listen: Vec<SocketAddr>,
    /// `dns.clusterDomain`, with or without the last dot.
    pub cluster_domain: String,
    /// TTL of SOA and NS at the zone's apex, in seconds.
    pub ttl: u32,
    /// TTL of the zone's negative answers, in seconds (the SOA's minimum).
    pub zone_negative_ttl: u32,
    /// Names of pods are answered from the name alone (`dns.pods: insecure`).
    pub pods: bool,
    /// The SOA of `local` is answered (`dns.localZone`), so that clients ask for names below it here and not by multicast.
    pub local_zone: bool,
    /// Zone rules for names outside the cluster zone; a name without a rule is refused.
    pub forward: Vec<ForwardRule>,
    /// What `cluster` means in them.
    pub cluster: ClusterDns,
    /// `dns.tls.caFile`: authorities for servers over TLS, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The cache of learnt answers.
    pub cache: CacheConfig,
    /// The views' prefixes; index = view number.
    pub views: Vec<Vec<IpNet>>,
    /// The views' names, for the log.
    pub view_names: Vec<String>,
    /// The query log; `None`: off.
    pub log: Option<LogConfig>,
    /// How many answers over UDP a source prefix gets.
    pub rate_limit: RateLimit,
    /// Bounds on what clients can make it hold.
    pub limits: Limits,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            ttl: 30,
            zone_negative_ttl: 30,
            pods: false,
            local_zone: false,
            forward: Vec::new(),
            cluster: ClusterDns::default(),
            ca_file: None,
            cache: CacheConfig::default(),
            views: Vec::new(),
            view_names: Vec::new(),
            log: None,
            rate_limit: RateLimit::default(),
            limits: Limits::default(),
        }
    }
}

/// Bounds on what clients can make the forwarder hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Queries that wait for upstreams at one time. More are dropped over UDP, and clients ask again; over TCP they fail.
    pub waiting: usize,
    /// Of these, one client's.
    pub waiting_per_client: usize,
    /// TCP connections. When there are as many, the one that has been idle for longest is closed for a new one.
    pub tcp_connections: usize,
    /// TCP connections of one source address.
    pub tcp_per_source: usize,
    /// Queries in work on one TCP connection; more wait in its socket.
    pub tcp_pipeline: usize,
    /// A TCP connection without a query for so long is closed.
    pub tcp_idle: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            waiting: 4096,
            waiting_per_client: 512,
            tcp_connections: 1024,
            tcp_per_source: 64,
            tcp_pipeline: 64,
            tcp_idle: std::time::Duration::from_secs(10),
        }
    }
}

/// Why the resolver does not start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Somebody else has the port.
    #[error(
        "dns.listen: {addr}/{transport} is in use by another program: stop it (`ss -lnp 'sport = :{}'` names it) or \
         choose another address in dns.listen", addr.port()
    )]
    InUse {
        /// The address.
        addr: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
    },
    /// The address is not this machine's, or the port needs a privilege.
    #[error("dns.listen: cannot listen on {addr}/{transport}: {source}: {}", hint(source))]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A name that is no DNS name.
    #[error("{key}: {name:?} is not a DNS name: labels of at most 63 bytes, at most 253 bytes in all")]
    Name {
        /// Config key.
        key: String,
        /// The name.
        name: String,
    },
    /// A cluster domain that the kernel cannot hold.
    #[error("dns.clusterDomain: {0}")]
    ClusterDomain(BuildError),
    /// A server that is the gateway itself.
    #[error(
        "dns.forward[{index}].to: {server} is the address the gateway itself listens on: questions would go in circles"
    )]
    Loop {
        /// Which rule.
        index: usize,
        /// The server.
        server: Upstream,
    },
    /// The query log.
    #[error("dns.log.file: {}: cannot be written: {source}: give a file in an existing directory", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A server that cannot be spoken to over TLS.
    #[error("dns.forward: {0}")]
    Tls(#[from] TrustError),
    /// Two rules for one zone.
    #[error(
        "dns.forward[{index}].zone: {zone:?} has a rule already, for the same views: merge their servers into one rule"
    )]
    DuplicateZone {
        /// The second rule.
        index: usize,
        /// The zone.
        zone: String,
    },
    /// The kernel did not take the zone.
    #[error("the kernel's zone table refused {zone:?}: {source}")]
    Zone {
        /// The zone.
        zone: String,
        /// What the map said.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => "give it an address of this node",
        io::ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "choose another address",
    }
}

/// A store shared by the zone and the cache.
pub type SharedStore = Arc<dyn AnswerStore>;
