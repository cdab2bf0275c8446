//! Refusals and leavings of an agent with a datapath, in a network namespace of its own.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::Command,
};

use aya::programs::{SchedClassifier, TcAttachType};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
    unistd::geteuid,
};

use crate::support::{Place, finish, gateway, refusal};

fn ip(arguments: &str) {
    let output = finish(Command::new("ip").args(arguments.split(' ')));
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a test in a network namespace with a pair of interfaces, one of them with an address. The namespace belongs to a thread and
/// its children: it goes with them, however they end.
fn in_namespace(test: impl FnOnce() + Send) {
    if !geteuid().is_root() {
        println!("skipped: needs root, for network namespaces and BPF");
        return;
    }
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ip("link set lo up");
        ip("link add up0 type veth peer name peer0");
        ip("address add 10.90.2.100/24 dev up0");
        ip("link set up0 up");
        ip("link set peer0 up");
        test();
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(inside).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A config with a datapath on `up0`.
fn attached(place: &Place) -> String {
    place
        .least()
        .replace("127.0.0.0/8", "10.90.1.0/24")
        .replace("{mode: \"off\"}", "{mode: tc, flows: 1000}")
        .replace(&place.dns.to_string(), "10.90.2.100")
        + "uplinks: [up0]\n"
}

/// What is attached to `up0`: XDP and TCX programs.
fn left() -> Vec<String> {
    let links = finish(Command::new("ip").args(["-details", "link", "show", "up0"]));
    let xdp = String::from_utf8_lossy(&links.stdout).contains("xdp").then(|| "xdp".to_owned());
    let tcx = [TcAttachType::Ingress, TcAttachType::Egress].into_iter().flat_map(|hook| {
        let (_revision, programs) = SchedClassifier::query_tcx("up0", hook).expect("the kernel tells");
        programs.into_iter().map(move |program| format!("{hook:?} {}", program.id()))
    });
    xdp.into_iter().chain(tcx).collect()
}

#[test]
fn an_interface_that_is_not_there_is_named_and_those_that_are() {
    in_namespace(|| {
        let place = Place::new();
        for (key, config) in [
            ("uplinks", attached(&place).replace("[up0]", "[nosuch0]")),
            ("clusterInterfaces", attached(&place) + "clusterInterfaces: [nosuch0]\n"),
        ] {
            let line = place.refused(&config);
            assert!(line.contains(key) && line.contains("nosuch0") && line.contains("up0"), "{line}");
            assert_eq!(left(), [""; 0]);
        }
    });
}

#[test]
fn without_a_default_route_the_uplinks_must_be_named() {
    in_namespace(|| {
        let place = Place::new();
        let line = place.refused(&attached(&place).replace("uplinks: [up0]\n", ""));
        assert!(line.contains("uplinks"), "{line}");
    });
}

#[test]
fn a_dns_port_in_use_leaves_nothing_attached() {
    in_namespace(|| {
        let place = Place::new();
        let _taken = std::net::UdpSocket::bind("10.90.2.100:53").expect("the port is free");
        let line = place.refused(&attached(&place));
        assert!(line.contains("dns.listen") && line.contains("10.90.2.100:53"), "{line}");
        assert_eq!(left(), [""; 0]);
    });
}

#[test]
fn a_second_agent_on_the_node_is_refused_and_the_first_goes_on() {
    in_namespace(|| {
        let place = Place::new();
        let agent = place.agent(&attached(&place));
        let there = left();
        let other = Place::new();
        let line = other.refused(&attached(&other).replace("10.90.2.100\"", "10.90.2.100:5300\""));
        assert!(line.contains("another gateway agent"), "{line}");
        assert_eq!(left(), there);
        assert_eq!(agent.get("/readyz").0, 200);
    });
}

#[test]
fn a_wildcard_listener_is_told_by_the_addresses_that_clients_use() {
    in_namespace(|| {
        let place = Place::new();
        let agent = place.agent(&attached(&place).replace("listen: [\"10.90.2.100\"]", "listen: [0.0.0.0]"));
        assert_eq!(agent.json("status")["dns"], serde_json::json!(["10.90.2.100:53"]));
    });
}

#[test]
fn without_permission_it_says_what_it_needs() {
    in_namespace(|| {
        let place = Place::new();
        let config = place.config(&attached(&place).replace("10.90.2.100\"", "10.90.2.100:5300\""));
        // Somebody else must be able to reach both.
        let binary = place.path().join("gateway");
        fs::copy(env!("CARGO_BIN_EXE_gateway"), &binary).expect("a copy of the binary");
        for path in [place.path(), &binary] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        let nobody = 65_534;
        let mut command = Command::new(&binary);
        let output =
            finish(command.uid(nobody).gid(nobody).args(["run", "--config"]).arg(&config).env_remove("RUST_LOG"));
        let line = refusal(&output);
        assert!(line.contains("permi") && line.contains("root") && line.contains("CAP_"), "{line}");

        let mut command = Command::new(&binary);
        let output = finish(command.uid(nobody).gid(nobody).args(["check", "--config"]).arg(&config));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("fail  permission: no CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF"), "{text}");
    });
}

#[test]
fn explain_tells_what_becomes_of_packets_and_names() {
    in_namespace(|| {
        ip("route add 10.244.0.0/16 via 10.90.2.1");
        let place = Place::new();
        let agent = place.agent(&attached(&place));
        let packet = |from, to| agent.ask("explain", &["--from", from, "--to", to, "--proto", "tcp", "--port", "80"]);
        let web = packet("10.90.1.7", "10.1.0.20");
        for part in [
            "view here",
            "Service shop/web",
            "\nforwarded\n",
            "10.244.1.2:8080",
            "10.244.2.2:8080",
            "50 %",
            "10.90.2.100",
        ] {
            assert!(web.contains(part), "no {part:?} in\n{web}");
        }
        assert!(packet("10.90.1.7", "10.1.0.21").contains("host unreachable\nrejected"), "no such Service");
        assert!(packet("10.99.1.7", "10.1.0.20").contains("in no view"), "a stranger");
        let echo = agent.ask("explain", &["--from", "10.90.1.7", "--to", "10.1.0.20", "--proto", "icmp"]);
        assert!(
            echo.contains("Service shop/web") && echo.contains("echo reply") && echo.ends_with("answered\n"),
            "{echo}"
        );
        let one = agent.ask(
            "explain",
            &[
                "--from",
                "10.90.1.7",
                "--to",
                "10.1.0.20",
                "--proto",
                "tcp",
                "--port",
                "80",
                "--sport",
                "4000",
                "-o",
                "json",
            ],
        );
        let one: serde_json::Value = serde_json::from_str(&one).expect("JSON");
        assert_eq!(
            (&one["verdict"], one["endpoints"].as_array().map(Vec::len)),
            (&"forwarded".into(), Some(1)),
            "{one}"
        );
        let name = |name| agent.ask("explain", &["--from", "10.90.1.7", "--name", name]);
        let web = name("Web.Shop.svc.cluster.local");
        assert!(
            web.contains("A: 1 records of the cluster zone, answered in the kernel") && web.ends_with("answered\n"),
            "{web}"
        );
        assert!(name("nothing.shop.svc.cluster.local").contains("NXDOMAIN"));
        assert!(name("www.example.org").ends_with("passed\n"));
    });
}

#[test]
fn an_agent_attaches_tells_so_and_takes_itself_off() {
    in_namespace(|| {
        let place = Place::new();
        let agent = place.agent(&attached(&place));
        assert_eq!(left().len(), 2, "ingress and egress: {:?}", left());
        let status = agent.json("status");
        assert_eq!(status["interfaces"][0]["interface"], "up0", "{status}");
        assert_eq!(status["interfaces"][0]["role"], "uplink");
        assert_eq!(status["interfaces"][0]["tc"], true);
        assert_eq!(status["addresses"], serde_json::json!(["10.90.2.100"]));
        assert!(agent.get("/metrics").1.contains("gateway_interface_info{interface=\"up0\",role=\"uplink\""));
        let output = finish(gateway(&["setup-client", "--os", "linux", "--config"]).arg(&agent.config));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("ip route replace 10.1.0.0/16 via 10.90.2.100"), "{text}");
        let detach = || finish(gateway(&["detach", "--config"]).arg(place.path().join("gateway.yaml")));
        assert!(refusal(&detach()).contains("an agent is running"));
        let (status, log) = agent.end(Signal::SIGTERM);
        assert!(status.success(), "{status}: {log}");
        assert_eq!(left(), [""; 0]);
        let detached = detach();
        assert!(detached.status.success(), "{}", String::from_utf8_lossy(&detached.stderr));
    });
}
