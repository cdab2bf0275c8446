//! A running agent and the commands that ask it. The forwarder alone, so that no privilege is needed.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{Place, WEB, finish, gateway, refusal};
use nix::sys::signal::Signal;

#[test]
fn it_says_ready_once_and_ends_well_on_either_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let place = Place::new();
        let agent = place.agent(&place.least());
        assert_eq!(agent.get("/readyz"), (200, "ready\n".to_owned()));
        assert_eq!(agent.get("/healthz").0, 200);
        let (status, log) = agent.end(signal);
        assert!(status.success(), "{status}: {log}");
        assert_eq!(log.lines().filter(|line| line.contains(" ready ")).count(), 1, "{log}");
    }
}

#[test]
fn every_answer_has_its_shape() {
    let place = Place::new();
    let agent = place.agent(&place.least());

    let status = agent.json("status");
    assert_eq!(status["ready"], true);
    assert_eq!(status["mode"], "off");
    assert_eq!(status["clusterDomain"], "cluster.local");
    assert_eq!(status["serviceCIDRs"], serde_json::json!(["10.1.0.0/16"]));
    assert_eq!(status["dns"], serde_json::json!([place.dns.to_string()]));
    assert_eq!(status["source"]["kind"], "manifests");
    assert_eq!(status["source"]["synced"], true);
    assert_eq!(status["counts"]["services"], 1);
    assert_eq!(status["counts"]["endpoints"], 2);
    assert_eq!(status["views"][0]["name"], "here");
    assert_eq!(status["views"][0]["namespaces"], serde_json::json!(["*"]));

    let services = agent.json("services");
    assert_eq!(services[0]["namespace"], "shop");
    assert_eq!(services[0]["vips"], serde_json::json!(["10.1.0.20"]));
    assert_eq!(services[0]["views"], serde_json::json!(["here"]));
    assert_eq!(services[0]["ports"][0]["port"], 80);
    assert_eq!(services[0]["ports"][0]["protocol"], "TCP");
    assert_eq!(services[0]["ports"][0]["endpoints"][1], serde_json::json!({"addr": "10.244.2.2", "port": 8080}));

    assert_eq!(agent.json("flows"), serde_json::json!([]));
    let drops = agent.json("drops");
    assert_eq!(drops.as_array().map(Vec::len), Some(gateway_common::Reason::ALL.len()));
    assert!(drops[0]["reason"].is_string() && drops[0]["packets"].is_u64() && drops[0]["class"].is_string());
    let dns = agent.json("dns");
    assert_eq!(dns["listen"], serde_json::json!([place.dns.to_string()]));
    assert!(dns["counters"]["queries"].is_object() && dns["cache"].is_array() && dns["upstreams"].is_array());
}

#[test]
fn tables_name_what_people_look_for() {
    let place = Place::new();
    let agent = place.agent(&place.least());
    assert!(agent.ask("status", &[]).contains("ready, up"));
    let services = agent.ask("services", &[]);
    assert!(services.contains("10.1.0.20:80") && services.contains("10.244.1.2:8080,10.244.2.2:8080"), "{services}");
    assert!(agent.ask("dns", &[]).contains(&place.dns.to_string()));
    assert!(agent.ask("drops", &["-o", "table"]).starts_with("PACKETS"));
    assert!(agent.ask("flows", &["--limit", "3"]).starts_with("PROTO"));
}

#[test]
fn metrics_are_valid() {
    let place = Place::new();
    let agent = place.agent(&place.least());
    let (code, text) = agent.get("/metrics");
    assert_eq!(code, 200);
    for line in [
        "gateway_ready 1.0",
        "gateway_services 1.0",
        "gateway_packets_total{reason=\"stranger\",class=\"dropped\"} 0",
        "gateway_source_connected 1.0",
        "gateway_dns_queries_total{transport=\"udp\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(name.starts_with("gateway_") && value.parse::<f64>().is_ok(), "{line}");
    }
    let Ok(mut lint) = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn() else {
        println!("skipped: promtool is not installed (Debian package prometheus)");
        return;
    };
    lint.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("promtool reads");
    assert!(lint.wait().expect("promtool ends").success(), "promtool refuses\n{text}");
}

#[test]
fn a_changed_manifest_is_live_within_a_second() {
    let place = Place::new();
    let agent = place.agent(&place.least());
    place.manifest("web.yaml", &WEB.replace("10.1.0.20", "10.1.0.21"));
    agent.until(Duration::from_secs(1), "the new address", |agent| {
        agent.get("/api/v1/services").1.contains("10.1.0.21") && !agent.get("/api/v1/services").1.contains("10.1.0.20")
    });
    std::fs::remove_file(place.path().join("cluster/web.yaml")).expect("the manifest");
    agent.until(Duration::from_secs(1), "the Service is gone", |agent| agent.get("/api/v1/services").1 == "[]");
}

#[test]
fn a_manifest_that_does_not_parse_is_named_and_the_rest_goes_on() {
    let place = Place::new();
    place.manifest("bad.yaml", "kind: Service\n  metadata: [");
    let agent = place.agent(&place.least());
    let (code, ready) = agent.get("/readyz");
    assert!(code == 200 && ready.starts_with("ready, degraded: "), "{code} {ready}");
    let status = agent.json("status");
    let problems = status["source"]["problems"].to_string();
    assert!(problems.contains("bad.yaml"), "{problems}");
    assert_eq!(status["counts"]["services"], 1);
    assert!(agent.ask("status", &[]).contains("bad.yaml"));

    place.manifest("web.yaml", "{");
    agent.until(Duration::from_secs(2), "the second bad file is named", |agent| {
        agent.get("/api/v1/status").1.contains("web.yaml")
    });
    assert_eq!(agent.json("status")["counts"]["services"], 1, "the last good state is kept");
    place.manifest("bad.yaml", "");
    place.manifest("web.yaml", WEB);
    agent.until(Duration::from_secs(2), "it is well again", |agent| agent.get("/readyz").1 == "ready\n");
}

#[test]
fn a_command_without_an_agent_says_so_in_one_line() {
    let place = Place::new();
    for command in ["status", "services", "flows", "dns", "drops"] {
        let output = finish(gateway(&[command, "--api", &format!("http://{}", place.http)]).arg("-ojson"));
        let line = refusal(&output);
        assert!(line.contains(&place.http.to_string()) && line.contains("is the agent running"), "{line}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_client_gets_this_clusters_values() {
    let place = Place::new();
    let agent = place.agent(&place.least());
    for (os, wanted) in [
        ("linux", "ip route replace 10.1.0.0/16 via 10.90.2.100"),
        ("macos", "/etc/resolver/cluster.local"),
        ("windows", "New-NetRoute -DestinationPrefix 10.1.0.0/16 -NextHop 10.90.2.100"),
        ("dnsmasq", "server=/cluster.local/10.90.2.100"),
    ] {
        let output =
            finish(gateway(&["setup-client", "--os", os, "--gateway", "10.90.2.100", "--config"]).arg(&agent.config));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains(wanted), "{os}: {text}");
    }
}
