//! Maps by the `bpf` system call: counters of all CPUs in one call, and tables of either family by one code.

use std::{io, os::fd::RawFd};

use aya::{Ebpf, maps::Map};

const UPDATE_ELEM: libc::c_long = 2;
const DELETE_ELEM: libc::c_long = 3;
const LOOKUP_BATCH: libc::c_long = 24;

#[repr(C)]
#[derive(Default)]
struct Elem {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

fn call<A>(command: libc::c_long, attr: &mut A) -> io::Result<()> {
    // SAFETY: `attr` is a live struct of the size that is passed, and the callers below keep what it points to alive.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The descriptor of a map of the object.
pub fn descriptor(ebpf: &Ebpf, name: &str) -> RawFd {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    match ebpf.map(name).unwrap_or_else(|| panic!("no map {name}")) {
        Map::Array(map) | Map::HashMap(map) | Map::LpmTrie(map) | Map::LruHashMap(map) | Map::PerCpuArray(map) => {
            map.fd().as_fd().as_raw_fd()
        }
        _ => panic!("{name}: a map of an unexpected kind"),
    }
}

/// Puts a value under a key; the sizes are the map's.
pub fn put(map: RawFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = Elem { map: map as u32, key: key.as_ptr() as u64, value: value.as_ptr() as u64, ..Elem::default() };
    call(UPDATE_ELEM, &mut attr)
}

/// Every key and value; `key` and `value` are the sizes of one. For an array of all CPUs a value is one of each CPU.
pub fn all(map: RawFd, key: usize, value: usize) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    const MOST: usize = 1024;
    let (mut keys, mut values) = (vec![0u8; MOST * key], vec![0u8; MOST * value]);
    let (mut from, mut to) = ([0u8; 64], [0u8; 64]);
    let mut found = Vec::new();
    let mut first = true;
    loop {
        let mut attr = Batch {
            from: if first { 0 } else { from.as_ptr() as u64 },
            to: to.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: MOST as u32,
            map: map as u32,
            ..Batch::default()
        };
        let end = match call(LOOKUP_BATCH, &mut attr) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        for i in 0..attr.count as usize {
            found.push((keys[i * key..][..key].to_vec(), values[i * value..][..value].to_vec()));
        }
        if end || attr.count == 0 {
            return Ok(found);
        }
        (from, first) = (to, false);
    }
}

/// Takes every key out.
pub fn clear(map: RawFd, key: usize, value: usize) -> io::Result<()> {
    for (name, _) in all(map, key, value)? {
        let mut attr = Elem { map: map as u32, key: name.as_ptr() as u64, ..Elem::default() };
        match call(DELETE_ELEM, &mut attr) {
            // An LRU map may have lost it by itself.
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The sum over all CPUs of each of `count` counters, read in one call.
pub struct Counters {
    map: RawFd,
    cpus: usize,
    keys: Vec<u32>,
    values: Vec<u64>,
}

impl Counters {
    pub fn new(map: RawFd, count: usize) -> Self {
        let cpus = aya::util::nr_cpus().expect("the number of CPUs");
        Self { map, cpus, keys: vec![0; count], values: vec![0; count * cpus] }
    }

    pub fn read(&mut self, into: &mut [u64]) {
        let mut to = [0u8; 8];
        let mut attr = Batch {
            to: to.as_mut_ptr() as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: self.keys.len() as u32,
            map: self.map as u32,
            ..Batch::default()
        };
        match call(LOOKUP_BATCH, &mut attr) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => panic!("COUNTERS: {error}"),
            _ => {}
        }
        for (i, sum) in into.iter_mut().enumerate() {
            *sum = self.values[i * self.cpus..][..self.cpus].iter().sum();
        }
    }
}
