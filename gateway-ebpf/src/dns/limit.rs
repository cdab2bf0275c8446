//! How many answers a source prefix gets from the kernel: [`gateway_common::dns::limit`] over a map.

use aya_ebpf::{bindings::BPF_ANY, macros::map, maps::LruHashMap};
use gateway_common::{
    dns::limit::{Limit, Meter, Verdict},
    limits::capacity,
};

use super::answer::Scratch;
use crate::settings::{config, hz, now};

#[map]
static DNS_METERS: LruHashMap<[u32; 4], Meter> = LruHashMap::with_max_entries(capacity::DNS_METERS, 0);

/// The limit; the agent writes it when it loads the object. The verifier knows its value and takes out what is not reached without one.
#[unsafe(no_mangle)]
static DNS_LIMIT: Limit = Limit::OFF;

/// [`DNS_LIMIT`], a field at a time.
macro_rules! field {
    ($name:ident) => {
        // SAFETY: the static is a plain value that lives as long as the program; volatile, as the agent changes it behind the compiler.
        unsafe { (&raw const DNS_LIMIT.$name).read_volatile() }
    };
}

/// Whether there is a limit.
#[inline(always)]
pub fn is_on() -> bool {
    field!(rate) != 0
}

/// Takes the answer to the query in the scratch from its source's meter.
#[inline(always)]
pub fn take(view: u32) -> Verdict {
    if !is_on() {
        return Verdict::Send;
    }
    match gateway_dns_take(view) {
        SLIP => Verdict::Slip,
        DROP => Verdict::Drop,
        _ => Verdict::Send,
    }
}

/// Gives it back: TC answers, and takes it once more.
#[inline(always)]
pub fn give_back(view: u32) {
    if is_on() {
        gateway_dns_give_back(view);
    }
}

const SLIP: u32 = 1;
const DROP: u32 = 2;

/// The limit, and the prefix that the query in the scratch is counted with; `None`: it is not.
#[inline(always)]
fn counted(view: u32) -> Option<(Limit, [u32; 4])> {
    let limit = Limit {
        exempt: field!(exempt),
        rate: field!(rate),
        slip: field!(slip),
        mask6: field!(mask6),
        mask4: field!(mask4),
        pad: 0,
    };
    if !limit.counts(view) {
        return None;
    }
    Some((limit, limit.prefix(Scratch::get()?.source)))
}

/// [`take`]: 0, [`SLIP`] or [`DROP`]. A race with another CPU costs at most an answer too many.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_take(view: u32) -> u32 {
    let (Some((limit, prefix)), Some(config)) = (counted(view), config()) else { return 0 };
    let (now, hz) = (now(), hz(config));
    let verdict = match DNS_METERS.get_ptr_mut(prefix) {
        // SAFETY: elements of a preallocated map stay mapped while the program runs, and every bytes are a meter.
        Some(meter) => limit.take(unsafe { &mut *meter }, now, hz),
        None => {
            let mut meter = limit.full(now, hz);
            let verdict = limit.take(&mut meter, now, hz);
            let _ = DNS_METERS.insert(prefix, meter, u64::from(BPF_ANY));
            verdict
        }
    };
    match verdict {
        Verdict::Send => 0,
        Verdict::Slip => SLIP,
        Verdict::Drop => DROP,
    }
}

/// [`give_back`]; 0.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_give_back(view: u32) -> u32 {
    if let (Some((limit, prefix)), Some(config)) = (counted(view), config())
        && let Some(meter) = DNS_METERS.get_ptr_mut(prefix)
    {
        // SAFETY: as in `gateway_dns_take`.
        limit.give_back(unsafe { &mut *meter }, hz(config));
    }
    0
}
