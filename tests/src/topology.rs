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

use std::net::Ipv4Addr;

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
/// Port of the pods' HTTP server.
pub const HTTP_PORT: u16 = 8080;
/// Port of the pods' echo server, TCP and UDP.
pub const ECHO_PORT: u16 = 7007;

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

    /// The MTU on the way to a pod on another node.
    pub fn pod_mtu(&self) -> u16 {
        if self.overlay { self.mtu - 50 } else { self.mtu }
    }
}
