//! The question to a server, and what counts as an answer to it.

use gateway_common::{limits::DNS_MAX_UDP, maps::dns_key};
use hickory_proto::op::{Message, MessageType, OpCode};

use super::Ask;

/// EDNS option that only takes up room (RFC 7830).
const PADDING: u16 = 12;
/// Encrypted questions are padded to multiples of this, so that their length tells little (RFC 8467 section 4.1).
const BLOCK: usize = 128;

/// What the OPT record of a question says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opt {
    /// There is none: the server is from before EDNS.
    Absent,
    /// Size and DO.
    Plain,
    /// Padded too: the way there is encrypted.
    Padded,
}

/// The query in wire format: RD set, CD and DO as the client had them.
pub(super) fn encode(id: u16, ask: &Ask, opt: Opt) -> Vec<u8> {
    let cd = if ask.flags & dns_key::CD != 0 { 0x10 } else { 0 };
    let mut query = Vec::with_capacity(BLOCK);
    query.extend_from_slice(&id.to_be_bytes());
    query.extend_from_slice(&[1, cd, 0, 1, 0, 0, 0, 0, 0, u8::from(opt != Opt::Absent)]);
    query.extend_from_slice(&ask.name);
    query.extend_from_slice(&ask.qtype.to_be_bytes());
    query.extend_from_slice(&[0, 1]);
    if opt != Opt::Absent {
        let dnssec_ok = if ask.flags & dns_key::DO != 0 { 0x80 } else { 0 };
        query.extend_from_slice(&[0, 0, 41]);
        query.extend_from_slice(&DNS_MAX_UDP.to_be_bytes());
        query.extend_from_slice(&[0, 0, dnssec_ok, 0]);
        let options = if opt == Opt::Padded { padding(query.len() + 2) } else { Vec::new() };
        query.extend_from_slice(&u16::try_from(options.len()).unwrap_or(0).to_be_bytes());
        query.extend_from_slice(&options);
    }
    query
}

/// Puts the name of a query into random case; returns the question as it is then.
pub(super) fn mix_case(query: &mut [u8], name: usize) -> Vec<u8> {
    let question = query.get_mut(12..12 + name + 4).unwrap_or_default();
    // Length bytes are below the letters.
    for byte in question.iter_mut().take(name).filter(|byte| byte.is_ascii_alphabetic()) {
        if rand::random() {
            *byte ^= 0x20;
        }
    }
    question.to_vec()
}

/// The option that fills a message of `len` bytes up to a whole block.
fn padding(len: usize) -> Vec<u8> {
    let room = (len + 4).next_multiple_of(BLOCK) - len - 4;
    let mut option = PADDING.to_be_bytes().to_vec();
    option.extend_from_slice(&u16::try_from(room).unwrap_or(0).to_be_bytes());
    option.resize(4 + room, 0);
    option
}

/// The message, when it answers this question: a response with the ID and the question asked, the name in whatever case.
/// A server that cannot read the question may leave it out of its FORMERR, and a cut answer may end anywhere behind the question.
pub fn match_answer(id: u16, ask: &Ask, bytes: &[u8]) -> Option<Message> {
    let header: &[u8; 12] = bytes.first_chunk()?;
    if header[..2] != id.to_be_bytes() || header[2] & 0xf8 != 0x80 {
        return None;
    }
    if header[4..6] == [0, 0] && header[3] & 0xf == 1 {
        return Message::from_vec(bytes).ok();
    }
    let question = bytes.get(12..12 + ask.name.len() + 4)?;
    let (name, rest) = question.split_at(ask.name.len());
    if header[4..6] != [0, 1]
        || !name.eq_ignore_ascii_case(&ask.name)
        || rest[..2] != ask.qtype.to_be_bytes()
        || rest[2..] != [0, 1]
    {
        return None;
    }
    let cut = header[2] & 2 != 0;
    let answer = Message::from_vec(bytes).ok().or_else(|| {
        cut.then(|| {
            let mut empty = Message::response(id, OpCode::Query);
            empty.metadata.truncation = true;
            empty
        })
    })?;
    (answer.metadata.message_type == MessageType::Response).then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encrypted_question_tells_nothing_by_its_length() {
        for labels in [1, 5, 20] {
            let name = crate::dns::name::from_text(&vec!["label"; labels].join(".")).expect("name");
            let ask = Ask { name, qtype: 1, flags: dns_key::DO, via: 0 };
            let query = encode(7, &ask, Opt::Padded);
            assert_eq!(query.len() % BLOCK, 0, "{labels} labels: {} bytes", query.len());
            let message = Message::from_vec(&query).expect("a readable query");
            assert!(message.edns.is_some_and(|edns| edns.flags().dnssec_ok));
        }
    }
}
