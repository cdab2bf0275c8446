//! Answers that age, asked for every few milliseconds until they have expired and beyond. Issue 4, "What it must show", 5.

use std::{thread, time::Duration};

use gateway_common::dns::{
    build::{EntryBuilder, Record},
    wire,
};

use crate::{
    ALL, SECOND, cluster,
    programs::{Bench, CLIENT, CLIENT6, Did, TIERS, now},
    query::Ask,
    wire_name,
};

const NAME: &str = "www.example.com";
const MS: u64 = 1_000_000;
/// The kernel's clock is read as late as it may be: by a tick of the slowest one, and by what the tick itself is behind.
const EARLY: u64 = 20 * MS;

/// Two records of different TTLs, stored now; the times between which they were.
fn store(bench: &mut Bench, ttls: [u32; 2]) -> [u64; 2] {
    let name = wire_name(NAME);
    let stored = now();
    let expires = stored + u64::from(ttls[0].min(ttls[1])) * SECOND;
    let mut builder = EntryBuilder::learnt(&name, ALL, stored, expires).expect("a name");
    for (last, ttl) in (1..).zip(ttls) {
        builder.answer(Record::new(&name, wire::A, ttl, &[192, 0, 2, last])).expect("a record");
    }
    bench.put(&name, wire::A, 0, builder.build().expect("an answer"));
    [stored, expires]
}

/// The TTLs of the two records, by their addresses.
fn ttls(answer: &[u8]) -> [u32; 2] {
    let mut found = [u32::MAX; 2];
    let records = &answer[12 + wire_name(NAME).len() + 4..];
    for record in records.chunks(16).take(2) {
        found[usize::from(record[15]) - 1] = u32::from_be_bytes([record[6], record[7], record[8], record[9]]);
    }
    found
}

#[test]
fn a_ttl_never_says_more_than_is_left_and_nothing_is_given_past_its_end() {
    let mut bench = cluster();
    let given = [3, 2];
    let [stored, expires] = store(&mut bench, given);
    let message = Ask::new(NAME, wire::A).message();
    let (mut answers, mut last, mut turn) = (0, given, 0);
    while now() < expires + 300 * MS {
        turn += 1;
        let tier = TIERS[turn % 2];
        let before = now();
        let did = if turn % 4 < 2 { bench.ask(tier, CLIENT, &message) } else { bench.ask(tier, CLIENT6, &message) };
        let after = now();
        match did {
            Did::Answered(answer) => {
                assert!(before < expires, "{tier:?}: given {} ms past its end", (before - expires) / MS);
                let left = ttls(&answer);
                for (ttl, given) in left.into_iter().zip(given) {
                    assert!(ttl <= given, "{tier:?}: {left:?}");
                    let end = stored + u64::from(given) * SECOND;
                    // Just stored, a TTL is as it was given.
                    let end = if before - stored <= EARLY { end + EARLY } else { end };
                    assert!(
                        before + u64::from(ttl) * SECOND <= end,
                        "{tier:?}: a TTL of {ttl} with {} ms to go",
                        end.saturating_sub(before) / MS
                    );
                    // And no more than a second less.
                    assert!(
                        after + (u64::from(ttl) + 1) * SECOND + EARLY >= end,
                        "{tier:?}: a TTL of only {ttl} with {} ms to go",
                        end.saturating_sub(after) / MS
                    );
                }
                assert!(left[0] <= last[0] && left[1] <= last[1], "{tier:?}: {left:?} after {last:?}");
                (last, answers) = (left, answers + 1);
            }
            did => {
                assert_eq!(did, Did::Passed);
                assert!(
                    after + EARLY >= expires,
                    "{tier:?}: not given with {} ms to go",
                    expires.saturating_sub(after) / MS
                );
            }
        }
        thread::sleep(Duration::from_millis(4));
    }
    assert_eq!(last, [1, 0], "just before the end");
    assert!(answers > 20, "{answers} answers in two seconds");
}
