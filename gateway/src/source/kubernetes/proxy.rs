//! Which API servers are asked past the environment's proxy. kube takes `HTTPS_PROXY` for every server: it holds `NO_PROXY` against the
//! proxy's own name, and would ask a proxy for an API server on loopback.

use std::{env, net::IpAddr};

use ipnet::IpNet;
use kube::config::Config;

/// Takes a proxy that came from the environment off a server that it is not meant for.
pub(super) fn heed_no_proxy(config: &mut Config) {
    let variable = |upper: &str, lower: &str| env::var(upper).or_else(|_| env::var(lower)).unwrap_or_default();
    let from_environment = variable("HTTPS_PROXY", "https_proxy").parse().ok();
    if config.proxy_url.is_some() && config.proxy_url == from_environment {
        let host = config.cluster_url.host().unwrap_or_default();
        if is_direct(host, &variable("NO_PROXY", "no_proxy")) {
            config.proxy_url = None;
        }
    }
}

/// Loopback, or in a list of names, domains, addresses and prefixes, as curl and client-go read it.
fn is_direct(host: &str, no_proxy: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok();
    if host == "localhost" || address.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    no_proxy.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).any(|entry| {
        let domain = entry.trim_start_matches('*').trim_start_matches('.');
        let below = || host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        match (address, entry.parse::<IpNet>()) {
            _ if entry == "*" => true,
            (Some(ip), Ok(net)) => net.contains(&ip),
            (Some(ip), Err(_)) => entry.parse() == Ok(ip),
            (None, _) => below(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::is_direct;

    #[test]
    fn loopback_and_listed_servers_are_asked_directly() {
        let list = "example.com, .lab.internal,*.corp, 10.0.0.0/8,192.0.2.7, fd00::/8";
        for host in [
            "127.0.0.1",
            "localhost",
            "[::1]",
            "example.com",
            "API.example.com",
            "k8s.lab.internal",
            "a.corp",
            "10.90.2.1",
            "192.0.2.7",
            "[fd00::1]",
        ] {
            assert!(is_direct(host, list), "{host}");
        }
        for host in ["notexample.com", "192.0.2.8", "11.0.0.1", "2001:db8::1", "corp.example", ""] {
            assert!(!is_direct(host, list), "{host}");
        }
        assert!(is_direct("anything.at.all", "*") && !is_direct("anything.at.all", ""));
    }
}
