//! Queries of the shape that nearly all have: one question, and behind it nothing or an OPT record without options. There the
//! message's length tells where the name ends, and nobody has to walk over its labels: a name that equals an entry's, byte for byte
//! but for case, has the entry's labels.
//!
//! What [`Usual`] understands, [`super::question::parse`] understands in the same way, as long as the name is one.

use super::{
    question::{Query, is_data_type},
    wire,
};
use crate::{limits::DNS_NAME, maps::dns_key};

/// Shortest name that is taken: a word, so that the last eight bytes of a name are bytes of it.
pub const SHORTEST: usize = 8;

/// What header and length of a message say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usual {
    flags: u16,
    /// Bytes of the name, root byte included, if it is one: [`SHORTEST`] to [`DNS_NAME`].
    pub name_len: usize,
    /// There must be an OPT record.
    pub edns: bool,
}

impl Usual {
    /// A message of `len` bytes, whose header has these flags, and these counts as one number; host order. `None`: another shape.
    #[inline(always)]
    pub const fn of(flags: u16, counts: u64, len: usize) -> Option<Self> {
        const ONE_QUESTION: u64 = 1 << 48;
        const REFUSED: u16 = wire::QR | wire::OPCODE | wire::TC | wire::Z | wire::RCODE;
        // At most one additional record, and no other.
        if flags & REFUSED != 0 || counts & !1 != ONE_QUESTION {
            return None;
        }
        let edns = counts & 1 != 0;
        let others = wire::HEADER + wire::QUESTION_TAIL + if edns { wire::OPT } else { 0 };
        let name_len = len.wrapping_sub(others);
        if name_len < SHORTEST || name_len > DNS_NAME {
            return None;
        }
        Some(Self { flags, name_len, edns })
    }

    /// The query, from the bytes in network order as one number each: the four behind the name, the first eight of OPT, and the last
    /// four, of which the first is the eighth again; without OPT those are not looked at. `None`: another shape.
    #[inline(always)]
    pub const fn query(&self, id: u16, tail: u32, opt: u64, opt_end: u32) -> Option<Query> {
        let qtype = (tail >> 16) as u16;
        if tail as u16 != wire::IN || !is_data_type(qtype) {
            return None;
        }
        let mut query = Query {
            id,
            flags: self.flags,
            qtype,
            size: 0,
            name_len: self.name_len as u16,
            bits: if self.flags & wire::CD != 0 { dns_key::CD } else { 0 },
            edns: self.edns,
        };
        if self.edns {
            // The root as owner, and the type; extended RCODE and version 0; no options.
            if opt >> 40 != wire::OPT_TYPE as u64 || opt & 0xFF_FF00 != 0 || opt_end & 0xFFFF != 0 {
                return None;
            }
            query.size = (opt >> 24) as u16;
            if opt_end >> 31 != 0 {
                query.bits |= dns_key::DO;
            }
        }
        Some(query)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dns::{
        name::to_wire,
        question::{Unsupported, parse},
    };

    /// The query in a message, read as the kernel reads it.
    fn usual(message: &[u8]) -> Option<Query> {
        let half = |at: usize| u16::from_be_bytes(message[at..at + 2].try_into().unwrap());
        let word = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_be_bytes(message[at..at + 8].try_into().unwrap());
        if message.len() < wire::HEADER {
            return None;
        }
        let usual = Usual::of(half(2), long(4), message.len())?;
        let end = message.len();
        let (opt, opt_end) = if usual.edns { (long(end - wire::OPT), word(end - 4)) } else { (u64::MAX, u32::MAX) };
        usual.query(half(0), word(wire::HEADER + usual.name_len), opt, opt_end)
    }

    /// Whether bytes are one name, from its first label to its root.
    fn is_name(bytes: &[u8]) -> bool {
        let mut at = 0;
        while let Some(&label) = bytes.get(at) {
            match label {
                0 => return at + 1 == bytes.len(),
                1..64 => at += 1 + usize::from(label),
                _ => return false,
            }
        }
        false
    }

    fn message(name: &[u8], qtype: u16, flags: u16, opt: Option<(u16, u16)>) -> Vec<u8> {
        let mut message = vec![0x12, 0x34];
        message.extend(flags.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 0, 0, opt.is_some().into()]);
        message.extend(name);
        message.extend([qtype, wire::IN].map(u16::to_be_bytes).concat());
        if let Some((size, flags)) = opt {
            message.extend([0, 0, 41]);
            message.extend([size, 0, flags, 0].map(u16::to_be_bytes).concat());
        }
        message
    }

    #[test]
    fn common_queries_are_usual() {
        for name in ["a.b.svc", "web.shop.svc.cluster.local", "frontend-web.staging.svc.cluster.local"] {
            for opt in [None, Some((1232, 0)), Some((512, 0x8000))] {
                for flags in [0, wire::RD, wire::RD | wire::AD, wire::RD | wire::CD] {
                    let message = message(&to_wire(name).unwrap(), wire::A, flags, opt);
                    assert_eq!(usual(&message), Some(parse(&message[..], message.len()).unwrap()));
                }
            }
        }
    }

    #[test]
    fn options_and_short_names_are_another_shape() {
        let mut cookie = message(&to_wire("web.shop.svc.cluster.local").unwrap(), wire::A, wire::RD, Some((1232, 0)));
        *cookie.last_mut().unwrap() = 12;
        cookie.extend([0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(parse(&cookie[..], cookie.len()).is_ok());
        assert_eq!(usual(&cookie), None);
        assert_eq!(usual(&message(&to_wire("a.b").unwrap(), wire::A, 0, None)), None);
        assert_eq!(usual(&message(&[63; 70], wire::A, 0, None)), None);
    }

    proptest! {
        /// Nothing is understood that the parser refuses, but for names that are none: no entry has those.
        #[test]
        fn what_is_usual_is_what_the_parser_says(
            labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6),
            qtype in prop_oneof![Just(1u16), Just(28), any::<u16>()],
            flags in prop_oneof![Just(0x0100u16), any::<u16>()],
            opt in prop::option::of((any::<u16>(), any::<u16>())),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            cut in 0usize..3,
            more in prop::collection::vec(any::<u8>(), 0..3),
        ) {
            let mut name: Vec<u8> = labels.iter().flat_map(|l| [vec![l.len() as u8], l.clone()].concat()).collect();
            name.push(0);
            let mut message = message(&name, qtype, flags, opt);
            for (at, to) in changes {
                let at = at.index(message.len());
                message[at] = to;
            }
            message.truncate(message.len() - cut);
            message.extend(more);
            let parsed: Result<Query, Unsupported> = parse(&message[..], message.len());
            if let Some(query) = usual(&message) {
                let name = &message[wire::HEADER..wire::HEADER + usize::from(query.name_len)];
                prop_assert!(parsed == Ok(query) || !is_name(name), "{:?} and {:?}", query, parsed);
            }
        }
    }
}
