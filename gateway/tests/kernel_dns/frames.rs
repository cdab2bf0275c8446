//! Frames of queries and answers, of either family, behind up to two VLAN tags.

use std::net::IpAddr;

use crate::programs::{SERVER, SERVER6};

const PORT: u16 = 40_001;
const UDP: u8 = 17;

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum()
}

fn complement(mut sum: u32) -> u16 {
    while sum > 0xFFFF {
        sum = (sum >> 16) + (sum & 0xFFFF);
    }
    !(sum as u16)
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The gateway's address of the client's family.
fn server(client: IpAddr) -> IpAddr {
    if client.is_ipv4() { SERVER.into() } else { SERVER6.into() }
}

fn pseudo(client: IpAddr, udp_len: usize) -> u32 {
    sum(&octets(client)) + sum(&octets(server(client))) + u32::from(UDP) + udp_len as u32
}

/// What stands in the checksum field of a query whose checksum is still to be completed.
pub fn pseudo_sum(client: impl Into<IpAddr>, udp_len: usize) -> u16 {
    !complement(pseudo(client.into(), udp_len))
}

/// Where the IP header begins behind so many tags.
pub fn l3(tags: &[u16]) -> usize {
    14 + 4 * tags.len()
}

/// Where the UDP header begins.
pub fn l4(client: impl Into<IpAddr>, tags: &[u16]) -> usize {
    l3(tags) + if client.into().is_ipv4() { 20 } else { 40 }
}

fn ethernet(macs: [u8; 12], tags: &[u16], client: IpAddr) -> Vec<u8> {
    let mut frame = macs.to_vec();
    for (i, id) in tags.iter().enumerate() {
        let outer = i + 1 < tags.len();
        frame.extend(if outer { [0x88, 0xa8] } else { [0x81, 0] });
        frame.extend(id.to_be_bytes());
    }
    frame.extend(if client.is_ipv4() { [8, 0] } else { [0x86, 0xdd] });
    frame
}

/// A client's frame with this message, every checksum right.
pub fn frame(client: impl Into<IpAddr>, tags: &[u16], message: &[u8]) -> Vec<u8> {
    let client = client.into();
    let udp_len = 8 + message.len();
    let mut ip;
    if client.is_ipv4() {
        ip = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 61, UDP, 0, 0];
        ip[2..4].copy_from_slice(&(20 + udp_len as u16).to_be_bytes());
    } else {
        // Traffic class and flow label, which answers keep.
        ip = vec![0x6a, 0xb1, 0x23, 0x45, 0, 0, UDP, 61];
        ip[4..6].copy_from_slice(&(udp_len as u16).to_be_bytes());
    }
    ip.extend(octets(client));
    ip.extend(octets(server(client)));
    if client.is_ipv4() {
        let check = complement(sum(&ip));
        ip[10..12].copy_from_slice(&check.to_be_bytes());
    }
    let mut udp = Vec::with_capacity(udp_len);
    for word in [PORT, 53, udp_len as u16, 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(message);
    let check = match complement(sum(&udp) + pseudo(client, udp_len)) {
        0 => 0xFFFF,
        check => check,
    };
    udp[6..8].copy_from_slice(&check.to_be_bytes());
    let mut frame = ethernet([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], tags, client);
    frame.extend(ip);
    frame.extend(udp);
    frame
}

/// The message in an answer's frame; MACs, tags, addresses, ports, lengths, TTL and checksums are as they must be.
pub fn checked(client: impl Into<IpAddr>, tags: &[u16], frame: &[u8]) -> Vec<u8> {
    let client = client.into();
    let (l3, l4) = (l3(tags), l4(client, tags));
    assert!(frame.len() > l4 + 8, "an answer of {} bytes", frame.len());
    let (eth, ip, udp) = (&frame[..l3], &frame[l3..l4], &frame[l4..]);
    assert_eq!(eth, ethernet([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], tags, client), "MACs change places, tags stay");
    let addresses = if client.is_ipv4() {
        assert_eq!(ip[0], 0x45);
        assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), frame.len() - l3, "IP length");
        assert_eq!(ip[8], 64, "TTL");
        assert_eq!(complement(sum(ip)), 0, "IP checksum");
        &ip[12..]
    } else {
        assert_eq!(ip[..4], [0x6a, 0xb1, 0x23, 0x45], "traffic class and flow label");
        assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])), udp.len(), "payload length");
        assert_eq!(ip[6..8], [UDP, 64], "next header and hop limit");
        &ip[8..]
    };
    assert_eq!(addresses, [octets(server(client)), octets(client)].concat(), "addresses change places");
    assert_eq!(udp[..2], 53u16.to_be_bytes());
    assert_eq!(udp[2..4], PORT.to_be_bytes());
    assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len(), "UDP length");
    assert_ne!(udp[6..8], [0, 0], "a real UDP checksum");
    assert_eq!(complement(sum(udp) + pseudo(client, udp.len())), 0, "UDP checksum");
    udp[8..].to_vec()
}
