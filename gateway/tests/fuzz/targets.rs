//! The bodies of the `cargo fuzz` targets in `fuzz/`, on seeded damage: they hold without that tool too.

#[path = "../../../fuzz/src/names.rs"]
mod names;
#[path = "../../../fuzz/src/packets.rs"]
mod packets;
#[path = "../../../fuzz/src/upstream.rs"]
mod upstream;

use std::panic::{AssertUnwindSafe, catch_unwind};

use hickory_proto::{
    op::{Message, OpCode, Query},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME, MX, SOA, SRV, TXT},
    },
};

use crate::{
    epoch::{self, Failure, Rng},
    frames::{self, Ends, Look},
    mutate, queries,
    world::Plan,
};

/// Inputs of each target in `cargo xtask test`.
const USUAL: usize = 40_000;
const EPOCH: usize = 1000;

/// Runs a target on damaged inputs; a panic is a failure that leaves its input.
fn hold(name: &str, target: fn(&[u8]), mut make: impl FnMut(&mut Rng) -> Vec<u8>) {
    epoch::run(name, USUAL, |seed| {
        let mut rng = Rng::new(seed);
        for _ in 0..EPOCH {
            let data = make(&mut rng);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&data))) {
                let what = panic.downcast_ref::<String>().map_or("a panic", String::as_str);
                return Err(Failure { what: format!("{what}\nof {data:02x?}"), frames: vec![data] });
            }
        }
        Ok(EPOCH)
    });
}

fn packet(rng: &mut Rng, plan: &Plan) -> Vec<u8> {
    let ends = Ends {
        src: plan.clients[0].clone(),
        dst: plan.vip.clone(),
        sport: rng.number() as u16,
        dport: rng.number() as u16,
    };
    let look = Look::any(rng);
    let size = rng.below(100);
    let data = rng.bytes(size);
    if rng.percent(50) {
        frames::udp(&ends, look, &data)
    } else {
        let flags = rng.byte();
        frames::tcp(&ends, look, flags, &[1, 1, 1, 0], &data, (1, 2))
    }
}

/// A frame, honest or damaged.
fn frame(rng: &mut Rng, packet: &[u8]) -> Vec<u8> {
    let unchecked = rng.percent(10);
    let mut frame = frames::frame(packet, if rng.percent(20) { &[[0, 7]] } else { &[] }, unchecked);
    if rng.percent(60) {
        mutate::frame(rng, &mut frame, &[Plan::of(false), Plan::of(true)]);
    }
    frame
}

/// The first byte says the family, then a tuple to translate to.
fn translation(rng: &mut Rng, plan: &Plan, frame: &[u8]) -> Vec<u8> {
    let mut data = vec![u8::from(plan.v6)];
    let zeros = rng.percent(10);
    data.extend(rng.bytes(if plan.v6 { 36 } else { 12 }).iter().map(|byte| if zeros { 0 } else { *byte }));
    data.extend(frame);
    data
}

#[test]
fn header_views_hold() {
    hold("header_views", packets::headers, |rng| {
        let plan = Plan::of(rng.percent(50));
        let packet = packet(rng, &plan);
        let packet = if rng.percent(30) { frames::fragments(&packet, 16, 7).swap_remove(0) } else { packet };
        frame(rng, &packet)
    });
}

#[test]
fn translation_holds() {
    hold("translation", packets::translation, |rng| {
        let plan = Plan::of(rng.percent(50));
        let packet = packet(rng, &plan);
        let frame = frame(rng, &packet);
        translation(rng, &plan, &frame)
    });
}

#[test]
fn quoted_packets_hold() {
    hold("quoted_packets", packets::inner, |rng| {
        let plan = Plan::of(rng.percent(50));
        let about = packet(rng, &plan);
        let about = &about[..about.len().min(48 + rng.below(40))];
        let look = Look::any(rng);
        let error = frames::error(&plan.router, &plan.clients[0], look, (3, 1), [0; 4], about);
        let frame = frame(rng, &error);
        translation(rng, &plan, &frame)
    });
}

#[test]
fn questions_hold() {
    hold("questions", names::question, |rng| {
        let mut message = queries::query(rng);
        queries::damage(rng, &mut message);
        message
    });
}

#[test]
fn answers_hold() {
    hold("answers", names::answer, |rng| {
        let mut message = queries::query(rng);
        if rng.percent(30) {
            queries::damage(rng, &mut message);
        }
        message.truncate(255);
        let mut data = vec![message.len() as u8];
        data.extend(message);
        let records = rng.below(300);
        data.extend(rng.bytes(records));
        data
    });
}

/// A server's answer with records of many kinds.
fn served(rng: &mut Rng) -> Vec<u8> {
    let name = |text: &str| Name::from_ascii(text).expect("a name");
    let names = ["www.example.com.", "edge.example.net.", "example.com.", "a.b.c.d.example.org.", "."];
    let mut message = Message::response(rng.number() as u16, OpCode::Query);
    let qtype = rng.pick(&[1u16, 28, 5, 15, 16, 33, 6]);
    message.add_query(Query::query(name(names[0]), RecordType::from(qtype)));
    message.metadata.response_code = rng.pick(&[0u16, 0, 0, 3, 2, 5]).into();
    for at in 0..rng.below(8) {
        let target = name(rng.pick(&names));
        let data = match rng.below(6) {
            0 => RData::A(A::new(192, 0, 2, at as u8)),
            1 => RData::CNAME(CNAME(target)),
            2 => RData::MX(MX::new(10, target)),
            3 => RData::TXT(TXT::new(vec!["text".repeat(at)])),
            4 => RData::SRV(SRV::new(1, 2, 3, target)),
            _ => RData::SOA(SOA::new(target.clone(), target, 1, 2, 3, 4, rng.number() as u32)),
        };
        let record = Record::from_rdata(name(rng.pick(&names)), rng.number() as u32 >> rng.below(32), data);
        match rng.below(4) {
            0 => message.add_authority(record),
            1 => message.add_additional(record),
            _ => message.add_answer(record),
        };
    }
    message.to_vec().expect("hickory encodes it")
}

#[test]
fn servers_answers_hold() {
    hold("servers_answers", upstream::upstream, |rng| {
        let mut message = served(rng);
        if rng.percent(80) {
            queries::damage(rng, &mut message);
        }
        message
    });
}
