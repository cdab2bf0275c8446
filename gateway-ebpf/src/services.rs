//! Whose packet to which Service: claims, views, Services, and the choice of an endpoint.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, lpm_trie::Key},
};
use gateway_common::{
    Reason,
    limits::{MAX_DNS_ADDRESSES, MAX_SNAT_ADDRESSES, MAX_VIEW_LIST, MAX_VIEWS, capacity},
    maps::{Affinity, AffinityKey, Claim, Config, Service, ServiceKey, View, ViewList, config, endpoint, service},
    net::{
        error::Error,
        family::{Family, V4, V6},
        hash,
        headers::UDP,
        parse::{Other, Packet},
    },
};

use crate::{
    flows,
    net::{Net, bits},
    path::{Verdict, discard, hz, pass},
    reject,
    settings::now,
    stage::Stages,
};

#[map]
static CLAIMS4: LpmTrie<[u8; 4], Claim> = LpmTrie::with_max_entries(capacity::PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static CLAIMS6: LpmTrie<[u8; 16], Claim> = LpmTrie::with_max_entries(capacity::PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static VIEWS4: LpmTrie<[u8; 4], View> = LpmTrie::with_max_entries(capacity::PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static VIEW_LIST4: Array<ViewList> = Array::with_max_entries(1, 0);
#[map]
static VIEWS6: LpmTrie<[u8; 16], View> = LpmTrie::with_max_entries(capacity::PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static SERVICES4: HashMap<ServiceKey<[u8; 4]>, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);
#[map]
static SERVICES6: HashMap<ServiceKey<[u8; 16]>, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);
#[map]
static MAGLEV: Array<u32> = Array::with_max_entries(capacity::MAGLEV, BPF_F_MMAPABLE);
#[map]
static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(capacity::AFFINITY, 0);

/// The maps of a family's Services.
pub trait Table: Family {
    /// What is the gateway's business.
    fn claims() -> &'static LpmTrie<Self::Addr, Claim>;
    /// Who is a client.
    fn views() -> &'static LpmTrie<Self::Addr, View>;
    /// VIPs and ports.
    fn services() -> &'static HashMap<ServiceKey<Self::Addr>, Service>;
    /// The view of a client where the prefixes are so few that they are compared one by one; `None`: [`Self::views`] decides.
    fn few(client: &Self::Addr) -> Option<Option<u32>>;
}

impl Table for V4 {
    #[inline(always)]
    fn claims() -> &'static LpmTrie<[u8; 4], Claim> {
        &CLAIMS4
    }
    #[inline(always)]
    fn views() -> &'static LpmTrie<[u8; 4], View> {
        &VIEWS4
    }
    #[inline(always)]
    fn services() -> &'static HashMap<ServiceKey<[u8; 4]>, Service> {
        &SERVICES4
    }
    #[inline(always)]
    fn few(client: &[u8; 4]) -> Option<Option<u32>> {
        let list = VIEW_LIST4.get(0)?;
        if list.len == 0 {
            return None;
        }
        let client = u32::from_ne_bytes(*client);
        let mut i = 0;
        while i < MAX_VIEW_LIST && i < list.len as usize {
            let prefix = &list.prefixes[i];
            if client & prefix.mask == prefix.addr {
                return Some(Some(prefix.id));
            }
            i += 1;
        }
        Some(None)
    }
}

impl Table for V6 {
    #[inline(always)]
    fn claims() -> &'static LpmTrie<[u8; 16], Claim> {
        &CLAIMS6
    }
    #[inline(always)]
    fn views() -> &'static LpmTrie<[u8; 16], View> {
        &VIEWS6
    }
    #[inline(always)]
    fn services() -> &'static HashMap<ServiceKey<[u8; 16]>, Service> {
        &SERVICES6
    }
    #[inline(always)]
    fn few(_client: &[u8; 16]) -> Option<Option<u32>> {
        None
    }
}

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
pub fn view<N: Net>(src: &N::Addr) -> Option<u32> {
    N::few(src).unwrap_or_else(|| N::views().get(Key::new(bits::<N>(), *src)).map(|view| view.id))
}

/// In a service CIDR or a VIP, and not the node's own.
#[inline(always)]
pub fn is_claimed<N: Net>(dst: &N::Addr) -> bool {
    N::claims().get(Key::new(bits::<N>(), *dst)).is_some_and(Claim::is_ours)
}

/// Claim, then view.
#[inline(always)]
pub fn access<N: Net>(src: &N::Addr, dst: &N::Addr) -> Access {
    if !is_claimed::<N>(dst) {
        return Access::Unclaimed;
    }
    match view::<N>(src) {
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
pub fn is_dns_address<N: Net>(config: &Config, addr: &N::Addr) -> bool {
    let (addresses, used) = N::dns(config);
    let mut i = 0;
    while i < MAX_DNS_ADDRESSES {
        if i as u32 >= used {
            return false;
        }
        if addresses[i] == *addr {
            return true;
        }
        i += 1;
    }
    false
}

/// One of the addresses from which flows are sent.
#[inline(always)]
pub fn is_source_address<N: Net>(config: &Config, addr: &N::Addr) -> bool {
    let (addresses, used) = N::snat(config);
    let mut i = 0;
    while i < MAX_SNAT_ADDRESSES {
        if i as u32 >= used {
            return false;
        }
        if addresses[i] == *addr {
            return true;
        }
        i += 1;
    }
    false
}

#[inline(always)]
fn service<N: Net>(key: &ServiceKey<N::Addr>) -> Option<&'static Service> {
    // SAFETY: without preallocation an element is replaced as a whole and freed only after the program has ended.
    unsafe { N::services().get(key) }
}

#[inline(always)]
fn service_key<N: Net>(packet: &Packet<N::Addr>) -> ServiceKey<N::Addr> {
    ServiceKey { addr: packet.key.dst, port: packet.key.dport, proto: packet.key.proto, pad: 0 }
}

/// That address is the cluster DNS Service's, and this view may see it.
#[inline(always)]
pub fn answers_for<N: Net>(addr: N::Addr, view: u32) -> bool {
    service::<N>(&ServiceKey::new(addr, 53, UDP))
        .is_some_and(|service| service.flags & service::DNS != 0 && sees(service, view))
}

/// The packet goes to a Service port with one of these [`gateway_common::maps::service`] bits.
#[inline(always)]
pub fn has<N: Net>(packet: &Packet<N::Addr>, flags: u32) -> bool {
    service::<N>(&service_key::<N>(packet)).is_some_and(|service| service.flags & flags != 0)
}

/// The packet goes to a Service port that this view may see.
#[inline(always)]
pub fn visible<N: Net>(packet: &Packet<N::Addr>, view: u32) -> bool {
    service::<N>(&service_key::<N>(packet)).is_some_and(|service| sees(service, view))
}

#[inline(always)]
fn sees(service: &Service, view: u32) -> bool {
    service.views >> (view & (MAX_VIEWS as u32 - 1)) & 1 != 0
}

/// A TCP or UDP packet without a flow: begins one, or says why not.
#[inline(always)]
pub fn begin<F: Stages, N: Net>(frame: &mut F, config: &Config, packet: &Packet<N::Addr>) -> Begun {
    let key = &packet.key;
    let view = match access::<N>(&key.src, &key.dst) {
        Access::Unclaimed => return Begun::Verdict(pass(Reason::NotOurs)),
        Access::Stranger => return Begun::Verdict(stranger(config)),
        Access::View(view) => view,
    };
    if F::XDP && frame.is_partial::<N>(packet) {
        return Begun::Verdict(pass(Reason::PartialChecksum));
    }
    let refusal = match choose::<N>(config, packet, view) {
        Ok(()) => return Begun::Flow,
        // Whatever else is wrong with it: on a way with one hop less it would have ended here.
        Err((Some(_), _)) if packet.ttl <= 1 => ENDED,
        Err(refusal) => refusal,
    };
    Begun::Verdict(match refusal {
        (Some(error), reason) => reject::with(error, reason),
        (None, reason) => discard(reason),
    })
}

/// An error to send, if any, and what is counted.
pub type Refusal = (Option<Error>, Reason);

/// TTL or hop limit ends here.
const ENDED: Refusal = (Some(Error::TIME_EXCEEDED), Reason::TtlExceeded);

#[inline(always)]
fn denied(config: &Config) -> Refusal {
    if config.flags & config::DENY_DROP != 0 {
        (None, Reason::ViewDropped)
    } else {
        (Some(Error::PROHIBITED), Reason::ViewDenied)
    }
}

/// What a packet without ports finds at its destination: the endpoints of the VIP; or why it does not get there; or that it is not the
/// gateway's business.
#[inline(always)]
pub fn reach<N: Net>(config: &Config, other: &Other<N::Addr>) -> Result<Result<u32, Refusal>, Verdict> {
    let view = match access::<N>(&other.src, &other.dst) {
        Access::Unclaimed => return Err(pass(Reason::NotOurs)),
        Access::Stranger => return Err(stranger(config)),
        Access::View(view) => view,
    };
    Ok(if other.ttl <= 1 {
        Err(ENDED)
    } else {
        match service::<N>(&ServiceKey::vip(other.dst)) {
            None => Err((Some(Error::HOST_UNREACHABLE), Reason::UnknownVip)),
            Some(vip) if !sees(vip, view) => Err(denied(config)),
            Some(vip) => Ok(vip.endpoints),
        }
    })
}

/// Chooses an endpoint for a client's packet and begins the flow.
#[inline(always)]
fn choose<N: Net>(config: &Config, packet: &Packet<N::Addr>, view: u32) -> Result<(), Refusal> {
    let key = &packet.key;
    let service_key = service_key::<N>(packet);
    let mut reads = 0;
    while reads < READS {
        reads += 1;
        let Some(service) = service::<N>(&service_key) else {
            return Err(match self::service::<N>(&ServiceKey::vip(key.dst)) {
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
        let kept = if service.affinity == 0 { None } else { kept::<N>(config, service, &key.src) };
        let index = match kept {
            Some(index) => index,
            None => {
                let hash = if service.affinity == 0 { hash::endpoint(key) } else { hash::affinity(&key.src) };
                // The count may have changed since it was looked at.
                let slot = service.slots.wrapping_add(hash.checked_rem(service.slot_count).unwrap_or(0));
                MAGLEV.get(slot).copied().unwrap_or(0)
            }
        };
        // The table's range may have been given away between the two reads.
        let Some(endpoint) = flows::endpoint(index) else { continue };
        if endpoint.service != service.id {
            continue;
        }
        if packet.ttl <= 1 && endpoint.flags & endpoint::LOCAL == 0 {
            return Err(ENDED);
        }
        return match flows::draft_flow::<N>(config, packet, view, service, index) {
            Ok(()) => {
                if service.affinity != 0 {
                    keep::<N>(service, &key.src, index);
                }
                Ok(())
            }
            Err(Reason::NoEndpoint) => continue,
            Err(reason) => Err((None, reason)),
        };
    }
    Err((Some(Error::PORT_UNREACHABLE), Reason::NoEndpoint))
}

#[inline(always)]
fn affinity_key<N: Net>(service: &Service, client: &N::Addr) -> AffinityKey {
    AffinityKey { client: N::wide(client), service: service.id }
}

/// Where the client's last flow to this Service went, while its time is not over and the endpoint takes new flows.
#[inline(always)]
fn kept<N: Net>(config: &Config, service: &Service, client: &N::Addr) -> Option<u32> {
    // SAFETY: elements of an LRU map are preallocated and stay mapped; a torn read is found out by the generation.
    let last = unsafe { AFFINITY.get(&affinity_key::<N>(service, client)) }?;
    if now().wrapping_sub(last.seen) > u64::from(service.affinity) * hz(config) {
        return None;
    }
    let endpoint = flows::endpoint(last.endpoint)?;
    let takes = endpoint.flags & endpoint::DRAINING == 0 && endpoint.generation == last.generation;
    if takes && endpoint.service == service.id { Some(last.endpoint) } else { None }
}

/// Remembers where a client's flow went.
#[inline(always)]
fn keep<N: Net>(service: &Service, client: &N::Addr, index: u32) {
    let Some(endpoint) = flows::endpoint(index) else { return };
    let value = Affinity { seen: now(), endpoint: index, generation: endpoint.generation };
    let _ = AFFINITY.insert(&affinity_key::<N>(service, client), &value, 0);
}
