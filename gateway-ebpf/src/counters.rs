//! One counter a reason, per CPU.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use gateway_common::Reason;

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNT, 0);

/// Counts one packet.
#[inline(always)]
pub fn count(reason: Reason) {
    count_number(reason as u32);
}

/// Counts one packet for the reason with that number.
#[inline(always)]
pub fn count_number(reason: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason) {
        // SAFETY: the pointer is to this CPU's own slot of the map.
        unsafe { *counter += 1 }
    }
}
