//! Sysctls that the gateway sets, and puts back. What was there before is written to a file under `/run` first, so that a start
//! after a crash, or `gateway detach`, can still put it back.

use std::{
    collections::HashSet,
    fs, io,
    ops::RangeInclusive,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::KernelError;

/// Ports that the kernel does not give to local sockets: the source ports of translated flows.
const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// `bpf_fib_lookup` refuses to look a route up for an interface that does not forward. The datapath asks as the loopback device, so
/// that no real interface has to become one: this node does not turn into a router. On a Kubernetes node it is 1 anyway.
const LOOPBACK_FORWARDING: &str = "/proc/sys/net/ipv4/conf/lo/forwarding";
/// The same for IPv6, where there are IPv6 clients. Writing it has a side effect: see [`write_shielded`].
const LOOPBACK_FORWARDING_6: &str = "/proc/sys/net/ipv6/conf/lo/forwarding";
const INTERFACES_6: &str = "/proc/sys/net/ipv6/conf";
const STATE_DIR: &str = "/run/gateway";

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    path: String,
    before: String,
    written: String,
}

/// What the gateway has set in one network namespace.
#[derive(Debug)]
pub(super) struct Sysctls {
    state: Option<PathBuf>,
    entries: Vec<Entry>,
}

/// Where the state of the calling thread's network namespace is kept.
fn state_file() -> Option<PathBuf> {
    let inode = fs::metadata("/proc/thread-self/ns/net").ok()?.ino();
    Some(Path::new(STATE_DIR).join(format!("sysctl.{inode}")))
}

fn error(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> KernelError {
    move |source| KernelError::Sysctl { path: path.as_ref().into(), source }
}

fn read(path: &str) -> Result<String, KernelError> {
    Ok(fs::read_to_string(path).map_err(error(path))?.trim().to_owned())
}

/// As `sysctl` names it.
fn name(path: &str) -> String {
    path.trim_start_matches("/proc/sys/").replace('/', ".")
}

/// What an earlier run has noted: path, value before, value written, separated by tabs.
fn noted(state: &Path) -> Vec<Entry> {
    let entry = |line: &str| {
        let mut fields = line.split('\t').map(str::to_owned);
        Some(Entry { path: fields.next()?, before: fields.next()?, written: fields.next()? })
    };
    fs::read_to_string(state).map_or_else(|_| Vec::new(), |text| text.lines().filter_map(entry).collect())
}

/// Takes away what was noted for network namespaces that are gone, sysctls and all: no process is in them, nothing holds them.
fn forget_dead() {
    let Ok(files) = fs::read_dir(STATE_DIR) else { return };
    let inode = |path: PathBuf| fs::metadata(path).map(|m| m.ino()).ok();
    let entries = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries("/run/netns").filter_map(|e| inode(e.path()));
    let threads = entries("/proc").flat_map(|p| fs::read_dir(p.path().join("task")).into_iter().flatten().flatten());
    let alive: HashSet<u64> = named.chain(threads.filter_map(|t| inode(t.path().join("ns/net")))).collect();
    for file in files.flatten() {
        let name = file.file_name();
        let noted = name.to_str().and_then(|n| n.strip_prefix("sysctl.")?.parse().ok());
        if noted.is_some_and(|inode: u64| !alive.contains(&inode))
            && let Err(error) = fs::remove_file(file.path())
        {
            tracing::debug!(file = %file.path().display(), %error, "a note about a namespace that is gone stays");
        }
    }
}

/// Writes a value; for IPv6 forwarding with the routes shielded that router advertisements have made.
fn write(path: &str, value: &str) -> io::Result<()> {
    if path == LOOPBACK_FORWARDING_6 { write_shielded(path, value) } else { fs::write(path, format!("{value}\n")) }
}

/// Whichever interface it is switched on for, IPv6 forwarding makes the kernel delete every route learnt from router advertisements,
/// on all interfaces whose `accept_ra` is not 2: a node would lose its default route, for the sake of its loopback device. So `accept_ra`
/// is 2 everywhere while the value is written, and then what it was; an interface that does not forward treats 1 and 2 alike.
fn write_shielded(path: &str, value: &str) -> io::Result<()> {
    let mut shielded = Vec::new();
    for interface in fs::read_dir(INTERFACES_6)?.flatten() {
        // Not the two that stand for all interfaces, present and future.
        if ["all", "default"].iter().any(|name| interface.file_name() == *name) {
            continue;
        }
        let accept = interface.path().join("accept_ra");
        // An interface that has gone meanwhile has no routes either.
        if let Ok(before) = fs::read_to_string(&accept)
            && before.trim() != "2"
            && fs::write(&accept, "2\n").is_ok()
        {
            shielded.push((accept, before));
        }
    }
    let written = fs::write(path, format!("{value}\n"));
    for (accept, before) in shielded {
        if let Err(error) = fs::write(&accept, before) {
            tracing::debug!(path = %accept.display(), %error, "its interface has gone");
        }
    }
    written
}

impl Sysctls {
    /// Reserves `ports` (for both families, whatever the name says) and lets the loopback device forward, with `v6` for IPv6, too; as
    /// far as that is not so already. What cannot be set is logged with what to do: the datapath works without, only less safely.
    pub(super) fn set(ports: &RangeInclusive<u16>, v6: bool) -> Result<Self, KernelError> {
        let state = state_file();
        let earlier = state.as_deref().map(noted).unwrap_or_default();
        // What an earlier run that was killed has left there is not the host's own value.
        let before = |path: &str| -> Result<String, KernelError> {
            let current = read(path)?;
            let left = earlier.iter().find(|e| e.path == path && e.written == current);
            Ok(left.map_or(current, |e| e.before.clone()))
        };
        let reserved = before(RESERVED_PORTS)?;
        let mut wanted = parse(&reserved);
        wanted.push(ports.clone());
        let mut wanted = vec![
            (RESERVED_PORTS, reserved, print(&wanted)),
            (LOOPBACK_FORWARDING, before(LOOPBACK_FORWARDING)?, "1".into()),
        ];
        // A kernel may be without IPv6.
        if v6 && Path::new(LOOPBACK_FORWARDING_6).exists() {
            wanted.push((LOOPBACK_FORWARDING_6, before(LOOPBACK_FORWARDING_6)?, "1".into()));
        }
        let entries = wanted
            .into_iter()
            .filter(|(_, before, written)| before != written)
            .map(|(path, before, written)| Entry { path: path.to_owned(), before, written })
            .collect();
        let mut sysctls = Self { state, entries };
        sysctls.note();
        sysctls.entries.retain(|Entry { path, written, .. }| match write(path, written) {
            Ok(()) => {
                tracing::debug!(%path, %written, "set, until the gateway is taken off");
                true
            }
            // A container without privileges sees /proc/sys read-only: the host's administrator has to do it.
            Err(error) => {
                let name = name(path);
                tracing::warn!(%error, "cannot set {name}: run `sysctl -w {name}={written}` on the node");
                false
            }
        });
        Ok(sysctls)
    }

    fn note(&self) {
        forget_dead();
        let Some(path) = self.state.as_ref().filter(|_| !self.entries.is_empty()) else { return };
        let text: String = self.entries.iter().map(|e| format!("{}\t{}\t{}\n", e.path, e.before, e.written)).collect();
        if let Err(error) = fs::create_dir_all(STATE_DIR).and_then(|()| fs::write(path, text)) {
            tracing::warn!(file = %path.display(), %error, "cannot note the sysctls that are set; after a crash they stay");
        }
    }

    /// Puts back what was there before, where nobody else has changed it since.
    pub(super) fn restore(&self) -> Result<(), KernelError> {
        for Entry { path, before, written } in &self.entries {
            if read(path)? == *written {
                write(path, before).map_err(error(path))?;
            } else {
                tracing::warn!(%path, "somebody else has changed it: left as it is");
            }
        }
        if let Some(path) = &self.state {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(path)(e)),
                _ => {}
            }
            // Other namespaces may have their own files in there.
            fs::remove_dir(STATE_DIR).unwrap_or(());
        }
        Ok(())
    }

    /// What an earlier run left, when it did.
    pub(super) fn left_behind() -> Option<Self> {
        let state = state_file()?;
        let entries = noted(&state);
        (!entries.is_empty()).then_some(Self { state: Some(state), entries })
    }

    /// The sysctls, as `sysctl` names them.
    pub(super) fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.entries.iter().map(|e| name(&e.path))
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
