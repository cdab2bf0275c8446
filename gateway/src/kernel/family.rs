//! The two address families as the maps have them: everything above the maps speaks of `IpAddr` and `IpNet`, every map is one of a
//! pair, and which of the two a key belongs to is decided here.

use std::{
    fmt,
    hash::Hash,
    net::{IpAddr, SocketAddr},
};

use aya::Ebpf;
use bytemuck::Pod;
use gateway_common::maps::{Address, PrefixKey, ServiceKey};
use ipnet::IpNet;

use super::{KernelError, table::Table};

/// An address family.
pub(super) trait Family: Address + Hash + fmt::Debug + Into<IpAddr> + 'static {
    /// Name of the flow table.
    const FLOWS: &'static str;
    /// Name of the map of Services.
    const SERVICES: &'static str;

    /// What people see of an address and port.
    fn socket(self, port: [u8; 2]) -> SocketAddr {
        SocketAddr::new(self.into(), u16::from_be_bytes(port))
    }
}

impl Family for [u8; 4] {
    const FLOWS: &'static str = "FLOWS4";
    const SERVICES: &'static str = "SERVICES4";
}

impl Family for [u8; 16] {
    const FLOWS: &'static str = "FLOWS6";
    const SERVICES: &'static str = "SERVICES6";
}

/// A key of one of the two maps of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key<K4, K6> {
    /// Of the IPv4 one.
    V4(K4),
    /// Of the IPv6 one.
    V6(K6),
}

/// Key of a prefix in a trie.
pub(super) type Prefix = Key<PrefixKey<[u8; 4]>, PrefixKey<[u8; 16]>>;
/// Key of a VIP and port.
pub(super) type ServiceAt = Key<ServiceKey<[u8; 4]>, ServiceKey<[u8; 16]>>;
/// An address as a key.
pub(super) type AddressKey = Key<[u8; 4], [u8; 16]>;

/// A prefix as an LPM trie has it.
pub(super) fn prefix(net: IpNet) -> Prefix {
    let bits = u32::from(net.prefix_len());
    match net.network() {
        IpAddr::V4(a) => Key::V4(PrefixKey { bits, addr: a.octets() }),
        IpAddr::V6(a) => Key::V6(PrefixKey { bits, addr: a.octets() }),
    }
}

/// A VIP and port; `port` 0 with `proto` 0 is the VIP itself.
pub(super) fn service(addr: IpAddr, port: u16, proto: u8) -> ServiceAt {
    match addr {
        IpAddr::V4(a) => Key::V4(ServiceKey::new(a.octets(), port, proto)),
        IpAddr::V6(a) => Key::V6(ServiceKey::new(a.octets(), port, proto)),
    }
}

/// An address.
pub(super) fn address(addr: IpAddr) -> AddressKey {
    match addr {
        IpAddr::V4(a) => Key::V4(a.octets()),
        IpAddr::V6(a) => Key::V6(a.octets()),
    }
}

/// An address as values of maps have it: IPv4 in the first four bytes, the rest zero.
pub(super) fn sixteen(addr: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match addr {
        IpAddr::V4(a) => bytes[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => bytes = a.octets(),
    }
    bytes
}

/// A pair of maps, one a family, with equal values.
pub(super) struct Pair<K4, K6, V> {
    /// IPv4.
    pub(super) v4: Table<K4, V>,
    /// IPv6.
    pub(super) v6: Table<K6, V>,
}

impl<K4, K6, V> Clone for Pair<K4, K6, V> {
    fn clone(&self) -> Self {
        Self { v4: self.v4.clone(), v6: self.v6.clone() }
    }
}

impl<K4, K6, V> fmt::Debug for Pair<K4, K6, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entry(&self.v4).entry(&self.v6).finish()
    }
}

impl<K4: Pod, K6: Pod, V: Pod> Pair<K4, K6, V> {
    /// The maps of those names.
    pub(super) fn open(ebpf: &Ebpf, v4: &'static str, v6: &'static str) -> Result<Self, KernelError> {
        Ok(Self { v4: Table::open(ebpf, v4)?, v6: Table::open(ebpf, v6)? })
    }

    fn named<T>(&self, key: &Key<K4, K6>, result: std::io::Result<T>) -> Result<T, KernelError> {
        let name = match key {
            Key::V4(_) => self.v4.name(),
            Key::V6(_) => self.v6.name(),
        };
        result.map_err(|source| KernelError::map(name, source))
    }

    /// A copy of the value.
    pub(super) fn get(&self, key: &Key<K4, K6>) -> Result<Option<V>, KernelError> {
        let found = match key {
            Key::V4(k) => self.v4.get(k),
            Key::V6(k) => self.v6.get(k),
        };
        self.named(key, found)
    }

    /// Inserts or replaces.
    pub(super) fn put(&self, key: &Key<K4, K6>, value: &V) -> Result<(), KernelError> {
        let put = match key {
            Key::V4(k) => self.v4.put(k, value),
            Key::V6(k) => self.v6.put(k, value),
        };
        self.named(key, put)
    }

    /// Removes; `false` when the key was not there.
    pub(super) fn remove(&self, key: &Key<K4, K6>) -> Result<bool, KernelError> {
        let removed = match key {
            Key::V4(k) => self.v4.remove(k),
            Key::V6(k) => self.v6.remove(k),
        };
        self.named(key, removed)
    }
}
