//! Objects as people write them, and the plan that must come out.

mod dns;
mod near;
mod outer;

use std::net::SocketAddr;

use super::*;
use crate::model::{Event, Objects};

const VIEWS: u64 = 0b01;

fn config() -> PlanConfig {
    PlanConfig {
        views: vec![None, Some(vec!["other".into()])],
        cluster_domain: "cluster.local".into(),
        dns_listen: vec![],
        dns_service: ObjectName::new("kube-system", "kube-dns"),
        ttl: 5,
        vips: VipKinds::default(),
        own: vec![],
        pods: Pods::Disabled,
    }
}

fn cluster(yaml: &str) -> Cluster {
    let (objects, problems): (Objects, _) = crate::source::parse(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    assert_eq!(problems, Vec::<String>::new());
    let mut cluster = Cluster::default();
    cluster.apply([Event::Snapshot(Box::new(objects))]);
    cluster
}

fn plan_with(yaml: &str, name: &str, config: &PlanConfig) -> ServicePlan {
    let (namespace, name) = name.split_once('/').unwrap();
    plan_service(&cluster(yaml), &ObjectName::new(namespace, name), config).expect("the Service is there")
}

fn plan(yaml: &str) -> ServicePlan {
    plan_with(yaml, "shop/web", &config())
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n")
}

/// A slice of `shop/web`; `endpoints` are entries of the list, `;` between them.
fn slice(name: &str, family: &str, ports: &str, endpoints: &str) -> String {
    let endpoints: String =
        endpoints.split(';').filter(|e| !e.is_empty()).map(|e| format!("- {{{}}}\n", e.trim())).collect();
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{kubernetes.io/service-name: web}}\naddressType: {family}\nports: [{ports}]\nendpoints:\n{endpoints}"
    )
}

const WEB: &str = "clusterIP: 10.1.0.10, ports: [{name: http, port: 80, targetPort: 8080}]";
const HTTP: &str = "{name: http, port: 8080}";

/// `vip:port/proto -> endpoints [| draining]`, one line a frontend.
fn frontends(plan: &ServicePlan) -> Vec<String> {
    let list = |endpoints: &[Endpoint]| {
        endpoints.iter().map(|e| SocketAddr::new(e.addr, e.port).to_string()).collect::<Vec<_>>().join(" ")
    };
    let line = |f: &Frontend| {
        let draining = if f.draining.is_empty() { String::new() } else { format!(" | {}", list(&f.draining)) };
        format!("{}/{} -> {}{draining}", SocketAddr::new(f.vip, f.port), f.protocol.name(), list(&f.endpoints))
    };
    plan.frontends.iter().map(line).collect()
}

/// `name type data`, without the zone, pointers, and what says that the namespace exists.
fn records(plan: &ServicePlan) -> Vec<String> {
    let own = |line: &String| !line.contains(" PTR ") && line != "shop exists";
    plan.records.iter().map(record).filter(own).collect()
}

/// The pointers, as above.
fn pointers(plan: &ServicePlan) -> Vec<String> {
    plan.records.iter().map(record).filter(|line| line.contains(" PTR ")).collect()
}

fn record(record: &Record) -> String {
    let data = match &record.data {
        RecordData::Address(ip) => format!("A {ip}"),
        RecordData::Cname(target) => format!("CNAME {target}"),
        RecordData::Srv(priority, weight, port, target) => {
            format!("SRV {priority} {weight} {port} {}", target.trim_end_matches(".svc.cluster.local"))
        }
        RecordData::Ptr(target) => format!("PTR {}", target.trim_end_matches(".svc.cluster.local")),
        RecordData::Txt(text) => format!("TXT {text}"),
        RecordData::Exists => "exists".into(),
    };
    format!("{} {data}", record.name.trim_end_matches(".cluster.local").trim_end_matches(".svc"))
}

#[test]
fn endpoints_are_chosen_by_kube_proxys_rules() {
    let v4 = |endpoints: &str| slice("web-1", "IPv4", HTTP, endpoints);
    let publish = format!("{WEB}, publishNotReadyAddresses: true");
    let two_ports = "clusterIP: 10.1.0.10, ports: [{name: http, port: 80}, {name: metrics, port: 9000}]";
    let dns_ports =
        "clusterIP: 10.1.0.10, ports: [{name: a, port: 53, protocol: UDP}, {name: a, port: 53, protocol: TCP}]";
    let dual = "clusterIP: 10.1.0.10, clusterIPs: [10.1.0.10, 'fd00:1::10'], ports: [{port: 80}]";
    let table: Vec<(&str, String, Vec<&str>)> = vec![
        (
            "ready by default, sorted",
            service(WEB) + &v4("addresses: [10.42.0.2]; addresses: [10.42.0.1], conditions: {ready: true}"),
            vec!["10.1.0.10:80/tcp -> 10.42.0.1:8080 10.42.0.2:8080"],
        ),
        (
            "not ready ones get no new flows and keep those of TCP",
            service(WEB) + &v4("addresses: [10.42.0.1], conditions: {ready: false}; addresses: [10.42.0.2]"),
            vec!["10.1.0.10:80/tcp -> 10.42.0.2:8080 | 10.42.0.1:8080"],
        ),
        (
            "UDP moves on at once",
            service("clusterIP: 10.1.0.10, ports: [{name: http, port: 80, protocol: UDP}]")
                + &slice(
                    "web-1",
                    "IPv4",
                    "{name: http, port: 8080, protocol: UDP}",
                    "addresses: [10.42.0.1], conditions: {ready: false}; addresses: [10.42.0.2]",
                ),
            vec!["10.1.0.10:80/udp -> 10.42.0.2:8080"],
        ),
        (
            "without a ready one, new flows get none and those of TCP go on",
            service(WEB) + &v4("addresses: [10.42.0.1], conditions: {ready: false}"),
            vec!["10.1.0.10:80/tcp ->  | 10.42.0.1:8080"],
        ),
        (
            "publishNotReadyAddresses takes them all",
            service(&publish) + &v4("addresses: [10.42.0.1], conditions: {ready: false}; addresses: [10.42.0.2]"),
            vec!["10.1.0.10:80/tcp -> 10.42.0.1:8080 10.42.0.2:8080"],
        ),
        (
            "terminating but serving ones keep their flows",
            service(WEB)
                + &v4(
                    "addresses: [10.42.0.1], conditions: {ready: false, serving: true, terminating: true}; addresses: [10.42.0.2]",
                ),
            vec!["10.1.0.10:80/tcp -> 10.42.0.2:8080 | 10.42.0.1:8080"],
        ),
        (
            "and are the last resort",
            service(WEB)
                + &v4(
                    "addresses: [10.42.0.1], conditions: {ready: false, serving: true, terminating: true}; addresses: [10.42.0.2], conditions: {ready: false}",
                ),
            vec!["10.1.0.10:80/tcp -> 10.42.0.1:8080 | 10.42.0.2:8080"],
        ),
        (
            "terminating and not serving is gone",
            service(WEB) + &v4("addresses: [10.42.0.1], conditions: {ready: false, serving: false, terminating: true}"),
            vec!["10.1.0.10:80/tcp -> "],
        ),
        ("a Service without slices has no endpoint", service(WEB), vec!["10.1.0.10:80/tcp -> "]),
        (
            "several slices, the same endpoint once",
            service(WEB)
                + &slice("web-1", "IPv4", HTTP, "addresses: [10.42.0.1]; addresses: [10.42.0.2]")
                + &slice("web-2", "IPv4", HTTP, "addresses: [10.42.0.2]; addresses: [10.42.0.3]"),
            vec!["10.1.0.10:80/tcp -> 10.42.0.1:8080 10.42.0.2:8080 10.42.0.3:8080"],
        ),
        (
            "ready in one slice and draining in another is ready",
            service(WEB)
                + &slice("web-1", "IPv4", HTTP, "addresses: [10.42.0.1]; addresses: [10.42.0.3]")
                + &slice(
                    "web-2",
                    "IPv4",
                    HTTP,
                    "addresses: [10.42.0.1], conditions: {ready: false, serving: true, terminating: true}",
                ),
            vec!["10.1.0.10:80/tcp -> 10.42.0.1:8080 10.42.0.3:8080"],
        ),
        (
            "slices may differ in their port numbers",
            service(WEB)
                + &slice("web-1", "IPv4", HTTP, "addresses: [10.42.0.1]")
                + &slice("web-2", "IPv4", "{name: http, port: 9090}", "addresses: [10.42.0.2]"),
            vec!["10.1.0.10:80/tcp -> 10.42.0.1:8080 10.42.0.2:9090"],
        ),
        (
            "ports match by name",
            service(two_ports)
                + &slice(
                    "web-1",
                    "IPv4",
                    "{name: metrics, port: 9001}, {name: other, port: 1}",
                    "addresses: [10.42.0.1]",
                ),
            vec!["10.1.0.10:80/tcp -> ", "10.1.0.10:9000/tcp -> 10.42.0.1:9001"],
        ),
        (
            "and by protocol",
            service(dns_ports)
                + &slice("web-1", "IPv4", "{name: a, port: 5353, protocol: UDP}", "addresses: [10.42.0.1]"),
            vec!["10.1.0.10:53/udp -> 10.42.0.1:5353", "10.1.0.10:53/tcp -> "],
        ),
        (
            "an unnamed port matches an unnamed port, null or empty",
            service("clusterIP: 10.1.0.10, ports: [{port: 80}]")
                + &slice("web-1", "IPv4", "{name: '', port: 8080}", "addresses: [10.42.0.1]"),
            vec!["10.1.0.10:80/tcp -> 10.42.0.1:8080"],
        ),
        (
            "each family to its own",
            service(dual)
                + &slice("web-4", "IPv4", "{port: 8080}", "addresses: [10.42.0.1]")
                + &slice("web-6", "IPv6", "{port: 8080}", "addresses: ['fd00:42::1']"),
            vec!["10.1.0.10:80/tcp -> 10.42.0.1:8080", "[fd00:1::10]:80/tcp -> [fd00:42::1]:8080"],
        ),
        (
            "headless has no frontend",
            service("clusterIP: None, ports: [{name: http, port: 80}]") + &v4("addresses: [10.42.0.1]"),
            vec![],
        ),
    ];
    for (promise, yaml, expected) in table {
        let plan = plan(&yaml);
        assert_eq!(frontends(&plan), expected, "{promise}");
        assert_eq!(plan.problems, Vec::<String>::new(), "{promise}");
        assert!(plan.frontends.iter().all(|f| f.views == VIEWS && !f.dns && f.affinity == 0), "{promise}");
    }
}

#[test]
fn what_cannot_be_served_is_left_out_and_named() {
    let bad = "addresses: [127.0.0.1]; addresses: [0.0.0.0]; addresses: [224.0.0.5]; addresses: [169.254.1.1]; addresses: [10.1.0.10]";
    let table: Vec<(String, Vec<&str>, Vec<&str>)> = vec![
        (
            service(WEB) + &slice("web-1", "IPv4", HTTP, &format!("{bad}; addresses: [10.42.0.1]")),
            vec!["10.1.0.10:80/tcp -> 10.42.0.1:8080"],
            vec![
                "endpoint 10.1.0.10 of slice web-1 is left out: it is the Service's own address",
                "endpoint 127.0.0.1 of slice web-1 is left out: it is a loopback address",
                "endpoint 169.254.1.1 of slice web-1 is left out: it is a link-local address",
                "endpoint 224.0.0.5 of slice web-1 is left out: it is a multicast address",
                "endpoint 0.0.0.0 of slice web-1 is left out: it is the unspecified address",
            ],
        ),
        (
            service(WEB) + &slice("web-1", "IPv4", "{name: http}", "addresses: [10.42.0.1]"),
            vec!["10.1.0.10:80/tcp -> "],
            vec!["a port of slice web-1 has no number (all ports) and is left out"],
        ),
        (
            service(WEB) + &slice("web-6", "IPv6", HTTP, "addresses: ['fd00:42::1']"),
            vec!["10.1.0.10:80/tcp -> "],
            vec!["endpoint fd00:42::1 of slice web-6 is left out: the Service has no clusterIP of its family"],
        ),
        (
            service("clusterIP: 10.1.0.10, ports: [{port: 80}, {port: 80, name: again}, {port: 7, protocol: SCTP}]"),
            vec!["10.1.0.10:80/tcp -> "],
            vec!["port 80/tcp is there twice; the first is served", "port 7/sctp is not forwarded"],
        ),
        (service("ports: [{port: 80}]"), vec![], vec!["it has no clusterIP yet"]),
    ];
    for (yaml, expected, problems) in table {
        let plan = plan(&yaml);
        assert_eq!(frontends(&plan), expected, "{yaml}");
        for problem in &problems {
            let named = plan.problems.iter().any(|p| p.starts_with("Service shop/web: ") && p.contains(problem));
            assert!(named, "{problem:?} is not in {:?}", plan.problems);
        }
        assert_eq!(plan.problems.len(), problems.len(), "{:?}", plan.problems);
    }
}

#[test]
fn problems_are_a_short_list_however_many_there_are() {
    let endpoints = (0..200).map(|i| format!("addresses: [127.0.0.{i}]")).collect::<Vec<_>>().join(";");
    let plan = plan(&(service(WEB) + &slice("web-1", "IPv4", HTTP, &endpoints)));
    assert_eq!(plan.problems.len(), 17);
    assert!(plan.problems.last().unwrap().ends_with("and 184 more like these"), "{:?}", plan.problems.last());
}

#[test]
fn an_address_claimed_twice_is_served_once_and_said() {
    let twice = service("clusterIP: 10.1.0.10, ports: [{port: 80}]")
        + "---\n"
        + &service("clusterIP: 10.1.0.10, ports: [{port: 81}]").replace("name: web", "name: api");
    let (web, api) = (plan(&twice), plan_with(&twice, "shop/api", &config()));
    assert_eq!(frontends(&api), ["10.1.0.10:81/tcp -> "]);
    assert_eq!((web.vips.len(), web.frontends.len()), (0, 0));
    assert!(
        web.problems[0].contains("its clusterIP 10.1.0.10 belongs to Service shop/api already"),
        "{:?}",
        web.problems
    );
}

#[test]
fn a_service_that_is_gone_has_no_plan() {
    assert_eq!(plan_service(&Cluster::default(), &ObjectName::new("shop", "web"), &config()), None);
}

#[test]
fn client_ip_affinity_has_kubernetes_default_of_three_hours() {
    let affinity = |spec: &str| plan(&service(&format!("{WEB}{spec}"))).frontends[0].affinity;
    assert_eq!(affinity(""), 0);
    assert_eq!(affinity(", sessionAffinity: ClientIP"), 10_800);
    assert_eq!(affinity(", sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}"), 60);
}

#[test]
fn only_views_that_may_see_the_namespace_see_the_service() {
    let mut config = config();
    let yaml = service(WEB) + &slice("web-1", "IPv4", HTTP, "addresses: [10.42.0.1]");
    assert_eq!(plan_with(&yaml, "shop/web", &config).views, 0b01);
    config.views.push(Some(vec!["other".into(), "shop".into()]));
    let plan = plan_with(&yaml, "shop/web", &config);
    assert_eq!(plan.views, 0b101);
    assert!(plan.records.iter().all(|r| r.views == 0b101 && r.ttl == 5));
    config.views = vec![Some(vec!["other".into()])];
    let hidden = plan_with(&yaml, "shop/web", &config);
    assert_eq!(
        (hidden.views, hidden.vips.len(), hidden.frontends[0].views),
        (0, 1, 0),
        "known, so that it can be denied"
    );
    assert_eq!(hidden.records, [], "but nobody may ask for its name");
}

#[test]
fn the_cluster_dns_service_leads_to_the_gateways_own_listeners() {
    let dns = service("clusterIP: 10.1.0.10, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}, {name: metrics, port: 9153}]")
        .replace("name: web, namespace: shop", "name: kube-dns, namespace: kube-system")
        + &slice("kube-dns-1", "IPv4", "{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}, {name: metrics, port: 9153}", "addresses: [10.42.0.7]")
            .replace("namespace: shop", "namespace: kube-system")
            .replace("service-name: web", "service-name: kube-dns");
    let mut config = config();
    let as_any_other = [
        "10.1.0.10:53/udp -> 10.42.0.7:53",
        "10.1.0.10:53/tcp -> 10.42.0.7:53",
        "10.1.0.10:9153/tcp -> 10.42.0.7:9153",
    ];
    for useless in [vec![], vec!["127.0.0.1:53"], vec!["0.0.0.0:53"], vec!["[fd00::1]:53"]] {
        config.dns_listen = useless.iter().map(|l| l.parse().unwrap()).collect();
        let plan = plan_with(&dns, "kube-system/kube-dns", &config);
        assert_eq!(frontends(&plan), as_any_other, "{useless:?}");
        assert!(plan.frontends.iter().all(|f| !f.dns));
    }
    config.dns_listen = ["10.90.2.100:53", "[fd00::1]:53"].iter().map(|l| l.parse().unwrap()).collect();
    let plan = plan_with(&dns, "kube-system/kube-dns", &config);
    assert_eq!(
        frontends(&plan),
        [
            "10.1.0.10:53/udp -> 10.90.2.100:53",
            "10.1.0.10:53/tcp -> 10.90.2.100:53",
            "10.1.0.10:9153/tcp -> 10.42.0.7:9153"
        ]
    );
    assert_eq!(plan.frontends.iter().map(|f| f.dns).collect::<Vec<_>>(), [true, false, false]);
}

#[test]
fn a_cluster_ip_service_has_its_address_its_ports_and_its_endpoints_names() {
    let yaml = service(WEB)
        + &slice(
            "web-1",
            "IPv4",
            HTTP,
            "addresses: [10.42.0.1]; addresses: [10.42.0.2], hostname: db-0; addresses: [10.42.0.3], conditions: {ready: false}",
        );
    assert_eq!(
        records(&plan(&yaml)),
        [
            "10-42-0-1.web.shop A 10.42.0.1",
            "_http._tcp.web.shop SRV 0 100 80 web.shop",
            "db-0.web.shop A 10.42.0.2",
            "web.shop A 10.1.0.10",
            "web.shop SRV 0 100 80 web.shop",
            "web.shop exists",
        ]
    );
    assert_eq!(
        pointers(&plan(&yaml)),
        [
            "1.0.42.10.in-addr.arpa PTR 10-42-0-1.web.shop",
            "10.0.1.10.in-addr.arpa PTR web.shop",
            "2.0.42.10.in-addr.arpa PTR db-0.web.shop",
        ]
    );
    assert_eq!(
        records(&plan(&service(WEB))),
        [
            "_http._tcp.web.shop SRV 0 100 80 web.shop",
            "web.shop A 10.1.0.10",
            "web.shop SRV 0 100 80 web.shop",
            "web.shop exists",
        ]
    );
}

#[test]
fn the_plain_name_has_a_service_record_for_each_port_and_they_share_the_weight() {
    let ports = "[{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}, {port: 9}]";
    let dual = plan(&service(&format!("clusterIPs: [10.1.0.10, 'fd00:1::10'], ports: {ports}")));
    let srv: Vec<String> = records(&dual).into_iter().filter(|line| line.contains("SRV")).collect();
    assert_eq!(
        srv,
        [
            "_dns-tcp._tcp.web.shop SRV 0 50 53 web.shop",
            "_dns._udp.web.shop SRV 0 50 53 web.shop",
            "_http._tcp.web.shop SRV 0 50 80 web.shop",
            "web.shop SRV 0 12 9 web.shop",
            "web.shop SRV 0 12 53 web.shop",
            "web.shop SRV 0 12 80 web.shop",
        ]
    );
    let long = "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa PTR web.shop";
    assert_eq!(pointers(&dual), [long, "10.0.1.10.in-addr.arpa PTR web.shop"]);
}

#[test]
fn a_namespace_exists_with_its_object_or_its_services_and_for_whom_it_may_be_seen() {
    let lines = |plan: &ServicePlan| plan.records.iter().map(|r| (r.name.clone(), r.views)).collect::<Vec<_>>();
    let namespace = cluster("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    let mut config = config();
    let (svc, pod) = ("shop.svc.cluster.local".to_owned(), "shop.pod.cluster.local".to_owned());
    let plan = plan_namespace(&namespace, "shop", &config).expect("the namespace is there");
    assert_eq!(lines(&plan), [(svc.clone(), VIEWS)]);
    config.pods = Pods::Insecure;
    let plan = plan_namespace(&namespace, "shop", &config).expect("the namespace is there");
    assert_eq!(lines(&plan), [(svc.clone(), VIEWS), (pod.clone(), VIEWS)]);
    config.pods = Pods::Verified;
    let plan = plan_namespace(&namespace, "shop", &config).expect("the namespace is there");
    assert_eq!(lines(&plan), [(svc.clone(), VIEWS), (pod.clone(), VIEWS)]);
    assert!(plan_namespace(&namespace, "ops", &config).is_none());
    let headless = plan_with(&service("clusterIP: None"), "shop/web", &config);
    assert_eq!(lines(&headless), [(pod, VIEWS), (svc, VIEWS)], "also where no name of its Service does");
    config.views = vec![Some(vec!["other".into()])];
    let hidden = plan_namespace(&namespace, "shop", &config).expect("the namespace is there");
    assert_eq!(hidden.records, []);
}

#[test]
fn a_headless_service_has_the_addresses_of_its_ready_endpoints() {
    let headless = "clusterIP: None, ports: [{name: db, port: 5432}]";
    let endpoints = "addresses: [10.42.0.1], hostname: db-0; addresses: [10.42.0.2], conditions: {ready: false}, hostname: db-1; addresses: ['10.42.0.3']";
    let slices = slice("web-1", "IPv4", "{name: db, port: 5432}", endpoints)
        + &slice("web-2", "IPv6", "{name: db, port: 5432}", "addresses: ['fd00:42::']");
    assert_eq!(
        records(&plan(&(service(headless) + &slices))),
        [
            "10-42-0-3.web.shop A 10.42.0.3",
            "_db._tcp.web.shop SRV 0 33 5432 10-42-0-3.web.shop",
            "_db._tcp.web.shop SRV 0 33 5432 db-0.web.shop",
            "_db._tcp.web.shop SRV 0 33 5432 fd00-42--0.web.shop",
            "db-0.web.shop A 10.42.0.1",
            "fd00-42--0.web.shop A fd00:42::",
            "web.shop A 10.42.0.1",
            "web.shop A 10.42.0.3",
            "web.shop A fd00:42::",
            "web.shop SRV 0 33 5432 10-42-0-3.web.shop",
            "web.shop SRV 0 33 5432 db-0.web.shop",
            "web.shop SRV 0 33 5432 fd00-42--0.web.shop",
        ]
    );
    assert_eq!(
        pointers(&plan(&(service(headless) + &slices))),
        [
            "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.4.0.0.0.0.d.f.ip6.arpa PTR fd00-42--0.web.shop",
            "1.0.42.10.in-addr.arpa PTR db-0.web.shop",
            "3.0.42.10.in-addr.arpa PTR 10-42-0-3.web.shop",
        ]
    );
    let published = plan(&(service(&format!("{headless}, publishNotReadyAddresses: true")) + &slices));
    assert!(records(&published).contains(&"db-1.web.shop A 10.42.0.2".to_owned()));
    assert_eq!(records(&plan(&service(headless))), Vec::<String>::new(), "no endpoint, no name");
}

#[test]
fn a_headless_service_without_ports_has_names() {
    let yaml = service("clusterIP: None") + &slice("web-1", "IPv4", "", "addresses: [10.42.0.1]");
    assert_eq!(records(&plan(&yaml)), ["10-42-0-1.web.shop A 10.42.0.1", "web.shop A 10.42.0.1"]);
}

#[test]
fn an_external_name_is_an_alias() {
    let external = |target: &str| plan(&service(&format!("type: ExternalName, externalName: '{target}'")));
    assert_eq!(records(&external("Example.COM.")), ["web.shop CNAME example.com", "web.shop exists"]);
    for (addr, record) in [("192.0.2.1", "web.shop A 192.0.2.1"), ("2001:DB8::1", "web.shop A 2001:db8::1")] {
        let plan = external(addr);
        assert_eq!(records(&plan), [record, "web.shop exists"], "what is meant by an address is plain");
        assert_eq!(plan.problems, Vec::<String>::new());
    }
    for wrong in ["", "a b.com", "a..b"] {
        let plan = external(wrong);
        assert_eq!(records(&plan), ["web.shop exists"], "{wrong}");
        assert_eq!(plan.problems.len(), 1, "{wrong}: {:?}", plan.problems);
    }
    assert_eq!(external("example.com").frontends, []);
}

#[test]
fn endpoints_objects_serve_a_service_that_has_no_slices() {
    let legacy = "---\napiVersion: v1\nkind: Endpoints\nmetadata: {name: web, namespace: shop}\nsubsets:\n- addresses: [{ip: 10.42.0.9}]\n  notReadyAddresses: [{ip: 10.42.0.8}]\n  ports: [{name: http, port: 8080}]\n- addresses: [{ip: 10.42.1.9}]\n  ports: [{name: http, port: 8081}]\n";
    let alone = service(WEB) + legacy;
    assert_eq!(frontends(&plan(&alone)), ["10.1.0.10:80/tcp -> 10.42.0.9:8080 10.42.1.9:8081 | 10.42.0.8:8080"]);
    let both = alone + &slice("web-1", "IPv4", HTTP, "addresses: [10.42.0.1]");
    assert_eq!(frontends(&plan(&both)), ["10.1.0.10:80/tcp -> 10.42.0.1:8080"]);
}

#[test]
fn the_zone_itself_has_its_version_and_its_name_server() {
    let mut config = config();
    config.dns_listen = ["10.90.2.100:53", "0.0.0.0:5353", "127.0.0.1:53"].iter().map(|l| l.parse().unwrap()).collect();
    let zone = zone_records(&config);
    let lines: Vec<String> = zone.iter().map(record).collect();
    assert_eq!(lines, ["dns-version TXT 1.1.0", "ns.dns A 10.90.2.100", "ns.dns exists", "pod exists", "svc exists"]);
    assert!(zone.iter().all(|r| r.views == u64::MAX && r.name.ends_with(".cluster.local")));
}

#[test]
fn a_pod_has_a_name_for_each_address_where_the_config_wants_them() {
    let name = ObjectName::new("shop", "a");
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nstatus: {phase: Running, podIP: 10.42.0.7, \
                podIPs: [{ip: 10.42.0.7}, {ip: 'fd00:42::'}]}\n";
    let cluster = cluster(text);
    let mut config = config();
    assert!(plan_pod(&cluster, &name, &config).is_none());
    config.pods = Pods::Verified;
    let plan = plan_pod(&cluster, &name, &config).expect("the pod is there");
    let lines: Vec<_> = plan.records.iter().map(|r| (r.name.as_str(), r.views)).collect();
    let names = ["10-42-0-7.shop.pod.cluster.local", "fd00-42--0.shop.pod.cluster.local"];
    assert_eq!(lines, names.map(|name| (name, VIEWS)));
    assert!(plan_pod(&cluster, &ObjectName::new("shop", "b"), &config).is_none());
}
