//! What the programs tell of queries that they answered: the ring `DNS_LOG`.

use std::{
    fmt, io,
    os::fd::{AsRawFd, RawFd},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use gateway_common::dns::log::Asked;

use super::KernelError;

/// The reading end. Its descriptor is readable while there is something to read.
pub struct Queries(RingBuf<MapData>);

impl fmt::Debug for Queries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Queries").field(&self.0.as_raw_fd()).finish()
    }
}

impl Queries {
    /// Takes the ring out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let failed = |source| KernelError::map("DNS_LOG", source);
        let map = ebpf.take_map("DNS_LOG").ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        RingBuf::try_from(map).map(Self).map_err(|error| failed(io::Error::other(error)))
    }

    /// Gives at most `most` queries to `tell`, oldest first; how many there were.
    pub fn drain(&mut self, most: usize, mut tell: impl FnMut(&Asked)) -> usize {
        for done in 0..most {
            let Some(item) = self.0.next() else { return done };
            // What is longer or shorter was not written by the programs of this object.
            if let Ok(asked) = bytemuck::try_pod_read_unaligned(&item) {
                tell(&asked);
            }
        }
        most
    }
}

impl AsRawFd for Queries {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
