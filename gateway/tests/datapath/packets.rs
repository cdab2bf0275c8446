//! Frames to send and frames to look at, both by etherparse: an opinion of its own on headers and checksums.

use etherparse::{
    Icmpv4Slice, NetSlice, PacketBuilder, SlicedPacket, TcpHeaderSlice, TransportSlice, UdpHeaderSlice, ip_number,
};

use crate::world::{CLIENT_MAC, GATEWAY_MAC};

/// Where the IPv4 header begins.
pub const L3: usize = 14;
/// Where the transport header begins.
pub const L4: usize = 34;

#[derive(Clone, Copy)]
pub struct Ends {
    pub src: [u8; 4],
    pub sport: u16,
    pub dst: [u8; 4],
    pub dport: u16,
}

impl Ends {
    pub const fn new(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Self {
        Self { src, sport, dst, dport }
    }
}

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;
pub const RST: u8 = 4;

pub fn tcp(ends: Ends, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut builder = PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC)
        .ipv4(ends.src, ends.dst, 64)
        .tcp(ends.sport, ends.dport, 1_000_000, 4096);
    if flags & SYN != 0 {
        builder = builder.syn();
    }
    if flags & ACK != 0 {
        builder = builder.ack(77);
    }
    if flags & FIN != 0 {
        builder = builder.fin();
    }
    if flags & RST != 0 {
        builder = builder.rst();
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a frame");
    frame
}

pub fn udp(ends: Ends, payload: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC).ipv4(ends.src, ends.dst, 64).udp(ends.sport, ends.dport);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a frame");
    frame
}

/// IPv4 of any protocol.
pub fn ip(src: [u8; 4], dst: [u8; 4], proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [GATEWAY_MAC, CLIENT_MAC].concat();
    frame.extend([8, 0]);
    let header = etherparse::Ipv4Header::new(payload.len() as u16, 64, proto.into(), src, dst).expect("a header");
    frame.extend(header.to_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Changes bytes of the IPv4 header and mends its checksum.
pub fn with_ip(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut frame[L3..L4]);
    let words = usize::from(frame[L3] & 15).max(5) * 2;
    frame[L3 + 10..L3 + 12].fill(0);
    let sum: u32 = (0..words).map(|i| u32::from(u16::from_be_bytes([frame[L3 + 2 * i], frame[L3 + 2 * i + 1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let check = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[L3 + 10..L3 + 12].copy_from_slice(&check.to_be_bytes());
    frame
}

pub fn with_ttl(frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    with_ip(frame, |ip| ip[8] = ttl)
}

/// As a socket on a veth sends it: only the pseudo-header's sum in the checksum field.
pub fn partial(mut frame: Vec<u8>) -> Vec<u8> {
    let len = (frame.len() - L4) as u32;
    let mut sum = u32::from(frame[L3 + 9]) + len;
    for i in 6..10 {
        sum += u32::from(u16::from_be_bytes([frame[L3 + 2 * i], frame[L3 + 2 * i + 1]]));
    }
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let at = L4 + if frame[L3 + 9] == 6 { 16 } else { 6 };
    frame[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    frame
}

/// What is in a frame; every checksum was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub mac_src: [u8; 6],
    pub mac_dst: [u8; 6],
    pub src: [u8; 4],
    pub dst: [u8; 4],
    pub ttl: u8,
    pub proto: u8,
    pub sport: u16,
    pub dport: u16,
    /// TCP flags; ICMP type and code.
    pub flags: u8,
    pub code: u8,
    /// ICMP: the MTU field.
    pub mtu: u16,
    pub seq: u32,
    pub ack: u32,
    /// UDP without a checksum.
    pub unchecked: bool,
    pub payload: Vec<u8>,
}

pub fn look(frame: &[u8]) -> Result<Seen, String> {
    let packet = SlicedPacket::from_ethernet(frame).map_err(|e| e.to_string())?;
    let Some(NetSlice::Ipv4(net)) = &packet.net else { return Err("not IPv4".into()) };
    let ip = net.header().to_header();
    if ip.header_checksum != ip.calc_header_checksum() {
        return Err(format!("IPv4 checksum {:#x}, should be {:#x}", ip.header_checksum, ip.calc_header_checksum()));
    }
    let mut seen = Seen {
        mac_src: frame[6..12].try_into().expect("six"),
        mac_dst: frame[..6].try_into().expect("six"),
        src: ip.source,
        dst: ip.destination,
        ttl: ip.time_to_live,
        proto: ip.protocol.0,
        sport: 0,
        dport: 0,
        flags: 0,
        code: 0,
        mtu: 0,
        seq: 0,
        ack: 0,
        unchecked: false,
        payload: Vec::new(),
    };
    let body = net.payload().payload;
    match &packet.transport {
        Some(TransportSlice::Tcp(_)) => {
            let header = TcpHeaderSlice::from_slice(body).map_err(|e| e.to_string())?.to_header();
            let payload = &body[header.header_len()..];
            let sum = header.calc_checksum_ipv4(&ip, payload).map_err(|e| e.to_string())?;
            if sum != header.checksum {
                return Err(format!("TCP checksum {:#x}, should be {sum:#x}", header.checksum));
            }
            (seen.sport, seen.dport) = (header.source_port, header.destination_port);
            (seen.flags, seen.seq, seen.ack) = (body[13], header.sequence_number, header.acknowledgment_number);
            seen.payload = payload.to_vec();
        }
        Some(TransportSlice::Udp(_)) => {
            let header = UdpHeaderSlice::from_slice(body).map_err(|e| e.to_string())?.to_header();
            let payload = &body[8..usize::from(header.length)];
            let sum = header.calc_checksum_ipv4(&ip, payload).map_err(|e| e.to_string())?;
            seen.unchecked = header.checksum == 0;
            if !seen.unchecked && sum != header.checksum {
                return Err(format!("UDP checksum {:#x}, should be {sum:#x}", header.checksum));
            }
            (seen.sport, seen.dport) = (header.source_port, header.destination_port);
            seen.payload = payload.to_vec();
        }
        _ if ip.protocol == ip_number::ICMP => {
            let icmp = Icmpv4Slice::from_slice(body).map_err(|e| e.to_string())?;
            if icmp.icmp_type().calc_checksum(icmp.payload()) != icmp.checksum() {
                return Err("ICMP checksum".into());
            }
            (seen.flags, seen.code) = (icmp.type_u8(), icmp.code_u8());
            seen.mtu = u16::from_be_bytes([body[6], body[7]]);
            seen.payload = body[8..].to_vec();
        }
        _ => seen.payload = body.to_vec(),
    }
    Ok(seen)
}
