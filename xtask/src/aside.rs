//! Programs for the tests that are kept aside, in the user's cache: installed as usual they would change the machine, or cannot be.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{say, toolchain};

/// The hostile server's version, from PyPI.
const POLARDNS: &str = "1.6.6";

/// Fetches what is not there. What cannot be had is said: the tests that need it say that they are skipped.
pub fn ensure() {
    if let Err(error) = polardns() {
        eprintln!("no hostile DNS server for the tests: {error:#}");
    }
    if let Err(error) = resolved() {
        eprintln!("no systemd-resolved for the tests: {error:#}");
    }
}

fn cache() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    Ok(cache.context("set HOME or XDG_CACHE_HOME")?.join("gateway-lab"))
}

/// Fills a directory below the cache once: it is there as a whole or not at all.
fn once(name: &str, what: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = cache()?.join(name);
    if dir.is_dir() {
        return Ok(());
    }
    say::step(&format!("{what}, into {}", dir.display()));
    let unfinished = dir.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::create_dir_all(&unfinished).with_context(|| format!("could not make {}", unfinished.display()))?;
    let filled = fill(&unfinished);
    if filled.is_err() {
        // It may be half there: what matters is why it is not whole.
        let _ = fs::remove_dir_all(&unfinished);
    } else {
        fs::rename(&unfinished, &dir).with_context(|| format!("could not make {}", dir.display()))?;
    }
    filled
}

/// PolarDNS, which answers wrongly in hundreds of ways: a package of Python that needs nothing else.
fn polardns() -> Result<()> {
    once(&format!("polardns-{POLARDNS}"), &format!("installing PolarDNS {POLARDNS} by pip"), |dir| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", "--target"]).arg(dir);
        let installed = pip.arg(format!("polardns=={POLARDNS}")).stderr(Stdio::null()).status();
        ensure!(
            installed.is_ok_and(|status| status.success()),
            "`python3 -m pip install polardns=={POLARDNS}` failed: install Python 3.11 or later, with pip"
        );
        Ok(())
    })
}

/// systemd-resolved, unpacked and not installed: its package would make it the machine's own resolver.
fn resolved() -> Result<()> {
    if Path::new("/lib/systemd/systemd-resolved").exists() {
        return Ok(());
    }
    once("systemd-resolved", "unpacking systemd-resolved", |dir| {
        let download = || {
            let mut apt = Command::new("apt-get");
            apt.args(["-qq", "download", "systemd-resolved", "libsystemd-shared", "libsystemd0"]).current_dir(dir);
            apt.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        ensure!(
            download() || (toolchain::apt_update().is_ok() && download()),
            "`apt-get download systemd-resolved libsystemd-shared libsystemd0` failed"
        );
        for package in fs::read_dir(dir)?.flatten().map(|entry| entry.path()) {
            if package.extension().is_none_or(|extension| extension != "deb") {
                continue;
            }
            let unpacked = Command::new("dpkg-deb").arg("-x").arg(&package).arg(dir).status();
            if !unpacked.is_ok_and(|status| status.success()) {
                bail!("dpkg-deb could not unpack {}", package.display());
            }
            fs::remove_file(&package)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "asks package registries"]
    fn everything_can_be_fetched() {
        polardns().expect("PolarDNS");
        resolved().expect("systemd-resolved");
    }
}
