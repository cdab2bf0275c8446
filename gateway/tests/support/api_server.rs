//! A Kubernetes API server by script: it lists in pages, watches from a version, forgets versions, refuses and vanishes as told.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    http::{StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// How a forgotten version is told.
#[derive(Clone, Copy)]
pub enum Gone {
    /// An ERROR event in a watch that was accepted.
    Event,
    /// The status of the answer to the watch.
    Answer,
}

/// What a server makes of `sendInitialEvents`.
#[derive(Clone, Copy, Default)]
pub enum Streams {
    /// It streams the list.
    #[default]
    Known,
    /// It refuses the parameter.
    Refused,
}

#[derive(Default)]
struct Kind {
    objects: BTreeMap<(String, String), Value>,
    /// Version, type and object of each change since `oldest`.
    log: Vec<(u64, &'static str, Value)>,
    oldest: u64,
    gone: Option<Gone>,
    refused: Option<u16>,
    lists: usize,
    watches: usize,
    /// Its watches end as soon as they have begun.
    ends: bool,
}

#[derive(Default)]
struct World {
    version: u64,
    kinds: HashMap<String, Kind>,
    /// Watches end and new ones wait.
    paused: bool,
    /// Watches of an earlier generation end.
    generation: u64,
    /// Connections that were kept alive get errors.
    stopped: bool,
    /// What becomes of a watch that asks for a list at its beginning.
    streams: Streams,
}

impl World {
    fn kind(&mut self, plural: &str) -> &mut Kind {
        self.kinds.entry(plural.into()).or_default()
    }
}

#[derive(Clone)]
struct Shared {
    world: Arc<Mutex<World>>,
    /// Sent to when the world changed.
    changed: watch::Sender<()>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panics while it holds the world")
    }
}

pub struct ApiServer {
    shared: Shared,
    address: SocketAddr,
    task: Option<JoinHandle<()>>,
}

impl ApiServer {
    pub async fn start() -> Self {
        let shared = Shared { world: Arc::default(), changed: watch::Sender::new(()) };
        shared.lock().version = 1;
        let mut server = Self { shared, address: ([127, 0, 0, 1], 0).into(), task: None };
        server.again().await;
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates or changes an object; its version is the server's to give.
    pub fn put(&self, plural: &str, mut object: Value) {
        let mut world = self.shared.lock();
        world.version += 1;
        let version = world.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let kind = world.kind(plural);
        let known = kind.objects.insert(key(&object), object.clone()).is_some();
        kind.log.push((version, if known { "MODIFIED" } else { "ADDED" }, object));
        self.tell(world);
    }

    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut world = self.shared.lock();
        world.version += 1;
        let version = world.version;
        let kind = world.kind(plural);
        let mut object = kind.objects.remove(&(namespace.into(), name.into())).expect("the object is there");
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        kind.log.push((version, "DELETED", object));
        self.tell(world);
    }

    /// The history of a kind is lost: a watch from before now is told so.
    pub fn forget(&self, plural: &str, gone: Gone) {
        let mut world = self.shared.lock();
        world.version += 1;
        let version = world.version;
        let kind = world.kind(plural);
        kind.log.clear();
        (kind.oldest, kind.gone) = (version, Some(gone));
        self.tell(world);
    }

    /// Ends every watch; new requests wait.
    pub fn pause(&self) {
        let mut world = self.shared.lock();
        world.paused = true;
        world.generation += 1;
        self.tell(world);
    }

    pub fn resume(&self) {
        let mut world = self.shared.lock();
        world.paused = false;
        self.tell(world);
    }

    /// Answers requests for a kind with this status.
    pub fn refuse(&self, plural: &str, status: u16) {
        self.shared.lock().kind(plural).refused = Some(status);
    }

    pub fn allow(&self, plural: &str) {
        self.shared.lock().kind(plural).refused = None;
    }

    /// Whether lists are streamed.
    pub fn streams(&self, streams: Streams) {
        self.shared.lock().streams = streams;
    }

    /// Whether watches of a kind end as soon as they have begun.
    pub fn end_watches(&self, plural: &str, ends: bool) {
        let mut world = self.shared.lock();
        world.kind(plural).ends = ends;
        world.generation += 1;
        self.tell(world);
    }

    /// Watches that were asked for.
    pub fn watches(&self, plural: &str) -> usize {
        self.shared.lock().kind(plural).watches
    }

    /// Lists that were asked for, first pages only.
    pub fn lists(&self, plural: &str) -> usize {
        self.shared.lock().kind(plural).lists
    }

    /// The server is gone: its port refuses connections, and those that there were are closed.
    pub async fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // Its end is what is waited for; that it was cancelled is known.
            let _ = task.await;
        }
        let mut world = self.shared.lock();
        (world.stopped, world.generation) = (true, world.generation + 1);
        self.tell(world);
    }

    /// The server is there, on the same address as before.
    pub async fn again(&mut self) {
        self.shared.lock().stopped = false;
        let listener = TcpListener::bind(self.address).await.expect("the address is free");
        self.address = listener.local_addr().expect("a bound socket has an address");
        let router = Router::new().fallback(answer).with_state(self.shared.clone());
        self.task = Some(tokio::spawn(async move { axum::serve(listener, router).await.expect("the server serves") }));
    }

    fn tell(&self, world: MutexGuard<'_, World>) {
        drop(world);
        self.shared.changed.send_replace(());
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn key(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        422 => "Invalid",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code})
}

async fn answer(State(shared): State<Shared>, Query(query): Query<HashMap<String, String>>, uri: Uri) -> Response {
    let mut changed = shared.changed.subscribe();
    while shared.lock().paused {
        changed.changed().await.expect("the server outlives its requests");
    }
    let plural = uri.path().rsplit('/').next().unwrap_or_default().to_owned();
    let refused = {
        let mut world = shared.lock();
        if world.stopped { Some(500) } else { world.kind(&plural).refused }
    };
    if let Some(code) = refused {
        return reply(code, &status(code, &format!("{plural} is refused")));
    }
    if query.get("watch").is_some_and(|w| w == "true") {
        let from = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        {
            let mut world = shared.lock();
            let kind = world.kind(&plural);
            kind.watches += 1;
            if kind.ends {
                return ([("content-type", "application/json")], Body::empty()).into_response();
            }
        }
        if query.get("sendInitialEvents").is_some_and(|wanted| wanted == "true") {
            let initial = streamed(&shared, &plural);
            let Some((initial, from)) = initial else {
                return reply(422, &status(422, "sendInitialEvents is forbidden for watch"));
            };
            return watch_from(shared, changed, plural, from, initial);
        }
        return watch_from(shared, changed, plural, from, String::new());
    }
    list(&shared, &plural, &query)
}

fn reply(code: u16, body: &Value) -> Response {
    let code = StatusCode::from_u16(code).expect("a status code");
    (code, [("content-type", "application/json")], body.to_string()).into_response()
}

fn list(shared: &Shared, plural: &str, query: &HashMap<String, String>) -> Response {
    let limit = query.get("limit").and_then(|l| l.parse().ok()).unwrap_or(usize::MAX);
    let from: usize = query.get("continue").and_then(|c| c.parse().ok()).unwrap_or(0);
    let mut world = shared.lock();
    let version = world.version.to_string();
    let kind = world.kind(plural);
    kind.lists += usize::from(from == 0);
    let items: Vec<&Value> = kind.objects.values().skip(from).take(limit).collect();
    let next = from + items.len();
    let more = if next < kind.objects.len() { next.to_string() } else { String::new() };
    let metadata = json!({"resourceVersion": version, "continue": more});
    reply(200, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
}

/// The events that stand for a list, and the version from which the watch goes on; None: not by this server.
fn streamed(shared: &Shared, plural: &str) -> Option<(String, u64)> {
    let mut world = shared.lock();
    if matches!(world.streams, Streams::Refused) {
        return None;
    }
    let version = world.version;
    let kind = world.kind(plural);
    kind.lists += 1;
    let objects = kind.objects.values().map(|object| json!({"type": "ADDED", "object": object}));
    let end = json!({"type": "BOOKMARK", "object": {"kind": "Object", "apiVersion": "v1", "metadata": {
        "resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}}});
    Some((objects.chain([end]).map(|event| format!("{event}\n")).collect(), version))
}

fn watch_from(shared: Shared, changed: watch::Receiver<()>, plural: String, from: u64, initial: String) -> Response {
    let generation = shared.lock().generation;
    let gone = {
        let mut world = shared.lock();
        let kind = world.kind(&plural);
        kind.gone.filter(|_| from < kind.oldest)
    };
    let expired = status(410, &format!("too old resource version: {from}"));
    match gone {
        Some(Gone::Answer) => return reply(410, &expired),
        Some(Gone::Event) => {
            let event = json!({"type": "ERROR", "object": expired});
            return reply(200, &event);
        }
        None => {}
    }
    // Each step: the changes since the last one, or the wait for more; the end with the generation.
    let steps = stream::unfold((shared, changed, from), move |(shared, mut changed, from)| {
        let plural = plural.clone();
        async move {
            loop {
                changed.borrow_and_update();
                let (lines, last) = {
                    let mut world = shared.lock();
                    if world.generation != generation {
                        return None;
                    }
                    let log = &world.kind(&plural).log;
                    let news = log.iter().filter(|(version, ..)| *version > from);
                    let lines: String = news
                        .map(|(_, kind, object)| format!("{}\n", json!({"type": kind, "object": object})))
                        .collect();
                    (lines, log.last().map_or(from, |(version, ..)| *version))
                };
                if !lines.is_empty() {
                    return Some((Ok::<_, std::convert::Infallible>(lines), (shared, changed, last)));
                }
                changed.changed().await.ok()?;
            }
        }
    });
    let first = stream::iter((!initial.is_empty()).then_some(Ok(initial)));
    ([("content-type", "application/json")], Body::from_stream(first.chain(steps))).into_response()
}
