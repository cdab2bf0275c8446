//! The config file changes under a running agent.

use std::time::Duration;

use crate::support::Place;
use nix::sys::signal::Signal;

/// Longer than two looks at the file.
const SOON: Duration = Duration::from_secs(10);

fn servers(agent: &crate::support::Agent) -> Vec<String> {
    let dns = agent.json("dns");
    let upstreams = dns["upstreams"].as_array().cloned().unwrap_or_default();
    upstreams.iter().filter_map(|server| server["address"].as_str().map(str::to_owned)).collect()
}

fn problems(agent: &crate::support::Agent) -> String {
    agent.json("status")["problems"].to_string()
}

#[test]
fn zone_rules_follow_the_file_and_a_bad_file_changes_nothing() {
    let place = Place::new();
    let with = |forward: &str| place.least().replace("dns: {", &format!("dns: {{forward: [{forward}], "));
    let agent = place.agent(&with("{zone: ., to: [192.0.2.1]}"));
    assert_eq!(servers(&agent), ["192.0.2.1:53"]);

    place.config(&with("{zone: ., to: [192.0.2.1, 192.0.2.2]}"));
    agent.until(SOON, "the new rule", |agent| servers(agent) == ["192.0.2.1:53", "192.0.2.2:53"]);
    assert_eq!(problems(&agent), "[]");

    place.config(&with("{zone: a..b, to: [192.0.2.3]}"));
    agent.until(SOON, "the bad file is told", |agent| problems(agent).contains("dns.forward[0].zone"));
    assert!(problems(&agent).contains("the last config stays"));
    assert_eq!(servers(&agent), ["192.0.2.1:53", "192.0.2.2:53"]);

    place.config(&with("{zone: ., to: [192.0.2.3]}").replace("[10.1.0.0/16]", "[10.1.0.0/16, 10.2.0.0/16]"));
    agent.signal(Signal::SIGHUP);
    agent.until(SOON, "the rule, and what waits", |agent| problems(agent).contains("serviceCIDRs wait for a restart"));
    assert_eq!(servers(&agent), ["192.0.2.3:53"]);

    place.config(&with("{zone: ., to: []}"));
    agent.until(SOON, "all well again", |agent| servers(agent).is_empty() && problems(agent) == "[]");
    let (status, log) = agent.end(Signal::SIGTERM);
    assert!(status.success(), "{log}");
    for told in ["SIGHUP: reading", "the last one stays", "serviceCIDRs"] {
        assert!(log.contains(told), "{told:?} is not in the log:\n{log}");
    }
}

/// The cluster DNS Service with these endpoints.
fn kube_dns(endpoints: &[&str]) -> String {
    let endpoints: String = endpoints.iter().map(|ip| format!("  - {{addresses: [{ip}]}}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: kube-system}}\nspec:\n  clusterIP: 10.1.0.10\n  \
         ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: kube-dns-1, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}\n\
         ports: [{{name: dns, port: 5353, protocol: UDP}}, {{name: dns-tcp, port: 5353, protocol: TCP}}]\nendpoints:\n{endpoints}"
    )
}

#[test]
fn the_clusters_dns_is_found_and_followed_and_so_is_what_the_config_says_of_it() {
    let place = Place::new();
    let with = |dns: &str| place.least().replace("dns: {", &format!("dns: {{{dns}, "));
    let rule = "forward: [{zone: corp.internal, to: [cluster]}]";
    let agent = place.agent(&with(rule));
    let told = agent.json("status")["degraded"].to_string();
    assert!(told.contains("Service kube-system/kube-dns") && told.contains("dns.upstreams"), "{told}");
    let explain = |name: &str| agent.ask("explain", &["--from", "127.0.0.1", "--name", name]);
    assert!(explain("www.corp.internal").contains("has no endpoint: SERVFAIL"), "{}", explain("www.corp.internal"));
    assert!(explain("www.example.org").contains("refuses it"));

    place.manifest("dns.yaml", &kube_dns(&["10.244.1.5", "10.244.2.5"]));
    agent.until(SOON, "its endpoints", |agent| servers(agent) == ["10.244.1.5:5353", "10.244.2.5:5353"]);
    agent.until(SOON, "all well", |agent| agent.json("status")["degraded"].as_array().is_some_and(Vec::is_empty));
    assert_eq!(problems(&agent), "[]");
    assert!(explain("www.corp.internal").contains("the cluster's DNS: 10.244.1.5:5353, 10.244.2.5:5353"));
    assert!(agent.ask("dns", &[]).contains("the cluster's DNS: 10.244.1.5:5353,"), "{}", agent.ask("dns", &[]));
    place.manifest("dns.yaml", &kube_dns(&["10.244.2.5", "10.244.1.9"]));
    agent.until(SOON, "the others", |agent| servers(agent) == ["10.244.1.9:5353", "10.244.2.5:5353"]);

    // Addresses of the config, one of them the VIP: hot, and without a rule for the rest, for all the rest.
    place.config(&with("upstreams: [192.0.2.7, 10.1.0.10]"));
    agent.signal(Signal::SIGHUP);
    agent.until(SOON, "the config's", |agent| servers(agent) == ["192.0.2.7:53", "10.244.1.9:5353", "10.244.2.5:5353"]);
    assert_eq!(problems(&agent), "[]", "nothing waits for a restart");
    assert!(explain("www.example.org").contains("192.0.2.7:53"));
    place.config(&with("upstreams: [10.1.0.99]"));
    agent.until(SOON, "an address that no Service has", |agent| problems(agent).contains("but no Service has it"));
    assert_eq!(servers(&agent), ["10.1.0.99:53"]);
    // Nobody asks: nobody is told.
    place.config(&with("upstreams: [10.1.0.99], forward: [{zone: ., to: []}]"));
    agent.until(SOON, "no server", |agent| servers(agent).is_empty() && problems(agent) == "[]");
    assert!(agent.json("dns")["clusterDns"].is_null());
    let (status, log) = agent.end(Signal::SIGTERM);
    assert!(status.success(), "{log}");
    assert!(log.contains("nobody asks them"), "{log}");
}
