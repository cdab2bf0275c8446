//! Queries answered in the kernel.

use gateway_common::{Reason, net::parse::Packet4};

use crate::frame::Frame;

/// What became of a query.
pub enum Outcome {
    /// The frame is the answer now, from Ethernet to the UDP checksum; it goes back where it came from.
    Answered(Reason),
    /// Unchanged: the forwarder knows better.
    Forwarder(Reason),
}

/// Answers the query in `frame`, or leaves it. `partial`: the query's checksum is only a pseudo-header's sum, and the kernel will
/// complete that of the answer.
#[inline(always)]
pub fn stage<F: Frame>(_frame: &mut F, _packet: &Packet4, _view: u32, _partial: bool) -> Outcome {
    Outcome::Forwarder(Reason::DnsMiss)
}
