//! Which addresses of a Service are its to serve.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    PlanConfig, VipKinds,
    problem::{Problems, Reason},
    usable,
};
use crate::model::{Cluster, Protocol, Service, ServiceKind, ServicePort};

/// A VIP of a Service.
#[derive(Clone, Debug)]
pub(super) struct Vip {
    pub addr: IpAddr,
    /// A ClusterIP, of which there is one owner. Other addresses may be shared, each port by one Service.
    pub cluster: bool,
    /// Ports on it that are another Service's.
    taken: BTreeSet<(u16, Protocol)>,
}

impl Vip {
    /// Whether the Service's port is served on it.
    pub(super) fn has(&self, port: &ServicePort) -> bool {
        !self.taken.contains(&(port.port, port.protocol))
    }
}

/// The addresses that are this Service's to serve, ClusterIPs first.
pub(super) fn vips(cluster: &Cluster, service: &Service, config: &PlanConfig, problems: &mut Problems) -> Vec<Vip> {
    let ServiceKind::ClusterIp(ips) = &service.kind else { return Vec::new() };
    if ips.is_empty() {
        problems.say(
            Reason::NoClusterIP,
            "it has no clusterIP yet and cannot be reached by address; in a manifest, write spec.clusterIP".into(),
        );
    }
    let mut vips: Vec<Vip> = Vec::with_capacity(ips.len());
    for ip in ips {
        match cluster.owner(*ip) {
            Some(owner) if *owner != service.name => {
                problems.say(
                    Reason::AddressConflict,
                    format!("its clusterIP {ip} belongs to Service {owner} already; give one of them another address"),
                );
            }
            _ if vips.iter().any(|vip| vip.addr == *ip) => {}
            _ => match takeable(cluster, *ip, config) {
                Ok(()) => vips.push(Vip { addr: *ip, cluster: true, taken: BTreeSet::new() }),
                Err(why) => problems.say(Reason::AddressLeftOut, format!("its clusterIP {ip} is left out: {why}")),
            },
        }
    }
    for (what, addr) in outer(service, config.vips) {
        if vips.iter().any(|vip| vip.addr == addr) {
            continue;
        }
        match claimable(cluster, addr, config) {
            Ok(()) => {
                let taken = taken(cluster, service, addr, config.vips);
                for (port, protocol, owner) in &taken {
                    let protocol = protocol.name();
                    problems.say(
                        Reason::AddressConflict,
                        format!(
                            "port {port}/{protocol} of its {what} {addr} belongs to Service {owner} already; give one of them \
                             another port or address"
                        ),
                    );
                }
                let taken = taken.into_iter().map(|(port, protocol, _)| (port, protocol)).collect();
                vips.push(Vip { addr, cluster: false, taken });
            }
            Err(why) => problems.say(Reason::AddressLeftOut, format!("its {what} {addr} is left out: {why}")),
        }
    }
    vips
}

/// The further addresses that the config asks for, with what they are called.
fn outer(service: &Service, kinds: VipKinds) -> impl Iterator<Item = (&'static str, IpAddr)> {
    let external = service.external_ips.iter().filter(move |_| kinds.external).map(|ip| ("externalIP", *ip));
    let ingress = service.load_balancer_ips.iter().filter(move |_| kinds.load_balancer);
    external.chain(ingress.map(|ip| ("load-balancer address", *ip)))
}

/// Whether packets to an address may be taken from whomever they reach without the gateway. A Service's author writes
/// these addresses at will; a ClusterIP, and a machine of the cluster, are not theirs to take.
fn claimable(cluster: &Cluster, addr: IpAddr, config: &PlanConfig) -> Result<(), String> {
    if let Some(owner) = cluster.owner(addr) {
        return Err(format!("it is the clusterIP of Service {owner}"));
    }
    takeable(cluster, addr, config)
}

/// Whether an address is no machine's own. A VIP is claimed with all its ports: the machine's own daemons would be cut off.
fn takeable(cluster: &Cluster, addr: IpAddr, config: &PlanConfig) -> Result<(), String> {
    usable(addr)?;
    if config.own.contains(&addr) {
        return Err("it is the gateway's own address, which stays with this node and its kube-proxy".into());
    }
    if cluster.is_node(addr) {
        return Err("it is a node's own address, which stays with that node and its kube-proxy".into());
    }
    Ok(())
}

/// Ports of the Service that another one, before it by name, has on the same address.
fn taken(cluster: &Cluster, service: &Service, addr: IpAddr, kinds: VipKinds) -> Vec<(u16, Protocol, String)> {
    let mut taken = Vec::new();
    let before = cluster.sharers(addr).take_while(|other| other.name != service.name);
    for other in before.filter(|other| outer(other, kinds).any(|(_, ip)| ip == addr)) {
        for port in &other.ports {
            let known =
                |list: &[(u16, Protocol, String)]| list.iter().any(|(n, p, _)| (*n, *p) == (port.port, port.protocol));
            let wanted = service.ports.iter().any(|own| (own.port, own.protocol) == (port.port, port.protocol));
            if wanted && !known(&taken) {
                taken.push((port.port, port.protocol, other.name.to_string()));
            }
        }
    }
    taken
}
