//! A directory of manifests, watched. inotify says at once that something changed; a scan of sizes and times says what, and finds
//! also what inotify cannot tell: targets of links, overflows, a directory that was replaced.

mod any;
mod directory;
mod parse;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::sync::{mpsc, watch};

use self::directory::Directory;
pub use self::parse::{ParseError, parse};
use super::{SourceError, SourceHandle, status::Reporter};
use crate::model::{Event, Objects};

/// Quiet time after an event before the files are read: an editor's truncation and its write are one change.
const SETTLE: Duration = Duration::from_millis(60);
/// Changes without a pause are read at least this often.
const SETTLE_MOST: Duration = Duration::from_millis(400);
/// A scan without an event: a change that inotify cannot tell is live within a second too.
const RESCAN: Duration = Duration::from_millis(500);

pub(super) async fn start(path: PathBuf, events: mpsc::Sender<Vec<Event>>) -> Result<SourceHandle, SourceError> {
    std::fs::read_dir(&path).map_err(|error| SourceError::Directory { path: path.clone(), error })?;
    let (changes, changed) = watch::channel(());
    let mut agent = Agent {
        reporter: Reporter::new("manifests", path.display().to_string()),
        directory: Directory::new(path),
        told: Objects::default(),
        watcher: DirectoryWatch::new(changes),
        events,
    };
    let status = agent.reporter.subscribe();
    // Before the first scan: what changes during it is seen by the next one.
    agent.watcher.follow(&agent.directory);
    let first = agent.scan().await;
    let task = tokio::spawn(agent.run(first, changed));
    Ok(SourceHandle { status, task })
}

struct Agent {
    reporter: Reporter,
    directory: Directory,
    /// What was sent.
    told: Objects,
    watcher: DirectoryWatch,
    events: mpsc::Sender<Vec<Event>>,
}

impl Agent {
    /// Reads what changed; the new whole state, when it is another.
    async fn scan(&mut self) -> Option<Objects> {
        let mut directory = std::mem::take(&mut self.directory);
        let scanned = tokio::task::spawn_blocking(move || {
            let objects = directory.scan();
            (directory, objects)
        });
        // A panic in there is a bug, and is not survived by half.
        let (directory, objects) = scanned.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        self.directory = directory;
        let problems = self.directory.problems().chain(self.watcher.problem()).collect();
        self.reporter.report(self.directory.readable(), problems);
        objects
    }

    async fn run(mut self, first: Option<Objects>, mut changed: watch::Receiver<()>) {
        self.told = first.unwrap_or_default();
        if !self.tell(vec![Event::Snapshot(Box::new(self.told.clone()))]).await {
            return;
        }
        let mut pause = RESCAN;
        loop {
            tokio::select! {
                () = self.events.closed() => return,
                () = tokio::time::sleep(pause) => {}
                changed = settled(&mut changed) => if !changed { return },
            }
            let began = Instant::now();
            self.watcher.follow(&self.directory);
            let scanned = self.scan().await;
            // A directory of very many files takes at most a twentieth of a processor.
            pause = RESCAN.max(began.elapsed() * 20);
            let Some(now) = scanned else { continue };
            let difference = self.told.difference(&now);
            self.told = now;
            if !difference.is_empty() && !self.tell(difference).await {
                return;
            }
        }
    }

    async fn tell(&self, events: Vec<Event>) -> bool {
        let sent = self.events.send(events).await.is_ok();
        self.reporter.changed();
        sent
    }
}

/// Waits for a change and then for the end of it; false when there will be none.
async fn settled(changed: &mut watch::Receiver<()>) -> bool {
    if changed.changed().await.is_err() {
        return false;
    }
    let latest = tokio::time::Instant::now() + SETTLE_MOST;
    loop {
        let quiet = tokio::time::Instant::now() + SETTLE;
        match tokio::time::timeout_at(quiet.min(latest), changed.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return false,
            Err(_) => return true,
        }
    }
}

/// inotify on the directory that the path leads to now.
struct DirectoryWatch {
    changes: watch::Sender<()>,
    watcher: Option<RecommendedWatcher>,
    /// Which directory is watched: device and inode.
    watched: Option<(u64, u64)>,
    problem: Option<String>,
}

impl DirectoryWatch {
    const fn new(changes: watch::Sender<()>) -> Self {
        Self { changes, watcher: None, watched: None, problem: None }
    }

    /// Watches the directory, anew when the path leads to another one than before.
    fn follow(&mut self, directory: &Directory) {
        let now = directory.identity();
        if now.is_none() || (now == self.watched && self.watcher.is_some()) {
            return;
        }
        match self.watch(directory.path()) {
            Ok(watcher) => (self.watcher, self.watched, self.problem) = (Some(watcher), now, None),
            Err(error) => {
                self.watcher = None;
                self.problem = Some(format!(
                    "{}: cannot be watched by inotify ({error}) and is scanned instead; raise fs.inotify.max_user_watches and max_user_instances",
                    directory.path().display()
                ));
            }
        }
    }

    fn watch(&self, path: &Path) -> notify::Result<RecommendedWatcher> {
        let changes = self.changes.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files makes events too; only the end of writing counts among accesses. An error may be an overflow.
            let ours = event.is_ok_and(
                |e| matches!(e.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)),
            );
            if !ours {
                changes.send_replace(());
            }
        })?;
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    fn problem(&self) -> Option<String> {
        self.problem.clone()
    }
}
