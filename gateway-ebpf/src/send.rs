//! Out of the right interface, or up.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
        bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::{bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_redirect_neigh},
    macros::map,
    maps::Array,
};
use gateway_common::{
    Reason,
    limits::capacity,
    maps::{Config, NextHop, flow, nexthop},
    net::{
        error::Error,
        headers::{ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4, Ports},
        parse::Packet4,
        translate::{self, Flow4},
    },
};

use crate::{
    counters::count,
    flows,
    frame::{Frame, REFUSED},
    path::{Role, Verdict, discard, hz, pass},
    reject, services,
};

#[map]
static NEXTHOPS: Array<NextHop> = Array::with_max_entries(capacity::NEXTHOPS, 0);

const AF_INET: u32 = 2;
/// Index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;
const AF_INET6: u32 = 10;

/// Where a packet leaves from TC.
#[derive(Clone, Copy)]
enum Way {
    /// By this interface; the kernel resolves and writes the MACs.
    Neighbour(u32, [u8; 16], bool),
    /// By this interface, which has none.
    Bare(u32),
    /// It does not fit; this would.
    TooBig(u16),
    /// Nowhere.
    Not,
}

/// A packet of a known flow.
#[inline(always)]
pub fn known<F: Frame>(
    frame: &mut F,
    config: &Config,
    role: Role,
    packet: &Packet4,
    flow: &'static mut Flow4,
    hop: u32,
) -> Verdict {
    if F::XDP && frame.is_partial(packet) {
        return pass(Reason::PartialChecksum);
    }
    let forward = flow.flags & flow::FORWARD != 0;
    let done = if forward { Reason::Forwarded } else { Reason::Replied };
    if flow.flags & flow::LOCAL != 0 {
        if let Err(reason) = translate(frame, packet, flow, false) {
            return discard(reason);
        }
        flows::touch(packet, flow, hz(config));
        count(done);
        if role == Role::Uplink {
            count(Reason::Local);
        }
        return Verdict::Pass;
    }
    if packet.ttl <= 1 {
        let whole = services::whole(packet);
        return reject::icmp(frame, config, &whole, Some(packet), (Error::TIME_EXCEEDED, Reason::TtlExceeded));
    }
    if F::XDP { by_xdp(frame, config, packet, flow, hop, done) } else { by_tc(frame, config, packet, flow, hop, done) }
}

/// Translates and sends, when this tier can do it alone.
#[inline(always)]
fn by_xdp<F: Frame>(
    frame: &mut F,
    config: &Config,
    packet: &Packet4,
    flow: &mut Flow4,
    hop: u32,
    done: Reason,
) -> Verdict {
    const READY: u16 = nexthop::RESOLVED | nexthop::XDP;
    // Without a next hop the routes decide, and XDP cannot know whether the interface found takes its frames.
    let Some(hop) = next_hop(hop) else { return pass(Reason::NextHopTc) };
    if hop.ifindex == 0 {
        return discard(Reason::NoRoute);
    }
    if hop.flags & (READY | nexthop::NO_L2) != READY {
        return pass(Reason::NextHopTc);
    }
    if !fits(frame, packet, hop) {
        return pass(Reason::TooBigTc);
    }
    if let Err(reason) = translate(frame, packet, flow, true) {
        return discard(reason);
    }
    flows::touch(packet, flow, hz(config));
    let Some(eth) = frame.at::<Ethernet>(0) else { return discard(REFUSED) };
    *eth = Ethernet { dst: hop.dst, src: hop.src, kind: ETHERTYPE_IPV4 };
    count(done);
    redirect(hop.ifindex);
    Verdict::Redirect
}

/// Translates and sends, wherever the way leads.
#[inline(always)]
fn by_tc<F: Frame>(
    frame: &mut F,
    config: &Config,
    packet: &Packet4,
    flow: &mut Flow4,
    hop: u32,
    done: Reason,
) -> Verdict {
    let way = if hop == 0 { routed(frame, packet, flow) } else { resolved(frame, packet, hop) };
    match way {
        Way::Not => return discard(Reason::NoRoute),
        Way::TooBig(mtu) => {
            let whole = services::whole(packet);
            return reject::icmp(frame, config, &whole, Some(packet), (Error::too_big(mtu), Reason::TooBig));
        }
        Way::Neighbour(..) | Way::Bare(_) => {}
    }
    if let Err(reason) = translate(frame, packet, flow, true) {
        return discard(reason);
    }
    flows::touch(packet, flow, hz(config));
    count(done);
    match way {
        Way::Neighbour(ifindex, via, v6) => neighbour(ifindex, &via, v6),
        Way::Bare(ifindex) => redirect(ifindex),
        Way::TooBig(_) | Way::Not => {}
    }
    Verdict::Redirect
}

/// Rewrites the headers.
#[inline(always)]
fn translate<F: Frame>(frame: &mut F, packet: &Packet4, flow: &Flow4, hop: bool) -> Result<(), Reason> {
    frame.fix_checksum(packet, flow)?;
    let Some(ip) = frame.at::<Ipv4>(F::L3) else { return Err(REFUSED) };
    translate::ipv4(ip, flow, hop);
    let Some(ports) = frame.at::<Ports>(F::L3 + IPV4_LEN) else { return Err(REFUSED) };
    translate::ports(ports, flow);
    Ok(())
}

/// A next hop that the agent has found.
#[inline(always)]
fn next_hop(index: u32) -> Option<&'static NextHop> {
    if index == 0 {
        return None;
    }
    // SAFETY: elements of an array map live as long as the program; the agent's writes change plain bytes.
    NEXTHOPS.get_ptr(index).map(|hop| unsafe { &*hop })
}

#[inline(always)]
fn fits<F: Frame>(frame: &F, packet: &Packet4, hop: &NextHop) -> bool {
    hop.mtu == 0 || frame.wire_len(packet) <= u32::from(hop.mtu)
}

/// The way by that next hop.
#[inline(always)]
fn resolved<F: Frame>(frame: &F, packet: &Packet4, index: u32) -> Way {
    match next_hop(index) {
        None => Way::Not,
        Some(hop) if hop.ifindex == 0 => Way::Not,
        Some(hop) if !fits(frame, packet, hop) => Way::TooBig(hop.mtu),
        Some(hop) if hop.flags & nexthop::NO_L2 != 0 => Way::Bare(hop.ifindex),
        Some(hop) => Way::Neighbour(hop.ifindex, hop.via, hop.flags & nexthop::V6 != 0),
    }
}

/// The way that the kernel's routes say.
#[inline(never)]
fn routed<F: Frame>(frame: &F, packet: &Packet4, flow: &Flow4) -> Way {
    // SAFETY: the struct is integers and unions of them; all zero is a value of it.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    params.family = AF_INET as u8;
    params.l4_protocol = packet.key.proto;
    // As a socket of this node would ask: no rule or forwarding switch of the interface it came by has a say. The agent
    // makes sure that the loopback device, at least, may forward.
    params.ifindex = LOOPBACK;
    params.__bindgen_anon_1.tot_len = frame.wire_len(packet) as u16;
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(flow.new_src);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(flow.new_dst);
    let len = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the context and the parameters are valid for the call.
    let ret = unsafe { fib_lookup(frame.context(), &raw mut params, len, 0) };
    match ret as u32 {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
            // SAFETY: every bit pattern of the union is an address; for IPv4 it is the gateway or the destination itself.
            let via = unsafe { params.__bindgen_anon_4.ipv4_dst }.to_ne_bytes();
            let mut all = [0; 16];
            all[0] = via[0];
            all[1] = via[1];
            all[2] = via[2];
            all[3] = via[3];
            Way::Neighbour(params.ifindex, all, false)
        }
        // SAFETY: the kernel has written the MTU there.
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Way::TooBig(unsafe { params.__bindgen_anon_1.mtu_result }),
        _ => Way::Not,
    }
}

/// Remembers the interface for when the program has ended; it cannot fail without flags.
#[inline(always)]
fn redirect(ifindex: u32) {
    // SAFETY: the helper checks the interface when the frame is sent.
    let _ = unsafe { bpf_redirect(ifindex, 0) };
}

#[inline(always)]
fn neighbour(ifindex: u32, via: &[u8; 16], v6: bool) {
    let word = |i: usize| u32::from_ne_bytes([via[i], via[i + 1], via[i + 2], via[i + 3]]);
    let all = [word(0), word(4), word(8), word(12)];
    let mut params = bpf_redir_neigh {
        nh_family: if v6 { AF_INET6 } else { AF_INET },
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: all },
    };
    // SAFETY: the parameters are valid for the call; without flags it cannot fail. Without an address the kernel asks its routes.
    unsafe {
        if all == [0; 4] {
            bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0);
        } else {
            bpf_redirect_neigh(ifindex, &raw mut params, size_of::<bpf_redir_neigh>() as i32, 0);
        }
    }
}

/// A frame already addressed to its sender: out of where it came in.
#[inline(always)]
pub fn back<F: Frame>(frame: &F) -> Verdict {
    redirect(frame.ifindex());
    Verdict::Redirect
}
