//! The kernel's DNS answers: [`AnswerStore`] over `ANSWERS`, `LARGE` and `ZONES`.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::Ebpf;
use gateway_common::{
    dns::hash::Keys,
    limits::MAX_ZONES,
    maps::{DnsEntry, DnsHash, DnsKey, DnsLarge, Zone, dns_entry},
};

use super::{KernelError, table::Table};
use crate::dns::AnswerStore;

/// Which bodies in `LARGE` belong to which answers.
#[derive(Debug, Default)]
struct Large {
    ids: HashMap<DnsKey, u32>,
    last: u32,
}

/// Whether an entry is that key's, and not another's with the same hash.
fn is_of(entry: &DnsEntry, key: &DnsKey) -> bool {
    (entry.tag, entry.name) == (key.tag(), key.name)
}

/// The maps of answers.
#[derive(Debug)]
pub(super) struct Answers {
    answers: Table<DnsHash, DnsEntry>,
    /// What the programs hash with.
    keys: Keys,
    bodies: Table<u32, DnsLarge>,
    zones: Table<u32, Zone>,
    large: Mutex<Large>,
}

impl Answers {
    pub(super) fn open(ebpf: &Ebpf, keys: Keys) -> Result<Self, KernelError> {
        Ok(Self {
            answers: Table::open(ebpf, "ANSWERS")?,
            keys,
            bodies: Table::open(ebpf, "LARGE")?,
            zones: Table::open(ebpf, "ZONES")?,
            large: Mutex::default(),
        })
    }

    #[cfg(test)]
    pub(super) fn maps(&self) -> (Keys, Table<DnsHash, DnsEntry>, Table<u32, DnsLarge>) {
        (self.keys, self.answers.clone(), self.bodies.clone())
    }

    /// The entry that stands in the kernel.
    pub(super) fn entry(&self, key: &DnsKey) -> Option<DnsEntry> {
        self.answers.get(&self.keys.hash(key)).ok().flatten().filter(|entry| is_of(entry, key))
    }

    /// The zones that stand in the kernel.
    pub(super) fn zones(&self) -> Vec<Zone> {
        (0..MAX_ZONES as u32).filter_map(|slot| self.zones.get(&slot).ok().flatten()).collect()
    }

    fn large(&self) -> MutexGuard<'_, Large> {
        self.large.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a body under a number of its own: the answer that stands in the map keeps its own until it is replaced.
    fn put_body(&self, large: &mut Large, body: &DnsLarge) -> io::Result<u32> {
        loop {
            large.last = large.last.checked_add(1).unwrap_or(1);
            if self.bodies.insert(&large.last, body)? {
                return Ok(large.last);
            }
        }
    }

    /// Removes the body that a key has had.
    fn drop_body(&self, large: &mut Large, key: &DnsKey) -> io::Result<()> {
        let id = if large.ids.is_empty() { None } else { large.ids.remove(key) };
        id.map_or(Ok(()), |id| self.bodies.remove(&id).map(drop))
    }
}

impl AnswerStore for Answers {
    fn put(&self, key: &DnsKey, entry: &DnsEntry, body: Option<&DnsLarge>) -> io::Result<()> {
        let mut large = self.large();
        let mut entry = entry.of_key(key);
        let hash = self.keys.hash(key);
        // Most have neither a body nor a predecessor: one call of the kernel.
        if body.is_none() && self.answers.insert(&hash, &entry)? {
            return self.drop_body(&mut large, key);
        }
        // A zone's entry stays: a name that has none would be denied. What was learnt gives way, and is the forwarder's.
        if self.answers.get(&hash)?.is_some_and(|there| there.flags & dns_entry::ZONE != 0 && !is_of(&there, key)) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "another name's answer has the same hash in the kernel: the forwarder answers this one",
            ));
        }
        entry.large = match body {
            Some(body) => self.put_body(&mut large, body)?,
            None => 0,
        };
        if let Err(error) = self.answers.put(&hash, &entry) {
            if entry.large != 0 {
                self.bodies.remove(&entry.large)?;
            }
            return Err(error);
        }
        match entry.large {
            0 => self.drop_body(&mut large, key),
            id => large.ids.insert(*key, id).map_or(Ok(()), |before| self.bodies.remove(&before).map(drop)),
        }
    }

    fn remove(&self, key: &DnsKey) -> io::Result<()> {
        let mut large = self.large();
        let hash = self.keys.hash(key);
        if self.answers.get(&hash)?.is_some_and(|there| is_of(&there, key)) {
            self.answers.remove(&hash)?;
        }
        self.drop_body(&mut large, key)
    }

    fn hits(&self, key: &DnsKey) -> Option<u64> {
        self.entry(key).map(|entry| entry.hits)
    }

    fn set_zone(&self, index: usize, zone: &Zone) -> io::Result<()> {
        let slot = u32::try_from(index).ok().filter(|_| index < MAX_ZONES);
        let slot =
            slot.ok_or_else(|| io::Error::other(format!("zone {index}: the kernel has room for {MAX_ZONES}")))?;
        self.zones.put(&slot, zone)
    }
}
