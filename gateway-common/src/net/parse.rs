//! A frame into a tuple, or into what is odd about it.
//!
//! What is odd still tells source and destination: an oddity is dropped when its destination is the gateway's business,
//! and left alone otherwise.

use super::{
    Bytes,
    family::{Family, V4, V6, quarters},
    headers::{
        ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Ethernet, FRAGMENT, FRAGMENT_LEN,
        Fragment6, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6, TAG_LEN, TCP, TCP_LEN, Tcp, UDP, UDP_LEN, Udp,
    },
};
use crate::{
    Reason,
    maps::{Address, FlowKey},
};

/// A TCP segment or UDP datagram without IP options, whole or the first fragment of one. Laid out so that fields which are written
/// together lie on a word: the kernel's stack takes no other writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// Its tuple, as it arrived.
    pub key: FlowKey<A>,
    /// Where the IP header begins.
    pub l3: usize,
    /// Where the transport header begins.
    pub l4: usize,
    /// Bytes of the transport header.
    pub header: u32,
    /// Transport checksum as it arrived.
    pub check: [u8; 2],
    /// TCP flags; 0 for UDP.
    pub flags: u8,
    /// A fragment that is not the first: it has no transport header, and its ports are those of the first one.
    pub later: bool,
    /// Bytes of the IP packet.
    pub total: u32,
    /// TTL or hop limit as it arrived.
    pub ttl: u8,
    /// Nobody on the way may fragment it: "don't fragment" is set, or it is IPv6.
    pub dont_fragment: bool,
}

/// A packet of IPv4.
pub type Packet4 = Packet<[u8; 4]>;

impl<A: Address> Packet<A> {
    /// Where the transport header begins.
    #[inline(always)]
    pub const fn l4(&self) -> usize {
        self.l4
    }
    /// Where the transport checksum is.
    #[inline(always)]
    pub const fn check_at(&self) -> usize {
        self.l4 + if self.key.proto == TCP { 16 } else { 6 }
    }
    /// What an error about it needs.
    #[inline(always)]
    pub const fn whole(&self) -> Other<A> {
        Other {
            src: self.key.src,
            dst: self.key.dst,
            proto: self.key.proto,
            l3: self.l3,
            l4: self.l4,
            total: self.total,
            ttl: self.ttl,
        }
    }
}

/// A packet that is not translated; enough of it to refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other<A> {
    /// Source.
    pub src: A,
    /// Destination.
    pub dst: A,
    /// Protocol.
    pub proto: u8,
    /// Where the IP header begins.
    pub l3: usize,
    /// Where what it carries begins.
    pub l4: usize,
    /// Bytes of the IP packet.
    pub total: u32,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// One of several fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<A> {
    /// The packet that it is; `proto` is that of the whole datagram.
    pub other: Other<A>,
    /// Identification, network order; IPv4's two bytes first.
    pub id: [u8; 4],
    /// Offset in units of 8 bytes.
    pub offset: u16,
    /// Others follow.
    pub more: bool,
    /// "Don't fragment" is set, or it is IPv6.
    pub dont_fragment: bool,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<A> {
    /// TCP or UDP.
    Packet(Packet<A>),
    /// Well-formed, of another protocol.
    Other(Other<A>),
    /// A fragment.
    Fragment(Fragment<A>),
    /// What nobody should forward, and the reason to count when its destination is claimed.
    Odd(Other<A>, Reason),
    /// Nothing to look into.
    Pass(Reason),
}

/// What stands behind the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// A VLAN tag.
    Tagged,
    /// Something that is left alone.
    Other,
}

/// What an EtherType says.
#[inline(always)]
pub const fn ethertype(kind: [u8; 2]) -> Link {
    match kind {
        ETHERTYPE_IPV4 => Link::V4,
        ETHERTYPE_IPV6 => Link::V6,
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Link::Tagged,
        _ => Link::Other,
    }
}

/// What a frame is. Frames to a group are nobody's flow.
#[inline(always)]
pub fn ethernet(frame: &impl Bytes) -> Result<Link, Reason> {
    let Some(eth) = frame.get::<Ethernet>(0) else { return Err(Reason::Unparsed) };
    if eth.dst[0] & 1 != 0 { Ok(Link::Other) } else { Ok(ethertype(eth.kind)) }
}

/// The VLAN IDs (outer one first, zero: none) of a tagged frame, what is behind them, and where that begins.
#[inline(always)]
pub fn tags(frame: &impl Bytes) -> Option<([[u8; 2]; 2], Link, usize)> {
    let outer = frame.get::<[u8; 4]>(ETH_LEN)?;
    let first = [outer[0] & 0x0f, outer[1]];
    match ethertype([outer[2], outer[3]]) {
        Link::Tagged => {
            let inner = frame.get::<[u8; 4]>(ETH_LEN + TAG_LEN)?;
            let second = [inner[0] & 0x0f, inner[1]];
            Some(([first, second], ethertype([inner[2], inner[3]]), ETH_LEN + 2 * TAG_LEN))
        }
        link => Some(([first, [0; 2]], link, ETH_LEN + TAG_LEN)),
    }
}

/// The header of a family, as far as all packets have it.
pub trait Parse: Family {
    /// Parses the packet at `l3`. `large`: the packet is one of several segments in one buffer, whose length the header may not be
    /// able to say.
    fn parse(frame: &impl Bytes, l3: usize, large: bool) -> Parsed<Self::Addr>;
}

/// What the header of a fragment or whole packet said.
struct Whole<A> {
    other: Other<A>,
    dont_fragment: bool,
}

/// TCP or UDP behind the IP header. `cut`: it is the first of several fragments, whose lengths are not the datagram's.
#[inline(always)]
fn transport<A: Address>(frame: &impl Bytes, whole: &Whole<A>, cut: bool) -> Parsed<A> {
    let other = whole.other;
    let len = other.total.wrapping_sub((other.l4 - other.l3) as u32);
    let (sport, dport, flags, check, header) = match other.proto {
        TCP => {
            if len < TCP_LEN as u32 {
                return Parsed::Odd(other, Reason::Malformed);
            }
            let Some(tcp) = frame.get::<Tcp>(other.l4) else { return Parsed::Pass(Reason::Unparsed) };
            let header = u32::from(tcp.header_len());
            if header < TCP_LEN as u32 || header > len {
                return Parsed::Odd(other, Reason::Malformed);
            }
            (tcp.sport, tcp.dport, tcp.flags, tcp.check, header)
        }
        UDP => {
            if len < UDP_LEN as u32 {
                return Parsed::Odd(other, Reason::Malformed);
            }
            let Some(udp) = frame.get::<Udp>(other.l4) else { return Parsed::Pass(Reason::Unparsed) };
            let said = u32::from(u16::from_be_bytes(udp.len));
            if said < UDP_LEN as u32 || (said > len && !cut) {
                return Parsed::Odd(other, Reason::Malformed);
            }
            (udp.sport, udp.dport, 0, udp.check, UDP_LEN as u32)
        }
        _ => return Parsed::Other(other),
    };
    Parsed::Packet(Packet {
        key: FlowKey::new(other.src, other.dst, sport, dport, other.proto),
        l3: other.l3,
        l4: other.l4,
        total: other.total,
        header,
        ttl: other.ttl,
        flags,
        check,
        dont_fragment: whole.dont_fragment,
        later: false,
    })
}

/// The first fragment of a TCP segment or UDP datagram as a packet, or what is odd about it (RFC 1858: its transport header must be
/// whole).
#[inline(always)]
pub fn first<A: Address>(frame: &impl Bytes, fragment: &Fragment<A>) -> Parsed<A> {
    let whole = Whole { other: fragment.other, dont_fragment: fragment.dont_fragment };
    transport(frame, &whole, true)
}

impl Parse for V4 {
    #[inline(always)]
    fn parse(frame: &impl Bytes, l3: usize, large: bool) -> Parsed<[u8; 4]> {
        let Some(ip) = frame.get::<Ipv4>(l3) else { return Parsed::Pass(Reason::Unparsed) };
        let room = frame.frame_len().saturating_sub(l3 as u32);
        let mut total = u32::from(ip.total());
        if total == 0 && large {
            total = room;
        }
        let l4 = l3 + IPV4_LEN;
        let other = Other { src: ip.src, dst: ip.dst, proto: ip.proto, l3, l4, total, ttl: ip.ttl };
        if ip.version_ihl != 0x45 {
            let options = ip.version_ihl >> 4 == 4 && ip.version_ihl & 15 > 5;
            return Parsed::Odd(other, if options { Reason::IpOptions } else { Reason::Malformed });
        }
        if total < IPV4_LEN as u32 || total > room {
            return Parsed::Odd(other, Reason::Malformed);
        }
        let dont_fragment = ip.dont_fragment();
        if ip.is_fragment() {
            let offset = u16::from_be_bytes(ip.fragment) & 0x1fff;
            let more = ip.fragment[0] & 0x20 != 0;
            return fragment(Fragment { other, id: [ip.id[0], ip.id[1], 0, 0], offset, more, dont_fragment });
        }
        transport(frame, &Whole { other, dont_fragment }, false)
    }
}

impl Parse for V6 {
    #[inline(always)]
    fn parse(frame: &impl Bytes, l3: usize, large: bool) -> Parsed<[u8; 16]> {
        let Some(ip) = frame.get::<Ipv6>(l3) else { return Parsed::Pass(Reason::Unparsed) };
        let room = frame.frame_len().saturating_sub(l3 as u32);
        let mut total = u32::from(u16::from_be_bytes(ip.payload)) + IPV6_LEN as u32;
        if total == IPV6_LEN as u32 && large {
            total = room;
        }
        let l4 = l3 + IPV6_LEN;
        let (src, dst) = (bytemuck::cast(quarters(&ip.src)), bytemuck::cast(quarters(&ip.dst)));
        let other = Other { src, dst, proto: ip.next, l3, l4, total, ttl: ip.hop_limit };
        if ip.version_class_label[0] >> 4 != 6 || total > room {
            return Parsed::Odd(other, Reason::Malformed);
        }
        match ip.next {
            FRAGMENT => {
                if total < (IPV6_LEN + FRAGMENT_LEN) as u32 {
                    return Parsed::Odd(other, Reason::Malformed);
                }
                let Some(head) = frame.get::<Fragment6>(l4) else { return Parsed::Pass(Reason::Unparsed) };
                let word = u16::from_be_bytes(head.offset);
                let other = Other { proto: head.next, l4: l4 + FRAGMENT_LEN, ..other };
                let (offset, more) = (word >> 3, word & 1 != 0);
                fragment(Fragment { other, id: head.id, offset, more, dont_fragment: true })
            }
            // Extension headers: hop by hop, routing, ESP, AH, none, destination options, mobility, HIP, shim6 (RFC 7045).
            0 | 43 | 50 | 51 | 59 | 60 | 135 | 139 | 140 => Parsed::Odd(other, Reason::IpOptions),
            _ => transport(frame, &Whole { other, dont_fragment: true }, false),
        }
    }
}

/// A fragment, unless no honest sender makes such a one: all but the last carry a multiple of 8 bytes, and none reaches beyond what a
/// datagram can be.
#[inline(always)]
fn fragment<A: Address>(fragment: Fragment<A>) -> Parsed<A> {
    let other = fragment.other;
    let len = other.total.wrapping_sub((other.l4 - other.l3) as u32);
    let end = u32::from(fragment.offset) * 8 + len;
    if len == 0 || (fragment.more && len & 7 != 0) || end > 0xffff {
        return Parsed::Odd(other, Reason::Malformed);
    }
    Parsed::Fragment(fragment)
}
