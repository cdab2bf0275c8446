//! The headers as the wire has them. Every field is bytes, so that a view of any offset is well aligned; multi-byte
//! fields are in network order.
//!
//! `network-types` has the same structs, but its Ethernet and TCP ones want an alignment of two and none is
//! [`Pod`], which the host's bounds-checked views need.

use bytemuck::{Pod, Zeroable};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
/// EtherType of an 802.1ad (service) tag.
pub const ETHERTYPE_QINQ: [u8; 2] = [0x88, 0xa8];
/// Bytes of a tag.
pub const TAG_LEN: usize = 4;

/// IP protocol ICMP.
pub const ICMP: u8 = 1;
/// IP protocol ICMPv6.
pub const ICMPV6: u8 = 58;
/// IPv6's fragment header.
pub const FRAGMENT: u8 = 44;
/// IP protocol SCTP.
pub const SCTP: u8 = 132;
/// IP protocol TCP.
pub const TCP: u8 = 6;
/// IP protocol UDP.
pub const UDP: u8 = 17;

/// Bytes of an Ethernet header.
pub const ETH_LEN: usize = size_of::<Ethernet>();
/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = size_of::<Ipv4>();
/// Bytes of an IPv6 header.
pub const IPV6_LEN: usize = size_of::<Ipv6>();
/// Bytes of IPv6's fragment header.
pub const FRAGMENT_LEN: usize = size_of::<Fragment6>();
/// Bytes of a UDP header.
pub const UDP_LEN: usize = size_of::<Udp>();
/// Bytes of a TCP header without options.
pub const TCP_LEN: usize = size_of::<Tcp>();
/// Bytes of the fixed part of an ICMP message.
pub const ICMP_LEN: usize = size_of::<Icmp>();

/// Ethernet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ethernet {
    /// Destination.
    pub dst: [u8; 6],
    /// Source.
    pub src: [u8; 6],
    /// EtherType.
    pub kind: [u8; 2],
}

/// IPv4 without options.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv4 {
    /// Version and header length in words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Bytes of the packet, header included.
    pub total_len: [u8; 2],
    /// Identification.
    pub id: [u8; 2],
    /// Flags and fragment offset.
    pub fragment: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub proto: u8,
    /// Header checksum.
    pub check: [u8; 2],
    /// Source.
    pub src: [u8; 4],
    /// Destination.
    pub dst: [u8; 4],
}

impl Ipv4 {
    /// Bytes of the packet, header included.
    #[inline(always)]
    pub const fn total(&self) -> u16 {
        u16::from_be_bytes(self.total_len)
    }
    /// "Don't fragment" is set.
    #[inline(always)]
    pub const fn dont_fragment(&self) -> bool {
        self.fragment[0] & 0x40 != 0
    }
    /// One of several fragments: "more fragments" or an offset.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.fragment[0] & 0x3f != 0 || self.fragment[1] != 0
    }
}

/// IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv6 {
    /// Version, traffic class and flow label.
    pub version_class_label: [u8; 4],
    /// Bytes behind this header.
    pub payload: [u8; 2],
    /// Next header.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: [u8; 16],
    /// Destination.
    pub dst: [u8; 16],
}

/// IPv6's fragment header (RFC 8200 section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Fragment6 {
    /// Next header.
    pub next: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset in units of 8 bytes in the upper 13 bits, "more" in the lowest.
    pub offset: [u8; 2],
    /// Identification.
    pub id: [u8; 4],
}

/// TCP without options.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Tcp {
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// Sequence number.
    pub seq: [u8; 4],
    /// Acknowledgement number.
    pub ack: [u8; 4],
    /// Header length in words, in the upper half.
    pub offset: u8,
    /// Flags: [`crate::maps::tcp`].
    pub flags: u8,
    /// Window.
    pub window: [u8; 2],
    /// Checksum.
    pub check: [u8; 2],
    /// Urgent pointer.
    pub urgent: [u8; 2],
}

impl Tcp {
    /// Bytes of the header, options included.
    #[inline(always)]
    pub const fn header_len(&self) -> u16 {
        (self.offset as u16 >> 4) * 4
    }
}

/// UDP.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Udp {
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// Bytes of header and data.
    pub len: [u8; 2],
    /// Checksum; zero: none.
    pub check: [u8; 2],
}

/// The two ports that TCP and UDP begin with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ports {
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
}

/// The fixed part of an ICMP message.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub check: [u8; 2],
    /// Identifier and sequence number, or the next hop's MTU in the last two bytes.
    pub rest: [u8; 4],
}
