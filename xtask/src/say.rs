//! How xtask talks: one line a step, with the time it took; and a few process helpers that go with it.

use std::{
    io::IsTerminal as _,
    process::Command,
    time::{Duration, Instant},
};

/// Begins a step.
pub fn step(what: &str) {
    mark("==>", "34", what);
}

/// Names a result.
pub fn done(what: &str) {
    mark(" ok", "32", what);
}

/// In colour on a terminal alone: logs are read as text.
fn mark(sign: &str, colour: &str, what: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[1;{colour}m{sign}\x1b[0m {what}");
    } else {
        eprintln!("{sign} {what}");
    }
}

/// A command as a person would type it.
pub fn command(cmd: &Command) -> String {
    let program = cmd.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    cmd.get_args().fold(program, |line, arg| line + " " + &arg.to_string_lossy())
}

/// Seconds, for people.
pub fn took(since: Instant) -> String {
    let t: Duration = since.elapsed();
    format!("{:.1} s", t.as_secs_f64())
}
