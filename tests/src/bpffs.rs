//! A BPF file system of a test's own, and the maps that an agent pinned there.

use std::{
    ffi::CString,
    fs,
    io::{Error, Result},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::GatewayConfig;

/// A BPF file system of the test's own; what is pinned goes with it.
#[derive(Debug)]
pub struct Bpffs(PathBuf);

impl Bpffs {
    /// Mounts it. Call it in a test's turn only: there is one place for all.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount() -> Self {
        let dir = PathBuf::from("/run/gateway-lab.bpf");
        // A run that was killed has left its own.
        while umount2(&dir, MntFlags::MNT_DETACH).is_ok() {}
        fs::create_dir_all(&dir).expect("a directory");
        mount(Some("bpf"), &dir, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a BPF file system");
        Self(dir)
    }

    /// A config that pins below it.
    pub fn config(&self, mode: &str) -> GatewayConfig {
        GatewayConfig { extra: format!("  pin: {}\n", self.pins().display()), ..GatewayConfig::mode(mode) }
    }

    /// The directory that [`Bpffs::config`] names.
    pub fn pins(&self) -> PathBuf {
        self.0.join("gateway")
    }

    /// A map of this name, wherever below the pins it is.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        fn below(dir: &Path, name: &str) -> Option<PathBuf> {
            fs::read_dir(dir)
                .ok()?
                .flatten()
                .map(|entry| entry.path())
                .find_map(|path| if path.is_dir() { below(&path, name) } else { path.ends_with(name).then_some(path) })
        }
        below(&self.pins(), name)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("the mount is there");
        fs::remove_dir(&self.0).expect("an empty directory");
    }
}

const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// `union bpf_attr` in words of 8 bytes.
fn bpf(command: libc::c_long, mut attr: [u64; 16]) -> Result<libc::c_long> {
    // SAFETY: the kernel reads the given length of `attr`; the callers' pointers in it are to memory as long as the command takes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(&attr)) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// A pinned map, seen as bare keys.
#[derive(Debug)]
pub struct PinnedMap {
    fd: OwnedFd,
    key_size: usize,
}

impl PinnedMap {
    /// Opens it.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn open(path: &Path) -> Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut attr = [0; 16];
        attr[0] = path.as_ptr() as u64;
        let fd = i32::try_from(bpf(OBJ_GET, attr)?).map_err(Error::other)?;
        // SAFETY: the kernel has just given this descriptor to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // The beginning of `struct bpf_map_info`: type, id, size of keys, size of values, and more that nobody reads here.
        let mut info = [0_u32; 4];
        let mut attr = [0; 16];
        attr[0] = word(&fd) | (size_of_val(&info) as u64) << 32;
        attr[1] = info.as_mut_ptr() as u64;
        bpf(OBJ_GET_INFO_BY_FD, attr)?;
        Ok(Self { fd, key_size: info[2] as usize })
    }

    /// Every key.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn keys(&self) -> Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0; self.key_size];
            let mut attr = [0; 16];
            attr[0] = word(&self.fd);
            attr[1] = keys.last().map_or(0, |key| key.as_ptr() as u64);
            attr[2] = next.as_mut_ptr() as u64;
            match bpf(MAP_GET_NEXT_KEY, attr) {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, key: &[u8]) -> Result<()> {
        assert_eq!(key.len(), self.key_size, "a key of this map");
        let mut attr = [0; 16];
        attr[0] = word(&self.fd);
        attr[1] = key.as_ptr() as u64;
        bpf(MAP_DELETE_ELEM, attr).map(drop)
    }
}

fn word(fd: &OwnedFd) -> u64 {
    fd.as_raw_fd().cast_unsigned().into()
}
