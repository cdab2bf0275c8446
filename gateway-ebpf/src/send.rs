//! Out of the right interface, or up.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
        bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::{bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_redirect_neigh},
    macros::map,
    maps::{Array, PerCpuArray},
};
use gateway_common::{
    Reason,
    limits::capacity,
    maps::{Config, Flow, NextHop, config, flow, nexthop, tcp},
    net::{
        error::Error,
        headers::{
            ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Ethernet, Ports, TAG_LEN, TCP,
            TCP_LEN,
        },
        parse::Packet,
        translate,
    },
};

use crate::{
    counters::count,
    flows, fragments,
    frame::{Frame, REFUSED},
    net::Net,
    path::{Role, Verdict, discard, hz, pass},
    reject, split,
    stage::Stages,
};

#[map]
static NEXTHOPS: Array<NextHop> = Array::with_max_entries(capacity::NEXTHOPS, 0);

/// Scratch: the question to the routes is too large for the stack.
#[map]
static ROUTE: PerCpuArray<[u64; ROUTE_WORDS]> = PerCpuArray::with_max_entries(1, 0);

/// Scratch: the stack takes no writes of words to where its address lies.
#[map]
static NEIGHBOUR: PerCpuArray<bpf_redir_neigh> = PerCpuArray::with_max_entries(1, 0);

const ROUTE_WORDS: usize = size_of::<bpf_fib_lookup>().div_ceil(8);

const AF_INET: u32 = 2;
/// Index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;
const AF_INET6: u32 = 10;
/// An XDP program may send by a next hop that is both.
const READY: u16 = nexthop::RESOLVED | nexthop::XDP;

/// A packet that is to leave.
pub struct Target<'a, A> {
    /// Its source, translated.
    pub src: &'a A,
    /// Its destination, translated.
    pub dst: &'a A,
    /// Its protocol.
    pub proto: u8,
    /// Bytes of the largest IP packet that it will be on the wire.
    pub len: u32,
}

/// How a packet leaves.
#[derive(Clone, Copy)]
pub enum Way {
    /// XDP: by the next hop at this index.
    Frame(u32, &'static NextHop),
    /// TC: by this interface; the kernel resolves and writes the MACs.
    Neighbour(u32, [u8; 16], bool),
    /// TC: by this interface, which has none.
    Bare(u32),
}

/// Why it does not.
#[derive(Clone, Copy)]
pub enum Stop {
    /// It does not fit; this would.
    TooBig(u16),
    /// Nowhere.
    No,
    /// XDP cannot; TC may.
    Tc(Reason),
}

/// A packet of a known flow, when nothing but translating and sending is to be done. `None`: something else is.
#[inline(always)]
pub fn known<F: Stages, N: Net>(
    frame: &mut F,
    config: &Config,
    role: Role,
    packet: &Packet<N::Addr>,
    flow: &'static mut Flow<N::Addr>,
    hop: u32,
) -> Option<Verdict> {
    if F::XDP && frame.is_partial::<N>(packet) {
        return Some(pass(Reason::PartialChecksum));
    }
    if flow.flags & flow::LOCAL != 0 {
        return Some(local::<F, N>(frame, config, role, packet, flow));
    }
    if packet.ttl <= 1 {
        return None;
    }
    let target =
        Target { src: &flow.new_src, dst: &flow.new_dst, proto: packet.key.proto, len: frame.wire_len(packet) };
    match way::<F, N>(frame, hop, &target) {
        Ok(way) => Some(finish::<F, N>(frame, config, packet, flow, way)),
        Err(Stop::Tc(reason)) => Some(pass(reason)),
        Err(Stop::No | Stop::TooBig(_)) => None,
    }
}

/// A packet or fragment of a known flow, with all that may be in its way.
#[inline(always)]
pub fn carefully<F: Stages, N: Net>(
    frame: &mut F,
    config: &Config,
    role: Role,
    packet: &Packet<N::Addr>,
    (flow, hop): (&'static mut Flow<N::Addr>, u32),
    cut: bool,
) -> Verdict {
    // The kernel completes checksums before it makes fragments.
    if F::XDP && !cut && frame.is_partial::<N>(packet) {
        return pass(Reason::PartialChecksum);
    }
    let local = flow.flags & flow::LOCAL != 0;
    let mut pieces = false;
    let mut ready = None;
    if !local {
        if packet.ttl <= 1 {
            return refuse::<N>(packet, Error::TIME_EXCEEDED, Reason::TtlExceeded);
        }
        let target =
            Target { src: &flow.new_src, dst: &flow.new_dst, proto: packet.key.proto, len: frame.wire_len(packet) };
        match way::<F, N>(frame, hop, &target) {
            Ok(way) => ready = Some(way),
            Err(Stop::Tc(reason)) => return pass(reason),
            // As a router says (RFC 1812 section 5.2.7.1), so that a client is told at once.
            Err(Stop::No) => return refuse::<N>(packet, Error::HOST_UNREACHABLE, Reason::NoRoute),
            Err(Stop::TooBig(mtu)) if split::may::<F, N>(frame, packet, cut) && outlet::<F, N>(frame, hop, target) => {
                if !split::plan::<N>(packet, mtu) {
                    return refuse::<N>(packet, Error::too_big(mtu), Reason::TooBig);
                }
                pieces = true;
            }
            Err(Stop::TooBig(mtu)) => {
                return refuse::<N>(packet, Error::too_big(mtu), Reason::TooBig);
            }
        }
    }
    if cut && let Err(reason) = fragments::admit::<N>(packet) {
        return discard(reason);
    }
    if config.mss_clamp != 0 && packet.key.proto == TCP && packet.flags & tcp::SYN != 0 && !packet.later {
        let most = segment::<N>(config, flow, hop);
        if most != 0 {
            frame.clamp(packet.l4, packet.header, most);
        }
    }
    match ready {
        None if pieces => carry::<F, N>(frame, config, packet, flow).map_or_else(discard, |()| Verdict::Split),
        None => local_::<F, N>(frame, config, role, packet, flow),
        Some(way) => finish::<F, N>(frame, config, packet, flow, way),
    }
}

/// Not for later fragments (RFC 1122 section 3.2.2).
#[inline(always)]
fn refuse<N: Net>(packet: &Packet<N::Addr>, error: Error, reason: Reason) -> Verdict {
    if packet.later { discard(reason) } else { reject::with(error, reason) }
}

/// The largest segment for the narrower of both directions' ways; 0: not known.
#[inline(always)]
fn segment<N: Net>(config: &Config, flow: &Flow<N::Addr>, hop: u32) -> u16 {
    if config.mss_clamp != config::MSS_AUTO {
        return config.mss_clamp as u16;
    }
    let mtu = |index| next_hop(index).map_or(u16::MAX, |hop| if hop.mtu == 0 { u16::MAX } else { hop.mtu });
    let there = flows::endpoint(flow.endpoint).map_or(u16::MAX, |endpoint| mtu(endpoint.nexthop));
    let here = mtu(hop);
    let least = if there < here { there } else { here };
    let headers = (N::LEN + TCP_LEN) as u16;
    if least == u16::MAX || least < N::MIN_MTU { 0 } else { least - headers }
}

/// Towards or from a socket of this node: translated, and on its own way.
#[inline(always)]
fn local_<F: Stages, N: Net>(
    frame: &mut F,
    config: &Config,
    role: Role,
    packet: &Packet<N::Addr>,
    flow: &mut Flow<N::Addr>,
) -> Verdict {
    if let Err(reason) = translate::<F, N>(frame, packet, flow, false) {
        return discard(reason);
    }
    let forward = flow.flags & flow::FORWARD != 0;
    flows::touch::<N>(packet, flow, hz(config));
    count(if forward { Reason::Forwarded } else { Reason::Replied });
    if role == Role::Uplink {
        count(Reason::Local);
    }
    Verdict::Pass
}

/// [`local_`], looked at by itself.
#[inline(never)]
fn local<F: Stages, N: Net>(
    frame: &mut F,
    config: &Config,
    role: Role,
    packet: &Packet<N::Addr>,
    flow: &mut Flow<N::Addr>,
) -> Verdict {
    local_::<F, N>(frame, config, role, packet, flow)
}

/// Translates, counts and sends.
#[inline(always)]
fn finish<F: Stages, N: Net>(
    frame: &mut F,
    config: &Config,
    packet: &Packet<N::Addr>,
    flow: &mut Flow<N::Addr>,
    way: Way,
) -> Verdict {
    match carry::<F, N>(frame, config, packet, flow) {
        Ok(()) => go::<F, N>(frame, packet.l3, way),
        Err(reason) => discard(reason),
    }
}

/// Translates and counts.
#[inline(always)]
fn carry<F: Stages, N: Net>(
    frame: &mut F,
    config: &Config,
    packet: &Packet<N::Addr>,
    flow: &mut Flow<N::Addr>,
) -> Result<(), Reason> {
    translate::<F, N>(frame, packet, flow, true)?;
    let forward = flow.flags & flow::FORWARD != 0;
    flows::touch::<N>(packet, flow, hz(config));
    count(if forward { Reason::Forwarded } else { Reason::Replied });
    Ok(())
}

/// Rewrites the headers.
#[inline(always)]
fn translate<F: Frame, N: Net>(
    frame: &mut F,
    packet: &Packet<N::Addr>,
    flow: &Flow<N::Addr>,
    hop: bool,
) -> Result<(), Reason> {
    if !packet.later {
        frame.fix_checksum::<N>(packet, flow)?;
    }
    let Some(ip) = frame.at::<N::Header>(packet.l3) else { return Err(REFUSED) };
    translate::ip::<N>(ip, flow, hop);
    if !packet.later {
        let Some(ports) = frame.at::<Ports>(packet.l4) else { return Err(REFUSED) };
        translate::ports(ports, flow);
    }
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

/// The way of a packet by the next hop at `index`; without one the routes decide.
#[inline(always)]
pub fn way<F: Stages, N: Net>(frame: &F, index: u32, target: &Target<'_, N::Addr>) -> Result<Way, Stop> {
    let Some(hop) = next_hop(index) else {
        // XDP cannot know whether the interface that the routes find takes its frames.
        return if F::XDP { Err(Stop::Tc(Reason::NextHopTc)) } else { routed::<F, N>(frame, target) };
    };
    if hop.ifindex == 0 {
        return Err(Stop::No);
    }
    if F::XDP && hop.flags & (READY | nexthop::NO_L2) != READY {
        return Err(Stop::Tc(Reason::NextHopTc));
    }
    if hop.mtu != 0 && target.len > u32::from(hop.mtu) {
        return Err(if F::XDP { Stop::Tc(Reason::TooBigTc) } else { Stop::TooBig(hop.mtu) });
    }
    Ok(if F::XDP {
        Way::Frame(index, hop)
    } else if hop.flags & nexthop::NO_L2 != 0 {
        Way::Bare(hop.ifindex)
    } else {
        Way::Neighbour(hop.ifindex, hop.via, hop.flags & nexthop::V6 != 0)
    })
}

/// The way that the kernel's routes say.
#[inline(never)]
fn routed<F: Frame, N: Net>(frame: &F, target: &Target<'_, N::Addr>) -> Result<Way, Stop> {
    let Some(scratch) = ROUTE.get_ptr_mut(0) else { return Err(Stop::No) };
    // SAFETY: this CPU's own slot, which nothing else uses while the program runs, is large enough and aligned to 8; the struct is
    // integers and unions of them, and all zero is a value of it.
    let params = unsafe {
        *scratch = [0; ROUTE_WORDS];
        &mut *scratch.cast::<bpf_fib_lookup>()
    };
    params.l4_protocol = target.proto;
    // As a socket of this node would ask: no rule or forwarding switch of the interface it came by has a say. The agent
    // makes sure that the loopback device, at least, may forward.
    params.ifindex = LOOPBACK;
    params.__bindgen_anon_1.tot_len = target.len as u16;
    let (src, dst) = (words(&N::wide(target.src)), words(&N::wide(target.dst)));
    if N::VERSION == 4 {
        params.family = AF_INET as u8;
        params.__bindgen_anon_3.ipv4_src = src[0];
        params.__bindgen_anon_4.ipv4_dst = dst[0];
    } else {
        params.family = AF_INET6 as u8;
        params.__bindgen_anon_3.ipv6_src = src;
        params.__bindgen_anon_4.ipv6_dst = dst;
    }
    let len = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the context and the parameters are valid for the call.
    let ret = unsafe { fib_lookup(frame.context(), &raw mut *params, len, 0) };
    match ret as u32 {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
            // An IPv4 route may go by an IPv6 neighbour.
            let v6 = u32::from(params.family) == AF_INET6;
            let mut all = [0; 4];
            if v6 {
                // SAFETY: every bit pattern of the union is an address: the gateway's or the destination itself.
                all = unsafe { params.__bindgen_anon_4.ipv6_dst };
            } else {
                // SAFETY: as above.
                all[0] = unsafe { params.__bindgen_anon_4.ipv4_dst };
            }
            Ok(Way::Neighbour(params.ifindex, bytemuck::cast(all), v6))
        }
        // SAFETY: the kernel has written the MTU there.
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Err(Stop::TooBig(unsafe { params.__bindgen_anon_1.mtu_result })),
        _ => Err(Stop::No),
    }
}

/// Where and with which MACs a packet of that next hop leaves, told to [`split`]; without a next hop the routes decide. False: not known now.
#[inline(always)]
fn outlet<F: Stages, N: Net>(frame: &F, index: u32, target: Target<'_, N::Addr>) -> bool {
    if index != 0 {
        let Some(hop) = next_hop(index) else { return false };
        split::outlet(hop.ifindex, hop.dst, hop.src);
        return hop.flags & (nexthop::RESOLVED | nexthop::NO_L2) != 0;
    }
    // The length that fits is told already.
    let Ok(Way::Neighbour(ifindex, ..)) = routed::<F, N>(frame, &Target { len: 0, ..target }) else { return false };
    let Some(scratch) = ROUTE.get_ptr(0) else { return false };
    // SAFETY: this CPU's own slot, which `routed` has written, and which every value of the struct fits.
    let params = unsafe { &*scratch.cast::<bpf_fib_lookup>() };
    split::outlet(ifindex, params.dmac, params.smac);
    params.dmac != [0; 6]
}

/// An address as the kernel's structs have it.
#[inline(always)]
fn words(a: &[u8; 16]) -> [u32; 4] {
    bytemuck::cast(*a)
}

/// Sends a translated packet.
#[inline(always)]
pub fn go<F: Stages, N: Net>(frame: &mut F, l3: usize, way: Way) -> Verdict {
    match way {
        // In TC there is no such way; the verifier must not see one.
        Way::Frame(..) if !F::XDP => return discard(REFUSED),
        Way::Frame(index, hop) => {
            if l3 == ETH_LEN && hop.tags[0] == [0; 2] {
                let Some(eth) = frame.at::<[[u8; 4]; 3]>(0) else { return discard(REFUSED) };
                *eth = macs(hop);
                let Some(kind) = frame.at::<[u8; 2]>(ETH_LEN - 2) else { return discard(REFUSED) };
                *kind = N::ETHERTYPE;
            } else if let Err(reason) = frame.leave(l3, index, N::VERSION) {
                return discard(reason);
            }
            redirect(hop.xdp_ifindex);
        }
        Way::Neighbour(ifindex, via, v6) => neighbour(ifindex, &via, v6),
        Way::Bare(ifindex) => redirect(ifindex),
    }
    Verdict::Redirect
}

/// Writes the link-layer header for the next hop at `index` before the IP header at `l3`, with as many tags as it has there.
#[inline(always)]
pub fn leave_tagged<F: Frame>(frame: &mut F, l3: usize, index: u32, version: u8) -> Result<(), Reason> {
    let Some(hop) = next_hop(index) else { return Err(REFUSED) };
    let tags = usize::from(hop.tags[0] != [0; 2]) + usize::from(hop.tags[1] != [0; 2]);
    let len = ETH_LEN + tags * TAG_LEN;
    if len != l3 {
        frame.shift(l3 as i32 - len as i32)?;
    }
    let kind = if version == 4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let outer = match tags {
        0 => kind,
        1 => ETHERTYPE_VLAN,
        _ => hop_kind(hop),
    };
    let Some(eth) = frame.at::<Ethernet>(0) else { return Err(REFUSED) };
    *eth = Ethernet { dst: hop.dst, src: hop.src, kind: outer };
    if tags > 0 {
        let [high, low] = hop.tags[0];
        let [a, b] = if tags > 1 { ETHERTYPE_VLAN } else { kind };
        let Some(tag) = frame.at::<[u8; 4]>(ETH_LEN) else { return Err(REFUSED) };
        *tag = [high, low, a, b];
    }
    if tags > 1 {
        let [high, low] = hop.tags[1];
        let Some(tag) = frame.at::<[u8; 4]>(ETH_LEN + TAG_LEN) else { return Err(REFUSED) };
        *tag = [high, low, kind[0], kind[1]];
    }
    Ok(())
}

/// EtherType of the outer of two tags.
#[inline(always)]
fn hop_kind(hop: &NextHop) -> [u8; 2] {
    if hop.flags & nexthop::SERVICE_TAG != 0 { ETHERTYPE_QINQ } else { ETHERTYPE_VLAN }
}

/// Remembers the interface for when the program has ended; it cannot fail without flags.
#[inline(always)]
pub fn redirect(ifindex: u32) {
    // SAFETY: the helper checks the interface when the frame is sent.
    let _ = unsafe { bpf_redirect(ifindex, 0) };
}

#[inline(always)]
fn neighbour(ifindex: u32, via: &[u8; 16], v6: bool) {
    let all = words(via);
    let Some(params) = NEIGHBOUR.get_ptr_mut(0) else { return };
    let value = bpf_redir_neigh {
        nh_family: if v6 { AF_INET6 } else { AF_INET },
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: all },
    };
    // SAFETY: this CPU's own slot, which nothing else uses while the program runs.
    unsafe { *params = value };
    // SAFETY: the parameters are valid for the call; without flags it cannot fail. Without an address the kernel asks its routes.
    unsafe {
        if all == [0; 4] {
            bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0);
        } else {
            bpf_redirect_neigh(ifindex, params, size_of::<bpf_redir_neigh>() as i32, 0);
        }
    }
}

/// Addresses the frame, whose IP header is at `l3`, to its sender.
#[inline(always)]
pub fn turn_macs<F: Frame>(frame: &mut F, l3: usize) -> Result<(), Reason> {
    if l3 == 0 {
        return Ok(());
    }
    let Some(eth) = frame.at::<Ethernet>(0) else { return Err(REFUSED) };
    core::mem::swap(&mut eth.dst, &mut eth.src);
    Ok(())
}

/// Both addresses of an Ethernet header, as words: of twelve bytes the compiler makes a copy byte by byte.
#[inline(always)]
const fn macs(hop: &NextHop) -> [[u8; 4]; 3] {
    let (dst, src) = (&hop.dst, &hop.src);
    [
        u32::from_ne_bytes([dst[0], dst[1], dst[2], dst[3]]).to_ne_bytes(),
        u32::from_ne_bytes([dst[4], dst[5], src[0], src[1]]).to_ne_bytes(),
        u32::from_ne_bytes([src[2], src[3], src[4], src[5]]).to_ne_bytes(),
    ]
}

/// A frame already addressed to its sender: out of where it came in.
#[inline(always)]
pub fn back<F: Frame>(frame: &F) -> Verdict {
    // An Ethernet header of `bare`, and the device has none: a plain redirect takes off what is before the packet that arrived, which
    // may be a part of the answer by now.
    if !F::XDP && frame.get::<[[u8; 4]; 3]>(0).is_some_and(|macs| *macs == [[0; 4]; 3]) {
        let v6 = frame.get::<[u8; 2]>(ETH_LEN - 2).is_some_and(|kind| *kind == ETHERTYPE_IPV6);
        neighbour(frame.ifindex(), &[0; 16], v6);
    } else {
        redirect(frame.ifindex());
    }
    Verdict::Redirect
}
