//! What every test of this crate begins with.

use std::{fs::File, path::Path};

/// Holds the machine's lab lock: labs of tests follow each other, since they share two cores.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

/// Waits for this test's turn. None: the test cannot run here, and the reason has been printed.
///
/// # Panics
/// When the lock file cannot be opened.
pub fn turn(tools: &[&str]) -> Option<Turn> {
    if let Some(reason) = reason_to_skip(tools) {
        // `cargo xtask test` counts these lines.
        println!("skipped: {reason}");
        return None;
    }
    let lock = File::options().create(true).append(true).open("/run/gateway-lab.lock").expect("/run/gateway-lab.lock");
    lock.lock().expect("the lab lock");
    Some(Turn { _lock: lock })
}

fn reason_to_skip(tools: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root for network namespaces".into());
    }
    let missing = |tool: &&&str| !installed(tool);
    tools
        .iter()
        .chain(&["ip", "bridge", "tc", "ethtool"])
        .find(missing)
        .map(|tool| format!("`{tool}` is not installed"))
}

/// Whether a program is on the path, or where system programs are.
pub fn installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into(), Path::new("/sbin").into()])
        .any(|dir| dir.join(tool).exists())
}
