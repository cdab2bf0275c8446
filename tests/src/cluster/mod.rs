//! A real Kubernetes control plane in a lab: etcd, kube-apiserver and kube-controller-manager on the node `worker1`, reached under an
//! address of its own. No kubelet runs: see [`kubelet`].

mod certificates;
mod coredns;
pub mod kubelet;
mod parts;
pub mod proxy;
pub mod world;

use std::{
    fs,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

pub use self::coredns::{COREDNS, DNS_VIP, dns_deployment};
use self::{certificates::Certificates, kubelet::Kubelet};
use crate::{
    Lab, Node,
    netns::Namespace,
    process::{NotYet, Process, wait_for},
    topology::{SERVICE_CIDR, SERVICE_CIDR6, both},
};

/// The API server's address: one of its own, so that it can be cut off without its node.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 90, 2, 10);
/// Its port.
pub const PORT: u16 = 6443;
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(CONTROL), PORT);
/// The rights of the gateway's own service account, `gateway` in `gateway-system`.
pub const RBAC: &str = include_str!("../../../deploy/rbac.yaml");
/// What `dns.pods: verified` needs beside it.
pub const RBAC_PODS: &str = include_str!("../../../deploy/rbac-pods.yaml");
/// What lets it say something back: Leases and Events.
pub const RBAC_STATUS: &str = include_str!("../../../deploy/rbac-status.yaml");
/// How long a part may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The controllers that run: those between a Deployment and its slices, and what namespaces and service CIDRs need.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,endpointslice-controller,endpointslice-mirroring-controller,\
     endpoints-controller,namespace-controller,serviceaccount-controller,service-cidr-controller,garbage-collector-controller";

/// The program with all parts, when it has been built; else why not.
///
/// # Errors
/// The reason, as a test that is skipped says it.
pub fn program() -> Result<PathBuf, String> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster");
    let place = parts::place(&module).ok_or("the cluster's program has no place: HOME is not set")?;
    if place.exists() {
        return Ok(place);
    }
    Err(format!("{} is not built: `cargo xtask test` builds it where Go is installed", place.display()))
}

/// Where `cargo xtask test` puts `kubernetes-validate`.
pub fn validator() -> Option<PathBuf> {
    parts::cache().map(|cache| cache.join(parts::VALIDATOR))
}

/// A running control plane. Dropping it ends every part.
#[derive(Debug)]
pub struct Cluster<'lab> {
    // In the order in which they end.
    kubelet: Option<Kubelet>,
    coredns: Mutex<Option<Process>>,
    controllers: Mutex<Option<Process>>,
    apiserver: Mutex<Option<Process>>,
    etcd: Mutex<Option<Process>>,
    lab: &'lab Lab,
    program: PathBuf,
    dir: PathBuf,
    certificates: Certificates,
}

impl<'lab> Cluster<'lab> {
    /// Starts it, with a Node object for each node of the lab, and waits until it serves.
    ///
    /// # Errors
    /// The part that did not start, with its log.
    pub fn start(lab: &'lab Lab) -> Result<Self> {
        let program = program().map_err(|why| anyhow!(why))?;
        let dir = lab.dir().join("control");
        fs::create_dir_all(&dir)?;
        let certificates =
            Certificates::make(&dir, &format!("IP:{CONTROL},IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc"))?;
        let mut cluster = Self {
            kubelet: None,
            coredns: Mutex::default(),
            controllers: Mutex::default(),
            apiserver: Mutex::default(),
            etcd: Mutex::default(),
            lab,
            program,
            dir,
            certificates,
        };
        cluster.node().ip(&[format!("addr add {CONTROL}/32 dev eth0")])?;
        cluster.kubeconfig("admin", (Ipv4Addr::LOCALHOST, PORT).into(), &cluster.by_certificate("admin"))?;
        cluster.start_etcd()?;
        cluster.start_apiserver()?;
        cluster.start_controllers()?;
        cluster.nodes()?;
        let config = cluster.admin();
        let slots = lab.topology.pods.clone();
        cluster.kubelet = Some(cluster.node().enter(|| Kubelet::start(slots, async move || client(&config).await)));
        Ok(cluster)
    }

    /// The namespace that it runs in.
    pub fn node(&self) -> &Namespace {
        self.lab.node(Node::Worker1)
    }

    /// The certificate of the authority that the API server's is from.
    pub fn authority(&self) -> PathBuf {
        self.certificates.file("ca.crt")
    }

    /// An administrator's kubeconfig, for programs on the same node.
    pub fn admin(&self) -> PathBuf {
        self.dir.join("admin.yaml")
    }

    fn by_certificate(&self, name: &str) -> Value {
        json!({
            "client-certificate": self.certificates.file(&format!("{name}.crt")),
            "client-key": self.certificates.file(&format!("{name}.key")),
        })
    }

    /// Writes a kubeconfig and gives its path.
    fn kubeconfig(&self, name: &str, server: SocketAddr, user: &Value) -> Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{server}"), "certificate-authority": self.certificates.file("ca.crt"),
            }}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
        });
        let path = self.dir.join(format!("{name}.yaml"));
        fs::write(&path, serde_yaml_ng::to_string(&config)?)?;
        Ok(path)
    }

    /// A kubeconfig with a token of this service account, for programs on any node.
    ///
    /// # Errors
    /// When there is no such service account.
    pub fn account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        self.account_at(namespace, name, SERVER)
    }

    /// The same for an API server that is reached elsewhere, as through a proxy.
    ///
    /// # Errors
    /// When there is no such service account.
    pub fn account_at(&self, namespace: &str, name: &str, server: SocketAddr) -> Result<PathBuf> {
        let token = self.token(namespace, name)?;
        self.kubeconfig(&format!("account-{name}"), server, &json!({"token": token}))
    }

    /// A token of this service account.
    ///
    /// # Errors
    /// When there is no such service account.
    pub fn token(&self, namespace: &str, name: &str) -> Result<String> {
        let token = self.kubectl(&["create", "token", name, "-n", namespace, "--duration=2h"])?;
        Ok(token.trim().to_owned())
    }

    /// A kubeconfig whose credentials a program tells (`client.authentication.k8s.io/v1`), for programs on any node.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn by_program(&self, command: &Path) -> Result<PathBuf> {
        let exec = json!({
            "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never", "command": command,
            "args": ["credentials"], "env": [{"name": "GATEWAY_LAB", "value": "told"}],
        });
        self.kubeconfig("by-program", SERVER, &json!({"exec": exec}))
    }

    /// A kubeconfig with a client certificate of this user, inside the file itself.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn by_certificate_of(&self, user: &str) -> Result<PathBuf> {
        self.certificates.client(user, &format!("/CN={user}"))?;
        self.kubeconfig(user, SERVER, &self.by_certificate(user))
    }

    /// An administrator's kubeconfig with the client certificate, for programs on any node.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn admin_from_outside(&self) -> Result<PathBuf> {
        self.kubeconfig("admin-outside", SERVER, &self.by_certificate("admin"))
    }

    fn begin(&self, node: Node, part: &str, args: &[String]) -> Result<Process> {
        let mut command = self.lab.node(node).command(&self.program);
        command.arg(part).args(args).env("HOME", &self.dir);
        Process::start(part, command, &self.dir.join(format!("{part}.log")))
    }

    /// Starts etcd, with what it had.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_etcd(&self) -> Result<()> {
        let args = [
            format!("--data-dir={}", self.dir.join("etcd").display()),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
            "--initial-cluster=default=http://127.0.0.1:2380".into(),
            "--unsafe-no-fsync".into(),
            "--log-level=error".into(),
        ];
        let mut etcd = self.begin(Node::Worker1, "etcd", &args)?;
        let started = self.answers(&mut etcd, "http://127.0.0.1:2379/health", "true");
        *lock(&self.etcd) = Some(etcd);
        started
    }

    /// Starts the API server and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_apiserver(&self) -> Result<()> {
        let file = |name: &str| self.certificates.file(name).display().to_string();
        let args = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--secure-port={PORT}"),
            format!("--advertise-address={CONTROL}"),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--service-account-key-file={}", file("accounts.key")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-cluster-ip-range={SERVICE_CIDR},{SERVICE_CIDR6}"),
            // The DaemonSet of deploy/ is privileged, as kubelets and kubeadm allow.
            "--allow-privileged=true".into(),
            "--authorization-mode=RBAC".into(),
            // Pods of the lab need no tokens.
            "--disable-admission-plugins=ServiceAccount".into(),
            // The lab compacts when it wants to.
            "--etcd-compaction-interval=0".into(),
            "--profiling=false".into(),
        ];
        let mut apiserver = self.begin(Node::Worker1, "kube-apiserver", &args)?;
        let started = self.answers(&mut apiserver, &format!("https://127.0.0.1:{PORT}/readyz"), "ok");
        *lock(&self.apiserver) = Some(apiserver);
        started
    }

    /// Waits until the API server is ready (again).
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn wait_ready(&self) -> Result<()> {
        let mut apiserver = lock(&self.apiserver);
        let apiserver = apiserver.as_mut().context("the API server is not started")?;
        self.answers(apiserver, &format!("https://127.0.0.1:{PORT}/readyz"), "ok")
    }

    /// Kills the API server; etcd and the controllers go on.
    pub fn kill_apiserver(&self) {
        *lock(&self.apiserver) = None;
    }

    /// Kills the controllers: from then on slices are what somebody writes.
    pub fn kill_controllers(&self) {
        *lock(&self.controllers) = None;
    }

    /// Kills etcd.
    pub fn kill_etcd(&self) {
        *lock(&self.etcd) = None;
    }

    fn start_controllers(&self) -> Result<()> {
        let args = [
            format!("--kubeconfig={}", self.admin().display()),
            format!("--controllers={CONTROLLERS}"),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".into(),
            "--use-service-account-credentials=false".into(),
            // The default, 20 a second, is for clusters that others use as well.
            "--kube-api-qps=500".into(),
            "--kube-api-burst=1000".into(),
            "--concurrent-service-endpoint-syncs=10".into(),
        ];
        *lock(&self.controllers) = Some(self.begin(Node::Worker1, "kube-controller-manager", &args)?);
        Ok(())
    }

    /// Waits until a part answers at this URL.
    fn answers(&self, process: &mut Process, url: &str, expected: &str) -> Result<()> {
        let (ca, cert, key) = (
            self.certificates.file("ca.crt").display().to_string(),
            self.certificates.file("admin.crt").display().to_string(),
            self.certificates.file("admin.key").display().to_string(),
        );
        let args = ["-sS", "--noproxy", "*", "--max-time", "5", "--cacert", &ca, "--cert", &cert, "--key", &key, url];
        wait_for(&process.name.clone(), PATIENCE, || {
            if let Some(status) = process.ended() {
                return Err(NotYet::Never(anyhow!("it ended: {status}: {}", tail(&process.said()))));
            }
            let said = self.node().run("curl", &args)?;
            if said.contains(expected) { Ok(()) } else { Err(NotYet::Later(anyhow!("{said}"))) }
        })
        .with_context(|| tail(&process.said()))
    }

    fn nodes(&self) -> Result<()> {
        for (node, zone) in Node::ALL.into_iter().zip(["zone-a", "zone-a", "zone-b"]) {
            self.apply(&json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": node.name(), "labels": {"topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": node.name()}},
            }))?;
            let status = json!({"status": {
                "addresses": both(node.address()).map(|ip| json!({"type": "InternalIP", "address": ip})),
                "conditions": [{"type": "Ready", "status": "True"}],
                "capacity": {"cpu": "4", "memory": "8Gi", "pods": "100"},
                "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "100"},
            }});
            self.kubectl(&[
                "patch",
                "node",
                node.name(),
                "--subresource=status",
                "--type=merge",
                "-p",
                &status.to_string(),
            ])?;
        }
        Ok(())
    }

    /// Runs kubectl as administrator.
    ///
    /// # Errors
    /// When it ends with another code than 0; with what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with(args, "")
    }

    /// As [`Cluster::kubectl`], with text on its standard input.
    ///
    /// # Errors
    /// As there.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        let mut command = self.kubectl_command();
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("kubectl: cannot start")?;
        let mut stdin = child.stdin.take().context("kubectl: no standard input")?;
        std::io::Write::write_all(&mut stdin, input.as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A script that runs one of the parts, like `kubectl`, as administrator.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn script(&self) -> Result<PathBuf> {
        let path = self.dir.join("cluster");
        let text = format!(
            "# The cluster's programs: kubectl ARGS\nKUBECONFIG={} exec nsenter --net={} {} \"$@\"\n",
            self.admin().display(),
            self.node().path().display(),
            self.program.display()
        );
        fs::write(&path, text)?;
        Ok(path)
    }

    fn kubectl_command(&self) -> Command {
        let mut command = self.node().command(&self.program);
        command.arg("kubectl").env("KUBECONFIG", self.admin()).env("HOME", &self.dir);
        command
    }

    /// Applies an object.
    ///
    /// # Errors
    /// What the API server says.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.apply_yaml(&object.to_string())
    }

    /// Applies objects, as YAML.
    ///
    /// # Errors
    /// What the API server says.
    pub fn apply_yaml(&self, yaml: &str) -> Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], yaml).map(drop)
    }

    /// Runs `work` with a client of an administrator, inside the API server's namespace.
    ///
    /// # Errors
    /// When there is no client; and what `work` says.
    pub fn api<T: Send, F: Future<Output = Result<T>>>(&self, work: impl FnOnce(Client) -> F + Send) -> Result<T> {
        let config = self.admin();
        self.node().enter(|| block_on(async { work(client(&config).await?).await }))
    }

    /// Cuts the API server's address off from all other machines, or mends that. What it had sent is on its way still.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cut_off(&self, cut: bool) -> Result<()> {
        let verb = if cut { "add" } else { "del" };
        self.node().ip(&[format!("rule {verb} from {CONTROL} blackhole")])
    }

    /// Makes etcd forget everything but the present: watches from before end with 410 Gone.
    ///
    /// # Errors
    /// What etcd says.
    pub fn compact(&self) -> Result<()> {
        let post = |path: &str, body: &str| {
            let url = format!("http://127.0.0.1:2379/v3/kv/{path}");
            self.node().run("curl", &["-sS", "--noproxy", "*", "--fail", "-X", "POST", "-d", body, &url])
        };
        let head: Value = serde_json::from_str(&post("range", r#"{"key":"AA=="}"#)?)?;
        let revision = head["header"]["revision"].as_str().context("etcd told no revision")?.to_owned();
        let said = post("compaction", &json!({"revision": revision, "physical": true}).to_string())?;
        ensure!(said.contains("header"), "etcd said {said}");
        Ok(())
    }

    /// Waits until a Service's slices name exactly so many ready endpoints.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn wait_endpoints(&self, namespace: &str, service: &str, count: usize) -> Result<()> {
        let label = format!("kubernetes.io/service-name={service}");
        wait_for(&format!("{count} ready endpoints of {namespace}/{service}"), PATIENCE, || {
            let text = self.kubectl(&["get", "endpointslices", "-n", namespace, "-l", &label, "-o", "json"])?;
            let list: Value = serde_json::from_str(&text)?;
            let endpoints =
                list["items"].as_array().into_iter().flatten().flat_map(|slice| slice["endpoints"].as_array().cloned());
            let ready = endpoints.flatten().filter(|endpoint| endpoint["conditions"]["ready"] == true).count();
            if ready == count { Ok(()) } else { Err(NotYet::Later(anyhow!("there are {ready}"))) }
        })
    }
}

/// A Deployment of the lab's pods and its Service, as a person writes them.
pub fn deployment(namespace: &str, name: &str, replicas: usize, cluster_ip: Option<Ipv4Addr>) -> String {
    let ip = cluster_ip.map(|ip| format!("  clusterIP: {ip}\n")).unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  replicas: {replicas}\n  \
         selector:\n    matchLabels: {{app: {name}}}\n  template:\n    metadata:\n      labels: {{app: {name}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n      - name: web\n        image: lab/web\n        ports:\n        \
         - {{name: http, containerPort: {HTTP_PORT}}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n{ip}  selector: {{app: {name}}}\n  ports:\n  \
         - {{name: http, port: 80, targetPort: http}}\n  - {{name: echo, port: 7, targetPort: {ECHO_PORT}}}\n",
        HTTP_PORT = crate::topology::HTTP_PORT,
        ECHO_PORT = crate::topology::ECHO_PORT,
    )
}

/// A client with this kubeconfig.
async fn client(kubeconfig: &Path) -> Result<Client> {
    let mut config =
        Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    // A lab kills API servers under their clients.
    (config.connect_timeout, config.read_timeout) = (Some(Duration::from_secs(5)), Some(Duration::from_secs(10)));
    Ok(Client::try_from(config)?)
}

/// Runs a future to its end on this thread.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime on this thread").block_on(work)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
