//! Which Event is written next, and when. Pure: no clock, no network.
//!
//! Whoever finds problems leaves them here and goes on; whoever writes takes one at a time. Both hold up nobody: what stands is kept by
//! Service and reason, so a problem that is told again, or comes and goes while the API server is away, is still one entry.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::model::ObjectName;

/// A problem that is gone within this was no news: Services and their slices change one after the other.
pub(super) const SETTLE: Duration = Duration::from_secs(5);
/// Between two Events of one reason on one Service whose words differ.
pub(super) const CHANGED: Duration = Duration::from_secs(5 * 60);
/// After which a problem that stands is told again. API servers forget Events after an hour.
pub(super) const REPEAT: Duration = Duration::from_secs(30 * 60);
/// Services of which something is told at a time.
const MOST: usize = 4096;
/// Bytes of a note; the API takes 1,024.
const NOTE: usize = 1000;
/// Events in a row, and how far apart they are on average.
const BURST: u32 = 10;
const EVERY: Duration = Duration::from_secs(1);

/// An Event as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The Event object's name.
    pub name: String,
    /// The Service's UID then.
    pub uid: String,
    pub note: String,
    /// How often it was told.
    pub count: i32,
    pub at: Instant,
}

/// An Event to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub service: ObjectName,
    pub reason: &'static str,
    pub note: String,
    /// It is that one, again.
    pub again: Option<Written>,
}

#[derive(Debug)]
struct Entry {
    /// `None`: the problem is gone, and remembered so that one which comes and goes is not told each time.
    note: Option<String>,
    due: Instant,
    written: Option<Written>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Desk {
    services: BTreeMap<ObjectName, BTreeMap<&'static str, Entry>>,
    /// Problems for which there was no room.
    pub left_out: u64,
}

impl Desk {
    /// Everything that is wrong with a Service now, as reasons and sentences; whether there is anything new to write.
    pub fn tell<'p>(
        &mut self,
        now: Instant,
        service: &ObjectName,
        problems: impl Iterator<Item = (&'static str, &'p str)>,
    ) -> bool {
        let mut notes: BTreeMap<&'static str, (&str, usize)> = BTreeMap::new();
        for (reason, text) in problems {
            notes.entry(reason).or_insert((text, 0)).1 += 1;
        }
        if notes.is_empty() && !self.services.contains_key(service) {
            return false;
        }
        if !self.services.contains_key(service) && self.services.len() >= MOST {
            self.left_out += 1;
            return false;
        }
        let entries = self.services.entry(service.clone()).or_default();
        for (_, entry) in entries.iter_mut().filter(|(reason, _)| !notes.contains_key(*reason)) {
            entry.note = None;
        }
        let mut news = false;
        for (reason, (first, count)) in notes {
            let note = note(first, count);
            let entry = entries.entry(reason).or_insert(Entry { note: None, due: now + SETTLE, written: None });
            if entry.note.as_ref() == Some(&note) {
                continue;
            }
            news = true;
            let written = entry.written.as_ref();
            // It waits for its turn already: what changes its words all the time is told as well.
            let waits = entry.note.is_some() && entry.note.as_ref() != written.map(|written| &written.note);
            match written {
                Some(written) if written.note == note => entry.due = written.at + REPEAT,
                _ if waits => {}
                Some(written) => entry.due = (written.at + CHANGED).max(now + SETTLE),
                None => entry.due = now + SETTLE,
            }
            entry.note = Some(note);
        }
        self.forget(now, service);
        news
    }

    /// There is no such Service any more: one that comes with its name is another.
    pub fn gone(&mut self, service: &ObjectName) {
        self.services.remove(service);
    }

    fn forget(&mut self, now: Instant, service: &ObjectName) {
        if let Some(entries) = self.services.get_mut(service) {
            entries
                .retain(|_, entry| entry.note.is_some() || entry.written.as_ref().is_some_and(|w| w.at + REPEAT > now));
            if entries.is_empty() {
                self.services.remove(service);
            }
        }
    }

    fn standing(&self) -> impl Iterator<Item = (Instant, &ObjectName, &'static str)> {
        let one = |(service, entries)| {
            let entries: &BTreeMap<&'static str, Entry> = entries;
            let due = |(reason, entry): (&&'static str, &Entry)| entry.note.is_some().then_some((entry.due, *reason));
            entries.iter().filter_map(due).map(move |(due, reason)| (due, service, reason))
        };
        self.services.iter().flat_map(one)
    }

    /// When there is something to write.
    pub fn due(&self) -> Option<Instant> {
        self.standing().map(|(due, ..)| due).min()
    }

    /// The Event that has waited longest. It does not come again before [`Desk::done`] or [`REPEAT`].
    pub fn take(&mut self, now: Instant) -> Option<Job> {
        let (_, service, reason) = self.standing().filter(|(due, ..)| *due <= now).min()?;
        let service = service.clone();
        let entry = self.services.get_mut(&service)?.get_mut(reason)?;
        entry.due = now + REPEAT;
        let note = entry.note.clone()?;
        let again = entry.written.clone().filter(|written| written.note == note);
        Some(Job { service, reason, note, again })
    }

    /// It was written.
    pub fn done(&mut self, job: &Job, written: Written) {
        if let Some(entry) = self.services.get_mut(&job.service).and_then(|entries| entries.get_mut(job.reason)) {
            entry.due = written.at + if entry.note.as_ref() == Some(&job.note) { REPEAT } else { CHANGED };
            entry.written = Some(written);
        }
    }

    /// It was not, and is tried again then.
    pub fn later(&mut self, job: &Job, at: Instant) {
        if let Some(entry) = self.services.get_mut(&job.service).and_then(|entries| entries.get_mut(job.reason)) {
            entry.due = at;
        }
    }

    /// Forgets what is gone long since.
    pub fn sweep(&mut self, now: Instant) {
        for service in self.services.keys().cloned().collect::<Vec<_>>() {
            self.forget(now, &service);
        }
    }
}

/// The first sentence, within the API's bounds, and how many more there are.
fn note(first: &str, count: usize) -> String {
    let end = first.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= NOTE).last().unwrap_or(0);
    let cut = if end < first.len() { "…" } else { "" };
    let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
    format!("{}{cut}{more}", &first[..end])
}

/// Lets one through a second on average, and ten at once (the generic cell rate algorithm).
#[derive(Debug)]
pub(super) struct Pace(Instant);

impl Pace {
    pub const fn new(now: Instant) -> Self {
        Self(now)
    }

    /// How long the next one has to wait; when that is nothing, it is counted as gone.
    pub fn next(&mut self, now: Instant) -> Duration {
        let after = self.0.max(now);
        let wait = (after - now).saturating_sub(EVERY * (BURST - 1));
        if wait.is_zero() {
            self.0 = after + EVERY;
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn web() -> ObjectName {
        ObjectName::new("shop", "web")
    }

    fn written(job: &Job, at: Instant) -> Written {
        let count = job.again.as_ref().map_or(1, |w| w.count + 1);
        Written { name: "web.1".into(), uid: "u".into(), note: job.note.clone(), count, at }
    }

    /// Takes what is due and writes it.
    fn write(desk: &mut Desk, now: Instant) -> Option<Job> {
        let job = desk.take(now)?;
        desk.done(&job, written(&job, now));
        Some(job)
    }

    #[test]
    fn a_problem_is_told_once_however_often_it_is_found_and_again_when_it_stands() {
        let (mut desk, start) = (Desk::default(), Instant::now());
        assert!(desk.tell(start, &web(), [("Left", "one is left out"), ("Left", "two is left out")].into_iter()));
        assert_eq!(desk.take(start), None, "it may be gone at once");
        for number in 1..1000 {
            let again = [("Left", "one is left out"), ("Left", "two is left out")].into_iter();
            assert!(!desk.tell(start + number * Duration::from_millis(10), &web(), again));
        }
        let first = start + SETTLE;
        assert_eq!(desk.due(), Some(first));
        let job = write(&mut desk, first).unwrap();
        assert_eq!((job.reason, job.note.as_str(), &job.again), ("Left", "one is left out (and 1 more)", &None));
        assert_eq!(write(&mut desk, first + REPEAT - SECOND), None);
        let job = write(&mut desk, first + REPEAT).unwrap();
        assert_eq!(job.again.map(|written| (written.count, written.at)), Some((1, first)));
        let job = write(&mut desk, first + REPEAT * 2).unwrap();
        assert_eq!(job.again.map(|written| written.count), Some(2));
    }

    #[test]
    fn what_comes_and_goes_is_told_seldom() {
        let (mut desk, start) = (Desk::default(), Instant::now());
        let mut events = 0;
        for number in 0..3600 {
            let now = start + number * SECOND;
            // Ten seconds of a problem, ten without.
            let there = number / 10 % 2 == 0;
            desk.tell(now, &web(), there.then_some(("Left", "one is left out")).into_iter());
            events += usize::from(write(&mut desk, now).is_some());
        }
        assert!((1..=3).contains(&events), "{events} events in an hour");
        desk.tell(start + 3600 * SECOND, &web(), std::iter::empty());
        desk.sweep(start + 3600 * SECOND + REPEAT);
        assert_eq!((desk.services.len(), desk.due()), (0, None), "and forgotten in the end");
        // A new Service of that name knows nothing of it.
        desk.tell(start, &web(), [("Left", "one")].into_iter());
        assert!(write(&mut desk, start + SETTLE).is_some());
        desk.gone(&web());
        desk.tell(start + SETTLE, &web(), [("Left", "one")].into_iter());
        assert!(write(&mut desk, start + SETTLE * 2).is_some_and(|job| job.again.is_none()));
        desk.gone(&web());
        // Too short to be told at all.
        desk.tell(start, &web(), [("Left", "one")].into_iter());
        desk.tell(start + SECOND, &web(), std::iter::empty());
        assert_eq!((desk.due(), desk.services.len()), (None, 0));
    }

    #[test]
    fn other_words_are_another_event_but_not_every_second() {
        let (mut desk, start) = (Desk::default(), Instant::now());
        let mut events = 0;
        for number in 0..3600 {
            let (now, text) = (start + number * SECOND, format!("endpoint {number} is left out"));
            desk.tell(now, &web(), [("Left", text.as_str())].into_iter());
            let job = write(&mut desk, now);
            events += usize::from(job.is_some());
            assert!(job.is_none_or(|job| job.again.is_none()));
        }
        assert!((10..=12).contains(&events), "{events} events in an hour");
        // What changed while it was being written waits for its turn.
        let now = start + Duration::from_secs(2 * 3600);
        let job = desk.take(now).unwrap();
        desk.tell(now, &web(), [("Left", "something else")].into_iter());
        desk.done(&job, written(&job, now));
        assert_eq!(desk.due(), Some(now + CHANGED));
    }

    #[test]
    fn each_reason_is_an_event_of_its_own_and_the_longest_waiting_goes_first() {
        let (mut desk, start) = (Desk::default(), Instant::now());
        let other = ObjectName::new("shop", "api");
        desk.tell(start, &web(), [("B", "b"), ("A", "a")].into_iter());
        desk.tell(start + SECOND, &other, [("A", "a")].into_iter());
        let late = start + 60 * SECOND;
        let order: Vec<_> = std::iter::from_fn(|| write(&mut desk, late))
            .map(|job| (job.service.name.to_string(), job.reason))
            .collect();
        assert_eq!(order, [("web".to_owned(), "A"), ("web".to_owned(), "B"), ("api".to_owned(), "A")]);
        // One that failed comes again, when it is to.
        let job = desk.take(late + REPEAT).unwrap();
        desk.later(&job, late + REPEAT + 7 * SECOND);
        let mut again = std::iter::from_fn(|| write(&mut desk, late + REPEAT + 7 * SECOND));
        assert!(again.any(|other| (other.service, other.reason) == (job.service.clone(), job.reason)));
    }

    #[test]
    fn an_outage_with_ever_new_services_is_bounded_and_counted() {
        let (mut desk, start) = (Desk::default(), Instant::now());
        for number in 0..MOST + 100 {
            desk.tell(start, &ObjectName::new("shop", format!("s{number}")), [("Left", "x")].into_iter());
        }
        assert_eq!((desk.services.len(), desk.left_out), (MOST, 100));
        for number in 0..MOST {
            desk.tell(start, &ObjectName::new("shop", format!("s{number}")), std::iter::empty());
        }
        assert_eq!(desk.services.len(), 0);
    }

    #[test]
    fn a_note_fits_whatever_the_problem_says() {
        let long = "ä".repeat(2000);
        let text = note(&long, 12_345);
        assert!(text.len() <= 1024 && text.ends_with("… (and 12344 more)"), "{} bytes", text.len());
        assert_eq!((note("short", 1), note("", 1)), ("short".to_owned(), String::new()));
    }

    #[test]
    fn ten_at_once_then_one_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut gone = Vec::new();
        let mut now = start;
        while gone.len() < 30 {
            let wait = pace.next(now);
            if wait.is_zero() {
                gone.push((now - start).as_secs());
            }
            now += wait;
        }
        assert_eq!(gone[..10], [0; 10]);
        assert_eq!(gone[10..], (1..=20).collect::<Vec<_>>()[..]);
        assert_eq!((0..12).filter(|_| pace.next(now + 60 * SECOND).is_zero()).count(), 10, "rest makes room again");
    }
}
