//! The gateway behind a real API server, with real controllers. Issue 5, "What it must show", 2, 3, 6 and 7.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Topology,
    clients::{Http, connections, http_get, udp},
    cluster::{self, Cluster, deployment},
    names::dig,
    process::{NotYet, wait_for},
    testing::{self, Turn},
    topology::GATEWAY,
};

/// The Service that nothing happens to.
const STEADY: &str = "steady.calm.svc.cluster.local";
/// A change is seen by a client outside within this, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

/// This test's turn, when the cluster can be had here.
fn turn() -> Option<Turn> {
    let turn = testing::turn(&["dig", "curl", "openssl"])?;
    match cluster::program() {
        Ok(_) => Some(turn),
        Err(why) => {
            println!("SKIP: {why}");
            None
        }
    }
}

fn lab() -> Lab {
    let nodes = [Node::Worker1, Node::Worker2, Node::Gateway, Node::Worker1];
    Lab::build(Topology::with_pods(&nodes)).expect("the lab")
}

/// The gateway's own identity, with the rights of `deploy/rbac.yaml`.
fn identity(cluster: &Cluster<'_>) -> PathBuf {
    cluster.apply_yaml(cluster::RBAC).expect("deploy/rbac.yaml");
    cluster.account("gateway-system", "gateway").expect("the gateway's token")
}

/// Addresses of a name, as the gateway tells a client outside.
fn addresses(lab: &Lab, name: &str) -> anyhow::Result<(String, Vec<Ipv4Addr>)> {
    let answer = dig(lab.client(), &GATEWAY.to_string(), &[name, "A"])?;
    let found = answer.data("A").into_iter().filter_map(|ip| ip.parse().ok()).collect();
    Ok((answer.status, found))
}

/// Waits until a client reaches the Service by its name, at exactly `pods` different pods.
fn reached(lab: &Lab, name: &str, pods: usize) -> Ipv4Addr {
    let address = wait_for(name, SOON, || {
        let (status, found) = addresses(lab, name)?;
        found.first().copied().ok_or_else(|| NotYet::Later(anyhow!("{status}")))
    })
    .expect("the name");
    wait_for("the pods", SOON, || {
        let seen = lab.client().enter(|| connections(SocketAddr::new(IpAddr::V4(address), 80), 12 * pods))?;
        let names: BTreeSet<_> = seen.keys().collect();
        if names.len() == pods { Ok(()) } else { Err(NotYet::Later(anyhow!("{names:?} answer"))) }
    })
    .unwrap_or_else(|error| panic!("{name} at {address}: {error:#}"));
    address
}

fn degraded(gateway: &Gateway<'_>) -> String {
    gateway.json("status").expect("gateway status")["degraded"].to_string()
}

#[test]
fn a_deployment_is_reached_by_name_follows_its_scale_and_outlives_the_api_server() {
    let Some(_turn) = turn() else { return };
    let lab = lab();
    let cluster = Cluster::start(&lab).expect("the cluster");
    let config = GatewayConfig { kubeconfig: Some(identity(&cluster)), ..GatewayConfig::default() };
    let gateway = lab.gateway(&config).expect("the gateway");
    let status = gateway.json("status").expect("gateway status");
    assert_eq!(status["serviceCIDRs"], serde_json::json!(["10.1.0.0/16", "fd10:1::/112"]), "from the ServiceCIDR API");
    assert_eq!(status["degraded"], serde_json::json!([]), "{status}");
    assert_eq!((&status["node"], &status["zone"]), (&"gateway".into(), &"zone-a".into()), "{status}");

    cluster.apply_yaml(&deployment("shop", "web", 2, None)).expect("the deployment");
    let name = "web.shop.svc.cluster.local";
    let vip = reached(&lab, name, 2);
    // The control plane's own Service, whose endpoint is a node's address.
    assert_eq!(
        addresses(&lab, "kubernetes.default.svc.cluster.local").expect("a name").1,
        [Ipv4Addr::new(10, 1, 0, 1)]
    );

    cluster.kubectl(&["scale", "deployment/web", "-n", "shop", "--replicas=3"]).expect("scale up");
    reached(&lab, name, 3);
    cluster.kubectl(&["scale", "deployment/web", "-n", "shop", "--replicas=1"]).expect("scale down");
    reached(&lab, name, 1);

    // Another service CIDR is followed, as it comes and as it goes.
    let cidrs = |expected: serde_json::Value| {
        wait_for("the service CIDRs", SOON, || {
            let status = gateway.json("status")?;
            if status["serviceCIDRs"] == expected { Ok(()) } else { Err(NotYet::Later(anyhow!("{status}"))) }
        })
        .expect("the service CIDRs");
    };
    let second =
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: second}\nspec: {cidrs: [10.2.0.0/24]}\n";
    cluster.apply_yaml(second).expect("a second ServiceCIDR");
    cidrs(serde_json::json!(["10.1.0.0/16", "10.2.0.0/24", "fd10:1::/112"]));
    cluster.kubectl(&["delete", "servicecidr", "second"]).expect("delete");
    cidrs(serde_json::json!(["10.1.0.0/16", "fd10:1::/112"]));

    // The API server goes and comes back with another content; clients see nothing of it.
    cluster.apply_yaml(&deployment("calm", "steady", 1, None)).expect("another deployment");
    let steady = reached(&lab, STEADY, 1);
    let over = AtomicBool::new(false);
    let (requests, queries) = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| lab.client().enter(|| traffic(steady, &over)));
        let guard = Ends(&over);
        away(&lab, &cluster, &gateway, name, vip);
        drop(guard);
        traffic.join().expect("the traffic").expect("no request and no query fails")
    });
    println!("{requests} requests and {queries} queries, none failed");
    assert!(requests > 100 && queries > 100, "{requests} requests, {queries} queries");
    gateway.stop().expect("a clean end");
}

/// Ends the traffic, also when a test fails.
struct Ends<'o>(&'o AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What a client does all the time: requests on new connections and on one that is kept, questions for a name that is there and for one
/// that is not. Gives how many of each; the first that fails ends it.
fn traffic(vip: Ipv4Addr, over: &AtomicBool) -> anyhow::Result<(usize, usize)> {
    let to = SocketAddr::from((vip, 80));
    let mut kept = Http::connect(to)?;
    let resolver = udp((GATEWAY, 53).into(), Duration::from_secs(5))?;
    let (mut requests, mut queries) = (0, 0);
    while !over.load(Ordering::SeqCst) {
        for status in [kept.get("/")?.status, http_get(to, "/")?.status] {
            ensure!(status == 200, "request {requests}: HTTP {status}");
            requests += 1;
        }
        for (name, code) in [(STEADY, 0), ("nothing.calm.svc.cluster.local", 3)] {
            let id = u16::try_from(queries % 65_536)?;
            let answer = question(&resolver, id, name).with_context(|| format!("query {queries} for {name}"))?;
            ensure!(
                answer[..2] == id.to_be_bytes() && answer[3] & 15 == code,
                "query {queries} for {name}: {answer:?}"
            );
            ensure!(code == 3 || answer.ends_with(&vip.octets()), "query {queries} for {name}: {answer:?}");
            queries += 1;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((requests, queries))
}

/// Asks for the address of a name (RFC 1035 section 4.1) and gives the answer.
fn question(socket: &UdpSocket, id: u16, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send(&query)?;
    let mut answer = vec![0; 512];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    ensure!(length > 12, "{length} bytes");
    Ok(answer)
}

/// The sample of `/metrics`, and whether liveness is well.
fn metric(lab: &Lab, name: &str) -> anyhow::Result<f64> {
    let get = |path: &str| lab.node(Node::Gateway).enter(|| http_get(([127, 0, 0, 1], 9153).into(), path));
    ensure!(get("/healthz")?.status == 200, "liveness does not end a gateway whose cluster is away");
    let text = get("/metrics")?.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("no {name}"))?.parse().context("a number")
}

/// For so long the API server is away.
const AWAY: Duration = Duration::from_secs(8);

/// Kills the API server, and brings it back with another content: a Service and its name are gone, others have come, history is forgotten.
fn away(lab: &Lab, cluster: &Cluster<'_>, gateway: &Gateway<'_>, name: &str, vip: Ipv4Addr) {
    assert_eq!(metric(lab, "gateway_source_unreached_seconds").expect("the metric"), 0.0);
    cluster.kill_apiserver();
    let gone = Instant::now();
    wait_for("the loss to be told", SOON, || {
        let told = degraded(gateway);
        if told.contains("not reached") { Ok(()) } else { Err(NotYet::Later(anyhow!("{told}"))) }
    })
    .expect("degraded");
    std::thread::sleep(AWAY.saturating_sub(gone.elapsed()));
    let ready = lab.node(Node::Gateway).enter(|| http_get(([127, 0, 0, 1], 9153).into(), "/readyz")).expect("/readyz");
    assert_eq!(ready.status, 200, "what it has it serves");
    let text = ready.text();
    let seconds = text.split_once("is not reached for ").and_then(|(_, rest)| rest.split_once(" s"));
    let seconds: u64 = seconds.and_then(|(seconds, _)| seconds.parse().ok()).unwrap_or_else(|| panic!("{text}"));
    assert!((1..=gone.elapsed().as_secs()).contains(&seconds), "{text} after {:?}", gone.elapsed());
    assert_eq!(metric(lab, "gateway_source_connected").expect("the metric"), 0.0);
    assert!(metric(lab, "gateway_source_unreached_seconds").expect("the metric") >= 1.0);
    let status = gateway.json("status").expect("gateway status");
    assert!(status["source"]["unreached"].as_f64().is_some_and(|seconds| seconds >= 1.0), "{status}");
    assert_eq!(addresses(lab, name).expect("a name").1, [vip], "the last state stands");

    // It comes back where the gateway cannot reach it yet, with another content and without its history.
    cluster.cut_off(true).expect("cut off");
    cluster.start_apiserver().expect("the API server again");
    cluster.kubectl(&["delete", "service/web", "-n", "shop"]).expect("delete");
    cluster.apply_yaml(&deployment("shop", "other", 2, None)).expect("another deployment");
    cluster.wait_endpoints("shop", "other", 2).expect("its endpoints");
    cluster.compact().expect("compaction");
    assert_eq!(addresses(lab, name).expect("a name").1, [vip], "the last state stands");
    cluster.cut_off(false).expect("mended");
    let patience = Duration::from_secs(90);
    wait_for("the state of before to go", patience, || match addresses(lab, name)?.0.as_str() {
        "NXDOMAIN" => Ok(()),
        other => Err(NotYet::Later(anyhow!("{other}"))),
    })
    .expect("the difference is applied");
    reached(lab, "other.shop.svc.cluster.local", 2);
    wait_for("all well", SOON, || match degraded(gateway).as_str() {
        "[]" => Ok(()),
        told => Err(NotYet::Later(anyhow!("{told}"))),
    })
    .expect("no longer degraded");
    assert_eq!(metric(lab, "gateway_source_unreached_seconds").expect("the metric"), 0.0);
}
