//! What a frame is, by arithmetic that shares nothing with the code under test: sums of 16-bit words in network order.

/// The state of a transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Right,
    Wrong,
    /// UDP without one.
    Absent,
    /// Not a whole TCP, UDP or ICMP message.
    Unknown,
}

/// A well-formed IP packet in a frame, as far as its own headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Bytes of tags.
    pub tags: usize,
    pub version: u8,
    /// Where IP, its payload (behind a fragment header), and what is behind the packet begin.
    pub l3: usize,
    pub l4: usize,
    pub end: usize,
    pub proto: u8,
    pub ttl: u8,
    /// Offset in bytes and "more", when it is a fragment.
    pub fragment: Option<(usize, bool)>,
    /// IPv4's header checksum; IPv6 has none to be wrong.
    pub header_right: bool,
    pub sum: Sum,
}

pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Sum of words; an odd last byte is the upper half of one.
pub fn add(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let sum: u64 = words
        .iter()
        .map(|w| u64::from_be_bytes(*w))
        .map(|w| (w >> 48) + (w >> 32 & 0xffff) + (w >> 16 & 0xffff) + (w & 0xffff))
        .sum();
    let (words, rest) = rest.as_chunks::<2>();
    let sum = sum + words.iter().map(|w| u64::from(u16::from_be_bytes(*w))).sum::<u64>();
    sum + rest.first().map_or(0, |b| u64::from(*b) << 8)
}

/// Folded; both forms of zero are zero.
pub const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    if sum == 0xffff { 0 } else { sum as u16 }
}

impl Facts {
    /// `None`: no IP packet that is whole, of at most two tags, without IPv4 options.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let mut kind_at = 12;
        for _ in 0..2 {
            if frame.len() >= kind_at + 2 && matches!(word(frame, kind_at), 0x8100 | 0x88a8) {
                kind_at += 4;
            }
        }
        let l3 = kind_at + 2;
        let kind = frame.get(kind_at..l3).map(|_| word(frame, kind_at))?;
        let version = match kind {
            0x0800 => 4,
            0x86dd => 6,
            _ => return None,
        };
        Self::at(frame, l3, version, frame.len())
    }

    /// Of a packet that begins at `l3` and may not go beyond `limit`.
    pub fn at(frame: &[u8], l3: usize, version: u8, limit: usize) -> Option<Self> {
        let head = frame.get(l3..limit)?;
        let header = if version == 4 { 20 } else { 40 };
        if head.len() < header || head[0] >> 4 != version || (version == 4 && head[0] != 0x45) {
            return None;
        }
        let total = if version == 4 { usize::from(word(head, 2)) } else { usize::from(word(head, 4)) + 40 };
        if total < header || total > head.len() {
            return None;
        }
        let mut facts = Self {
            tags: l3 - 14,
            version,
            l3,
            l4: l3 + header,
            end: l3 + total,
            proto: if version == 4 { head[9] } else { head[6] },
            ttl: if version == 4 { head[8] } else { head[7] },
            fragment: None,
            header_right: version == 6 || fold(add(&head[..20])) == 0,
            sum: Sum::Unknown,
        };
        if version == 4 {
            let fragment = word(head, 6);
            if fragment & 0x3fff != 0 {
                facts.fragment = Some((usize::from(fragment & 0x1fff) * 8, fragment & 0x2000 != 0));
            }
        } else if facts.proto == 44 {
            let part = frame.get(facts.l4..facts.end).filter(|part| part.len() >= 8)?;
            facts.proto = part[0];
            facts.fragment = Some((usize::from(word(part, 2) & !7), word(part, 2) & 1 != 0));
            facts.l4 += 8;
        }
        if facts.fragment.is_none() {
            facts.sum = facts.check(frame);
        }
        Some(facts)
    }

    pub const fn icmp(&self) -> u8 {
        if self.version == 4 { 1 } else { 58 }
    }

    pub fn src<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        if self.version == 4 { &frame[self.l3 + 12..self.l3 + 16] } else { &frame[self.l3 + 8..self.l3 + 24] }
    }
    pub fn dst<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        if self.version == 4 { &frame[self.l3 + 16..self.l3 + 20] } else { &frame[self.l3 + 24..self.l3 + 40] }
    }

    pub fn pseudo(&self, frame: &[u8], len: usize) -> u64 {
        add(self.src(frame)) + add(self.dst(frame)) + u64::from(self.proto) + len as u64
    }

    /// Where the transport checksum is, of a protocol that has one.
    pub const fn check_at(&self) -> Option<usize> {
        match self.proto {
            6 => Some(self.l4 + 16),
            17 => Some(self.l4 + 6),
            1 if self.version == 4 => Some(self.l4 + 2),
            58 if self.version == 6 => Some(self.l4 + 2),
            _ => None,
        }
    }

    fn check(&self, frame: &[u8]) -> Sum {
        let body = &frame[self.l4..self.end];
        let (shortest, len) = match self.proto {
            6 => (20, body.len()),
            17 if body.len() >= 8 => (8, usize::from(word(body, 4))),
            1 if self.version == 4 => (8, body.len()),
            58 if self.version == 6 => (8, body.len()),
            _ => return Sum::Unknown,
        };
        if body.len() < shortest || len < shortest || len > body.len() {
            return Sum::Unknown;
        }
        if self.proto == 17 && body[6..8] == [0, 0] {
            return Sum::Absent;
        }
        let pseudo = if self.proto == 1 { 0 } else { self.pseudo(frame, len) };
        if fold(pseudo + add(&body[..len])) == 0 { Sum::Right } else { Sum::Wrong }
    }

    /// Writes the checksum that IPv4's header should have.
    pub fn mend_header(&self, frame: &mut [u8]) {
        if self.version == 4 {
            frame[self.l3 + 10..self.l3 + 12].fill(0);
            let sum = !unzero(add(&frame[self.l3..self.l3 + 20]));
            frame[self.l3 + 10..self.l3 + 12].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// Writes the checksums that the packet should have. UDP without one stays so with `absent`.
    pub fn mend(&self, frame: &mut [u8], absent: bool) {
        self.mend_header(frame);
        let Some(at) = self.check_at().filter(|at| at + 2 <= self.end && self.fragment.is_none()) else { return };
        let mut len = self.end - self.l4;
        if self.proto == 17 {
            len = usize::from(word(frame, self.l4 + 4)).min(len);
            if absent && frame[at..at + 2] == [0, 0] {
                return;
            }
        }
        frame[at..at + 2].fill(0);
        let pseudo = if self.proto == 1 { 0 } else { self.pseudo(frame, len) };
        let sum = match !unzero(pseudo + add(&frame[self.l4..self.l4 + len])) {
            0 if self.proto == 17 => 0xffff,
            sum => sum,
        };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Folded, as it is in ones' complement.
const fn unzero(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn the_oracle_agrees_with_etherparse() {
    for len in 0..64u8 {
        let payload: Vec<u8> = (0..len).map(|i| i.wrapping_mul(37)).collect();
        let mut frame = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 90, 1, 2], [10, 1, 0, 7], 64);
        builder.udp(1000 + u16::from(len), 80).write(&mut frame, &payload).expect("a frame");
        let facts = Facts::of(&frame).expect("a packet");
        assert!(facts.header_right && facts.sum == Sum::Right, "{facts:?}");
        let mut again = frame.clone();
        again[24..26].fill(7);
        again[40..42].fill(7);
        let damaged = Facts::of(&again).expect("a packet");
        assert!(!damaged.header_right && damaged.sum == Sum::Wrong);
        damaged.mend(&mut again, false);
        assert_eq!(again, frame);
        let mut frame = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([0xfd; 16], [0xfe; 16], 64);
        builder.tcp(1000 + u16::from(len), 80, 7, 9).write(&mut frame, &payload).expect("a frame");
        assert_eq!(Facts::of(&frame).expect("a packet").sum, Sum::Right);
        let mut frame = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([0xfd; 16], [0xfe; 16], 64);
        builder.icmpv6_echo_request(u16::from(len), 80).write(&mut frame, &payload).expect("a frame");
        assert_eq!(Facts::of(&frame).expect("a packet").sum, Sum::Right);
    }
}
