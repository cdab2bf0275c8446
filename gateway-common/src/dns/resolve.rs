//! From a query to what is known about it: the same steps for kernel and forwarder, over their own tables.

use super::question::Query;
use crate::maps::{DnsEntry, Zone, dns_entry, dns_key};

const SECOND: u64 = 1_000_000_000;

/// What a table holds: an entry's head, wherever its body is.
pub trait Entry {
    /// The head.
    fn head(&self) -> &DnsEntry;
}

impl Entry for &DnsEntry {
    #[inline(always)]
    fn head(&self) -> &DnsEntry {
        self
    }
}

/// The tables, seen from one query: its name is the look-up's.
pub trait Lookup {
    /// An entry found.
    type Entry: Entry;
    /// A zone found.
    type Zone: core::ops::Deref<Target = Zone>;
    /// The entry of the query's name for that type and those [`dns_key`] bits.
    fn entry(&mut self, qtype: u16, bits: u8) -> Option<Self::Entry>;
    /// The longest zone that the query's name is in.
    fn zone(&mut self) -> Option<Self::Zone>;
    /// `CLOCK_MONOTONIC` in ns, rather late than early. Asked only for entries that age.
    fn now(&mut self) -> u64;
}

/// What is known about a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<E, Z> {
    /// This entry answers it; its TTLs have aged by so many seconds.
    Answer(E, u32),
    /// The name exists in this zone, the type does not.
    NoData(Z),
    /// The name does not exist in this zone.
    NxDomain(Z),
    /// Nothing is known.
    Miss,
    /// An entry is there that has expired.
    Expired,
}

/// Resolves a query for a client of view `view`.
///
/// Zone data first, whatever DO and CD the query has; then what was learnt for exactly these bits; then what a complete
/// zone's silence says. An entry that the view may not see counts as absent.
#[inline(always)]
pub fn resolve<L: Lookup>(tables: &mut L, query: &Query, view: u32) -> Outcome<L::Entry, L::Zone> {
    let mut found = None;
    if let Some(entry) = tables.entry(query.qtype, 0)
        && visible(entry.head(), view)
        && (query.bits == 0 || entry.head().flags & dns_entry::ZONE != 0)
    {
        found = Some(entry);
    }
    if found.is_none()
        && query.bits != 0
        && let Some(entry) = tables.entry(query.qtype, query.bits)
        && visible(entry.head(), view)
    {
        found = Some(entry);
    }
    if let Some(entry) = found {
        let head = entry.head();
        if head.expires == 0 {
            return Outcome::Answer(entry, 0);
        }
        let (stored, expires) = (head.stored, head.expires);
        let now = tables.now();
        if now >= expires {
            return Outcome::Expired;
        }
        return Outcome::Answer(entry, age(stored, now));
    }
    let Some(zone) = tables.zone() else { return Outcome::Miss };
    if zone.complete == 0 {
        return Outcome::Miss;
    }
    match tables.entry(dns_key::EXISTS, 0) {
        Some(entry) if visible(entry.head(), view) => {
            if entry.head().flags & dns_entry::ALIAS != 0 {
                Outcome::Miss
            } else {
                Outcome::NoData(zone)
            }
        }
        _ => Outcome::NxDomain(zone),
    }
}

/// For so long an answer is as its server gave it, in ns: a tick of the coarse clock, which the kernel reads as late as it may be, and
/// another one.
const FRESH: u64 = 20_000_000;

/// Seconds by which what was stored at `stored` has aged at `now`: begun ones count, so that no TTL promises more than is left.
#[inline(always)]
pub const fn age(stored: u64, now: u64) -> u32 {
    let passed = now.saturating_sub(stored);
    if passed <= FRESH { 0 } else { begun(passed) as u32 }
}

/// Begun seconds in that many ns, of which there is at least one: in 32 bits as long as they suffice (36 minutes), as the kernel has no
/// cheap division of 64.
#[inline(always)]
const fn begun(ns: u64) -> u64 {
    const _: () = assert!(SECOND == 1_953_125 << 9);
    let units = (ns - 1) >> 9;
    1 + if units <= u32::MAX as u64 { (units as u32 / 1_953_125) as u64 } else { units / 1_953_125 }
}

#[inline(always)]
const fn visible(entry: &DnsEntry, view: u32) -> bool {
    entry.views >> (view & 63) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begun_seconds_are_a_division_rounded_up() {
        let edges = [0, 1, 2, 511, 512, 513, 2199, 2200, 4_000_000_000]
            .into_iter()
            .flat_map(|s: u64| [s * SECOND, s * SECOND + 1]);
        for ns in
            edges.chain([u64::from(u32::MAX) << 9, (u64::from(u32::MAX) << 9) + 512, u64::MAX]).filter(|ns| *ns > 0)
        {
            for ns in [ns - 1, ns, ns.saturating_add(1)] {
                if ns > 0 {
                    assert_eq!(begun(ns), ns.div_ceil(SECOND), "{ns}");
                }
            }
        }
    }
}
