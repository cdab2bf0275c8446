//! Seeds, their length, and what a failure leaves.

use std::{
    path::PathBuf,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// Numbers from a seed (splitmix64): the same in every run.
pub struct Rng(u64);

impl Rng {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Below `n`.
    pub const fn below(&mut self, n: usize) -> usize {
        (self.number() % n as u64) as usize
    }
    /// True so many times in a hundred.
    pub const fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }
    pub const fn byte(&mut self) -> u8 {
        self.number() as u8
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.byte()).collect()
    }
}

/// One epoch's failure: what is wrong, and the frames that show it.
pub struct Failure {
    pub what: String,
    /// Every frame of the epoch so far, and what became of the last one.
    pub frames: Vec<Vec<u8>>,
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let text = text.replace('_', "");
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    Some(number.unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// Frames or queries of a test: `usual` unless the environment says otherwise.
pub fn wanted(usual: usize) -> usize {
    variable("GATEWAY_FUZZ_FRAMES").map_or(usual, |n| n as usize)
}

/// Only one epoch is run.
pub fn is_alone() -> bool {
    variable("GATEWAY_FUZZ_SEED").is_some()
}

/// Runs epochs until so many frames have gone through; `epoch` says how many it had.
pub fn run(test: &str, usual: usize, mut epoch: impl FnMut(u64) -> Result<usize, Failure>) {
    let alone = variable("GATEWAY_FUZZ_SEED");
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let more = variable("GATEWAY_FUZZ_FRAMES").is_some();
    let first = alone.unwrap_or(if more { clock << 20 } else { 0x5eed << 20 });
    let (mut seed, mut done, wanted) = (first, 0, wanted(usual));
    let began = Instant::now();
    println!("{test}: {wanted} frames from seed {first:#x}");
    while done < wanted {
        match epoch(seed) {
            Ok(frames) => done += frames,
            Err(failure) => {
                let path = save(&format!("{test}-{seed:x}"), &failure.frames);
                panic!(
                    "{test}: {}\nframes: {}\nagain: GATEWAY_FUZZ_SEED={seed:#x} cargo test -p gateway --test fuzz {test}",
                    failure.what,
                    path.display()
                );
            }
        }
        if alone.is_some() {
            break;
        }
        seed += 1;
    }
    println!("{test}: {done} frames in {:.1} s, up to seed {seed:#x}", began.elapsed().as_secs_f32());
}

/// Writes frames for a packet analyser.
pub fn save(name: &str, frames: &[Vec<u8>]) -> PathBuf {
    let mut pcap = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        pcap.extend(word.to_ne_bytes());
    }
    for (at, frame) in frames.iter().enumerate() {
        let len = frame.len() as u32;
        for word in [at as u32, 0, len, len] {
            pcap.extend(word.to_ne_bytes());
        }
        pcap.extend_from_slice(frame);
    }
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pcap"));
    std::fs::write(&path, pcap).expect("a file under target/tmp");
    path
}

/// Whether this process may not load programs; says so.
pub fn skip() -> bool {
    let skip = !nix::unistd::Uid::effective().is_root();
    if skip {
        println!("SKIP: loading BPF programs needs root");
    }
    skip
}
