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
/// In so many rounds: the two clusters take turns, so that what disturbs one disturbs the other.
const ROUNDS: u32 = 10;
/// A change that takes longer than this is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// For how long an idle agent is watched.
const IDLE: Duration = Duration::from_secs(4);

/// A cluster behind its agent, and what was measured of it.
struct Cluster {
    size: Size,
    api: Api,
    agent: Option<Process>,
    lab: Lab,
    maps: Services,
    /// How often each Service has changed.
    turns: Vec<u32>,
    /// Serves the API.
    _runtime: tokio::runtime::Runtime,
    /// From the agent's start, and from the last page of the lists, until it was ready; seconds.
    start: f64,
    sync: f64,
    /// Bytes of the lists.
    listed: usize,
    memory: Memory,
    /// Share of one CPU.
    idle_cpu: f64,
    rest: Times,
    /// Times and shares of one CPU of each round.
    busy: Vec<Times>,
    busy_cpu: Vec<f64>,
    large: Option<Times>,
    names: Times,
}

/// Runs everything and prints the table; false: a target was missed.
///
/// # Errors
/// When the lab cannot be built, or a change never arrived.
pub fn run() -> Result<bool> {
    let mut clusters = [Cluster::start(SMALL)?, Cluster::start(LARGE)?];
    for cluster in &mut clusters {
        cluster.rest = cluster.ordinary(REST)?;
    }
    for _ in 0..ROUNDS {
        clusters.iter_mut().try_for_each(Cluster::busy_round)?;
    }
    for cluster in &mut clusters {
        cluster.large = cluster.large_to_map()?;
        cluster.names = cluster.lab.client().enter(|| to_answer(&cluster.api))?;
    }
    for cluster in &mut clusters {
        cluster.stop()?;
    }
    let real = match cluster::program() {
        Ok(_) => Some(real::measure(LARGE)?),
        Err(why) => {
            println!("skipped: the real API server: {why}");
            None
        }
    };
    let mut table = Table { ok: true };
    println!("{:<58} {:>10} {:>8} {:>6}", "", "measured", "target", "");
    for cluster in &clusters {
        cluster.tell(&mut table);
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
    let [small, large] = &clusters;
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

impl Cluster {
    /// Fills an API server and starts an agent, until it is ready and at rest.
    fn start(size: Size) -> Result<Self> {
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
        let (listed_at, listed) = api.listed();
        let listed_at = listed_at.context("the agent has not asked for a list")?;
        std::thread::sleep(Duration::from_secs(3));
        let pid = agent.pid();
        let memory = Memory::of(pid)?;
        let (_, idle_cpu) = spent(pid, || {
            std::thread::sleep(IDLE);
            Ok(())
        })?;
        Ok(Self {
            maps: Services::of(pid)?,
            turns: vec![0; size.services as usize],
            start: (ready - began).as_secs_f64(),
            sync: ready.saturating_duration_since(listed_at).as_secs_f64(),
            size,
            api,
            lab,
            agent: Some(agent),
            _runtime: runtime,
            listed,
            memory,
            idle_cpu,
            rest: Times::default(),
            busy: Vec::new(),
            busy_cpu: Vec::new(),
            large: None,
            names: Times::default(),
        })
    }

    fn busy_round(&mut self) -> Result<()> {
        let pid = self.pid()?;
        let (times, cpu) = spent(pid, || self.ordinary((BUSY.0, BUSY.1 / ROUNDS)))?;
        self.busy.push(times);
        self.busy_cpu.push(cpu);
        Ok(())
    }

    /// From an ordinary Service's slice to its entry in the kernel's map.
    fn ordinary(&mut self, pace: (Duration, u32)) -> Result<Times> {
        let put = |slice| Ok(self.api.put("endpointslices", slice));
        to_map(&put, &self.maps, &mut self.turns, pace)
    }

    /// The same for the large Service, if there is one, of whose slices one changes at a time.
    fn large_to_map(&self) -> Result<Option<Times>> {
        if self.size.large == 0 {
            return Ok(None);
        }
        let vip = world::large_vip(self.size);
        let change = |number: u32| {
            let before = self.maps.table(vip)?;
            let at = self.api.put("endpointslices", world::large_slice(self.size, number, 1));
            Ok(Change { at, of: before })
        };
        follow((Duration::from_millis(500), 20), change, |before| Ok(self.maps.table(vip)? != *before))
            .map(Some)
            .context("the large Service")
    }

    /// Ends the agent, when all is measured.
    fn stop(&mut self) -> Result<()> {
        self.agent.take().map_or(Ok(()), |agent| stop(agent, &self.lab))
    }

    fn pid(&self) -> Result<u32> {
        self.agent.as_ref().map(Process::pid).context("the agent has ended")
    }

    /// Share of one CPU while changes came: the median of the rounds.
    fn busy_cpu(&self) -> f64 {
        let mut shares = self.busy_cpu.clone();
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// CPU time of one change, in microseconds, without what an idle agent takes.
    fn cost(&self) -> f64 {
        (self.busy_cpu() - self.idle_cpu).max(0.0) * BUSY.0.as_secs_f64() * 1e6
    }

    /// Its rows of the table.
    fn tell(&self, table: &mut Table) {
        let Size { services, .. } = self.size;
        let target = |limit: f64| (services == LARGE.services).then_some(limit);
        println!(
            "{services} Services, {} endpoints, lists of {:.1} MB",
            self.size.endpoints(),
            self.listed as f64 / 1e6
        );
        table.row("  ready after the agent's start, s", self.start, None);
        table.row("  ready after the last list was sent, s", self.sync, target(3.0));
        table.row("  resident at rest, MB", self.memory.resident as f64 / 1e6, target(150.0));
        table.row("  resident at the peak, MB", self.memory.peak as f64 / 1e6, None);
        table.times("  event to kernel map, at rest, ms", &self.rest, target(10.0));
        table.times("  event to kernel map, 100 changes a second, ms", &Times::of_all(&self.busy), None);
        if let Some(times) = &self.large {
            table.times(&format!("  event to kernel map, Service of {}, ms", self.size.large), times, None);
        }
        table.times("  event to DNS answer, 100 changes a second, ms", &self.names, target(50.0));
        table.row("  CPU at 100 changes a second, %", self.busy_cpu() * 100.0, None);
        table.row("  CPU without changes, %", self.idle_cpu * 100.0, None);
        table.row("  CPU of a change, us", self.cost(), None);
    }
}

/// What the work gives, and the share of one CPU that the process took meanwhile.
fn spent<T>(pid: u32, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let (before, began) = (cpu(pid)?, Instant::now());
    let done = work()?;
    Ok((done, (cpu(pid)? - before).as_secs_f64() / began.elapsed().as_secs_f64()))
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
    let done: u32 = turns.iter().sum();
    let change = |number: u32| {
        // Far from one another, and each one anew before any comes twice.
        let service = (done + number).wrapping_mul(7_919) % u32::try_from(turns.len())?;
        let vip = world::vip(service);
        let before = maps.table(vip)?;
        let turn = &mut turns[service as usize];
        *turn += 1;
        let at = put(world::ordinary_slice(service, *turn))?;
        Ok(Change { at, of: (vip, before) })
    };
    follow(pace, change, |(vip, before)| Ok(maps.table(*vip)? != *before)).context("ordinary Services")
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
