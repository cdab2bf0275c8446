//! What the fuzz targets do with their bytes. Each is a function that panics when something is wrong; the agent's tests
//! (`gateway/tests/fuzz/targets.rs`) call the same ones with seeded damage.

pub mod names;
pub mod packets;
#[cfg(feature = "agent")]
pub mod upstream;
