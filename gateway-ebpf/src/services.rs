//! Whose packet to which Service: claims, views, Services, and the choice of an endpoint.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, lpm_trie::Key},
};
use gateway_common::{
    Reason,
    limits::{MAX_DNS_ADDRESSES, MAX_VIEW_LIST, MAX_VIEWS, capacity},
    maps::{
        Affinity, AffinityKey, Claim, Config, FragmentKey, Fragments, Service, ServiceKey, View, ViewList, Vlan,
        VlanKey, config,
    },
    net::{
        error::Error,
        hash,
        headers::IPV4_LEN,
        headers::{ICMP, Icmp},
        parse::{Other4, Packet4},
    },
};

use crate::{
    flows,
    frame::Frame,
    path::{Verdict, discard, pass},
    reject,
};

#[map]
static CLAIMS4: LpmTrie<[u8; 4], Claim> = LpmTrie::with_max_entries(capacity::PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static VIEWS4: LpmTrie<[u8; 4], View> = LpmTrie::with_max_entries(capacity::PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static VIEW_LIST4: Array<ViewList> = Array::with_max_entries(1, 0);
#[map]
static SERVICES4: HashMap<ServiceKey<[u8; 4]>, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);
#[map]
static CLAIMS6: LpmTrie<[u8; 16], Claim> = LpmTrie::with_max_entries(capacity::PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static VIEWS6: LpmTrie<[u8; 16], View> = LpmTrie::with_max_entries(capacity::PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static SERVICES6: HashMap<ServiceKey<[u8; 16]>, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);
#[map]
static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(capacity::AFFINITY, 0);
#[map]
static VLANS: HashMap<VlanKey, Vlan> = HashMap::with_max_entries(capacity::VLANS, 0);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragments> = LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);
#[map]
static MAGLEV: Array<u32> = Array::with_max_entries(capacity::MAGLEV, 0);

/// Times that a Service is read anew when its endpoints change under the reader.
const READS: u32 = 3;

/// Whether a packet is the gateway's business.
pub enum Access {
    /// Nobody's Service address.
    Unclaimed,
    /// Ours, from an address in no view.
    Stranger,
    /// Ours, from a client with this view.
    View(u32),
}

/// What a packet without a flow came to.
pub enum Begun {
    /// It has one now.
    Flow,
    /// It gets none.
    Verdict(Verdict),
}

/// The view of a client.
#[inline(always)]
pub fn view(client: [u8; 4]) -> Option<u32> {
    if let Some(list) = VIEW_LIST4.get(0)
        && list.len != 0
    {
        let client = u32::from_ne_bytes(client);
        let mut i = 0;
        while i < MAX_VIEW_LIST && i < list.len as usize {
            let prefix = &list.prefixes[i];
            if client & prefix.mask == prefix.addr {
                return Some(prefix.id);
            }
            i += 1;
        }
        return None;
    }
    VIEWS4.get(Key::new(32, client)).map(|view| view.id)
}

/// Claim, then view.
#[inline(always)]
pub fn access(_config: &Config, src: [u8; 4], dst: [u8; 4]) -> Access {
    if CLAIMS4.get(Key::new(32, dst)).is_none() {
        return Access::Unclaimed;
    }
    match view(src) {
        None => Access::Stranger,
        Some(id) => Access::View(id),
    }
}

/// A packet of somebody in no view.
#[inline(always)]
pub fn stranger(config: &Config) -> Verdict {
    if config.flags & config::STRANGERS_PASS != 0 { pass(Reason::StrangerPassed) } else { discard(Reason::Stranger) }
}

/// One of the addresses on which the gateway is a name server.
#[inline(always)]
pub fn is_dns_address(config: &Config, addr: [u8; 4]) -> bool {
    let mut i = 0;
    while i < MAX_DNS_ADDRESSES {
        if i as u32 >= config.dns4_len {
            return false;
        }
        if config.dns4[i] == addr {
            return true;
        }
        i += 1;
    }
    false
}

#[inline(always)]
fn service(key: &ServiceKey<[u8; 4]>) -> Option<&'static Service> {
    // SAFETY: without preallocation an element is replaced as a whole and freed only after the program has ended.
    unsafe { SERVICES4.get(key) }
}

#[inline(always)]
fn service_key(packet: &Packet4) -> ServiceKey<[u8; 4]> {
    ServiceKey { addr: packet.key.dst, port: packet.key.dport, proto: packet.key.proto, pad: 0 }
}

/// The packet goes to a Service port with one of these [`gateway_common::maps::service`] bits.
#[inline(always)]
pub fn has(packet: &Packet4, flags: u32) -> bool {
    service(&service_key(packet)).is_some_and(|service| service.flags & flags != 0)
}

/// The packet goes to a Service port that this view may see.
#[inline(always)]
pub fn visible(packet: &Packet4, view: u32) -> bool {
    service(&service_key(packet)).is_some_and(|service| sees(service, view))
}

#[inline(always)]
fn sees(service: &Service, view: u32) -> bool {
    service.views >> (view & (MAX_VIEWS as u32 - 1)) & 1 != 0
}

/// A TCP or UDP packet without a flow: begins one, or says why not.
#[inline(never)]
pub fn begin<F: Frame>(frame: &mut F, config: &Config, packet: &Packet4) -> Begun {
    let key = &packet.key;
    let view = match access(config, key.src, key.dst) {
        Access::Unclaimed => return Begun::Verdict(pass(Reason::NotOurs)),
        Access::Stranger => return Begun::Verdict(stranger(config)),
        Access::View(view) => view,
    };
    if F::XDP && frame.is_partial(packet) {
        return Begun::Verdict(pass(Reason::PartialChecksum));
    }
    let (error, reason) = match choose(config, packet, view) {
        Ok(()) => return Begun::Flow,
        Err(refusal) => refusal,
    };
    Begun::Verdict(match error {
        Some(error) => reject::icmp(frame, config, &whole(packet), Some(packet), (error, reason)),
        None => discard(reason),
    })
}

/// The part of a packet that an error needs.
#[inline(always)]
pub fn whole(packet: &Packet4) -> Other4 {
    Other4 { src: packet.key.src, dst: packet.key.dst, proto: packet.key.proto, l3: packet.l3, total: packet.total }
}

type Refusal = (Option<Error>, Reason);

#[inline(always)]
fn denied(config: &Config) -> Refusal {
    if config.flags & config::DENY_DROP != 0 {
        (None, Reason::ViewDropped)
    } else {
        (Some(Error::PROHIBITED), Reason::ViewDenied)
    }
}

/// Chooses an endpoint for a client's packet and begins the flow.
#[inline(always)]
fn choose(config: &Config, packet: &Packet4, view: u32) -> Result<(), Refusal> {
    let key = &packet.key;
    let service_key = service_key(packet);
    let mut reads = 0;
    while reads < READS {
        reads += 1;
        let Some(service) = service(&service_key) else {
            return Err(match self::service(&ServiceKey::vip(key.dst)) {
                None => (Some(Error::HOST_UNREACHABLE), Reason::UnknownVip),
                Some(vip) if !sees(vip, view) => denied(config),
                Some(_) => (Some(Error::PORT_UNREACHABLE), Reason::UnknownPort),
            });
        };
        if !sees(service, view) {
            return Err(denied(config));
        }
        if service.slot_count == 0 {
            break;
        }
        let hash = if service.affinity == 0 { hash::endpoint(key) } else { hash::affinity(&key.src) };
        let slot = service.slots.wrapping_add(hash % service.slot_count);
        let index = MAGLEV.get(slot).copied().unwrap_or(0);
        // The table's range may have been given away between the two reads.
        if !flows::endpoint(index).is_some_and(|endpoint| endpoint.service == service.id) {
            continue;
        }
        return match flows::create(config, packet, view, service, index) {
            Ok(()) => Ok(()),
            Err(Reason::NoEndpoint) => continue,
            Err(reason) => Err((None, reason)),
        };
    }
    Err((Some(Error::PORT_UNREACHABLE), Reason::NoEndpoint))
}

/// Well-formed IPv4 that is neither TCP nor UDP.
#[inline(never)]
pub fn other<F: Frame>(frame: &mut F, other: &Other4) -> Verdict {
    let Some(config) = crate::settings::config() else { return Verdict::Pass };
    let view = match access(config, other.src, other.dst) {
        Access::Unclaimed => return pass(Reason::NotOurs),
        Access::Stranger if is_icmp_error(frame, other) => return pass(Reason::NotOurs),
        Access::Stranger => return stranger(config),
        Access::View(view) => view,
    };
    if is_icmp_error(frame, other) {
        return pass(Reason::NotOurs);
    }
    let Some(vip) = service(&ServiceKey::vip(other.dst)) else {
        return reject::icmp(frame, config, other, None, (Error::HOST_UNREACHABLE, Reason::UnknownVip));
    };
    if !sees(vip, view) {
        return match denied(config) {
            (Some(error), reason) => reject::icmp(frame, config, other, None, (error, reason)),
            (None, reason) => discard(reason),
        };
    }
    discard(Reason::UnknownProtocol)
}

/// An error about a packet: never answered with another one.
#[inline(always)]
fn is_icmp_error<F: Frame>(frame: &F, other: &Other4) -> bool {
    other.proto == ICMP
        && frame.get::<Icmp>(F::L3 + IPV4_LEN).is_none_or(|icmp| matches!(icmp.kind, 3 | 4 | 5 | 11 | 12))
}
