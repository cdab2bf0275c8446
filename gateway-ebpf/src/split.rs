//! Packets of IPv4 that are too big for the way out and may be fragmented (RFC 791 section 3.2): cut here, in TC, after they were translated.
//! The kernel's own forwarding would do it, but it takes no packet whose source is an address of this node.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use gateway_common::{
    Reason,
    net::{
        fragments,
        headers::{ETH_LEN, ETHERTYPE_IPV4, Ethernet, IPV4_LEN, Ipv4},
        parse::Packet,
    },
};

use crate::{
    counters::count,
    frame::{Frame, REFUSED},
    net::Net,
    path::{Verdict, discard},
    send,
    stage::Stages,
};

/// Most bytes behind the IP header of a packet that is cut: more than the largest frame of any network has.
const MOST: usize = 10_240;
/// Most fragments that one packet becomes.
const PIECES: u32 = 64;

/// What the stage is told by [`plan`].
#[map]
static PLAN: PerCpuArray<Plan> = PerCpuArray::with_max_entries(1, 0);

/// Scratch: what stands behind the IP header, twice as large as the verifier adds the bounds of offset and length.
#[map]
static WHOLE: PerCpuArray<[u8; 2 * MOST]> = PerCpuArray::with_max_entries(1, 0);

#[repr(C, align(8))]
struct Plan {
    eth: Ethernet,
    header: Ipv4,
    pad: [u8; 2],
    ifindex: u32,
    /// Bytes behind the IP header in all, and in each fragment but the last.
    payload: u32,
    room: u32,
}

#[inline(always)]
fn get() -> Option<&'static mut Plan> {
    // SAFETY: the pointer is to this CPU's own slot, which one function at a time uses while a program runs.
    PLAN.get_ptr_mut(0).map(|plan| unsafe { &mut *plan })
}

/// Whether this tier may cut the packet. `cut`: it is a fragment.
#[inline(always)]
pub fn may<F: Frame, N: Net>(frame: &mut F, packet: &Packet<N::Addr>, cut: bool) -> bool {
    if F::XDP || N::VERSION != 4 || packet.dont_fragment || frame.is_gso() {
        return false;
    }
    // Whoever sends checksums that are not complete yet is on this machine, and learns from an error.
    cut || !frame.is_partial::<N>(packet)
}

/// Where and with which MACs the pieces leave.
#[inline(always)]
pub fn outlet(ifindex: u32, dst: [u8; 6], src: [u8; 6]) {
    let Some(plan) = get() else { return };
    plan.eth = Ethernet { dst, src, kind: ETHERTYPE_IPV4 };
    plan.ifindex = ifindex;
}

/// Plans to cut a packet for a way with that MTU. False: it would be too many pieces.
#[inline(always)]
pub fn plan<N: Net>(packet: &Packet<N::Addr>, mtu: u16) -> bool {
    let Some(plan) = get() else { return false };
    plan.payload = packet.total.wrapping_sub(IPV4_LEN as u32);
    plan.room = fragments::room(mtu);
    plan.room != 0 && plan.payload <= MOST as u32 && plan.payload <= plan.room * PIECES
}

/// Cuts the frame, which is translated, and sends what it becomes.
#[inline(always)]
pub fn stage<F: Stages>(frame: &mut F) -> Verdict {
    let Some(plan) = get() else { return discard(REFUSED) };
    let Some(ip) = frame.get::<Ipv4>(ETH_LEN).copied() else { return discard(REFUSED) };
    plan.header = ip;
    let Some(whole) = WHOLE.get_ptr_mut(0) else { return discard(REFUSED) };
    let len = plan.payload as usize;
    if len > MOST {
        return discard(REFUSED);
    }
    let len = opaque(len);
    if len == 0 {
        return discard(REFUSED);
    }
    // SAFETY: this CPU's own scratch, which is longer than that.
    if unsafe { frame.load((ETH_LEN + IPV4_LEN) as u32, whole.cast(), len as u32) }.is_err() {
        return discard(REFUSED);
    }
    let mut number = 0;
    while number < PIECES {
        match frame.piece(number) {
            NEXT => number += 1,
            LAST => {
                count(Reason::Fragmented);
                return Verdict::Redirect;
            }
            _ => break,
        }
    }
    discard(REFUSED)
}

/// The same number, of which the compiler forgets what it knows, or it makes one comparison of two, of which the verifier learns only one.
#[inline(always)]
fn opaque(mut number: usize) -> usize {
    // SAFETY: a register moved to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    number
}

const NEXT: u32 = 0;
const LAST: u32 = 1;
const LOST: u32 = 2;

/// Makes the frame the fragment of that number and sends it; the last one leaves as the program ends.
#[inline(always)]
pub fn piece<F: Frame>(frame: &mut F, number: u32) -> u32 {
    let (Some(plan), Some(whole)) = (get(), WHOLE.get_ptr_mut(0)) else { return LOST };
    let (payload, room) = (plan.payload as usize, plan.room as usize);
    let at = number as usize * room;
    if at >= payload {
        return LOST;
    }
    let rest = payload - at;
    let last = rest <= room;
    let len = opaque(if last { rest } else { room });
    if len > MOST {
        return LOST;
    }
    let len = opaque(len);
    if len == 0 {
        return LOST;
    }
    let at = opaque(at);
    if at >= MOST {
        return LOST;
    }
    let head = ETH_LEN + IPV4_LEN;
    let cut = || -> Result<(), Reason> {
        frame.resize((head + len) as u32)?;
        if at != 0 {
            // SAFETY: offset and length are both below half of the scratch's length.
            let from = unsafe { whole.cast::<u8>().add(at) };
            // SAFETY: as above.
            unsafe { frame.store(head as u32, from, len as u32)? };
        }
        if !frame.linear(head) {
            return Err(REFUSED);
        }
        let Some(eth) = frame.at::<Ethernet>(0) else { return Err(REFUSED) };
        *eth = plan.eth;
        let Some(ip) = frame.at::<Ipv4>(ETH_LEN) else { return Err(REFUSED) };
        *ip = fragments::header(&plan.header, at as u16, len as u16, last);
        if last { Ok(()) } else { frame.send_copy(plan.ifindex) }
    };
    let mut cut = cut;
    match cut() {
        Ok(()) if last => {
            send::redirect(plan.ifindex);
            LAST
        }
        Ok(()) => NEXT,
        Err(_) => LOST,
    }
}
