//! Zone rules: which client may ask whom, and what leads elsewhere.

use std::net::IpAddr;

use gateway::dns::{ClusterDns, ForwardRule, Target, clock};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};

use crate::{
    fake::{Fake, answer, response},
    support::{BOTH, DEVELOPER, GUEST, Lab, a, addresses, config, forward, query, query_edns, tcp, udp},
};

const NAME: &str = "www.example.org";

fn of(upstream: &Fake, views: u64) -> ForwardRule {
    ForwardRule { views, ..forward(".", &[upstream.addr]) }
}

fn redirect(zone: &str, to: &[&str]) -> ForwardRule {
    let target = |to: &&str| match to.parse::<IpAddr>() {
        Ok(addr) => Target::Address(addr),
        Err(_) => Target::Name((*to).to_owned()),
    };
    ForwardRule { zone: zone.to_owned(), redirect: to.iter().map(target).collect(), ..ForwardRule::default() }
}

async fn other() -> Fake {
    Fake::start(|query, _| {
        let mut message = response(query);
        let name = query.queries[0].name().clone();
        message.add_answer(Record::from_rdata(name, 300, RData::A(A::new(192, 0, 2, 2))));
        vec![message.to_vec().expect("answer")]
    })
    .await
}

#[tokio::test]
async fn what_one_view_learnt_is_not_told_to_another_that_is_refused() {
    let upstream = Fake::good(300).await;
    let mut config = config();
    config.forward = vec![of(&upstream, u64::MAX), ForwardRule { views: 0b10, ..forward("example.org", &[]) }];
    let lab = Lab::synced(config).await;
    for _ in 0..2 {
        assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
        let refused = lab.ask_from(GUEST, NAME, RecordType::A).await;
        assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    }
    let packet = query(NAME, RecordType::A);
    assert!(lab.kernel.answer(&packet, 0, clock::now()).is_some(), "the kernel tells developers");
    assert!(lab.kernel.answer(&packet, 1, clock::now()).is_none(), "and leaves guests to the forwarder");
    assert_eq!(addresses(&lab.ask_from(GUEST, "www.example.net", RecordType::A).await), ["192.0.2.1"]);
    assert!(lab.kernel.answer(&query("www.example.net", RecordType::A), 0, clock::now()).is_some(), "one for both");
}

#[tokio::test]
async fn views_with_servers_of_their_own_get_their_own_answers_from_forwarder_and_kernel() {
    let (ours, theirs) = (Fake::good(300).await, other().await);
    let mut config = config();
    config.forward = vec![of(&ours, 0b1), of(&theirs, 0b10)];
    let lab = Lab::synced(config).await;
    for _ in 0..3 {
        for (view, client, expected) in [(0, DEVELOPER, "192.0.2.1"), (1, GUEST, "192.0.2.2")] {
            assert_eq!(addresses(&lab.ask_from(client, NAME, RecordType::A).await), [expected]);
            if let Some(kernel) = lab.kernel.answer(&query(NAME, RecordType::A), view, clock::now()) {
                assert_eq!(addresses(&Message::from_vec(&kernel).expect("answer")), [expected]);
            }
        }
    }
    assert_eq!((ours.asked(), theirs.asked()), (1, 1));

    // Everyone is sent to the guests' server: what developers learnt is gone, what guests learnt is everyone's.
    lab.dns.set_rules(&[of(&theirs, u64::MAX)], None, &ClusterDns::default()).expect("rules");
    for client in [DEVELOPER, GUEST] {
        assert_eq!(addresses(&lab.ask_from(client, NAME, RecordType::A).await), ["192.0.2.2"]);
    }
    assert_eq!((ours.asked(), theirs.asked()), (1, 1));
    // And apart again: the kernel must not go on telling everyone.
    lab.dns.set_rules(&[of(&ours, 0b1), of(&theirs, 0b10)], None, &ClusterDns::default()).expect("rules");
    for (view, client, expected) in [(0, DEVELOPER, "192.0.2.1"), (1, GUEST, "192.0.2.2")] {
        if let Some(kernel) = lab.kernel.answer(&query(NAME, RecordType::A), view, clock::now()) {
            assert_eq!(addresses(&Message::from_vec(&kernel).expect("answer")), [expected]);
        }
        assert_eq!(addresses(&lab.ask_from(client, NAME, RecordType::A).await), [expected]);
    }
}

#[tokio::test]
async fn a_rule_leads_to_addresses_or_to_a_name_of_the_cluster_or_outside() {
    let upstream = Fake::good(300).await;
    let mut config = config();
    config.forward = vec![
        forward(".", &[upstream.addr]),
        redirect("sink.example", &["10.9.9.1", "10.9.9.2", "fd00::9"]),
        redirect("shop.example", &["web.shop.svc.cluster.local"]),
        redirect("alias.example", &["www.example.org"]),
        redirect("chain.example", &["x.alias.example"]),
        ForwardRule { views: 0b10, ..redirect("guests.example", &["10.9.9.3"]) },
    ];
    let lab = Lab::synced(config).await;
    lab.service("web", &[("web.shop.svc.cluster.local", BOTH, a("10.1.0.5"))]);
    for name in ["sink.example", "a.b.SINK.example"] {
        let got = lab.ask(name, RecordType::A).await;
        assert_eq!((addresses(&got).len(), got.metadata.authoritative), (2, true));
        assert_eq!(addresses(&lab.ask(name, RecordType::AAAA).await), ["fd00::9"]);
        let none = lab.ask(name, RecordType::MX).await;
        assert_eq!(
            (none.metadata.response_code, none.answers.len(), none.authorities.len()),
            (ResponseCode::NoError, 0, 1)
        );
        assert_eq!(lab.ask(name, RecordType::ANY).await.answers.len(), 1);
    }
    for (name, expected, aliases) in
        [("shop.example", "10.1.0.5", 1), ("alias.example", "192.0.2.1", 1), ("chain.example", "192.0.2.1", 2)]
    {
        let got = lab.ask(name, RecordType::A).await;
        assert_eq!((addresses(&got), got.answers.len()), (vec![expected.to_owned()], aliases + 1), "{name}");
        let over_tcp = Message::from_vec(&tcp(lab.addr, &query(name, RecordType::A)).await).expect("answer");
        assert_eq!(over_tcp.answers.len(), aliases + 1);
        let cname = lab.ask(name, RecordType::CNAME).await;
        assert_eq!(cname.answers.len(), 1, "the alias itself");
    }
    assert_eq!(addresses(&lab.ask("guests.example", RecordType::A).await), ["192.0.2.1"]);
    assert_eq!(addresses(&lab.ask_from(GUEST, "guests.example", RecordType::A).await), ["10.9.9.3"]);
    assert!(lab.dns.counters().answers["rule"] > 0);
}

#[tokio::test]
async fn somebody_answers_for_local_only_when_told_to() {
    for on in [false, true] {
        let mut config = config();
        config.local_zone = on;
        let lab = Lab::synced(config).await;
        let soa = lab.ask("local", RecordType::SOA).await;
        assert_eq!(soa.answers.len(), usize::from(on));
        if on {
            assert_eq!(soa.metadata.response_code, ResponseCode::NoError);
            let none = lab.ask("local", RecordType::A).await;
            assert_eq!((none.metadata.response_code, none.authorities.len()), (ResponseCode::NoError, 1));
        }
        assert_eq!(
            lab.rcode("printer.local", RecordType::A).await,
            ResponseCode::Refused,
            "nothing below it is claimed"
        );
        assert_eq!(lab.rcode("x.cluster.local", RecordType::A).await, ResponseCode::NXDomain);
    }
}

#[tokio::test]
async fn questions_in_mixed_case_take_only_answers_in_the_same_case() {
    // Some servers keep the case, some do not.
    let upstream = Fake::good(300).await;
    let mut config = config();
    config.forward = vec![ForwardRule { mixed_case: true, ..forward(".", &[upstream.addr]) }];
    let lab = Lab::synced(config).await;
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let names = std::sync::Arc::clone(&seen);
    upstream.becomes(move |query, _| {
        names.lock().expect("lock").push(query.queries[0].name().to_string());
        vec![answer(query, 300)]
    });
    for number in 0..4 {
        let name = format!("a-rather-long-name-{number}.example.org");
        let packet = query_edns(&name, RecordType::A, 1232, false);
        let ours = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
        assert_eq!(lab.kernel.answer(&packet, 0, clock::now()), Some(ours.clone()));
        let got = Message::from_vec(&ours).expect("answer");
        assert_eq!(got.answers[0].name.to_string(), format!("{name}."), "the client sees its own case");
    }
    let asked = seen.lock().expect("lock").clone();
    assert!(asked.len() == 4 && asked.iter().any(|name| *name != name.to_ascii_lowercase()), "{asked:?}");

    // A forger that guessed port and ID, and does not know the case: the server's own answer comes over TCP.
    upstream.becomes(|query, via| {
        let mut lower = query.clone();
        if via == crate::fake::Via::Udp {
            let name = query.queries[0].name().to_string().to_ascii_lowercase();
            lower.queries[0].set_name(name.parse::<Name>().expect("name"));
            let mut forged = response(&lower);
            forged.add_answer(Record::from_rdata(lower.queries[0].name().clone(), 300, RData::A(A::new(6, 6, 6, 6))));
            return vec![forged.to_vec().expect("answer")];
        }
        vec![answer(&lower, 300)]
    });
    for number in 0..4 {
        let got = lab.ask(&format!("another-rather-long-name-{number}.example.org"), RecordType::A).await;
        assert_eq!(addresses(&got), ["192.0.2.1"]);
    }
}
