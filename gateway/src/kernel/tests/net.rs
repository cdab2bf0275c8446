//! Network namespaces without names: each belongs to a thread and goes with it, also when a test panics.

use std::{
    any::Any,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::Command,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Uid, gettid},
};

type Job = Box<dyn FnOnce() + Send>;

/// A namespace and the thread that lives in it.
pub(super) struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    path: String,
}

impl Namespace {
    /// A fresh one with its loopback device up.
    pub(super) fn new() -> Self {
        let (jobs, list) = channel::<Job>();
        let (tell, path) = channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid())).expect("the test waits");
            while let Ok(job) = list.recv() {
                job();
            }
        });
        let path = path.recv().expect("the namespace exists");
        let namespace = Self { jobs: Some(jobs), thread: Some(thread), path };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `f` inside.
    pub(super) fn run<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> R {
        let (tell, result) = channel();
        let job = move || drop(tell.send(catch_unwind(AssertUnwindSafe(f))));
        self.jobs.as_ref().expect("not dropped").send(Box::new(job)).expect("the thread lives");
        let result: Result<R, Box<dyn Any + Send>> = result.recv().expect("the thread answers");
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// `ip ARGS` inside.
    pub(super) fn ip(&self, args: &str) {
        self.command("ip", args);
    }

    /// A command inside, which must succeed; its output.
    pub(super) fn command(&self, program: &'static str, args: &str) -> String {
        let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
        self.run(move || {
            let out = Command::new(program).args(&args).output().expect("the command exists");
            assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8_lossy(&out.stdout).into_owned()
        })
    }

    /// Reads a sysctl inside.
    pub(super) fn sysctl(&self, key: &str) -> String {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run(move || fs::read_to_string(path).expect("the sysctl exists").trim().to_owned())
    }

    /// Writes a sysctl inside.
    pub(super) fn set_sysctl(&self, key: &str, value: &'static str) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run(move || fs::write(path, value).expect("the sysctl exists"));
    }

    /// A veth pair: `here` in this namespace, `there` in the other, both up with these addresses.
    pub(super) fn veth(&self, here: &str, addr: &str, other: &Self, there: &str, other_addr: &str) {
        self.ip(&format!("link add {here} type veth peer name {there} netns {}", other.path));
        self.ip(&format!("addr add {addr} dev {here}"));
        other.ip(&format!("addr add {other_addr} dev {there}"));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("link set {there} up"));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic inside a job was caught there.
            thread.join().unwrap_or(());
        }
    }
}

/// True, and says so, when the test cannot run here.
pub(super) fn skip() -> bool {
    if Uid::effective().is_root() {
        return false;
    }
    eprintln!("skipped: needs root for network namespaces and BPF");
    true
}

/// True, and says so, when this kernel has no VLAN devices.
pub(super) fn no_vlans(namespace: &Namespace) -> bool {
    let made = namespace.run(|| {
        let args = ["link", "add", "link", "up0", "name", "probe", "type", "vlan", "id", "9"];
        Command::new("ip").args(args).output().is_ok_and(|out| out.status.success())
    });
    if made {
        namespace.ip("link del probe");
    } else {
        eprintln!("skipped: this kernel has no VLAN devices");
    }
    !made
}

/// Waits until `check` holds; fails the test after five seconds.
#[track_caller]
pub(super) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !check() {
        assert!(Instant::now() < end, "{what}: not within five seconds");
        thread::sleep(Duration::from_millis(10));
    }
}
