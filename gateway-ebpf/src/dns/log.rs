//! The kernel's part of the query log: one ring-buffer write for each answered query that is logged.

use aya_ebpf::{
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::RingBuf,
};
use gateway_common::{
    Reason,
    dns::log::{ALL, Asked, NONE},
    limits::capacity,
};

use super::answer::Scratch;
use crate::counters::count;

#[map]
static DNS_LOG: RingBuf = RingBuf::with_byte_size(capacity::DNS_LOG, 0);

/// The share of answered queries that is logged, as [`gateway_common::dns::log::share`] has it; the agent writes it when it loads the
/// object. The verifier knows its value and takes out what is not reached without a log.
#[unsafe(no_mangle)]
static DNS_LOG_SHARE: u32 = NONE;

/// The share that is logged.
#[inline(always)]
fn share() -> u32 {
    // SAFETY: the static is a plain value that lives as long as the program; volatile, as the agent changes it behind the compiler.
    unsafe { (&raw const DNS_LOG_SHARE).read_volatile() }
}

/// Whether any query is logged.
#[inline(always)]
pub fn is_on() -> bool {
    share() != NONE
}

/// Logs the answered query in the scratch, when it is one that is logged.
#[inline(always)]
pub fn answered(view: u32) {
    let share = share();
    if share == NONE {
        return;
    }
    // SAFETY: the helper takes nothing and gives a number.
    if share != ALL && unsafe { bpf_get_prandom_u32() } >= share {
        return;
    }
    gateway_dns_log(view);
}

/// Writes the query in the scratch to the ring, or counts that it is full; 0.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_log(view: u32) -> u32 {
    let Some(scratch) = Scratch::get() else { return 0 };
    // A query that was answered has a name.
    let _ = scratch.window.fold(usize::from(scratch.query.name_len), &mut scratch.name);
    let Some(mut entry) = DNS_LOG.reserve::<Asked>(0) else {
        count(Reason::DnsLogLost);
        return 0;
    };
    let [high, low] = scratch.header[1];
    entry.write(Asked {
        // SAFETY: the helper reads a clock.
        at: unsafe { bpf_ktime_get_coarse_ns() },
        name: *scratch.name.name_words(),
        source: scratch.source,
        view,
        name_len: scratch.query.name_len,
        qtype: scratch.query.qtype,
        flags: u16::from_be_bytes([high, low]),
        pad: [0; 3],
    });
    entry.submit(0);
    0
}
