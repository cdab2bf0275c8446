//! The `gateway` binary: a command line over the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    one_arena();
    match gateway::cli::run(gateway::cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gateway: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// glibc gives each thread an arena of its own, and what one has freed serves no other: the first state of a large cluster, which goes from
/// thread to thread, left 40 MB in them. Pieces of less than a kilobyte are cached by thread all the same.
fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Longest line for people; what the kernel's verifier says can be a thousand times as long, and ends with what matters.
const LINE: usize = 1_200;

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
    shortened(line)
}

fn shortened(line: String) -> String {
    let characters: Vec<char> = line.chars().collect();
    if characters.len() <= LINE {
        return line;
    }
    tracing::debug!("{line}");
    let (head, tail) = (&characters[..LINE / 2], &characters[characters.len() - LINE / 2..]);
    format!("{} ... (log: debug shows it whole) ... {}", String::from_iter(head), String::from_iter(tail))
}

#[cfg(test)]
mod tests {
    use super::{LINE, one_line};

    #[test]
    fn an_error_is_one_line_without_repetitions_and_of_bounded_length() {
        let inner = std::io::Error::other("no\nroom");
        let error = anyhow::Error::from(inner).context("map A: no room").context("it does not start");
        assert_eq!(one_line(&error), "it does not start: map A: no room");
        let long = one_line(&anyhow::anyhow!("begin {} end", "x".repeat(200_000)));
        assert!(long.len() < LINE + 100 && long.starts_with("begin") && long.ends_with("end"), "{long}");
    }
}
