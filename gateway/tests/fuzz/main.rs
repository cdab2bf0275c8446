//! Millions of damaged frames and queries through the loaded programs, judged by arithmetic of the tests' own.
//!
//! | variable | does |
//! |---|---|
//! | `GATEWAY_FUZZ_FRAMES` | so many frames or queries in each test instead of a moderate number, from a seed of the clock's |
//! | `GATEWAY_FUZZ_SEED` | only the epoch of this seed: how a failure is looked at again |
//!
//! An epoch is a few hundred frames from one seed over a world made anew. A failure says its seed and leaves the epoch's frames, the
//! last one and what became of it as a pcap under `target/tmp`. Needs root. Nothing is attached: frames are given by
//! `BPF_PROG_TEST_RUN`.

mod bpf;
mod datapath;
mod epoch;
mod frames;
mod judge;
mod mutate;
mod nat;
mod nft;
mod oracle;
mod queries;
mod targets;
mod world;
