//! Who may see a name, given who may see each record at it and below.

use std::collections::BTreeMap;

/// A multiset of view masks; what any of its members lets see is visible.
#[expect(clippy::box_collection, reason = "the rare case must not make the common one larger")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Masks {
    /// So many times this one.
    One(u32, u64),
    /// Several.
    Many(Box<BTreeMap<u64, u32>>),
}

impl Default for Masks {
    fn default() -> Self {
        Self::One(0, 0)
    }
}

impl Masks {
    /// One more.
    pub fn add(&mut self, mask: u64) {
        match self {
            Self::One(count @ 0, known) => (*count, *known) = (1, mask),
            Self::One(count, known) if *known == mask => *count += 1,
            Self::One(count, known) => *self = Self::Many(Box::new(BTreeMap::from([(*known, *count), (mask, 1)]))),
            Self::Many(masks) => *masks.entry(mask).or_default() += 1,
        }
    }

    /// One less.
    pub fn remove(&mut self, mask: u64) {
        match self {
            Self::One(count, known) if *known == mask => *count = count.saturating_sub(1),
            Self::One(..) => {}
            Self::Many(masks) => {
                if let Some(count) = masks.get_mut(&mask) {
                    *count -= 1;
                    if *count == 0 {
                        masks.remove(&mask);
                    }
                }
                if let (1, Some((mask, count))) = (masks.len(), masks.first_key_value()) {
                    *self = Self::One(*count, *mask);
                }
            }
        }
    }

    /// Whether it has no member.
    pub const fn is_empty(&self) -> bool {
        matches!(self, Self::One(0, _))
    }

    /// Views that any member lets see.
    pub fn union(&self) -> u64 {
        match self {
            Self::One(0, _) => 0,
            Self::One(_, mask) => *mask,
            Self::Many(masks) => masks.keys().fold(0, |all, mask| all | mask),
        }
    }
}
