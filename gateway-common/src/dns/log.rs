//! What the kernel tells of a query that it answered, for the query log.

use bytemuck::{Pod, Zeroable};

use crate::limits::DNS_NAME;

/// A query answered in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Asked {
    /// `CLOCK_MONOTONIC_COARSE` in ns when it was answered.
    pub at: u64,
    /// Its name in wire format with its root byte, folded, zero behind.
    pub name: [u64; DNS_NAME / 8],
    /// Who asked, network order; IPv4 as [`super::limit::mapped`] has it.
    pub source: [u32; 4],
    /// The client's view.
    pub view: u32,
    /// Bytes of `name` used.
    pub name_len: u16,
    /// Query type, host order.
    pub qtype: u16,
    /// Second word of the answer's header, host order: its lowest bits are the RCODE.
    pub flags: u16,
    /// Zero.
    pub pad: [u16; 3],
}

const _: () = assert!(size_of::<Asked>() == 8 + 64 + 16 + 16);

/// [`share`] of a complete log.
pub const ALL: u32 = u32::MAX;
/// [`share`] of no log.
pub const NONE: u32 = 0;

/// A share of `per_million` queries, as a random word is compared with.
pub const fn share(per_million: u32) -> u32 {
    if per_million >= 1_000_000 {
        return ALL;
    }
    // At most 2^32 - 4295, and never none when some are wanted.
    ((per_million as u64) << 32).div_ceil(1_000_000) as u32
}

impl Asked {
    /// The name in wire format.
    pub fn name(&self) -> &[u8] {
        let bytes: &[u8; DNS_NAME] = bytemuck::cast_ref(&self.name);
        bytes.get(..usize::from(self.name_len)).unwrap_or(bytes)
    }

    /// The source as the 16 bytes of an IPv6 address.
    pub const fn source(&self) -> [u8; 16] {
        let [a, b, c, d] = self.source;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_all_random_words() {
        assert_eq!(
            [0, 1, 500_000, 999_999, 1_000_000, u32::MAX].map(share),
            [0, 4295, 1 << 31, 4_294_963_002, ALL, ALL]
        );
    }

    #[test]
    fn an_answered_query_is_read_back() {
        let mut asked = Asked::zeroed();
        asked.name[0] = u64::from_ne_bytes(*b"\x03web\x00\x00\x00\x00");
        asked.name_len = 5;
        asked.source = crate::dns::limit::mapped(u32::from_ne_bytes([10, 90, 1, 7]));
        assert_eq!(asked.name(), b"\x03web\x00");
        assert_eq!(std::net::Ipv6Addr::from(asked.source()).to_canonical().to_string(), "10.90.1.7");
        asked.name_len = 99;
        assert_eq!(asked.name().len(), DNS_NAME, "nothing behind the array");
    }
}
