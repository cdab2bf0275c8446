//! Which endpoints a Service port goes to: kube-proxy's rules, but for topology and traffic policies.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{Endpoint, Problems};
use crate::model::{Cluster, Protocol, Service, ServiceKind, ServicePort, Slice, SliceEndpoint};

/// What new flows and old flows may do with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Terminating but serving: keeps its flows, and is the last resort for new ones.
    Draining,
    /// For everyone.
    Ready,
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
    by_port: HashMap<(&'c str, Protocol), BTreeMap<Endpoint, Use>>,
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
            backends.add_slice(slice, service, vips, problems);
        }
        backends
    }

    fn add_slice(&mut self, slice: &'c Slice, service: &Service, vips: &[IpAddr], problems: &mut Problems) {
        let ports: Vec<_> =
            slice.ports.iter().filter_map(|port| Some((port, valid_port(slice, port.port, problems)?))).collect();
        for endpoint in &slice.endpoints {
            let Some(usage) = usage(endpoint, service) else { continue };
            let Some(&addr) = endpoint.addresses.first() else {
                problems.say(format!("an endpoint of slice {} has no address and is left out", slice.name.name));
                continue;
            };
            if let Err(why) = reachable(addr, service, vips) {
                problems.say(format!("endpoint {addr} of slice {} is left out: {why}", slice.name.name));
                continue;
            }
            if usage == Use::Ready {
                self.named.push(Named { addr, hostname: endpoint.hostname.as_deref(), ports: &slice.ports });
            }
            for (port, number) in &ports {
                let uses = self.by_port.entry((&port.name, port.protocol)).or_default();
                // The same endpoint in two slices, one of them not up to date: the better news counts.
                let known = uses.entry(Endpoint { addr, port: *number }).or_insert(usage);
                *known = usage.max(*known);
            }
        }
    }

    /// The endpoints that new flows go to, and those that keep what they have; of the VIP's family, sorted.
    pub(super) fn of_port(&self, port: &ServicePort, vip: IpAddr) -> (Vec<Endpoint>, Vec<Endpoint>) {
        let Some(uses) = self.by_port.get(&(port.name.as_str(), port.protocol)) else { return Default::default() };
        let of = |wanted: Use| -> Vec<Endpoint> {
            let same_family = |e: &Endpoint| e.addr.is_ipv4() == vip.is_ipv4();
            uses.iter().filter(|(e, usage)| **usage == wanted && same_family(e)).map(|(e, _)| *e).collect()
        };
        match (of(Use::Ready), of(Use::Draining)) {
            (ready, draining) if ready.is_empty() => (draining, Vec::new()),
            both => both,
        }
    }
}

fn usage(endpoint: &SliceEndpoint, service: &Service) -> Option<Use> {
    if endpoint.ready || service.publish_not_ready {
        Some(Use::Ready)
    } else if endpoint.terminating && endpoint.serving {
        Some(Use::Draining)
    } else {
        None
    }
}

fn valid_port(slice: &Slice, port: Option<u16>, problems: &mut Problems) -> Option<u16> {
    match port {
        Some(0) => problems.say(format!("a port of slice {} is 0 and is left out; write 1 to 65535", slice.name.name)),
        None => problems.say(format!("a port of slice {} has no number (all ports) and is left out", slice.name.name)),
        Some(number) => return Some(number),
    }
    None
}

fn reachable(addr: IpAddr, service: &Service, vips: &[IpAddr]) -> Result<(), &'static str> {
    usable(addr)?;
    if vips.contains(&addr) {
        return Err("it is the Service's own clusterIP");
    }
    let wrong_family = || vips.iter().all(|vip| vip.is_ipv4() != addr.is_ipv4());
    if matches!(service.kind, ServiceKind::ClusterIp(_)) && !vips.is_empty() && wrong_family() {
        return Err("the Service has no clusterIP of its family");
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
        _ => Ok(()),
    }
}
