//! `gateway setup-client`: one static route a service CIDR, and the gateway as name server for the cluster's domain.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use ipnet::IpNet;

use super::At;
use crate::{config::Config, node};

/// A client's system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum System {
    /// iproute2 and systemd-resolved
    Linux,
    /// route and /etc/resolver
    Macos,
    /// PowerShell as administrator
    Windows,
    /// A dnsmasq that serves a whole network
    Dnsmasq,
}

/// This cluster's values. All are parsed types or checked names: nothing in them can be more than itself in a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    /// The gateway as clients reach it, by family of its addresses.
    pub gateways: Vec<IpAddr>,
    /// Its name server.
    pub dns: Vec<IpAddr>,
    /// The service CIDRs.
    pub cidrs: Vec<IpNet>,
    /// The cluster's domain.
    pub domain: String,
}

impl Values {
    /// From the running agent, which knows what the config leaves open; without one, from the config and this node.
    pub(super) fn find(at: &At, gateway: Option<IpAddr>) -> Result<Self> {
        let mut values = match (super::get(at, "status"), &at.config) {
            (Ok(status), _) => Self::of_agent(&status)?,
            (Err(_), Some(path)) if at.api.is_none() => Self::of_config(&Config::load(path)?)?,
            (Err(error), _) => {
                return Err(error.context("the values are the running agent's; give --config to read them from a file"));
            }
        };
        if let Some(gateway) = gateway {
            values.gateways = vec![gateway];
        }
        if values.gateways.is_empty() {
            bail!("uplinks: no address of the gateway is known: give it with --gateway");
        }
        if values.dns.is_empty() {
            values.dns.clone_from(&values.gateways);
        }
        if values.cidrs.is_empty() {
            bail!("serviceCIDRs: none is known: set the key, or ask a running agent");
        }
        Ok(values)
    }

    fn of_agent(status: &serde_json::Value) -> Result<Self> {
        let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
        let mut values = Self { gateways: Vec::new(), dns: Vec::new(), cidrs: Vec::new(), domain: String::new() };
        for address in list("addresses") {
            values.gateways.push(serde_json::from_value(address).context("status: addresses")?);
        }
        for address in list("dns") {
            let address: std::net::SocketAddr = serde_json::from_value(address).context("status: dns")?;
            if !address.ip().is_loopback() {
                values.dns.push(address.ip());
            }
        }
        for cidr in list("serviceCIDRs") {
            values.cidrs.push(serde_json::from_value(cidr).context("status: serviceCIDRs")?);
        }
        let domain = status["clusterDomain"].as_str().context("status: clusterDomain is missing")?;
        if !domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            bail!("status: clusterDomain: {domain:?} is not a domain name");
        }
        domain.clone_into(&mut values.domain);
        Ok(values)
    }

    fn of_config(config: &Config) -> Result<Self> {
        Ok(Self {
            gateways: node::uplink_addresses(&config.uplinks),
            dns: config
                .dns
                .listen
                .iter()
                .map(std::net::SocketAddr::ip)
                .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
                .collect(),
            cidrs: config.service_cidrs.clone(),
            domain: config.dns.cluster_domain.clone(),
        })
    }

    /// Each CIDR with the gateway of its family.
    fn routes(&self) -> Vec<(IpNet, IpAddr)> {
        let gateway = |v6: bool| self.gateways.iter().find(|gateway| gateway.is_ipv6() == v6).copied();
        self.cidrs.iter().filter_map(|cidr| Some((*cidr, gateway(cidr.addr().is_ipv6())?))).collect()
    }
}

/// The commands.
pub fn commands(system: System, values: &Values) -> String {
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _infallible = writeln!(out, "{text}");
    };
    let domain = &values.domain;
    let servers: Vec<String> = values.dns.iter().map(IpAddr::to_string).collect();
    let routes = values.routes();
    match system {
        System::Linux => {
            line(format_args!("# Linux, as root; until the next boot"));
            for (cidr, gateway) in &routes {
                line(format_args!("ip route replace {cidr} via {gateway}"));
            }
            let gateway = routes.first().map_or(values.gateways[0], |(_, gateway)| *gateway);
            line(format_args!(
                "link=$(ip -o route get {gateway} | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p') && \
                 resolvectl dns \"$link\" {} && resolvectl domain \"$link\" '~{domain}'",
                servers.join(" ")
            ));
            line(format_args!("# without systemd-resolved, before every other name server in /etc/resolv.conf:"));
            for server in &servers {
                line(format_args!("# nameserver {server}"));
            }
            if domain.ends_with(".local") {
                line(format_args!(
                    "# `dig` finds names of {domain} and `getent hosts` does not: the hosts: line of /etc/nsswitch.conf \
                     gives .local to multicast DNS. Put dns before mdns4 and mdns4_minimal there, or ask for \
                     dns.localZone in the gateway's config"
                ));
            }
        }
        System::Macos => {
            line(format_args!("# macOS, in Terminal; the route is until the next boot"));
            for (cidr, gateway) in &routes {
                let family = if cidr.addr().is_ipv6() { "-inet6" } else { "-inet" };
                line(format_args!("sudo route -n add {family} -net {cidr} {gateway}"));
            }
            let lines: Vec<String> = servers.iter().map(|server| format!("nameserver {server}\\n")).collect();
            line(format_args!(
                "sudo mkdir -p /etc/resolver && printf '{}' | sudo tee /etc/resolver/{domain}",
                lines.concat()
            ));
        }
        System::Windows => {
            line(format_args!("# Windows, in PowerShell as administrator"));
            for (cidr, gateway) in &routes {
                line(format_args!(
                    "New-NetRoute -DestinationPrefix {cidr} -NextHop {gateway} -InterfaceIndex \
                     (Find-NetRoute -RemoteIPAddress {gateway})[0].InterfaceIndex"
                ));
            }
            let servers: Vec<String> = servers.iter().map(|server| format!("'{server}'")).collect();
            line(format_args!("Add-DnsClientNrptRule -Namespace '.{domain}' -NameServers {}", servers.join(",")));
        }
        System::Dnsmasq => {
            line(format_args!("# dnsmasq.conf of the network's name server; the routes go to its router or by DHCP"));
            for server in &servers {
                line(format_args!("server=/{domain}/{server}"));
            }
            for (cidr, gateway) in routes.iter().filter(|(cidr, _)| !cidr.addr().is_ipv6()) {
                line(format_args!("dhcp-option=option:classless-static-route,{cidr},{gateway}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{System, Values, commands};

    fn values() -> Values {
        Values {
            gateways: vec!["10.90.2.100".parse().expect("an address"), "fd00::100".parse().expect("an address")],
            dns: vec!["10.90.2.100".parse().expect("an address")],
            cidrs: vec!["10.1.0.0/16".parse().expect("a CIDR"), "fd00:1::/112".parse().expect("a CIDR")],
            domain: "cluster.local".to_owned(),
        }
    }

    #[test]
    fn every_system_gets_its_route_and_its_name_server() {
        for (system, wanted) in [
            (
                System::Linux,
                &[
                    "ip route replace 10.1.0.0/16 via 10.90.2.100\n",
                    "ip route replace fd00:1::/112 via fd00::100\n",
                    "resolvectl dns \"$link\" 10.90.2.100",
                    "'~cluster.local'",
                ][..],
            ),
            (
                System::Macos,
                &[
                    "sudo route -n add -inet -net 10.1.0.0/16 10.90.2.100\n",
                    "nameserver 10.90.2.100",
                    "/etc/resolver/cluster.local",
                ],
            ),
            (
                System::Windows,
                &[
                    "New-NetRoute -DestinationPrefix 10.1.0.0/16 -NextHop 10.90.2.100",
                    "-Namespace '.cluster.local' -NameServers '10.90.2.100'",
                ],
            ),
            (
                System::Dnsmasq,
                &[
                    "server=/cluster.local/10.90.2.100\n",
                    "dhcp-option=option:classless-static-route,10.1.0.0/16,10.90.2.100\n",
                ],
            ),
        ] {
            let text = commands(system, &values());
            for part in wanted {
                assert!(text.contains(part), "{system:?}: no {part:?} in\n{text}");
            }
        }
    }

    #[test]
    fn a_cidr_without_a_gateway_of_its_family_gets_no_route() {
        let values = Values { gateways: vec!["10.90.2.100".parse().expect("an address")], ..values() };
        assert!(!commands(System::Linux, &values).contains("fd00:1::/112"));
    }

    #[test]
    fn a_status_that_would_put_commands_into_the_shell_is_refused() {
        let status = serde_json::json!({"addresses": ["10.0.0.1"], "serviceCIDRs": ["10.1.0.0/16"], "dns": [],
            "clusterDomain": "a; rm -rf /"});
        assert!(Values::of_agent(&status).is_err());
        let status = serde_json::json!({"addresses": ["$(reboot)"], "clusterDomain": "a"});
        assert!(Values::of_agent(&status).is_err());
    }
}
