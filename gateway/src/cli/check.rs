//! `gateway check`: what this node lacks, a line each, with what to do.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

use crate::{
    config::{Config, ReturnPath, Source},
    kernel::{self, Mode},
    node,
    source::{self, Denied},
};

/// Oldest kernel whose verifier and helpers the programs need; 6.6 brings TCX, before it TC goes by clsact.
const OLDEST: (u32, u32) = (6, 1);
const TCX: (u32, u32) = (6, 6);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Grade {
    Ok,
    Warn,
    Fail,
}

/// Lines as they are found.
struct Report {
    failed: bool,
}

impl Report {
    fn line(&mut self, grade: Grade, what: &str, says: &str) {
        let word = match grade {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Fail => "fail",
        };
        self.failed |= grade == Grade::Fail;
        println!("{word:<5} {what}: {says}");
    }

    fn ok(&mut self, what: &str, says: &str) {
        self.line(Grade::Ok, what, says);
    }

    fn warn(&mut self, what: &str, says: &str) {
        self.line(Grade::Warn, what, says);
    }

    fn fail(&mut self, what: &str, says: &str) {
        self.line(Grade::Fail, what, says);
    }
}

/// Checks and prints; false when the gateway cannot run here.
pub(super) fn run(path: Option<&Path>) -> bool {
    let mut report = Report { failed: false };
    let config = match path.map(Config::load) {
        Some(Ok(config)) => {
            report.ok("config", "complete");
            Some(config)
        }
        Some(Err(error)) => {
            report.fail("config", &error.to_string());
            None
        }
        None => {
            report.warn("config", "not checked: give it with --config");
            None
        }
    };
    if config.as_ref().is_none_or(|config| config.datapath.mode != Mode::Off) {
        kernel(&mut report);
        capabilities(&mut report);
        interfaces(&mut report, config.as_ref());
    }
    if let Some(config) = &config {
        cidrs(&mut report, config);
        pin(&mut report, config);
        source(&mut report, config);
        names(&mut report, config);
        ports(&mut report, config);
    }
    !report.failed
}

/// Service CIDRs beside this node's own networks.
fn cidrs(report: &mut Report, config: &Config) {
    let vips = |interface: &str| ["lo", "kube-ipvs0", "nodelocaldns"].contains(&interface);
    for (interface, net) in node::subnets().iter().filter(|(interface, _)| !vips(interface)) {
        for cidr in &config.service_cidrs {
            if cidr.contains(&net.addr()) {
                report.warn("serviceCIDRs", &node::spared(net.addr(), *cidr));
            } else if cidr.contains(&net.network()) || net.contains(&cidr.network()) {
                let net = net.trunc();
                report.warn(
                    "serviceCIDRs",
                    &format!(
                        "{cidr} overlaps {net} of `{interface}`: clients reach no machine of both through this node"
                    ),
                );
            }
        }
    }
}

fn kernel(report: &mut Report) {
    let release = node::sysctl("kernel/osrelease").unwrap_or_default();
    match version(&release) {
        Some(found) if found >= TCX => report.ok("kernel", &release),
        Some(found) if found >= OLDEST => {
            report.ok("kernel", &format!("{release}: no TCX before 6.6, TC programs go by clsact"));
        }
        Some(_) => report.fail("kernel", &format!("{release} is too old: run 6.1 or later")),
        None => report.warn("kernel", &format!("version {release:?} is not understood: 6.1 or later is needed")),
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        report.ok("btf", "/sys/kernel/btf/vmlinux");
    } else {
        report.fail("btf", "/sys/kernel/btf/vmlinux is missing: run a kernel built with CONFIG_DEBUG_INFO_BTF=y");
    }
    match node::sysctl("net/core/bpf_jit_enable").as_deref() {
        Some("0") => {
            report.warn("jit", "net.core.bpf_jit_enable is 0, packets cost more: sysctl -w net.core.bpf_jit_enable=1")
        }
        _ => report.ok("jit", "on"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn capabilities(report: &mut Report) {
    // From linux/capability.h. CAP_SYS_ADMIN includes what CAP_BPF and CAP_PERFMON were split off from.
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const NEEDED: [(u32, &str); 3] = [(NET_ADMIN, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(held) = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return report.warn("permission", "/proc/self/status tells no capabilities: run as root");
    };
    let has = |bit: u32| held >> bit & 1 == 1;
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(bit, _)| !has(*bit) && (*bit == NET_ADMIN || !has(SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        report.ok("permission", "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are held");
    } else {
        report.fail("permission", &format!("no {}: run as root, or give these capabilities", missing.join(", ")));
    }
}

fn interfaces(report: &mut Report, config: Option<&Config>) {
    let there = node::interfaces();
    let (configured, cluster) =
        config.map_or((&[][..], &[][..]), |config| (&config.uplinks[..], &config.cluster_interfaces[..]));
    let uplinks = node::uplinks(configured);
    if uplinks.is_empty() {
        report.fail("uplinks", "there is no default route: name the interfaces in key `uplinks`");
    }
    for (key, name) in
        uplinks.iter().map(|name| ("uplinks", name)).chain(cluster.iter().map(|name| ("clusterInterfaces", name)))
    {
        if !there.contains(name) {
            report.fail(key, &format!("`{name}` does not exist; there are {}", there.join(", ")));
            continue;
        }
        let driver = fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok();
        let driver = driver.as_deref().and_then(Path::file_name).map_or_else(
            || "no device driver: TC in mode auto".to_owned(),
            |driver| format!("driver {}", driver.to_string_lossy()),
        );
        if key == "uplinks" && node::addresses(name).is_empty() {
            report.warn(key, &format!("`{name}` ({driver}) has no address: clients need one to route to"));
        } else {
            report.ok(key, &format!("`{name}` ({driver})"));
        }
        // The kernel takes the greater of the two. Packets that leave by XDP and TC never see the filter; those that go up the stack do.
        let filter = |at: &str| node::sysctl(&format!("net/ipv4/conf/{at}/rp_filter"));
        let strict = filter("all").max(filter(name)).as_deref() == Some("1");
        if strict {
            report.warn(
                "rp_filter",
                &format!("`{name}` is strict: with asymmetric routes set net.ipv4.conf.{name}.rp_filter=2"),
            );
        } else {
            report.ok("rp_filter", &format!("`{name}` is not strict"));
        }
        // The datapath forwards by itself; the node's own forwarding is the operator's choice.
        let forwards = node::sysctl(&format!("net/ipv4/conf/{name}/forwarding")).as_deref() == Some("1");
        report.ok(
            "forwarding",
            &format!("`{name}`: {} on the node, not needed by the gateway", if forwards { "on" } else { "off" }),
        );
        let six =
            config.is_none_or(|config| config.views.iter().flat_map(|view| &view.cidrs).any(|c| c.addr().is_ipv6()));
        if key == "uplinks" && six {
            ipv6(report, name, config.is_some());
        }
    }
}

/// An uplink of IPv6 clients; `sure` when the config says that there are some.
fn ipv6(report: &mut Report, name: &str, sure: bool) {
    let sysctl = |what: &str| node::sysctl(&format!("net/ipv6/conf/{name}/{what}"));
    let Some(forwards) = sysctl("forwarding") else {
        if sure {
            report.warn("ipv6", "this kernel has none: IPv6 clients are not served");
        }
        return;
    };
    let addressed = node::addresses(name).iter().any(std::net::IpAddr::is_ipv6);
    if sure && sysctl("disable_ipv6").as_deref() == Some("1") {
        report.warn("ipv6", &format!("`{name}` has it switched off: set net.ipv6.conf.{name}.disable_ipv6=0"));
    } else if sure && !addressed {
        report.warn("ipv6", &format!("`{name}` has no global IPv6 address: IPv6 clients are served once it has one"));
    } else if addressed {
        report.ok("ipv6", &format!("`{name}` has a global address"));
    }
    // A router takes no advice from other routers, unless it is told to: its default route runs out.
    if addressed && forwards != "0" && sysctl("accept_ra").as_deref() == Some("1") {
        report.warn(
            "accept_ra",
            &format!(
                "`{name}` forwards IPv6 and so hears no router advertisements: if its default route comes by them, set \
                 net.ipv6.conf.{name}.accept_ra=2"
            ),
        );
    }
}

fn pin(report: &mut Report, config: &Config) {
    let Some(pin) = &config.datapath.pin else {
        return;
    };
    match kernel::check_pin(pin) {
        Ok(()) => report.ok("datapath.pin", &format!("{} is on a BPF file system", pin.display())),
        Err(error) => {
            // The error names the key, as it does for `run`; here the line begins with it.
            let text = error.to_string();
            report.fail("datapath.pin", text.strip_prefix("datapath.pin: ").unwrap_or(&text));
        }
    }
}

fn source(report: &mut Report, config: &Config) {
    match &config.source {
        Source::Manifests(directory) => match fs::read_dir(directory) {
            Ok(_) => report.ok("source.manifests", &directory.display().to_string()),
            Err(error) => report.fail(
                "source.manifests",
                &format!("{}: {error}: give a directory that can be read", directory.display()),
            ),
        },
        Source::Kubernetes { kubeconfig, context, status } => api_server(report, config, kubeconfig, context, *status),
    }
    if config.return_path == ReturnPath::Routed {
        report.warn("returnPath", "routed: every node must route the client subnets back through this one");
    }
}

/// What zone rules mean that nobody may have meant.
fn names(report: &mut Report, config: &Config) {
    let upstreams: Vec<String> = config.dns.upstreams.iter().map(ToString::to_string).collect();
    match (config.asks_cluster(), upstreams.is_empty()) {
        (true, true) => report.ok(
            "dns.forward",
            "`cluster` is the endpoints of Service kube-system/kube-dns; once the agent runs, `gateway dns` shows them",
        ),
        (true, false) => report.ok("dns.upstreams", &format!("`cluster` in dns.forward is {}", upstreams.join(", "))),
        (false, false) => report.warn(
            "dns.upstreams",
            "nobody asks them: write `cluster` into `to` of a rule of dns.forward, or leave out its rule for \".\"",
        ),
        (false, true) => {}
    }
    let domain = &config.dns.cluster_domain;
    for (index, rule) in config.dns.forward.iter().enumerate() {
        if rule.zone == *domain || rule.zone.ends_with(&format!(".{domain}")) {
            report.warn(
                &format!("dns.forward[{index}].zone"),
                &format!(
                    "`{}` is in the cluster's zone, which is answered from the source: the rule has no effect",
                    rule.zone
                ),
            );
        }
    }
}

/// Whether the API server answers, and each permission that this identity lacks.
fn api_server(
    report: &mut Report,
    config: &Config,
    kubeconfig: &Option<PathBuf>,
    context: &Option<String>,
    status: bool,
) {
    let key = if kubeconfig.is_some() { "source.kubernetes.kubeconfig" } else { "source.kubernetes" };
    let access = super::runtime(false).and_then(|runtime| {
        let asked = source::access(kubeconfig.clone(), context.clone(), config.source_extra(), status);
        Ok(runtime.block_on(asked)?)
    });
    let access = match access {
        Ok(access) => access,
        Err(error) => {
            let text = error.to_string();
            return report.fail(key, text.strip_prefix("source.kubernetes: ").unwrap_or(&text));
        }
    };
    report.ok(key, &format!("API server {}, {}", access.server, access.version));
    for Denied { verb, resource, group, required } in &access.denied {
        let group = if group.is_empty() { "the core API group" } else { group };
        let mend = match *resource {
            "servicecidrs" => "allow it in the gateway's ClusterRole, or set serviceCIDRs",
            "pods" => "allow it as in deploy/rbac-pods.yaml, or set dns.pods to another value than verified",
            _ => "allow it in the gateway's ClusterRole",
        };
        let grade = if *required { Grade::Fail } else { Grade::Warn };
        report.line(grade, "permission", &format!("may not {verb} {resource} of {group}: {mend}"));
    }
    if access.denied.is_empty() {
        report.ok("permission", "the API server lets it list and watch all that the gateway needs");
    }
    // Nobody has to grant these.
    for off in &access.silent {
        report.ok("status", off);
    }
    if status && access.silent.is_empty() {
        report.ok("status", "the API server takes its Lease and Events on Services");
    }
}

fn ports(report: &mut Report, config: &Config) {
    let addresses = if config.dns.listen.is_empty() {
        node::uplink_addresses(&config.uplinks).into_iter().map(|ip| SocketAddr::new(ip, 53)).collect()
    } else {
        config.dns.listen.clone()
    };
    if addresses.is_empty() {
        report.fail("dns.listen", "the uplinks have no address: name addresses in key `dns.listen`");
    }
    for address in addresses {
        port(report, "dns.listen", address, "udp", UdpSocket::bind(address).map(drop));
        port(report, "dns.listen", address, "tcp", TcpListener::bind(address).map(drop));
    }
    port(report, "http", config.http, "tcp", TcpListener::bind(config.http).map(drop));
}

fn port(report: &mut Report, key: &str, address: SocketAddr, transport: &str, bound: io::Result<()>) {
    let advice = match bound.as_ref().map_err(io::Error::kind) {
        Ok(()) => return report.ok(key, &format!("{address}/{transport} is free")),
        Err(io::ErrorKind::AddrInUse) => {
            "is in use (by a running gateway?): stop that program, or choose another address"
        }
        Err(io::ErrorKind::AddrNotAvailable) => "is not an address of this node: give one that `ip address` shows",
        Err(io::ErrorKind::PermissionDenied) => "is not permitted: run as root, or give CAP_NET_BIND_SERVICE",
        Err(_) => "cannot be bound: choose another address",
    };
    report.fail(key, &format!("{address}/{transport} {advice}"));
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn kernel_versions_of_distributions_are_understood() {
        assert_eq!(version("6.1.0-28-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.15.0-1.el9"), Some((5, 15)));
        assert_eq!(version("6.18+"), Some((6, 18)));
        assert_eq!(version("next"), None);
    }
}
