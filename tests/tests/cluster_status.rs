//! What the gateway says back to a real API server: its Lease, and Events on Services that it cannot serve. Issue 5, "Status back".

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, anyhow};
use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Topology, agent,
    cluster::{self, Cluster},
    process::{NotYet, wait_for},
    testing,
};
use serde_json::{Value, json};

/// Whatever is waited for comes within this on a machine that is busy: a Lease is renewed every 13 s, and what failed is tried again after 16 s.
const SOON: Duration = Duration::from_secs(90);

/// A Service whose only slice has an endpoint of the other family and one that is no pod's, written by hand as nobody's controller would.
const SERVICE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.80, ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{port: 8080, name: ''}]
endpoints: [{addresses: ['fd00:42::1']}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080, name: ''}]
endpoints: [{addresses: ['10.1.0.80']}]
";

fn check(lab: &Lab, config: &Path) -> Vec<String> {
    let mut command: Command = lab.node(Node::Gateway).command(agent::binary().expect("the gateway's binary"));
    let output = command.args(["check", "--config"]).arg(config).output().expect("gateway check");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|line| line.starts_with("ok status: ")).collect()
}

fn lease(cluster: &Cluster<'_>) -> anyhow::Result<Value> {
    let text = cluster.kubectl(&["get", "lease", "gateway", "-n", "gateway-system", "-o", "json"])?;
    Ok(serde_json::from_str(&text)?)
}

/// Waits for a Lease like this.
fn until(cluster: &Cluster<'_>, what: &str, like: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, SOON, || {
        let lease = lease(cluster)?;
        if like(&lease["spec"]) { Ok(lease) } else { Err(NotYet::Later(anyhow!("{lease}"))) }
    })
    .unwrap_or_else(|error| panic!("{error:#}"))
}

/// Events on a Service, as reason, note and count, sorted.
fn events(cluster: &Cluster<'_>, service: &str) -> anyhow::Result<Vec<(String, String, u64)>> {
    let text = cluster.kubectl(&["get", "events.v1.events.k8s.io", "-n", "shop", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text)?;
    let mut found = Vec::new();
    for event in list["items"].as_array().context("a list")? {
        if event["regarding"]["name"] == service && event["reportingController"] == "gateway" {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            found.push((text("reason"), text("note"), event["series"]["count"].as_u64().unwrap_or(1)));
        }
    }
    found.sort();
    Ok(found)
}

fn wait_events(cluster: &Cluster<'_>, service: &str, expected: &[(&str, &str, u64)]) {
    wait_for("the Events", SOON, || {
        let found = events(cluster, service)?;
        let same = found.len() == expected.len()
            && found.iter().zip(expected).all(|(f, e)| (f.0.as_str(), f.1.as_str(), f.2) == *e);
        if same { Ok(()) } else { Err(NotYet::Later(anyhow!("{found:#?}"))) }
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
}

fn all_well(gateway: &Gateway<'_>) {
    assert_eq!(gateway.json("status").expect("gateway status")["degraded"], json!([]));
}

#[test]
fn a_gateway_shows_its_lease_and_tells_services_what_is_wrong_where_it_may() {
    let Some(_turn) = testing::turn(&["curl", "openssl"]) else { return };
    if let Err(why) = cluster::program() {
        println!("SKIP: {why}");
        return;
    }
    let lab = Lab::build(Topology::with_pods(&[])).expect("the lab");
    let cluster = Cluster::start(&lab).expect("the cluster");
    cluster.apply_yaml(cluster::RBAC).expect("deploy/rbac.yaml");
    cluster.apply_yaml(SERVICE).expect("a Service");
    let kubeconfig = cluster.account("gateway-system", "gateway").expect("the gateway's token");
    let config = GatewayConfig { kubeconfig: Some(kubeconfig), ..GatewayConfig::default() };
    let file = lab.dir().join("check.yaml");
    std::fs::write(&file, config.yaml(&lab.manifests.dir)).expect("the config");

    // Without the rights: said once each, and nothing else is different.
    let gateway = lab.gateway(&config).expect("the gateway");
    let off = [
        "Lease off: no right to get, create, update leases",
        "Events on Services off: no right to create, patch events",
    ];
    wait_for("the log", SOON, || {
        let log = gateway.log();
        if off.iter().all(|line| log.matches(line).count() == 1) {
            Ok(())
        } else {
            Err(NotYet::Later(anyhow!("{log}")))
        }
    })
    .expect("what is off is said");
    all_well(&gateway);
    assert!(!gateway.log().contains(" WARN Lease") && !gateway.log().contains("ERROR"), "{}", gateway.log());
    let lines = check(&lab, &file);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines.iter().all(|line| line.contains(" off: ") && line.ends_with("deploy/rbac-status.yaml grants it")),
        "{lines:?}"
    );
    assert!(lease(&cluster).is_err() && events(&cluster, "web").expect("events").is_empty());

    // With them, by itself.
    cluster.apply_yaml(cluster::RBAC_STATUS).expect("deploy/rbac-status.yaml");
    let first = until(&cluster, "the Lease", |spec| spec["renewTime"].is_string());
    assert_eq!(first["spec"]["leaseDurationSeconds"], 40, "{first}");
    let holder = first["spec"]["holderIdentity"].as_str().expect("a holder").to_owned();
    assert!(holder == "gateway" || holder.starts_with("gateway_"), "{first}");
    assert_eq!(first["metadata"]["labels"], json!({"app.kubernetes.io/name": "gateway"}));
    assert_eq!(
        (&first["metadata"]["ownerReferences"][0]["kind"], &first["metadata"]["ownerReferences"][0]["name"]),
        (&json!("Node"), &json!("gateway"))
    );
    let family =
        "Service shop/web: endpoint fd00:42::1 of slice web-1 is left out: the Service has no clusterIP of its family";
    let own = "Service shop/web: endpoint 10.1.0.80 of slice web-2 is left out: it is the Service's own address";
    let told = [("EndpointsLeftOut", own, 1), ("NoCommonFamily", family, 1)];
    wait_events(&cluster, "web", &told);
    assert!(gateway.log().contains(family), "the same words as in the log");
    let described = cluster.kubectl(&["describe", "service", "web", "-n", "shop"]).expect("kubectl describe");
    assert!(described.contains("Warning  NoCommonFamily") && described.contains(family), "{described}");
    wait_for("gateway check", SOON, || match &check(&lab, &file)[..] {
        [line] if line.contains("the API server takes its Lease") => Ok(()),
        lines => Err(NotYet::Later(anyhow!("{lines:?}"))),
    })
    .expect("all is permitted");

    // Many reconciliations of the same problem, and a new one beside it: one Event a reason.
    for round in 0..20 {
        let label = format!("round={round}");
        cluster.kubectl(&["label", "endpointslice", "web-1", "-n", "shop", "--overwrite", &label]).expect("a label");
    }
    cluster
        .apply_yaml(
            &SERVICE
                .replace("name: web", "name: api")
                .replace("service-name: web", "service-name: api")
                .replace("web-", "api-")
                .replace("10.1.0.80", "10.1.0.81"),
        )
        .expect("another Service");
    wait_for("the other Service's Events", SOON, || {
        let found = events(&cluster, "api")?;
        if found.len() == 2 { Ok(()) } else { Err(NotYet::Later(anyhow!("{found:?}"))) }
    })
    .expect("Events");
    assert_eq!(
        events(&cluster, "web")
            .expect("events")
            .iter()
            .map(|(r, n, c)| (r.as_str(), n.as_str(), *c))
            .collect::<Vec<_>>(),
        told
    );

    // Renewed, also by an API server that was away.
    let renewed = |lease: &Value| lease["spec"]["renewTime"].clone();
    let second = until(&cluster, "a renewal", |spec| spec["renewTime"] != first["spec"]["renewTime"]);
    assert_eq!(second["spec"]["acquireTime"], first["spec"]["acquireTime"], "it was held all the time");
    cluster.kill_apiserver();
    cluster.start_apiserver().expect("the API server");
    let third = until(&cluster, "a renewal by the new API server", |spec| spec["renewTime"] != renewed(&second));
    assert_eq!(third["spec"]["holderIdentity"], holder.as_str());
    wait_for("well again", SOON, || match gateway.json("status")?["degraded"].clone() {
        degraded if degraded == json!([]) => Ok(()),
        degraded => Err(NotYet::Later(anyhow!("{degraded}"))),
    })
    .expect("well again");
    assert_eq!(events(&cluster, "web").expect("events").len(), 2);
    assert_eq!(
        gateway.log().matches("Lease").count(),
        1 + gateway.log().matches("Lease: permitted now").count(),
        "{}",
        gateway.log()
    );

    // The end releases it, and the next agent takes it at once.
    gateway.stop().expect("a clean end");
    let released = lease(&cluster).expect("the Lease stays");
    assert_eq!(released["spec"].get("holderIdentity"), None, "{released}");
    let gateway = lab.gateway(&config).expect("the gateway again");
    let fourth = until(&cluster, "the Lease again", |spec| spec["holderIdentity"] == holder.as_str());
    assert_eq!(fourth["spec"]["leaseTransitions"], 1, "{fourth}");

    // Another holder's is waited out, not taken.
    gateway.stop().expect("a clean end");
    let other = json!({"spec": {"holderIdentity": "another", "leaseDurationSeconds": 600}}).to_string();
    cluster
        .kubectl(&["patch", "lease", "gateway", "-n", "gateway-system", "--type=merge", "-p", &other])
        .expect("a patch");
    let gateway = lab.gateway(&config).expect("the gateway once more");
    wait_for("the log", SOON, || {
        let log = gateway.log();
        if log.contains("another gateway holds it") { Ok(()) } else { Err(NotYet::Later(anyhow!("{log}"))) }
    })
    .expect("it is said");
    assert_eq!(lease(&cluster).expect("the Lease")["spec"]["holderIdentity"], "another");
    all_well(&gateway);
    gateway.stop().expect("a clean end");
    assert_eq!(lease(&cluster).expect("the Lease")["spec"]["holderIdentity"], "another", "nor released");
}
