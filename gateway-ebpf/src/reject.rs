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
        error::{self, ERROR_LEN, Error, ErrorHead, HEAD_LEN, MAX_QUOTE},
        headers::{ETH_LEN, Ethernet, IPV4_LEN, Ipv4, TCP_LEN, Tcp},
        parse::{Other4, Packet4},
        rate,
    },
};

use crate::{
    frame::{Frame, REFUSED},
    path::{Verdict, discard},
    send,
    settings::{hz, now},
};

#[map]
static RATES: LruHashMap<[u8; 16], Bucket> = LruHashMap::with_max_entries(capacity::RATES, 0);
#[map]
static QUOTE: PerCpuArray<Quote> = PerCpuArray::with_max_entries(1, 0);

const QUOTE_WORDS: usize = MAX_QUOTE / 4;

/// Scratch: the quoted part of a packet, which may not be directly readable.
#[repr(C)]
struct Quote([u32; QUOTE_WORDS]);

/// Whether this source may get another error now.
#[inline(always)]
fn granted(config: &Config, source: [u8; 4]) -> bool {
    let mut key = [0; 16];
    key[0] = source[0];
    key[1] = source[1];
    key[2] = source[2];
    key[3] = source[3];
    // SAFETY: the value is copied at once; a race with another CPU costs at most an error too many.
    let old = unsafe { RATES.get(key) }.copied();
    let (bucket, granted) = rate::take(old, now(), hz(config), config.icmp_rate);
    let _ = RATES.insert(key, bucket, u64::from(BPF_ANY));
    granted
}

/// The sum of the first `len` bytes at the IPv4 header.
#[inline(always)]
fn quote_sum<F: Frame>(frame: &F, len: u32) -> Result<u32, Reason> {
    let Some(quote) = QUOTE.get_ptr_mut(0) else { return Err(REFUSED) };
    // SAFETY: the pointer is to this CPU's own slot, which nothing else uses while the program runs.
    let quote = unsafe { &mut *quote };
    quote.0 = [0; QUOTE_WORDS];
    if len == 0 || len > MAX_QUOTE as u32 {
        return Err(REFUSED);
    }
    // SAFETY: the scratch holds MAX_QUOTE bytes.
    unsafe { frame.load(F::L3 as u32, quote.0.as_mut_ptr().cast(), len)? };
    let mut sum = 0u64;
    let mut i = 0;
    while i < QUOTE_WORDS {
        sum += u64::from(quote.0[i]);
        i += 1;
    }
    let folded = (sum & 0xffff_ffff) + (sum >> 32);
    Ok(u32::from(checksum::fold((folded & 0xffff) as u32 + ((folded >> 16) & 0xffff) as u32 + (folded >> 32) as u32)))
}

/// Answers with an ICMP error: the head goes before the packet, which is cut to what is quoted and else untouched. `packet` is
/// there when the packet has a transport checksum.
#[inline(never)]
pub fn icmp<F: Frame>(
    frame: &mut F,
    config: &Config,
    about: &Other4,
    packet: Option<&Packet4>,
    (error, reason): (Error, Reason),
) -> Verdict {
    if !granted(config, about.src) {
        return discard(Reason::RateLimited);
    }
    match answer(frame, config, about, packet, error) {
        Ok(()) => {
            crate::counters::count(reason);
            send::back(frame)
        }
        Err(reason) => discard(reason),
    }
}

#[inline(always)]
fn answer<F: Frame>(
    frame: &mut F,
    config: &Config,
    about: &Other4,
    packet: Option<&Packet4>,
    error: Error,
) -> Result<(), Reason> {
    let quote = if about.total > MAX_QUOTE as u32 { MAX_QUOTE as u32 } else { about.total };
    let sum = match packet {
        // XDP has left partial checksums to TC before.
        Some(packet) if !F::XDP && frame.is_partial(packet) => error::partial_quote_sum(packet.check),
        _ => quote_sum(frame, quote)?,
    };
    let Some(eth) = frame.get::<Ethernet>(0).copied() else { return Err(REFUSED) };
    // The VIP speaks about its ports and the way's width; about everything else it is the gateway that speaks.
    let gateway = !matches!(error.code, 3 | 4) || error.kind != Error::PORT_UNREACHABLE.kind;
    let from = if gateway && config.own4 != [0; 4] { config.own4 } else { about.dst };
    let head = error::head(&eth, from, about.src, error, quote as u16, sum);
    frame.resize(ETH_LEN as u32 + quote)?;
    frame.prepend(ERROR_LEN as u32)?;
    if !frame.linear(HEAD_LEN) {
        return Err(REFUSED);
    }
    let Some(at) = frame.at::<ErrorHead>(0) else { return Err(REFUSED) };
    *at = head;
    Ok(())
}

/// A TCP segment whose flow has lost its endpoint: a reset.
#[inline(never)]
pub fn gone<F: Frame>(frame: &mut F, config: &Config, packet: &Packet4) -> Verdict {
    if F::XDP && frame.is_partial(packet) {
        return crate::path::pass(Reason::PartialChecksum);
    }
    if packet.flags & tcp::RST != 0 {
        return discard(Reason::EndpointGone);
    }
    if !granted(config, packet.key.src) {
        return discard(Reason::RateLimited);
    }
    match reset(frame, packet) {
        Ok(()) => {
            crate::counters::count(Reason::EndpointGone);
            send::back(frame)
        }
        Err(reason) => discard(reason),
    }
}

#[inline(always)]
fn reset<F: Frame>(frame: &mut F, packet: &Packet4) -> Result<(), Reason> {
    let partial = !F::XDP && frame.is_partial(packet);
    let len = ETH_LEN + IPV4_LEN + TCP_LEN;
    frame.resize(len as u32)?;
    if !frame.linear(len) {
        return Err(REFUSED);
    }
    let Some(ip) = frame.get::<Ipv4>(F::L3).copied() else { return Err(REFUSED) };
    let Some(segment) = frame.get::<Tcp>(F::L3 + IPV4_LEN).copied() else { return Err(REFUSED) };
    let payload = packet.total - IPV4_LEN as u32 - packet.header;
    let (ip, segment) = error::reset(&ip, &segment, payload, partial);
    let Some(eth) = frame.at::<Ethernet>(0) else { return Err(REFUSED) };
    *eth = error::turned(eth);
    let Some(at) = frame.at::<Ipv4>(F::L3) else { return Err(REFUSED) };
    *at = ip;
    let Some(at) = frame.at::<Tcp>(F::L3 + IPV4_LEN) else { return Err(REFUSED) };
    *at = segment;
    Ok(())
}
