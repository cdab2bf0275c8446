//! `gateway-lab`: the demonstration, and the servers that run in the lab's pods.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a lab, start the gateway in it, and show what a client outside the cluster can do
    Demo {
        /// The gateway's binary; default: `GATEWAY_BIN`, else the one that cargo built
        #[arg(long)]
        gateway: Option<PathBuf>,
        /// End after the demonstration instead of waiting for Ctrl-C
        #[arg(long)]
        once: bool,
        /// With a real API server, real controllers and CoreDNS behind the gateway
        #[arg(long)]
        cluster: bool,
    },
    /// Serve HTTP and echo, as the lab's pods do
    Serve {
        /// Name of the pod
        #[arg(long)]
        name: String,
        /// Port of HTTP
        #[arg(long)]
        http: Option<u16>,
        /// Port of echo, TCP and UDP
        #[arg(long)]
        echo: Option<u16>,
    },
    /// Remove what labs left whose owner is dead
    Sweep,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo { gateway, once, cluster } => gateway_lab::demo::run(gateway, once, cluster),
        Command::Serve { name, http, echo } => {
            if let Some(port) = http {
                gateway_lab::servers::http(&name, port).with_context(|| format!("HTTP on port {port}"))?;
            }
            if let Some(port) = echo {
                gateway_lab::servers::echo(&name, port).with_context(|| format!("echo on port {port}"))?;
            }
            gateway_lab::servers::drain_on_sigterm().context("a handler of SIGTERM")?;
            println!("{name}: serving");
            loop {
                std::thread::park();
            }
        }
        Command::Sweep => {
            println!("{} labs of dead owners removed", gateway_lab::netns::sweep()?);
            Ok(())
        }
    }
}
