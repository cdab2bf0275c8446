//! Packets: header views, translation, and the packets that ICMP errors quote.

use bytemuck::Zeroable;
use gateway_common::{
    maps::{Address, Flow, FlowKey},
    net::{
        family::{Family, V4, V6},
        headers::{ETH_LEN, ICMP_LEN, Icmp, Ports, UDP},
        inner::{self, Quoted},
        parse::{self, Packet, Parse, Parsed},
        translate,
    },
};

/// Where the translation's targets put the IP header.
const L3: usize = ETH_LEN;

/// Sum of the words of some bytes, folded; both zeros are zero.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut total: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            total += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    if total == 0xffff { 0 } else { total as u16 }
}

/// Whatever the bytes are, what is said of them is inside them.
pub fn headers(data: &[u8]) {
    let _ = parse::ethernet(&data);
    let behind = parse::tags(&data).map(|(_, _, l3)| l3);
    for l3 in [Some(ETH_LEN), behind].into_iter().flatten() {
        for large in [false, true] {
            inside(data, l3, V4::parse(&data, l3, large), large);
            inside(data, l3, V6::parse(&data, l3, large), large);
        }
    }
}

fn inside<A: Address + core::fmt::Debug>(data: &[u8], l3: usize, parsed: Parsed<A>, large: bool) {
    match parsed {
        Parsed::Packet(packet) => within(data, l3, &packet),
        Parsed::Fragment(fragment) => {
            let other = fragment.other;
            assert!(other.l4 <= l3 + other.total as usize && l3 + other.total as usize <= data.len());
            let len = other.total as usize - (other.l4 - other.l3);
            assert!(
                len > 0
                    && usize::from(fragment.offset) * 8 + len <= 0xffff
                    && (!fragment.more || len.is_multiple_of(8))
            );
            if fragment.offset == 0
                && let Parsed::Packet(packet) = parse::first(&data, &fragment)
            {
                within(data, l3, &packet);
            }
        }
        Parsed::Other(other) => assert!(large || l3 + other.total as usize <= data.len()),
        Parsed::Odd(..) | Parsed::Pass(_) => {}
    }
}

fn within<A: Address + core::fmt::Debug>(data: &[u8], l3: usize, packet: &Packet<A>) {
    let end = l3 + packet.total as usize;
    assert!(packet.l3 == l3 && packet.l4 + packet.header as usize <= end && end <= data.len(), "{packet:?}");
    assert!(packet.check_at() + 2 <= end && data[packet.check_at()..][..2] == packet.check, "{packet:?}");
}

/// Puts a translation into a packet as the datapath does.
fn apply<N: Family>(frame: &mut [u8], packet: &Packet<N::Addr>, flow: &Flow<N::Addr>) {
    let at = packet.check_at();
    let check = translate::transport_check([frame[at], frame[at + 1]], packet.key.proto, flow);
    frame[at..at + 2].copy_from_slice(&check);
    let header = bytemuck::from_bytes_mut(&mut frame[L3..L3 + N::LEN]);
    translate::ip::<N>(header, flow, packet.ttl > 1);
    translate::ports(bytemuck::from_bytes_mut(&mut frame[packet.l4..packet.l4 + size_of::<Ports>()]), flow);
}

/// Source and destination, addresses and ports, change places: no sum changes.
fn turn<N: Family>(frame: &mut [u8], l4: usize) {
    let len = N::Addr::LEN;
    let at = L3 + N::LEN - 2 * len;
    for i in 0..len {
        frame.swap(at + i, at + len + i);
    }
    frame.swap(l4, l4 + 2);
    frame.swap(l4 + 1, l4 + 3);
}

/// What makes up the transport checksum, and IPv4's header.
fn sums<N: Family>(frame: &[u8], packet: &Packet<N::Addr>) -> (u16, u16) {
    let addresses = &frame[L3 + N::LEN - 2 * N::Addr::LEN..L3 + N::LEN];
    let header = if N::VERSION == 4 { sum(&[&frame[L3..L3 + N::LEN]]) } else { 0 };
    (sum(&[addresses, &frame[packet.l4..L3 + packet.total as usize]]), header)
}

/// Tuple behind the first bytes, and the rest.
fn tuple<A: Address>(data: &[u8], proto: u8) -> Option<(FlowKey<A>, &[u8])> {
    let (head, rest) = data.split_at_checked(2 * A::LEN + 4)?;
    let (src, head) = head.split_at(A::LEN);
    let (dst, ports) = head.split_at(A::LEN);
    let addr = bytemuck::pod_read_unaligned::<A>;
    Some((FlowKey::new(addr(src), addr(dst), [ports[0], ports[1]], [ports[2], ports[3]], proto), rest))
}

/// A packet translated by any record: no checksum becomes wrong, and the other direction's record undoes it.
pub fn translation(data: &[u8]) {
    match data {
        [n, rest @ ..] if n & 1 == 0 => translated::<V4>(rest),
        [_, rest @ ..] => translated::<V6>(rest),
        [] => {}
    }
}

fn translated<N: Parse>(data: &[u8])
where
    Flow<N::Addr>: Zeroable,
{
    let Some((to, rest)) = tuple::<N::Addr>(data, 0) else { return };
    let mut frame = rest.to_vec();
    let Parsed::Packet(packet) = N::parse(&&frame[..], L3, false) else { return };
    let original = frame.clone();
    let before = sums::<N>(&frame, &packet);
    let flow = translate::record_of::<N>(&packet.key, &to);
    apply::<N>(&mut frame, &packet, &flow);
    let unchecked = packet.key.proto == UDP && packet.check == [0, 0];
    let Parsed::Packet(after) = N::parse(&&frame[..], L3, false) else { panic!("no packet any more: {frame:02x?}") };
    assert_eq!(unchecked, after.key.proto == UDP && after.check == [0, 0], "UDP without a checksum");
    let new = FlowKey::new(to.src, to.dst, to.sport, to.dport, packet.key.proto);
    assert!(after.key == new && after.total == packet.total);
    let sums_after = sums::<N>(&frame, &after);
    assert!(unchecked || sums_after.0 == before.0, "transport: {before:?} {sums_after:?}");
    assert_eq!(sums_after.1, before.1, "header");
    // Back by the twin, whose key is the answer's.
    turn::<N>(&mut frame, packet.l4);
    let twin = translate::twin_of::<N>(&packet.key, &flow);
    let Parsed::Packet(answer) = N::parse(&&frame[..], L3, false) else { panic!("no answer: {frame:02x?}") };
    assert!(answer.key == flow.twin(packet.key.proto));
    apply::<N>(&mut frame, &answer, &twin);
    turn::<N>(&mut frame, packet.l4);
    let Parsed::Packet(back) = N::parse(&&frame[..], L3, false) else {
        panic!("no packet of the answer: {frame:02x?}")
    };
    assert!(back.key == packet.key);
    assert!(unchecked || sums::<N>(&frame, &back) == before, "there and back");
    assert_eq!(frame[packet.l4 + 4..packet.check_at()], original[packet.l4 + 4..packet.check_at()]);
}

/// An error that quotes a packet of any flow: its checksums stay as right as they were.
pub fn inner(data: &[u8]) {
    match data {
        [n, rest @ ..] if n & 1 == 0 => quoted::<V4>(rest),
        [_, rest @ ..] => quoted::<V6>(rest),
        [] => {}
    }
}

fn quoted<N: Quoted>(data: &[u8])
where
    Flow<N::Addr>: Zeroable,
{
    let Some((to, rest)) = tuple::<N::Addr>(data, 0) else { return };
    let mut frame = rest.to_vec();
    let l4 = L3 + N::LEN;
    let quote = l4 + ICMP_LEN;
    let end = frame.len();
    if end < quote {
        return;
    }
    let Some(inner) = N::quoted(&&frame[..], quote, end) else { return };
    assert!(inner.l4 + 8 <= end && inner.check.is_none_or(|_| inner.check_at() + 2 <= end));
    let flow = translate::record_of::<N>(&inner.flipped(), &to);
    let at = L3 + N::LEN - 2 * N::Addr::LEN;
    let addr = |frame: &[u8], n: usize| {
        bytemuck::pod_read_unaligned::<N::Addr>(&frame[at + n * N::Addr::LEN..][..N::Addr::LEN])
    };
    let came = (addr(&frame, 0), addr(&frame, 1));
    let outer = (if end.is_multiple_of(2) { flow.new_src } else { came.0 }, flow.new_dst);
    // IPv4's ICMP has no pseudo-header.
    let message = |frame: &[u8]| sum(&[if N::VERSION == 6 { &frame[at..l4] } else { &[] }, &frame[l4..]]);
    let header = |frame: &[u8]| if N::VERSION == 4 { sum(&[&frame[quote..quote + N::LEN]]) } else { 0 };
    let segment = |frame: &[u8]| sum(&[&frame[quote + N::LEN - 2 * N::Addr::LEN..quote + N::LEN], &frame[inner.l4..]]);
    let before = (message(&frame), header(&frame), segment(&frame));
    let edit = inner::edit::<N>(&inner, &flow, (&came.0, &came.1), (&outer.0, &outer.1));
    frame[at..at + N::Addr::LEN].copy_from_slice(bytemuck::bytes_of(&outer.0));
    frame[at + N::Addr::LEN..l4].copy_from_slice(bytemuck::bytes_of(&outer.1));
    let icmp: &mut Icmp = bytemuck::from_bytes_mut(&mut frame[l4..quote]);
    icmp.check = inner::checksum(icmp.check, &edit);
    let ip = bytemuck::from_bytes_mut(&mut frame[quote..quote + N::LEN]);
    N::requote(ip, &flow.new_dst, &flow.new_src, flow.l3_delta);
    let ports: &mut Ports = bytemuck::from_bytes_mut(&mut frame[inner.l4..inner.l4 + size_of::<Ports>()]);
    (ports.sport, ports.dport) = (flow.new_dport, flow.new_sport);
    if let Some(check) = edit.check {
        frame[inner.check_at()..inner.check_at() + 2].copy_from_slice(&check);
    }
    assert_eq!(message(&frame), before.0, "the error's checksum");
    assert_eq!(header(&frame), before.1, "the quoted header's");
    let unchecked = inner.key.proto == UDP && inner.check == Some([0, 0]);
    assert!(inner.check.is_none() || unchecked || segment(&frame) == before.2, "the quoted segment's");
}
