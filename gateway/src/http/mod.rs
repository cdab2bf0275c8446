//! `/metrics`, `/healthz`, `/readyz` and `/api/v1/...`: what the agent tells, to programs and to its own commands.
//!
//! This room knows no other: the agent answers through [`Agent`], in the shapes of [`report`].

pub mod metrics;
pub mod report;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Json, Response},
    routing::get,
};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::kernel::{Entry, Explanation, FlowInfo, Question};

/// Flows told when the asker gives no limit.
pub const FLOWS: usize = 1_000;

/// Why the HTTP server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is taken, or not this node's.
    #[error("http: {address}: {source}: free the port, or give another address in key `http`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What the agent tells. Calls may read kernel maps and so take a while; they are made off the runtime's own threads.
pub trait Agent: Send + Sync + 'static {
    /// Whether it serves.
    fn readiness(&self) -> report::Readiness;
    /// For `gateway status`.
    fn status(&self) -> report::Status;
    /// For `gateway services`, by namespace and name.
    fn services(&self) -> Vec<report::Service>;
    /// VIPs and ports with their endpoints, read from the kernel's maps.
    fn contents(&self) -> Vec<Entry>;
    /// For `gateway flows`: at most `limit`.
    fn flows(&self, limit: usize) -> Vec<FlowInfo>;
    /// For `gateway dns`.
    fn dns(&self) -> serde_json::Value;
    /// For `gateway drops`: every reason.
    fn drops(&self) -> Vec<report::Drop>;
    /// For `gateway explain`.
    fn explain(&self, question: &Question) -> Explanation;
    /// For `/metrics`.
    fn metrics(&self) -> Vec<metrics::Family>;
}

/// The server: its address and its task.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Binds and serves. Fails before anything is attached when the port is in use.
    ///
    /// # Errors
    /// [`HttpError::Listen`] when the address cannot be bound.
    pub async fn start(address: SocketAddr, agent: Arc<dyn Agent>) -> Result<Self, HttpError> {
        let wrong = |source| HttpError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router(agent)).await {
                tracing::error!(%error, "the HTTP server ended");
            }
        });
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Shared = State<Arc<dyn Agent>>;

/// The routes.
pub fn router(agent: Arc<dyn Agent>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .route("/api/v1/status", get(|State(agent): Shared| json(agent, |agent| agent.status())))
        .route("/api/v1/services", get(|State(agent): Shared| json(agent, |agent| agent.services())))
        .route("/api/v1/maps", get(|State(agent): Shared| json(agent, |agent| agent.contents())))
        .route("/api/v1/flows", get(flows))
        .route("/api/v1/dns", get(|State(agent): Shared| json(agent, |agent| agent.dns())))
        .route("/api/v1/drops", get(|State(agent): Shared| json(agent, |agent| agent.drops())))
        .route("/api/v1/explain", get(explain))
        .with_state(agent)
}

async fn readyz(State(agent): Shared) -> Response {
    let readiness = agent.readiness();
    let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{readiness}\n")).into_response()
}

async fn metrics_text(State(agent): Shared, headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = metrics::Format::wanted(accepts);
    let text = off_thread(agent, move |agent| metrics::text(agent.metrics(), format)).await;
    match text {
        Some(Ok(text)) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        Some(Err(_)) | None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[derive(serde::Deserialize)]
struct Limit {
    limit: Option<usize>,
}

async fn flows(State(agent): Shared, Query(Limit { limit }): Query<Limit>) -> Response {
    json(agent, move |agent| agent.flows(limit.unwrap_or(FLOWS))).await
}

async fn explain(State(agent): Shared, Query(question): Query<Question>) -> Response {
    json(agent, move |agent| agent.explain(&question)).await
}

async fn json<T: serde::Serialize + Send + 'static>(
    agent: Arc<dyn Agent>,
    read: impl FnOnce(&dyn Agent) -> T + Send + 'static,
) -> Response {
    match off_thread(agent, read).await {
        Some(value) => Json(value).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// `None` when the reader panicked: the asker gets a 500, the agent goes on.
async fn off_thread<T: Send + 'static>(
    agent: Arc<dyn Agent>,
    read: impl FnOnce(&dyn Agent) -> T + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(move || read(agent.as_ref())).await.ok()
}

#[cfg(test)]
mod tests;
