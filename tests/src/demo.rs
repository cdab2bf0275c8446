//! The demonstration: a lab, a gateway in it, and what a client outside the cluster can do with real programs. Every step says what was typed and
//! what came of it, and fails the whole when it was not what it must be.

mod cluster;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::{
    prctl,
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use crate::{
    Counters, Gateway, GatewayConfig, Lab, Service, Topology,
    cluster::Cluster,
    names::with_resolver,
    testing::installed,
    topology::{GATEWAY, HTTP_PORT, Node, UPSTREAM},
};

const NAME: &str = "web.shop.svc.cluster.local";
const VIP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 1, 0, 80);
/// The programs it shows, and Debian's packages that have them.
const TOOLS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("dig", "dnsutils"),
    ("kdig", "knot-dnsutils"),
    ("curl", "curl"),
    ("unbound", "unbound"),
    ("getent", "libc-bin"),
];

static STOP: AtomicBool = AtomicBool::new(false);

/// Runs the demonstration; without `once`, stays until Ctrl-C. With `real`, the cluster is a real control plane.
///
/// # Errors
/// The step that did not give what it must.
pub fn run(binary: Option<PathBuf>, once: bool, real: bool) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the lab needs root, for network namespaces: run it as root");
    let missing: Vec<&str> = TOOLS.iter().filter(|(tool, _)| !installed(tool)).map(|(_, package)| *package).collect();
    ensure!(missing.is_empty(), "missing programs: apt-get install {}", missing.join(" "));
    let binary = match binary {
        Some(path) => fs::canonicalize(&path).with_context(|| format!("--gateway {}: no such file", path.display()))?,
        None => crate::agent::binary()?,
    };
    stop_on_signals()?;

    let lab = Lab::build(Topology::demonstration())?;
    picture(&lab);
    let web = Service::of_pods("shop", "web", VIP, &lab.topology.pods);
    let mut config = GatewayConfig { binary: Some(binary), ..GatewayConfig::default().with_upstream() };
    let cluster = match real {
        true => Some(cluster::start(&lab, &mut config)?),
        false => None,
    };
    if cluster.is_none() {
        lab.manifests.put(&web)?;
    }
    let gateway = lab.gateway(&config)?;
    let mut show = Show { lab: &lab, gateway: &gateway, cluster: cluster.as_ref(), step: 0 };
    show.all(&web)?;
    if once {
        println!("\nEverything gave what it must. The lab is being removed.");
    } else {
        let script = client_script(&lab)?;
        println!("\nEverything gave what it must. The lab stays until Ctrl-C. In another terminal, as root:");
        println!("  a shell on the client:   sh {script}");
        println!("  one command on it:       sh {script} curl http://{NAME}/");
        println!(
            "  ask the gateway:         nsenter --net={} gateway status",
            lab.node(Node::Gateway).path().display()
        );
        match &cluster {
            Some(cluster) => {
                println!("  change the cluster:      sh {} kubectl get pods -A", cluster.script()?.display())
            }
            None => println!("  change the cluster:      the manifests in {}", lab.manifests.dir.display()),
        }
        while !STOP.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("\nThe lab is being removed.");
    }
    gateway.stop()
}

/// Ctrl-C and its kin end the demonstration between two steps, so that the lab is removed. So does the end of the program that started it.
fn stop_on_signals() -> Result<()> {
    extern "C" fn stop(_: libc::c_int) {
        STOP.store(true, Ordering::Relaxed);
    }
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but store to an atomic, which is allowed in a signal handler.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

fn picture(lab: &Lab) {
    println!("A cluster, a gateway and a client, in network namespaces of this machine:\n");
    let outside =
        [format!("client {} --+", lab.topology.clients[0].address), "+".into(), format!("DNS outside {UPSTREAM} --+")];
    let lines = ["                   ", "--- one network ---", "                   "];
    let nodes = [("worker1", Node::Worker1), ("worker2", Node::Worker2), ("GATEWAY", Node::Gateway)];
    for ((outside, line), (name, node)) in outside.iter().zip(lines).zip(nodes) {
        println!("  {outside:>26}{line}+-- {name} {:<13} {}", node.address(), pods_of(lab, node));
    }
    println!("\n  Service shop/web: {NAME} = {VIP}, port 80, on those three pods");
}

fn pods_of(lab: &Lab, node: Node) -> String {
    let pods = lab.topology.pods.iter().filter(|pod| pod.node == node);
    pods.map(|pod| format!("pod {} {}:{HTTP_PORT}", pod.name, pod.address)).collect::<Vec<_>>().join(", ")
}

/// The client's `/etc/resolv.conf`: the second of its two lines, and a search list as pods have it.
fn resolv() -> String {
    format!("nameserver {GATEWAY}\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n")
}

/// A script that runs a command, or a shell, as on the client.
fn client_script(lab: &Lab) -> Result<String> {
    let resolv_conf = lab.dir().join("resolv.conf");
    fs::write(&resolv_conf, resolv())?;
    let script = lab.dir().join("client");
    let text = format!(
        "# A command, or a shell, on the lab's client.\n[ $# -gt 0 ] || set -- \"${{SHELL:-sh}}\"\n\
         exec nsenter --net={} unshare -m --propagation private sh -c \
         'mount --bind {} \"$(readlink -f /etc/resolv.conf)\" && exec \"$@\"' sh \"$@\"\n",
        lab.client().path().display(),
        resolv_conf.display()
    );
    fs::write(&script, text)?;
    Ok(script.display().to_string())
}

struct Show<'a> {
    lab: &'a Lab,
    gateway: &'a Gateway<'a>,
    cluster: Option<&'a Cluster<'a>>,
    step: usize,
}

impl Show<'_> {
    fn all(&mut self, web: &Service) -> Result<()> {
        if let Some(cluster) = self.cluster {
            self.deploy(cluster)?;
        }
        self.two_lines()?;
        self.name()?;
        self.search_list()?;
        self.requests()?;
        self.download()?;
        self.refused()?;
        self.missing_name()?;
        self.outside()?;
        match self.cluster {
            Some(cluster) => {
                self.coredns()?;
                self.scale_deployment(cluster)?;
            }
            None => self.scale(web)?,
        }
        self.tables()
    }

    /// Begins a step.
    fn title(&mut self, title: &str) -> Result<()> {
        if STOP.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        self.step += 1;
        println!("\n{}. {title}", self.step);
        Ok(())
    }

    /// Types a command on the client and shows the lines of its output that say something.
    fn client(&self, command: &str, lines: usize) -> Result<String> {
        println!("   client$ {command}");
        let output = with_resolver(self.lab.client(), self.lab.dir(), &resolv(), "sh", &["-c", command])?;
        let telling = output.lines().filter(|line| !line.trim().is_empty() && !line.starts_with(';'));
        for line in telling.take(lines) {
            println!("     {line}");
        }
        Ok(output)
    }

    /// Says what the kernel counted since `before`, and how much of one reason.
    fn counted(&self, before: &Counters, reasons: &[&str]) -> Result<Vec<u64>> {
        let now = self.gateway.counters()?;
        let grown: Vec<u64> = reasons.iter().map(|reason| now.get(reason) - before.get(reason)).collect();
        let text: Vec<String> = reasons.iter().zip(&grown).map(|(reason, by)| format!("{reason} +{by}")).collect();
        println!("   kernel: {}", text.join(", "));
        Ok(grown)
    }

    fn two_lines(&mut self) -> Result<()> {
        self.title("The client's two lines: a route and a name server")?;
        let route = self.lab.client_route();
        println!("   client$ ip {route}\n   client$ echo nameserver {GATEWAY} > /etc/resolv.conf");
        self.lab.client().ip(&[route])
    }

    fn name(&mut self) -> Result<()> {
        self.title("A cluster name, answered in the kernel")?;
        let before = self.gateway.counters()?;
        let output = self.client(&format!("dig {NAME}"), 3)?;
        ensure!(output.contains("status: NOERROR") && output.contains(&VIP.to_string()), "dig said:\n{output}");
        ensure!(self.counted(&before, &["dns_answered"])?[0] >= 1, "the kernel did not answer");
        Ok(())
    }

    fn search_list(&mut self) -> Result<()> {
        self.title("A short name, by the C library and the search list")?;
        let output = self.client("getent ahostsv4 web", 1)?;
        ensure!(output.starts_with(&VIP.to_string()), "getent said:\n{output}");
        Ok(())
    }

    fn requests(&mut self) -> Result<()> {
        self.title("Requests to the Service, spread over pods on two workers and on the gateway node")?;
        let before = self.gateway.counters()?;
        let output = self.client(&format!("for i in $(seq 30); do curl -sS http://{NAME}/; done"), 4)?;
        let mut pods = BTreeMap::<&str, usize>::new();
        for line in output.lines() {
            let pod = line.split_once(" serves ").with_context(|| format!("a pod said {line:?}"))?.0;
            *pods.entry(pod).or_default() += 1;
        }
        let told: Vec<String> = pods.iter().map(|(pod, count)| format!("{pod} answered {count}")).collect();
        println!("     ...\n   {}", told.join(", "));
        ensure!(pods.values().sum::<usize>() == 30, "30 requests, {pods:?} answered");
        ensure!(pods.len() == self.lab.topology.pods.len(), "not every pod was asked");
        let grown = self.counted(&before, &["flow_created", "forwarded", "replied"])?;
        ensure!(grown[0] >= 30 && grown[1] >= 90 && grown[2] >= 90, "the kernel did not forward all of it");
        Ok(())
    }

    fn download(&mut self) -> Result<()> {
        self.title("A download of 100 MB, whole")?;
        let before = self.gateway.counters()?;
        let through = self.client(&format!("curl -sS http://{NAME}/bytes/100000000 | sha256sum"), 1)?;
        let pod = self.lab.pod("web-0").address;
        let direct = self
            .lab
            .node(Node::Gateway)
            .run("sh", &["-c", &format!("curl -sS http://{pod}:{HTTP_PORT}/bytes/100000000 | sha256sum")])?;
        println!("   the same as from the pod itself: {}", through == direct);
        ensure!(through == direct, "the checksums differ: {through} and {direct}");
        self.counted(&before, &["forwarded", "replied"])?;
        Ok(())
    }

    fn refused(&mut self) -> Result<()> {
        self.title("A port that the Service does not have: refused at once")?;
        let before = self.gateway.counters()?;
        let began = Instant::now();
        let output =
            self.client(&format!("curl -sS --max-time 5 http://{NAME}:81/ 2>&1; echo \"curl ended with $?\""), 2)?;
        ensure!(output.contains("curl ended with 7"), "curl was not refused");
        ensure!(began.elapsed() < Duration::from_secs(3), "being refused took {:?}", began.elapsed());
        ensure!(self.counted(&before, &["unknown_port"])?[0] >= 1, "the kernel did not refuse");
        Ok(())
    }

    fn missing_name(&mut self) -> Result<()> {
        self.title("A name that does not exist, answered in the kernel")?;
        let before = self.gateway.counters()?;
        let output = self.client("dig nobody.shop.svc.cluster.local | grep -E 'status|SOA'", 2)?;
        ensure!(output.contains("NXDOMAIN") && output.contains("SOA"), "dig did not say NXDOMAIN");
        println!("     NXDOMAIN");
        ensure!(self.counted(&before, &["dns_nxdomain"])?[0] >= 1, "the kernel did not answer");
        Ok(())
    }

    fn outside(&mut self) -> Result<()> {
        self.title("A name outside: the first time from the upstream server, the second time from the kernel")?;
        let asked = |log: String| log.matches("www.example.test. A IN").count();
        for (time, from_upstream, from_kernel) in [("first", 1, 0), ("second", 0, 1)] {
            let before = (self.gateway.counters()?, asked(self.lab.upstream_log()));
            let output = self.client("kdig www.example.test A", 1)?;
            ensure!(output.contains("192.0.2.80"), "kdig said:\n{output}");
            let kernel = self.counted(&before.0, &["dns_answered", "dns_miss"])?[0];
            let upstream = asked(self.lab.upstream_log()) - before.1;
            println!("   upstream: {upstream} queries");
            ensure!(
                (upstream, kernel) == (from_upstream, from_kernel),
                "the {time} time, the upstream answered {upstream} and the kernel {kernel}"
            );
        }
        Ok(())
    }

    fn scale(&mut self, web: &Service) -> Result<()> {
        self.title("The Service is scaled down to the pod on worker2")?;
        let left = &self.lab.topology.pods[1];
        println!("   cluster$ kubectl scale deployment web --replicas=1   # here: its manifest changes");
        self.lab.manifests.put(&web.clone().endpoints([left]))?;
        std::thread::sleep(Duration::from_secs(1));
        let output =
            self.client(&format!("for i in $(seq 10); do curl -sS http://{NAME}/; done | sort | uniq -c"), 3)?;
        ensure!(output.split_whitespace().take(2).eq(["10", left.name.as_str()]), "another pod answered:\n{output}");
        self.lab.manifests.put(web)
    }

    fn tables(&mut self) -> Result<()> {
        self.title("What the gateway says of all that")?;
        for (args, lines) in [(&["status"][..], 40), (&["services"], 10), (&["flows"], 6), (&["drops"], 14)] {
            println!("   gateway$ gateway {}", args.join(" "));
            for line in self.gateway.command(args)?.lines().take(lines) {
                println!("     {line}");
            }
        }
        Ok(())
    }
}
