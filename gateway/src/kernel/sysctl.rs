//! Sysctls that the gateway sets, and puts back. What was there before is written to a file under `/run` first, so that a start
//! after a crash, or `gateway detach`, can still put it back.

use std::{
    fs, io,
    ops::RangeInclusive,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::KernelError;

const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const STATE_DIR: &str = "/run/gateway";

/// The reserved source ports of this network namespace.
#[derive(Debug)]
pub(super) struct ReservedPorts {
    state: Option<PathBuf>,
    before: String,
    written: String,
}

/// Where the state of the calling thread's network namespace is kept.
fn state_file() -> Option<PathBuf> {
    let inode = fs::metadata("/proc/thread-self/ns/net").ok()?.ino();
    Some(Path::new(STATE_DIR).join(format!("reserved-ports.{inode}")))
}

fn error(path: &str) -> impl Fn(io::Error) -> KernelError + '_ {
    move |source| KernelError::Sysctl { path: path.into(), source }
}

/// The state of an earlier run: what was there before, and what it wrote.
fn read_state(path: &Path) -> Option<(String, String)> {
    let text = fs::read_to_string(path).ok()?;
    let (before, written) = text.split_once('\n')?;
    Some((before.to_owned(), written.trim_end().to_owned()))
}

impl ReservedPorts {
    /// Adds `ports` to what the kernel does not give to local sockets.
    pub(super) fn reserve(ports: &RangeInclusive<u16>) -> Result<Self, KernelError> {
        let current = fs::read_to_string(RESERVED_PORTS).map_err(error(RESERVED_PORTS))?.trim().to_owned();
        let state = state_file();
        // An earlier run that was killed has left its own range in there.
        let before = state
            .as_deref()
            .and_then(read_state)
            .filter(|(_, written)| parse(written) == parse(&current))
            .map_or(current, |(before, _)| before);
        let mut wanted = parse(&before);
        wanted.push(ports.clone());
        let written = print(&wanted);
        if let Some(path) = &state {
            let saved = fs::create_dir_all(STATE_DIR).and_then(|()| fs::write(path, format!("{before}\n{written}\n")));
            if let Err(error) = saved {
                tracing::warn!(file = %path.display(), %error, "cannot note the reserved ports; after a crash they stay");
            }
        }
        fs::write(RESERVED_PORTS, format!("{written}\n")).map_err(error(RESERVED_PORTS))?;
        Ok(Self { state, before, written })
    }

    /// Puts back what was there before, unless somebody else has changed it since.
    pub(super) fn restore(&self) -> Result<(), KernelError> {
        let current = fs::read_to_string(RESERVED_PORTS).map_err(error(RESERVED_PORTS))?;
        if parse(&current) == parse(&self.written) {
            fs::write(RESERVED_PORTS, format!("{}\n", self.before)).map_err(error(RESERVED_PORTS))?;
        } else {
            tracing::warn!(file = RESERVED_PORTS, "somebody else has changed it: left as it is");
        }
        if let Some(path) = &self.state {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(KernelError::Sysctl { path: path.clone(), source: e });
                }
                _ => {}
            }
            // Other namespaces may have their own files in there.
            fs::remove_dir(STATE_DIR).unwrap_or(());
        }
        Ok(())
    }

    /// What an earlier run left, when it did.
    pub(super) fn left_behind() -> Option<Self> {
        let path = state_file()?;
        let (before, written) = read_state(&path)?;
        Some(Self { state: Some(path), before, written })
    }
}

/// The kernel's list format, `8080,10000-29999`, sorted and joined.
fn parse(text: &str) -> Vec<RangeInclusive<u16>> {
    let ranges = text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    });
    join(ranges.collect())
}

fn join(mut ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ranges.sort_by_key(|r| *r.start());
    let mut joined: Vec<RangeInclusive<u16>> = Vec::new();
    for r in ranges {
        match joined.last_mut() {
            Some(last) if u32::from(*r.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=(*last.end()).max(*r.end());
            }
            _ => joined.push(r),
        }
    }
    joined
}

fn print(ranges: &[RangeInclusive<u16>]) -> String {
    let parts = join(ranges.to_vec())
        .into_iter()
        .map(|r| if r.start() == r.end() { r.start().to_string() } else { format!("{}-{}", r.start(), r.end()) });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_of_others_are_kept() {
        let mut all = parse("8080,30000-30010\n");
        all.push(10000..=29999);
        assert_eq!(print(&all), "8080,10000-30010", "touching ranges are joined, as the kernel prints them");
        assert_eq!(parse(""), Vec::new());
        assert_eq!(print(&parse("65535,1-2,2-5")), "1-5,65535");
    }
}
