//! A million damaged queries: no panic, no endless loop, and no answer that cannot be read.

use gateway_common::dns::{
    build::{Answer, EntryBuilder, Record},
    emit::{Request, Sending},
    question::{Window, parse},
    wire,
};
use hickory_proto::op::Message;

use super::{query, with_opt};

/// Marsaglia's xorshift: the same damage in every run.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

fn damage(message: &mut Vec<u8>, state: &mut u64) {
    for _ in 0..next(state) % 4 {
        let at = next(state) % message.len();
        match next(state) % 4 {
            0 => message[at] ^= 1 << (next(state) % 8),
            1 => message[at] = next(state) as u8,
            2 => message.insert(at, next(state) as u8),
            _ => {
                if message.len() > 1 {
                    message.remove(at);
                }
            }
        }
    }
    if next(state).is_multiple_of(8) {
        message.truncate(next(state) % message.len());
    }
}

#[test]
fn a_million_damaged_queries_neither_panic_nor_loop_nor_get_a_malformed_answer() {
    let name = "frontend.shop.svc.cluster.local";
    let long = ["l".repeat(63), "m".repeat(63), "n".repeat(63), "o".repeat(60)].join(".");
    let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    let seeds = [
        query(name, wire::A),
        with_opt(query(name, wire::AAAA), 1232, true, &cookie),
        with_opt(query(&long, wire::TXT), 4096, false, &[]),
        query("", wire::NS),
    ];
    // The answer of one question serves every query that still has it; others are only parsed.
    let seed = Request::parse(&seeds[0]).expect("a query");
    let mut builder = EntryBuilder::zone(seed.name(), 1).expect("a name");
    builder.answer(Record::new(seed.name(), wire::A, 30, &[10, 1, 0, 80])).expect("a record");
    let answer: Answer = builder.build().expect("an answer");

    let mut state = 0x2545_f491_4f6c_dd1d;
    let (mut understood, mut read) = (0u32, 0u32);
    for round in 0..1_000_000usize {
        let mut message = seeds[round % seeds.len()].clone();
        damage(&mut message, &mut state);
        let host = parse(&message[..], message.len());
        if let Some(window) = Window::of(&message) {
            let kernel = parse(&window, message.len());
            assert!(kernel == host || kernel.is_err(), "{kernel:?} {host:?} {message:02x?}");
        }
        let Ok(request) = Request::parse(&message) else { continue };
        understood += 1;
        if request.name().len() == seed.name().len() {
            let reply = request.emit(&answer, &Sending::udp(&request.query, 0, 0));
            // hickory is the slow part; it need not read them all.
            if understood.is_multiple_of(16) {
                assert!(Message::from_vec(&reply).is_ok(), "{reply:02x?}");
                read += 1;
            }
        }
    }
    assert!(understood > 200_000, "only {understood} were still queries");
    assert!(read > 1_000, "only {read} answers were read back");
}
