//! Why an answer is not what the client hoped for, in words that clients understand: Extended DNS Errors (RFC 8914). Only in answers
//! that the kernel never gives.

use gateway_common::dns::wire::HEADER;

use super::upstream::ExchangeError;

/// EDNS option code.
pub const OPTION: u16 = 15;
/// OPT without options: root name, type, class, TTL, length.
const OPT: usize = 11;

/// A reason: its number and words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extended {
    /// INFO-CODE.
    pub code: u16,
    /// EXTRA-TEXT.
    pub text: &'static str,
}

const fn extended(code: u16, text: &'static str) -> Extended {
    Extended { code, text }
}

/// The answer is past its time.
pub const STALE: Extended = extended(3, "no upstream answered");
/// The zone is not loaded yet.
pub const NOT_READY: Extended = extended(14, "the cluster's names are not loaded yet");
/// A rule of the operator's refuses this zone.
pub const BLOCKED: Extended = extended(15, "refused by a zone rule");
/// No rule lets this name out.
pub const PROHIBITED: Extended = extended(18, "names outside the cluster are not forwarded");
/// As [`STALE`], for a name that does not exist.
pub const STALE_NXDOMAIN: Extended = extended(19, "no upstream answered");
/// Too much is asked already.
pub const OVERLOAD: Extended = extended(0, "too many questions are waiting for upstreams");
/// A rule asks the cluster's DNS alone, and that has no server.
const NOBODY: Extended = extended(22, "the cluster's DNS has no endpoint");
const TIMEOUT: Extended = extended(22, "no upstream answered in time");
const NETWORK: Extended = extended(23, "no upstream can be reached");
const UNUSABLE: Extended = extended(0, "the upstreams' answers cannot be used");
const FAILED: Extended = extended(0, "the upstreams failed");

impl Extended {
    /// Why there is no answer from upstream. What the server itself said is passed on, as a number.
    pub fn of(error: &ExchangeError) -> Self {
        match error {
            ExchangeError::Nobody => NOBODY,
            ExchangeError::Timeout(_) => TIMEOUT,
            ExchangeError::Network(..) => NETWORK,
            ExchangeError::Mismatch(_) => UNUSABLE,
            ExchangeError::Refused { info, .. } => info.map_or(FAILED, |code| extended(code, "said the upstream")),
        }
    }

    /// An answer that came and cannot be kept or sent.
    pub const fn unusable() -> Self {
        UNUSABLE
    }

    /// Adds it to a message that ends with an OPT record without options, as far as `limit` allows: without the words, or not at all.
    pub fn add_to(self, message: &mut Vec<u8>, limit: usize) {
        let ends_with_opt = message.len() >= HEADER + OPT && message[message.len() - OPT..].starts_with(&[0, 0, 41]);
        if !ends_with_opt || !message.ends_with(&[0, 0]) {
            return;
        }
        let room = limit.saturating_sub(message.len());
        let text = if room >= 6 + self.text.len() { self.text } else { "" };
        if room < 6 {
            return;
        }
        // Texts are short.
        let data = u16::try_from(2 + text.len()).unwrap_or(2);
        message.truncate(message.len() - 2);
        for word in [data + 4, OPTION, data, self.code] {
            message.extend_from_slice(&word.to_be_bytes());
        }
        message.extend_from_slice(text.as_bytes());
    }
}
