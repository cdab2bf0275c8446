//! The agent's life: it leaves nothing behind, however it ends, and says what is wrong when it cannot run. Issue 2, "What it must show", 1 and 10.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology,
    agent::{binary, left_on},
    clients::http_get,
    netns,
    process::{NotYet, wait_for},
    testing,
    topology::GATEWAY,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);

fn lab() -> Lab {
    let lab = Lab::build(Topology::with_pods(&[Node::Worker1, Node::Gateway])).expect("the lab");
    lab.manifests.put(&Service::of_pods("shop", "web", VIP, &lab.topology.pods)).expect("a manifest");
    lab
}

#[test]
fn an_agent_that_was_killed_starts_again_and_leaves_nothing_at_its_end() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = lab();
    for mode in ["native", "generic", "tc", "auto"] {
        for _ in 0..2 {
            let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
            lab.client().enter(|| http_get((VIP, 80).into(), "/").expect("HTTP"));
            gateway.kill().expect("a kill");
        }
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway starts again");
        lab.client().enter(|| http_get((VIP, 80).into(), "/").expect("HTTP"));
        gateway.stop().expect("nothing is left");
    }
}

#[test]
fn with_the_datapath_off_the_forwarder_works_alone_and_nothing_is_attached() {
    let Some(_turn) = testing::turn(&["dig"]) else { return };
    let lab = lab();
    let gateway = lab.gateway(&GatewayConfig::mode("off")).expect("the gateway");
    let answer = gateway_lab::names::dig(lab.client(), &GATEWAY.to_string(), &["web.shop.svc.cluster.local", "A"]);
    assert_eq!(answer.expect("dig").data("A"), ["10.1.0.80"]);
    assert_eq!(left_on(lab.node(Node::Gateway)).expect("a look"), Vec::<String>::new());
    gateway.stop().expect("a clean end");
}

/// Runs the agent with this config, which it must refuse: exit code 1, one line that names all of `words`, nothing attached.
fn refuses(lab: &Lab, what: &str, yaml: &str, words: &[&str]) {
    let file = lab.dir().join("bad.yaml");
    fs::write(&file, yaml).expect("a config");
    let mut command = lab.node(Node::Gateway).command(binary().expect("the agent's binary"));
    let mut child = command
        .args(["run", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the agent starts");
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if began.elapsed() > Duration::from_secs(15) {
            child.kill().and_then(|()| child.wait()).expect("an end");
            panic!("{what}: the agent runs on");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let said: Vec<String> =
        BufReader::new(child.stderr.take().expect("stderr")).lines().map_while(Result::ok).collect();
    assert_eq!(status.code(), Some(1), "{what}: {said:?}");
    let line = said.last().unwrap_or_else(|| panic!("{what}: not a word"));
    assert!(words.iter().all(|word| line.contains(word)), "{what}: {words:?} are not all in {line:?}");
    let left = left_on(lab.node(Node::Gateway)).expect("a look");
    assert!(left.is_empty(), "{what}: {left:?}");
}

#[test]
fn bad_input_is_named_in_one_line_and_leaves_nothing() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = lab();
    let good = GatewayConfig::default().yaml(&lab.manifests.dir);
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    refuses(&lab, "an unknown key", &(good.clone() + "colour: blue\n"), &["colour"]);
    refuses(&lab, "an unknown key, deeper", &with("  mode: auto", "  mode: auto\n  sped: 1"), &["sped"]);
    refuses(&lab, "an interface that does not exist", &with("\"eth0\"", "\"eth9\""), &["eth9"]);
    refuses(&lab, "views that overlap", &with("10.90.5.5/32", "10.90.1.0/24"), &["developers", "guests"]);
    refuses(
        &lab,
        "no such directory",
        &with(&lab.manifests.dir.display().to_string(), "/nowhere/at/all"),
        &["/nowhere/at/all"],
    );

    let taken = lab.node(Node::Gateway).enter(|| {
        let udp = UdpSocket::bind((GATEWAY, 53)).expect("port 53");
        (udp, TcpListener::bind((GATEWAY, 53)).expect("port 53"))
    });
    refuses(&lab, "port 53 in use", &good, &["10.90.2.100:53"]);
    drop(taken);
    let taken = lab.node(Node::Gateway).enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 9153)).expect("port 9153"));
    refuses(&lab, "port of http in use", &good, &["127.0.0.1:9153"]);
    drop(taken);
    // And what was refused for a reason that has gone works.
    lab.gateway(&GatewayConfig::default()).expect("the gateway").stop().expect("a clean end");
}

#[test]
fn a_manifest_that_does_not_parse_is_named_and_the_rest_goes_on() {
    let Some(_turn) = testing::turn(&[]) else { return };
    let lab = lab();
    lab.manifests.write("broken.yaml", "apiVersion: v1\nkind: Service\nmetadata: [\n").expect("a file");
    let gateway = lab.gateway(&GatewayConfig::default()).expect("the gateway starts all the same");
    lab.client().enter(|| http_get((VIP, 80).into(), "/").expect("HTTP"));
    let status = gateway.json("status").expect("status");
    assert!(status["source"]["problems"].to_string().contains("broken.yaml"), "{status}");
    assert!(gateway.log().contains("broken.yaml"), "the log does not name the file:\n{}", gateway.log());
    // A good file that turns bad keeps its last good state.
    lab.manifests.write("shop-web.yaml", "kind: Service\n  apiVersion: v1\n").expect("a file");
    wait_for("the file to be named", Duration::from_secs(10), || {
        let problems = gateway.json("status")?["source"]["problems"].to_string();
        if problems.contains("shop-web.yaml") { Ok(()) } else { Err(NotYet::Later(anyhow!("{problems}"))) }
    })
    .expect("the file is named");
    lab.client().enter(|| http_get((VIP, 80).into(), "/").expect("HTTP"));
    gateway.stop().expect("a clean end");
}

/// Namespaces of that process's labs.
fn of_process(pid: u32) -> Vec<String> {
    netns::recorded().into_iter().filter(|name| name.starts_with(&format!("gw{pid:x}-"))).collect()
}

#[test]
fn the_demonstration_ends_well_and_leaves_nothing() {
    let Some(_turn) = testing::turn(&["dig", "kdig", "curl", "unbound", "getent"]) else { return };
    let child = Command::new(env!("CARGO_BIN_EXE_gateway-lab"))
        .args(["demo", "--once", "--gateway"])
        .arg(binary().expect("the agent's binary"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the demonstration starts");
    let pid = child.id();
    let output = child.wait_with_output().expect("an end");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Everything gave what it must"), "{said}");
    assert_eq!(of_process(pid), Vec::<String>::new());
}

#[test]
fn what_a_killed_demonstration_leaves_is_gone_after_the_next_run() {
    let Some(_turn) = testing::turn(&["dig", "kdig", "curl", "unbound", "getent"]) else { return };
    let mut child = Command::new(env!("CARGO_BIN_EXE_gateway-lab"))
        .args(["demo", "--gateway"])
        .arg(binary().expect("the agent's binary"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the demonstration starts");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines().map_while(Result::ok);
    // The first step begins when the gateway is ready.
    let begun = lines.any(|line| line.starts_with("1. "));
    let pid = child.id();
    let namespaces = of_process(pid);
    child.kill().and_then(|()| child.wait()).expect("a kill");
    assert!(begun, "the demonstration ended before its first step");
    assert!(!namespaces.is_empty());
    drop(lab());
    assert_eq!(of_process(pid), Vec::<String>::new());
    let mine = |dir: &Path| namespaces.iter().any(|name| dir.join(name).exists());
    assert!(!mine(Path::new("/run/netns")), "{namespaces:?}");
    // Its programs died with it: no process is in a namespace that is gone from the list.
    wait_for("the programs' end", Duration::from_secs(10), || {
        let mine = format!("gateway-lab/{pid:x}-");
        let lines =
            fs::read_dir("/proc")?.flatten().filter_map(|of| fs::read_to_string(of.path().join("cmdline")).ok());
        match lines.into_iter().find(|line| line.contains(&mine)) {
            None => Ok(()),
            Some(line) => Err(NotYet::Later(anyhow!("{line:?} runs on"))),
        }
    })
    .expect("no program of the killed demonstration runs on");
}
