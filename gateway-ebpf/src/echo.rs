//! Echo requests to a VIP: answered while a Service of that address has an endpoint, in place.

use gateway_common::{
    Reason,
    maps::Config,
    net::{
        checksum::{delta2, update},
        error::Error,
        headers::Icmp,
        parse::Other,
    },
};

use crate::{
    counters::count,
    frame::REFUSED,
    net::Net,
    path::{Verdict, discard},
    reject, send, services,
    stage::Stages,
};

/// TTL of an answer.
const TTL: u8 = 64;

/// Whether an ICMP type is an echo request.
#[inline(always)]
pub const fn is_request<N: Net>(kind: u8) -> bool {
    kind == if N::VERSION == 4 { 8 } else { 128 }
}

/// Answers, or says why not. `head`: the ICMP header is in this fragment.
#[inline(always)]
pub fn answer<F: Stages, N: Net>(frame: &mut F, config: &Config, other: &Other<N::Addr>, head: bool) -> Verdict {
    let refusal = match services::reach::<N>(config, other) {
        Err(verdict) => return verdict,
        Ok(Err(refusal)) => refusal,
        Ok(Ok(endpoints)) if endpoints > 0 => {
            if !reject::granted::<N>(config, &other.src) {
                return discard(Reason::RateLimited);
            }
            return match turn::<F, N>(frame, other, head) {
                Ok(()) => {
                    count(Reason::Echo);
                    send::back(frame)
                }
                Err(reason) => discard(reason),
            };
        }
        Ok(Ok(_)) => (Some(Error::HOST_UNREACHABLE), Reason::NoEndpoint),
    };
    match refusal {
        // Never an error about a fragment but the first (RFC 1122 section 3.2.2).
        (Some(error), reason) if head => reject::with(error, reason),
        (_, reason) => discard(reason),
    }
}

#[inline(always)]
fn turn<F: Stages, N: Net>(frame: &mut F, other: &Other<N::Addr>, head: bool) -> Result<(), Reason> {
    send::turn_macs(frame, other.l3)?;
    let Some(ip) = frame.at::<N::Header>(other.l3) else { return Err(REFUSED) };
    N::turn(ip, TTL);
    if head {
        let Some(icmp) = frame.at::<Icmp>(other.l4) else { return Err(REFUSED) };
        let old = [icmp.kind, icmp.code];
        icmp.kind = if N::VERSION == 4 { 0 } else { 129 };
        icmp.check = update(icmp.check, delta2(old, [icmp.kind, icmp.code]));
    }
    Ok(())
}
