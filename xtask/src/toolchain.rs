//! Makes sure of what the build and the lab need: uses what is there, installs what it may, else prints the exact commands.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::say;

/// Debian 12 (security): a compiler with a prebuilt core for BPF, and the LLVM that it emits for.
const DEBIAN_COMPILER: &[&str] = &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
const DEBIAN_LLVM: &[&str] = &["llvm-22-dev", "libpolly-22-dev"];
const DEBIAN_LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "0.13.0";

/// Programs of the lab and the Debian/Ubuntu packages they come in.
const LAB_TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("dig", "dnsutils"),
    ("kdig", "knot-dnsutils"),
    ("unbound", "unbound"),
    ("named", "bind9"),
    ("dnssec-signzone", "bind9-utils"),
    ("delv", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("dnsperf", "dnsperf"),
    ("musl-gcc", "musl-tools"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("ping", "iputils-ping"),
    ("tracepath", "iputils-tracepath"),
    ("traceroute", "traceroute"),
    ("mtr", "mtr-tiny"),
    ("iperf3", "iperf3"),
    ("tinyproxy", "tinyproxy-bin"),
    ("nc", "netcat-openbsd"),
    ("socat", "socat"),
    ("nmap", "nmap"),
    ("h2load", "nghttp2-client"),
    ("nghttpd", "nghttp2-server"),
    ("wrk", "wrk"),
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
    ("nft", "nftables"),
    ("ethtool", "ethtool"),
    ("nsenter", "util-linux"),
    ("python3", "python3-minimal"),
];

/// Which compiler builds the BPF object.
enum Compiler {
    /// rustup's nightly with rust-src, or whatever `GATEWAY_BPF_TOOLCHAIN` names.
    Rustup,
    /// Debian's, linked into rustup as `bpf`.
    Debian,
}

/// Makes sure that the BPF object can be built.
///
/// # Errors
/// When something is missing that may not or cannot be installed: the message has the commands.
pub fn ensure_build() -> Result<()> {
    let compiler = match find_compiler() {
        Some(compiler) => compiler,
        None => install_compiler()?,
    };
    ensure_linker(&compiler)
}

/// Makes sure that the lab's programs are there.
///
/// # Errors
/// As [`ensure_build`].
pub fn ensure_lab_tools() -> Result<()> {
    let mut missing: Vec<&str> =
        LAB_TOOLS.iter().filter(|(program, _)| which(program).is_none()).map(|&(_, package)| package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing).with_context(|| format!("the lab needs: apt-get install {}", missing.join(" ")))
}

fn find_compiler() -> Option<Compiler> {
    if env::var_os("GATEWAY_BPF_TOOLCHAIN").is_some() || has_rust_src("nightly") {
        return Some(Compiler::Rustup);
    }
    has_bpf_core("bpf").then_some(Compiler::Debian)
}

/// Path below the sysroot of a rustup toolchain.
fn sysroot(toolchain: &str) -> Option<PathBuf> {
    let out = Command::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]).output().ok()?;
    out.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()))
}

fn has_rust_src(toolchain: &str) -> bool {
    sysroot(toolchain).is_some_and(|root| root.join("lib/rustlib/src/rust/library/core").is_dir())
}

fn has_bpf_core(toolchain: &str) -> bool {
    sysroot(toolchain).is_some_and(|root| root.join("lib/rustlib/bpfel-unknown-none/lib").is_dir())
}

fn install_compiler() -> Result<Compiler> {
    say::step("no compiler for BPF here (a nightly with rust-src, or a toolchain linked as `bpf`): installing one");
    if which("rustup").is_none() {
        bail!("rustup is needed to choose the BPF toolchain; install it from https://rustup.rs and run this again");
    }
    if apt_offers(DEBIAN_COMPILER) {
        let packages: Vec<&str> = DEBIAN_COMPILER.iter().chain(DEBIAN_LLVM).copied().collect();
        apt_install(&packages)?;
        let linked = Command::new("rustup").args(["toolchain", "link", "bpf", "/usr"]).status();
        if linked.is_ok_and(|s| s.success()) && has_bpf_core("bpf") {
            return Ok(Compiler::Debian);
        }
    }
    let nightly = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
    let installed = Command::new("rustup").args(nightly).status();
    if installed.is_ok_and(|s| s.success()) && has_rust_src("nightly") {
        return Ok(Compiler::Rustup);
    }
    bail!(
        "could not install a compiler for BPF. One of these by hand, then run this again:\n  \
         rustup toolchain install nightly --component rust-src\n  \
         apt-get install {} {} && rustup toolchain link bpf /usr      (Debian 12)",
        DEBIAN_COMPILER.join(" "),
        DEBIAN_LLVM.join(" ")
    )
}

fn ensure_linker(compiler: &Compiler) -> Result<()> {
    if which("bpf-linker").is_some() {
        return Ok(());
    }
    say::step("installing bpf-linker (once; a minute or two)");
    let mut cmd = Command::new("cargo");
    cmd.args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION]);
    if matches!(compiler, Compiler::Debian) {
        if !Path::new(DEBIAN_LLVM_PREFIX).join("lib").is_dir() {
            apt_install(DEBIAN_LLVM)?;
        }
        // The compiler emits LLVM 22; the linker must read it. 0.13.0 finds Debian's LLVM by LLVM_PREFIX only.
        cmd.args(["--no-default-features", "--features", "llvm-22"]);
        cmd.env("LLVM_PREFIX", DEBIAN_LLVM_PREFIX).env("LLVM_SYS_221_PREFIX", DEBIAN_LLVM_PREFIX);
    }
    let line = say::command(&cmd);
    let status = cmd.status().context("could not start cargo")?;
    if !status.success() || which("bpf-linker").is_none() {
        bail!("could not install bpf-linker. By hand, then run this again:\n  {line}");
    }
    Ok(())
}

/// Finds a program in PATH, /sbin and cargo's bin directory.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_bin = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .map(|home| home.join("bin"));
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .chain(cargo_bin)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

fn apt_offers(packages: &[&str]) -> bool {
    let offers = || {
        packages.iter().all(|package| {
            Command::new("apt-cache")
                .args(["show", "--no-all-versions", package])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        })
    };
    offers() || (apt_update().is_ok() && offers())
}

pub(crate) fn apt_update() -> Result<()> {
    if which("apt-get").is_none() {
        bail!("there is no apt-get here");
    }
    crate::must(Command::new("apt-get").args(["-qq", "update"]))
}

/// Installs Debian packages without starting their services, or says what to type.
fn apt_install(packages: &[&str]) -> Result<()> {
    let by_hand = format!("by hand: apt-get install {}", packages.join(" "));
    if which("apt-get").is_none() {
        bail!("this is no Debian or Ubuntu; install the equivalents of: {}", packages.join(" "));
    }
    if !is_root() {
        bail!("not root, so nothing is installed; {by_hand}");
    }
    say::step(&format!("apt-get install {}", packages.join(" ")));
    let no_services = NoServices::new()?;
    let install = || {
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    let ok = install() || (apt_update().is_ok() && install());
    drop(no_services);
    if !ok {
        bail!("apt-get failed; {by_hand}");
    }
    Ok(())
}

fn is_root() -> bool {
    let out = Command::new("id").arg("-u").output();
    out.is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

/// While it lives, packages do not start their services (a resolver on port 53 of this very machine, say): Debian's policy-rc.d.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn new() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let file = PathBuf::from("/usr/sbin/policy-rc.d");
        if file.exists() {
            return Ok(Self(None));
        }
        std::fs::write(&file, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("could not write {}", file.display()))?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("could not make {} executable", file.display()))?;
        Ok(Self(Some(file)))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(file) = &self.0
            && let Err(err) = std::fs::remove_file(file)
        {
            eprintln!("xtask: could not remove {}: {err}; remove it by hand", file.display());
        }
    }
}
