//! On generated messages.

use gateway_common::dns::{
    build::{EntryBuilder, Record as Entry, is_wire_name},
    emit::{Request, Sending},
    hash::Keys,
    name::fold_word,
    question::{Folded, Window, parse},
    wire,
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use proptest::prelude::*;

fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let label = prop_oneof![
        3 => proptest::collection::vec(proptest::char::ranges(vec!['a'..='z', 'A'..='Z', '0'..='9', '-'..='-', '_'..='_'].into()).prop_map(|c| c as u8), 1..12),
        1 => proptest::collection::vec(any::<u8>(), 1..20),
    ];
    proptest::collection::vec(label, 0..8)
}

fn wire_of(labels: &[Vec<u8>]) -> Vec<u8> {
    let mut name: Vec<u8> = labels.iter().flat_map(|label| [&[label.len() as u8], &label[..]].concat()).collect();
    name.push(0);
    name
}

/// A query as hickory builds it, and its labels.
fn hickory_query() -> impl Strategy<Value = (Message, Vec<Vec<u8>>)> {
    let types = prop_oneof![Just(1u16), Just(28), Just(33), Just(16), Just(12), Just(65), Just(2), 256..1000u16];
    let edns = proptest::option::of((any::<u16>(), any::<bool>()));
    (any::<u16>(), labels(), types, any::<[bool; 3]>(), edns).prop_map(|(id, labels, qtype, [rd, ad, cd], edns)| {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = rd;
        message.metadata.authentic_data = ad;
        message.metadata.checking_disabled = cd;
        let name = Name::from_labels(labels.iter().map(Vec::as_slice)).expect("a name");
        message.add_query(Query::query(name, RecordType::from(qtype)));
        if let Some((size, dnssec)) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size).set_version(0).set_dnssec_ok(dnssec);
            message.set_edns(edns);
        }
        (message, labels)
    })
}

/// Records of an answer: whose (the question's, a name below, an unrelated one), type, TTL, data.
fn records() -> impl Strategy<Value = Vec<(u8, u16, u32, Vec<u8>)>> {
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 4).prop_map(|data| (wire::A, data)),
        proptest::collection::vec(any::<u8>(), 16).prop_map(|data| (wire::AAAA, data)),
        labels().prop_map(|labels| (wire::CNAME, wire_of(&labels))),
        proptest::collection::vec(any::<u8>(), 0..40)
            .prop_map(|text| (wire::TXT, [&[text.len() as u8], &text[..]].concat())),
        labels().prop_map(|labels| (wire::SRV, [vec![0, 1, 0, 2, 0, 80], wire_of(&labels)].concat())),
    ];
    proptest::collection::vec(
        (0..3u8, 1..100_000u32, data).prop_map(|(whose, ttl, (rtype, data))| (whose, rtype, ttl, data)),
        0..12,
    )
}

/// A thousand of each; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.max(1_000), ..config }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_query_is_read_as_hickory_wrote_it((message, labels) in hickory_query()) {
        let bytes = message.to_vec().expect("hickory encodes it");
        let request = Request::parse(&bytes).expect("understood");
        let query = request.query;
        let said = message.metadata;
        prop_assert_eq!(request.name(), wire_of(&labels).to_ascii_lowercase());
        prop_assert_eq!(query.id, said.id);
        prop_assert_eq!(query.qtype, u16::from(message.queries[0].query_type()));
        prop_assert_eq!(query.flags & wire::RD != 0, said.recursion_desired);
        prop_assert_eq!(query.flags & wire::CD != 0, said.checking_disabled);
        prop_assert_eq!(query.edns, message.edns.is_some());
        if let Some(edns) = &message.edns {
            prop_assert_eq!(query.limit(), usize::from(edns.max_payload().clamp(512, 1232)));
            prop_assert_eq!(query.bits & 1 != 0, edns.flags().dnssec_ok);
        }
        // What fits the kernel's window is read the same way there, and the key is the forwarder's.
        if let Some(window) = Window::of(&bytes) && request.name().len() <= 64 {
            prop_assert_eq!(parse(&window, bytes.len()), Ok(query));
            let key = gateway_common::dns::build::key(request.name(), query.qtype, query.bits).expect("a key");
            let (mut name, len) = (Folded::EMPTY, usize::from(query.name_len));
            prop_assert!(window.fold(len, &mut name));
            prop_assert!(len == 1 || !window.fold(len - 1, &mut Folded::EMPTY.clone()));
            prop_assert_eq!(name.bytes(), &key.name[..]);
            let words: [u64; 8] = bytemuck::cast(key.name);
            prop_assert!(window.is(len, &words));
            for bit in 0..8 * len {
                let mut other = words;
                other[bit / 64] ^= 1 << (bit % 64);
                // What it is compared with is folded.
                prop_assert!(other[bit / 64] != fold_word(other[bit / 64]) || !window.is(len, &other));
            }
            let (sum, lanes) = window.hash(len, query.qtype, &Keys::DEFAULT);
            let question = &bytes[12..16 + len];
            let folded = question.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum::<u32>();
            prop_assert_eq!(u32::from(sum) % 0xFFFF, folded % 0xFFFF);
            prop_assert_eq!(Keys::DEFAULT.finish(lanes, key.tag()), Keys::DEFAULT.hash(&key));
        }
    }

    #[test]
    fn hickory_reads_in_an_answer_what_was_put_there((message, labels) in hickory_query(), records in records(), age in 0..200_000u32, turn: u64) {
        let bytes = message.to_vec().expect("hickory encodes it");
        let request = Request::parse(&bytes).expect("understood");
        let owner = wire_of(&labels);
        let owners = [owner.clone(), [&b"\x03sub"[..], &owner].concat(), b"\x05other\x04test\x00".to_vec()];
        let mut builder = EntryBuilder::learnt(&owner, u64::MAX, 0, u64::MAX).expect("a name").authentic();
        for (whose, rtype, ttl, data) in &records {
            let owner = &owners[usize::from(*whose)];
            prop_assume!(is_wire_name(owner));
            builder.answer(Entry::new(owner, *rtype, *ttl, data)).expect("a record");
        }
        let answer = builder.build().expect("an answer");
        let tcp = request.emit(&answer, &Sending::tcp(age, turn));
        let parsed = Message::from_vec(&tcp).expect("hickory reads the answer");
        let said = &parsed.metadata;
        prop_assert_eq!(said.id, message.metadata.id);
        prop_assert_eq!(said.message_type, MessageType::Response);
        prop_assert!(said.recursion_available && !said.truncation && !said.authoritative);
        prop_assert_eq!(said.recursion_desired, message.metadata.recursion_desired);
        prop_assert_eq!(said.checking_disabled, message.metadata.checking_disabled);
        prop_assert!(parsed.queries[0].name().eq_case(message.queries[0].name()), "the question's case is echoed");
        prop_assert_eq!(parsed.edns.as_ref().map(Edns::max_payload), message.edns.as_ref().map(|_| 1232));
        let told: Vec<_> = parsed.answers.iter().map(|r| (r.name.clone(), u16::from(r.record_type()), r.ttl)).collect();
        let put: Vec<_> = records.iter().map(|(whose, rtype, ttl, _)| {
            let name = Name::from_labels(labels_of(&owners[usize::from(*whose)])).expect("a name");
            (name, *rtype, ttl.saturating_sub(age))
        }).collect();
        prop_assert_eq!(told, put, "names, types and aged TTLs, in order");
        let mut told: Vec<_> = parsed.answers.iter().filter(|r| r.record_type() == RecordType::A).map(|r| r.data.to_string()).collect();
        let mut put: Vec<_> = records.iter().filter(|r| r.1 == wire::A).map(|r| std::net::Ipv4Addr::new(r.3[0], r.3[1], r.3[2], r.3[3]).to_string()).collect();
        told.sort();
        put.sort();
        prop_assert_eq!(told, put, "the addresses, in whatever turn");

        // Over UDP the same, or nothing but TC.
        let udp = request.emit(&answer, &Sending::udp(&request.query, age, turn));
        prop_assert!(udp.len() <= request.query.limit());
        if tcp.len() <= request.query.limit() {
            prop_assert_eq!(udp, tcp);
        } else {
            let parsed = Message::from_vec(&udp).expect("hickory reads the answer");
            prop_assert!(parsed.metadata.truncation && parsed.answers.is_empty());
        }
    }

    #[test]
    fn mutated_queries_never_panic_and_what_is_answered_can_be_read(
        (message, labels) in hickory_query(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = message.to_vec().expect("hickory encodes it");
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let host = parse(&bytes[..], bytes.len());
        if let Some(window) = Window::of(&bytes) {
            let kernel = parse(&window, bytes.len());
            // The kernel understands no more than the forwarder, and the same of it.
            prop_assert!(kernel == host || kernel.is_err(), "{:?} {:?}", kernel, host);
        }
        if let Ok(request) = Request::parse(&bytes) {
            let mut builder = EntryBuilder::zone(request.name(), 1).expect("a name");
            builder.answer(Entry::new(request.name(), wire::A, 5, &[1, 2, 3, 4])).expect("a record");
            let answer = builder.build().expect("an answer");
            let reply = request.emit(&answer, &Sending::udp(&request.query, 0, 0));
            prop_assert!(Message::from_vec(&reply).is_ok(), "{:02x?} {:?}", reply, labels);
        }
    }
}

/// The labels of a wire name.
fn labels_of(name: &[u8]) -> Vec<&[u8]> {
    let mut labels = Vec::new();
    let mut at = 0;
    while name[at] != 0 {
        let end = at + 1 + usize::from(name[at]);
        labels.push(&name[at + 1..end]);
        at = end;
    }
    labels
}
