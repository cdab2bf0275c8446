//! The demonstration.
use std::path::PathBuf;
/// Runs it.
///
/// # Errors
/// none
pub fn run(_gateway: Option<PathBuf>, _once: bool) -> anyhow::Result<()> {
    Ok(())
}
