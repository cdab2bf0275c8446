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

/// Runs `f` while this process does not die of Ctrl-C or SIGTERM: its child does, cleans up, and tells how it went.
pub fn with_interrupts_ignored<T>(f: impl FnOnce() -> T) -> T {
    use nix::sys::signal::{SigHandler, Signal, signal};
    extern "C" fn noted(_: i32) {}
    // A handler, not SIG_IGN: an ignored signal would stay ignored in the child after exec.
    let all = [Signal::SIGINT, Signal::SIGTERM];
    // SAFETY: the handler does nothing, which is async-signal-safe.
    let old = all.map(|s| unsafe { signal(s, SigHandler::Handler(noted)) });
    let result = f();
    for (s, old) in all.into_iter().zip(old) {
        if let Ok(old) = old {
            // SAFETY: puts back what was there; failing leaves the handler that does nothing.
            let _ = unsafe { signal(s, old) };
        }
    }
    result
}
