//! The commands, through the real binary.

mod agent;
mod datapath;
mod refusals;
mod reload;
mod support;
