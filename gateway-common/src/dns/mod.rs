//! The DNS code that the kernel and the forwarder share, so that they cannot differ: both run [`question::parse`] on the
//! query, [`resolve::resolve`] over their own tables of the same entries, and [`reply::Reply`] to lay the answer out.
//!
//! | step | kernel | forwarder |
//! |---|---|---|
//! | bytes of the query | [`question::Window`], a fixed copy of the message's first bytes | the datagram, a slice |
//! | tables | the maps `ANSWERS`, `LARGE`, `ZONES` | [`table::Table`], or anything that is a [`resolve::Lookup`] |
//! | entries | [`crate::maps::DnsEntry`] | [`build::Answer`], from which a `DnsEntry` is published |
//! | answer | stored into the frame, part by part | [`emit::Request::emit`] |
//!
//! What the parser does not fully understand is [`question::Unsupported`] for both: the kernel passes it on, the forwarder
//! looks closer.

pub mod hash;
pub mod limit;
pub mod log;
pub mod name;
pub mod question;
pub mod reply;
pub mod resolve;
pub mod usual;

#[cfg(any(test, feature = "std"))]
pub mod build;
#[cfg(any(test, feature = "std"))]
pub mod emit;
#[cfg(any(test, feature = "std"))]
pub mod table;

/// Numbers of the protocol that this code treats specially.
pub mod wire {
    /// Bytes of the header; the question's name begins here.
    pub const HEADER: usize = 12;
    /// Bytes of QTYPE and QCLASS.
    pub const QUESTION_TAIL: usize = 4;
    /// Bytes of an OPT record without options.
    pub const OPT: usize = 11;
    /// Longest name in wire format, root byte included (RFC 1035 section 3.1).
    pub const MAX_NAME: usize = 255;
    /// Pointer to the question's name.
    pub const QUESTION_POINTER: u16 = 0xC000 | HEADER as u16;

    /// A message is a response.
    pub const QR: u16 = 1 << 15;
    /// OPCODE.
    pub const OPCODE: u16 = 0xF << 11;
    /// Authoritative answer.
    pub const AA: u16 = 1 << 10;
    /// Truncated.
    pub const TC: u16 = 1 << 9;
    /// Recursion desired.
    pub const RD: u16 = 1 << 8;
    /// Recursion available.
    pub const RA: u16 = 1 << 7;
    /// Reserved, must be zero.
    pub const Z: u16 = 1 << 6;
    /// Authentic data.
    pub const AD: u16 = 1 << 5;
    /// Checking disabled.
    pub const CD: u16 = 1 << 4;
    /// RCODE.
    pub const RCODE: u16 = 0xF;

    /// RCODE: no error.
    pub const NOERROR: u16 = 0;
    /// RCODE: no such name.
    pub const NXDOMAIN: u16 = 3;

    /// Class IN.
    pub const IN: u16 = 1;
    /// Type A.
    pub const A: u16 = 1;
    /// Type NS.
    pub const NS: u16 = 2;
    /// Type CNAME.
    pub const CNAME: u16 = 5;
    /// Type SOA.
    pub const SOA: u16 = 6;
    /// Type PTR.
    pub const PTR: u16 = 12;
    /// Type TXT.
    pub const TXT: u16 = 16;
    /// Type AAAA.
    pub const AAAA: u16 = 28;
    /// Type SRV.
    pub const SRV: u16 = 33;
    /// Pseudo type OPT.
    pub const OPT_TYPE: u16 = 41;
}
