//! The bytes that servers send and clients compare: every eight of them are a function of their place, so that a lost,
//! doubled or swapped piece is seen.

use std::io::{Result, Write};

/// The bytes of the stream from `offset` on, a multiple of 8.
pub fn fill(offset: u64, buffer: &mut [u8]) {
    for (index, chunk) in buffer.chunks_mut(8).enumerate() {
        let word = mix(offset / 8 + index as u64).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// The payload of datagram number `number`, of `len` bytes.
pub fn datagram(number: u64, len: usize) -> Vec<u8> {
    let mut payload = vec![0; len];
    fill(mix(number) & 0xffff_ffff_fff8, &mut payload);
    payload
}

/// Writes the first `bytes` bytes of the stream.
///
/// # Errors
/// As the writer says.
pub fn send(writer: &mut impl Write, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut sent = 0;
    while sent < bytes {
        let piece = usize::try_from(bytes - sent).unwrap_or(usize::MAX).min(buffer.len());
        fill(sent, &mut buffer[..piece]);
        writer.write_all(&buffer[..piece])?;
        sent += piece as u64;
    }
    Ok(())
}

/// SplitMix64's finalizer.
const fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
