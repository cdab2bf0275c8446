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
        question::{Folded, Query, Window, parse},
        reply::{Reply, aged, fold_sum, opt_words, rotation, ttl_change},
        resolve::{Entry, Lookup, Outcome as Found, resolve},
        wire,
    },
    limits::{DNS_INLINE_BODY, DNS_LARGE_BODY, DNS_MAX_TTLS, DNS_SOA, MAX_ZONES, capacity},
    maps::{DnsEntry, DnsHash, DnsLarge, Zone, dns_key},
};

use crate::settings::now;

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

/// The coarse clock lags by up to a tick, 10 ms with the slowest one, and may be set just after the tick was counted. An answer must
/// not outlive its entry by that.
const LAG: u64 = 20_000_000;

/// Bytes of [`Scratch::out`]: twice what an answer can need, so that any masked offset plus any masked length fits.
const OUT_BYTES: usize = 4096;
/// Offsets into [`Scratch::out`] and lengths of its parts.
pub const OUT_MASK: usize = OUT_BYTES / 2 - 1;
/// Where the SOA's owner goes in [`Scratch::out`], so that the SOA behind it is on a word.
const OWNER_AT: usize = 6;

const _: () = assert!(DNS_LARGE_BODY + wire::OPT <= OUT_MASK && OWNER_AT + 2 + DNS_SOA + wire::OPT <= OUT_MASK);

/// Per-CPU memory of one query, too large for the stack. It also keeps the verifier's work small: what many paths led to is one
/// state once it is read back from here.
#[repr(C)]
pub struct Scratch {
    /// The query as it came.
    pub window: Window,
    /// Its name, once [`gateway_dns_zone`] or the log wanted it.
    pub name: Folded,
    /// What it says.
    pub query: Query,
    /// Who asks, network order, as [`gateway_common::dns::limit::mapped`] has IPv4.
    pub source: [u32; 4],
    /// Sums of the name in [`Self::query`], as [`Window::hash`] has them, when [`super::usual`] found no entry for it.
    pub sums: (u16, u64),
    /// Then, too: the client's view, and whether it asked an address of the gateway's own.
    pub view: u32,
    pub own: u32,
    /// The tick when the clock was last asked, and what it said.
    tick: u64,
    time: u64,
    /// The answer's header, network order.
    pub header: [[u8; 2]; 6],
    /// Sum of the whole answer.
    pub sum: u16,
    /// Bytes of header and question.
    pub body_at: u16,
    /// Bytes behind them, without OPT.
    pub len: u16,
    /// Where in `out` they are.
    pub from: u16,
    /// Rotation: offset of the first record, bytes of those that go last, and of those that go first.
    pub rotate: [u16; 3],
    /// Whether OPT ends the answer: [`NO_OPT`], [`OPT`], [`OPT_WITH_DO`].
    opt: u16,
    out: [u64; OUT_BYTES / 8],
}

const NO_OPT: u16 = 0;
const OPT: u16 = 1;
const OPT_WITH_DO: u16 = 2;

impl Scratch {
    /// This CPU's own.
    #[inline(always)]
    pub fn get() -> Option<&'static mut Self> {
        // SAFETY: the pointer is to this CPU's own slot, which nothing else uses while the program runs; no caller keeps its
        // reference over a call of another function that gets one.
        DNS_SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
    }

    /// What goes behind the question.
    #[inline(always)]
    pub fn out(&mut self) -> &mut [u8; OUT_BYTES] {
        bytemuck::cast_mut(&mut self.out)
    }

    /// `CLOCK_MONOTONIC` in ns, rather late than early. The clock is asked once a tick.
    #[inline(always)]
    pub fn now(&mut self) -> u64 {
        let tick = now();
        if self.tick != tick {
            // SAFETY: the helper reads a clock.
            self.time = unsafe { bpf_ktime_get_coarse_ns() } + LAG;
            self.tick = tick;
        }
        self.time
    }

    /// OPT in two words, the second of which begins with the last byte of the first; none without OPT.
    #[inline(always)]
    pub const fn opt(&self) -> Option<(u64, u32)> {
        if self.opt == NO_OPT {
            return None;
        }
        Some(opt_words(self.opt == OPT_WITH_DO))
    }

    /// Header, sum and lengths of an answer whose body, with that sum, is in `out` from `from` on.
    #[inline(always)]
    fn lay_out(&mut self, query: &Query, reply: &Reply, question: u16, sum: u16, from: usize) {
        self.header = reply.header(query).map(u16::to_be_bytes);
        self.sum = fold_sum(reply.sum(query, question, sum));
        self.body_at = query.body_at() as u16;
        self.len = reply.body_len;
        self.opt = if !reply.edns {
            NO_OPT
        } else if query.bits & dns_key::DO == 0 {
            OPT
        } else {
            OPT_WITH_DO
        };
        self.from = from as u16;
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

/// [`gateway_dns_zone`] was asked about what is no name.
const NO_NAME: u32 = MAX_ZONES as u32 + 1;

/// The number of the longest zone that the name in the scratch is in; [`MAX_ZONES`]: none; [`NO_NAME`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_zone() -> u32 {
    let mut found = MAX_ZONES as u32;
    let Some(scratch) = Scratch::get() else { return found };
    if !scratch.window.fold(scratch.query.name_len as usize, &mut scratch.name) {
        return NO_NAME;
    }
    let mut longest = 0;
    for index in 0..MAX_ZONES as u32 {
        let Some(zone) = ZONES.get(index) else { break };
        let len = zone.name_len as usize;
        if len > longest && scratch.name.is_below(zone.name_words(), len) {
            longest = len;
            found = index;
        }
    }
    found
}

/// The keys that the agent has chosen.
#[inline(always)]
pub fn keys() -> &'static Keys {
    // SAFETY: the static is a plain value that lives as long as the program; in the box, as the agent changes it behind the compiler.
    unsafe { &*core::hint::black_box(&raw const DNS_KEYS) }
}

/// An entry in its map.
pub struct Held(*mut DnsEntry);

impl Entry for Held {
    #[inline(always)]
    fn head(&self) -> &DnsEntry {
        // SAFETY: an entry is replaced as a whole and lives until the program has ended.
        unsafe { &*self.0 }
    }
}

impl Held {
    /// The entry under that hash, whatever its name.
    #[inline(always)]
    pub fn get(hash: DnsHash) -> Option<Self> {
        ANSWERS.get_ptr_mut(hash).map(Self)
    }

    /// Counts an answer; how many were given before. Two CPUs may count one: it is for popularity and turns only.
    #[inline(always)]
    pub fn hit(&self) -> u64 {
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
    window: &'a Window,
    len: usize,
    /// The name's sum for the hash.
    hash: u64,
    /// There is nothing to be found by the first look-up, which is that of the query's type without bits.
    absent: bool,
    /// Another name was found under the query's hash: nothing is known about the query then.
    collided: bool,
    /// What was taken for the query's name is none.
    nameless: bool,
}

impl Lookup for Tables<'_> {
    type Entry = Held;
    type Zone = &'static Zone;

    #[inline(always)]
    fn entry(&mut self, qtype: u16, bits: u8) -> Option<Held> {
        if core::mem::take(&mut self.absent) {
            return None;
        }
        let tag = dns_key::tag(qtype, bits, self.len as u8);
        let found = Held::get(keys().finish(self.hash, tag))?;
        let entry = found.head();
        if entry.tag == tag && self.window.is(self.len, entry.name_words()) {
            return Some(found);
        }
        self.collided = true;
        None
    }

    #[inline(always)]
    fn zone(&mut self) -> Option<&'static Zone> {
        let zone = gateway_dns_zone();
        self.nameless = zone == NO_NAME;
        ZONES.get(zone)
    }

    #[inline(always)]
    fn now(&mut self) -> u64 {
        Scratch::get().map_or(u64::MAX, Scratch::now)
    }
}

/// [`gateway_dns_answer`] has an answer.
pub const ANSWERED: u32 = 1 << 16;

/// [`answer`] as a function of its own: the number that it is counted as, with [`ANSWERED`] when there is one.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_answer(len: u32, view: u32, absent: u32) -> u32 {
    // The mask is the verifier's.
    match answer(len as usize & 0xff, view, absent != 0) {
        Ok(reason) => reason | ANSWERED,
        Err(reason) => reason,
    }
}

/// Looks the query of `len` bytes in the scratch up for a client of that view and lays its answer out there. `Ok`: the number of the
/// [`Reason`] that it is counted as. `absent`: [`super::usual`] has read it, and seen that for its name and type there is
/// no entry; nobody has looked at the name's labels.
///
/// # Errors
/// Why there is no answer, by number.
#[inline(always)]
pub fn answer(len: usize, view: u32, absent: bool) -> Result<u32, u32> {
    const UNSUPPORTED: u32 = Reason::DnsUnsupported as u32;
    const MISS: u32 = Reason::DnsMiss as u32;
    let scratch = Scratch::get().ok_or(UNSUPPORTED)?;
    if !absent {
        scratch.query = parse(&scratch.window, len).map_err(|_| UNSUPPORTED)?;
    }
    // Read back: however the parser came to its end, the verifier goes on with one state.
    let scratch = Scratch::get().ok_or(UNSUPPORTED)?;
    let query = scratch.query;
    let len = query.name_len as usize;
    let (question, hash) = if absent { scratch.sums } else { scratch.window.hash(len, query.qtype, keys()) };
    let mut tables = Tables { window: &scratch.window, len, hash, absent, collided: false, nameless: false };
    let found = resolve(&mut tables, &query, view);
    if tables.nameless {
        return Err(UNSUPPORTED);
    }
    if tables.collided {
        return Err(MISS);
    }
    let scratch = Scratch::get().ok_or(MISS)?;
    let (reply, from, sum) = match found {
        Found::Miss => return Err(MISS),
        Found::Expired => return Err(Reason::DnsExpired as u32),
        Found::Answer(entry, age) => {
            let reply = Reply::of_entry(&query, entry.head(), query.limit());
            scratch.rotate = [0; 3];
            let sum = if reply.truncated { Some(0) } else { entry_body(scratch, &entry, age) };
            // None: the body went between two reads, or is none.
            let sum = sum.ok_or(MISS)?;
            (reply, 0, sum)
        }
        Found::NoData(zone) => negative(scratch, &query, zone, wire::NOERROR),
        Found::NxDomain(zone) => negative(scratch, &query, zone, wire::NXDOMAIN),
    };
    scratch.lay_out(&query, &reply, question, sum, from);
    Ok(reason(&reply) as u32)
}

/// Makes the answer in the scratch one that slips through the limit ([`Reply::slip`]); the number of the reason that it is counted as.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_slip() -> u32 {
    if let Some(scratch) = Scratch::get() {
        let query = scratch.query;
        let (question, _) = scratch.window.hash(query.name_len as usize, query.qtype, keys());
        scratch.rotate = [0; 3];
        scratch.lay_out(&query, &Reply::slip(&query), question, 0, 0);
    }
    Reason::DnsSlipped as u32
}

/// What the answer is counted as.
#[inline(always)]
pub fn reason(reply: &Reply) -> Reason {
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
