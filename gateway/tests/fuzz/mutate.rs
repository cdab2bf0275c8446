//! Damage to honest frames: bits, words that lengths and offsets like least, cuts, and addresses and ports of this world's.

use crate::{
    epoch::Rng,
    oracle::{Facts, fold},
    world::{PORTS, Plan},
};

/// The longest frame that the programs are given.
const LONGEST: usize = 2000;
/// The shortest that the kernel takes.
const SHORTEST: usize = 15;

const WORDS: [u16; 16] = [0, 1, 7, 8, 19, 20, 21, 40, 0x7fff, 0x8000, 0xfffe, 0xffff, 1280, 1480, 1500, 0x0045];
const PROTOCOLS: [u8; 14] = [0, 1, 4, 6, 17, 41, 43, 44, 47, 50, 58, 60, 132, 255];

/// Changes a frame in one to four places; half of the time its checksums are made right afterwards, so that the change is looked into.
pub fn frame(rng: &mut Rng, frame: &mut Vec<u8>, plans: &[Plan; 2]) {
    for _ in 0..1 + rng.below(4) {
        match rng.below(100) {
            0..20 => bit(rng, frame),
            20..35 => byte(rng, frame),
            35..50 => word(rng, frame),
            50..80 => field(rng, frame, plans),
            80..88 => size(rng, frame),
            88..94 => chunk(rng, frame),
            _ => {
                let from = rng.below(frame.len());
                let len = (frame.len() - from).min(rng.below(64));
                let bytes = rng.bytes(len);
                frame[from..from + len].copy_from_slice(&bytes);
            }
        }
    }
    frame.truncate(LONGEST);
    while frame.len() < SHORTEST {
        frame.push(0);
    }
    if rng.percent(50) {
        mend(rng, frame);
    }
    if rng.percent(3) {
        partial(frame);
    }
}

/// The transport checksum as a socket on a veth leaves it: the pseudo-header's sum alone.
fn partial(frame: &mut [u8]) {
    let Some(facts) = Facts::of(frame) else { return };
    let Some(at) = facts.check_at().filter(|at| at + 2 <= facts.end && matches!(facts.proto, 6 | 17)) else { return };
    let sum = fold(facts.pseudo(frame, facts.end - facts.l4));
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Lengths and checksums as they should be.
fn mend(rng: &mut Rng, frame: &mut [u8]) {
    let Some(facts) = Facts::of(frame) else { return };
    if facts.proto == 17 && facts.fragment.is_none() && facts.end >= facts.l4 + 8 && rng.percent(70) {
        let len = (facts.end - facts.l4) as u16;
        frame[facts.l4 + 4..facts.l4 + 6].copy_from_slice(&len.to_be_bytes());
    }
    facts.mend(frame, true);
}

/// Where the headers are, more often than in the payload.
fn place(rng: &mut Rng, frame: &[u8]) -> usize {
    let most = if rng.percent(80) { frame.len().min(100) } else { frame.len() };
    rng.below(most)
}

fn bit(rng: &mut Rng, frame: &mut [u8]) {
    let at = place(rng, frame);
    frame[at] ^= 1 << rng.below(8);
}

fn byte(rng: &mut Rng, frame: &mut [u8]) {
    let at = place(rng, frame);
    frame[at] = if rng.percent(50) { rng.byte() } else { rng.pick(&[0, 1, 0x7f, 0x80, 0xff]) };
}

fn word(rng: &mut Rng, frame: &mut [u8]) {
    let at = place(rng, frame) & !1;
    if at + 2 <= frame.len() {
        let word = rng.pick(&WORDS).to_be_bytes();
        frame[at..at + 2].copy_from_slice(&word);
    }
}

/// Cut, padded, or longer and shorter with the IP header's word for it.
fn size(rng: &mut Rng, frame: &mut Vec<u8>) {
    let before = frame.len();
    if rng.percent(50) {
        frame.truncate(SHORTEST.max(rng.below(before + 1)));
    } else {
        let more = rng.below(80);
        frame.extend(rng.bytes(more));
    }
    if rng.percent(50) && frame.len() > 54 {
        let l3 = 14;
        match frame[l3] >> 4 {
            4 => {
                let total = (frame.len() - l3) as u16;
                frame[l3 + 2..l3 + 4].copy_from_slice(&total.to_be_bytes());
            }
            6 => {
                let total = (frame.len() - l3 - 40) as u16;
                frame[l3 + 4..l3 + 6].copy_from_slice(&total.to_be_bytes());
            }
            _ => {}
        }
    }
}

/// A piece taken out, put in, or copied to elsewhere.
fn chunk(rng: &mut Rng, frame: &mut Vec<u8>) {
    let from = place(rng, frame);
    let len = (frame.len() - from).min(1 + rng.below(12));
    match rng.below(3) {
        0 if frame.len() - len >= SHORTEST => drop(frame.drain(from..from + len)),
        1 => {
            let bytes = rng.bytes(len);
            frame.splice(from..from, bytes);
        }
        _ => {
            let to = rng.below(frame.len() - len + 1);
            frame.copy_within(from..from + len, to);
        }
    }
}

/// A field of the headers, by its meaning.
fn field(rng: &mut Rng, frame: &mut [u8], plans: &[Plan; 2]) {
    let Some(facts) = Facts::of(frame) else { return bit(rng, frame) };
    let (l3, l4) = (facts.l3, facts.l4);
    let plan = &plans[usize::from(facts.version == 6)];
    let addresses: Vec<&Vec<u8>> = plan
        .clients
        .iter()
        .chain(&plan.pods)
        .chain([&plan.own, &plan.vip, &plan.dns, &plan.router, &plan.nobody])
        .collect();
    let address = rng.pick(&addresses).clone();
    let at = if facts.version == 4 { 12 } else { 8 };
    let header = if facts.version == 4 { 20 } else { 40 };
    // Offsets in the IP header of: length, TTL, protocol, a fragment's word.
    let (len, ttl, proto) = if facts.version == 4 { (2, 8, 9) } else { (4, 7, 6) };
    let value = rng.pick(&WORDS).to_be_bytes();
    let mut set = |at: usize, bytes: &[u8]| {
        if let Some(to) = frame.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    match rng.below(12) {
        0 => set(l3 + at, &address),
        1 => set(l3 + at + address.len(), &address),
        2 => set(l3 + len, &value),
        3 => set(l3 + ttl, &[rng.pick(&[0, 1, 2, 255])]),
        4 => set(l3 + proto, &[rng.pick(&PROTOCOLS)]),
        5 => {
            // Little more or less than there is.
            let there = (facts.end - l3 - if facts.version == 4 { 0 } else { 40 }) as u16;
            let there = there.wrapping_add(rng.below(9) as u16).wrapping_sub(4);
            set(l3 + len, &there.to_be_bytes());
        }
        6 if facts.version == 4 => {
            set(l3 + 6, &[rng.pick(&[0, 0x20, 0x40, 0x80, 1, 0x1f, 0x3f]), rng.pick(&[0, 1, 255])])
        }
        6 => set(l3 + header, &[rng.pick(&PROTOCOLS), 0, rng.byte(), rng.byte()]),
        7 => set(l3, &[rng.pick(&[0x44, 0x45, 0x46, 0x4f, 0x60, 0x65, 0x00, 0x55])]),
        8 => set(l4 + 2, &rng.pick(&PORTS.each_ref().map(|port| port.port)).to_be_bytes()),
        9 => set(l4 + 4, &value),
        10 => set(l4 + 12, &[rng.byte(), rng.byte()]),
        _ => {
            // What an ICMP error quotes.
            let inner = l4 + 8;
            match rng.below(4) {
                0 => set(inner, &[rng.pick(&[0x44, 0x45, 0x46, 0x60])]),
                1 => set(inner + len, &value),
                2 => set(inner + at, &address),
                _ => set(l4, &[rng.pick(&[0, 1, 2, 3, 4, 5, 8, 11, 12, 128, 129, 135]), rng.pick(&[0, 1, 3, 4, 13])]),
            }
        }
    }
}
