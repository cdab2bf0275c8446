//! What the gateway may do at a real API server, and what it says when it may not. Issue 5, "What it must show", 7.

use std::{path::Path, process::Command, time::Duration};

use anyhow::anyhow;
use gateway_lab::{
    GatewayConfig, Lab, Node, Topology, agent,
    clients::http_get,
    cluster::{self, Cluster},
    process::{NotYet, Process, wait_for},
    testing,
};
use nix::sys::signal::Signal;

const DAEMON_SET: &str = include_str!("../../deploy/daemonset.yaml");
/// A change of rights is known to the API server within this.
const SOON: Duration = Duration::from_secs(20);

/// The manifest's rules, without some verbs on one resource.
fn grant(cluster: &Cluster<'_>, resource: &str, without: &[&str]) {
    let rule = |(group, plural): (&str, &str)| {
        let verbs: Vec<&str> =
            ["list", "watch"].into_iter().filter(|verb| plural != resource || !without.contains(verb)).collect();
        serde_json::json!({"apiGroups": [group], "resources": [plural], "verbs": verbs})
    };
    let all = [
        ("", "services"),
        ("discovery.k8s.io", "endpointslices"),
        ("", "namespaces"),
        ("", "nodes"),
        ("networking.k8s.io", "servicecidrs"),
    ];
    let rules: Vec<_> = all.into_iter().map(rule).filter(|rule| rule["verbs"] != serde_json::json!([])).collect();
    let patch = serde_json::json!({"rules": rules}).to_string();
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
    wait_for(name, 2 * SOON, || match process.ended() {
        Some(status) => Err(NotYet::Never(anyhow!("it ended: {status}: {}", process.said()))),
        None => match readiness(lab)? {
            (200, text) if text == "ready\n" => Ok(()),
            (code, text) => Err(NotYet::Later(anyhow!("{code} {text}"))),
        },
    })
    .expect("the agent is ready once it may do what it must");
    process.stop(Signal::SIGTERM, SOON).expect("a clean end");
}

#[test]
fn the_manifests_grant_what_is_used_and_each_right_that_is_missing_is_named() {
    let Some(_turn) = testing::turn(&["curl", "openssl"]) else { return };
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
    let lines = check(&lab, &file);
    assert!(all_well(&lines), "{lines:?}");

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
    assert_eq!(gateway.json("status").expect("gateway status")["degraded"], serde_json::json!([]));
    gateway.stop().expect("a clean end");
}
