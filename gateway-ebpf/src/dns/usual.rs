//! Queries of the usual shape ([`gateway_common::dns::usual`]) in untagged frames, which XDP answers in one go and without a copy: the
//! name is hashed and compared where it lies, and the body goes from its entry into the frame. Whatever is not as usual (a miss, a
//! body that is large or rotates, a limit, a log) is left as it is: the parent module begins anew, and does the same and more.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use gateway_common::{
    Reason,
    dns::{
        name::fold_word,
        question::{NameSum, Query},
        reply::{Reply, aged, fold_sum, opt_words, ttl_change},
        resolve::{Entry as _, Lookup, Outcome, resolve},
        usual::{SHORTEST, Usual},
        wire,
    },
    limits::{DNS_INLINE_BODY, DNS_MAX_TTLS, DNS_NAME},
    maps::{DnsEntry, Zone, config, dns_key},
    net::{
        Bytes as _,
        checksum::fold,
        headers::{ETH_LEN, UDP_LEN},
    },
};

use super::{
    answer::{Held, Scratch, keys, reason},
    header::{Asked, Head4, Head6, Header, udp_check},
    limit, log, turn_macs,
};
use crate::{
    counters::count,
    frame::{Frame as _, Xdp, bounded},
    path::{Verdict, discard, pass},
    send, services,
    settings::config,
};

/// Words of the longest name.
const NAME_WORDS: usize = DNS_NAME / 8;

/// The query in an untagged frame of IPv4, answered. Else the frame is as it was: `None`, or [`Verdict::Missed`], when it was
/// understood, and its name and type have no entry.
#[inline(always)]
pub fn answer4(ctx: *mut xdp_md) -> Option<Verdict> {
    answer::<Head4>(ctx)
}

/// The same of IPv6.
#[inline(always)]
pub fn answer6(ctx: *mut xdp_md) -> Option<Verdict> {
    answer::<Head6>(ctx)
}

/// View of the client, and whether it asked an address of the gateway's own, after [`Verdict::Missed`].
#[inline(always)]
pub fn left() -> Option<[u32; 2]> {
    Scratch::get().map(|scratch| [scratch.view, scratch.own])
}

/// A message in its frame; what is read at a constant offset, and what is not.
struct Message<H> {
    near: Xdp<false>,
    far: Xdp<true>,
    header: core::marker::PhantomData<H>,
}

impl<H: Header> Message<H> {
    /// Where it begins.
    const AT: usize = ETH_LEN + H::IP + UDP_LEN;
    const NAME: usize = Self::AT + wire::HEADER;

    /// What stands at a constant offset, whatever its alignment.
    #[inline(always)]
    fn near<T: Copy>(&self, at: usize) -> Option<T> {
        // SAFETY: the pointer was checked against the frame's end, and callers read integers.
        self.near.pointer::<T>(at).map(|at| unsafe { *at })
    }

    /// What stands at any other.
    #[inline(always)]
    fn far<T: Copy>(&self, at: usize) -> Option<T> {
        // SAFETY: as above.
        self.far.pointer::<T>(at).map(|at| unsafe { *at })
    }

    #[inline(always)]
    fn put<T: Copy>(&self, at: usize, value: T) -> Option<()> {
        // SAFETY: the pointer was checked against the frame's end.
        self.far.pointer::<T>(at).map(|at| unsafe { *at = value })
    }
}

/// The answers, seen from a query in its frame.
struct Tables<'a, H> {
    message: &'a Message<H>,
    len: usize,
    /// What of the name is behind its last whole word.
    last: u64,
    hash: u64,
    /// No entry was found under any hash.
    absent: bool,
}

impl<H: Header> Tables<'_, H> {
    /// Whether the query's name is that one.
    #[inline(always)]
    fn is(&self, other: &[u64; NAME_WORDS]) -> bool {
        for (i, other) in other.iter().enumerate() {
            if 8 * i + 8 > self.len {
                break;
            }
            let Some(word) = self.message.near::<u64>(Message::<H>::NAME + 8 * i) else { return false };
            // Most clients write small letters.
            if word != *other && fold_word(word) != *other {
                return false;
            }
        }
        if self.len & 7 == 0 {
            return true;
        }
        let other = other[self.len / 8 & (NAME_WORDS - 1)];
        self.last == other || fold_word(self.last) == other
    }
}

impl<H: Header> Lookup for Tables<'_, H> {
    type Entry = Held;
    type Zone = &'static Zone;

    #[inline(always)]
    fn entry(&mut self, qtype: u16, bits: u8) -> Option<Held> {
        let tag = dns_key::tag(qtype, bits, self.len as u8);
        let held = Held::get(keys().finish(self.hash, tag))?;
        self.absent = false;
        let entry = held.head();
        if entry.tag == tag && self.is(entry.name_words()) { Some(held) } else { None }
    }

    /// What has no entry is not as usual.
    #[inline(always)]
    fn zone(&mut self) -> Option<&'static Zone> {
        None
    }

    #[inline(always)]
    fn now(&mut self) -> u64 {
        Scratch::get().map_or(u64::MAX, Scratch::now)
    }
}

#[inline(always)]
fn answer<H: Header>(ctx: *mut xdp_md) -> Option<Verdict> {
    if limit::is_on() || log::is_on() {
        return None;
    }
    let config = config()?;
    let mut message =
        Message::<H> { near: Xdp::<false>::new(ctx), far: Xdp::<true>::new(ctx), header: core::marker::PhantomData };
    let frame_len = message.near.frame_len();
    let ip = message.near.pointer::<H>(ETH_LEN)?;
    // SAFETY: the pointer was checked against the frame's end.
    let (asked, [src, dst], total, dns) = unsafe { (H::asked(ip)?, H::ends(ip), H::total(ip), H::dns(ip)) };
    // The datagram is whole: it lies in the packet, and that in the frame.
    let whole = H::IP as u32 + u32::from(asked.len) <= total && ETH_LEN as u32 + total <= frame_len;
    if !whole || config.flags & config::DNS == 0 {
        return None;
    }
    let view = services::view::<H::Family>(&src)?;
    let own = services::is_dns_address::<H::Family>(config, &dst);
    if !own && !services::answers_for::<H::Family>(dst, view) {
        return None;
    }
    // As the parent: the sum is only a pseudo-header's.
    if asked.check == fold(asked.pseudo + u32::from(asked.len.to_be())) {
        return None;
    }
    let [id, flags, questions, answers, authorities, additionals] = dns.map(|word| u64::from(u16::from_be(word)));
    let counts = questions << 48 | answers << 32 | authorities << 16 | additionals;
    let len = usize::from(asked.len).wrapping_sub(UDP_LEN);
    let usual = Usual::of(flags as u16, counts, len)?;
    let query = read(&message, &usual, id as u16, len)?;
    respond(&mut message, &asked, &query, view, own)
}

/// The query in the message of `len` bytes.
#[inline(always)]
fn read<H: Header>(message: &Message<H>, usual: &Usual, id: u16, len: usize) -> Option<Query> {
    let tail = message.far::<u32>(Message::<H>::NAME + bounded(usual.name_len as u32, 128))?;
    let (mut opt, mut opt_end) = (0, 0);
    if usual.edns {
        let at = Message::<H>::AT + bounded((len - wire::OPT) as u32, 128);
        opt = message.far::<u64>(at)?;
        opt_end = message.far::<u32>(at + wire::OPT - 4)?;
    }
    usual.query(id, u32::from_be(tail), u64::from_be(opt), u32::from_be(opt_end))
}

/// The last position of a word, and of a TTL, in an entry's own body.
const LAST_WORD: usize = DNS_INLINE_BODY - 8;
const LAST_TTL: usize = DNS_INLINE_BODY - 4;

#[inline(always)]
fn respond<H: Header>(message: &mut Message<H>, asked: &Asked, query: &Query, view: u32, own: bool) -> Option<Verdict> {
    let len = usize::from(query.name_len);
    let mut sum = NameSum::EMPTY;
    let keys = keys();
    for i in 0..NAME_WORDS {
        if 8 * i + 8 > len {
            break;
        }
        sum.add(i, message.near::<u64>(Message::<H>::NAME + 8 * i)?, keys);
    }
    let mut last = 0;
    if len & 7 != 0 {
        // The last eight bytes, without those that are part of the word before.
        let end = message.far::<u64>(Message::<H>::NAME + bounded((len - SHORTEST) as u32, DNS_NAME))?;
        last = (u64::from_le(end) >> (64 - 8 * (len & 7))).to_le();
        sum.add(len / 8 & (NAME_WORDS - 1), last, keys);
    }
    let mut tables = Tables { message, len, last, hash: sum.hash, absent: true };
    let Outcome::Answer(held, age) = resolve(&mut tables, query, view) else {
        if tables.absent
            && let Some(scratch) = Scratch::get()
        {
            scratch.query = *query;
            scratch.sums = (sum.question(len, query.qtype), sum.hash);
            (scratch.view, scratch.own) = (view, u32::from(own));
            return Some(Verdict::Missed);
        }
        return None;
    };
    let entry = held.head();
    // As it was, and news to the verifier: whatever the name's length was taken for above, it goes on with one state.
    let query = &Query { name_len: (again(&entry.tag) >> 24) as u16, ..*query };
    let reply = Reply::of_entry(query, entry, query.limit());
    let body = usize::from(entry.len);
    if reply.truncated || entry.large != 0 || entry.rotate_count > 1 || body < 8 || body > DNS_INLINE_BODY {
        return None;
    }
    held.hit();
    let udp_len = (UDP_LEN + reply.len(query)) as u16;
    if message.near.resize((ETH_LEN + H::IP) as u32 + u32::from(udp_len)).is_err() {
        // TC answers it.
        return Some(pass(Reason::NoRoom));
    }
    let question = sum.question(usize::from(query.name_len), query.qtype);
    let Some(sum) = write_body(message, query, &reply, entry, age) else { return Some(discard(Reason::HelperFailed)) };
    let check = udp_check(asked, udp_len, fold_sum(reply.sum(query, question, sum)));
    let Some(ip) = message.near.pointer::<H>(ETH_LEN) else { return Some(discard(Reason::HelperFailed)) };
    // SAFETY: the pointer was checked against the frame's end; the frame is ours.
    unsafe { H::answer(ip, udp_len, check, reply.header(query).map(u16::to_be)) };
    if turn_macs(&mut message.near).is_err() {
        return Some(discard(Reason::HelperFailed));
    }
    count(reason(&reply));
    Some(send::back(&message.near))
}

/// A field once more. The verifier knows nothing of what it reads from a map, and what several paths led to becomes one.
#[inline(always)]
fn again<T: Copy>(field: &T) -> T {
    // SAFETY: the pointer is a reference's.
    unsafe { (&raw const *field).read_volatile() }
}

/// Writes what goes behind the question; the sum of the body, its TTLs aged. `None`: the frame has no room for it.
#[inline(always)]
fn write_body<H: Header>(
    message: &Message<H>,
    query: &Query,
    reply: &Reply,
    entry: &DnsEntry,
    age: u32,
) -> Option<u16> {
    const BODY: usize = offset_of!(DnsEntry, body);
    let at = Message::<H>::AT + bounded(query.body_at() as u32, 128);
    let body = usize::from(reply.body_len);
    let words: &[u64; size_of::<DnsEntry>() / 8] = bytemuck::cast_ref(entry);
    for i in 0..DNS_INLINE_BODY / 8 {
        if 8 * i + 8 > body {
            break;
        }
        message.put(at + 8 * i, words[BODY / 8 + i])?;
    }
    let bytes = (&raw const *entry).cast::<u8>().wrapping_add(BODY);
    // The last eight bytes, some of them again.
    let last = bounded(u32::from(again(&entry.len)).wrapping_sub(8), 256);
    if last > LAST_WORD {
        return None;
    }
    // SAFETY: so many bytes are in the entry.
    message.put(at + last, unsafe { *bytes.add(last).cast::<u64>() })?;
    let mut sum = u32::from(entry.sum);
    if age > 0 {
        for i in 0..DNS_MAX_TTLS {
            if i >= usize::from(entry.ttl_count) {
                break;
            }
            let ttl = bounded(u32::from(entry.ttls[i]), 256);
            if ttl > LAST_TTL {
                return None;
            }
            // SAFETY: as above.
            let old = u32::from_be(unsafe { *bytes.add(ttl).cast::<u32>() });
            let new = aged(old, age);
            message.put(at + ttl, new.to_be())?;
            sum += ttl_change(ttl, old, new);
        }
    }
    if reply.edns {
        let (first, rest) = opt_words(query.bits & dns_key::DO != 0);
        let at = at + bounded(u32::from(again(&entry.len)), 256);
        message.put(at + wire::OPT - 4, rest)?;
        message.put(at, first)?;
    }
    Some(fold_sum(sum))
}
