//! A directory of manifests that people, editors and config-map mounts change while it is watched.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gateway::{
    model::{Cluster, Dirty, Event, ObjectName, Service},
    source::{self, SourceConfig, SourceHandle, SourceStatus},
};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A second, on a machine that builds something else meanwhile.
const SOON: Duration = Duration::from_secs(4);

/// A source on a directory, and the cluster as it is known from it.
struct Live {
    dir: TempDir,
    events: mpsc::Receiver<Vec<Event>>,
    cluster: Cluster,
    /// Every event, in order.
    seen: Vec<Event>,
    handle: SourceHandle,
}

impl Live {
    async fn start(files: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Self::on(dir, |path| path.to_owned()).await
    }

    async fn on(dir: TempDir, path: impl Fn(&Path) -> PathBuf) -> Self {
        let (sender, events) = mpsc::channel(64);
        let handle = source::start(SourceConfig::Manifests(path(dir.path())), sender).await.unwrap();
        let mut live = Self { dir, events, cluster: Cluster::default(), seen: Vec::new(), handle };
        let first = live.batch().await;
        assert!(
            matches!(live.seen.as_slice(), [Event::Snapshot(_)]),
            "the first batch is the whole snapshot: {first:?}"
        );
        live
    }

    async fn batch(&mut self) -> Dirty {
        let batch = tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await;
        let batch = batch.expect("an event within ten seconds").expect("the source goes on");
        self.seen.extend(batch.iter().cloned());
        self.cluster.apply(batch)
    }

    /// Takes batches until the cluster is as wanted; how long it took.
    async fn until(&mut self, wanted: impl Fn(&Cluster) -> bool) -> Duration {
        let began = Instant::now();
        while !wanted(&self.cluster) {
            self.batch().await;
        }
        began.elapsed()
    }

    async fn status(&self, wanted: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
        let mut status = self.handle.status();
        let waited = tokio::time::timeout(Duration::from_secs(10), status.wait_for(|s| wanted(s))).await;
        let last = self.handle.status().borrow().clone();
        waited.unwrap_or_else(|_| panic!("the status stays {last:#?}")).expect("the source goes on").clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn port(&self, service: &str) -> Option<u16> {
        port(&self.cluster, service)
    }
}

fn find<'c>(cluster: &'c Cluster, service: &str) -> Option<&'c Service> {
    cluster.objects.services.get(&ObjectName::new("shop", service))
}

fn port(cluster: &Cluster, service: &str) -> Option<u16> {
    Some(find(cluster, service)?.ports[0].port)
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: None, ports: [{{port: {port}}}]}}\n---\n"
    )
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[tokio::test]
async fn everything_that_kubectl_prints_is_in_the_first_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["kubectl-get.yaml", "slices.json"] {
        fs::copy(fixture(name), dir.path().join(name)).unwrap();
    }
    let live = Live::on(dir, |path| path.to_owned()).await;
    let objects = &live.cluster.objects;
    let names: Vec<String> = objects.services.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["default/kubernetes", "shop/web"]);
    assert_eq!(objects.namespaces.iter().collect::<Vec<_>>(), ["shop"]);
    assert_eq!(objects.nodes["worker-1"].zone.as_deref(), Some("a"));
    assert_eq!(objects.nodes["worker-1"].addresses, ["10.90.2.101".parse::<std::net::IpAddr>().unwrap()]);
    let web = &objects.services[&ObjectName::new("shop", "web")];
    assert_eq!(web.cluster_ips(), ["10.1.0.10".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(web.affinity, Some(10_800));
    let slices: Vec<_> = live.cluster.slices(&web.name).collect();
    assert_eq!(slices.len(), 1);
    let conditions: Vec<_> = slices[0].endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(conditions, [(true, true, false), (false, true, true), (true, true, false)]);
    let status = live.status(|s| s.synced).await;
    assert_eq!((status.kind, status.connected, status.problems), ("manifests", true, vec![]));
    assert!(status.last_change.is_some());
}

#[tokio::test]
async fn a_change_is_live_within_a_second_however_it_is_written() {
    let mut live = Live::start(&[("a.yaml", service("web", 80)), ("b.yaml", service("api", 81))]).await;
    live.write("a.yaml", &service("web", 8080));
    let mut took = vec![live.until(|c| port(c, "web") == Some(8080)).await];

    fs::write(live.path(".a.yaml.swp"), service("web", 9090)).unwrap();
    fs::rename(live.path(".a.yaml.swp"), live.path("a.yaml")).unwrap();
    took.push(live.until(|c| port(c, "web") == Some(9090)).await);

    live.write("c.json", r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"json","namespace":"shop"},"spec":{"clusterIP":"None","ports":[{"port":1}]}}"#);
    took.push(live.until(|c| port(c, "json") == Some(1)).await);

    fs::remove_file(live.path("b.yaml")).unwrap();
    took.push(live.until(|c| find(c, "api").is_none()).await);

    fs::rename(live.path("c.json"), live.path("c.json.off")).unwrap();
    took.push(live.until(|c| find(c, "json").is_none()).await);
    assert_eq!(live.port("web"), Some(9090));
    assert!(took.iter().all(|t| *t < SOON), "{took:?}");
}

/// Windows PowerShell's `kubectl get svc -A -o yaml > all.yaml`.
#[tokio::test]
async fn utf16_with_its_mark_is_read_and_other_encodings_are_named() {
    let utf16 = |word: fn(u16) -> [u8; 2]| {
        let text = format!("\u{feff}{}", service("web", 80).replace('\n', "\r\n"));
        text.encode_utf16().flat_map(word).collect::<Vec<u8>>()
    };
    let mut live = Live::start(&[]).await;
    fs::write(live.path("all.yaml"), utf16(u16::to_le_bytes)).unwrap();
    live.until(|c| port(c, "web") == Some(80)).await;
    fs::remove_file(live.path("all.yaml")).unwrap();
    live.until(|c| port(c, "web").is_none()).await;
    fs::write(live.path("big.yaml"), utf16(u16::to_be_bytes)).unwrap();
    live.until(|c| port(c, "web") == Some(80)).await;
    fs::write(live.path("latin.yaml"), b"# caf\xe9\n").unwrap();
    live.status(|s| s.problems.iter().any(|p| p.contains("latin.yaml: line 1: not UTF-8 text"))).await;
    assert_eq!(live.port("web"), Some(80));
}

#[tokio::test]
async fn a_change_touches_only_what_it_is_about() {
    let mut live = Live::start(&[("all.yaml", service("a", 1) + &service("b", 2) + &service("c", 3))]).await;
    live.write("all.yaml", &(service("a", 1) + &service("b", 20)));
    let dirty = live.batch().await;
    let touched: Vec<_> = dirty.services.iter().map(|n| &*n.name).collect();
    assert_eq!(touched, ["b", "c"]);
}

#[tokio::test]
async fn a_file_that_does_not_parse_keeps_its_last_good_state_and_is_named() {
    let mut live = Live::start(&[("a.yaml", service("web", 80)), ("b.yaml", service("api", 81))]).await;
    live.write("a.yaml", &format!("{}kind: [\n", service("web", 8080)));
    let status = live.status(|s| !s.problems.is_empty()).await;
    let [problem] = status.problems.as_slice() else { panic!("{:?}", status.problems) };
    assert!(problem.contains(&live.path("a.yaml").display().to_string()), "{problem}");
    assert!(problem.contains("line ") && problem.contains("its last good state is kept"), "{problem}");

    live.write("b.yaml", &service("api", 8181));
    live.until(|c| port(c, "api") == Some(8181)).await;
    assert_eq!(live.port("web"), Some(80), "the broken file's objects stay as they were");

    live.write("a.yaml", &service("web", 8080));
    live.until(|c| port(c, "web") == Some(8080)).await;
    live.status(|s| s.problems.is_empty()).await;
}

#[tokio::test]
async fn a_file_that_never_parsed_does_not_keep_the_others_out() {
    let live = Live::start(&[("a.yaml", "kind: [".into()), ("b.yaml", service("api", 81))]).await;
    assert_eq!(live.port("api"), Some(81));
    assert_eq!(live.status(|s| s.synced).await.problems.len(), 1);
}

#[tokio::test]
async fn a_field_that_cannot_be_used_is_named_with_file_and_object() {
    let live = Live::start(&[("a.yaml", service("web", 80).replace("port: 80", "port: 80000"))]).await;
    let status = live.status(|s| !s.problems.is_empty()).await;
    let expected = format!("{}: Service shop/web: spec.ports: 80000 is not a port", live.path("a.yaml").display());
    assert!(status.problems[0].starts_with(&expected), "{:?}", status.problems);
}

#[tokio::test]
async fn an_object_in_two_files_is_the_last_files_and_said() {
    let mut live = Live::start(&[("b.yaml", service("web", 2)), ("a.yaml", service("web", 1))]).await;
    assert_eq!(live.port("web"), Some(2));
    let status = live.status(|s| !s.problems.is_empty()).await;
    assert!(
        status.problems[0].contains("Service shop/web is in a.yaml and b.yaml; b.yaml counts"),
        "{:?}",
        status.problems
    );
    fs::remove_file(live.path("b.yaml")).unwrap();
    live.until(|c| port(c, "web") == Some(1)).await;
    assert!(!live.seen.iter().any(|e| matches!(e, Event::ServiceGone(_))), "it was never gone");
    live.status(|s| s.problems.is_empty()).await;
}

#[tokio::test]
async fn hidden_files_editors_copies_and_other_files_are_ignored() {
    let broken = || "kind: [".to_owned();
    let live = Live::start(&[
        ("a.yaml", service("web", 80)),
        (".hidden.yaml", broken()),
        (".#a.yaml", broken()),
        ("#a.yaml#", broken()),
        ("a.yaml~", broken()),
        (".a.yaml.swp", broken()),
        ("README.md", broken()),
        ("b.yml", service("yml", 81)),
    ])
    .await;
    assert_eq!((live.port("web"), live.port("yml")), (Some(80), Some(81)));
    assert_eq!(live.status(|s| s.synced).await.problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_through_its_links() {
    let dir = tempfile::tempdir().unwrap();
    let version = |name: &str, port: u16| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("web.yaml"), service("web", port)).unwrap();
    };
    version("..2026_01", 80);
    symlink("..2026_01", dir.path().join("..data")).unwrap();
    symlink("..data/web.yaml", dir.path().join("web.yaml")).unwrap();
    version("..2026_02", 8080);
    let mut live = Live::on(dir, |path| path.to_owned()).await;
    assert_eq!(live.port("web"), Some(80));
    // The kubelet's way: a new link, renamed over the old one, then the old version removed.
    symlink("..2026_02", live.path("..data_tmp")).unwrap();
    fs::rename(live.path("..data_tmp"), live.path("..data")).unwrap();
    fs::remove_dir_all(live.path("..2026_01")).unwrap();
    let took = live.until(|c| port(c, "web") == Some(8080)).await;
    assert!(took < SOON, "{took:?}");
    assert!(!live.seen.iter().any(|e| matches!(e, Event::ServiceGone(_))), "it was never gone");
}

#[tokio::test]
async fn a_link_to_a_file_elsewhere_is_followed_without_an_event() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("target.yaml");
    fs::write(&target, service("web", 80)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    symlink(&target, dir.path().join("web.yaml")).unwrap();
    let mut live = Live::on(dir, |path| path.to_owned()).await;
    fs::write(&target, service("web", 81)).unwrap();
    let took = live.until(|c| port(c, "web") == Some(81)).await;
    assert!(took < SOON, "{took:?}");
    fs::remove_file(&target).unwrap();
    live.status(|s| s.problems.iter().any(|p| p.contains("web.yaml: cannot be read"))).await;
    assert_eq!(live.port("web"), Some(81), "a link that leads nowhere keeps the last good state");
}

#[tokio::test]
async fn a_directory_that_is_replaced_is_followed_and_one_that_is_gone_is_not_an_empty_cluster() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("cluster")).unwrap();
    fs::write(dir.path().join("cluster/a.yaml"), service("web", 80)).unwrap();
    let mut live = Live::on(dir, |path| path.join("cluster")).await;
    fs::rename(live.path("cluster"), live.path("old")).unwrap();
    let status = live.status(|s| !s.connected).await;
    assert!(status.problems[0].contains("cannot be read"), "{:?}", status.problems);
    assert_eq!(live.port("web"), Some(80));

    fs::create_dir(live.path("new")).unwrap();
    fs::write(live.path("new/a.yaml"), service("web", 81)).unwrap();
    fs::rename(live.path("new"), live.path("cluster")).unwrap();
    live.until(|c| port(c, "web") == Some(81)).await;
    live.status(|s| s.connected && s.problems.is_empty()).await;
    // And the new one is watched, not only scanned.
    live.write("cluster/a.yaml", &service("web", 82));
    live.until(|c| port(c, "web") == Some(82)).await;
    assert!(!live.seen.iter().any(|e| matches!(e, Event::ServiceGone(_))), "it was never gone");
}

#[tokio::test]
async fn a_file_that_is_emptied_and_written_is_never_seen_empty() {
    let mut live = Live::start(&[("a.yaml", service("web", 1))]).await;
    for port_now in 2..8 {
        fs::write(live.path("a.yaml"), "").unwrap();
        // Longer than a change takes to settle.
        tokio::time::sleep(Duration::from_millis(150)).await;
        live.write("a.yaml", &service("web", port_now));
        live.until(|c| port(c, "web") == Some(port_now)).await;
    }
    assert!(!live.seen.iter().any(|e| matches!(e, Event::ServiceGone(_))), "it was never gone");
    fs::write(live.path("a.yaml"), "").unwrap();
    let took = live.until(|c| find(c, "web").is_none()).await;
    assert!(took < SOON, "an empty file that stays empty is believed: {took:?}");
}

#[tokio::test]
async fn the_last_of_many_quick_changes_of_the_same_size_wins() {
    let mut live = Live::start(&[("a.yaml", service("web", 1000))]).await;
    for port_now in 1001..1200 {
        live.write("a.yaml", &service("web", port_now));
        if port_now % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
    }
    live.until(|c| port(c, "web") == Some(1199)).await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_that_names_it() {
    let (sender, _events) = mpsc::channel(1);
    let error = source::start(SourceConfig::Manifests("/nonexistent/cluster".into()), sender).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("source.manifests") && text.contains("/nonexistent/cluster"), "{text}");
}

#[tokio::test]
async fn an_empty_directory_is_an_empty_cluster() {
    let mut live = Live::start(&[]).await;
    assert!(live.cluster.objects.services.is_empty());
    assert!(live.status(|s| s.synced).await.connected);
    live.write("a.yaml", &service("web", 80));
    live.until(|c| port(c, "web") == Some(80)).await;
}
