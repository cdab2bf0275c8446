//! What the datapath would do with a packet or a query, read from the maps it reads, by its own rules and in its own order. Nothing is
//! changed: no flow begins, nothing is counted.

use std::net::IpAddr;

use gateway_common::{
    dns::{build, name},
    maps::{
        Affinity, AffinityKey, Config, DnsEntry, Endpoint, FlowKey, PrefixKey, Service, View, Zone, config, dns_entry,
        dns_key, nexthop, service,
    },
    net::hash,
};
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};

use super::{
    KernelError,
    family::{self, Family, Pair},
    state::State,
    sweep::{Clock, FlowMaps, FlowTable},
    table::Table,
};

/// What is asked.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Question {
    /// The client.
    pub from: IpAddr,
    /// Where the packet goes.
    pub to: Option<IpAddr>,
    /// `tcp`, `udp`, or `icmp`: an echo request.
    pub proto: Option<String>,
    /// Destination port; none for an echo request.
    pub port: Option<u16>,
    /// Source port; without it every endpoint is possible.
    pub sport: Option<u16>,
    /// A name that is asked for, instead of a packet.
    pub name: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `forwarded`, `answered`, `rejected`, `dropped`, or `passed` to the node, as if there were no gateway.
    pub verdict: &'static str,
    /// What was looked at, in order; the last line decides.
    pub why: Vec<String>,
    /// The Service, `namespace/name`.
    pub service: Option<String>,
    /// Endpoints that the packet may go to.
    pub endpoints: Vec<Choice>,
}

/// An endpoint of an [`Explanation`].
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    /// `ip:port`.
    pub endpoint: String,
    /// Its part of new flows, 0 to 1.
    pub share: f64,
    /// What it sees as source: the gateway's addresses, or the client's.
    pub source: Vec<IpAddr>,
    /// Interface towards it; null without a route and for this node's own addresses.
    pub interface: Option<String>,
    /// Its next hop's MAC is known.
    pub resolved: bool,
}

impl Explanation {
    /// With the reason that decides.
    pub fn end(mut self, verdict: &'static str, why: impl Into<String>) -> Self {
        self.verdict = verdict;
        self.why.push(why.into());
        self
    }

    fn step(&mut self, why: impl Into<String>) {
        self.why.push(why.into());
    }
}

/// Record types that the gateway has answers of.
const TYPES: [(u16, &str); 9] =
    [(1, "A"), (28, "AAAA"), (5, "CNAME"), (33, "SRV"), (12, "PTR"), (16, "TXT"), (15, "MX"), (2, "NS"), (6, "SOA")];

type Views = Pair<PrefixKey<[u8; 4]>, PrefixKey<[u8; 16]>, View>;

impl State {
    fn view_of(&self, addr: IpAddr) -> Result<Option<u32>, KernelError> {
        let views: Views = Pair::open(&self.ebpf, "VIEWS4", "VIEWS6")?;
        Ok(views.get(&family::prefix(IpNet::from(addr)))?.map(|view| view.id))
    }

    /// A packet of a client, as an uplink's program meets it. `views` are the views' names.
    pub(super) fn explain_packet(
        &self,
        flows: &FlowMaps,
        clock: Clock,
        question: &Question,
        to: IpAddr,
        views: &[String],
    ) -> Result<Explanation, KernelError> {
        let mut told = Explanation::default();
        let proto = match question.proto.as_deref() {
            Some("udp") => 17,
            _ => 6,
        };
        let (from, port, udp) = (question.from, question.port.unwrap_or_default(), proto == 17);
        if from.is_ipv4() != to.is_ipv4() {
            return Ok(told.end("passed", "there is no such packet: source and destination are of two families"));
        }
        let config = self.config_map.get(&0).map_err(|source| KernelError::map("CONFIG", source))?;
        let config = config.unwrap_or_else(bytemuck::Zeroable::zeroed);
        let view = self.view_of(from)?;
        let view_name = |id: u32| views.get(id as usize).map_or_else(|| format!("view {id}"), |n| format!("view {n}"));
        if port == 53 && is_dns_address(&config, to) {
            return Ok(match view {
                None => stranger(told, &config, from),
                Some(_) if udp => told.end("answered", format!("{to} is a name server of the gateway: see `--name`")),
                Some(_) => told.end("passed", format!("{to} is a name server of the gateway: TCP is the forwarder's")),
            });
        }
        if let Some(sport) = question.sport
            && let Some(endpoint) = known_flow(flows, (from, sport), (to, port), proto)?
        {
            told.step(format!("a flow of that tuple is known, and goes on to {endpoint}"));
        }
        if question.proto.as_deref() == Some("icmp") {
            return self.explain_echo(told, &config, from, to, views);
        }
        if let Some(why) = self.unclaimed(to)? {
            return Ok(told.end("passed", why));
        }
        told.step(format!("{to} is the gateway's business: in a service CIDR, or a VIP"));
        let Some(view) = view else { return Ok(stranger(told, &config, from)) };
        told.step(format!("{from} is in {}", view_name(view)));
        let sees = |service: &Service| service.views >> (view & 63) & 1 != 0;
        let map = &self.services.maps().services;
        let Some(found) = map.get(&family::service(to, port, proto))? else {
            return Ok(match map.get(&family::service(to, 0, 0))? {
                None => told.end("rejected", format!("no Service has the address {to}: host unreachable")),
                Some(vip) if !sees(&vip) => denied(told, &config, &view_name(view)),
                Some(_) => told.end("rejected", format!("a Service has {to}, but not port {port}: port unreachable")),
            });
        };
        let of_id = self.services.list(&self.hops).into_iter().find(|info| info.id == found.id);
        told.service = of_id.map(|info| format!("{}/{}", info.namespace, info.name));
        told.step(format!("{to} port {port} is Service {}", told.service.as_deref().unwrap_or("(unknown)")));
        if !sees(&found) {
            return Ok(denied(told, &config, &view_name(view)));
        }
        if found.flags & service::DNS != 0 && udp {
            told.step("a query that the kernel has an answer for is answered at once; others go to the forwarder");
        }
        if found.slot_count == 0 {
            return Ok(told.end("rejected", "it has no endpoint to send to in this family: port unreachable"));
        }
        let kept = if found.affinity == 0 { None } else { self.kept(&found, from, clock)? };
        let slots = match kept {
            Some(index) => {
                told.step(format!(
                    "ClientIP affinity: the client's last flow, within {} s, went there",
                    found.affinity
                ));
                vec![index]
            }
            None => self.slots(&found, (from, question.sport), (to, port), proto)?,
        };
        let all = slots.len() as f64;
        let mut counted: Vec<(u32, usize)> = Vec::new();
        for index in slots {
            match counted.iter_mut().find(|(known, _)| *known == index) {
                Some((_, n)) => *n += 1,
                None => counted.push((index, 1)),
            }
        }
        for (index, n) in counted {
            let at = self.services.maps().endpoints.get(&index).map_err(|e| KernelError::map("ENDPOINTS", e))?;
            told.endpoints.extend(at.map(|at| self.choice(&config, from, &at, n as f64 / all)));
        }
        told.endpoints.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        let lost = told.endpoints.iter().filter(|c| c.interface.is_none() && !c.resolved).count();
        if lost == told.endpoints.len() {
            return Ok(told.end("rejected", "there is no route to its endpoints: host unreachable"));
        }
        let tiers: Vec<String> = self
            .attachments()
            .iter()
            .filter(|a| a.role == "uplink")
            .map(|a| {
                format!("{} ({}tc)", a.interface, a.xdp.map(|xdp| format!("{xdp} xdp, then ")).unwrap_or_default())
            })
            .collect();
        let which =
            if told.endpoints.len() == 1 { "its endpoint" } else { "one of its endpoints, by the hash of the flow" };
        Ok(told.end("forwarded", format!("to {which}, when it arrives on {}", tiers.join(" or "))))
    }

    /// Why packets to that address are not the gateway's business; `None` when they are.
    fn unclaimed(&self, to: IpAddr) -> Result<Option<String>, KernelError> {
        Ok(match self.services.maps().claims.get(&family::prefix(IpNet::from(to)))? {
            Some(claim) if claim.is_ours() => None,
            Some(_) => Some(format!("{to} is this node's own address, though in a service CIDR: it stays the node's")),
            None => Some(format!("{to} is in no service CIDR and no VIP: not the gateway's business")),
        })
    }

    /// An echo request of a client.
    fn explain_echo(
        &self,
        mut told: Explanation,
        config: &Config,
        from: IpAddr,
        to: IpAddr,
        views: &[String],
    ) -> Result<Explanation, KernelError> {
        if let Some(why) = self.unclaimed(to)? {
            return Ok(told.end("passed", why));
        }
        told.step(format!("{to} is the gateway's business: in a service CIDR, or a VIP"));
        let Some(view) = self.view_of(from)? else { return Ok(stranger(told, config, from)) };
        let view_name = views.get(view as usize).map_or_else(|| format!("view {view}"), |n| format!("view {n}"));
        told.step(format!("{from} is in {view_name}"));
        let Some(vip) = self.services.maps().services.get(&family::service(to, 0, 0))? else {
            return Ok(told.end("rejected", format!("no Service has the address {to}: host unreachable")));
        };
        let of_vip = self.services.list(&self.hops).into_iter().find(|info| info.vip == to && info.active);
        told.service = of_vip.map(|info| format!("{}/{}", info.namespace, info.name));
        if vip.views >> (view & 63) & 1 == 0 {
            return Ok(denied(told, config, &view_name));
        }
        told.step(format!("{to} is Service {}", told.service.as_deref().unwrap_or("(unknown)")));
        Ok(if vip.endpoints == 0 {
            told.end("rejected", "it has no endpoint to send to: host unreachable")
        } else {
            told.end(
                "answered",
                "it has an endpoint: an echo reply from the VIP itself, at a limited rate for each client",
            )
        })
    }

    /// The endpoint indices that the packet may take, one for each slot; a single one when the source port or affinity decides.
    fn slots(
        &self,
        found: &Service,
        (from, sport): (IpAddr, Option<u16>),
        (to, port): (IpAddr, u16),
        proto: u8,
    ) -> Result<Vec<u32>, KernelError> {
        let of = |sport: u16| match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => hash_of(found, from.octets(), to.octets(), sport, port, proto),
            (IpAddr::V6(from), IpAddr::V6(to)) => hash_of(found, from.octets(), to.octets(), sport, port, proto),
            _ => 0,
        };
        let range = match sport {
            Some(sport) => {
                let slot = found.slots.wrapping_add(of(sport) % found.slot_count.max(1));
                slot..slot + 1
            }
            None if found.affinity != 0 => {
                let slot = found.slots.wrapping_add(of(0) % found.slot_count.max(1));
                slot..slot + 1
            }
            None => found.slots..found.slots + found.slot_count,
        };
        let maglev = &self.services.maps().maglev;
        let read = |slot: u32| maglev.get(&slot).map(|index| index.unwrap_or_default());
        range.map(read).collect::<Result<_, _>>().map_err(|source| KernelError::map("MAGLEV", source))
    }

    /// The endpoint of the client's last flow to a Service with affinity, while that holds.
    fn kept(&self, found: &Service, from: IpAddr, clock: Clock) -> Result<Option<u32>, KernelError> {
        let map = |source| KernelError::map("AFFINITY", source);
        let affinity: Table<AffinityKey, Affinity> = Table::open(&self.ebpf, "AFFINITY")?;
        let key = AffinityKey { client: family::sixteen(from), service: found.id };
        let last = affinity.get(&key).map_err(map)?.filter(|last| !clock.older(last.seen, found.affinity));
        let Some(last) = last else { return Ok(None) };
        let endpoint = self.services.maps().endpoints.get(&last.endpoint).map_err(map)?;
        let takes = |e: &Endpoint| e.flags & gateway_common::maps::endpoint::DRAINING == 0;
        let same = endpoint.is_some_and(|e| e.generation == last.generation && e.service == found.id && takes(&e));
        Ok(same.then_some(last.endpoint))
    }

    fn choice(&self, config: &Config, from: IpAddr, at: &Endpoint, share: f64) -> Choice {
        let v6 = at.flags & gateway_common::maps::endpoint::V6 != 0;
        let local = at.flags & gateway_common::maps::endpoint::LOCAL != 0;
        let addr = super::pin::address(at.addr, v6);
        let hop = self.hops.value(at.nexthop);
        let own = |len: u32| len as usize;
        let source = if local || config.flags & config::ROUTED != 0 {
            vec![from]
        } else if v6 {
            config.snat6.iter().take(own(config.snat6_len)).map(|a| IpAddr::from(*a)).collect()
        } else {
            config.snat4.iter().take(own(config.snat4_len)).map(|a| IpAddr::from(*a)).collect()
        };
        Choice {
            endpoint: std::net::SocketAddr::new(addr, u16::from_be_bytes(at.port)).to_string(),
            share,
            source,
            interface: hop.filter(|_| !local).and_then(|hop| self.hops.link(hop.ifindex)).map(|link| link.name.clone()),
            resolved: hop.is_some_and(|hop| hop.flags & nexthop::RESOLVED != 0),
        }
    }

    /// A query of a client for a name, of every type that the gateway has answers of.
    pub(super) fn explain_name(
        &self,
        entry: impl Fn(&gateway_common::maps::DnsKey) -> Option<DnsEntry>,
        zones: &[Zone],
        question: &Question,
        asked: &str,
        views: &[String],
    ) -> Result<Explanation, KernelError> {
        let mut told = Explanation::default();
        let config = self.config_map.get(&0).map_err(|source| KernelError::map("CONFIG", source))?;
        let Some(view) = self.view_of(question.from)? else {
            return Ok(stranger(told, &config.unwrap_or_else(bytemuck::Zeroable::zeroed), question.from));
        };
        let view_name = views.get(view as usize).map_or_else(|| view.to_string(), Clone::clone);
        told.step(format!("{} is in view {view_name}", question.from));
        let wire = match name::to_wire(asked) {
            Ok(wire) => wire,
            Err(error) => return Ok(told.end("passed", format!("{asked}: {error}: no query can ask for it"))),
        };
        let Some(exists) = build::key(&wire, dns_key::EXISTS, 0) else {
            return Ok(told.end("passed", "the name is longer than the kernel's: the forwarder answers it"));
        };
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec().unsigned_abs() * 1_000_000_000);
        let visible = |entry: &DnsEntry| entry.views >> (view & 63) & 1 != 0;
        let mut answered = false;
        for (qtype, text) in TYPES {
            let Some(entry) = build::key(&wire, qtype, 0).and_then(|key| entry(&key)) else { continue };
            let from = if entry.flags & dns_entry::ZONE != 0 { "the cluster zone" } else { "what was learnt" };
            if !visible(&entry) {
                told.step(format!(
                    "{text}: there is one in {from}, which this view may not see: as if there were none"
                ));
            } else if entry.expires != 0 && entry.expires <= now {
                told.step(format!("{text}: one of {from} has expired: the forwarder asks again"));
            } else {
                answered = true;
                told.step(format!("{text}: {} records of {from}, answered in the kernel", entry.answers));
            }
        }
        let below = |zone: &&Zone| {
            zone.name_len != 0 && {
                let (len, zone_len) = (wire.len(), usize::from(zone.name_len));
                let mut at = 0;
                while len - at > zone_len && wire[at] != 0 {
                    at += 1 + usize::from(wire[at]);
                }
                len - at == zone_len && wire[at..] == zone.name[..zone_len]
            }
        };
        let zone = zones.iter().filter(below).max_by_key(|zone| zone.name_len);
        let there = entry(&exists).filter(visible);
        Ok(match (zone, there) {
            (Some(zone), _) if zone.complete == 0 => told.end(
                if answered { "answered" } else { "passed" },
                "other types: the forwarder knows more of that zone",
            ),
            (Some(_), Some(there)) if there.flags & dns_entry::ALIAS != 0 => {
                told.end("passed", "the name is an alias: the forwarder follows it")
            }
            (Some(_), Some(_)) => told.end("answered", "other types: the name has none (NODATA), said by the kernel"),
            (Some(_), None) if !answered => {
                told.end("answered", "no such name in a zone that the kernel knows as a whole: NXDOMAIN")
            }
            _ if answered => told.end("answered", "other types: by the forwarder"),
            _ => {
                told.end("passed", "the kernel knows nothing of it: the forwarder answers, from its cache or upstream")
            }
        })
    }
}

fn hash_of<A: Family>(found: &Service, from: A, to: A, sport: u16, port: u16, proto: u8) -> u32 {
    match found.affinity {
        0 => hash::endpoint(&FlowKey::new(from, to, sport.to_be_bytes(), port.to_be_bytes(), proto)),
        _ => hash::affinity(&from),
    }
}

fn known_flow(
    flows: &FlowMaps,
    (from, sport): (IpAddr, u16),
    (to, port): (IpAddr, u16),
    proto: u8,
) -> Result<Option<String>, KernelError> {
    fn find<A: Family>(table: &FlowTable<A>, key: &FlowKey<A>) -> Result<Option<String>, KernelError>
    where
        FlowKey<A>: bytemuck::Pod,
        gateway_common::maps::Flow<A>: bytemuck::Pod,
    {
        let found = table.get(key).map_err(|source| KernelError::map(A::FLOWS, source))?;
        Ok(found.map(|flow| flow.new_dst.socket(flow.new_dport).to_string()))
    }
    let (sport, port) = (sport.to_be_bytes(), port.to_be_bytes());
    match (from, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => find(&flows.v4, &FlowKey::new(a.octets(), b.octets(), sport, port, proto)),
        (IpAddr::V6(a), IpAddr::V6(b)) => find(&flows.v6, &FlowKey::new(a.octets(), b.octets(), sport, port, proto)),
        _ => Ok(None),
    }
}

fn is_dns_address(config: &Config, addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => config.dns4.iter().take(config.dns4_len as usize).any(|own| *own == a.octets()),
        IpAddr::V6(a) => config.dns6.iter().take(config.dns6_len as usize).any(|own| *own == a.octets()),
    }
}

fn stranger(told: Explanation, config: &Config, from: IpAddr) -> Explanation {
    if config.flags & config::STRANGERS_PASS != 0 {
        told.end("passed", format!("{from} is in no view (strangers: pass)"))
    } else {
        told.end("dropped", format!("{from} is in no view (strangers: drop)"))
    }
}

fn denied(told: Explanation, config: &Config, view: &str) -> Explanation {
    if config.flags & config::DENY_DROP != 0 {
        told.end("dropped", format!("{view} may not see it (deny: drop)"))
    } else {
        told.end("rejected", format!("{view} may not see it: administratively prohibited"))
    }
}
