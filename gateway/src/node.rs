//! What this node has, as the commands and the datapath-less agent see it: interfaces, addresses, default routes, sysctls.
//!
//! Everything is read for the caller's own network namespace; `/sys/class/net` is not, when the namespace was entered
//! without remounting `/sys`.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// Names of all interfaces.
pub fn interfaces() -> Vec<String> {
    let Ok(all) = nix::net::if_::if_nameindex() else {
        return Vec::new();
    };
    all.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect()
}

/// Interfaces of the default routes, the best metric first.
pub fn default_route_interfaces() -> Vec<String> {
    let mut found: Vec<(u32, String)> = Vec::new();
    // Iface Destination Gateway Flags RefCnt Use Metric Mask ...
    for line in fs::read_to_string("/proc/net/route").unwrap_or_default().lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [name, "00000000", _, _, _, _, metric, "00000000", ..] = fields[..] {
            found.push((metric.parse().unwrap_or(u32::MAX), name.to_owned()));
        }
    }
    // Destination, prefix length, source, its length, next hop, metric, use, references, flags, device.
    for line in fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [destination, "00", _, _, _, metric, _, _, _, name] = fields[..]
            && destination.bytes().all(|byte| byte == b'0')
            && name != "lo"
        {
            found.push((u32::from_str_radix(metric, 16).unwrap_or(u32::MAX), name.to_owned()));
        }
    }
    found.sort_by_key(|(metric, _)| *metric);
    let mut names = Vec::new();
    for (_, name) in found {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The configured uplinks, or those of the default routes.
pub fn uplinks(configured: &[String]) -> Vec<String> {
    if configured.is_empty() { default_route_interfaces() } else { configured.to_vec() }
}

/// Addresses of an interface that other machines can use, IPv4 first.
pub fn addresses(interface: &str) -> Vec<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let mut addresses: Vec<IpAddr> = all
        .filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .filter(usable)
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

fn usable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && *v4 != Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && *v6 != Ipv6Addr::UNSPECIFIED,
    }
}

/// Every interface with its addresses and their subnets, but for loopback and link-local ones.
pub fn subnets() -> Vec<(String, IpNet)> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let ip = |address: Option<nix::sys::socket::SockaddrStorage>| {
        let address = address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    all.filter_map(|entry| {
        let net = IpNet::with_netmask(ip(entry.address).filter(usable)?, ip(entry.netmask)?).ok()?;
        Some((entry.interface_name, net))
    })
    .collect()
}

/// What becomes of a node's own address in a service CIDR, in words.
pub fn spared(address: IpAddr, cidr: IpNet) -> String {
    format!(
        "service CIDR {cidr} contains {address}, this node's own address: packets to it stay the node's, and no Service can have \
         it; give serviceCIDRs without it"
    )
}

/// Addresses of all uplinks.
pub fn uplink_addresses(configured: &[String]) -> Vec<IpAddr> {
    uplinks(configured).iter().flat_map(|interface| addresses(interface)).collect()
}

/// A sysctl by its path below `/proc/sys`, like `net/ipv4/ip_forward`.
pub fn sysctl(path: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{path}")).ok().map(|value| value.trim().to_owned())
}
