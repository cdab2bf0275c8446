//! What the kernel knows about links, addresses, routes and neighbours, asked over rtnetlink and followed by its
//! multicast groups.
//!
//! The socket is synchronous: a question is answered by the kernel before `send` returns, in microseconds, so waiting for
//! it costs nothing and the callers stay plain functions.

mod routes;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd},
};

use ipnet::IpNet;
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
        NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage as Message,
        address::{AddressAttribute, AddressMessage, AddressScope},
        link::{
            InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, VlanProtocol,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// Receive buffer of the event socket: a node with many pods sends bursts.
const EVENT_BUFFER: usize = 4 << 20;
/// `RTNLGRP_*` numbers that are followed.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19]; // LINK, NEIGH, IPV4_{IFADDR, ROUTE, RULE}, IPV6_{IFADDR, ROUTE, RULE}

/// What a device is, as far as attaching to it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A network card, physical or virtual: it has a device behind it.
    Nic,
    /// One end of a veth pair.
    Veth,
    /// Bond or team: native XDP reaches the cards below.
    Bond,
    /// A VLAN on another device.
    Vlan,
    /// Bridge, overlay, tunnel, or anything else: TC alone.
    Other,
    /// The loopback device: never touched.
    Loopback,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) mtu: u32,
    /// Hardware address; `None` on devices without an Ethernet header.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) up: bool,
    /// Of an 802.1Q VLAN device without priority mapping: the device below, and the VLAN's ID.
    pub(super) vlan: Option<(u32, u16)>,
}

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Route {
    /// Interface.
    pub(super) oif: u32,
    /// Gateway, or the address itself when it is on the link.
    pub(super) via: IpAddr,
    /// MTU metric of the route, when it has one.
    pub(super) mtu: Option<u32>,
    /// The address is this node's own.
    pub(super) local: bool,
}

/// A neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) ifindex: u32,
    pub(super) addr: IpAddr,
    /// Hardware address, when the entry is valid now.
    pub(super) mac: Option<[u8; 6]>,
    /// Known but not confirmed lately.
    pub(super) stale: bool,
}

/// A change that concerns next hops or attachments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Created or changed.
    Link(Link),
    /// Deleted.
    LinkGone(u32),
    /// An address came or went on that interface.
    Address(u32),
    /// A route to that prefix came or went.
    Route(IpNet),
    /// A rule that chooses among routing tables came or went.
    Rule,
    /// Created or changed; `mac` is `None` when it is not valid (any more).
    Neighbour(Neighbour),
    /// Events were lost: everything has to be looked at again.
    Lost,
}

/// The question socket.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens it in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The next request's bytes.
    fn request(&mut self, message: Message, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        bytes
    }

    fn ask(&mut self, message: Message, flags: u16) -> io::Result<Vec<Message>> {
        let bytes = self.request(message, flags);
        self.socket.send(&bytes, 0)?;

        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                let message = match message {
                    Ok(message) => message,
                    // One entry of a list that a newer kernel describes in a way unknown here does not hide the others.
                    Err(error) if dump => {
                        tracing::debug!(%error, "a netlink message is not understood");
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(m) => {
                        answers.push(m);
                        if !dump && flags & NLM_F_ACK == 0 {
                            return Ok(answers);
                        }
                    }
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }

    /// Every link.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.ask(Message::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.iter().filter_map(|m| if let Message::NewLink(m) = m { link(m) } else { None }).collect())
    }

    /// Interface and address of every global IPv4 and IPv6 address of this node, in the kernel's order (the first of an
    /// interface is its primary one), but that IPv6 addresses which are not for good (privacy, deprecated) come last, and those that
    /// another machine has not at all.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<(u32, IpAddr)>> {
        let answers = self.ask(Message::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let mut found = Vec::new();
        let mut passing = Vec::new();
        for answer in answers {
            let Message::NewAddress(m) = answer else { continue };
            if m.header.scope != AddressScope::Universe {
                continue;
            }
            let local =
                m.attributes.iter().find_map(|a| if let AddressAttribute::Local(x) = a { Some(*x) } else { None });
            let peer =
                m.attributes.iter().find_map(|a| if let AddressAttribute::Address(x) = a { Some(*x) } else { None });
            // The attribute has all 32 bits, the header eight.
            let flags = m
                .attributes
                .iter()
                .find_map(|a| if let AddressAttribute::Flags(x) = a { Some(x.bits()) } else { None });
            let flags = flags.unwrap_or_else(|| u32::from(m.header.flags.bits()));
            let v6 = m.header.family == AddressFamily::Inet6;
            match local.or(peer) {
                Some(_) if v6 && flags & libc::IFA_F_DADFAILED != 0 => {}
                Some(addr) if v6 && flags & (libc::IFA_F_TEMPORARY | libc::IFA_F_DEPRECATED) != 0 => {
                    passing.push((m.header.index, addr));
                }
                Some(addr) => found.push((m.header.index, addr)),
                None => {}
            }
        }
        found.extend(passing);
        Ok(found)
    }

    /// Every neighbour entry of IPv4 and IPv6.
    pub(super) fn neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        let answers = self.ask(Message::GetNeighbour(NeighbourMessage::default()), NLM_F_DUMP)?;
        Ok(answers.iter().filter_map(|m| if let Message::NewNeighbour(m) = m { neighbour(m) } else { None }).collect())
    }

    /// Makes the kernel resolve `addr` on that interface, or confirm it when it is stale, as if a packet had to go there.
    pub(super) fn resolve(&mut self, ifindex: u32, addr: IpAddr) -> io::Result<()> {
        let mut m = neighbour_question(ifindex, addr);
        m.header.flags = NeighbourFlags::Use;
        m.header.state = NeighbourState::None;
        self.ask(Message::NewNeighbour(m), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)?;
        Ok(())
    }

    /// The neighbour entry of `addr` on that interface.
    pub(super) fn neighbour(&mut self, ifindex: u32, addr: IpAddr) -> io::Result<Option<Neighbour>> {
        match self.ask(Message::GetNeighbour(neighbour_question(ifindex, addr)), 0) {
            Ok(answers) => {
                Ok(answers.iter().find_map(|m| if let Message::NewNeighbour(m) = m { neighbour(m) } else { None }))
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn neighbour_question(ifindex: u32, addr: IpAddr) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.ifindex = ifindex;
    let (family, dst) = match addr {
        IpAddr::V4(a) => (AddressFamily::Inet, NeighbourAddress::Inet(a)),
        IpAddr::V6(a) => (AddressFamily::Inet6, NeighbourAddress::Inet6(a)),
    };
    m.header.family = family;
    m.attributes.push(NeighbourAttribute::Destination(dst));
    m
}

/// The event socket.
#[derive(Debug)]
pub(super) struct Events {
    socket: Socket,
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Events {
    /// Follows links, neighbours, addresses and routes of the calling thread's network namespace.
    pub(super) fn follow() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        // The default is enough on a quiet node; a refusal costs a resynchronisation after a burst, nothing else.
        socket.set_rx_buf_sz(EVENT_BUFFER).or_else(|_| socket.set_rx_buf_sz(EVENT_BUFFER / 16)).unwrap_or(());
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Self { socket })
    }

    /// What has arrived by now; does not wait.
    pub(super) fn read(&self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            let datagram = match self.socket.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(events),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    events.push(Event::Lost);
                    continue;
                }
                Err(e) => return Err(e),
            };
            for message in messages(&datagram) {
                let Ok(message) = message else { continue };
                let NetlinkPayload::InnerMessage(m) = message.payload else { continue };
                events.extend(event(&m));
            }
        }
    }
}

fn event(m: &Message) -> Option<Event> {
    match m {
        Message::NewLink(m) => link(m).map(Event::Link),
        // A bridge tells of a port that left it by the same message, in its own family.
        Message::DelLink(m) if m.header.interface_family == AddressFamily::Unspec => {
            Some(Event::LinkGone(m.header.index))
        }
        Message::NewAddress(m) | Message::DelAddress(m) => Some(Event::Address(m.header.index)),
        Message::NewRoute(m) | Message::DelRoute(m) => {
            let bits = m.header.destination_prefix_length;
            let addr = m.attributes.iter().find_map(|a| match a {
                RouteAttribute::Destination(RouteAddress::Inet(a)) => Some(IpAddr::V4(*a)),
                RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
                _ => None,
            });
            let addr = addr.unwrap_or(if m.header.address_family == AddressFamily::Inet6 {
                IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            } else {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            });
            IpNet::new(addr, bits).ok().map(Event::Route)
        }
        Message::NewRule(_) | Message::DelRule(_) => Some(Event::Rule),
        Message::NewNeighbour(m) => neighbour(m).map(Event::Neighbour),
        Message::DelNeighbour(m) => neighbour(m).map(|n| Event::Neighbour(Neighbour { mac: None, ..n })),
        _ => None,
    }
}

/// The messages of a datagram.
fn messages(datagram: &[u8]) -> impl Iterator<Item = io::Result<NetlinkMessage<Message>>> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?)).ok()?;
        if length < 16 || length > rest.len() {
            return None;
        }
        let message = NetlinkMessage::<Message>::deserialize(&rest[..length]).map_err(io::Error::other);
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        Some(message)
    })
}

fn mac(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}

fn link(m: &LinkMessage) -> Option<Link> {
    // Bridges send messages about their ports in a family of their own, without the attributes that matter here.
    if m.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut name = None;
    let mut mtu = 0;
    let mut address = None;
    let mut kind = None;
    let mut device = false;
    let (mut below, mut elsewhere, mut id) = (None, false, None);
    for a in &m.attributes {
        match a {
            LinkAttribute::IfName(n) => name = Some(n.clone()),
            LinkAttribute::Mtu(v) => mtu = *v,
            LinkAttribute::Address(v) => address = mac(v),
            LinkAttribute::ParentDevName(_) => device = true,
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|i| if let LinkInfo::Kind(k) = i { Some(k.clone()) } else { None });
                id = infos
                    .iter()
                    .find_map(|i| if let LinkInfo::Data(InfoData::Vlan(v)) = i { vlan_id(v) } else { None });
            }
            _ => {}
        }
    }
    let loopback = m.header.link_layer_type == LinkLayerType::Loopback;
    let kind = match kind {
        _ if loopback => Kind::Loopback,
        Some(InfoKind::Veth) => Kind::Veth,
        Some(InfoKind::Bond | InfoKind::Team) => Kind::Bond,
        Some(InfoKind::Vlan) => Kind::Vlan,
        None if device => Kind::Nic,
        _ => Kind::Other,
    };
    let ether = m.header.link_layer_type == LinkLayerType::Ether;
    Some(Link {
        index: m.header.index,
        name: name?,
        kind,
        mtu,
        mac: address.filter(|_| ether),
        up: m.header.flags.contains(LinkFlags::Up),
        vlan: below.zip(id).filter(|_| kind == Kind::Vlan && !elsewhere),
    })
}

/// The ID of a VLAN whose tags XDP can write: 802.1Q, priority 0.
fn vlan_id(data: &[InfoVlan]) -> Option<u16> {
    let mut id = None;
    for info in data {
        match info {
            InfoVlan::Id(n) => id = Some(*n),
            InfoVlan::Protocol(VlanProtocol::Ieee8021Q) => {}
            InfoVlan::Protocol(_) => return None,
            InfoVlan::EgressQos(map) if !map.is_empty() => return None,
            _ => {}
        }
    }
    id
}

fn neighbour(m: &NeighbourMessage) -> Option<Neighbour> {
    let mut addr = None;
    let mut hardware = None;
    for a in &m.attributes {
        match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => addr = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => addr = Some(IpAddr::V6(*a)),
            NeighbourAttribute::LinkLayerAddress(v) => hardware = mac(v),
            _ => {}
        }
    }
    let valid = matches!(
        m.header.state,
        NeighbourState::Permanent
            | NeighbourState::Noarp
            | NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
    );
    Some(Neighbour {
        ifindex: m.header.ifindex,
        addr: addr?,
        mac: hardware.filter(|_| valid),
        stale: m.header.state == NeighbourState::Stale,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vlan(protocol: VlanProtocol, more: Option<LinkAttribute>) -> Link {
        let mut m = LinkMessage::default();
        m.header.index = 9;
        m.header.link_layer_type = LinkLayerType::Ether;
        let data = InfoData::Vlan(vec![InfoVlan::Protocol(protocol), InfoVlan::Id(300)]);
        m.attributes = vec![
            LinkAttribute::IfName("eth0.300".into()),
            LinkAttribute::Link(4),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)]),
        ];
        m.attributes.extend(more);
        link(&m).unwrap()
    }

    #[test]
    fn a_vlan_device_is_told_by_its_tag_and_the_device_below() {
        let plain = vlan(VlanProtocol::Ieee8021Q, None);
        assert_eq!((plain.kind, plain.vlan), (Kind::Vlan, Some((4, 300))));
        let service = vlan(VlanProtocol::Ieee8021Ad, None);
        assert_eq!((service.kind, service.vlan), (Kind::Vlan, None), "XDP writes no such tags");
        let foreign = vlan(VlanProtocol::Ieee8021Q, Some(LinkAttribute::LinkNetNsId(0)));
        assert_eq!(foreign.vlan, None, "the index below is another namespace's");
    }
}
