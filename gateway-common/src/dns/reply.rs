//! How an answer is laid out: header, the client's own question, body, OPT.

use super::{question::Query, wire};
use crate::{
    limits::DNS_MAX_UDP,
    maps::{DnsEntry, Zone, dns_key},
};

/// The plan of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Second word of the header.
    pub flags: u16,
    /// Answer records.
    pub answers: u16,
    /// Authority records.
    pub authorities: u16,
    /// Additional records, OPT included.
    pub additionals: u16,
    /// Bytes of the body.
    pub body_len: u16,
    /// Not 0: the body is this pointer, to the zone's name inside the question, and [`Zone::soa`]; else it is an entry's.
    pub owner: u16,
    /// An OPT record ends the message.
    pub edns: bool,
    /// It did not fit: TC is set and the body left out.
    pub truncated: bool,
}

impl Reply {
    /// The answer that `entry` gives to `query`, in at most `limit` bytes.
    #[inline(always)]
    pub const fn of_entry(query: &Query, entry: &DnsEntry, limit: usize) -> Self {
        let mut flags = entry.header;
        // RFC 6840 section 5.7: AD means something to clients that ask for it, by DO or by AD itself.
        if query.bits & dns_key::DO == 0 && query.flags & wire::AD == 0 {
            flags &= !wire::AD;
        }
        Self {
            flags: flags | wire::QR | query.flags & (wire::RD | wire::CD),
            answers: entry.answers,
            authorities: entry.authorities,
            additionals: entry.additionals,
            body_len: entry.len,
            owner: 0,
            edns: query.edns,
            truncated: false,
        }
        .fit(query, limit)
    }

    /// The negative answer of a zone that is known as a whole, authoritative like its other answers.
    #[inline(always)]
    pub const fn of_zone(query: &Query, zone: &Zone, rcode: u16, limit: usize) -> Self {
        let owner = wire::HEADER as u16 + query.name_len.wrapping_sub(zone.name_len);
        Self {
            flags: wire::QR | wire::AA | wire::RA | rcode | query.flags & (wire::RD | wire::CD),
            answers: 0,
            authorities: 1,
            additionals: 0,
            body_len: 2 + zone.soa_len,
            owner: 0xC000 | owner,
            edns: query.edns,
            truncated: false,
        }
        .fit(query, limit)
    }

    /// Instead of an answer above the rate (see [`super::limit`]): TC and no records, whatever the answer would be.
    #[inline(always)]
    pub const fn slip(query: &Query) -> Self {
        Self {
            flags: wire::QR | wire::TC | wire::RA | query.flags & (wire::RD | wire::CD),
            answers: 0,
            authorities: 0,
            additionals: query.edns as u16,
            body_len: 0,
            owner: 0,
            edns: query.edns,
            truncated: true,
        }
    }

    #[inline(always)]
    const fn fit(mut self, query: &Query, limit: usize) -> Self {
        if self.len(query) > limit {
            self.truncated = true;
            self.flags = (self.flags | wire::TC) & !wire::AD;
            self.answers = 0;
            self.authorities = 0;
            self.additionals = 0;
            self.body_len = 0;
        }
        if self.edns {
            self.additionals += 1;
        }
        self
    }

    /// Where OPT begins, or the message ends.
    #[inline(always)]
    pub const fn opt_at(&self, query: &Query) -> usize {
        query.body_at() + self.body_len as usize
    }

    /// Bytes of the message.
    #[inline(always)]
    pub const fn len(&self, query: &Query) -> usize {
        self.opt_at(query) + if self.edns { wire::OPT } else { 0 }
    }

    /// The header as six words, host order.
    #[inline(always)]
    pub const fn header(&self, query: &Query) -> [u16; 6] {
        [query.id, self.flags, 1, self.answers, self.authorities, self.additionals]
    }

    /// Ones' complement sum of the whole message, not folded; `question` and `body` are sums as if each began at an even
    /// offset.
    #[inline(always)]
    pub const fn sum(&self, query: &Query, question: u16, body: u16) -> u32 {
        let [id, flags, questions, answers, authorities, additionals] = self.header(query);
        let mut sum = question as u32
            + id as u32
            + flags as u32
            + questions as u32
            + answers as u32
            + authorities as u32
            + additionals as u32;
        sum += at_parity(body, query.body_at()) as u32;
        if self.edns {
            // OPT: owner 0, type 41, size, extended RCODE and version 0, flags, length 0: words straddle its first byte.
            let opt = wire::OPT_TYPE + DNS_MAX_UDP + if query.bits & dns_key::DO == 0 { 0 } else { 0x8000 };
            sum += at_parity(opt, self.opt_at(query) + 1) as u32;
        }
        sum
    }
}

/// The OPT record of every answer to a query that had one, with or without DO (RFC 6891 section 6.1.2, RFC 3225).
#[inline(always)]
pub const fn opt(dnssec_ok: bool) -> [u8; wire::OPT] {
    let [size_high, size_low] = DNS_MAX_UDP.to_be_bytes();
    [0, 0, wire::OPT_TYPE as u8, size_high, size_low, 0, 0, if dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]
}

/// [`opt`] in two words as they lie in memory, the second of which begins with the last byte of the first.
#[inline(always)]
pub const fn opt_words(dnssec_ok: bool) -> (u64, u32) {
    let [a, b, c, d, e, f, g, h, i, j, k] = opt(dnssec_ok);
    (u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u32::from_ne_bytes([h, i, j, k]))
}

/// Which of `count` rotating records comes first, the `turn`th time.
#[inline(always)]
pub const fn rotation(count: u8, turn: u64) -> u8 {
    if count > 1 { (turn as u32 % count as u32) as u8 } else { 0 }
}

/// A TTL after `age` seconds.
#[inline(always)]
pub const fn aged(ttl: u32, age: u32) -> u32 {
    ttl.saturating_sub(age)
}

/// Folds a ones' complement sum to 16 bits.
#[inline(always)]
pub const fn fold_sum(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xFFFF);
    ((sum >> 16) + (sum & 0xFFFF)) as u16
}

/// The sum of bytes that begin at offset `at`, from their sum as if they began at an even one.
#[inline(always)]
pub const fn at_parity(sum: u16, at: usize) -> u16 {
    if at & 1 == 0 { sum } else { sum.swap_bytes() }
}

/// What changing a TTL at body offset `at` adds to the body's sum.
#[inline(always)]
pub const fn ttl_change(at: usize, old: u32, new: u32) -> u32 {
    let change = (!old >> 16) + (!old & 0xFFFF) + (new >> 16) + (new & 0xFFFF);
    at_parity(fold_sum(change), at) as u32
}
