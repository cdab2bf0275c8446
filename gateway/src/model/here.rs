//! Which of the cluster's nodes the gateway runs on: what zone hints and `internalTrafficPolicy: Local` are measured by.

use std::{collections::BTreeMap, net::IpAddr};

use super::Node;

/// What the gateway knows of its own node before it has seen the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Names that the node may have, the surest first.
    pub names: Vec<String>,
    /// The node's addresses.
    pub addresses: Vec<IpAddr>,
}

/// The gateway's place in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// Name of its node.
    pub node: Option<String>,
    /// The node's zone.
    pub zone: Option<String>,
}

impl Identity {
    /// The node of one of the names, else the one with one of the addresses. A cluster that shows no such node may still speak
    /// of it in its slices: then the surest name is taken, without a zone.
    pub(super) fn find(&self, nodes: &BTreeMap<String, Node>) -> Here {
        let by_name = self.names.iter().find_map(|name| nodes.get(name));
        let by_address = || nodes.values().find(|node| node.addresses.iter().any(|a| self.addresses.contains(a)));
        match by_name.or_else(by_address) {
            Some(node) => Here { node: Some(node.name.clone()), zone: node.zone.clone().filter(|z| !z.is_empty()) },
            None => Here { node: self.names.first().cloned(), zone: None },
        }
    }
}
