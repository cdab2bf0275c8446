//! From the written form to a [`Config`]: every value and what must hold between keys.

use std::{
    collections::{HashMap, HashSet},
    fmt::Display,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use gateway_common::{
    dns::limit::Limit,
    limits::{MAX_DNS_ADDRESSES, MAX_SNAT_ADDRESSES, MAX_VIEWS},
};
use ipnet::IpNet;

use super::{Config, Datapath, Dns, Forward, Source, View, file, values};
use crate::{
    dns::{
        RateLimit, Target, To,
        log::{EVERY, LogConfig},
        zone::ALL_VIEWS,
    },
    kernel::{MssClamp, Timeouts},
    plan::VipKinds,
};

/// Most flows: 200 bytes of kernel memory each, allocated at start.
const MAX_FLOWS: u32 = 1 << 24;
/// Bounds of `datapath.mssClamp`: RFC 9293 section 3.7.1 has hosts assume 536 when nothing is said; 9,000-byte frames are the largest.
const LEAST_MSS: u32 = 536;
const MOST_MSS: u32 = 8_960;
/// Most answers in the cache.
const MAX_CACHE: u32 = 1 << 24;
/// Most queries that wait for upstreams: each may hold a socket.
const MAX_OUTSTANDING: u32 = 65_536;
/// Least memory for the cache in bytes: the largest answer fits many times.
const LEAST_CACHE: u64 = 1 << 20;
/// Smallest file of the query log in bytes, and most old files kept.
const LEAST_LOG: u64 = 4_096;
const MAX_LOGS: u32 = 1_000;
/// Most answers of which one slips.
const MAX_SLIP: u32 = 10;
/// Longest cluster domain in wire form: its SOA, with two names below it, must fit into the kernel's zone table.
const CLUSTER_DOMAIN: usize = 49;
/// Longest time in seconds that a key may hold: a week, RFC 8767 section 4's bound on TTLs.
const MAX_SECONDS: u32 = 7 * 86_400;

/// A key and what is wrong with it.
pub(super) struct Problem {
    pub key: String,
    pub message: String,
}

type Checked<T> = Result<T, Problem>;

fn problem<T>(key: impl Display, message: impl Display) -> Checked<T> {
    Err(Problem { key: key.to_string(), message: message.to_string() })
}

/// Puts the key to a value's error.
trait At<T> {
    fn at(self, key: impl Display) -> Checked<T>;
}

impl<T> At<T> for Result<T, String> {
    fn at(self, key: impl Display) -> Checked<T> {
        self.map_err(|message| Problem { key: key.to_string(), message })
    }
}

/// Every item of a list, each with its own key; a repeated one is an error.
fn list<T: PartialEq>(key: &str, items: &[String], parse: impl Fn(&str) -> Result<T, String>) -> Checked<Vec<T>> {
    let mut all = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let value = parse(item).at(format!("{key}[{index}]"))?;
        if all.contains(&value) {
            return problem(format!("{key}[{index}]"), format!("`{item}` is there twice: remove one"));
        }
        all.push(value);
    }
    Ok(all)
}

fn within(key: &str, value: u32, least: u32, most: u32, unit: &str) -> Checked<u32> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        problem(key, format!("{value} is out of range: give {least} to {most} {unit}"))
    }
}

/// Checks everything; relative paths begin at `base`.
pub(super) fn check(file: file::File, base: &Path) -> Checked<Config> {
    let uplinks = list("uplinks", &file.uplinks, interface)?;
    let cluster_interfaces = list("clusterInterfaces", &file.cluster_interfaces, interface)?;
    let views = views(&file.clients)?;
    let source = source(&file.source, base)?;
    let service_cidrs = list("serviceCIDRs", &file.service_cidrs, values::cidr)?;
    if service_cidrs.is_empty() && matches!(source, Source::Manifests(_)) {
        return problem(
            "serviceCIDRs",
            "is required with source.manifests: give the cluster's service CIDRs, like [10.96.0.0/12]",
        );
    }
    let snat_addresses = list("snat.addresses", &file.snat.addresses, values::unicast)?;
    for v6 in [false, true] {
        if snat_addresses.iter().filter(|addr| addr.is_ipv6() == v6).count() > MAX_SNAT_ADDRESSES {
            return problem("snat.addresses", format!("too many: give at most {MAX_SNAT_ADDRESSES} of one family"));
        }
    }
    let snat_ports = values::port_range(&file.snat.ports).at("snat.ports")?;
    let http: SocketAddr = file
        .http
        .parse()
        .map_err(|_error| format!("`{}` is not an address and port: write one like 127.0.0.1:9153", file.http))
        .at("http")?;
    values::log_filter(&file.log).at("log")?;
    let datapath = datapath(&file.datapath)?;
    if let Some(node) = &file.node {
        values::object(node).at("node")?;
    }
    let dns = dns(&file.dns, &views, base)?;
    Ok(Config {
        uplinks,
        cluster_interfaces,
        views,
        source,
        service_cidrs,
        return_path: file.return_path,
        snat_addresses,
        snat_ports,
        deny: file.deny,
        strangers: file.strangers,
        dns,
        datapath,
        node: file.node,
        http,
        log: file.log,
    })
}

fn interface(name: &str) -> Result<String, String> {
    values::interface(name).map(|()| name.to_owned())
}

fn views(clients: &[file::Client]) -> Checked<Vec<View>> {
    if clients.is_empty() {
        return problem(
            "clients",
            "is required: give at least one view, like [{name: developers, cidrs: [10.90.1.0/24]}]",
        );
    }
    if clients.len() > MAX_VIEWS {
        return problem("clients", format!("{} views are too many: give at most {MAX_VIEWS}", clients.len()));
    }
    let mut names = HashSet::new();
    let mut owners: HashMap<IpNet, &str> = HashMap::new();
    let mut views = Vec::with_capacity(clients.len());
    for (index, client) in clients.iter().enumerate() {
        let key = format!("clients[{index}]");
        if client.name.trim().is_empty() {
            return problem(format!("{key}.name"), "is empty: name the view");
        }
        if !names.insert(client.name.as_str()) {
            return problem(
                format!("{key}.name"),
                format!("two views are named `{}`: give each its own name", client.name),
            );
        }
        if client.cidrs.is_empty() {
            return problem(
                format!("{key}.cidrs"),
                format!("view `{}` has no client subnet: give at least one, like [10.90.1.0/24]", client.name),
            );
        }
        let mut cidrs = Vec::with_capacity(client.cidrs.len());
        for (place, text) in client.cidrs.iter().enumerate() {
            let key = format!("{key}.cidrs[{place}]");
            let net = values::cidr(text).at(&key)?;
            if let Some(owner) = owners.insert(net, &client.name) {
                let message = if owner == client.name {
                    format!("`{net}` is in view `{owner}` twice: remove one")
                } else {
                    format!("`{net}` is in view `{owner}` and in view `{}`: leave it in one of them", client.name)
                };
                return problem(key, message);
            }
            cidrs.push(net);
        }
        let mut namespaces = Some(client.namespaces.clone());
        for (place, name) in client.namespaces.iter().enumerate() {
            if name == "*" {
                namespaces = None;
            } else {
                values::namespace(name).at(format!("{key}.namespaces[{place}]"))?;
            }
        }
        views.push(View { name: client.name.clone(), cidrs, namespaces });
    }
    Ok(views)
}

fn source(source: &file::Source, base: &Path) -> Checked<Source> {
    match (&source.manifests, &source.kubernetes) {
        (Some(directory), None) if directory.is_empty() => {
            problem("source.manifests", "is empty: give a directory of manifests")
        }
        (Some(directory), None) => Ok(Source::Manifests(base.join(directory))),
        (None, Some(kubernetes)) => Ok(Source::Kubernetes {
            kubeconfig: kubernetes.kubeconfig.as_ref().map(|path| base.join(path)),
            context: kubernetes.context.clone(),
            status: kubernetes.status.unwrap_or(true),
        }),
        (Some(_), Some(_)) => problem("source", "has manifests and kubernetes: keep one of them"),
        (None, None) => {
            problem("source", "is missing: give `manifests: DIRECTORY`, or `kubernetes: {}` for the cluster's API")
        }
    }
}

fn dns(dns: &file::Dns, views: &[View], base: &Path) -> Checked<Dns> {
    let listen = list("dns.listen", &dns.listen, values::listener)?;
    if listen.len() > MAX_DNS_ADDRESSES {
        return problem("dns.listen", format!("too many addresses: give at most {MAX_DNS_ADDRESSES}"));
    }
    let cluster_domain = values::domain(&dns.cluster_domain, CLUSTER_DOMAIN).at("dns.clusterDomain")?;
    if cluster_domain.is_empty() {
        return problem("dns.clusterDomain", "is the root: give the cluster's domain, like cluster.local");
    }
    let upstreams = list("dns.upstreams", &dns.upstreams, values::cluster_dns)?;
    let written = dns.forward.as_deref().unwrap_or_default();
    let mut forward: Vec<Forward> = Vec::with_capacity(written.len() + 1);
    for (index, rule) in written.iter().enumerate() {
        let rule = self::forward(&format!("dns.forward[{index}]"), rule, views)?;
        let general = |rule: &Forward| rule.views == ALL_VIEWS;
        let twice = |other: &&Forward| {
            other.zone == rule.zone && general(other) == general(&rule) && other.views & rule.views != 0
        };
        if forward.iter().any(|other| twice(&other)) {
            return problem(
                format!("dns.forward[{index}].zone"),
                format!("two rules are for `{}` and the same view: put their servers into one", written[index].zone),
            );
        }
        forward.push(rule);
    }
    // Who names the cluster's DNS wants it asked, unless a rule says otherwise.
    let rest = forward.iter().any(|rule| rule.zone.is_empty() && rule.views == ALL_VIEWS);
    if !rest && (dns.forward.is_none() || !upstreams.is_empty()) {
        let to = if upstreams.is_empty() { Vec::new() } else { vec![To::Cluster] };
        forward.push(Forward { zone: String::new(), views: ALL_VIEWS, to, redirect: Vec::new(), mixed_case: false });
    }
    let cache = dns.cache;
    within("dns.cache.entries", cache.entries, 1, MAX_CACHE, "answers")?;
    if cache.memory < LEAST_CACHE {
        return problem("dns.cache.memory", format!("{} bytes are too few: give at least {LEAST_CACHE}", cache.memory));
    }
    within("dns.cache.maxTtl", cache.max_ttl, 1, MAX_SECONDS, "seconds")?;
    within("dns.cache.negativeTtl", cache.negative_ttl, 0, MAX_SECONDS, "seconds")?;
    within("dns.cache.failureTtl", cache.failure_ttl, 1, 5, "seconds")?;
    within("dns.limits.outstanding", dns.limits.outstanding, 1, MAX_OUTSTANDING, "queries")?;
    within("dns.limits.perClient", dns.limits.per_client, 1, MAX_OUTSTANDING, "queries")?;
    within("dns.cache.stale", cache.stale, 0, MAX_SECONDS, "seconds")?;
    Ok(Dns {
        listen,
        cluster_domain,
        local_zone: dns.local_zone,
        pods: dns.pods,
        upstreams,
        forward,
        ca_file: dns.tls.ca_file.as_ref().map(|path| base.join(path)),
        cache,
        log: log(&dns.log, base)?,
        rate_limit: rate_limit(&dns.rate_limit, views)?,
        limits: dns.limits,
    })
}

fn forward(key: &str, rule: &file::Forward, views: &[View]) -> Checked<Forward> {
    let zone = values::domain(&rule.zone, 255).at(format!("{key}.zone"))?;
    let to = list(&format!("{key}.to"), &rule.to, values::to)?;
    let redirect = list(&format!("{key}.redirect"), &rule.redirect, values::target)?;
    if !to.is_empty() && !redirect.is_empty() {
        return problem(format!("{key}.redirect"), "stands beside `to`: ask servers, or lead elsewhere");
    }
    if let Some(Target::Name(name)) = redirect.iter().find(|target| matches!(target, Target::Name(_))) {
        if redirect.len() > 1 {
            return problem(format!("{key}.redirect"), "a name stands alone: give one name, or addresses");
        }
        if zone.is_empty() || *name == zone || name.ends_with(&format!(".{zone}")) {
            return problem(
                format!("{key}.redirect"),
                format!("`{name}` is in the zone itself and would lead in circles: give a name outside it"),
            );
        }
    }
    if rule.mixed_case && to.iter().all(|to| matches!(to, To::Server(server) if server.tls.is_some())) {
        return problem(format!("{key}.mixedCase"), "is for servers asked in the clear: there are none in `to`");
    }
    let named = named_views(&format!("{key}.views"), &rule.views, views)?;
    let views = if named == 0 { ALL_VIEWS } else { named };
    Ok(Forward { zone, views, to, redirect, mixed_case: rule.mixed_case })
}

/// The views of these names; bit = view number.
fn named_views(key: &str, names: &[String], views: &[View]) -> Checked<u64> {
    let view = |name: &str| match views.iter().position(|view| view.name == name) {
        Some(number) => Ok(1_u64 << number),
        None => Err(format!("there is no view `{name}` in clients")),
    };
    Ok(list(key, names, view)?.iter().fold(0, |all, view| all | view))
}

fn rate_limit(limit: &file::RateLimit, views: &[View]) -> Checked<RateLimit> {
    within("dns.rateLimit.responsesPerSecond", limit.responses_per_second, 0, Limit::MOST, "answers")?;
    within("dns.rateLimit.slip", limit.slip, 0, MAX_SLIP, "answers")?;
    within("dns.rateLimit.ipv4PrefixLength", limit.ipv4_prefix_length.into(), 0, 32, "bits")?;
    within("dns.rateLimit.ipv6PrefixLength", limit.ipv6_prefix_length.into(), 0, 128, "bits")?;
    Ok(RateLimit {
        rate: limit.responses_per_second,
        slip: limit.slip,
        prefix4: limit.ipv4_prefix_length,
        prefix6: limit.ipv6_prefix_length,
        exempt: named_views("dns.rateLimit.exemptViews", &limit.exempt_views, views)?,
    })
}

fn log(log: &file::Log, base: &Path) -> Checked<Option<LogConfig>> {
    if !(log.sample > 0.0 && log.sample <= 1.0) {
        return problem("dns.log.sample", format!("{} is out of range: give a share above 0 and up to 1", log.sample));
    }
    let max_size = log.max_size.bytes().at("dns.log.maxSize")?;
    if max_size < LEAST_LOG {
        return problem("dns.log.maxSize", format!("{max_size} bytes are too few: give at least {LEAST_LOG}"));
    }
    within("dns.log.keep", log.keep, 0, MAX_LOGS, "files")?;
    let Some(file) = log.file.as_deref() else { return Ok(None) };
    if file.is_empty() {
        return problem("dns.log.file", "is empty: give a file, or leave the key out for no log");
    }
    // At least one in a million: a share this small is meant to be one.
    let per_million = (log.sample * f64::from(EVERY)).ceil() as u32;
    Ok(Some(LogConfig { file: base.join(file), per_million, max_size, keep: log.keep }))
}

fn datapath(datapath: &file::Datapath) -> Checked<Datapath> {
    within("datapath.flows", datapath.flows, 1, MAX_FLOWS, "flows")?;
    let Timeouts { tcp_syn, tcp_established, tcp_fin, tcp_rst, udp, icmp } = datapath.timeouts;
    for (name, seconds) in [
        ("tcpSyn", tcp_syn),
        ("tcpEstablished", tcp_established),
        ("tcpFin", tcp_fin),
        ("tcpRst", tcp_rst),
        ("udp", udp),
        ("icmp", icmp),
    ] {
        within(&format!("datapath.timeouts.{name}"), seconds, 1, MAX_SECONDS, "seconds")?;
    }
    let pin = match datapath.pin.as_deref() {
        Some("") => return problem("datapath.pin", "is empty: give a bpffs directory, like /sys/fs/bpf/gateway"),
        Some(path) => Some(pin(path)?),
        None => None,
    };
    let vips = vips(&datapath.vips)?;
    let mss_clamp = mss_clamp(&datapath.mss_clamp)?;
    Ok(Datapath { mode: datapath.mode, flows: datapath.flows, pin, timeouts: datapath.timeouts, vips, mss_clamp })
}

fn mss_clamp(text: &file::MssClampText) -> Checked<MssClamp> {
    const KEY: &str = "datapath.mssClamp";
    match text {
        file::MssClampText::Word(word) if word == "off" => Ok(MssClamp::Off),
        file::MssClampText::Word(word) if word == "auto" => Ok(MssClamp::Auto),
        file::MssClampText::Word(word) => {
            problem(KEY, format!("`{word}` is not known: write off, auto or a number of bytes"))
        }
        file::MssClampText::Number(bytes) => {
            within(KEY, *bytes, LEAST_MSS, MOST_MSS, "bytes").map(|bytes| MssClamp::Bytes(bytes as u16))
        }
    }
}

fn vips(kinds: &[file::VipKind]) -> Checked<VipKinds> {
    use file::VipKind::{ClusterIp, ExternalIp, LoadBalancer};
    for (index, kind) in kinds.iter().enumerate() {
        if kinds[..index].contains(kind) {
            return problem(format!("datapath.vips[{index}]"), "is there twice: remove one");
        }
    }
    if !kinds.contains(&ClusterIp) {
        return problem("datapath.vips", "lacks clusterIP, where the cluster's names lead: add it");
    }
    Ok(VipKinds { external: kinds.contains(&ExternalIp), load_balancer: kinds.contains(&LoadBalancer) })
}

fn pin(path: &str) -> Checked<PathBuf> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Ok(path);
    }
    problem("datapath.pin", format!("`{}` is relative: give the whole path, like /sys/fs/bpf/gateway", path.display()))
}
