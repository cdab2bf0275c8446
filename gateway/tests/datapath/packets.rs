//! Frames to send, and what is in frames: by etherparse, which has an opinion of its own on headers and checksums.

use std::net::IpAddr;

use etherparse::{
    IpHeaders, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, PacketBuilderStep, TcpHeader, UdpHeader,
    checksum::Sum16BitWords, ip_number,
};

use crate::cast::{CLIENT_MAC, GATEWAY_MAC};

/// Where the IP header of an untagged frame begins.
pub const L3: usize = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub src: IpAddr,
    pub sport: u16,
    pub dst: IpAddr,
    pub dport: u16,
}

impl Ends {
    pub const fn new(src: IpAddr, sport: u16, dst: IpAddr, dport: u16) -> Self {
        Self { src, sport, dst, dport }
    }
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

fn step(src: IpAddr, dst: IpAddr) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC).ip(header(src, dst, 0, ip_number::TCP))
}

/// "Don't fragment" and an identification for IPv4; a class and a label for IPv6.
fn header(src: IpAddr, dst: IpAddr, len: usize, proto: etherparse::IpNumber) -> IpHeaders {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = Ipv4Header::new(len as u16, 64, proto, src.octets(), dst.octets()).expect("a header");
            (ip.identification, ip.dont_fragment) = (0x1234, true);
            IpHeaders::Ipv4(ip, Default::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let ip = Ipv6Header {
                traffic_class: 0x28,
                flow_label: Ipv6FlowLabel::try_new(0x4_5678).expect("a label"),
                payload_length: len as u16,
                next_header: proto,
                hop_limit: 64,
                source: src.octets(),
                destination: dst.octets(),
            };
            IpHeaders::Ipv6(ip, Default::default())
        }
        _ => panic!("two families"),
    }
}

pub fn tcp(ends: Ends, flags: u8, payload: &[u8]) -> Vec<u8> {
    tcp_with(ends, flags, &[], payload)
}

/// With those TCP options, a multiple of four bytes.
pub fn tcp_with(ends: Ends, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut builder = step(ends.src, ends.dst).tcp(ends.sport, ends.dport, 1_000_000, 4096);
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
    builder.options_raw(options).expect("options").write(&mut frame, payload).expect("a frame");
    frame
}

pub fn udp(ends: Ends, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    step(ends.src, ends.dst).udp(ends.sport, ends.dport).write(&mut frame, payload).expect("a frame");
    frame
}

/// IP of any protocol.
pub fn ip(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [GATEWAY_MAC, CLIENT_MAC].concat();
    match header(src, dst, payload.len(), proto.into()) {
        IpHeaders::Ipv4(mut ip, _) => {
            ip.header_checksum = ip.calc_header_checksum();
            frame.extend([8, 0]);
            frame.extend(ip.to_bytes());
        }
        IpHeaders::Ipv6(ip, _) => {
            frame.extend([0x86, 0xdd]);
            frame.extend(ip.to_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// A message of ICMP, or ICMPv6.
pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let proto = if src.is_ipv4() { 1 } else { 58 };
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    message.extend_from_slice(body);
    let check = checksum(src, dst, proto, &message);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    ip(src, dst, proto, &message)
}

/// An echo request.
pub fn ping(src: IpAddr, dst: IpAddr, data: &[u8]) -> Vec<u8> {
    icmp(src, dst, if src.is_ipv4() { 8 } else { 128 }, 0, [0, 7, 0, 1], data)
}

/// The checksum that belongs into a transport header whose own is in `bytes`: 0 when that one is right, or zeroed before.
fn checksum(src: IpAddr, dst: IpAddr, proto: u8, bytes: &[u8]) -> u16 {
    let mut sum = Sum16BitWords::new();
    if proto != 1 {
        sum = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => sum.add_4bytes(src.octets()).add_4bytes(dst.octets()),
            (IpAddr::V6(src), IpAddr::V6(dst)) => sum.add_16bytes(src.octets()).add_16bytes(dst.octets()),
            _ => panic!("two families"),
        };
        sum = sum.add_4bytes((bytes.len() as u32).to_be_bytes()).add_2bytes([0, proto]);
    }
    sum.add_slice(bytes).ones_complement().to_be()
}

/// Whether the frame is of IPv6.
fn is_v6(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// Bytes of the IP header.
pub fn header_len(frame: &[u8]) -> usize {
    if is_v6(frame) { 40 } else { usize::from(frame[L3] & 15) * 4 }
}

/// Changes bytes of the IP header and mends IPv4's checksum.
pub fn with_ip(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let v6 = is_v6(&frame);
    let end = L3 + header_len(&frame);
    change(&mut frame[L3..end]);
    if !v6 {
        let end = (L3 + header_len(&frame).max(20)).min(frame.len());
        frame[L3 + 10..L3 + 12].fill(0);
        let check = Sum16BitWords::new().add_slice(&frame[L3..end]).ones_complement().to_be();
        frame[L3 + 10..L3 + 12].copy_from_slice(&check.to_be_bytes());
    }
    frame
}

pub fn with_ttl(frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    let at = if is_v6(&frame) { 7 } else { 8 };
    with_ip(frame, |ip| ip[at] = ttl)
}

/// IPv4: routers may fragment it.
pub fn may_fragment(frame: Vec<u8>) -> Vec<u8> {
    if is_v6(&frame) { frame } else { with_ip(frame, |ip| ip[6] &= !0x40) }
}

/// With another length in its IP header: bytes behind that header.
pub fn with_len(frame: Vec<u8>, len: usize) -> Vec<u8> {
    if is_v6(&frame) {
        with_ip(frame, |ip| ip[4..6].copy_from_slice(&(len as u16).to_be_bytes()))
    } else {
        with_ip(frame, |ip| ip[2..4].copy_from_slice(&(len as u16 + 20).to_be_bytes()))
    }
}

/// With one byte changed.
pub fn at(mut frame: Vec<u8>, index: usize, value: u8) -> Vec<u8> {
    frame[index] = value;
    frame
}

/// The part of a packet that carries the bytes from `from` to `to` behind its IP header, as a fragment.
pub fn fragment(frame: &[u8], from: usize, to: usize) -> Vec<u8> {
    let body = L3 + header_len(frame);
    let more = u16::from(body + to < frame.len());
    let data = &frame[body + from..body + to];
    if is_v6(frame) {
        let mut head = vec![frame[L3 + 6], 0];
        head.extend((from as u16 | more).to_be_bytes());
        head.extend([0xca, 0xfe, 0xf0, 0x0d]);
        let cut = [&frame[..body], &head, data].concat();
        return with_len(at(cut, L3 + 6, 44), data.len() + 8);
    }
    let cut = with_len([&frame[..body], data].concat(), data.len());
    with_ip(cut, |ip| ip[6..8].copy_from_slice(&((from as u16 / 8) | (more << 13)).to_be_bytes()))
}

/// The first `len` bytes behind the IP header, and that header: what an ICMP error quotes.
pub fn quote(frame: &[u8], len: usize) -> &[u8] {
    let end = (L3 + header_len(frame) + len).min(frame.len());
    &frame[L3..end]
}

/// As a socket on a veth sends it: only the pseudo-header's sum in the checksum field.
pub fn partial(mut frame: Vec<u8>) -> Vec<u8> {
    let seen = look(&frame).expect("a good frame");
    let l4 = L3 + header_len(&frame);
    let mut pseudo = vec![0; frame.len() - l4];
    let at = if seen.proto == 6 { 16 } else { 6 };
    let check = !checksum(seen.src, seen.dst, seen.proto, &pseudo);
    pseudo.clear();
    frame[l4 + at..l4 + at + 2].copy_from_slice(&check.to_be_bytes());
    frame
}

/// A frame with 802.1Q tags behind its MACs.
pub fn tagged(frame: &[u8], tags: &[[u8; 2]]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    for [high, low] in tags {
        out.extend([0x81, 0, *high, *low]);
    }
    out.extend_from_slice(&frame[12..]);
    out
}

/// EtherTypes and tags, and the frame without them.
pub fn untagged(frame: &[u8]) -> (Vec<[u8; 4]>, Vec<u8>) {
    let mut tags = Vec::new();
    let mut at = 12;
    while frame.len() >= at + 4 && matches!(frame[at..at + 2], [0x81, 0] | [0x88, 0xa8]) {
        tags.push(frame[at..at + 4].try_into().expect("four"));
        at += 4;
    }
    (tags, [&frame[..12.min(frame.len())], &frame[at.min(frame.len())..]].concat())
}

/// What is in a frame; every checksum was verified but those of fragments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub mac_src: [u8; 6],
    pub mac_dst: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub proto: u8,
    /// All that must stay as it is on the way: type of service, identification and flags; class and label.
    pub kept: Vec<u8>,
    /// Offset in bytes, and whether others follow.
    pub fragment: Option<(usize, bool)>,
    pub sport: u16,
    pub dport: u16,
    /// TCP flags; ICMP type.
    pub flags: u8,
    /// ICMP code.
    pub code: u8,
    /// ICMP: what is behind the checksum.
    pub rest: [u8; 4],
    pub seq: u32,
    pub ack: u32,
    /// UDP without a checksum.
    pub unchecked: bool,
    /// TCP options.
    pub options: Vec<u8>,
    /// Data; of fragments all that is behind the IP headers.
    pub payload: Vec<u8>,
    /// Bytes of the frame that belong to the packet.
    pub len: usize,
}

impl Seen {
    pub fn ends(&self) -> Ends {
        Ends::new(self.src, self.sport, self.dst, self.dport)
    }
    /// Of what answers it.
    pub fn back(&self) -> Ends {
        Ends::new(self.dst, self.dport, self.src, self.sport)
    }
}

pub fn look(frame: &[u8]) -> Result<Seen, String> {
    let mut seen = Seen {
        mac_src: frame[6..12].try_into().expect("six"),
        mac_dst: frame[..6].try_into().expect("six"),
        src: IpAddr::from([0; 4]),
        dst: IpAddr::from([0; 4]),
        ttl: 0,
        proto: 0,
        kept: Vec::new(),
        fragment: None,
        sport: 0,
        dport: 0,
        flags: 0,
        code: 0,
        rest: [0; 4],
        seq: 0,
        ack: 0,
        unchecked: false,
        options: Vec::new(),
        payload: Vec::new(),
        len: 0,
    };
    let packet = &frame[L3..];
    let body = match [frame[12], frame[13]] {
        [8, 0] => {
            let (ip, _) = Ipv4Header::from_slice(packet).map_err(|e| e.to_string())?;
            let check = ip.calc_header_checksum();
            if ip.header_checksum != check {
                return Err(format!("IPv4 checksum {:#x}, should be {check:#x}", ip.header_checksum));
            }
            (seen.src, seen.dst) = (ip.source.into(), ip.destination.into());
            (seen.ttl, seen.proto, seen.len) = (ip.time_to_live, ip.protocol.0, usize::from(ip.total_len));
            seen.kept = [&packet[1..2], &packet[4..8], &ip.options].concat();
            let offset = usize::from(ip.fragment_offset.value()) * 8;
            if offset != 0 || ip.more_fragments {
                seen.fragment = Some((offset, ip.more_fragments));
            }
            packet.get(ip.header_len()..seen.len).ok_or("longer than its frame")?
        }
        [0x86, 0xdd] => {
            let (ip, _) = Ipv6Header::from_slice(packet).map_err(|e| e.to_string())?;
            (seen.src, seen.dst) = (ip.source.into(), ip.destination.into());
            (seen.ttl, seen.proto, seen.len) = (ip.hop_limit, ip.next_header.0, 40 + usize::from(ip.payload_length));
            seen.kept = packet[..4].to_vec();
            let body = packet.get(40..seen.len).ok_or("longer than its frame")?;
            if ip.next_header == ip_number::IPV6_FRAG {
                // By hand: etherparse 0.19 reads the flag from the offset's place.
                let head = body.get(..8).ok_or("half a fragment header")?;
                let word = usize::from(u16::from_be_bytes([head[2], head[3]]));
                (seen.proto, seen.fragment) = (head[0], Some((word & !7, word & 1 != 0)));
                seen.kept.extend_from_slice(head);
                &body[8..]
            } else {
                body
            }
        }
        kind => return Err(format!("EtherType {kind:02x?}")),
    };
    seen.len += L3;
    if seen.fragment.is_some() {
        if seen.fragment.is_some_and(|(offset, _)| offset == 0) && matches!(seen.proto, 6 | 17) {
            seen.sport = u16::from_be_bytes([body[0], body[1]]);
            seen.dport = u16::from_be_bytes([body[2], body[3]]);
        }
        seen.payload = body.to_vec();
        return Ok(seen);
    }
    transport(&mut seen, body)?;
    Ok(seen)
}

fn transport(seen: &mut Seen, body: &[u8]) -> Result<(), String> {
    let mut covered = body;
    match seen.proto {
        6 => {
            let (header, payload) = TcpHeader::from_slice(body).map_err(|e| e.to_string())?;
            (seen.sport, seen.dport) = (header.source_port, header.destination_port);
            (seen.flags, seen.seq, seen.ack) = (body[13], header.sequence_number, header.acknowledgment_number);
            seen.options = body[20..header.header_len()].to_vec();
            seen.payload = payload.to_vec();
        }
        17 => {
            let (header, _) = UdpHeader::from_slice(body).map_err(|e| e.to_string())?;
            covered = &body[..usize::from(header.length)];
            (seen.sport, seen.dport) = (header.source_port, header.destination_port);
            seen.unchecked = header.checksum == 0;
            seen.payload = covered[8..].to_vec();
        }
        1 | 58 => {
            (seen.flags, seen.code) = (body[0], body[1]);
            seen.rest = body[4..8].try_into().expect("four");
            seen.payload = body[8..].to_vec();
        }
        _ => {
            seen.payload = body.to_vec();
            return Ok(());
        }
    }
    if !seen.unchecked && checksum(seen.src, seen.dst, seen.proto, covered) != 0 {
        return Err(format!("transport checksum: {seen:?}"));
    }
    Ok(())
}

/// Puts fragments together as their receiver would: a whole packet in a frame, under one header.
pub fn reassemble(parts: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    let mut pieces: Vec<Seen> = parts.iter().map(|part| look(part)).collect::<Result<_, _>>()?;
    pieces.sort_by_key(|piece| piece.fragment);
    for piece in &pieces {
        let (offset, _) = piece.fragment.ok_or("not a fragment")?;
        if offset != data.len() {
            return Err(format!("{} bytes, then {offset}", data.len()));
        }
        data.extend_from_slice(&piece.payload);
    }
    let first = pieces.first().ok_or("nothing")?;
    if pieces.last().and_then(|last| last.fragment).is_none_or(|(_, more)| more) {
        return Err("without its end".into());
    }
    Ok(ip(first.src, first.dst, first.proto, &data))
}
