//! The links, addresses and routes of a lab, of both families.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{
    lab::Lab,
    netns::{Namespace, ip_batch},
    topology::{
        Access, GATEWAY, Node, Offloads, Pod, ROUTER_LAN, ROUTER_OFFICE, SERVICE_CIDR, SERVICE_CIDR6, TRANSIT_LAN,
        TRANSIT_OFFICE, UPSTREAM, Wiring, ipv6,
    },
};

/// UDP port and number of the overlay, as flannel has them.
const VXLAN: (u16, u8) = (8472, 1);

/// `addr add` for both families.
fn addresses(address: Ipv4Addr, prefixes: (u8, u8), device: &str) -> [String; 2] {
    [
        format!("addr add {address}/{} dev {device}", prefixes.0),
        format!("addr add {}/{} dev {device} nodad", ipv6(address), prefixes.1),
    ]
}

/// Host routes of both families, by a hop or a device.
fn host_routes(address: Ipv4Addr, hop: Option<Ipv4Addr>, device: Option<&str>) -> [String; 2] {
    let by = |hop: Option<String>| {
        let via = hop.map_or(String::new(), |hop| format!(" via {hop}"));
        via + &device.map_or(String::new(), |device| format!(" dev {device}"))
    };
    [
        format!("route replace {address}/32{}", by(hop.map(|hop| hop.to_string()))),
        format!("route replace {}/128{}", ipv6(address), by(hop.map(|hop| ipv6(hop).to_string()))),
    ]
}

/// Routes of both families by a hop.
fn routes(to: (&str, &str), hop: Ipv4Addr) -> [String; 2] {
    [format!("route add {} via {hop}", to.0), format!("route add {} via {}", to.1, ipv6(hop))]
}

/// A machine that forwards: no reverse path filter, and no addresses or routes that it learns by itself.
fn forwards(namespace: &Namespace) -> Result<()> {
    namespace.set_sysctl("net/ipv4/ip_forward", "1")?;
    namespace.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for scope in ["all", "default", "eth0"] {
        namespace.set_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    Ok(())
}

impl Lab {
    fn full(&self, name: &str) -> &str {
        &self.namespace(name).name
    }

    /// All of it.
    pub(crate) fn wire(&self) -> Result<()> {
        for namespace in self.machines() {
            // Devices are born with these: addresses that work at once, and none by router advertisements.
            namespace.set_sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            namespace.set_sysctl("net/ipv6/conf/default/accept_ra", "0")?;
        }
        self.links()?;
        self.switch()?;
        for node in Node::ALL {
            self.node_up(node)?;
        }
        for client in &self.topology.clients {
            self.client_up(&client.name, client.address)?;
        }
        if self.topology.access != Access::Flat {
            self.router()?;
        }
        if self.topology.upstream {
            self.namespace("upstream").ip(&[
                "link set lo up".to_owned(),
                format!("addr add {UPSTREAM}/{} dev eth0", self.prefixes().0),
                "link set eth0 up".to_owned(),
            ])?;
        }
        for pod in self.topology.pods.iter().filter(|pod| !pod.host_network()) {
            self.pod_up(pod)?;
        }
        if self.topology.overlay {
            self.overlay()?;
        }
        self.offloads()
    }

    /// Lengths of the networks' prefixes.
    fn prefixes(&self) -> (u8, u8) {
        if self.topology.access == Access::Flat { (16, 16) } else { (24, 64) }
    }

    /// Every veth pair, in one go.
    fn links(&self) -> Result<()> {
        let pair = |near: (&str, &str), far: (&str, &str), mtu: u16| {
            format!(
                "link add name {} mtu {mtu} netns {} type veth peer name {} mtu {mtu} netns {}",
                near.1,
                self.full(near.0),
                far.1,
                self.full(far.0)
            )
        };
        let mtu = self.topology.mtu;
        let mut lines: Vec<String> = Vec::new();
        for node in Node::ALL {
            lines.push(pair((node.name(), "eth0"), ("switch", &format!("to-{}", node.name())), mtu));
        }
        let clients_at = if self.topology.access == Access::Flat { "switch" } else { "router" };
        for client in &self.topology.clients {
            lines.push(pair((&client.name, "eth0"), (clients_at, &format!("to-{}", client.name)), mtu));
        }
        match self.topology.access {
            Access::Flat => {}
            Access::Router => lines.push(pair(("router", "eth0"), ("switch", "to-router"), mtu)),
            Access::Routers { mtu: narrow } => {
                lines.push(pair(("router", "eth0"), ("edge", "transit"), narrow));
                lines.push(pair(("edge", "eth0"), ("switch", "to-router"), mtu));
            }
        }
        if self.topology.upstream {
            lines.push(pair(("upstream", "eth0"), ("switch", "to-upstream"), mtu));
        }
        for pod in self.topology.pods.iter().filter(|pod| !pod.host_network()) {
            lines.push(pair(
                (&pod.name, "eth0"),
                (pod.node.name(), &format!("veth-{}", pod.name)),
                self.topology.pod_mtu(),
            ));
        }
        ip_batch(None, &lines)
    }

    fn switch(&self) -> Result<()> {
        let mut lines = vec!["link add lan type bridge".to_owned()];
        let mut ports: Vec<String> = Node::ALL.iter().map(|node| format!("to-{}", node.name())).collect();
        if self.topology.access == Access::Flat {
            ports.extend(self.topology.clients.iter().map(|client| format!("to-{}", client.name)));
        } else {
            ports.push("to-router".into());
        }
        if self.topology.upstream {
            ports.push("to-upstream".into());
        }
        lines.extend(ports.iter().map(|port| format!("link set {port} master lan up")));
        lines.push("link set lan up".into());
        self.namespace("switch").ip(&lines)
    }

    fn node_up(&self, node: Node) -> Result<()> {
        let namespace = self.node(node);
        forwards(namespace)?;
        let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
        lines.extend(addresses(node.address(), self.prefixes(), "eth0"));
        if self.topology.access != Access::Flat {
            lines.extend(routes(("default", "::/0"), ROUTER_LAN));
        }
        if self.topology.return_route && node != Node::Gateway {
            lines.extend(
                self.topology.clients.iter().flat_map(|client| host_routes(client.address, Some(GATEWAY), None)),
            );
        }
        if !self.topology.overlay {
            lines.extend(
                Node::ALL
                    .iter()
                    .filter(|other| **other != node)
                    .flat_map(|other| routes((&other.pods(), &other.pods6()), other.address())),
            );
        }
        if self.topology.wiring == Wiring::Bridge {
            lines.extend([
                format!("link add cni0 mtu {} type bridge", self.topology.pod_mtu()),
                "link set cni0 up".to_owned(),
            ]);
            lines.extend(addresses(node.pod_address(1), (24, 64), "cni0"));
        }
        namespace.ip(&lines)
    }

    fn client_up(&self, name: &str, address: Ipv4Addr) -> Result<()> {
        let mut lines = vec!["link set lo up".to_owned()];
        match self.topology.access {
            Access::Flat => {
                lines.push("link set eth0 up".to_owned());
                lines.extend(addresses(address, self.prefixes(), "eth0"));
            }
            Access::Router | Access::Routers { .. } => {
                lines.push("link set eth0 up".to_owned());
                lines.extend(addresses(address, (32, 128), "eth0"));
                lines.extend(host_routes(ROUTER_OFFICE, None, Some("eth0")));
                lines.extend(routes(("default", "::/0"), ROUTER_OFFICE));
            }
        }
        if self.topology.client_route {
            lines.extend([self.client_route(), self.client_route6()]);
        }
        self.namespace(name).ip(&lines)
    }

    fn router(&self) -> Result<()> {
        let router = self.namespace("router");
        forwards(router)?;
        let mut lines: Vec<String> =
            ["link set lo up", "link add office type bridge", "link set office up", "link set eth0 up"]
                .map(str::to_owned)
                .to_vec();
        lines.extend(addresses(ROUTER_OFFICE, (24, 64), "office"));
        let services = (SERVICE_CIDR, SERVICE_CIDR6);
        let office = ("10.90.1.0/24", "fd90:1::/64");
        if matches!(self.topology.access, Access::Routers { .. }) {
            lines.extend(addresses(TRANSIT_OFFICE, (24, 64), "eth0"));
            lines.extend(routes(("default", "::/0"), TRANSIT_LAN));
            let edge = self.namespace("edge");
            forwards(edge)?;
            let mut lines = ["link set lo up", "link set transit up", "link set eth0 up"].map(str::to_owned).to_vec();
            lines.extend(addresses(TRANSIT_LAN, (24, 64), "transit"));
            lines.extend(addresses(ROUTER_LAN, (24, 64), "eth0"));
            lines.extend(routes(services, GATEWAY));
            lines.extend(routes(office, TRANSIT_OFFICE));
            for client in &self.topology.clients {
                lines.extend(host_routes(client.address, Some(TRANSIT_OFFICE), None));
            }
            edge.ip(&lines)?;
        } else {
            lines.extend(addresses(ROUTER_LAN, (24, 64), "eth0"));
            lines.extend(routes(services, GATEWAY));
        }
        for client in &self.topology.clients {
            lines.push(format!("link set to-{} master office up", client.name));
            lines.extend(host_routes(client.address, None, Some("office")));
        }
        router.ip(&lines)
    }

    fn pod_up(&self, pod: &Pod) -> Result<()> {
        let gateway = pod.node.pod_address(1);
        let mut inside = vec!["link set lo up".to_owned()];
        match self.topology.wiring {
            Wiring::Bridge => {
                self.node(pod.node).ip(&[format!("link set veth-{} master cni0 up", pod.name)])?;
                inside.push("link set eth0 up".to_owned());
                inside.extend(addresses(pod.address, (24, 64), "eth0"));
            }
            Wiring::Veth => {
                let veth = format!("veth-{}", pod.name);
                let mut lines = vec![format!("link set {veth} up")];
                lines.extend(addresses(gateway, (32, 128), &veth));
                lines.extend(host_routes(pod.address, None, Some(&veth)));
                self.node(pod.node).ip(&lines)?;
                inside.push("link set eth0 up".to_owned());
                inside.extend(addresses(pod.address, (32, 128), "eth0"));
                inside.extend(host_routes(gateway, None, Some("eth0")));
            }
        }
        inside.extend(routes(("default", "::/0"), gateway));
        self.namespace(&pod.name).ip(&inside)
    }

    /// As flannel does it: one VXLAN device a node, its address the first of the pod CIDR, entries for the others by hand.
    fn overlay(&self) -> Result<()> {
        let (port, vni) = VXLAN;
        let mac = |node: Node| format!("02:42:0a:f4:{:02x}:00", node.number());
        for node in Node::ALL {
            let mut lines = vec![
                format!(
                    "link add flannel.1 mtu {} address {} type vxlan id {vni} local {} dev eth0 dstport {port} nolearning",
                    self.topology.overlay_mtu.unwrap_or_else(|| self.topology.pod_mtu()),
                    mac(node),
                    node.address()
                ),
                "link set flannel.1 up".to_owned(),
            ];
            lines.extend(addresses(node.pod_address(0), (32, 128), "flannel.1"));
            let mut entries = Vec::new();
            for other in Node::ALL.into_iter().filter(|other| *other != node) {
                let hop = other.pod_address(0);
                for (address, pods) in [(hop.to_string(), other.pods()), (ipv6(hop).to_string(), other.pods6())] {
                    lines.push(format!("neigh add {address} lladdr {} dev flannel.1 nud permanent", mac(other)));
                    lines.push(format!("route add {pods} via {address} dev flannel.1 onlink"));
                }
                entries.push(format!("fdb append {} dev flannel.1 dst {}", mac(other), other.address()));
            }
            self.node(node).ip(&lines)?;
            for entry in entries {
                self.node(node).run("bridge", &entry.split(' ').collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    fn offloads(&self) -> Result<()> {
        let set = |namespace: &str, device: &str, feature: &str, value: &str| {
            self.namespace(namespace).run("ethtool", &["-K", device, feature, value]).map(drop)
        };
        if self.topology.offloads == Offloads::Kernel {
            return Ok(());
        }
        // A veth takes frames that XDP sends it only while GRO is on at the far end.
        set("switch", "to-gateway", "gro", "on")?;
        for pod in self.topology.pods.iter().filter(|pod| pod.node == Node::Gateway && !pod.host_network()) {
            set(&pod.name, "eth0", "gro", "on")?;
        }
        if self.topology.offloads == Offloads::Wire {
            let senders = Node::ALL.map(Node::name).into_iter();
            let senders = senders.chain(self.topology.clients.iter().map(|client| client.name.as_str()));
            let senders =
                senders.chain(self.topology.pods.iter().filter(|pod| !pod.host_network()).map(|pod| pod.name.as_str()));
            for sender in senders {
                set(sender, "eth0", "tx", "off")?;
            }
        }
        Ok(())
    }
}
