//! The gateway answers as CoreDNS does, but for what docs/dns.md lists. Issue 4, "What it must show", 1.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use anyhow::anyhow;
use gateway_lab::{
    GatewayConfig, Lab, Node, Topology,
    alike::{Kind, Known, Report, compare, names, questions},
    cluster::{self, COREDNS, Cluster},
    process::{NotYet, wait_for},
    testing,
    topology::GATEWAY,
};
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, api::ListParams};

/// Both have heard of everything within this.
const QUIET: Duration = Duration::from_secs(60);

/// Services of every kind, with and without endpoints, names of ports, host names and addresses of both families.
fn manifests() -> String {
    let mut text = "apiVersion: v1\nkind: List\nitems:\n".to_owned();
    for namespace in ["red", "blue", "bare"] {
        let _ = writeln!(text, "- {{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}");
    }
    let tcp = "[{name: http, port: 80}]";
    let mixed = "[{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}, {name: alt, port: 8080}]";
    for (namespace, name, spec) in [
        ("red", "plain", format!("ports: {tcp}")),
        ("red", "unnamed", "ports: [{port: 80}]".to_owned()),
        ("red", "mixed", format!("ports: {mixed}")),
        ("red", "silent", format!("ports: {tcp}")),
        ("red", "hdls", format!("clusterIP: None, ports: {mixed}")),
        ("red", "early", format!("clusterIP: None, publishNotReadyAddresses: true, ports: {tcp}")),
        ("red", "empty", format!("clusterIP: None, ports: {tcp}")),
        ("red", "portless", "clusterIP: None".to_owned()),
        ("blue", "six", format!("clusterIP: None, ipFamilies: [IPv4], ports: {tcp}")),
        ("blue", "inside", "type: ExternalName, externalName: plain.red.svc.cluster.local".to_owned()),
        ("blue", "twice", "type: ExternalName, externalName: inside.blue.svc.cluster.local".to_owned()),
        ("blue", "outside", "type: ExternalName, externalName: www.example.test".to_owned()),
        ("blue", "nowhere", "type: ExternalName, externalName: nobody.example.test".to_owned()),
        ("blue", "literal", "type: ExternalName, externalName: 192.0.2.7".to_owned()),
        ("blue", "plain", format!("ports: {tcp}")),
    ] {
        let _ = writeln!(
            text,
            "- {{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{spec}}}}}"
        );
    }
    let image = "spec: {containers: [{name: c, image: none}]}";
    let _ = writeln!(text, "- {{apiVersion: v1, kind: Pod, metadata: {{name: one, namespace: red}}, {image}}}");
    let ready = "{addresses: [10.244.1.21]}, {addresses: [10.244.2.22], hostname: host}, {addresses: [10.244.2.23], \
                 conditions: {ready: false}}";
    let six = "{addresses: ['fd00:42::1']}, {addresses: ['fd00:42::2'], hostname: six}";
    for (namespace, service, family, ports, endpoints) in [
        ("red", "plain", "IPv4", "[{name: http, port: 8080}]", ready),
        ("red", "unnamed", "IPv4", "[{port: 8080}]", ready),
        ("red", "mixed", "IPv4", "[{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]", ready),
        ("red", "hdls", "IPv4", "[{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]", ready),
        ("red", "early", "IPv4", "[{name: http, port: 8080}]", "{addresses: [10.244.1.24]}"),
        ("red", "portless", "IPv4", "[]", ready),
        ("blue", "six", "IPv6", "[{name: http, port: 8080}]", six),
    ] {
        let _ = writeln!(
            text,
            "- {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {service}-1, namespace: {namespace}, \
             labels: {{kubernetes.io/service-name: {service}}}}}, addressType: {family}, ports: {ports}, endpoints: [{endpoints}]}}"
        );
    }
    text
}

#[test]
fn every_name_type_and_edns_variant_is_answered_as_coredns_does_but_for_what_is_known() {
    let Some(_turn) = testing::turn(&["curl", "openssl", "unbound"]) else { return };
    if let Err(why) = cluster::program() {
        println!("SKIP: {why}");
        return;
    }
    let lab = Lab::build(Topology { upstream: true, ..Topology::with_pods(&[Node::Worker1]) }).expect("the lab");
    let cluster = Cluster::start(&lab).expect("the cluster");
    cluster.apply_yaml(cluster::RBAC).expect("deploy/rbac.yaml");
    cluster.apply_yaml(cluster::RBAC_PODS).expect("deploy/rbac-pods.yaml");
    cluster.apply_yaml(&manifests()).expect("the objects");
    cluster.start_coredns().expect("CoreDNS");
    let kubeconfig = cluster.account("gateway-system", "gateway").expect("the gateway's token");
    let config = GatewayConfig {
        kubeconfig: Some(kubeconfig),
        pods: "verified".into(),
        ..GatewayConfig::default().with_upstream()
    };
    let gateway = lab.gateway(&config).expect("the gateway");

    let (services, slices, pod) = wait_for("the pod's address", QUIET, || {
        Ok(cluster.api(async |client| {
            let services = Api::<Service>::all(client.clone()).list(&ListParams::default()).await?;
            let slices = Api::<EndpointSlice>::all(client.clone()).list(&ListParams::default()).await?;
            let pod = Api::<Pod>::namespaced(client, "red").get("one").await?;
            let ip = pod.status.and_then(|status| status.pod_ip).ok_or_else(|| anyhow!("none yet"))?;
            Ok((services.items, slices.items, ip.parse()?))
        })?)
    })
    .expect("the objects");
    let names = names(&services, &slices, [("red", pod)]);
    let questions = questions(&names);
    let both = || -> anyhow::Result<Report> {
        let at = |ip| SocketAddr::from((ip, 53));
        compare(lab.client(), at(GATEWAY), at(COREDNS), &questions)
    };
    let report = wait_for("the same answers", QUIET, || {
        let report = both()?;
        if report.unknown.is_empty() {
            return Ok(report);
        }
        let lines: Vec<String> = report.unknown.iter().take(40).map(ToString::to_string).collect();
        Err(NotYet::Later(anyhow!("{} differences that are not known:\n{}", report.unknown.len(), lines.join("\n"))))
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    println!("{} names, {} questions, known differences: {:?}", names.len(), report.asked, report.known);
    assert!(report.known.contains_key(&Known::EndpointService) && names.values().any(|kind| *kind == Kind::Pod));
    gateway.stop().expect("a clean end");
}

#[test]
fn the_list_of_known_differences_is_the_documentations() {
    const TEXT: &str = include_str!("../../docs/dns.md");
    let (_, table) = TEXT.split_once("## Differences from CoreDNS").expect("the section");
    for known in Known::ALL {
        assert!(
            table.contains(&format!("\n| {}", known.row())),
            "docs/dns.md has no row that begins with {:?}",
            known.row()
        );
    }
}
