//! `cargo xtask bench control`: a large cluster behind one agent: how long until it serves, what it holds in memory, and how long a change
//! takes from the API server's event to the kernel's maps and to the answer that a client gets.
//!
//! The agent is the product's own binary in the lab; the API server is a stand-in ([`api`]), which says when an event left it, and then a
//! real one ([`real`]) with the same objects.

mod api;
mod probe;
mod real;
mod world;

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use gateway_lab::{
    GatewayConfig, Lab, Node, Topology, agent, clients, cluster,
    process::{NotYet, Process, wait_for},
    topology::GATEWAY,
};
use nix::sys::signal::Signal;
use serde_json::json;

use self::{
    api::Api,
    probe::{Asker, Memory, Services, Times, cpu},
    world::{HEADLESS, Size},
};

/// The cluster that the targets are about.
const LARGE: Size = Size { services: 10_000, large: 5_000 };
/// The one that it is compared with.
const SMALL: Size = Size { services: 100, large: 0 };
/// Time between changes "at rest", and how many there are.
const REST: (Duration, u32) = (Duration::from_millis(50), 200);
/// The same for the busy cluster.
const BUSY: (Duration, u32) = (Duration::from_millis(10), 2_000);
/// A change that takes longer than this is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// For how long an idle agent is watched.
const IDLE: Duration = Duration::from_secs(4);

/// What was measured of one cluster.
struct Figures {
    size: Size,
    /// From the agent's start, and from the last page of the lists, until it was ready; seconds.
    start: f64,
    sync: f64,
    /// Bytes of the lists.
    listed: usize,
    memory: Memory,
    rest: Times,
    busy: Times,
    large: Option<Times>,
    names: Times,
    /// Shares of one CPU.
    idle_cpu: f64,
    busy_cpu: f64,
}

impl Figures {
    /// CPU time of one change, in microseconds, without what an idle agent takes.
    fn cost(&self) -> f64 {
        (self.busy_cpu - self.idle_cpu).max(0.0) * BUSY.0.as_secs_f64() * 1e6
    }
}

/// Runs everything and prints the table; false: a target was missed.
///
/// # Errors
/// When the lab cannot be built, or a change never arrived.
pub fn run() -> Result<bool> {
    let small = measure(SMALL)?;
    let large = measure(LARGE)?;
    let real = match cluster::program() {
        Ok(_) => Some(real::measure(LARGE)?),
        Err(why) => {
            println!("skipped: the real API server: {why}");
            None
        }
    };
    let mut table = Table { ok: true };
    println!("{:<58} {:>10} {:>8} {:>6}", "", "measured", "target", "");
    for figures in [&small, &large] {
        let Size { services, .. } = figures.size;
        let target = |limit: f64| (services == LARGE.services).then_some(limit);
        println!(
            "{services} Services, {} endpoints, lists of {:.1} MB",
            figures.size.endpoints(),
            figures.listed as f64 / 1e6
        );
        table.row("  ready after the agent's start, s", figures.start, None);
        table.row("  ready after the last list was sent, s", figures.sync, target(3.0));
        table.row("  resident at rest, MB", figures.memory.resident as f64 / 1e6, target(150.0));
        table.row("  resident at the peak, MB", figures.memory.peak as f64 / 1e6, None);
        table.times("  event to kernel map, at rest, ms", &figures.rest, target(10.0));
        table.times("  event to kernel map, 100 changes a second, ms", &figures.busy, None);
        if let Some(times) = &figures.large {
            table.times(&format!("  event to kernel map, Service of {}, ms", figures.size.large), times, None);
        }
        table.times("  event to DNS answer, 100 changes a second, ms", &figures.names, target(50.0));
        table.row("  CPU at 100 changes a second, %", figures.busy_cpu * 100.0, None);
        table.row("  CPU without changes, %", figures.idle_cpu * 100.0, None);
        table.row("  CPU of a change, us", figures.cost(), None);
    }
    if let Some(figures) = &real {
        println!("the same in a real API server (streamed, TLS, on the same processors)");
        table.row("  ready after the agent's start, s", figures.start, None);
        table.row("  resident at rest, MB", figures.memory.resident as f64 / 1e6, Some(150.0));
        table.row("  resident at the peak, MB", figures.memory.peak as f64 / 1e6, None);
        table.times("  written to kernel map, at rest, ms", &figures.rest, Some(10.0));
        table.times("  written to kernel map, 100 changes a second, ms", &figures.busy, None);
        table.row("  CPU at 100 changes a second, %", figures.busy_cpu * 100.0, None);
    }
    table.row("cost of a change, large against small", large.cost() / small.cost(), Some(1.5));
    Ok(table.ok)
}

struct Table {
    ok: bool,
}

impl Table {
    fn row(&mut self, what: &str, value: f64, limit: Option<f64>) {
        let verdict = match limit {
            // A figure that is none is over, too.
            Some(limit) if value <= limit => "ok",
            Some(_) => {
                self.ok = false;
                "OVER"
            }
            None => "",
        };
        let limit = limit.map_or_else(String::new, |limit| format!("{limit:.1}"));
        println!("{what:<58} {value:>10.2} {limit:>8} {verdict:>6}");
    }

    /// Median and 99th percentile, whose limit it is.
    fn times(&mut self, what: &str, times: &Times, limit: Option<f64>) {
        self.row(&format!("{what}, median of {}", times.len()), times.at(0.5), None);
        self.row(&format!("{what}, p99"), times.at(0.99), limit);
    }
}

fn measure(size: Size) -> Result<Figures> {
    let api = Api::new();
    world::fill(&api, size);
    let lab = Lab::build(Topology::with_pods(&[]))?;
    route_pods(&lab)?;
    let socket = lab.node(Node::Gateway).enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let server = socket.local_addr()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    api.serve(&runtime, socket)?;

    let began = Instant::now();
    let agent = start(&lab, &unguarded(&lab, &format!("http://{server}"))?)?;
    let ready = Instant::now();
    let (listed, bytes) = api.listed();
    let listed_at = listed.context("the agent has not asked for a list")?;
    let pid = agent.pid();
    std::thread::sleep(Duration::from_secs(3));
    let memory = Memory::of(pid)?;

    let spent = |work: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        let (before, began) = (cpu(pid)?, Instant::now());
        work()?;
        Ok((cpu(pid)? - before).as_secs_f64() / began.elapsed().as_secs_f64())
    };
    let idle_cpu = spent(&mut || {
        std::thread::sleep(IDLE);
        Ok(())
    })?;
    let maps = Services::of(pid)?;
    let mut turns = vec![0; size.services as usize];
    let put = |slice| Ok(api.put("endpointslices", slice));
    let rest = to_map(&put, &maps, &mut turns, REST)?;
    let mut busy = Times::default();
    let busy_cpu = spent(&mut || {
        busy = to_map(&put, &maps, &mut turns, BUSY)?;
        Ok(())
    })?;
    let large = (size.large > 0).then(|| large_to_map(&api, &maps, size)).transpose()?;
    let names = lab.client().enter(|| to_answer(&api))?;
    stop(agent, &lab)?;
    Ok(Figures {
        size,
        start: (ready - began).as_secs_f64(),
        sync: ready.saturating_duration_since(listed_at).as_secs_f64(),
        listed: bytes,
        memory,
        rest,
        busy,
        large,
        names,
        idle_cpu,
        busy_cpu,
    })
}

/// Routes the endpoints' addresses as a cluster does: none of them is there.
fn route_pods(lab: &Lab) -> Result<()> {
    let worker = Node::Worker1.address();
    let routes = [format!("route add {}/9 via {worker}", world::PODS), format!("route add 10.127.0.0/16 via {worker}")];
    lab.node(Node::Gateway).ip(&routes)
}

/// A kubeconfig for a server that asks nobody who he is.
fn unguarded(lab: &Lab, server: &str) -> Result<PathBuf> {
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": server}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    });
    let file = lab.dir().join("kubeconfig");
    fs::write(&file, kubeconfig.to_string())?;
    Ok(file)
}

/// Starts the agent and waits until it is ready.
fn start(lab: &Lab, kubeconfig: &Path) -> Result<Process> {
    let config = GatewayConfig { kubeconfig: Some(kubeconfig.to_owned()), ..GatewayConfig::default() };
    let file = lab.dir().join("gateway.yaml");
    fs::write(&file, config.yaml(&lab.manifests.dir))?;
    let binary: PathBuf =
        std::env::var_os("GATEWAY_BIN").context("GATEWAY_BIN: run `cargo xtask bench control`")?.into();
    let mut command = lab.node(Node::Gateway).command(&binary);
    command.args(["run", "--config"]).arg(&file);
    let mut process = Process::start("gateway", command, &lab.dir().join("gateway.log"))?;
    wait_for("the gateway's /readyz", Duration::from_secs(120), || {
        if let Some(status) = process.ended() {
            return Err(NotYet::Never(anyhow!("the gateway ended: {status}: {}", process.said())));
        }
        let http = (Ipv4Addr::LOCALHOST, 9153).into();
        match lab.node(Node::Gateway).enter(|| clients::http_get(http, "/readyz"))?.status {
            200 => Ok(()),
            status => Err(NotYet::Later(anyhow!("/readyz: {status}"))),
        }
    })
    .with_context(|| process.said())?;
    Ok(process)
}

fn stop(mut agent: Process, lab: &Lab) -> Result<()> {
    let status = agent.stop(Signal::SIGTERM, Duration::from_secs(30))?;
    let left = agent::left_on(lab.node(Node::Gateway))?;
    if !status.success() || !left.is_empty() {
        bail!("the gateway ended with {status} and left {left:?}:\n{}", agent.said());
    }
    Ok(())
}

/// A change that is on its way.
struct Change<T> {
    at: Instant,
    /// What changes.
    of: T,
}

/// Makes changes at a steady pace on a thread of its own, and looks for each until it is there.
fn follow<T: Send>(
    (pace, count): (Duration, u32),
    mut change: impl FnMut(u32) -> Result<Change<T>> + Send,
    mut arrived: impl FnMut(&T) -> Result<bool>,
) -> Result<Times> {
    let (sender, changes) = mpsc::channel();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || -> Result<()> {
            let began = Instant::now();
            for number in 0..count {
                let due = began + pace * number;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let change = change(number)?;
                sender.send(change).map_err(|_| anyhow!("nobody looks for changes any more"))?;
            }
            Ok(())
        });
        let mut waiting: Vec<Change<T>> = Vec::new();
        let mut times = Vec::with_capacity(count as usize);
        let mut more = true;
        while more || !waiting.is_empty() {
            loop {
                match changes.try_recv() {
                    Ok(change) => waiting.push(change),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => {
                        more = false;
                        break;
                    }
                }
            }
            for change in std::mem::take(&mut waiting) {
                let taken = change.at.elapsed();
                if arrived(&change.of)? {
                    times.push(change.at.elapsed());
                } else if taken > PATIENCE {
                    bail!("a change has not arrived within {PATIENCE:?}");
                } else {
                    waiting.push(change);
                }
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        writer.join().map_err(|_| anyhow!("the thread that makes changes panicked"))??;
        Ok(Times::new(times))
    })
}

/// From an ordinary Service's slice to its entry in the kernel's map; `put` writes a slice and says when that was done, `turns` how often
/// each Service has changed.
fn to_map(
    put: &(impl Fn(serde_json::Value) -> Result<Instant> + Sync),
    maps: &Services,
    turns: &mut [u32],
    pace: (Duration, u32),
) -> Result<Times> {
    let change = |number: u32| {
        // Far from one another, and each one anew before any comes twice.
        let service = number.wrapping_mul(7_919) % u32::try_from(turns.len())?;
        let vip = world::vip(service);
        let before = maps.table(vip)?;
        let turn = &mut turns[service as usize];
        *turn += 1;
        let at = put(world::ordinary_slice(service, *turn))?;
        Ok(Change { at, of: (vip, before) })
    };
    follow(pace, change, |(vip, before)| Ok(maps.table(*vip)? != *before)).context("ordinary Services")
}

/// The same for the large Service, of whose slices one changes at a time.
fn large_to_map(api: &Api, maps: &Services, size: Size) -> Result<Times> {
    let vip = world::large_vip(size);
    let change = |number: u32| {
        let before = maps.table(vip)?;
        let at = api.put("endpointslices", world::large_slice(size, number, 1));
        Ok(Change { at, of: before })
    };
    follow((Duration::from_millis(500), 20), change, |before| Ok(maps.table(vip)? != *before))
        .context("the large Service")
}

/// From a headless Service's slice to the address in a client's answer. Runs in the client's namespace.
fn to_answer(api: &Api) -> Result<Times> {
    let mut asker = Asker::new(GATEWAY)?;
    let change = |number: u32| {
        let of = number % HEADLESS;
        let (slice, addr) = world::headless_slice(of, 1 + number / HEADLESS);
        let name = format!("{}.named.svc.cluster.local", world::headless(of));
        Ok(Change { at: api.put("endpointslices", slice), of: (name, addr) })
    };
    follow(BUSY, change, |(name, addr)| Ok(asker.ask(name)? == Some(*addr))).context("names")
}
