//! The `gateway` binary: a command line over the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match gateway::cli::run(gateway::cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gateway: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes. Many errors say their cause themselves: what was said is not said again.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}
