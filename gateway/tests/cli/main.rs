//! The commands, through the real binary.

mod agent;
mod datapath;
#[path = "../support/ports.rs"]
mod ports;
mod refusals;
mod reload;
mod support;
