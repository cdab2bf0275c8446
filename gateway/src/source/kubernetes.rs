//! The Kubernetes API: a watcher for each kind, gathered into one stream of events.
//!
//! The initial lists become one snapshot. A watch that has to list anew (410 Gone) tells the difference to what was known when the
//! new list is complete: there is no moment without a cluster.

mod access;
mod feedback;
mod gather;
mod layer;
mod proxy;
#[cfg(test)]
mod tests;
mod watch;

use std::path::PathBuf;

use kube::{
    client::ClientBuilder,
    config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::{sync::mpsc, task::JoinSet};

use self::{gather::Gatherer, layer::Observe};
use super::{Extra, SourceError, SourceHandle, status::Reporter};
use crate::model::Event;

/// Messages taken at once: what piled up becomes one batch, so that a Service with many changes is planned once.
const BATCH: usize = 4096;

pub(super) use self::access::access;
pub use self::feedback::{Feedback, Figures};

pub(super) async fn start(
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    extra: Extra,
    events: mpsc::Sender<Vec<Event>>,
) -> Result<SourceHandle, SourceError> {
    let mut config = configuration(kubeconfig, context).await?;
    // A server that is gone without a word is noticed by this: a watch is asked for anew before it elapses.
    config.read_timeout = Some(watch::WATCH_TIMEOUT + std::time::Duration::from_secs(15));
    let server = config.cluster_url.to_string();
    let (messages, told) = mpsc::unbounded_channel();
    let program = program(&config);
    let client = ClientBuilder::try_from(config)
        .map_err(|error| SourceError::Client { server: server.clone(), program, error: Box::new(error) })?
        .with_layer(&Observe::new(messages.clone()))
        .build();
    let mut watchers = JoinSet::new();
    watch::all(&client, extra, &messages, &mut watchers);
    let reporter = Reporter::new("kubernetes", server);
    let status = reporter.subscribe();
    let task = tokio::spawn(async move {
        run(Gatherer::new(extra), told, events, reporter).await;
        // Their end is the end of the source.
        drop(watchers);
    });
    Ok(SourceHandle { status, task })
}

/// The program that tells the credentials, when the kubeconfig names one.
fn program(config: &Config) -> Option<String> {
    config.auth_info.exec.as_ref()?.command.clone()
}

async fn configuration(kubeconfig: Option<PathBuf>, context: Option<String>) -> Result<Config, SourceError> {
    if kubeconfig.is_none() && context.is_none() {
        return Config::incluster().map_err(|error| SourceError::InCluster(Box::new(error)));
    }
    let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
    let read = match &kubeconfig {
        Some(path) => match Kubeconfig::read_from(path) {
            Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
            Err(error) => Err(error),
        },
        None => Config::from_kubeconfig(&options).await,
    };
    let mut config = read.map_err(|error: KubeconfigError| {
        let path = kubeconfig.map_or_else(|| "$KUBECONFIG or ~/.kube/config".into(), |p| p.display().to_string());
        SourceError::Kubeconfig { path, context, error: Box::new(error) }
    })?;
    proxy::heed_no_proxy(&mut config);
    Ok(config)
}

async fn run(
    mut gatherer: Gatherer,
    mut told: mpsc::UnboundedReceiver<watch::Message>,
    events: mpsc::Sender<Vec<Event>>,
    reporter: Reporter,
) {
    let mut messages = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            () = events.closed() => return,
            count = told.recv_many(&mut messages, BATCH) => if count == 0 { return },
        }
        let batch = gatherer.take(messages.drain(..));
        // Before the events: who receives them may want to know why they are not all that there could be.
        if let Some((connected, problems)) = gatherer.news() {
            reporter.report(connected, problems);
        }
        if !batch.is_empty() {
            if events.send(batch).await.is_err() {
                return;
            }
            reporter.changed();
        }
    }
}
