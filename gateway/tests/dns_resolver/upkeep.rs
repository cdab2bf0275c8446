//! What happens beside the answers: popular answers stay fresh, failures are remembered and explained, rules change, queries are
//! logged and bounded.

use std::{fs, time::Duration};

use gateway::dns::{ClusterDns, LogConfig, clock, log::EVERY};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RecordType, rdata::opt::EdnsOption},
};

use crate::{
    fake::{Fake, answer, nxdomain, rcode, response},
    support::{DEVELOPER, GUEST, Lab, addresses, config, eventually, forward, query, query_edns, udp, udp_within},
};

const NAME: &str = "www.example.org";

async fn lab(upstreams: &[&Fake]) -> Lab {
    let mut config = config();
    config.forward = vec![forward(".", &upstreams.iter().map(|fake| fake.addr).collect::<Vec<_>>())];
    Lab::synced(config).await
}

/// The code and the words of a message's Extended DNS Error.
fn extended(message: &Message) -> Option<(u16, String)> {
    message.edns.as_ref()?.options().as_ref().iter().find_map(|(_, option)| match option {
        EdnsOption::Unknown(15, data) => {
            Some((u16::from_be_bytes([data[0], data[1]]), String::from_utf8_lossy(&data[2..]).into_owned()))
        }
        _ => None,
    })
}

async fn explained(lab: &Lab, name: &str) -> (ResponseCode, Option<(u16, String)>) {
    let packet = query_edns(name, RecordType::A, 1232, false);
    let message = Message::from_vec(&udp(lab.addr, DEVELOPER, &packet).await.expect("an answer")).expect("readable");
    (message.metadata.response_code, extended(&message))
}

#[tokio::test]
async fn what_the_kernel_serves_often_is_fetched_anew_before_it_expires() {
    let upstream = Fake::good(5).await;
    let lab = lab(&[&upstream]).await;
    for name in [NAME, "rare.example.org"] {
        lab.ask(name, RecordType::A).await;
    }
    let popular = gateway_common::dns::name::to_wire(NAME).expect("name");
    lab.kernel.with(|tables| {
        for (key, (entry, _)) in &mut tables.entries {
            entry.hits += 100 * u64::from(key.name[..key.len.into()] == popular[..]);
        }
    });
    let began = clock::now();
    while clock::now() < began + clock::seconds(7) {
        let packet = query(NAME, RecordType::A);
        assert!(lab.kernel.answer(&packet, 0, clock::now()).is_some(), "the kernel never misses it");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(upstream.asked(), 3, "two first questions and one refresh: nobody asked after it");
    assert_eq!(lab.dns.counters().refreshed, 1);
}

#[tokio::test]
async fn a_failure_is_remembered_for_its_time_and_explained() {
    let upstream = Fake::start(|query, _| vec![rcode(query, ResponseCode::ServFail)]).await;
    let mut config = config();
    config.forward = vec![forward(".", &[upstream.addr])];
    config.cache.failure_ttl = 2;
    let lab = Lab::synced(config).await;
    for _ in 0..5 {
        assert_eq!(lab.rcode(NAME, RecordType::A).await, ResponseCode::ServFail);
    }
    let asked = upstream.asked();
    assert_eq!(asked, 1, "an answer that says no is not asked for again at once");
    let (code, why) = explained(&lab, NAME).await;
    assert_eq!((code, why.map(|(code, _)| code)), (ResponseCode::ServFail, Some(0)));
    upstream.becomes(|query, _| vec![answer(query, 60)]);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
}

#[tokio::test]
async fn clients_with_edns_are_told_why_and_others_get_plain_answers() {
    let upstream = Fake::good(1).await;
    let mut config = config();
    config.forward = vec![
        forward("example.org", &[upstream.addr]),
        forward("secret.example.org", &[]),
        // Nobody listens there: the kernel says so.
        forward("closed.example", &["127.0.0.1:1".parse().expect("address")]),
    ];
    let lab = Lab::synced(config).await;
    let why = |(code, why): (ResponseCode, Option<(u16, String)>)| (code, why.expect("an explanation").0);
    assert_eq!(why(explained(&lab, "x.secret.example.org").await), (ResponseCode::Refused, 15));
    assert_eq!(why(explained(&lab, "www.example.net").await), (ResponseCode::Refused, 18));
    assert_eq!(why(explained(&lab, "www.closed.example").await), (ResponseCode::ServFail, 23));
    let refused = udp(lab.addr, DEVELOPER, &query("www.example.net", RecordType::A)).await.expect("an answer");
    assert!(Message::from_vec(&refused).expect("readable").edns.is_none(), "who speaks no EDNS gets none");

    assert_eq!(explained(&lab, NAME).await, (ResponseCode::NoError, None), "a good answer needs no words");
    upstream.becomes(|query, _| {
        // A validator's word: DNSSEC Bogus.
        let mut packet = rcode(query, ResponseCode::ServFail);
        let end = packet.len();
        packet[end - 1] = 6;
        packet.extend_from_slice(&[0, 15, 0, 2, 0, 6]);
        vec![packet]
    });
    assert_eq!(why(explained(&lab, "bogus.example.org").await), (ResponseCode::ServFail, 6), "passed on");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(why(explained(&lab, NAME).await), (ResponseCode::NoError, 3));
    upstream.becomes(|_, _| Vec::new());
    assert_eq!(why(explained(&lab, "silent.example.org").await), (ResponseCode::ServFail, 22));
}

#[tokio::test]
async fn a_stale_no_such_name_says_that_it_is_one() {
    let upstream = Fake::start(|query, _| vec![nxdomain(query, 300, 1)]).await;
    let lab = lab(&[&upstream]).await;
    assert_eq!(explained(&lab, NAME).await, (ResponseCode::NXDomain, None));
    upstream.becomes(|query, _| vec![rcode(query, ResponseCode::Refused)]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (code, why) = explained(&lab, NAME).await;
    assert_eq!((code, why.map(|(code, _)| code)), (ResponseCode::NXDomain, Some(19)));
}

#[tokio::test]
async fn an_explanation_never_makes_an_answer_longer_than_the_client_takes() {
    let upstream = Fake::start(|query, _| {
        let mut message = response(query);
        for last in 0..29 {
            let name = query.queries[0].name().clone();
            let data = hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A::new(192, 0, 2, last));
            message.add_answer(hickory_proto::rr::Record::from_rdata(name, 1, data));
        }
        vec![message.to_vec().expect("answer")]
    })
    .await;
    let lab = lab(&[&upstream]).await;
    lab.ask(NAME, RecordType::A).await;
    upstream.becomes(|query, _| vec![rcode(query, ResponseCode::ServFail)]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for size in 512..560 {
        let packet = query_edns(NAME, RecordType::A, size, false);
        let answer = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
        assert!(answer.len() <= usize::from(size), "{} bytes for {size}", answer.len());
        Message::from_vec(&answer).expect("readable");
    }
}

#[tokio::test]
async fn new_rules_are_in_force_at_once_and_answers_that_still_hold_stay() {
    let (old, new) = (Fake::good(300).await, Fake::good(300).await);
    let mut config = config();
    config.forward = vec![forward(".", &[old.addr])];
    let lab = Lab::synced(config).await;
    let names = ["a.stays.example", "a.moves.example", "a.secret.example"];
    for name in names {
        lab.ask(name, RecordType::A).await;
    }
    let rules =
        [forward(".", &[old.addr, new.addr]), forward("moves.example", &[new.addr]), forward("secret.example", &[])];
    lab.dns.set_rules(&rules, None, &ClusterDns::default()).expect("good rules");
    assert!(lab.kernel.has(names[0], 1), "the kernel keeps what still holds");
    assert!(!lab.kernel.has(names[1], 1) && !lab.kernel.has(names[2], 1), "and nothing else");
    assert_eq!(lab.rcode(names[2], RecordType::A).await, ResponseCode::Refused);
    lab.ask(names[1], RecordType::A).await;
    lab.ask(names[0], RecordType::A).await;
    assert_eq!((old.asked(), new.asked()), (3, 1));
    assert_eq!(lab.dns.snapshot(0).upstreams[0].queries, 3, "the server that stays keeps its record");

    let error =
        lab.dns.set_rules(&[forward(".", &[lab.addr])], None, &ClusterDns::default()).expect_err("it would ask itself");
    assert!(error.to_string().contains("in circles"), "{error}");
    assert_eq!(lab.rcode(names[0], RecordType::A).await, ResponseCode::NoError, "the old rules stay");
}

#[tokio::test]
async fn each_query_is_a_line_that_tells_who_what_and_from_where() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("queries.log");
    let upstream = Fake::good(300).await;
    let mut config = config();
    config.forward = vec![forward("example.org", &[upstream.addr])];
    config.view_names = vec!["developers".to_owned(), "guests".to_owned()];
    config.log = Some(LogConfig { file: file.clone(), per_million: EVERY, max_size: 1 << 20, keep: 1 });
    let lab = Lab::synced(config).await;
    lab.ask("WWW.example.org", RecordType::A).await;
    lab.ask(NAME, RecordType::A).await;
    lab.ask_from(GUEST, "no.shop.svc.cluster.local", RecordType::AAAA).await;
    crate::support::tcp(lab.addr, &query("www.example.net", RecordType::MX)).await;
    let read = || fs::read_to_string(&file).expect("the log");
    eventually("four lines", || read().lines().count() == 4).await;
    let lines: Vec<serde_json::Value> = read().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told = |line: &serde_json::Value| {
        ["client", "view", "transport", "name", "type", "rcode", "source"]
            .map(|key| line[key].as_str().unwrap_or_default().to_owned())
            .join(" ")
    };
    let told: Vec<String> = lines.iter().map(told).collect();
    assert_eq!(
        told,
        [
            "127.0.0.1 developers udp www.example.org A NOERROR upstream",
            "127.0.0.1 developers udp www.example.org A NOERROR cache",
            "127.0.0.2 guests udp no.shop.svc.cluster.local AAAA NXDOMAIN zone",
            "127.0.0.1 developers tcp www.example.net MX REFUSED refused",
        ]
    );
    assert!(lines.iter().all(|line| line["us"].as_u64().is_some_and(|us| us < 5_000_000)));

    fs::rename(&file, dir.path().join("put.aside")).expect("rename");
    lab.dns.reopen_log();
    lab.ask(NAME, RecordType::A).await;
    eventually("a new file", || file.exists() && read().lines().count() == 1).await;
}

#[tokio::test]
async fn one_clients_flood_of_slow_names_leaves_room_for_the_others() {
    let upstream = Fake::start(|query, _| {
        let slow = query.queries[0].name().to_string().starts_with("slow");
        if slow { Vec::new() } else { vec![answer(query, 300)] }
    })
    .await;
    let mut config = config();
    config.forward = vec![forward(".", &[upstream.addr])];
    config.limits.waiting = 60;
    config.limits.waiting_per_client = 40;
    let lab = Lab::synced(config).await;
    let mut flood = tokio::task::JoinSet::new();
    for number in 0..200 {
        let (addr, packet) = (lab.addr, query(&format!("slow{number}.example.org"), RecordType::A));
        flood.spawn(async move { udp_within(addr, DEVELOPER, &packet, Duration::from_millis(1000)).await });
    }
    eventually("the flood is bounded", || lab.dns.counters().dropped["overload"] == 160).await;
    let other = lab.ask_from(GUEST, NAME, RecordType::A).await;
    assert_eq!(addresses(&other), ["192.0.2.1"]);
    let refused = crate::support::tcp(lab.addr, &query_edns("more.example.org", RecordType::A, 1232, false)).await;
    let refused = Message::from_vec(&refused).expect("readable");
    assert_eq!(refused.metadata.response_code, ResponseCode::ServFail, "over TCP the flooder is told");
    assert!(upstream.asked() <= 41, "{} questions", upstream.asked());
    flood.join_all().await;
}
