//! What a lab looks like, as data. A test takes one of the ready ones and changes what it needs.
//!
//! ```text
//!  clients 10.90.1.100 ...                upstream DNS 10.90.2.53
//!        |                                       |
//!  [router 10.90.1.1 - 10.90.2.1]   ---- lan 10.90.2.0/24 ----
//!                                   |            |           |
//!                         gateway .100    worker1 .101   worker2 .102
//!                     pods 10.244.0.0/24  10.244.1.0/24  10.244.2.0/24
//! ```
//!
//! Every machine has both families: what is 10.90.N.H is fd90:N::H, too, and what is 10.244.N.H is fd44:N::H ([`ipv6`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A client of the view `developers`.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 90, 1, 100);
/// A client of the view `guests`, which sees the namespace `public` only.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 90, 5, 5);
/// A machine in no view.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 90, 7, 7);
/// The router's address among the clients.
pub const ROUTER_OFFICE: Ipv4Addr = Ipv4Addr::new(10, 90, 1, 1);
/// The router's address among the nodes.
pub const ROUTER_LAN: Ipv4Addr = Ipv4Addr::new(10, 90, 2, 1);
/// The DNS server for names outside the cluster.
pub const UPSTREAM: Ipv4Addr = Ipv4Addr::new(10, 90, 2, 53);
/// The gateway node.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 90, 2, 100);
/// The service CIDR.
pub const SERVICE_CIDR: &str = "10.1.0.0/16";
/// The service CIDR of IPv6.
pub const SERVICE_CIDR6: &str = "fd10:1::/112";
/// The first router's address on the link between two routers.
pub const TRANSIT_OFFICE: Ipv4Addr = Ipv4Addr::new(10, 90, 3, 1);
/// The second router's address on that link.
pub const TRANSIT_LAN: Ipv4Addr = Ipv4Addr::new(10, 90, 3, 2);
/// Port of the pods' HTTP server.
pub const HTTP_PORT: u16 = 8080;
/// Port of the pods' echo server, TCP and UDP.
pub const ECHO_PORT: u16 = 7007;

/// The IPv6 address beside an IPv4 address of the lab: the last two bytes are network and host, in decimal digits as they are read.
///
/// # Panics
/// When it is no address of the lab.
pub fn ipv6(address: Ipv4Addr) -> Ipv6Addr {
    let [first, second, network, host] = address.octets();
    let text = match (first, second) {
        (10, 90) => format!("fd90:{network}::{host}"),
        (10, 244) => format!("fd44:{network}::{host}"),
        (10, 1) => format!("fd10:1::{host}"),
        _ => panic!("{address} is no address of the lab"),
    };
    text.parse().expect("an address")
}

/// Both addresses of a machine.
pub fn both(address: Ipv4Addr) -> [IpAddr; 2] {
    [address.into(), ipv6(address).into()]
}

/// A cluster node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// The node on which the gateway runs.
    Gateway,
    /// Another one.
    Worker1,
    /// And another one.
    Worker2,
}

impl Node {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Worker1, Self::Worker2];

    /// Name of node and namespace.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Worker1 => "worker1",
            Self::Worker2 => "worker2",
        }
    }

    /// Number in addresses: its pods are in 10.244.N.0/24.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its own address.
    pub const fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 90, 2, 100 + self.number())
    }

    /// Its pod CIDR.
    pub fn pods(self) -> String {
        format!("{}/24", self.pod_address(0))
    }

    /// Its pod CIDR of IPv6.
    pub fn pods6(self) -> String {
        format!("{}/64", ipv6(self.pod_address(0)))
    }

    /// Address `host` of its pod CIDR.
    pub const fn pod_address(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number(), host)
    }
}

/// How clients reach the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// One flat network, 10.90.0.0/16: clients route the service CIDR to the gateway's own address.
    Flat,
    /// A router stands between: clients have it as their default route, and it sends the service CIDR on to the gateway.
    Router,
    /// Two routers stand between, and the link from one to the other is this narrow.
    Routers {
        /// MTU of the link.
        mtu: u16,
    },
}

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// Through a bridge `cni0`.
    Bridge,
    /// A bare veth for each pod and a host route to it.
    Veth,
}

/// What the veth devices offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// What the kernel begins with: packets born in sockets travel with partial checksums, in segments of up to 64 KiB.
    Kernel,
    /// As [`Offloads::Kernel`], but the far ends of the gateway's devices take frames that native XDP sends them.
    PeersTakeXdp,
    /// As on real network cards: whole checksums in every frame, no segmentation, far ends take frames from XDP.
    Wire,
}

/// A machine outside the cluster.
#[derive(Clone, Debug)]
pub struct Client {
    /// Name of its namespace.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// A pod with an HTTP and an echo server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub node: Node,
    /// Its address; the node's own for the host network.
    pub address: Ipv4Addr,
}

impl Pod {
    /// Whether it uses its node's address.
    pub fn host_network(&self) -> bool {
        self.address == self.node.address()
    }
}

/// A lab to be built.
#[derive(Clone, Debug)]
pub struct Topology {
    /// How clients reach the nodes.
    pub access: Access,
    /// Machines outside; the first is the client.
    pub clients: Vec<Client>,
    /// Pods of other nodes are reached through VXLAN (`flannel.1`), not by routes between the nodes.
    pub overlay: bool,
    /// How pods hang on their nodes.
    pub wiring: Wiring,
    /// What the devices offer.
    pub offloads: Offloads,
    /// MTU of all but the overlay, whose is 50 less.
    pub mtu: u16,
    /// MTU of the overlay's device alone. Pods then keep the full MTU, and nobody but path MTU discovery knows of it.
    pub overlay_mtu: Option<u16>,
    /// Nodes send what is for clients back through the gateway: needed by the return path `routed`.
    pub return_route: bool,
    /// Clients have their route to the service CIDR from the start.
    pub client_route: bool,
    /// An upstream DNS server runs.
    pub upstream: bool,
    /// The pods.
    pub pods: Vec<Pod>,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            access: Access::Flat,
            clients: vec![Client { name: "client".into(), address: CLIENT }],
            overlay: false,
            wiring: Wiring::Bridge,
            offloads: Offloads::Kernel,
            mtu: 1500,
            overlay_mtu: None,
            return_route: false,
            client_route: true,
            upstream: false,
            pods: Vec::new(),
        }
    }
}

impl Topology {
    /// One pod on each of the given nodes, named `web-0`, `web-1` and so on.
    pub fn with_pods(nodes: &[Node]) -> Self {
        nodes.iter().fold(Self::default(), |topology, node| topology.pod(*node))
    }

    /// The lab of the demonstration: pods on both workers and on the gateway node, and an upstream.
    pub fn demonstration() -> Self {
        Self { upstream: true, client_route: false, ..Self::with_pods(&[Node::Worker1, Node::Worker2, Node::Gateway]) }
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, node: Node) -> Self {
        let taken = self.pods.iter().filter(|pod| pod.node == node && !pod.host_network()).count();
        let host = 10 + u8::try_from(taken).expect("at most 200 pods on a node");
        self.pods.push(Pod { name: format!("web-{}", self.pods.len()), node, address: node.pod_address(host) });
        self
    }

    /// Adds a pod on its node's own network.
    #[must_use]
    pub fn host_pod(mut self, node: Node) -> Self {
        self.pods.push(Pod { name: format!("web-{}", self.pods.len()), node, address: node.address() });
        self
    }

    /// Adds a machine outside.
    #[must_use]
    pub fn client(mut self, name: &str, address: Ipv4Addr) -> Self {
        self.clients.push(Client { name: name.into(), address });
        self
    }

    /// The MTU of the pods' own devices.
    pub fn pod_mtu(&self) -> u16 {
        if self.overlay && self.overlay_mtu.is_none() { self.mtu - 50 } else { self.mtu }
    }
}
