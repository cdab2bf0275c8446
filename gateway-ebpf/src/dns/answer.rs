//! From a query to its answer, in this CPU's scratch: the shared code of [`gateway_common::dns`] over the maps. Knows nothing of
//! frames, so that the verifier looks at it once for both tiers.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use gateway_common::{
    Reason,
    dns::{
        hash::Keys,
        limit::Verdict,
        question::{Folded, Query, Window, parse},
        reply::{Reply, aged, fold_sum, opt, rotation, ttl_change},
        resolve::{Entry, Lookup, Outcome as Found, resolve},
        wire,
    },
    limits::{DNS_INLINE_BODY, DNS_LARGE_BODY, DNS_MAX_TTLS, DNS_SOA, MAX_ZONES, capacity},
    maps::{DnsEntry, DnsHash, DnsLarge, Zone, dns_key},
};

use super::limit;

#[map]
static ANSWERS: HashMap<DnsHash, DnsEntry> = HashMap::with_max_entries(capacity::ANSWERS, BPF_F_NO_PREALLOC);
#[map]
static LARGE: HashMap<u32, DnsLarge> = HashMap::with_max_entries(capacity::ANSWERS, BPF_F_NO_PREALLOC);
#[map]
static ZONES: Array<Zone> = Array::with_max_entries(MAX_ZONES as u32, 0);
#[map]
static DNS_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Keys of the hash; the agent replaces them by secret ones when it loads the object.
#[unsafe(no_mangle)]
static DNS_KEYS: Keys = Keys::DEFAULT;

/// The coarse clock lags by up to a tick, 10 ms with the slowest one; an answer must not outlive its entry by that.
const TICK: u64 = 10_000_000;

/// Bytes of [`Scratch::out`]: twice what an answer can need, so that any masked offset plus any masked length fits.
const OUT: usize = 4096;
/// Offsets into [`Scratch::out`] and lengths of its parts.
pub const OUT_MASK: usize = OUT / 2 - 1;
/// Where the SOA's owner goes in [`Scratch::out`], so that the SOA behind it is on a word.
const OWNER_AT: usize = 6;

const _: () = assert!(DNS_LARGE_BODY + wire::OPT <= OUT_MASK && OWNER_AT + 2 + DNS_SOA + wire::OPT <= OUT_MASK);

/// Per-CPU memory of one query, too large for the stack. It also keeps the verifier's work small: what many paths led to is one
/// state once it is read back from here.
#[repr(C)]
pub struct Scratch {
    /// The query as it came.
    pub window: Window,
    /// Its name.
    pub name: Folded,
    lanes: [u64; 2],
    /// What it says.
    pub query: Query,
    /// Who asks, network order, as [`gateway_common::dns::limit::mapped`] has IPv4.
    pub source: [u32; 4],
    /// Sum of the question.
    question: u16,
    /// The answer's header, network order.
    pub header: [[u8; 2]; 6],
    /// Sum of the whole answer.
    pub sum: u16,
    /// Bytes of header and question.
    pub body_at: u16,
    /// Bytes behind them.
    pub len: u16,
    /// Where in `out` they are.
    pub from: u16,
    /// Rotation: offset of the first record, bytes of those that go last, and of those that go first.
    pub rotate: [u16; 3],
    out: [u64; OUT / 8],
}

impl Scratch {
    /// This CPU's own.
    #[inline(always)]
    pub fn get() -> Option<&'static mut Self> {
        // SAFETY: the pointer is to this CPU's own slot, which nothing else uses while the program runs; no caller keeps its
        // reference over a call of another function that gets one.
        DNS_SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
    }

    /// The same, for reading.
    #[inline(always)]
    pub fn read() -> Option<&'static Self> {
        // SAFETY: as above.
        DNS_SCRATCH.get_ptr(0).map(|scratch| unsafe { &*scratch })
    }

    /// What goes behind the question.
    #[inline(always)]
    pub fn out(&mut self) -> &mut [u8; OUT] {
        bytemuck::cast_mut(&mut self.out)
    }

    /// Copies the `MOST` words from `FROM` on, or those of them that `len` bytes reach into, to word `at` of `out`.
    #[inline(always)]
    fn copy<const FROM: usize, const ALL: usize, const MOST: usize>(
        &mut self,
        at: usize,
        words: &[u64; ALL],
        len: usize,
    ) {
        for i in 0..MOST {
            if i * 8 >= len {
                break;
            }
            self.out[at + i] = words[FROM + i];
        }
    }
}

/// Parses the query of `len` bytes in the scratch. 0: it is not understood.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_question(len: u32) -> u32 {
    let Some(scratch) = Scratch::get() else { return 0 };
    let len = len as usize;
    if len > Window::LEN {
        return 0;
    }
    let Ok(query) = parse(&scratch.window, len) else { return 0 };
    scratch.query = query;
    1
}

/// Folds and hashes the name of the query in the scratch.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_name() -> u32 {
    let Some(scratch) = Scratch::get() else { return 0 };
    // SAFETY: the static is a plain value that lives as long as the program; volatile, as the agent changes it behind the compiler.
    let keys = unsafe { &*core::hint::black_box(&raw const DNS_KEYS) };
    let (len, qtype) = (scratch.query.name_len as usize, scratch.query.qtype);
    (scratch.question, scratch.lanes) = scratch.window.fold(len, qtype, &mut scratch.name, keys);
    1
}

/// The number of the longest zone that the name in the scratch is in; [`MAX_ZONES`]: none.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_zone() -> u32 {
    let mut found = MAX_ZONES as u32;
    let Some(scratch) = Scratch::read() else { return found };
    let mut longest = 0;
    for index in 0..MAX_ZONES as u32 {
        let Some(zone) = ZONES.get(index) else { break };
        let len = zone.name_len as usize;
        if len > longest && scratch.name.is_below(&scratch.query, zone.name_words(), len) {
            longest = len;
            found = index;
        }
    }
    found
}

/// An entry in its map.
struct Held(*mut DnsEntry);

impl Entry for Held {
    #[inline(always)]
    fn head(&self) -> &DnsEntry {
        // SAFETY: an entry is replaced as a whole and lives until the program has ended.
        unsafe { &*self.0 }
    }
}

impl Held {
    /// Counts an answer; how many were given before. Two CPUs may count one: it is for popularity and turns only.
    #[inline(always)]
    fn hit(&self) -> u64 {
        // SAFETY: as in `head`; no reference to this field is ever made.
        unsafe {
            let hits = &raw mut (*self.0).hits;
            let before = hits.read_volatile();
            hits.write_volatile(before.wrapping_add(1));
            before
        }
    }
}

/// The maps, seen from one query.
struct Tables<'a> {
    name: &'a Folded,
    len: usize,
    lanes: [u64; 2],
    /// Another name was found under the query's hash: nothing is known about the query then.
    collided: bool,
}

impl Lookup for Tables<'_> {
    type Entry = Held;
    type Zone = &'static Zone;

    #[inline(always)]
    fn entry(&mut self, qtype: u16, bits: u8) -> Option<Held> {
        let tag = dns_key::tag(qtype, bits, self.len as u8);
        // SAFETY: as in `gateway_dns_name`.
        let keys = unsafe { &*core::hint::black_box(&raw const DNS_KEYS) };
        let found = Held(ANSWERS.get_ptr_mut(keys.finish(self.lanes, tag))?);
        let entry = found.head();
        if entry.tag == tag && self.name.is(self.len, entry.name_words()) {
            return Some(found);
        }
        self.collided = true;
        None
    }

    #[inline(always)]
    fn zone(&mut self) -> Option<&'static Zone> {
        ZONES.get(gateway_dns_zone())
    }

    #[inline(always)]
    fn now(&mut self) -> u64 {
        // SAFETY: the helper reads a clock.
        unsafe { bpf_ktime_get_coarse_ns() + TICK }
    }
}

/// [`gateway_dns_answer`] has an answer.
pub const ANSWERED: u32 = 1 << 16;

/// Looks the query in the scratch up for a client of that view and lays its answer out there. The number of a [`Reason`]: with
/// [`ANSWERED`] what the answer is counted as, else why there is none.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_answer(view: u32) -> u32 {
    let Some(asked) = Scratch::read() else { return Reason::DnsMiss as u32 };
    let query = asked.query;
    let mut tables = Tables { name: &asked.name, len: query.name_len as usize, lanes: asked.lanes, collided: false };
    let found = resolve(&mut tables, &query, view);
    if tables.collided {
        return Reason::DnsMiss as u32;
    }
    let Some(scratch) = Scratch::get() else { return Reason::DnsMiss as u32 };
    let verdict = match found {
        Found::Miss => return Reason::DnsMiss as u32,
        Found::Expired => return Reason::DnsExpired as u32,
        _ => limit::take(view),
    };
    if verdict == Verdict::Drop {
        return Reason::DnsLimited as u32;
    }
    let slips = verdict == Verdict::Slip;
    let (reply, from, sum) = match found {
        Found::Miss | Found::Expired => return Reason::DnsMiss as u32,
        _ if slips => {
            scratch.rotate = [0; 3];
            (Reply::slip(&query), 0, 0)
        }
        Found::Answer(entry, age) => {
            let reply = Reply::of_entry(&query, entry.head(), query.limit());
            scratch.rotate = [0; 3];
            let sum = if reply.truncated { Some(0) } else { entry_body(scratch, &entry, age) };
            // None: the body went between two reads, or is none.
            let Some(sum) = sum else { return Reason::DnsMiss as u32 };
            (reply, 0, sum)
        }
        Found::NoData(zone) => negative(scratch, &query, zone, wire::NOERROR),
        Found::NxDomain(zone) => negative(scratch, &query, zone, wire::NXDOMAIN),
    };
    let mut len = reply.body_len as usize;
    if reply.edns {
        let record = opt(&query);
        let at = (from + len) & OUT_MASK;
        let out = scratch.out();
        for (i, byte) in record.iter().enumerate() {
            out[at + i] = *byte;
        }
        len += wire::OPT;
    }
    scratch.header = reply.header(&query).map(u16::to_be_bytes);
    scratch.sum = fold_sum(reply.sum(&query, scratch.question, sum));
    scratch.body_at = query.body_at() as u16;
    scratch.len = len as u16;
    scratch.from = from as u16;
    (if slips { Reason::DnsSlipped } else { reason(&reply) }) as u32 | ANSWERED
}

/// What the answer is counted as.
#[inline(always)]
fn reason(reply: &Reply) -> Reason {
    if reply.truncated {
        Reason::DnsTruncated
    } else if reply.flags & wire::RCODE == wire::NXDOMAIN {
        Reason::DnsNxDomain
    } else if reply.flags & wire::RCODE == wire::NOERROR && reply.answers == 0 {
        Reason::DnsNoData
    } else {
        Reason::DnsAnswered
    }
}

/// The SOA behind a pointer to its owner; the sum of both.
#[inline(always)]
fn negative(scratch: &mut Scratch, query: &Query, zone: &Zone, rcode: u16) -> (Reply, usize, u16) {
    let reply = Reply::of_zone(query, zone, rcode, query.limit());
    scratch.rotate = [0; 3];
    if reply.truncated {
        return (reply, OWNER_AT, 0);
    }
    let owner = reply.owner;
    let words: &[u64; size_of::<Zone>() / 8] = bytemuck::cast_ref(zone);
    const SOA: usize = offset_of!(Zone, soa) / 8;
    scratch.copy::<SOA, _, { DNS_SOA / 8 }>((OWNER_AT + 2) / 8, words, zone.soa_len as usize);
    let out = scratch.out();
    [out[OWNER_AT], out[OWNER_AT + 1]] = owner.to_be_bytes();
    (reply, OWNER_AT, fold_sum(u32::from(zone.soa_sum) + u32::from(owner)))
}

/// An entry's body with its TTLs aged; its sum.
#[inline(always)]
fn entry_body(scratch: &mut Scratch, held: &Held, age: u32) -> Option<u16> {
    let entry = held.head();
    let len = entry.len as usize;
    if entry.large == 0 {
        if len > DNS_INLINE_BODY {
            return None;
        }
        const BODY: usize = offset_of!(DnsEntry, body) / 8;
        let words: &[u64; size_of::<DnsEntry>() / 8] = bytemuck::cast_ref(entry);
        scratch.copy::<BODY, _, { DNS_INLINE_BODY / 8 }>(0, words, len);
    } else {
        // SAFETY: a body is replaced as a whole and lives until the program has ended.
        let large = unsafe { LARGE.get(entry.large) }?;
        if len > DNS_LARGE_BODY {
            return None;
        }
        let words: &[u64; DNS_LARGE_BODY / 8] = bytemuck::cast_ref(large);
        scratch.copy::<0, _, { DNS_LARGE_BODY / 8 }>(0, words, len);
    }
    let mut sum = u32::from(entry.sum);
    if age > 0 {
        let out = scratch.out();
        for i in 0..DNS_MAX_TTLS {
            if i >= entry.ttl_count as usize {
                break;
            }
            let at = entry.ttls[i] as usize & OUT_MASK;
            let old = u32::from_be_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
            let new = aged(old, age);
            [out[at], out[at + 1], out[at + 2], out[at + 3]] = new.to_be_bytes();
            sum += ttl_change(at, old, new);
        }
    }
    let hits = held.hit();
    if entry.rotate_count > 1 {
        let first = rotation(entry.rotate_count, hits);
        let size = u16::from(entry.rotate_len);
        let before = u16::from(first).wrapping_mul(size);
        let onward = u16::from(entry.rotate_count).wrapping_mul(size).wrapping_sub(before);
        scratch.rotate = [entry.rotate_at, before, onward];
    }
    Some(fold_sum(sum))
}
