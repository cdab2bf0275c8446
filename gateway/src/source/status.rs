//! How a source is doing, told to the log and to `gateway status` alike.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use tokio::sync::watch;

/// How a source is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// `manifests` or `kubernetes`.
    pub kind: &'static str,
    /// The directory or the API server.
    pub location: String,
    /// The first snapshot was sent.
    pub synced: bool,
    /// The directory can be read and is watched; the API server answers.
    pub connected: bool,
    /// Since when it is not; since the start for a source that never was.
    #[serde(skip)]
    pub lost: Option<Instant>,
    /// What is wrong now, each naming file or object and what to do.
    pub problems: Vec<String>,
    /// When the cluster's state last changed; in JSON, seconds since 1970.
    #[serde(serialize_with = "unix_seconds")]
    pub last_change: Option<SystemTime>,
}

fn unix_seconds<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map(|d| d.as_secs_f64()).serialize(serializer)
}

/// Publishes a status and logs what comes and goes.
pub(super) struct Reporter(watch::Sender<SourceStatus>);

impl Reporter {
    pub(super) fn new(kind: &'static str, location: String) -> Self {
        let lost = Some(Instant::now());
        Self(watch::Sender::new(SourceStatus { kind, location, lost, ..SourceStatus::default() }))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<SourceStatus> {
        self.0.subscribe()
    }

    /// The cluster's state changed now.
    pub(super) fn changed(&self) {
        self.0.send_modify(|status| {
            if !status.synced {
                tracing::debug!(source = status.kind, location = %status.location, "the cluster's state is complete");
            }
            status.synced = true;
            status.last_change = Some(SystemTime::now());
        });
    }

    /// Whether it is connected and everything that is wrong; what was said before is not logged again.
    pub(super) fn report(&self, connected: bool, problems: Vec<String>) {
        self.0.send_if_modified(|status| {
            for problem in problems.iter().filter(|p| !status.problems.contains(p)) {
                tracing::warn!(source = status.kind, "{problem}");
            }
            for problem in status.problems.iter().filter(|p| !problems.contains(p)) {
                tracing::info!(source = status.kind, "no longer: {problem}");
            }
            let modified = status.connected != connected || status.problems != problems;
            status.lost = match (connected, status.lost) {
                (true, _) => None,
                (false, lost) => lost.or_else(|| Some(Instant::now())),
            };
            status.connected = connected;
            status.problems = problems;
            modified
        });
    }
}
