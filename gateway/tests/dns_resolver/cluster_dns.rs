//! Rules that ask the cluster's own DNS: its servers come and go under them.

use std::{net::SocketAddr, time::Duration};

use gateway::dns::{ClusterDns, ForwardRule, To, clock};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME, PTR, opt::EdnsOption},
    },
};

use crate::{
    fake::{Fake, answer, rcode, response},
    support::{DEVELOPER, GUEST, Lab, a, addresses, config, forward, query, query_edns, udp},
};

const ZONE: &str = "corp.internal";
const NAME: &str = "www.corp.internal";

/// A rule for [`ZONE`] that asks the cluster's DNS, and others after it.
fn rule(others: &[SocketAddr]) -> ForwardRule {
    let to = [To::Cluster].into_iter().chain(others.iter().map(|addr| (*addr).into()));
    ForwardRule { to: to.collect(), ..forward(ZONE, &[]) }
}

fn meaning(servers: &[&Fake]) -> ClusterDns {
    ClusterDns { configured: Vec::new(), servers: servers.iter().map(|fake| fake.addr).collect() }
}

async fn lab(rules: Vec<ForwardRule>, servers: &[&Fake]) -> Lab {
    let mut config = config();
    (config.forward, config.cluster) = (rules, meaning(servers));
    Lab::synced(config).await
}

async fn silent() -> Fake {
    Fake::start(|_, _| Vec::new()).await
}

/// Code, and number and words of the explanation.
async fn explained(lab: &Lab, name: &str) -> (ResponseCode, Option<(u16, String)>) {
    let packet = udp(lab.addr, DEVELOPER, &query_edns(name, RecordType::A, 1232, false)).await.expect("an answer");
    let message = Message::from_vec(&packet).expect("readable");
    let options = message.edns.as_ref().map(|edns| edns.options().as_ref().to_vec()).unwrap_or_default();
    let why = options.into_iter().find_map(|(_, option)| match option {
        EdnsOption::Unknown(15, data) => {
            let (code, text) = data.split_first_chunk().expect("a code");
            Some((u16::from_be_bytes(*code), String::from_utf8_lossy(text).into_owned()))
        }
        _ => None,
    });
    (message.metadata.response_code, why)
}

#[tokio::test]
async fn its_servers_change_and_what_was_learnt_stays_in_the_kernel() {
    let (old, new) = (Fake::good(300).await, Fake::good(300).await);
    let lab = lab(vec![rule(&[])], &[&old]).await;
    assert_eq!(addresses(&lab.ask(NAME, RecordType::A).await), ["192.0.2.1"]);
    let packet = query(NAME, RecordType::A);
    assert!(lab.kernel.answer(&packet, 0, clock::now()).is_some(), "the second answer is the kernel's");

    lab.dns.set_cluster(&[new.addr]);
    assert!(lab.kernel.answer(&packet, 0, clock::now()).is_some(), "and stays there");
    lab.ask("b.corp.internal", RecordType::A).await;
    assert_eq!((old.asked(), new.asked()), (1, 1));
    let told = lab.dns.snapshot(0).upstreams;
    assert_eq!(told.iter().map(|server| server.address.clone()).collect::<Vec<_>>(), [new.addr.to_string()]);
    assert!(told[0].cluster);

    // New rules, the same cluster: as before. Another meaning of it: somebody else's answers.
    lab.dns.set_rules(&[rule(&[]), forward("example.org", &[])], None, &meaning(&[&old])).expect("rules");
    assert!(lab.kernel.has(NAME, 1));
    let other = ClusterDns { configured: vec![new.addr], servers: vec![new.addr] };
    lab.dns.set_rules(&[rule(&[])], None, &other).expect("rules");
    assert!(!lab.kernel.has(NAME, 1), "forgotten");
}

#[tokio::test]
async fn servers_take_turns_and_one_that_stays_keeps_its_health() {
    let (one, two) = (Fake::good(300).await, Fake::good(300).await);
    let lab = lab(vec![rule(&[])], &[&one, &two]).await;
    for n in 0..10 {
        lab.ask(&format!("n{n}.{ZONE}"), RecordType::A).await;
    }
    assert_eq!((one.asked(), two.asked()), (5, 5));

    one.becomes(|query, _| vec![rcode(query, ResponseCode::ServFail)]);
    for n in 10..14 {
        assert_eq!(lab.rcode(&format!("n{n}.{ZONE}"), RecordType::A).await, ResponseCode::NoError, "by the other");
    }
    let healthy = |lab: &Lab| lab.dns.snapshot(0).upstreams.iter().map(|s| s.healthy).collect::<Vec<_>>();
    assert_eq!(healthy(&lab), [false, true]);
    let third = Fake::good(300).await;
    lab.dns.set_cluster(&[one.addr, two.addr, third.addr]);
    assert_eq!(healthy(&lab), [false, true, true], "known");
    lab.dns.set_rules(&[rule(&[]), forward("example.org", &[two.addr])], None, &meaning(&[&one, &two])).expect("rules");
    let told = lab.dns.snapshot(0).upstreams;
    assert_eq!(told.len(), 2, "one server, whoever names it");
    assert_eq!((told[0].cluster, told[1].cluster), (false, true));
    assert!(told[0].queries >= 5 && !told[1].healthy, "{told:?}");
}

#[tokio::test]
async fn without_any_server_the_client_is_told_so_and_others_of_the_rule_are_asked() {
    let other = Fake::good(300).await;
    let mixed = ForwardRule { zone: "mixed.internal".to_owned(), ..rule(&[other.addr]) };
    let lab = lab(vec![rule(&[]), mixed], &[]).await;
    let (code, why) = explained(&lab, NAME).await;
    assert_eq!((code, why), (ResponseCode::ServFail, Some((22, "the cluster's DNS has no endpoint".to_owned()))));
    assert!(lab.dns.explain([127, 0, 0, 1].into(), NAME).expect("words").contains("no endpoint"));
    assert_eq!(lab.rcode("www.mixed.internal", RecordType::A).await, ResponseCode::NoError);
    assert_eq!(other.asked(), 1);

    // They come: what failed is asked at once.
    let server = Fake::good(300).await;
    lab.dns.set_cluster(&[server.addr]);
    assert_eq!(lab.rcode(NAME, RecordType::A).await, ResponseCode::NoError);
    let told = lab.dns.explain([127, 0, 0, 1].into(), NAME).expect("words");
    assert!(told.contains("corp.internal") && told.contains(&server.addr.to_string()), "{told}");
    assert_eq!(lab.dns.explain([127, 0, 0, 1].into(), "web.shop.svc.cluster.local"), None, "the zone's own");
    assert!(lab.dns.explain([127, 0, 0, 1].into(), "example.org").expect("words").contains("refuses"));
}

#[tokio::test]
async fn a_question_on_its_way_finds_the_server_that_came_meanwhile() {
    let (gone, come) = (silent().await, Fake::good(300).await);
    let lab = lab(vec![rule(&[])], &[&gone]).await;
    let (packet, addr) = (query(NAME, RecordType::A), lab.addr);
    let waiting = tokio::spawn(async move { udp(addr, DEVELOPER, &packet).await });
    while gone.asked() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lab.dns.set_cluster(&[come.addr]);
    let answer = waiting.await.expect("the client").expect("an answer");
    assert_eq!(addresses(&Message::from_vec(&answer).expect("readable")), ["192.0.2.1"]);
    assert_eq!(gone.asked(), 1, "who is gone is not asked again");
}

#[tokio::test]
async fn the_clusters_own_names_are_never_asked_of_it_and_a_circle_ends() {
    let lab = lab(Vec::new(), &[]).await;
    // A CoreDNS that forwards what it does not know to the gateway, which asks it: the same client may ask there.
    let back = lab.addr;
    let server = Fake::start(move |query, _| {
        let packet = query.to_vec().expect("a query");
        let socket = std::net::UdpSocket::bind((DEVELOPER, 0)).expect("a socket");
        socket.send_to(&packet, back).expect("sent");
        // Whatever comes of that comes too late for anybody.
        Vec::new()
    })
    .await;
    lab.dns.set_rules(&[rule(&[])], None, &meaning(&[&server])).expect("rules");
    let (code, why) = explained(&lab, NAME).await;
    assert_eq!((code, why.map(|(code, _)| code)), (ResponseCode::ServFail, Some(22)));
    assert!(server.asked() <= 6, "{} questions for one", server.asked());

    server.becomes(|query, _| vec![answer(query, 300)]);
    let before = server.asked();
    for name in ["no.shop.svc.cluster.local", "corefile.cluster.local"] {
        assert_eq!(lab.rcode(name, RecordType::A).await, ResponseCode::NXDomain);
    }
    assert_eq!(server.asked(), before);
}

#[tokio::test]
async fn what_it_says_of_the_clusters_names_is_left_out_and_aliases_to_them_are_followed_by_view() {
    let cname = |query: &Message, to: &str| {
        let mut message = response(query);
        let name = query.queries[0].name().clone();
        message.add_answer(Record::from_rdata(name, 300, RData::CNAME(CNAME(named(to)))));
        // As CoreDNS looks it up by itself, for everybody.
        message.add_answer(Record::from_rdata(named(to), 300, RData::A(A::new(10, 1, 0, 99))));
        vec![message.to_vec().expect("answer")]
    };
    let server = Fake::start(move |query, _| match query.queries[0].query_type() {
        RecordType::PTR => {
            let mut message = response(query);
            let data = RData::PTR(PTR(named("10-244-1-5.web.secret.svc.cluster.local.")));
            message.add_answer(Record::from_rdata(query.queries[0].name().clone(), 300, data));
            vec![message.to_vec().expect("answer")]
        }
        _ if query.queries[0].name().to_string().starts_with("gone") => cname(query, "gone.shop.svc.cluster.local."),
        _ => cname(query, "Web.secret.svc.cluster.local."),
    })
    .await;
    let all = ForwardRule { zone: ".".to_owned(), ..rule(&[]) };
    let lab = lab(vec![all], &[&server]).await;
    lab.service("web", &[("web.secret.svc.cluster.local", 1, a("10.1.0.7"))]);
    let app = "app.corp.internal";
    for _ in 0..2 {
        let answer = lab.ask(app, RecordType::A).await;
        assert_eq!(
            (answer.metadata.response_code, addresses(&answer)),
            (ResponseCode::NoError, vec!["10.1.0.7".into()])
        );
        assert_eq!(answer.answers.len(), 2, "{answer:?}");
        let hidden = lab.ask_from(GUEST, app, RecordType::A).await;
        assert_eq!(
            (hidden.metadata.response_code, hidden.answers.len()),
            (ResponseCode::NXDomain, 1),
            "the alias alone"
        );
    }
    assert_eq!(server.asked(), 1, "learnt once, for both");
    assert!(!lab.kernel.has(app, 1), "the kernel follows no aliases");
    // It follows the zone, not what the server had said.
    lab.service("web", &[("web.secret.svc.cluster.local", 1, a("10.1.0.8"))]);
    assert_eq!(addresses(&lab.ask(app, RecordType::A).await), ["10.1.0.8"]);
    assert_eq!(lab.rcode("gone.corp.internal", RecordType::A).await, ResponseCode::NXDomain);
    for client in [DEVELOPER, GUEST] {
        let answer = lab.ask_from(client, "5.1.244.10.in-addr.arpa", RecordType::PTR).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    }
}

fn named(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}
