//! The hash of a flow: it picks the endpoint and the first source port. Its seeds are constants, so that a lost record
//! and a second gateway arrive at the same translation.

use crate::maps::{Address, FlowKey};

/// Seeds: the fractional digits of pi and e, as good as any others, never to be changed.
const SEED: u32 = 0x243f_6a88;
const PORT_SEED: u32 = 0xb7e1_5162;

/// One round of MurmurHash3's body.
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// MurmurHash3's finalizer: every input bit changes every output bit with a chance of one half.
#[inline(always)]
const fn finish(mut hash: u32) -> u32 {
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[inline(always)]
fn address<A: Address>(mut hash: u32, addr: &A) -> u32 {
    let bytes = bytemuck::bytes_of(addr);
    let mut at = 0;
    while at + 4 <= A::LEN {
        hash = mix(hash, u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        at += 4;
    }
    hash
}

#[inline(always)]
fn tuple<A: Address>(seed: u32, key: &FlowKey<A>) -> u32 {
    let hash = address(address(seed, &key.src), &key.dst);
    let ports = u32::from_be_bytes([key.sport[0], key.sport[1], key.dport[0], key.dport[1]]);
    finish(mix(mix(hash, ports), u32::from(key.proto)))
}

/// Which slot of the Service's table a new flow takes, before the remainder.
#[inline(always)]
pub fn endpoint<A: Address>(key: &FlowKey<A>) -> u32 {
    tuple(SEED, key)
}

/// As [`endpoint`], for a Service with ClientIP affinity: every port of a client goes to the same place.
#[inline(always)]
pub fn affinity<A: Address>(client: &A) -> u32 {
    finish(address(SEED, client))
}

/// Where the search for a free source port begins, independent of the endpoint's hash.
#[inline(always)]
pub fn source_port<A: Address>(key: &FlowKey<A>) -> u32 {
    tuple(PORT_SEED, key)
}

/// The source port that a flow tries at its `attempt`, as an offset below `ports`. Flows that meet at one port part ways at the
/// next attempt, so that a crowded range still has its free ports found.
#[inline(always)]
pub const fn port_candidate(hash: u32, attempt: u32, ports: u16) -> u16 {
    let stride = hash.wrapping_mul(0x9e37_79b9) | 1;
    let at = hash.wrapping_add(attempt.wrapping_mul(stride));
    ((at as u64 * ports as u64) >> 32) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SNAT_ATTEMPTS;

    #[test]
    fn a_range_that_is_nearly_full_still_takes_most_flows() {
        let (mut taken, mut refused) = (vec![false; 20_000], 0);
        for port in 0..18_000 {
            let hash = source_port(&key(port));
            let offsets = (0..SNAT_ATTEMPTS).map(|attempt| port_candidate(hash, attempt, 20_000));
            match offsets.map(usize::from).find(|&offset| !taken[offset]) {
                Some(offset) => taken[offset] = true,
                None => refused += 1,
            }
        }
        assert!(refused < 900, "{refused} of 18,000 flows refused with 20,000 ports");
        assert_eq!(port_candidate(u32::MAX, 0, 1), 0);
        assert_eq!(port_candidate(u32::MAX, 0, u16::MAX), u16::MAX - 1);
    }

    // What the first version chose; another gateway, and the next version, must choose the same.
    const HASH: u32 = 2_749_117_353;
    const PORT: u32 = 3_242_397_169;
    const CLIENT: u32 = 3_197_208_584;

    fn key(port: u16) -> FlowKey<[u8; 4]> {
        FlowKey::new([10, 90, 1, 100], [10, 1, 0, 7], port.to_be_bytes(), 80u16.to_be_bytes(), 6)
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!((endpoint(&key(40_000)), source_port(&key(40_000))), (HASH, PORT));
        assert_eq!(affinity(&[10u8, 90, 1, 100]), CLIENT);
    }
    #[test]
    fn consecutive_ports_spread_evenly() {
        let mut slots = [0u32; 97];
        for port in 0..u16::MAX {
            slots[endpoint(&key(port)) as usize % 97] += 1;
        }
        let mean = f64::from(u16::MAX) / 97.0;
        for count in slots {
            assert!((f64::from(count) - mean).abs() < mean * 0.2, "{count} of {mean}");
        }
    }
}
