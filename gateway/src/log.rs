//! The log: stderr, one line an event.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// What the Kubernetes client says of an API server that does not answer, the source says as well, once and with what to do.
const QUIET: &str = "kube_client=off,kube_runtime=error";

/// Starts it with the filter of key `log`; `RUST_LOG` wins. Does nothing when a log is there already.
pub fn init(filter: &str) {
    let given = std::env::var("RUST_LOG").ok().filter(|given| !given.is_empty());
    let filter = given.unwrap_or_else(|| format!("{QUIET},{filter}"));
    let _already_there = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}
