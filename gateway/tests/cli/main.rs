//! The commands, through the real binary.

mod agent;
mod refusals;
mod support;
