//! Packets of devices without a link layer, whose first byte is the IP header's: WireGuard, IPIP, GRE, a tun. TC alone sees them.
//!
//! What arrives and may be the gateway's gets an empty Ethernet header, and is a frame like any other from then on; the helpers that
//! redirect take it off again. Everything else passes as it is: the programs behind this one expect no such header. What leaves is looked
//! at where it is, as only replies of this node's own sockets are of interest, and these are translated in place.

use aya_ebpf::bindings::__sk_buff;
use gateway_common::{
    Reason,
    net::{
        Bytes,
        family::{V4, V6},
        headers::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet},
    },
};

use crate::{
    frame::{Frame, REFUSED, Tc},
    net::Net,
    path::{self, Role, Verdict, discard, pass},
    services,
    settings::config,
    stage::Stages,
};

/// A packet that has come by such a device.
#[inline(always)]
pub fn arriving(frame: &mut Tc<false>, role: Role) -> Verdict {
    let kind = frame.protocol();
    let ctx = frame.context().cast();
    let ours = match kind {
        ETHERTYPE_IPV4 => gateway_tc_concerns4(ctx),
        ETHERTYPE_IPV6 => gateway_tc_concerns6(ctx),
        _ => 0,
    };
    if ours == 0 {
        return pass(Reason::NotOurs);
    }
    if frame.prepend(ETH_LEN as u32).is_err() || !frame.linear(ETH_LEN) {
        return discard(REFUSED);
    }
    let Some(eth) = frame.at::<Ethernet>(0) else { return discard(REFUSED) };
    *eth = Ethernet { dst: [0; 6], src: [0; 6], kind };
    path::handle(frame, role)
}

/// A packet that is about to leave by such a device.
#[inline(always)]
pub fn leaving(frame: &mut Tc<false>) -> Verdict {
    if !frame.linear_headers() {
        return Verdict::Pass;
    }
    match frame.protocol() {
        ETHERTYPE_IPV4 => {
            let first = frame.known::<V4>(0, Role::Egress);
            path::drive::<_, V4>(frame, Role::Egress, 0, first)
        }
        ETHERTYPE_IPV6 => {
            let first = frame.known::<V6>(0, Role::Egress);
            path::drive::<_, V6>(frame, Role::Egress, 0, first)
        }
        _ => Verdict::Pass,
    }
}

/// Whether a packet may be the gateway's: to a Service, to a source address or a name server of the gateway, or to a client.
#[inline(always)]
fn concerns<N: Net>(frame: &mut Tc<true>) -> bool {
    let Some(config) = config() else { return false };
    if !frame.linear_headers() {
        return false;
    }
    // The destination is the last field of either header.
    let Some(dst) = frame.get::<N::Addr>(N::LEN - size_of::<N::Addr>()).copied() else { return false };
    services::is_claimed::<N>(&dst)
        || services::is_dns_address::<N>(config, &dst)
        || services::is_source_address::<N>(config, &dst)
        || services::view::<N>(&dst).is_some()
}

#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_tc_concerns4(ctx: *mut __sk_buff) -> u32 {
    u32::from(concerns::<V4>(&mut Tc::<true>::new(ctx)))
}

#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_tc_concerns6(ctx: *mut __sk_buff) -> u32 {
    u32::from(concerns::<V6>(&mut Tc::<true>::new(ctx)))
}
