//! The lab: a cluster with a gateway, and clients outside it, in network namespaces of one machine. The end-to-end tests and the
//! demonstration run in it.
//!
//! A [`Topology`] says what is wanted, [`Lab::build`] makes it of real parts (namespaces, links, routes, servers, an upstream DNS
//! server), [`Lab::gateway`] starts the agent's binary in it. Dropping a lab removes it; what a killed run left is removed by the next.

pub mod agent;
pub mod alike;
pub mod bpffs;
pub mod clients;
pub mod cluster;
pub mod demo;
mod lab;
pub mod manifests;
pub mod names;
pub mod netns;
pub mod process;
pub mod servers;
pub mod stream;
pub mod testing;
pub mod topology;
mod upstream;
mod wire;

pub use agent::{Counters, Gateway, GatewayConfig};
pub use lab::Lab;
pub use manifests::Service;
pub use topology::{Node, Topology};
