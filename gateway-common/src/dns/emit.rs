//! The forwarder's side of a query and its answer. Host only.

use super::{
    build::{Answer, key},
    name::fold,
    question::{Query, Unsupported, parse},
    reply::{Reply, aged, opt, rotation},
    resolve::Outcome,
    wire,
};
use crate::maps::{DnsKey, Zone, dns_key};

/// A query with the bytes of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it says.
    pub query: Query,
    /// The question as the client wrote it: name, QTYPE, QCLASS.
    question: Vec<u8>,
    /// The name, folded.
    name: Vec<u8>,
}

/// How TTLs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttls {
    /// Older by so many seconds than when the entry was made.
    Aged(u32),
    /// All the same, as for stale answers (RFC 8767 section 4).
    Fixed(u32),
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// Most bytes: [`Query::limit`] over UDP, 65,535 over TCP.
    pub limit: usize,
    /// The TTLs.
    pub ttls: Ttls,
    /// Counts the answers given from this entry, for rotation.
    pub turn: u64,
}

impl Sending {
    /// Over UDP, with TTLs aged by `age` seconds.
    pub const fn udp(query: &Query, age: u32, turn: u64) -> Self {
        Self { limit: query.limit(), ttls: Ttls::Aged(age), turn }
    }

    /// Over TCP, with TTLs aged by `age` seconds.
    pub const fn tcp(age: u32, turn: u64) -> Self {
        Self { limit: u16::MAX as usize, ttls: Ttls::Aged(age), turn }
    }
}

impl Request {
    /// Parses a message.
    ///
    /// # Errors
    /// What is not understood; see [`Unsupported`].
    pub fn parse(message: &[u8]) -> Result<Self, Unsupported> {
        let query = parse(message, message.len())?;
        let question = message[wire::HEADER..query.body_at()].to_vec();
        let name = fold(&question[..usize::from(query.name_len)]);
        Ok(Self { query, question, name })
    }

    /// The folded name in wire format.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The question as the client wrote it: name, QTYPE, QCLASS.
    pub fn question(&self) -> &[u8] {
        &self.question
    }

    /// The kernel's key for what is learnt about this query; `None` when the name is too long for one.
    pub fn key(&self) -> Option<DnsKey> {
        key(&self.name, self.query.qtype, self.query.bits)
    }

    /// The message that `answer` gives to this query.
    pub fn emit(&self, answer: &Answer, sending: &Sending) -> Vec<u8> {
        let reply = Reply::of_entry(&self.query, answer.head(), sending.limit);
        self.message(&reply, |message| {
            let body = message.len();
            let head = answer.head();
            message.extend(answer.body());
            let first = rotation(head.rotate_count, sending.turn);
            let begin = body + usize::from(head.rotate_at);
            let len = usize::from(head.rotate_len) * usize::from(head.rotate_count);
            message[begin..begin + len].rotate_left(usize::from(head.rotate_len) * usize::from(first));
            for &at in answer.ttls() {
                let at = body + usize::from(at);
                let field = &mut message[at..at + 4];
                let ttl = match sending.ttls {
                    Ttls::Aged(age) => aged(u32::from_be_bytes([field[0], field[1], field[2], field[3]]), age),
                    Ttls::Fixed(ttl) => ttl,
                };
                field.copy_from_slice(&ttl.to_be_bytes());
            }
        })
    }

    /// The negative answer of `zone`, with `rcode` NOERROR (no such type) or NXDOMAIN.
    pub fn emit_negative(&self, zone: &Zone, rcode: u16, limit: usize) -> Vec<u8> {
        let reply = Reply::of_zone(&self.query, zone, rcode, limit);
        self.message(&reply, |message| {
            message.extend(reply.owner.to_be_bytes());
            message.extend(&zone.soa[..usize::from(zone.soa_len)]);
        })
    }

    /// An answer without records: the gateway's own REFUSED, SERVFAIL and the like.
    pub fn emit_empty(&self, rcode: u16) -> Vec<u8> {
        let reply = Reply {
            flags: wire::QR | wire::RA | rcode & wire::RCODE | self.query.flags & (wire::RD | wire::CD),
            answers: 0,
            authorities: 0,
            additionals: self.query.edns.into(),
            body_len: 0,
            owner: 0,
            edns: self.query.edns,
            truncated: false,
        };
        self.message(&reply, |_| ())
    }

    /// Instead of an answer above the rate; see [`Reply::slip`].
    pub fn emit_slip(&self) -> Vec<u8> {
        self.message(&Reply::slip(&self.query), |_| ())
    }

    /// The message for an outcome of [`super::resolve::resolve`]; `None` for one that answers nothing.
    pub fn emit_outcome<E, Z>(&self, outcome: &Outcome<E, Z>, limit: usize, turn: u64) -> Option<Vec<u8>>
    where
        E: std::borrow::Borrow<Answer>,
        Z: std::ops::Deref<Target = Zone>,
    {
        match outcome {
            Outcome::Answer(answer, age) => {
                Some(self.emit(answer.borrow(), &Sending { limit, ttls: Ttls::Aged(*age), turn }))
            }
            Outcome::NoData(zone) => Some(self.emit_negative(zone, wire::NOERROR, limit)),
            Outcome::NxDomain(zone) => Some(self.emit_negative(zone, wire::NXDOMAIN, limit)),
            Outcome::Miss | Outcome::Expired => None,
        }
    }

    fn message(&self, reply: &Reply, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut message = Vec::with_capacity(reply.len(&self.query));
        message.extend(reply.header(&self.query).into_iter().flat_map(u16::to_be_bytes));
        message.extend(&self.question);
        if !reply.truncated {
            body(&mut message);
        }
        if reply.edns {
            message.extend(opt(self.query.bits & dns_key::DO != 0));
        }
        message
    }
}
