//! The `gateway` binary: a command line over the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match gateway::cli::run(gateway::cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // One line, whatever a library put into its message.
            let line = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
            eprintln!("gateway: {line}");
            ExitCode::FAILURE
        }
    }
}
