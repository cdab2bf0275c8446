//! What a query says. Bounded, without panics, over bytes of any source.

use bytemuck::{Pod, Zeroable};

use super::{
    hash::Keys,
    name::{FoldedName, fold_word},
    reply::{at_parity, fold_sum},
    wire,
};
use crate::{
    limits::{DNS_MAX_UDP, DNS_MIN_UDP, DNS_NAME},
    maps::{DnsKey, dns_key},
};

/// Bytes of a message, by position.
pub trait Message {
    /// Longest name, in wire format with its root byte, that is understood.
    const NAME: usize;
    /// EDNS options that are walked over.
    const OPTIONS: usize;
    /// Byte `at`; anything behind the end, but no panic.
    fn byte(&self, at: usize) -> u8;
    /// Two bytes as the network has them.
    #[inline(always)]
    fn u16(&self, at: usize) -> u16 {
        (self.byte(at) as u16) << 8 | self.byte(at + 1) as u16
    }
}

/// Why a query is not answered by the shared code. The kernel passes it on; the forwarder decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Ends inside the header, the question or OPT.
    Short,
    /// Longer than the bytes that are looked at.
    Long,
    /// Not a query but a response.
    Response,
    /// An opcode other than QUERY.
    Opcode,
    /// TC, Z or an RCODE in a query.
    Flags,
    /// Not one question, or records besides OPT.
    Counts,
    /// A compression pointer or an unknown label type in the question.
    Label,
    /// A name longer than [`Message::NAME`].
    Name,
    /// A class other than IN.
    Class,
    /// A meta type (ANY, AXFR, IXFR, OPT, 128 to 255) or type 0.
    Type,
    /// The additional record is not OPT, or is malformed.
    Opt,
    /// An EDNS version other than 0.
    Version,
    /// More than [`Message::OPTIONS`] EDNS options.
    Options,
    /// Bytes behind the last record.
    Trailing,
}

/// A query that is understood, but for its name, which stays where it is: `name_len` bytes from [`wire::HEADER`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// ID.
    pub id: u16,
    /// Second word of the header.
    pub flags: u16,
    /// QTYPE; an ordinary one.
    pub qtype: u16,
    /// The client's EDNS size as it says; 0 without OPT.
    pub size: u16,
    /// Bytes of the name, root byte included.
    pub name_len: u16,
    /// [`dns_key`] bits: DO and CD.
    pub bits: u8,
    /// The query has an OPT record.
    pub edns: bool,
}

impl Query {
    /// Bytes of the question: name, QTYPE, QCLASS.
    #[inline(always)]
    pub const fn question_len(&self) -> usize {
        self.name_len as usize + wire::QUESTION_TAIL
    }

    /// Where the answer's body begins: behind header and question.
    #[inline(always)]
    pub const fn body_at(&self) -> usize {
        wire::HEADER + self.question_len()
    }

    /// Largest UDP answer that this client gets.
    #[inline(always)]
    pub const fn limit(&self) -> usize {
        // RFC 6891 section 6.2.3: sizes below 512 count as 512.
        if self.size <= DNS_MIN_UDP {
            DNS_MIN_UDP as usize
        } else if self.size >= DNS_MAX_UDP {
            DNS_MAX_UDP as usize
        } else {
            self.size as usize
        }
    }
}

/// Whether a query type is ordinary data, that may have an entry.
#[inline(always)]
pub const fn is_data_type(qtype: u16) -> bool {
    // RFC 6895 section 3.1: 128 to 255 are QTYPEs and meta types; 0 would be the marker of existing names.
    qtype != dns_key::EXISTS && qtype != wire::OPT_TYPE && (qtype < 128 || qtype > 255)
}

/// Parses a query of `len` bytes.
///
/// # Errors
/// What is not understood.
#[inline(always)]
pub fn parse<M: Message + ?Sized>(message: &M, len: usize) -> Result<Query, Unsupported> {
    const SMALLEST: usize = wire::HEADER + 1 + wire::QUESTION_TAIL;
    if len < SMALLEST {
        return Err(Unsupported::Short);
    }
    let flags = message.u16(2);
    if flags & wire::QR != 0 {
        return Err(Unsupported::Response);
    }
    if flags & wire::OPCODE != 0 {
        return Err(Unsupported::Opcode);
    }
    if flags & (wire::TC | wire::Z | wire::RCODE) != 0 {
        return Err(Unsupported::Flags);
    }
    let additionals = message.u16(10);
    if message.u16(4) != 1 || message.u16(6) | message.u16(8) != 0 || additionals > 1 {
        return Err(Unsupported::Counts);
    }
    let mut at = wire::HEADER;
    let mut ended = false;
    for _ in 0..=M::NAME / 2 {
        let label = message.byte(at) as usize;
        if label == 0 {
            ended = true;
            break;
        }
        if label > 63 {
            return Err(Unsupported::Label);
        }
        at += 1 + label;
        if at >= len {
            return Err(Unsupported::Short);
        }
        if at >= wire::HEADER + M::NAME {
            return Err(Unsupported::Name);
        }
    }
    if !ended {
        return Err(Unsupported::Name);
    }
    let name_len = at + 1 - wire::HEADER;
    let end = at + 1 + wire::QUESTION_TAIL;
    if end > len {
        return Err(Unsupported::Short);
    }
    let qtype = message.u16(at + 1);
    if message.u16(at + 3) != wire::IN {
        return Err(Unsupported::Class);
    }
    if !is_data_type(qtype) {
        return Err(Unsupported::Type);
    }
    let mut query = Query {
        id: message.u16(0),
        flags,
        qtype,
        size: 0,
        name_len: name_len as u16,
        bits: if flags & wire::CD != 0 { dns_key::CD } else { 0 },
        edns: false,
    };
    if additionals == 0 {
        return if end == len { Ok(query) } else { Err(Unsupported::Trailing) };
    }
    if end + wire::OPT > len {
        return Err(Unsupported::Short);
    }
    // Owner is the root; then type, the client's size, extended RCODE and version, flags, length.
    if message.byte(end) != 0 || message.u16(end + 1) != wire::OPT_TYPE || message.byte(end + 5) != 0 {
        return Err(Unsupported::Opt);
    }
    if message.byte(end + 6) != 0 {
        return Err(Unsupported::Version);
    }
    query.edns = true;
    query.size = message.u16(end + 3);
    if message.byte(end + 7) & 0x80 != 0 {
        query.bits |= dns_key::DO;
    }
    let options_end = end + wire::OPT + message.u16(end + 9) as usize;
    if options_end < len {
        return Err(Unsupported::Trailing);
    }
    if options_end > len {
        return Err(Unsupported::Opt);
    }
    // Options are well-formed or the query is not answered here; what they say changes no answer (a server without
    // cookies ignores COOKIE, RFC 7873 section 5.2).
    let mut option = end + wire::OPT;
    for _ in 0..M::OPTIONS {
        if option == len {
            break;
        }
        if option + 4 > len {
            return Err(Unsupported::Opt);
        }
        option += 4 + message.u16(option + 2) as usize;
        if option > len {
            return Err(Unsupported::Opt);
        }
    }
    if option == len { Ok(query) } else { Err(Unsupported::Options) }
}

/// Words of a [`Window`].
const WINDOW_WORDS: usize = 33;
/// Positions in a [`Window`]: a word fewer than it has, so that two bytes can be read at any of them.
const WINDOW_MASK: usize = 255;
/// Bytes before the message in a [`Window`], so that the name begins on a word.
const WINDOW_LEAD: usize = 4;
/// Words before the name.
const NAME_WORD: usize = (WINDOW_LEAD + wire::HEADER) / 8;
/// Words of the longest name.
const NAME_WORDS: usize = DNS_NAME / 8;

/// The kernel's copy of a query: aligned so that the name is folded a word at a time. Zero, or any older query, behind the
/// message's end: nothing there is used.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Window {
    words: [u64; WINDOW_WORDS],
}

impl Window {
    /// Longest message it holds.
    pub const LEN: usize = WINDOW_MASK + 1 - WINDOW_LEAD;

    /// Bytes of a message before its first whole word in the window.
    pub const START: usize = 8 - WINDOW_LEAD;

    /// A window with nothing in it.
    pub const EMPTY: Self = Self { words: [0; WINDOW_WORDS] };

    /// Where the message's bytes go.
    #[inline(always)]
    pub fn message_mut(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast::<u8>().wrapping_add(WINDOW_LEAD)
    }

    /// The window of a message; `None` when it is too long.
    pub fn of(message: &[u8]) -> Option<Self> {
        let mut window = Self::EMPTY;
        let bytes: &mut [u8; WINDOW_WORDS * 8] = bytemuck::cast_mut(&mut window.words);
        bytes[..=WINDOW_MASK].get_mut(WINDOW_LEAD..WINDOW_LEAD + message.len())?.copy_from_slice(message);
        Some(window)
    }

    /// Hashes the query's name of `len` bytes. Returns the ones' complement sum of the question as the client wrote it, as if it
    /// began at an even offset (it does), and the name's sum for [`Keys::finish`].
    #[inline(always)]
    pub fn hash(&self, len: usize, qtype: u16, keys: &Keys) -> (u16, u64) {
        let mut sum = NameSum::EMPTY;
        for i in 0..NAME_WORDS {
            if 8 * i + 8 > len {
                break;
            }
            sum.add(i, self.words[NAME_WORD + i], keys);
        }
        if len & 7 != 0 {
            let (i, word) = self.last(len);
            sum.add(i, word, keys);
        }
        (sum.question(len, qtype), sum.hash)
    }

    /// Whether the query's name of `len` bytes is that one, which is folded, zero behind its end, and of as many bytes.
    #[inline(always)]
    pub fn is(&self, len: usize, other: &[u64; NAME_WORDS]) -> bool {
        // Most clients write small letters.
        for (i, other) in other.iter().enumerate() {
            if 8 * i + 8 > len {
                break;
            }
            let word = self.words[NAME_WORD + i];
            if word != *other && fold_word(word) != *other {
                return false;
            }
        }
        if len & 7 == 0 {
            return true;
        }
        let (i, word) = self.last(len);
        word == other[i] || fold_word(word) == other[i]
    }

    /// Folds the query's name of `len` bytes, at most [`DNS_NAME`]. False: those are not one name, from its first label to its root.
    #[inline(always)]
    pub fn fold(&self, len: usize, name: &mut Folded) -> bool {
        for (i, folded) in name.words.iter_mut().enumerate().take(NAME_WORDS) {
            *folded = fold_word(masked(self.words[NAME_WORD + i], len, i));
        }
        let (mut labels, mut at, mut end) = (0u64, 0, 0);
        for _ in 0..=DNS_NAME / 2 {
            if at >= len {
                break;
            }
            labels |= 1 << (at & 63);
            let label = self.byte(wire::HEADER + at) as usize;
            // What is no label's length (64 and more) leads behind the end of any name.
            at += 1 + label;
            if label == 0 {
                end = at;
                break;
            }
        }
        (name.len, name.labels) = (len as u64, labels);
        end == len
    }

    /// The word that a name of `len` bytes ends in the midst of: its number, and its bytes with zeros behind the end.
    #[inline(always)]
    const fn last(&self, len: usize) -> (usize, u64) {
        let i = (len / 8) & (NAME_WORDS - 1);
        (i, (u64::from_le(self.words[NAME_WORD + i]) & ((1 << (8 * (len & 7))) - 1)).to_le())
    }
}

/// What is summed up over the words of a query's name, as the client wrote it.
#[derive(Clone, Copy, Debug)]
pub struct NameSum {
    sum: u64,
    /// The name's sum for [`Keys::finish`].
    pub hash: u64,
}

impl NameSum {
    /// Of no words.
    pub const EMPTY: Self = Self { sum: 0, hash: 0 };

    /// Adds word `i` of the name: bytes as they lie in memory, zero behind the name's end.
    #[inline(always)]
    pub const fn add(&mut self, i: usize, word: u64, keys: &Keys) {
        self.sum += (word >> 32) + (word & 0xFFFF_FFFF);
        self.hash = keys.add(self.hash, i, word);
    }

    /// The ones' complement sum of the question whose name has `len` bytes, as if it began at an even offset (it does).
    #[inline(always)]
    pub const fn question(&self, len: usize, qtype: u16) -> u16 {
        let sum = (self.sum >> 32) + (self.sum & 0xFFFF_FFFF);
        let sum = (sum >> 32) + (sum & 0xFFFF_FFFF);
        // Summed in native words; the sum of big-endian ones is the same number with its bytes swapped.
        let name = u16::from_be(fold_sum(sum as u32)) as u32;
        let tail = fold_sum(qtype as u32 + wire::IN as u32);
        fold_sum(name + at_parity(tail, len) as u32)
    }
}

/// A folded name in the kernel, zero behind its end; the second half is always zero, so that a word can be read anywhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Folded {
    words: [u64; 2 * NAME_WORDS],
    /// Bytes of the name.
    len: u64,
    /// Bit n: a label, the root's included, begins at byte n.
    labels: u64,
}

impl Folded {
    /// An empty one.
    pub const EMPTY: Self = Self { words: [0; 2 * NAME_WORDS], len: 0, labels: 0 };

    /// The words of a name of any length that the kernel takes.
    #[inline(always)]
    pub fn name_words(&self) -> &[u64; NAME_WORDS] {
        self.words.first_chunk().unwrap_or(&[0; NAME_WORDS])
    }

    /// The eight bytes from `at` on, at most [`DNS_NAME`].
    #[inline(always)]
    const fn word_at(&self, at: usize) -> u64 {
        let (i, shift) = (at / 8, at % 8 * 8);
        let low = self.words[i & (2 * NAME_WORDS - 1)].to_le() >> shift;
        // Two shifts, as one by 64 would be none.
        let high = self.words[(i + 1) & (2 * NAME_WORDS - 1)].to_le() << 1 << (63 - shift);
        u64::from_le(low | high)
    }

    /// Whether the name is in a zone, whose name has `zone_len` bytes.
    #[inline(always)]
    pub const fn is_below(&self, zone: &[u64; NAME_WORDS], zone_len: usize) -> bool {
        let len = self.len as usize;
        if zone_len > len || zone_len == 0 {
            return false;
        }
        let at = (len - zone_len) & (DNS_NAME - 1);
        if self.labels >> at & 1 == 0 {
            return false;
        }
        let mut i = 0;
        while i < NAME_WORDS && 8 * i < zone_len {
            if self.word_at(at + 8 * i) != zone[i] {
                return false;
            }
            i += 1;
        }
        true
    }

    /// The name's bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::bytes_of(&self.words)[..DNS_NAME]
    }
}

/// Word `i` of a text of `len` bytes, with what is behind the end zeroed.
#[inline(always)]
const fn masked(word: u64, len: usize, i: usize) -> u64 {
    let begin = 8 * i;
    if len >= begin + 8 {
        word
    } else if len <= begin {
        0
    } else {
        (u64::from_le(word) & ((1 << (8 * (len - begin))) - 1)).to_le()
    }
}

impl Message for Window {
    const NAME: usize = DNS_NAME;
    const OPTIONS: usize = 6;
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        let bytes: &[u8; WINDOW_WORDS * 8] = bytemuck::cast_ref(&self.words);
        // The mask is for the verifier, which must see that no position leaves the window.
        bytes[(at + WINDOW_LEAD) & WINDOW_MASK]
    }
    #[inline(always)]
    fn u16(&self, at: usize) -> u16 {
        let bytes: &[u8; WINDOW_WORDS * 8] = bytemuck::cast_ref(&self.words);
        let at = (at + WINDOW_LEAD) & WINDOW_MASK;
        u16::from_be_bytes([bytes[at], bytes[at + 1]])
    }
}

#[cfg(any(test, feature = "std"))]
impl Message for [u8] {
    const NAME: usize = wire::MAX_NAME;
    // As many as 64 KiB can hold.
    const OPTIONS: usize = 1 << 14;
    fn byte(&self, at: usize) -> u8 {
        self.get(at).copied().unwrap_or(0)
    }
}

impl FoldedName for DnsKey {
    const MAX: usize = DNS_NAME;
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        self.name[at & (DNS_NAME - 1)]
    }
}
