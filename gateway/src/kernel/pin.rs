//! `datapath.pin`: what outlives the agent in a BPF file system, and what a later agent inherits from it.
//!
//! Links are pinned, so programs stay where they are; they hold the maps they use. A later agent loads programs and maps of its own,
//! fills them with the first plan, and then puts its programs into the pinned links one by one: a packet meets the old state as a whole
//! or the new one, and a start that fails changes nothing. Only the flow table is shared by the two. What its records mean is read
//! from the old maps: endpoint indices with their generations, next-hop indices, the numbers of Service ports.

use std::{
    collections::HashSet,
    ffi::CString,
    fs, io,
    net::IpAddr,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::MapData,
    programs::links::{FdLink, PinnedLink},
    util::KernelVersion,
};
use bytemuck::Pod;
use gateway_common::maps::{Endpoint, Flow, FlowKey, LAYOUT, NextHop, Service, ServiceKey, endpoint};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{
    KernelError,
    family::Family,
    ports::Key,
    table::{Cursor, Table, bpf},
};
use crate::{model::Protocol, plan};

/// The maps that two agents share: the flow tables.
const SHARED: [&str; 2] = [<[u8; 4]>::FLOWS, <[u8; 16]>::FLOWS];
/// The maps that a later agent reads.
const READ: [&str; 4] = [<[u8; 4]>::SERVICES, <[u8; 16]>::SERVICES, "ENDPOINTS", "NEXTHOPS"];
/// What the names of pinned links begin with.
const LINK: &str = "link-";
/// Entries fetched by one system call.
const CHUNK: usize = 4096;

const OBJ_GET: libc::c_long = 7;
const LINK_DETACH: libc::c_long = 34;

/// The directory of one layout version below `datapath.pin`.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    dir: PathBuf,
}

/// Whether `root` can hold pins: it, or the directory in which it is to be made, is on a BPF file system.
///
/// # Errors
/// Names the directory and what to do.
pub fn check_pin(root: &Path) -> Result<(), KernelError> {
    if KernelVersion::current().is_ok_and(|v| v < KernelVersion::new(6, 6, 0)) {
        return Err(KernelError::PinTcx);
    }
    let there = root.ancestors().find(|p| p.exists()).unwrap_or(root);
    let found = statfs(there).map_err(|source| KernelError::Pin { path: there.into(), source: source.into() })?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    Err(KernelError::NotBpffs { path: root.into() })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    move |source| KernelError::Pin { path: path.into(), source }
}

/// The entries of a directory, none when there is no such directory.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, KernelError> {
    match fs::read_dir(dir) {
        Ok(list) => Ok(list.flatten().map(|e| e.path()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(dir)(e)),
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

/// Directories of any layout version.
fn versions(root: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let version = |p: &PathBuf| file_name(p).strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
    Ok(entries(root)?.into_iter().filter(version).collect())
}

/// Takes a pin away; a link is detached before. Waiting for the kernel to do it when the last reference goes would mean not to know when.
fn remove(path: &Path) -> Result<(), KernelError> {
    if file_name(path).starts_with(LINK) {
        match detach_link(path) {
            // Its interface is gone, or somebody was faster.
            Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT)) => return Err(failed(path)(e)),
            _ => {}
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(path)(e)),
        _ => Ok(()),
    }
}

fn detach_link(path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct GetAttr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    #[repr(C)]
    struct DetachAttr {
        fd: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut get = GetAttr { path: name.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads a string that ends with a zero byte and outlives the call.
    let fd = unsafe { bpf(OBJ_GET, &mut get) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: no pointer in there.
    unsafe { bpf(LINK_DETACH, &mut DetachAttr { fd: fd.as_raw_fd().cast_unsigned() }) }.map(drop)
}

/// Takes a directory of pins away, with what is in it.
fn remove_dir(dir: &Path) -> Result<(), KernelError> {
    // Links first: programs that go on without the pins of their maps could not be taken over any more.
    let mut pins = entries(dir)?;
    pins.sort_by_key(|p| !file_name(p).starts_with(LINK));
    for pin in pins {
        remove(&pin)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(dir)(e)),
        _ => Ok(()),
    }
}

/// Takes every version's pins away; says what was done.
pub(super) fn remove_all(root: &Path) -> Result<Vec<String>, KernelError> {
    let mut done = Vec::new();
    for dir in versions(root)? {
        let links = entries(&dir)?.iter().filter(|p| file_name(p).starts_with(LINK)).count();
        remove_dir(&dir)?;
        done.push(format!("{}: {links} programs are off, their maps are gone", dir.display()));
    }
    // The mount point itself stays, and so does a directory in which somebody else has pins.
    fs::remove_dir(root).unwrap_or(());
    Ok(done)
}

impl Pins {
    /// Makes sure of the directory.
    pub(super) fn open(root: &Path) -> Result<Self, KernelError> {
        check_pin(root)?;
        let pins = Self { root: root.into(), dir: root.join(format!("v{LAYOUT}")) };
        fs::create_dir_all(&pins.dir).map_err(failed(&pins.dir))?;
        Ok(pins)
    }

    /// The maps that are taken over as they are, with their pins: IPv4's, IPv6's.
    pub(super) fn shared(&self) -> [(&'static str, PathBuf); 2] {
        SHARED.map(|name| (name, self.dir.join(name)))
    }

    /// A pinned flow table that is empty gives way to one of another size: a family's first clients get a table of the right size.
    pub(super) fn make_anew(&self, name: &'static str, records: u32) -> Result<(), KernelError> {
        let path = self.dir.join(name);
        if !path.exists() {
            return Ok(());
        }
        let data = MapData::from_pin(&path).map_err(|e| failed(&path)(io::Error::other(e)))?;
        let there = data.info().map_err(|e| failed(&path)(io::Error::other(e)))?.max_entries();
        if there == records {
            return Ok(());
        }
        let empty = match name {
            <[u8; 4]>::FLOWS => is_empty::<[u8; 4]>(&path),
            _ => is_empty::<[u8; 16]>(&path),
        };
        if empty.map_err(failed(&path))? { remove(&path) } else { Ok(()) }
    }

    /// The pin of a link.
    pub(super) fn link(&self, hook: &str, interface: u32) -> PathBuf {
        // By index: names may have dots, which a BPF file system refuses.
        self.dir.join(format!("{LINK}{hook}-{interface}"))
    }

    /// The link pinned there.
    pub(super) fn open_link(path: &Path) -> Option<FdLink> {
        path.exists().then(|| PinnedLink::from_pin(path).ok().map(FdLink::from)).flatten()
    }

    /// Takes a link's pin away, and the link with it.
    pub(super) fn unlink(path: &Path) {
        if let Err(error) = remove(path) {
            tracing::warn!("{error}");
        }
    }

    /// An interface takes one XDP program: that of another mode, or of another layout version, makes room. TC serves meanwhile.
    pub(super) fn make_room(&self, interface: u32, keep: &Path) {
        let end = format!("-{interface}");
        for dir in versions(&self.root).unwrap_or_default() {
            for pin in entries(&dir).unwrap_or_default() {
                let name = file_name(&pin);
                if name.starts_with("link-xdp") && name.ends_with(&end) && pin != keep {
                    Self::unlink(&pin);
                }
            }
        }
    }

    /// Whether programs are pinned.
    pub(super) fn running(&self) -> bool {
        entries(&self.dir).is_ok_and(|list| list.iter().any(|p| file_name(p).starts_with(LINK)))
    }

    /// Pins what a later agent has to read, in place of what was there.
    pub(super) fn pin_maps(&self, ebpf: &Ebpf) -> Result<(), KernelError> {
        for name in READ {
            let Some(map) = ebpf.map(name) else { continue };
            let (pin, fresh) = (self.dir.join(name), self.dir.join(format!("{name}-new")));
            remove(&fresh)?;
            map.pin(&fresh).map_err(|e| failed(&fresh)(io::Error::other(e)))?;
            fs::rename(&fresh, &pin).map_err(failed(&pin))?;
        }
        Ok(())
    }

    /// After everything is attached: links that are not `used` any more go, and so do other layout versions.
    pub(super) fn tidy(&self, used: &HashSet<PathBuf>) {
        let unused = |p: &PathBuf| file_name(p).starts_with(LINK) && !used.contains(p);
        for pin in entries(&self.dir).unwrap_or_default().into_iter().filter(unused) {
            tracing::info!(pin = %pin.display(), "a program that is not needed any more is taken off");
            Self::unlink(&pin);
        }
        for dir in versions(&self.root).unwrap_or_default().into_iter().filter(|dir| *dir != self.dir) {
            match remove_dir(&dir) {
                Ok(()) => tracing::info!(dir = %dir.display(), "the datapath of another version is taken off"),
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }

    /// Takes away what a start that came to nothing has made.
    pub(super) fn remove_idle(&self) {
        if self.running() {
            return;
        }
        if let Err(error) = remove_dir(&self.dir) {
            tracing::warn!("{error}");
        }
        fs::remove_dir(&self.root).unwrap_or(());
    }

    /// What an earlier agent has left.
    pub(super) fn heritage(&self) -> Result<Heritage, KernelError> {
        Heritage::read(self).map_err(|error| match error {
            KernelError::Map { map, source } => KernelError::Pin { path: self.dir.join(map), source },
            other => other,
        })
    }

    fn table<K: bytemuck::Pod, V: bytemuck::Pod>(
        &self,
        name: &'static str,
    ) -> Result<Option<Table<K, V>>, KernelError> {
        let path = self.dir.join(name);
        if path.exists() { Table::pinned(&path, name).map(Some) } else { Ok(None) }
    }
}

/// What the flow table's records refer to.
#[derive(Debug, Default)]
pub(super) struct Heritage {
    /// Numbers of Service ports.
    pub(super) services: Vec<(Key, u32)>,
    /// Service number and endpoint → index and generation.
    pub(super) endpoints: Vec<((u32, plan::Endpoint), (u32, u32))>,
    /// No flow and no endpoint has a higher one.
    pub(super) generation: u32,
    /// Next hops by index.
    pub(super) hops: Vec<(u32, NextHop)>,
}

impl Heritage {
    fn read(pins: &Pins) -> Result<Self, KernelError> {
        let mut heritage = Self::default();
        heritage.read_family::<[u8; 4]>(pins)?;
        heritage.read_family::<[u8; 16]>(pins)?;
        each(pins.table("ENDPOINTS")?, |index: u32, value: Endpoint| {
            if value.generation == 0 {
                return;
            }
            heritage.generation = heritage.generation.max(value.generation);
            let addr = address(value.addr, value.flags & endpoint::V6 != 0);
            let at = plan::Endpoint { addr, port: u16::from_be_bytes(value.port) };
            heritage.endpoints.push(((value.service, at), (index, value.generation)));
        })?;
        each(pins.table("NEXTHOPS")?, |index: u32, value: NextHop| {
            if index != 0 && value != bytemuck::Zeroable::zeroed() {
                heritage.hops.push((index, value));
            }
        })?;
        Ok(heritage)
    }

    fn read_family<A: Family>(&mut self, pins: &Pins) -> Result<(), KernelError>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
        ServiceKey<A>: Pod,
    {
        each(pins.table(A::FLOWS)?, |_: FlowKey<A>, flow: Flow<A>| {
            self.generation = self.generation.max(flow.generation);
        })?;
        each(pins.table(A::SERVICES)?, |key: ServiceKey<A>, value: Service| {
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == key.proto);
            if let Some(protocol) = protocol.filter(|_| value.id != 0) {
                let key = (key.addr.into(), u16::from_be_bytes(key.port), protocol);
                self.services.push((key, value.id));
            }
        })
    }

    /// Highest endpoint index.
    pub(super) fn last_endpoint(&self) -> u32 {
        self.endpoints.iter().map(|(_, (index, _))| *index).max().unwrap_or(0)
    }

    /// Highest next-hop index.
    pub(super) fn last_hop(&self) -> u32 {
        self.hops.iter().map(|(index, _)| *index).max().unwrap_or(0)
    }
}

/// An address as map values have it.
pub(super) fn address(bytes: [u8; 16], v6: bool) -> IpAddr {
    let [a, b, c, d, ..] = bytes;
    if v6 { IpAddr::from(bytes) } else { IpAddr::from([a, b, c, d]) }
}

fn is_empty<A: Family>(pin: &Path) -> io::Result<bool>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let table: Table<FlowKey<A>, Flow<A>> = Table::pinned(pin, A::FLOWS).map_err(io::Error::other)?;
    Ok(table.walk(&mut Cursor::default(), 1)?.is_empty())
}

fn each<K: bytemuck::Pod, V: bytemuck::Pod>(
    table: Option<Table<K, V>>,
    mut see: impl FnMut(K, V),
) -> Result<(), KernelError> {
    let Some(table) = table else { return Ok(()) };
    let mut cursor = Cursor::default();
    loop {
        let map = |source| KernelError::Map { map: table.name(), source };
        let found = table.walk(&mut cursor, CHUNK).map_err(map)?;
        if found.is_empty() {
            return Ok(());
        }
        for (key, value) in found {
            see(key, value);
        }
    }
}
