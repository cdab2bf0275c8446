//! The maximum segment size that a SYN announces, made smaller.

use gateway_common::net::headers::TCP_LEN;

use crate::frame::Frame;

/// Option kinds (RFC 9293 section 3.1).
const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
/// Options of one byte each at most.
const STEPS: usize = 40;

/// Lowers the option to `most` where it says more. A header that cannot be read is left alone: the packet goes on as it is.
#[inline(always)]
pub fn clamp<F: Frame>(frame: &mut F, l4: usize, header: usize, most: u16) {
    let end = l4 + header;
    let mut at = l4 + TCP_LEN;
    let mut step = 0;
    while step < STEPS {
        step += 1;
        if at + 4 > end {
            return;
        }
        let Some([kind, len, high, low]) = frame.get::<[u8; 4]>(at).copied() else { return };
        match kind {
            END => return,
            NOP => at += 1,
            MSS if len == 4 => {
                let old = u16::from_be_bytes([high, low]);
                if old > most {
                    frame.change_word(l4 + 16, at + 2, most.to_be_bytes());
                }
                return;
            }
            _ if len < 2 => return,
            _ => at += len as usize & 63,
        }
    }
}
