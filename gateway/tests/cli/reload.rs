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
