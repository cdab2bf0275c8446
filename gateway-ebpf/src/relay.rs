//! ICMP errors about a flow, from either side: outer and quoted headers become what the other side knows.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use gateway_common::{
    Reason,
    maps::{FlowKey, flow},
    net::{
        checksum::fold,
        family::{Family, V4, V6},
        headers::{FRAGMENT_LEN, ICMP_LEN, Icmp, Ports, TCP, TCP_LEN},
        inner::{self, Inner},
        parse::{Other, Parsed},
    },
};

use crate::{
    counters::count,
    flows,
    frame::REFUSED,
    net::Net,
    path::{Role, Verdict, discard, pass},
    send::{self, Target},
    services::{self, Access},
    stage::Stages,
};

#[map]
static RELAY4: PerCpuArray<Scratch<[u8; 4]>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static RELAY6: PerCpuArray<Scratch<[u8; 16]>> = PerCpuArray::with_max_entries(1, 0);

/// Scratch of one error: the stack is too small for it.
#[repr(C)]
pub struct Scratch<A> {
    other: Other<A>,
    quote: Inner<A>,
    /// The tuple of the other direction, whose record is looked for.
    key: FlowKey<A>,
    /// Whom the error comes from when it leaves.
    from: A,
}

/// The scratch of a family.
pub trait Memory: Family {
    /// One a CPU.
    fn scratch() -> &'static PerCpuArray<Scratch<Self::Addr>>;
}

impl Memory for V4 {
    #[inline(always)]
    fn scratch() -> &'static PerCpuArray<Scratch<[u8; 4]>> {
        &RELAY4
    }
}

impl Memory for V6 {
    #[inline(always)]
    fn scratch() -> &'static PerCpuArray<Scratch<[u8; 16]>> {
        &RELAY6
    }
}

/// Translates and sends the error, or leaves it alone.
#[inline(always)]
pub fn stage<F: Stages, N: Net>(frame: &mut F, role: Role, l3: usize) -> Verdict {
    // The quoted headers: not what was made readable for the packet's own.
    if !frame.linear(l3 + N::LEN + ICMP_LEN + N::LEN + FRAGMENT_LEN + TCP_LEN) {
        return pass(Reason::Unparsed);
    }
    let Some(scratch) = N::scratch().get_ptr_mut(0) else { return Verdict::Pass };
    // SAFETY: the pointer is to this CPU's own slot, which nothing else uses while the program runs.
    let scratch = unsafe { &mut *scratch };
    match N::parse(frame, l3, false) {
        Parsed::Other(other) => scratch.other = other,
        _ => return Verdict::Pass,
    }
    // Offsets are known here, and would be numbers like any others when they were read from the scratch.
    let l4 = l3 + N::LEN;
    match translate::<F, N>(frame, role, (l3, l4), scratch) {
        Some(verdict) => verdict,
        // About nobody's flow.
        None if role != Role::Uplink => Verdict::Pass,
        None => match services::access::<N>(&scratch.other.src, &scratch.other.dst) {
            Access::Unclaimed => pass(Reason::NotOurs),
            Access::Stranger | Access::View(_) => discard(Reason::IcmpIgnored),
        },
    }
}

/// `None`: it is about no flow.
#[inline(always)]
fn translate<F: Stages, N: Net>(
    frame: &mut F,
    role: Role,
    (l3, l4): (usize, usize),
    scratch: &mut Scratch<N::Addr>,
) -> Option<Verdict> {
    let Scratch { other, quote, key, from } = scratch;
    let end = l3 + other.total as usize;
    let inner = l4 + ICMP_LEN;
    *quote = N::quoted(frame, inner, end)?;
    // An error goes to whoever sent the packet it is about.
    if quote.key.src != other.dst {
        return None;
    }
    *key = quote.flipped();
    let (flow, hop) = flows::about::<N>(role, key)?;
    let local = flow.flags & flow::LOCAL != 0;
    if other.ttl <= 1 && !local {
        return Some(discard(Reason::TtlExceeded));
    }
    // What the flow's own peer says comes from what stands for it; what a router says keeps the router's address.
    *from = if other.src == key.src { flow.new_src } else { other.src };
    let to = &flow.new_dst;
    let way = if local {
        None
    } else {
        match send::way::<F, N>(frame, hop, &Target { src: from, dst: to, proto: N::ICMP, len: other.total }) {
            Ok(way) => Some(way),
            Err(send::Stop::Tc(reason)) => return Some(pass(reason)),
            Err(send::Stop::TooBig(_) | send::Stop::No) => return Some(discard(Reason::NoRoute)),
        }
    };
    let edit = inner::edit::<N>(quote, flow, (&other.src, &other.dst), (from, to));
    let outer = fold(N::delta(&other.src, from) + N::delta(&other.dst, to));
    // Read from the scratch it would be a number like any other.
    let cut = N::VERSION == 6 && quote.l4 != inner + N::LEN;
    let inner_l4 = inner + N::LEN + if cut { FRAGMENT_LEN } else { 0 };
    let check_at = inner_l4 + if quote.key.proto == TCP { 16 } else { 6 };
    let mut write = || -> Result<(), Reason> {
        let Some(ip) = frame.at::<N::Header>(l3) else { return Err(REFUSED) };
        N::rewrite(ip, from, to, outer, !local);
        let Some(icmp) = frame.at::<Icmp>(l4) else { return Err(REFUSED) };
        icmp.check = inner::checksum(icmp.check, &edit);
        let Some(ip) = frame.at::<N::Header>(inner) else { return Err(REFUSED) };
        N::requote(ip, &flow.new_dst, &flow.new_src, flow.l3_delta);
        let Some(ports) = frame.at::<Ports>(inner_l4) else { return Err(REFUSED) };
        ports.sport = flow.new_dport;
        ports.dport = flow.new_sport;
        if let Some(check) = edit.check {
            let Some(at) = frame.at::<[u8; 2]>(check_at) else { return Err(REFUSED) };
            *at = check;
        }
        Ok(())
    };
    if let Err(reason) = write() {
        return Some(discard(reason));
    }
    count(Reason::IcmpRelayed);
    Some(match way {
        None => Verdict::Pass,
        Some(way) => send::go::<F, N>(frame, l3, way),
    })
}
