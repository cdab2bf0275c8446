//! The kernel room against the real kernel: each test in network namespaces of its own.

mod answers;
mod apply;
mod attach;
mod bare;
mod explain;
mod hops;
mod net;
mod pin;
mod sweep;
mod traffic;

use std::net::IpAddr;

use self::net::Namespace;
use super::{Kernel, Mode, MssClamp, Settings, Sizes, Timeouts};
use crate::{
    model::{ObjectName, Protocol},
    plan::{Endpoint, Frontend, ServicePlan},
};

/// Client, gateway node and server, in a row.
struct Row {
    client: Namespace,
    node: Namespace,
    server: Namespace,
}

impl Row {
    /// 10.90.1.100 (client) - `up0` 10.90.1.1 (node) 10.90.3.1 `down0` - 10.90.3.2 and .3 (server). The node does not forward.
    fn new() -> Self {
        let row = Self { client: Namespace::new(), node: Namespace::new(), server: Namespace::new() };
        row.node.veth("up0", "10.90.1.1/24", &row.client, "eth0", "10.90.1.100/24");
        row.node.veth("down0", "10.90.3.1/24", &row.server, "eth0", "10.90.3.2/24");
        row.server.ip("addr add 10.90.3.3/24 dev eth0");
        row.client.ip("route add default via 10.90.1.1");
        row.server.ip("route add default via 10.90.3.1");
        row
    }

    /// The same with IPv6 beside it: fd90:1::100 - fd90:1::1 and fd90:3::1 - fd90:3::2 and ::3.
    fn dual() -> Self {
        let row = Self::new();
        for (namespace, addr, dev) in [
            (&row.client, "fd90:1::100/64", "eth0"),
            (&row.node, "fd90:1::1/64", "up0"),
            (&row.node, "fd90:3::1/64", "down0"),
            (&row.server, "fd90:3::2/64", "eth0"),
            (&row.server, "fd90:3::3/64", "eth0"),
        ] {
            namespace.ip(&format!("addr add {addr} dev {dev} nodad"));
        }
        row.client.ip("route add default via fd90:1::1");
        row.server.ip("route add default via fd90:3::1");
        row
    }

    /// Loads inside the node's namespace.
    fn load(&self, settings: Settings) -> Result<Kernel, super::KernelError> {
        self.node.run(move || Kernel::load(&settings))
    }
}

/// Settings for [`Row`].
pub(super) fn settings(mode: Mode) -> Settings {
    Settings {
        uplinks: vec!["up0".into()],
        cluster_interfaces: vec![],
        mode,
        flows: 4096,
        pin: None,
        snat_addresses: vec![],
        snat_ports: 20000..=29999,
        routed: false,
        deny_drop: false,
        strangers_pass: false,
        dns: vec![],
        views: vec![vec!["10.90.1.0/24".parse().unwrap()]],
        claims: vec!["10.1.0.0/16".parse().unwrap()],
        timeouts: Timeouts::default(),
        mss_clamp: MssClamp::Off,
        dns_limit: crate::dns::RateLimit::default(),
        dns_log: 0,
        sizes: Sizes::default(),
    }
}

/// Settings for [`Row::dual`].
fn dual_settings(mode: Mode) -> Settings {
    let parse = |nets: [&str; 2]| nets.map(|net| net.parse().unwrap()).to_vec();
    Settings {
        views: vec![parse(["10.90.1.0/24", "fd90:1::/64"])],
        claims: parse(["10.1.0.0/16", "fd00:10::/112"]),
        ..settings(mode)
    }
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn endpoint(addr: &str, port: u16) -> Endpoint {
    Endpoint { addr: addr.parse().unwrap(), port }
}

/// A Service with one VIP and one port.
fn plan(vip: &str, port: u16, protocol: Protocol, endpoints: &[Endpoint]) -> ServicePlan {
    let vip: IpAddr = vip.parse().unwrap();
    let mut endpoints = endpoints.to_vec();
    endpoints.sort();
    let frontend = Frontend {
        vip,
        port,
        protocol,
        views: 1,
        endpoints: endpoints.into(),
        draining: [].into(),
        affinity: 0,
        dns: false,
    };
    ServicePlan { vips: vec![vip], views: 1, frontends: vec![frontend], ..ServicePlan::default() }
}
