//! Properties of parsing and translation, with etherparse as the second opinion.

use etherparse::{PacketBuilder, SlicedPacket, TcpHeader, TransportSlice, UdpHeader};
use proptest::prelude::*;

use super::{
    checksum::{finish, pseudo4, sum},
    error::{self, Error},
    family::V4,
    headers::{ETH_LEN, ICMP_LEN, IPV4_LEN, Ipv4, Ports, TCP, Tcp},
    parse::{self, Link, Packet4, Parse as _, Parsed},
    translate::{self, Flow4, Key4},
};
use crate::{Reason, maps::flow};

const L4: usize = ETH_LEN + IPV4_LEN;

/// What a program does to a frame, on a slice.
fn apply(frame: &mut [u8], packet: &Packet4, flow: &Flow4, hop: bool) {
    let check = translate::transport_check(packet.check, packet.key.proto, flow);
    frame[packet.check_at()..packet.check_at() + 2].copy_from_slice(&check);
    let ip: &mut Ipv4 = bytemuck::from_bytes_mut(&mut frame[ETH_LEN..L4]);
    translate::ip::<V4>(ip, flow, hop);
    let ports: &mut Ports = bytemuck::from_bytes_mut(&mut frame[L4..L4 + 4]);
    translate::ports(ports, flow);
}

fn parse(frame: &[u8]) -> Parsed<[u8; 4]> {
    match parse::ethernet(&frame) {
        Ok(Link::V4) => V4::parse(&frame, ETH_LEN, false),
        Ok(_) => Parsed::Pass(Reason::NotOurs),
        Err(reason) => Parsed::Pass(reason),
    }
}

fn packet(frame: &[u8]) -> Packet4 {
    match parse(frame) {
        Parsed::Packet(packet) => packet,
        other => panic!("not a packet: {other:?}"),
    }
}

/// Both checksums are what etherparse computes.
fn assert_sums(frame: &[u8]) {
    let ip = etherparse::Ipv4Header::from_slice(&frame[ETH_LEN..]).unwrap().0;
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    let body = &frame[L4..usize::from(ip.total_len) + ETH_LEN];
    if ip.protocol.0 == TCP {
        let (header, payload) = TcpHeader::from_slice(body).unwrap();
        assert_eq!(header.checksum, header.calc_checksum_ipv4(&ip, payload).unwrap());
    } else {
        let (header, payload) = UdpHeader::from_slice(body).unwrap();
        if header.checksum != 0 {
            assert_eq!(header.checksum, header.calc_checksum_ipv4(&ip, payload).unwrap());
        }
    }
}

#[derive(Clone, Debug)]
struct Form {
    tcp: bool,
    checked: bool,
    options: Vec<u8>,
    ends: ([u8; 4], u16, [u8; 4], u16),
    ttl: u8,
    payload: Vec<u8>,
    padding: usize,
}

fn form() -> impl Strategy<Value = Form> {
    (
        any::<bool>(),
        any::<bool>(),
        (0usize..=10).prop_map(|words| vec![1; words * 4]),
        any::<([u8; 4], u16, [u8; 4], u16)>(),
        any::<u8>(),
        proptest::collection::vec(any::<u8>(), 0..200),
        0usize..20,
    )
        .prop_map(|(tcp, checked, options, ends, ttl, payload, padding)| Form {
            tcp,
            checked,
            options,
            ends,
            ttl,
            payload,
            padding,
        })
}

fn build(form: &Form) -> Vec<u8> {
    let (src, sport, dst, dport) = form.ends;
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(src, dst, form.ttl);
    let mut frame = Vec::new();
    if form.tcp {
        let builder = builder.tcp(sport, dport, 1, 1).options_raw(&form.options).unwrap();
        builder.write(&mut frame, &form.payload).unwrap();
    } else {
        builder.udp(sport, dport).write(&mut frame, &form.payload).unwrap();
        if !form.checked {
            frame[L4 + 6..L4 + 8].fill(0);
        }
    }
    frame.extend(std::iter::repeat_n(0xaa, form.padding));
    frame
}

fn key() -> impl Strategy<Value = Key4> {
    any::<([u8; 4], [u8; 4], [u8; 2], [u8; 2])>()
        .prop_map(|(src, dst, sport, dport)| Key4::new(src, dst, sport, dport, 0))
}

proptest! {
    #[test]
    fn translation_and_its_reverse_give_back_the_original(form in form(), to in key()) {
        let original = build(&form);
        let mut frame = original.clone();
        let before = packet(&frame);
        let to = Key4 { proto: before.key.proto, ..to };
        let forward = translate::record(&before.key, &to);
        apply(&mut frame, &before, &forward, false);
        assert_sums(&frame);
        let there = packet(&frame);
        prop_assert_eq!(there.key, to);
        prop_assert_eq!(there.check == [0, 0], before.check == [0, 0] && !form.tcp);

        // Back: as if the same bytes were sent the other way.
        let forward = Flow4 { flags: flow::FORWARD, ..forward };
        let reverse = translate::twin(&before.key, &forward);
        prop_assert_eq!(reverse.flags, flow::REVERSE);
        let turn = |frame: &mut Vec<u8>| {
            for i in 0..4 {
                frame.swap(26 + i, 30 + i);
            }
            for i in 0..2 {
                frame.swap(L4 + i, L4 + 2 + i);
            }
        };
        turn(&mut frame);
        let back = packet(&frame);
        prop_assert_eq!(back.key, forward.twin(before.key.proto));
        apply(&mut frame, &back, &reverse, false);
        turn(&mut frame);
        prop_assert_eq!(frame, original);
    }

    #[test]
    fn a_twins_twin_translates_like_the_original(from in key(), to in key()) {
        let record = Flow4 { flags: flow::FORWARD, ..translate::record(&from, &to) };
        let twin = translate::twin(&from, &record);
        let again = translate::twin(&record.twin(0), &twin);
        prop_assert!(translate::same(&record, &again));
        prop_assert_eq!((record.l3_delta, record.l4_delta, record.port_delta), (again.l3_delta, again.l4_delta, again.port_delta));
        prop_assert_eq!(twin.twin(0), from);
    }

    #[test]
    fn a_hop_takes_one_from_the_ttl(mut form in form(), to in key()) {
        form.ttl = form.ttl.max(1);
        let mut frame = build(&form);
        let before = packet(&frame);
        apply(&mut frame, &before, &translate::record(&before.key, &to), true);
        prop_assert_eq!(frame[22], form.ttl - 1);
        assert_sums(&frame);
    }

    #[test]
    fn a_partial_checksum_is_the_pseudo_headers_sum(form in form()) {
        let frame = build(&form);
        let p = packet(&frame);
        let len = p.total as u16 - IPV4_LEN as u16;
        let pseudo = pseudo4(p.key.src, p.key.dst, p.key.proto, len);
        // Completing it as hardware does gives the whole checksum.
        let mut segment = frame[L4..ETH_LEN + p.total as usize].to_vec();
        let at = p.check_at() - L4;
        segment[at..at + 2].copy_from_slice(&pseudo.to_ne_bytes());
        let whole = finish(sum(&segment));
        if p.check != [0, 0] {
            prop_assert_eq!(if whole == [0, 0] && !form.tcp { [0xff, 0xff] } else { whole }, p.check);
            // And the completed segment adds up to the complement of what was there before.
            segment[at..at + 2].copy_from_slice(&whole);
            let quoted = sum(&frame[ETH_LEN..L4]) + sum(&segment);
            prop_assert_eq!(finish(quoted), finish(error::partial_quote_sum(pseudo.to_ne_bytes())));
        }
    }

    #[test]
    fn errors_quote_the_packet_under_good_checksums(form in form(), from: [u8; 4], kind in 0usize..5) {
        let frame = build(&form);
        let p = packet(&frame);
        let errors = [Error::HOST_UNREACHABLE, Error::PORT_UNREACHABLE, Error::PROHIBITED, Error::TIME_EXCEEDED, Error::too_big(1400)];
        let quote = &frame[ETH_LEN..ETH_LEN + p.total as usize];
        let (ip, icmp) = error::head::<V4>(&from, &p.key.src, errors[kind], quote.len() as u16, sum(quote));
        let mut out = frame[..ETH_LEN].to_vec();
        out.extend_from_slice(bytemuck::bytes_of(&ip));
        out.extend_from_slice(bytemuck::bytes_of(&icmp));
        out.extend_from_slice(quote);
        let seen = SlicedPacket::from_ethernet(&out).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = seen.transport else { panic!("not ICMP") };
        prop_assert_eq!((icmp.type_u8(), icmp.code_u8()), (errors[kind].kind, errors[kind].code));
        prop_assert_eq!(finish(sum(&out[L4..])), [0, 0]);
        prop_assert_eq!(finish(sum(&out[ETH_LEN..L4])), [0, 0]);
        prop_assert_eq!(&out[L4 + ICMP_LEN..], quote);
    }

    #[test]
    fn a_reset_answers_within_the_window(form in form(), flags: u8, seq: u32, ack: u32) {
        let frame = build(&Form { tcp: true, ..form });
        let p = packet(&frame);
        let mut segment: Tcp = *bytemuck::from_bytes(&frame[L4..L4 + 20]);
        (segment.flags, segment.seq, segment.ack) = (flags, seq.to_be_bytes(), ack.to_be_bytes());
        let payload = p.total - IPV4_LEN as u32 - p.header;
        let (ip, reset) = error::reset::<V4>((&p.key.src, &p.key.dst), &segment, payload, false);
        let mut out = frame[..ETH_LEN].to_vec();
        out.extend_from_slice(bytemuck::bytes_of(&ip));
        out.extend_from_slice(bytemuck::bytes_of(&reset));
        assert_sums(&out);
        if flags & 16 != 0 {
            prop_assert_eq!((u32::from_be_bytes(reset.seq), reset.flags), (ack, 4));
        } else {
            let next = seq.wrapping_add(payload).wrapping_add(u32::from(flags & 1)).wrapping_add(u32::from(flags >> 1 & 1));
            prop_assert_eq!((u32::from_be_bytes(reset.ack), reset.flags), (next, 20));
        }
    }
}

/// One step of a small generator: the run is the same each time, and fast.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn a_million_mutated_frames_are_parsed_and_translated_without_harm() {
    let ends = ([10, 90, 1, 2], 4000, [10, 1, 0, 7], 80);
    let seeds: Vec<Vec<u8>> = [(true, 0), (true, 40), (false, 0)]
        .map(|(tcp, options)| {
            let options = vec![1; options];
            build(&Form { tcp, checked: true, options, ends, ttl: 64, payload: vec![7; 33], padding: 0 })
        })
        .into();
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut packets = 0u32;
    for round in 0..1_000_000usize {
        let mut frame = seeds[round % seeds.len()].clone();
        for _ in 0..1 + next(&mut state) % 4 {
            let at = next(&mut state) as usize % frame.len().min(60);
            frame[at] ^= 1 << (next(&mut state) % 8);
        }
        frame.truncate(frame.len() - (next(&mut state) as usize % 8 / 7) * (next(&mut state) as usize % 60));
        match parse(&frame) {
            Parsed::Packet(p) => {
                packets += 1;
                assert!(p.total as usize + ETH_LEN <= frame.len(), "a length beyond the frame");
                assert!(p.header + IPV4_LEN as u32 <= p.total);
                let before = frame.clone();
                let to = Key4::new([1, 2, 3, 4], [5, 6, 7, 8], [9, 9], [8, 8], p.key.proto);
                let record = translate::record(&p.key, &to);
                apply(&mut frame, &p, &record, false);
                assert_eq!(frame[..ETH_LEN], before[..ETH_LEN]);
                let end = p.check_at() + 2;
                assert_eq!(frame[end..], before[end..], "nothing behind the headers is touched");
            }
            Parsed::Fragment(fragment) => assert_eq!(fragment.other.dst, frame[30..34]),
            Parsed::Other(other) | Parsed::Odd(other, _) => assert_eq!(other.dst, frame[30..34]),
            Parsed::Pass(reason) => {
                assert!(matches!(reason, Reason::Unparsed | Reason::NotOurs), "{reason:?}");
            }
        }
    }
    assert!(packets > 200_000, "only {packets} of the frames were still packets");
}
