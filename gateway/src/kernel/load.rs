//! From settings to loaded programs and filled maps: checks that say what to do, map sizes, `CONFIG`, `VIEWS4/6`.

use std::{
    io,
    net::IpAddr,
    panic::resume_unwind,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use aya::{Ebpf, EbpfLoader, programs::Program};
use bytemuck::Zeroable as _;
use gateway_common::{
    dns::{hash::Keys, log},
    limits::{MAX_DNS_ADDRESSES, capacity},
    maps::{Config, PrefixKey, View, ViewList, ViewPrefix, config},
};
use ipnet::{IpNet, Ipv4Net};
use nix::time::{ClockId, clock_getres};

use super::{
    KernelError, Mode, MssClamp, OBJECT, Settings,
    attach::{TC_PROGRAMS, XDP_PROGRAMS, tc_program, xdp_program},
    family::{self, Pair},
    netlink::{Kind, Link, Netlink},
    pin::{Heritage, Pins},
    table::{Table, map_data},
};

/// ICMP errors and resets a second that one source gets; a port scan sees them all, a flood does not.
const ICMP_RATE: u32 = 100;
/// Frequencies that kernels are built with.
const KNOWN_HZ: [u32; 4] = [100, 250, 300, 1000];

/// Map capacities for these settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacities {
    pub(super) services: u32,
    pub(super) endpoints: u32,
    pub(super) maglev: u32,
    pub(super) nexthops: u32,
    pub(super) answers: u32,
    /// Records of `FLOWS4` and of `FLOWS6`: the table of a family without clients needs no memory.
    pub(super) flows: [u32; 2],
}

/// Entries of a map that nothing is put into.
const UNUSED: u32 = 64;
/// Bytes of a ring that nothing is put into; the loader makes whole pages of them.
const LEAST_RING: u32 = 4096;
/// Records of the flow table of a family in which nobody is a client.
const NO_CLIENTS: u32 = 64;

impl Capacities {
    /// Twice what the cluster has now, and never less than the defaults that cost little.
    pub(super) fn of(settings: &Settings) -> Self {
        let sizes = settings.sizes;
        // Two records a flow.
        let records = settings.flows.saturating_mul(2).max(2);
        let double = |n: u32, least: u32| n.saturating_mul(2).max(least).min(1 << 24);
        // A port with few endpoints takes 1,009 slots, larger ones about 100 an endpoint; half the entries are VIPs.
        let slots = u64::from(sizes.services) * 768 + u64::from(sizes.endpoints) * 128;
        let maglev = u32::try_from(slots.clamp(u64::from(capacity::MAGLEV), 1 << 26)).unwrap_or(capacity::MAGLEV);
        Self {
            services: double(sizes.services, capacity::SERVICES),
            endpoints: double(sizes.endpoints, capacity::ENDPOINTS),
            maglev,
            nexthops: capacity::NEXTHOPS.max(sizes.endpoints.min(1 << 20)),
            answers: double(sizes.answers, capacity::ANSWERS),
            flows: [false, true].map(|v6| if settings.has_clients(v6) { records } else { records.min(NO_CLIENTS) }),
        }
    }

    /// With room for the indices that are taken over.
    pub(super) fn with(self, heritage: &Heritage) -> Self {
        Self {
            endpoints: self.endpoints.max(heritage.last_endpoint().saturating_add(1)),
            nexthops: self.nexthops.max(heritage.last_hop().saturating_add(1)),
            ..self
        }
    }
}

/// Whether the kernel can describe its types.
pub(super) fn check_btf() -> Result<(), KernelError> {
    if Path::new("/sys/kernel/btf/vmlinux").exists() { Ok(()) } else { Err(KernelError::NoBtf) }
}

/// Loads maps and programs; nothing is attached yet.
pub(super) fn load(
    settings: &Settings,
    sizes: &Capacities,
    pins: Option<&Pins>,
    keys: &Keys,
) -> Result<Ebpf, KernelError> {
    check_btf()?;
    // Kernels before 5.11 count maps against this limit; without the right to raise it, loading says so itself.
    let raised = nix::sys::resource::setrlimit(
        nix::sys::resource::Resource::RLIMIT_MEMLOCK,
        libc::RLIM_INFINITY,
        libc::RLIM_INFINITY,
    );
    if let Err(error) = raised {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    }
    let (limit, share) = (settings.dns_limit.limit(), log::share(settings.dns_log));
    let mut loader = EbpfLoader::new();
    loader
        .override_global("DNS_KEYS", &keys.0[..], true)
        .override_global("DNS_LIMIT", bytemuck::bytes_of(&limit), true)
        .override_global("DNS_LOG_SHARE", &share, true)
        .map_max_entries("SERVICES4", sizes.services)
        .map_max_entries("SERVICES6", sizes.services)
        .map_max_entries("ENDPOINTS", sizes.endpoints)
        .map_max_entries("MAGLEV", sizes.maglev)
        .map_max_entries("NEXTHOPS", sizes.nexthops)
        .map_max_entries("ANSWERS", sizes.answers)
        .map_max_entries("LARGE", sizes.answers)
        .map_max_entries("DNS_METERS", if limit.rate > 0 { capacity::DNS_METERS } else { UNUSED })
        .map_max_entries("DNS_LOG", if share == log::NONE { LEAST_RING } else { capacity::DNS_LOG })
        .map_max_entries("FLOWS4", sizes.flows[0])
        .map_max_entries("FLOWS6", sizes.flows[1]);
    for (name, records) in ["TWINS4", "TWINS6"].into_iter().zip(sizes.flows) {
        // Programs look for a place among all of them; one that is not there keeps no hint.
        if records <= NO_CLIENTS {
            loader.map_max_entries(name, 1);
        }
    }
    if let Some(pins) = pins {
        for ((name, path), records) in pins.shared().into_iter().zip(sizes.flows) {
            pins.make_anew(name, records)?;
            loader.map_pin_path(name, path);
        }
    }
    let mut ebpf = loader.load(OBJECT).map_err(KernelError::object)?;
    for (name, records) in ["FLOWS4", "FLOWS6"].into_iter().zip(sizes.flows) {
        let there = ebpf.map(name).and_then(map_data).and_then(|data| data.info().ok()).map(|info| info.max_entries());
        if let Some(there) = there.filter(|there| *there != records) {
            tracing::warn!(
                table = name,
                room = there / 2,
                wanted = records / 2,
                "datapath.flows: the pinned flow table keeps its size; for another one stop the agent and run `gateway detach` first"
            );
        }
    }
    let xdp = XDP_PROGRAMS.into_iter().filter(|name| settings.mode != Mode::Tc || *name == "clock");
    load_programs(&mut ebpf, xdp.collect(), TC_PROGRAMS.into())?;
    Ok(ebpf)
}

/// Has the kernel verify and compile these programs, on every CPU: that is most of what an agent's start takes.
fn load_programs(ebpf: &mut Ebpf, xdp: Vec<&'static str>, tc: Vec<&'static str>) -> Result<(), KernelError> {
    // One that is not there, or of another type, is named.
    for name in &xdp {
        xdp_program(ebpf, name).map_err(|error| KernelError::program(name, error))?;
    }
    for name in &tc {
        tc_program(ebpf, name).map_err(|error| KernelError::program(name, error))?;
    }
    let named = |name: &str| xdp.iter().chain(&tc).copied().find(|wanted| *wanted == name);
    let wanted: Vec<_> =
        ebpf.programs_mut().filter_map(|(name, program)| named(name).map(|name| (name, program))).collect();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(wanted.len());
    let queue = Mutex::new(wanted);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let load = || {
        while let Some((name, program)) = next() {
            let loaded = match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => Ok(()),
            };
            loaded.map_err(|error| KernelError::program(name, error))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let loaders: Vec<_> = (0..threads).map(|_| scope.spawn(load)).collect();
        loaders.into_iter().try_for_each(|loader| loader.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Names of the uplinks: as configured (each must exist), or those of the default routes.
pub(super) fn uplinks(settings: &Settings, netlink: &mut Netlink) -> Result<Vec<String>, KernelError> {
    let ask = |source| KernelError::Netlink { what: "the list of interfaces".into(), source };
    let links = netlink.links().map_err(ask)?;
    for (key, names) in [("uplinks", &settings.uplinks), ("clusterInterfaces", &settings.cluster_interfaces)] {
        for name in names {
            check_interface(key, name, &links)?;
        }
    }
    if !settings.uplinks.is_empty() {
        return Ok(settings.uplinks.clone());
    }
    let found = default_uplinks(netlink, &links)?;
    if found.is_empty() { Err(KernelError::NoUplink) } else { Ok(found) }
}

/// Names of the interfaces of the default routes.
pub(super) fn default_uplinks<'a>(
    netlink: &mut Netlink,
    links: impl IntoIterator<Item = &'a Link> + Copy,
) -> Result<Vec<String>, KernelError> {
    let indices = netlink
        .default_route_interfaces()
        .map_err(|source| KernelError::Netlink { what: "the default routes".into(), source })?;
    let name = |i: u32| links.into_iter().find(|l| l.index == i && l.kind != Kind::Loopback).map(|l| l.name.clone());
    Ok(indices.into_iter().filter_map(name).collect())
}

fn check_interface(key: &'static str, name: &str, links: &[Link]) -> Result<(), KernelError> {
    match links.iter().find(|l| l.name == name) {
        Some(l) if l.kind == Kind::Loopback => Err(KernelError::Loopback { key, name: name.to_owned() }),
        Some(_) => Ok(()),
        None => {
            let mut known: Vec<&str> =
                links.iter().filter(|l| l.kind != Kind::Loopback).map(|l| l.name.as_str()).collect();
            known.sort_unstable();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(KernelError::NoInterface { key, name: name.to_owned(), known })
        }
    }
}

/// Global addresses of the uplinks, in the order of the uplinks.
pub(super) fn uplink_addresses(uplinks: &[String], netlink: &mut Netlink) -> Result<Vec<IpAddr>, KernelError> {
    let ask = |source| KernelError::Netlink { what: "the addresses of the uplinks".into(), source };
    let links = netlink.links().map_err(ask)?;
    let all = netlink.addresses().map_err(ask)?;
    let index = |name: &String| links.iter().find(|l| l.name == *name).map(|l| l.index);
    let mut found: Vec<IpAddr> = Vec::new();
    for uplink in uplinks.iter().filter_map(index) {
        for (interface, addr) in &all {
            if *interface == uplink && !found.contains(addr) {
                found.push(*addr);
            }
        }
    }
    Ok(found)
}

/// Ticks a second: the coarse clock advances once a tick.
pub(super) fn hz() -> Result<u32, KernelError> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|e| KernelError::Os { what: "the resolution of CLOCK_MONOTONIC_COARSE", source: e.into() })?;
    let nanos = Duration::from(resolution).as_nanos().max(1);
    let measured = u32::try_from(1_000_000_000 / nanos).unwrap_or(1000).max(1);
    Ok(KNOWN_HZ.into_iter().find(|known| known.abs_diff(measured) <= known / 20).unwrap_or(measured))
}

/// The addresses of one family in the slots of `CONFIG`; how many.
fn fill<A: Copy, const N: usize>(
    key: &'static str,
    addresses: &[IpAddr],
    octets: impl Fn(&IpAddr) -> Option<A>,
    slots: &mut [A; N],
) -> Result<u32, KernelError> {
    let found: Vec<A> = addresses.iter().filter_map(octets).collect();
    if found.len() > N {
        return Err(KernelError::TooMany { key, count: found.len(), most: N });
    }
    slots[..found.len()].copy_from_slice(&found);
    Ok(found.len() as u32)
}

const fn octets4(addr: &IpAddr) -> Option<[u8; 4]> {
    if let IpAddr::V4(a) = addr { Some(a.octets()) } else { None }
}

const fn octets6(addr: &IpAddr) -> Option<[u8; 16]> {
    if let IpAddr::V6(a) = addr { Some(a.octets()) } else { None }
}

/// The DNS addresses as they will be: configured, or the uplinks' own. As many of each family as there is room for: an uplink may
/// have a dozen IPv6 addresses, and on the others the forwarder answers.
pub(super) fn dns_addresses(settings: &Settings, own: &[IpAddr]) -> Vec<IpAddr> {
    let all = if settings.dns.is_empty() { own } else { &settings.dns };
    let of = |v6: bool| all.iter().copied().filter(move |a| a.is_ipv6() == v6).take(MAX_DNS_ADDRESSES);
    of(false).chain(of(true)).collect()
}

/// The value of `CONFIG`. `own` are the uplinks' addresses.
pub(super) fn config(settings: &Settings, uplinks: &[String], own: &[IpAddr], hz: u32) -> Result<Config, KernelError> {
    let own4 = own.iter().find(|a| a.is_ipv4());
    let own6 = own.iter().find(|a| a.is_ipv6());
    let mut value = Config { hz, icmp_rate: ICMP_RATE, flags: config::DNS, ..Config::zeroed() };
    for (on, bit) in [
        (settings.deny_drop, config::DENY_DROP),
        (settings.strangers_pass, config::STRANGERS_PASS),
        (settings.routed, config::ROUTED),
    ] {
        if on {
            value.flags |= bit;
        }
    }
    value.mss_clamp = match settings.mss_clamp {
        MssClamp::Off => 0,
        MssClamp::Auto => config::MSS_AUTO,
        MssClamp::Bytes(bytes) => bytes.into(),
    };
    value.own4 = own4.and_then(octets4).unwrap_or_default();
    value.own6 = own6.and_then(octets6).unwrap_or_default();
    value.snat_port = *settings.snat_ports.start();
    // The whole range of 65,536 ports does not exist (port 0), so this fits.
    value.snat_ports = settings.snat_ports.end().saturating_sub(*settings.snat_ports.start()).saturating_add(1);
    // A family whose addresses are not configured has its first one on the uplinks.
    let mut sources = settings.snat_addresses.clone();
    for first in [own4, own6].into_iter().flatten() {
        if !settings.snat_addresses.iter().any(|a| a.is_ipv6() == first.is_ipv6()) {
            sources.push(*first);
        }
    }
    value.snat4_len = fill("snat.addresses", &sources, octets4, &mut value.snat4)?;
    value.snat6_len = fill("snat.addresses", &sources, octets6, &mut value.snat6)?;
    if !settings.routed {
        let lacking = |v6: bool, len: u32| settings.has_clients(v6) && len == 0;
        let (no4, no6) = (lacking(false, value.snat4_len), lacking(true, value.snat6_len));
        let interface = uplinks.first().cloned().unwrap_or_default();
        if no4 || no6 && !settings.has_clients(false) {
            return Err(KernelError::NoAddress { interface, family: if no4 { "IPv4" } else { "IPv6" } });
        }
        if no6 {
            // It may come with the next router advertisement; IPv4 does not wait for it.
            tracing::warn!(
                %interface,
                "snat.addresses has no IPv6 address and the uplink has none: IPv6 clients are not served until it has one"
            );
        }
    }
    let dns = dns_addresses(settings, own);
    value.dns4_len = fill("dns.listen", &dns, octets4, &mut value.dns4)?;
    value.dns6_len = fill("dns.listen", &dns, octets6, &mut value.dns6)?;
    Ok(value)
}

/// Fills `VIEWS4` and `VIEWS6`.
pub(super) fn write_views(ebpf: &Ebpf, views: &[Vec<IpNet>]) -> Result<(), KernelError> {
    let table: Pair<PrefixKey<[u8; 4]>, PrefixKey<[u8; 16]>, View> = Pair::open(ebpf, "VIEWS4", "VIEWS6")?;
    for (id, prefixes) in (0u32..).zip(views) {
        for net in prefixes {
            table.put(&family::prefix(*net), &View { id, flags: 0 }).map_err(|error| match error {
                KernelError::Full { .. } => KernelError::TooMany {
                    key: "clients",
                    count: views.iter().map(Vec::len).sum(),
                    most: capacity::PREFIXES as usize,
                },
                other => other,
            })?;
        }
    }
    let list: Table<u32, ViewList> = Table::open(ebpf, "VIEW_LIST4")?;
    list.put(&0, &view_list(views)).map_err(|source| KernelError::map("VIEW_LIST4", source))
}

/// The IPv4 prefixes of the views, longest first; an empty list when they are many.
fn view_list(views: &[Vec<IpNet>]) -> ViewList {
    let nets = (0u32..).zip(views).flat_map(|(id, nets)| nets.iter().map(move |net| (id, net)));
    let mut nets: Vec<(u32, Ipv4Net)> =
        nets.filter_map(|(id, net)| if let IpNet::V4(net) = net { Some((id, *net)) } else { None }).collect();
    nets.sort_by_key(|(_, net)| std::cmp::Reverse(net.prefix_len()));
    let mut list = ViewList::zeroed();
    if nets.len() <= list.prefixes.len() {
        list.len = nets.len() as u32;
        for (slot, (id, net)) in list.prefixes.iter_mut().zip(nets) {
            let [addr, mask] = [net.network(), net.netmask()].map(|a| u32::from_ne_bytes(a.octets()));
            *slot = ViewPrefix { addr, mask, id };
        }
    }
    list
}

/// `bpf_jiffies64` now, told by the program `clock`.
pub(super) fn jiffies(ebpf: &mut Ebpf, clock: &Table<u32, u64>) -> io::Result<u64> {
    use aya::programs::{TestRun as _, TestRunOptions};
    // The smallest frame that a test run takes.
    let frame = [0u8; 64];
    let program = xdp_program(ebpf, "clock").map_err(io::Error::other)?;
    let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
    program.test_run(options).map_err(io::Error::other)?;
    clock.get(&0)?.ok_or_else(|| io::Error::other("CLOCK is empty"))
}

#[cfg(test)]
mod tests {
    use super::{super::Sizes, *};

    fn settings(cidrs: &[&str], sizes: Sizes, flows: u32) -> Settings {
        let views = vec![cidrs.iter().map(|c| c.parse().unwrap()).collect()];
        Settings { views, sizes, flows, ..crate::kernel::tests::settings(Mode::Tc) }
    }

    #[test]
    fn few_client_subnets_are_a_list_with_the_longest_first_and_many_are_none() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let list = view_list(&[vec![net("10.0.0.0/8"), net("fd00::/8")], vec![net("10.90.1.5/24"), net("0.0.0.0/0")]]);
        let raw = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
        assert_eq!(list.len, 3);
        let first = ViewPrefix { addr: raw([10, 90, 1, 0]), mask: raw([255, 255, 255, 0]), id: 1 };
        assert_eq!((list.prefixes[0], list.prefixes[1].id, list.prefixes[2].mask), (first, 0, 0));
        let many = (0..9).map(|i| net(&format!("10.{i}.0.0/16"))).collect();
        assert_eq!(view_list(&[many]), ViewList::zeroed());
    }

    #[test]
    fn maps_grow_with_the_cluster_and_have_a_floor() {
        let small = Capacities::of(&settings(&["10.0.0.0/8"], Sizes::default(), 262_144));
        assert_eq!((small.services, small.endpoints, small.maglev), (1 << 18, 1 << 18, 1 << 22));
        assert_eq!(small.flows, [524_288, NO_CLIENTS], "two records a flow, none for a family without clients");
        let large = Sizes { services: 20_000, endpoints: 100_000, answers: 200_000 };
        let large = Capacities::of(&settings(&["10.0.0.0/8", "fd00::/8"], large, 1));
        assert!(large.maglev >= 10_000 * 1009, "10,000 ports have room for their tables");
        assert!(large.answers >= 400_000);
        assert_eq!(large.flows, [2, 2]);
    }

    #[test]
    fn each_family_has_its_sources_and_its_own_address() {
        let own: Vec<IpAddr> = ["10.90.1.1", "fd90::1", "fd90::2"].map(|a| a.parse().unwrap()).to_vec();
        let both = settings(&["10.0.0.0/8", "fd00::/8"], Sizes::default(), 1);
        let found = config(&both, &["eth0".into()], &own, 250).unwrap();
        assert_eq!((found.snat4_len, found.snat6_len, found.dns4_len, found.dns6_len), (1, 1, 1, 2));
        let crowded =
            Settings { dns: (1..=20).map(|n| format!("fd90::{n}").parse().unwrap()).collect(), ..both.clone() };
        assert_eq!(config(&crowded, &["eth0".into()], &own, 250).unwrap().dns6_len, 8, "the forwarder has the rest");
        assert_eq!((IpAddr::from(found.snat6[0]), IpAddr::from(found.own6)), (own[1], own[1]));
        // One family configured: the other one still has its default.
        let some = Settings { snat_addresses: vec!["fd90::77".parse().unwrap()], ..both.clone() };
        let found = config(&some, &["eth0".into()], &own, 250).unwrap();
        assert_eq!((found.snat4[0], found.snat6[0][15]), ([10, 90, 1, 1], 0x77));
        // IPv6 alone is enough for IPv6 clients, and needed by them.
        let six = settings(&["fd00::/8"], Sizes::default(), 1);
        assert_eq!(config(&six, &["eth0".into()], &own[1..], 250).unwrap().snat4_len, 0);
        let error = config(&six, &["eth0".into()], &own[..1], 250).unwrap_err().to_string();
        assert!(error.contains("eth0 has no global IPv6 address"), "{error}");
        assert_eq!(config(&both, &["eth0".into()], &own[..1], 250).unwrap().snat6_len, 0, "IPv4 does not wait");
    }

    #[test]
    fn the_tick_is_one_that_kernels_have() {
        assert!(KNOWN_HZ.contains(&hz().unwrap()));
    }
}
