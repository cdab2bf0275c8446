//! What the agent has decided for all packets.

use aya_ebpf::{helpers::bpf_jiffies64, macros::map, maps::Array};
use gateway_common::maps::Config;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Ticks a second until the agent has measured them: Debian's and most distributions' choice.
const USUAL_HZ: u32 = 250;

/// The config; absent only in theory.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get_ptr(0).map(|config| {
        // SAFETY: element 0 of an array map lives as long as the program. The agent replaces it as a whole; every field
        // is a plain integer, so a reader at worst sees some old and some new settings for one packet.
        unsafe { &*config }
    })
}

/// Ticks of [`now`] a second.
#[inline(always)]
pub fn hz(config: &Config) -> u32 {
    if config.hz == 0 { USUAL_HZ } else { config.hz }
}

/// The clock of flows and buckets.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper reads a kernel variable.
    unsafe { bpf_jiffies64() }
}
