//! The gateway's agent. Data goes one way: [`source`] → [`model`] → [`plan`] → [`kernel`] and [`dns`].
//! See ARCHITECTURE.md for the rooms and for one packet's and one query's way through them.

pub mod agent;
pub mod cli;
pub mod config;
pub mod dns;
pub mod http;
pub mod kernel;
pub mod log;
pub mod model;
pub mod node;
pub mod plan;
pub mod source;
