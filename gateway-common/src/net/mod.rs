//! Packets: header views, parsing, checksums, translation, hashing, and the errors sent back to a sender.
//!
//! Written once; the XDP programs, the TC programs and the host's tests compile the same functions over different
//! implementations of [`Bytes`].

pub mod checksum;
pub mod error;
pub mod family;
pub mod fragments;
pub mod hash;
pub mod headers;
pub mod inner;
pub mod parse;
pub mod rate;
pub mod translate;

#[cfg(test)]
mod tests;

use bytemuck::Pod;

/// A frame that can be read at an offset, bounds checked.
pub trait Bytes {
    /// The value at `offset`, or `None` when the directly readable part of the frame ends before it does.
    fn get<T: Pod>(&self, offset: usize) -> Option<&T>;
    /// Bytes of the whole frame, those that are not directly readable included.
    fn frame_len(&self) -> u32;
}

/// A frame in memory: tests, and whatever the agent wants to explain.
impl Bytes for &[u8] {
    fn get<T: Pod>(&self, offset: usize) -> Option<&T> {
        let end = offset.checked_add(size_of::<T>())?;
        bytemuck::try_from_bytes(<[u8]>::get(self, offset..end)?).ok()
    }
    fn frame_len(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}
