//! The kernel's keys of answers: 16 bytes instead of the name, which stands in the entry and is compared.
//!
//! Two lanes of NH (the universal hash of UMAC, RFC 4418 section 5.2.2) over the folded name's words, with keys that nobody outside
//! the agent knows: two names collide with a probability of 2^-64, whoever chooses them. A collision is noticed, and is a miss.

use crate::{
    limits::DNS_NAME,
    maps::{DnsHash, DnsKey},
};

/// Words of the longest name.
const WORDS: usize = DNS_NAME / 8;
/// Keys of both lanes: two a word, two for the tag; the second lane uses the first one's, shifted by two.
pub const KEYS: usize = 2 * WORDS + 4;

/// Secret keys of the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys(pub [u32; KEYS]);

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
        let mut lanes = [0; 2];
        for (i, word) in words.iter().enumerate().take(usize::from(key.len).div_ceil(8)) {
            self.add(&mut lanes, i, *word);
        }
        self.finish(lanes, key.tag())
    }

    /// Adds word `i` of a name.
    #[inline(always)]
    pub const fn add(&self, lanes: &mut [u64; 2], i: usize, word: u64) {
        lanes[0] = lanes[0].wrapping_add(self.nh(2 * i, word));
        lanes[1] = lanes[1].wrapping_add(self.nh(2 * i + 2, word));
    }

    /// The hash of a name's lanes and a [`DnsKey::tag`].
    #[inline(always)]
    pub const fn finish(&self, mut lanes: [u64; 2], tag: u32) -> DnsHash {
        self.add(&mut lanes, WORDS, tag as u64);
        DnsHash { lanes }
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
                assert_eq!(seen.insert(Keys::DEFAULT.hash(&key).lanes, key), None);
            }
        }
        // Either lane alone tells them apart too, but for the birthday of 64 bits.
        let first: std::collections::HashSet<u64> = seen.keys().map(|lanes| lanes[0]).collect();
        assert_eq!(first.len(), seen.len());
    }

    #[test]
    fn other_keys_give_other_hashes() {
        let key = key(&to_wire("web.shop.svc.cluster.local").unwrap(), 1, 0).unwrap();
        assert_ne!(Keys::from_seed(1).hash(&key), Keys::from_seed(2).hash(&key));
    }
}
