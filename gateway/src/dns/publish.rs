//! The way into the kernel: numbers for long bodies, and a count of what the kernel refused.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use gateway_common::{
    dns::build::Answer,
    maps::{DnsKey, Zone},
};

use super::{SharedStore, stats::Stats};

/// The store, with what zone and cache share about it.
pub struct Publisher {
    store: SharedStore,
    stats: Arc<Stats>,
    next_large: AtomicU32,
}

impl Publisher {
    /// Begins with a random number for long bodies: a kernel table that outlived another agent may still hold its numbers.
    pub fn new(store: SharedStore, stats: Arc<Stats>) -> Self {
        Self { store, stats, next_large: AtomicU32::new(rand::random()) }
    }

    /// Puts an answer. A long body gets a number of its own, so that a reader of the old entry still finds the old body.
    ///
    /// `expires` replaces the answer's own.
    ///
    /// # Errors
    /// When the kernel cannot answer with it, or its table refuses it.
    pub fn put(&self, key: &DnsKey, answer: &Answer, expires: Option<u64>) -> io::Result<()> {
        let number = if answer.is_large() { self.number() } else { 0 };
        let Some((mut entry, large)) = answer.to_kernel(number) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more records than the kernel ages"));
        };
        entry.expires = expires.unwrap_or(entry.expires);
        self.store.put(key, &entry, large.as_ref()).inspect_err(|_| {
            self.stats.refused_by_kernel.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Puts an answer if the kernel can answer with it; says whether it is there.
    pub fn publish(&self, key: &DnsKey, answer: &Answer) -> bool {
        self.put(key, answer, None).is_ok()
    }

    fn number(&self) -> u32 {
        // Zero says that there is no long body.
        match self.next_large.fetch_add(1, Ordering::Relaxed) {
            0 => self.next_large.fetch_add(1, Ordering::Relaxed),
            number => number,
        }
    }

    /// Sets a zone's slot.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn set_zone(&self, index: usize, zone: &Zone) -> io::Result<()> {
        self.store.set_zone(index, zone)
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn remove(&self, key: &DnsKey) -> io::Result<()> {
        self.store.remove(key)
    }

    /// Hits that the kernel counted.
    pub fn hits(&self, key: &DnsKey) -> Option<u64> {
        self.store.hits(key)
    }
}
