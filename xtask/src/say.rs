//! How xtask talks: one line a step, with the time it took; and a few process helpers that go with it.

use std::{
    process::Command,
    time::{Duration, Instant},
};

/// Begins a step.
pub fn step(what: &str) {
    eprintln!("\x1b[1;34m==>\x1b[0m {what}");
}

/// Names a result.
pub fn done(what: &str) {
    eprintln!("\x1b[1;32m ok\x1b[0m {what}");
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
    use std::sync::atomic::{AtomicBool, Ordering};
    static ASKED: AtomicBool = AtomicBool::new(false);
    extern "C" fn noted(_: i32) {
        ASKED.store(true, Ordering::Relaxed);
    }
    const SIGINT: i32 = 2;
    const SIGTERM: i32 = 15;
    unsafe extern "C" {
        fn signal(number: i32, handler: usize) -> usize;
    }
    let handler = noted as extern "C" fn(i32) as usize;
    // A handler, not SIG_IGN: an ignored signal would stay ignored in the child after exec.
    // SAFETY: `noted` only stores to an atomic, which is async-signal-safe, and lives as long as the program.
    let old = unsafe { (signal(SIGINT, handler), signal(SIGTERM, handler)) };
    let result = f();
    // SAFETY: puts back what was there.
    unsafe {
        signal(SIGINT, old.0);
        signal(SIGTERM, old.1);
    }
    result
}
