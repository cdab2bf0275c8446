//! `CLOCK_MONOTONIC`, the clock that the kernel ages answers by.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns` and its coarse sibling count them.
pub fn now() -> u64 {
    // The clock exists on every kernel that has BPF; zero would only make answers look fresh to a process without it.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(std::time::Duration::ZERO, std::time::Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Seconds as nanoseconds.
pub const fn seconds(seconds: u32) -> u64 {
    seconds as u64 * 1_000_000_000
}
