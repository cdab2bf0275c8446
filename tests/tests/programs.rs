//! Programs that nobody here wrote, through a ClusterIP and to the same server directly: the same result. Issue 3, "What it must show", 2.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology,
    clients::tcp_refusal,
    process::{NotYet, Process, wait_for},
    testing,
    topology::{Access, HTTP_PORT, Offloads, both},
};
use serde_json::Value;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
const IPERF: u16 = 5201;
const REDIS: u16 = 6379;
const HTTP2: u16 = 8443;

/// What a test's machines run beside the lab's own servers.
struct Servers {
    _processes: Vec<Process>,
}

/// A lab with a router, one pod, and client routes to the pods: to go to the server directly.
fn lab() -> Lab {
    let lab = Lab::build(Topology {
        access: Access::Router,
        offloads: Offloads::Wire,
        ..Topology::with_pods(&[Node::Worker1])
    })
    .expect("the lab");
    let service = Service::of_pods("shop", "web", VIP, &lab.topology.pods)
        .port("iperf", "TCP", IPERF, IPERF)
        .port("iperf-udp", "UDP", IPERF, IPERF)
        .port("redis", "TCP", REDIS, REDIS)
        .port("http2", "TCP", HTTP2, HTTP2)
        .dual_stack();
    lab.manifests.put(&service).expect("a manifest");
    let pods = [("10.244.1.0/24", 0), ("fd44:1::/64", 1)].map(|(pods, family)| {
        let via = both(Node::Worker1.address())[family];
        format!("route add {pods} via {via}")
    });
    lab.namespace("router").ip(&pods).expect("routes to the pods");
    lab
}

/// Starts a server in the pod and waits until it listens.
fn serve(lab: &Lab, port: u16, program: &str, args: &[&str]) -> Servers {
    let mut command = lab.namespace("web-0").command(program);
    command.args(args).current_dir(lab.dir());
    let mut process = Process::start(program, command, &lab.dir().join(format!("{program}.log"))).expect(program);
    for address in both(lab.pod("web-0").address) {
        let to = SocketAddr::from((address, port));
        wait_for(program, Duration::from_secs(20), || {
            if let Some(status) = process.ended() {
                return Err(NotYet::Never(anyhow::anyhow!("{program} ended: {status}: {}", process.said())));
            }
            match lab.node(Node::Worker1).enter(|| tcp_refusal(to, Duration::from_secs(1))).kind {
                None => Ok(()),
                Some(kind) => Err(NotYet::Later(anyhow::anyhow!("{to}: {kind}"))),
            }
        })
        .expect("it listens");
    }
    Servers { _processes: vec![process] }
}

/// The server directly, and through its ClusterIP: address and HTTP port.
fn ways(lab: &Lab, family: usize) -> [(IpAddr, u16); 2] {
    [(both(lab.pod("web-0").address)[family], HTTP_PORT), (both(VIP)[family], 80)]
}

/// An address as it stands in a URL.
fn url(address: IpAddr, port: u16) -> String {
    format!("http://{}/", SocketAddr::from((address, port)))
}

/// The same through the gateway, in every tier, as directly.
fn same<T: PartialEq + std::fmt::Debug>(lab: &Lab, family: usize, modes: &[&str], run: impl Fn(IpAddr, u16) -> T) {
    let [direct, vip] = ways(lab, family);
    let expected = run(direct.0, direct.1);
    for mode in modes {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        assert_eq!(run(vip.0, vip.1), expected, "{mode}, to {}", vip.0);
        let counters = gateway.counters().expect("counters");
        assert!(counters.get("flow_created") > 0 && counters.get("replied") > 0, "it went another way: {counters:?}");
        gateway.stop().expect("a clean end");
    }
}

/// Runs a program on the client, which must end well.
fn client(lab: &Lab, program: &str, args: &[&str]) -> String {
    lab.client().run(program, args).unwrap_or_else(|error| panic!("{error:#}"))
}

fn curl_and_wrk(family: usize) {
    let Some(_turn) = testing::turn(&["curl", "wrk", "sha256sum"]) else { return };
    let lab = lab();
    same(&lab, family, &["native", "tc"], |address, port| {
        let bytes = url(address, port) + "bytes/10000000";
        let sum = client(&lab, "sh", &["-c", &format!("curl -gsS --max-time 60 '{bytes}' | sha256sum")]);
        let said = client(&lab, "wrk", &["-t1", "-c50", "-d2s", "--timeout", "10s", &url(address, port)]);
        let wrong: Vec<String> = said
            .lines()
            .filter(|line| line.contains("errors") || line.contains("Non-2xx"))
            .map(str::to_owned)
            .collect();
        assert!(said.contains("requests in"), "{said}");
        (sum, wrong)
    });
}

#[test]
fn curl_and_wrk_do_as_with_the_server_itself() {
    curl_and_wrk(0);
}

/// What iperf3 itself says at its end.
struct Iperf {
    /// Bytes that the receiver has.
    received: u64,
    /// Of `--bidir`, the bytes of the other direction.
    back: u64,
    /// Datagrams that were lost.
    lost: u64,
}

fn iperf(lab: &Lab, address: IpAddr, args: &[&str]) -> Iperf {
    let address = address.to_string();
    let args: Vec<&str> = ["-c", &address, "-J", "--connect-timeout", "10000"].iter().chain(args).copied().collect();
    // The server takes one client at a time, and needs a moment to see that the last one is gone.
    let report = wait_for("iperf3", Duration::from_secs(20), || -> Result<Value, NotYet> {
        let output = lab.client().command("iperf3").args(&args).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        match report["error"].as_str() {
            None => Ok(report),
            Some(error) if error.contains("busy") => Err(NotYet::Later(anyhow::anyhow!("{error}"))),
            Some(error) => Err(NotYet::Never(anyhow::anyhow!("{args:?}: {error}"))),
        }
    })
    .expect("a report");
    let end = &report["end"];
    Iperf {
        received: end["sum_received"]["bytes"].as_u64().or(end["sum"]["bytes"].as_u64()).expect("bytes"),
        back: end["sum_received_bidir_reverse"]["bytes"].as_u64().unwrap_or(0),
        lost: end["sum"]["lost_packets"].as_u64().unwrap_or(0),
    }
}

fn iperf3(family: usize) {
    let Some(_turn) = testing::turn(&["iperf3"]) else { return };
    let lab = lab();
    let _server = serve(&lab, IPERF, "iperf3", &["-s"]);
    same(&lab, family, &["native", "tc"], |address, _| {
        let ways: [&[&str]; 3] = [&["-n", "10M"], &["-n", "10M", "-R"], &["-n", "2M", "-P", "4"]];
        let mut all: Vec<bool> = Vec::new();
        for way in ways {
            // What was asked for arrives, give or take what is on its way when iperf3 stops its clock.
            all.push(iperf(&lab, address, way).received >= 1_000_000);
        }
        // By time: a number of bytes is the sum of both directions' own, and the faster one ends the slower one's.
        let both = iperf(&lab, address, &["-t", "2", "--bidir"]);
        all.push(both.received >= 100_000 && both.back >= 100_000);
        // Few enough that no queue of a busy machine overflows.
        for way in
            [&["-u", "-b", "4M", "-l", "1200", "-t", "1"][..], &["-u", "-b", "4M", "-l", "1200", "-t", "1", "-R"]]
        {
            let report = iperf(&lab, address, way);
            all.push(report.received > 400_000 && report.lost <= 20);
        }
        all
    });
}

#[test]
fn iperf3_does_as_with_the_server_itself() {
    iperf3(0);
}

fn redis(family: usize) {
    let Some(_turn) = testing::turn(&["redis-server", "redis-benchmark", "redis-cli"]) else { return };
    let lab = lab();
    let args =
        ["--bind", "0.0.0.0", "::", "--port", "6379", "--save", "", "--appendonly", "no", "--protected-mode", "no"];
    let _server = serve(&lab, REDIS, "redis-server", &args);
    same(&lab, family, &["native", "tc"], |address, _| {
        let address = address.to_string();
        let redis = |args: &[&str]| {
            let args: Vec<&str> = ["-h", &address].iter().chain(args).copied().collect();
            client(&lab, "redis-cli", &args)
        };
        let empty = redis(&["flushall"]);
        let said = client(
            &lab,
            "redis-benchmark",
            &["-h", &address, "-n", "3000", "-c", "50", "--csv", "-t", "set,get,incr,lpush"],
        );
        let tests: Vec<String> =
            said.lines().filter_map(|line| line.split_once(',').map(|(test, _)| test.to_owned())).collect();
        // Every increment and every push has come exactly once.
        (empty, tests, redis(&["get", "counter:__rand_int__"]), redis(&["llen", "mylist"]))
    });
}

#[test]
fn redis_does_as_with_the_server_itself() {
    redis(0);
}

fn http2(family: usize) {
    let Some(_turn) = testing::turn(&["nghttpd", "h2load"]) else { return };
    let lab = lab();
    fs::write(lab.dir().join("page"), vec![b'x'; 20_000]).expect("a page");
    let root = lab.dir().display().to_string();
    let _server = serve(&lab, HTTP2, "nghttpd", &["--no-tls", "-d", &root, &HTTP2.to_string()]);
    same(&lab, family, &["native", "tc"], |address, _| {
        let page = url(address, HTTP2) + "page";
        let said = client(&lab, "h2load", &["-n", "2000", "-c", "20", "-m", "10", &page]);
        let counts = said.lines().find(|line| line.starts_with("requests:")).map(str::to_owned);
        assert!(counts.as_ref().is_some_and(|counts| counts.contains("2000 succeeded, 0 failed")), "{said}");
        counts
    });
}

#[test]
fn an_http2_client_does_as_with_the_server_itself() {
    http2(0);
}

fn nmap(family: usize) {
    let Some(_turn) = testing::turn(&["nmap"]) else { return };
    let lab = lab();
    for mode in ["native", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        let vip = both(VIP)[family].to_string();
        // By connecting: nmap's own raw scan calls everything filtered that is refused by ICMP. On one machine the error arrives while
        // connect() still has its socket locked, and over IPv6 Linux then forgets it (LockDroppedIcmps); the second SYN is told again.
        let args = ["-n", "-Pn", "-sT", "-T4", "--min-rtt-timeout", "1900ms", "--max-rtt-timeout", "2s"];
        let more = ["-p", "7,60-100,5201", "-oG", "-", &vip];
        let six: &[&str] = if family == 1 { &["-6"] } else { &[] };
        let args: Vec<&str> = args.iter().chain(six).chain(&more).copied().collect();
        let said = client(&lab, "nmap", &args);
        let ports = said.lines().find_map(|line| line.split_once("Ports: ")).unwrap_or_else(|| panic!("{said}")).1;
        let open: Vec<&str> = ports
            .split(", ")
            .filter(|port| port.contains("/open/"))
            .filter_map(|port| port.split('/').next())
            .collect();
        assert_eq!(open, ["7", "80"], "{mode}: {said}");
        assert!(!said.contains("filtered"), "{mode}: {said}");
        // 40 that the Service does not have, and one that it has and no process of the pod.
        assert!(said.contains("closed (41)"), "{mode}: {said}");
        gateway.stop().expect("a clean end");
    }
}

#[test]
fn nmap_finds_a_cluster_ips_ports_open_or_refused_and_none_filtered() {
    nmap(0);
}

#[test]
fn nmap_finds_a_cluster_ips_ports_open_or_refused_and_none_filtered_over_ipv6() {
    nmap(1);
}

#[test]
fn curl_and_wrk_do_as_with_the_server_itself_over_ipv6() {
    curl_and_wrk(1);
}

#[test]
fn iperf3_does_as_with_the_server_itself_over_ipv6() {
    iperf3(1);
}

#[test]
fn redis_does_as_with_the_server_itself_over_ipv6() {
    redis(1);
}

#[test]
fn an_http2_client_does_as_with_the_server_itself_over_ipv6() {
    http2(1);
}
