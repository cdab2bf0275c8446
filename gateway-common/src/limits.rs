//! Sizes that both sides must agree on. What is a capacity of a map and may be chosen at load time says so.

/// Views are bits of a `u64` mask.
pub const MAX_VIEWS: usize = 64;
/// Client subnets that are compared one by one; more are looked up in a trie.
pub const MAX_VIEW_LIST: usize = 8;
/// Source addresses of one family that `snat` may use.
pub const MAX_SNAT_ADDRESSES: usize = 8;
/// Addresses of one family on which the gateway answers DNS.
pub const MAX_DNS_ADDRESSES: usize = 8;
/// Candidates tried for a free source port before a new flow is refused.
pub const SNAT_ATTEMPTS: u32 = 16;
/// Fragments of one datagram: 64 KiB over a way of 1,280 bytes are 53.
pub const MAX_FRAGMENTS: usize = 64;
/// Seconds that a datagram's fragments may take (RFC 791's and Linux' time for reassembly).
pub const FRAGMENT_SECONDS: u64 = 30;
/// Longest name, in wire format with its root byte, that the kernel answers.
pub const DNS_NAME: usize = 64;
/// Largest answer body (everything behind the question but OPT) inside a [`crate::maps::DnsEntry`].
pub const DNS_INLINE_BODY: usize = 192;
/// Largest answer body in [`crate::maps::DnsLarge`].
pub const DNS_LARGE_BODY: usize = 1216;
/// The gateway's own EDNS size, and the largest UDP answer it sends (DNS flag day 2020).
pub const DNS_MAX_UDP: u16 = 1232;
/// Largest UDP answer to a client without EDNS (RFC 1035 section 2.3.4).
pub const DNS_MIN_UDP: u16 = 512;
/// TTL fields that the kernel ages in one answer. An answer with more is left to the forwarder.
pub const DNS_MAX_TTLS: usize = 16;
/// Longest SOA record without its owner name that negative answers carry.
pub const DNS_SOA: usize = 192;
/// Zones that the kernel knows as a whole (the cluster zone; later its reverse zones).
pub const MAX_ZONES: usize = 8;
/// Default capacities; the agent sizes the maps when it loads them.
pub mod capacity {
    /// `SERVICES4/6`: entries (one a VIP, one a VIP and port).
    pub const SERVICES: u32 = 1 << 18;
    /// `ENDPOINTS`.
    pub const ENDPOINTS: u32 = 1 << 18;
    /// `MAGLEV`: slots of all tables together.
    pub const MAGLEV: u32 = 1 << 22;
    /// `NEXTHOPS`.
    pub const NEXTHOPS: u32 = 1 << 16;
    /// `CLIENT_HOPS4/6`.
    pub const CLIENT_HOPS: u32 = 1 << 16;
    /// `FLOWS4/6`: records; two a flow. The config's `datapath.flows` counts flows.
    pub const FLOWS: u32 = 2 * 262_144;
    /// `TWINS4/6`: places, a power of two.
    pub const TWINS: u32 = 1 << 18;
    /// `VIEWS4/6`, `CLAIMS4/6`: prefixes.
    pub const PREFIXES: u32 = 1 << 12;
    /// `ANSWERS`.
    pub const ANSWERS: u32 = 1 << 18;
    /// `VLANS`.
    pub const VLANS: u32 = 1 << 10;
    /// `AFFINITY`: clients times Services.
    pub const AFFINITY: u32 = 1 << 16;
    /// `FRAGMENTS`: datagrams on their way.
    pub const FRAGMENTS: u32 = 1 << 11;
    /// `RATES`: sources whose ICMP errors are limited.
    pub const RATES: u32 = 1 << 12;
    /// `DNS_METERS`: source prefixes whose answers are counted.
    pub const DNS_METERS: u32 = 1 << 14;
    /// `DNS_LOG`: bytes.
    pub const DNS_LOG: u32 = 1 << 20;
}
