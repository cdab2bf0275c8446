//! What a sender is told when its packet goes nowhere, at a limited rate.

use aya_ebpf::{
    bindings::BPF_ANY,
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use gateway_common::{
    Reason,
    limits::capacity,
    maps::{Bucket, Config, tcp},
    net::{
        checksum,
        error::{self, Error},
        headers::{ETH_LEN, Ethernet, ICMP_LEN, Icmp, TAG_LEN, TCP_LEN, Tcp},
        parse::{Packet, Parsed},
        rate,
    },
};

use crate::{
    counters::{count, count_number},
    frame::{Frame, REFUSED},
    net::Net,
    path::{Verdict, discard},
    send,
    settings::{config, hz, now},
};

#[map]
static RATES: LruHashMap<[u8; 16], Bucket> = LruHashMap::with_max_entries(capacity::RATES, 0);
#[map]
static QUOTE: PerCpuArray<Quote> = PerCpuArray::with_max_entries(1, 0);

/// What the stage is told by those before it.
#[map]
static PENDING: PerCpuArray<Pending> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
struct Pending {
    error: Error,
    reason: u32,
}

/// The longest quote, ICMPv6's, rounded up.
const QUOTE_WORDS: usize = 154;

/// Scratch: the quoted part of a packet, which may not be directly readable.
#[repr(C)]
struct Quote([u64; QUOTE_WORDS]);

/// Leaves an error about the frame to this stage.
#[inline(always)]
pub fn with(error: Error, reason: Reason) -> Verdict {
    let Some(pending) = PENDING.get_ptr_mut(0) else { return discard(REFUSED) };
    // SAFETY: the pointer is to this CPU's own slot, which nothing else uses while the program runs.
    unsafe { *pending = Pending { error, reason: reason as u32 } };
    Verdict::Reject
}

/// Whether this source may get another answer of the gateway's own now.
#[inline(always)]
pub fn granted<N: Net>(config: &Config, source: &N::Addr) -> bool {
    let key = N::wide(source);
    // SAFETY: the value is copied at once; a race with another CPU costs at most an error too many.
    let old = unsafe { RATES.get(key) }.copied();
    let (bucket, granted) = rate::take(old, now(), hz(config), config.icmp_rate);
    let _ = RATES.insert(key, bucket, u64::from(BPF_ANY));
    granted
}

/// The sum of the first `len` bytes at the IP header.
#[inline(always)]
fn quote_sum<F: Frame, N: Net>(frame: &F, l3: usize, len: u32) -> Result<u32, Reason> {
    let Some(quote) = QUOTE.get_ptr_mut(0) else { return Err(REFUSED) };
    // SAFETY: the pointer is to this CPU's own slot, which nothing else uses while the program runs.
    let quote = unsafe { &mut *quote };
    if len > N::MAX_QUOTE as u32 {
        return Err(REFUSED);
    }
    // Apart, or the compiler makes one comparison of both, of which the verifier learns only one.
    let len = core::hint::black_box(len);
    if len == 0 {
        return Err(REFUSED);
    }
    // What is behind the quote must not count; and a loop without a way out in its middle is looked at once.
    quote.0 = [0; QUOTE_WORDS];
    // SAFETY: the scratch holds more than the longest quote.
    unsafe { frame.load(l3 as u32, quote.0.as_mut_ptr().cast(), len)? };
    let mut sum = 0u64;
    let mut i = 0;
    while i < QUOTE_WORDS {
        let word = quote.0[i];
        sum += (word & 0xffff_ffff) + (word >> 32);
        i += 1;
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    Ok(u32::from(checksum::fold((sum & 0xffff) as u32 + ((sum >> 16) & 0xffff) as u32 + (sum >> 32) as u32)))
}

/// Answers the frame with an ICMP error: the head goes before the packet, which is cut to what is quoted and else untouched.
#[inline(always)]
pub fn stage<F: Frame, N: Net>(frame: &mut F, l3: usize) -> Verdict {
    let Some(config) = config() else { return Verdict::Pass };
    // SAFETY: this CPU's own slot, as in `with`.
    let Some(Pending { error, reason }) = PENDING.get_ptr(0).map(|pending| unsafe { &*pending }) else {
        return discard(REFUSED);
    };
    let (error, reason) = (*error, *reason);
    let (about, packet) = match N::parse(frame, l3, frame.is_gso()) {
        Parsed::Packet(packet) => (packet.whole(), Some(packet)),
        Parsed::Other(other) => (other, None),
        Parsed::Fragment(fragment) => (fragment.other, None),
        Parsed::Odd(..) | Parsed::Pass(_) => return discard(Reason::Unparsed),
    };
    if !granted::<N>(config, &about.src) {
        return discard(Reason::RateLimited);
    }
    let most = N::MAX_QUOTE as u32;
    let quote = if about.total > most { most } else { about.total };
    let sum = match &packet {
        // XDP has left partial checksums to TC before.
        Some(packet) if !F::XDP && frame.is_partial::<N>(packet) => {
            // The segment adds up to what its checksum field says once it is complete; IPv4's header to nothing.
            let header = if N::VERSION == 4 { Ok(0) } else { quote_sum::<F, N>(frame, l3, N::LEN as u32) };
            header.map(|header| header + error::partial_quote_sum(packet.check))
        }
        _ => quote_sum::<F, N>(frame, l3, quote),
    };
    // The VIP speaks about its ports and the way's width; about everything else it is the gateway that speaks.
    let own = N::address(config);
    let from = if error.is_the_vips() || *own == N::ZERO { about.dst } else { *own };
    let done = sum.and_then(|sum| {
        let (ip, icmp) = error::head::<N>(&from, &about.src, error, quote as u16, sum);
        write::<F, N>(frame, l3, quote, &ip, &icmp)
    });
    match done {
        Ok(()) => {
            count_number(reason);
            send::back(frame)
        }
        Err(reason) => discard(reason),
    }
}

/// Makes the frame an error: its link-layer header moves to the front, turned round.
#[inline(always)]
fn write<F: Frame, N: Net>(frame: &mut F, l3: usize, quote: u32, ip: &N::Header, icmp: &Icmp) -> Result<(), Reason> {
    let Some(eth) = frame.get::<Ethernet>(0).copied() else { return Err(REFUSED) };
    let tagged = l3 > ETH_LEN;
    let twice = l3 > ETH_LEN + TAG_LEN;
    let mut tags = [[0u8; TAG_LEN]; 2];
    if tagged {
        tags[0] = frame.get::<[u8; TAG_LEN]>(ETH_LEN).copied().unwrap_or([0; TAG_LEN]);
    }
    if twice {
        tags[1] = frame.get::<[u8; TAG_LEN]>(ETH_LEN + TAG_LEN).copied().unwrap_or([0; TAG_LEN]);
    }
    let head = N::LEN + ICMP_LEN;
    frame.resize(l3 as u32 + quote)?;
    frame.prepend(head as u32)?;
    if !frame.linear(l3 + head) {
        return Err(REFUSED);
    }
    let Some(at) = frame.at::<Ethernet>(0) else { return Err(REFUSED) };
    *at = Ethernet { dst: eth.src, src: eth.dst, kind: eth.kind };
    if tagged {
        let Some(at) = frame.at::<[u8; TAG_LEN]>(ETH_LEN) else { return Err(REFUSED) };
        *at = tags[0];
    }
    if twice {
        let Some(at) = frame.at::<[u8; TAG_LEN]>(ETH_LEN + TAG_LEN) else { return Err(REFUSED) };
        *at = tags[1];
    }
    let Some(at) = frame.at::<N::Header>(l3) else { return Err(REFUSED) };
    *at = *ip;
    let Some(at) = frame.at::<Icmp>(l3 + N::LEN) else { return Err(REFUSED) };
    *at = *icmp;
    Ok(())
}

/// A TCP segment whose flow has lost its endpoint: a reset.
#[inline(always)]
pub fn gone<F: Frame, N: Net>(frame: &mut F, config: &Config, packet: &Packet<N::Addr>) -> Verdict {
    if F::XDP && frame.is_partial::<N>(packet) {
        return crate::path::pass(Reason::PartialChecksum);
    }
    if packet.flags & tcp::RST != 0 {
        return discard(Reason::EndpointGone);
    }
    if !granted::<N>(config, &packet.key.src) {
        return discard(Reason::RateLimited);
    }
    match reset::<F, N>(frame, packet) {
        Ok(()) => {
            count(Reason::EndpointGone);
            send::back(frame)
        }
        Err(reason) => discard(reason),
    }
}

#[inline(always)]
fn reset<F: Frame, N: Net>(frame: &mut F, packet: &Packet<N::Addr>) -> Result<(), Reason> {
    let partial = !F::XDP && frame.is_partial::<N>(packet);
    let (l3, l4) = (packet.l3, packet.l3 + N::LEN);
    if packet.l4 != l4 {
        return Err(Reason::Fragment);
    }
    frame.resize((l4 + TCP_LEN) as u32)?;
    if !frame.linear(l4 + TCP_LEN) {
        return Err(REFUSED);
    }
    let Some(segment) = frame.get::<Tcp>(l4).copied() else { return Err(REFUSED) };
    let payload = packet.total - N::LEN as u32 - packet.header;
    let (ip, segment) = error::reset::<N>((&packet.key.src, &packet.key.dst), &segment, payload, partial);
    send::turn_macs(frame, l3)?;
    let Some(at) = frame.at::<N::Header>(l3) else { return Err(REFUSED) };
    *at = ip;
    let Some(at) = frame.at::<Tcp>(l4) else { return Err(REFUSED) };
    *at = segment;
    Ok(())
}
