//! Queries answered in the kernel: the message out of the frame, the answer ([`answer`]) into it.

mod answer;
mod header;
mod limit;
mod log;
pub mod usual;

use core::{
    hint::black_box,
    mem::{offset_of, size_of},
};

use answer::{ANSWERED, OUT_MASK, Scratch, answer, gateway_dns_answer, gateway_dns_slip};
use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::bpf_l4_csum_replace,
};
use gateway_common::{
    Reason,
    dns::{limit::Verdict, question::Window, wire},
    net::{
        checksum::fold,
        family::Family,
        headers::{ETH_LEN, UDP_LEN, Udp},
    },
};
use header::{Asked, Dns, Head4, Head6, Header, udp_check};

use crate::{
    counters::count_number,
    frame::{Frame, Tc, Xdp},
};

/// Where an IP header may begin: behind up to two VLAN tags.
const MAX_L3: usize = ETH_LEN + 8;

/// What became of a query, which is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// Unchanged: the forwarder knows better.
    Forwarder,
    /// The frame is the answer now, from Ethernet to the UDP checksum; it goes back where it came from.
    Answered,
    /// Unchanged: TC can answer it, XDP cannot. It cannot make the frame longer (a veth's frames have as much room behind them as
    /// the sender's buffer had), or the checksum is only a pseudo-header's sum.
    Tc,
    /// The frame is lost: its answer is above the rate, or a helper refused after it was changed.
    Lost,
}

impl Outcome {
    /// Of the number that a global function returned.
    #[inline(always)]
    const fn of(number: u32) -> Self {
        match number {
            n if n == Self::Answered as u32 => Self::Answered,
            n if n == Self::Tc as u32 => Self::Tc,
            n if n == Self::Lost as u32 => Self::Lost,
            _ => Self::Forwarder,
        }
    }
}

/// Answers the UDP query in `frame` for a client of that view, or leaves it. `l3`: where its IP header begins; IPv4 without options
/// or IPv6 without extension headers, with the UDP header behind it.
#[inline(always)]
pub fn stage<F: Frame>(frame: &F, l3: u32, view: u32) -> Outcome {
    let ctx = frame.context();
    Outcome::of(if F::XDP { gateway_xdp_dns(ctx.cast(), l3, view) } else { gateway_tc_dns(ctx.cast(), l3, view) })
}

/// The stage in XDP.
///
/// A global function, as its twin below: the verifier looks at it by itself and once, whatever led to it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_xdp_dns(ctx: *mut xdp_md, l3: u32, view: u32) -> u32 {
    far(&mut Xdp::<true>::new(ctx), l3, view)
}

/// The stage in TC.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_tc_dns(ctx: *mut __sk_buff, l3: u32, view: u32) -> u32 {
    far(&mut Tc::<true>::new(ctx), l3, view)
}

#[inline(always)]
fn far<F: Frame>(frame: &mut F, l3: u32, view: u32) -> u32 {
    // The mask is for the verifier, which follows it where it loses the comparison; the box keeps it there.
    let l3 = black_box(l3) as usize & 31;
    if l3 < ETH_LEN || l3 > MAX_L3 {
        return Outcome::Forwarder as u32;
    }
    // Two bytes, as the verifier learns nothing from a comparison of one with the frame's end.
    let answered = match frame.get::<[u8; 2]>(l3) {
        Some([version, _]) if version >> 4 == 4 => of_ipv4::<F, false>(frame, l3, view, false),
        Some([version, _]) if version >> 4 == 6 => of_ipv6(frame, l3, view, false),
        _ => Err(UNSUPPORTED),
    };
    counted(answered, view) as u32
}

/// Not answered: what becomes of the frame, and the number of the reason.
type Left = (Outcome, u32);

const fn left(outcome: Outcome, reason: Reason) -> Left {
    (outcome, reason as u32)
}

const UNSUPPORTED: Left = left(Outcome::Forwarder, Reason::DnsUnsupported);
const LOST: Left = left(Outcome::Lost, Reason::HelperFailed);

/// The value at `offset` in the frame, `N` bytes long.
#[inline(always)]
fn head<F: Frame, T, const N: usize>(frame: &mut F, offset: usize) -> Option<*mut T> {
    const { assert!(size_of::<T>() == N) };
    frame.at::<[u8; N]>(offset).map(|bytes| bytes.as_mut_ptr().cast())
}

/// [`stage`] of an untagged frame, as part of the caller. `absent`: as [`answer()`] has it.
#[inline(always)]
pub fn plain<F: Frame, N: Family>(frame: &mut F, view: u32, absent: bool) -> Outcome {
    let answered = match (N::VERSION, F::XDP) {
        (4, true) => of_ipv4::<F, true>(frame, ETH_LEN, view, absent),
        (4, false) => of_ipv4::<F, false>(frame, ETH_LEN, view, absent),
        _ => of_ipv6(frame, ETH_LEN, view, absent),
    };
    counted(answered, view)
}

#[inline(always)]
fn counted(answered: Result<u32, Left>, view: u32) -> Outcome {
    let (outcome, reason) = match answered {
        Ok(reason) => {
            log::answered(view);
            (Outcome::Answered, reason)
        }
        Err(left) => left,
    };
    count_number(reason);
    outcome
}

#[inline(always)]
fn of_ipv4<F: Frame, const INLINE: bool>(frame: &mut F, l3: usize, view: u32, absent: bool) -> Result<u32, Left> {
    of::<F, Head4, { size_of::<Head4>() }, INLINE>(frame, l3, view, absent)
}

#[inline(always)]
fn of_ipv6<F: Frame>(frame: &mut F, l3: usize, view: u32, absent: bool) -> Result<u32, Left> {
    of::<F, Head6, { size_of::<Head6>() }, false>(frame, l3, view, absent)
}

/// `ALL`: bytes of `H`.
#[inline(always)]
fn of<F: Frame, H: Header, const ALL: usize, const INLINE: bool>(
    frame: &mut F,
    l3: usize,
    view: u32,
    absent: bool,
) -> Result<u32, Left> {
    if !frame.linear(l3 + ALL) {
        return Err(UNSUPPORTED);
    }
    let Some(ip) = head::<F, H, ALL>(frame, l3) else { return Err(UNSUPPORTED) };
    // SAFETY: the pointer was checked against the frame's end.
    let Some(asked) = (unsafe { H::asked(ip) }) else { return Err(UNSUPPORTED) };
    let (scratch, udp_len, udp_check, reason) = answered::<F, INLINE>(frame, l3 + H::IP, view, absent, &asked)?;
    let Some(ip) = head::<F, H, ALL>(frame, l3) else { return Err(LOST) };
    // SAFETY: as above; the frame is ours.
    unsafe { H::answer(ip, udp_len, udp_check, scratch.header.map(u16::from_ne_bytes)) };
    body(frame, l3 + H::IP + UDP_LEN)?;
    Ok(reason)
}

/// From the query's UDP header at `l4` to an answer in the scratch, and to a frame of its length whose MACs have changed places. UDP
/// length and checksum of the answer, and the number of the reason that it is counted as.
///
/// `INLINE`: the shared code is part of the caller, which saves a call of 9 ns and costs the verifier another look at it; else it is a
/// function of its own.
#[inline(always)]
fn answered<F: Frame, const INLINE: bool>(
    frame: &mut F,
    l4: usize,
    view: u32,
    absent: bool,
    asked: &Asked,
) -> Result<(&'static Scratch, u16, u16, u32), Left> {
    let pseudo = |len: u16| fold(asked.pseudo + u32::from(len.to_be()));
    let mut partial = false;
    if F::XDP {
        // The kernel cannot complete a checksum behind a frame that XDP has changed, and XDP cannot know: it errs on that side.
        if asked.check == pseudo(asked.len) {
            return Err(left(Outcome::Tc, Reason::PartialChecksum));
        }
    } else {
        partial = is_partial(frame, l4 + offset_of!(Udp, check), asked.check.to_ne_bytes());
    }
    let len = u32::from(asked.len).wrapping_sub(UDP_LEN as u32);
    if len == 0 || len > Window::LEN as u32 {
        return Err(UNSUPPORTED);
    }
    let Some(scratch) = Scratch::get() else { return Err(UNSUPPORTED) };
    if limit::is_on() || log::is_on() {
        scratch.source = asked.source;
    }
    let message = l4 + UDP_LEN;
    if load(frame, message, scratch.window.message_mut(), len as usize).is_none() {
        return Err(UNSUPPORTED);
    }
    let found = if INLINE {
        answer(len as usize, view, absent)
    } else {
        match gateway_dns_answer(len, view, u32::from(absent)) {
            number if number & ANSWERED != 0 => Ok(number & !ANSWERED),
            number => Err(number),
        }
    };
    // What is not answered costs its source nothing.
    let reason = found.map_err(|reason| (Outcome::Forwarder, reason))?;
    let reason = match limit::take(view) {
        Verdict::Send => reason,
        Verdict::Slip => gateway_dns_slip(),
        Verdict::Drop => return Err(left(Outcome::Lost, Reason::DnsLimited)),
    };
    let Some(scratch) = Scratch::get() else { return Err(UNSUPPORTED) };
    let opt = if scratch.opt().is_some() { wire::OPT } else { 0 };
    let answer = usize::from(scratch.body_at) + usize::from(scratch.len) + opt;
    let udp_len = (UDP_LEN + answer) as u16;
    let check = if partial { pseudo(udp_len) } else { udp_check(asked, udp_len, scratch.sum) };
    if frame.resize((message + answer) as u32).is_err() {
        limit::give_back(view);
        return Err(if F::XDP { left(Outcome::Tc, Reason::NoRoom) } else { LOST });
    }
    if !frame.linear(l4 + UDP_LEN + size_of::<Dns>()) {
        return Err(LOST);
    }
    turn_macs(frame)?;
    Ok((scratch, udp_len, check, reason))
}

/// Source and destination MAC change places.
#[inline(always)]
fn turn_macs<F: Frame>(frame: &mut F) -> Result<(), Left> {
    let Some(macs) = head::<F, [u32; 3], 12>(frame, 0) else { return Err(LOST) };
    // SAFETY: the pointer was checked against the frame's end, and any bytes are integers.
    unsafe {
        let [a, b, c] = (*macs).map(u32::from_le);
        *macs = [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16].map(u32::to_le);
    }
    Ok(())
}

/// Writes what goes behind the question; `message`: where the answer begins.
#[inline(always)]
fn body<F: Frame>(frame: &mut F, message: usize) -> Result<(), Left> {
    let Some(scratch) = Scratch::get() else { return Err(LOST) };
    // At most 80; for the verifier.
    let at = message + (usize::from(scratch.body_at) & 127);
    let [first, before, onward] = scratch.rotate.map(usize::from);
    let (from, len) = (usize::from(scratch.from), usize::from(scratch.len));
    if F::XDP && before == 0 && len >= 8 && len <= SMALL {
        store_words(frame, at, scratch, from, len)?;
    } else {
        store(frame, at, scratch, from, len)?;
        if before > 0 {
            store(frame, at + first, scratch, first + before, onward)?;
            store(frame, at + first + onward, scratch, first, before)?;
        }
    }
    let Some(scratch) = Scratch::get() else { return Err(LOST) };
    let Some((word, rest)) = scratch.opt() else { return Ok(()) };
    let at = at + (len & OUT_MASK);
    if !F::XDP {
        // SAFETY: both are that long.
        let stored = unsafe {
            frame
                .store(at as u32, (&raw const word).cast(), 8)
                .and_then(|()| frame.store((at + wire::OPT - 4) as u32, (&raw const rest).cast(), 4))
        };
        return stored.map_err(|_| LOST);
    }
    let Some(record) = head::<F, [u8; wire::OPT], { wire::OPT }>(frame, at) else { return Err(LOST) };
    // SAFETY: the pointer was checked against the frame's end for the whole record.
    unsafe {
        record.cast::<u64>().write_unaligned(word);
        record.cast::<u8>().add(wire::OPT - 4).cast::<u32>().write_unaligned(rest);
    }
    Ok(())
}

/// Longest body that is stored a word at a time.
const SMALL: usize = 128;

/// [`store`] of at least one word, without the helper's start.
#[inline(always)]
fn store_words<F: Frame>(frame: &mut F, at: usize, scratch: &mut Scratch, from: usize, len: usize) -> Result<(), Left> {
    let out = scratch.out().as_ptr().wrapping_add(from & 7);
    for i in 0..SMALL / 8 {
        if 8 * i + 8 > len {
            break;
        }
        let Some(word) = head::<F, u64, 8>(frame, at + 8 * i) else { return Err(LOST) };
        // SAFETY: the pointer was checked against the frame's end; the scratch is longer than the loop reaches.
        unsafe { *word = *out.add(8 * i).cast() };
    }
    // In the box, or the compiler, which knows that it changes nothing, leaves the verifier's mask out.
    let last = black_box(len - 8) & (SMALL - 1);
    let Some(word) = head::<F, u64, 8>(frame, at + last) else { return Err(LOST) };
    // SAFETY: as above.
    unsafe { *word = *out.add(last).cast() };
    Ok(())
}

/// Stores `len` bytes of the scratch from `from` on at `at`.
#[inline(always)]
fn store<F: Frame>(frame: &mut F, at: usize, scratch: &mut Scratch, from: usize, len: usize) -> Result<(), Left> {
    let len = len & OUT_MASK;
    if len == 0 {
        return Ok(());
    }
    let from = scratch.out().as_ptr().wrapping_add(from & OUT_MASK);
    // SAFETY: offset and length are each at most half of the scratch.
    unsafe { frame.store(at as u32, from, len as u32) }.map_err(|_| LOST)
}

/// Copies the message of `len` bytes at `at` into the window.
#[inline(always)]
fn load<F: Frame>(frame: &mut F, at: usize, to: *mut u8, len: usize) -> Option<()> {
    if !F::XDP {
        // SAFETY: the caller has seen that the window holds so many bytes.
        return unsafe { frame.load(at as u32, to, len as u32) }.ok();
    }
    // A word at a time: the helper's copy has a start that costs more than a whole query. The words are those that are read later:
    // a processor forwards what was just stored only to a load that lies within one store.
    let last = len.checked_sub(8)?;
    let start = head::<F, u32, 4>(frame, at)?;
    // SAFETY: the pointer was checked against the frame's end, and the window is longer than four bytes.
    unsafe { *to.cast() = *start };
    for i in 0..Window::LEN / 8 {
        if 8 * i + Window::START > last {
            break;
        }
        let word = head::<F, u64, 8>(frame, at + Window::START + 8 * i)?;
        // SAFETY: as above; the window is longer than the loop reaches.
        unsafe { *to.add(Window::START + 8 * i).cast() = *word };
    }
    // The last eight bytes again, some of them for the first time.
    let last = black_box(last) & 0xff;
    let word = head::<F, u64, 8>(frame, at + last)?;
    // SAFETY: as above; the window has room for a word at any position below 256.
    unsafe { *to.add(last).cast() = *word };
    Some(())
}

/// Whether the kernel has still to complete the checksum `check` at `at`.
///
/// Only the kernel knows, and it does not tell. But its helper leaves a partial checksum alone when something other than the
/// pseudo-header changes, and updates a whole one.
#[inline(always)]
fn is_partial<F: Frame>(frame: &mut F, at: usize, check: [u8; 2]) -> bool {
    // SAFETY: TC's context is a buffer's, and the helper checks the offset. With `from` and size zero, `to` is the change itself.
    if unsafe { bpf_l4_csum_replace(frame.context().cast(), at as u32, 0, 1, 0) } != 0 {
        return false;
    }
    let Some(field) = frame.at::<[u8; 2]>(at) else { return false };
    let partial = *field == check;
    *field = check;
    partial
}
