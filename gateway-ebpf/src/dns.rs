//! Queries answered in the kernel: the shared code of [`gateway_common::dns`] over the maps, and the answer written into
//! the frame.

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use bytemuck::{Pod, Zeroable};
use gateway_common::{
    Reason,
    dns::{
        name::is_below,
        question::{Query, Window, parse},
        reply::{Reply, aged, fold_sum, opt, rotation, ttl_change},
        resolve::{Entry, Lookup, Outcome as Found, resolve},
        wire,
    },
    limits::{DNS_INLINE_BODY, DNS_LARGE_BODY, DNS_MAX_TTLS, DNS_SOA, MAX_ZONES, capacity},
    maps::{DnsEntry, DnsKey, DnsLarge, Zone},
    net::{
        checksum::{finish, fold, pseudo4, words},
        error::turned,
        headers::{ETH_LEN, Ethernet, IPV4_LEN, Ipv4, UDP, UDP_LEN, Udp},
        parse::Packet4,
    },
};

use crate::frame::{Frame, REFUSED};

#[map]
static ANSWERS: HashMap<DnsKey, DnsEntry> = HashMap::with_max_entries(capacity::ANSWERS, BPF_F_NO_PREALLOC);
#[map]
static LARGE: HashMap<u32, DnsLarge> = HashMap::with_max_entries(capacity::ANSWERS, BPF_F_NO_PREALLOC);
#[map]
static ZONES: Array<Zone> = Array::with_max_entries(MAX_ZONES as u32, 0);
#[map]
static DNS_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The coarse clock lags by up to a tick, 10 ms with the slowest one; an answer must not outlive its entry by that.
const TICK: u64 = 10_000_000;

/// Bytes of [`Scratch::out`]: twice what an answer can need, so that any masked offset plus any masked length fits.
const OUT: usize = 4096;
/// Offsets into [`Scratch::out`] and lengths of its parts.
const OUT_MASK: usize = OUT / 2 - 1;
/// Where a SOA goes in [`Scratch::out`]: on a word, with room for its owner before it.
const SOA_AT: usize = 8;
/// Bytes of the owner before it.
const POINTER: usize = 2;

const _: () = assert!(DNS_LARGE_BODY + wire::OPT <= OUT_MASK && SOA_AT + DNS_SOA + wire::OPT <= OUT_MASK);

/// Per-CPU memory of one query, too large for the stack.
#[repr(C)]
struct Scratch {
    window: Window,
    key: DnsKey,
    query: MaybeUninit<Query>,
    plan: MaybeUninit<Plan>,
    name_len: MaybeUninit<u16>,
    len: MaybeUninit<usize>,
    /// What follows the question in the answer.
    out: [u64; OUT / 8],
}

impl Scratch {
    #[inline(always)]
    fn out(&mut self) -> &mut [u8; OUT] {
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
        // As each turn tells the verifier more about the length, it is one of its own.
        let len = forget_path(&mut self.len, len);
        for i in 0..MOST {
            if i * 8 >= len {
                break;
            }
            self.out[at + i] = words[FROM + i];
        }
    }
}

/// The frame from Ethernet to the DNS header.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Head {
    eth: Ethernet,
    ip: Ipv4,
    udp: Udp,
    dns: [[u8; 2]; 6],
}

/// IPv4 header of an answer.
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
const TTL: u8 = 64;
/// Sum of its constant part.
const IP_REST: u32 = words([DONT_FRAGMENT[0], DONT_FRAGMENT[1], TTL, UDP]);

/// Where the DNS message begins in a frame.
const DNS_AT: usize = ETH_LEN + IPV4_LEN + UDP_LEN;

/// Writes a value into a map and reads it back.
///
/// The verifier does not follow values through maps: what many paths led to becomes one state, and what comes after is
/// looked at once instead of once a path.
#[inline(always)]
fn forget_path<T: Copy>(slot: &mut MaybeUninit<T>, value: T) -> T {
    // SAFETY: the slot is ours, and what is read has just been written; volatile, or the compiler skips both.
    unsafe {
        slot.as_mut_ptr().write_volatile(value);
        slot.as_ptr().read_volatile()
    }
}

/// An answer, and what goes behind its question.
#[derive(Clone, Copy)]
struct Plan {
    reply: Reply,
    tail: Tail,
    /// Sum of the question.
    question: u16,
}

/// What goes behind the question, in [`Scratch::out`].
#[derive(Clone, Copy)]
struct Tail {
    /// Offset of its first byte.
    at: u16,
    /// Folded sum of the body as if it began at an even offset.
    sum: u16,
    /// Rotation: offset of the first record, and bytes before and from the one on that comes first.
    rotate: (u16, u16, u16),
}

impl Tail {
    const NONE: Self = Self { at: 0, sum: 0, rotate: (0, 0, 0) };
}

/// What became of a query.
pub enum Outcome {
    /// The frame is the answer now, from Ethernet to the UDP checksum; it goes back where it came from.
    Answered(Reason),
    /// Unchanged: the forwarder knows better.
    Forwarder(Reason),
    /// Unchanged: XDP cannot make the frame longer, TC can. A veth's frames have as much room behind them as the sender's buffer had.
    NoRoom,
    /// The frame is lost: a helper refused after it was changed.
    Lost(Reason),
}

impl From<Reason> for Outcome {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::Lost(reason)
    }
}

/// Length of the name of zone `index` when the name in the scratch key is in it, else 0.
///
/// A global function: the verifier looks at its loops once, whoever calls it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_dns_zone(index: u32) -> u32 {
    let Some(zone) = ZONES.get(index) else { return 0 };
    let Some(scratch) = DNS_SCRATCH.get_ptr_mut(0) else { return 0 };
    let len = zone.name_len as usize;
    if len == 0 {
        return 0;
    }
    // SAFETY: the pointer is to this CPU's own slot, whose key the caller has written and does not use meanwhile.
    let key = unsafe { &(*scratch).key };
    if is_below(key, key.len as usize, &zone.name, len) { len as u32 } else { 0 }
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
    key: &'a mut DnsKey,
}

impl Lookup for Tables<'_> {
    type Entry = Held;
    type Zone = &'static Zone;

    #[inline(always)]
    fn entry(&mut self, qtype: u16, bits: u8) -> Option<Held> {
        self.key.qtype = qtype;
        self.key.flags = bits;
        ANSWERS.get_ptr_mut(&*self.key).map(Held)
    }

    #[inline(always)]
    fn zone(&mut self) -> Option<&'static Zone> {
        let mut longest = 0;
        let mut found = MAX_ZONES as u32;
        for index in 0..MAX_ZONES as u32 {
            let len = gateway_dns_zone(index);
            if len > longest {
                longest = len;
                found = index;
            }
        }
        ZONES.get(found)
    }

    #[inline(always)]
    fn now(&mut self) -> u64 {
        // SAFETY: the helper reads a clock.
        unsafe { bpf_ktime_get_coarse_ns() + TICK }
    }
}

/// Answers the query in `frame`, or leaves it. `partial`: the query's checksum is only a pseudo-header's sum, and the kernel will
/// complete that of the answer.
#[inline(always)]
pub fn stage<F: Frame>(frame: &mut F, packet: &Packet4, view: u32, partial: bool) -> Outcome {
    let Some(scratch) = DNS_SCRATCH.get_ptr_mut(0) else { return Outcome::Forwarder(Reason::DnsMiss) };
    // SAFETY: the pointer is to this CPU's own slot, which nothing else uses while the program runs.
    let scratch = unsafe { &mut *scratch };
    let Some(query) = read(frame, &mut scratch.window) else { return Outcome::Forwarder(Reason::DnsUnsupported) };
    let query = forget_path(&mut scratch.query, query);
    let name_len = forget_path(&mut scratch.name_len, query.name_len);
    let question = scratch.window.key(&Query { name_len, ..query }, &mut scratch.key);
    let (reply, tail) = match resolve(&mut Tables { key: &mut scratch.key }, &query, view) {
        Found::Miss => return Outcome::Forwarder(Reason::DnsMiss),
        Found::Expired => return Outcome::Forwarder(Reason::DnsExpired),
        Found::Answer(entry, age) => {
            let reply = Reply::of_entry(&query, entry.head(), query.limit());
            let tail = if reply.truncated { Some(Tail::NONE) } else { entry_tail(scratch, &entry, age) };
            // None: the body went between two reads, or is none.
            let Some(tail) = tail else { return Outcome::Forwarder(Reason::DnsMiss) };
            (reply, tail)
        }
        Found::NoData(zone) => negative(scratch, &query, zone, wire::NOERROR),
        Found::NxDomain(zone) => negative(scratch, &query, zone, wire::NXDOMAIN),
    };
    let plan = forget_path(&mut scratch.plan, Plan { reply, tail, question });
    let reason = reason(&plan.reply);
    match answer(frame, packet, partial, scratch, &query, &plan) {
        Ok(()) => Outcome::Answered(reason),
        Err(outcome) => outcome,
    }
}

/// Copies the message out of the frame and parses it.
#[inline(always)]
fn read<F: Frame>(frame: &F, window: &mut Window) -> Option<Query> {
    let udp = frame.get::<Udp>(ETH_LEN + IPV4_LEN)?;
    let len = usize::from(u16::from_be_bytes(udp.len)).wrapping_sub(UDP_LEN);
    if len == 0 || len > Window::LEN {
        return None;
    }
    // SAFETY: the window holds `Window::LEN` bytes of message.
    unsafe { frame.load(DNS_AT as u32, window.message_mut(), len as u32) }.ok()?;
    parse(window, len).ok()
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

/// The SOA behind a pointer to its owner.
#[inline(always)]
fn negative(scratch: &mut Scratch, query: &Query, zone: &Zone, rcode: u16) -> (Reply, Tail) {
    let reply = Reply::of_zone(query, zone, rcode, query.limit());
    if reply.truncated {
        return (reply, Tail::NONE);
    }
    let owner = reply.owner;
    let words: &[u64; size_of::<Zone>() / 8] = bytemuck::cast_ref(zone);
    const SOA: usize = offset_of!(Zone, soa) / 8;
    scratch.copy::<SOA, _, { DNS_SOA / 8 }>(SOA_AT / 8, words, zone.soa_len as usize);
    let out = scratch.out();
    [out[SOA_AT - 2], out[SOA_AT - 1]] = owner.to_be_bytes();
    let sum = fold_sum(u32::from(zone.soa_sum) + u32::from(owner));
    (reply, Tail { at: (SOA_AT - POINTER) as u16, sum, rotate: (0, 0, 0) })
}

/// An entry's body with its TTLs aged.
#[inline(always)]
fn entry_tail(scratch: &mut Scratch, held: &Held, age: u32) -> Option<Tail> {
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
    let out = scratch.out();
    let mut sum = u32::from(entry.sum);
    if age > 0 {
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
    let first = rotation(entry.rotate_count, held.hit());
    let size = u16::from(entry.rotate_len);
    let before = u16::from(first).wrapping_mul(size);
    let rotate = (entry.rotate_at, before, u16::from(entry.rotate_count).wrapping_mul(size).wrapping_sub(before));
    Some(Tail { at: 0, sum: fold_sum(sum), rotate })
}

/// Turns the query into its answer.
#[inline(always)]
fn answer<F: Frame>(
    frame: &mut F,
    packet: &Packet4,
    partial: bool,
    scratch: &mut Scratch,
    query: &Query,
    plan: &Plan,
) -> Result<(), Outcome> {
    let Plan { reply, tail, question } = plan;
    let from = tail.at as usize;
    let mut len = reply.body_len as usize;
    if reply.edns {
        let record = opt(query);
        let out = scratch.out();
        for (i, byte) in record.iter().enumerate() {
            out[((from + len) & OUT_MASK) + i] = *byte;
        }
        len += wire::OPT;
    }
    let udp_len = (UDP_LEN + reply.len(query)) as u16;
    let key = &packet.key;
    let pseudo = pseudo4(key.dst, key.src, UDP, udp_len);
    let udp_check = if partial {
        pseudo
    } else {
        let dns = fold_sum(reply.sum(query, *question, tail.sum)).to_be();
        let ports = u32::from(u16::from_ne_bytes(key.sport)) + u32::from(u16::from_ne_bytes(key.dport));
        match !fold(u32::from(pseudo) + ports + u32::from(udp_len.to_be()) + u32::from(dns)) {
            0 => 0xFFFF,
            check => check,
        }
    };
    if let Err(reason) = frame.resize((DNS_AT + reply.len(query)) as u32) {
        return Err(if F::XDP { Outcome::NoRoom } else { Outcome::Lost(reason) });
    }
    if !frame.linear(size_of::<Head>()) {
        return Err(REFUSED.into());
    }
    let Some(head) = frame.at::<Head>(0) else { return Err(REFUSED.into()) };
    head.eth = turned(&head.eth);
    // Addresses change places, which no sum notices; what else is new in the header is constant but for the length.
    let (tos, total_len) = (head.ip.tos, (IPV4_LEN as u16 + udp_len).to_be_bytes());
    let check = finish(words(key.src) + words(key.dst) + words([0x45, tos, total_len[0], total_len[1]]) + IP_REST);
    head.ip = Ipv4 {
        version_ihl: 0x45,
        tos,
        total_len,
        // An atomic datagram needs no identification (RFC 6864).
        id: [0, 0],
        fragment: DONT_FRAGMENT,
        ttl: TTL,
        proto: UDP,
        check,
        src: key.dst,
        dst: key.src,
    };
    head.udp = Udp { sport: key.dport, dport: key.sport, len: udp_len.to_be_bytes(), check: udp_check.to_ne_bytes() };
    head.dns = reply.header(query).map(u16::to_be_bytes);
    let body_at = DNS_AT + query.body_at();
    store(frame, body_at, scratch, from, len)?;
    let (at, before, onward) = (tail.rotate.0 as usize, tail.rotate.1 as usize, tail.rotate.2 as usize);
    if before > 0 {
        store(frame, body_at + at, scratch, at + before, onward)?;
        store(frame, body_at + at + onward, scratch, at, before)?;
    }
    Ok(())
}

/// Stores `len` bytes of [`Scratch::out`] from `from` on at `at`.
#[inline(always)]
fn store<F: Frame>(frame: &mut F, at: usize, scratch: &Scratch, from: usize, len: usize) -> Result<(), Reason> {
    let len = len & OUT_MASK;
    if len == 0 {
        return Ok(());
    }
    let from = scratch.out.as_ptr().cast::<u8>().wrapping_add(from & OUT_MASK);
    // SAFETY: offset and length are each at most half of the scratch.
    unsafe { frame.store(at as u32, from, len as u32) }
}
