//! A bounded number of places, in all and for each client: one client cannot take what the others need.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The places.
#[derive(Debug)]
pub struct Places {
    all: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<IpAddr, usize>,
}

/// A place that is taken; given back when dropped.
#[derive(Debug)]
pub struct Place {
    of: Arc<Places>,
    source: IpAddr,
}

impl Places {
    /// `all` of them, at most `each` for one client.
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all, each, taken: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One place; `None`: there is none for that client.
    pub fn take(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.by.get(&source).copied().unwrap_or(0);
        if taken.all >= self.all || own >= self.each {
            return None;
        }
        taken.all += 1;
        taken.by.insert(source, own + 1);
        Some(Place { of: Arc::clone(self), source })
    }

    /// Whether that client has as many as one client may have.
    pub fn has_all_of_its_own(&self, source: IpAddr) -> bool {
        self.lock().by.get(&source).copied().unwrap_or(0) >= self.each
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(own) = taken.by.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                taken.by.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_every_place_and_places_come_back() {
        let places = Places::new(3, 2);
        let (a, b): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let held: Vec<Place> = [a, a].into_iter().filter_map(|source| places.take(source)).collect();
        assert!(held.len() == 2 && places.take(a).is_none());
        let other = places.take(b).expect("the third place");
        assert!(places.take(b).is_none(), "all are taken");
        drop((held, other));
        assert!(places.lock().by.is_empty() && places.take(a).is_some());
    }
}
