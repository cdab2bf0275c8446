//! The agent: joins the rooms. One task owns the cluster's state and everything that follows from it.
//!
//! Start: source's first snapshot → plans → maps sized and filled → forwarder listening → programs attached → ready. What can
//! fail for a wrong config fails before anything is attached. After that nothing that the cluster says ends the agent.

mod alone;
mod datapath;
mod families;
mod memory;
mod names;
mod owner;
mod queries;
mod reload;
mod state;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{config::Config, http, kernel::Mode, node};
use alone::Alone;
use owner::Owner;
use reload::Reload;
use state::State;

/// Runs until SIGTERM or SIGINT. `path` is the config's file, for people.
///
/// # Errors
/// What keeps it from starting, or what it could not take off when it ended.
pub async fn run(config: Config, path: PathBuf) -> Result<()> {
    let mut end = End::new()?;
    let state = Arc::new(State::new(config, path));
    let mut reload = Reload::new(state.clone())?;
    let server = http::Server::start(state.config.http, state.clone()).await?;
    let _alone = if state.config.datapath.mode == Mode::Off { None } else { Some(Alone::take()?) };
    let mut owner = tokio::select! {
        biased;
        name = end.signalled() => {
            tracing::info!("{name} before the agent was ready");
            return Ok(());
        }
        owner = Owner::start(state.clone()) => owner?,
    };
    tracing::info!(
        interfaces = %state.interfaces(),
        dns = %list(&state.listen()),
        http = %server.address(),
        services = state.services(),
        "ready"
    );
    tokio::select! {
        name = end.signalled() => match &state.config.datapath.pin {
            None => tracing::info!("{name}: taking the gateway off this node"),
            Some(pin) => tracing::info!(pin = %pin.display(), "{name}: the datapath goes on; `gateway detach` takes it off"),
        },
        () = owner.serve(&mut reload) => {}
    }
    owner.stop().await
}

/// Takes everything of an agent that is not running any more off this node.
///
/// # Errors
/// What could not be taken off.
pub fn detach(config: Option<&Config>) -> Result<()> {
    datapath::detach(config.and_then(|config| config.datapath.pin.as_deref()))
}

/// The signals that end the agent.
struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl End {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("the signal handler cannot be set");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn signalled(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Where the forwarder listens: as configured, or on the uplinks' addresses that can be bound now.
fn listen(config: &Config) -> Vec<SocketAddr> {
    if !config.dns.listen.is_empty() {
        return config.dns.listen.clone();
    }
    let mut found = Vec::new();
    for ip in node::uplink_addresses(&config.uplinks) {
        // An IPv6 address whose uniqueness is still being tested cannot be bound; a gateway must not fail for it.
        match std::net::UdpSocket::bind(SocketAddr::new(ip, 0)) {
            Ok(_) => found.push(SocketAddr::new(ip, 53)),
            Err(error) => tracing::warn!(%ip, %error, "the forwarder does not listen on this address of the uplink"),
        }
    }
    found
}

/// Where clients reach those listeners: behind a wildcard stand the uplinks' addresses.
fn reachable(config: &Config, listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let uplinks = node::uplink_addresses(&config.uplinks);
    let one = |address: &SocketAddr| match address.ip().is_unspecified() {
        true => uplinks.iter().map(|ip| SocketAddr::new(*ip, address.port())).collect(),
        false => vec![*address],
    };
    listen.iter().flat_map(one).collect()
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
