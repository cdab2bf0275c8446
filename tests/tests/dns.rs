//! Names, asked by the programs that people use. Issue 2, "What it must show", 5.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Service, Topology,
    names::{Answer, dig, kdig, with_resolver},
    testing,
    topology::{GATEWAY, GUEST, Offloads, STRANGER},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
const DNS_VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const WEB: &str = "web.shop.svc.cluster.local";
const TOOLS: [&str; 5] = ["dig", "kdig", "unbound", "getent", "unshare"];

/// A lab with an upstream, pods on two nodes, the Services `shop/web`, `shop/nodes` (headless), `public/web` and `kube-system/kube-dns`.
fn lab(offloads: Offloads) -> Lab {
    let topology = Topology { upstream: true, offloads, ..Topology::with_pods(&[Node::Worker1, Node::Gateway]) };
    let lab = Lab::build(topology.client("guest", GUEST).client("stranger", STRANGER)).expect("the lab");
    let pods = &lab.topology.pods;
    let dns =
        Service::new("kube-system", "kube-dns", DNS_VIP).port("dns", "UDP", 53, 53).port("dns-tcp", "TCP", 53, 53);
    for service in [
        Service::of_pods("shop", "web", VIP, pods),
        Service::new("shop", "nodes", None).port("http", "TCP", 8080, 8080).endpoints(pods),
        Service::of_pods("public", "web", Ipv4Addr::new(10, 1, 0, 90), pods),
        dns,
    ] {
        lab.manifests.put(&service).expect("a manifest");
    }
    lab
}

fn start<'lab>(lab: &'lab Lab, mode: &str) -> Gateway<'lab> {
    lab.gateway(&GatewayConfig::mode(mode).with_upstream()).expect("the gateway")
}

/// A question and what must come of it.
type Case<'a> = (&'a str, &'a str, &'a str, &'a [&'a str]);

const CLUSTER: [Case<'_>; 6] = [
    (WEB, "A", "NOERROR", &["10.1.0.80"]),
    (WEB, "AAAA", "NOERROR", &[]),
    ("nodes.shop.svc.cluster.local", "A", "NOERROR", &["10.244.0.10", "10.244.1.10"]),
    ("svc.cluster.local", "A", "NOERROR", &[]),
    ("nobody.shop.svc.cluster.local", "A", "NXDOMAIN", &[]),
    ("www.example.test.shop.svc.cluster.local", "A", "NXDOMAIN", &[]),
];

const OUTSIDE: [Case<'_>; 6] = [
    ("www.example.test", "A", "NOERROR", &["192.0.2.80"]),
    ("www.example.test", "AAAA", "NOERROR", &["2001:db8::80"]),
    ("example.test", "MX", "NOERROR", &["10 mail.example.test."]),
    ("text.example.test", "TXT", "NOERROR", &["\"two words\""]),
    ("mail.example.test", "TXT", "NOERROR", &[]),
    ("nobody.example.test", "A", "NXDOMAIN", &[]),
];

fn check(answer: &Answer, (name, rtype, status, data): Case<'_>) {
    assert_eq!(answer.status, status, "{name} {rtype}: {answer:?}");
    assert_eq!(answer.data(rtype), data, "{name} {rtype}: {answer:?}");
    assert!(answer.flag("qr") && answer.flag("rd"), "{name} {rtype}: {answer:?}");
    if data.is_empty() {
        assert!(answer.authorities.iter().any(|record| record.rtype == "SOA"), "no SOA: {answer:?}");
    }
}

/// Queries answered in the kernel while `ask` ran.
fn in_kernel<T>(gateway: &Gateway<'_>, ask: impl FnOnce() -> T) -> (T, u64) {
    let before = gateway.counters().expect("counters").dns();
    let answer = ask();
    (answer, gateway.counters().expect("counters").dns() - before)
}

/// Cluster names are in the kernel from the start, names outside from the second query on; over TCP the same comes from the forwarder.
fn answers(mode: &str, offloads: Offloads) {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = lab(offloads);
    let gateway = start(&lab, mode);
    let client = lab.client();
    for server in [GATEWAY, DNS_VIP].map(|server| server.to_string()) {
        for case in CLUSTER {
            let (name, rtype, ..) = case;
            for edns in ["+edns=0", "+noedns"] {
                let (answer, kernel) =
                    in_kernel(&gateway, || dig(client, &server, &["+notcp", edns, name, rtype]).expect("dig"));
                check(&answer, case);
                assert_eq!(
                    (kernel, answer.edns),
                    (1, edns == "+edns=0"),
                    "{mode}, @{server} {name} {rtype} {edns}: {answer:?}"
                );
                assert!(answer.flag("aa"), "{answer:?}");
            }
            let (answer, kernel) = in_kernel(&gateway, || kdig(client, &server, &[name, rtype]).expect("kdig"));
            check(&answer, case);
            assert_eq!(kernel, 1, "{mode}, kdig @{server} {name} {rtype}");
            let (answer, kernel) = in_kernel(&gateway, || dig(client, &server, &["+tcp", name, rtype]).expect("dig"));
            check(&answer, case);
            assert_eq!(kernel, 0, "{mode}, over TCP @{server} {name} {rtype}");
        }
    }
    let server = GATEWAY.to_string();
    for case in OUTSIDE {
        let (name, rtype, ..) = case;
        // Each tool asks in its own way (DO, AD, buffer size); the second time each is answered in the kernel.
        let ask = |tool: &str| match tool {
            "dig" => dig(client, &server, &["+notcp", name, rtype]).expect("dig"),
            _ => kdig(client, &server, &["+noedns", name, rtype]).expect("kdig"),
        };
        for tool in ["dig", "kdig"] {
            check(&ask(tool), case);
            let (answer, kernel) = in_kernel(&gateway, || ask(tool));
            check(&answer, case);
            assert_eq!(kernel, 1, "{mode}, {tool} {name} {rtype}, the second time");
            assert!(answer.flag("ra") && !answer.flag("aa"), "{answer:?}");
        }
        check(&dig(client, &server, &["+tcp", name, rtype]).expect("dig over TCP"), case);
    }
    // A veth leaves native XDP little room behind a query: longer answers must have come from TC.
    let counters = gateway.counters().expect("counters");
    assert_eq!(counters.get("no_room") > 0, mode == "native", "{counters:?}");
    assert_eq!(counters.get("helper_failed"), 0, "{counters:?}");
    gateway.stop().expect("a clean end");
}

#[test]
fn names_are_answered_in_native_xdp() {
    answers("native", Offloads::Wire);
}

#[test]
fn names_are_answered_in_generic_xdp() {
    answers("generic", Offloads::Kernel);
}

#[test]
fn names_are_answered_in_tc() {
    answers("tc", Offloads::Kernel);
}

#[test]
fn names_are_answered_in_auto() {
    answers("auto", Offloads::Kernel);
}

#[test]
fn the_c_library_resolves_short_names_by_its_search_list() {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = lab(Offloads::Kernel);
    let gateway = start(&lab, "auto");
    let resolv = format!(
        "nameserver {GATEWAY}\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    );
    for options in ["", "options use-vc\n"] {
        let resolv = resolv.clone() + options;
        for (name, address) in
            [("web", "10.1.0.80"), ("web.public", "10.1.0.90"), (WEB, "10.1.0.80"), ("www.example.test", "192.0.2.80")]
        {
            let out = with_resolver(lab.client(), lab.dir(), &resolv, "getent", &["ahostsv4", name]).expect("getent");
            assert!(out.starts_with(address), "{name}: {out}");
            let out = with_resolver(lab.client(), lab.dir(), &resolv, "getent", &["hosts", name]).expect("getent");
            assert!(out.contains(address) || out.contains("2001:db8::80"), "{name}: {out}");
        }
        with_resolver(lab.client(), lab.dir(), &resolv, "getent", &["hosts", "nobody"]).expect_err("nobody exists");
    }
    gateway.stop().expect("a clean end");
}

#[test]
fn ttls_of_learnt_answers_count_down_in_kernel_and_forwarder_and_end() {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = lab(Offloads::Kernel);
    let gateway = start(&lab, "auto");
    let server = GATEWAY.to_string();
    let ttl = |transport: &str| {
        let answer = dig(lab.client(), &server, &[transport, "www.example.test", "A"]).expect("dig");
        answer.answers[0].ttl
    };
    let first = ttl("+notcp");
    assert!((290..=300).contains(&first), "{first}");
    let began = Instant::now();
    thread::sleep(Duration::from_millis(3100));
    let (udp, tcp) = (ttl("+notcp"), ttl("+tcp"));
    // A busy machine may take its time between two questions.
    let most = u32::try_from(began.elapsed().as_secs()).expect("seconds") + 2;
    assert!((first - most..=first - 3).contains(&udp), "{udp} after {first}, at most {most} s before");
    assert!((udp + 3 - most..=udp + 1).contains(&tcp), "kernel {udp}, then forwarder {tcp}");

    let asked = || lab.upstream_log().matches("short.example.test. A IN").count();
    let short = || dig(lab.client(), &server, &["+notcp", "short.example.test", "A"]).expect("dig").answers[0].ttl;
    assert!(short() <= 2);
    let before = asked();
    thread::sleep(Duration::from_millis(2500));
    let after_end = short();
    assert!((1..=2).contains(&after_end), "an answer was served past its end, TTL {after_end}");
    assert_eq!(asked(), before + 1, "the upstream was not asked again");
    gateway.stop().expect("a clean end");
}

#[test]
fn the_case_of_a_question_comes_back_as_it_was_asked() {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = lab(Offloads::Kernel);
    let gateway = start(&lab, "auto");
    for name in
        ["wEb.ShOp.SvC.cLuStEr.LoCaL.", "NoBody.shop.svc.CLUSTER.local.", "wWw.ExAmPlE.tEsT.", "WwW.eXaMpLe.TeSt."]
    {
        for transport in ["+notcp", "+tcp", "+notcp"] {
            let answer = dig(lab.client(), &GATEWAY.to_string(), &[transport, name, "A"]).expect("dig");
            assert_eq!(answer.question, name, "{transport}");
        }
    }
    gateway.stop().expect("a clean end");
}

#[test]
fn answers_that_do_not_fit_are_truncated_and_come_whole_over_tcp() {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = lab(Offloads::Kernel);
    let gateway = start(&lab, "auto");
    let ask = |args: &[&str]| dig(lab.client(), &GATEWAY.to_string(), args).expect("dig");
    for _ in 0..2 {
        let cut = ask(&["+ignore", "+noedns", "+notcp", "big.example.test", "A"]);
        assert!(cut.flag("tc") && cut.answers.len() < 40, "{cut:?}");
        assert_eq!(ask(&["+noedns", "big.example.test", "A"]).data("A").len(), 40);
        assert_eq!(ask(&["+bufsize=1232", "+ignore", "big.example.test", "A"]).data("A").len(), 40);
        assert_eq!(ask(&["huge.example.test", "TXT"]).data("TXT").len(), 24);
    }
    gateway.stop().expect("a clean end");
}

#[test]
fn views_decide_what_a_client_can_resolve() {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = lab(Offloads::Kernel);
    let gateway = start(&lab, "auto");
    let server = GATEWAY.to_string();
    let guest = lab.namespace("guest");
    for transport in ["+notcp", "+tcp"] {
        let ask = |name: &str| dig(guest, &server, &[transport, name, "A"]).expect("dig");
        assert_eq!(ask("web.public.svc.cluster.local").data("A"), ["10.1.0.90"], "{transport}");
        for hidden in [WEB, "nodes.shop.svc.cluster.local", "shop.svc.cluster.local"] {
            assert_eq!(ask(hidden).status, "NXDOMAIN", "{transport} {hidden}");
        }
        dig(lab.namespace("stranger"), &server, &[transport, "+time=1", "+tries=1", WEB, "A"])
            .expect_err("strangers get nothing");
    }
    gateway.stop().expect("a clean end");
}

#[test]
fn names_outside_are_refused_without_a_rule_and_live_on_when_the_upstream_dies() {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = lab(Offloads::Kernel);
    let server = GATEWAY.to_string();
    let gateway = lab.gateway(&GatewayConfig::default()).expect("the gateway");
    assert_eq!(dig(lab.client(), &server, &["www.example.test", "A"]).expect("dig").status, "REFUSED");
    gateway.stop().expect("a clean end");

    let gateway = start(&lab, "auto");
    let ask = |name: &str| dig(lab.client(), &server, &["+notcp", "+time=8", name, "A"]).expect("dig");
    assert_eq!(ask("www.example.test").data("A"), ["192.0.2.80"]);
    assert!(ask("short.example.test").answers[0].ttl <= 2);
    lab.stop_upstream();
    assert_eq!(ask("www.example.test").data("A"), ["192.0.2.80"]);
    assert_eq!(ask("mail.example.test").status, "SERVFAIL");
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(ask("short.example.test").data("A"), ["192.0.2.2"], "stale data is better than none");
    gateway.stop().expect("a clean end");
}
