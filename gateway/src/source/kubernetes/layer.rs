//! Sees the API server's answers go by. A watch that was broken and is well again says nothing until an object changes,
//! so the answer's head is the only news that the connection is well.
//!
//! And it holds back watches that follow each other too fast: where watches end as soon as they have begun, as behind a proxy whose server
//! has gone, the watcher asks again without a pause.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Request, Response};
use kube::client::Body;
use tokio::sync::mpsc;
use tower::{Layer, Service};

use super::watch::{Kind, Message, What};

/// Between the beginnings of two watches of a kind.
const BETWEEN: Duration = Duration::from_secs(1);

/// When the last watch of each kind began, or will.
type Begun = Arc<Mutex<BTreeMap<Kind, Instant>>>;

/// The layer: tells each kind that the server answers.
#[derive(Clone)]
pub(super) struct Observe {
    messages: mpsc::UnboundedSender<Message>,
    begun: Begun,
}

impl Observe {
    pub(super) fn new(messages: mpsc::UnboundedSender<Message>) -> Self {
        Self { messages, begun: Begun::default() }
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;
    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, observe: self.clone() }
    }
}

pub(super) struct Observed<S> {
    inner: S,
    observe: Observe,
}

/// How long a watch has to wait for its turn.
fn turn(begun: &Begun, kind: Kind) -> Duration {
    let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let last = begun.get(&kind).copied();
    let wait = last.map_or(Duration::ZERO, |last| (last + BETWEEN).saturating_duration_since(now));
    begun.insert(kind, now + wait);
    wait
}

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: Send,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kind = Kind::of_path(request.uri().path());
        let messages = self.observe.messages.clone();
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let wait = kind.filter(|_| watch).map(|kind| turn(&self.observe.begun, kind)).unwrap_or_default();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(kind) = kind.filter(|_| answer.status().is_success()) {
                // Nobody listens any more: the source is being stopped.
                let _ = messages.send(Message { kind, what: What::Answered });
                // An answer that is read later is an end that is seen later.
                tokio::time::sleep(wait).await;
            }
            Ok(answer)
        })
    }
}
