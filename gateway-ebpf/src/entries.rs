//! The programs.

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::{classifier, map, xdp},
    maps::Array,
    programs::{TcContext, XdpContext},
};

use crate::{
    bare,
    frame::{Tc, Xdp},
    path::{Role, Verdict, handle},
};

/// Two clocks read together: `bpf_jiffies64`, then `CLOCK_MONOTONIC` in ns.
#[map]
static CLOCK: Array<u64> = Array::with_max_entries(2, 0);

/// Ingress of uplinks.
#[xdp]
pub fn xdp_uplink(ctx: XdpContext) -> u32 {
    xdp(&ctx, Role::Uplink)
}

/// Ingress of the cluster side.
#[xdp]
pub fn xdp_cluster(ctx: XdpContext) -> u32 {
    xdp(&ctx, Role::Cluster)
}

/// Ingress of uplinks, behind XDP or alone.
#[classifier]
pub fn tc_uplink(ctx: TcContext) -> i32 {
    tc(&ctx, Role::Uplink)
}

/// Ingress of the cluster side, behind XDP or alone.
#[classifier]
pub fn tc_cluster(ctx: TcContext) -> i32 {
    tc(&ctx, Role::Cluster)
}

/// Egress of uplinks.
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    tc(&ctx, Role::Egress)
}

/// [`tc_uplink`] of a device whose packets have no link-layer header: WireGuard, IPIP, a tun.
#[classifier]
pub fn tc_uplink_bare(ctx: TcContext) -> i32 {
    action(bare::arriving(&mut Tc::<false>::new(ctx.skb.skb), Role::Uplink))
}

/// [`tc_cluster`] of such a device.
#[classifier]
pub fn tc_cluster_bare(ctx: TcContext) -> i32 {
    action(bare::arriving(&mut Tc::<false>::new(ctx.skb.skb), Role::Cluster))
}

/// [`tc_egress`] of such a device.
#[classifier]
pub fn tc_egress_bare(ctx: TcContext) -> i32 {
    action(bare::leaving(&mut Tc::<false>::new(ctx.skb.skb)))
}

/// Reads the clocks for the agent, which runs this once in a while and learns how fast one ticks.
#[xdp]
pub fn clock(_ctx: XdpContext) -> u32 {
    // SAFETY: both helpers read kernel variables.
    let (jiffies, ns) = unsafe { (bpf_jiffies64(), bpf_ktime_get_ns()) };
    for (index, value) in [(0, jiffies), (1, ns)] {
        if let Some(slot) = CLOCK.get_ptr_mut(index) {
            // SAFETY: the element lives as long as the program, and only the agent's own run writes it.
            unsafe { *slot = value };
        }
    }
    xdp_action::XDP_DROP
}

/// Does nothing: what every other program's cost is compared with.
#[xdp]
pub fn empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

#[inline(always)]
fn xdp(ctx: &XdpContext, role: Role) -> u32 {
    match handle(&mut Xdp::<false>::new(ctx.ctx), role) {
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Redirect => xdp_action::XDP_REDIRECT,
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn tc(ctx: &TcContext, role: Role) -> i32 {
    let mut frame = Tc::<false>::new(ctx.skb.skb);
    if frame.is_tagged() {
        return TC_ACT_UNSPEC;
    }
    action(handle(&mut frame, role))
}

#[inline(always)]
fn action(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Drop => TC_ACT_SHOT as i32,
        Verdict::Redirect => TC_ACT_REDIRECT as i32,
        // "Unspecified" lets other programs of the same hook look at the packet too.
        _ => TC_ACT_UNSPEC,
    }
}
