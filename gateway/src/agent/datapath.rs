//! The kernel room as the agent uses it, or nothing with `datapath.mode: off`.

use std::sync::Arc;

use anyhow::Result;
use ipnet::IpNet;

use crate::{
    config::Config,
    dns::{AnswerStore, NoStore},
    kernel::{Attachment, Counters, FlowInfo, Mode, Sizes},
    model::ObjectName,
    plan::ServicePlan,
};

/// See the module.
pub(super) struct Datapath {}

impl Datapath {
    /// Loads programs and maps; nothing is attached yet.
    pub fn load(config: &Config, sizes: Sizes, cidrs: &[IpNet]) -> Result<Self> {
        if config.datapath.mode != Mode::Off {
            anyhow::bail!("datapath.mode: only `off` is joined yet");
        }
        let _ = (sizes, cidrs);
        Ok(Self {})
    }

    /// The kernel's answers.
    pub fn answers(&self) -> Arc<dyn AnswerStore> {
        Arc::new(NoStore)
    }

    /// Replaces what a Service is to the datapath; `None`: it is gone.
    pub async fn apply(&self, _name: &ObjectName, _plan: Option<&ServicePlan>) -> Result<(), String> {
        Ok(())
    }

    /// Replaces the claimed prefixes.
    pub async fn set_claims(&self, _cidrs: &[IpNet]) -> Result<(), String> {
        Ok(())
    }

    /// Attaches: from now on packets are served.
    pub async fn attach(&self) -> Result<()> {
        Ok(())
    }

    /// Takes everything off, unless it is pinned.
    pub async fn stop(&self) -> Result<()> {
        Ok(())
    }

    /// Packets by reason. Like the other readers, only for threads that may block.
    pub fn counters(&self) -> Counters {
        Counters::new()
    }

    /// At most `limit` flows.
    pub fn flows(&self, _limit: usize) -> Vec<FlowInfo> {
        Vec::new()
    }

    /// Flows now.
    pub fn flow_count(&self) -> usize {
        0
    }

    /// Attached interfaces.
    pub fn attachments(&self) -> Vec<Attachment> {
        Vec::new()
    }
}

/// Takes everything off this node that a dead agent left.
pub(super) fn detach(_pin: Option<&std::path::Path>) -> Result<()> {
    Ok(())
}
