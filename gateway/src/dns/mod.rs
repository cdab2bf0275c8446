//! Names: the cluster zone, the forwarder for everything else, the cache, and the publisher that teaches the kernel.

use gateway_common::maps::{DnsEntry, DnsKey, DnsLarge, Zone};

/// The kernel's answers, as the zone and the cache see them. The kernel module implements it over the BPF maps; with
/// `datapath.mode: off` and in tests it is a table in memory or nothing.
///
/// Every call is atomic for a query: it sees the entry before or after, whole.
pub trait AnswerStore: Send + Sync {
    /// Inserts or replaces. `large` goes with `entry.large != 0` and is written first.
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
