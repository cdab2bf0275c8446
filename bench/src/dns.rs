//! `cargo xtask bench dns`: how long a client waits for an answer at a moderate, fixed rate, and whether any is lost: from the gateway's
//! kernel, from its forwarder, and from Unbound and dnsmasq with the same names, all in one lab. dnsperf asks; it says each query's
//! time. What is compared is latency at a rate that all bear, not capacity: dnsperf tops out below the kernel.

use std::{fs, net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Service, Topology,
    names::dig,
    netns::Namespace,
    process::{NotYet, Process, wait_for},
    topology::{GATEWAY, Offloads},
};

/// Services asked for, each by A and by AAAA (which there is none of), and as many names that do not exist.
const SERVICES: u8 = 50;
/// Queries a second, and seconds.
const RATE: u32 = 2_000;
const SECONDS: u32 = 5;
const UNBOUND: &str = "5301";
const DNSMASQ: &str = "5302";

/// One row of the table.
struct Row {
    name: &'static str,
    sent: usize,
    lost: usize,
    wrong: usize,
    /// Microseconds, sorted.
    took: Vec<f64>,
}

/// Runs everything and prints the table; false: something was lost, or answered wrongly.
///
/// # Errors
/// When the lab cannot be built, or a program is missing.
pub fn run() -> Result<bool> {
    let topology = Topology { upstream: true, offloads: Offloads::Kernel, ..Topology::with_pods(&[Node::Worker1]) };
    let lab = Lab::build(topology)?;
    for number in 1..=SERVICES {
        let vip = Ipv4Addr::new(10, 1, 0, number);
        lab.manifests.put(&Service::of_pods("shop", &format!("web{number}"), vip, &lab.topology.pods))?;
    }
    let cluster = lab.dir().join("cluster.queries");
    let outside = lab.dir().join("outside.queries");
    fs::write(&cluster, queries())?;
    fs::write(&outside, "www.example.test A\nwww.example.test AAAA\nnobody.example.test A\nexample.test MX\n")?;

    let kernel = lab.gateway(&GatewayConfig::default().with_upstream())?;
    let mut rows = vec![
        ask(&lab, "gateway, kernel: cluster names", "53", &cluster)?,
        ask(&lab, "gateway, kernel: learnt names", "53", &outside)?,
    ];
    let answered = kernel.counters()?.dns();
    kernel.stop()?;
    let forwarder = lab.gateway(&GatewayConfig::mode("off").with_upstream())?;
    let peers = peers(&lab, &forwarder)?;
    for (name, port, file) in [
        ("gateway, forwarder: cluster names", "53", &cluster),
        ("gateway, forwarder: learnt names", "53", &outside),
        ("Unbound, local data: cluster names", UNBOUND, &cluster),
        ("Unbound, cache: learnt names", UNBOUND, &outside),
        ("dnsmasq, host records: cluster names", DNSMASQ, &cluster),
        ("dnsmasq, cache: learnt names", DNSMASQ, &outside),
    ] {
        rows.push(ask(&lab, name, port, file)?);
    }
    drop(peers);
    forwarder.stop()?;

    println!(
        "{:<40} {:>7} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8}",
        "latency in us", "queries", "lost", "wrong", "p50", "p90", "p99", "p99.9"
    );
    for row in &rows {
        let at =
            |share: f64| row.took.get(((row.took.len() as f64 * share) as usize).min(row.took.len().saturating_sub(1)));
        let times: String =
            [0.5, 0.9, 0.99, 0.999].map(|share| format!(" {:>8.0}", at(share).copied().unwrap_or(f64::NAN))).concat();
        println!("{:<40} {:>7} {:>6} {:>6}{times}", row.name, row.sent, row.lost, row.wrong);
    }
    println!("{RATE} queries a second, {SECONDS} s each; {answered} answers came from the kernel");
    Ok(rows.iter().all(|row| row.lost == 0 && row.wrong == 0))
}

fn queries() -> String {
    (1..=SERVICES)
        .map(|number| {
            let name = |host: &str| format!("{host}{number}.shop.svc.cluster.local");
            format!("{web} A\n{web} AAAA\n{no} A\n", web = name("web"), no = name("no"))
        })
        .collect()
}

/// Unbound and dnsmasq on the gateway's node, with the cluster's names as data and the rest forwarded.
fn peers(lab: &Lab, _gateway: &Gateway<'_>) -> Result<[Process; 2]> {
    let node = lab.node(Node::Gateway);
    let upstream = gateway_lab::topology::UPSTREAM;
    let names: Vec<(String, u8)> =
        (1..=SERVICES).map(|number| (format!("web{number}.shop.svc.cluster.local"), number)).collect();
    let data: String =
        names.iter().map(|(name, number)| format!("  local-data: \"{name}. 30 A 10.1.0.{number}\"\n")).collect();
    let unbound = format!(
        "server:\n  interface: {GATEWAY}\n  port: {UNBOUND}\n  do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  \
         directory: \"{}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  num-threads: 1\n  access-control: 0.0.0.0/0 \
         allow\n  do-ip6: no\n  module-config: \"iterator\"\n  local-zone: \"test.\" nodefault\n  local-zone: \
         \"cluster.local.\" static\n{data}forward-zone:\n  name: \".\"\n  forward-addr: {upstream}\nremote-control:\n  \
         control-enable: no\n",
        lab.dir().display()
    );
    let file = lab.dir().join("bench-unbound.conf");
    fs::write(&file, unbound)?;
    let mut command = node.command("unbound");
    command.arg("-d").arg("-c").arg(&file);
    let unbound = Process::start("unbound", command, &lab.dir().join("bench-unbound.log"))?;

    let mut command = node.command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file=",
    ]);
    command.args(["--bind-interfaces", "--log-facility=-", "--cache-size=10000", "--local=/cluster.local/"]);
    command.args([format!("--listen-address={GATEWAY}"), format!("--port={DNSMASQ}"), format!("--server={upstream}")]);
    command.args(names.iter().map(|(name, number)| format!("--host-record={name},10.1.0.{number}")));
    let dnsmasq = Process::start("dnsmasq", command, &lab.dir().join("bench-dnsmasq.log"))?;
    let mut peers = [unbound, dnsmasq];
    for (process, port) in peers.iter_mut().zip([UNBOUND, DNSMASQ]) {
        ready(lab.client(), process, port)?;
    }
    Ok(peers)
}

fn ready(client: &Namespace, process: &mut Process, port: &str) -> Result<()> {
    let name = process.name.clone();
    wait_for(&name, Duration::from_secs(20), || {
        if let Some(status) = process.ended() {
            return Err(NotYet::Never(anyhow::anyhow!("{name} ended: {status}: {}", process.said())));
        }
        let answer = dig(client, &GATEWAY.to_string(), &["-p", port, "+time=1", "+tries=1", "www.example.test", "A"])?;
        if answer.status == "NOERROR" { Ok(()) } else { Err(NotYet::Later(anyhow::anyhow!("{answer:?}"))) }
    })
}

/// Asks for a file of names: once for everyone to have learnt them, then for the figures.
fn ask(lab: &Lab, name: &'static str, port: &str, file: &Path) -> Result<Row> {
    let file = file.to_string_lossy();
    let server = GATEWAY.to_string();
    let dnsperf = |more: &[&str]| {
        let args = [&["-s", &server, "-p", port, "-d", &file, "-T", "1", "-c", "4", "-t", "2"], more].concat();
        lab.client().run("dnsperf", &args).with_context(|| format!("{name}: apt-get install dnsperf?"))
    };
    dnsperf(&["-n", "3", "-Q", "500"])?;
    let said = dnsperf(&["-v", "-Q", &RATE.to_string(), "-l", &SECONDS.to_string()])?;
    let mut row = Row { name, sent: 0, lost: 0, wrong: 0, took: Vec::new() };
    // "> NOERROR name type 0.000123" for each, "> T name type" when none came.
    for line in said.lines().filter_map(|line| line.strip_prefix("> ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        row.sent += 1;
        let &[code, asked, _, took] = &words[..] else {
            row.lost += 1;
            continue;
        };
        let expected = if asked.starts_with("no") { "NXDOMAIN" } else { "NOERROR" };
        row.wrong += usize::from(code != expected);
        row.took.push(took.parse::<f64>().with_context(|| format!("dnsperf said: {line}"))? * 1e6);
    }
    if row.sent == 0 {
        bail!("{name}: dnsperf named no query:\n{said}");
    }
    row.took.sort_by(f64::total_cmp);
    Ok(row)
}
