//! Which endpoints a Service port goes to: kube-proxy's rules, with zone and node hints and `internalTrafficPolicy`.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{
    Endpoint,
    problem::{Problems, Reason},
};
use crate::model::{Cluster, Here, Protocol, Service, ServiceKind, ServicePort, Slice, SliceEndpoint};

/// What new flows and old flows may do with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Neither ready nor terminating: a TCP connection may outlive the failed probe, a datagram need not wait for it. So TCP keeps its
    /// flows, UDP moves on.
    Unready,
    /// Terminating but serving: keeps its flows, and is the last resort for new ones.
    Draining,
    /// For everyone.
    Ready,
}

/// What a hint says of the gateway's own node or zone. Ordered: the better news is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    /// Nothing.
    Absent,
    /// Meant for others.
    Elsewhere,
    /// Meant for this one.
    Here,
}

impl Hint {
    fn of(wanted: &[String], own: Option<&str>) -> Self {
        match own {
            _ if wanted.is_empty() => Self::Absent,
            Some(own) if wanted.iter().any(|name| name == own) => Self::Here,
            _ => Self::Elsewhere,
        }
    }
}

/// An endpoint as the choice sees it. Ordered: of two that speak of the same endpoint, the greater one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    usage: Use,
    /// It is on the gateway's own node.
    local: bool,
    node: Hint,
    zone: Hint,
}

impl Candidate {
    fn new(usage: Use, endpoint: &SliceEndpoint, here: &Here) -> Self {
        let (nodes, zones) = endpoint.hints.as_ref().map_or(Default::default(), |hints| (&*hints.nodes, &*hints.zones));
        Self {
            usage,
            local: here.node.is_some() && endpoint.node.as_deref() == here.node.as_deref(),
            node: Hint::of(nodes, here.node.as_deref()),
            zone: Hint::of(zones, here.zone.as_deref()),
        }
    }
}

/// How far from the gateway's own node new flows may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Anywhere; to the own node or zone when the hints say so.
    Cluster,
    /// Nowhere else.
    Node,
}

/// An endpoint as names see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'c> {
    pub addr: IpAddr,
    pub hostname: Option<&'c str>,
    /// Ports of the slice it is in; empty when the Service has none.
    pub ports: &'c [crate::model::SlicePort],
}

/// The endpoints of a Service, by port name and protocol, each once.
#[derive(Debug, Default)]
pub(super) struct Backends<'c> {
    by_port: HashMap<(&'c str, Protocol), BTreeMap<Endpoint, Candidate>>,
    /// The endpoints that names speak of: the ready ones.
    pub named: Vec<Named<'c>>,
}

impl<'c> Backends<'c> {
    pub(super) fn collect(
        cluster: &'c Cluster,
        service: &'c Service,
        vips: &[IpAddr],
        problems: &mut Problems,
    ) -> Self {
        let mut backends = Self::default();
        if matches!(service.kind, ServiceKind::ExternalName(_)) {
            return backends;
        }
        for slice in cluster.slices(&service.name) {
            backends.add_slice(slice, service, vips, cluster.here(), problems);
        }
        backends
    }

    fn add_slice(
        &mut self,
        slice: &'c Slice,
        service: &Service,
        vips: &[IpAddr],
        here: &Here,
        problems: &mut Problems,
    ) {
        let ports: Vec<_> =
            slice.ports.iter().filter_map(|port| Some((port, valid_port(slice, port.port, problems)?))).collect();
        for endpoint in &slice.endpoints {
            let Some(usage) = usage(endpoint, service) else { continue };
            let addr = endpoint.address;
            if let Err((reason, why)) = reachable(addr, service, vips) {
                problems.say(reason, format!("endpoint {addr} of slice {} is left out: {why}", slice.name.name));
                continue;
            }
            if usage == Use::Ready {
                self.named.push(Named { addr, hostname: endpoint.hostname.as_deref(), ports: &slice.ports });
            }
            let candidate = Candidate::new(usage, endpoint, here);
            for (port, number) in &ports {
                if usage == Use::Unready && port.protocol != Protocol::Tcp {
                    continue;
                }
                let uses = self.by_port.entry((&port.name, port.protocol)).or_default();
                // The same endpoint in two slices, one of them not up to date: the better news counts.
                let known = uses.entry(Endpoint { addr, port: *number }).or_insert(candidate);
                *known = candidate.max(*known);
            }
        }
    }

    /// The endpoints that new flows go to, and those that keep what they have; of the VIP's family, sorted. An endpoint that is too
    /// far for new flows keeps the old ones: a change of hints or policy ends no connection.
    pub(super) fn of_port(&self, port: &ServicePort, vip: IpAddr, reach: Reach) -> (Vec<Endpoint>, Vec<Endpoint>) {
        let Some(all) = self.by_port.get(&(&*port.name, port.protocol)) else { return Default::default() };
        let all: Vec<(Endpoint, Candidate)> = all
            .iter()
            .filter(|(e, _)| e.addr.is_ipv4() == vip.is_ipv4())
            .map(|(e, candidate)| (*e, *candidate))
            .collect();
        let near = nearness(&all, reach);
        let usable = |usage: Use| all.iter().any(|(_, c)| c.usage == usage && near(c));
        let usage = [Use::Ready, Use::Draining].into_iter().find(|usage| usable(*usage));
        let (new, old): (Vec<_>, Vec<_>) = all.iter().partition(|(_, c)| Some(c.usage) == usage && near(c));
        let endpoints = |chosen: Vec<(Endpoint, Candidate)>| chosen.into_iter().map(|(e, _)| e).collect();
        (endpoints(new), endpoints(old))
    }
}

/// Which endpoints are near enough. Hints count when every ready endpoint has one and one of them means this node or zone, the node
/// before the zone; they say nothing about terminating endpoints (kube-proxy's `topologyModeFromHints`).
fn nearness(all: &[(Endpoint, Candidate)], reach: Reach) -> fn(&Candidate) -> bool {
    let hinted = |hint: fn(&Candidate) -> Hint| {
        let ready = || all.iter().filter(|(_, c)| c.usage == Use::Ready).map(|(_, c)| hint(c));
        ready().all(|hint| hint != Hint::Absent) && ready().any(|hint| hint == Hint::Here)
    };
    match reach {
        Reach::Node => |c| c.local,
        Reach::Cluster if hinted(|c| c.node) => |c| c.node == Hint::Here,
        Reach::Cluster if hinted(|c| c.zone) => |c| c.zone == Hint::Here,
        Reach::Cluster => |_| true,
    }
}

fn usage(endpoint: &SliceEndpoint, service: &Service) -> Option<Use> {
    if endpoint.ready || service.publish_not_ready {
        Some(Use::Ready)
    } else if endpoint.terminating && endpoint.serving {
        Some(Use::Draining)
    } else {
        (!endpoint.terminating).then_some(Use::Unready)
    }
}

fn valid_port(slice: &Slice, port: Option<u16>, problems: &mut Problems) -> Option<u16> {
    match port {
        Some(0) => problems.say(
            Reason::EndpointsLeftOut,
            format!("a port of slice {} is 0 and is left out; write 1 to 65535", slice.name.name),
        ),
        None => problems.say(
            Reason::EndpointsLeftOut,
            format!("a port of slice {} has no number (all ports) and is left out", slice.name.name),
        ),
        Some(number) => return Some(number),
    }
    None
}

fn reachable(addr: IpAddr, service: &Service, vips: &[IpAddr]) -> Result<(), (Reason, &'static str)> {
    usable(addr).map_err(|why| (Reason::EndpointsLeftOut, why))?;
    if vips.contains(&addr) {
        return Err((Reason::EndpointsLeftOut, "it is the Service's own address"));
    }
    let wrong_family = || vips.iter().all(|vip| vip.is_ipv4() != addr.is_ipv4());
    if matches!(service.kind, ServiceKind::ClusterIp(_)) && !vips.is_empty() && wrong_family() {
        return Err((Reason::NoCommonFamily, "the Service has no clusterIP of its family"));
    }
    Ok(())
}

/// Whether a packet can be sent to an address from outside at all; else what it is. As the API server's validation of endpoints.
pub(super) fn usable(addr: IpAddr) -> Result<(), &'static str> {
    let (link_local, broadcast) = match addr {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast()),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
    };
    match addr {
        _ if addr.is_unspecified() => Err("it is the unspecified address"),
        _ if addr.is_loopback() => Err("it is a loopback address"),
        _ if addr.is_multicast() => Err("it is a multicast address"),
        _ if link_local => Err("it is a link-local address"),
        _ if broadcast => Err("it is the broadcast address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err("it is an IPv4 address written as an IPv6 one"),
        _ => Ok(()),
    }
}
