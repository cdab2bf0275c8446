//! The files of the directory: which there are, which changed, and what each said when it last could be read.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    string::FromUtf8Error,
    time::{Duration, SystemTime},
};

use super::parse::{Parsed, documents};
use crate::model::Objects;

/// A file whose time is this close to when it was read may change once more without its time or size showing it.
const RACY: Duration = Duration::from_millis(100);

/// A file that had objects and is empty is believed after this time: many editors and `cat > file` empty a file before they write it.
const EMPTIED: Duration = Duration::from_millis(300);

/// What tells that a file is another one, or says something else, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A manifest file.
#[derive(Debug, Default)]
struct File {
    /// None: it could not be read, and is tried again.
    stamp: Option<Stamp>,
    /// It may have changed after it was read, within one tick of the file system's clock.
    racy: bool,
    /// The text that was read last, good or not.
    text: String,
    /// What it said when it last was good.
    good: Parsed,
    /// What is wrong with it now.
    error: Option<String>,
}

/// The directory and its files.
#[derive(Debug, Default)]
pub(super) struct Directory {
    path: PathBuf,
    files: BTreeMap<String, File>,
    error: Option<String>,
    /// The same object in several files.
    duplicates: Vec<String>,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode of the directory that the path leads to now.
    pub(super) fn identity(&self) -> Option<(u64, u64)> {
        fs::metadata(&self.path).ok().map(|m| (m.dev(), m.ino()))
    }

    /// Whether it could be read.
    pub(super) const fn readable(&self) -> bool {
        self.error.is_none()
    }

    /// What is wrong now.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let of_file = |(name, file): (&String, &File)| {
            let path = self.path.join(name);
            let error = file.error.as_ref().map(|e| format!("{}: {e}; its last good state is kept", path.display()));
            let problems = file.good.problems.iter().map(move |p| format!("{}: {p}", path.display()));
            error.into_iter().chain(problems).collect::<Vec<_>>()
        };
        self.error.clone().into_iter().chain(self.files.iter().flat_map(of_file)).chain(self.duplicates.clone())
    }

    /// Reads what changed. The whole new state when a file's meaning changed, else nothing.
    pub(super) fn scan(&mut self) -> Option<Objects> {
        match self.scan_files() {
            Ok(changed) => {
                self.error = None;
                changed.then(|| self.merge())
            }
            Err(error) => {
                // A directory that cannot be read for a moment (being replaced, unmounted) is not an empty cluster.
                self.error = Some(format!(
                    "{}: cannot be read: {error}; the last good state is kept; make it readable again",
                    self.path.display()
                ));
                None
            }
        }
    }

    fn scan_files(&mut self) -> io::Result<bool> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is none that a person or kubectl gave.
            if let Ok(name) = entry?.file_name().into_string()
                && is_manifest(&name)
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        let before = self.files.len();
        self.files.retain(|name, _| names.binary_search(name).is_ok());
        let mut changed = self.files.len() != before;
        for name in names {
            let path = self.path.join(&name);
            match fs::metadata(&path) {
                Ok(metadata) if !metadata.is_file() => changed |= self.files.remove(&name).is_some(),
                Ok(metadata) => changed |= self.files.entry(name).or_default().refresh(&path, Stamp::of(&metadata)),
                // Removed between the listing and now; a link that leads nowhere is one that is being replaced, or wrong.
                Err(_) if fs::symlink_metadata(&path).is_err() => changed |= self.files.remove(&name).is_some(),
                Err(error) => self.files.entry(name).or_default().fail(format!("cannot be read: {error}")),
            }
        }
        Ok(changed)
    }

    /// All files' objects. The last file by name decides about an object that several have, and it is said.
    fn merge(&mut self) -> Objects {
        let mut last: HashMap<_, &str> = HashMap::new();
        self.duplicates.clear();
        for (name, file) in &self.files {
            for object in &file.good.objects {
                match last.entry(object.identity()) {
                    Entry::Vacant(place) => drop(place.insert(name)),
                    Entry::Occupied(mut place) => {
                        let (kind, object) = place.key();
                        let earlier = place.get();
                        let where_ = if earlier == name {
                            format!("twice in {name}")
                        } else {
                            format!("in {earlier} and {name}")
                        };
                        let counts = if earlier == name { "the last one" } else { name.as_str() };
                        let separator = if object.namespace.is_empty() { "" } else { "/" };
                        self.duplicates.push(format!(
                            "{}: {kind} {}{separator}{} is {where_}; {counts} counts; remove the other",
                            self.path.display(),
                            object.namespace,
                            object.name
                        ));
                        place.insert(name);
                    }
                }
            }
        }
        let mut objects = Objects::default();
        // Endpoints become several slices: those of an earlier file must not stay beside those of the one that counts.
        for (name, file) in &self.files {
            for object in file.good.objects.iter().filter(|o| last.get(&o.identity()).is_some_and(|l| l == name)) {
                object.clone().insert_into(&mut objects);
            }
        }
        objects
    }
}

impl File {
    /// Reads the file when it may have changed; whether its meaning did.
    fn refresh(&mut self, path: &Path, stamp: Stamp) -> bool {
        if self.stamp == Some(stamp) && !self.racy {
            return false;
        }
        let now = SystemTime::now();
        let text = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.fail(format!("cannot be read: {error}"));
                return false;
            }
        };
        let modified =
            SystemTime::UNIX_EPOCH + Duration::new(stamp.modified.0.max(0).unsigned_abs(), stamp.modified.1 as u32);
        // A time in the future is not close to now: it was set, not made by a write.
        let younger = |limit| now.duration_since(modified).is_ok_and(|age| age < limit);
        if text.is_empty() && !self.good.objects.is_empty() && younger(EMPTIED) {
            self.stamp = None;
            return false;
        }
        let known = self.stamp.replace(stamp).is_some();
        self.racy = younger(RACY);
        let text = match utf8(text) {
            Ok(text) => text,
            Err(error) => {
                self.stamp = None;
                let at = error.utf8_error().valid_up_to();
                let line = error.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
                self.fail(format!("line {line}: not UTF-8 text (nor UTF-16 with a byte order mark)"));
                return false;
            }
        };
        if known && text == self.text {
            return false;
        }
        let json = path.extension().is_some_and(|e| e == "json");
        let read = documents(&text, json);
        self.text = text;
        match read {
            Ok(parsed) => {
                self.error = None;
                let changed = self.good.objects != parsed.objects;
                self.good = parsed;
                changed
            }
            Err(error) => {
                self.error = Some(error.to_string());
                false
            }
        }
    }

    /// What it last said is kept; it is tried again with the next scan.
    fn fail(&mut self, error: String) {
        self.stamp = None;
        self.error = Some(error);
    }
}

/// The text of a file: UTF-8, or UTF-16 with its byte order mark, as PowerShell's `>` writes what kubectl prints.
fn utf8(bytes: Vec<u8>) -> Result<String, FromUtf8Error> {
    let word = match bytes.as_slice() {
        [0xff, 0xfe, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] => u16::from_be_bytes,
        _ => return String::from_utf8(bytes),
    };
    let words = bytes.chunks_exact(2).filter_map(|pair| pair.try_into().ok()).map(word);
    char::decode_utf16(words).collect::<Result<String, _>>().or_else(|_| String::from_utf8(bytes))
}

/// Manifests by their ending; hidden files and editors' copies (`.x.yaml.swp`, `.#x.yaml`, `#x.yaml#`, `x.yaml~`) are none.
fn is_manifest(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    !name.starts_with(['.', '#']) && matches!(ending, Some("yaml" | "yml" | "json"))
}
