//! Fragments follow their first one: the ports that only it has are kept for the datagram's lifetime.

use aya_ebpf::{
    bindings::BPF_ANY,
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use gateway_common::{
    Reason,
    limits::capacity,
    maps::{Config, FlowKey, FragmentKey, Fragments},
    net::{
        fragments::{self, Fit},
        parse::{Fragment, Packet},
    },
};

use crate::{
    net::Net,
    path::hz,
    settings::{config, now},
};

#[map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragments> = LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);
/// Scratch: an entry to be inserted is too large for the stack.
#[map]
static FRAGMENTS_DRAFT: PerCpuArray<Fragments> = PerCpuArray::with_max_entries(1, 0);

/// What [`gateway_fragment`] is told.
#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

#[repr(C, align(8))]
struct Work {
    key: FragmentKey,
    range: [u16; 2],
    sport: [u8; 2],
    dport: [u8; 2],
    first: u32,
    last: u32,
}

/// Notes which part of which datagram the frame is, for what follows; not on the stack, which is small.
#[inline(always)]
pub fn note<N: Net>(fragment: &Fragment<N::Addr>) -> bool {
    let Some(work) = work() else { return false };
    let other = &fragment.other;
    work.key.src = N::wide(&other.src);
    work.key.dst = N::wide(&other.dst);
    work.key.id = fragment.id;
    work.key.proto = other.proto;
    work.key.version = N::VERSION;
    work.key.pad = [0; 2];
    let len = other.total.wrapping_sub((other.l4 - other.l3) as u32);
    work.range = fragments::range(fragment.offset, len);
    work.first = u32::from(fragment.offset == 0);
    work.last = u32::from(!fragment.more);
    true
}

#[inline(always)]
fn work() -> Option<&'static mut Work> {
    // SAFETY: the pointer is to this CPU's own slot, which one function at a time uses while a program runs.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

#[inline(always)]
fn get(key: &FragmentKey) -> Option<&'static mut Fragments> {
    // SAFETY: elements of an LRU map are preallocated and stay mapped while the program runs; its fields are plain integers, and a
    // race of two CPUs over one datagram costs at most an overlap that is not noticed.
    FRAGMENTS.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

/// A later fragment with the ports of its first one; `None` when that has not gone through.
#[inline(always)]
pub fn packet<N: Net>(config: &Config, fragment: &Fragment<N::Addr>) -> Option<Packet<N::Addr>> {
    let entry = get(&work()?.key)?;
    if fragments::is_over(entry, now(), hz(config)) {
        return None;
    }
    let other = &fragment.other;
    Some(Packet {
        key: FlowKey::new(other.src, other.dst, entry.sport, entry.dport, other.proto),
        l3: other.l3,
        l4: other.l4,
        total: other.total,
        header: 0,
        ttl: other.ttl,
        flags: 0,
        check: [0; 2],
        dont_fragment: fragment.dont_fragment,
        later: true,
    })
}

/// Takes in the fragment that was noted and is about to be sent on.
#[inline(always)]
pub fn admit<N: Net>(packet: &Packet<N::Addr>) -> Result<(), Reason> {
    let Some(work) = work() else { return Err(Reason::HelperFailed) };
    work.sport = packet.key.sport;
    work.dport = packet.key.dport;
    match gateway_fragment() {
        0 => Ok(()),
        1 => Err(Reason::FragmentOverlap),
        2 => Err(Reason::Fragment),
        _ => Err(Reason::HelperFailed),
    }
}

/// A global function: its loop over what went through is looked at once.
#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_fragment() -> u32 {
    let (Some(config), Some(work)) = (config(), work()) else { return 3 };
    match get(&work.key) {
        Some(entry)
            if !fragments::is_over(entry, now(), hz(config)) && !(work.first != 0 && fragments::is_complete(entry)) =>
        {
            u32::from(fragments::admit(entry, work.range, work.last != 0) != Fit::New)
        }
        // It went away between two looks.
        _ if work.first == 0 => 2,
        _ => {
            let Some(draft) = FRAGMENTS_DRAFT.get_ptr_mut(0) else { return 3 };
            // SAFETY: the pointer is to this CPU's own slot, which nothing else uses while a program runs.
            let draft = unsafe { &mut *draft };
            draft.at = now();
            draft.sport = work.sport;
            draft.dport = work.dport;
            draft.count = 1;
            draft.units = u32::from(work.range[1]);
            // Alone, as IPv6 has it (RFC 6946).
            draft.end = if work.last != 0 { draft.units } else { 0 };
            draft.ranges[0] = work.range;
            if FRAGMENTS.insert(&work.key, &*draft, u64::from(BPF_ANY)).is_err() { 3 } else { 0 }
        }
    }
}
