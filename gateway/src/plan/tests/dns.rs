//! Where the cluster's own DNS is asked.

use ipnet::IpNet;

use super::*;

const CIDRS: [&str; 1] = ["10.1.0.0/16"];

/// A Service of kube-system, and a slice for each family with these endpoints.
fn dns(name: &str, spec: &str, slices: &[(&str, &str)]) -> String {
    let mut out = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: kube-system}}\nspec: {{{spec}}}\n"
    );
    for (family, endpoints) in slices {
        out += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{family}\n  namespace: kube-system\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\nports: [{{name: dns, port: 5353, protocol: UDP}}, \
             {{name: dns-tcp, port: 5353, protocol: TCP}}, {{name: metrics, port: 9153, protocol: TCP}}]\nendpoints: [{endpoints}]\n"
        );
    }
    out + "---\n"
}

const SPEC: &str = "clusterIP: 10.1.0.10, ports: [{name: metrics, port: 9153}, {name: dns-tcp, port: 53}, {name: dns, port: 53, protocol: UDP}]";
const TWO: &str = "{addresses: [10.42.0.6]}, {addresses: [10.42.0.5]}";

fn found(yaml: &str, upstreams: &[&str]) -> DnsServers {
    let upstreams: Vec<SocketAddr> = upstreams.iter().map(|addr| addr.parse().expect("an address")).collect();
    let cidrs: Vec<IpNet> = CIDRS.iter().map(|cidr| cidr.parse().expect("a prefix")).collect();
    let config = PlanConfig { dns_listen: vec!["10.90.2.100:53".parse().expect("an address")], ..config() };
    dns_servers(&cluster(yaml), &upstreams, &cidrs, &config)
}

#[test]
fn it_is_asked_at_the_endpoints_that_kube_proxy_would_choose() {
    let dual = SPEC.replace("clusterIP: 10.1.0.10", "clusterIPs: ['fd00:1::10', 10.1.0.10], clusterIP: 'fd00:1::10'");
    let conditions = |addr: &str, ready: bool, serving: bool, terminating: bool| {
        format!(
            "{{addresses: [{addr}], conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}}}"
        )
    };
    let going = conditions("10.42.0.5", false, true, true);
    let dead = conditions("10.42.0.7", false, false, false);
    let other = "clusterIP: 10.1.0.11, ports: [{name: dns, port: 53, protocol: UDP}]";
    let table: Vec<(&str, String, &[&str], &str, &str)> = vec![
        (
            "the Service's, at their own port",
            dns("kube-dns", SPEC, &[("IPv4", TWO)]),
            &[],
            "10.42.0.5:5353 10.42.0.6:5353",
            "",
        ),
        (
            "its first family first",
            dns("kube-dns", &dual, &[("IPv4", TWO), ("IPv6", "{addresses: ['fd00:42::5']}")]),
            &[],
            "[fd00:42::5]:5353 10.42.0.5:5353 10.42.0.6:5353",
            "",
        ),
        (
            "headless",
            dns(
                "kube-dns",
                &SPEC.replace("10.1.0.10", "None"),
                &[("IPv6", "{addresses: ['fd00:42::5']}"), ("IPv4", TWO)],
            ),
            &[],
            "10.42.0.5:5353 10.42.0.6:5353 [fd00:42::5]:5353",
            "",
        ),
        (
            "ready ones before terminating ones",
            dns("kube-dns", SPEC, &[("IPv4", &format!("{going}, {dead}, {{addresses: [10.42.0.6]}}"))]),
            &[],
            "10.42.0.6:5353",
            "",
        ),
        (
            "and these before nobody",
            dns("kube-dns", SPEC, &[("IPv4", &format!("{going}, {dead}"))]),
            &[],
            "10.42.0.5:5353",
            "",
        ),
        (
            "nobody",
            dns("kube-dns", SPEC, &[("IPv4", &dead)]),
            &[],
            "",
            "Service kube-system/kube-dns, which has no endpoint",
        ),
        (
            "a port of another name",
            dns("kube-dns", &SPEC.replace("name: dns,", "name: dns-udp,"), &[("IPv4", TWO)]),
            &[],
            "",
            "no endpoint",
        ),
        (
            "no such port",
            dns("kube-dns", "clusterIP: 10.1.0.10, ports: [{name: web, port: 53}]", &[("IPv4", TWO)]),
            &[],
            "",
            "no UDP port",
        ),
        (
            "an ExternalName",
            dns("kube-dns", "type: ExternalName, externalName: dns.example.org", &[]),
            &[],
            "",
            "ExternalName",
        ),
        (
            "no such Service",
            dns("coredns", SPEC, &[("IPv4", TWO)]),
            &[],
            "",
            "there is none: name the cluster's DNS in dns.upstreams",
        ),
        (
            "an address that is a VIP, whosever",
            dns("rke2-coredns", other, &[("IPv4", TWO)]),
            &["10.1.0.11:53"],
            "10.42.0.5:5353 10.42.0.6:5353",
            "",
        ),
        (
            "others as they are, each once, never the gateway itself",
            dns("kube-dns", SPEC, &[("IPv4", TWO)]),
            &["9.9.9.9:53", "10.42.0.6:5353", "10.1.0.10:53", "10.90.2.100:53"],
            "9.9.9.9:53 10.42.0.6:5353 10.42.0.5:5353",
            "dns.upstreams[3]: 10.90.2.100:53 is the address the gateway itself listens on",
        ),
        (
            "a VIP without that port",
            dns("kube-dns", SPEC, &[("IPv4", TWO)]),
            &["10.1.0.10:9153"],
            "",
            "dns.upstreams[0]: 10.1.0.10 is Service kube-system/kube-dns, which has no UDP port 9153",
        ),
        (
            "nobody's VIP is asked, and told",
            dns("kube-dns", SPEC, &[("IPv4", TWO)]),
            &["10.1.0.99:53"],
            "10.1.0.99:53",
            "dns.upstreams[0]: 10.1.0.99 is in a service CIDR, but no Service has it",
        ),
    ];
    for (what, yaml, upstreams, servers, problem) in table {
        let found = found(&yaml, upstreams);
        let all: Vec<String> = found.servers.iter().map(ToString::to_string).collect();
        assert_eq!(all.join(" "), servers, "{what}: {found:?}");
        assert_eq!(found.problems.is_empty(), problem.is_empty(), "{what}: {found:?}");
        assert!(found.problems.iter().all(|said| said.contains(problem)), "{what}: {found:?}");
    }
}

#[test]
fn it_follows_from_the_services_that_it_names_and_no_others() {
    let yaml =
        dns("kube-dns", SPEC, &[("IPv4", TWO)]) + &dns("other", "clusterIP: 10.1.0.11, ports: [{port: 80}]", &[]);
    let of = |upstreams: &[&str]| found(&yaml, upstreams).services.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(of(&[]), ["kube-system/kube-dns"]);
    assert_eq!(of(&["10.1.0.11:53", "9.9.9.9:53"]), ["kube-system/other"]);
}
