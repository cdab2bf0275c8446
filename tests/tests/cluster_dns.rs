//! The cluster's own DNS behind the gateway: a real CoreDNS, found by its Service at a real API server. Issue 5, "CoreDNS".

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Topology,
    clients::udp,
    cluster::{self, Cluster, DNS_VIP, deployment, dns_deployment},
    names::dig,
    netns::Namespace,
    process::{NotYet, Process, wait_for},
    testing,
    topology::{GATEWAY, GUEST},
};

/// A change is seen within this, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);
/// From the Corefile's hosts.
const ONLY: &str = "only.corefile.test";

fn ask(from: &Namespace, name: &str, rtype: &str) -> Result<(String, Vec<String>)> {
    let answer = dig(from, &GATEWAY.to_string(), &[name, rtype])?;
    let data = answer.data(rtype).into_iter().map(str::to_owned).collect();
    Ok((answer.status, data))
}

fn yes(status: &str, data: &[&str]) -> (String, Vec<String>) {
    (status.to_owned(), data.iter().map(|&text| text.to_owned()).collect())
}

/// Waits until the gateway asks exactly these, and all of them are well.
fn servers(gateway: &Gateway<'_>, expected: &[Ipv4Addr]) {
    let expected: Vec<String> = expected.iter().map(|ip| format!("{ip}:53")).collect();
    wait_for("the gateway's servers", SOON, || {
        let dns = gateway.json("dns")?;
        let told = dns["upstreams"].as_array().cloned().unwrap_or_default();
        let mut now: Vec<&str> = told.iter().filter_map(|server| server["address"].as_str()).collect();
        now.sort_unstable();
        if now == expected { Ok(()) } else { Err(NotYet::Later(anyhow!("{now:?}, not {expected:?}"))) }
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
}

/// Asks for a new name each time, until it is over: what no cache has. The first failure ends it.
fn traffic(over: &AtomicBool, done: &AtomicU64) -> Result<()> {
    let socket = udp(SocketAddr::from((GATEWAY, 53)), Duration::from_secs(5)).context("a socket")?;
    let mut buffer = [0; 512];
    for number in 0_u64.. {
        if over.load(Ordering::SeqCst) {
            break;
        }
        let id = u16::try_from(number % 60_000)?;
        let mut query = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        for label in [format!("n{number}").as_str(), "wild", "corefile", "test"] {
            query.push(u8::try_from(label.len())?);
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(&[0, 0, 1, 0, 1]);
        socket.send(&query)?;
        let len = socket.recv(&mut buffer).with_context(|| format!("no answer to question {number}"))?;
        let answer = &buffer[..len];
        ensure!(answer[..2] == id.to_be_bytes(), "another question's answer to {number}");
        ensure!(answer[3] & 0xf == 0 && answer.ends_with(&[192, 0, 2, 77]), "question {number}: {answer:x?}");
        done.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Ends the traffic, also when a test fails.
struct Ends<'o>(&'o AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What happens to CoreDNS' pods; ends with those that are left.
fn changes(
    cluster: &Cluster<'_>,
    gateway: &Gateway<'_>,
    running: &mut BTreeMap<Ipv4Addr, Process>,
    coredns: &dyn Fn(Ipv4Addr) -> Process,
    asked: &dyn Fn(u64),
) -> Vec<Ipv4Addr> {
    let endpoints = || cluster.endpoints("kube-system", "kube-dns").expect("its endpoints");
    let two = endpoints();
    asked(20);
    // One ends by itself, and nobody has told the cluster.
    running.remove(&two[0]).expect("a process");
    asked(20);
    let health = || gateway.json("dns").map(|dns| dns["upstreams"].to_string());
    let told = health().expect("gateway dns");
    assert!(told.contains("\"healthy\":false") && told.contains("\"healthy\":true"), "{told}");
    running.insert(two[0], coredns(two[0]));
    wait_for("both to be well", SOON, || match health()? {
        told if !told.contains("\"healthy\":false") => Ok(()),
        told => Err(NotYet::Later(anyhow!("{told}"))),
    })
    .expect("found well by clients' questions, which the other one answers");

    // One goes from the cluster, and then ends.
    cluster.kubectl(&["scale", "deployment/coredns", "-n", "kube-system", "--replicas=1"]).expect("scale");
    cluster.wait_endpoints("kube-system", "kube-dns", 1).expect("one endpoint");
    let one = endpoints();
    servers(gateway, &one);
    let gone = if one[0] == two[0] { two[1] } else { two[0] };
    running.remove(&gone).expect("a process");
    asked(20);

    // The other one is replaced by one at another address, which may be that of the first.
    running.insert(gone, coredns(gone));
    let list = [
        "get",
        "pods",
        "-n",
        "kube-system",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{\"\\n\"}{end}",
    ];
    let pods = cluster.kubectl(&list).expect("pods");
    let line = pods.lines().find(|line| line.ends_with(&format!(" {}", one[0]))).expect("its pod");
    let pod = line.split(' ').next().unwrap_or_default();
    cluster.kubectl(&["delete", "pod", pod, "-n", "kube-system", "--wait=false"]).expect("delete");
    let other = wait_for("a pod elsewhere", SOON, || match endpoints()[..] {
        [other] if other != one[0] => Ok(other),
        ref others => Err(NotYet::Later(anyhow!("{others:?}"))),
    })
    .expect("another pod");
    servers(gateway, &[other]);
    running.remove(&one[0]).expect("a process");
    asked(20);
    vec![other]
}

#[test]
fn coredns_is_found_by_its_service_asked_for_what_only_it_knows_and_followed_wherever_it_goes() {
    let Some(_turn) = testing::turn(&["dig", "curl", "openssl"]) else { return };
    if let Err(why) = cluster::program() {
        println!("SKIP: {why}");
        return;
    }
    let nodes = [Node::Worker1, Node::Worker2, Node::Gateway, Node::Worker1];
    let lab = Lab::build(Topology::with_pods(&nodes).client("guest", GUEST)).expect("the lab");
    let cluster = Cluster::start(&lab).expect("the cluster");
    cluster.apply_yaml(cluster::RBAC).expect("deploy/rbac.yaml");
    cluster.apply_yaml(&deployment("shop", "web", 1, None)).expect("a deployment");
    cluster.wait_endpoints("shop", "web", 1).expect("its endpoint");
    let web = cluster.endpoints("shop", "web").expect("its endpoint");
    // The lab runs no containers: a CoreDNS stands ready in every pod that may be one of CoreDNS'.
    let coredns = |address: Ipv4Addr| {
        let pod = lab.topology.pods.iter().find(|pod| pod.address == address).expect("a pod");
        cluster.coredns_in(lab.namespace(&pod.name), address).expect("CoreDNS")
    };
    let free = lab.topology.pods.iter().map(|pod| pod.address).filter(|address| !web.contains(address));
    let mut running: BTreeMap<Ipv4Addr, Process> = free.map(|address| (address, coredns(address))).collect();

    let kubeconfig = cluster.account("gateway-system", "gateway").expect("the gateway's token");
    let config =
        GatewayConfig { kubeconfig: Some(kubeconfig), forward: vec!["cluster".into()], ..GatewayConfig::default() };
    let gateway = lab.gateway(&config).expect("the gateway");
    let degraded = || gateway.json("status").expect("gateway status")["degraded"].to_string();
    assert!(degraded().contains("Service kube-system/kube-dns, and there is none"), "{}", degraded());
    cluster.apply_yaml(&dns_deployment(2)).expect("the cluster's DNS");
    cluster.wait_endpoints("kube-system", "kube-dns", 2).expect("its endpoints");
    servers(&gateway, &cluster.endpoints("kube-system", "kube-dns").expect("its endpoints"));
    wait_for("all well", SOON, || match degraded().as_str() {
        "[]" => Ok(()),
        told => Err(NotYet::Later(anyhow!("{told}"))),
    })
    .expect("no longer degraded");

    // Learnt by asking, then the kernel's.
    let client = lab.client();
    assert_eq!(ask(client, ONLY, "A").expect("an answer"), yes("NOERROR", &["192.0.2.99"]));
    let before = gateway.counters().expect("counters");
    assert_eq!(ask(client, ONLY, "A").expect("an answer"), yes("NOERROR", &["192.0.2.99"]));
    let answered = gateway.counters().expect("counters").get("dns_answered") - before.get("dns_answered");
    assert_eq!(answered, 1, "the second answer is the kernel's");
    let told =
        gateway.command(&["explain", "--from", "10.90.1.100", "--name", "other.corefile.test"]).expect("explain");
    assert!(told.contains("asks the cluster's DNS: 10.244."), "{told}");
    // Its ClusterIP works for clients: the gateway answers for it.
    let at_vip = dig(client, &DNS_VIP.to_string(), &[ONLY, "A"]).expect("an answer at the ClusterIP");
    assert_eq!(at_vip.data("A"), ["192.0.2.99"]);
    let tcp = dig(client, &DNS_VIP.to_string(), &["+tcp", "web.shop.svc.cluster.local", "A"]).expect("TCP");
    let vip: Vec<String> = tcp.data("A").into_iter().map(str::to_owned).collect();
    assert_eq!((tcp.status.as_str(), vip.len()), ("NOERROR", 1));

    // Views hold: CoreDNS would tell both what it knows.
    let guest = lab.namespace("guest");
    let [a, b, c, d] = web[0].octets();
    let pointer = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
    assert_eq!(ask(client, &pointer, "PTR").expect("an answer").1.len(), 1);
    assert_eq!(ask(guest, &pointer, "PTR").expect("an answer").1, Vec::<String>::new(), "a pod of a hidden namespace");
    let alias = "www.alias.corefile.test";
    assert_eq!(
        ask(client, alias, "A").expect("an answer"),
        ("NOERROR".into(), vip),
        "followed in the gateway's own zone"
    );
    let hidden = dig(guest, &GATEWAY.to_string(), &[alias, "A"]).expect("an answer");
    assert_eq!((hidden.data("A").len(), hidden.data("CNAME").len()), (0, 1), "{hidden:?}");

    // Pods come and go, and no client sees anything of it.
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let left = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| client.enter(|| traffic(&over, &done)));
        let guard = Ends(&over);
        let asked = |more: u64| {
            let goal = done.load(Ordering::SeqCst) + more;
            wait_for("answers", SOON, || match done.load(Ordering::SeqCst) {
                now if now >= goal => Ok(()),
                _ if traffic.is_finished() => Err(NotYet::Never(anyhow!("the traffic ended"))),
                now => Err(NotYet::Later(anyhow!("{now} of {goal}"))),
            })
            .unwrap_or_else(|error| eprintln!("{error:#}"));
        };
        let left = changes(&cluster, &gateway, &mut running, &coredns, &asked);
        drop(guard);
        traffic.join().expect("the traffic").expect("no question without its answer");
        left
    });
    println!("{} questions for new names, each answered", done.load(Ordering::SeqCst));

    // None is left: told, and what was learnt stays.
    cluster.kubectl(&["scale", "deployment/coredns", "-n", "kube-system", "--replicas=0"]).expect("scale");
    servers(&gateway, &[]);
    wait_for("the trouble to be told", SOON, || match degraded() {
        told if told.contains("no endpoint that is ready or serving") => Ok(()),
        told => Err(NotYet::Later(anyhow!("{told}"))),
    })
    .expect("degraded");
    running.remove(&left[0]).expect("a process");
    let (status, _) = ask(client, "new.wild.corefile.test", "A").expect("an answer");
    assert_eq!(status, "SERVFAIL");
    assert_eq!(ask(client, ONLY, "A").expect("an answer").0, "NOERROR", "learnt, or stale");
    gateway.stop().expect("a clean end");
}
