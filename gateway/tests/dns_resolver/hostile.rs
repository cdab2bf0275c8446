//! Servers that lie, are silent, or fail.

use std::time::{Duration, Instant};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use tokio::net::UdpSocket;

use crate::{
    fake::{Fake, Via, answer, rcode, response},
    support::{DEVELOPER, Lab, addresses, config, forward, query_edns, udp},
};

const NAME: &str = "www.example.org";

async fn lab(upstreams: &[std::net::SocketAddr]) -> Lab {
    let mut config = config();
    config.forward = vec![forward(".", upstreams)];
    Lab::synced(config).await
}

fn lie(query: &Message, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut lie = answer(query, 300);
    let at = lie.windows(4).position(|bytes| bytes == [192, 0, 2, 1]).expect("the address");
    lie[at + 3] = 66;
    change(&mut lie);
    lie
}

#[tokio::test]
async fn only_what_answers_the_question_is_believed() {
    let upstream = Fake::start(|query, _| {
        vec![
            lie(query, |bytes| bytes[0] ^= 1),
            lie(query, |bytes| bytes[13] = b'x'),
            lie(query, |bytes| bytes[12 + 17 + 1] = 28),
            lie(query, |bytes| bytes[2] &= 0x7f),
            lie(query, |bytes| bytes.truncate(40)),
            lie(query, |bytes| bytes[5] = 2),
            vec![],
            b"nonsense".to_vec(),
            answer(query, 300),
        ]
    })
    .await;
    let lab = lab(&[upstream.addr]).await;
    assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn each_question_has_a_port_and_an_id_of_its_own() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
    let ids = std::sync::Arc::clone(&seen);
    let upstream = Fake::start(move |query, _| {
        ids.lock().expect("lock").insert(query.metadata.id);
        vec![answer(query, 300)]
    })
    .await;
    let lab = lab(&[upstream.addr]).await;
    for host in 0..20 {
        lab.ask(&format!("h{host}.example.org"), RecordType::A).await;
    }
    assert!(seen.lock().expect("lock").len() >= 18, "IDs are drawn at random");
}

#[tokio::test]
async fn a_cut_answer_is_fetched_over_tcp() {
    let upstream = Fake::start(|query, via| {
        if via == Via::Tcp {
            return vec![answer(query, 300)];
        }
        let mut cut = response(query);
        cut.metadata.truncation = true;
        vec![cut.to_vec().expect("answer")]
    })
    .await;
    let lab = lab(&[upstream.addr]).await;
    assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
    assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
    assert_eq!(upstream.asked(), 1, "kept like any other");
}

#[tokio::test]
async fn a_server_that_fails_is_passed_over_and_asked_last() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
        let bad = Fake::start(move |query, _| vec![rcode(query, code)]).await;
        let good = Fake::good(300).await;
        let lab = lab(&[bad.addr, good.addr]).await;
        assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"], "{code}");
        assert_eq!(addresses(&lab.ask("other.example.org", RecordType::A).await), ["192.0.2.1"]);
        assert_eq!((bad.asked(), good.asked()), (1, 2), "it failed just now: the other one first");
        let servers = lab.dns.snapshot(0).upstreams;
        assert_eq!((servers[0].healthy, servers[1].healthy), (false, true));
    }
}

#[tokio::test]
async fn a_silent_server_costs_one_wait_and_a_closed_port_none() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let good = Fake::good(300).await;
    let lab1 = lab(&[silent.local_addr().expect("address"), good.addr]).await;
    let began = Instant::now();
    assert_eq!(addresses(&lab1.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
    // One wait is 1.5 s.
    assert!(began.elapsed() < Duration::from_millis(2900), "{:?}", began.elapsed());

    let closed = {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        socket.local_addr().expect("address")
    };
    let lab2 = lab(&[closed, good.addr]).await;
    let began = Instant::now();
    assert_eq!(addresses(&lab2.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_lost_datagram_is_asked_again() {
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let upstream = Fake::start(move |query, _| match calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => vec![],
        _ => vec![answer(query, 300)],
    })
    .await;
    let lab = lab(&[upstream.addr]).await;
    assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
    assert_eq!(upstream.asked(), 2);
}

#[tokio::test]
async fn when_all_fail_the_client_is_told_and_the_failure_is_remembered_for_a_moment() {
    let bad = Fake::start(|query, _| vec![rcode(query, ResponseCode::ServFail)]).await;
    let lab = lab(&[bad.addr]).await;
    for _ in 0..5 {
        assert_eq!(lab.rcode(NAME, RecordType::A).await, ResponseCode::ServFail);
    }
    assert_eq!(bad.asked(), 1);
    assert!(!lab.kernel.has(NAME, 1), "a failure is nothing to teach");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    bad.becomes(|query, _| vec![answer(query, 300)]);
    assert_eq!(lab.rcode(NAME, RecordType::A).await, ResponseCode::NoError);
}

#[tokio::test]
async fn nothing_of_a_servers_edns_reaches_the_client() {
    let upstream = Fake::start(|query, _| {
        assert_eq!(query.max_payload(), 1232);
        assert!(query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
        let mut message = Message::from_vec(&answer(query, 300)).expect("answer");
        message.metadata.authentic_data = true;
        if let Some(edns) = &mut message.edns {
            edns.set_max_payload(4096);
        }
        vec![message.to_vec().expect("answer")]
    })
    .await;
    let lab = lab(&[upstream.addr]).await;
    let ours = udp(lab.addr, DEVELOPER, &query_edns(NAME, RecordType::A, 4096, true)).await.expect("an answer");
    let message = Message::from_vec(&ours).expect("answer");
    let edns = message.edns.as_ref().expect("OPT, as the query had it");
    assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (1232, true));
    assert!(!message.metadata.authentic_data, "nobody here validated it");
}

#[tokio::test]
async fn a_server_from_before_edns_is_asked_without() {
    let upstream = Fake::start(|query, _| {
        if query.edns.is_some() {
            let mut message = response(query);
            message.edns = None;
            message.metadata.response_code = ResponseCode::FormErr;
            return vec![message.to_vec().expect("answer")];
        }
        vec![answer(query, 300)]
    })
    .await;
    let lab = lab(&[upstream.addr]).await;
    assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
}
