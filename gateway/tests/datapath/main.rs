//! The datapath's programs, run by the kernel on single frames: what goes in, what comes out, what is counted.

mod cast;
mod cost;
mod life;
mod packets;
mod table;
mod wire;
mod world;
