//! A cluster with every kind of Service, and what is said about its names: the expectations are those of CoreDNS' own tests of its
//! `kubernetes` plugin and of the specification, but for what `docs/dns.md` lists as different.

use std::{collections::BTreeSet, net::SocketAddr, str::FromStr};

use gateway::{
    dns::clock,
    model::{Cluster, Event, ObjectName},
    plan::{PlanConfig, Pods, ServicePlan, VipKinds, plan_namespace, plan_pod, plan_service, zone_records},
};
use hickory_proto::{
    op::Message,
    rr::{Record, RecordType},
};

use crate::support::{DEVELOPER, GUEST, Lab, config, query, query_edns, tcp, udp};

const CLUSTER: &str = "
apiVersion: v1
kind: List
items:
- {kind: Namespace, apiVersion: v1, metadata: {name: testns}}
- {kind: Namespace, apiVersion: v1, metadata: {name: bare}}
- {kind: Namespace, apiVersion: v1, metadata: {name: secret}}
- {kind: Pod, apiVersion: v1, metadata: {name: a, namespace: testns}, status: {phase: Running, podIP: 10.42.0.7, podIPs: [{ip: 10.42.0.7}, {ip: 'fd00:42::7'}]}}
- {kind: Pod, apiVersion: v1, metadata: {name: host, namespace: testns}, status: {phase: Running, podIP: 10.90.2.101}}
- {kind: Pod, apiVersion: v1, metadata: {name: host2, namespace: testns}, status: {phase: Running, podIP: 10.90.2.101}}
- {kind: Pod, apiVersion: v1, metadata: {name: done, namespace: testns}, status: {phase: Succeeded, podIP: 10.42.0.8}}
- {kind: Pod, apiVersion: v1, metadata: {name: new, namespace: testns}, status: {phase: Pending}}
- {kind: Pod, apiVersion: v1, metadata: {name: hidden, namespace: secret}, status: {phase: Running, podIP: 10.42.0.9}}
- kind: Service
  apiVersion: v1
  metadata: {name: svc1, namespace: testns}
  spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}]}
- kind: Service
  apiVersion: v1
  metadata: {name: svc6, namespace: testns}
  spec: {clusterIP: 'fd00:1::1', ports: [{name: http, port: 80}]}
- kind: Service
  apiVersion: v1
  metadata: {name: dual, namespace: testns}
  spec: {clusterIPs: [10.1.0.3, 'fd00:1::3'], ports: [{port: 80}]}
- kind: Service
  apiVersion: v1
  metadata: {name: hdls1, namespace: testns}
  spec: {clusterIP: None, ports: [{name: http, port: 80}]}
- kind: EndpointSlice
  apiVersion: discovery.k8s.io/v1
  metadata: {name: hdls1-4, namespace: testns, labels: {kubernetes.io/service-name: hdls1}}
  addressType: IPv4
  ports: [{name: http, port: 80}]
  endpoints:
  - {addresses: [172.16.0.2]}
  - {addresses: [172.16.0.3]}
  - {addresses: [172.16.0.4], hostname: dup-name}
  - {addresses: [172.16.0.5], hostname: dup-name}
  - {addresses: [172.16.0.6], conditions: {ready: false}}
- kind: EndpointSlice
  apiVersion: discovery.k8s.io/v1
  metadata: {name: hdls1-6, namespace: testns, labels: {kubernetes.io/service-name: hdls1}}
  addressType: IPv6
  ports: [{name: http, port: 80}]
  endpoints: [{addresses: ['fd00:42::1']}, {addresses: ['fd00:42::2']}]
- kind: Service
  apiVersion: v1
  metadata: {name: portless, namespace: testns}
  spec: {clusterIP: None}
- kind: EndpointSlice
  apiVersion: discovery.k8s.io/v1
  metadata: {name: portless-4, namespace: testns, labels: {kubernetes.io/service-name: portless}}
  addressType: IPv4
  ports: []
  endpoints: [{addresses: [172.16.0.20]}]
- kind: Service
  apiVersion: v1
  metadata: {name: empty, namespace: testns}
  spec: {clusterIP: None, ports: [{name: http, port: 80}]}
- kind: Service
  apiVersion: v1
  metadata: {name: alias, namespace: testns}
  spec: {type: ExternalName, externalName: svc1.testns.svc.cluster.local}
- kind: Service
  apiVersion: v1
  metadata: {name: literal, namespace: testns}
  spec: {type: ExternalName, externalName: 192.0.2.7}
- kind: Service
  apiVersion: v1
  metadata: {name: hidden, namespace: secret}
  spec: {clusterIP: 10.1.0.9, ports: [{name: http, port: 80}]}
";

/// A resolver that knows that cluster; the second view sees the namespace `testns` only.
async fn lab(pods: Pods) -> Lab {
    lab_of(CLUSTER, pods).await.0
}

/// The same for other manifests; with every name that has a record.
pub async fn lab_of(manifests: &str, pods: Pods) -> (Lab, BTreeSet<String>) {
    let (objects, problems) = gateway::source::parse(manifests).expect("manifests");
    assert_eq!(problems, Vec::<String>::new());
    let plan = PlanConfig {
        views: vec![None, Some(vec!["testns".to_owned()])],
        cluster_domain: "cluster.local".to_owned(),
        dns_listen: vec![SocketAddr::from(([10, 90, 2, 100], 53))],
        dns_service: ObjectName::new("kube-system", "kube-dns"),
        ttl: 30,
        pods,
        vips: VipKinds::default(),
        own: Vec::new(),
    };
    let mut cluster = Cluster::default();
    let dirty = cluster.apply([Event::Snapshot(Box::new(objects))]);
    let mut config = config();
    config.pods = pods == Pods::Insecure;
    let lab = Lab::start(config).await;
    let name = |namespace: &str| ObjectName::new(namespace, "");
    let zone = ServicePlan { records: zone_records(&plan), ..ServicePlan::default() };
    let mut names = BTreeSet::new();
    let mut apply = |service: &ObjectName, plan: Option<ServicePlan>| {
        names.extend(plan.iter().flat_map(|plan| &plan.records).map(|record| record.name.clone()));
        lab.dns.apply(service, plan.as_ref());
    };
    apply(&name(""), Some(zone));
    lab.dns.set_service_cidrs(&["10.1.0.0/16", "fd00:1::/32"].map(|range| range.parse().expect("a range")));
    for service in dirty.services {
        apply(&service, plan_service(&cluster, &service, &plan));
    }
    for namespace in dirty.namespaces {
        apply(&name(&namespace), plan_namespace(&cluster, &namespace, &plan));
    }
    for pod in dirty.pods {
        let owner = ObjectName::new(&pod.namespace, format!("pod/{}", pod.name));
        apply(&owner, plan_pod(&cluster, &pod, &plan));
    }
    lab.dns.synced();
    (lab, names)
}

/// The code, then the records of each section as sorted text, without the SOA's data; `|` between sections.
fn summary(message: &Message) -> String {
    let record = |record: &Record| {
        let data = match record.record_type() {
            RecordType::SOA => String::new(),
            _ => format!(" {}", record.data),
        };
        let line = format!("{} {}{data}", record.name, record.record_type());
        line.replace("svc.cluster.local.", "~").replace("cluster.local.", "%")
    };
    let section = |records: &[Record]| {
        let mut lines: Vec<String> = records.iter().map(record).collect();
        lines.sort();
        lines.join(", ")
    };
    let sections = [&message.answers, &message.authorities, &message.additionals].map(|records| section(records));
    let text = format!("{} {}", message.metadata.response_code, sections.join(" | "));
    text.replace("  ", " ").trim_end_matches([' ', '|']).to_owned()
}

/// Asked over UDP, over TCP and of the kernel's table: the same answer.
async fn ask(lab: &Lab, name: &str, qtype: &str) -> String {
    let qtype = RecordType::from_str(qtype).expect("a type");
    let packet = query_edns(name, qtype, 1232, false);
    let ours = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
    let message = Message::from_vec(&ours).expect("a readable answer");
    let whole = Message::from_vec(&tcp(lab.addr, &packet).await).expect("a readable answer");
    assert_eq!(summary(&whole), summary(&message), "{name} {qtype}: TCP and UDP");
    if let Some(kernel) = lab.kernel.answer(&packet, 0, clock::now()) {
        let kernel = Message::from_vec(&kernel).expect("a readable answer");
        assert_eq!(summary(&kernel), summary(&message), "{name} {qtype}: kernel and forwarder");
    }
    assert!(message.metadata.authoritative, "{name} {qtype}");
    summary(&message)
}

const NXDOMAIN: &str = "Non-Existent Domain | % SOA";
const NODATA: &str = "No Error | % SOA";
const REVERSE_NXDOMAIN: &str = "Non-Existent Domain | 1.10.in-addr.arpa. SOA";
const REVERSE_NODATA: &str = "No Error | 1.10.in-addr.arpa. SOA";

#[tokio::test]
async fn every_kind_of_name_is_answered_as_coredns_does() {
    let lab = lab(Pods::Disabled).await;
    let hdls = "No Error {} SRV 0 16 80 172-16-0-2.hdls1.testns.~, {} SRV 0 16 80 172-16-0-3.hdls1.testns.~, \
                {} SRV 0 16 80 dup-name.hdls1.testns.~, {} SRV 0 16 80 fd00-42--1.hdls1.testns.~, \
                {} SRV 0 16 80 fd00-42--2.hdls1.testns.~ | | 172-16-0-2.hdls1.testns.~ A 172.16.0.2, \
                172-16-0-3.hdls1.testns.~ A 172.16.0.3, dup-name.hdls1.testns.~ A 172.16.0.4, \
                dup-name.hdls1.testns.~ A 172.16.0.5, fd00-42--1.hdls1.testns.~ AAAA fd00:42::1, \
                fd00-42--2.hdls1.testns.~ AAAA fd00:42::2";
    let (hdls_port, hdls_plain) =
        (hdls.replace("{}", "_http._tcp.hdls1.testns.~"), hdls.replace("{}", "hdls1.testns.~"));
    for (name, qtype, expected) in [
        // ClusterIP
        ("svc1.testns.svc", "A", "No Error svc1.testns.~ A 10.1.0.1"),
        ("svc1.testns.svc", "AAAA", NODATA),
        ("svc1.testns.svc", "SOA", NODATA),
        ("svc1.testns.svc", "MX", NODATA),
        ("svc6.testns.svc", "AAAA", "No Error svc6.testns.~ AAAA fd00:1::1"),
        ("dual.testns.svc", "A", "No Error dual.testns.~ A 10.1.0.3"),
        ("dual.testns.svc", "AAAA", "No Error dual.testns.~ AAAA fd00:1::3"),
        ("svc0.testns.svc", "A", NXDOMAIN),
        ("svc0.nons.svc", "A", NXDOMAIN),
        // SRV
        ("svc1.testns.svc", "SRV", "No Error svc1.testns.~ SRV 0 100 80 svc1.testns.~ | | svc1.testns.~ A 10.1.0.1"),
        (
            "_http._tcp.svc1.testns.svc",
            "SRV",
            "No Error _http._tcp.svc1.testns.~ SRV 0 100 80 svc1.testns.~ | | svc1.testns.~ A 10.1.0.1",
        ),
        (
            "_http._tcp.svc6.testns.svc",
            "SRV",
            "No Error _http._tcp.svc6.testns.~ SRV 0 100 80 svc6.testns.~ | | svc6.testns.~ AAAA fd00:1::1",
        ),
        (
            "dual.testns.svc",
            "SRV",
            "No Error dual.testns.~ SRV 0 50 80 dual.testns.~ | | dual.testns.~ A 10.1.0.3, dual.testns.~ AAAA fd00:1::3",
        ),
        ("_http._udp.svc1.testns.svc", "SRV", NXDOMAIN),
        ("_ftp._tcp.svc1.testns.svc", "SRV", NXDOMAIN),
        ("_tcp.svc1.testns.svc", "SRV", NODATA),
        ("_http._tcp.svc1.testns.svc", "A", NODATA),
        // Headless
        (
            "hdls1.testns.svc",
            "A",
            "No Error hdls1.testns.~ A 172.16.0.2, hdls1.testns.~ A 172.16.0.3, hdls1.testns.~ A 172.16.0.4, hdls1.testns.~ A 172.16.0.5",
        ),
        ("hdls1.testns.svc", "AAAA", "No Error hdls1.testns.~ AAAA fd00:42::1, hdls1.testns.~ AAAA fd00:42::2"),
        ("_http._tcp.hdls1.testns.svc", "SRV", &hdls_port),
        ("hdls1.testns.svc", "SRV", &hdls_plain),
        ("172-16-0-2.hdls1.testns.svc", "A", "No Error 172-16-0-2.hdls1.testns.~ A 172.16.0.2"),
        (
            "dup-name.hdls1.testns.svc",
            "A",
            "No Error dup-name.hdls1.testns.~ A 172.16.0.4, dup-name.hdls1.testns.~ A 172.16.0.5",
        ),
        ("172-16-0-4.hdls1.testns.svc", "A", NXDOMAIN),
        ("172-16-0-6.hdls1.testns.svc", "A", NXDOMAIN),
        ("bogus.hdls1.testns.svc", "A", NXDOMAIN),
        ("fd00-42--2.hdls1.testns.svc", "AAAA", "No Error fd00-42--2.hdls1.testns.~ AAAA fd00:42::2"),
        ("portless.testns.svc", "A", "No Error portless.testns.~ A 172.16.0.20"),
        ("portless.testns.svc", "SRV", NODATA),
        ("172-16-0-20.portless.testns.svc", "A", "No Error 172-16-0-20.portless.testns.~ A 172.16.0.20"),
        ("empty.testns.svc", "A", NXDOMAIN),
        ("_http._tcp.empty.testns.svc", "SRV", NXDOMAIN),
        // ExternalName
        ("alias.testns.svc", "CNAME", "No Error alias.testns.~ CNAME svc1.testns.~"),
        ("alias.testns.svc", "A", "No Error alias.testns.~ CNAME svc1.testns.~, svc1.testns.~ A 10.1.0.1"),
        ("x.alias.testns.svc", "A", NXDOMAIN),
        ("literal.testns.svc", "A", "No Error literal.testns.~ A 192.0.2.7"),
        ("literal.testns.svc", "AAAA", NODATA),
        // Names above names
        ("testns.svc", "A", NODATA),
        ("bare.svc", "A", NODATA),
        ("svc", "A", NODATA),
        ("svc", "NS", NODATA),
        ("pod", "A", NODATA),
        ("foo", "NS", NXDOMAIN),
        ("nons.svc", "A", NXDOMAIN),
        ("testns.pod", "A", NXDOMAIN),
        ("10-1-0-1.testns.pod", "A", NXDOMAIN),
        // Wildcards are names like any other.
        ("*.testns.svc", "A", NXDOMAIN),
        ("*.svc", "A", NXDOMAIN),
        ("svc1.*.svc", "A", NXDOMAIN),
        ("*.hdls1.testns.svc", "A", NXDOMAIN),
        ("*._tcp.svc1.testns.svc", "SRV", NXDOMAIN),
        // The zone itself
        ("", "NS", "No Error % NS ns.dns.% | | ns.dns.% A 10.90.2.100"),
        ("", "SOA", "No Error % SOA"),
        ("", "A", NODATA),
        ("ns.dns", "A", "No Error ns.dns.% A 10.90.2.100"),
        ("ns.dns", "AAAA", NODATA),
        ("dns", "A", NODATA),
        ("dns-version", "TXT", "No Error dns-version.% TXT 1.1.0"),
        ("dns-version", "A", NODATA),
    ] {
        let name = format!("{name}.cluster.local").trim_start_matches('.').to_owned();
        assert_eq!(ask(&lab, &name, qtype).await, expected, "{name} {qtype}");
    }
    let version = lab.ask("dns-version.cluster.local", RecordType::TXT).await;
    assert_eq!(version.answers[0].ttl, 28_800);
}

#[tokio::test]
async fn addresses_have_pointers_and_the_zones_of_service_cidrs_deny_the_rest() {
    let lab = lab(Pods::Disabled).await;
    let six = |last: char| format!("{last}{}.1.0.0.0.0.0.d.f.ip6.arpa", ".0".repeat(23));
    let six_vip = format!("No Error {}. PTR svc6.testns.~", six('1'));
    for (name, qtype, expected) in [
        ("1.0.1.10.in-addr.arpa", "PTR", "No Error 1.0.1.10.in-addr.arpa. PTR svc1.testns.~"),
        ("1.0.1.10.in-addr.arpa", "A", REVERSE_NODATA),
        ("0.1.10.in-addr.arpa", "PTR", REVERSE_NODATA),
        ("1.10.in-addr.arpa", "PTR", REVERSE_NODATA),
        ("8.0.1.10.in-addr.arpa", "PTR", REVERSE_NXDOMAIN),
        ("1.2.1.10.in-addr.arpa", "PTR", REVERSE_NXDOMAIN),
        ("x.1.0.1.10.in-addr.arpa", "PTR", REVERSE_NXDOMAIN),
        ("1.10.in-addr.arpa", "SOA", "No Error 1.10.in-addr.arpa. SOA"),
        ("1.10.in-addr.arpa", "NS", "No Error 1.10.in-addr.arpa. NS ns.dns.% | | ns.dns.% A 10.90.2.100"),
        (&six('1'), "PTR", &six_vip),
        (&six('7'), "PTR", "Non-Existent Domain | 1.0.0.0.0.0.d.f.ip6.arpa. SOA"),
        // Endpoints, wherever they are.
        ("2.0.16.172.in-addr.arpa", "PTR", "No Error 2.0.16.172.in-addr.arpa. PTR 172-16-0-2.hdls1.testns.~"),
        ("4.0.16.172.in-addr.arpa", "PTR", "No Error 4.0.16.172.in-addr.arpa. PTR dup-name.hdls1.testns.~"),
    ] {
        assert_eq!(ask(&lab, name, qtype).await, expected, "{name} {qtype}");
    }
    let kernel = |name: &str, view| lab.kernel.answer(&query(name, RecordType::PTR), view, clock::now());
    assert!(kernel("1.0.1.10.in-addr.arpa", 0).is_some() && kernel("8.0.1.10.in-addr.arpa", 0).is_some());
    assert!(kernel("9.0.16.172.in-addr.arpa", 0).is_none(), "not the cluster's to deny");
    let elsewhere = lab.ask("6.0.16.172.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(summary(&elsewhere), "Query Refused", "an endpoint that is not ready, and no zone rule");
    let mine = lab.ask_from(DEVELOPER, "9.0.1.10.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(summary(&mine), "No Error 9.0.1.10.in-addr.arpa. PTR hidden.secret.~");
    let hidden = lab.ask_from(GUEST, "9.0.1.10.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(summary(&hidden), REVERSE_NXDOMAIN, "what a client may not reach, it does not find by its address");
}

#[tokio::test]
async fn reverse_zones_follow_the_service_cidrs() {
    let lab = lab(Pods::Disabled).await;
    let ranges = |ranges: &[&str]| {
        let ranges: Vec<_> = ranges.iter().map(|range| range.parse().expect("a range")).collect();
        lab.dns.set_service_cidrs(&ranges);
    };
    let before = lab.kernel.with(|tables| (tables.entries.clone(), tables.zones.clone()));
    ranges(&["10.0.0.0/8"]);
    assert_eq!(ask(&lab, "8.0.200.10.in-addr.arpa", "PTR").await, "Non-Existent Domain | 10.in-addr.arpa. SOA");
    assert_eq!(ask(&lab, "1.0.1.10.in-addr.arpa", "PTR").await, "No Error 1.0.1.10.in-addr.arpa. PTR svc1.testns.~");
    assert!(lab.kernel.has("1.10.in-addr.arpa", 0) && !lab.kernel.has("1.10.in-addr.arpa", 6));
    ranges(&["10.0.0.0/12"]);
    assert_eq!(ask(&lab, "1.0.1.10.in-addr.arpa", "PTR").await, "No Error 1.0.1.10.in-addr.arpa. PTR svc1.testns.~");
    let other = lab.ask("8.0.1.10.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(summary(&other), "Query Refused", "a range that no few zones cover is not denied");
    assert_eq!(lab.kernel.answer(&query("8.0.1.10.in-addr.arpa", RecordType::PTR), 0, clock::now()), None);
    ranges(&["10.1.0.0/16", "fd00:1::/32"]);
    let after = lab.kernel.with(|tables| (tables.entries.clone(), tables.zones.clone()));
    assert!(before == after, "back where it began");
    let writes = lab.kernel.with(|tables| tables.writes);
    ranges(&["fd00:1::/32", "10.1.0.0/16"]);
    assert_eq!(lab.kernel.with(|tables| tables.writes), writes, "the same ranges change nothing");
}

#[tokio::test]
async fn names_of_pods_say_their_address_where_their_namespace_exists() {
    let lab = lab(Pods::Insecure).await;
    for (name, qtype, expected) in [
        ("10-42-0-7.testns.pod", "A", "No Error 10-42-0-7.testns.pod.% A 10.42.0.7"),
        ("10-42-0-7.bare.pod", "A", "No Error 10-42-0-7.bare.pod.% A 10.42.0.7"),
        ("10-42-0-7.testns.pod", "AAAA", NODATA),
        ("fd00-42--7.testns.pod", "AAAA", "No Error fd00-42--7.testns.pod.% AAAA fd00:42::7"),
        ("10-42-0-7.nons.pod", "A", NXDOMAIN),
        ("web.testns.pod", "A", NXDOMAIN),
        ("x.10-42-0-7.testns.pod", "A", NXDOMAIN),
        ("testns.pod", "A", NODATA),
        ("nons.pod", "A", NXDOMAIN),
        ("pod", "A", NODATA),
        ("svc1.testns.svc", "A", "No Error svc1.testns.~ A 10.1.0.1"),
    ] {
        let name = format!("{name}.cluster.local");
        assert_eq!(ask(&lab, &name, qtype).await, expected, "{name} {qtype}");
    }
    let hidden = lab.ask_from(GUEST, "10-42-0-7.secret.pod.cluster.local", RecordType::A).await;
    assert_eq!(summary(&hidden), NXDOMAIN, "views hold for pods");
    let packet = query("10-42-0-7.testns.pod.cluster.local", RecordType::A);
    assert_eq!(lab.kernel.answer(&packet, 0, clock::now()), None, "the kernel leaves them to the forwarder");
    assert!(lab.kernel.answer(&query("x.testns.svc.cluster.local", RecordType::A), 0, clock::now()).is_some());
}

#[tokio::test]
async fn verified_names_of_pods_are_those_of_pods_that_there_are_and_the_kernel_knows_them_all() {
    let lab = lab(Pods::Verified).await;
    for (name, qtype, expected) in [
        ("10-42-0-7.testns.pod", "A", "No Error 10-42-0-7.testns.pod.% A 10.42.0.7"),
        ("10-42-0-7.testns.pod", "AAAA", NODATA),
        ("fd00-42--7.testns.pod", "AAAA", "No Error fd00-42--7.testns.pod.% AAAA fd00:42::7"),
        ("10-90-2-101.testns.pod", "A", "No Error 10-90-2-101.testns.pod.% A 10.90.2.101"),
        ("10-42-0-8.testns.pod", "A", NXDOMAIN),
        ("10-42-0-9.testns.pod", "A", NXDOMAIN),
        ("10-42-0-7.bare.pod", "A", NXDOMAIN),
        ("10-42-0-7.nons.pod", "A", NXDOMAIN),
        ("x.10-42-0-7.testns.pod", "A", NXDOMAIN),
        ("testns.pod", "A", NODATA),
        ("bare.pod", "A", NODATA),
        ("nons.pod", "A", NXDOMAIN),
        ("pod", "A", NODATA),
    ] {
        let name = format!("{name}.cluster.local");
        assert_eq!(ask(&lab, &name, qtype).await, expected, "{name} {qtype}");
        let qtype = RecordType::from_str(qtype).expect("a type");
        let kernel = lab.kernel.answer(&query(&name, qtype), 0, clock::now());
        assert!(kernel.is_some(), "{name} {qtype}: in the kernel");
    }
    let hidden = lab.ask_from(GUEST, "10-42-0-9.secret.pod.cluster.local", RecordType::A).await;
    assert_eq!(summary(&hidden), NXDOMAIN, "views hold for pods");
    // Of two pods with one address the name stays until both are gone.
    let pod = |name: &str| ObjectName::new("testns", format!("pod/{name}"));
    let host = "10-90-2-101.testns.pod.cluster.local";
    lab.dns.apply(&pod("host"), None);
    assert!(ask(&lab, host, "A").await.ends_with("A 10.90.2.101"));
    lab.dns.apply(&pod("host2"), None);
    assert_eq!(ask(&lab, host, "A").await, NXDOMAIN);
}

#[tokio::test]
async fn a_service_record_follows_the_addresses_of_its_target() {
    use crate::support::{BOTH, a};
    use gateway::plan::RecordData;

    let lab = Lab::synced(config()).await;
    let (web, srv) = ("web.shop.svc.cluster.local", "_http._tcp.web.shop.svc.cluster.local");
    let points = || RecordData::Srv(0, 100, 80, web.to_owned());
    let extra = async || {
        let expected = summary(&lab.ask(srv, RecordType::SRV).await);
        let kernel = lab.kernel.answer(&query(srv, RecordType::SRV), 0, clock::now()).expect("the kernel answers");
        assert_eq!(summary(&Message::from_vec(&kernel).expect("answer")), expected);
        expected.split(" | | ").nth(1).unwrap_or_default().to_owned()
    };
    lab.service("srv", &[(srv, BOTH, points())]);
    assert_eq!(extra().await, "");
    lab.service("web", &[(web, BOTH, a("10.1.0.10"))]);
    assert_eq!(extra().await, "web.shop.~ A 10.1.0.10");
    lab.service("web", &[(web, BOTH, a("10.1.0.11"))]);
    assert_eq!(extra().await, "web.shop.~ A 10.1.0.11", "another Service's change is in it at once");
    lab.service("web", &[(web, 1, a("10.1.0.11"))]);
    assert_eq!(extra().await, "", "an address that not all of its askers may see is not told");
    lab.gone("srv");
    assert_eq!(lab.rcode(srv, RecordType::SRV).await, hickory_proto::op::ResponseCode::NXDomain);
}

#[tokio::test]
async fn additional_addresses_never_push_service_records_out_of_a_udp_answer() {
    use crate::support::BOTH;
    use gateway::plan::RecordData;

    let lab = Lab::synced(config()).await;
    let srv = "_db._tcp.db.shop.svc.cluster.local";
    let hosts: Vec<String> = (0..20).map(|n| format!("db-{n}.db.shop.svc.cluster.local")).collect();
    let mut records: Vec<(&str, u64, RecordData)> = Vec::new();
    for (n, host) in (0..).zip(&hosts) {
        records.push((srv, BOTH, RecordData::Srv(0, 5, 5432, host.clone())));
        records.push((host, BOTH, RecordData::Address([10, 42, 0, n].into())));
    }
    lab.service("db", &records);
    let packet = query_edns(srv, RecordType::SRV, 1232, false);
    let bytes = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
    let message = Message::from_vec(&bytes).expect("a readable answer");
    assert!(!message.metadata.truncation && bytes.len() <= 1232);
    assert_eq!(message.answers.len(), 20);
    assert!((1..20).contains(&message.additionals.len()), "as many as fit: {}", message.additionals.len());
    assert_eq!(lab.kernel.answer(&packet, 0, clock::now()), Some(bytes));
}
