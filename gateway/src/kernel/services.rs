//! Services in the maps: what a plan asks for, less what is there already.
//!
//! Order inside a change: new endpoints and Maglev slots into places nobody reads, then the Service's value (one atomic swap),
//! then the old slots are freed and gone endpoints lose their generation. A packet sees the old state or the new one.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::IpAddr,
    time::Instant,
};

use bytemuck::Zeroable as _;
use gateway_common::{
    maglev,
    maps::{Endpoint, Service, ServiceKey, endpoint, nexthop, service},
};
use ipnet::IpNet;

use super::{
    KernelError,
    claims::{Claims, Tries},
    family::{self, Pair},
    hops::{Hops, Way},
    info::{BackendInfo, ServiceInfo},
    mirror::Mirror,
    pin::Heritage,
    places::{Indices, Range, Slots},
    ports::{Installed, Key, Port, has, key},
    table::Table,
};
use crate::{
    model::ObjectName,
    plan::{self, Frontend, ServicePlan},
};

fn map_key((addr, port, protocol): Key) -> family::ServiceAt {
    family::service(addr, port, protocol.number())
}

/// Table lengths to fall back to when `MAGLEV` has no room for the right one: less even, but it serves.
const SMALLER_TABLES: [u32; 4] = [509, 127, 31, 7];

/// What a Service wants of one of its VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Want {
    /// Views that may see it.
    views: u64,
    /// Endpoints that new flows to any of its ports go to: an echo is answered while there are any.
    endpoints: u32,
}

/// The maps of Services.
#[derive(Clone, Debug)]
pub(super) struct Maps {
    pub(super) services: Pair<ServiceKey<[u8; 4]>, ServiceKey<[u8; 16]>, Service>,
    pub(super) maglev: Table<u32, u32>,
    pub(super) endpoints: Table<u32, Endpoint>,
    pub(super) claims: Tries,
}

/// Everything that `apply` keeps.
#[derive(Debug)]
pub(super) struct Services {
    maps: Maps,
    installed: BTreeMap<ObjectName, Installed>,
    /// Who wants a key; the last one has it. Two do while a VIP moves from one Service to another.
    owners: HashMap<Key, Vec<ObjectName>>,
    /// Who wants a VIP.
    vips: HashMap<IpAddr, Vec<(ObjectName, Want)>>,
    indices: Indices,
    slots: Slots,
    mirror: Mirror,
    claims: Claims,
    next_id: u32,
    /// What an earlier agent had, until the first plan has taken of it what it needs.
    inherited_ids: HashMap<Key, u32>,
    inherited: HashMap<(u32, plan::Endpoint), (u32, u32)>,
}

/// What the maps hold, for `gateway status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Services.
    pub services: usize,
    /// Service ports.
    pub ports: usize,
    /// Endpoints, draining ones included.
    pub endpoints: usize,
}

impl Services {
    /// Nothing installed; arrays of these capacities.
    pub(super) fn new(maps: Maps, endpoints: u32, slots: u32) -> Self {
        Self {
            claims: Claims::new(maps.claims.clone()),
            maps,
            installed: BTreeMap::new(),
            owners: HashMap::new(),
            vips: HashMap::new(),
            indices: Indices::new(endpoints),
            slots: Slots::new(slots),
            mirror: Mirror::default(),
            next_id: 0,
            inherited_ids: HashMap::new(),
            inherited: HashMap::new(),
        }
    }

    /// Endpoints that an earlier agent had keep their index and generation, so that their flows go on.
    pub(super) fn inherit(&mut self, heritage: &Heritage) {
        self.inherited_ids = heritage.services.iter().copied().collect();
        self.inherited = heritage.endpoints.iter().copied().collect();
        let ids = heritage.services.iter().map(|(_, id)| *id);
        self.next_id = ids.chain(heritage.endpoints.iter().map(|((id, _), _)| *id)).max().unwrap_or(0);
        let taken = heritage.endpoints.iter().map(|(_, (index, _))| *index).collect();
        self.indices.inherit(Instant::now(), &taken, heritage.generation);
    }

    /// What the plans have not asked for is gone: these indices may be given to others. Says how many.
    pub(super) fn settle(&mut self) -> usize {
        self.inherited_ids.clear();
        let gone = std::mem::take(&mut self.inherited);
        for (index, _) in gone.values() {
            self.indices.give(Instant::now(), *index);
        }
        gone.len()
    }

    /// Makes the maps hold what `plan` says of the Service; `None` takes it out. What cannot be done leaves the state before it
    /// in place, goes on with the rest and is returned.
    pub(super) fn apply(
        &mut self,
        hops: &mut Hops,
        name: &ObjectName,
        plan: Option<&ServicePlan>,
    ) -> Result<(), KernelError> {
        let mut failed = None;
        let before = self.installed.remove(name).unwrap_or_default();
        let mut ports: HashMap<Key, Port> = before.ports.into_iter().map(|port| (port.key(), port)).collect();
        let mut gone: HashSet<IpAddr> = before.vips.iter().copied().collect();
        let frontends = plan.map_or(&[][..], |p| &p.frontends);
        let (mut seen, mut after) = (HashSet::with_capacity(frontends.len()), Vec::with_capacity(frontends.len()));
        for frontend in frontends {
            let key = key(frontend);
            if !seen.insert(key) {
                continue;
            }
            match self.install(hops, name, key, frontend, ports.remove(&key)) {
                Ok(port) => after.push(port),
                Err((error, old)) => {
                    after.extend(old.map(|port| *port));
                    failed.get_or_insert(error);
                }
            }
        }
        let views = plan.map_or(0, |p| p.views);
        let vips = plan.map_or(&[][..], |p| &p.vips);
        for vip in vips {
            gone.remove(vip);
            let frontends = plan.map_or(&[][..], |p| &p.frontends).iter().filter(|f| f.vip == *vip);
            let endpoints = u32::try_from(frontends.map(|f| f.endpoints.len()).sum::<usize>()).unwrap_or(u32::MAX);
            if let Err(error) = self.want_vip(name, *vip, Want { views, endpoints }) {
                failed.get_or_insert(error);
            }
        }
        for (_, port) in ports {
            if let Err(error) = self.uninstall(hops, name, port) {
                failed.get_or_insert(error);
            }
        }
        for vip in gone {
            if let Err(error) = self.drop_vip(name, vip) {
                failed.get_or_insert(error);
            }
        }
        if !vips.is_empty() || !after.is_empty() {
            self.installed.insert(name.clone(), Installed { vips: vips.into(), ports: after.into() });
        }
        failed.map_or(Ok(()), Err)
    }

    fn install(
        &mut self,
        hops: &mut Hops,
        name: &ObjectName,
        key: Key,
        frontend: &Frontend,
        old: Option<Port>,
    ) -> Result<Port, (KernelError, Option<Box<Port>>)> {
        let id = old.as_ref().map_or_else(
            || {
                self.inherited_ids.remove(&key).unwrap_or_else(|| {
                    self.next_id = self.next_id.checked_add(1).unwrap_or(1);
                    self.next_id
                })
            },
            |p| p.id,
        );
        // What is new is tracked, so that a failure can take it back.
        let mut fresh = Vec::new();
        match self.prepare(hops, id, frontend, old.as_ref(), &mut fresh) {
            Ok((indices, slots)) => {
                let value = Service {
                    views: frontend.views,
                    id,
                    flags: if frontend.dns { service::DNS } else { 0 },
                    slots: slots.start,
                    slot_count: slots.len,
                    affinity: frontend.affinity,
                    endpoints: u32::try_from(frontend.endpoints.len()).unwrap_or(u32::MAX),
                };
                let reused = old.as_ref().is_some_and(|p| p.slots == slots);
                if let Err(error) = self.swap(name, key, &value, old.as_ref()) {
                    if !reused {
                        self.slots.give(Instant::now(), slots);
                    }
                    self.forget(hops, fresh);
                    return Err((error, old.map(Box::new)));
                }
                if let Some(old) = old {
                    if !reused {
                        self.slots.give(Instant::now(), old.slots);
                    }
                    let gone = old.places().filter(|(e, _)| !has(frontend, e));
                    self.forget(hops, gone.map(|(e, index)| (e.addr, index)).collect());
                }
                Ok(Port { id, frontend: frontend.clone(), slots, indices, value })
            }
            Err(error) => {
                self.forget(hops, fresh);
                Err((error, old.map(Box::new)))
            }
        }
    }

    /// Endpoints and Maglev slots in their places, not yet read by anybody.
    fn prepare(
        &mut self,
        hops: &mut Hops,
        id: u32,
        frontend: &Frontend,
        old: Option<&Port>,
        fresh: &mut Vec<(IpAddr, u32)>,
    ) -> Result<(Box<[u32]>, Range), KernelError> {
        let now = Instant::now();
        let new = frontend.endpoints.len();
        let mut indices = Vec::with_capacity(new + frontend.draining.len());
        for e in frontend.endpoints.iter().chain(frontend.draining.iter()) {
            let index = match old.and_then(|p| p.index(e)) {
                Some(index) => index,
                None => {
                    let index = self.place_endpoint(hops, id, e, now)?;
                    fresh.push((e.addr, index));
                    index
                }
            };
            self.set_draining(index, indices.len() >= new)?;
            indices.push(index);
        }
        if let Some(old) = old
            && old.frontend.endpoints == frontend.endpoints
        {
            return Ok((indices.into(), old.slots));
        }
        let slots = self.place_table(&frontend.endpoints, &indices[..new], now)?;
        Ok((indices.into(), slots))
    }

    /// Whether an endpoint gets no new flows: a client's affinity must not bring it one.
    fn set_draining(&mut self, index: u32, draining: bool) -> Result<(), KernelError> {
        let Some(value) = self.mirror.get_mut(index) else { return Ok(()) };
        let flags = if draining { value.flags | endpoint::DRAINING } else { value.flags & !endpoint::DRAINING };
        if flags != value.flags {
            value.flags = flags;
            let put = self.maps.endpoints.put(&index, value);
            put.map_err(|source| KernelError::map(self.maps.endpoints.name(), source))?;
        }
        Ok(())
    }

    fn place_endpoint(
        &mut self,
        hops: &mut Hops,
        id: u32,
        e: &plan::Endpoint,
        now: Instant,
    ) -> Result<u32, KernelError> {
        let (index, generation) = self
            .inherited
            .remove(&(id, *e))
            .or_else(|| self.indices.take(now))
            .ok_or(KernelError::Full { map: self.maps.endpoints.name() })?;
        let way = match hops.use_for_endpoint(e.addr) {
            Ok(way) => way,
            Err(source) => {
                self.indices.give(now, index);
                return Err(KernelError::Netlink { what: format!("the route to endpoint {}", e.addr), source });
            }
        };
        let mut value = Endpoint {
            addr: family::sixteen(e.addr),
            port: e.port.to_be_bytes(),
            flags: if e.addr.is_ipv6() { endpoint::V6 } else { 0 },
            generation,
            service: id,
            ..Endpoint::zeroed()
        };
        point(&mut value, way);
        if let Err(source) = self.maps.endpoints.put(&index, &value) {
            self.indices.give(now, index);
            hops.release_endpoint(e.addr);
            return Err(KernelError::map(self.maps.endpoints.name(), source));
        }
        self.mirror.insert(index, e.addr, value);
        Ok(index)
    }

    fn place_table(
        &mut self,
        endpoints: &[plan::Endpoint],
        indices: &[u32],
        now: Instant,
    ) -> Result<Range, KernelError> {
        if endpoints.is_empty() {
            return Ok(Range::default());
        }
        let wanted = maglev::table_size(endpoints.len());
        let smaller = SMALLER_TABLES.into_iter().filter(|s| *s < wanted && *s as usize >= endpoints.len());
        let slots = std::iter::once(wanted)
            .chain(smaller)
            .find_map(|len| self.slots.take(now, len))
            .ok_or(KernelError::Full { map: self.maps.maglev.name() })?;
        let keys: Vec<_> = endpoints.iter().map(|e| maglev::key(e.addr, e.port)).collect();
        let values: Vec<u32> = maglev::table(&keys, slots.len)
            .into_iter()
            .map(|n| indices.get(n as usize).copied().unwrap_or_default())
            .collect();
        if let Err(source) = self.maps.maglev.fill(slots.start, &values) {
            self.slots.give(now, slots);
            return Err(KernelError::map(self.maps.maglev.name(), source));
        }
        Ok(slots)
    }

    /// The atomic step: the value that packets read.
    fn swap(&mut self, name: &ObjectName, key: Key, value: &Service, old: Option<&Port>) -> Result<(), KernelError> {
        let owners = self.owners.entry(key).or_default();
        let known = owners.contains(name);
        let active = !known || owners.last() == Some(name);
        let same = known && old.is_some_and(|p| p.value == *value);
        if active
            && !same
            && let Err(error) = self.maps.services.put(&map_key(key), value)
        {
            if owners.is_empty() {
                self.owners.remove(&key);
            }
            return Err(error);
        }
        if !known {
            // Nearly always there is one.
            owners.reserve_exact(1);
            owners.push(name.clone());
        }
        Ok(())
    }

    fn uninstall(&mut self, hops: &mut Hops, name: &ObjectName, port: Port) -> Result<(), KernelError> {
        let key = port.key();
        let mut result = Ok(());
        if let Some(owners) = self.owners.get_mut(&key) {
            let active = owners.last() == Some(name);
            owners.retain(|o| o != name);
            let heir = owners.last().and_then(|o| self.installed.get(o));
            let heir = heir.and_then(|i| i.ports.iter().find(|port| port.key() == key));
            if active {
                result = match heir {
                    Some(heir) => self.maps.services.put(&map_key(key), &heir.value),
                    None => self.maps.services.remove(&map_key(key)).map(drop),
                };
            }
            if self.owners.get(&key).is_some_and(Vec::is_empty) {
                self.owners.remove(&key);
            }
        }
        self.slots.give(Instant::now(), port.slots);
        self.forget(hops, port.places().map(|(e, index)| (e.addr, index)).collect());
        result
    }

    /// Endpoints that nobody refers to any more: their flows end with their next packet.
    fn forget(&mut self, hops: &mut Hops, gone: Vec<(IpAddr, u32)>) {
        let now = Instant::now();
        for (addr, index) in gone {
            // Only the generation changes: a packet that has just read it may still read the rest.
            let value = Endpoint { generation: 0, ..self.mirror.get(index).copied().unwrap_or(Endpoint::zeroed()) };
            if let Err(error) = self.maps.endpoints.put(&index, &value) {
                // An array element always exists; the index is not reused, so nobody can mistake it.
                tracing::error!(index, %addr, %error, "an endpoint that is gone cannot be taken out of the datapath");
                continue;
            }
            self.mirror.remove(index, addr);
            hops.release_endpoint(addr);
            self.indices.give(now, index);
        }
    }

    /// The way to an address changed: its endpoints follow.
    pub(super) fn moved(&mut self, addr: IpAddr, way: Way) -> Result<(), KernelError> {
        for index in self.mirror.of(addr).collect::<Vec<_>>() {
            let Some(value) = self.mirror.get_mut(index) else { continue };
            point(value, way);
            self.maps
                .endpoints
                .put(&index, value)
                .map_err(|source| KernelError::map(self.maps.endpoints.name(), source))?;
        }
        Ok(())
    }

    fn want_vip(&mut self, name: &ObjectName, vip: IpAddr, want: Want) -> Result<(), KernelError> {
        let wants = self.vips.entry(vip).or_default();
        match wants.iter_mut().find(|(n, _)| n == name) {
            Some((_, known)) if *known == want => return Ok(()),
            Some((_, known)) => *known = want,
            None => {
                wants.reserve_exact(1);
                wants.push((name.clone(), want));
            }
        }
        self.write_vip(vip)
    }

    fn drop_vip(&mut self, name: &ObjectName, vip: IpAddr) -> Result<(), KernelError> {
        if let Some(wants) = self.vips.get_mut(&vip) {
            wants.retain(|(n, _)| n != name);
            if wants.is_empty() {
                self.vips.remove(&vip);
            }
        }
        self.write_vip(vip)
    }

    /// The VIP's own entry and, outside the service CIDRs, its claim.
    fn write_vip(&mut self, vip: IpAddr) -> Result<(), KernelError> {
        let key = family::service(vip, 0, 0);
        match self.vips.get(&vip) {
            Some(wants) => {
                let views = wants.iter().fold(0, |all, (_, want)| all | want.views);
                let endpoints = wants.iter().fold(0u32, |all, (_, want)| all.saturating_add(want.endpoints));
                self.maps.services.put(&key, &Service { views, endpoints, ..Service::zeroed() })?;
                self.claims.set_vip(vip, true)?;
            }
            None => {
                self.claims.set_vip(vip, false)?;
                self.maps.services.remove(&key)?;
            }
        }
        Ok(())
    }

    /// What is claimed.
    pub(super) const fn claims(&mut self) -> &mut Claims {
        &mut self.claims
    }

    /// Addresses of the node's own that a service CIDR contains, with that CIDR.
    pub(super) fn spared(&self) -> Vec<(IpAddr, IpNet)> {
        self.claims.spared()
    }

    pub(super) const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Counts, for people.
    pub(super) fn totals(&self) -> Totals {
        Totals {
            services: self.installed.len(),
            ports: self.installed.values().map(|i| i.ports.len()).sum(),
            endpoints: self.mirror.len(),
        }
    }

    /// Every Service port, sorted.
    pub(super) fn list(&self, hops: &Hops) -> Vec<ServiceInfo> {
        let mut list = Vec::new();
        for (name, installed) in &self.installed {
            let mut ports: Vec<_> = installed.ports.iter().map(|port| (port.key(), port)).collect();
            ports.sort_by_key(|(key, _)| *key);
            for (key, port) in ports {
                let active = self.owners.get(&key).and_then(|o| o.last()) == Some(name);
                let mut places: Vec<_> = port.places().collect();
                places.sort_unstable();
                list.push(ServiceInfo {
                    namespace: name.namespace.to_string(),
                    name: name.name.to_string(),
                    vip: key.0,
                    port: key.1,
                    protocol: key.2.name(),
                    views: port.frontend.views,
                    id: port.id,
                    active,
                    dns: port.frontend.dns,
                    affinity: port.frontend.affinity,
                    slots: port.slots.len,
                    endpoints: places.iter().map(|(e, index)| self.backend(hops, port, e, *index)).collect(),
                });
            }
        }
        list
    }

    fn backend(&self, hops: &Hops, port: &Port, e: &plan::Endpoint, index: u32) -> BackendInfo {
        let way = hops.way(e.addr);
        let hop = way.and_then(|w| hops.value(w.hop));
        BackendInfo {
            addr: e.addr,
            port: e.port,
            draining: port.frontend.endpoints.binary_search(e).is_err(),
            local: way.is_some_and(|w| w.local),
            interface: way.and_then(|w| hops.link(w.oif)).map(|l| l.name.clone()),
            resolved: hop.is_some_and(|h| h.flags & nexthop::RESOLVED != 0),
            generation: self.mirror.get(index).map_or(0, |v| v.generation),
        }
    }
}

fn point(value: &mut Endpoint, way: Way) {
    value.nexthop = way.hop;
    if way.local {
        value.flags |= endpoint::LOCAL;
    } else {
        value.flags &= !endpoint::LOCAL;
    }
}

impl KernelError {
    /// A map refused a write.
    pub(super) fn map(map: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => Self::Full { map },
            _ => Self::Map { map, source },
        }
    }
}
