//! Queries that the kernel answered, on their way into the query log.

use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{dns::ResolverHandle, kernel::Queries};

/// Queries taken at a time, before others have their turn.
const BATCH: usize = 512;

/// The task that carries them.
pub(super) struct Carrier {
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Carrier {
    /// Starts it.
    pub fn start(queries: Queries, resolver: ResolverHandle) -> Self {
        let end = CancellationToken::new();
        let task = tokio::spawn(carry(queries, resolver, end.clone()));
        Self { end, task }
    }

    /// Ends it, when what is there has been carried.
    pub async fn stop(self) {
        self.end.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the query log of the kernel ended badly");
        }
    }
}

async fn carry(queries: Queries, resolver: ResolverHandle, end: CancellationToken) {
    // SAFETY: the ring owns its descriptor, and nothing replaces or closes it while it lives.
    let mut queries = match unsafe { AsyncFd::register_with_interest(queries, Interest::READABLE) } {
        Ok(queries) => queries,
        Err(error) => {
            tracing::error!(%error, "dns.log: what the kernel answers is not logged: its ring cannot be waited for");
            return;
        }
    };
    loop {
        let mut ready = tokio::select! {
            ready = queries.readable_mut() => match ready {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "dns.log: what the kernel answers is not logged any more");
                    return;
                }
            },
            () = end.cancelled() => break,
        };
        // First, so that what comes while the ring is being emptied wakes again.
        ready.clear_ready();
        while ready.get_inner_mut().drain(BATCH, |asked| resolver.log_kernel(asked)) == BATCH {
            tokio::task::yield_now().await;
        }
    }
    while queries.get_mut().drain(BATCH, |asked| resolver.log_kernel(asked)) == BATCH {}
}
