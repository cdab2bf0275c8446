//! The gateway behind a real API server, with real controllers. Issue 5, "What it must show", 2, 3, 6 and 7.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::anyhow;
use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Topology,
    clients::{connections, http_get},
    cluster::{self, Cluster, deployment},
    names::dig,
    process::{NotYet, wait_for},
    testing::{self, Turn},
    topology::GATEWAY,
};

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
    Lab::build(Topology::with_pods(&[Node::Worker1, Node::Worker2, Node::Gateway])).expect("the lab")
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
    assert_eq!(status["serviceCIDRs"], serde_json::json!(["10.1.0.0/16"]), "from the ServiceCIDR API");
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
    cidrs(serde_json::json!(["10.1.0.0/16", "10.2.0.0/24"]));
    cluster.kubectl(&["delete", "servicecidr", "second"]).expect("delete");
    cidrs(serde_json::json!(["10.1.0.0/16"]));

    // The API server goes: packets and names go on, and it is told.
    cluster.kill_apiserver();
    wait_for("the loss to be told", SOON, || {
        let told = degraded(&gateway);
        if told.contains("not reached") { Ok(()) } else { Err(NotYet::Later(anyhow!("{told}"))) }
    })
    .expect("degraded");
    for _ in 0..20 {
        let seen = lab.client().enter(|| http_get(SocketAddr::from((vip, 80)), "/")).expect("a request");
        assert_eq!(seen.status, 200);
        assert_eq!(addresses(&lab, name).expect("a name").1, [vip]);
    }
    // It comes back where the gateway cannot reach it yet, with another content and without its history.
    cluster.cut_off(true).expect("cut off");
    cluster.start_apiserver().expect("the API server again");
    cluster.kubectl(&["delete", "service/web", "-n", "shop"]).expect("delete");
    cluster.apply_yaml(&deployment("shop", "other", 2, None)).expect("another deployment");
    cluster.wait_endpoints("shop", "other", 2).expect("its endpoints");
    cluster.compact().expect("compaction");
    assert_eq!(addresses(&lab, name).expect("a name").1, [vip], "the last state stands");
    cluster.cut_off(false).expect("mended");
    let patience = Duration::from_secs(90);
    wait_for("the state of before to go", patience, || match addresses(&lab, name)?.0.as_str() {
        "NXDOMAIN" => Ok(()),
        other => Err(NotYet::Later(anyhow!("{other}"))),
    })
    .expect("the difference is applied");
    reached(&lab, "other.shop.svc.cluster.local", 2);
    wait_for("all well", SOON, || match degraded(&gateway).as_str() {
        "[]" => Ok(()),
        told => Err(NotYet::Later(anyhow!("{told}"))),
    })
    .expect("no longer degraded");
    gateway.stop().expect("a clean end");
}
