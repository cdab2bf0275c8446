//! A stand-in for an API server, for clusters of a size that would take a real one minutes to be filled with: it lists in pages, watches
//! from a version, and sends objects as they were given to it. It knows when its last page was sent, and when a change was.

use std::{
    collections::{BTreeMap, HashMap},
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    http::{StatusCode, Uri},
    response::{IntoResponse as _, Response},
    serve::ListenerExt as _,
};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Namespace and name.
type Key = (String, String);

/// One kind's objects, as JSON text, and what became of them.
#[derive(Default)]
struct Kind {
    objects: BTreeMap<Key, Arc<str>>,
    /// Version and line of each change, oldest first.
    log: Vec<(u64, Arc<str>)>,
}

#[derive(Default)]
struct World {
    version: u64,
    kinds: HashMap<&'static str, Kind>,
    /// When the last page of a list was handed to the network.
    listed: Option<Instant>,
    /// Bytes of lists.
    bytes: usize,
}

/// See the module.
#[derive(Clone)]
pub struct Api {
    world: Arc<Mutex<World>>,
    /// The version of the world.
    changed: watch::Sender<u64>,
}

/// What is watched, with its API version and kind.
const KINDS: [(&str, &str, &str); 5] = [
    ("services", "v1", "Service"),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("namespaces", "v1", "Namespace"),
    ("nodes", "v1", "Node"),
    ("servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
];

impl Api {
    /// An empty one.
    pub fn new() -> Self {
        let world = World { version: 1, ..World::default() };
        Self { world: Arc::new(Mutex::new(world)), changed: watch::Sender::new(1) }
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates or changes an object. Says when the watchers were told.
    pub fn put(&self, plural: &'static str, mut object: Value) -> Instant {
        let text = |object: &Value, field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (text(&object, "namespace"), text(&object, "name"));
        let mut world = self.lock();
        world.version += 1;
        let version = world.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let body: Arc<str> = object.to_string().into();
        let kind = world.kinds.entry(plural).or_default();
        let known = kind.objects.insert(key, body.clone()).is_some();
        let what = if known { "MODIFIED" } else { "ADDED" };
        kind.log.push((version, format!("{{\"type\":\"{what}\",\"object\":{body}}}\n").into()));
        drop(world);
        let now = Instant::now();
        self.changed.send_replace(version);
        now
    }

    /// What was changed so far is what lists say; watches begin behind it.
    pub fn forget_history(&self) {
        for kind in self.lock().kinds.values_mut() {
            kind.log = Vec::new();
        }
    }

    /// When the last page was sent, and how many bytes all lists had.
    pub fn listed(&self) -> (Option<Instant>, usize) {
        let world = self.lock();
        (world.listed, world.bytes)
    }

    /// Serves on this socket, until the runtime ends.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn serve(&self, runtime: &tokio::runtime::Runtime, socket: TcpListener) -> Result<()> {
        socket.set_nonblocking(true)?;
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(socket).context("the stand-in API server's socket")?;
        // As the real one: without, a second event within 40 ms waits for the acknowledgement of the first.
        let listener = listener.tap_io(|stream| {
            let _refused = stream.set_nodelay(true);
        });
        let router = Router::new().fallback(answer).with_state(self.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(())
    }
}

async fn answer(State(api): State<Api>, Query(query): Query<HashMap<String, String>>, uri: Uri) -> Response {
    let plural = uri.path().rsplit('/').next().unwrap_or_default();
    let Some((plural, version, kind)) = KINDS.into_iter().find(|(known, ..)| *known == plural) else {
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404});
        return (StatusCode::NOT_FOUND, json_type(), status.to_string()).into_response();
    };
    if query.get("sendInitialEvents").is_some_and(|wanted| wanted == "true") {
        // As a server without streaming lists: the agent pages through the list instead.
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422,
            "message": "sendInitialEvents is forbidden for watch",
        });
        return (StatusCode::UNPROCESSABLE_ENTITY, json_type(), status.to_string()).into_response();
    }
    if query.get("watch").is_some_and(|watch| watch == "true") {
        return api.watch(plural, &query);
    }
    api.list(plural, version, kind, &query)
}

const fn json_type() -> [(&'static str, &'static str); 1] {
    [("content-type", "application/json")]
}

impl Api {
    fn list(&self, plural: &'static str, api: &str, kind: &str, query: &HashMap<String, String>) -> Response {
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let from: usize = query.get("continue").and_then(|at| at.parse().ok()).unwrap_or(0);
        let mut world = self.lock();
        let version = world.version;
        let objects = &world.kinds.entry(plural).or_default().objects;
        let items: Vec<&str> = objects.values().skip(from).take(limit).map(|text| &**text).collect();
        let next = from + items.len();
        let more = if next < objects.len() { next.to_string() } else { String::new() };
        let body = format!(
            "{{\"kind\":\"{kind}List\",\"apiVersion\":\"{api}\",\"metadata\":{{\"resourceVersion\":\"{version}\",\"continue\":\"{more}\"}},\
             \"items\":[{}]}}",
            items.join(",")
        );
        world.bytes += body.len();
        drop(world);
        // Handed over when the network asks for it.
        let api = self.clone();
        let once = stream::once(async move {
            api.lock().listed = Some(Instant::now());
            Ok::<_, std::convert::Infallible>(body)
        });
        (json_type(), Body::from_stream(once)).into_response()
    }

    fn watch(&self, plural: &'static str, query: &HashMap<String, String>) -> Response {
        let from: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let steps = stream::unfold(
            (self.clone(), self.changed.subscribe(), from),
            move |(api, mut changed, from)| async move {
                loop {
                    changed.borrow_and_update();
                    let (lines, last) = {
                        let mut world = api.lock();
                        let log = &world.kinds.entry(plural).or_default().log;
                        let first = log.partition_point(|(version, _)| *version <= from);
                        let lines: String = log[first..].iter().map(|(_, line)| &**line).collect();
                        (lines, log.last().map_or(from, |(version, _)| (*version).max(from)))
                    };
                    if !lines.is_empty() {
                        return Some((Ok::<_, std::convert::Infallible>(lines), (api, changed, last)));
                    }
                    changed.changed().await.ok()?;
                }
            },
        );
        (json_type(), Body::from_stream(steps)).into_response()
    }
}
