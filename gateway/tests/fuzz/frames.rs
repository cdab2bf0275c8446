//! Frames as honest senders write them.

use crate::{
    epoch::Rng,
    oracle::Facts,
    world::{GATEWAY_MAC, PEER_MAC},
};

/// The ends of a conversation; addresses of four or sixteen bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    pub src: Vec<u8>,
    pub dst: Vec<u8>,
    pub sport: u16,
    pub dport: u16,
}

impl Ends {
    /// The other way.
    pub fn back(&self) -> Self {
        Self { src: self.dst.clone(), dst: self.src.clone(), sport: self.dport, dport: self.sport }
    }
    pub const fn is_v6(&self) -> bool {
        self.src.len() == 16
    }
    /// Of a TCP or UDP packet.
    pub fn of(frame: &[u8]) -> Option<(Self, u8)> {
        let facts = Facts::of(frame)?;
        if !matches!(facts.proto, 6 | 17) || facts.end < facts.l4 + 4 {
            return None;
        }
        let port = |at| crate::oracle::word(frame, facts.l4 + at);
        let ends =
            Self { src: facts.src(frame).to_vec(), dst: facts.dst(frame).to_vec(), sport: port(0), dport: port(2) };
        Some((ends, facts.proto))
    }
}

/// What is said about a packet beside its ends and payload.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    pub dont_fragment: bool,
}

impl Look {
    pub fn any(rng: &mut Rng) -> Self {
        Self {
            ttl: if rng.percent(5) { rng.byte() } else { 64 },
            tos: if rng.percent(20) { rng.byte() } else { 0 },
            id: rng.number() as u16,
            dont_fragment: rng.percent(50),
        }
    }
}

/// An IP packet around what it carries.
pub fn ip(ends: &Ends, proto: u8, look: Look, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(40 + body.len());
    if ends.is_v6() {
        packet.extend([0x60 | look.tos >> 4, look.tos << 4 | (look.id >> 12) as u8 & 15]);
        packet.extend(look.id.to_be_bytes());
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([proto, look.ttl]);
    } else {
        packet.extend([0x45, look.tos]);
        packet.extend((20 + body.len() as u16).to_be_bytes());
        packet.extend(look.id.to_be_bytes());
        packet.extend([u8::from(look.dont_fragment) << 6, 0, look.ttl, proto, 0, 0]);
    }
    packet.extend(&ends.src);
    packet.extend(&ends.dst);
    packet.extend(body);
    packet
}

/// In Ethernet, to the gateway, with tags.
fn tagged(packet: &[u8], tags: &[[u8; 2]]) -> Vec<u8> {
    let mut frame = [GATEWAY_MAC, PEER_MAC].concat();
    for [high, low] in tags {
        frame.extend([0x81, 0, *high, *low]);
    }
    frame.extend(if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(packet);
    frame
}

/// In Ethernet, as it is.
pub fn frame_of(packet: &[u8]) -> Vec<u8> {
    tagged(packet, &[])
}

/// In Ethernet, to the gateway, with the checksums that it should have.
pub fn frame(packet: &[u8], tags: &[[u8; 2]], unchecked: bool) -> Vec<u8> {
    let mut frame = tagged(packet, tags);
    if let Some(facts) = Facts::of(&frame) {
        facts.mend(&mut frame, unchecked);
    }
    frame
}

pub fn udp(ends: &Ends, look: Look, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(8 + payload.len());
    for word in [ends.sport, ends.dport, 8 + payload.len() as u16, 0] {
        body.extend(word.to_be_bytes());
    }
    body.extend(payload);
    ip(ends, 17, look, &body)
}

pub fn tcp(ends: &Ends, look: Look, flags: u8, options: &[u8], payload: &[u8], seq: (u32, u32)) -> Vec<u8> {
    let mut body = Vec::with_capacity(20 + options.len() + payload.len());
    body.extend(ends.sport.to_be_bytes());
    body.extend(ends.dport.to_be_bytes());
    body.extend(seq.0.to_be_bytes());
    body.extend(seq.1.to_be_bytes());
    body.extend([(5 + options.len() as u8 / 4) << 4, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    body.extend(options);
    body.extend(payload);
    ip(ends, 6, look, &body)
}

/// An ICMP error of either family quoting `about`; the checksum is [`frame`]'s to write.
pub fn error(from: &[u8], to: &[u8], look: Look, (kind, code): (u8, u8), rest: [u8; 4], about: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, code, 0, 0];
    body.extend(rest);
    body.extend(about);
    let ends = Ends { src: from.to_vec(), dst: to.to_vec(), sport: 0, dport: 0 };
    let proto = if ends.is_v6() { 58 } else { 1 };
    ip(&ends, proto, look, &body)
}

/// The packet of a frame.
pub fn packet(frame: &[u8]) -> Option<&[u8]> {
    Facts::of(frame).map(|facts| &frame[facts.l3..facts.end])
}

/// A packet cut into fragments of at most `size` bytes of payload (a multiple of 8), checksummed before.
pub fn fragments(packet: &[u8], size: usize, id: u32) -> Vec<Vec<u8>> {
    let v6 = packet[0] >> 4 == 6;
    let (head, body) = packet.split_at(if v6 { 40 } else { 20 });
    let count = body.len().div_ceil(size);
    let one = |i: usize| {
        let part = &body[i * size..body.len().min((i + 1) * size)];
        let (offset, more) = ((i * size) as u16, u16::from(i + 1 < count));
        let mut out = head.to_vec();
        if v6 {
            out[4..6].copy_from_slice(&(8 + part.len() as u16).to_be_bytes());
            out[6] = 44;
            out.extend([head[6], 0]);
            out.extend((offset | more).to_be_bytes());
            out.extend(id.to_be_bytes());
        } else {
            out[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            out[4..6].copy_from_slice(&(id as u16).to_be_bytes());
            out[6..8].copy_from_slice(&(offset >> 3 | more << 13).to_be_bytes());
        }
        out.extend(part);
        out
    };
    (0..count).map(one).collect()
}
