//! Values that config keys share: each from its written form, with an error that says the right one.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use ipnet::IpNet;

use crate::dns::{Target, To, Upstream};

/// A prefix whose host bits are zero.
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet = match (text.parse(), text.parse::<IpAddr>()) {
        (Ok(net), _) => net,
        (Err(_), Ok(addr)) => return Err(format!("`{text}` has no prefix length: write {}", IpNet::from(addr))),
        (Err(_), Err(_)) => return Err(format!("`{text}` is not a CIDR: write one like 10.90.1.0/24")),
    };
    if net.trunc() == net { Ok(net) } else { Err(format!("`{text}` has host bits set: write {}", net.trunc())) }
}

/// An address of one machine.
pub(super) fn unicast(text: &str) -> Result<IpAddr, String> {
    let addr: IpAddr =
        text.parse().map_err(|_error| format!("`{text}` is not an IP address: write one like 10.90.2.100"))?;
    if addr.is_unspecified() || addr.is_multicast() || addr == IpAddr::from([255, 255, 255, 255]) {
        return Err(format!("`{text}` is not the address of one machine: write one like 10.90.2.100"));
    }
    Ok(addr)
}

/// An address to listen on: like a server's, or the wildcard.
pub(super) fn listener(text: &str) -> Result<SocketAddr, String> {
    let address = socket(text)?;
    if !address.ip().is_unspecified() {
        unicast(&address.ip().to_string())?;
    }
    Ok(address)
}

/// `9.9.9.9`, `9.9.9.9:5353`, `2620:fe::fe`, `[2620:fe::fe]:53`; the port is 53 unless given.
fn socket(text: &str) -> Result<SocketAddr, String> {
    socket_or(text, 53)
}

fn socket_or(text: &str, port: u16) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = match (text.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
        (Ok(address), _) => address,
        (Err(_), Ok(ip)) => SocketAddr::new(ip, port),
        (Err(_), Err(_)) => {
            return Err(format!("`{text}` is not an address: write one like 9.9.9.9, 9.9.9.9:53 or [2620:fe::fe]:53"));
        }
    };
    if address.port() == 0 {
        return Err(format!("`{text}` has port 0: give a port from 1 to 65535"));
    }
    Ok(address)
}

/// A server that queries are sent to in the clear.
pub(super) fn server(text: &str) -> Result<SocketAddr, String> {
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!("`{text}`: `{scheme}` is not for here: write an address like 10.1.0.10 or 10.1.0.10:53"));
    }
    let address = socket(text)?;
    unicast(&address.ip().to_string())?;
    Ok(address)
}

/// A server of the cluster's own DNS: as [`server`].
pub(super) fn cluster_dns(text: &str) -> Result<SocketAddr, String> {
    if is_cluster(text) {
        return Err(format!(
            "`{text}` is not for here: this key says what `cluster` is; leave it out for Service kube-system/kube-dns"
        ));
    }
    server(text)
}

/// Whom a zone rule asks: `cluster`, or as [`upstream`].
pub(super) fn to(text: &str) -> Result<To, String> {
    match text {
        "cluster" => Ok(To::Cluster),
        _ if is_cluster(text) => Err(format!(
            "`{text}`: write `cluster` alone: its addresses and ports are those of dns.upstreams, or of Service \
             kube-system/kube-dns"
        )),
        _ => upstream(text).map(To::Server),
    }
}

/// The word, with whatever people put before and behind it.
fn is_cluster(text: &str) -> bool {
    let host = text.split_once("://").map_or(text, |(_, host)| host);
    let host = host.split([':', '#', '/', '.']).next().unwrap_or_default();
    host.trim().eq_ignore_ascii_case("cluster")
}

/// A server of a zone rule: as [`server`], or `tls://ADDRESS#NAME` for DNS over TLS, port 853 unless given. Without a name the
/// certificate must be for the address.
pub(super) fn upstream(text: &str) -> Result<Upstream, String> {
    let Some(rest) = text.strip_prefix("tls://") else {
        return match text.split_once("://") {
            Some((scheme, _)) => Err(format!(
                "`{text}`: scheme `{scheme}` is not known: write an address like 9.9.9.9 or tls://9.9.9.9#dns.quad9.net"
            )),
            None => server(text).map(Upstream::from),
        };
    };
    let (host, name) = rest.split_once('#').map_or((rest, None), |(host, name)| (host, Some(name)));
    let address = socket_or(host, 853).map_err(|why| format!("`{text}`: {why}"))?;
    unicast(&address.ip().to_string())?;
    let name = match name {
        Some(name) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.parse::<IpAddr>().is_err() && domain(name, 255).is_err() {
                return Err(format!(
                    "`{text}`: `{name}` is no host name: behind # stands the name in the server's certificate, like \
                     tls://9.9.9.9#dns.quad9.net"
                ));
            }
            name.to_ascii_lowercase()
        }
        None => address.ip().to_string(),
    };
    Ok(Upstream { addr: address, tls: Some(name.into()) })
}

/// What a zone rule leads to: an address, or a name.
pub(super) fn target(text: &str) -> Result<Target, String> {
    if text.parse::<IpAddr>().is_ok() {
        return unicast(text).map(Target::Address);
    }
    match domain(text, 255)? {
        root if root.is_empty() => Err("`.` is no name to lead to: give an address or a name".to_owned()),
        name => Ok(Target::Name(name)),
    }
}

/// `64Mi`, `100k`, `4096`: bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => Some(1),
        "k" => Some(1_000),
        "M" => Some(1_000_000),
        "G" => Some(1_000_000_000),
        "Ki" => Some(1 << 10),
        "Mi" => Some(1 << 20),
        "Gi" => Some(1 << 30),
        _ => None,
    };
    let bytes = factor.zip(number.parse::<u64>().ok()).and_then(|(factor, number)| number.checked_mul(factor));
    bytes.ok_or_else(|| format!("`{text}` is no size: write bytes, or a number with k, M, G, Ki, Mi or Gi, like 64Mi"))
}

/// A domain name: lower case, without the last dot; the root is empty. `room` is the longest wire form allowed.
pub(super) fn domain(text: &str, room: usize) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return if text.is_empty() { Err("is empty: the root is `.`".to_owned()) } else { Ok(String::new()) };
    }
    for label in name.split('.') {
        let legal = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if label.is_empty() || label.len() > 63 || !legal {
            return Err(format!(
                "`{text}` is not a domain name: label `{label}` must be 1 to 63 letters, digits, `-` or `_`"
            ));
        }
    }
    if name.len() + 2 > room {
        return Err(format!("`{text}` is too long: {} bytes, at most {}", name.len(), room - 2));
    }
    Ok(name.to_ascii_lowercase())
}

/// A Kubernetes namespace.
pub(super) fn namespace(text: &str) -> Result<(), String> {
    let legal = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if text.is_empty() || text.len() > 63 || !legal || text.starts_with('-') || text.ends_with('-') {
        return Err(format!("`{text}` is not a namespace: name one, or \"*\" for every one"));
    }
    Ok(())
}

/// The name of a Kubernetes object like a node: a DNS subdomain in lower case.
pub(super) fn object(text: &str) -> Result<(), String> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |l: &str| !l.is_empty() && l.bytes().all(legal) && !l.starts_with('-') && !l.ends_with('-');
    if text.len() > 253 || !text.split('.').all(label) {
        return Err(format!("`{text}` is not the name of a node: write one as `kubectl get nodes` shows it"));
    }
    Ok(())
}

/// A network interface's name, as the kernel accepts it.
pub(super) fn interface(text: &str) -> Result<(), String> {
    let legal = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if text.is_empty() || text.len() > 15 || !legal || text == "." || text == ".." {
        return Err(format!("`{text}` is not an interface name: 1 to 15 characters, see `ip link`"));
    }
    Ok(())
}

/// `10000-29999`.
pub(super) fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let form = || format!("`{text}` is not a port range: write one like 10000-29999");
    let (first, last) = text.split_once('-').ok_or_else(form)?;
    let first: u16 = first.trim().parse().map_err(|_error| form())?;
    let last: u16 = last.trim().parse().map_err(|_error| form())?;
    if first > last {
        return Err(format!("`{text}` is empty: the first port is above the last; write {last}-{first}"));
    }
    if first < 1024 {
        return Err(format!("`{text}` begins in the system ports: begin at 1024 or above"));
    }
    Ok(first..=last)
}

/// A level, or directives as `RUST_LOG` has them.
pub(super) fn log_filter(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let word = text.to_ascii_lowercase();
    if LEVELS.contains(&word.as_str()) {
        return Ok(());
    }
    let wrong = || format!("`{text}` is no log level: write one of {}", LEVELS.join(", "));
    // A single word that is no level would be taken for a module's name and silence everything else.
    if !text.contains('=') {
        return Err(wrong());
    }
    tracing_subscriber::EnvFilter::builder().parse(text).map(|_filter| ()).map_err(|_error| wrong())
}
