//! A frame into a tuple, or into what is odd about it.
//!
//! What is odd still tells source and destination: an oddity is dropped when its destination is the gateway's business,
//! and left alone otherwise.

use super::{
    Bytes,
    headers::{
        ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_LEN, Ipv4, TCP, TCP_LEN, Tcp, UDP, UDP_LEN, Udp,
    },
};
use crate::{Reason, maps::FlowKey};

/// A TCP segment or UDP datagram, whole, without IP options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet4 {
    /// Its tuple, as it arrived.
    pub key: FlowKey<[u8; 4]>,
    /// Where the IPv4 header begins.
    pub l3: usize,
    /// Bytes of the IP packet.
    pub total: u32,
    /// Bytes of the transport header.
    pub header: u32,
    /// TTL as it arrived.
    pub ttl: u8,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
    /// Transport checksum as it arrived.
    pub check: [u8; 2],
    /// "Don't fragment" is set.
    pub dont_fragment: bool,
}

impl Packet4 {
    /// Where the transport header begins.
    #[inline(always)]
    pub const fn l4(&self) -> usize {
        self.l3 + IPV4_LEN
    }
    /// Where the transport checksum is.
    #[inline(always)]
    pub const fn check_at(&self) -> usize {
        self.l4() + if self.key.proto == TCP { 16 } else { 6 }
    }
}

/// An IPv4 packet that is not translated; enough of it to refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other4 {
    /// Source.
    pub src: [u8; 4],
    /// Destination.
    pub dst: [u8; 4],
    /// Protocol.
    pub proto: u8,
    /// Where the IPv4 header begins.
    pub l3: usize,
    /// Bytes of the IP packet.
    pub total: u32,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// TCP or UDP.
    Packet(Packet4),
    /// Well-formed IPv4 of another protocol.
    Other(Other4),
    /// IPv4 that nobody should forward, and the reason to count when its destination is claimed.
    Odd(Other4, Reason),
    /// Nothing to look into.
    Pass(Reason),
}

/// Where the IPv4 header begins behind an Ethernet header, or what else the frame is.
#[inline(always)]
pub fn ethernet(frame: &impl Bytes) -> Result<usize, Reason> {
    let Some(eth) = frame.get::<Ethernet>(0) else { return Err(Reason::Unparsed) };
    if eth.kind == ETHERTYPE_IPV6 {
        return Err(Reason::Ipv6);
    }
    // Tagged frames belong to the VLAN's own interface. Frames to a group are nobody's flow.
    if eth.kind != ETHERTYPE_IPV4 || eth.dst[0] & 1 != 0 {
        return Err(Reason::NotOurs);
    }
    Ok(ETH_LEN)
}

/// Parses the IPv4 packet at `l3`. `large`: the packet is one of several segments in one buffer, whose length the
/// header may not be able to say.
#[inline(always)]
pub fn ipv4(frame: &impl Bytes, l3: usize, large: bool) -> Parsed {
    let Some(ip) = frame.get::<Ipv4>(l3) else { return Parsed::Pass(Reason::Unparsed) };
    let room = frame.frame_len().saturating_sub(l3 as u32);
    let mut total = u32::from(ip.total());
    if total == 0 && large {
        total = room;
    }
    let other = Other4 { src: ip.src, dst: ip.dst, proto: ip.proto, l3, total };
    if ip.version_ihl != 0x45 {
        let options = ip.version_ihl >> 4 == 4 && ip.version_ihl & 15 > 5;
        return Parsed::Odd(other, if options { Reason::IpOptions } else { Reason::Malformed });
    }
    if total < IPV4_LEN as u32 || total > room {
        return Parsed::Odd(other, Reason::Malformed);
    }
    if ip.is_fragment() {
        return Parsed::Odd(other, Reason::Fragment);
    }
    let len = total - IPV4_LEN as u32;
    let l4 = l3 + IPV4_LEN;
    let (sport, dport, flags, check, header) = match ip.proto {
        TCP => {
            if len < TCP_LEN as u32 {
                return Parsed::Odd(other, Reason::Malformed);
            }
            let Some(tcp) = frame.get::<Tcp>(l4) else { return Parsed::Pass(Reason::Unparsed) };
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
            let Some(udp) = frame.get::<Udp>(l4) else { return Parsed::Pass(Reason::Unparsed) };
            let said = u32::from(u16::from_be_bytes(udp.len));
            if said < UDP_LEN as u32 || said > len {
                return Parsed::Odd(other, Reason::Malformed);
            }
            (udp.sport, udp.dport, 0, udp.check, UDP_LEN as u32)
        }
        _ => return Parsed::Other(other),
    };
    Parsed::Packet(Packet4 {
        key: FlowKey::new(ip.src, ip.dst, sport, dport, ip.proto),
        l3,
        total,
        header,
        ttl: ip.ttl,
        flags,
        check,
        dont_fragment: ip.dont_fragment(),
    })
}
