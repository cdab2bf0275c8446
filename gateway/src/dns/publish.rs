//! The way into the kernel, for the zone and for what was learnt. A name outside the cluster zone may be in both (the pointer of a
//! VIP): then the zone's entry stands, for whoever of them comes later.

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher as _,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use gateway_common::{
    dns::build::Answer,
    maps::{DnsKey, Zone},
};

use super::{SharedStore, stats::Stats};

/// Marks an entry whose body is long; the store gives the body a number of its own.
const LONG: u32 = 1;

/// The store, with what zone and cache share about it.
pub struct Publisher {
    store: SharedStore,
    stats: Arc<Stats>,
    /// The zone's entries. Held while the store is written, so that what was learnt never replaces the zone's.
    zone: Mutex<Keys>,
}

/// Keys, each as a hash of 64 bits under a key that nobody knows: an eighth of the memory, and when two of them are alike, which is not
/// to be expected, an answer that was learnt stays in the forwarder.
#[derive(Default)]
struct Keys {
    hasher: RandomState,
    hashes: HashSet<u64>,
}

impl Keys {
    fn insert(&mut self, key: &DnsKey) {
        self.hashes.insert(self.hasher.hash_one(key));
    }

    fn remove(&mut self, key: &DnsKey) {
        self.hashes.remove(&self.hasher.hash_one(key));
    }

    fn contains(&self, key: &DnsKey) -> bool {
        self.hashes.contains(&self.hasher.hash_one(key))
    }
}

impl Publisher {
    /// With nothing in the store.
    pub fn new(store: SharedStore, stats: Arc<Stats>) -> Self {
        Self { store, stats, zone: Mutex::default() }
    }

    fn zone(&self) -> MutexGuard<'_, Keys> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an entry of the zone; `expires` replaces the answer's own.
    ///
    /// # Errors
    /// When the kernel cannot answer with it, or its table refuses it.
    pub fn put_zone(&self, key: &DnsKey, answer: &Answer, expires: Option<u64>) -> io::Result<()> {
        let mut zone = self.zone();
        zone.insert(key);
        self.put(key, answer, expires, None)
    }

    /// Removes an entry of the zone.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn remove_zone(&self, key: &DnsKey) -> io::Result<()> {
        let mut zone = self.zone();
        zone.remove(key);
        self.store.remove(key)
    }

    /// Puts what was learnt, for the views of this mask, if the kernel can answer with it; says whether it is there.
    pub fn put_learnt(&self, key: &DnsKey, answer: &Answer, views: u64) -> bool {
        let zone = self.zone();
        !zone.contains(key) && self.put(key, answer, None, Some(views)).is_ok()
    }

    /// Removes what was learnt.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn remove_learnt(&self, key: &DnsKey) -> io::Result<()> {
        let zone = self.zone();
        if zone.contains(key) { Ok(()) } else { self.store.remove(key) }
    }

    /// Hits that the kernel counted.
    pub fn hits(&self, key: &DnsKey) -> Option<u64> {
        self.store.hits(key)
    }

    /// Sets a zone's slot.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn set_zone(&self, index: usize, zone: &Zone) -> io::Result<()> {
        self.store.set_zone(index, zone)
    }

    fn put(&self, key: &DnsKey, answer: &Answer, expires: Option<u64>, views: Option<u64>) -> io::Result<()> {
        let Some((mut entry, large)) = answer.to_kernel(LONG) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more records than the kernel ages"));
        };
        entry.expires = expires.unwrap_or(entry.expires);
        entry.views = views.unwrap_or(entry.views);
        self.store.put(key, &entry, large.as_ref()).inspect_err(|_| {
            self.stats.refused_by_kernel.fetch_add(1, Ordering::Relaxed);
        })
    }
}
