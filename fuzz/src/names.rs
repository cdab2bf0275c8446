//! Queries and answers.

use gateway_common::dns::{
    build::{EntryBuilder, Record, key, sum_of},
    emit::{Request, Sending},
    hash::Keys,
    question::{Folded, Window, parse},
    wire,
};
use hickory_proto::op::Message;

/// The kernel's reader and the forwarder's understand the same of a message, or the kernel nothing; both find the same entry.
pub fn question(data: &[u8]) {
    let host = parse(data, data.len());
    if let Some(window) = Window::of(data) {
        let kernel = parse(&window, data.len());
        assert!(kernel == host || kernel.is_err(), "{kernel:?} {host:?}");
        if let Ok(query) = kernel {
            let request = Request::parse(data).expect("read before");
            let key = key(request.name(), query.qtype, query.bits).expect("a name that the kernel reads");
            let (mut name, len) = (Folded::EMPTY, usize::from(query.name_len));
            window.fold(len, &mut name);
            assert_eq!(name.bytes(), &key.name[..]);
            assert!(window.is(len, name.name_words()), "{name:?}");
            let (_, sum) = window.hash(len, query.qtype, &Keys::DEFAULT);
            assert_eq!(Keys::DEFAULT.finish(sum, key.tag()), Keys::DEFAULT.hash(&key));
        }
    }
    if let Ok(query) = host {
        let end = query.body_at();
        assert!(end <= data.len() && query.limit() <= 1232 && query.limit() >= 512);
    }
}

/// An answer of any records to any query: hickory reads it, and it is no longer than the client allows.
pub fn answer(data: &[u8]) {
    let Some((&len, rest)) = data.split_first() else { return };
    let Some((query, mut records)) = rest.split_at_checked(usize::from(len)) else { return };
    let Ok(request) = Request::parse(query) else { return };
    let name = request.name().to_vec();
    let below = [b"\x03sub", &name[..]].concat();
    let Ok(mut builder) = EntryBuilder::learnt(&name, 1, 0, u64::MAX) else { return };
    let mut section = 0;
    while let [whose, kind, ttl, size, data @ ..] = records {
        let take = usize::from(size % 40).min(data.len());
        let (data, after) = data.split_at(take);
        records = after;
        let owner = if whose % 3 == 0 && below.len() <= wire::MAX_NAME { &below } else { &name };
        let mut fixed = [0; 16];
        fixed[..take.min(16)].copy_from_slice(&data[..take.min(16)]);
        let text = [&[take as u8], data].concat();
        let (rtype, data) = match kind % 4 {
            0 => (wire::A, &fixed[..4]),
            1 => (wire::AAAA, &fixed[..]),
            2 => (wire::CNAME, &name[..]),
            _ => (wire::TXT, &text[..]),
        };
        let record = Record::new(owner, rtype, u32::from(*ttl), data);
        // Sections follow one another.
        section = section.max((kind >> 6).saturating_sub(1));
        let put = match section {
            0 => builder.answer(record),
            1 => builder.authority(record),
            _ => builder.additional(record),
        };
        if put.is_err() {
            return;
        }
    }
    let Ok(answer) = builder.build() else { return };
    if let Some((entry, large)) = answer.to_kernel(1) {
        assert!(large.is_some() == (entry.large != 0) && usize::from(entry.len) == answer.body().len());
        assert_eq!(entry.sum, sum_of(answer.body()));
    }
    let turn = u64::from(len);
    for (sending, limit) in
        [(Sending::tcp(7, turn), usize::from(u16::MAX)), (Sending::udp(&request.query, 7, turn), request.query.limit())]
    {
        let reply = request.emit(&answer, &sending);
        assert!(reply.len() <= limit, "{} bytes, {limit} allowed", reply.len());
        assert_eq!(reply[..2], query[..2]);
        let read = Message::from_vec(&reply).expect("hickory reads the answer");
        assert!(read.metadata.truncation || read.answers.len() == usize::from(answer.head().answers));
    }
}
