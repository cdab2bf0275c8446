//! Response rate limiting in the forwarder, by real sockets.

use std::time::Duration;

use gateway::dns::RateLimit;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};

use crate::{
    fake::Fake,
    support::{BOTH, DEVELOPER, GUEST, Lab, a, config, forward, query, query_edns, tcp, udp_within},
};

const WEB: &str = "web.shop.svc.cluster.local";

/// An answer a second at most, for each address.
async fn lab(slip: u32, exempt: u64, upstream: &Fake) -> Lab {
    let mut config = config();
    config.forward = vec![forward("example.org", &[upstream.addr])];
    config.rate_limit = RateLimit { rate: 1, slip, prefix4: 32, exempt, ..RateLimit::default() };
    let lab = Lab::synced(config).await;
    lab.service("web", &[(WEB, BOTH, a("10.1.0.80"))]);
    lab
}

/// What comes back over UDP within a moment.
async fn ask(lab: &Lab, client: &str, packet: &[u8]) -> Option<Message> {
    let answer = udp_within(lab.addr, client, packet, Duration::from_millis(150)).await?;
    Some(Message::from_vec(&answer).expect("a readable answer"))
}

#[tokio::test]
async fn above_its_rate_a_client_is_cut_or_dropped_and_comes_back_over_tcp() {
    let upstream = Fake::good(300).await;
    let lab = lab(2, 0, &upstream).await;
    let packet = query_edns(WEB, RecordType::A, 1232, true);
    let (mut whole, mut cut, mut none) = (0, 0, 0);
    for _ in 0..20 {
        match ask(&lab, DEVELOPER, &packet).await {
            Some(answer) if answer.metadata.truncation => {
                let sections = [answer.answers.len(), answer.authorities.len(), answer.additionals.len()];
                assert_eq!(sections, [0, 0, 0], "nothing is amplified: {answer:?}");
                assert!(answer.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok), "{answer:?}");
                cut += 1;
            }
            Some(answer) => {
                assert_eq!(answer.answers.len(), 1);
                whole += 1;
            }
            None => none += 1,
        }
    }
    // Ten queries that get no answer take a second and a half and bring at least one more.
    assert!(whole >= 1 && cut >= 3 && none >= 3, "{whole} whole, {cut} cut, {none} dropped");
    let counters = lab.dns.counters();
    assert!(counters.dropped["limited"] >= none && counters.answers["slip"] >= cut, "{counters:?}");
    for _ in 0..10 {
        let answer = Message::from_vec(&tcp(lab.addr, &packet).await).expect("readable");
        assert_eq!(answer.answers.len(), 1, "TCP is not limited");
    }
    let answer = ask(&lab, GUEST, &packet).await.expect("another client is served");
    assert!(!answer.metadata.truncation);
    lab.dns.shutdown().await;
}

#[tokio::test]
async fn what_is_above_the_rate_costs_no_upstream_question_and_errors_slip_as_they_are() {
    let upstream = Fake::good(300).await;
    let lab = lab(1, 0, &upstream).await;
    let mut cut = 0;
    for i in 0..10 {
        let answer =
            ask(&lab, DEVELOPER, &query(&format!("n{i}.example.org"), RecordType::A)).await.expect("an answer");
        cut += usize::from(answer.metadata.truncation);
    }
    assert!(cut >= 5, "{cut} of 10");
    assert_eq!(upstream.asked(), 10 - cut);
    let mut chaos = query("version.bind", RecordType::TXT);
    let end = chaos.len();
    chaos[end - 1] = 3;
    for _ in 0..3 {
        let answer = ask(&lab, DEVELOPER, &chaos).await.expect("an answer");
        assert_eq!((answer.metadata.response_code, answer.metadata.truncation), (ResponseCode::Refused, false));
    }
    lab.dns.shutdown().await;
}

#[tokio::test]
async fn exempt_views_have_no_limit_and_without_slip_nothing_is_sent() {
    let upstream = Fake::good(300).await;
    let lab = lab(0, 0b10, &upstream).await;
    let mut none = 0;
    for _ in 0..6 {
        let answer = ask(&lab, DEVELOPER, &query(WEB, RecordType::A)).await;
        assert!(answer.as_ref().is_none_or(|answer| !answer.metadata.truncation));
        none += usize::from(answer.is_none());
        let answer = ask(&lab, GUEST, &query(WEB, RecordType::A)).await.expect("exempt");
        assert_eq!(answer.answers.len(), 1);
    }
    assert!(none >= 3, "{none} of 6");
    lab.dns.shutdown().await;
}
