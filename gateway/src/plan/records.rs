//! The names of a Service: Kubernetes' DNS-based service discovery, version 1.1.0, with CoreDNS' answers where that is silent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Backends, PlanConfig, Pods, Record, RecordData,
    problem::{Problems, Reason},
};
use crate::model::{Pod, Protocol, Service, ServiceKind, ServicePort};

/// The version of the specification that `dns-version` names.
pub const DNS_SCHEMA_VERSION: &str = "1.1.0";
/// TTL of `dns-version` in seconds: it does not change while a cluster lives. CoreDNS' value.
pub const DNS_SCHEMA_TTL: u32 = 28_800;

/// Addresses of each family that one DNS message of 64 KiB has room for.
const MOST_A: usize = 4_000;
const MOST_AAAA: usize = 2_285;

/// What the zone has besides its Services: `dns-version`, the name server's own name, and the nodes above the namespaces.
pub fn zone_records(config: &PlanConfig) -> Vec<Record> {
    // For every view there is or will be: they say nothing of what the cluster holds.
    let views = u64::MAX;
    let record = |name: &str, ttl, data| Record { name: format!("{name}.{}", config.cluster_domain), ttl, views, data };
    let mut records = vec![
        record("dns-version", DNS_SCHEMA_TTL, RecordData::Txt(DNS_SCHEMA_VERSION.into())),
        record("ns.dns", config.ttl, RecordData::Exists),
        record("pod", config.ttl, RecordData::Exists),
        record("svc", config.ttl, RecordData::Exists),
    ];
    let addresses: BTreeSet<IpAddr> =
        config.dns_listen.iter().map(|l| l.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback()).collect();
    records.extend(addresses.into_iter().map(|ip| record("ns.dns", config.ttl, RecordData::Address(ip))));
    records.sort();
    records
}

/// The names that exist because their namespace does, whatever is in it.
pub(super) fn of_namespace(namespace: &str, views: u64, config: &PlanConfig) -> impl Iterator<Item = Record> {
    let above: &[&str] = if config.pods == Pods::Disabled { &["svc"] } else { &["svc", "pod"] };
    above.iter().map(move |above| Record {
        name: format!("{namespace}.{above}.{}", config.cluster_domain),
        ttl: config.ttl,
        views,
        data: RecordData::Exists,
    })
}

/// A name for each address of a pod.
pub(super) fn of_pod(pod: &Pod, views: u64, config: &PlanConfig) -> Vec<Record> {
    let above = format!("{}.pod.{}", pod.name.namespace, config.cluster_domain);
    let name = |addr: &IpAddr| Record {
        name: format!("{}.{above}", host(*addr, None)),
        ttl: config.ttl,
        views,
        data: RecordData::Address(*addr),
    };
    pod.addresses.iter().map(name).collect::<BTreeSet<_>>().into_iter().collect()
}

pub(super) fn of(
    service: &Service,
    vips: &[IpAddr],
    ports: &[&ServicePort],
    backends: &Backends,
    views: u64,
    config: &PlanConfig,
    problems: &mut Problems,
) -> Vec<Record> {
    let name = format!("{}.{}.svc.{}", service.name.name, service.name.namespace, config.cluster_domain);
    let mut out = Names { records: BTreeSet::new(), ttl: config.ttl, views };
    out.records.extend(of_namespace(&service.name.namespace, views, config));
    match &service.kind {
        ServiceKind::ExternalName(target) => {
            out.add(name.clone(), RecordData::Exists);
            external(&name, target, &mut out, problems);
        }
        ServiceKind::ClusterIp(_) => {
            out.add(name.clone(), RecordData::Exists);
            out.endpoints(&name, backends);
            cluster_ip(&name, vips, ports, &mut out, problems);
        }
        // Without a ready endpoint there is no such name: section 2.4.1 of the specification.
        ServiceKind::Headless => {
            out.endpoints(&name, backends);
            headless(&name, backends, &mut out, problems);
        }
    }
    out.records.into_iter().collect()
}

fn external(name: &str, target: &str, out: &mut Names, problems: &mut Problems) {
    let target = target.strip_suffix('.').unwrap_or(target).to_ascii_lowercase();
    if let Ok(addr) = target.parse::<IpAddr>() {
        // No CNAME leads to an address, but what is meant is plain.
        out.add(name.to_owned(), RecordData::Address(addr));
    } else if !is_domain(&target) {
        problems.say(Reason::NameLeftOut, format!("externalName {target:?} is not a domain name and has no record"));
    } else {
        out.add(name.to_owned(), RecordData::Cname(target));
    }
}

fn cluster_ip(name: &str, vips: &[IpAddr], ports: &[&ServicePort], out: &mut Names, problems: &mut Problems) {
    for vip in vips {
        out.add(name.to_owned(), RecordData::Address(*vip));
        out.add(reverse_name(*vip), RecordData::Ptr(name.to_owned()));
    }
    if vips.is_empty() {
        return;
    }
    for port in ports {
        // The plain name has a record for each port, named or not.
        out.srv(name.to_owned(), weight(ports.len() * vips.len()), port.port, name.to_owned());
        if nameable(&port.name, problems) {
            out.srv(service_name(name, &port.name, port.protocol), weight(vips.len()), port.port, name.to_owned());
        }
    }
}

fn headless(name: &str, backends: &Backends, out: &mut Names, problems: &mut Problems) {
    for (v4, most) in [(true, MOST_A), (false, MOST_AAAA)] {
        let count = backends.named.iter().filter(|endpoint| endpoint.addr.is_ipv4() == v4).count();
        if count > most {
            problems.say(
                Reason::TooManyEndpoints,
                format!(
                    "it has {count} addresses, and an answer holds {most}: clients that ask for its name are told the first ones"
                ),
            );
        }
    }
    for endpoint in &backends.named {
        out.add(name.to_owned(), RecordData::Address(endpoint.addr));
    }
    // One SRV set a port name, of the endpoints of all slices that have it; and one of them all at the plain name. The
    // addresses of a set share the weight, also where a host name has several of them.
    let mut sets: BTreeMap<String, BTreeSet<(String, u16, IpAddr)>> = BTreeMap::new();
    for endpoint in &backends.named {
        let host = host(endpoint.addr, endpoint.hostname);
        for port in endpoint.ports {
            let Some(number) = port.port.filter(|number| *number != 0) else { continue };
            let member = (format!("{host}.{name}"), number, endpoint.addr);
            if nameable(&port.name, problems) {
                sets.entry(service_name(name, &port.name, port.protocol)).or_default().insert(member.clone());
            }
            sets.entry(name.to_owned()).or_default().insert(member);
        }
    }
    for (owner, members) in sets {
        let weight = weight(members.len());
        for (target, number, _) in members {
            out.srv(owner.clone(), weight, number, target);
        }
    }
}

struct Names {
    records: BTreeSet<Record>,
    ttl: u32,
    views: u64,
}

impl Names {
    fn add(&mut self, name: String, data: RecordData) {
        self.records.insert(Record { name, ttl: self.ttl, views: self.views, data });
    }

    /// A name for each ready endpoint and a pointer back, of ClusterIP Services too, as in CoreDNS.
    fn endpoints(&mut self, name: &str, backends: &Backends) {
        for endpoint in &backends.named {
            let own = format!("{}.{name}", host(endpoint.addr, endpoint.hostname));
            self.add(reverse_name(endpoint.addr), RecordData::Ptr(own.clone()));
            self.add(own, RecordData::Address(endpoint.addr));
        }
    }

    fn srv(&mut self, owner: String, weight: u16, port: u16, target: String) {
        self.add(owner, RecordData::Srv(0, weight, port, target));
    }
}

/// Whether a port's name makes a name in the zone: a label with an underscore before it.
fn nameable(port: &str, problems: &mut Problems) -> bool {
    let label = port.len() < 63 && port.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !label {
        problems.say(
            Reason::NameLeftOut,
            format!("port name {port:?} is not a DNS label: there is no service record of that name"),
        );
    }
    label && !port.is_empty()
}

/// The name of a port of a Service.
fn service_name(name: &str, port: &str, protocol: Protocol) -> String {
    format!("_{port}._{}.{name}", protocol.name())
}

/// The name that the pointer of an address is at.
pub fn reverse_name(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(addr) => {
            let [a, b, c, d] = addr.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(addr) => {
            let nibbles = addr.octets().into_iter().rev().flat_map(|byte| [byte & 0xf, byte >> 4]);
            nibbles.map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa"
        }
    }
}

/// A hundred shared by all, but never nothing: CoreDNS' weights.
fn weight(members: usize) -> u16 {
    u16::try_from(100 / members.max(1)).unwrap_or(100).max(1)
}

/// An endpoint's label: its hostname, else its address with dashes.
fn host(addr: IpAddr, hostname: Option<&str>) -> String {
    hostname.map_or_else(|| host_label(addr), str::to_ascii_lowercase)
}

/// The label of an endpoint that has no hostname: its address with dashes.
pub fn host_label(addr: IpAddr) -> String {
    let mut dashed = addr.to_string().replace(['.', ':'], "-");
    // A label must not end with a dash: fd00:: is fd00--0.
    if dashed.ends_with('-') {
        dashed.push('0');
    }
    dashed
}

fn is_domain(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(label)
}
