//! Next hops: for every address the gateway sends to (endpoints and clients) the route, for every `(interface, gateway)` one
//! entry of `NEXTHOPS` with its MAC addresses. A flow refers to next hops by index, so a changed MAC reaches every flow at once.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use gateway_common::maps::{NextHop, nexthop};
use ipnet::IpNet;

use super::{
    attach::Around,
    family,
    netlink::{Link, Neighbour, Netlink, Route},
    pin::{self, Heritage},
    table::Table,
    vlan::Below,
};

/// How long the index of an unused next hop rests before somebody else gets it, beside no flow naming it.
const REST: Duration = Duration::from_secs(2);
/// Unresolved neighbours that one round asks for.
const ASK_AT_MOST: usize = 256;

/// What a next hop stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// No route.
    Nowhere,
    /// This node itself.
    Here,
    /// Out of an interface, to a gateway or the address itself, with the route's MTU.
    Out(Route),
}

#[derive(Debug)]
struct Hop {
    place: Place,
    /// Targets that go this way.
    users: u32,
    /// Since when it has no users.
    idle: Option<Instant>,
    value: NextHop,
}

/// How packets get to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Index into `NEXTHOPS`.
    pub(super) hop: u32,
    /// The address is this node's own.
    pub(super) local: bool,
    /// Interface; 0 without a route and for local addresses.
    pub(super) oif: u32,
}

/// What the datapath may not rely on a next hop for: "look it up yourself".
const UNKNOWN: Way = Way { hop: 0, local: false, oif: 0 };

#[derive(Debug)]
struct Target {
    way: Way,
    /// Endpoints with this address.
    endpoints: u32,
    /// It is a client's, too.
    client: bool,
}

/// Which targets a change of routes concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Affected {
    /// Those inside these prefixes.
    Prefixes(Vec<IpNet>),
    /// All of them.
    All,
}

impl Affected {
    fn has(&self, addr: IpAddr) -> bool {
        match self {
            Self::Prefixes(list) => list.iter().any(|p| p.contains(&addr)),
            Self::All => true,
        }
    }
}

/// The next hops in use.
#[derive(Debug)]
pub(super) struct Hops {
    netlink: Netlink,
    table: Table<u32, NextHop>,
    capacity: u32,
    links: HashMap<u32, Link>,
    /// Interfaces into which XDP may redirect.
    xdp: HashSet<u32>,
    hops: HashMap<u32, Hop>,
    by_place: HashMap<Place, u32>,
    free: Vec<u32>,
    next: u32,
    targets: HashMap<IpAddr, Target>,
    neighbours: HashMap<(u32, IpAddr), [u8; 6]>,
    /// Interfaces through which endpoints are or were reached.
    endpoint_interfaces: BTreeSet<u32>,
    /// Routes that were asked for together, until they are used or [`Self::forget_ahead`].
    ahead: HashMap<IpAddr, Option<Route>>,
}

impl Hops {
    /// With what the kernel knows now.
    pub(super) fn new(mut netlink: Netlink, table: Table<u32, NextHop>, capacity: u32) -> io::Result<Self> {
        let links = netlink.links()?.into_iter().map(|l| (l.index, l)).collect();
        Ok(Self {
            netlink,
            table,
            capacity,
            links,
            xdp: HashSet::new(),
            hops: HashMap::new(),
            by_place: HashMap::new(),
            free: Vec::new(),
            next: 1,
            targets: HashMap::new(),
            neighbours: HashMap::new(),
            endpoint_interfaces: BTreeSet::new(),
            ahead: HashMap::new(),
        })
    }

    /// Next hops of an earlier agent keep their indices for as long as a flow names them.
    pub(super) fn inherit(&mut self, heritage: &Heritage) -> io::Result<()> {
        let taken: HashSet<u32> = heritage.hops.iter().map(|(index, _)| *index).collect();
        self.next = heritage.last_hop() + 1;
        self.free = (1..self.next).filter(|index| !taken.contains(index)).collect();
        for (index, old) in &heritage.hops {
            let via = pin::address(old.via, old.flags & nexthop::V6 != 0);
            let place = match old.ifindex {
                _ if old.flags & nexthop::LOCAL != 0 => Place::Here,
                0 => Place::Nowhere,
                oif => {
                    let own = self.links.get(&oif).map_or(0, |l| u16::try_from(l.mtu).unwrap_or(u16::MAX));
                    let mtu = (own != old.mtu).then_some(u32::from(old.mtu));
                    if old.flags & nexthop::RESOLVED != 0 && old.flags & nexthop::NO_L2 == 0 {
                        self.neighbours.insert((oif, via), old.dst);
                    }
                    Place::Out(Route { oif, via, mtu, local: false })
                }
            };
            let value = self.compute(place);
            self.table.put(index, &value)?;
            self.hops.insert(*index, Hop { place, users: 0, idle: Some(Instant::now()), value });
            self.by_place.insert(place, *index);
        }
        Ok(())
    }

    /// The question socket, for what else there is to ask.
    pub(super) const fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    #[cfg(test)]
    pub(super) const fn table(&self) -> &Table<u32, NextHop> {
        &self.table
    }

    /// A link by index.
    pub(super) fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// Where a VLAN device's frames are on the wire.
    pub(super) fn below(&self, link: &Link) -> Option<Below> {
        Below::of(link, |index| self.links.get(&index))
    }

    /// What attaching to a link depends on.
    pub(super) fn around(&self, link: &Link) -> Around {
        let carries_vlans = self.links.values().any(|l| l.vlan.is_some_and(|(below, _)| below == link.index));
        Around { below: self.below(link), carries_vlans }
    }

    /// A link by name.
    pub(super) fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|l| l.name == name)
    }

    /// Every link.
    pub(super) fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The way to an endpoint's address, from now on kept up to date.
    pub(super) fn use_for_endpoint(&mut self, addr: IpAddr) -> io::Result<Way> {
        self.target(addr)?;
        let Some(target) = self.targets.get_mut(&addr) else { return Ok(UNKNOWN) };
        target.endpoints += 1;
        let way = target.way;
        self.note_interface(way);
        Ok(way)
    }

    /// One endpoint with that address less.
    pub(super) fn release_endpoint(&mut self, addr: IpAddr) {
        if let Some(t) = self.targets.get_mut(&addr) {
            t.endpoints = t.endpoints.saturating_sub(1);
        }
        self.drop_unused(addr);
    }

    /// The way to a client, from now on kept up to date.
    pub(super) fn use_for_client(&mut self, addr: IpAddr) -> io::Result<Way> {
        self.target(addr)?;
        let Some(target) = self.targets.get_mut(&addr) else { return Ok(UNKNOWN) };
        target.client = true;
        Ok(target.way)
    }

    fn note_interface(&mut self, way: Way) {
        if way.oif != 0 {
            self.endpoint_interfaces.insert(way.oif);
        }
    }

    /// The client is gone.
    pub(super) fn release_client(&mut self, addr: IpAddr) {
        if let Some(t) = self.targets.get_mut(&addr) {
            t.client = false;
        }
        self.drop_unused(addr);
    }

    /// The way to an address that is in use.
    pub(super) fn way(&self, addr: IpAddr) -> Option<Way> {
        self.targets.get(&addr).map(|t| t.way)
    }

    /// The value of a next hop as it stands in the map.
    pub(super) fn value(&self, hop: u32) -> Option<&NextHop> {
        self.hops.get(&hop).map(|h| &h.value)
    }

    /// Links through which endpoints are, or were since they came up, reached.
    pub(super) fn endpoint_links(&self) -> impl Iterator<Item = &Link> {
        self.endpoint_interfaces.iter().filter_map(|i| self.links.get(i))
    }

    /// Asks for the routes to these addresses at once; each is used once. Those in use already are not asked for.
    pub(super) fn look_ahead(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let new: HashSet<IpAddr> = addresses.into_iter().filter(|addr| !self.targets.contains_key(addr)).collect();
        self.ask_ahead(new.into_iter().collect());
    }

    fn ask_ahead(&mut self, addresses: Vec<IpAddr>) {
        if addresses.len() < 2 {
            return;
        }
        match self.netlink.routes(&addresses) {
            Ok(routes) => self.ahead.extend(routes),
            // Whoever needs one asks for it alone, and says what is wrong.
            Err(error) => tracing::debug!(%error, "routes cannot be asked for together"),
        }
    }

    /// What was asked for ahead and not used may be out of date later.
    pub(super) fn forget_ahead(&mut self) {
        self.ahead.clear();
    }

    fn target(&mut self, addr: IpAddr) -> io::Result<()> {
        if !self.targets.contains_key(&addr) {
            let way = self.find_way(addr)?;
            self.targets.insert(addr, Target { way, endpoints: 0, client: false });
        }
        Ok(())
    }

    fn drop_unused(&mut self, addr: IpAddr) {
        if let Some(t) = self.targets.get(&addr)
            && t.endpoints == 0
            && !t.client
        {
            let hop = t.way.hop;
            self.targets.remove(&addr);
            self.leave(hop);
        }
    }

    fn leave(&mut self, hop: u32) {
        if let Some(h) = self.hops.get_mut(&hop) {
            h.users = h.users.saturating_sub(1);
            if h.users == 0 {
                h.idle = Some(Instant::now());
            }
        }
    }

    fn find_way(&mut self, addr: IpAddr) -> io::Result<Way> {
        let route = match self.ahead.remove(&addr) {
            Some(route) => route,
            None => self.netlink.route(addr)?,
        };
        let place = match route {
            None => Place::Nowhere,
            Some(r) if r.local => Place::Here,
            Some(r) => Place::Out(r),
        };
        let local = place == Place::Here;
        let oif = if let Place::Out(r) = place { r.oif } else { 0 };
        if let Some(&hop) = self.by_place.get(&place) {
            if let Some(h) = self.hops.get_mut(&hop) {
                h.users += 1;
                h.idle = None;
            }
            return Ok(Way { hop, local, oif });
        }
        let Some(hop) = self.free.pop().or_else(|| {
            let fresh = self.next;
            (fresh < self.capacity).then(|| {
                self.next += 1;
                fresh
            })
        }) else {
            tracing::warn!(%addr, "the table of next hops is full: packets to it are routed one by one in TC");
            return Ok(Way { local, oif, ..UNKNOWN });
        };
        if let Place::Out(r) = place {
            // A name the event socket has not told of yet.
            if !self.links.contains_key(&r.oif) {
                self.links = self.netlink.links()?.into_iter().map(|l| (l.index, l)).collect();
            }
            if self.needs_neighbour(r.oif) {
                let known = match self.netlink.neighbour(r.oif, r.via)? {
                    Some(Neighbour { mac: Some(mac), .. }) => Some(mac),
                    _ => self.kick(r.oif, r.via)?,
                };
                if let Some(mac) = known {
                    self.neighbours.insert((r.oif, r.via), mac);
                }
            }
        }
        let value = self.compute(place);
        self.table.put(&hop, &value)?;
        self.hops.insert(hop, Hop { place, users: 1, idle: None, value });
        self.by_place.insert(place, hop);
        Ok(Way { hop, local, oif })
    }

    fn needs_neighbour(&self, oif: u32) -> bool {
        self.links.get(&oif).is_some_and(|l| l.up && l.mac.is_some())
    }

    /// Makes the kernel resolve a neighbour. What it finds comes as an event, or is there at once (and then there may be none).
    fn kick(&mut self, oif: u32, via: IpAddr) -> io::Result<Option<[u8; 6]>> {
        if let Err(error) = self.netlink.resolve(oif, via) {
            tracing::debug!(%via, oif, %error, "the kernel does not resolve that neighbour now");
        }
        Ok(self.netlink.neighbour(oif, via)?.and_then(|n| n.mac))
    }

    fn compute(&self, place: Place) -> NextHop {
        let mut value = NextHop {
            ifindex: 0,
            flags: 0,
            mtu: u16::MAX,
            dst: [0; 6],
            src: [0; 6],
            via: [0; 16],
            xdp_ifindex: 0,
            tags: [[0; 2]; 2],
        };
        let route = match place {
            Place::Nowhere => return value,
            Place::Here => {
                // The loopback device always has index 1.
                return NextHop { ifindex: 1, flags: nexthop::LOCAL | nexthop::RESOLVED, ..value };
            }
            Place::Out(route) => route,
        };
        value.via = family::sixteen(route.via);
        if route.via.is_ipv6() {
            value.flags |= nexthop::V6;
        }
        let Some(link) = self.links.get(&route.oif).filter(|l| l.up) else { return value };
        value.ifindex = link.index;
        value.xdp_ifindex = link.index;
        if let Some(below) = self.below(link) {
            value.xdp_ifindex = below.lowest.index;
            value.tags = below.vids;
        }
        value.mtu = u16::try_from(link.mtu.min(route.mtu.unwrap_or(u32::MAX))).unwrap_or(u16::MAX);
        if self.xdp.contains(&link.index) {
            value.flags |= nexthop::XDP;
        }
        match (link.mac, self.neighbours.get(&(route.oif, route.via))) {
            (None, _) => value.flags |= nexthop::NO_L2 | nexthop::RESOLVED,
            (Some(src), Some(dst)) => {
                value.flags |= nexthop::RESOLVED;
                value.src = src;
                value.dst = *dst;
            }
            (Some(_), None) => {}
        }
        value
    }

    fn refresh(&mut self, which: impl Fn(&Route) -> bool) -> io::Result<()> {
        let changed: Vec<(u32, NextHop)> = self
            .hops
            .iter()
            .filter(|(_, h)| matches!(&h.place, Place::Out(r) if which(r)))
            .map(|(index, h)| (*index, self.compute(h.place)))
            .collect();
        for (index, value) in changed {
            if let Some(h) = self.hops.get_mut(&index)
                && h.value != value
            {
                self.table.put(&index, &value)?;
                h.value = value;
            }
        }
        Ok(())
    }

    /// A link came, changed or went (`None`). Says whether routes may have changed with it.
    pub(super) fn link_changed(&mut self, index: u32, link: Option<Link>) -> io::Result<bool> {
        let before = match link {
            Some(link) => self.links.insert(index, link),
            None => {
                self.neighbours.retain(|(i, _), _| *i != index);
                self.endpoint_interfaces.remove(&index);
                self.xdp.remove(&index);
                self.links.remove(&index)
            }
        };
        let after = self.links.get(&index);
        if before.as_ref() == after {
            return Ok(false);
        }
        let up = |l: Option<&Link>| l.is_some_and(|l| l.up);
        let routes = up(before.as_ref()) != up(after);
        self.refresh(|r| r.oif == index)?;
        Ok(routes)
    }

    /// A neighbour entry changed.
    pub(super) fn neighbour_changed(&mut self, n: &Neighbour) -> io::Result<()> {
        let key = (n.ifindex, n.addr);
        if !self.hops.values().any(|h| matches!(&h.place, Place::Out(r) if (r.oif, r.via) == key)) {
            return Ok(());
        }
        let before = match n.mac {
            Some(mac) => self.neighbours.insert(key, mac),
            None => self.neighbours.remove(&key),
        };
        if before == n.mac {
            return Ok(());
        }
        self.refresh(|r| (r.oif, r.via) == key)
    }

    /// XDP may (or may no longer) redirect into that interface.
    pub(super) fn set_xdp(&mut self, index: u32, allowed: bool) -> io::Result<()> {
        let changed = if allowed { self.xdp.insert(index) } else { self.xdp.remove(&index) };
        if changed { self.refresh(|r| r.oif == index) } else { Ok(()) }
    }

    /// Addresses in use that a change of routes concerns.
    pub(super) fn affected(&self, affected: &Affected) -> Vec<IpAddr> {
        self.targets.keys().copied().filter(|a| affected.has(*a)).collect()
    }

    /// Asks for the routes to addresses in use again, at once: [`Self::reroute`] is next.
    pub(super) fn look_again(&mut self, addresses: &[IpAddr]) {
        self.ask_ahead(addresses.to_vec());
    }

    /// Looks the route to an address in use up again; the new way when it changed.
    pub(super) fn reroute(&mut self, addr: IpAddr) -> io::Result<Option<Way>> {
        let Some(before) = self.way(addr) else { return Ok(None) };
        let way = self.find_way(addr)?;
        // Looking up counted a user more; one of the two ways has to let go.
        self.leave(before.hop);
        if way == before {
            return Ok(None);
        }
        if let Some(t) = self.targets.get_mut(&addr) {
            t.way = way;
            if t.endpoints > 0 {
                self.note_interface(way);
            }
        }
        Ok(Some(way))
    }

    /// Everything anew: after lost events.
    pub(super) fn resync(&mut self) -> io::Result<()> {
        self.links = self.netlink.links()?.into_iter().map(|l| (l.index, l)).collect();
        self.confirm()?;
        self.refresh(|_| true)
    }

    /// Asks the kernel again for neighbours that are in use and not resolved.
    pub(super) fn ask_for_missing(&mut self) -> io::Result<()> {
        let missing: Vec<(u32, IpAddr)> = self
            .hops
            .values()
            .filter(|h| h.users > 0 && h.value.ifindex != 0 && h.value.flags & nexthop::RESOLVED == 0)
            .filter_map(|h| if let Place::Out(r) = &h.place { Some((r.oif, r.via)) } else { None })
            .take(ASK_AT_MOST)
            .collect();
        for (ifindex, addr) in missing {
            let mac = self.kick(ifindex, addr)?;
            self.neighbour_changed(&Neighbour { ifindex, addr, mac, stale: false })?;
        }
        Ok(())
    }

    /// Compares with the kernel's neighbour table and has stale entries in use confirmed: XDP sends without the kernel
    /// noticing, so nothing else would.
    pub(super) fn confirm(&mut self) -> io::Result<()> {
        let used: HashSet<(u32, IpAddr)> = self
            .hops
            .values()
            .filter(|h| h.users > 0)
            .filter_map(|h| if let Place::Out(r) = &h.place { Some((r.oif, r.via)) } else { None })
            .collect();
        if used.is_empty() {
            return Ok(());
        }
        let mut unseen = used.clone();
        for n in self.netlink.neighbours()? {
            if !used.contains(&(n.ifindex, n.addr)) {
                continue;
            }
            unseen.remove(&(n.ifindex, n.addr));
            self.neighbour_changed(&n)?;
            if n.stale {
                self.kick(n.ifindex, n.addr)?;
            }
        }
        for (ifindex, addr) in unseen {
            // Gone from the kernel's table (garbage collection): ask before the MAC is believed no longer.
            if self.needs_neighbour(ifindex) {
                let mac = self.kick(ifindex, addr)?;
                self.neighbour_changed(&Neighbour { ifindex, addr, mac, stale: false })?;
            }
        }
        Ok(())
    }

    /// Gives free the indices of next hops that nobody uses and that no flow names (`named`).
    pub(super) fn collect(&mut self, named: &HashSet<u32>) -> io::Result<()> {
        let now = Instant::now();
        let gone: Vec<u32> = self
            .hops
            .iter()
            .filter(|(index, h)| {
                h.users == 0 && !named.contains(index) && h.idle.is_some_and(|t| now.duration_since(t) > REST)
            })
            .map(|(index, _)| *index)
            .collect();
        for index in gone {
            if let Some(h) = self.hops.remove(&index) {
                // An inherited one may have a twin.
                if self.by_place.get(&h.place) == Some(&index) {
                    self.by_place.remove(&h.place);
                }
                if let Place::Out(r) = h.place
                    && !self
                        .hops
                        .values()
                        .any(|h| matches!(&h.place, Place::Out(o) if (o.oif, o.via) == (r.oif, r.via)))
                {
                    self.neighbours.remove(&(r.oif, r.via));
                }
            }
            self.table.put(&index, &bytemuck::Zeroable::zeroed())?;
            self.free.push(index);
        }
        Ok(())
    }
}
