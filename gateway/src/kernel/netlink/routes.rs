//! Questions about routes.

use std::{io, net::IpAddr};

use rtnetlink::{
    packet_core::{NLM_F_DUMP, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage as Message,
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia},
    },
};

use super::{Netlink, Route, messages};

/// Routes asked for by one datagram: the answers, a page each, fit the socket's buffer; and room for the longest of them.
const ROUTES_AT_ONCE: usize = 16;
const ROUTE_ANSWER: usize = 16 << 10;

impl Netlink {
    /// Interfaces of the default routes of the main table: IPv4's, best first, then IPv6's.
    pub(in crate::kernel) fn default_route_interfaces(&mut self) -> io::Result<Vec<u32>> {
        let mut interfaces: Vec<u32> = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for i in self.default_routes_of(family)? {
                if !interfaces.contains(&i) {
                    interfaces.push(i);
                }
            }
        }
        Ok(interfaces)
    }

    fn default_routes_of(&mut self, family: AddressFamily) -> io::Result<Vec<u32>> {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let answers = self.ask(Message::GetRoute(question), NLM_F_DUMP)?;
        let mut found = Vec::new();
        for answer in answers {
            let Message::NewRoute(m) = answer else { continue };
            let main = table(&m) == u32::from(RouteHeader::RT_TABLE_MAIN);
            if !main || m.header.destination_prefix_length != 0 || m.header.kind != RouteType::Unicast {
                continue;
            }
            let mut metric = 0;
            let mut ways = Vec::new();
            for a in &m.attributes {
                match a {
                    RouteAttribute::Priority(p) => metric = *p,
                    RouteAttribute::Oif(i) => ways.push(*i),
                    RouteAttribute::MultiPath(hops) => ways.extend(hops.iter().map(|h| h.interface_index)),
                    _ => {}
                }
            }
            found.extend(ways.into_iter().map(|i| (metric, i)));
        }
        found.sort_by_key(|(metric, _)| *metric);
        Ok(found.into_iter().map(|(_, i)| i).collect())
    }

    /// The way to `addr`; `None` when there is none (or it is prohibited or unreachable by a route).
    pub(in crate::kernel) fn route(&mut self, addr: IpAddr) -> io::Result<Option<Route>> {
        match self.ask(route_question(addr), 0) {
            Ok(answers) => {
                Ok(answers.iter().find_map(|m| if let Message::NewRoute(m) = m { route(m, addr) } else { None }))
            }
            Err(e) if is_no_way(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The ways to several addresses, by a few system calls: many questions are one datagram, and the kernel has answered all of it when
    /// sending returns. What is not understood or not answered is left out, to be asked for alone.
    pub(in crate::kernel) fn routes(&mut self, addresses: &[IpAddr]) -> io::Result<Vec<(IpAddr, Option<Route>)>> {
        let mut found = Vec::with_capacity(addresses.len());
        let mut answer = vec![0; ROUTE_ANSWER];
        for asked in addresses.chunks(ROUTES_AT_ONCE) {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::with_capacity(asked.len() * 64);
            for addr in asked {
                bytes.extend(self.request(route_question(*addr), 0));
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            self.socket.send(&bytes, 0)?;
            let mut left = asked.len();
            while left > 0 {
                let len = match self.socket.recv(&mut &mut answer[..], libc::MSG_DONTWAIT) {
                    Ok(len) => len,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                };
                for message in messages(answer.get(..len).unwrap_or_default()) {
                    let Ok(message) = message else {
                        left = left.saturating_sub(1);
                        continue;
                    };
                    // Else an answer to something that nobody waited for.
                    let number = message.header.sequence_number.wrapping_sub(first) as usize;
                    let Some(addr) = asked.get(number) else { continue };
                    left = left.saturating_sub(1);
                    match message.payload {
                        NetlinkPayload::InnerMessage(Message::NewRoute(m)) => found.push((*addr, route(&m, *addr))),
                        NetlinkPayload::Error(e) if is_no_way(&e.to_io()) => found.push((*addr, None)),
                        _ => {}
                    }
                }
            }
        }
        Ok(found)
    }
}

fn route_question(addr: IpAddr) -> Message {
    let mut question = RouteMessage::default();
    let (family, bits) = match addr {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    question.header.address_family = family;
    question.header.destination_prefix_length = bits;
    question.attributes.push(RouteAttribute::Destination(addr.into()));
    Message::GetRoute(question)
}

/// Whether the kernel says that it would not send there.
fn is_no_way(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL))
}

fn table(m: &RouteMessage) -> u32 {
    m.attributes
        .iter()
        .find_map(|a| if let RouteAttribute::Table(t) = a { Some(*t) } else { None })
        .unwrap_or_else(|| u32::from(m.header.table))
}

fn route(m: &RouteMessage, to: IpAddr) -> Option<Route> {
    let local = match m.header.kind {
        RouteType::Local => true,
        RouteType::Unicast => false,
        _ => return None,
    };
    let mut oif = None;
    let mut via = to;
    let mut mtu = None;
    for a in &m.attributes {
        match a {
            RouteAttribute::Oif(i) => oif = Some(*i),
            RouteAttribute::Gateway(RouteAddress::Inet(a)) | RouteAttribute::Via(RouteVia::Inet(a)) => {
                via = (*a).into()
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(a)) | RouteAttribute::Via(RouteVia::Inet6(a)) => {
                via = (*a).into();
            }
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|v| if let RouteMetric::Mtu(v) = v { Some(*v) } else { None });
            }
            _ => {}
        }
    }
    Some(Route { oif: oif?, via, mtu, local })
}
