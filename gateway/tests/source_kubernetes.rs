//! The Kubernetes source against a scripted API server on loopback: lists, watches, and everything that goes wrong with them.

mod support;

use std::{fs, time::Duration};

use gateway::{
    model::{Cluster, Event, ObjectName},
    source::{self, Extra, ServiceCidrs, SourceConfig, SourceError, SourceHandle, SourceStatus},
};
use serde_json::{Value, json};
use support::api_server::{ApiServer, Gone, Streams};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A source on the server, and the cluster as it is known from it.
struct Live {
    _kubeconfig: TempDir,
    events: mpsc::Receiver<Vec<Event>>,
    cluster: Cluster,
    /// Every event after the snapshot, in order.
    seen: Vec<Event>,
    handle: SourceHandle,
}

fn kubeconfig(server: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": server}}],
        "users": [{"name": "lab", "user": {}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    });
    fs::write(dir.path().join("config"), text.to_string()).unwrap();
    dir
}

impl Live {
    async fn start(server: &ApiServer) -> Self {
        let kubeconfig = kubeconfig(&server.url());
        let (sender, events) = mpsc::channel(64);
        let config = SourceConfig::Kubernetes {
            kubeconfig: Some(kubeconfig.path().join("config")),
            context: None,
            extra: Extra { service_cidrs: ServiceCidrs::Wanted, pods: true },
        };
        let handle = source::start(config, sender).await.unwrap();
        Self { _kubeconfig: kubeconfig, events, cluster: Cluster::default(), seen: Vec::new(), handle }
    }

    async fn synced(server: &ApiServer) -> Self {
        let mut live = Self::start(server).await;
        let batch = live.batch().await;
        assert!(matches!(batch.as_slice(), [Event::Snapshot(_)]), "the first batch is the whole snapshot: {batch:?}");
        live.cluster.apply(batch);
        live.status(|s| s.synced && s.connected).await;
        live
    }

    async fn batch(&mut self) -> Vec<Event> {
        let batch = tokio::time::timeout(Duration::from_secs(15), self.events.recv()).await;
        batch.expect("an event within fifteen seconds").expect("the source goes on")
    }

    async fn until(&mut self, wanted: impl Fn(&Cluster) -> bool) {
        while !wanted(&self.cluster) {
            let batch = self.batch().await;
            self.seen.extend(batch.iter().cloned());
            self.cluster.apply(batch);
        }
    }

    async fn status(&self, wanted: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
        let mut status = self.handle.status();
        let waited = tokio::time::timeout(Duration::from_secs(15), status.wait_for(|s| wanted(s))).await;
        let last = self.handle.status().borrow().clone();
        waited.unwrap_or_else(|_| panic!("the status stays {last:#?}")).expect("the source goes on").clone()
    }

    fn services(&self) -> Vec<&str> {
        self.cluster.objects.services.keys().map(|n| &*n.name).collect()
    }

    fn gone(&self) -> Vec<String> {
        let gone = self.seen.iter().filter_map(|event| match event {
            Event::ServiceGone(name) | Event::SliceGone(name) => Some(name.to_string()),
            Event::Snapshot(_) => Some("a whole snapshot".into()),
            _ => None,
        });
        gone.collect()
    }
}

fn service(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]},
    })
}

fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> =
        addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
    json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

async fn shop() -> ApiServer {
    let server = ApiServer::start().await;
    server.put("services", service("web", "10.1.0.10"));
    server.put("services", service("api", "10.1.0.11"));
    server.put("endpointslices", slice("web-1", "web", &["10.42.0.1", "10.42.0.2"]));
    server.put("namespaces", json!({"metadata": {"name": "shop"}}));
    server.put("nodes", json!({"metadata": {"name": "worker-1", "labels": {"topology.kubernetes.io/zone": "a"}}}));
    server.put("servicecidrs", json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.1.0.0/16"]}}));
    server.put("pods", pod("web-a", &["10.42.0.1", "fd00:42::1"]));
    server
}

fn pod(name: &str, ips: &[&str]) -> Value {
    let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"metadata": {"name": name, "namespace": "shop"}, "status": {"phase": "Running", "podIPs": ips}})
}

fn web() -> ObjectName {
    ObjectName::new("shop", "web")
}

fn endpoints(cluster: &Cluster) -> usize {
    cluster.slices(&web()).map(|s| s.endpoints.len()).sum()
}

#[tokio::test]
async fn the_initial_lists_become_one_snapshot() {
    let server = shop().await;
    let live = Live::synced(&server).await;
    assert_eq!(live.services(), ["api", "web"]);
    assert_eq!(endpoints(&live.cluster), 2);
    let objects = &live.cluster.objects;
    assert_eq!(objects.namespaces.iter().collect::<Vec<_>>(), ["shop"]);
    assert_eq!(objects.nodes["worker-1"].zone.as_deref(), Some("a"));
    assert_eq!(objects.service_cidrs, Some(vec!["10.1.0.0/16".parse().unwrap()]));
    let pod = &objects.pods[&ObjectName::new("shop", "web-a")];
    assert_eq!(pod.addresses, ["10.42.0.1", "fd00:42::1"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap()));
    let status = live.status(|s| s.synced).await;
    assert_eq!((status.kind, status.location, status.problems), ("kubernetes", format!("{}/", server.url()), vec![]));
}

#[tokio::test]
async fn lists_of_many_pages_are_complete() {
    for streams in [Streams::Known, Streams::Refused] {
        let server = ApiServer::start().await;
        server.streams(streams);
        for i in 0..1203 {
            server.put("services", service(&format!("s{i}"), &format!("10.1.{}.{}", i / 250, 1 + i % 250)));
        }
        assert_eq!(Live::synced(&server).await.services().len(), 1203);
        assert_eq!(server.lists("services"), 1);
    }
}

#[tokio::test]
async fn what_the_watches_tell_arrives_as_changes() {
    let server = shop().await;
    let mut live = Live::synced(&server).await;
    server.put("services", service("new", "10.1.0.12"));
    live.until(|c| c.objects.services.len() == 3).await;
    server.put("endpointslices", slice("web-1", "web", &["10.42.0.3"]));
    live.until(|c| endpoints(c) == 1).await;
    server.delete("services", "shop", "api");
    live.until(|c| c.objects.services.len() == 2).await;
    server.delete("endpointslices", "shop", "web-1");
    live.until(|c| endpoints(c) == 0).await;
    server.put("servicecidrs", json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.2.0.0/16"]}}));
    live.until(|c| c.objects.service_cidrs.as_ref().is_some_and(|cidrs| cidrs.len() == 2)).await;
    server.delete("nodes", "", "worker-1");
    live.until(|c| c.objects.nodes.is_empty()).await;
    server.delete("namespaces", "", "shop");
    live.until(|c| c.objects.namespaces.is_empty()).await;
    server.put("pods", pod("web-b", &[]));
    server.put("pods", pod("web-b", &["10.42.0.2"]));
    live.until(|c| c.objects.pods.len() == 2).await;
    let mut done = pod("web-b", &["10.42.0.2"]);
    done["status"]["phase"] = json!("Succeeded");
    server.put("pods", done);
    live.until(|c| c.objects.pods.len() == 1).await;
    server.delete("pods", "shop", "web-a");
    live.until(|c| c.objects.pods.is_empty()).await;
    assert_eq!(live.gone(), ["shop/api", "shop/web-1"]);
}

/// The server has forgotten the version that a watch asks for, and meanwhile something went and something came.
async fn relist(gone: Gone, streams: Streams) {
    let server = shop().await;
    server.streams(streams);
    let mut live = Live::synced(&server).await;
    server.pause();
    server.delete("services", "shop", "api");
    server.put("services", service("new", "10.1.0.12"));
    server.forget("services", gone);
    server.resume();
    live.until(|c| c.objects.services.contains_key(&ObjectName::new("shop", "new"))).await;
    assert_eq!(live.services(), ["new", "web"]);
    assert_eq!(live.gone(), ["shop/api"], "only what is missing is gone, and nothing else for a moment");
    // And the watch goes on from there.
    server.put("services", service("newer", "10.1.0.13"));
    live.until(|c| c.objects.services.len() == 3).await;
    live.status(|s| s.connected && s.problems.is_empty()).await;
}

#[tokio::test]
async fn after_410_as_an_event_the_new_list_is_compared_with_the_old() {
    relist(Gone::Event, Streams::Known).await;
    relist(Gone::Event, Streams::Refused).await;
}

#[tokio::test]
async fn after_410_as_an_answer_the_new_list_is_compared_with_the_old() {
    relist(Gone::Answer, Streams::Known).await;
    relist(Gone::Answer, Streams::Refused).await;
}

#[tokio::test]
async fn a_server_that_is_gone_leaves_the_cluster_as_it_was_and_is_named_until_it_is_back() {
    let mut server = shop().await;
    let mut live = Live::synced(&server).await;
    server.stop().await;
    let status = live.status(|s| !s.connected).await;
    assert!(status.problems.iter().any(|p| p.contains("it is tried again")), "{:?}", status.problems);
    assert!(status.synced);
    server.delete("services", "shop", "api");
    server.again().await;
    // Nothing but the answer itself says that the connection is well again for kinds that do not change.
    live.status(|s| s.connected && s.problems.is_empty()).await;
    live.until(|c| c.objects.services.len() == 1).await;
    assert_eq!(live.gone(), ["shop/api"]);
}

#[tokio::test]
async fn watches_that_end_are_taken_up_where_they_were() {
    let server = shop().await;
    let mut live = Live::synced(&server).await;
    for i in 0..3 {
        server.pause();
        server.put("services", service(&format!("s{i}"), &format!("10.1.1.{i}")));
        server.resume();
        live.until(|c| c.objects.services.len() == 3 + i).await;
    }
    assert_eq!(live.gone(), Vec::<String>::new());
    assert_eq!(server.lists("services"), 1, "nothing is listed anew");
}

#[tokio::test]
async fn watches_that_end_at_once_are_not_asked_for_without_a_pause() {
    let server = shop().await;
    let mut live = Live::synced(&server).await;
    server.end_watches("services", true);
    let before = server.watches("services");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let asked = server.watches("services") - before;
    assert!((1..=6).contains(&asked), "{asked} watches in three seconds");
    server.put("services", service("new", "10.1.0.12"));
    server.end_watches("services", false);
    live.until(|c| c.objects.services.len() == 3).await;
}

#[tokio::test]
async fn optional_kinds_may_be_forbidden_or_unknown() {
    let server = shop().await;
    server.refuse("nodes", 403);
    server.refuse("namespaces", 403);
    server.refuse("servicecidrs", 404);
    server.refuse("pods", 403);
    let live = Live::synced(&server).await;
    assert_eq!(live.services(), ["api", "web"]);
    assert_eq!(live.cluster.objects.service_cidrs, None);
    let status = live.status(|s| s.problems.len() == 4).await;
    assert!(
        status.problems.iter().any(|p| p.starts_with("nodes: ") && p.contains("allow list and watch of nodes")),
        "{status:?}"
    );
    assert!(
        status.problems.iter().any(|p| p.starts_with("pods: ") && p.contains("deploy/rbac-pods.yaml")),
        "{status:?}"
    );
    assert!(
        status.problems.iter().any(|p| p.starts_with("servicecidrs: ") && p.contains("set serviceCIDRs")),
        "{status:?}"
    );
}

#[tokio::test]
async fn without_services_there_is_no_snapshot_until_they_are_allowed() {
    let server = shop().await;
    server.refuse("services", 403);
    let mut live = Live::start(&server).await;
    let status = live.status(|s| !s.problems.is_empty()).await;
    assert!(
        status.problems[0].contains("allow list and watch of services in its ClusterRole"),
        "{:?}",
        status.problems
    );
    assert!(!status.synced && !status.connected);
    assert!(live.events.try_recv().is_err());
    server.allow("services");
    let batch = live.batch().await;
    assert!(matches!(batch.as_slice(), [Event::Snapshot(objects)] if objects.services.len() == 2), "{batch:?}");
    live.status(|s| s.synced && s.connected && s.problems.is_empty()).await;
}

#[tokio::test]
async fn an_object_that_cannot_be_used_is_named_until_it_is_mended() {
    let server = shop().await;
    let mut bad = slice("web-2", "web", &["10.42.0.300"]);
    server.put("endpointslices", bad.clone());
    let mut live = Live::synced(&server).await;
    let status = live.status(|s| !s.problems.is_empty()).await;
    assert!(
        status.problems[0].starts_with("EndpointSlice shop/web-2: endpoint address \"10.42.0.300\""),
        "{:?}",
        status.problems
    );
    bad["endpoints"][0]["addresses"] = json!(["10.42.0.30"]);
    server.put("endpointslices", bad);
    live.until(|c| endpoints(c) == 3).await;
    live.status(|s| s.problems.is_empty()).await;
}

#[tokio::test]
async fn a_slice_that_loses_its_label_is_gone() {
    let server = shop().await;
    let mut live = Live::synced(&server).await;
    let mut orphan = slice("web-1", "web", &["10.42.0.1"]);
    orphan["metadata"]["labels"] = json!({});
    server.put("endpointslices", orphan);
    live.until(|c| endpoints(c) == 0).await;
    live.status(|s| s.problems.iter().any(|p| p.contains("it has no label kubernetes.io/service-name"))).await;
}

#[tokio::test]
async fn a_wrong_kubeconfig_is_an_error_that_names_it() {
    let dir = kubeconfig("http://127.0.0.1:1");
    let path = dir.path().join("config");
    let start = async |kubeconfig, context: Option<&str>| {
        let (sender, _events) = mpsc::channel(1);
        let config = SourceConfig::Kubernetes { kubeconfig, context: context.map(Into::into), extra: Extra::default() };
        source::start(config, sender).await.map(drop).expect_err("it cannot start")
    };
    let missing = start(Some("/nonexistent/kubeconfig".into()), None).await;
    assert!(matches!(missing, SourceError::Kubeconfig { .. }));
    assert!(missing.to_string().contains("/nonexistent/kubeconfig"), "{missing}");
    let context = start(Some(path.clone()), Some("elsewhere")).await.to_string();
    assert!(context.contains(&path.display().to_string()) && context.contains("context elsewhere"), "{context}");
    let mut exec: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    exec["users"][0]["user"] = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never", "command": "/nonexistent/login"}});
    fs::write(&path, exec.to_string()).unwrap();
    let program = start(Some(path.clone()), None).await.to_string();
    assert!(program.contains("credentials by program /nonexistent/login: ") && !program.contains('\n'), "{program}");
    fs::write(&path, "clusters: [").unwrap();
    let broken = start(Some(path.clone()), None).await.to_string();
    assert!(broken.contains(&path.display().to_string()) && !broken.contains('\n'), "{broken}");
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        eprintln!("skipped: the error outside a cluster, as this runs in one");
        return;
    }
    let outside = start(None, None).await;
    assert!(matches!(outside, SourceError::InCluster(_)), "{outside}");
    assert!(outside.to_string().contains("name a kubeconfig"), "{outside}");
}
