//! Damaged queries through the loaded programs, and what an answer must be: hickory reads it, it is no longer than the client allows,
//! and it has the query's ID and question.

use std::collections::BTreeMap;

use gateway_common::{
    Reason,
    dns::{
        build::{EntryBuilder, Record, Soa, exists, exists_as_alias, zone},
        name::to_wire,
        wire,
    },
};
use hickory_proto::{
    op::{Message, MessageType},
    serialize::binary::{BinDecodable as _, BinDecoder},
};

use crate::{
    epoch::{self, Failure, Rng},
    frames::{self, Ends, Look},
    judge::Case,
    mutate,
    oracle::word,
    world::{Plan, TAGS, World},
};

/// Queries in `cargo xtask test`.
const USUAL: usize = 100_000;
const EPOCH: usize = 1000;

const NAMES: [&str; 12] = [
    "web.shop.svc.cluster.local",
    "many.shop.svc.cluster.local",
    "crowd.shop.svc.cluster.local",
    "secret.shop.svc.cluster.local",
    "away.shop.svc.cluster.local",
    "nothing.shop.svc.cluster.local",
    "cluster.local",
    // 64 bytes in wire format, the most that the kernel answers, and one more.
    "a-name-that-is-just-as-long-as-it-can-b.shop.svc.cluster.local",
    "a-name-that-is-one-longer-than-it-may-be.shop.svc.cluster.local",
    "www.example.com",
    "edge.example.net",
    ".",
];
const TYPES: [u16; 8] = [wire::A, wire::A, wire::AAAA, wire::SRV, wire::TXT, wire::CNAME, 65, 255];

fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// A zone that is complete, and answers of every form: in the entry, beside it, too long for any client, learnt.
fn fill(world: &mut World) {
    let name = |text: &str| to_wire(text).expect("a name");
    let (mname, rname) = (name("ns.dns.cluster.local"), name("hostmaster.cluster.local"));
    let soa = Soa { mname: &mname, rname: &rname, serial: 7, refresh: 7200, retry: 1800, expire: 86400, minimum: 5 };
    world.put_zone(0, &zone(&name("cluster.local"), &soa, 30, true).expect("a zone"));
    for (at, text) in NAMES[..8].iter().enumerate() {
        let owner = name(text);
        let views = if *text == "secret.shop.svc.cluster.local" { 2 } else { 3 };
        if *text == "away.shop.svc.cluster.local" {
            world.put_answer(&owner, 0, 0, &exists_as_alias(&owner, views).expect("an alias"));
            continue;
        }
        world.put_answer(&owner, 0, 0, &exists(&owner, views).expect("a name"));
        for (qtype, count) in [(wire::A, [1, 40, 200, 2, 0, 0, 0, 3][at]), (wire::AAAA, [2, 20, 0, 1, 0, 0, 0, 1][at])]
        {
            let mut builder = EntryBuilder::zone(&owner, views).expect("a name");
            for i in 0..count {
                let data: &[u8] =
                    if qtype == wire::A { &[10, 1, 0, i] } else { &[[0xfd; 15].as_slice(), &[i]].concat() };
                builder.answer(Record::new(&owner, qtype, 5, data)).expect("a record");
            }
            if count > 0 {
                world.put_answer(&owner, qtype, 0, &builder.build().expect("an answer"));
            }
        }
        let mut builder = EntryBuilder::zone(&owner, views).expect("a name");
        let target = [&[0, 0, 0, 100, 0, 80][..], &owner].concat();
        builder.answer(Record::new(&owner, wire::SRV, 5, &target)).expect("a record");
        builder.additional(Record::new(&owner, wire::A, 5, &[10, 1, 0, 9])).expect("a record");
        world.put_answer(&owner, wire::SRV, 0, &builder.build().expect("an answer"));
    }
    for bits in 0..4 {
        let (owner, target) = (name("www.example.com"), name("edge.example.net"));
        let since = now() - 10_000_000_000;
        let mut builder = EntryBuilder::learnt(&owner, 3, since, since + 86_400_000_000_000).expect("a name");
        builder.answer(Record::new(&owner, wire::CNAME, 90_000, &target)).expect("a record");
        for last in 1..6 {
            builder.answer(Record::new(&target, wire::A, 86_400, &[192, 0, 2, last])).expect("a record");
        }
        world.put_answer(&owner, wire::A, bits, &builder.build().expect("an answer"));
    }
}

/// An honest query.
pub fn query(rng: &mut Rng) -> Vec<u8> {
    let mut name = to_wire(rng.pick(&NAMES)).expect("a name");
    if rng.percent(15) {
        name.splice(0..0, *b"\x03abc");
    }
    if rng.percent(50) {
        for byte in &mut name {
            if rng.percent(50) {
                byte.make_ascii_uppercase();
            }
        }
    }
    let edns = rng.percent(60);
    let flags = rng.pick(&[0x0100u16, 0x0100, 0x0000, 0x0110, 0x0120, 0x0130]);
    let mut message = Vec::new();
    for value in [rng.number() as u16, flags, 1, 0, 0, u16::from(edns)] {
        message.extend(value.to_be_bytes());
    }
    message.extend(name);
    message.extend(rng.pick(&TYPES).to_be_bytes());
    message.extend([0, 1]);
    if edns {
        let size = rng.pick(&[0u16, 511, 512, 600, 1200, 1231, 1232, 1233, 4096, 0xffff]);
        message.extend([0, 0, 41]);
        message.extend(size.to_be_bytes());
        message.extend([0, 0, if rng.percent(30) { 0x80 } else { 0 }, 0]);
        let mut options = Vec::new();
        for _ in 0..rng.below(3) {
            let len = rng.below(12);
            options.extend(rng.pick(&[3u16, 8, 10, 12, 65_001]).to_be_bytes());
            options.extend((len as u16).to_be_bytes());
            options.extend(rng.bytes(len));
        }
        message.extend((options.len() as u16).to_be_bytes());
        message.extend(options);
    }
    message
}

/// Damage to a message, of which a part still is a query.
pub fn damage(rng: &mut Rng, message: &mut Vec<u8>) {
    for _ in 0..rng.below(4) {
        let at = rng.below(message.len());
        match rng.below(6) {
            0 => message[at] ^= 1 << rng.below(8),
            1 => message[at] = rng.byte(),
            2 => message.insert(at, rng.byte()),
            3 if message.len() > 1 => drop(message.remove(at)),
            4 => message[at] = rng.pick(&[0, 1, 2, 63, 64, 0x80, 0xc0, 0xff]),
            _ if at < 12 => message[at] ^= 1 << rng.below(8),
            _ => {}
        }
    }
    if rng.percent(5) {
        message.truncate(1 + rng.below(message.len()));
    }
    if rng.percent(3) {
        let more = 1 + rng.below(30);
        message.extend(rng.bytes(more));
    }
}

fn read(message: &[u8], what: &str) -> Result<Message, String> {
    let mut decoder = BinDecoder::new(message);
    let read = Message::read(&mut decoder).map_err(|e| format!("{what} cannot be read: {e}"))?;
    if decoder.is_empty() { Ok(read) } else { Err(format!("{what} has {} bytes too many", decoder.len())) }
}

/// Whether this is an answer to that query.
pub fn answer(query: &[u8], answer: &[u8]) -> Result<(), String> {
    // What is answered was understood: hickory understands it too, but for the content of options, which nobody here looks into.
    let asked = read(&without_options(query)?, "the query")?;
    let said = read(answer, "the answer")?;
    let that = |is: bool, what: &str| if is { Ok(()) } else { Err(format!("{what}: {said:?} to {asked:?}")) };
    let end = 12 + query[12..].iter().position(|byte| *byte == 0).map_or(0, |_| question_len(&query[12..]));
    that(query[..2] == answer[..2], "another ID")?;
    that(answer.get(12..end) == query.get(12..end), "another question")?;
    that(said.queries.len() == 1 && asked.queries.len() == 1, "not one question")?;
    that(
        said.metadata.message_type == MessageType::Response && asked.metadata.message_type == MessageType::Query,
        "direction",
    )?;
    that(said.metadata.recursion_desired == asked.metadata.recursion_desired, "RD")?;
    that(said.metadata.checking_disabled == asked.metadata.checking_disabled, "CD")?;
    that(said.metadata.op_code == asked.metadata.op_code, "opcode")?;
    let size = asked.edns.as_ref().map_or(512, |edns| usize::from(edns.max_payload()).clamp(512, 1232));
    that(answer.len() <= size, &format!("{} bytes, {size} allowed", answer.len()))?;
    that(said.edns.is_some() == asked.edns.is_some(), "OPT")?;
    if let Some(edns) = &said.edns {
        that(edns.version() == 0 && edns.max_payload() == 1232 && edns.options().as_ref().is_empty(), "OPT's content")?;
    }
    that(!said.metadata.truncation || said.answers.is_empty(), "TC with answers")?;
    let oldest = said.answers.iter().map(|record| record.ttl).max().unwrap_or(0);
    that(oldest < 90_000, "a TTL that did not age")
}

/// A query with an empty OPT, when its options fill it.
fn without_options(query: &[u8]) -> Result<Vec<u8>, String> {
    let end = 12 + question_len(&query[12..]);
    let mut short = query.to_vec();
    if query.len() <= end {
        return Ok(short);
    }
    let mut options = match query.get(end..) {
        Some([0, 0, 41, _, _, _, _, _, _, high, low, options @ ..])
            if options.len() == usize::from(u16::from_be_bytes([*high, *low])) =>
        {
            options
        }
        rest => return Err(format!("behind the question is no OPT alone: {rest:02x?}")),
    };
    while let [_, _, high, low, rest @ ..] = options {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        options = rest.get(len..).ok_or("an option is longer than OPT")?;
    }
    if !options.is_empty() {
        return Err("half an option".into());
    }
    short.truncate(end + 9);
    short.extend([0, 0]);
    Ok(short)
}

/// Bytes of a question without compression.
fn question_len(question: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&len) = question.get(at) {
        at += 1 + usize::from(len);
        if len == 0 {
            break;
        }
    }
    at + 4
}

type Tally = BTreeMap<&'static str, u64>;

fn epoch(world: &mut World, tally: &mut Tally, seed: u64) -> Result<usize, Failure> {
    let mut rng = Rng::new(seed);
    world.forget();
    let config = world.config();
    world.set_config(&config);
    let mut seen = Vec::new();
    for _ in 0..EPOCH {
        let plan = Plan::of(rng.percent(40));
        let program = rng.pick(&["xdp_uplink", "tc_uplink"]);
        let mut message = query(&mut rng);
        if rng.percent(65) {
            damage(&mut rng, &mut message);
        }
        let ends = Ends {
            src: plan.clients[usize::from(rng.percent(20))].clone(),
            dst: rng.pick(&[&plan.own, &plan.own, &plan.dns]).clone(),
            sport: 1024 + rng.below(64_000) as u16,
            dport: 53,
        };
        let tags = if program == "xdp_uplink" { rng.pick(&[&TAGS[..0], &TAGS[..0], &TAGS[..1], &TAGS]) } else { &[] };
        let look = Look::any(&mut rng);
        let mut frame = frames::frame(&frames::udp(&ends, look, &message), tags, rng.percent(10));
        if rng.percent(15) {
            mutate::frame(&mut rng, &mut frame, &world.plans);
            World::pad(program, &mut frame);
        }
        let outcome = world.run(program, &frame);
        seen.push(frame);
        let before = &seen[seen.len() - 1];
        let case = Case { program, config: &config, plans: &world.plans, before, outcome: &outcome };
        if let Err(what) = case.judge() {
            let counted: Vec<_> = outcome.counted.iter().map(|(reason, _)| reason.name()).collect();
            let what = format!(
                "{program}: {what}\n{:?}, counted {counted:?}\n in {before:02x?}\nout {:02x?}",
                outcome.action, outcome.frame
            );
            seen.push(outcome.frame);
            return Err(Failure { what, frames: seen });
        }
        for (reason, times) in &outcome.counted {
            *tally.entry(reason.name()).or_default() += times;
        }
    }
    Ok(EPOCH)
}

#[test]
fn damaged_queries_get_a_right_answer_or_none() {
    if epoch::skip() {
        return;
    }
    let mut world = World::new();
    fill(&mut world);
    let mut tally = Tally::new();
    epoch::run("damaged_queries", USUAL, |seed| epoch(&mut world, &mut tally, seed));
    println!("{tally:?}");
    for reason in [
        Reason::DnsAnswered,
        Reason::DnsNoData,
        Reason::DnsNxDomain,
        Reason::DnsTruncated,
        Reason::DnsMiss,
        Reason::DnsUnsupported,
        Reason::Forwarded,
    ] {
        let times = tally.get(reason.name()).copied().unwrap_or(0);
        assert!(times > 100 || epoch::is_alone(), "{} happened {times} times: {tally:?}", reason.name());
    }
}

/// The message of a UDP datagram.
pub fn message(datagram: &[u8]) -> &[u8] {
    let len = usize::from(word(datagram, 4)).min(datagram.len());
    &datagram[8.min(len)..len]
}
