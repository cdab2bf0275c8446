//! Upstreams in trouble: real Unbounds that are stopped, go on, end, refuse TCP and fail; what clients see is docs/resolver.md's table.
//! Also floods, and how a server that failed comes back.

use std::{net::SocketAddr, time::Duration};

use gateway::dns::clock;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};

use crate::{
    fake::{Fake, answer, rcode},
    ports::free,
    programs::Unbound,
    support::{DEVELOPER, GUEST, Lab, addresses, config, eventually, forward, query, query_edns, tcp, udp, udp_within},
};

const NAME: &str = "www.example.org";
const GOOD: [&str; 1] = ["192.0.2.80"];

async fn lab(upstreams: &[SocketAddr]) -> Lab {
    let mut config = config();
    config.cache.max_ttl = 1;
    config.forward = vec![forward(".", upstreams)];
    Lab::synced(config).await
}

/// Response code, addresses, whether the TTL is that of a stale answer.
async fn seen(lab: &Lab, name: &str) -> (ResponseCode, Vec<String>, bool) {
    let got = lab.ask(name, RecordType::A).await;
    (got.metadata.response_code, addresses(&got), got.answers.first().is_some_and(|record| record.ttl == 30))
}

async fn past_its_time() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

#[tokio::test]
async fn with_one_server_well_nobody_sees_that_the_other_is_stopped_gone_or_back() {
    let (Some(mut first), Some(second)) = (Unbound::start().await, Unbound::start().await) else { return };
    let lab = lab(&[first.addr, second.addr]).await;
    let good = (ResponseCode::NoError, GOOD.map(str::to_owned).to_vec(), false);
    let healthy = || lab.dns.snapshot(0).upstreams[0].healthy;
    assert_eq!(seen(&lab, NAME).await, good);
    first.stop();
    past_its_time().await;
    assert_eq!(seen(&lab, NAME).await, good, "late, but there");
    assert!(!healthy());
    first.go_on();
    // A later question finds out, and its client does not wait for that.
    for _ in 0..20 {
        past_its_time().await;
        assert_eq!(seen(&lab, NAME).await, good);
        if healthy() {
            break;
        }
    }
    assert!(healthy(), "it answers again");
    first.end();
    past_its_time().await;
    assert_eq!(seen(&lab, NAME).await, good, "port closed");
    assert!(!healthy() && lab.dns.snapshot(0).upstreams[1].healthy);
}

#[tokio::test]
async fn with_no_server_well_names_that_were_known_go_on_and_new_ones_fail() {
    let Some(mut only) = Unbound::start().await else { return };
    let lab = lab(&[only.addr]).await;
    lab.ask(NAME, RecordType::A).await;
    past_its_time().await;
    for trouble in ["stopped", "gone"] {
        if trouble == "stopped" {
            only.stop();
        } else {
            only.end();
        }
        for _ in 0..2 {
            assert_eq!(
                seen(&lab, NAME).await,
                (ResponseCode::NoError, GOOD.map(str::to_owned).to_vec(), true),
                "{trouble}"
            );
        }
        let new = seen(&lab, &format!("{trouble}.example.org")).await;
        assert_eq!(new, (ResponseCode::ServFail, vec![], false), "{trouble}");
    }
    assert!(
        lab.kernel.answer(&query(NAME, RecordType::A), 0, clock::now()).is_none(),
        "the kernel gives nothing stale"
    );
}

#[tokio::test]
async fn a_server_that_fails_is_made_up_for_by_one_that_does_not_and_so_is_one_that_will_not_speak_tcp() {
    let Some(failing) = Unbound::start_with(free(), "  local-zone: \"example.org.\" always_refuse\n").await else {
        return;
    };
    let Some(deaf) = Unbound::start_with(free(), "  do-tcp: no\n").await else { return };
    let Some(good) = Unbound::start().await else { return };
    let both = lab(&[failing.addr, deaf.addr, good.addr]).await;
    assert_eq!(seen(&both, NAME).await.1, GOOD);
    let many = Message::from_vec(&tcp(both.addr, &query("many.example.org", RecordType::A)).await).expect("answer");
    assert_eq!(addresses(&many).len(), 120, "cut by one, fetched whole from another");
    let alone = lab(&[deaf.addr]).await;
    assert_eq!(seen(&alone, NAME).await.1, GOOD);
    assert_eq!(seen(&alone, "many.example.org").await.0, ResponseCode::ServFail, "half an answer is none");
    let refused = lab(&[failing.addr]).await;
    assert_eq!(seen(&refused, NAME).await.0, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_server_that_failed_is_tried_less_and_less_often_and_at_no_clients_cost() {
    let bad = Fake::start(|query, _| vec![rcode(query, ResponseCode::ServFail)]).await;
    let good = Fake::good(300).await;
    let mut config = config();
    config.forward = vec![forward(".", &[bad.addr, good.addr])];
    let lab = Lab::synced(config).await;
    for number in 0..40 {
        assert_eq!(addresses(&lab.ask(&format!("n{number}.example.org"), RecordType::A).await), ["192.0.2.1"]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // At once, after one second and after two more; a slow machine may see the fourth second too.
    assert!((2..=4).contains(&bad.asked()), "asked {} times in four seconds", bad.asked());
    bad.becomes(|query, _| vec![answer(query, 300)]);
    let mut number = 0;
    while !lab.dns.snapshot(0).upstreams[0].healthy {
        number += 1;
        assert!(number < 200, "it is found to be well");
        lab.ask(&format!("m{number}.example.org"), RecordType::A).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_names_outside_stays_within_its_memory_and_leaves_what_is_in_use() {
    const FLOOD: usize = 6_000;
    let upstream = Fake::good(300).await;
    let mut config = config();
    config.cache.entries = 100_000;
    config.cache.memory = 1 << 20;
    config.forward = vec![forward(".", &[upstream.addr])];
    let lab = Lab::synced(config).await;
    for _ in 0..2 {
        lab.ask_from(GUEST, NAME, RecordType::A).await;
    }
    lab.ask_from(GUEST, "popular.in.kernel.example", RecordType::A).await;
    lab.kernel.with(|tables| {
        for (key, (entry, _)) in &mut tables.entries {
            let popular = b"\x07popular";
            if key.name.starts_with(popular) {
                entry.hits = 5;
            }
        }
    });
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8 {
        let addr = lab.addr;
        clients.spawn(async move {
            for number in 0..FLOOD / 8 {
                let packet = query(&format!("x{client}-{number}.flood.example"), RecordType::A);
                udp_within(addr, DEVELOPER, &packet, Duration::from_secs(5)).await;
            }
        });
    }
    let mut served = 0;
    while !clients.is_empty() {
        let other = query_edns(&format!("other{served}.example.net"), RecordType::A, 1232, false);
        assert!(udp(lab.addr, GUEST, &other).await.is_some(), "others are served meanwhile");
        served += 1;
        let bytes = lab.dns.snapshot(0).cached_bytes;
        assert!(bytes <= 1 << 20, "{bytes} bytes");
        while clients.try_join_next().is_some() {}
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let snapshot = lab.dns.snapshot(0);
    assert!(snapshot.cached < FLOOD && lab.kernel.len() <= snapshot.cached + 10, "{} held", snapshot.cached);
    let asked = upstream.asked();
    lab.ask_from(GUEST, NAME, RecordType::A).await;
    lab.ask_from(GUEST, "popular.in.kernel.example", RecordType::A).await;
    assert_eq!(upstream.asked(), asked, "names in use, here and in the kernel, are still there");
    eventually("nothing waits", || lab.dns.counters().dropped["overload"] == 0).await;
}
