//! Zone and node hints, and `internalTrafficPolicy: Local`.

use super::*;
use crate::model::{Dirty, Identity, Node};

/// The plan of `shop/web` as the gateway on node `n1` of zone `a` has it.
fn seen(yaml: &str) -> ServicePlan {
    seen_from("n1", Some("a"), yaml)
}

fn seen_from(node: &str, zone: Option<&str>, yaml: &str) -> ServicePlan {
    let (cluster, _) = here(node, zone, yaml);
    plan_service(&cluster, &ObjectName::new("shop", "web"), &config()).expect("the Service is there")
}

fn here(node: &str, zone: Option<&str>, yaml: &str) -> (Cluster, Dirty) {
    let (mut objects, problems): (Objects, _) = crate::source::parse(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    assert_eq!(problems, Vec::<String>::new());
    objects.insert_node(self::node(node, zone));
    let mut cluster = Cluster::seen_from(Identity { names: vec![node.into()], addresses: vec![] });
    let dirty = cluster.apply([Event::Snapshot(Box::new(objects))]);
    (cluster, dirty)
}

fn node(name: &str, zone: Option<&str>) -> Node {
    Node { name: name.into(), zone: zone.map(Into::into), addresses: vec![] }
}

/// An endpoint 10.42.0.N with hints for these zones and nodes.
fn hinted(number: u8, zones: &[&str], nodes: &[&str]) -> String {
    let list = |names: &[&str]| names.iter().map(|name| format!("{{name: {name}}}")).collect::<Vec<_>>().join(", ");
    let hints = [("forZones", zones), ("forNodes", nodes)];
    let hints: Vec<String> = hints
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(key, names)| format!("{key}: [{}]", list(names)))
        .collect();
    let hints = if hints.is_empty() { String::new() } else { format!(", hints: {{{}}}", hints.join(", ")) };
    format!("addresses: [10.42.0.{number}]{hints}")
}

const DRAINING: &str = ", conditions: {ready: false, serving: true, terminating: true}";
const UNREADY: &str = ", conditions: {ready: false}";

#[test]
fn hints_are_honoured_as_kube_proxy_does() {
    let (a, b, none) = (&["a"][..], &["b"][..], &[][..]);
    let table: Vec<(&str, Vec<String>, &str)> = vec![
        (
            "every ready endpoint has a zone hint, one of them ours",
            vec![hinted(1, a, none), hinted(2, b, none), hinted(3, &["b", "a"], none)],
            "10.42.0.1:8080 10.42.0.3:8080 | 10.42.0.2:8080",
        ),
        (
            "one without a hint: all are used",
            vec![hinted(1, a, none), hinted(2, b, none), hinted(3, none, none)],
            "10.42.0.1:8080 10.42.0.2:8080 10.42.0.3:8080",
        ),
        (
            "none for our zone: all are used",
            vec![hinted(1, b, none), hinted(2, b, none)],
            "10.42.0.1:8080 10.42.0.2:8080",
        ),
        (
            "endpoints that are not ready are not asked",
            vec![
                hinted(1, a, none),
                hinted(2, b, none),
                hinted(3, none, none) + DRAINING,
                hinted(4, none, none) + UNREADY,
            ],
            "10.42.0.1:8080 | 10.42.0.2:8080 10.42.0.3:8080 10.42.0.4:8080",
        ),
        (
            "nor does one of them make a zone ours",
            vec![hinted(1, a, none) + DRAINING, hinted(2, b, none)],
            "10.42.0.2:8080 | 10.42.0.1:8080",
        ),
        (
            "the last resort knows no zones",
            vec![hinted(1, a, none) + DRAINING, hinted(2, b, none) + DRAINING, hinted(3, a, none) + UNREADY],
            "10.42.0.1:8080 10.42.0.2:8080 | 10.42.0.3:8080",
        ),
        (
            "the node goes before the zone",
            vec![hinted(1, a, &["n1"]), hinted(2, a, &["n2"]), hinted(3, b, &["n3"])],
            "10.42.0.1:8080 | 10.42.0.2:8080 10.42.0.3:8080",
        ),
        (
            "no hint for our node: the zone decides",
            vec![hinted(1, a, &["n4"]), hinted(2, a, &["n2"]), hinted(3, b, &["n3"])],
            "10.42.0.1:8080 10.42.0.2:8080 | 10.42.0.3:8080",
        ),
        (
            "one without a node hint: the zone decides",
            vec![hinted(1, a, &["n1"]), hinted(2, a, none), hinted(3, b, &["n3"])],
            "10.42.0.1:8080 10.42.0.2:8080 | 10.42.0.3:8080",
        ),
    ];
    for (promise, endpoints, expected) in table {
        let yaml = service(WEB) + &slice("web-1", "IPv4", HTTP, &endpoints.join("; "));
        assert_eq!(frontends(&seen(&yaml)), [format!("10.1.0.10:80/tcp -> {expected}")], "{promise}");
    }
}

#[test]
fn hints_of_all_slices_count_but_each_port_for_itself() {
    let two = service("clusterIP: 10.1.0.10, ports: [{name: http, port: 80}, {name: other, port: 81}]");
    let other = "{name: other, port: 9090}";
    let yaml = two
        + &slice("web-1", "IPv4", HTTP, &format!("{}; {}", hinted(1, &["a"], &[]), hinted(2, &["b"], &[])))
        + &slice("web-2", "IPv4", other, &format!("{}; {}", hinted(1, &["a"], &[]), hinted(3, &[], &[])));
    assert_eq!(
        frontends(&seen(&yaml)),
        ["10.1.0.10:80/tcp -> 10.42.0.1:8080 | 10.42.0.2:8080", "10.1.0.10:81/tcp -> 10.42.0.1:9090 10.42.0.3:9090",]
    );
}

#[test]
fn without_a_zone_of_its_own_the_gateway_uses_every_endpoint() {
    let yaml = service(WEB)
        + &slice("web-1", "IPv4", HTTP, &format!("{}; {}", hinted(1, &["a"], &[]), hinted(2, &["b"], &[])));
    for (node, zone) in [("n1", None), ("n1", Some("")), ("n1", Some("c"))] {
        assert_eq!(frontends(&seen_from(node, zone, &yaml)), ["10.1.0.10:80/tcp -> 10.42.0.1:8080 10.42.0.2:8080"]);
    }
    assert_eq!(
        frontends(&plan(&yaml)),
        ["10.1.0.10:80/tcp -> 10.42.0.1:8080 10.42.0.2:8080"],
        "nor when it does not know its node"
    );
}

#[test]
fn a_local_policy_keeps_to_the_own_node() {
    let local = service(&format!("{WEB}, internalTrafficPolicy: Local"));
    let on = |number: u8, node: &str| format!("addresses: [10.42.0.{number}], nodeName: {node}");
    let table: Vec<(&str, Vec<String>, &str)> = vec![
        ("own ones alone", vec![on(1, "n1"), on(2, "n2")], "10.42.0.1:8080 | 10.42.0.2:8080"),
        ("none is none", vec![on(1, "n2"), "addresses: [10.42.0.2]".into()], " | 10.42.0.1:8080 10.42.0.2:8080"),
        (
            "the last resort is local, too",
            vec![on(1, "n1") + DRAINING, on(2, "n2"), on(3, "n2") + DRAINING],
            "10.42.0.1:8080 | 10.42.0.2:8080 10.42.0.3:8080",
        ),
        (
            "hints do not matter",
            vec![on(1, "n1") + ", hints: {forZones: [{name: b}]}", on(2, "n2") + ", hints: {forZones: [{name: a}]}"],
            "10.42.0.1:8080 | 10.42.0.2:8080",
        ),
    ];
    for (promise, endpoints, expected) in table {
        let yaml = local.clone() + &slice("web-1", "IPv4", HTTP, &endpoints.join("; "));
        assert_eq!(frontends(&seen(&yaml)), [format!("10.1.0.10:80/tcp -> {expected}")], "{promise}");
    }
    let yaml = local + &slice("web-1", "IPv4", HTTP, &on(1, "n1"));
    assert_eq!(frontends(&plan(&yaml)), ["10.1.0.10:80/tcp ->  | 10.42.0.1:8080"], "an unknown node is nobody's");
    assert!(records(&plan(&yaml)).contains(&"web.shop A 10.1.0.10".to_owned()), "names do not know the policy");
}

#[test]
fn the_gateways_node_is_found_by_name_then_by_address_and_a_move_plans_anew_only_what_is_near() {
    let hint = hinted(1, &["a"], &[]);
    let yaml = service(WEB)
        + &slice("web-1", "IPv4", HTTP, &hint)
        + "---\n"
        + &service("clusterIP: 10.1.0.11, internalTrafficPolicy: Local, ports: [{port: 80}]")
            .replace("name: web", "name: local")
        + "---\n"
        + &service("clusterIP: 10.1.0.12, ports: [{port: 80}]").replace("name: web", "name: plain");
    let (mut cluster, dirty) = here("n1", Some("a"), &yaml);
    assert_eq!((dirty.services.len(), cluster.here().zone.as_deref()), (3, Some("a")));
    let names = |dirty: Dirty| dirty.services.into_iter().map(|name| name.name.to_string()).collect::<Vec<_>>();
    let other = Node { addresses: vec!["10.0.0.2".parse().unwrap()], ..node("n2", Some("b")) };
    assert_eq!(names(cluster.apply([Event::Node(other.clone())])), Vec::<String>::new(), "another node is no news");
    assert_eq!(names(cluster.apply([Event::Node(node("n1", Some("b")))])), ["local", "web"]);
    assert_eq!(names(cluster.apply([Event::Node(node("n1", Some("b")))])), Vec::<String>::new());
    assert_eq!(
        names(cluster.apply([Event::NodeGone("n1".into())])),
        ["local", "web"],
        "its zone is not known any more"
    );
    assert_eq!(cluster.here().node.as_deref(), Some("n1"), "the name may still be right");

    let mut cluster =
        Cluster::seen_from(Identity { names: vec!["host".into()], addresses: vec!["10.0.0.2".parse().unwrap()] });
    cluster.apply([Event::Node(other)]);
    assert_eq!((cluster.here().node.as_deref(), cluster.here().zone.as_deref()), (Some("n2"), Some("b")));
    cluster.apply([Event::Node(node("host", None))]);
    assert_eq!(cluster.here().node.as_deref(), Some("host"));
}
