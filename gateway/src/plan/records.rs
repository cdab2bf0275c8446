//! The names of a Service: Kubernetes' DNS-based service discovery, version 1.1.0, with CoreDNS' answers where that is silent.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Backends, PlanConfig, Problems, Record, RecordData};
use crate::model::{Protocol, Service, ServiceKind, ServicePort};

/// The version of the specification that `dns-version` names.
const DNS_SCHEMA_VERSION: &str = "1.1.0";
/// It does not change while a cluster lives; CoreDNS' value.
const DNS_SCHEMA_TTL: u32 = 28_800;

/// What the zone has besides its Services: `dns-version`, the name server's own name, and the node above the namespaces.
pub fn zone_records(config: &PlanConfig) -> Vec<Record> {
    let views = config.all_views();
    let record = |name: &str, ttl, data| Record { name: format!("{name}.{}", config.cluster_domain), ttl, views, data };
    let mut records = vec![
        record("dns-version", DNS_SCHEMA_TTL, RecordData::Txt(DNS_SCHEMA_VERSION.into())),
        record("ns.dns", config.ttl, RecordData::Exists),
        record("svc", config.ttl, RecordData::Exists),
    ];
    let addresses: BTreeSet<IpAddr> =
        config.dns_listen.iter().map(|l| l.ip()).filter(|ip| !ip.is_unspecified()).collect();
    records.extend(addresses.into_iter().map(|ip| record("ns.dns", config.ttl, RecordData::Address(ip))));
    records.sort();
    records
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
    out.add(name.clone(), RecordData::Exists);
    match &service.kind {
        ServiceKind::ExternalName(target) => external(&name, target, &mut out, problems),
        ServiceKind::ClusterIp(_) => {
            out.endpoints(&name, backends);
            for vip in vips {
                out.add(name.clone(), RecordData::Address(*vip));
            }
            for port in ports.iter().filter(|port| !port.name.is_empty() && !vips.is_empty()) {
                out.srv(&name, &port.name, port.protocol, weight(vips.len()), port.port, name.clone());
            }
        }
        ServiceKind::Headless => {
            out.endpoints(&name, backends);
            headless(&name, backends, &mut out);
        }
    }
    out.records.into_iter().collect()
}

fn external(name: &str, target: &str, out: &mut Names, problems: &mut Problems) {
    let target = target.strip_suffix('.').unwrap_or(target).to_ascii_lowercase();
    if target.parse::<IpAddr>().is_ok() {
        problems.say(format!(
            "externalName {target} is an address, and a CNAME needs a name: use a headless Service with endpoints"
        ));
    } else if !is_domain(&target) {
        problems.say(format!("externalName {target:?} is not a domain name and has no record"));
    } else {
        out.add(name.to_owned(), RecordData::Cname(target));
    }
}

fn headless(name: &str, backends: &Backends, out: &mut Names) {
    for endpoint in &backends.named {
        out.add(name.to_owned(), RecordData::Address(endpoint.addr));
    }
    // One SRV set a port name: the endpoints of all slices that have it share the weight.
    let ports = || backends.named.iter().flat_map(|e| e.ports.iter().map(move |p| (e, p)));
    let served: BTreeSet<_> =
        ports().filter(|(_, p)| !p.name.is_empty()).map(|(_, p)| (p.name.as_str(), p.protocol)).collect();
    for (port_name, protocol) in served {
        let members: BTreeSet<(String, u16)> = ports()
            .filter(|(_, p)| p.name == port_name && p.protocol == protocol)
            .filter_map(|(e, p)| Some((host(e.addr, e.hostname), p.port.filter(|n| *n != 0)?)))
            .collect();
        let weight = weight(members.len());
        for (host, number) in members {
            out.srv(name, port_name, protocol, weight, number, format!("{host}.{name}"));
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

    /// A name for each ready endpoint, of ClusterIP Services too, as in CoreDNS.
    fn endpoints(&mut self, name: &str, backends: &Backends) {
        for endpoint in &backends.named {
            self.add(format!("{}.{name}", host(endpoint.addr, endpoint.hostname)), RecordData::Address(endpoint.addr));
        }
    }

    fn srv(&mut self, name: &str, port: &str, protocol: Protocol, weight: u16, number: u16, target: String) {
        self.add(format!("_{port}._{}.{name}", protocol.name()), RecordData::Srv(0, weight, number, target));
    }
}

/// A hundred shared by all, but never nothing: CoreDNS' weights.
fn weight(members: usize) -> u16 {
    u16::try_from(100 / members.max(1)).unwrap_or(100).max(1)
}

/// An endpoint's label: its hostname, else its address with dashes.
fn host(addr: IpAddr, hostname: Option<&str>) -> String {
    match hostname {
        Some(hostname) => hostname.to_ascii_lowercase(),
        None => {
            let mut dashed = addr.to_string().replace(['.', ':'], "-");
            // A label must not end with a dash: fd00:: is fd00--0.
            if dashed.ends_with('-') {
                dashed.push('0');
            }
            dashed
        }
    }
}

fn is_domain(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(label)
}
