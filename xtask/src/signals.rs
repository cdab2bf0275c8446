//! Signals that this process gets while a child does the work: the child decides what to do with them, and cleans up.

use std::{
    io,
    process::{Command, ExitStatus},
    sync::atomic::{AtomicI32, Ordering},
};

use nix::{
    errno::Errno,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction},
    unistd::Pid,
};

/// The child that runs; 0: none.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Ctrl-C goes to the whole process group, a signal of `kill` to this process alone: the child has either. Twice is no more than once to it.
extern "C" fn hand(signal: i32) {
    let (child, errno) = (CHILD.load(Ordering::Relaxed), Errno::last_raw());
    if let (1.., Ok(signal)) = (child, Signal::try_from(signal)) {
        // It may have ended this moment.
        let _ = kill(Pid::from_raw(child), signal);
    }
    Errno::set_raw(errno);
}

/// Runs a child to its end, for whose sake this process does not die of SIGINT, SIGTERM and SIGHUP but hands them on.
///
/// # Errors
/// When it cannot be started.
pub fn hand_on(cmd: &mut Command) -> io::Result<ExitStatus> {
    // A handler, not SIG_IGN: an ignored signal would stay ignored in the child after exec.
    let action = SigAction::new(SigHandler::Handler(hand), SaFlags::SA_RESTART, SigSet::empty());
    let old = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].map(|signal| {
        // SAFETY: the handler reads an atomic, sends a signal and keeps errno: all async-signal-safe.
        (signal, unsafe { sigaction(signal, &action) })
    });
    let status = cmd.spawn().and_then(|mut child| {
        CHILD.store(i32::try_from(child.id()).unwrap_or(0), Ordering::Relaxed);
        let status = child.wait();
        CHILD.store(0, Ordering::Relaxed);
        status
    });
    for (signal, old) in old {
        if let Ok(old) = old {
            // SAFETY: puts back what was there; failing leaves the handler that does nothing without a child.
            let _ = unsafe { sigaction(signal, &old) };
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt as _,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn a_signal_to_this_process_ends_its_child() {
        let killer = thread::spawn(|| {
            let began = Instant::now();
            while CHILD.load(Ordering::Relaxed) == 0 && began.elapsed() < Duration::from_secs(30) {
                thread::sleep(Duration::from_millis(5));
            }
            kill(Pid::this(), Signal::SIGTERM)
        });
        let status = hand_on(Command::new("sleep").arg("60")).expect("sleep");
        assert_eq!(killer.join().expect("the thread"), Ok(()));
        assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
    }
}
