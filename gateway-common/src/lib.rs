//! What kernel and host share: the layout of every map, the numbered reasons, the limits, and the pure code
//! that parses, translates, hashes and answers. Written once, compiled for XDP, for TC and for the host's tests.
//!
//! No allocation, no I/O, no panics in non-`std` code: every function here must pass the BPF verifier when inlined
//! (fixed-size arrays, bounded loops, no slices made from packet pointers).
#![cfg_attr(not(any(test, feature = "std")), no_std)]

pub mod dns;
pub mod limits;
#[cfg(any(test, feature = "std"))]
pub mod maglev;
pub mod maps;
pub mod net;
pub mod reason;

pub use reason::Reason;
