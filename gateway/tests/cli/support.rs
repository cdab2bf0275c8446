//! The real binary with a config and manifests of its own, in a directory that goes with it.

use std::{
    fs,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::ports::free;

/// Longer than any start on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A Service with two endpoints, as `kubectl get -o yaml` prints it, less what is not read.
pub const WEB: &str = "
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: shop}
  spec:
    clusterIP: 10.1.0.20
    clusterIPs: [10.1.0.20]
    ports: [{name: http, port: 80, protocol: TCP, targetPort: 8080}]
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  addressType: IPv4
  metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
  ports: [{name: http, port: 8080, protocol: TCP}]
  endpoints:
  - {addresses: [10.244.1.2], conditions: {ready: true}}
  - {addresses: [10.244.2.2], conditions: {ready: true}}
";

/// A place with a config, a manifest directory and two free ports.
pub struct Place {
    dir: TempDir,
    pub http: SocketAddr,
    pub dns: SocketAddr,
}

impl Place {
    /// With one Service in its manifests.
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        fs::create_dir(dir.path().join("cluster")).expect("a manifest directory");
        let place = Self { dir, http: free(), dns: free() };
        place.manifest("web.yaml", WEB);
        place
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a manifest; a file appears whole, as editors and ConfigMaps do it.
    pub fn manifest(&self, name: &str, text: &str) {
        let hidden = self.path().join(format!(".{name}.new"));
        fs::write(&hidden, text).expect("a manifest");
        fs::rename(hidden, self.path().join("cluster").join(name)).expect("a manifest in place");
    }

    /// The config that needs nothing of the node: the forwarder alone, on loopback.
    pub fn least(&self) -> String {
        format!(
            "clients: [{{name: here, cidrs: [127.0.0.0/8]}}]\nsource: {{manifests: cluster}}\nserviceCIDRs: [10.1.0.0/16]\n\
             http: {}\ndns: {{listen: [\"{}\"]}}\ndatapath: {{mode: \"off\"}}\n",
            self.http, self.dns
        )
    }

    pub fn config(&self, text: &str) -> PathBuf {
        let path = self.path().join("gateway.yaml");
        fs::write(&path, text).expect("a config");
        path
    }

    /// Starts an agent and waits until it serves.
    pub fn agent(&self, config: &str) -> Agent {
        let path = self.config(config);
        let mut child = gateway(&["run", "--config"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("the agent's state") {
                panic!("the agent ended with {status}: {}", stderr(&mut child));
            }
            let ready = fetch(self.http, "/readyz");
            if ready.is_some_and(|(code, _)| code == 200) {
                return Agent { child, config: path, http: self.http };
            }
            if Instant::now() > end {
                let _ended = child.kill();
                panic!("the agent is not ready after {PATIENCE:?}: {}", stderr(&mut child));
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Runs an agent that must not start: its one line.
    pub fn refused(&self, config: &str) -> String {
        let path = self.config(config);
        let output = finish(gateway(&["run", "--config"]).arg(path));
        refusal(&output)
    }
}

/// The one line of a command that failed with exit code 1: nothing else is on stderr.
pub fn refusal(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("gateway: ") && text.ends_with('\n') && text.lines().count() == 1, "not one line: {text}");
    text
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    pub config: PathBuf,
    http: SocketAddr,
}

impl Agent {
    pub fn get(&self, path: &str) -> (u16, String) {
        fetch(self.http, path).expect("the agent answers")
    }

    /// A command that asks this agent.
    pub fn ask(&self, command: &str, more: &[&str]) -> String {
        let output = finish(gateway(&[command, "--config"]).arg(&self.config).args(more));
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    pub fn json(&self, command: &str) -> serde_json::Value {
        serde_json::from_str(&self.ask(command, &["-o", "json"])).expect("JSON")
    }

    /// Waits until `holds` or the time is over.
    pub fn until(&self, within: Duration, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + within;
        while !holds(self) {
            assert!(Instant::now() < end, "not within {within:?}: {what}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal that it survives.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("the agent is there");
    }

    /// Sends a signal and waits for the end: its status and its log.
    pub fn end(mut self, signal: Signal) -> (ExitStatus, String) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("the agent is there");
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the agent's state") {
                return (status, stderr(&mut self.child));
            }
            assert!(Instant::now() < end, "the agent does not end");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn stderr(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        let _partial = pipe.read_to_string(&mut text);
    }
    text
}

/// The binary with these arguments, whatever log filter the caller has.
pub fn gateway(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs to the end, but not for ever.
pub fn finish(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary can be started");
    let end = Instant::now() + PATIENCE;
    while child.try_wait().expect("its state").is_none() {
        if Instant::now() > end {
            let _ended = child.kill();
            panic!("still running after {PATIENCE:?}: {command:?}: {}", stderr(&mut child));
        }
        sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("its output")
}

/// A GET, by hand: the tests need no client of their own.
fn fetch(at: SocketAddr, path: &str) -> Option<(u16, String)> {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect_timeout(&at, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
