//! Every counted verdict, declared once: number, name for metrics, class and what it means.

/// What a counter says about the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The gateway did its work.
    Served,
    /// The sender was told why not, by an ICMP error or a TCP reset.
    Rejected,
    /// Dropped without a word.
    Dropped,
    /// Left to the next tier or to the node, unchanged.
    Passed,
}

impl Class {
    /// Name in metrics and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Rejected => "rejected",
            Self::Dropped => "dropped",
            Self::Passed => "passed",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $class:ident;)+) => {
        /// Index into `COUNTERS`. Append only: numbers are kept across upgrades.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Number of reasons: entries of `COUNTERS`.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// Label in metrics, JSON and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What happened to the packet.
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)+ }
            }

            /// A sentence for people.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

reasons! {
    /// Packet of a client sent on to an endpoint.
    Forwarded = "forwarded", Served;
    /// Packet of an endpoint sent back to its client.
    Replied = "replied", Served;
    /// New flow begun.
    FlowCreated = "flow_created", Served;
    /// Record of one direction rebuilt from the other.
    FlowRebuilt = "flow_rebuilt", Served;
    /// UDP flow moved to another endpoint because its own is gone.
    FlowMoved = "flow_moved", Served;
    /// Query answered in the kernel with records.
    DnsAnswered = "dns_answered", Served;
    /// Query answered in the kernel: the name exists without that type.
    DnsNoData = "dns_nodata", Served;
    /// Query answered in the kernel: no such name.
    DnsNxDomain = "dns_nxdomain", Served;
    /// Answer did not fit the client's size: TC set in the kernel.
    DnsTruncated = "dns_truncated", Served;
    /// Echo request to a VIP answered.
    Echo = "echo", Served;

    /// Service port without an endpoint to send to: port unreachable.
    NoEndpoint = "no_endpoint", Rejected;
    /// VIP, but not one of its ports: port unreachable.
    UnknownPort = "unknown_port", Rejected;
    /// Address of the service CIDR that is no VIP: host unreachable.
    UnknownVip = "unknown_vip", Rejected;
    /// The client's view may not see that Service: administratively prohibited.
    ViewDenied = "view_denied", Rejected;
    /// TTL or hop limit ended here: time exceeded.
    TtlExceeded = "ttl_exceeded", Rejected;
    /// Bigger than the way out, DF set: fragmentation needed or packet too big.
    TooBig = "too_big", Rejected;
    /// TCP flow whose endpoint is gone: reset.
    EndpointGone = "endpoint_gone", Rejected;

    /// Source address in no view.
    Stranger = "stranger", Dropped;
    /// View may not see that Service, and the config says drop.
    ViewDropped = "view_dropped", Dropped;
    /// An ICMP error or reset was due but its rate limit is used up.
    RateLimited = "rate_limited", Dropped;
    /// The flow table is full.
    FlowTableFull = "flow_table_full", Dropped;
    /// No free source port towards that endpoint.
    SnatExhausted = "snat_exhausted", Dropped;
    /// Header lengths or version that no honest sender makes, to a claimed address.
    Malformed = "malformed", Dropped;
    /// IP options or extension headers to a claimed address.
    IpOptions = "ip_options", Dropped;
    /// Fragment to a claimed address without the flow of its first one.
    Fragment = "fragment", Dropped;
    /// Protocol to a VIP that the gateway does not carry: protocol unreachable.
    UnknownProtocol = "unknown_protocol", Rejected;
    /// No route or unusable next hop towards the endpoint or client: host unreachable.
    NoRoute = "no_route", Rejected;
    /// A helper of the kernel refused.
    HelperFailed = "helper_failed", Dropped;
    /// Whether the checksum is whole or partial cannot be told; an error built on it could be wrong.
    AmbiguousChecksum = "ambiguous_checksum", Dropped;

    /// Not the gateway's business.
    NotOurs = "not_ours", Passed;
    /// IPv6, left to the node by earlier versions; not counted any more, its number is kept.
    Ipv6 = "ipv6", Passed;
    /// Checksum still to be filled in by hardware: translated in TC, where the kernel knows.
    PartialChecksum = "partial_checksum", Passed;
    /// Next hop not resolved or not reachable by XDP: left to TC.
    NextHopTc = "next_hop_tc", Passed;
    /// Longer than the next hop's MTU: left to TC.
    TooBigTc = "too_big_tc", Passed;
    /// Stranger, and the config says pass.
    StrangerPassed = "stranger_passed", Passed;
    /// Endpoint on this node: up its own stack.
    Local = "local", Passed;
    /// Name the kernel has no answer for: to the forwarder.
    DnsMiss = "dns_miss", Passed;
    /// Learnt answer that has expired: to the forwarder.
    DnsExpired = "dns_expired", Passed;
    /// Query the kernel does not fully understand: to the forwarder.
    DnsUnsupported = "dns_unsupported", Passed;
    /// Headers not in the linear part, or an oddity outside claimed addresses.
    Unparsed = "unparsed", Passed;
    /// Answer longer than the room behind the query's frame: left to TC, which can make room.
    NoRoom = "no_room", Passed;

    /// ICMP error about a flow translated and sent on.
    IcmpRelayed = "icmp_relayed", Served;
    /// ICMP message to a claimed address that is neither an echo request nor about a flow.
    IcmpIgnored = "icmp_ignored", Dropped;
    /// Fragment that overlaps another one of its datagram, repeats one, or is one too many.
    FragmentOverlap = "fragment_overlap", Dropped;
    /// Fragment before its first one: left to TC.
    FragmentTc = "fragment_tc", Passed;

    /// Answer above its source prefix's rate (`dns.rateLimit`): not sent.
    DnsLimited = "dns_limited", Dropped;
    /// Answer above its source prefix's rate: sent with TC and without records, so that a real client asks over TCP.
    DnsSlipped = "dns_slipped", Served;
    /// Answered query that is missing in the query log, whose ring was full; counted beside its answer.
    DnsLogLost = "dns_log_lost", Served;
    /// Packet bigger than the way out, which may be fragmented: sent on in pieces, counted beside where it went.
    Fragmented = "fragmented", Served;
}
