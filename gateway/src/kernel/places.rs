//! Who has which place in an array map: endpoint indices with their generations, and ranges of Maglev slots. What is given back
//! rests before it is given out again, because a packet on another CPU may still be on its way through the old value.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

/// How long a place rests: many times longer than a packet takes through the datapath.
pub(super) const REST: Duration = Duration::from_secs(1);

/// Things that were given back, oldest first.
#[derive(Debug)]
struct Resting<T>(VecDeque<(Instant, T)>);

impl<T> Resting<T> {
    fn push(&mut self, now: Instant, thing: T) {
        self.0.push_back((now, thing));
    }

    /// The oldest, when it has rested enough.
    fn pop(&mut self, now: Instant) -> Option<T> {
        let (since, _) = self.0.front()?;
        if now.duration_since(*since) < REST {
            return None;
        }
        self.0.pop_front().map(|(_, thing)| thing)
    }
}

/// Indices `1..capacity`, each with the generation of its present or last owner.
#[derive(Debug)]
pub(super) struct Indices {
    capacity: u32,
    generations: Vec<u32>,
    /// Generations up to this one may stand in flows of an earlier agent.
    floor: u32,
    resting: Resting<u32>,
}

impl Indices {
    pub(super) const fn new(capacity: u32) -> Self {
        Self { capacity, generations: Vec::new(), floor: 0, resting: Resting(VecDeque::new()) }
    }

    /// Takes these indices over from an earlier agent, none of whose generations was above `floor`.
    pub(super) fn inherit(&mut self, now: Instant, taken: &HashSet<u32>, floor: u32) {
        let last = taken.iter().copied().max().unwrap_or(0);
        self.floor = floor;
        self.generations = vec![floor; last as usize];
        for index in (1..last).filter(|index| !taken.contains(index)) {
            self.give(now, index);
        }
    }

    /// An index and its new generation (never 0); `None` when all are taken or resting.
    pub(super) fn take(&mut self, now: Instant) -> Option<(u32, u32)> {
        let index = match self.resting.pop(now) {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.generations.len()).ok()?.checked_add(1)?;
                if index >= self.capacity {
                    return None;
                }
                self.generations.push(self.floor);
                index
            }
        };
        let generation = self.generations.get_mut(index as usize - 1)?;
        *generation = generation.checked_add(1).unwrap_or(1);
        Some((index, *generation))
    }

    /// Gives an index back.
    pub(super) fn give(&mut self, now: Instant, index: u32) {
        self.resting.push(now, index);
    }
}

/// A range of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u32,
    pub(super) len: u32,
}

/// Ranges of `MAGLEV`.
#[derive(Debug)]
pub(super) struct Slots {
    /// Start → length; neighbours are always joined.
    free: BTreeMap<u32, u32>,
    resting: Resting<Range>,
}

impl Slots {
    pub(super) fn new(capacity: u32) -> Self {
        Self { free: BTreeMap::from([(0, capacity)]), resting: Resting(VecDeque::new()) }
    }

    /// The lowest range of that length; `None` when no gap is long enough.
    pub(super) fn take(&mut self, now: Instant, len: u32) -> Option<Range> {
        while let Some(range) = self.resting.pop(now) {
            self.join(range);
        }
        let (&start, &gap) = self.free.iter().find(|(_, gap)| **gap >= len)?;
        self.free.remove(&start);
        if gap > len {
            self.free.insert(start + len, gap - len);
        }
        Some(Range { start, len })
    }

    /// Gives a range back.
    pub(super) fn give(&mut self, now: Instant, range: Range) {
        if range.len > 0 {
            self.resting.push(now, range);
        }
    }

    fn join(&mut self, range: Range) {
        let Range { mut start, mut len } = range;
        if let Some((&before, &gap)) = self.free.range(..start).next_back()
            && before + gap == start
        {
            self.free.remove(&before);
            start = before;
            len += gap;
        }
        if let Some(gap) = self.free.remove(&(start + len)) {
            len += gap;
        }
        self.free.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_comes_back_rested_and_with_another_generation() {
        let now = Instant::now();
        let mut indices = Indices::new(3);
        assert_eq!(indices.take(now), Some((1, 1)), "index 0 is never used");
        assert_eq!(indices.take(now), Some((2, 1)));
        assert_eq!(indices.take(now), None, "full");
        indices.give(now, 1);
        assert_eq!(indices.take(now), None, "it rests first");
        assert_eq!(indices.take(now + REST), Some((1, 2)));
    }

    #[test]
    fn inherited_indices_are_not_given_and_no_generation_comes_twice() {
        let now = Instant::now();
        let mut indices = Indices::new(6);
        indices.inherit(now, &HashSet::from([2, 4]), 7);
        assert_eq!(indices.take(now), Some((5, 8)), "the gaps rest first");
        let later = now + REST;
        assert_eq!((indices.take(later), indices.take(later), indices.take(later)), (Some((1, 8)), Some((3, 8)), None));
        indices.give(later, 4);
        assert_eq!(indices.take(later + REST), Some((4, 8)));
    }

    #[test]
    fn a_generation_never_becomes_zero() {
        let now = Instant::now();
        let mut indices = Indices::new(2);
        indices.take(now);
        indices.generations[0] = u32::MAX;
        indices.give(now, 1);
        assert_eq!(indices.take(now + REST), Some((1, 1)));
    }

    #[test]
    fn ranges_do_not_overlap_and_gaps_join_again() {
        let now = Instant::now();
        let later = now + REST;
        let mut slots = Slots::new(100);
        let a = slots.take(now, 40).unwrap();
        let b = slots.take(now, 40).unwrap();
        assert_eq!((a.start, b.start), (0, 40));
        assert_eq!(slots.take(now, 40), None);
        slots.give(now, a);
        assert_eq!(slots.take(now, 40), None, "it rests first");
        slots.give(now, b);
        assert_eq!(slots.take(later, 100), Some(Range { start: 0, len: 100 }), "all gaps are one again");
    }
}
