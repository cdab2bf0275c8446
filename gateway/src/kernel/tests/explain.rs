//! Promises about `explain`: it says what the programs do.

use std::sync::Arc;

use gateway_common::dns::{build, name::to_wire};

use super::{Row, dual_settings, endpoint, name, net::skip, plan};
use crate::{
    kernel::{Kernel, Mode, Question},
    model::Protocol,
};

fn question(from: &str, to: &str, port: u16, sport: Option<u16>) -> Question {
    let (from, to) = (from.parse().unwrap(), Some(to.parse().unwrap()));
    Question { from, to, proto: Some("tcp".into()), port: Some(port), sport, name: None }
}

#[test]
fn every_verdict_of_a_packet_is_told_with_its_reason() {
    if skip() {
        return;
    }
    let row = Row::dual();
    let kernel = Arc::new(row.load(dual_settings(Mode::Tc)).unwrap());
    let inside = Arc::clone(&kernel);
    row.node.run(move || {
        let web = plan("10.1.0.1", 80, Protocol::Tcp, &[endpoint("10.90.3.2", 8080), endpoint("10.90.3.3", 8080)]);
        inside.apply(&name("web"), Some(&web)).unwrap();
        let six = plan("fd00:10::1", 80, Protocol::Tcp, &[endpoint("fd90:3::2", 8080)]);
        inside.apply(&name("six"), Some(&six)).unwrap();
        inside.apply(&name("empty"), Some(&plan("10.1.0.2", 80, Protocol::Tcp, &[]))).unwrap();
        let mut hidden = plan("10.1.0.3", 80, Protocol::Tcp, &[endpoint("10.90.3.2", 80)]);
        hidden.views = 0;
        hidden.frontends[0].views = 0;
        inside.apply(&name("hidden"), Some(&hidden)).unwrap();
        inside.attach().unwrap();
    });
    let views = ["developers".to_owned()];
    let told = |from: &str, to: &str, port| {
        let told = kernel.explain(&question(from, to, port, None), &views).unwrap();
        (told.verdict, told.why.last().unwrap().clone(), told)
    };
    const CLIENT: &str = "10.90.1.100";
    for (from, to, port, verdict, word) in [
        (CLIENT, "10.1.0.1", 80, "forwarded", "up0 (tc)"),
        ("fd90:1::100", "fd00:10::1", 80, "forwarded", "its endpoint"),
        (CLIENT, "10.1.0.1", 81, "rejected", "port unreachable"),
        (CLIENT, "10.1.0.2", 80, "rejected", "no endpoint"),
        (CLIENT, "10.1.0.3", 80, "rejected", "prohibited"),
        (CLIENT, "10.1.0.9", 80, "rejected", "host unreachable"),
        (CLIENT, "192.0.2.1", 80, "passed", "no service CIDR"),
        ("192.0.2.1", "10.1.0.1", 80, "dropped", "no view"),
        (CLIENT, "10.90.1.1", 53, "passed", "forwarder"),
        (CLIENT, "fd00:10::1", 80, "passed", "families"),
    ] {
        let (found, why, _) = told(from, to, port);
        assert!(found == verdict && why.contains(word), "{from} to {to} port {port}: {found}: {why}");
    }
    let echo = |from: &str, to: &str| {
        let asked = Question { proto: Some("icmp".into()), port: None, ..question(from, to, 0, None) };
        let told = kernel.explain(&asked, &views).unwrap();
        (told.verdict, told.why.last().unwrap().clone())
    };
    for (from, to, verdict, word) in [
        (CLIENT, "10.1.0.1", "answered", "echo reply"),
        ("fd90:1::100", "fd00:10::1", "answered", "echo reply"),
        (CLIENT, "10.1.0.2", "rejected", "no endpoint"),
        (CLIENT, "10.1.0.3", "rejected", "prohibited"),
        (CLIENT, "10.1.0.9", "rejected", "host unreachable"),
        (CLIENT, "10.90.1.1", "passed", "no service CIDR"),
        ("192.0.2.1", "10.1.0.1", "dropped", "no view"),
        (CLIENT, "fd00:10::1", "passed", "families"),
    ] {
        let (found, why) = echo(from, to);
        assert!(found == verdict && why.contains(word), "echo from {from} to {to}: {found}: {why}");
    }
    let (.., web) = told(CLIENT, "10.1.0.1", 80);
    assert_eq!(web.service.as_deref(), Some("shop/web"));
    assert_eq!(web.endpoints.len(), 2);
    for choice in &web.endpoints {
        assert!((choice.share - 0.5).abs() < 0.02, "{choice:?}");
        assert_eq!(choice.source, ["10.90.1.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(choice.interface.as_deref(), Some("down0"));
    }
    assert!(web.why.iter().any(|why| why.contains("view developers")), "{:?}", web.why);
    let (.., six) = told("fd90:1::100", "fd00:10::1", 80);
    assert_eq!(six.endpoints[0].endpoint, "[fd90:3::2]:8080");
    assert_eq!(kernel.flows(10).unwrap(), [], "nothing has begun");
    row.node.run(move || kernel.detach().unwrap());
}

fn choice(kernel: &Kernel, sport: u16) -> String {
    let told = kernel.explain(&question("10.90.1.100", "10.1.0.1", 80, Some(sport)), &[]).unwrap();
    assert_eq!(told.endpoints.len(), 1, "the source port decides");
    told.endpoints[0].endpoint.clone()
}

#[test]
fn with_a_source_port_the_endpoint_is_the_one_that_the_packet_takes() {
    if skip() {
        return;
    }
    let row = Row::new();
    let kernel = Arc::new(row.load(super::settings(Mode::Tc)).unwrap());
    let inside = Arc::clone(&kernel);
    row.node.run(move || {
        let web = plan("10.1.0.1", 80, Protocol::Tcp, &[endpoint("10.90.3.2", 80), endpoint("10.90.3.3", 80)]);
        inside.apply(&name("web"), Some(&web)).unwrap();
        inside.attach().unwrap();
    });
    let ports = row.client.run(|| {
        let connect = |_| {
            let stream = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            let any: std::net::SocketAddr = "10.90.1.100:0".parse().unwrap();
            stream.bind(&any.into()).unwrap();
            let port = stream.local_addr().unwrap().as_socket().unwrap().port();
            let vip: std::net::SocketAddr = "10.1.0.1:80".parse().unwrap();
            // Nobody listens: the server's reset is an answer, too.
            drop(stream.connect(&vip.into()));
            port
        };
        (0..10).map(connect).collect::<Vec<u16>>()
    });
    let flows = kernel.flows(100).unwrap();
    for port in ports {
        let flow = flows.iter().find(|f| f.client == format!("10.90.1.100:{port}")).expect("the flow is there");
        assert_eq!(flow.endpoint, choice(&kernel, port));
    }
    row.node.run(move || kernel.detach().unwrap());
}

#[test]
fn a_name_is_told_by_what_the_kernel_has_of_it() {
    if skip() {
        return;
    }
    let row = Row::new();
    let kernel = Arc::new(row.load(super::settings(Mode::Tc)).unwrap());
    let wire = |text: &str| to_wire(text).unwrap();
    let soa = build::Soa {
        mname: &wire("ns.lab"),
        rname: &wire("x.lab"),
        serial: 1,
        refresh: 1,
        retry: 1,
        expire: 1,
        minimum: 1,
    };
    let store = kernel.answers();
    store.set_zone(0, &build::zone(&wire("lab"), &soa, 5, true).unwrap()).unwrap();
    for (name, views) in [("web.lab", 1), ("secret.lab", 2)] {
        let (entry, _) = build::exists(&wire(name), views).unwrap().to_kernel(0).unwrap();
        store.put(&build::key(&wire(name), 0, 0).unwrap(), &entry, None).unwrap();
    }
    for (from, name, verdict, word) in [
        ("10.90.1.100", "WEB.lab.", "answered", "NODATA"),
        ("10.90.1.100", "no.lab", "answered", "NXDOMAIN"),
        ("10.90.1.100", "secret.lab", "answered", "NXDOMAIN"),
        ("10.90.1.100", "example.org", "passed", "forwarder"),
        ("10.90.1.100", "xlab", "passed", "forwarder"),
        ("10.90.1.100", "a..b", "passed", "no query"),
        ("192.0.2.1", "web.lab", "dropped", "no view"),
    ] {
        let name = Some(name.to_owned());
        let from = from.parse().unwrap();
        let asked = Question { from, to: None, proto: None, port: None, sport: None, name: name.clone() };
        let told = kernel.explain(&asked, &[]).unwrap();
        let why = told.why.last().unwrap();
        assert!(told.verdict == verdict && why.contains(word), "{from} {name:?}: {}: {why}", told.verdict);
    }
    row.node.run(move || kernel.detach().unwrap());
}
