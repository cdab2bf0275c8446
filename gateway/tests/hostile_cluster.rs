//! Objects that no good cluster has: what can be served is served, what cannot is named, and nothing panics.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use gateway::{
    dns::{
        NoStore,
        publish::Publisher,
        stats::Stats,
        zone::{Zone, ZoneConfig},
    },
    model::{Cluster, Event, ObjectName, Objects},
    plan::{self, PlanConfig, Pods, ServicePlan, VipKinds},
    source,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn config() -> PlanConfig {
    PlanConfig {
        views: vec![None, Some(vec!["shop".into()])],
        cluster_domain: "cluster.local".into(),
        dns_listen: vec!["10.90.2.100:53".parse().unwrap()],
        dns_service: ObjectName::new("kube-system", "kube-dns"),
        ttl: 5,
        vips: VipKinds { external: true, load_balancer: true },
        own: vec!["10.90.2.100".parse().unwrap()],
        pods: Pods::Disabled,
    }
}

fn zone() -> Zone {
    let config = ZoneConfig {
        domain: "cluster.local",
        ttl: 30,
        negative_ttl: 30,
        serial: 1,
        fixed: Vec::new(),
        pods: false,
        local: false,
    };
    Zone::new(&config, Arc::new(Publisher::new(Arc::new(NoStore), Arc::new(Stats::default())))).expect("a zone")
}

/// Everything that follows from some manifests: the plans, and what was said about objects.
fn outcome(text: &str) -> (BTreeMap<ObjectName, ServicePlan>, Vec<String>) {
    let (objects, problems) = source::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    (plans(objects), problems)
}

fn plans(objects: Objects) -> BTreeMap<ObjectName, ServicePlan> {
    let mut cluster = Cluster::default();
    let dirty = cluster.apply([Event::Snapshot(Box::new(objects))]);
    let plan = |name: ObjectName| plan::plan_service(&cluster, &name, &config()).map(|plan| (name, plan));
    dirty.services.into_iter().filter_map(plan).collect()
}

fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n")
}

fn slice(service: &str, family: &str, ports: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-1\n  namespace: shop\n  labels: \
         {{kubernetes.io/service-name: {service}}}\naddressType: {family}\nports: [{ports}]\nendpoints: [{endpoints}]\n"
    )
}

fn addresses(list: &[&str]) -> String {
    list.iter().map(|address| format!("{{addresses: [\"{address}\"]}}")).collect::<Vec<_>>().join(", ")
}

#[test]
fn what_can_be_served_is_served_and_what_cannot_is_named() {
    let web = "clusterIP: 10.1.0.10, ports: [{name: http, port: 80}]";
    let http = "{name: http, port: 8080}";
    let good = "10.42.0.1";
    // What is wrong; the objects; endpoints served on port 80; what must be said.
    let table: Vec<(&str, String, usize, Vec<&str>)> = vec![
        (
            "addresses of the wrong family, and none",
            service("web", web)
                + &slice("web", "IPv4", http, &addresses(&["fd00::1", "not an address", "10.42.0.300", good])),
            1,
            vec!["fd00::1 is not of the slice's addressType", "\"not an address\" is not", "\"10.42.0.300\" is not"],
        ),
        (
            "addresses that nobody can be sent to",
            service("web", web)
                + &slice(
                    "web",
                    "IPv4",
                    http,
                    &addresses(&["255.255.255.255", "127.0.0.1", "224.0.0.1", "169.254.1.1", "0.0.0.0", good]),
                ),
            1,
            vec![
                "broadcast address",
                "loopback address",
                "multicast address",
                "link-local address",
                "unspecified address",
            ],
        ),
        (
            "the same of IPv6",
            service("web", "clusterIP: 'fd00:1::1', ports: [{name: http, port: 80}]")
                + &slice("web", "IPv6", http, &addresses(&["::1", "ff02::1", "fe80::1", "::", "fd00:42::1"])),
            1,
            vec!["loopback address", "multicast address", "link-local address", "unspecified address"],
        ),
        (
            "addresses of IPv4 written as IPv6",
            service("web", "clusterIP: 'fd00:1::1', ports: [{name: http, port: 80}]")
                + &slice("web", "IPv6", http, &addresses(&["::ffff:10.42.0.1", "fd00:42::1"])),
            1,
            vec!["::ffff:10.42.0.1"],
        ),
        (
            "ports that are none",
            service(
                "web",
                "clusterIP: 10.1.0.10, ports: [{name: http, port: 80}, {name: a, port: 0}, {name: b, port: 70000}, {name: c, port: -1}]",
            ) + &slice(
                "web",
                "IPv4",
                "{name: http, port: 8080}, {name: http, port: 0}, {name: http, port: 99999}",
                &addresses(&[good]),
            ),
            1,
            vec![
                "spec.ports: 0 is not a port",
                "spec.ports: 70000",
                "spec.ports: -1",
                "ports: 0 is not a port",
                "ports: 99999",
            ],
        ),
        (
            "ports that are there twice, and a protocol that is not",
            service(
                "web",
                "clusterIP: 10.1.0.10, ports: [{name: http, port: 80}, {name: again, port: 80}, {name: x, port: 81, protocol: QUIC}]",
            ) + &slice("web", "IPv4", "{name: http, port: 8080}, {name: http, port: 8080}", &addresses(&[good, good])),
            1,
            vec!["port 80/tcp is there twice", "protocol \"QUIC\""],
        ),
        (
            "a name for a port that is none",
            service("web", "clusterIP: 10.1.0.10, ports: [{name: 'a.b c', port: 80}]")
                + &slice("web", "IPv4", "{name: 'a.b c', port: 8080}", &addresses(&[good])),
            1,
            vec!["port name \"a.b c\" is not a DNS label"],
        ),
        (
            "a ClusterIP outside every service CIDR is served all the same",
            service("web", "clusterIP: 203.0.113.7, ports: [{name: http, port: 80}]")
                + &slice("web", "IPv4", http, &addresses(&[good])),
            1,
            vec![],
        ),
        (
            "a ClusterIP that is the gateway's own address is not taken from the node",
            service("web", "clusterIP: 10.90.2.100, ports: [{name: http, port: 80}]")
                + &slice("web", "IPv4", http, &addresses(&[good])),
            0,
            vec!["its clusterIP 10.90.2.100 is left out: it is the gateway's own address"],
        ),
        (
            "nor is a node's",
            service("web", "clusterIP: 10.90.2.101, ports: [{name: http, port: 80}]")
                + "---\napiVersion: v1\nkind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: InternalIP, address: 10.90.2.101}]}\n",
            0,
            vec!["its clusterIP 10.90.2.101 is left out: it is a node's own address"],
        ),
        (
            "ClusterIPs that cannot be",
            service(
                "web",
                "clusterIPs: [10.1.0.10, 127.0.0.1, 169.254.1.1, 'fe80::1', x], ports: [{name: http, port: 80}]",
            ) + &slice("web", "IPv4", http, &addresses(&[good])),
            1,
            vec!["127.0.0.1 cannot be", "169.254.1.1 is left out", "fe80::1 is left out", "\"x\" is not an IP address"],
        ),
        (
            "names in capitals, and too long",
            service("web", web)
                + &slice("web", "IPv4", http, &addresses(&[good]))
                + &service("Web", web)
                + &service(&"x".repeat(64), web)
                + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: Shop}\n",
            1,
            vec!["Service shop/Web", "at most 63", "Namespace \"Shop\""],
        ),
        (
            "a host name that is none",
            service("web", web)
                + &slice("web", "IPv4", http, &format!("{{addresses: [{good}], hostname: 'Not A Host'}}")),
            1,
            vec!["hostname \"Not A Host\" is not a DNS label"],
        ),
    ];
    for (what, text, endpoints, expected) in table {
        let (plans, mut problems) = outcome(&text);
        let web = &plans[&ObjectName::new("shop", "web")];
        problems
            .extend(plans.values().flat_map(|plan| plan.problems.iter().map(ToString::to_string).collect::<Vec<_>>()));
        let served: usize = web.frontends.iter().filter(|f| f.port == 80).map(|f| f.endpoints.len()).sum();
        assert_eq!(served, endpoints, "{what}: {:#?}\n{problems:#?}", web.frontends);
        for words in &expected {
            assert!(
                problems.iter().any(|problem| problem.contains(words)),
                "{what}: {words:?} is not in {problems:#?}"
            );
        }
        if expected.is_empty() {
            assert_eq!(problems, Vec::<String>::new(), "{what}");
        }
        sound(&plans);
    }
}

#[test]
fn a_service_of_a_hundred_thousand_endpoints_is_served_whole_and_its_answer_is_cut() {
    let plans = plans(large(200));
    let (web, pods) = (&plans[&ObjectName::new("shop", "web")], &plans[&ObjectName::new("shop", "pods")]);
    assert_eq!(web.frontends[0].endpoints.len(), 100_000);
    assert_eq!(web.problems, Vec::<String>::new());
    assert!(pods.problems.iter().any(|problem| problem.contains("100000 addresses")), "{:?}", pods.problems);
}

#[test]
fn the_zone_bears_a_service_of_more_addresses_than_an_answer_holds() {
    let (plans, zone) = (plans(large(10)), zone());
    for (name, plan) in &plans {
        zone.apply(name, Some(plan));
    }
    assert!(zone.info().names > 10_000);
    for name in plans.keys() {
        zone.apply(name, None);
    }
    assert_eq!((zone.info().names, zone.info().kernel_entries), (0, 0), "nothing is left behind");
}

/// A Service and a headless one of so many times 500 endpoints each.
fn large(parts: u32) -> Objects {
    let mut objects = Objects::default();
    let (small, _) = source::parse(
        &(service("web", "clusterIP: 10.1.0.10, ports: [{name: http, port: 80}]")
            + &service("pods", "clusterIP: None, ports: [{name: http, port: 80}]")),
    )
    .unwrap();
    objects.services = small.services;
    for service in ["web", "pods"] {
        let (parsed, _) =
            source::parse(&slice(service, "IPv4", "{name: http, port: 8080}", &addresses(&["10.128.0.0"]))).unwrap();
        let template = parsed.slices.into_values().next().expect("a slice");
        for part in 0..parts {
            let mut slice = template.clone();
            slice.name = ObjectName::new("shop", format!("{service}-{part}"));
            slice.endpoints = (0..500)
                .map(|number| {
                    let mut endpoint = template.endpoints[0].clone();
                    endpoint.address = std::net::Ipv4Addr::from_bits(0x0a80_0000 + part * 500 + number + 1).into();
                    endpoint
                })
                .collect();
            objects.insert_slice(slice);
        }
    }
    objects
}

/// What holds for every plan, whatever it was made of.
fn sound(plans: &BTreeMap<ObjectName, ServicePlan>) {
    let own: IpAddr = "10.90.2.100".parse().unwrap();
    for (name, plan) in plans {
        for frontend in &plan.frontends {
            assert!(frontend.port != 0 && plan.vips.contains(&frontend.vip), "{name}: {frontend:?}");
            assert!(frontend.vip != own, "{name}: the gateway's own address is a VIP");
            assert!(frontend.endpoints.is_sorted() && frontend.draining.is_sorted(), "{name}: {frontend:?}");
            for endpoint in frontend.endpoints.iter().chain(frontend.draining.iter()) {
                let ip = endpoint.addr;
                let reachable =
                    !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || ip == IpAddr::from([255; 4]));
                assert!(reachable && endpoint.port != 0, "{name}: {endpoint:?}");
                assert_eq!(ip.is_ipv4(), frontend.vip.is_ipv4(), "{name}: {endpoint:?} behind {}", frontend.vip);
            }
        }
        assert!(plan.problems.len() <= 17, "{name}: a list without end");
        for record in &plan.records {
            let wire = gateway::dns::name::from_text(&record.name);
            assert!(wire.is_some(), "{name}: {:?} is no DNS name", record.name);
        }
    }
}

/// A text that somebody might write into any field.
fn text() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => prop::sample::select(vec![
            "web", "Web", "", "a.b", "-", "None", "10.1.0.10", "10.42.0.1", "10.42.0.2", "127.0.0.1", "255.255.255.255", "::1", "fd00::1",
            "::ffff:10.42.0.1", "fe80::1%eth0", "10.90.2.100", "http", "TCP", "UDP", "SCTP", "IPv4", "IPv6", "FQDN", "Local", "Cluster",
            "ExternalName", "ClusterIP", "ClientIP", "example.org", "example.org.", ".", "..", "*", "kube-dns", "kube-system", "true",
        ]).prop_map(|text| json!(text)),
        1 => "\\PC{0,80}".prop_map(|text| json!(text)),
        1 => "[a-z0-9-]{60,70}".prop_map(|text| json!(text)),
    ]
}

/// A value of any shape, but mostly of the one that the field has.
fn or_anything(usual: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Value> {
    let number = prop::sample::select(vec![-1_i64, 0, 1, 80, 65_535, 65_536, i64::from(i32::MAX), i64::MAX]);
    prop_oneof![
        30 => usual,
        1 => Just(Value::Null),
        1 => Just(json!([])),
        1 => Just(json!({})),
        1 => number.prop_map(|number| json!(number)),
        1 => text(),
    ]
}

fn list(of: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<Value> {
    or_anything(prop::collection::vec(of, 0..4).prop_map(Value::from)).boxed()
}

fn fields(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    // A field in four is not there.
    let some = values.into_iter().map(|value| prop::option::weighted(0.75, value)).collect::<Vec<_>>();
    some.prop_map(move |values| {
        let there = names.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
        Value::Object(there.collect())
    })
    .boxed()
}

fn number() -> BoxedStrategy<Value> {
    or_anything(prop::sample::select(vec![-1_i64, 0, 80, 443, 8080, 65_535, 65_536]).prop_map(|n| json!(n))).boxed()
}

fn words() -> BoxedStrategy<Value> {
    or_anything(text()).boxed()
}

fn flag() -> BoxedStrategy<Value> {
    or_anything(any::<bool>().prop_map(|flag| json!(flag))).boxed()
}

fn object() -> impl Strategy<Value = Value> {
    let name =
        || prop::sample::select(vec!["web", "api", "kube-dns", "Web", "a.b", ""]).prop_map(|name| json!(name)).boxed();
    let space = || prop::sample::select(vec!["shop", "kube-system", "UPPER", ""]).prop_map(|name| json!(name)).boxed();
    let label = fields(vec![("kubernetes.io/service-name", name()), ("topology.kubernetes.io/zone", words())]);
    let metadata = move || fields(vec![("name", name()), ("namespace", space()), ("labels", label.clone())]);
    let ports =
        || list(fields(vec![("name", words()), ("port", number()), ("protocol", words()), ("targetPort", number())]));
    let service = fields(vec![
        ("metadata", metadata()),
        (
            "spec",
            fields(vec![
                ("type", words()),
                ("clusterIP", words()),
                ("clusterIPs", list(text())),
                ("externalIPs", list(text())),
                ("externalName", words()),
                ("ports", ports()),
                ("publishNotReadyAddresses", flag()),
                ("sessionAffinity", words()),
                ("internalTrafficPolicy", words()),
            ]),
        ),
        ("status", fields(vec![("loadBalancer", fields(vec![("ingress", list(fields(vec![("ip", words())])))]))])),
    ]);
    let named = || list(fields(vec![("name", words())]));
    let endpoint = fields(vec![
        ("addresses", list(text())),
        ("conditions", fields(vec![("ready", flag()), ("serving", flag()), ("terminating", flag())])),
        ("hostname", words()),
        ("nodeName", words()),
        ("zone", words()),
        ("hints", fields(vec![("forZones", named()), ("forNodes", named())])),
    ]);
    let slice = fields(vec![
        ("metadata", metadata()),
        ("addressType", words()),
        ("ports", ports()),
        ("endpoints", list(endpoint)),
    ]);
    let subset =
        fields(vec![("addresses", list(fields(vec![("ip", words()), ("hostname", words())]))), ("ports", ports())]);
    let endpoints = fields(vec![("metadata", metadata()), ("subsets", list(subset))]);
    let address = fields(vec![("type", Just(json!("InternalIP")).boxed()), ("address", words())]);
    let node = fields(vec![("metadata", metadata()), ("status", fields(vec![("addresses", list(address))]))]);
    let namespace = fields(vec![("metadata", metadata())]);
    let kind = |kind: &'static str, version: &'static str, object: BoxedStrategy<Value>| {
        object.prop_map(move |mut object| {
            object["apiVersion"] = json!(version);
            object["kind"] = json!(kind);
            object
        })
    };
    prop_oneof![
        4 => kind("Service", "v1", service),
        4 => kind("EndpointSlice", "discovery.k8s.io/v1", slice),
        1 => kind("Endpoints", "v1", endpoints),
        1 => kind("Node", "v1", node),
        1 => kind("Namespace", "v1", namespace),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever the objects are: no panic in source, model, plan or zone, and what comes out is sound. Objects come one by one and change
    /// into one another; in the end everything goes, and nothing is left.
    #[test]
    fn objects_of_any_content_are_borne(objects in prop::collection::vec(object(), 1..12)) {
        let (mut cluster, zone) = (Cluster::default(), zone());
        let mut known = Objects::default();
        for object in &objects {
            // Not even of the right shape: the file is refused as a whole.
            let Ok((parsed, _)) = source::parse(&object.to_string()) else { continue };
            known.services.extend(parsed.services);
            known.slices.extend(parsed.slices);
            known.nodes.extend(parsed.nodes);
            known.namespaces.extend(parsed.namespaces);
            let events = cluster.objects.difference(&known);
            for name in cluster.apply(events).services {
                zone.apply(&name, plan::plan_service(&cluster, &name, &config()).as_ref());
            }
            let plan = |name: &ObjectName| plan::plan_service(&cluster, name, &config()).map(|plan| (name.clone(), plan));
            sound(&known.services.keys().filter_map(plan).collect());
        }
        let gone = cluster.objects.difference(&Objects::default());
        for name in cluster.apply(gone).services {
            zone.apply(&name, None);
        }
        prop_assert_eq!(zone.info().kernel_entries, 0);
    }

    /// A file that is anything at all: an error that says so, or objects.
    #[test]
    fn manifests_of_any_text_are_borne(text in "\\PC{0,200}", objects in prop::collection::vec(object(), 0..3)) {
        let _refused_or_not = source::parse(&text);
        let listed = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let _refused_or_not = source::parse(&listed.to_string());
        let _refused_or_not = source::parse(&format!("{}\n---\n{text}", listed));
    }
}
