//! The same cluster in a real API server, with etcd behind it, on the same machine: what its streams, its TLS and its share of the
//! processors add. Slower to fill than the stand-in, and it does not tell when an event left it: times begin when it has told the writer
//! that the change is made, so that they hold its own way from etcd to its watchers as well.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use axum::http::Request;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use gateway_lab::{Lab, Topology, cluster::Cluster};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc as queue;

use super::{
    BUSY, REST,
    probe::{Memory, Services, Times, cpu},
    route_pods, start, stop, to_map,
    world::{self, Size},
};

/// Requests that fill the API server at one time.
const AT_ONCE: usize = 64;
/// For how long a loaded API server may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was measured.
pub struct Figures {
    /// From the agent's start until it was ready, in seconds.
    pub start: f64,
    pub memory: Memory,
    /// From the API server's answer to the writer to the kernel's map.
    pub rest: Times,
    pub busy: Times,
    /// Share of one CPU at 100 changes a second.
    pub busy_cpu: f64,
}

/// A change on its way to the API server, and where its time is told.
type Job = (Value, mpsc::Sender<Result<Instant>>);

/// Fills an API server and starts an agent on it.
///
/// # Errors
/// When a part does not start, or a change never arrived.
pub fn measure(size: Size) -> Result<Figures> {
    let lab = Lab::build(Topology::with_pods(&[]))?;
    route_pods(&lab)?;
    let cluster = Cluster::start(&lab)?;
    // Slices are what this file says.
    cluster.kill_controllers();
    let began = Instant::now();
    eprintln!("filling the API server with {} Services", size.services);
    cluster.api(async |client| fill(&client, size).await)?;
    eprintln!("filled in {:.0} s", began.elapsed().as_secs_f64());

    let began = Instant::now();
    let agent = start(&lab, &cluster.admin_from_outside()?)?;
    let ready = began.elapsed().as_secs_f64();
    let pid = agent.pid();
    std::thread::sleep(Duration::from_secs(3));
    let memory = Memory::of(pid)?;
    let maps = Services::of(pid)?;
    let mut turns = vec![0; size.services as usize];
    let (jobs, mut todo) = queue::unbounded_channel::<Job>();
    let (rest, busy, busy_cpu) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            cluster.api(async |client| {
                while let Some((slice, told)) = todo.recv().await {
                    // Nobody listens any more only when the measurement has failed.
                    let _ = told.send(patch(&client, &slice).await);
                }
                Ok(())
            })
        });
        let figures = (|| {
            let put = |slice: Value| {
                let (told, time) = mpsc::channel();
                jobs.send((slice, told)).map_err(|_| anyhow!("the writer has ended"))?;
                time.recv_timeout(PATIENCE).context("the API server does not answer a writer")?
            };
            let rest = to_map(&put, &maps, &mut turns, REST)?;
            let (before, began) = (cpu(pid)?, Instant::now());
            let busy = to_map(&put, &maps, &mut turns, BUSY)?;
            let share = (cpu(pid)? - before).as_secs_f64() / began.elapsed().as_secs_f64();
            Ok::<_, anyhow::Error>((rest, busy, share))
        })();
        drop(jobs);
        writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        figures
    })?;
    stop(agent, &lab)?;
    Ok(Figures { start: ready, memory, rest, busy, busy_cpu })
}

/// Creates every object of the large cluster, namespaces and nodes first.
async fn fill(client: &Client, size: Size) -> Result<()> {
    let (first, rest): (Vec<_>, Vec<_>) =
        world::objects(size).partition(|(plural, _)| ["namespaces", "nodes"].contains(plural));
    for objects in [first, rest] {
        stream::iter(objects)
            .map(|(plural, object)| async move { create(client, plural, object).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
    }
    Ok(())
}

/// The path of a kind's objects in a namespace.
fn path(plural: &str, namespace: Option<&str>) -> String {
    let group = match plural {
        "endpointslices" => "/apis/discovery.k8s.io/v1",
        _ => "/api/v1",
    };
    match namespace {
        Some(namespace) => format!("{group}/namespaces/{namespace}/{plural}"),
        None => format!("{group}/{plural}"),
    }
}

async fn create(client: &Client, plural: &'static str, mut object: Value) -> Result<()> {
    // It has one already.
    if plural == "servicecidrs" {
        return Ok(());
    }
    // What the API server writes itself.
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&key.as_str()));
    }
    let path = path(plural, object["metadata"]["namespace"].as_str());
    send(client, "POST", &path, "application/json", &object).await.map(drop)
}

/// Gives a slice these endpoints, and says when that was done.
async fn patch(client: &Client, slice: &Value) -> Result<Instant> {
    let metadata = &slice["metadata"];
    let name = metadata["name"].as_str().context("a slice without name")?;
    let path = format!("{}/{name}", path("endpointslices", metadata["namespace"].as_str()));
    let change = json!({"endpoints": slice["endpoints"]});
    send(client, "PATCH", &path, "application/merge-patch+json", &change).await?;
    Ok(Instant::now())
}

async fn send(client: &Client, method: &str, path: &str, content: &str, body: &Value) -> Result<()> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content)
        .body(body.to_string().into_bytes())?;
    let answer: Value = client.request(request).await.with_context(|| format!("{method} {path}"))?;
    ensure!(answer["metadata"]["resourceVersion"].is_string(), "{method} {path}: {answer}");
    Ok(())
}
