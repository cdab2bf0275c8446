//! What goes on by itself: netlink events, neighbours that have to stay fresh, and the collection of dead flows.
//!
//! Two threads, each in the network namespace of the thread that started it. They need no runtime, and neither waits for the
//! other: a walk over a large flow table does not hold up a route change.

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{
    KernelError, Shared,
    hops::Affected,
    netlink::{Event, Events},
};

/// Quiet time after which a burst of route events is acted upon, and how long it may go on at most.
const QUIET: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_millis(200);
/// Between two looks at unresolved neighbours.
const TICK: Duration = Duration::from_secs(1);
/// Between two confirmations of all neighbours in use.
const CONFIRM: Duration = Duration::from_secs(15);
/// Addresses looked up again before the lock is given free for a moment.
const CHUNK: usize = 256;
/// Between two sweeps of a small and of a large flow table.
const SWEEP_SMALL: Duration = Duration::from_secs(1);
const SWEEP_LARGE: Duration = Duration::from_secs(5);
/// Flows from which on a table is large.
const LARGE: usize = 16_384;

/// The threads; dropping them ends them.
#[derive(Debug)]
pub(super) struct Worker {
    stop: Option<(PipeWriter, mpsc::Sender<()>)>,
    threads: Vec<JoinHandle<()>>,
}

impl Worker {
    /// Starts both.
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Self, KernelError> {
        let os = |what| move |source| KernelError::Os { what, source };
        let events = Events::follow()
            .map_err(|source| KernelError::Netlink { what: "following links, routes and neighbours".into(), source })?;
        let (ended, stop) = io::pipe().map_err(os("a pipe"))?;
        let (stop_sweep, sweep_ended) = mpsc::channel();
        let mut worker = Self { stop: Some((stop, stop_sweep)), threads: Vec::new() };
        let follow = Arc::clone(shared);
        let follower = thread::Builder::new().name("gateway-netlink".into());
        worker
            .threads
            .push(follower.spawn(move || follow_events(&follow, &events, &ended)).map_err(os("starting a thread"))?);
        let sweep = Arc::clone(shared);
        let sweeper = thread::Builder::new().name("gateway-sweep".into());
        worker.threads.push(sweeper.spawn(move || sweep_flows(&sweep, &sweep_ended)).map_err(os("starting a thread"))?);
        Ok(worker)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a background thread of the datapath has panicked");
            }
        }
    }
}

fn sweep_flows(shared: &Shared, ended: &mpsc::Receiver<()>) {
    let mut pause = SWEEP_SMALL;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(pause) {
        match shared.sweep() {
            Ok(swept) => pause = if swept.flows > LARGE { SWEEP_LARGE } else { SWEEP_SMALL },
            Err(error) => tracing::warn!(%error, "collecting dead flows failed; it is tried again"),
        }
    }
}

/// Route changes that have not been acted upon.
#[derive(Debug, Default)]
struct Pending {
    all: bool,
    prefixes: Vec<IpNet>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Pending {
    fn add(&mut self, prefix: Option<IpNet>) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        match prefix {
            Some(p) if self.prefixes.len() < CHUNK => {
                if !self.prefixes.contains(&p) {
                    self.prefixes.push(p);
                }
            }
            _ => self.all = true,
        }
    }

    fn due(&self) -> Option<Instant> {
        Some((self.last? + QUIET).min(self.first? + PATIENCE))
    }

    fn take(&mut self) -> Affected {
        let pending = std::mem::take(self);
        if pending.all { Affected::All } else { Affected::Prefixes(pending.prefixes) }
    }
}

fn follow_events(shared: &Shared, events: &Events, ended: &PipeReader) {
    let mut pending = Pending::default();
    // What happened between the first look and the first event: neighbours that were asked for when the first endpoints came have answered.
    pending.add(None);
    report(shared.state().resync());
    let mut tick = Instant::now() + TICK;
    let mut confirm = Instant::now() + CONFIRM;
    loop {
        let next = pending.due().map_or(tick, |due| due.min(tick));
        match wait(events, ended, next.saturating_duration_since(Instant::now())) {
            Ok(Ready::Ended) => return,
            Ok(Ready::Events) => match events.read() {
                Ok(list) => take_in(shared, list, &mut pending),
                Err(error) => {
                    tracing::warn!(%error, "reading netlink events failed; everything is looked at again");
                    pending.add(None);
                }
            },
            Ok(Ready::Timeout) => {}
            Err(error) => {
                tracing::error!(%error, "waiting for netlink events failed; routes are looked at every second now");
                thread::sleep(TICK);
                pending.add(None);
            }
        }
        let now = Instant::now();
        if pending.due().is_some_and(|due| due <= now) {
            report(reroute(shared, &pending.take()));
        }
        if now >= tick {
            tick = now + TICK;
            report(shared.state().tick(now >= confirm));
            if now >= confirm {
                confirm = now + CONFIRM;
            }
        }
    }
}

fn report(result: Result<(), KernelError>) {
    if let Err(error) = result {
        tracing::warn!("{error}");
    }
}

fn take_in(shared: &Shared, events: Vec<Event>, pending: &mut Pending) {
    let mut state = shared.state();
    // Once for all of them: a kube-proxy in IPVS mode gives the node thousands of addresses.
    if events.iter().any(|event| matches!(event, Event::Address(_))) {
        report(state.refresh_config());
    }
    for event in events {
        match event {
            Event::Route(prefix) => pending.add(Some(prefix)),
            Event::Address(_) | Event::Rule => pending.add(None),
            Event::Lost => {
                pending.add(None);
                report(state.resync());
            }
            Event::Link(link) => match state.link_changed(link.index, Some(link)) {
                Ok(routes) if routes => pending.add(None),
                result => report(result.map(drop)),
            },
            Event::LinkGone(index) => {
                report(state.link_changed(index, None).map(drop));
                pending.add(None);
            }
            Event::Neighbour(n) => report(state.neighbour_changed(&n)),
        }
    }
}

fn reroute(shared: &Shared, affected: &Affected) -> Result<(), KernelError> {
    let addresses = shared.state().affected(affected);
    for chunk in addresses.chunks(CHUNK) {
        shared.state().reroute(chunk)?;
    }
    shared.state().routes_settled(affected)
}

enum Ready {
    Events,
    Ended,
    Timeout,
}

fn wait(events: &Events, ended: &PipeReader, most: Duration) -> io::Result<Ready> {
    let wanted = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut fds = [wanted(ended.as_raw_fd()), wanted(events.as_fd().as_raw_fd())];
    // Rounded up, so that a wait of less than a millisecond is not a busy loop.
    let most = i32::try_from(most.as_millis() + 1).unwrap_or(i32::MAX);
    // SAFETY: `fds` is an array of two initialised descriptors that outlives the call.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, most) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(Ready::Timeout) } else { Err(error) };
    }
    Ok(match fds.map(|f| f.revents != 0) {
        [true, _] => Ready::Ended,
        [false, true] => Ready::Events,
        [false, false] => Ready::Timeout,
    })
}
