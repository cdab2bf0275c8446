//! Case by case.

use gateway_common::{
    dns::{
        build::{BuildError, EntryBuilder, Record, Soa, exists, exists_as_alias, sum_of, zone},
        emit::{Request, Sending, Ttls},
        hash::Keys,
        name::{NameError, fold_word, is_below, to_text, to_wire},
        question::{Folded, Unsupported, Window, parse},
        reply::fold_sum,
        resolve::Outcome,
        table::Table,
        wire,
    },
    limits::{DNS_INLINE_BODY, DNS_LARGE_BODY, DNS_MAX_TTLS},
    maps::dns_key,
};

use super::{name, query, with_opt};

type Change = (&'static str, Unsupported, fn(&mut Vec<u8>, usize));

#[test]
fn each_oddity_of_a_query_is_named_by_both_readers() {
    let good = with_opt(query("web.shop.svc.cluster.local", wire::A), 1232, false, &[0, 10, 0, 2, 1, 2]);
    let question_end = 12 + name("web.shop.svc.cluster.local").len() + 4;
    let changes: [Change; 22] = [
        ("a response", Unsupported::Response, |m, _| m[2] |= 0x80),
        ("opcode NOTIFY", Unsupported::Opcode, |m, _| m[2] |= 0x20),
        ("TC", Unsupported::Flags, |m, _| m[2] |= 0x02),
        ("Z", Unsupported::Flags, |m, _| m[3] |= 0x40),
        ("an RCODE", Unsupported::Flags, |m, _| m[3] |= 0x05),
        ("no question", Unsupported::Counts, |m, _| m[5] = 0),
        ("256 questions", Unsupported::Counts, |m, _| m[4] = 1),
        ("an answer", Unsupported::Counts, |m, _| m[7] = 1),
        ("an authority", Unsupported::Counts, |m, _| m[9] = 1),
        ("two additionals", Unsupported::Counts, |m, _| m[11] = 2),
        ("a pointer", Unsupported::Label, |m, _| m[12] = 0xC0),
        ("an extended label", Unsupported::Label, |m, _| m[12] = 0x41),
        ("class CH", Unsupported::Class, |m, end| m[end - 1] = 3),
        ("type ANY", Unsupported::Type, |m, end| m[end - 3] = 255),
        ("type AXFR", Unsupported::Type, |m, end| m[end - 3] = 252),
        ("type OPT", Unsupported::Type, |m, end| m[end - 3] = 41),
        ("type 0", Unsupported::Type, |m, end| m[end - 3] = 0),
        ("another additional", Unsupported::Opt, |m, end| m[end + 2] = 1),
        ("EDNS version 1", Unsupported::Version, |m, end| m[end + 6] = 1),
        ("an option beyond OPT", Unsupported::Opt, |m, end| m[end + 14] = 3),
        ("OPT beyond the message", Unsupported::Opt, |m, end| m[end + 10] += 1),
        ("a trailing byte", Unsupported::Trailing, |m, _| m.push(0)),
    ];
    assert!(parse(&good[..], good.len()).is_ok());
    for (what, why, change) in changes {
        let mut message = good.clone();
        change(&mut message, question_end);
        assert_eq!(parse(&message[..], message.len()), Err(why), "{what}");
        let window = Window::of(&message).expect("a short message");
        assert_eq!(parse(&window, message.len()), Err(why), "{what}, in the kernel's window");
    }
    for len in 0..good.len() {
        assert!(parse(&good[..len], len).is_err(), "cut at {len}");
    }
}

#[test]
fn the_kernel_reads_names_of_up_to_64_bytes_and_the_forwarder_of_up_to_255() {
    for (labels, kernel, host) in [(31, true, true), (32, false, true), (127, false, true), (128, false, false)] {
        let text = vec!["a"; labels].join(".");
        let mut message = query("x", wire::A);
        let wire_name: Vec<u8> = [b"\x01a".repeat(labels), vec![0]].concat();
        message.splice(12..15, wire_name);
        assert_eq!(parse(&message[..], message.len()).is_ok(), host, "{text}");
        let in_kernel = Window::of(&message).is_some_and(|window| parse(&window, message.len()).is_ok());
        assert_eq!(in_kernel, kernel, "{labels} labels");
    }
}

#[test]
fn the_root_and_a_name_of_63_byte_labels_are_names() {
    for text in [".".to_owned(), ["x".repeat(63).as_str(); 3].join(".")] {
        let message = query(&text, wire::NS);
        let request = Request::parse(&message).expect("a query");
        assert_eq!(request.name(), name(&text));
    }
}

#[test]
fn folding_touches_letters_only() {
    for byte in 0..=u8::MAX {
        let word = u64::from_ne_bytes([byte, 0x40, b'A', b'Z', 0x5B, byte, 0xFF, 0xC1]);
        let folded = fold_word(word).to_ne_bytes();
        assert_eq!(folded[0], byte.to_ascii_lowercase(), "{byte:#x}");
        assert_eq!(folded[1..], [0x40, b'a', b'z', 0x5B, byte.to_ascii_lowercase(), 0xFF, 0xC1]);
    }
}

#[test]
fn a_zone_holds_itself_and_what_is_below_it_at_a_label() {
    let mut zone = [0; 64];
    let wire_name = name("cluster.local");
    zone[..wire_name.len()].copy_from_slice(&wire_name);
    for (text, inside) in [
        ("cluster.local", true),
        ("a.cluster.local", true),
        ("a.b.c.cluster.local", true),
        ("xcluster.local", false),
        ("local", false),
        (".", false),
        ("cluster.local.example.com", false),
        ("cluster.locax", false),
        // The same bytes as the zone's name, inside a label.
        ("x\\007cluster.local", false),
    ] {
        let text_name = name(text);
        assert_eq!(is_below(&text_name[..], text_name.len(), &zone, wire_name.len()), inside, "{text}");
        let message = query(text, wire::A);
        let mut folded = Folded::EMPTY;
        Window::of(&message).expect("short").fold(text_name.len(), &mut folded);
        let zone_words = &bytemuck::cast(zone);
        assert_eq!(folded.is_below(zone_words, wire_name.len()), inside, "{text}, in the kernel");
    }
}

#[test]
fn texts_that_are_no_names_say_why() {
    let long = "x".repeat(64);
    let whole = vec!["x".repeat(60); 5].join(".");
    assert_eq!(to_wire("a..b"), Err(NameError::EmptyLabel("a..b".into())));
    assert_eq!(to_wire(&long), Err(NameError::LongLabel(long.clone())));
    assert_eq!(to_wire(&whole), Err(NameError::LongName(whole.clone())));
    assert_eq!(to_wire("a\\2x"), Err(NameError::Escape("a\\2x".into())));
    assert_eq!(to_text(&name("WEB.Shop.")), "web.shop");
    assert_eq!(to_text(&name("a\\.b.c\\000d")), "a\\.b.c\\000d");
}

/// A learnt answer with `count` addresses behind an alias.
fn chain(count: u8) -> gateway_common::dns::build::Answer {
    let (owner, target) = (name("www.example.com"), name("edge.example.com"));
    let mut builder = EntryBuilder::learnt(&owner, u64::MAX, 1_000, 300_000_001_000).expect("a name");
    builder.answer(Record::new(&owner, wire::CNAME, 600, &target)).expect("a record");
    for i in 0..count {
        builder.answer(Record::new(&target, wire::A, 300, &[192, 0, 2, i])).expect("a record");
    }
    builder.build().expect("an answer")
}

#[test]
fn an_alias_is_spelt_out_once_and_its_addresses_point_to_it_and_rotate() {
    let answer = chain(3);
    let target = name("edge.example.com").len();
    assert_eq!(answer.body().len(), 12 + target + 3 * 16);
    assert_eq!(usize::from(answer.head().rotate_at), 12 + target);
    assert_eq!((answer.head().rotate_len, answer.head().rotate_count), (16, 3));
    let request = Request::parse(&query("www.example.com", wire::A)).expect("a query");
    for turn in 0..4 {
        let message = request.emit(&answer, &Sending::udp(&request.query, 10, turn));
        let parsed = hickory_proto::op::Message::from_vec(&message).expect("an answer");
        let addresses: Vec<_> = parsed.answers[1..].iter().map(|record| record.data.to_string()).collect();
        let expected: Vec<_> = (0..3).map(|i| format!("192.0.2.{}", (i + turn) % 3)).collect();
        assert_eq!(addresses, expected);
        assert_eq!(parsed.answers[1].name.to_string(), "edge.example.com.");
        assert_eq!(parsed.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [590, 290, 290, 290]);
    }
    let stale = request.emit(&answer, &Sending { limit: 512, ttls: Ttls::Fixed(30), turn: 0 });
    let parsed = hickory_proto::op::Message::from_vec(&stale).expect("an answer");
    assert!(parsed.answers.iter().all(|record| record.ttl == 30));
}

#[test]
fn a_body_goes_where_it_fits_in_the_kernel() {
    let (entry, large) = chain(9).to_kernel(7).expect("an entry");
    assert!(usize::from(entry.len) <= DNS_INLINE_BODY && large.is_none() && entry.large == 0);
    let (entry, large) = chain(15).to_kernel(7).expect("an entry");
    assert!(usize::from(entry.len) > DNS_INLINE_BODY && large.is_some() && entry.large == 7);
    assert_eq!(chain(DNS_MAX_TTLS as u8).to_kernel(7), None, "one TTL more than the kernel ages");
    let (entry, large) = chain(80).to_kernel(7).expect("truncated for everyone");
    assert!(usize::from(entry.len) > DNS_LARGE_BODY && large.is_none() && entry.large == 0);
}

#[test]
fn authentic_data_is_said_to_those_who_ask() {
    let owner = name("a.example");
    let mut builder = EntryBuilder::learnt(&owner, 1, 0, 10).expect("a name").authentic();
    builder.answer(Record::new(&owner, wire::A, 5, &[1, 2, 3, 4])).expect("a record");
    let answer = builder.build().expect("an answer");
    let plain = query("a.example", wire::A);
    let mut asked = plain.clone();
    asked[3] |= 0x20;
    for (message, said) in [(plain.clone(), false), (asked, true), (with_opt(plain, 1232, true, &[]), true)] {
        let request = Request::parse(&message).expect("a query");
        let reply = request.emit(&answer, &Sending::udp(&request.query, 0, 0));
        assert_eq!(reply[3] & 0x20 != 0, said);
    }
}

#[test]
fn what_is_known_decides_the_outcome() {
    let (mname, rname) = (name("ns.cluster.local"), name("admin.cluster.local"));
    let soa = Soa { mname: &mname, rname: &rname, serial: 1, refresh: 2, retry: 3, expire: 4, minimum: 5 };
    let mut table = Table::default();
    table.set_zone(0, zone(&name("cluster.local"), &soa, 30, true).expect("a zone"));
    table.set_zone(3, zone(&name("pod.cluster.local"), &soa, 30, false).expect("a zone"));
    let put = |table: &mut Table, text: &str, views| {
        let owner = name(text);
        table.put(&owner, 0, 0, exists(&owner, views).expect("a name").into());
        let mut builder = EntryBuilder::zone(&owner, views).expect("a name");
        builder.answer(Record::new(&owner, wire::A, 5, &[10, 1, 2, 3])).expect("a record");
        table.put(&owner, wire::A, 0, builder.build().expect("an answer").into());
    };
    put(&mut table, "web.shop.svc.cluster.local", 0b01);
    let alias = name("away.cluster.local");
    table.put(&alias, 0, 0, exists_as_alias(&alias, 1).expect("a name").into());
    table.put(&name("www.example.com"), wire::A, 0, chain(1).into());
    table.put(&name("www.example.com"), wire::A, dns_key::CD, chain(2).into());
    let kind = |text: &str, qtype, view, bits: u8, now| {
        let mut message = query(text, qtype);
        if bits & dns_key::CD != 0 {
            message[3] |= 0x10;
        }
        if bits & dns_key::DO != 0 {
            message = with_opt(message, 1232, true, &[]);
        }
        match table.resolve(&Request::parse(&message).expect("a query"), view, now) {
            Outcome::Answer(answer, age) => format!("{} aged {age}", answer.head().answers),
            Outcome::NoData(_) => "nodata".into(),
            Outcome::NxDomain(_) => "nxdomain".into(),
            Outcome::Miss => "miss".into(),
            Outcome::Expired => "expired".into(),
        }
    };
    let web = "web.shop.svc.cluster.local";
    const LATE: u64 = 300_000_001_000;
    for (text, qtype, view, bits, now, expected) in [
        (web, wire::A, 0, 0, 0, "1 aged 0"),
        (web, wire::A, 0, dns_key::DO | dns_key::CD, LATE, "1 aged 0"),
        (web, wire::AAAA, 0, 0, 0, "nodata"),
        (web, wire::A, 1, 0, 0, "nxdomain"),
        (web, wire::AAAA, 1, 0, 0, "nxdomain"),
        ("shop.cluster.local", wire::A, 0, 0, 0, "nxdomain"),
        ("away.cluster.local", wire::A, 0, 0, 0, "miss"),
        ("1-2-3-4.ns.pod.cluster.local", wire::A, 0, 0, 0, "miss"),
        ("example.com", wire::A, 0, 0, 0, "miss"),
        ("www.example.com", wire::A, 0, 0, 1_999_000_000, "2 aged 2"),
        ("www.example.com", wire::A, 0, 0, LATE - 1, "2 aged 300"),
        ("www.example.com", wire::A, 0, 0, LATE, "expired"),
        ("www.example.com", wire::A, 0, dns_key::CD, 1_000, "3 aged 0"),
        ("www.example.com", wire::A, 0, dns_key::DO, 1_000, "miss"),
    ] {
        assert_eq!(kind(text, qtype, view, bits, now), expected, "{text} {qtype} view {view} bits {bits} at {now}");
    }
}

#[test]
fn what_is_no_record_or_zone_is_refused_with_its_reason() {
    let bad = [3, b'a'];
    assert_eq!(EntryBuilder::zone(&bad, 1).err(), Some(BuildError::Name(bad.to_vec())));
    let owner = name("a");
    let mut builder = EntryBuilder::zone(&owner, 1).expect("a name");
    assert_eq!(builder.answer(Record::new(&bad, 1, 5, &[])).err(), Some(BuildError::Name(bad.to_vec())));
    let huge = vec![0; 65_536];
    assert_eq!(builder.answer(Record::new(&owner, 16, 5, &huge)).err(), Some(BuildError::Rdata(65_536)));
    let long = name(&vec!["x".repeat(30); 4].join("."));
    let soa = Soa { mname: &owner, rname: &owner, serial: 1, refresh: 2, retry: 3, expire: 4, minimum: 5 };
    assert!(matches!(zone(&long, &soa, 5, true), Err(BuildError::ZoneName(_))));
    let soa = Soa { mname: &long, rname: &long, ..soa };
    assert!(matches!(zone(&owner, &soa, 5, true), Err(BuildError::Soa(_))));
}

#[test]
fn the_planned_sum_is_the_sum_of_the_message_at_every_parity() {
    for label in 1..=40 {
        let text = format!("{}.example.com", "n".repeat(label));
        let owner = name(&text);
        let mut builder = EntryBuilder::zone(&owner, 1).expect("a name");
        builder.answer(Record::new(&owner, wire::TXT, 5, &b"\x05abcde"[..1 + label % 6])).expect("a record");
        let answer = builder.build().expect("an answer");
        for message in [query(&text, wire::TXT), with_opt(query(&text, wire::TXT), 1232, true, &[])] {
            let request = Request::parse(&message).expect("a query");
            let emitted = request.emit(&answer, &Sending::udp(&request.query, 0, 0));
            let reply = gateway_common::dns::reply::Reply::of_entry(&request.query, answer.head(), 512);
            let window = Window::of(&message).expect("short");
            let (len, qtype) = (usize::from(request.query.name_len), request.query.qtype);
            let (question, _) = window.hash(len, qtype, &Keys::DEFAULT);
            let sum = fold_sum(reply.sum(&request.query, question, answer.head().sum));
            assert_eq!(sum % 0xFFFF, sum_of(&emitted) % 0xFFFF, "{text}");
        }
    }
}

#[test]
fn a_begun_second_counts_as_one_but_for_the_first_moment() {
    use gateway_common::dns::resolve::age;
    const MS: u64 = 1_000_000;
    for (passed, seconds) in
        [(0, 0), (20 * MS, 0), (21 * MS, 1), (999 * MS, 1), (1000 * MS, 1), (1001 * MS, 2), (299_999 * MS, 300)]
    {
        assert_eq!(age(7, 7 + passed), seconds, "{passed} ns");
    }
    assert_eq!(age(1000, 7), 0, "a clock that goes back");
}
