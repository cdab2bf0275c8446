//! Maglev tables (Eisenbud et al., NSDI 2016, section 3.4): which endpoint a hash goes to.
//!
//! Every gateway builds the same table from the same endpoints, in whatever order it learnt them, so a flow whose record
//! was lost, or that another gateway takes over, arrives at the same endpoint. When an endpoint comes or goes, few
//! slots but its own change hands. Host only: the kernel reads the finished table.

use std::net::IpAddr;

/// Table sizes, each a prime, and the number of endpoints up to which it is used. In steps that double, and not
/// proportional to the number of endpoints: a table of another size moves every flow. Slots handed out in turns
/// differ by at most one between endpoints, so a hundred slots an endpoint keep the loads within 1 %; the last two steps trade
/// evenness (2 % at 5,000 endpoints) for memory (1 and 2 MiB).
const SIZES: [(usize, u32); 12] = [
    (2, 251),
    (5, 509),
    (10, 1021),
    (20, 2039),
    (40, 4093),
    (81, 8191),
    (163, 16_381),
    (327, 32_749),
    (655, 65_521),
    (1310, 131_071),
    (5242, 262_139),
    (usize::MAX, 524_287),
];

/// Slots of a table of `endpoints` endpoints: a prime; 0 for none.
pub fn table_size(endpoints: usize) -> u32 {
    match endpoints {
        0 => 0,
        // Whatever the hash, there is one place to go.
        1 => 2,
        n => SIZES.iter().find(|(most, _)| n <= *most).map_or(524_287, |(_, size)| *size),
    }
}

/// The stable key of an endpoint, for [`table`].
pub fn key(addr: IpAddr, port: u16) -> [u8; 18] {
    let mut key = [0; 18];
    let octets = match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    key[..16].copy_from_slice(&octets);
    key[16..].copy_from_slice(&port.to_be_bytes());
    key
}

/// The table: slot → index into `keys`. `size` is a prime, as [`table_size`] gives it; the result has `size` entries, or none when
/// `keys` is empty. The order of `keys` decides the numbers, never which key a slot belongs to.
pub fn table<K: AsRef<[u8]>>(keys: &[K], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    if keys.is_empty() || size == 0 {
        return Vec::new();
    }
    if keys.len() == 1 {
        return vec![0; size as usize];
    }
    let mut order: Vec<u32> = (0..keys.len() as u32).collect();
    order.sort_by(|a, b| keys[*a as usize].as_ref().cmp(keys[*b as usize].as_ref()));
    // Each endpoint walks its own permutation of the slots: offset, offset + skip, ... modulo a prime.
    let mut walks: Vec<Walk> =
        order.iter().map(|&index| Walk::new(index, keys[index as usize].as_ref(), size)).collect();
    let mut slots = vec![FREE; size as usize];
    let mut left = size;
    loop {
        for walk in &mut walks {
            loop {
                let slot = &mut slots[walk.next as usize];
                walk.step(size);
                if *slot == FREE {
                    *slot = walk.index;
                    break;
                }
            }
            left -= 1;
            if left == 0 {
                return slots;
            }
        }
    }
}

struct Walk {
    index: u32,
    next: u32,
    skip: u32,
}

impl Walk {
    fn new(index: u32, key: &[u8], size: u32) -> Self {
        let hash = fnv1a(key);
        let next = (mix(hash) % u64::from(size)) as u32;
        let skip = (mix(hash ^ 0x9e37_79b9_7f4a_7c15) % u64::from((size - 1).max(1))) as u32 + 1;
        Self { index, next, skip }
    }

    fn step(&mut self, size: u32) {
        self.next += self.skip;
        if self.next >= size {
            self.next -= size;
        }
    }
}

/// FNV-1a, 64 bits: the same on every machine and in every version, unlike the standard library's hashers.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// The finaliser of MurmurHash3: FNV leaves neighbouring keys with neighbouring hashes.
const fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn pods(n: usize) -> Vec<[u8; 18]> {
        (0..n as u32).map(|i| key(IpAddr::V4(Ipv4Addr::from(0x0a2a_0000 + i)), 8080)).collect()
    }

    fn loads(table: &[u32], n: usize) -> Vec<u32> {
        let mut loads = vec![0; n];
        for index in table {
            loads[*index as usize] += 1;
        }
        loads
    }

    /// Which key each slot belongs to, whatever its number.
    fn owners(keys: &[[u8; 18]], size: u32) -> Vec<&[u8; 18]> {
        table(keys, size).into_iter().map(|i| &keys[i as usize]).collect()
    }

    #[test]
    fn every_size_is_a_prime() {
        for (_, size) in SIZES {
            assert!((2..).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
    }

    #[test]
    fn loads_differ_by_at_most_two_percent() {
        for n in [1, 2, 3, 5, 6, 10, 11, 20, 100, 655, 656, 1310, 1311, 5000] {
            let table = table(&pods(n), table_size(n));
            assert_eq!(table.len(), table_size(n) as usize);
            let loads = loads(&table, n);
            let (min, max) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            assert!(f64::from(*max) <= f64::from(*min) * 1.021, "{n} endpoints: {min} to {max} slots");
        }
    }

    #[test]
    fn no_endpoint_has_no_table_and_memory_is_bounded() {
        assert_eq!(table_size(0), 0);
        assert!(table::<[u8; 18]>(&[], 251).is_empty());
        assert!(table_size(5000) <= 1 << 18);
        assert!(table_size(100_000) <= 1 << 19);
    }

    #[test]
    fn a_hundred_slots_an_endpoint_while_they_are_few() {
        for n in 2..=1310 {
            assert!(table_size(n) as usize >= 100 * n, "{n}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn order_does_not_matter(keys in prop::collection::hash_set(any::<[u8; 18]>(), 1..60), seed in any::<u64>()) {
            let keys: Vec<_> = keys.into_iter().collect();
            let size = table_size(keys.len());
            let mut shuffled = keys.clone();
            shuffled.sort_by_key(|k| mix(fnv1a(k) ^ seed));
            prop_assert_eq!(owners(&keys, size), owners(&shuffled, size));
        }

        /// Besides the slots of the one that goes, few change hands; the same comparison read backwards is an endpoint that comes.
        #[test]
        fn little_moves_when_an_endpoint_goes(
            keys in prop::collection::hash_set(any::<[u8; 18]>(), 3..100),
            gone in any::<prop::sample::Index>(),
        ) {
            let keys: Vec<_> = keys.into_iter().collect();
            let gone = *gone.get(&keys);
            let size = table_size(keys.len());
            let rest: Vec<_> = keys.iter().copied().filter(|k| *k != gone).collect();
            let (before, after) = (owners(&keys, size), owners(&rest, size));
            let moved = before.iter().zip(&after).filter(|(b, a)| **b != &gone && b != a).count();
            prop_assert!(after.iter().all(|k| **k != gone));
            prop_assert!(moved * 100 <= size as usize * 12, "{moved} of {size} slots of {} endpoints moved", keys.len());
        }
    }
}
