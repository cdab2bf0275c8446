//! What stands in for kubelets and scheduler: pods of the API get the addresses of the lab's pods, whose servers run already.
//!
//! A pod without node is bound to a free pod of the topology and told to be running and ready (unless its label [`NOT_READY`] is
//! there); one that is being deleted is let go after its grace period. Everything else (replica sets, slices, their conditions) is the
//! real controllers' work.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::topology::{self, both};

/// A pod with this label (any value) is running and not ready.
pub const NOT_READY: &str = "lab/not-ready";
const PERIOD: Duration = Duration::from_millis(100);

/// Ends with its handle.
#[derive(Debug)]
pub(super) struct Kubelet {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Begins on a thread of its own; call it inside the API server's namespace, which the thread then is in, too. `client` is called there.
    pub(super) fn start(slots: Vec<topology::Pod>, client: impl AsyncFn() -> Result<Client> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = thread::spawn(move || super::block_on(run(&slots, client, &until)));
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

async fn run(slots: &[topology::Pod], client: impl AsyncFn() -> Result<Client>, stop: &AtomicBool) {
    let Ok(client) = client().await else { return };
    let pods = Api::<Pod>::all(client.clone());
    let mut leaving = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(PERIOD).await;
        // The API server may be down: the lab does that to it.
        if let Ok(list) = pods.list(&ListParams::default()).await {
            round(&client, slots, &list.items, &mut leaving).await;
        }
    }
}

/// One look at all pods. What fails is tried again at the next.
async fn round(client: &Client, slots: &[topology::Pod], pods: &[Pod], leaving: &mut BTreeMap<String, Instant>) {
    let address = |pod: &Pod| pod.status.as_ref().and_then(|status| status.pod_ip.clone());
    let mut taken: BTreeSet<String> = pods.iter().filter_map(address).collect();
    for pod in pods {
        let meta = &pod.metadata;
        let (name, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
        let api = Api::<Pod>::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or("default"));
        if meta.deletion_timestamp.is_some() {
            let since = *leaving.entry(uid.clone()).or_insert_with(Instant::now);
            let grace = u64::try_from(meta.deletion_grace_period_seconds.unwrap_or(0)).unwrap_or(0);
            if since.elapsed() >= Duration::from_secs(grace)
                && api.delete(&name, &DeleteParams::default().grace_period(0)).await.is_ok()
            {
                leaving.remove(&uid);
            }
            continue;
        }
        if address(pod).is_none() {
            let Some(slot) = slots.iter().find(|slot| !taken.contains(&slot.address.to_string())) else { continue };
            taken.insert(slot.address.to_string());
            if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none())
                && bind(&api, &name, slot.node.name()).await.is_err()
            {
                continue;
            }
            // Tried again at the next look.
            let _ = tell(&api, pod, &name, slot).await;
        } else if ready(pod) == unready(pod) {
            let kept = address(pod);
            if let Some(slot) = slots.iter().find(|slot| Some(slot.address.to_string()) == kept) {
                let _ = tell(&api, pod, &name, slot).await;
            }
        }
    }
}

fn unready(pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(NOT_READY))
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn bind(api: &Api<Pod>, name: &str, node: &str) -> Result<()> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let _status: serde_json::Value = api.create_subresource("binding", name, &PostParams::default(), &binding).await?;
    Ok(())
}

async fn tell(api: &Api<Pod>, pod: &Pod, name: &str, slot: &topology::Pod) -> Result<()> {
    let ready = if unready(pod) { "False" } else { "True" };
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(|kind| json!({"type": kind, "status": if kind.ends_with("Ready") { ready } else { "True" }}));
    let status = json!({"status": {
        "phase": "Running", "hostIP": slot.node.address(), "podIP": slot.address, "podIPs": both(slot.address).map(|ip| json!({"ip": ip})),
        "conditions": conditions,
    }});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}
