//! Long-running programs of a lab: their logs go to files, and they end with their handle.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A program that runs until it is stopped. Dropping the handle kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// What it is, for messages.
    pub name: String,
    /// File with all it says.
    pub log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `log`.
    ///
    /// # Errors
    /// When the program is missing or the log cannot be written.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("{}: cannot write", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{name}: cannot start {}", command.get_program().display()))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, when it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("{}: cannot be sent {signal}", self.name))
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    /// When it has not ended in time.
    pub fn stop(&mut self, signal: Signal, within: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        self.signal(signal)?;
        let began = Instant::now();
        while began.elapsed() < within {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("{} did not end within {within:?} of {signal}:\n{}", self.name, self.said());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why what is waited for is not there.
#[derive(Debug)]
pub enum NotYet {
    /// It may come.
    Later(anyhow::Error),
    /// It will never come.
    Never(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for NotYet {
    fn from(error: E) -> Self {
        Self::Later(error.into())
    }
}

/// Waits until `check` gives a value, asking every 20 ms.
///
/// # Errors
/// What was waited for, and the last reason why it was not so.
pub fn wait_for<T>(what: &str, within: Duration, mut check: impl FnMut() -> Result<T, NotYet>) -> Result<T> {
    let began = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(NotYet::Never(error)) => return Err(error.context(what.to_owned())),
            Err(NotYet::Later(error)) if began.elapsed() >= within => {
                return Err(error.context(format!("{what}: not within {within:?}")));
            }
            Err(NotYet::Later(_)) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
