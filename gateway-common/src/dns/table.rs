//! Tables in memory: what the forwarder resolves from, and what tests compare the kernel with. Host only.

use std::{collections::HashMap, sync::Arc};

use super::{
    build::Answer,
    emit::Request,
    name::is_below,
    resolve::{Lookup, Outcome, resolve},
};
use crate::{limits::MAX_ZONES, maps::Zone};

/// What is known about one name: type, [`crate::maps::dns_key`] bits, answer.
type Types = Vec<(u16, u8, Arc<Answer>)>;

/// Entries by name, and zones. Names may be longer than the kernel's.
#[derive(Clone, Debug, Default)]
pub struct Table {
    names: HashMap<Box<[u8]>, Types>,
    zones: [Option<Arc<Zone>>; MAX_ZONES],
}

impl Table {
    /// Inserts or replaces the answer for a folded wire name, type and [`crate::maps::dns_key`] bits.
    pub fn put(&mut self, name: &[u8], qtype: u16, bits: u8, answer: Arc<Answer>) {
        let types = self.names.entry(name.into()).or_default();
        match types.iter_mut().find(|(t, b, _)| (*t, *b) == (qtype, bits)) {
            Some((.., old)) => *old = answer,
            None => types.push((qtype, bits, answer)),
        }
    }

    /// Removes and returns.
    pub fn remove(&mut self, name: &[u8], qtype: u16, bits: u8) -> Option<Arc<Answer>> {
        let types = self.names.get_mut(name)?;
        let at = types.iter().position(|(t, b, _)| (*t, *b) == (qtype, bits))?;
        let (.., answer) = types.swap_remove(at);
        if types.is_empty() {
            self.names.remove(name);
        }
        Some(answer)
    }

    /// The answer, whoever may see it and however old it is.
    pub fn get(&self, name: &[u8], qtype: u16, bits: u8) -> Option<&Arc<Answer>> {
        self.names.get(name)?.iter().find(|(t, b, _)| (*t, *b) == (qtype, bits)).map(|(.., answer)| answer)
    }

    /// Everything, in no order: name, type, bits, answer.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u16, u8, &Arc<Answer>)> {
        self.names.iter().flat_map(|(name, types)| types.iter().map(|(t, b, answer)| (&**name, *t, *b, answer)))
    }

    /// Number of answers.
    pub fn len(&self) -> usize {
        self.names.values().map(Vec::len).sum()
    }

    /// Whether there is no answer.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Sets a zone's slot; one without a name empties it.
    ///
    /// # Panics
    /// When `index` is not below [`MAX_ZONES`].
    pub fn set_zone(&mut self, index: usize, zone: Zone) {
        self.zones[index] = (zone.name_len > 0).then(|| Arc::new(zone));
    }

    /// Resolves at `now` (`CLOCK_MONOTONIC`, ns).
    pub fn resolve(&self, request: &Request, view: u32, now: u64) -> Outcome<Arc<Answer>, Arc<Zone>> {
        resolve(&mut At { table: self, name: request.name(), now }, &request.query, view)
    }
}

/// A table seen from one query.
struct At<'a> {
    table: &'a Table,
    name: &'a [u8],
    now: u64,
}

impl Lookup for At<'_> {
    type Entry = Arc<Answer>;
    type Zone = Arc<Zone>;

    fn entry(&mut self, qtype: u16, bits: u8) -> Option<Arc<Answer>> {
        self.table.get(self.name, qtype, bits).cloned()
    }

    fn zone(&mut self) -> Option<Arc<Zone>> {
        let zones = self.table.zones.iter().flatten();
        zones
            .filter(|zone| is_below(self.name, self.name.len(), &zone.name, usize::from(zone.name_len)))
            .max_by_key(|zone| zone.name_len)
            .cloned()
    }

    fn now(&mut self) -> u64 {
        self.now
    }
}
