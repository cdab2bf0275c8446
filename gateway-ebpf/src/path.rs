//! One packet's way: parse, DNS, flow, service, send.

use gateway_common::{
    Reason,
    maps::{Config, config, service},
    net::{
        headers::{TCP, UDP},
        parse::{self, Other4, Packet4, Parsed},
    },
};

use crate::{
    counters::count,
    dns::{self, Outcome},
    flows::{self, Found},
    frame::Frame,
    reject, send,
    services::{self, Access, Begun},
    settings::{self, config},
};

/// What becomes of the frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Up: to the next program, the next tier, the node.
    Pass,
    /// Nowhere.
    Drop,
    /// Out of the interface that a redirect helper was told.
    Redirect,
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
pub fn handle<F: Frame>(frame: &mut F, role: Role) -> Verdict {
    if !frame.linear_headers() {
        return pass(Reason::Unparsed);
    }
    let l3 = match parse::ethernet(frame) {
        Ok(l3) => l3,
        Err(reason) => return ours_not(role, reason),
    };
    match parse::ipv4(frame, l3, frame.is_gso()) {
        Parsed::Packet(packet) => carry(frame, role, &packet),
        Parsed::Other(other) if role == Role::Uplink => services::other(frame, &other),
        Parsed::Odd(other, reason) if role == Role::Uplink => odd(&other, reason),
        Parsed::Other(_) => ours_not(role, Reason::NotOurs),
        Parsed::Odd(..) => ours_not(role, Reason::Unparsed),
        Parsed::Pass(reason) => ours_not(role, reason),
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

/// Something no flow can be made of: dropped when it is meant for us.
#[inline(never)]
fn odd(other: &Other4, reason: Reason) -> Verdict {
    let Some(config) = config() else { return Verdict::Pass };
    match services::access(config, other.src, other.dst) {
        Access::Unclaimed => pass(Reason::Unparsed),
        Access::Stranger => services::stranger(config),
        Access::View(_) => discard(reason),
    }
}

/// TCP and UDP.
#[inline(always)]
fn carry<F: Frame>(frame: &mut F, role: Role, packet: &Packet4) -> Verdict {
    let Some(config) = config() else { return Verdict::Pass };
    if role == Role::Uplink
        && packet.key.dport == DNS_PORT
        && let Some(verdict) = query(frame, config, packet)
    {
        return verdict;
    }
    let mut found = flows::find(role, packet);
    if let Found::Miss | Found::Moved = found {
        let moved = matches!(found, Found::Moved);
        if role != Role::Uplink {
            return ours_not(role, Reason::NotOurs);
        }
        match services::begin(frame, config, packet) {
            Begun::Flow => found = flows::find(role, packet),
            Begun::Verdict(verdict) => return verdict,
        }
        if moved {
            count(Reason::FlowMoved);
        }
    }
    match found {
        Found::Flow(flow, hop) => send::known(frame, config, role, packet, flow, hop),
        Found::Gone => reject::gone(frame, config, packet),
        // Begun and lost again: another CPU or the agent removed it. The sender will try again.
        Found::Miss | Found::Moved => discard(Reason::HelperFailed),
    }
}

/// To port 53: answered here, or `None` to go on as any other packet.
#[inline(never)]
fn query<F: Frame>(frame: &mut F, config: &Config, packet: &Packet4) -> Option<Verdict> {
    let own = services::is_dns_address(config, packet.key.dst);
    if !own && !(packet.key.proto == UDP && services::has(packet, service::DNS)) {
        return None;
    }
    let Some(view) = services::view(packet.key.src) else { return Some(services::stranger(config)) };
    if packet.key.proto == TCP || config.flags & config::DNS == 0 {
        return if own { Some(pass(Reason::NotOurs)) } else { None };
    }
    if !own && !services::visible(packet, view) {
        return None;
    }
    match dns::stage(frame, packet.l3 as u32, view) {
        Outcome::Answered => Some(send::back(frame)),
        Outcome::Forwarder if own => Some(Verdict::Pass),
        Outcome::Forwarder => None,
        Outcome::Tc => Some(Verdict::Pass),
        Outcome::Lost => Some(Verdict::Drop),
    }
}

/// Ticks a second, for the stages.
#[inline(always)]
pub fn hz(config: &Config) -> u64 {
    u64::from(settings::hz(config))
}
