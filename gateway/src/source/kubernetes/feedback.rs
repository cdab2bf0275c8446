//! What the gateway says back to the cluster: a Lease of its own, and Events on Services that cannot be served. Both are for people and
//! their tools; nothing here holds up the datapath, and without permission there is silence.

mod desk;
mod events;
mod lease;
mod rights;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::Client;
use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::desk::Desk;
pub(super) use self::rights::{EVENTS, LEASE};
use super::super::SourceError;
use crate::model::ObjectName;

/// How long one answer of the API server is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// The namespace of Leases outside a cluster.
const NAMESPACE: &str = "gateway-system";

/// What was said, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The Lease is held.
    pub lease: bool,
    /// Events written, repetitions included.
    pub written: u64,
    /// Events that the API server did not take.
    pub failed: u64,
    /// Problems beyond what is told at a time.
    pub left_out: u64,
}

/// What the tasks share with whoever has something to say.
struct Shared {
    desk: Mutex<Desk>,
    /// Something was put on the desk.
    news: Notify,
    node: watch::Sender<Option<String>>,
    figures: Mutex<Figures>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.lock());
    }

    fn figures(&self) -> Figures {
        *self.lock()
    }
}

/// A running voice. It falls silent when this is dropped.
pub struct Feedback {
    shared: Arc<Shared>,
    stop: CancellationToken,
    lease: Mutex<Option<JoinHandle<()>>>,
    /// Ends with it.
    _events: JoinSet<()>,
}

impl std::fmt::Debug for Feedback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feedback").field("figures", &self.figures()).finish_non_exhaustive()
    }
}

impl Drop for Feedback {
    fn drop(&mut self) {
        if let Some(lease) = self.take_lease() {
            lease.abort();
        }
    }
}

impl Feedback {
    /// Starts with the source's own configuration. There is no Lease before [`Feedback::place`].
    ///
    /// # Errors
    /// As the source's: no usable configuration. An API server that is away is none.
    pub async fn start(kubeconfig: Option<PathBuf>, context: Option<String>) -> Result<Self, SourceError> {
        let outside = kubeconfig.is_some() || context.is_some();
        let mut config = super::configuration(kubeconfig, context).await?;
        (config.connect_timeout, config.read_timeout) = (Some(PATIENCE), Some(PATIENCE));
        let namespace = namespace(outside, &config.default_namespace);
        let (server, program) = (config.cluster_url.to_string(), super::program(&config));
        // Not the source's: that one takes every answer for one to a watch.
        let client = Client::try_from(config).map_err(|error| SourceError::Client {
            server,
            program,
            error: Box::new(error),
        })?;
        let shared = Arc::new(Shared {
            desk: Mutex::default(),
            news: Notify::new(),
            node: watch::Sender::new(None),
            figures: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(events::write(client.clone(), namespace.clone(), shared.clone()));
        let stop = CancellationToken::new();
        let lease = lease::keep(client, namespace, shared.clone(), shared.node.subscribe(), stop.clone());
        Ok(Self { shared, stop, lease: Mutex::new(Some(tokio::spawn(lease))), _events: tasks })
    }

    /// The gateway serves, as this node: its Lease has that name.
    pub fn place(&self, node: Option<&str>) {
        self.shared.node.send_if_modified(|known| {
            let changed = known.as_deref() != node;
            *known = node.map(str::to_owned);
            changed
        });
    }

    /// Everything that is wrong with a Service now, as reasons (`CamelCase`) and sentences; nothing, when all is well. Does not wait.
    pub fn problems<'p>(&self, service: &ObjectName, problems: impl Iterator<Item = (&'static str, &'p str)>) {
        let mut desk = self.shared.desk.lock().unwrap_or_else(PoisonError::into_inner);
        if desk.tell(Instant::now(), service, problems) {
            self.shared.news.notify_one();
        }
    }

    /// There is no such Service any more.
    pub fn gone(&self, service: &ObjectName) {
        self.shared.desk.lock().unwrap_or_else(PoisonError::into_inner).gone(service);
    }

    /// What was said so far.
    pub fn figures(&self) -> Figures {
        let left_out = self.shared.desk.lock().unwrap_or_else(PoisonError::into_inner).left_out;
        Figures { left_out, ..self.shared.figures() }
    }

    /// Releases the Lease, if the API server lets it within two seconds; it is not held again.
    pub async fn stop(&self) {
        self.stop.cancel();
        if let Some(lease) = self.take_lease() {
            // It has its own bound, and nothing that could panic.
            let _ended = lease.await;
        }
    }

    fn take_lease(&self) -> Option<JoinHandle<()>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Where Leases are: the pod's own namespace, or outside a cluster the one that `deploy/rbac.yaml` makes. A kubeconfig's own namespace is where
/// its user works, which may be anywhere.
pub(super) fn namespace(outside: bool, own: &str) -> String {
    if outside || own.is_empty() { NAMESPACE.to_owned() } else { own.to_owned() }
}

/// Why a request failed.
#[derive(Debug)]
enum Fault {
    /// No permission.
    Denied(String),
    /// Somebody else changed it.
    Conflict,
    /// It, or its namespace, is not there.
    Missing,
    /// The API server does not take it as it is.
    Refused(String),
    /// No answer, or none of use.
    Away(String),
}

impl Fault {
    fn of(error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else { return Self::Away(super::watch::chain(error)) };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        match status.code {
            // A namespace on its way out is no matter of permission.
            403 if causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating") => Self::Missing,
            403 => Self::Denied(status.message.clone()),
            404 => Self::Missing,
            409 => Self::Conflict,
            400 | 405 | 413 | 415 | 422 => Self::Refused(status.message.clone()),
            _ => Self::Away(status.message.clone()),
        }
    }
}

/// How long to wait after so many failures: 2 s to 16 s, and a random part of it, so that not all gateways come at once.
fn backoff(failures: u32) -> Duration {
    use rand::Rng as _;
    let most = Duration::from_secs(2) * 2_u32.pow(failures.min(3));
    most.mul_f64(rand::rng().random_range(0.5..1.0))
}
