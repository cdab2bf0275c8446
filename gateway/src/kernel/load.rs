//! From settings to loaded programs and filled maps: checks that say what to do, map sizes, `CONFIG`, `VIEWS4`.

use std::{io, net::IpAddr, path::Path, time::Duration};

use aya::{Ebpf, EbpfLoader};
use bytemuck::Zeroable as _;
use gateway_common::{
    limits::{MAX_DNS_ADDRESSES, MAX_SNAT_ADDRESSES, capacity},
    maps::{Config, PrefixKey, View, config},
};
use ipnet::IpNet;
use nix::time::{ClockId, clock_getres};

use super::{
    KernelError, Mode, OBJECT, Settings, Sizes,
    attach::{TC_PROGRAMS, XDP_PROGRAMS, tc_program, xdp_program},
    netlink::{Kind, Link, Netlink},
    pin::{Heritage, Pins},
    services::prefix,
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
    pub(super) flows: u32,
}

impl Capacities {
    /// Twice what the cluster has now, and never less than the defaults that cost little.
    pub(super) fn of(sizes: Sizes, flows: u32) -> Self {
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
            flows: flows.saturating_mul(2).max(2),
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
pub(super) fn load(settings: &Settings, sizes: &Capacities, pins: Option<&Pins>) -> Result<Ebpf, KernelError> {
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
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries("SERVICES4", sizes.services)
        .map_max_entries("ENDPOINTS", sizes.endpoints)
        .map_max_entries("MAGLEV", sizes.maglev)
        .map_max_entries("NEXTHOPS", sizes.nexthops)
        .map_max_entries("ANSWERS", sizes.answers)
        .map_max_entries("LARGE", sizes.answers)
        .map_max_entries("FLOWS4", sizes.flows)
        // IPv6 is left to the node by this version: its flows need no memory.
        .map_max_entries("FLOWS6", 1);
    if let Some(pins) = pins {
        let (name, path) = pins.shared();
        loader.map_pin_path(name, path);
    }
    let mut ebpf = loader.load(OBJECT).map_err(KernelError::object)?;
    let flows = ebpf.map("FLOWS4").and_then(map_data).and_then(|data| data.info().ok()).map(|info| info.max_entries());
    if let Some(flows) = flows.filter(|flows| *flows != sizes.flows) {
        tracing::warn!(
            room = flows / 2,
            wanted = sizes.flows / 2,
            "datapath.flows: the pinned flow table keeps its size; for another one stop the agent and run `gateway detach` first"
        );
    }
    for name in XDP_PROGRAMS {
        if settings.mode == Mode::Tc && name != "clock" {
            continue;
        }
        xdp_program(&mut ebpf, name).and_then(|p| p.load()).map_err(|e| KernelError::program(name, e))?;
    }
    for name in TC_PROGRAMS {
        tc_program(&mut ebpf, name).and_then(|p| p.load()).map_err(|e| KernelError::program(name, e))?;
    }
    Ok(ebpf)
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

fn fill4<const N: usize>(
    key: &'static str,
    addresses: &[IpAddr],
    slots: &mut [[u8; 4]; N],
) -> Result<u32, KernelError> {
    let v4: Vec<[u8; 4]> =
        addresses.iter().filter_map(|a| if let IpAddr::V4(a) = a { Some(a.octets()) } else { None }).collect();
    if v4.len() > N {
        return Err(KernelError::TooMany { key, count: v4.len(), most: N });
    }
    for (slot, addr) in slots.iter_mut().zip(&v4) {
        *slot = *addr;
    }
    Ok(v4.len() as u32)
}

/// The DNS addresses as they will be: configured, or the uplinks' own.
pub(super) fn dns_addresses(settings: &Settings, own: &[IpAddr]) -> Vec<IpAddr> {
    if settings.dns.is_empty() {
        own.iter().copied().filter(IpAddr::is_ipv4).take(MAX_DNS_ADDRESSES).collect()
    } else {
        settings.dns.clone()
    }
}

/// The value of `CONFIG`. `own` are the uplinks' addresses.
pub(super) fn config(settings: &Settings, uplinks: &[String], own: &[IpAddr], hz: u32) -> Result<Config, KernelError> {
    let own4 = own.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
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
    value.own4 = own4.map_or([0; 4], |a| a.octets());
    value.snat_port = *settings.snat_ports.start();
    // The whole range of 65,536 ports does not exist (port 0), so this fits.
    value.snat_ports = settings.snat_ports.end().saturating_sub(*settings.snat_ports.start()).saturating_add(1);
    let sources: Vec<IpAddr> = if settings.snat_addresses.is_empty() {
        own4.map(IpAddr::from).into_iter().collect()
    } else {
        settings.snat_addresses.clone()
    };
    value.snat4_len = fill4::<MAX_SNAT_ADDRESSES>("snat.addresses", &sources, &mut value.snat4)?;
    if value.snat4_len == 0 && !settings.routed {
        return Err(KernelError::NoAddress { interface: uplinks.first().cloned().unwrap_or_default() });
    }
    value.dns4_len = fill4::<MAX_DNS_ADDRESSES>("dns.listen", &dns_addresses(settings, own), &mut value.dns4)?;
    Ok(value)
}

/// Fills `VIEWS4`.
pub(super) fn write_views(ebpf: &Ebpf, views: &[Vec<IpNet>]) -> Result<(), KernelError> {
    let table: Table<PrefixKey<[u8; 4]>, View> = Table::open(ebpf, "VIEWS4")?;
    let mut ipv6 = Vec::new();
    for (id, prefixes) in (0u32..).zip(views) {
        for net in prefixes {
            let IpNet::V4(net) = net else {
                ipv6.push(net.to_string());
                continue;
            };
            let write = table.put(&prefix(*net), &View { id, flags: 0 });
            write.map_err(|source| match source.raw_os_error() {
                Some(libc::ENOSPC) => KernelError::TooMany {
                    key: "clients",
                    count: views.iter().map(Vec::len).sum(),
                    most: capacity::PREFIXES as usize,
                },
                _ => KernelError::Map { map: table.name(), source },
            })?;
        }
    }
    if !ipv6.is_empty() {
        tracing::warn!(
            clients = %ipv6.join(","),
            "packets of IPv6 clients are not forwarded by this version; names are answered to them"
        );
    }
    Ok(())
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
    use super::*;

    #[test]
    fn maps_grow_with_the_cluster_and_have_a_floor() {
        let small = Capacities::of(Sizes::default(), 262_144);
        assert_eq!((small.services, small.endpoints, small.maglev), (1 << 18, 1 << 18, 1 << 22));
        assert_eq!(small.flows, 524_288, "two records a flow");
        let large = Capacities::of(Sizes { services: 20_000, endpoints: 100_000, answers: 200_000 }, 1);
        assert!(large.maglev >= 10_000 * 1009, "10,000 ports have room for their tables");
        assert!(large.answers >= 400_000);
    }

    #[test]
    fn the_tick_is_one_that_kernels_have() {
        assert!(KNOWN_HZ.contains(&hz().unwrap()));
    }
}
