//! One packet's way: parse, DNS, flow, service, send.

use gateway_common::{
    Reason,
    maps::{Config, Vlan, VlanKey, config, service, tcp, vlan},
    net::{
        error::Error,
        family::{V4, V6},
        headers::{ETH_LEN, ICMP_LEN, IPV4_LEN, IPV6_LEN, Icmp, TAG_LEN, TCP, UDP},
        parse::{self, Fragment, Link, Other, Packet, Parsed},
    },
};

use aya_ebpf::{macros::map, maps::HashMap};

use crate::{
    counters::count,
    dns::{self, Outcome},
    echo,
    flows::{self, Found},
    fragments,
    frame::Frame,
    net::Net,
    reject, send,
    services::{self, Access, Begun},
    settings::{self, config},
    stage::Stages,
};

#[map]
static VLANS: HashMap<VlanKey, Vlan> = HashMap::with_max_entries(gateway_common::limits::capacity::VLANS, 0);

/// What becomes of the frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Up: to the next program, the next tier, the node.
    Pass,
    /// Nowhere.
    Drop,
    /// Out of the interface that a redirect helper was told.
    Redirect,
    /// Not decided: [`slow`] is next.
    Slow,
    /// Not decided: [`other`] is next.
    Other,
    /// Not decided: [`crate::relay`] is next.
    Relay,
    /// Not decided: [`crate::reject`] is next, with what it was told.
    Reject,
    /// Not decided: [`cut`] is next.
    Cut,
    /// Not decided: [`begin`] is next.
    Begin,
    /// Not decided: [`flows::attempts`] is next, and then [`Verdict::Slow`].
    Attempt,
    /// As above, and then [`Verdict::Cut`].
    AttemptCut,
    /// Not decided: [`question`] is next.
    Query,
    /// Not decided: [`tagged`] has found IPv4, or IPv6, behind one tag, or two.
    Tagged4,
    /// As above.
    Tagged6,
    /// As above.
    Twice4,
    /// As above.
    Twice6,
    /// Not decided: [`lost`] is next.
    Lost,
    /// Translated, but too big for its way: [`crate::split`] is next.
    Split,
    /// Not decided: [`missed`] is next.
    Missed,
}

impl Verdict {
    /// As a function of its own returns it.
    #[inline(always)]
    pub const fn code(self) -> u32 {
        self as u32
    }
    /// The reverse of [`Self::code`].
    #[inline(always)]
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Drop,
            2 => Self::Redirect,
            3 => Self::Slow,
            4 => Self::Other,
            5 => Self::Relay,
            6 => Self::Reject,
            7 => Self::Cut,
            8 => Self::Begin,
            9 => Self::Attempt,
            10 => Self::AttemptCut,
            11 => Self::Query,
            12 => Self::Tagged4,
            13 => Self::Tagged6,
            14 => Self::Twice4,
            15 => Self::Twice6,
            16 => Self::Lost,
            17 => Self::Split,
            18 => Self::Missed,
            _ => Self::Pass,
        }
    }
}

/// Which side of the gateway a program looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Ingress of an interface with clients: begins flows, answers queries, carries both directions.
    Uplink,
    /// Ingress of an interface with endpoints: carries replies.
    Cluster,
    /// Egress of an interface with clients: replies of this node's own sockets.
    Egress,
}

impl Role {
    /// The reverse of a cast to a number.
    #[inline(always)]
    pub const fn from_code(code: u32) -> Self {
        match code {
            0 => Self::Uplink,
            1 => Self::Cluster,
            _ => Self::Egress,
        }
    }
}

const DNS_PORT: [u8; 2] = 53u16.to_be_bytes();

/// Left alone, and why.
#[inline(always)]
pub fn pass(reason: Reason) -> Verdict {
    count(reason);
    Verdict::Pass
}

/// Dropped, and why.
#[inline(always)]
pub fn discard(reason: Reason) -> Verdict {
    count(reason);
    Verdict::Drop
}

/// The whole way of one frame.
#[inline(always)]
pub fn handle<F: Stages>(frame: &mut F, role: Role) -> Verdict {
    if !frame.linear_headers() {
        return pass(Reason::Unparsed);
    }
    match parse::ethernet(frame) {
        Ok(Link::V4) => {
            let first =
                if role == Role::Uplink && looks_like_query(frame, IPV4_LEN) { frame.ask() } else { frame.plain(role) };
            drive::<F, V4>(frame, role, ETH_LEN, first)
        }
        Ok(Link::V6) => {
            // TC finds queries where it looks for the flow.
            let query = F::XDP && role == Role::Uplink && looks_like_query(frame, IPV6_LEN);
            let first = if query { frame.ask6() } else { frame.plain6(role) };
            drive::<F, V6>(frame, role, ETH_LEN, first)
        }
        // A buffer's own tag tells TC that the VLAN's own interface will see the frame; so does one in the data.
        Ok(Link::Tagged) if F::XDP => behind_tags(frame, role),
        Ok(_) => ours_not(role, Reason::NotOurs),
        Err(reason) => ours_not(role, reason),
    }
}

/// Whether the destination port of a TCP segment or UDP datagram in an untagged frame, behind an IP header of so many bytes, would be
/// 53. Queries go to their stage at once, and everything else has one comparison less behind it.
#[inline(always)]
fn looks_like_query(frame: &impl Frame, header: usize) -> bool {
    frame.get::<[u8; 2]>(ETH_LEN + header + 2).is_some_and(|dport| *dport == DNS_PORT)
}

/// A tagged frame.
#[inline(always)]
fn behind_tags<F: Stages>(frame: &mut F, role: Role) -> Verdict {
    let found = frame.tagged(role);
    let l3 = ETH_LEN + if matches!(found, Verdict::Tagged4 | Verdict::Tagged6) { TAG_LEN } else { 2 * TAG_LEN };
    // A VLAN device of the cluster's on an uplink is the only other case, and its replies are found in either role.
    match found {
        Verdict::Tagged4 | Verdict::Twice4 => {
            let first = frame.known::<V4>(l3, role);
            drive::<F, V4>(frame, role, l3, first)
        }
        Verdict::Tagged6 | Verdict::Twice6 => {
            let first = frame.known::<V6>(l3, role);
            drive::<F, V6>(frame, role, l3, first)
        }
        _ => Verdict::Pass,
    }
}

/// Calls one stage after the other until the verdict is final. They return here instead of calling one another, so that their stacks
/// do not add up.
#[inline(always)]
pub fn drive<F: Stages, N: Net>(frame: &mut F, role: Role, l3: usize, mut verdict: Verdict) -> Verdict {
    if verdict == Verdict::Query {
        verdict = frame.question::<N>(l3);
    }
    if verdict == Verdict::Other {
        verdict = frame.other::<N>(l3, role);
    }
    if verdict == Verdict::Relay {
        verdict = frame.relay::<N>(l3, role);
    }
    verdict = carried::<F, N>(frame, role, l3, verdict);
    if verdict == Verdict::Lost {
        verdict = frame.lost::<N>(l3, role);
        verdict = carried::<F, N>(frame, role, l3, verdict);
    }
    if verdict == Verdict::Begin {
        verdict = frame.begin::<N>(l3);
        if matches!(verdict, Verdict::Attempt | Verdict::AttemptCut) {
            verdict = match flows::attempts::<N>() {
                Some(reason) => discard(reason),
                None if verdict == Verdict::Attempt => Verdict::Slow,
                None => Verdict::Cut,
            };
            verdict = carried::<F, N>(frame, role, l3, verdict);
        }
    }
    match verdict {
        // What this node's own sockets send by a device without a link layer is answered by its own stack.
        Verdict::Reject if l3 == 0 => discard(Reason::HelperFailed),
        Verdict::Reject => frame.reject::<N>(l3),
        Verdict::Split if F::XDP || N::VERSION != 4 => discard(Reason::HelperFailed),
        Verdict::Split => frame.split(),
        // Begun and lost again: another CPU or the agent removed it. The sender will try again.
        Verdict::Begin => discard(Reason::HelperFailed),
        Verdict::Lost if role == Role::Uplink => discard(Reason::HelperFailed),
        Verdict::Lost => Verdict::Pass,
        verdict => verdict,
    }
}

/// What carries packets and fragments of flows.
#[inline(always)]
fn carried<F: Stages, N: Net>(frame: &mut F, role: Role, l3: usize, verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Slow => frame.slow::<N>(l3, role),
        Verdict::Cut => frame.cut::<N>(l3, role),
        verdict => verdict,
    }
}

/// A tagged frame is its VLAN device's: taken here when the agent says so, else left alone.
#[inline(always)]
pub fn tagged<F: Stages>(frame: &mut F, role: Role) -> Verdict {
    let Some((vids, link, l3)) = parse::tags(frame) else { return ours_not(role, Reason::Unparsed) };
    let key = VlanKey { ifindex: frame.ifindex(), vids };
    // SAFETY: elements of a preallocated hash map stay mapped while the program runs; the value is two integers.
    let Some(device) = (unsafe { VLANS.get(&key) }) else { return ours_not(role, Reason::NotOurs) };
    // Programs of the cluster side carry replies only, whatever the device above is.
    if device.role != vlan::UPLINK && role == Role::Uplink {
        return ours_not(role, Reason::NotOurs);
    }
    match (link, l3 > ETH_LEN + TAG_LEN) {
        (Link::V4, false) => Verdict::Tagged4,
        (Link::V6, false) => Verdict::Tagged6,
        (Link::V4, true) => Verdict::Twice4,
        (Link::V6, true) => Verdict::Twice6,
        _ => ours_not(role, Reason::NotOurs),
    }
}

/// Passes. What the node sends by itself is not worth a counter.
#[inline(always)]
fn ours_not(role: Role, reason: Reason) -> Verdict {
    if role != Role::Egress {
        count(reason);
    }
    Verdict::Pass
}

/// Packets of known flows that just go on, and queries, unless those were looked for before; everything else is [`slow`].
#[inline(always)]
pub fn hot<F: Stages, N: Net, const QUERIES: bool>(frame: &mut F, role: Role, l3: usize) -> Verdict {
    let Some(config) = config() else { return Verdict::Pass };
    let packet = match N::parse(frame, l3, frame.is_gso()) {
        Parsed::Packet(packet) => packet,
        Parsed::Pass(reason) => return ours_not(role, reason),
        _ => return Verdict::Other,
    };
    if QUERIES && role == Role::Uplink && packet.key.dport == DNS_PORT {
        return Verdict::Query;
    }
    match flows::find::<N>(role, &packet) {
        Found::Flow(flow, hop) => {
            let clamped = config.mss_clamp != 0 && packet.flags & tcp::SYN != 0;
            if !clamped && let Some(verdict) = send::known::<F, N>(frame, config, role, &packet, flow, hop) {
                return verdict;
            }
        }
        // What may be a reply whose record is lost is looked into; everything else passes at once.
        Found::Miss if role == Role::Cluster && !flows::may_be_reply::<N>(config, &packet) => {
            return ours_not(role, Reason::NotOurs);
        }
        Found::Miss => return Verdict::Lost,
        _ => {}
    }
    Verdict::Slow
}

/// TCP and UDP packets for which something is to be done: flows that begin, move or end, refusals, errors.
#[inline(always)]
pub fn slow<F: Stages, N: Net>(frame: &mut F, role: Role, l3: usize) -> Verdict {
    let Some(config) = config() else { return Verdict::Pass };
    match N::parse(frame, l3, frame.is_gso()) {
        Parsed::Packet(packet) => carry::<F, N>(frame, config, role, &packet, false),
        _ => Verdict::Pass,
    }
}

/// A packet or fragment with a tuple.
#[inline(always)]
fn carry<F: Stages, N: Net>(
    frame: &mut F,
    config: &Config,
    role: Role,
    packet: &Packet<N::Addr>,
    cut: bool,
) -> Verdict {
    match flows::find::<N>(role, packet) {
        Found::Flow(flow, hop) => send::carefully::<F, N>(frame, config, role, packet, (flow, hop), cut),
        Found::Gone if packet.later => discard(Reason::Fragment),
        Found::Gone => reject::gone::<F, N>(frame, config, packet),
        Found::Miss => Verdict::Lost,
        Found::Moved if role != Role::Uplink => ours_not(role, Reason::NotOurs),
        Found::Moved if packet.later => odd::<N>(config, &packet.whole(), Reason::Fragment),
        Found::Moved => {
            count(Reason::FlowMoved);
            Verdict::Begin
        }
    }
}

/// A packet without a record: the other direction's may still be there, and then this one is rebuilt and the packet goes on. Else a
/// client's begins a flow, and others are not the gateway's.
#[inline(always)]
pub fn lost<F: Stages, N: Net>(frame: &mut F, role: Role, l3: usize) -> Verdict {
    let Some(config) = config() else { return Verdict::Pass };
    let (parsed, next) = match N::parse(frame, l3, frame.is_gso()) {
        Parsed::Fragment(fragment) if fragment.offset == 0 => (parse::first(frame, &fragment), Verdict::Cut),
        Parsed::Fragment(fragment) => match fragments::packet::<N>(config, &fragment) {
            Some(packet) => (Parsed::Packet(packet), Verdict::Cut),
            None => return ours_not(role, Reason::NotOurs),
        },
        parsed => (parsed, Verdict::Slow),
    };
    let Parsed::Packet(packet) = parsed else { return Verdict::Pass };
    // A client's first segment may meet what is left of an earlier conversation; it never goes on with one.
    let opens = role == Role::Uplink && packet.key.proto == TCP && packet.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    // The node's own packets are many, and replies of its sockets to clients few.
    let foreign = role == Role::Egress && services::view::<N>(&packet.key.dst).is_none();
    if !opens && !foreign && flows::restore::<N>(&packet) {
        return next;
    }
    match role {
        Role::Uplink if packet.later => odd::<N>(config, &packet.whole(), Reason::Fragment),
        Role::Uplink => Verdict::Begin,
        _ => ours_not(role, Reason::NotOurs),
    }
}

/// A client's packet or first fragment without a flow: begins one, or says why not. The stage that it came from is next.
#[inline(always)]
pub fn begin<F: Stages, N: Net>(frame: &mut F, l3: usize) -> Verdict {
    let Some(config) = config() else { return Verdict::Pass };
    let (parsed, next) = match N::parse(frame, l3, frame.is_gso()) {
        Parsed::Fragment(fragment) => (parse::first(frame, &fragment), Verdict::AttemptCut),
        parsed => (parsed, Verdict::Attempt),
    };
    let Parsed::Packet(packet) = parsed else { return Verdict::Pass };
    match services::begin::<F, N>(frame, config, &packet) {
        Begun::Flow => next,
        Begun::Verdict(verdict) => verdict,
    }
}

/// A client's packet to port 53: answered here, or [`slow`] is next as for any other packet. `PLAIN`: it may be something else, as it
/// was only looked at from afar, and nobody else looks for queries in it.
#[inline(always)]
pub fn question<F: Stages, N: Net, const PLAIN: bool>(frame: &mut F, l3: usize) -> Verdict {
    let Some(config) = config() else { return Verdict::Pass };
    match N::parse(frame, l3, frame.is_gso()) {
        Parsed::Packet(packet) => query::<F, N, PLAIN>(frame, config, &packet).unwrap_or(Verdict::Slow),
        Parsed::Pass(reason) => pass(reason),
        _ => Verdict::Other,
    }
}

/// To port 53: answered here, or `None` to go on as any other packet.
#[inline(always)]
fn query<F: Stages, N: Net, const PLAIN: bool>(
    frame: &mut F,
    config: &Config,
    packet: &Packet<N::Addr>,
) -> Option<Verdict> {
    let own = services::is_dns_address::<N>(config, &packet.key.dst);
    if !own && !(packet.key.proto == UDP && services::has::<N>(packet, service::DNS)) {
        return None;
    }
    let Some(view) = services::view::<N>(&packet.key.src) else { return Some(services::stranger(config)) };
    if packet.key.proto == TCP || config.flags & config::DNS == 0 {
        return if own { Some(pass(Reason::NotOurs)) } else { None };
    }
    if !own && !services::visible::<N>(packet, view) {
        return None;
    }
    let outcome =
        if PLAIN { dns::plain::<F, N>(frame, view, false) } else { dns::stage(frame, packet.l3 as u32, view) };
    told(frame, outcome, own)
}

/// What [`dns::usual`] found no entry for, in an untagged frame: answered if the zone says that there is none.
#[inline(always)]
pub fn missed<F: Frame, N: Net>(frame: &mut F) -> Verdict {
    let Some([view, own]) = dns::usual::left() else { return Verdict::Pass };
    let outcome = dns::plain::<F, N>(frame, view, true);
    told(frame, outcome, own != 0).unwrap_or(Verdict::Slow)
}

/// What becomes of a query; `None`: it goes on as any other packet. `own`: it was sent to an address of the gateway's own.
#[inline(always)]
fn told<F: Frame>(frame: &F, outcome: Outcome, own: bool) -> Option<Verdict> {
    match outcome {
        Outcome::Answered => Some(send::back(frame)),
        Outcome::Forwarder if own => Some(Verdict::Pass),
        Outcome::Forwarder => None,
        Outcome::Tc => Some(Verdict::Pass),
        Outcome::Lost => Some(Verdict::Drop),
    }
}

/// Everything that is neither a whole TCP segment nor a whole UDP datagram.
#[inline(always)]
pub fn other<F: Stages, N: Net>(frame: &mut F, role: Role, l3: usize) -> Verdict {
    let Some(config) = config() else { return Verdict::Pass };
    match N::parse(frame, l3, frame.is_gso()) {
        Parsed::Fragment(fragment) if fragment.other.proto == N::ICMP => pinged::<F, N>(frame, config, role, &fragment),
        Parsed::Fragment(_) => Verdict::Cut,
        Parsed::Other(other) if other.proto == N::ICMP => icmp::<F, N>(frame, config, role, &other),
        Parsed::Other(other) if role == Role::Uplink => foreign::<N>(config, &other),
        Parsed::Odd(other, reason) if role == Role::Uplink => odd::<N>(config, &other, reason),
        Parsed::Odd(..) => ours_not(role, Reason::Unparsed),
        Parsed::Pass(reason) => ours_not(role, reason),
        Parsed::Other(_) | Parsed::Packet(_) => ours_not(role, Reason::NotOurs),
    }
}

/// Something no flow can be made of: dropped when it is meant for us.
#[inline(always)]
fn odd<N: Net>(config: &Config, other: &Other<N::Addr>, reason: Reason) -> Verdict {
    match services::access::<N>(&other.src, &other.dst) {
        Access::Unclaimed => pass(Reason::Unparsed),
        Access::Stranger => services::stranger(config),
        Access::View(_) => discard(reason),
    }
}

/// A protocol that the gateway does not carry.
#[inline(always)]
fn foreign<N: Net>(config: &Config, other: &Other<N::Addr>) -> Verdict {
    match services::reach::<N>(config, other) {
        Err(verdict) => verdict,
        Ok(Err((Some(error), reason))) => reject::with(error, reason),
        Ok(Err((None, reason))) => discard(reason),
        Ok(Ok(_)) => reject::with(Error::PROTOCOL_UNREACHABLE, Reason::UnknownProtocol),
    }
}

/// ICMP: errors about flows, echo requests to VIPs.
#[inline(never)]
fn icmp<F: Stages, N: Net>(frame: &mut F, config: &Config, role: Role, other: &Other<N::Addr>) -> Verdict {
    if (other.total as usize) < other.l4 - other.l3 + ICMP_LEN {
        return if role == Role::Uplink {
            odd::<N>(config, other, Reason::Malformed)
        } else {
            ours_not(role, Reason::Unparsed)
        };
    }
    let Some(icmp) = frame.get::<Icmp>(other.l4) else { return ours_not(role, Reason::Unparsed) };
    // A redirect is about the way of whoever sent the packet, which is the gateway: the client knows none of the routers it names.
    let error = if N::VERSION == 4 { matches!(icmp.kind, 3 | 4 | 11 | 12) } else { icmp.kind < 128 };
    if error {
        return Verdict::Relay;
    }
    if role != Role::Uplink {
        return ours_not(role, Reason::NotOurs);
    }
    if echo::is_request::<N>(icmp.kind) {
        return echo::answer::<F, N>(frame, config, other, true);
    }
    odd::<N>(config, other, Reason::IcmpIgnored)
}

/// A fragment: the first tells the tuple, later ones follow it.
#[inline(always)]
pub fn cut<F: Stages, N: Net>(frame: &mut F, role: Role, l3: usize) -> Verdict {
    let Some(config) = config() else { return Verdict::Pass };
    let Parsed::Fragment(fragment) = N::parse(frame, l3, false) else { return Verdict::Pass };
    let fragment = &fragment;
    let other = &fragment.other;
    if !fragments::note::<N>(fragment) {
        return discard(Reason::HelperFailed);
    }
    if fragment.offset == 0 {
        return match parse::first(frame, fragment) {
            Parsed::Packet(packet) => carry::<F, N>(frame, config, role, &packet, true),
            Parsed::Other(_) if role == Role::Uplink => foreign::<N>(config, other),
            Parsed::Odd(_, reason) if role == Role::Uplink => odd::<N>(config, other, reason),
            _ => ours_not(role, Reason::NotOurs),
        };
    }
    match fragments::packet::<N>(config, fragment) {
        Some(packet) => carry::<F, N>(frame, config, role, &packet, true),
        // Nobody holds what comes before its first fragment. XDP leaves it to TC, where that may have become known.
        None if F::XDP => pass(Reason::FragmentTc),
        None if role == Role::Uplink => odd::<N>(config, other, Reason::Fragment),
        None => ours_not(role, Reason::NotOurs),
    }
}

/// A fragment of a message to a VIP that may be an echo request: each is turned round by itself, and the sender puts the reply together.
#[inline(always)]
fn pinged<F: Stages, N: Net>(frame: &mut F, config: &Config, role: Role, fragment: &Fragment<N::Addr>) -> Verdict {
    if role != Role::Uplink {
        return ours_not(role, Reason::NotOurs);
    }
    let other = &fragment.other;
    let first = fragment.offset == 0;
    if first {
        let request = frame.get::<Icmp>(other.l4).is_some_and(|icmp| echo::is_request::<N>(icmp.kind));
        if !request || (other.total as usize) < other.l4 - other.l3 + ICMP_LEN {
            return odd::<N>(config, other, Reason::Fragment);
        }
    }
    echo::answer::<F, N>(frame, config, other, first)
}

/// Ticks a second, for the stages.
#[inline(always)]
pub fn hz(config: &Config) -> u64 {
    u64::from(settings::hz(config))
}
