//! `cargo xtask test`: the steps, what was skipped, and how it ended.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{cargo, cluster, say};

/// What a test run told.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: Vec<String>,
    broken: Vec<String>,
}

/// Runs everything; goes on after a failing step, so that one run shows all that is wrong.
///
/// # Errors
/// Only when a step cannot be started.
pub fn run(filter: Option<&str>) -> Result<ExitCode> {
    let began = Instant::now();
    let mut tally = Tally::default();
    // On a new machine it takes minutes, which the steps before the end-to-end tests take as well.
    let mut control_plane = Some(cluster::ensure_meanwhile());
    if filter.is_none() {
        plain("format", &mut cargo(&["fmt", "--all", "--check"]), &mut tally)?;
        let lint =
            ["clippy", "--workspace", "--exclude", "gateway-ebpf", "--all-targets", "--quiet", "--", "-D", "warnings"];
        plain("clippy", &mut cargo(&lint), &mut tally)?;
    }
    plain("build", &mut cargo(&["build", "--quiet", "--workspace", "--exclude", "gateway-ebpf"]), &mut tally)?;
    let groups: [(&str, &[&str]); 3] = [
        ("host tests", &["-p", "gateway-common", "-p", "xtask"]),
        ("agent and kernel tests", &["-p", "gateway"]),
        ("end-to-end tests", &["-p", "gateway-lab"]),
    ];
    for (name, packages) in groups {
        if let Some(build) = control_plane.take_if(|_| packages.contains(&"gateway-lab")) {
            // The tests that need it say that they are skipped.
            match build.join() {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => eprintln!("no control plane for the lab: {error:#}"),
                Err(_) => eprintln!("no control plane for the lab: its build panicked"),
            }
        }
        let mut cmd = cargo(&["test", "--no-fail-fast"]);
        cmd.args(packages).args(filter).args(["--", "--show-output"]);
        tests(name, &mut cmd, &mut tally)?;
    }
    println!();
    for line in &tally.skipped {
        println!("skipped: {line}");
    }
    for line in &tally.broken {
        println!("FAILED: {line}");
    }
    println!(
        "{} in {}",
        if tally.broken.is_empty() { "all steps passed" } else { "some steps failed" },
        say::took(began)
    );
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped.len());
    Ok(if tally.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plain(name: &str, cmd: &mut Command, tally: &mut Tally) -> Result<()> {
    say::step(&format!("{name}: {}", say::command(cmd)));
    let since = Instant::now();
    let status = cmd.status().with_context(|| format!("could not start {}", say::command(cmd)))?;
    if status.success() {
        say::done(&format!("{name} ({})", say::took(since)));
    } else {
        tally.broken.push(format!("{name}: {}", say::command(cmd)));
    }
    Ok(())
}

/// Runs `cargo test`, shows its lines but not the output of passing tests, and gathers from that output the lines that
/// begin with `skipped:` or `SKIP`.
fn tests(name: &str, cmd: &mut Command, tally: &mut Tally) -> Result<()> {
    say::step(&format!("{name}: {}", say::command(cmd)));
    let since = Instant::now();
    let mut child =
        cmd.stdout(Stdio::piped()).spawn().with_context(|| format!("could not start {}", say::command(cmd)))?;
    let out = child.stdout.take().context("the test run has no output")?;
    let mut quiet = false;
    let mut test = String::new();
    for line in BufReader::new(out).split(b'\n') {
        let line = line.context("the test run's output broke off")?;
        let line = String::from_utf8_lossy(&line);
        if line == "successes:" {
            quiet = true;
        } else if line == "failures:" || line.starts_with("test result:") {
            quiet = false;
        }
        if let Some(head) = line.strip_prefix("---- ").and_then(|l| l.split(" stdout").next()) {
            test = head.to_owned();
        }
        if line.starts_with("skipped:") || line.starts_with("SKIP") || line.starts_with("skip:") {
            let why = line.split_once(':').map_or(line.as_ref(), |(_, why)| why).trim();
            tally.skipped.push(format!("{test}: {why}"));
        }
        if let Some(counts) = line.strip_prefix("test result:") {
            tally.passed += count(counts, "passed");
            tally.failed += count(counts, "failed");
        }
        if !quiet {
            println!("{line}");
        }
    }
    if child.wait().context("the test run's end was lost")?.success() {
        say::done(&format!("{name} ({})", say::took(since)));
    } else {
        tally.broken.push(format!("{name}: {}", say::command(cmd)));
    }
    Ok(())
}

/// The number before `word` in `ok. 12 passed; 0 failed; …`.
fn count(line: &str, word: &str) -> u64 {
    let words: Vec<&str> = line.split([' ', ';']).filter(|w| !w.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn counts_are_read_from_cargos_closing_line() {
        let line = " ok. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!((count(line, "passed"), count(line, "failed"), count(line, "ignored")), (12, 3, 0));
        assert_eq!(count(line, "missing"), 0);
    }
}
