//! Where the cluster's state comes from: a directory of manifests or the Kubernetes API, behind one stream of events.
//!
//! The first batch is one [`Event::Snapshot`] of everything; after it come the changes, in batches, in order. A source that fails
//! later keeps what it told before and says so in its [`SourceStatus`]: a gateway never forgets the cluster because of a lost connection.

pub mod convert;
mod kubernetes;
mod manifests;
mod status;

use std::path::PathBuf;

use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

pub use self::{
    kubernetes::{Feedback, Figures},
    manifests::{ParseError, parse},
    status::SourceStatus,
};
use crate::model::Event;

/// Which source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A directory of manifests, watched.
    Manifests(PathBuf),
    /// The Kubernetes API. In-cluster when both are `None`.
    Kubernetes {
        /// Path of a kubeconfig; `None` with a context: `$KUBECONFIG` or `~/.kube/config`.
        kubeconfig: Option<PathBuf>,
        /// A context of it; `None`: its current one.
        context: Option<String>,
        /// What is wanted beside what always is.
        extra: Extra,
    },
}

/// Kinds that are listed and watched only where the config needs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// ServiceCIDR objects.
    pub service_cidrs: ServiceCidrs,
    /// Pods: for `dns.pods: verified`.
    pub pods: bool,
}

/// What the API server's service CIDRs are wanted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceCidrs {
    /// Nothing: the config gives them.
    #[default]
    Given,
    /// Told when there are any.
    Wanted,
    /// There is no snapshot without them, unless the API server has no such kind.
    Required,
}

/// What an identity may do at an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The server's URL.
    pub server: String,
    /// Its version, like `v1.34.4`, or that it does not tell this identity.
    pub version: String,
    /// What it may not and should.
    pub denied: Vec<Denied>,
    /// What it cannot say back to the cluster for want of a right, in words; nobody has to let it.
    pub silent: Vec<String>,
}

/// A permission that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// `list` or `watch`.
    pub verb: &'static str,
    /// Plural, as in a ClusterRole.
    pub resource: &'static str,
    /// API group, empty for the core.
    pub group: &'static str,
    /// Without it there is nothing to serve.
    pub required: bool,
}

/// Asks the API server for what the gateway's identity may do, by `SelfSubjectAccessReview`; with `status`, whether it may say anything back, too.
///
/// # Errors
/// When there is no usable configuration, or the API server does not answer.
pub async fn access(
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    extra: Extra,
    status: bool,
) -> Result<Access, SourceError> {
    kubernetes::access(kubeconfig, context, extra, status).await
}

/// Why a source cannot start.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The manifest directory cannot be read.
    #[error("source.manifests: cannot read directory {}: {error}; create it, or name another one", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The kubeconfig is missing or wrong.
    #[error(
        "source.kubernetes: kubeconfig {path}{}: {}; check the file and the context's name",
        context.as_ref().map(|c| format!(", context {c}")).unwrap_or_default(),
        first_line(error)
    )]
    Kubeconfig {
        /// The file, or where it was looked for.
        path: String,
        /// The context, when one was named.
        context: Option<String>,
        /// Why.
        error: Box<kube::config::KubeconfigError>,
    },
    /// Not in a cluster.
    #[error("source.kubernetes: no in-cluster configuration: {0}; outside a cluster, name a kubeconfig")]
    InCluster(#[from] Box<kube::config::InClusterError>),
    /// The API server does not answer, or not what was asked.
    #[error("source.kubernetes: API server {server}: {error}; check its address, the network and the credentials")]
    Silent {
        /// The server's URL.
        server: String,
        /// Why.
        error: String,
    },
    /// The client cannot be built from the configuration.
    #[error(
        "source.kubernetes: no client for API server {server}: {}{error}; check the certificates and the credentials",
        program.as_ref().map(|program| format!("credentials by program {program}: ")).unwrap_or_default()
    )]
    Client {
        /// The server's URL.
        server: String,
        /// The program that is to tell the credentials, when it is one.
        program: Option<String>,
        /// Why.
        error: Box<kube::Error>,
    },
}

/// A parser's message without its picture of the place: an error is one line.
fn first_line(error: &impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// A running source. It stops when this is dropped, or when nobody receives its events any more.
#[derive(Debug)]
pub struct SourceHandle {
    status: watch::Receiver<SourceStatus>,
    task: JoinHandle<()>,
}

impl SourceHandle {
    /// How it is doing, now and at every change.
    pub fn status(&self) -> watch::Receiver<SourceStatus> {
        self.status.clone()
    }
}

impl Drop for SourceHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a source. Manifests are read before this returns, so that their snapshot is the first batch at once; from Kubernetes it comes
/// when every initial list is complete.
///
/// # Errors
/// When there is nothing to start from: no such directory, no usable kubeconfig. An API server that does not answer is no error
/// but a state, see [`SourceStatus::connected`].
pub async fn start(config: SourceConfig, events: mpsc::Sender<Vec<Event>>) -> Result<SourceHandle, SourceError> {
    match config {
        SourceConfig::Manifests(path) => manifests::start(path, events).await,
        SourceConfig::Kubernetes { kubeconfig, context, extra } => {
            kubernetes::start(kubeconfig, context, extra, events).await
        }
    }
}
