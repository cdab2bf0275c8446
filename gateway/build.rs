//! Builds the BPF object with the toolchain that is there and hands its path to the agent.
//!
//! Order: `GATEWAY_BPF_TOOLCHAIN` if set; a nightly that has rust-src; a toolchain linked as `bpf`
//! (Debian's rustc-web with a prebuilt core, see ARCHITECTURE.md). `cargo xtask` makes sure of one of them.

use std::{env, path::Path, process::Command};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

fn nightly_has_rust_src() -> bool {
    let Ok(out) = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output() else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    out.status.success() && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir()
}

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=GATEWAY_BPF_TOOLCHAIN");
    let manifest = env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?;
    let root = Path::new(&manifest).parent().context("the crate has no parent directory")?.join("gateway-ebpf");
    let root_dir = root.to_str().context("the path is not UTF-8")?;
    // aya-build watches the eBPF crate only; the code it shares with the host is half of it.
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={manifest}/../gateway-common/src");
    println!("cargo:rerun-if-changed={manifest}/../Cargo.lock");
    let package = Package { name: "gateway-ebpf", root_dir, ..Default::default() };
    let named = env::var("GATEWAY_BPF_TOOLCHAIN").ok();
    let toolchain = match &named {
        Some(name) => Toolchain::Custom(name),
        None if nightly_has_rust_src() => Toolchain::default(),
        None => {
            // A stable compiler with a prebuilt core for BPF: only the eBPF bindings and one barrier need unstable asm.
            // SAFETY: a build script has one thread here.
            unsafe { env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf,gateway_ebpf") };
            Toolchain::Custom("bpf")
        }
    };
    aya_build::build_ebpf([package], toolchain)
}
