//! The datapath's programs, run by the kernel on single frames: what goes in, what comes out, what is counted.

mod affinity;
mod cast;
mod cost;
mod life;
mod mss;
mod packets;
mod ports;
mod rates;
mod split;
mod table;
mod twins;
mod wire;
mod world;
