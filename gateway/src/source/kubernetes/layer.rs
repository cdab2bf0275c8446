//! Sees the API server's answers go by. A watch that was broken and is well again says nothing until an object changes,
//! so the answer's head is the only news that the connection is well.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use kube::client::Body;
use tokio::sync::mpsc;
use tower::{Layer, Service};

use super::watch::{Kind, Message, What};

/// The layer: tells each kind that the server answers.
#[derive(Clone)]
pub(super) struct Observe(pub mpsc::UnboundedSender<Message>);

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;
    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, messages: self.0.clone() }
    }
}

pub(super) struct Observed<S> {
    inner: S,
    messages: mpsc::UnboundedSender<Message>,
}

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kind = Kind::of_path(request.uri().path());
        let messages = self.messages.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(kind) = kind.filter(|_| answer.status().is_success()) {
                // Nobody listens any more: the source is being stopped.
                let _ = messages.send(Message { kind, what: What::Answered });
            }
            Ok(answer)
        })
    }
}
