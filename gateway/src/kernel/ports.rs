//! Services and their ports as they stand in the maps.

use std::net::IpAddr;

use gateway_common::maps::Service;

use super::places::Range;
use crate::{
    model::Protocol,
    plan::{self, Frontend},
};

/// VIP, port and protocol.
pub(super) type Key = (IpAddr, u16, Protocol);

/// A Service port as it stands in the maps.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) id: u32,
    pub(super) frontend: Frontend,
    pub(super) slots: Range,
    /// Indices of its endpoints, in the frontend's order: those for new flows, then those that drain.
    pub(super) indices: Box<[u32]>,
    pub(super) value: Service,
}

impl Port {
    pub(super) fn key(&self) -> Key {
        key(&self.frontend)
    }

    /// Its endpoints and their indices.
    pub(super) fn places(&self) -> impl Iterator<Item = (plan::Endpoint, u32)> {
        let Frontend { endpoints, draining, .. } = &self.frontend;
        endpoints.iter().chain(draining.iter()).copied().zip(self.indices.iter().copied())
    }

    /// The index of one of its endpoints.
    pub(super) fn index(&self, e: &plan::Endpoint) -> Option<u32> {
        let Frontend { endpoints, draining, .. } = &self.frontend;
        let drains = || draining.binary_search(e).map(|at| endpoints.len() + at);
        self.indices.get(endpoints.binary_search(e).or_else(|_| drains()).ok()?).copied()
    }
}

pub(super) fn key(frontend: &Frontend) -> Key {
    (frontend.vip, frontend.port, frontend.protocol)
}

/// Whether a frontend has an endpoint, for new flows or old ones.
pub(super) fn has(frontend: &Frontend, e: &plan::Endpoint) -> bool {
    frontend.endpoints.binary_search(e).is_ok() || frontend.draining.binary_search(e).is_ok()
}

/// A Service as it stands in the maps.
#[derive(Debug, Default)]
pub(super) struct Installed {
    pub(super) vips: Box<[IpAddr]>,
    pub(super) ports: Box<[Port]>,
}
