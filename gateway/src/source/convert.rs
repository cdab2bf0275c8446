//! Kubernetes objects → the model; shared by both sources.
//!
//! A field that cannot be used is left out and becomes a problem that names the object; the rest of the object goes on.

use std::{fmt::Display, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::model::{
    Hints, Node, ObjectName, Pod, Protocol, Service, ServiceKind, ServicePort, Slice, SliceEndpoint, SlicePort, shared,
};

/// The label of a slice that names its Service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// Collects what is wrong with one object.
struct Complaints<'p> {
    about: String,
    problems: &'p mut Vec<String>,
}

impl Complaints<'_> {
    fn say(&mut self, what: impl Display) {
        self.problems.push(format!("{}: {what}", self.about));
    }
}

/// Namespace and name; an object without namespace is in `default`, as for kubectl.
pub fn object_name(meta: &ObjectMeta) -> ObjectName {
    let namespace = meta.namespace.as_deref().filter(|ns| !ns.is_empty()).unwrap_or("default");
    ObjectName::new(namespace, meta.name.as_deref().unwrap_or_default())
}

/// A list without room to grow: large clusters have tens of thousands of each, and all of them stay.
fn exact<T>(things: impl Iterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = things.collect();
    list.shrink_to_fit();
    list
}

/// A Service; `None` when it has no usable name.
pub fn service(object: core::Service, problems: &mut Vec<String>) -> Option<Service> {
    let name = object_name(&object.metadata);
    let mut complaints = Complaints { about: format!("Service {name}"), problems };
    if !is_label(&name.name) || !is_label(&name.namespace) {
        complaints.say("its name or namespace is not a DNS label (a-z, 0-9 and -, at most 63); it is left out");
        return None;
    }
    let spec = object.spec.unwrap_or_default();
    let kind = kind(&spec, &mut complaints);
    let ports = exact(spec.ports.unwrap_or_default().into_iter().filter_map(|p| service_port(p, &mut complaints)));
    let affinity = match spec.session_affinity.as_deref() {
        Some("ClientIP") => {
            let asked = spec.session_affinity_config.and_then(|c| c.client_ip).and_then(|c| c.timeout_seconds);
            Some(asked.and_then(|s| u32::try_from(s).ok()).filter(|s| *s > 0).unwrap_or(AFFINITY_SECONDS))
        }
        _ => None,
    };
    let external_ips = spec.external_ips.unwrap_or_default();
    let ingress = object.status.and_then(|s| s.load_balancer).and_then(|l| l.ingress).unwrap_or_default();
    Some(Service {
        kind,
        ports,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        affinity,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_ips: exact(external_ips.iter().filter_map(|ip| vip("spec.externalIPs", ip, &mut complaints))),
        load_balancer_ips: exact(
            ingress
                .iter()
                // `Proxy`: the load balancer wants those packets itself.
                .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
                .filter_map(|i| vip("status.loadBalancer.ingress", i.ip.as_deref()?, &mut complaints)),
        ),
        name,
    })
}

fn kind(spec: &core::ServiceSpec, complaints: &mut Complaints<'_>) -> ServiceKind {
    if spec.type_.as_deref() == Some("ExternalName") {
        return ServiceKind::ExternalName(spec.external_name.clone().unwrap_or_default());
    }
    let several = spec.cluster_ips.as_deref().unwrap_or_default();
    let ips = if several.is_empty() { spec.cluster_ip.as_slice() } else { several };
    if ips.iter().any(|ip| ip == "None") {
        return ServiceKind::Headless;
    }
    let ips = ips.iter().filter(|ip| !ip.is_empty());
    ServiceKind::ClusterIp(exact(ips.filter_map(|ip| vip("spec.clusterIPs", ip, complaints))))
}

fn vip(field: &str, text: &str, complaints: &mut Complaints<'_>) -> Option<IpAddr> {
    match text.parse::<IpAddr>() {
        Err(_) => complaints.say(format_args!("{field}: {text:?} is not an IP address; it is left out")),
        Ok(ip) if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip == IpAddr::from([255; 4]) => {
            complaints.say(format_args!("{field}: {ip} cannot be the address of a Service; it is left out"));
        }
        Ok(ip) => return Some(ip),
    }
    None
}

fn service_port(port: core::ServicePort, complaints: &mut Complaints<'_>) -> Option<ServicePort> {
    let name = port.name.unwrap_or_default();
    let number = port_number(port.port, "spec.ports", complaints)?;
    let protocol = protocol(port.protocol.as_deref(), "spec.ports", complaints)?;
    Some(ServicePort { name: shared(&name), port: number, protocol })
}

fn port_number(number: i32, field: &str, complaints: &mut Complaints<'_>) -> Option<u16> {
    let valid = u16::try_from(number).ok().filter(|n| *n != 0);
    if valid.is_none() {
        complaints.say(format_args!("{field}: {number} is not a port (1 to 65535); it is left out"));
    }
    valid
}

fn protocol(text: Option<&str>, field: &str, complaints: &mut Complaints<'_>) -> Option<Protocol> {
    let known = Protocol::parse(text.filter(|t| !t.is_empty()));
    if known.is_none() {
        let text = text.unwrap_or_default();
        complaints.say(format_args!("{field}: protocol {text:?} is not TCP, UDP or SCTP; the port is left out"));
    }
    known
}

/// A slice; `None` when it has no name, belongs to no Service, or speaks of names instead of addresses.
pub fn slice(object: discovery::EndpointSlice, problems: &mut Vec<String>) -> Option<Slice> {
    let name = object_name(&object.metadata);
    let mut complaints = Complaints { about: format!("EndpointSlice {name}"), problems };
    if name.name.is_empty() {
        complaints.say("it has no metadata.name; it is left out");
        return None;
    }
    let Some(service) = object.metadata.labels.and_then(|mut l| l.remove(SERVICE_LABEL)).filter(|s| !s.is_empty())
    else {
        complaints.say(format_args!("it has no label {SERVICE_LABEL} and belongs to no Service; it is left out"));
        return None;
    };
    let v4 = match object.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        other => {
            complaints.say(format_args!("addressType {other:?} is not IPv4 or IPv6; it is left out"));
            return None;
        }
    };
    let ports = object
        .ports
        .unwrap_or_default()
        .into_iter()
        .filter_map(|p| slice_port(p.name, p.port, p.protocol.as_deref(), "ports", &mut complaints));
    let ports = exact(ports);
    let endpoints = object.endpoints.unwrap_or_default().into_iter();
    let endpoints = exact(endpoints.filter_map(|e| slice_endpoint(e, v4, &mut complaints)));
    Some(Slice { name, service: shared(&service), legacy: false, ports, endpoints })
}

fn slice_port(
    name: Option<String>,
    number: Option<i32>,
    text: Option<&str>,
    field: &str,
    complaints: &mut Complaints<'_>,
) -> Option<SlicePort> {
    let protocol = protocol(text, field, complaints)?;
    let port = match number {
        None => None,
        Some(number) => Some(port_number(number, field, complaints)?),
    };
    Some(SlicePort { name: shared(&name.unwrap_or_default()), port, protocol })
}

fn slice_endpoint(endpoint: discovery::Endpoint, v4: bool, complaints: &mut Complaints<'_>) -> Option<SliceEndpoint> {
    // What is wrong with an address is said, also with those that nobody uses; one without any has nothing to say but this.
    if endpoint.addresses.is_empty() {
        complaints.say("an endpoint has no address; it is left out");
    }
    let usable = endpoint.addresses.iter().filter_map(|text| address(text, Some(v4), complaints));
    let address = usable.reduce(|first, _| first)?;
    let conditions = endpoint.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = endpoint.hints.unwrap_or_default();
    let hints = Hints {
        zones: hints.for_zones.unwrap_or_default().into_iter().map(|hint| hint.name).collect(),
        nodes: hints.for_nodes.unwrap_or_default().into_iter().map(|hint| hint.name).collect(),
    };
    Some(SliceEndpoint {
        address,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        hostname: hostname(endpoint.hostname, complaints),
        node: endpoint.node_name.map(|name| shared(&name)),
        hints: (hints != Hints::default()).then(|| Box::new(hints)),
    })
}

fn address(text: &str, v4: Option<bool>, complaints: &mut Complaints<'_>) -> Option<IpAddr> {
    match text.parse::<IpAddr>() {
        Err(_) => complaints.say(format_args!("endpoint address {text:?} is not an IP address; it is left out")),
        Ok(ip) if v4.is_some_and(|v4| v4 != ip.is_ipv4()) => {
            complaints.say(format_args!("endpoint address {ip} is not of the slice's addressType; it is left out"));
        }
        Ok(ip) => return Some(ip),
    }
    None
}

fn hostname(hostname: Option<String>, complaints: &mut Complaints<'_>) -> Option<Box<str>> {
    let hostname = hostname.filter(|h| !h.is_empty())?;
    if is_label(&hostname) {
        return Some(hostname.into());
    }
    complaints.say(format_args!("hostname {hostname:?} is not a DNS label; the endpoint is named by its address"));
    None
}

/// A `v1` Endpoints object as slices, one a subset. Their names cannot be those of real slices.
pub fn endpoints(object: core::Endpoints, problems: &mut Vec<String>) -> Vec<Slice> {
    let name = object_name(&object.metadata);
    let mut complaints = Complaints { about: format!("Endpoints {name}"), problems };
    let subsets = object.subsets.unwrap_or_default();
    let slices = subsets.into_iter().enumerate().map(|(index, subset)| {
        let ports =
            subset.ports.unwrap_or_default().into_iter().filter_map(|p| {
                slice_port(p.name, Some(p.port), p.protocol.as_deref(), "subsets.ports", &mut complaints)
            });
        let ports = exact(ports);
        let ready = subset.addresses.unwrap_or_default().into_iter().map(|a| (a, true));
        let not_ready = subset.not_ready_addresses.unwrap_or_default().into_iter().map(|a| (a, false));
        let endpoints = ready.chain(not_ready).filter_map(|(entry, ready)| {
            Some(SliceEndpoint {
                address: address(&entry.ip, None, &mut complaints)?,
                ready,
                serving: ready,
                terminating: false,
                hostname: hostname(entry.hostname, &mut complaints),
                node: entry.node_name.map(|name| shared(&name)),
                hints: None,
            })
        });
        let endpoints = exact(endpoints);
        let slice = ObjectName::new(&name.namespace, format!("endpoints/{}/{index}", name.name));
        Slice { name: slice, service: name.name.clone(), legacy: true, ports, endpoints }
    });
    slices.collect()
}

/// A Namespace's name.
pub fn namespace(object: core::Namespace, problems: &mut Vec<String>) -> Option<String> {
    let name = object.metadata.name.unwrap_or_default();
    if is_label(&name) {
        return Some(name);
    }
    problems.push(format!("Namespace {name:?}: its name is not a DNS label; it is left out"));
    None
}

/// A node.
pub fn node(object: core::Node, problems: &mut Vec<String>) -> Option<Node> {
    let name = object.metadata.name.unwrap_or_default();
    let mut complaints = Complaints { about: format!("Node {name}"), problems };
    if name.is_empty() {
        complaints.say("it has no metadata.name; it is left out");
        return None;
    }
    let zone = object.metadata.labels.and_then(|mut labels| labels.remove(ZONE_LABEL));
    let addresses = object.status.and_then(|s| s.addresses).unwrap_or_default();
    let internal = addresses.iter().filter(|a| a.type_ == "InternalIP");
    let addresses = internal.filter_map(|a| address(&a.address, None, &mut complaints)).collect();
    Some(Node { name, zone, addresses })
}

/// A pod; `None` when it has ended or has no address yet: then there is no name for it.
pub fn pod(object: core::Pod, problems: &mut Vec<String>) -> Option<Pod> {
    let name = object_name(&object.metadata);
    let mut complaints = Complaints { about: format!("Pod {name}"), problems };
    if name.name.is_empty() || !is_label(&name.namespace) {
        complaints.say("it has no metadata.name, or its namespace is not a DNS label; it is left out");
        return None;
    }
    let status = object.status.unwrap_or_default();
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed" | "Unknown")) {
        return None;
    }
    let mut several: Vec<String> = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip).collect();
    if several.is_empty() {
        several.extend(status.pod_ip);
    }
    let texts = several.iter().filter(|text| !text.is_empty());
    let parsed = |text: &String| match text.parse() {
        Ok(ip) => Some(ip),
        Err(_) => {
            complaints.say(format_args!("status.podIPs: {text:?} is not an IP address; it is left out"));
            None
        }
    };
    let addresses: Vec<IpAddr> = texts.filter_map(parsed).collect();
    (!addresses.is_empty()).then_some(Pod { name, addresses })
}

/// The prefixes of a ServiceCIDR.
pub fn service_cidr(object: networking::ServiceCIDR, problems: &mut Vec<String>) -> Vec<IpNet> {
    let name = object.metadata.name.unwrap_or_default();
    let mut complaints = Complaints { about: format!("ServiceCIDR {name}"), problems };
    let cidrs = object.spec.and_then(|s| s.cidrs).unwrap_or_default();
    let parsed = cidrs.iter().filter_map(|text| {
        let cidr = text.parse::<IpNet>();
        if cidr.is_err() {
            complaints.say(format_args!("spec.cidrs: {text:?} is not a CIDR; it is left out"));
        }
        cidr.ok().map(|c| c.trunc())
    });
    parsed.collect()
}

/// A DNS label in lower case, as names of Services, namespaces and hosts are.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}
