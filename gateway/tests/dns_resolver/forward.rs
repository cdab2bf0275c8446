//! Names outside: forwarding, the cache, and what the kernel is taught.

use std::time::Duration;

use gateway::dns::clock;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};

use crate::{
    fake::{Fake, answer, nxdomain, rcode, response},
    support::{DEVELOPER, Lab, addresses, config, eventually, forward, query, query_edns, udp},
};

const NAME: &str = "www.example.org";

async fn lab(upstreams: &[&Fake]) -> Lab {
    let mut config = config();
    config.forward = vec![forward(".", &upstreams.iter().map(|fake| fake.addr).collect::<Vec<_>>())];
    Lab::synced(config).await
}

#[tokio::test]
async fn the_second_query_is_the_kernels_and_both_count_down_alike() {
    let upstream = Fake::good(300).await;
    let lab = lab(&[&upstream]).await;
    for packet in [query(NAME, RecordType::A), query("WwW.eXample.org", RecordType::A)] {
        let first = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
        assert_eq!(addresses(&Message::from_vec(&first).expect("answer")), ["192.0.2.1"]);
        assert_eq!(first[12..12 + NAME.len()], packet[12..12 + NAME.len()], "the question in the client's case");
    }
    assert_eq!(upstream.asked(), 1);
    assert_eq!((lab.answers("upstream"), lab.answers("cache")), (1, 1));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for packet in [query(NAME, RecordType::A), query_edns("WWW.example.ORG", RecordType::A, 1232, false)] {
        let ours = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
        let message = Message::from_vec(&ours).expect("answer");
        assert!((290..300).contains(&message.answers[0].ttl), "the TTL counts down: {}", message.answers[0].ttl);
        assert!(!message.metadata.authoritative && message.metadata.recursion_available);
        assert_eq!(lab.kernel.answer(&packet, 0, clock::now()), Some(ours), "kernel and forwarder alike");
    }
    let later = clock::now() + clock::seconds(300);
    assert_eq!(lab.kernel.answer(&query(NAME, RecordType::A), 0, later), None, "never served expired");
}

#[tokio::test]
async fn a_hundred_clients_that_ask_the_same_wait_for_one_question() {
    let upstream = Fake::good(300).await;
    let lab = lab(&[&upstream]).await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..100 {
        let name = if client % 2 == 0 { NAME } else { "WWW.EXAMPLE.org" };
        let (addr, packet) = (lab.addr, query(name, RecordType::A));
        clients.spawn(async move { udp(addr, DEVELOPER, &packet).await.expect("an answer") });
    }
    let answers = clients.join_all().await;
    assert!(answers.iter().all(|answer| addresses(&Message::from_vec(answer).expect("answer")) == ["192.0.2.1"]));
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn no_such_name_is_remembered_as_long_as_its_soa_says_and_no_longer() {
    let upstream = Fake::start(|query, _| vec![nxdomain(query, 300, 1)]).await;
    let lab = lab(&[&upstream]).await;
    for _ in 0..3 {
        let answer = lab.ask(NAME, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities.len(), 1);
        assert!(answer.authorities[0].ttl <= 1);
    }
    assert_eq!(upstream.asked(), 1);
    assert!(lab.kernel.has(NAME, 1), "the kernel says so too");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    upstream.becomes(|query, _| vec![answer(query, 60)]);
    assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"], "it came to be");
}

#[tokio::test]
async fn do_and_cd_are_questions_of_their_own() {
    let upstream = Fake::good(300).await;
    let lab = lab(&[&upstream]).await;
    for dnssec_ok in [false, true, false, true] {
        let packet = query_edns(NAME, RecordType::A, 1232, dnssec_ok);
        let ours = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
        assert_eq!(lab.kernel.answer(&packet, 0, clock::now()), Some(ours));
    }
    assert_eq!(upstream.asked(), 2);
    let mut packet = query(NAME, RecordType::A);
    packet[3] |= 0x10;
    udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
    assert_eq!(upstream.asked(), 3);
}

#[tokio::test]
async fn a_name_without_a_rule_is_refused() {
    let upstream = Fake::good(300).await;
    let mut config = config();
    config.forward = vec![forward("example.org", &[upstream.addr]), forward("secret.example.org", &[])];
    let lab = Lab::synced(config).await;
    assert_eq!(lab.rcode(NAME, RecordType::A).await, ResponseCode::NoError);
    assert_eq!(lab.rcode("x.secret.example.org", RecordType::A).await, ResponseCode::Refused);
    assert_eq!(lab.rcode("www.example.net", RecordType::A).await, ResponseCode::Refused);
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn stale_answers_are_given_while_no_server_answers() {
    let upstream = Fake::good(1).await;
    let lab = lab(&[&upstream]).await;
    assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
    upstream.becomes(|query, _| vec![rcode(query, ResponseCode::ServFail)]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let asked = upstream.asked();
    for _ in 0..3 {
        let stale = lab.ask(NAME, RecordType::A).await;
        assert_eq!(addresses(&stale), ["192.0.2.1"]);
        assert_eq!(stale.answers[0].ttl, 30);
    }
    assert_eq!(lab.answers("stale"), 3);
    assert_eq!(upstream.asked() - asked, 1, "the server is not asked each time");
    eventually("the kernel forgets what has expired", || !lab.kernel.has(NAME, 1)).await;
    assert!(lab.dns.snapshot(10).cache[0].stale);
}

#[tokio::test]
async fn a_ttl_of_zero_is_passed_on_and_not_kept() {
    let upstream = Fake::good(0).await;
    let lab = lab(&[&upstream]).await;
    for _ in 0..2 {
        assert_eq!(lab.ask(NAME, RecordType::A).await.answers[0].ttl, 0);
    }
    assert_eq!(upstream.asked(), 2);
    assert!(!lab.kernel.has(NAME, 1));
}

#[tokio::test]
async fn the_cache_is_bounded_and_what_leaves_it_leaves_the_kernel() {
    let upstream = Fake::good(300).await;
    let mut config = config();
    config.forward = vec![forward(".", &[upstream.addr])];
    config.cache.entries = 10;
    let lab = Lab::synced(config).await;
    let zone = lab.kernel.len();
    for host in 0..30 {
        lab.ask(&format!("h{host}.example.org"), RecordType::A).await;
        // In use all the time, by the kernel's count.
        lab.kernel.with(|tables| {
            let first = gateway_common::dns::name::to_wire("h0.example.org").expect("name");
            for (key, (entry, _)) in &mut tables.entries {
                entry.hits += u64::from(key.name[..key.len.into()] == first[..]);
            }
        });
    }
    let snapshot = lab.dns.snapshot(100);
    assert_eq!((snapshot.cached, lab.kernel.len() - zone), (10, 10));
    assert!(lab.kernel.has("h29.example.org", 1), "the newest stays");
    assert!(lab.kernel.has("h0.example.org", 1), "what the kernel serves stays");
    assert!(!lab.kernel.has("h5.example.org", 1), "what nobody asks for goes");
}

#[tokio::test]
async fn an_answer_the_kernel_cannot_hold_is_kept_by_the_forwarder() {
    let upstream = Fake::start(|query, _| {
        let mut message = response(query);
        for last in 0..30 {
            let name = query.queries[0].name().clone();
            let data = hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A::new(192, 0, 2, last));
            message.add_answer(hickory_proto::rr::Record::from_rdata(name, 300, data));
        }
        vec![message.to_vec().expect("answer")]
    })
    .await;
    let lab = lab(&[&upstream]).await;
    let packet = query_edns(NAME, RecordType::A, 1232, false);
    for _ in 0..2 {
        let answer = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
        assert_eq!(addresses(&Message::from_vec(&answer).expect("answer")).len(), 30);
    }
    assert_eq!(upstream.asked(), 1);
    assert!(!lab.kernel.has(NAME, 1), "thirty TTLs are too many for it to age");
    assert_eq!(lab.dns.counters().refused_by_kernel, 0, "which is no failure");
}

#[tokio::test]
async fn the_snapshot_tells_what_is_held_and_how_the_servers_are() {
    let upstream = Fake::good(300).await;
    let lab = lab(&[&upstream]).await;
    lab.ask(NAME, RecordType::A).await;
    upstream.becomes(|query, _| vec![rcode(query, ResponseCode::NXDomain)]);
    lab.ask("a.example.org", RecordType::A).await;
    let snapshot = lab.dns.snapshot(1);
    assert_eq!(snapshot.cached, 1, "an answer without SOA is not kept: {snapshot:?}");
    let cached = &snapshot.cache[0];
    assert_eq!((cached.name.as_str(), cached.rtype.as_str(), cached.rcode.as_str()), (NAME, "A", "NOERROR"));
    assert!(cached.kernel && !cached.stale && (290..=300).contains(&cached.ttl));
    let server = &snapshot.upstreams[0];
    assert!(server.healthy && server.queries == 2 && server.rtt_us > 0);
    assert_eq!(snapshot.zones[0].name, "cluster.local");
    assert_eq!(snapshot.counters.rcodes["noerror"], 1);
    assert_eq!(snapshot.counters.rcodes["nxdomain"], 1);
}
