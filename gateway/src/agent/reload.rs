//! The config file, read again: on SIGHUP, and when it changes. Whom names outside are asked of is taken over at once; everything else
//! is named as waiting for a restart. A config that cannot be used changes nothing and is told until it is mended.

use std::{os::unix::fs::MetadataExt as _, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Interval, MissedTickBehavior, interval},
};

use super::state::State;
use crate::config::Config;

/// How often the file is looked at. A look sees what no watch does: links that point elsewhere, as mounted config maps have them.
const LOOK: Duration = Duration::from_secs(1);

/// What tells one state of a file from the next.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// See the module.
pub(super) struct Reload {
    hangup: Signal,
    looks: Interval,
    state: Arc<State>,
    /// Of the state that was read last.
    read: Stamp,
    /// Of the last look.
    seen: Stamp,
}

impl Reload {
    /// From now on SIGHUP does not end the agent.
    ///
    /// # Errors
    /// When the system refuses the handler.
    pub fn new(state: Arc<State>) -> Result<Self> {
        let hangup = signal(SignalKind::hangup()).context("the signal handler cannot be set")?;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = stamp(&state.path);
        Ok(Self { hangup, looks, state, read: now, seen: now })
    }

    /// Waits until the file is to be read again. May be cancelled at any time.
    pub async fn wanted(&mut self) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: reading {} again", self.state.path.display());
                    if let Some(resolver) = self.state.resolver.get() {
                        resolver.reopen_log();
                    }
                    return;
                }
                _ = self.looks.tick() => {
                    if tokio::task::block_in_place(|| self.look()) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the file changed and then stayed as it was for one look: half of one that is being written is nobody's will.
    fn look(&mut self) -> bool {
        let now = stamp(&self.state.path);
        let settled = now == self.seen;
        self.seen = now;
        let changed = settled && now.is_some() && now != self.read;
        if changed {
            tracing::info!("{} changed: reading it again", self.state.path.display());
        }
        changed
    }

    /// Reads the file; `take` takes over what can be.
    pub fn read(&mut self, take: impl FnOnce(&Config) -> Result<()>) {
        self.read = stamp(&self.state.path);
        let problem = match self.apply(take) {
            Ok(waiting) if waiting.is_empty() => None,
            Ok(waiting) => {
                let keys = waiting.join(", ");
                tracing::warn!(%keys, "the config changed where only a restart takes it over");
                Some(format!("{}: changes of {keys} wait for a restart of the agent", self.state.path.display()))
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(%error, "the new config cannot be used: the last one stays");
                Some(format!("{error}: the last config stays"))
            }
        };
        self.state.change(|held| held.config = problem);
    }

    /// Takes over what can be; names the other keys that changed.
    fn apply(&self, take: impl FnOnce(&Config) -> Result<()>) -> Result<Vec<&'static str>> {
        let new = Config::load(&self.state.path)?;
        take(&new).with_context(|| self.state.path.display().to_string())?;
        Ok(changed(&self.state.config, &new))
    }
}

/// Keys that differ and are only read at start.
fn changed(old: &Config, new: &Config) -> Vec<&'static str> {
    let (a, b) = (&old.dns, &new.dns);
    let keys = [
        ("uplinks", old.uplinks == new.uplinks),
        ("clusterInterfaces", old.cluster_interfaces == new.cluster_interfaces),
        ("clients", old.views == new.views),
        ("source", old.source == new.source),
        ("serviceCIDRs", old.service_cidrs == new.service_cidrs),
        ("returnPath", old.return_path == new.return_path),
        ("snat", (&old.snat_addresses, &old.snat_ports) == (&new.snat_addresses, &new.snat_ports)),
        ("deny", old.deny == new.deny),
        ("strangers", old.strangers == new.strangers),
        ("dns.listen", a.listen == b.listen),
        ("dns.clusterDomain", a.cluster_domain == b.cluster_domain),
        ("dns.pods", a.pods == b.pods),
        ("dns.cache", a.cache == b.cache),
        ("dns.localZone", a.local_zone == b.local_zone),
        ("dns.log", a.log == b.log),
        ("dns.rateLimit", a.rate_limit == b.rate_limit),
        ("dns.limits", a.limits == b.limits),
        ("datapath", old.datapath == new.datapath),
        ("node", old.node == new.node),
        ("http", old.http == new.http),
        ("log", old.log == new.log),
    ];
    keys.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}
