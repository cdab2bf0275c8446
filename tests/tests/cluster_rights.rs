//! What the gateway may do at a real API server, and what it says when it may not. Issue 5, "What it must show", 7.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::anyhow;
use gateway_lab::{
    GatewayConfig, Lab, Node, Topology, agent,
    clients::{http_get, tcp_refusal},
    cluster::{self, COREDNS, Cluster},
    names::dig,
    process::{NotYet, Process, wait_for},
    testing,
    topology::GATEWAY,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const DAEMON_SET: &str = include_str!("../../deploy/daemonset.yaml");
/// A change of rights is known to the API server within this.
const SOON: Duration = Duration::from_secs(20);

/// The manifest's rules, without some verbs on one resource.
fn grant(cluster: &Cluster<'_>, resource: &str, without: &[&str]) {
    let rule = |(group, plural): (&str, &str)| {
        let verbs: Vec<&str> =
            ["list", "watch"].into_iter().filter(|verb| plural != resource || !without.contains(verb)).collect();
        json!({"apiGroups": [group], "resources": [plural], "verbs": verbs})
    };
    let all = [
        ("", "services"),
        ("discovery.k8s.io", "endpointslices"),
        ("", "namespaces"),
        ("", "nodes"),
        ("networking.k8s.io", "servicecidrs"),
    ];
    let rules: Vec<_> = all.into_iter().map(rule).filter(|rule| rule["verbs"] != json!([])).collect();
    let patch = json!({"rules": rules}).to_string();
    cluster.kubectl(&["patch", "clusterrole", "gateway", "--type=merge", "-p", &patch]).expect("the ClusterRole");
}

/// What `gateway check` says of the API server, line by line, and whether it found a failure there.
fn check(lab: &Lab, config: &Path) -> Vec<String> {
    let mut command: Command = lab.node(Node::Gateway).command(agent::binary().expect("the gateway's binary"));
    let output = command.args(["check", "--config"]).arg(config).output().expect("gateway check");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let about = |line: &&str| line.contains("may not ") || line.contains("source.kubernetes");
    text.lines().filter(about).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Starts the agent.
fn start(lab: &Lab, config: &Path, name: &str) -> Process {
    let mut command = lab.node(Node::Gateway).command(agent::binary().expect("the gateway's binary"));
    command.args(["run", "--config"]).arg(config);
    Process::start(name, command, &lab.dir().join(format!("{name}.log"))).expect("the agent")
}

/// `/readyz`: status code and text.
fn readiness(lab: &Lab) -> anyhow::Result<(u16, String)> {
    let node = lab.node(Node::Gateway);
    let told = node.enter(|| http_get(([127, 0, 0, 1], 9153).into(), "/readyz"))?;
    Ok((told.status, told.text()))
}

/// Starts the agent, waits until its log and its readiness have this to say, grants what it lacks, and waits until it is ready, by itself.
fn says(lab: &Lab, config: &Path, name: &str, expected: &[&str], mend: impl FnOnce()) {
    let mut process = start(lab, config, name);
    wait_for(name, SOON, || {
        let (said, (code, ready)) = (process.said(), readiness(lab)?);
        let told = |text: &&str| said.contains(*text) && ready.contains(*text);
        if code == 503 && expected.iter().all(told) { Ok(()) } else { Err(NotYet::Later(anyhow!("{ready}\n{said}"))) }
    })
    .expect("the agent names what it may not do");
    mend();
    // Once it may do what it must.
    ready(lab, name, &mut process);
    process.stop(Signal::SIGTERM, SOON).expect("a clean end");
}

#[test]
fn the_manifests_grant_what_is_used_and_each_right_that_is_missing_is_named() {
    let Some(_turn) = testing::turn(&["curl", "openssl", "dig", "setpriv", "tinyproxy"]) else { return };
    if let Err(why) = cluster::program() {
        println!("SKIP: {why}");
        return;
    }
    let lab = Lab::build(Topology::with_pods(&[])).expect("the lab");
    let cluster = Cluster::start(&lab).expect("the cluster");
    cluster.apply_yaml(cluster::RBAC).expect("deploy/rbac.yaml");
    // Validated by the API server itself, unknown and doubled fields included.
    cluster
        .kubectl_with(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"], DAEMON_SET)
        .expect("deploy/daemonset.yaml");
    let kubeconfig = cluster.account("gateway-system", "gateway").expect("the gateway's token");

    let config = GatewayConfig { kubeconfig: Some(kubeconfig), ..GatewayConfig::default() };
    let file = lab.dir().join("check.yaml");
    std::fs::write(&file, config.yaml(&lab.manifests.dir)).expect("the config");
    let all_well =
        |lines: &[String]| lines.len() == 1 && lines[0].starts_with("ok source.kubernetes.kubeconfig: API server");
    // An API server just started learns its own roles and ours a moment after it took them.
    wait_for("gateway check", SOON, || {
        let lines = check(&lab, &file);
        if all_well(&lines) { Ok(()) } else { Err(NotYet::Later(anyhow!("{lines:?}"))) }
    })
    .expect("gateway check finds nothing missing");

    let resources = [
        ("services", "fail"),
        ("endpointslices", "fail"),
        ("namespaces", "warn"),
        ("nodes", "warn"),
        ("servicecidrs", "fail"),
    ];
    for (resource, grade) in resources {
        for verb in ["list", "watch"] {
            grant(&cluster, resource, &[verb]);
            let expected = format!("{grade} permission: may not {verb} {resource} of ");
            wait_for(&expected, SOON, || {
                let lines = check(&lab, &file);
                let denied: Vec<&String> = lines.iter().filter(|line| line.contains("may not")).collect();
                match denied[..] {
                    [line] if line.starts_with(&expected) => Ok(()),
                    _ => Err(NotYet::Later(anyhow!("{lines:?}"))),
                }
            })
            .expect("gateway check names it and nothing else");
        }
    }

    // The agent itself: without what it must have it serves nothing, says why, and goes on by itself when the rights come.
    let all = || grant(&cluster, "", &[]);
    grant(&cluster, "servicecidrs", &["list", "watch"]);
    let cidrs =
        ["servicecidrs is forbidden", "allow list and watch of servicecidrs in its ClusterRole, or set serviceCIDRs"]
            .map(|text| text.replace("servicecidrs is", "servicecidrs.networking.k8s.io is"));
    says(&lab, &file, "no-cidrs", &cidrs.each_ref().map(String::as_str), all);
    grant(&cluster, "services", &["list", "watch"]);
    let services = ["services is forbidden", "allow list and watch of services in its ClusterRole"];
    says(&lab, &file, "no-services", &services, all);
    // As it is when both start at once: no API server, then one that grants nothing yet.
    cluster.kill_apiserver();
    let begun = || cluster.start_apiserver().expect("the API server");
    says(&lab, &file, "first", &["services: ", "it is tried again"], begun);
    // What it can do without is told, and the rest served.
    grant(&cluster, "nodes", &["list", "watch"]);
    let gateway = lab.gateway(&config).expect("the gateway");
    let (_, text) = readiness(&lab).expect("/readyz");
    assert!(text.contains("1 problem"), "{text}");
    assert!(gateway.log().contains("allow list and watch of nodes"), "{}", gateway.log());
    // With service CIDRs from the config nobody asks for theirs.
    gateway.stop().expect("a clean end");
    grant(&cluster, "servicecidrs", &["list", "watch"]);
    let given = GatewayConfig { extra: "serviceCIDRs: [10.1.0.0/16]\n".into(), ..config };
    let gateway = lab.gateway(&given).expect("the gateway");
    assert_eq!(gateway.json("status").expect("gateway status")["degraded"], json!([]));
    gateway.stop().expect("a clean end");
    grant(&cluster, "", &[]);
    through_a_proxy(&lab, &file);
    the_daemon_set_runs(&lab, &cluster);
}

/// The environment's proxy, which wants a password, is used for an API server that `NO_PROXY` does not name, and not for one that it names.
fn through_a_proxy(lab: &Lab, config: &Path) {
    let log = lab.dir().join("tinyproxy.txt");
    let settings = format!(
        "User root\nGroup root\nPort 3128\nListen {COREDNS}\nTimeout 600\nMaxClients 50\nAllow 10.90.2.0/24\nConnectPort {}\n\
         BasicAuth lab secret\nLogLevel Connect\nLogFile \"{}\"\n",
        cluster::PORT,
        log.display(),
    );
    let file = lab.dir().join("tinyproxy.conf");
    std::fs::write(&file, settings).expect("a file");
    let mut command = lab.node(Node::Worker2).command("tinyproxy");
    command.arg("-d").arg("-c").arg(&file);
    let proxy = Process::start("tinyproxy", command, &lab.dir().join("tinyproxy.log")).expect("tinyproxy");
    let to = (std::net::IpAddr::from(COREDNS), 3128).into();
    let listens = || {
        lab.node(Node::Gateway)
            .enter(|| tcp_refusal(to, SOON))
            .kind
            .map_or(Ok(()), |kind| Err(anyhow!("{kind:?}").into()))
    };
    wait_for("tinyproxy", SOON, listens).unwrap_or_else(|error| panic!("{error:#}\n{}", proxy.said()));
    let connect = format!("CONNECT {}:{} ", cluster::CONTROL, cluster::PORT);
    let asked = || std::fs::read_to_string(&log).unwrap_or_default().matches(&connect).count();

    for (no_proxy, uses_it) in [("192.0.2.0/24,.example.org", true), ("example.org,10.90.2.0/24", false)] {
        let before = asked();
        let mut command = lab.node(Node::Gateway).command(agent::binary().expect("the gateway's binary"));
        command.args(["run", "--config"]).arg(config);
        command.env("HTTPS_PROXY", format!("http://lab:secret@{to}")).env("NO_PROXY", no_proxy);
        let mut process = Process::start("proxied", command, &lab.dir().join("proxied.log")).expect("the agent");
        ready(lab, "the agent", &mut process);
        assert_eq!(asked() > before, uses_it, "NO_PROXY={no_proxy}\n{}\n{}", process.said(), proxy.said());
        process.stop(Signal::SIGTERM, SOON).expect("a clean end");
    }
}

/// Waits until the agent is ready.
fn ready(lab: &Lab, name: &str, process: &mut Process) {
    wait_for(name, 2 * SOON, || match process.ended() {
        Some(status) => Err(NotYet::Never(anyhow!("it ended: {status}: {}", process.said()))),
        None => match readiness(lab)? {
            (200, text) if text == "ready\n" => Ok(()),
            (code, text) => Err(NotYet::Later(anyhow!("{code} {text}"))),
        },
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", process.said()));
}

/// The pod of `deploy/daemonset.yaml` as a container runtime runs it: these capabilities, no new privileges, `/proc/sys` and the root read-only, the
/// service account's token where pods have it, `/run` of its own. What it lacks it would say.
fn the_daemon_set_runs(lab: &Lab, cluster: &Cluster<'_>) {
    let documents = DAEMON_SET.split("\n---\n").map(serde_yaml_ng::from_str::<Value>);
    let documents: Vec<Value> = documents.collect::<Result<_, _>>().expect("YAML");
    let config = documents[0]["data"]["gateway.yaml"].as_str().expect("the config");
    let container = &documents[1]["spec"]["template"]["spec"]["containers"][0];
    let context = &container["securityContext"];
    assert_eq!((&context["capabilities"]["drop"], &context["privileged"]), (&json!(["ALL"]), &Value::Null));
    let added = context["capabilities"]["add"].as_array().expect("capabilities");
    let added = added.iter().filter_map(Value::as_str).map(|name| format!(",+{}", name.to_lowercase()));
    let capabilities = format!("-all{}", added.collect::<String>());
    assert_eq!(context["readOnlyRootFilesystem"], json!(true));
    assert_eq!(container["args"], json!(["run", "--config", "/etc/gateway/gateway.yaml"]));

    let node = lab.node(Node::Gateway);
    // As nodes of clusters are.
    node.ip(&["route add default dev eth0"]).expect("a default route");
    let ours = node.sysctl("net/ipv4/ip_local_reserved_ports").expect("a sysctl");
    node.set_sysctl("net/ipv4/ip_forward", "1").expect("a sysctl");
    let dir = lab.dir().join("pod");
    std::fs::create_dir_all(&dir).expect("a directory");
    let token = cluster.token("gateway-system", "gateway").expect("a token");
    let files = [("token", token.as_str()), ("namespace", "gateway-system"), ("gateway.yaml", config)];
    for (name, text) in files {
        std::fs::write(dir.join(name), text).expect("a file");
    }
    std::fs::copy(cluster.authority(), dir.join("ca.crt")).expect("the authority");
    let script = "set -e; mount -t tmpfs tmpfs /mnt; cp \"$1\"/* /mnt; mount -t tmpfs tmpfs /run; \
                  mkdir -p /run/gateway /run/secrets/kubernetes.io/serviceaccount; cp /mnt/* /run/secrets/kubernetes.io/serviceaccount; \
                  mount -t bpf bpf /sys/fs/bpf; mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; \
                  mount -o remount,bind,ro /; if touch /root-is-writable 2> /dev/null; then exit 9; fi; \
                  exec setpriv --bounding-set \"$2\" --inh-caps -all --no-new-privs \"$3\" run --config /mnt/gateway.yaml";
    let mut command = node.command("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", script, "sh"]).arg(&dir).arg(&capabilities);
    command.arg(agent::binary().expect("the gateway's binary"));
    command.env("KUBERNETES_SERVICE_HOST", cluster::CONTROL.to_string()).env("NODE_NAME", "gateway");
    command.env("KUBERNETES_SERVICE_PORT", cluster::PORT.to_string());
    let mut process = Process::start("pod", command, &lab.dir().join("pod.log")).expect("the agent");
    ready(lab, "the pod", &mut process);
    // The control plane's own Service, by name and address, from outside.
    let asked = dig(lab.client(), &GATEWAY.to_string(), &["kubernetes.default.svc.cluster.local", "A"]);
    assert_eq!(asked.expect("an answer").data("A"), ["10.1.0.1"]);
    let refusal = lab.client().enter(|| tcp_refusal(([10, 1, 0, 1], 443).into(), SOON));
    assert_eq!(refusal.kind, None, "the API server through the gateway\n{}", process.said());
    let said = process.said();
    assert!(said.contains("ip_local_reserved_ports"), "what it cannot set it says: {said}");
    process.stop(Signal::SIGTERM, SOON).expect("a clean end");
    assert_eq!(node.sysctl("net/ipv4/ip_local_reserved_ports").expect("a sysctl"), ours);
}

/// Against the schemas of the API, by a program that knows nothing of this project.
#[test]
fn the_manifests_are_valid() {
    let Some((python, packages)) = validator() else {
        println!("SKIP: kubernetes-validate is not installed: `cargo xtask test` installs it where pip is");
        return;
    };
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let files = std::fs::read_dir(&deploy).expect("deploy/").flatten().map(|entry| entry.path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    assert!(files.len() >= 3, "{files:?}");
    for version in ["1.33", "1.37"] {
        let mut command = Command::new(&python);
        command.arg(packages.join("bin/kubernetes-validate")).args(["--strict", "-k", version]).args(&files);
        let output = command.env("PYTHONPATH", &packages).output().expect("kubernetes-validate");
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{version}: {said}");
        assert!(said.contains("daemonset/gateway"), "{version}: {said}");
    }
}

/// Python and the directory of packages that xtask has filled.
fn validator() -> Option<(String, PathBuf)> {
    let packages = cluster::validator()?;
    packages.join("bin/kubernetes-validate").exists().then(|| ("python3".to_owned(), packages))
}
