//! Answers that are neither of the cluster nor learnt: what a zone rule leads elsewhere, and the apex of `local`.

use std::{net::IpAddr, sync::Arc};

use gateway_common::dns::{
    emit::{Request, Sending},
    wire,
};

use super::{Found, Inner, Zone};
use crate::dns::{learn::Rr, rules::Action};

/// The top-level name that multicast DNS claims (RFC 6762 section 3).
const LOCAL: &[u8] = b"\x05local\x00";

impl Zone {
    /// The alias that a rule makes of a name, when it is to be followed: a question for CNAME, or for anything, is not.
    pub fn redirected(&self, request: &Request, action: &Action, any: bool) -> Option<Rr> {
        let Action::Alias(target) = action else { return None };
        let follow = !any && request.query.qtype != wire::CNAME;
        follow.then(|| self.read().answers.cname(request.name(), target))
    }

    /// What a rule for `zone` says about a name, and its response code; `None`: nothing, or it cannot be said.
    pub fn redirect(&self, request: &Request, zone: &[u8], action: &Action, any: bool) -> Option<(Vec<u8>, u16)> {
        let inner = self.read();
        let (name, qtype) = (request.name(), request.query.qtype);
        let family = |addr: &IpAddr| qtype == if addr.is_ipv4() { wire::A } else { wire::AAAA };
        let answer = match action {
            _ if any => Some(inner.answers.minimal_any(name)?),
            Action::Alias(target) if qtype == wire::CNAME => Some(inner.answers.alias(name, target)?),
            Action::Addresses(all) if all.iter().any(family) => {
                Some(inner.answers.addresses(name, all.iter().copied().filter(family))?)
            }
            Action::Addresses(_) => None,
            _ => return None,
        };
        let message = match answer {
            Some(answer) => request.emit(&answer, &Sending::tcp(0, 0)),
            // Without the zone's SOA nobody keeps it; that is all.
            None => inner.answers.zone(zone).map_or_else(
                |_too_long| request.emit_empty(wire::NOERROR),
                |zone| request.emit_negative(&zone, wire::NOERROR, usize::from(u16::MAX)),
            ),
        };
        Some((message, wire::NOERROR))
    }
}

impl Inner {
    /// A name outside: of `local` there is the apex, so that clients see that somebody answers for it; nothing is said of what is
    /// below it.
    pub(super) fn find_local(&self, name: &[u8], qtype: u16, any: bool) -> Found {
        if !self.local || name != LOCAL {
            return Found::Elsewhere;
        }
        match (qtype, self.answers.zone(LOCAL)) {
            _ if any => super::found(self.answers.minimal_any(LOCAL)),
            (wire::SOA, _) => super::found(self.answers.soa_of(LOCAL)),
            (_, Ok(zone)) => Found::Negative(Arc::new(zone), wire::NOERROR),
            (_, Err(_)) => Found::Elsewhere,
        }
    }
}
