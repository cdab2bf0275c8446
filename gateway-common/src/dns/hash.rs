//! The kernel's keys of answers: eight bytes instead of the name, which stands in the entry and is compared.
//!
//! NH (the universal hash of UMAC, RFC 4418 section 5.2.2) over the folded name's words, with keys that nobody outside the agent
//! knows. Two given names collide with a probability of 2^-32: only when a key is the complement of half a word of theirs. Whoever
//! writes entries notices, and so does whoever reads them: a collision is a miss, never a wrong answer.

use crate::{
    limits::DNS_NAME,
    maps::{DnsHash, DnsKey},
};

/// Words of the longest name.
const WORDS: usize = DNS_NAME / 8;
/// Keys: two a word, two for the tag.
pub const KEYS: usize = 2 * WORDS + 2;

/// Secret keys of the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Keys(pub [u32; KEYS]);

/// Eight bytes of a name for the hash: what differs in case only is the same. So are a few marks that host names do not have
/// (`@` and the grave accent, brackets and braces, underscore and DEL): names that differ in nothing else collide.
#[inline(always)]
const fn caseless(word: u64) -> u64 {
    const BIT: u64 = 0x4040_4040_4040_4040;
    word | (word & BIT) >> 1
}

impl Keys {
    /// Those of programs that no agent loaded: tests and benches.
    pub const DEFAULT: Self = Self::from_seed(0x6761_7465_7761_7921);

    /// Keys from one random number, by splitmix64.
    pub const fn from_seed(seed: u64) -> Self {
        let mut keys = [0; KEYS];
        let (mut state, mut i) = (seed, 0);
        while i < KEYS {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            keys[i] = ((z ^ (z >> 31)) >> 32) as u32;
            i += 1;
        }
        Self(keys)
    }

    /// The hash of a key.
    pub fn hash(&self, key: &DnsKey) -> DnsHash {
        let words: [u64; WORDS] = bytemuck::cast(key.name);
        let words = words.iter().enumerate().take(usize::from(key.len).div_ceil(8));
        self.finish(words.fold(0, |sum, (i, word)| self.add(sum, i, *word)), key.tag())
    }

    /// Adds word `i` of a name, in whatever case, to the name's sum.
    #[inline(always)]
    pub const fn add(&self, sum: u64, i: usize, word: u64) -> u64 {
        sum.wrapping_add(self.nh(2 * i, caseless(word)))
    }

    /// The hash of a name's sum and a [`DnsKey::tag`].
    #[inline(always)]
    pub const fn finish(&self, sum: u64, tag: u32) -> DnsHash {
        DnsHash { hash: sum.wrapping_add(self.nh(2 * WORDS, tag as u64)) }
    }

    #[inline(always)]
    const fn nh(&self, at: usize, word: u64) -> u64 {
        let low = (word as u32).wrapping_add(self.0[at]) as u64;
        let high = ((word >> 32) as u32).wrapping_add(self.0[at + 1]) as u64;
        low.wrapping_mul(high)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::dns::{build::key, name::to_wire};

    #[test]
    fn names_types_and_bits_have_hashes_of_their_own() {
        let mut seen = HashMap::new();
        for i in 0..50_000u32 {
            let name = to_wire(&format!("host-{}.ns-{}.svc.cluster.local", i % 250, i / 250)).unwrap();
            for (qtype, bits) in [(1, 0), (28, 0), (1, 1), (0, 0)] {
                let key = key(&name, qtype, bits).unwrap();
                assert_eq!(seen.insert(Keys::DEFAULT.hash(&key).hash, key), None);
            }
        }
    }

    #[test]
    fn other_keys_give_other_hashes() {
        let key = key(&to_wire("web.shop.svc.cluster.local").unwrap(), 1, 0).unwrap();
        assert_ne!(Keys::from_seed(1).hash(&key), Keys::from_seed(2).hash(&key));
    }
}
