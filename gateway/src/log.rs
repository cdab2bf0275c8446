//! The log: stderr, one line an event.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts it with the filter of key `log`; `RUST_LOG` wins. Does nothing when a log is there already.
pub fn init(filter: &str) {
    let filter = std::env::var("RUST_LOG").ok().filter(|given| !given.is_empty()).unwrap_or_else(|| filter.to_owned());
    let _already_there = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}
