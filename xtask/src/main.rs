//! What a person types: `cargo xtask run | test | build | bench | dist`.
//!
//! Needs nothing but a stable Rust toolchain to build itself; [`toolchain`] makes sure of the rest.

mod aside;
mod cluster;
mod say;
mod signals;
mod suite;
mod toolchain;

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests the gateway")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds, makes the lab and shows the gateway at work; with ARGS behind `--`, runs `gateway ARGS` on this host instead
    Run {
        /// End after the demonstration
        #[arg(long)]
        once: bool,
        /// With a real API server behind it
        #[arg(long)]
        cluster: bool,
        /// `gateway` arguments
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Everything that CI runs: format, clippy, host tests, kernel tests, end-to-end tests
    Test {
        /// Only the tests whose name contains this (end-to-end and kernel tests)
        filter: Option<String>,
    },
    /// The whole product in one file: target/release/gateway
    Build,
    /// Measures: quick, dns, control
    Bench {
        /// Which one
        name: String,
    },
    /// The release archive: binary, licences, README, docs, manifests of deploy/
    Dist,
}

/// The workspace's root.
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or(here.clone(), PathBuf::from)
}

/// A cargo command in the workspace's root.
pub fn cargo(args: &[&str]) -> Command {
    let mut cmd = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Where the contract has the product, whatever the environment says of target directories.
    cmd.args(args).current_dir(root()).env("CARGO_TARGET_DIR", root().join("target"));
    cmd
}

/// Runs a command to its end; its failure is an error that names it.
pub fn must(cmd: &mut Command) -> Result<()> {
    let status = cmd.status().with_context(|| format!("could not start {}", say::command(cmd)))?;
    if !status.success() {
        bail!("{} ended with {status}", say::command(cmd));
    }
    Ok(())
}

fn main() -> ExitCode {
    match work(Cli::parse().verb) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Run { args, .. } if !args.is_empty() => {
            toolchain::ensure_build()?;
            build_debug(&["-p", "gateway"])?;
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            exit_like(Command::new(root().join("target/debug/gateway")).args(args))
        }
        Verb::Run { once, cluster: real, .. } => {
            toolchain::ensure_build()?;
            toolchain::ensure_lab_tools()?;
            build_debug(&["-p", "gateway", "-p", "gateway-lab"])?;
            let mut demo = Command::new(root().join("target/debug/gateway-lab"));
            demo.arg("demo").arg("--gateway").arg(root().join("target/debug/gateway"));
            if once {
                demo.arg("--once");
            }
            if real {
                demo.arg("--cluster").env("GATEWAY_LAB_CLUSTER", cluster::ensure()?);
            }
            exit_like(&mut demo)
        }
        Verb::Test { filter } => {
            toolchain::ensure_build()?;
            toolchain::ensure_lab_tools()?;
            aside::ensure();
            suite::run(filter.as_deref())
        }
        Verb::Build => {
            toolchain::ensure_build()?;
            must(&mut cargo(&["build", "--release", "-p", "gateway"]))?;
            say::done("target/release/gateway");
            Ok(ExitCode::SUCCESS)
        }
        Verb::Bench { name } if name == "quick" => {
            toolchain::ensure_build()?;
            exit_like(&mut cargo(&["run", "--quiet", "-p", "gateway-bench", "--", "quick"]))
        }
        Verb::Bench { name } if name == "dns" || name == "control" => {
            toolchain::ensure_build()?;
            toolchain::ensure_lab_tools()?;
            // The figures are those of the product.
            must(&mut cargo(&["build", "--release", "-p", "gateway"]))?;
            must(&mut cargo(&["build", "-p", "gateway-lab"]))?;
            let mut bench = cargo(&["run", "--quiet", "-p", "gateway-bench", "--", &name]);
            // Without it the rows of a real API server are left out, and said to be.
            if name == "control" {
                match cluster::ensure() {
                    Ok(program) => _ = bench.env("GATEWAY_LAB_CLUSTER", program),
                    Err(error) => eprintln!("no control plane for the lab: {error:#}"),
                }
            }
            exit_like(bench.env("GATEWAY_BIN", root().join("target/release/gateway")))
        }
        Verb::Bench { name } => bail!("no benchmark is called {name:?}; there are: quick, dns, control"),
        Verb::Dist => {
            toolchain::ensure_build()?;
            must(&mut cargo(&["build", "--release", "-p", "gateway"]))?;
            dist()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn build_debug(packages: &[&str]) -> Result<()> {
    say::step("building");
    must(cargo(&["build", "--quiet"]).args(packages))
}

/// Runs in the foreground and ends as the child does.
fn exit_like(cmd: &mut Command) -> Result<ExitCode> {
    let child = signals::hand_on(cmd);
    let status = child.with_context(|| format!("could not start {}", say::command(cmd)))?;
    Ok(status.code().and_then(|c| u8::try_from(c).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn dist() -> Result<()> {
    let name = format!("gateway-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let out = root().join("target/dist");
    let dir = out.join(&name);
    std::fs::create_dir_all(&dir).with_context(|| format!("could not make {}", dir.display()))?;
    for file in ["target/release/gateway", "README.md", "ARCHITECTURE.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        let from = root().join(file);
        let to = dir.join(from.file_name().context("a file without a name")?);
        std::fs::copy(&from, &to).with_context(|| format!("could not copy {} to {}", from.display(), to.display()))?;
    }
    // What the README leads to; without what an older archive had.
    for part in ["docs", "deploy"] {
        let to = dir.join(part);
        if to.exists() {
            std::fs::remove_dir_all(&to).with_context(|| format!("could not remove {}", to.display()))?;
        }
        must(Command::new("cp").arg("-r").arg(root().join(part)).arg(&to))?;
    }
    let archive = out.join(format!("{name}.tar.gz"));
    must(Command::new("tar").arg("-C").arg(&out).arg("-czf").arg(&archive).arg(&name))?;
    say::done(&archive.display().to_string());
    Ok(())
}
