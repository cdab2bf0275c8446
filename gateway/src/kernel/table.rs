//! A BPF map as a table of plain values, by the `bpf` system call itself: aya has no batch operations, and its own typed
//! maps want a marker trait on types that live in `gateway-common`, which knows nothing of aya.
//!
//! A table is a file descriptor: clone it to use it from several threads. Every call is atomic for the datapath.

use std::{
    fmt, io,
    marker::PhantomData,
    mem::size_of,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    ptr,
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use bytemuck::Pod;

use super::KernelError;

const LOOKUP_ELEM: libc::c_long = 1;
const UPDATE_ELEM: libc::c_long = 2;
const DELETE_ELEM: libc::c_long = 3;
const LOOKUP_BATCH: libc::c_long = 24;

/// Only when the key is not there.
const NOEXIST: u64 = 1;
/// Only when the key is there.
const EXIST: u64 = 2;

/// `union bpf_attr` for single elements.
#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for batches.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Runs a command of the `bpf` system call; what it returns (a descriptor, or 0).
///
/// # Safety
/// Every pointer inside `attr` must be valid for what `command` reads and writes through it.
pub(super) unsafe fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live struct of the size that is passed; the caller vouches for the pointers in it.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<A>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

fn address<T>(value: &T) -> u64 {
    ptr::from_ref(value) as u64
}

/// The data behind any kind of map that the gateway uses.
pub(super) fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data) => Some(data),
        _ => None,
    }
}

/// A map of `K` to `V`.
pub(super) struct Table<K, V> {
    fd: Arc<OwnedFd>,
    name: &'static str,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self { fd: Arc::clone(&self.fd), name: self.name, types: PhantomData }
    }
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Where a walk through a hash map stands.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    at: Option<u32>,
    done: bool,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// The map of that name, when the object has it.
    pub(super) fn find(ebpf: &Ebpf, name: &'static str) -> Result<Option<Self>, KernelError> {
        ebpf.map(name).and_then(map_data).map(|data| Self::of(data, name)).transpose()
    }

    /// The map pinned there.
    pub(super) fn pinned(path: &Path, name: &'static str) -> Result<Self, KernelError> {
        let data = MapData::from_pin(path)
            .map_err(|source| KernelError::Map { map: name, source: io::Error::other(source) })?;
        Self::of(&data, name)
    }

    fn of(data: &MapData, name: &'static str) -> Result<Self, KernelError> {
        let info = data.info().map_err(|source| KernelError::Map { map: name, source: io::Error::other(source) })?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        if sizes != (size_of::<K>(), size_of::<V>()) {
            let want = (size_of::<K>(), size_of::<V>());
            let source = io::Error::other(format!("its key and value have {sizes:?} bytes, this agent wants {want:?}"));
            return Err(KernelError::Map { map: name, source });
        }
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|source| KernelError::Map { map: name, source })?;
        Ok(Self { fd: Arc::new(fd), name, types: PhantomData })
    }

    /// The map of that name.
    pub(super) fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, KernelError> {
        Self::find(ebpf, name)?.ok_or(KernelError::Map {
            map: name,
            source: io::Error::new(io::ErrorKind::NotFound, "the BPF object does not have it"),
        })
    }

    /// Its name, for messages.
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    fn elem(&self, key: &K, value: u64, flags: u64) -> ElemAttr {
        ElemAttr { map_fd: self.fd.as_raw_fd().cast_unsigned(), pad: 0, key: address(key), value, flags }
    }

    /// A copy of the value, `None` when the key is not there.
    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::zeroed();
        let mut attr = self.elem(key, ptr::from_mut(&mut value) as u64, 0);
        // SAFETY: the kernel reads size_of K from `key` and writes size_of V to `value`: both sizes were checked in `find`.
        match unsafe { bpf(LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The values of all CPUs, of a per-CPU map.
    pub(super) fn get_per_cpu(&self, key: &K, cpus: usize) -> io::Result<Vec<V>> {
        // The kernel gives each CPU a multiple of 8 bytes.
        debug_assert_eq!(size_of::<V>() % 8, 0, "values of per-CPU maps are whole words");
        let mut values = vec![V::zeroed(); cpus];
        let mut attr = self.elem(key, values.as_mut_ptr() as u64, 0);
        // SAFETY: the kernel writes size_of V for each possible CPU, and there is room for as many as the caller counted.
        unsafe { bpf(LOOKUP_ELEM, &mut attr) }?;
        Ok(values)
    }

    fn update(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        let mut attr = self.elem(key, address(value), flags);
        // SAFETY: the kernel only reads size_of K and size_of V, which were checked in `find`.
        unsafe { bpf(UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Inserts or replaces.
    pub(super) fn put(&self, key: &K, value: &V) -> io::Result<()> {
        self.update(key, value, 0)
    }

    /// Inserts; `false` when the key is there already.
    pub(super) fn insert(&self, key: &K, value: &V) -> io::Result<bool> {
        match self.update(key, value, NOEXIST) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Replaces; `false` when the key is not there.
    pub(super) fn replace(&self, key: &K, value: &V) -> io::Result<bool> {
        match self.update(key, value, EXIST) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes; `false` when the key was not there.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        let mut attr = self.elem(key, 0, 0);
        // SAFETY: the kernel only reads size_of K, which was checked in `find`.
        match unsafe { bpf(DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Writes elements of an array that can be mapped (`BPF_F_MMAPABLE`), from `start` on, through its memory. The kernel takes 0.4 us for
    /// each element of a batch; a table of Maglev slots has thousands. Programs may see any part of it at any time, so nobody may be
    /// reading there yet; what the next system call writes comes behind it.
    ///
    /// # Errors
    /// When the array cannot be mapped, or ends before the last element.
    pub(super) fn fill(&self, start: u32, values: &[V]) -> io::Result<()> {
        // Elements begin at multiples of 8 bytes.
        let stride = size_of::<V>().next_multiple_of(8);
        // SAFETY: sysconf takes no pointer.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
        let begin = start as usize * stride;
        let first_page = begin / page * page;
        let len = begin - first_page + values.len() * stride;
        if values.is_empty() {
            return Ok(());
        }
        let offset = libc::off_t::try_from(first_page).map_err(io::Error::other)?;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it refuses what is beyond the array's end.
        let memory = unsafe { libc::mmap(ptr::null_mut(), len, rights, libc::MAP_SHARED, self.fd.as_raw_fd(), offset) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for (index, value) in values.iter().enumerate() {
            // SAFETY: inside the mapping, which has `len` bytes, and aligned to 8 bytes as the page is; programs read it meanwhile, so it
            // is written as a whole.
            unsafe {
                let element = memory.cast::<u8>().add(begin - first_page + index * stride);
                element.cast::<V>().write_volatile(*value);
            }
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        // SAFETY: the mapping made above, which nothing refers to any more.
        let unmapped = unsafe { libc::munmap(memory, len) };
        if unmapped == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The next entries of a hash map, or of an array, at most about `limit`; an empty answer is the end. Entries that stay in the map the whole
    /// time are seen once; those that come or go meanwhile may be.
    pub(super) fn walk(&self, cursor: &mut Cursor, limit: usize) -> io::Result<Vec<(K, V)>> {
        let mut limit = limit;
        while !cursor.done {
            let mut keys = vec![K::zeroed(); limit];
            let mut values = vec![V::zeroed(); limit];
            let mut next = 0u32;
            let mut attr = BatchAttr {
                in_batch: cursor.at.as_ref().map_or(0, address),
                out_batch: ptr::from_mut(&mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(limit).map_err(io::Error::other)?,
                map_fd: self.fd.as_raw_fd().cast_unsigned(),
                ..BatchAttr::default()
            };
            // SAFETY: the kernel writes at most `count` keys and values, for which there is room, and 4 bytes of cursor.
            let result = unsafe { bpf(LOOKUP_BATCH, &mut attr) };
            match result {
                Ok(_) => cursor.at = Some(next),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => cursor.done = true,
                // One bucket holds more than there is room for.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                    limit *= 2;
                    continue;
                }
                Err(e) => return Err(e),
            }
            let count = attr.count as usize;
            if count > 0 {
                keys.truncate(count);
                return Ok(keys.into_iter().zip(values).collect());
            }
        }
        Ok(Vec::new())
    }
}
