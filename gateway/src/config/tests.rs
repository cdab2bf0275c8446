use std::{net::SocketAddr, path::Path};

use super::{Cache, Config, ConfigError, Deny, DnsLimits, Forward, RateLimit, ReturnPath, Source, Strangers};
use crate::{
    kernel::{Mode, MssClamp, Sizes, Timeouts},
    plan::VipKinds,
};

const LEAST: &str = "
clients: [{name: developers, cidrs: [10.90.1.0/24]}]
source: {manifests: ./cluster}
serviceCIDRs: [10.1.0.0/16]
";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/gateway/gateway.yaml"))
}

fn error(text: &str) -> String {
    let Err(error) = parse(text) else {
        panic!("accepted:\n{text}");
    };
    let line = error.to_string();
    assert!(!line.contains('\n'), "more than one line: {line}");
    assert!(line.starts_with("/etc/gateway/gateway.yaml: "), "does not name the file: {line}");
    line
}

fn refusal(zone: &str) -> Forward {
    Forward { zone: zone.to_owned(), views: u64::MAX, to: Vec::new(), redirect: Vec::new(), mixed_case: false }
}

#[test]
fn every_key_left_out_has_the_documented_default() {
    let config = parse(LEAST).expect("the least config is valid");
    assert!(config.uplinks.is_empty() && config.cluster_interfaces.is_empty());
    assert_eq!(config.views[0].namespaces, None);
    assert_eq!(config.source, Source::Manifests("/etc/gateway/./cluster".into()));
    assert_eq!(config.return_path, ReturnPath::Snat);
    assert_eq!((config.datapath.vips, &config.node), (VipKinds::default(), &None));
    assert!(config.snat_addresses.is_empty());
    assert_eq!(config.snat_ports, 10_000..=29_999);
    assert_eq!(config.deny, Deny::Reject);
    assert_eq!(config.strangers, Strangers::Drop);
    assert!(config.dns.listen.is_empty() && config.dns.upstreams.is_empty());
    assert_eq!(config.dns.cluster_domain, "cluster.local");
    assert_eq!(config.dns.forward, [refusal("")]);
    assert_eq!(
        config.dns.cache,
        Cache { entries: 65_536, memory: 64 << 20, max_ttl: 3_600, negative_ttl: 5, stale: 3_600, failure_ttl: 2 }
    );
    assert_eq!((config.dns.rate_limit, config.dns.rate_limit.rate), (RateLimit::default(), 0));
    assert_eq!((config.dns.log, config.dns.limits), (None, DnsLimits { outstanding: 4_096, per_client: 512 }));
    assert_eq!(config.datapath.mode, Mode::Auto);
    assert_eq!(config.datapath.flows, 262_144);
    assert_eq!(config.datapath.pin, None);
    assert_eq!((config.datapath.timeouts, config.datapath.mss_clamp), (Timeouts::default(), MssClamp::Off));
    assert_eq!(config.http, SocketAddr::from(([127, 0, 0, 1], 9153)));
    assert_eq!(config.log, "info");
}

#[test]
fn a_partly_given_section_keeps_the_other_defaults() {
    let config = parse(&format!("{LEAST}dns: {{cache: {{maxTtl: 60}}}}\ndatapath: {{timeouts: {{udp: 5}}}}\n"))
        .expect("a valid config");
    assert_eq!(config.dns.cache, Cache { max_ttl: 60, ..Cache::default() });
    assert_eq!(config.datapath.timeouts, Timeouts { udp: 5, ..Timeouts::default() });
    let clamp = |text: &str| {
        parse(&format!("{LEAST}datapath: {{mssClamp: {text}}}\n")).expect("a valid config").datapath.mss_clamp
    };
    assert_eq!((clamp("auto"), clamp("off"), clamp("1360")), (MssClamp::Auto, MssClamp::Off, MssClamp::Bytes(1360)));
}

#[test]
fn the_whole_schema_is_read() {
    let config = parse(
        r#"
uplinks: [eth0]
clusterInterfaces: [eth1, flannel.1]
clients:
  - {name: developers, cidrs: [10.90.0.0/16], namespaces: ["*"]}
  - {name: testers, cidrs: [10.90.1.0/24, "fd00:90::/64"], namespaces: [shop, default]}
source: {kubernetes: {kubeconfig: /etc/gateway/kubeconfig, context: lab, status: false}}
serviceCIDRs: [10.1.0.0/16, "fd00:1::/112"]
returnPath: routed
snat: {addresses: [10.90.2.100], ports: 40000-40999}
deny: drop
strangers: pass
dns:
  listen: [10.90.2.100, "[fd00::1]:53", "fd00::2"]
  clusterDomain: K8s.Example.
  upstreams: [10.1.0.10, "10.1.0.10:5353"]
  forward:
    - {zone: ".", to: [9.9.9.9, "[2620:fe::fe]:53", "tls://9.9.9.9#DNS.quad9.net", "tls://[::9]:8853"]}
    - {zone: Corp.Example., to: []}
  tls: {caFile: own.pem}
  cache: {entries: 10, maxTtl: 20, negativeTtl: 30, stale: 40, failureTtl: 5}
  log: {file: queries.log, sample: 0.5, maxSize: 2Mi, keep: 1}
  rateLimit: {responsesPerSecond: 500, slip: 3, ipv4PrefixLength: 32, ipv6PrefixLength: 64, exemptViews: [testers]}
  limits: {outstanding: 9, perClient: 3}
datapath:
  mode: tc
  flows: 1000
  pin: /sys/fs/bpf/gateway
  vips: [loadBalancer, clusterIP, externalIP]
  mssClamp: 1360
  timeouts: {tcpSyn: 1, tcpEstablished: 2, tcpFin: 3, tcpRst: 4, udp: 5, icmp: 6}
node: worker-1.example
http: "[::1]:9999"
log: gateway=debug,info
"#,
    )
    .expect("a valid config");
    assert_eq!(config.views[1].namespaces, Some(vec!["shop".to_owned(), "default".to_owned()]));
    assert_eq!(
        config.source,
        Source::Kubernetes {
            kubeconfig: Some("/etc/gateway/kubeconfig".into()),
            context: Some("lab".to_owned()),
            status: false
        }
    );
    assert_eq!(config.dns.cluster_domain, "k8s.example");
    assert_eq!(config.dns.listen[2].to_string(), "[fd00::2]:53");
    assert_eq!(config.dns.forward[0].to[1].to_string(), "[2620:fe::fe]:53");
    assert_eq!(config.dns.forward[0].to[2].to_string(), "tls://9.9.9.9:853#dns.quad9.net");
    assert_eq!(config.dns.forward[0].to[3].to_string(), "tls://[::9]:8853#::9");
    assert_eq!(config.dns.ca_file.as_deref(), Some(Path::new("/etc/gateway/own.pem")));
    let log = config.dns.log.as_ref().expect("a log");
    assert_eq!((log.per_million, log.max_size, log.keep), (500_000, 2 << 20, 1));
    assert_eq!(log.file, Path::new("/etc/gateway/queries.log"));
    let dns = config.dns_config(&config.dns.listen);
    assert_eq!((dns.limits.waiting, dns.limits.waiting_per_client, dns.cache.failure_ttl), (9, 3, 5));
    assert_eq!(dns.view_names, ["developers", "testers"]);
    assert_eq!(config.dns.forward[1], refusal("corp.example"));
    let settings = config.settings(Sizes::default(), &config.service_cidrs, &config.dns.listen);
    assert!(settings.routed && settings.deny_drop && settings.strangers_pass);
    let limit = RateLimit { rate: 500, slip: 3, prefix4: 32, prefix6: 64, exempt: 0b10 };
    assert_eq!((dns.rate_limit, settings.dns_limit, settings.dns_log), (limit, limit, 500_000));
    assert_eq!(settings.snat_ports, 40_000..=40_999);
    assert_eq!(settings.dns.len(), 3);
    assert_eq!(settings.claims, config.service_cidrs);
    assert_eq!(settings.views[1].len(), 2);
    let plan = config.plan_config(&config.dns.listen);
    assert_eq!(plan.views, [None, Some(vec!["shop".to_owned(), "default".to_owned()])]);
    assert_eq!(plan.dns_listen.len(), 3);
    assert_eq!(plan.vips, VipKinds { external: true, load_balancer: true });
    let own = |address: &str| address.parse().expect("an address");
    for address in ["10.90.2.100", "fd00::1", "fd00::2"] {
        assert!(plan.own.contains(&own(address)), "{address} is not among the gateway's own: {:?}", plan.own);
    }
    let identity = config.identity(&config.dns.listen);
    assert_eq!(identity.names, ["worker-1.example"]);
    assert!(identity.addresses.contains(&own("fd00::2")));
}

#[test]
fn the_clusters_dns_is_asked_where_the_config_says_so_and_nowhere_else() {
    let rules = |dns: &str| {
        let config = parse(&format!("{LEAST}dns: {{{dns}}}\n")).unwrap_or_else(|error| panic!("{dns}: {error}"));
        let to = |rule: &Forward| rule.to.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
        let rule = |rule: &Forward| format!("{}:{}", rule.zone, to(rule));
        let rules: Vec<String> = config.dns.forward.iter().map(rule).collect();
        assert_eq!(config.asks_cluster(), rules.join(" ").contains("cluster"), "{dns}");
        (rules.join(" "), config.dns_config(&[]).cluster.configured.len())
    };
    let table = [
        ("", ":", 0),
        ("forward: [{zone: a, to: [cluster, 9.9.9.9]}]", "a:cluster+9.9.9.9:53", 0),
        ("forward: [{zone: ., to: [cluster]}]", ":cluster", 0),
        ("upstreams: [10.1.0.10]", ":cluster", 1),
        ("upstreams: [10.1.0.10], forward: [{zone: a, to: [9.9.9.9]}]", "a:9.9.9.9:53 :cluster", 1),
        ("upstreams: [10.1.0.10], forward: []", ":cluster", 1),
        ("upstreams: [10.1.0.10], forward: [{zone: .}]", ":", 1),
        // A rule for some views leaves the others'.
        ("upstreams: [10.1.0.10], forward: [{zone: ., views: [developers]}]", ": :cluster", 1),
        ("upstreams: [10.1.0.10], forward: [{zone: ., to: []}, {zone: a, to: [cluster]}]", ": a:cluster", 1),
        ("forward: []", "", 0),
    ];
    for (dns, expected, upstreams) in table {
        assert_eq!(rules(dns), (expected.to_owned(), upstreams), "{dns}");
    }
    parse(&format!("{LEAST}dns: {{forward: [{{zone: a, to: [cluster], mixedCase: true}}]}}\n")).expect("in the clear");
}

#[test]
fn the_kernel_answers_where_the_forwarder_does_on_port_53_only() {
    let config = parse(&format!("{LEAST}dns: {{listen: [10.0.0.1, \"10.0.0.2:5353\"]}}\n")).expect("a valid config");
    let dns = |listen: &[SocketAddr]| config.settings(Sizes::default(), &[], listen).dns;
    assert_eq!(dns(&config.dns.listen), [config.dns.listen[0].ip()]);
    assert!(dns(&config.dns.listen[1..]).iter().all(std::net::IpAddr::is_unspecified), "not the uplinks' addresses");
    let everywhere = parse(&format!("{LEAST}dns: {{listen: [0.0.0.0]}}\n")).expect("the wildcard is valid");
    assert!(dns(&everywhere.dns.listen).is_empty(), "the wildcard means the uplinks' addresses");
}

#[test]
fn kubernetes_with_nothing_behind_it_means_in_cluster() {
    let views = "clients: [{name: a, cidrs: [10.0.0.0/8]}]\n";
    for source in ["source: {kubernetes: }", "source: {kubernetes: {}}", "source:\n  kubernetes: null"] {
        let config = parse(&format!("{views}{source}\n")).expect(source);
        assert_eq!(config.source, Source::Kubernetes { kubeconfig: None, context: None, status: true }, "{source}");
    }
}

#[test]
fn nested_subnets_of_two_views_are_fine() {
    parse(&LEAST.replace(
        "cidrs: [10.90.1.0/24]}",
        "cidrs: [10.90.1.0/24]}, {name: one, cidrs: [10.90.1.7/32], namespaces: []}",
    ))
    .expect("the longest prefix decides");
}

#[test]
fn a_bad_value_is_named_by_its_key_with_the_way_out() {
    let with = |line: &str| format!("{LEAST}{line}\n");
    let clients = |clients: &str| LEAST.replace("[{name: developers, cidrs: [10.90.1.0/24]}]", clients);
    let source = |source: &str| LEAST.replace("{manifests: ./cluster}", source);
    let cases: Vec<(String, &[&str])> = vec![
        (with("uplink: [eth0]"), &["uplink: unknown key", "uplinks"]),
        (with("dns: {cach: {}}"), &["dns.cach: unknown key", "cache"]),
        (with("dns: {forward: [{zone: a.example, too: []}]}"), &["dns.forward[0].too: unknown key"]),
        (with("datapath: {timeouts: {tcp: 1}}"), &["datapath.timeouts.tcp: unknown key", "tcpSyn"]),
        (clients("[{name: a, cidr: [10.0.0.0/8]}]"), &["clients[0].cidr: unknown key", "cidrs"]),
        (clients("[{cidrs: [10.0.0.0/8]}]"), &["clients[0]", "missing field `name`"]),
        (clients("[]"), &["clients: is required"]),
        (clients("[{name: a, cidrs: []}]"), &["clients[0].cidrs", "view `a`"]),
        (clients("[{name: '', cidrs: [10.0.0.0/8]}]"), &["clients[0].name"]),
        (
            clients("[{name: a, cidrs: [10.0.0.0/8]}, {name: a, cidrs: [11.0.0.0/8]}]"),
            &["clients[1].name", "two views are named `a`"],
        ),
        (
            clients("[{name: a, cidrs: [10.0.0.0/8]}, {name: b, cidrs: [10.0.0.0/8]}]"),
            &["clients[1].cidrs[0]", "10.0.0.0/8", "view `a`", "view `b`"],
        ),
        (clients("[{name: a, cidrs: [10.0.0.1/8]}]"), &["clients[0].cidrs[0]", "host bits", "write 10.0.0.0/8"]),
        (clients("[{name: a, cidrs: [10.0.0.1]}]"), &["clients[0].cidrs[0]", "write 10.0.0.1/32"]),
        (clients("[{name: a, cidrs: [ten]}]"), &["clients[0].cidrs[0]", "`ten` is not a CIDR"]),
        (clients("[{name: a, cidrs: [10.0.0.0/8], namespaces: [Shop_1]}]"), &["clients[0].namespaces[0]", "`Shop_1`"]),
        (source("{}"), &["source: is missing"]),
        (source("{manifests: a, kubernetes: {}}"), &["source: has manifests and kubernetes"]),
        (source("{manifests: a, kubernetes: {kubeconf: x}}"), &["source.kubernetes.kubeconf: unknown key"]),
        (LEAST.replace("serviceCIDRs: [10.1.0.0/16]", ""), &["serviceCIDRs: is required"]),
        (LEAST.replace("10.1.0.0/16", "10.1.0.9/16"), &["serviceCIDRs[0]", "write 10.1.0.0/16"]),
        (with("uplinks: [a/b]"), &["uplinks[0]", "`a/b`"]),
        (with("uplinks: [eth0, eth0]"), &["uplinks[1]", "twice"]),
        (with("returnPath: nat"), &["returnPath", "snat", "routed"]),
        (with("deny: no"), &["deny", "reject"]),
        (with("snat: {ports: 80-90}"), &["snat.ports", "1024"]),
        (with("snat: {ports: 3000-2000}"), &["snat.ports", "2000-3000"]),
        (with("snat: {ports: all}"), &["snat.ports", "10000-29999"]),
        (with("snat: {ports: 60000-70000}"), &["snat.ports", "60000-70000"]),
        (with("snat: {addresses: [0.0.0.0]}"), &["snat.addresses[0]", "0.0.0.0"]),
        (with("dns: {listen: [localhost]}"), &["dns.listen[0]", "localhost"]),
        (with("dns: {listen: [224.0.0.251]}"), &["dns.listen[0]", "224.0.0.251"]),
        (with("dns: {upstreams: [0.0.0.0]}"), &["dns.upstreams[0]", "0.0.0.0"]),
        (with("dns: {clusterDomain: .}"), &["dns.clusterDomain", "root"]),
        (with("dns: {pods: all}"), &["dns.pods", "all", "insecure", "verified"]),
        (with("dns: {clusterDomain: a..b}"), &["dns.clusterDomain", "a..b"]),
        (with("dns: {upstreams: [\"10.1.0.10:0\"]}"), &["dns.upstreams[0]", "port 0"]),
        (with("dns: {upstreams: [\"tls://9.9.9.9#dns.quad9.net\"]}"), &["dns.upstreams[0]", "tls", "10.1.0.10"]),
        (
            with("dns: {forward: [{zone: ., to: [\"tls://dns.quad9.net\"]}]}"),
            &["dns.forward[0].to[0]", "not an address"],
        ),
        (with("dns: {forward: [{zone: ., to: [\"tls://9.9.9.9#\"]}]}"), &["dns.forward[0].to[0]", "certificate"]),
        (with("dns: {forward: [{zone: ., to: [\"cluster:53\"]}]}"), &["dns.forward[0].to[0]", "write `cluster` alone"]),
        (with("dns: {forward: [{zone: ., to: [Cluster]}]}"), &["dns.forward[0].to[0]", "write `cluster` alone"]),
        (
            with("dns: {forward: [{zone: ., to: [\"tls://cluster#a\"]}]}"),
            &["`tls://cluster#a`", "write `cluster` alone"],
        ),
        (with("dns: {forward: [{zone: ., to: [cluster, cluster]}]}"), &["dns.forward[0].to[1]", "twice"]),
        (with("dns: {forward: [{zone: ., to: [clusters]}]}"), &["dns.forward[0].to[0]", "not an address"]),
        (with("dns: {forward: [{zone: a, to: [cluster], redirect: [192.0.2.1]}]}"), &["redirect", "`to`"]),
        (with("dns: {upstreams: [cluster]}"), &["dns.upstreams[0]", "says what `cluster` is", "kube-dns"]),
        (with("dns: {upstreams: [10.1.0.10, \"10.1.0.10:53\"]}"), &["dns.upstreams[1]", "twice"]),
        (with("dns: {tls: {ca: a}}"), &["dns.tls.ca: unknown key", "caFile"]),
        (with("dns: {forward: [{zone: ., to: [\"https://a\"]}]}"), &["dns.forward[0].to[0]", "https"]),
        (with("dns: {forward: [{zone: .}, {zone: a b}]}"), &["dns.forward[1].zone", "a b"]),
        (with("dns: {forward: [{zone: a.b}, {zone: A.b.}]}"), &["dns.forward[1].zone", "two rules"]),
        (with("dns: {cache: {entries: 0}}"), &["dns.cache.entries", "0 is out of range"]),
        (with("dns: {cache: {failureTtl: 6}}"), &["dns.cache.failureTtl", "1 to 5"]),
        (with("dns: {log: {sample: 0}}"), &["dns.log.sample", "above 0"]),
        (with("dns: {log: {maxSize: 64MB}}"), &["dns.log.maxSize", "64MB", "64Mi"]),
        (with("dns: {log: {file: ''}}"), &["dns.log.file", "empty"]),
        (with("dns: {rateLimit: {slip: 11}}"), &["dns.rateLimit.slip", "0 to 10"]),
        (with("dns: {rateLimit: {ipv4PrefixLength: 33}}"), &["dns.rateLimit.ipv4PrefixLength", "0 to 32"]),
        (with("dns: {rateLimit: {exemptViews: [nobody]}}"), &["dns.rateLimit.exemptViews[0]", "no view `nobody`"]),
        (with("dns: {limits: {perClient: 0}}"), &["dns.limits.perClient", "0 is out of range"]),
        (with("dns: {cache: {stale: -1}}"), &["dns.cache.stale", "-1"]),
        (with("datapath: {flows: 0}"), &["datapath.flows"]),
        (with("datapath: {flows: 4000000000}"), &["datapath.flows", "16777216"]),
        (with("datapath: {mssClamp: 100}"), &["datapath.mssClamp", "536"]),
        (with("datapath: {mssClamp: on}"), &["datapath.mssClamp", "auto"]),
        (with("datapath: {mode: fast}"), &["datapath.mode", "fast", "native"]),
        (with("datapath: {vips: [externalIP]}"), &["datapath.vips", "lacks clusterIP"]),
        (with("datapath: {vips: [clusterIP, clusterIP]}"), &["datapath.vips[1]", "twice"]),
        (with("datapath: {vips: [clusterIp]}"), &["datapath.vips[0]", "clusterIP", "externalIP", "loadBalancer"]),
        (with("node: a/b"), &["node", "`a/b`", "kubectl get nodes"]),
        (with("datapath: {pin: here}"), &["datapath.pin", "relative"]),
        (with("datapath: {timeouts: {udp: 0}}"), &["datapath.timeouts.udp"]),
        (with("dns: {forward: [{zone: a, views: [nobody]}]}"), &["dns.forward[0].views[0]", "no view `nobody`"]),
        (
            with("dns: {forward: [{zone: a, to: [9.9.9.9], redirect: [192.0.2.1]}]}"),
            &["dns.forward[0].redirect", "`to`"],
        ),
        (with("dns: {forward: [{zone: a, redirect: [b, c]}]}"), &["dns.forward[0].redirect", "alone"]),
        (with("dns: {forward: [{zone: a.b, redirect: [x.a.b]}]}"), &["dns.forward[0].redirect", "circles"]),
        (with("dns: {forward: [{zone: a, mixedCase: true}]}"), &["dns.forward[0].mixedCase", "in the clear"]),
        (with("dns: {cache: {memory: 12}}"), &["dns.cache.memory", "1048576"]),
        (with("dns: {cache: {memory: much}}"), &["dns.cache", "`much`", "64Mi"]),
        (with("http: 9153"), &["http"]),
        (with("http: localhost"), &["http", "127.0.0.1:9153"]),
        (with("log: verbose"), &["log", "verbose", "debug"]),
        ("clients: [".to_owned(), &["line 2"]),
        (String::new(), &["clients: is required"]),
    ];
    for (text, wanted) in cases {
        let line = error(&text);
        for part in wanted {
            assert!(line.contains(part), "{line:?} does not say {part:?}\n{text}");
        }
    }
}

#[test]
fn more_views_than_bits_are_refused() {
    let view = |n: usize| format!("  - {{name: v{n}, cidrs: [10.0.{n}.0/24]}}\n");
    let file = |n: usize| {
        format!(
            "clients:\n{}source: {{manifests: a}}\nserviceCIDRs: [10.1.0.0/16]\n",
            (0..n).map(view).collect::<String>()
        )
    };
    parse(&file(64)).expect("64 views fit");
    assert!(error(&file(65)).contains("clients: 65 views are too many"));
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/gateway.yaml")).expect_err("there is no such file");
    assert!(error.to_string().contains("/nonexistent/gateway.yaml: cannot be read"), "{error}");
}

/// docs/config.md: the file's text, and its YAML examples in order.
fn documentation() -> (&'static str, Vec<&'static str>) {
    let text = include_str!("../../../docs/config.md");
    let examples = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    (text, examples)
}

#[test]
fn the_documented_defaults_are_those_that_hold() {
    let (_, examples) = documentation();
    let [manifests, kubernetes, every_key] = examples[..] else { panic!("{} examples", examples.len()) };
    parse(manifests).expect("the least config with manifests");
    let least = parse(kubernetes).expect("the least config with a cluster");
    assert_eq!(parse(every_key).expect("every key with its default"), least);
}

#[test]
fn every_key_is_documented() {
    let (text, examples) = documentation();
    // An unknown key is refused with the list of those that are known.
    let known = |config: &str| -> Vec<String> {
        let line = error(config);
        let (_, known) = line.split_once("or use ").unwrap_or_else(|| panic!("{line}"));
        let known = known.split(" at line ").next().unwrap_or(known);
        known.replace(" or ", ", ").split(", ").map(str::to_owned).collect()
    };
    let sections = [
        ("", "nokey: 1"),
        ("clients[].", "clients: [{nokey: 1}]"),
        ("source.", "source: {nokey: 1}"),
        ("source.kubernetes.", "source: {kubernetes: {nokey: 1}}"),
        ("snat.", "snat: {nokey: 1}"),
        ("dns.", "dns: {nokey: 1}"),
        ("dns.forward[].", "dns: {forward: [{nokey: 1}]}"),
        ("dns.tls.", "dns: {tls: {nokey: 1}}"),
        ("dns.cache.", "dns: {cache: {nokey: 1}}"),
        ("datapath.", "datapath: {nokey: 1}"),
        ("datapath.timeouts.", "datapath: {timeouts: {nokey: 1}}"),
    ];
    for (prefix, config) in sections {
        for key in known(config) {
            let described = |key: &str| {
                text.contains(&format!("| `{prefix}{key}` |")) || text.contains(&format!("| `{prefix}{key}."))
            };
            assert!(described(&key), "docs/config.md does not describe `{prefix}{key}`");
            assert!(
                examples[2].contains(&format!("{key}:")) || key == "manifests",
                "{prefix}{key} is not among the defaults"
            );
        }
    }
}
