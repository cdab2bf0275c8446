//! What the forwarder counted, and what the resolver holds, for `/metrics` and `gateway dns`.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::Serialize;

use super::upstream::ServerInfo;

macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Label in metrics and JSON.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }
    };
}

labels! {
    /// How a query came.
    Transport {
        /// Over UDP.
        Udp = "udp",
        /// Over TCP.
        Tcp = "tcp",
    }
}

labels! {
    /// Where an answer came from.
    Source {
        /// The kernel; only in the log.
        Kernel = "kernel",
        /// The cluster zone.
        Zone = "zone",
        /// The cache.
        Cache = "cache",
        /// A server of the zone rule.
        Upstream = "upstream",
        /// The cache, past its time, because no server answered.
        Stale = "stale",
        /// A zone rule that redirects.
        Rule = "rule",
        /// The forwarder itself: refusals, errors.
        Local = "local",
        /// The forwarder itself, above the client's rate: TC and no records.
        Slip = "slip",
    }
}

labels! {
    /// Why a query got no answer at all.
    Dropped {
        /// Its source is in no view.
        Stranger = "stranger",
        /// Not a query: too short, or a response.
        NotAQuery = "not_a_query",
        /// Too many queries waiting for upstreams, or too many connections; in all or of that client.
        Overload = "overload",
        /// Its answer would be above its source prefix's rate.
        Limited = "limited",
    }
}

const RCODES: [&str; 17] = [
    "noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "yxdomain", "yxrrset", "nxrrset", "notauth",
    "notzone", "11", "12", "13", "14", "15", "badvers",
];

/// Counters, free of locks.
#[derive(Debug, Default)]
pub struct Stats {
    queries: [AtomicU64; Transport::ALL.len()],
    answers: [AtomicU64; Source::ALL.len()],
    dropped: [AtomicU64; Dropped::ALL.len()],
    rcodes: [AtomicU64; RCODES.len()],
    /// Entries that the kernel refused.
    pub(super) refused_by_kernel: AtomicU64,
    /// Questions that upstreams did not answer.
    pub(super) upstream_failures: AtomicU64,
    /// Popular answers asked for again before they expired.
    pub(super) refreshed: AtomicU64,
}

impl Stats {
    pub(super) fn query(&self, transport: Transport) {
        self.queries[transport as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn answer(&self, source: Source, rcode: u16) {
        self.answers[source as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(counter) = self.rcodes.get(usize::from(rcode)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn dropped(&self, why: Dropped) {
        self.dropped[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The values now.
    pub fn read(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            queries: Transport::ALL.iter().map(|t| (t.label(), read(&self.queries[*t as usize]))).collect(),
            // The kernel counts for itself.
            answers: Source::ALL
                .iter()
                .filter(|s| **s != Source::Kernel)
                .map(|s| (s.label(), read(&self.answers[*s as usize])))
                .collect(),
            dropped: Dropped::ALL.iter().map(|d| (d.label(), read(&self.dropped[*d as usize]))).collect(),
            rcodes: RCODES
                .iter()
                .zip(&self.rcodes)
                .map(|(name, counter)| (*name, read(counter)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            refused_by_kernel: read(&self.refused_by_kernel),
            upstream_failures: read(&self.upstream_failures),
            refreshed: read(&self.refreshed),
            log_lost: 0,
        }
    }
}

/// The forwarder's counters at one time, by label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Queries by transport: `udp`, `tcp`.
    pub queries: BTreeMap<&'static str, u64>,
    /// Answers by where they came from: `zone`, `cache`, `upstream`, `stale`, `rule`, `local`, `slip`.
    pub answers: BTreeMap<&'static str, u64>,
    /// Queries dropped: `stranger`, `not_a_query`, `overload`, `limited`.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Answers by response code, lower case; only those that occurred.
    pub rcodes: BTreeMap<&'static str, u64>,
    /// Entries that the kernel's maps refused (full).
    pub refused_by_kernel: u64,
    /// Questions that no upstream answered.
    pub upstream_failures: u64,
    /// Popular answers asked for again before they expired.
    pub refreshed: u64,
    /// Lines that the query log lost because its disk was too slow.
    pub log_lost: u64,
}

/// A zone, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneInfo {
    /// Its name, without the last dot.
    pub name: String,
    /// Serial of its SOA.
    pub serial: u32,
    /// The first snapshot is in: what is not in the zone does not exist.
    pub synced: bool,
    /// The kernel answers NXDOMAIN and NODATA for it too.
    pub complete_in_kernel: bool,
    /// Names, those that only exist because of names below them included.
    pub names: usize,
    /// RRsets.
    pub rrsets: usize,
    /// Entries in the kernel.
    pub kernel_entries: usize,
    /// Entries that the kernel refused and that are tried again.
    pub pending: usize,
}

/// A learnt answer, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CachedInfo {
    /// Its name, without the last dot.
    pub name: String,
    /// Its type: `A`, `TYPE65400`.
    #[serde(rename = "type")]
    pub rtype: String,
    /// `NOERROR`, `NXDOMAIN`.
    pub rcode: String,
    /// Seconds it may still be served; 0: expired.
    pub ttl: u32,
    /// Expired, kept for when no server answers.
    pub stale: bool,
    /// In the kernel.
    pub kernel: bool,
    /// Times served by the kernel.
    pub kernel_hits: u64,
    /// Times served by the forwarder.
    pub hits: u64,
}

/// What `gateway dns` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Addresses listened on.
    pub listen: Vec<String>,
    /// Zones known as a whole.
    pub zones: Vec<ZoneInfo>,
    /// Learnt answers held.
    pub cached: usize,
    /// Bytes of memory that they take.
    pub cached_bytes: usize,
    /// Learnt answers, sorted by name and type; as many as were asked for.
    pub cache: Vec<CachedInfo>,
    /// Servers of the zone rules.
    pub upstreams: Vec<ServerInfo>,
    /// Counters.
    pub counters: Counters,
}
