//! Entries from records. Host only.

use std::fmt;

use bytemuck::Zeroable as _;

use super::{
    name::{fold, to_text},
    reply::fold_sum,
    resolve::Entry,
    wire,
};
use crate::{
    limits::{DNS_INLINE_BODY, DNS_LARGE_BODY, DNS_MAX_TTLS, DNS_NAME, DNS_SOA},
    maps::{DnsEntry, DnsKey, DnsLarge, Zone, dns_entry, dns_key},
};

/// What cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// Not a name in wire format (uncompressed, at most 255 bytes).
    Name(Vec<u8>),
    /// Record data of more than 65,535 bytes.
    Rdata(usize),
    /// A message of more than 65,535 bytes, or more than 65,535 records.
    TooBig(usize),
    /// A zone's name longer than the kernel's limit.
    ZoneName(String),
    /// A zone's SOA longer than the kernel's limit.
    Soa(String),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "no name in wire format: {name:02x?}"),
            Self::Rdata(len) => write!(f, "record data of {len} bytes; at most 65535 fit"),
            Self::TooBig(len) => write!(f, "answer of {len} bytes; at most 65535 fit a message"),
            Self::ZoneName(zone) => {
                write!(f, "zone {zone}: its name has more than {DNS_NAME} bytes; choose a shorter cluster domain")
            }
            Self::Soa(zone) => {
                write!(f, "zone {zone}: its SOA has more than {DNS_SOA} bytes; choose shorter names in it")
            }
        }
    }
}

impl std::error::Error for BuildError {}

/// A record; data as on the wire, with the names in it spelt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Owner, wire format.
    pub owner: &'a [u8],
    /// Type.
    pub rtype: u16,
    /// Class.
    pub class: u16,
    /// TTL in seconds.
    pub ttl: u32,
    /// Data.
    pub rdata: &'a [u8],
}

impl<'a> Record<'a> {
    /// A record of class IN.
    pub const fn new(owner: &'a [u8], rtype: u16, ttl: u32, rdata: &'a [u8]) -> Self {
        Self { owner, rtype, class: wire::IN, ttl, rdata }
    }
}

/// What a pointer's 14 bits reach.
const POINTER_REACH: usize = 1 << 14;

/// An answer of any size: what the forwarder keeps, and what an entry of the kernel is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Everything but body and TTL offsets, which are beside it.
    head: DnsEntry,
    /// The body.
    body: Vec<u8>,
    /// Body offsets of the TTLs; none for zone data.
    ttls: Vec<u16>,
}

impl Entry for Answer {
    fn head(&self) -> &DnsEntry {
        &self.head
    }
}

impl Entry for std::sync::Arc<Answer> {
    fn head(&self) -> &DnsEntry {
        &self.head
    }
}

impl Entry for &Answer {
    fn head(&self) -> &DnsEntry {
        &self.head
    }
}

impl Answer {
    /// Counts, flags, times, views. Its `body`, `ttls`, `ttl_count` and `large` are not filled in.
    pub const fn head(&self) -> &DnsEntry {
        &self.head
    }

    /// The body: everything between question and OPT.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Body offsets of the TTLs that age.
    pub fn ttls(&self) -> &[u16] {
        &self.ttls
    }

    /// The entry for the kernel, with its body in `LARGE` under `large` (not 0) when it is not small. `None` when the kernel
    /// cannot answer with it: too many TTLs to age.
    ///
    /// An answer that no UDP message holds is an entry without a body: it is truncated for every client.
    pub fn to_kernel(&self, large: u32) -> Option<(DnsEntry, Option<DnsLarge>)> {
        let mut entry = self.head;
        let len = self.body.len();
        if len > DNS_LARGE_BODY {
            entry.rotate_count = 0;
            return Some((entry, None));
        }
        if self.ttls.len() > DNS_MAX_TTLS {
            return None;
        }
        entry.ttls[..self.ttls.len()].copy_from_slice(&self.ttls);
        entry.ttl_count = u8::try_from(self.ttls.len()).ok()?;
        if len <= DNS_INLINE_BODY {
            entry.body[..len].copy_from_slice(&self.body);
            return Some((entry, None));
        }
        entry.large = large;
        let mut body = DnsLarge::zeroed();
        body.body[..len].copy_from_slice(&self.body);
        Some((entry, Some(body)))
    }

    /// Whether [`Self::to_kernel`] needs a key into `LARGE`.
    pub fn is_large(&self) -> bool {
        (DNS_INLINE_BODY + 1..=DNS_LARGE_BODY).contains(&self.body.len())
    }

    /// The same answer for other views.
    #[must_use]
    pub fn with_views(mut self, views: u64) -> Self {
        self.head.views = views;
        self
    }
}

/// The key of a folded or unfolded wire name; `None` when the kernel's keys do not hold it.
pub fn key(name: &[u8], qtype: u16, bits: u8) -> Option<DnsKey> {
    if name.len() > DNS_NAME || !is_wire_name(name) {
        return None;
    }
    let mut key = DnsKey::zeroed();
    key.name[..name.len()].copy_from_slice(&fold(name));
    key.qtype = qtype;
    key.flags = bits;
    key.len = u8::try_from(name.len()).ok()?;
    Some(key)
}

/// Whether these bytes are one uncompressed name, root byte included.
pub fn is_wire_name(name: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&len) = name.get(at) {
        if len == 0 {
            return at + 1 == name.len() && name.len() <= wire::MAX_NAME;
        }
        if len > 63 {
            return false;
        }
        at += 1 + usize::from(len);
    }
    false
}

/// Builds one [`Answer`]; records are kept in the order in which they are given.
#[derive(Clone, Debug)]
pub struct EntryBuilder {
    question: Vec<u8>,
    head: DnsEntry,
    body: Vec<u8>,
    ttls: Vec<u16>,
    counts: [usize; 3],
    /// Names in the data of records that later owners can point to, beside the question: begin and length in the body.
    targets: Vec<(usize, usize)>,
    /// The records of the answer section: begin, size, whether they may rotate with the one before.
    answers: Vec<Placed>,
    /// Owner (folded), type, class and TTL that records of a rotating set share: those of the last set.
    set: Option<(Vec<u8>, u16, u16, u32)>,
    /// How many sets there were.
    sets: usize,
}

#[derive(Clone, Debug)]
struct Placed {
    at: usize,
    len: usize,
    /// Number of the rotating set it is of; `None` for types that do not rotate.
    set: Option<usize>,
}

impl EntryBuilder {
    /// For zone data: authoritative, ageless, for the views of this mask. `question` is the wire name asked for.
    ///
    /// # Errors
    /// When `question` is no wire name.
    pub fn zone(question: &[u8], views: u64) -> Result<Self, BuildError> {
        let mut builder = Self::new(question, views)?;
        builder.head.header |= wire::AA;
        builder.head.flags = dns_entry::ZONE;
        Ok(builder)
    }

    /// For what was learnt at `stored`, not to be served from `expires` on (`CLOCK_MONOTONIC`, ns, not 0).
    ///
    /// # Errors
    /// When `question` is no wire name.
    pub fn learnt(question: &[u8], views: u64, stored: u64, expires: u64) -> Result<Self, BuildError> {
        let mut builder = Self::new(question, views)?;
        builder.head.stored = stored;
        builder.head.expires = expires.max(1);
        Ok(builder)
    }

    fn new(question: &[u8], views: u64) -> Result<Self, BuildError> {
        if !is_wire_name(question) {
            return Err(BuildError::Name(question.to_vec()));
        }
        let question = fold(question);
        let mut head = DnsEntry::zeroed();
        head.views = views;
        head.header = wire::QR | wire::RA;
        let (body, ttls, targets, answers) = Default::default();
        Ok(Self { question, head, body, ttls, counts: [0; 3], targets, answers, set: None, sets: 0 })
    }

    /// The RCODE (low four bits); NOERROR unless said.
    #[must_use]
    pub const fn rcode(mut self, rcode: u16) -> Self {
        self.head.header = self.head.header & !wire::RCODE | rcode & wire::RCODE;
        self
    }

    /// Sets AA (zone data has it anyway).
    #[must_use]
    pub const fn authoritative(mut self) -> Self {
        self.head.header |= wire::AA;
        self
    }

    /// Sets AD: a validator whom the gateway trusts says so.
    #[must_use]
    pub const fn authentic(mut self) -> Self {
        self.head.header |= wire::AD;
        self
    }

    /// On the entry that says a name exists: the name is an alias ([`dns_entry::ALIAS`]).
    #[must_use]
    pub const fn alias(mut self) -> Self {
        self.head.flags |= dns_entry::ALIAS;
        self
    }

    /// Adds to the answer section.
    ///
    /// # Errors
    /// When the record is none.
    pub fn answer(&mut self, record: Record<'_>) -> Result<&mut Self, BuildError> {
        // An answer in the middle of other sections would change their order on the wire.
        debug_assert_eq!(self.counts[1] + self.counts[2], 0, "answers come before authorities and additionals");
        let at = self.body.len();
        self.push(record)?;
        let set = matches!(record.rtype, wire::A | wire::AAAA).then(|| self.set_of(&record));
        self.answers.push(Placed { at, len: self.body.len() - at, set });
        self.counts[0] += 1;
        Ok(self)
    }

    /// The number of the record's rotating set: that of the record before, or a new one.
    fn set_of(&mut self, record: &Record<'_>) -> usize {
        let last = self.set.as_ref().is_some_and(|(owner, rtype, class, ttl)| {
            (*rtype, *class, *ttl) == (record.rtype, record.class, record.ttl)
                && owner.eq_ignore_ascii_case(record.owner)
        });
        if !last {
            self.set = Some((fold(record.owner), record.rtype, record.class, record.ttl));
            self.sets += 1;
        }
        self.sets
    }

    /// The position in the message of a name that is in it already, where a pointer reaches it.
    fn position(&self, name: &[u8]) -> Option<u16> {
        if name.len() <= 1 {
            return None;
        }
        let body_at = wire::HEADER + self.question.len() + wire::QUESTION_TAIL;
        let question = suffix(&self.question, name).map(|begin| wire::HEADER + begin);
        let in_body = |(begin, len): &(usize, usize)| {
            suffix(&self.body[*begin..begin + len], name).map(|inside| body_at + begin + inside)
        };
        // A pointer has 14 bits.
        let position = question.or_else(|| self.targets.iter().find_map(in_body)).filter(|at| *at < POINTER_REACH)?;
        u16::try_from(position).ok()
    }

    /// Adds to the authority section.
    ///
    /// # Errors
    /// When the record is none.
    pub fn authority(&mut self, record: Record<'_>) -> Result<&mut Self, BuildError> {
        debug_assert_eq!(self.counts[2], 0, "authorities come before additionals");
        self.push(record)?;
        self.counts[1] += 1;
        Ok(self)
    }

    /// Adds to the additional section; not OPT, which each answer gets for itself.
    ///
    /// # Errors
    /// When the record is none.
    pub fn additional(&mut self, record: Record<'_>) -> Result<&mut Self, BuildError> {
        self.push(record)?;
        self.counts[2] += 1;
        Ok(self)
    }

    fn push(&mut self, record: Record<'_>) -> Result<(), BuildError> {
        if !is_wire_name(record.owner) {
            return Err(BuildError::Name(record.owner.to_vec()));
        }
        let rdlength = u16::try_from(record.rdata.len()).map_err(|_| BuildError::Rdata(record.rdata.len()))?;
        match self.position(record.owner) {
            Some(at) => self.body.extend((0xC000 | at).to_be_bytes()),
            None => self.body.extend(record.owner),
        }
        self.body.extend(record.rtype.to_be_bytes());
        self.body.extend(record.class.to_be_bytes());
        if self.head.flags & dns_entry::ZONE == 0 {
            self.ttls.push(u16::try_from(self.body.len()).map_err(|_| BuildError::TooBig(self.body.len()))?);
        }
        self.body.extend(record.ttl.to_be_bytes());
        self.body.extend(rdlength.to_be_bytes());
        let rdata_at = self.body.len();
        self.body.extend(record.rdata);
        // A later owner is this target: of the chain's next record, or of an address in the additional section. These records
        // do not rotate, so its position holds.
        let target_at = match record.rtype {
            wire::CNAME | wire::NS => 0,
            wire::SRV => 6,
            _ => return Ok(()),
        };
        let begin = rdata_at + target_at;
        if let Some(target) = record.rdata.get(target_at..).filter(|target| is_wire_name(target))
            && wire::HEADER + self.question.len() + wire::QUESTION_TAIL + begin < POINTER_REACH
        {
            self.targets.push((begin, target.len()));
        }
        Ok(())
    }

    /// Bytes of the message so far, with an OPT record at its end.
    pub fn message_len(&self) -> usize {
        wire::HEADER + self.question.len() + wire::QUESTION_TAIL + self.body.len() + wire::OPT
    }

    /// The answer.
    ///
    /// # Errors
    /// When it does not fit a DNS message at all.
    pub fn build(mut self) -> Result<Answer, BuildError> {
        let message = self.message_len();
        if message > usize::from(u16::MAX) {
            return Err(BuildError::TooBig(message));
        }
        // The smallest record has 11 bytes, so the counts fit when the body does.
        let [answers, authorities, additionals] = self.counts.map(|count| count as u16);
        self.head.answers = answers;
        self.head.authorities = authorities;
        self.head.additionals = additionals;
        self.head.len = self.body.len() as u16;
        self.head.sum = sum_of(&self.body);
        self.rotation();
        Ok(Answer { head: self.head, body: self.body, ttls: self.ttls })
    }

    /// Finds the addresses that rotate: the first run of two or more of one set.
    fn rotation(&mut self) {
        let run =
            self.answers.chunk_by(|a, b| a.set.is_some() && a.set == b.set && a.len == b.len).find(|run| run.len() > 1);
        let Some(run) = run else { return };
        let (Ok(at), Ok(len), Ok(count)) =
            (u16::try_from(run[0].at), u8::try_from(run[0].len), u8::try_from(run.len()))
        else {
            return;
        };
        if len % 2 == 0 {
            (self.head.rotate_at, self.head.rotate_len, self.head.rotate_count) = (at, len, count);
        }
    }
}

/// Where in a name another one begins that it ends with, whatever the case.
fn suffix(name: &[u8], end: &[u8]) -> Option<usize> {
    let at = name.len().checked_sub(end.len())?;
    let mut begin = 0;
    while begin < at {
        begin += 1 + usize::from(name[begin]);
    }
    (begin == at && name[at..].eq_ignore_ascii_case(end)).then_some(at)
}

/// Ones' complement sum of bytes as big-endian words, folded.
pub fn sum_of(bytes: &[u8]) -> u16 {
    // 64 KiB are 32 Ki words: no overflow.
    let sum = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum();
    fold_sum(sum)
}

/// The marker that says a name exists in a zone ([`dns_key::EXISTS`]), for these views.
///
/// # Errors
/// When `name` is no wire name.
pub fn exists(name: &[u8], views: u64) -> Result<Answer, BuildError> {
    EntryBuilder::zone(name, views)?.build()
}

/// What a zone's SOA says. Names in wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Soa<'a> {
    /// Primary server.
    pub mname: &'a [u8],
    /// Mailbox.
    pub rname: &'a [u8],
    /// Serial.
    pub serial: u32,
    /// Refresh, seconds.
    pub refresh: u32,
    /// Retry, seconds.
    pub retry: u32,
    /// Expire, seconds.
    pub expire: u32,
    /// TTL of negative answers, seconds.
    pub minimum: u32,
}

impl Soa<'_> {
    /// The record's data.
    pub fn rdata(&self) -> Vec<u8> {
        let mut rdata = [self.mname, self.rname].concat();
        for number in [self.serial, self.refresh, self.retry, self.expire, self.minimum] {
            rdata.extend(number.to_be_bytes());
        }
        rdata
    }
}

/// A zone for the kernel and for [`super::table::Table`]. `ttl` is the TTL of the SOA in negative answers; RFC 2308 section 3 makes it
/// the smaller of the SOA's own and its minimum.
///
/// # Errors
/// When a name is none, or the kernel's limits are too small.
pub fn zone(name: &[u8], soa: &Soa<'_>, ttl: u32, complete: bool) -> Result<Zone, BuildError> {
    for name in [name, soa.mname, soa.rname] {
        if !is_wire_name(name) {
            return Err(BuildError::Name(name.to_vec()));
        }
    }
    if name.len() > DNS_NAME {
        return Err(BuildError::ZoneName(to_text(name)));
    }
    let rdata = soa.rdata();
    let mut record = Vec::with_capacity(10 + rdata.len());
    record.extend(wire::SOA.to_be_bytes());
    record.extend(wire::IN.to_be_bytes());
    record.extend(ttl.min(soa.minimum).to_be_bytes());
    record.extend((rdata.len() as u16).to_be_bytes());
    record.extend(&rdata);
    let mut zone = Zone::zeroed();
    if record.len() > zone.soa.len() {
        return Err(BuildError::Soa(to_text(name)));
    }
    zone.name[..name.len()].copy_from_slice(&fold(name));
    zone.name_len = name.len() as u16;
    zone.soa[..record.len()].copy_from_slice(&record);
    zone.soa_len = record.len() as u16;
    zone.soa_sum = sum_of(&record);
    zone.complete = complete.into();
    Ok(zone)
}

/// [`exists`] for a name that owns a CNAME: its other types are not NODATA.
///
/// # Errors
/// When `name` is no wire name.
pub fn exists_as_alias(name: &[u8], views: u64) -> Result<Answer, BuildError> {
    EntryBuilder::zone(name, views)?.alias().build()
}

/// Type under which [`exists`] is kept.
pub const EXISTS: u16 = dns_key::EXISTS;
