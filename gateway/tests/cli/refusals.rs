//! Bad input: one line on stderr that names the key, file or interface and says what to do; exit 1; 2 for wrong usage.

use std::net::{TcpListener, UdpSocket};

use crate::support::{Place, finish, gateway, refusal};

#[test]
fn wrong_usage_is_exit_2() {
    for arguments in [
        &["frobnicate"][..],
        &["run"],
        &["status", "-o", "xml"],
        &["setup-client", "--os", "plan9"],
        &["explain", "--from", "10.0.0.1"],
        &["explain", "--from", "10.0.0.1", "--to", "10.1.0.1", "--proto", "tcp"],
        &["explain", "--from", "10.0.0.1", "--to", "10.1.0.1", "--proto", "icmp", "--port", "80"],
        &["flows", "--limit", "many"],
        &[],
    ] {
        assert_eq!(finish(&mut gateway(arguments)).status.code(), Some(2), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"]] {
        assert_eq!(finish(&mut gateway(arguments)).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn explain_asks_the_agent_and_says_how_to_start_one() {
    let output = finish(&mut gateway(&[
        "explain",
        "--from",
        "10.90.1.100",
        "--to",
        "10.1.0.20",
        "--proto",
        "tcp",
        "--port",
        "80",
    ]));
    assert!(refusal(&output).contains("gateway run"));
}

#[test]
fn an_unknown_key_is_named() {
    let place = Place::new();
    let line = place.refused(&place.least().replace("serviceCIDRs", "serviceCidr"));
    assert!(line.contains("gateway.yaml: serviceCidr: unknown key") && line.contains("serviceCIDRs"), "{line}");
}

#[test]
fn a_config_that_is_not_there_is_named() {
    let output = finish(&mut gateway(&["run", "--config", "/nonexistent/gateway.yaml"]));
    assert!(refusal(&output).contains("/nonexistent/gateway.yaml: cannot be read"));
}

#[test]
fn overlapping_views_are_both_named() {
    let place = Place::new();
    let views = "[{name: here, cidrs: [127.0.0.0/8]}, {name: there, cidrs: [127.0.0.0/8]}]";
    let line = place.refused(&place.least().replace("[{name: here, cidrs: [127.0.0.0/8]}]", views));
    assert!(line.contains("clients[1].cidrs[0]") && line.contains("`here`") && line.contains("`there`"), "{line}");
}

#[test]
fn a_manifest_directory_that_is_not_there_is_named() {
    let place = Place::new();
    let line = place.refused(&place.least().replace("manifests: cluster", "manifests: nowhere"));
    assert!(line.contains("source.manifests") && line.contains("nowhere"), "{line}");
}

#[test]
fn a_port_in_use_is_named_with_its_key() {
    let place = Place::new();
    let _http = TcpListener::bind(place.http).expect("the port is free");
    let line = place.refused(&place.least());
    assert!(line.contains("http: ") && line.contains(&place.http.to_string()), "{line}");

    let place = Place::new();
    let _dns = UdpSocket::bind(place.dns).expect("the port is free");
    let line = place.refused(&place.least());
    assert!(line.contains("dns.listen") && line.contains(&place.dns.to_string()), "{line}");

    let place = Place::new();
    let _dns = TcpListener::bind(place.dns).expect("the port is free");
    let line = place.refused(&place.least());
    assert!(line.contains("dns.listen") && line.contains(&place.dns.to_string()), "{line}");
}

#[test]
fn check_names_everything_that_is_wrong() {
    let place = Place::new();
    let _http = TcpListener::bind(place.http).expect("the port is free");
    let config = place.config(
        &(place
            .least()
            .replace("manifests: cluster", "manifests: nowhere")
            .replace("{mode: \"off\"}", "{mode: tc, pin: /nonexistent/pins}")
            + "uplinks: [nosuch0]\n"),
    );
    let output = finish(gateway(&["check", "--config"]).arg(config));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for wanted in
        ["fail  uplinks: `nosuch0` does not exist", "fail  source.manifests: ", "fail  http: ", "fail  datapath.pin: "]
    {
        assert!(text.lines().any(|line| line.starts_with(wanted)), "no {wanted:?} in\n{text}");
    }
}

#[test]
fn check_passes_where_the_gateway_can_run() {
    let place = Place::new();
    let output = finish(gateway(&["check", "--config"]).arg(place.config(&place.least())));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.lines().all(|line| line.starts_with("ok ") || line.starts_with("warn ")), "{text}");
}

#[test]
fn check_says_what_is_wrong_with_the_config() {
    let place = Place::new();
    let output = finish(gateway(&["check", "--config"]).arg(place.config("clients: []\n")));
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("fail  config: ") && text.contains("clients: is required"), "{text}");
}

#[test]
fn check_says_what_the_clusters_dns_is_and_which_rule_has_no_effect() {
    let place = Place::new();
    let said = |dns: &str| {
        let config = place.config(&place.least().replace("dns: {", &format!("dns: {{{dns}, ")));
        let output = finish(gateway(&["check", "--config"]).arg(config));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).expect("text")
    };
    let table = [
        (
            "forward: [{zone: a, to: [cluster]}]",
            "ok    dns.forward: `cluster` is the endpoints of Service kube-system/kube-dns",
        ),
        ("upstreams: [10.1.0.10]", "ok    dns.upstreams: `cluster` in dns.forward is 10.1.0.10:53"),
        ("upstreams: [10.1.0.10], forward: [{zone: .}]", "warn  dns.upstreams: nobody asks them"),
        (
            "forward: [{zone: a.cluster.local, to: [cluster]}]",
            "warn  dns.forward[0].zone: `a.cluster.local` is in the cluster's zone",
        ),
    ];
    for (dns, expected) in table {
        let said = said(dns);
        assert!(said.lines().any(|line| line.starts_with(expected)), "{dns}:\n{said}");
    }
}
