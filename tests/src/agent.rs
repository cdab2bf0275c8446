//! The gateway under test: the binary, started inside the gateway node's namespace and asked through its own commands.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    clients,
    lab::Lab,
    manifests::Service,
    netns::Namespace,
    process::{NotYet, Process, wait_for},
    topology::{GUEST, Node, SERVICE_CIDR, SERVICE_CIDR6, UPSTREAM, ipv6},
};

/// Where the agent's HTTP server listens, inside the gateway node.
const HTTP: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9153);

/// The gateway's config, as far as tests vary it.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// `datapath.mode`.
    pub mode: String,
    /// `returnPath`.
    pub return_path: String,
    /// `uplinks`; empty: the key is left out.
    pub uplinks: Vec<String>,
    /// Where names outside go; empty: refused.
    pub forward: Vec<String>,
    /// Zones with servers of their own.
    pub forward_zones: Vec<(String, String)>,
    /// `dns.pods`.
    pub pods: String,
    /// More keys of `dns`, a line each.
    pub dns: String,
    /// `snat.addresses`.
    pub snat_addresses: Vec<Ipv4Addr>,
    /// `deny`.
    pub deny: String,
    /// `strangers`.
    pub strangers: String,
    /// Lines added at the end, at top level.
    pub extra: String,
    /// The cluster is a Kubernetes API server, found by this kubeconfig; none: the lab's manifests, with the lab's service CIDR.
    pub kubeconfig: Option<PathBuf>,
    /// The agent's binary; none: [`binary`].
    pub binary: Option<PathBuf>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            mode: "auto".into(),
            return_path: "snat".into(),
            uplinks: vec!["eth0".into()],
            forward: Vec::new(),
            forward_zones: Vec::new(),
            pods: "disabled".into(),
            dns: String::new(),
            snat_addresses: Vec::new(),
            deny: "reject".into(),
            strangers: "drop".into(),
            extra: String::new(),
            kubeconfig: None,
            binary: None,
        }
    }
}

impl GatewayConfig {
    /// The default, in this mode.
    pub fn mode(mode: &str) -> Self {
        Self { mode: mode.into(), ..Self::default() }
    }

    /// Sends names outside to the lab's upstream.
    #[must_use]
    pub fn with_upstream(mut self) -> Self {
        self.forward = vec![UPSTREAM.to_string()];
        self
    }

    /// The config file.
    pub fn yaml(&self, manifests: &Path) -> String {
        let list = |items: &[String]| serde_json::to_string(items).unwrap_or_default();
        let mut out = String::new();
        if !self.uplinks.is_empty() {
            let _ = writeln!(out, "uplinks: {}", list(&self.uplinks));
        }
        let source = match &self.kubeconfig {
            Some(file) => format!("  kubernetes: {{ kubeconfig: {} }}", file.display()),
            None => {
                format!("  manifests: {}\nserviceCIDRs: [{SERVICE_CIDR}, \"{SERVICE_CIDR6}\"]", manifests.display())
            }
        };
        let _ = write!(
            out,
            "clients:\n  - name: developers\n    cidrs: [10.90.1.0/24, \"fd90:1::/64\"]\n    namespaces: [\"*\"]\n  - name: guests\n    cidrs: [{GUEST}/32, \"{}/128\"]\n    \
             namespaces: [public]\nsource:\n{source}\nreturnPath: {}\ndeny: {}\nstrangers: {}\n",
            ipv6(GUEST),
            self.return_path,
            self.deny,
            self.strangers
        );
        if !self.snat_addresses.is_empty() {
            let addresses: Vec<String> = self.snat_addresses.iter().map(ToString::to_string).collect();
            let _ = writeln!(out, "snat:\n  addresses: {}", list(&addresses));
        }
        let zone = |(zone, server): &(String, String)| format!("    - {{ zone: {zone}, to: [\"{server}\"] }}\n");
        let zones: String = self.forward_zones.iter().map(zone).collect();
        let more: String = self.dns.lines().map(|line| format!("  {line}\n")).collect();
        let _ = write!(
            out,
            "dns:\n{more}  pods: {}\n  forward:\n    - {{ zone: \".\", to: {} }}\n{zones}datapath:\n  mode: {}\n{}",
            self.pods,
            list(&self.forward),
            self.mode,
            self.extra
        );
        out
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway<'lab> {
    lab: &'lab Lab,
    process: Process,
    binary: PathBuf,
}

impl<'lab> Gateway<'lab> {
    pub(crate) fn start(lab: &'lab Lab, config: &GatewayConfig) -> Result<Self> {
        let file = lab.dir().join("gateway.yaml");
        fs::write(&file, config.yaml(&lab.manifests.dir))?;
        let binary = config.binary.clone().map_or_else(binary, Ok)?;
        let mut command = lab.node(Node::Gateway).command(&binary);
        command.args(["run", "--config"]).arg(&file);
        let process = Process::start("gateway", command, &lab.dir().join("gateway.log"))?;
        let mut gateway = Self { lab, process, binary };
        gateway.ready(Duration::from_secs(30))?;
        Ok(gateway)
    }

    fn ready(&mut self, within: Duration) -> Result<()> {
        let node = self.lab.node(Node::Gateway);
        wait_for("the gateway's /readyz", within, || {
            if let Some(status) = self.process.ended() {
                return Err(NotYet::Never(anyhow!("the gateway ended: {status}")));
            }
            let response = node.enter(|| clients::http_get(HTTP.into(), "/readyz"))?;
            match response.status {
                200 => Ok(()),
                status => Err(NotYet::Later(anyhow!("{status} {}", response.text()))),
            }
        })
        .with_context(|| format!("the gateway's log:\n{}", self.process.said()))
    }

    /// The node's namespace.
    fn node(&self) -> &Namespace {
        self.lab.node(Node::Gateway)
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.process.said()
    }

    /// Processor time that it has taken so far, its own and the kernel's for it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn processor_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.pid()))?;
        // Behind the program's name, which may have spaces: state is field 3, utime 14 and stime 15, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks =
            |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok()).context("/proc/PID/stat");
        Ok(Duration::from_millis(10 * (ticks(14)? + ticks(15)?)))
    }

    /// Runs `gateway ARGS` in its namespace and gives what it prints.
    ///
    /// # Errors
    /// When it ends with another code than 0.
    pub fn command(&self, args: &[&str]) -> Result<String> {
        self.node().run(&self.binary.to_string_lossy(), args)
    }

    /// Runs `gateway COMMAND -o json`.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json(&self, command: &str) -> Result<Value> {
        let text = self.command(&[command, "-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("gateway {command} -o json printed {text:?}"))
    }

    /// Waits until it serves this Service as it is: its ClusterIP, its endpoints that are ready, and those that are on their way out.
    ///
    /// # Errors
    /// What it serves instead, after ten seconds.
    pub fn serves(&self, service: &Service) -> Result<()> {
        let endpoints = |ready: bool| service.endpoints.iter().filter(move |endpoint| endpoint.ready == ready);
        let expected: BTreeSet<String> = endpoints(true).map(|endpoint| endpoint.address.to_string()).collect();
        let leaving = endpoints(false).filter(|endpoint| endpoint.terminating).count();
        self.wait_service(service, |told| {
            let Some(told) = told else { return false };
            let ports = told["ports"].as_array().map_or(&[][..], Vec::as_slice);
            let vip = service.vip.map(|vip| vip.to_string());
            !ports.is_empty()
                && ports.iter().filter(|port| vip.as_deref() == port["vip"].as_str()).all(|port| {
                    let list = |key: &str| port[key].as_array().cloned().unwrap_or_default();
                    let addresses =
                        list("endpoints").iter().filter_map(|one| one["addr"].as_str().map(str::to_owned)).collect();
                    expected == addresses && list("draining").len() == leaving
                })
                && told["vips"].as_array().is_some_and(|vips| vips.iter().any(|told| told.as_str() == vip.as_deref()))
        })
    }

    /// Waits until it serves this Service no more.
    ///
    /// # Errors
    /// What it serves of it after ten seconds.
    pub fn serves_no_more(&self, service: &Service) -> Result<()> {
        self.wait_service(service, |told| told.is_none())
    }

    fn wait_service(&self, service: &Service, wanted: impl Fn(Option<&Value>) -> bool) -> Result<()> {
        wait_for(&format!("{}/{} as it is now", service.namespace, service.name), Duration::from_secs(10), || {
            let told = self.json("services")?;
            let is_it =
                |one: &&Value| one["namespace"] == service.namespace.as_str() && one["name"] == service.name.as_str();
            let told = told.as_array().and_then(|all| all.iter().find(is_it));
            if wanted(told) { Ok(()) } else { Err(NotYet::Later(anyhow!("{told:?}"))) }
        })
    }

    /// The datapath's counters by reason, from `/metrics`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn counters(&self) -> Result<Counters> {
        let response = self.node().enter(|| clients::http_get(HTTP.into(), "/metrics"))?;
        ensure!(response.status == 200, "/metrics: {}", response.status);
        Ok(Counters::parse(&response.text()))
    }

    /// Ends it with SIGTERM and makes sure that the node is as it was before.
    ///
    /// # Errors
    /// What is left, or that it did not end well.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.stop(Signal::SIGTERM, Duration::from_secs(10))?;
        ensure!(status.success(), "the gateway ended with {status}:\n{}", self.process.said());
        let left = left_on(self.node())?;
        ensure!(left.is_empty(), "the gateway left: {}", left.join(", "));
        Ok(())
    }

    /// Ends it with SIGTERM. What is pinned stays on the node.
    ///
    /// # Errors
    /// When it did not end well.
    pub fn end(mut self) -> Result<()> {
        let status = self.process.stop(Signal::SIGTERM, Duration::from_secs(10))?;
        ensure!(status.success(), "the gateway ended with {status}:\n{}", self.process.said());
        Ok(())
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(mut self) -> Result<()> {
        ensure!(self.process.ended().is_none(), "the gateway had ended before:\n{}", self.process.said());
        self.process.stop(Signal::SIGKILL, Duration::from_secs(5))?;
        Ok(())
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.process.said();
            let from = log.char_indices().rev().nth(4000).map_or(0, |(index, _)| index);
            eprintln!("the gateway's log, at the end:\n{}", &log[from..]);
            if let Ok(counters) = self.counters() {
                eprintln!("the gateway's counters: {:?}", counters.0);
            }
        }
    }
}

/// Programs and settings of a gateway that are still in the namespace of a node.
///
/// # Errors
/// When the namespace cannot be read.
pub fn left_on(node: &Namespace) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let links: Value = serde_json::from_str(&node.run("ip", &["-d", "-j", "link", "show"])?)?;
    for link in links.as_array().into_iter().flatten() {
        let name = link["ifname"].as_str().unwrap_or("?").to_owned();
        if link["xdp"].is_object() {
            left.push(format!("XDP program on {name}"));
        }
        let index = u32::try_from(link["ifindex"].as_u64().unwrap_or(0))?;
        for (hook, what) in [(TCX_INGRESS, "ingress"), (TCX_EGRESS, "egress")] {
            if node.enter(|| attached(index, hook)) > 0 {
                left.push(format!("TCX {what} program on {name}"));
            }
        }
    }
    if node.run("tc", &["qdisc", "show"])?.contains("clsact") {
        left.push("clsact".into());
    }
    let reserved = node.sysctl("net/ipv4/ip_local_reserved_ports")?;
    if !reserved.is_empty() {
        left.push(format!("reserved ports {reserved}"));
    }
    Ok(left)
}

const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// Number of programs at a TCX hook of an interface of this namespace; `ip` does not show them.
fn attached(ifindex: u32, hook: u32) -> u32 {
    const BPF_PROG_QUERY: libc::c_long = 16;
    // The `query` member of `union bpf_attr`: target, attach type, query flags, attach flags, pointer to ids, count, and more that stays zero.
    let mut attr = [0_u32; 16];
    attr[0] = ifindex;
    attr[1] = hook;
    // SAFETY: the kernel reads and writes at most the given length of `attr`, and no other memory because the pointer to ids is null.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, attr.as_mut_ptr(), size_of_val(&attr)) };
    if result == 0 { attr[6] } else { 0 }
}

/// Counters of the datapath by reason.
#[derive(Clone, Debug, Default)]
pub struct Counters(pub BTreeMap<String, u64>);

impl Counters {
    /// From the text of `/metrics`.
    fn parse(text: &str) -> Self {
        let mut counters = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("gateway_packets_total{")) {
            let reason = line.split_once("reason=\"").and_then(|(_, rest)| rest.split_once('"'));
            let value = line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
            if let (Some((reason, _)), Some(value)) = (reason, value) {
                // Counts of a test are far below 2^53.
                *counters.entry(reason.to_owned()).or_default() += value as u64;
            }
        }
        Self(counters)
    }

    /// The count of one reason.
    pub fn get(&self, reason: &str) -> u64 {
        self.0.get(reason).copied().unwrap_or(0)
    }

    /// Queries answered in the kernel, of every kind.
    pub fn dns(&self) -> u64 {
        ["dns_answered", "dns_nodata", "dns_nxdomain", "dns_truncated"].iter().map(|reason| self.get(reason)).sum()
    }
}

/// The agent's binary: `GATEWAY_BIN`, else what cargo built beside this program, else the newest of the workspace.
///
/// # Errors
/// What to build.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GATEWAY_BIN").map(PathBuf::from) {
        ensure!(path.exists(), "GATEWAY_BIN={}: no such file", path.display());
        return Ok(fs::canonicalize(path)?);
    }
    let target = std::env::current_exe()?.ancestors().find(|dir| dir.ends_with("target")).map(Path::to_owned);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    ["release", "debug"]
        .map(|profile| target.join(profile).join("gateway"))
        .into_iter()
        .filter(|path| path.exists())
        .max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
        .context("gateway: not built; run `cargo build -p gateway`, or name it by GATEWAY_BIN")
}
