//! The layout of every BPF map. Bytes from the wire stay in network order as byte arrays; everything else is
//! native-endian integers. No struct has padding (bytemuck refuses it); each has a size assertion.
//!
//! | map | type | key → value |
//! |---|---|---|
//! | `CONFIG` | array(1) | 0 → [`Config`] |
//! | `COUNTERS` | per-CPU array | [`crate::Reason`] → `u64` packets |
//! | `VIEWS4`, `VIEWS6` | LPM trie | source prefix → [`View`] |
//! | `VIEW_LIST4` | array(1) | 0 → [`ViewList`] |
//! | `CLAIMS4`, `CLAIMS6` | LPM trie | destination prefix that is the gateway's business → [`Claim`] |
//! | `SERVICES4`, `SERVICES6` | hash, no prealloc | [`ServiceKey`] → [`Service`] |
//! | `MAGLEV` | array | slot → endpoint index (`u32`); a Service owns a range |
//! | `ENDPOINTS` | array | endpoint index → [`Endpoint`]; index 0 is never used |
//! | `NEXTHOPS` | array | next-hop index → [`NextHop`]; index 0 means "not known: look it up" |
//! | `CLIENT_HOPS4`, `CLIENT_HOPS6` | LRU hash | client address → next-hop index (`u32`) |
//! | `FLOWS4`, `FLOWS6` | hash | [`FlowKey`] as the packet arrives → [`Flow`] |
//! | `TWINS4`, `TWINS6` | array | hash of a [`FlowKey`] → [`FlowKey`] of the other direction's record: a hint |
//! | `VLANS` | hash | [`VlanKey`] → [`Vlan`]: tagged frames that XDP on the lowest device takes for a VLAN device's |
//! | `AFFINITY` | LRU hash | [`AffinityKey`] → [`Affinity`] |
//! | `FRAGMENTS` | LRU hash | [`FragmentKey`] → [`Fragments`]: datagrams whose first fragment went through |
//! | `ANSWERS` | hash, no prealloc | [`DnsHash`] of a [`DnsKey`] → [`DnsEntry`] |
//! | `LARGE` | hash, no prealloc | [`DnsEntry::large`] → [`DnsLarge`] |
//! | `ZONES` | array | 0.. → [`Zone`]; unused ones are all zero |
//! | `RATES` | LRU hash | source address as 16 bytes → [`Bucket`] |
//! | `DNS_METERS` | LRU hash | source prefix as four words → [`crate::dns::limit::Meter`] |
//! | `DNS_LOG` | ring buffer | [`crate::dns::log::Asked`], one for each query that is logged |

use bytemuck::{Pod, Zeroable};

use crate::limits::{
    DNS_INLINE_BODY, DNS_LARGE_BODY, DNS_MAX_TTLS, DNS_NAME, DNS_SOA, MAX_DNS_ADDRESSES, MAX_FRAGMENTS,
    MAX_SNAT_ADDRESSES, MAX_VIEW_LIST,
};

/// Version of what an agent inherits from pinned maps: [`ServiceKey`], [`Service`], [`Endpoint`], [`NextHop`], [`FlowKey`] and [`Flow`].
/// Raise it with every change of their bytes or of what those mean: each version has a directory of its own.
pub const LAYOUT: u32 = 2;

/// An address family as a type: `[u8; 4]` or `[u8; 16]`, network order.
pub trait Address: Pod + Copy + Eq {
    /// Bytes of an address.
    const LEN: usize;
}
impl Address for [u8; 4] {
    const LEN: usize = 4;
}
impl Address for [u8; 16] {
    const LEN: usize = 16;
}

macro_rules! sizes {
    ($($t:ty = $n:expr),+ $(,)?) => { $(const _: () = assert!(core::mem::size_of::<$t>() == $n);)+ };
}

// ---------------------------------------------------------------------------------------------- config

/// What new flows and rejections need to know; read off the hit path only, but for the DNS addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// [`config`] bits.
    pub flags: u32,
    /// First port of the reserved source range, host order.
    pub snat_port: u16,
    /// Ports in the range.
    pub snat_ports: u16,
    /// Used entries of `snat4`.
    pub snat4_len: u32,
    /// Used entries of `snat6`.
    pub snat6_len: u32,
    /// Used entries of `dns4`.
    pub dns4_len: u32,
    /// Used entries of `dns6`.
    pub dns6_len: u32,
    /// Ticks of `bpf_jiffies64` a second, measured by the agent; 0 while unknown.
    pub hz: u32,
    /// ICMP errors (and RSTs) a second and source; burst is twice that.
    pub icmp_rate: u32,
    /// Source addresses for `snat`.
    pub snat4: [[u8; 4]; MAX_SNAT_ADDRESSES],
    /// Source addresses for `snat`, IPv6.
    pub snat6: [[u8; 16]; MAX_SNAT_ADDRESSES],
    /// Addresses on which UDP port 53 is answered in the kernel.
    pub dns4: [[u8; 4]; MAX_DNS_ADDRESSES],
    /// Addresses on which UDP port 53 is answered in the kernel, IPv6.
    pub dns6: [[u8; 16]; MAX_DNS_ADDRESSES],
    /// The gateway's own address, IPv4: source of time exceeded.
    pub own4: [u8; 4],
    /// Largest TCP segment announced in either direction: 0 as the hosts say, [`config::MSS_AUTO`] what the way out takes, else bytes.
    pub mss_clamp: u32,
    /// The gateway's own address, IPv6.
    pub own6: [u8; 16],
}

/// Bits of [`Config::flags`].
pub mod config {
    /// Denied clients get nothing instead of "administratively prohibited".
    pub const DENY_DROP: u32 = 1;
    /// Strangers' packets go to the node as if there were no gateway.
    pub const STRANGERS_PASS: u32 = 1 << 1;
    /// Return path `routed`: the client's address is kept.
    pub const ROUTED: u32 = 1 << 2;
    /// Learnt and zone answers are served from the kernel.
    pub const DNS: u32 = 1 << 3;
    /// Value of [`Config::mss_clamp`](super::Config::mss_clamp): what the way out takes.
    pub const MSS_AUTO: u32 = 1;
}

// ----------------------------------------------------------------------------------- views and claims

/// Key of an LPM trie, as the kernel lays it out: prefix length in bits (native), then the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixKey<A> {
    /// Prefix length in bits.
    pub bits: u32,
    /// Address, network order; bits behind the prefix are zero.
    pub addr: A,
}

/// Value of `VIEWS4/6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct View {
    /// Number of the view, also its bit in every mask.
    pub id: u32,
    /// Zero.
    pub flags: u32,
}

/// Value of `VIEW_LIST4`: the prefixes of `VIEWS4` once more, when they are few: comparing them costs a tenth of the trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ViewList {
    /// Used entries; 0: there are too many, or nobody has written them: the trie decides.
    pub len: u32,
    /// Longest prefix first.
    pub prefixes: [ViewPrefix; MAX_VIEW_LIST],
}

/// A client subnet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ViewPrefix {
    /// Its address, network order.
    pub addr: u32,
    /// Its mask, network order.
    pub mask: u32,
    /// [`View::id`].
    pub id: u32,
}

/// Value of `CLAIMS4/6`: every service CIDR, and every VIP outside one, is claimed; an address of the node's own inside one is not.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Claim {
    /// 1: a service CIDR or VIP. 0: the node's own address in a service CIDR, which stays the node's.
    pub kind: u32,
}

impl Claim {
    /// A service CIDR or VIP.
    pub const OURS: Self = Self { kind: 1 };
    /// An address inside a service CIDR that is left to the node.
    pub const SPARED: Self = Self { kind: 0 };

    /// Whether packets to it are the gateway's business.
    #[inline(always)]
    pub const fn is_ours(&self) -> bool {
        self.kind != 0
    }
}

// ----------------------------------------------------------------------------------------- services

/// Key of `SERVICES4/6`. Port 0 with protocol 0 is the VIP itself: it says that the address is one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey<A> {
    /// The VIP.
    pub addr: A,
    /// Port, network order.
    pub port: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// A Service port, or (port 0) a VIP. Replaced as a whole: the swap of this value is what makes a change of endpoints atomic.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Service {
    /// Bit n: view n may see it.
    pub views: u64,
    /// Number of the Service port, for flows and people; never 0.
    pub id: u32,
    /// [`service`] bits.
    pub flags: u32,
    /// First slot in `MAGLEV`.
    pub slots: u32,
    /// Number of slots, a prime; 0: no endpoint to send to.
    pub slot_count: u32,
    /// ClientIP affinity in seconds; 0: none.
    pub affinity: u32,
    /// Endpoints in the table; on a VIP's own entry those of all its ports: an echo is answered while there are any.
    pub endpoints: u32,
}

/// Bits of [`Service::flags`].
pub mod service {
    /// The cluster DNS Service's port 53: UDP is answered from `ANSWERS`; a miss goes on as an ordinary flow (to the forwarder).
    pub const DNS: u32 = 1;
}

/// An endpoint of one Service port. Its index is stable while it lives.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// Address, network order; IPv4 in the first four bytes, the rest zero.
    pub addr: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// [`endpoint`] bits.
    pub flags: u16,
    /// Bumped each time the index is given to somebody else; a flow with another generation has lost its endpoint. 0: nobody.
    pub generation: u32,
    /// Index into `NEXTHOPS`.
    pub nexthop: u32,
    /// [`Service::id`].
    pub service: u32,
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint {
    /// `addr` is IPv6.
    pub const V6: u16 = 1;
    /// The address is the gateway node's own: the packet goes up this node's stack, with the client's address as its source
    /// (its own would be a martian), and the reply is caught at egress of the uplink.
    pub const LOCAL: u16 = 1 << 1;
    /// Keeps the flows it has and gets no new ones.
    pub const DRAINING: u16 = 1 << 2;
}

/// Where a packet goes next. Written by the control plane from routes and neighbours; never looked up per packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// Interface; 0: unusable (no route).
    pub ifindex: u32,
    /// [`nexthop`] bits.
    pub flags: u16,
    /// MTU of route or interface: bytes of an IP packet.
    pub mtu: u16,
    /// Destination MAC.
    pub dst: [u8; 6],
    /// Source MAC.
    pub src: [u8; 6],
    /// Address whose neighbour entry this is (gateway, or the on-link address itself); IPv4 in the first four bytes.
    pub via: [u8; 16],
    /// The interface that XDP redirects into: the lowest device of a VLAN device, else `ifindex`.
    pub xdp_ifindex: u32,
    /// Tags (TCI, network order, outer one first) that XDP writes and the kernel adds by itself behind `ifindex`; zero: none.
    pub tags: [[u8; 2]; 2],
}

/// Bits of [`NextHop::flags`].
pub mod nexthop {
    /// `dst` and `src` are valid now.
    pub const RESOLVED: u16 = 1;
    /// XDP may redirect into this interface.
    pub const XDP: u16 = 1 << 1;
    /// `via` is IPv6.
    pub const V6: u16 = 1 << 2;
    /// The way is up this node's own stack.
    pub const LOCAL: u16 = 1 << 3;
    /// The interface has no link-layer header (WireGuard, IPIP).
    pub const NO_L2: u16 = 1 << 4;
    /// The outer of two tags is an 802.1ad one.
    pub const SERVICE_TAG: u16 = 1 << 5;
}

// ------------------------------------------------------------------------------------------- vlans

/// Key of `VLANS`: how a VLAN device's frames look on the device below.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct VlanKey {
    /// The lowest device.
    pub ifindex: u32,
    /// VLAN IDs (12 bits, network order), outer one first; zero: no second one.
    pub vids: [[u8; 2]; 2],
}

/// Value of `VLANS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Vlan {
    /// The VLAN device.
    pub ifindex: u32,
    /// [`vlan`] role.
    pub role: u32,
}

/// Values of [`Vlan::role`].
pub mod vlan {
    /// Clients come through it.
    pub const UPLINK: u32 = 1;
    /// Endpoints are reached through it.
    pub const CLUSTER: u32 = 2;
}

// ---------------------------------------------------------------------------------------- affinity

/// Key of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct AffinityKey {
    /// The client; IPv4 in the first four bytes.
    pub client: [u8; 16],
    /// [`Service::id`].
    pub service: u32,
}

/// Where a client's last flow to a Service with ClientIP affinity went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Affinity {
    /// `bpf_jiffies64` when that flow began.
    pub seen: u64,
    /// Index into `ENDPOINTS`.
    pub endpoint: u32,
    /// [`Endpoint::generation`] then.
    pub generation: u32,
}

// --------------------------------------------------------------------------------------- fragments

/// Key of `FRAGMENTS`, aligned so that it is copied by words: what all fragments of a datagram have in common (RFC 791, RFC 8200 section 4.5).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source; IPv4 in the first four bytes.
    pub src: [u8; 16],
    /// Destination; IPv4 in the first four bytes.
    pub dst: [u8; 16],
    /// Identification, network order; IPv4's two bytes first.
    pub id: [u8; 4],
    /// IP protocol of the datagram.
    pub proto: u8,
    /// 4 or 6.
    pub version: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// A datagram whose first fragment went through.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Fragments {
    /// `bpf_jiffies64` of the first fragment.
    pub at: u64,
    /// Source port of the datagram, network order.
    pub sport: [u8; 2],
    /// Destination port of the datagram, network order.
    pub dport: [u8; 2],
    /// Used entries of `ranges`; [`FRAGMENTS_REFUSED`] once two fragments overlapped: nothing more of it goes through.
    pub count: u32,
    /// Units of 8 bytes that went through.
    pub units: u32,
    /// Units of the whole datagram; 0: its last fragment has not gone through.
    pub end: u32,
    /// What went through, in units of 8 bytes: first, and one past the last.
    pub ranges: [[u16; 2]; MAX_FRAGMENTS],
}

/// [`Fragments::count`] of a datagram that is refused as a whole.
pub const FRAGMENTS_REFUSED: u32 = u32::MAX;

// -------------------------------------------------------------------------------------------- flows

/// A packet's tuple as it arrives, from either side. ICMP queries: identifier as both ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port, network order.
    pub sport: [u8; 2],
    /// Destination port, network order.
    pub dport: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// One direction of a flow: everything a packet of a known flow needs. The record of the other direction is derivable:
/// its key is `(new_dst, new_src, new_dport, new_sport)`, its translation this record's own key reversed.
///
/// forward: client → VIP becomes (snat address | client) → endpoint; reverse: endpoint → snat becomes VIP → client.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// `bpf_jiffies64` of the last packet this way.
    pub seen: u64,
    /// `bpf_jiffies64` when the other direction's record was last made sure of.
    pub checked: u64,
    /// `bpf_jiffies64` when the flow began.
    pub created: u64,
    /// Packets this way.
    pub packets: u64,
    /// Bytes of IP this way.
    pub bytes: u64,
    /// Index into `ENDPOINTS`.
    pub endpoint: u32,
    /// [`Endpoint::generation`] when the flow began.
    pub generation: u32,
    /// Index into `NEXTHOPS` for this direction; forward records use their endpoint's instead, reverse ones 0 until the client's is known.
    pub nexthop: u32,
    /// [`Service::id`].
    pub service: u32,
    /// Change of the IPv4 header checksum by the addresses, ones' complement, as [`crate::net::checksum`] has it; 0 for IPv6.
    pub l3_delta: u16,
    /// Change of the transport checksum by addresses (pseudo-header).
    pub l4_delta: u16,
    /// Change of the transport checksum by ports.
    pub port_delta: u16,
    /// [`flow`] bits.
    pub flags: u16,
    /// New source port, network order.
    pub new_sport: [u8; 2],
    /// New destination port, network order.
    pub new_dport: [u8; 2],
    /// TCP flags seen this way, or-ed (FIN 1, SYN 2, RST 4, ACK 16).
    pub tcp: u8,
    /// View of the client.
    pub view: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// New source address.
    pub new_src: A,
    /// New destination address.
    pub new_dst: A,
}

/// Bits of [`Flow::flags`].
pub mod flow {
    /// Client to endpoint.
    pub const FORWARD: u16 = 1;
    /// Endpoint to client.
    pub const REVERSE: u16 = 1 << 1;
    /// The endpoint is an address of this node.
    pub const LOCAL: u16 = 1 << 2;
    /// Only the destination is translated (return path `routed`, or a local endpoint).
    pub const ROUTED: u16 = 1 << 3;
}

/// TCP flag bits as in byte 13 of the header and in [`Flow::tcp`].
pub mod tcp {
    /// No more data from sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset.
    pub const RST: u8 = 1 << 2;
    /// Acknowledgement field is significant.
    pub const ACK: u8 = 1 << 4;
}

macro_rules! generic_pod {
    ($($t:ident),+) => { $(
        // SAFETY: repr(C), every field is Pod, and the size assertions below show that neither family has padding.
        unsafe impl Zeroable for $t<[u8; 4]> {}
        // SAFETY: as above.
        unsafe impl Zeroable for $t<[u8; 16]> {}
        // SAFETY: as above.
        unsafe impl Pod for $t<[u8; 4]> {}
        // SAFETY: as above.
        unsafe impl Pod for $t<[u8; 16]> {}
    )+ };
}
generic_pod!(PrefixKey, ServiceKey, FlowKey, Flow);

impl<A: Address> FlowKey<A> {
    /// A key from its parts.
    pub const fn new(src: A, dst: A, sport: [u8; 2], dport: [u8; 2], proto: u8) -> Self {
        Self { src, dst, sport, dport, proto, pad: [0; 3] }
    }
}

impl<A: Address> Flow<A> {
    /// The key under which the other direction's record stands.
    pub const fn twin(&self, proto: u8) -> FlowKey<A> {
        FlowKey::new(self.new_dst, self.new_src, self.new_dport, self.new_sport, proto)
    }
}

impl<A: Address> ServiceKey<A> {
    /// Key of a Service port; `port` in host order.
    pub const fn new(addr: A, port: u16, proto: u8) -> Self {
        Self { addr, port: port.to_be_bytes(), proto, pad: 0 }
    }
    /// Key that says whether an address is a VIP.
    pub const fn vip(addr: A) -> Self {
        Self::new(addr, 0, 0)
    }
}

/// Token bucket of one source. Tokens are thousandths.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Bucket {
    /// `bpf_jiffies64` of the last refill.
    pub at: u64,
    /// Tokens left, in thousandths.
    pub tokens: u64,
}

// ---------------------------------------------------------------------------------------------- dns

/// What an answer is found by; `ANSWERS` has its hash as key and itself in the entry. Aligned so that the name is folded a word at a time.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DnsKey {
    /// Name in wire format with its root byte, ASCII letters folded to lower case, rest zero.
    pub name: [u8; DNS_NAME],
    /// Query type, host order; [`dns_key::EXISTS`] (0) says that the name exists in a zone the kernel knows as a whole.
    pub qtype: u16,
    /// [`dns_key`] bits of the query that change an answer (DO, CD); zero for zone entries.
    pub flags: u8,
    /// Bytes of `name` used, root byte included.
    pub len: u8,
    /// Zero.
    pub pad: u32,
}

impl DnsKey {
    /// Everything but the name in one word.
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        dns_key::tag(self.qtype, self.flags, self.len)
    }
}

/// Key of `ANSWERS`: [`crate::dns::hash`] of a [`DnsKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DnsHash {
    /// The hash.
    pub hash: u64,
}

/// Values in [`DnsKey`].
pub mod dns_key {
    /// Not a query type: the name exists (answers NODATA for types it does not have).
    pub const EXISTS: u16 = 0;
    /// The query had DO set.
    pub const DO: u8 = 1;
    /// The query had CD set.
    pub const CD: u8 = 1 << 1;
    /// [`super::DnsKey::tag`] of its parts.
    #[inline(always)]
    pub const fn tag(qtype: u16, flags: u8, len: u8) -> u32 {
        qtype as u32 | (flags as u32) << 16 | (len as u32) << 24
    }
}

/// One answer: everything between the question and OPT, ready to be copied behind any client's question.
/// Names in the body are spelt out, or point into the question or to an earlier name of the body: as the key fixes the question's
/// length, positions in the message are known when the entry is made.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DnsEntry {
    /// Bit n: view n may see it. A client that may not gets what it would get if the entry did not exist.
    pub views: u64,
    /// `CLOCK_MONOTONIC` in ns when it was stored; TTLs age from here. 0 with `expires` 0: does not age (zone data).
    pub stored: u64,
    /// `CLOCK_MONOTONIC` in ns from which on it must not be served; 0: never expires.
    pub expires: u64,
    /// Times served from the kernel (racy; for popularity only).
    pub hits: u64,
    /// Key into `LARGE`, 0: the body is in here.
    pub large: u32,
    /// Bytes of body.
    pub len: u16,
    /// Folded ones' complement sum of the body as if it began at an even offset (not complemented), host value of big-endian words.
    pub sum: u16,
    /// DNS header flags of the answer in host order but for those copied from the query (RD, CD, opcode): QR, AA, RA, RCODE, AD.
    pub header: u16,
    /// Answer records.
    pub answers: u16,
    /// Authority records.
    pub authorities: u16,
    /// Additional records, without OPT.
    pub additionals: u16,
    /// Body offset of the first record that rotates.
    pub rotate_at: u16,
    /// Bytes of one rotating record; even, so that sums do not change.
    pub rotate_len: u8,
    /// Number of rotating records, consecutive and of one size; 0 or 1: no rotation.
    pub rotate_count: u8,
    /// Used entries of `ttls`.
    pub ttl_count: u8,
    /// [`dns_entry`] bits.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 6],
    /// [`DnsKey::tag`] of what it answers; written with the name by whoever puts the entry into the map.
    pub tag: u32,
    /// [`DnsKey::name`] of what it answers.
    pub name: [u8; DNS_NAME],
    /// Body offsets of the TTL fields to age.
    pub ttls: [u16; DNS_MAX_TTLS],
    /// The body, when `large` is 0.
    pub body: [u8; DNS_INLINE_BODY],
}

impl DnsEntry {
    /// The same, answering that key.
    #[must_use]
    pub const fn of_key(mut self, key: &DnsKey) -> Self {
        self.tag = key.tag();
        self.name = key.name;
        self
    }

    /// [`Self::name`], a word at a time.
    #[inline(always)]
    pub fn name_words(&self) -> &[u64; DNS_NAME / 8] {
        let words: &[u64; size_of::<Self>() / 8] = bytemuck::cast_ref(self);
        words[core::mem::offset_of!(Self, name) / 8..].first_chunk().unwrap_or(&[0; DNS_NAME / 8])
    }
}

/// Bits of [`DnsEntry::flags`].
pub mod dns_entry {
    /// From the cluster zone: authoritative, matches whatever DO and CD the query has.
    pub const ZONE: u8 = 1;
    /// On a zone's [`dns_key::EXISTS`](super::dns_key::EXISTS) entry: the name is an alias (it owns a CNAME), so types without an entry of their own
    /// are not NODATA but the forwarder's, which follows the alias.
    pub const ALIAS: u8 = 1 << 1;
}

/// A body too large for a [`DnsEntry`]. Aligned as [`Zone`] is.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DnsLarge {
    /// The body; [`DnsEntry::len`] bytes are used.
    pub body: [u8; DNS_LARGE_BODY],
}

/// A zone known as a whole: any name below it that has no entry does not exist. Aligned so that the SOA is copied a word at a time.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Zone {
    /// Name of the zone in wire format with its root byte, folded, rest zero.
    pub name: [u8; DNS_NAME],
    /// Bytes of `name` used; 0: this slot is unused.
    pub name_len: u16,
    /// Bytes of `soa` used.
    pub soa_len: u16,
    /// Sum of `soa` as in [`DnsEntry::sum`].
    pub soa_sum: u16,
    /// 1: the zone is complete, misses are NXDOMAIN; 0: misses go to the forwarder.
    pub complete: u16,
    /// SOA record from its TYPE field on (type, class, TTL, rdlength, rdata with names spelt out); the owner is a pointer
    /// into the question, made when the answer is.
    pub soa: [u8; DNS_SOA],
}

impl Zone {
    /// [`Self::name`], a word at a time.
    #[inline(always)]
    pub fn name_words(&self) -> &[u64; DNS_NAME / 8] {
        let words: &[u64; size_of::<Self>() / 8] = bytemuck::cast_ref(self);
        words.first_chunk().unwrap_or(&[0; DNS_NAME / 8])
    }
}

sizes! {
    Config = 32 + 32 + 128 + 32 + 128 + 8 + 16,
    PrefixKey<[u8; 4]> = 8, PrefixKey<[u8; 16]> = 20,
    View = 8, ViewList = 4 + 8 * 12, Claim = 4,
    ServiceKey<[u8; 4]> = 8, ServiceKey<[u8; 16]> = 20,
    Service = 32, Endpoint = 32, NextHop = 44,
    VlanKey = 8, Vlan = 8, AffinityKey = 20, Affinity = 16, FragmentKey = 40, Fragments = 24 + 4 * MAX_FRAGMENTS,
    FlowKey<[u8; 4]> = 16, FlowKey<[u8; 16]> = 40,
    Flow<[u8; 4]> = 80, Flow<[u8; 16]> = 104,
    Bucket = 16,
    DnsKey = 72, DnsHash = 8, DnsEntry = 32 + 8 + 8 + 16 + 64 + 32 + 192, DnsLarge = 1216, Zone = 64 + 8 + 192,
}
