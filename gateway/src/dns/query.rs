//! A client's query. What the shared parser understands is a [`Request`]; what it leaves is looked at more closely here: odd counts and
//! flags are put in order, and what cannot be answered still gets a proper refusal.

use gateway_common::{
    dns::{
        emit::Request,
        wire::{AD, CD, HEADER, IN, OPCODE, OPT_TYPE, QR, RA, RD},
    },
    limits::DNS_MAX_UDP,
    maps::dns_key,
};
use hickory_proto::op::{Message, ResponseCode};

use super::zone::{TYPE_ANY, TYPE_HINFO};

/// Response code 16, whose upper bits are in OPT.
const BADVERS: u16 = 16;

/// A query that has one question of class IN for data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// What it says. For ANY, type HINFO: that is what is answered (RFC 8482).
    pub request: Request,
    /// It was for ANY.
    pub any: bool,
}

/// Why a message gets no ordinary answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Odd {
    /// Not a query; answering it could go in circles.
    Drop,
    /// This answer, ready to send.
    Reply {
        /// The message.
        message: Vec<u8>,
        /// Its response code.
        rcode: u16,
    },
}

/// What OPT of a query says.
#[derive(Clone, Copy)]
struct Edns {
    size: u16,
    dnssec_ok: bool,
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// What to do instead of answering its question.
    pub fn parse(packet: &[u8]) -> Result<Self, Odd> {
        Request::parse(packet).map(|request| Self { request, any: false }).or_else(|_| look_closer(packet))
    }

    /// The message with the question as it was asked.
    pub fn finish(&self, mut message: Vec<u8>) -> Vec<u8> {
        let at = HEADER + self.request.name().len();
        if self.any
            && let Some(qtype) = message.get_mut(at..at + 2)
        {
            qtype.copy_from_slice(&TYPE_ANY.to_be_bytes());
        }
        message
    }
}

/// A query of the gateway's own, for a name that an alias led to.
pub fn request_for(name: &[u8], qtype: u16, bits: u8) -> Option<Request> {
    let dnssec_ok = bits & dns_key::DO != 0;
    let flags = if bits & dns_key::CD != 0 { RD | CD } else { RD };
    let question = [name, &qtype.to_be_bytes(), &IN.to_be_bytes()].concat();
    Request::parse(&message(0, flags, &question, Some(Edns { size: DNS_MAX_UDP, dnssec_ok }), 0)).ok()
}

fn look_closer(packet: &[u8]) -> Result<Query, Odd> {
    let Some(header) = packet.first_chunk::<HEADER>() else { return Err(Odd::Drop) };
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (id, flags) = (word(0), word(2));
    if flags & QR != 0 {
        return Err(Odd::Drop);
    }
    let refuse = |question: &[u8], edns: Option<Edns>, rcode: u16| {
        let flags = QR | RA | flags & (OPCODE | RD | CD) | rcode & 0xf;
        Odd::Reply { message: message(id, flags, question, edns, rcode), rcode }
    };
    let malformed = |question: &[u8]| refuse(question, None, ResponseCode::FormErr.into());
    if flags & OPCODE != 0 {
        return Err(refuse(&[], None, ResponseCode::NotImp.into()));
    }
    if word(4) != 1 {
        return Err(malformed(&[]));
    }
    let name = split_name(&packet[HEADER..]).ok_or_else(|| malformed(&[]))?;
    let end = HEADER + name.len() + 4;
    let Some(&[t0, t1, c0, c1]) = packet.get(end - 4..end).and_then(<[u8]>::first_chunk) else {
        return Err(malformed(&[]));
    };
    let question = &packet[HEADER..end];
    // Two OPT records, records that end behind the message: hickory refuses them.
    let Ok(parsed) = Message::from_vec(packet) else { return Err(malformed(question)) };
    let opt = parsed.edns.as_ref();
    // An option that ends behind OPT it leaves out.
    let alone = word(6) | word(8) == 0 && word(10) == 1;
    if opt.is_some() && alone && !options_are_whole(&packet[end..]) {
        return Err(malformed(question));
    }
    let edns = opt.map(|opt| Edns { size: opt.max_payload(), dnssec_ok: opt.flags().dnssec_ok });
    if opt.is_some_and(|opt| opt.version() > 0) {
        return Err(refuse(question, edns, BADVERS));
    }
    if u16::from_be_bytes([c0, c1]) != IN {
        return Err(refuse(question, edns, ResponseCode::Refused.into()));
    }
    let qtype = u16::from_be_bytes([t0, t1]);
    let refused = match qtype {
        // No type, and OPT, which is a record of the message and not of a name.
        0 | OPT_TYPE => Some(ResponseCode::FormErr),
        // Zone transfers.
        251 | 252 => Some(ResponseCode::Refused),
        // TKEY, TSIG, MAILB, MAILA, and what is not assigned: operations, not data.
        128..=254 => Some(ResponseCode::NotImp),
        _ => None,
    };
    if let Some(code) = refused {
        return Err(refuse(question, edns, code.into()));
    }
    // The same query as its sender should have written it: flags that only answers have, records of no use and options are left out.
    let any = qtype == TYPE_ANY;
    let asked = if any { TYPE_HINFO } else { qtype };
    let question_in_order = [name, &asked.to_be_bytes(), &IN.to_be_bytes()].concat();
    Request::parse(&message(id, flags & (RD | CD | AD), &question_in_order, edns, 0))
        .map(|request| Query { request, any })
        .map_err(|_| malformed(question))
}

/// Whether the options of the OPT record at the front fill it.
fn options_are_whole(opt: &[u8]) -> bool {
    // Root, type, size, extended RCODE and version, flags.
    let Some(Ok(len)) = opt.get(9..11).map(<[u8; 2]>::try_from) else { return false };
    let Some(mut options) = opt.get(11..11 + usize::from(u16::from_be_bytes(len))) else { return false };
    while let [_, _, high, low, rest @ ..] = options {
        let Some(next) = rest.get(usize::from(u16::from_be_bytes([*high, *low]))..) else { return false };
        options = next;
    }
    options.is_empty()
}

/// The name at the front, when it is spelt out.
fn split_name(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        match usize::from(*bytes.get(at)?) {
            0 => return (at < gateway_common::dns::wire::MAX_NAME).then(|| &bytes[..=at]),
            label @ 1..=63 => at += 1 + label,
            _ => return None,
        }
    }
}

/// A message without records but OPT.
fn message(id: u16, flags: u16, question: &[u8], edns: Option<Edns>, rcode: u16) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + question.len() + 11);
    for word in [id, flags, u16::from(!question.is_empty()), 0, 0, u16::from(edns.is_some())] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    message.extend_from_slice(question);
    if let Some(edns) = edns {
        // In an answer, the gateway's own size.
        let size = if flags & QR != 0 { DNS_MAX_UDP } else { edns.size };
        message.extend_from_slice(&[0, 0, 41]);
        message.extend_from_slice(&size.to_be_bytes());
        let upper = u8::try_from(rcode >> 4).unwrap_or(0);
        message.extend_from_slice(&[upper, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: [u8; 12] = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    const QUESTION: &[u8] = b"\x03wEb\x04shop\x00\x00\x01\x00\x01";

    fn packet(change: &[(usize, u8)], tail: &[u8]) -> Vec<u8> {
        let mut packet = [&HEAD[..], QUESTION, tail].concat();
        for (at, byte) in change {
            packet[*at] = *byte;
        }
        packet
    }

    fn rcode_of(packet: &[u8]) -> u16 {
        match Query::parse(packet) {
            Err(Odd::Reply { message, rcode }) => {
                let answer = Message::from_vec(&message).expect("a readable answer");
                assert_eq!(answer.metadata.id, 0x1234);
                let full = u16::from(answer.metadata.response_code);
                assert_eq!(full, rcode, "the message says what is counted");
                rcode
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_odd_but_readable_gets_a_proper_refusal() {
        let end = 12 + QUESTION.len();
        for (what, packet, rcode) in [
            ("opcode STATUS", packet(&[(2, 0x10)], &[]), 4),
            ("opcode UPDATE", packet(&[(2, 0x28)], &[]), 4),
            ("two questions", packet(&[(5, 2)], QUESTION), 1),
            ("no question", packet(&[(5, 0)], &[]), 1),
            ("class CHAOS", packet(&[(end - 1, 3)], &[]), 5),
            ("AXFR", packet(&[(end - 3, 252)], &[]), 5),
            ("IXFR", packet(&[(end - 3, 251)], &[]), 5),
            ("TKEY", packet(&[(end - 3, 249)], &[]), 4),
            ("type 0", packet(&[(end - 3, 0)], &[]), 1),
            ("a compressed name", packet(&[(12, 0xc0)], &[]), 1),
            ("cut in the question", packet(&[], &[])[..end - 2].to_vec(), 1),
            ("OPT that is not there", packet(&[(11, 1)], &[]), 1),
            ("EDNS version 1", packet(&[(11, 1)], &[0, 0, 41, 4, 208, 0, 1, 0, 0, 0, 0]), 16),
            ("an option longer than OPT", packet(&[(11, 1)], &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 5, 0, 10, 0, 2, 1]), 1),
            ("two OPT records", packet(&[(11, 2)], &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0].repeat(2)), 1),
        ] {
            assert_eq!(rcode_of(&packet), rcode, "{what}");
        }
    }

    #[test]
    fn harmless_oddities_are_put_in_order() {
        let plain = Query::parse(&packet(&[], &[])).expect("query");
        for (what, packet) in [
            ("the Z bit", packet(&[(3, 0x40)], &[])),
            ("TC", packet(&[(2, 3)], &[])),
            ("bytes behind the message", packet(&[], &[1, 2, 3])),
        ] {
            assert_eq!(Query::parse(&packet).as_ref(), Ok(&plain), "{what}");
        }
    }

    #[test]
    fn any_is_read_as_hinfo_and_answered_as_any() {
        let query = Query::parse(&packet(&[(12 + QUESTION.len() - 3, 255)], &[])).expect("query");
        assert!(query.any);
        assert_eq!(query.request.query.qtype, TYPE_HINFO);
        let message = query.finish(query.request.emit_empty(5));
        let answer = Message::from_vec(&message).expect("answer");
        assert_eq!(u16::from(answer.queries[0].query_type()), 255);
    }

    #[test]
    fn responses_and_scraps_get_nothing() {
        assert_eq!(Query::parse(&packet(&[(2, 0x81)], &[])), Err(Odd::Drop));
        assert_eq!(Query::parse(&HEAD[..11]), Err(Odd::Drop));
    }

    #[test]
    fn a_query_of_our_own_is_understood() {
        let request = request_for(b"\x03web\x00", 28, dns_key::DO | dns_key::CD).expect("request");
        assert_eq!((request.query.qtype, request.query.bits), (28, dns_key::DO | dns_key::CD));
    }
}
