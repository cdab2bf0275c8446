//! The kernel room as the agent uses it, or nothing with `datapath.mode: off`.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::Result;
use ipnet::IpNet;

use crate::{
    config::Config,
    dns::{AnswerStore, NoStore},
    kernel::{Attachment, Counters, Entry, Explanation, FlowInfo, Kernel, KernelError, Mode, Queries, Question, Sizes},
    model::ObjectName,
    plan::ServicePlan,
};

/// See the module. `None`: the forwarder alone.
pub(super) struct Datapath(Option<Kernel>);

impl Datapath {
    /// Loads programs and maps; nothing is attached yet.
    pub fn load(config: &Config, sizes: Sizes, cidrs: &[IpNet], listen: &[SocketAddr]) -> Result<Self, KernelError> {
        if config.datapath.mode == Mode::Off {
            return Ok(Self(None));
        }
        Kernel::load(&config.settings(sizes, cidrs, listen)).map(|kernel| Self(Some(kernel)))
    }

    /// The kernel's answers.
    pub fn answers(&self) -> Arc<dyn AnswerStore> {
        self.0.as_ref().map_or_else(|| Arc::new(NoStore) as _, Kernel::answers)
    }

    /// Replaces what a Service is to the datapath; `None`: it is gone.
    pub fn apply(&self, name: &ObjectName, plan: Option<&ServicePlan>) -> Result<(), KernelError> {
        self.0.as_ref().map_or(Ok(()), |kernel| kernel.apply(name, plan))
    }

    /// Replaces the claimed prefixes.
    pub fn set_claims(&self, cidrs: &[IpNet]) -> Result<(), KernelError> {
        self.0.as_ref().map_or(Ok(()), |kernel| kernel.set_claims(cidrs))
    }

    /// Addresses of this node's own in a service CIDR, with that CIDR.
    pub fn spared(&self) -> Vec<(IpAddr, IpNet)> {
        self.0.as_ref().map(Kernel::spared).unwrap_or_default()
    }

    /// Attaches: from now on packets are served.
    pub fn attach(&self) -> Result<(), KernelError> {
        self.0.as_ref().map_or(Ok(()), |kernel| kernel.attach().map(drop))
    }

    /// Takes everything off.
    pub fn stop(&self) -> Result<(), KernelError> {
        self.0.as_ref().map_or(Ok(()), Kernel::detach)
    }

    /// The queries that the kernel answers; `None` when they are not logged.
    pub fn queries(&self) -> Option<Queries> {
        self.0.as_ref().and_then(Kernel::queries)
    }

    /// Packets by reason.
    pub fn counters(&self) -> Counters {
        self.0.as_ref().map(Kernel::counters).unwrap_or_default()
    }

    /// At most `limit` flows. Walks the table: only for threads that may block.
    pub fn flows(&self, limit: usize) -> Vec<FlowInfo> {
        let read = self.0.as_ref().map(|kernel| kernel.flows(limit));
        match read.unwrap_or_else(|| Ok(Vec::new())) {
            Ok(flows) => flows,
            Err(error) => {
                tracing::warn!(%error, "the flow table cannot be read");
                Vec::new()
            }
        }
    }

    /// What the maps of Services say. Walks them: only for threads that may block.
    pub fn contents(&self) -> Vec<Entry> {
        self.0.as_ref().map_or_else(|| Ok(Vec::new()), Kernel::contents).unwrap_or_else(|error| {
            tracing::warn!(%error, "the maps of Services cannot be read");
            Vec::new()
        })
    }

    /// What the datapath would do; `None` without one.
    pub fn explain(&self, question: &Question, views: &[String]) -> Option<Explanation> {
        let told = self.0.as_ref()?.explain(question, views);
        Some(told.unwrap_or_else(|error| Explanation::default().end("unknown", error.to_string())))
    }

    /// Flows at the last sweep.
    pub fn flow_count(&self) -> usize {
        self.0.as_ref().map(Kernel::flow_count).unwrap_or_default()
    }

    /// Attached interfaces.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.0.as_ref().map(Kernel::attachments).unwrap_or_default()
    }
}

/// Takes everything off this node that a dead agent left.
///
/// # Errors
/// What could not be taken off.
pub(super) fn detach(pin: Option<&Path>) -> Result<()> {
    for done in Kernel::detach_all(pin)? {
        tracing::info!("{done}");
    }
    Ok(())
}
