//! TCP connections of clients: bounded in number, in all and for each source. Where there are too many, the one that has been idle for longest
//! gives its place to the new one (RFC 7766 section 6.2.3): connections that clients keep open for later keep nobody out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use super::places::{Place, Places};

/// All of them.
#[derive(Debug)]
pub struct Connections {
    places: Arc<Places>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_id: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    source: IpAddr,
    activity: Activity,
    end: CancellationToken,
    _place: Place,
}

/// What a connection does.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Queries that are being read or are in work.
    busy: usize,
    /// Since the last one was done.
    since: Instant,
}

/// A query of a connection; the connection is not idle while there is one.
#[derive(Debug)]
pub struct Busy(Activity);

impl Activity {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(State { busy: 0, since: Instant::now() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A query has begun; it ends with what this gives.
    pub fn begin(&self) -> Busy {
        self.lock().busy += 1;
        Busy(self.clone())
    }

    /// Since when nothing is in work.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.busy == 0).then_some(state.since)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.busy -= 1;
        state.since = Instant::now();
    }
}

/// A connection that was admitted; its place is given back when this is dropped, or when it is taken for another one.
#[derive(Debug)]
pub struct Connection {
    of: Arc<Connections>,
    id: u64,
    /// What it does.
    pub activity: Activity,
    /// Cancelled when its place has been given to another one.
    pub end: CancellationToken,
}

impl Connections {
    /// `all` of them, at most `each` of one source.
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { places: Places::new(all, each), open: Mutex::default() })
    }

    /// Admits a new one; `None`: there are too many, and all that could make place are at work.
    pub fn admit(self: &Arc<Self>, source: IpAddr) -> Option<Connection> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match self.places.take(source) {
            Some(place) => place,
            None => {
                // Who has too many of his own makes place himself.
                let own = self.places.has_all_of_its_own(source);
                let candidates = open.by_id.iter().filter(|(_, entry)| !own || entry.source == source);
                let idle = candidates.filter_map(|(id, entry)| Some((entry.activity.idle_since()?, *id)));
                let (_, id) = idle.min()?;
                if let Some(entry) = open.by_id.remove(&id) {
                    entry.end.cancel();
                }
                self.places.take(source)?
            }
        };
        let id = open.next;
        open.next += 1;
        let (activity, end) = (Activity::new(), CancellationToken::new());
        open.by_id.insert(id, Entry { source, activity: activity.clone(), end: end.clone(), _place: place });
        Some(Connection { of: Arc::clone(self), id, activity, end })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.of.open.lock().unwrap_or_else(PoisonError::into_inner).by_id.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_one_makes_place_and_who_is_at_work_never() {
        let connections = Connections::new(3, 2);
        let (a, b): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let admit = |source| connections.admit(source);
        let (first, second) = (admit(a).expect("a place"), admit(a).expect("a place"));
        let work = first.activity.begin();
        let third = admit(a).expect("the second's place");
        assert!(second.end.is_cancelled() && !first.end.is_cancelled());
        let more = third.activity.begin();
        assert!(admit(a).is_none(), "both of its own are at work");
        let other = admit(b).expect("the last place");
        let newer = admit(b).expect("the place of one that is idle, whose ever it is");
        assert!(other.end.is_cancelled());
        drop((work, more));
        // Done later than `newer` was begun: that one has been idle for longer.
        let last = admit([10, 0, 0, 3].into()).expect("a place");
        assert!(newer.end.is_cancelled() && !first.end.is_cancelled() && !third.end.is_cancelled());
        drop((first, second, third, other, newer, last));
        assert!(connections.open.lock().expect("a lock").by_id.is_empty());
        assert!(admit(a).is_some());
    }
}
