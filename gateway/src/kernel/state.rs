//! The state behind [`super::Kernel`]: one lock for what a change of the cluster or of the network touches; flows, answers and
//! counters are beside it, because reading them takes long or happens often.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use aya::Ebpf;
use gateway_common::maps::Config;
use ipnet::IpNet;

use super::{
    Attachment, Counters, Explanation, FlowInfo, KernelError, Question, ServiceInfo, Settings, Totals,
    answers::Answers,
    attach::{Attacher, Role},
    contents::{self, Entry},
    family::{self, Pair},
    hops::{Affected, Hops},
    load::{self, Capacities},
    netlink::{Link, Neighbour, Netlink},
    pin::Pins,
    queries::Queries,
    readback::{self, PerCpuCounters},
    services::{Maps, Services},
    sweep::{Clock, FlowMaps, Sweep, Swept},
    sysctl::Sysctls,
    table::Table,
};
use crate::{dns::AnswerStore, model::ObjectName, plan::ServicePlan};

/// What the threads and the callers share.
#[derive(Debug)]
pub(super) struct Shared {
    settings: Settings,
    state: Mutex<State>,
    flows: FlowMaps,
    hz: u32,
    flow_count: AtomicUsize,
    answers: Arc<Answers>,
    counters: PerCpuCounters,
}

impl Shared {
    pub(super) fn load(settings: &Settings) -> Result<Self, KernelError> {
        let open = |source| KernelError::Netlink { what: "opening a socket".into(), source };
        let mut netlink = Netlink::open().map_err(open)?;
        let uplinks = load::uplinks(settings, &mut netlink)?;
        let own = load::uplink_addresses(&uplinks, &mut netlink)?;
        let hz = load::hz()?;
        let config = load::config(settings, &uplinks, &own, hz)?;
        let pins = settings.pin.as_deref().map(Pins::open).transpose()?;
        let loaded = Self::load_with(settings, netlink, uplinks, own, config, pins.clone());
        if loaded.is_err()
            && let Some(pins) = pins
        {
            pins.remove_idle();
        }
        loaded
    }

    fn load_with(
        settings: &Settings,
        netlink: Netlink,
        uplinks: Vec<String>,
        own: Vec<IpAddr>,
        config: Config,
        pins: Option<Pins>,
    ) -> Result<Self, KernelError> {
        let heritage = pins.as_ref().map(Pins::heritage).transpose()?.unwrap_or_default();
        let sizes = Capacities::of(settings).with(&heritage);
        // Secret: who knows them can make names collide.
        let keys = gateway_common::dns::hash::Keys::from_seed(rand::random());
        let mut ebpf = load::load(settings, &sizes, pins.as_ref(), &keys)?;
        let config_map: Table<u32, Config> = Table::open(&ebpf, "CONFIG")?;
        config_map.put(&0, &config).map_err(|source| KernelError::map("CONFIG", source))?;
        load::write_views(&ebpf, &settings.views)?;
        let endpoints = Table::open(&ebpf, "ENDPOINTS")?;
        let maps = Maps {
            services: Pair::open(&ebpf, "SERVICES4", "SERVICES6")?,
            maglev: Table::open(&ebpf, "MAGLEV")?,
            endpoints: endpoints.clone(),
            claims: Pair::open(&ebpf, "CLAIMS4", "CLAIMS6")?,
        };
        let mut services = Services::new(maps, sizes.endpoints, sizes.maglev);
        services.inherit(&heritage);
        services.claims().set_cidrs(&settings.claims)?;
        let nexthops = Table::open(&ebpf, "NEXTHOPS")?;
        let mut hops = Hops::new(netlink, nexthops, sizes.nexthops)
            .map_err(|source| KernelError::Netlink { what: "the list of interfaces".into(), source })?;
        hops.inherit(&heritage).map_err(|source| KernelError::map("NEXTHOPS", source))?;
        let flows = FlowMaps { v4: Table::open(&ebpf, "FLOWS4")?, v6: Table::open(&ebpf, "FLOWS6")?, endpoints };
        let answers = Arc::new(Answers::open(&ebpf, keys)?);
        let counters = PerCpuCounters::open(&ebpf)?;
        let clock = Table::open(&ebpf, "CLOCK")?;
        let client_hops = Pair::open(&ebpf, "CLIENT_HOPS4", "CLIENT_HOPS6")?;
        let vlans = Table::open(&ebpf, "VLANS")?;
        let queries = if settings.dns_log > 0 { Some(Queries::take(&mut ebpf)?) } else { None };
        // The last step that can fail, so that a failure leaves nothing to put back.
        let sysctls = Sysctls::set(&settings.snat_ports, settings.has_clients(true))?;
        let state = State {
            attacher: Attacher::new(settings.mode, pins.clone(), vlans),
            pins,
            settings: settings.clone(),
            ebpf,
            queries,
            hops,
            services,
            clock,
            client_hops,
            clients: HashMap::new(),
            config_map,
            hz: config.hz,
            config,
            uplinks,
            own,
            sysctls: Some(sysctls),
            attached: false,
        };
        Ok(Self {
            settings: settings.clone(),
            state: Mutex::new(state),
            flows,
            hz: config.hz,
            flow_count: AtomicUsize::new(0),
            answers,
            counters,
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn answers(&self) -> Arc<dyn AnswerStore> {
        Arc::clone(&self.answers) as Arc<dyn AnswerStore>
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters.read()
    }

    #[cfg(test)]
    pub(super) fn answer_maps(
        &self,
    ) -> (
        gateway_common::dns::hash::Keys,
        Table<gateway_common::maps::DnsHash, gateway_common::maps::DnsEntry>,
        Table<u32, gateway_common::maps::DnsLarge>,
    ) {
        self.answers.maps()
    }

    #[cfg(test)]
    pub(super) const fn flow_maps(&self) -> &FlowMaps {
        &self.flows
    }

    pub(super) fn clock(&self) -> Result<Clock, KernelError> {
        let now = self.state().jiffies()?;
        Ok(Clock { now, hz: self.hz })
    }

    pub(super) fn flows(&self, limit: usize) -> Result<Vec<FlowInfo>, KernelError> {
        let clock = self.clock()?;
        readback::flows(&self.flows, clock, limit)
    }

    pub(super) fn contents(&self) -> Result<Vec<Entry>, KernelError> {
        // Reading takes long: changes must not wait for it.
        let maps = self.state().maps().clone();
        contents::read(&maps)
    }

    pub(super) fn explain(&self, question: &Question, views: &[String]) -> Result<Explanation, KernelError> {
        let clock = self.clock()?;
        let state = self.state();
        match (&question.name, question.to) {
            (Some(name), _) => {
                state.explain_name(|key| self.answers.entry(key), &self.answers.zones(), question, name, views)
            }
            (None, Some(to)) => state.explain_packet(&self.flows, clock, question, to, views),
            (None, None) => Ok(Explanation::default().end("passed", "neither an address nor a name is asked about")),
        }
    }

    pub(super) fn flow_count(&self) -> usize {
        self.flow_count.load(Ordering::Relaxed)
    }

    pub(super) fn sweep(&self) -> Result<Swept, KernelError> {
        let clock = self.clock()?;
        let hop_of = self.state().clients.clone();
        let swept = Sweep { timeouts: &self.settings.timeouts, clock, hop_of: &hop_of }.run(&self.flows)?;
        self.flow_count.store(swept.flows, Ordering::Relaxed);
        self.state().take_clients(&swept)?;
        Ok(swept)
    }
}

/// What the lock is for.
#[derive(Debug)]
pub(super) struct State {
    // Before `ebpf`: links go before the programs they hold.
    pub(super) attacher: Attacher,
    pins: Option<Pins>,
    settings: Settings,
    pub(super) ebpf: Ebpf,
    /// Until somebody takes it.
    pub(super) queries: Option<Queries>,
    pub(super) hops: Hops,
    pub(super) services: Services,
    clock: Table<u32, u64>,
    client_hops: Pair<[u8; 4], [u8; 16], u32>,
    clients: HashMap<IpAddr, u32>,
    pub(super) config_map: Table<u32, Config>,
    config: Config,
    hz: u32,
    uplinks: Vec<String>,
    own: Vec<IpAddr>,
    sysctls: Option<Sysctls>,
    attached: bool,
}

fn next_hops(source: std::io::Error) -> KernelError {
    KernelError::Netlink { what: "routes and neighbours".into(), source }
}

/// Every address by which the node is reached on its networks. Those of the loopback device, whose index is 1, are not among them: a
/// service CIDR that was put there must not bring clients to the node's own daemons.
fn own_addresses(netlink: &mut Netlink) -> Result<impl Iterator<Item = IpAddr>, KernelError> {
    let all = netlink.addresses().map_err(|source| KernelError::Netlink { what: "the addresses".into(), source })?;
    Ok(all.into_iter().filter(|(interface, _)| *interface != 1).map(|(_, addr)| addr))
}

impl State {
    fn jiffies(&mut self) -> Result<u64, KernelError> {
        load::jiffies(&mut self.ebpf, &self.clock).map_err(|source| KernelError::Map { map: "CLOCK", source })
    }

    pub(super) fn apply(&mut self, name: &ObjectName, plan: Option<&ServicePlan>) -> Result<(), KernelError> {
        let frontends = plan.map_or(&[][..], |plan| &plan.frontends);
        self.hops
            .look_ahead(frontends.iter().flat_map(|f| f.endpoints.iter().chain(f.draining.iter())).map(|e| e.addr));
        let result = self.services.apply(&mut self.hops, name, plan);
        self.hops.forget_ahead();
        self.follow_endpoints();
        result
    }

    pub(super) fn set_claims(&mut self, cidrs: &[IpNet]) -> Result<(), KernelError> {
        self.services.claims().set_cidrs(cidrs)
    }

    /// Addresses of the node's own in a service CIDR, with that CIDR.
    pub(super) fn spared(&self) -> Vec<(IpAddr, IpNet)> {
        self.services.spared()
    }

    pub(super) fn services(&self) -> Vec<ServiceInfo> {
        self.services.list(&self.hops)
    }

    pub(super) fn totals(&self) -> Totals {
        self.services.totals()
    }

    pub(super) fn attachments(&self) -> Vec<Attachment> {
        self.attacher.list()
    }

    pub(super) fn uplinks(&self) -> &[String] {
        &self.uplinks
    }

    pub(super) fn uplink_addresses(&self) -> &[IpAddr] {
        &self.own
    }

    pub(super) fn dns_addresses(&self) -> Vec<IpAddr> {
        load::dns_addresses(&self.settings, &self.own)
    }

    /// Attaches all that has to be there, or nothing.
    pub(super) fn attach(&mut self) -> Result<(), KernelError> {
        // With the VIPs known: kube-proxy's IPVS mode makes each of them an address of the node's own.
        let own = own_addresses(self.hops.netlink())?;
        self.services.claims().set_own(own)?;
        // Before the programs: an agent that is killed in between leaves maps in which its successor finds every flow's endpoint.
        if let Some(pins) = &self.pins {
            pins.pin_maps(&self.ebpf)?;
        }
        let result = self.attach_named();
        if result.is_err() {
            self.take_off();
            return result;
        }
        self.attached = true;
        self.follow_endpoints();
        let gone = self.services.settle();
        if let Some(pins) = &self.pins {
            pins.tidy(&self.attacher.pinned());
            tracing::info!(gone, "the datapath is pinned; endpoints that went while no agent ran are out of it");
        }
        self.allow_frames()
    }

    /// Whether the datapath outlives the agent.
    pub(super) fn is_pinned(&self) -> bool {
        self.pins.as_ref().is_some_and(Pins::running)
    }

    /// Leaves everything to a later agent.
    pub(super) fn let_go(&mut self) {
        self.attached = false;
        self.attacher.let_go();
        self.sysctls = None;
    }

    fn attach_named(&mut self) -> Result<(), KernelError> {
        let named = |key, names: &[String], hops: &Hops| -> Result<Vec<Link>, KernelError> {
            let find = |name: &String| {
                hops.link_named(name).cloned().ok_or_else(|| KernelError::NoInterface {
                    key,
                    name: name.clone(),
                    known: hops.links().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", "),
                })
            };
            names.iter().map(find).collect()
        };
        for link in named("uplinks", &self.uplinks, &self.hops)? {
            let around = self.hops.around(&link);
            self.attacher.attach(&mut self.ebpf, &link, &around, Role::Uplink)?;
        }
        for link in named("clusterInterfaces", &self.settings.cluster_interfaces, &self.hops)? {
            let around = self.hops.around(&link);
            self.attacher.attach(&mut self.ebpf, &link, &around, Role::Cluster)?;
        }
        Ok(())
    }

    /// Attaches where endpoints are reached, and uplinks that came back. Failures are logged: the rest has to go on.
    fn follow_endpoints(&mut self) {
        if !self.attached {
            return;
        }
        let missing = |role: Role, link: &Link, attacher: &Attacher| !attacher.has(link.index, role);
        let uplinks: Vec<Link> = self
            .uplinks
            .iter()
            .filter_map(|name| self.hops.link_named(name))
            .filter(|l| missing(Role::Uplink, l, &self.attacher))
            .cloned()
            .collect();
        let named = &self.settings.cluster_interfaces;
        let clusters: Vec<Link> = if named.is_empty() {
            self.hops.endpoint_links().filter(|l| missing(Role::Cluster, l, &self.attacher)).cloned().collect()
        } else {
            let there = named.iter().filter_map(|name| self.hops.link_named(name));
            there.filter(|l| missing(Role::Cluster, l, &self.attacher)).cloned().collect()
        };
        let mut new = false;
        for (role, links) in [(Role::Uplink, uplinks), (Role::Cluster, clusters)] {
            for link in links {
                let around = self.hops.around(&link);
                new |= self.attacher.attach_quietly(&mut self.ebpf, &link, &around, role);
            }
        }
        if new && let Err(error) = self.allow_frames() {
            tracing::warn!("{error}");
        }
    }

    /// Tells the datapath into which interfaces XDP may redirect.
    fn allow_frames(&mut self) -> Result<(), KernelError> {
        for role in [Role::Uplink, Role::Cluster] {
            for index in self.attacher.indices(role) {
                self.hops.set_xdp(index, self.attacher.takes_frames(index)).map_err(next_hops)?;
            }
        }
        Ok(())
    }

    /// Programs off.
    pub(super) fn take_off(&mut self) {
        self.attached = false;
        self.attacher.clear();
    }

    /// Sysctls back.
    pub(super) fn restore(&mut self) -> Result<(), KernelError> {
        if let Some(pins) = &self.pins {
            pins.remove_idle();
        }
        self.sysctls.take().map_or(Ok(()), |sysctls| sysctls.restore())
    }

    /// A link came, changed or went; whether routes may have changed with it.
    pub(super) fn link_changed(&mut self, index: u32, link: Option<Link>) -> Result<bool, KernelError> {
        if link.is_none() && self.attacher.forget(index) {
            tracing::info!(index, "an attached interface is gone");
        }
        let routes = self.hops.link_changed(index, link).map_err(next_hops)?;
        self.follow_endpoints();
        Ok(routes)
    }

    pub(super) fn neighbour_changed(&mut self, n: &Neighbour) -> Result<(), KernelError> {
        self.hops.neighbour_changed(n).map_err(next_hops)
    }

    /// Events were lost: links and neighbours anew.
    pub(super) fn resync(&mut self) -> Result<(), KernelError> {
        self.hops.resync().map_err(next_hops)?;
        let gone: Vec<u32> = [Role::Uplink, Role::Cluster]
            .into_iter()
            .flat_map(|role| self.attacher.indices(role))
            .filter(|index| self.hops.link(*index).is_none())
            .collect();
        for index in gone {
            self.attacher.forget(index);
        }
        self.refresh_config()?;
        self.follow_endpoints();
        Ok(())
    }

    /// Addresses of this node changed: claims and `CONFIG` follow.
    pub(super) fn refresh_config(&mut self) -> Result<(), KernelError> {
        let before = self.services.spared();
        let all = own_addresses(self.hops.netlink())?;
        self.services.claims().set_own(all)?;
        for (addr, cidr) in self.services.spared().iter().filter(|spared| !before.contains(spared)) {
            tracing::info!(%addr, %cidr, "a service CIDR contains an address that is the node's own now: it stays the node's");
        }
        let own = load::uplink_addresses(&self.uplinks, self.hops.netlink())?;
        if own == self.own {
            return Ok(());
        }
        self.own = own;
        // An uplink that has lost its address for now keeps the source that flows have been begun with.
        let config = match load::config(&self.settings, &self.uplinks, &self.own, self.hz) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!("{error}; the datapath goes on with the addresses it had");
                return Ok(());
            }
        };
        if config != self.config {
            tracing::info!(addresses = ?self.own, "the addresses of the uplinks have changed");
            self.config_map.put(&0, &config).map_err(|source| KernelError::map("CONFIG", source))?;
            self.config = config;
        }
        Ok(())
    }

    pub(super) fn affected(&self, affected: &Affected) -> Vec<IpAddr> {
        self.hops.affected(affected)
    }

    /// Looks routes up again; endpoints and clients follow.
    pub(super) fn reroute(&mut self, addresses: &[IpAddr]) -> Result<(), KernelError> {
        self.hops.look_again(addresses);
        let result = self.reroute_each(addresses);
        self.hops.forget_ahead();
        result
    }

    fn reroute_each(&mut self, addresses: &[IpAddr]) -> Result<(), KernelError> {
        for addr in addresses {
            let Some(way) = self.hops.reroute(*addr).map_err(next_hops)? else { continue };
            self.services.moved(*addr, way)?;
            if let Some(hop) = self.clients.get_mut(addr) {
                *hop = way.hop;
                self.client_hops.put(&family::address(*addr), &way.hop)?;
            }
        }
        Ok(())
    }

    /// After a change of routes: interfaces that are needed now.
    pub(super) fn routes_settled(&mut self, affected: &Affected) -> Result<(), KernelError> {
        let default_changed = match affected {
            Affected::All => true,
            Affected::Prefixes(list) => list.iter().any(|p| p.prefix_len() == 0),
        };
        if default_changed && self.settings.uplinks.is_empty() {
            let links: Vec<Link> = self.hops.links().cloned().collect();
            for name in load::default_uplinks(self.hops.netlink(), &links)? {
                if !self.uplinks.contains(&name) {
                    self.uplinks.push(name);
                }
            }
        }
        self.follow_endpoints();
        Ok(())
    }

    /// Every second; every so often all neighbours in use are confirmed.
    pub(super) fn tick(&mut self, confirm: bool) -> Result<(), KernelError> {
        self.hops.ask_for_missing().map_err(next_hops)?;
        if confirm {
            self.hops.confirm().map_err(next_hops)?;
        }
        Ok(())
    }

    pub(super) const fn maps(&self) -> &Maps {
        self.services.maps()
    }

    #[cfg(test)]
    pub(super) const fn next_hops(&self) -> &Table<u32, gateway_common::maps::NextHop> {
        self.hops.table()
    }

    #[cfg(test)]
    pub(super) fn client_hop(&self, client: IpAddr) -> Option<u32> {
        self.client_hops.get(&family::address(client)).ok().flatten()
    }

    /// Next hops for clients that have flows, and none for those that have not any more.
    fn take_clients(&mut self, swept: &Swept) -> Result<(), KernelError> {
        let gone: Vec<IpAddr> = self.clients.keys().filter(|c| !swept.clients.contains(*c)).copied().collect();
        for addr in gone {
            self.clients.remove(&addr);
            self.client_hops.remove(&family::address(addr))?;
            self.hops.release_client(addr);
        }
        let new: HashSet<IpAddr> = swept.clients.iter().filter(|c| !self.clients.contains_key(*c)).copied().collect();
        for addr in new {
            let way = self.hops.use_for_client(addr).map_err(next_hops)?;
            self.clients.insert(addr, way.hop);
            if way.hop != 0 {
                self.client_hops.put(&family::address(addr), &way.hop)?;
            }
        }
        self.hops.collect(&swept.hops).map_err(next_hops)
    }
}
