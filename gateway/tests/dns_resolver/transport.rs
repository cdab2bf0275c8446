//! Sockets: TCP's rules, many clients, and addresses that cannot be had.

use std::time::{Duration, Instant};

use gateway::dns::{DnsError, NoStore, Resolver};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    fake::{Fake, answer},
    support::{BOTH, DEVELOPER, Lab, a, addresses, config, forward, query, read_frame, udp, write_frame},
};

const WEB: &str = "web.shop.svc.cluster.local";

#[tokio::test]
async fn one_connection_carries_many_queries_and_slow_ones_hold_up_nobody() {
    let slow = Fake::start(|query, _| {
        std::thread::sleep(Duration::from_millis(300));
        vec![answer(query, 300)]
    })
    .await;
    let mut config = config();
    config.forward = vec![forward(".", &[slow.addr])];
    let lab = Lab::synced(config).await;
    lab.service("web", &[(WEB, BOTH, a("10.1.0.10"))]);
    let mut stream = TcpStream::connect(lab.addr).await.expect("connect");
    let mut first = query("www.example.org", RecordType::A);
    first[..2].copy_from_slice(&[0, 1]);
    let mut second = query(WEB, RecordType::A);
    second[..2].copy_from_slice(&[0, 2]);
    write_frame(&mut stream, &first).await;
    write_frame(&mut stream, &second).await;
    let answers = [read_frame(&mut stream).await.expect("answer"), read_frame(&mut stream).await.expect("answer")];
    assert_eq!((answers[0][1], answers[1][1]), (2, 1), "answers come as they are ready");
    assert_eq!(lab.dns.counters().queries["tcp"], 2);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_one_that_sends_byte_by_byte_is_served() {
    let lab = Lab::synced(config()).await;
    let mut stream = TcpStream::connect(lab.addr).await.expect("connect");
    let packet = query("cluster.local", RecordType::SOA);
    let framed = [&u16::try_from(packet.len()).expect("length").to_be_bytes()[..], &packet].concat();
    for byte in &framed {
        stream.write_all(&[*byte]).await.expect("write");
    }
    let answer = Message::from_vec(&read_frame(&mut stream).await.expect("answer")).expect("answer");
    assert_eq!(answer.answers.len(), 1);
    let began = Instant::now();
    assert_eq!(stream.read(&mut [0; 1]).await.expect("end"), 0, "closed by the server");
    let waited = began.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_secs(30)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn connections_are_bounded_and_the_longest_idle_one_makes_place() {
    let mut config = config();
    config.limits.tcp_per_source = 3;
    config.limits.tcp_idle = Duration::from_secs(60);
    let lab = Lab::synced(config).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(lab.addr).await.expect("connect");
        write_frame(&mut stream, &query("cluster.local", RecordType::SOA)).await;
        read_frame(&mut stream).await.expect("answer");
        open.push(stream);
    }
    assert_eq!(open[0].read(&mut [0; 1]).await.unwrap_or(0), 0, "the first has been idle for longest");
    assert_eq!(lab.dns.counters().dropped["overload"], 0, "nobody was turned away");
    for stream in &mut open[1..] {
        write_frame(stream, &query("cluster.local", RecordType::SOA)).await;
        assert!(read_frame(stream).await.is_some(), "the others go on");
    }
}

#[tokio::test]
async fn thousands_of_queries_at_once_are_all_answered() {
    let upstream = Fake::good(300).await;
    let mut config = config();
    config.forward = vec![forward(".", &[upstream.addr])];
    let lab = Lab::synced(config).await;
    lab.service("web", &[(WEB, BOTH, a("10.1.0.10"))]);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..40 {
        let addr = lab.addr;
        clients.spawn(async move {
            for turn in 0..50 {
                let name = match turn % 3 {
                    0 => WEB.to_owned(),
                    1 => format!("h{client}-{turn}.example.org"),
                    _ => format!("no{turn}.shop.svc.cluster.local"),
                };
                let answer = udp(addr, DEVELOPER, &query(&name, RecordType::A)).await.expect("an answer");
                let message = Message::from_vec(&answer).expect("answer");
                assert_eq!(addresses(&message).len(), usize::from(turn % 3 != 2), "{name}: {message}");
            }
        });
    }
    clients.join_all().await;
    assert_eq!(lab.dns.counters().queries["udp"], 2000);
}

#[tokio::test]
async fn a_port_in_use_is_named_with_what_to_do() {
    let lab = Lab::synced(config()).await;
    let mut second = config();
    second.listen = vec![lab.addr];
    let Err(error) = Resolver::start(second, std::sync::Arc::new(NoStore)).await else { panic!("it started") };
    assert!(matches!(error, DnsError::InUse { transport: "udp", .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("dns.listen") && text.contains(&lab.addr.to_string()), "{text}");

    let mut foreign = config();
    foreign.listen = vec!["192.0.2.77:5353".parse().expect("address")];
    let Err(error) = Resolver::start(foreign, std::sync::Arc::new(NoStore)).await else { panic!("it started") };
    let text = error.to_string();
    assert!(text.contains("192.0.2.77:5353") && text.contains("address of this node"), "{text}");
}

#[tokio::test]
async fn a_cluster_domain_that_cannot_be_is_an_error_that_names_the_key() {
    for domain in ["", ".", "a..b", &"d".repeat(64), &format!("{0}.{0}", "d".repeat(60))] {
        let mut config = config();
        config.cluster_domain = domain.to_owned();
        let Err(error) = Resolver::start(config, std::sync::Arc::new(NoStore)).await else { panic!("{domain:?}") };
        assert!(error.to_string().contains("dns.clusterDomain"), "{error}");
    }
}

#[tokio::test]
async fn shutdown_frees_the_port() {
    let lab = Lab::synced(config()).await;
    let mut stream = TcpStream::connect(lab.addr).await.expect("connect");
    lab.dns.shutdown().await;
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let mut again = config();
    again.listen = vec![lab.addr];
    Resolver::start(again, std::sync::Arc::new(NoStore)).await.expect("the address is free again");
}

#[tokio::test]
async fn odd_messages_get_their_answer_and_responses_none() {
    let lab = Lab::synced(config()).await;
    let mut status = query(WEB, RecordType::A);
    status[2] |= 0x10;
    let mut two = query(WEB, RecordType::A);
    two[5] = 2;
    for (packet, code) in [(status, ResponseCode::NotImp), (two, ResponseCode::FormErr)] {
        let answer = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
        assert_eq!(Message::from_vec(&answer).expect("answer").metadata.response_code, code);
    }
    let mut response = query(WEB, RecordType::A);
    response[2] |= 0x80;
    let nothing = crate::support::udp_within(lab.addr, DEVELOPER, &response, Duration::from_millis(300)).await;
    assert!(nothing.is_none(), "two servers must not talk to each other for ever");
    assert_eq!(lab.dns.counters().dropped["not_a_query"], 1);
}

#[tokio::test]
async fn who_asks_one_of_all_addresses_is_answered_from_that_one() {
    for (listen, asked) in [("0.0.0.0:0", "127.0.0.77"), ("[::]:0", "::1")] {
        let mut config = config();
        config.listen = vec![listen.parse().expect("address")];
        config.views = vec![vec!["127.0.0.0/8".parse().expect("prefix"), "::1/128".parse().expect("prefix")]];
        let lab = Lab::synced(config).await;
        let client = if asked.contains(':') { "::1" } else { DEVELOPER };
        let server = std::net::SocketAddr::new(asked.parse().expect("address"), lab.addr.port());
        let answer = udp(server, client, &query("cluster.local", RecordType::SOA)).await;
        assert!(answer.is_some(), "the client hears only {asked}");
    }
}
