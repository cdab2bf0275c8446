//! Names in wire format: folding, zones, and (host) text.

/// Turns the letters `A`..=`Z` of eight bytes at once into lower case.
///
/// Safe on a whole wire name: the bytes of labels' lengths are at most 63 and so never letters.
#[inline(always)]
pub const fn fold_word(word: u64) -> u64 {
    const LOW7: u64 = 0x7F7F_7F7F_7F7F_7F7F;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    const fn each(byte: u8) -> u64 {
        byte as u64 * 0x0101_0101_0101_0101
    }
    let low = word & LOW7;
    // The top bit of each byte says: at least 'A'; at most 'Z'; not ASCII. No byte carries into the next.
    let from_a = low + each(0x80 - b'A');
    let above_z = low + each(0x80 - b'Z' - 1);
    let upper = from_a & !above_z & !word & HIGH;
    word | (upper >> 2)
}

/// Bytes of a folded name, zero behind its end.
pub trait FoldedName {
    /// Longest name it can hold.
    const MAX: usize;
    /// Byte `at`; anything for an `at` behind [`Self::MAX`], but no panic.
    fn byte(&self, at: usize) -> u8;
}

/// Whether a folded name of `len` bytes is `zone` or below it.
///
/// Labels are walked from the front until what is left is as long as the zone's name: a suffix that begins inside a label is
/// none.
#[inline(always)]
pub fn is_below<N: FoldedName + ?Sized>(
    name: &N,
    len: usize,
    zone: &[u8; crate::limits::DNS_NAME],
    zone_len: usize,
) -> bool {
    let mut at = 0;
    for _ in 0..N::MAX / 2 {
        if at + zone_len >= len {
            break;
        }
        at += 1 + name.byte(at) as usize;
    }
    if at + zone_len != len {
        return false;
    }
    for (i, byte) in zone.iter().enumerate() {
        if i >= zone_len {
            break;
        }
        if name.byte(at + i) != *byte {
            return false;
        }
    }
    true
}

#[cfg(any(test, feature = "std"))]
pub use host::{NameError, fold, to_text, to_wire};

#[cfg(any(test, feature = "std"))]
impl FoldedName for [u8] {
    const MAX: usize = super::wire::MAX_NAME + 1;
    fn byte(&self, at: usize) -> u8 {
        self.get(at).copied().unwrap_or(0)
    }
}

#[cfg(any(test, feature = "std"))]
mod host {
    use std::fmt;

    use crate::dns::wire::MAX_NAME;

    /// A text that is no name.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum NameError {
        /// An empty label, as in `a..b`.
        EmptyLabel(String),
        /// A label of more than 63 bytes.
        LongLabel(String),
        /// More than 255 bytes in wire format.
        LongName(String),
        /// A backslash that is followed neither by three digits up to 255 nor by another character.
        Escape(String),
    }

    impl fmt::Display for NameError {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::EmptyLabel(name) => write!(f, "name {name:?} has an empty label"),
                Self::LongLabel(name) => write!(f, "name {name:?} has a label of more than 63 bytes"),
                Self::LongName(name) => write!(f, "name {name:?} is longer than 255 bytes"),
                Self::Escape(name) => write!(f, "name {name:?} has a bad escape; write \\. or \\DDD (decimal)"),
            }
        }
    }

    impl std::error::Error for NameError {}

    /// Text (with or without the last dot; `.` or nothing is the root) to wire format, folded to lower case.
    ///
    /// # Errors
    /// When the text is no name.
    pub fn to_wire(text: &str) -> Result<Vec<u8>, NameError> {
        let mut wire = Vec::with_capacity(text.len() + 2);
        if text.is_empty() || text == "." {
            return Ok(vec![0]);
        }
        let mut label = Vec::new();
        let mut bytes = text.bytes();
        let mut ended = false;
        let mut close = |label: &mut Vec<u8>| -> Result<(), NameError> {
            if label.is_empty() {
                return Err(NameError::EmptyLabel(text.to_owned()));
            }
            let len = u8::try_from(label.len()).ok().filter(|len| *len < 64);
            wire.push(len.ok_or_else(|| NameError::LongLabel(text.to_owned()))?);
            wire.append(label);
            Ok(())
        };
        while let Some(byte) = bytes.next() {
            ended = false;
            match byte {
                b'.' => {
                    close(&mut label)?;
                    ended = true;
                }
                b'\\' => label.push(escaped(&mut bytes).ok_or_else(|| NameError::Escape(text.to_owned()))?),
                _ => label.push(byte.to_ascii_lowercase()),
            }
        }
        if !ended {
            close(&mut label)?;
        }
        wire.push(0);
        if wire.len() > MAX_NAME { Err(NameError::LongName(text.to_owned())) } else { Ok(wire) }
    }

    fn escaped(bytes: &mut std::str::Bytes<'_>) -> Option<u8> {
        let first = bytes.next()?;
        if !first.is_ascii_digit() {
            return Some(first.to_ascii_lowercase());
        }
        let mut value = u16::from(first - b'0');
        for _ in 0..2 {
            let digit = bytes.next().filter(u8::is_ascii_digit)?;
            value = value * 10 + u16::from(digit - b'0');
        }
        u8::try_from(value).ok().map(|byte| byte.to_ascii_lowercase())
    }

    /// Wire format to text without the last dot (`.` is the root); stops at what is no label.
    pub fn to_text(wire: &[u8]) -> String {
        let mut text = String::with_capacity(wire.len());
        let mut rest = wire;
        while let Some((&len, tail)) = rest.split_first() {
            let len = usize::from(len);
            if len == 0 || len > 63 || len > tail.len() {
                break;
            }
            if !text.is_empty() {
                text.push('.');
            }
            for &byte in &tail[..len] {
                match byte {
                    b'.' | b'\\' => text.extend(['\\', char::from(byte)]),
                    0x21..=0x7E => text.push(char::from(byte)),
                    _ => text.push_str(&format!("\\{byte:03}")),
                }
            }
            rest = &tail[len..];
        }
        if text.is_empty() { ".".to_owned() } else { text }
    }

    /// A wire name with its letters in lower case.
    pub fn fold(wire: &[u8]) -> Vec<u8> {
        wire.to_ascii_lowercase()
    }
}
