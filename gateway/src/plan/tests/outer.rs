//! External and load-balancer addresses as VIPs.

use super::*;
use crate::model::Node;

const OUTER: &str = "clusterIP: 10.1.0.10, externalIPs: [203.0.113.10, 203.0.113.11], ports: [{name: http, port: 80}]";
const INGRESS: &str = "status: {loadBalancer: {ingress: [{ip: 203.0.113.20}, {hostname: lb.example.com}, {ip: 203.0.113.21, ipMode: Proxy}, {ip: 203.0.113.10}]}}\n";

fn kinds(external: bool, load_balancer: bool) -> PlanConfig {
    PlanConfig { vips: VipKinds { external, load_balancer }, ..config() }
}

/// Another Service than `shop/web`.
fn called(name: &str, spec: &str) -> String {
    "---\n".to_owned() + &service(spec).replace("name: web", &format!("name: {name}"))
}

/// VIP and port of each frontend.
fn doors(plan: &ServicePlan) -> Vec<String> {
    plan.frontends.iter().map(|f| SocketAddr::new(f.vip, f.port).to_string()).collect()
}

#[test]
fn external_addresses_are_vips_only_when_asked_for() {
    let yaml = service(OUTER) + INGRESS + &slice("web-1", "IPv4", HTTP, "addresses: [10.42.0.1]");
    let table = [
        (kinds(false, false), vec!["10.1.0.10:80"]),
        (kinds(true, false), vec!["10.1.0.10:80", "203.0.113.10:80", "203.0.113.11:80"]),
        (kinds(false, true), vec!["10.1.0.10:80", "203.0.113.20:80", "203.0.113.10:80"]),
        (kinds(true, true), vec!["10.1.0.10:80", "203.0.113.10:80", "203.0.113.11:80", "203.0.113.20:80"]),
    ];
    for (config, expected) in table {
        let plan = plan_with(&yaml, "shop/web", &config);
        assert_eq!(doors(&plan), expected, "{:?}", config.vips);
        assert_eq!(plan.vips.len(), expected.len());
        assert!(plan.frontends.iter().all(|f| f.endpoints.len() == 1 && f.views == VIEWS));
        assert_eq!(plan.problems, Vec::<String>::new());
        let addresses = records(&plan).into_iter().filter(|r| r.starts_with("web.shop A ")).collect::<Vec<_>>();
        assert_eq!(addresses, ["web.shop A 10.1.0.10"], "names lead to the clusterIP");
    }
}

#[test]
fn the_internal_policy_is_not_about_external_addresses() {
    let yaml = service(&format!("{OUTER}, internalTrafficPolicy: Local"))
        + &slice("web-1", "IPv4", HTTP, "addresses: [10.42.0.1], nodeName: far");
    let plan = plan_with(&yaml, "shop/web", &kinds(true, false));
    let counts: Vec<_> = plan.frontends.iter().map(|f| f.endpoints.len()).collect();
    assert_eq!(counts, [0, 1, 1]);
}

#[test]
fn a_shared_address_serves_each_port_once_and_conflicts_are_named() {
    let yaml =
        service("clusterIP: 10.1.0.10, externalIPs: [203.0.113.10], ports: [{name: a, port: 80}, {name: b, port: 81}]")
            + &called(
                "api",
                "clusterIP: 10.1.0.11, externalIPs: [203.0.113.10], ports: [{name: a, port: 80}, {name: c, port: 82}]",
            )
            + &called("udp", "clusterIP: 10.1.0.12, externalIPs: [203.0.113.10], ports: [{port: 81, protocol: UDP}]");
    let config = kinds(true, false);
    let of = |name: &str| plan_with(&yaml, name, &config);
    assert_eq!(doors(&of("shop/api")), ["10.1.0.11:80", "10.1.0.11:82", "203.0.113.10:80", "203.0.113.10:82"]);
    assert_eq!(doors(&of("shop/web")), ["10.1.0.10:80", "10.1.0.10:81", "203.0.113.10:81"]);
    assert_eq!(doors(&of("shop/udp")), ["10.1.0.12:81", "203.0.113.10:81"]);
    assert_eq!(of("shop/api").problems, Vec::<String>::new());
    assert_eq!(
        of("shop/web").problems,
        [
            "Service shop/web: port 80/tcp of its externalIP 203.0.113.10 belongs to Service shop/api already; give one of them another port or address"
        ]
    );
}

#[test]
fn a_conflict_with_an_address_that_is_not_asked_for_is_none() {
    let yaml = service("clusterIP: 10.1.0.10, externalIPs: [203.0.113.20], ports: [{port: 80}]")
        + &called("api", "clusterIP: 10.1.0.11, ports: [{port: 80}]")
        + INGRESS;
    assert_eq!(doors(&plan_with(&yaml, "shop/web", &kinds(true, false))), ["10.1.0.10:80", "203.0.113.20:80"]);
    assert_eq!(doors(&plan_with(&yaml, "shop/web", &kinds(true, true))), ["10.1.0.10:80"]);
}

#[test]
fn nobody_takes_a_cluster_ip_or_a_machines_own_address() {
    let yaml = service(
        "clusterIP: 10.1.0.10, externalIPs: [10.1.0.11, 10.90.2.100, 10.90.2.101, 169.254.169.254, 10.1.0.10], ports: [{port: 80}]",
    ) + &called("api", "clusterIP: 10.1.0.11, ports: [{port: 81}]")
        + "---\napiVersion: v1\nkind: Node\nmetadata: {name: worker1}\nstatus: {addresses: [{type: InternalIP, address: 10.90.2.101}]}\n";
    let config = PlanConfig { own: vec!["10.90.2.100".parse().unwrap()], ..kinds(true, true) };
    let plan = plan_with(&yaml, "shop/web", &config);
    assert_eq!(doors(&plan), ["10.1.0.10:80"]);
    assert_eq!(plan.vips.len(), 1);
    let left_out = |addr: &str, why: &str| format!("Service shop/web: its externalIP {addr} is left out: it is {why}");
    assert_eq!(
        plan.problems,
        [
            left_out("10.1.0.11", "the clusterIP of Service shop/api"),
            left_out("10.90.2.100", "the gateway's own address, which stays with this node and its kube-proxy"),
            left_out("10.90.2.101", "a node's own address, which stays with that node and its kube-proxy"),
            left_out("169.254.169.254", "a link-local address"),
        ]
    );
}

#[test]
fn whoever_may_win_or_lose_a_shared_address_is_planned_anew() {
    let spec = "clusterIP: 10.1.0.10, externalIPs: [203.0.113.10], ports: [{port: 80}]";
    let (objects, _) =
        crate::source::parse(&(service(spec) + &called("zoo", &spec.replace("10.1.0.10", "10.1.0.12")))).unwrap();
    let mut cluster = Cluster::default();
    cluster.apply([Event::Snapshot(Box::new(objects.clone()))]);
    let mut touched =
        |event| cluster.apply([event]).services.into_iter().map(|name| name.name.to_string()).collect::<Vec<_>>();
    let (web, zoo) = (ObjectName::new("shop", "web"), ObjectName::new("shop", "zoo"));
    let mut moved = objects.services[&web].clone();
    moved.ports[0].port = 81;
    assert_eq!(touched(Event::Service(moved)), ["web", "zoo"], "a port is free");
    assert_eq!(touched(Event::ServiceGone(web.clone())), ["web", "zoo"]);
    assert_eq!(touched(Event::Service(objects.services[&web].clone())), ["web", "zoo"]);
    let mut alone = objects.services[&zoo].clone();
    alone.external_ips.clear();
    assert_eq!(touched(Event::Service(alone)), ["web", "zoo"]);
    let mut thief = objects.services[&zoo].clone();
    thief.kind = ServiceKind::ClusterIp(vec!["203.0.113.10".parse().unwrap()]);
    thief.external_ips.clear();
    assert_eq!(touched(Event::Service(thief)), ["web", "zoo"], "it is a clusterIP now");
    assert_eq!(touched(Event::ServiceGone(zoo)), ["web", "zoo"]);
    let node = Node { name: "n".into(), zone: None, addresses: vec!["203.0.113.10".parse().unwrap()] };
    assert_eq!(touched(Event::Node(node)), ["web"], "it is a node's now");
    assert_eq!(touched(Event::NodeGone("n".into())), ["web"]);
}
