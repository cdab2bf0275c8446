//! EDNS as odd as it comes (RFC 6891), to a forwarder by real sockets; where the kernel answers, it says the same.

use std::time::Duration;

use gateway::dns::clock;
use hickory_proto::op::Message;

use crate::{
    fake::Fake,
    support::{BOTH, DEVELOPER, Lab, a, config, forward, tcp, udp},
};

const WEB: &str = "web.shop.svc.cluster.local";
const MANY: &str = "many.shop.svc.cluster.local";
const NOERROR: u16 = 0;
const FORMERR: u16 = 1;
const NXDOMAIN: u16 = 3;
const BADVERS: u16 = 16;
const A: u16 = 1;

/// A query with these additional records as they are.
fn packet(name: &str, qtype: u16, additionals: &[Vec<u8>]) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, additionals.len() as u8];
    packet.extend(gateway_common::dns::name::to_wire(name).expect("name"));
    packet.extend([qtype.to_be_bytes(), [0, 1]].concat());
    packet.extend(additionals.concat());
    packet
}

/// OPT: size, extended RCODE, version, flags, options.
fn opt(size: u16, extended: u8, version: u8, flags: u16, options: &[u8]) -> Vec<u8> {
    let [high, low] = (options.len() as u16).to_be_bytes();
    let [s0, s1] = size.to_be_bytes();
    let [f0, f1] = flags.to_be_bytes();
    [&[0, 0, 41, s0, s1, extended, version, f0, f1, high, low][..], options].concat()
}

/// An option: code, length, data; the length as it is said.
fn option(code: u16, len: u16, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &len.to_be_bytes(), data].concat()
}

/// Size, version, flags, bytes of options.
type Opt = (u16, u8, u16, u16);
/// What it is called, the additional records, the code and OPT of the answer.
type Case = (&'static str, Vec<Vec<u8>>, u16, Option<Opt>);

/// What an answer says: its full response code, its OPT, records, and whether it is cut.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    rcode: u16,
    opt: Option<Opt>,
    answers: u16,
    cut: bool,
}

fn said(answer: &[u8]) -> Said {
    Message::from_vec(answer).unwrap_or_else(|error| panic!("{error}: {answer:02x?}"));
    let word = |at: usize| u16::from_be_bytes([answer[at], answer[at + 1]]);
    let (flags, additionals) = (word(2), word(10));
    assert!(flags & 0x8000 != 0 && word(0) == 0x1234, "{answer:02x?}");
    assert!(additionals <= 1);
    let at = answer.len() - if additionals == 1 { 11 } else { 0 };
    // All answers here end with OPT, when they have one and it has no options.
    let opt = (additionals == 1).then(|| {
        assert_eq!(answer[at..at + 3], [0, 0, 41], "{answer:02x?}");
        (word(at + 3), answer[at + 6], word(at + 7), word(at + 9))
    });
    let extended = if opt.is_some() { u16::from(answer[at + 5]) << 4 } else { 0 };
    Said { rcode: extended | flags & 0xf, opt, answers: word(6), cut: flags & 0x200 != 0 }
}

async fn lab() -> (Lab, Fake) {
    let upstream = Fake::good(300).await;
    let mut config = config();
    config.forward = vec![forward("example.org", &[upstream.addr])];
    let lab = Lab::synced(config).await;
    lab.service("web", &[(WEB, BOTH, a("10.1.0.80"))]);
    let many: Vec<_> = (0..60).map(|i| (MANY, BOTH, a(&format!("10.2.0.{i}")))).collect();
    lab.service("many", &many);
    (lab, upstream)
}

#[tokio::test]
async fn odd_edns_is_answered_as_the_standard_says_and_alike_by_all() {
    let (lab, _upstream) = lab().await;
    let cookie = option(10, 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let subnet = option(8, 7, &[0, 1, 24, 0, 192, 0, 2]);
    let plain = Some((1232, 0, 0, 0));
    let dnssec = Some((1232, 0, 0x8000, 0));
    let many_options: Vec<u8> = (0..40).flat_map(|code| option(65_001 + code, 0, &[])).collect();
    let cases: Vec<Case> = vec![
        ("no EDNS", vec![], NOERROR, None),
        ("plain", vec![opt(1232, 0, 0, 0, &[])], NOERROR, plain),
        ("size 0", vec![opt(0, 0, 0, 0, &[])], NOERROR, plain),
        ("size 65535", vec![opt(65535, 0, 0, 0, &[])], NOERROR, plain),
        ("DO", vec![opt(4096, 0, 0, 0x8000, &[])], NOERROR, dnssec),
        ("unknown flags", vec![opt(4096, 0, 0, 0x7fff, &[])], NOERROR, plain),
        ("DO and unknown flags", vec![opt(4096, 0, 0, 0xffff, &[])], NOERROR, dnssec),
        ("an extended RCODE", vec![opt(4096, 7, 0, 0, &[])], NOERROR, plain),
        ("version 1", vec![opt(4096, 0, 1, 0, &[])], BADVERS, plain),
        ("version 255 and DO", vec![opt(4096, 0, 255, 0x8000, &[])], BADVERS, dnssec),
        ("version 1 with options of its own", vec![opt(4096, 0, 1, 0, &cookie)], BADVERS, plain),
        ("a cookie", vec![opt(1232, 0, 0, 0, &cookie)], NOERROR, plain),
        ("NSID", vec![opt(1232, 0, 0, 0, &option(3, 0, &[]))], NOERROR, plain),
        ("a client subnet", vec![opt(1232, 0, 0, 0, &subnet)], NOERROR, plain),
        ("padding", vec![opt(1232, 0, 0, 0, &option(12, 60, &[0; 60]))], NOERROR, plain),
        ("keep-alive", vec![opt(1232, 0, 0, 0, &option(11, 0, &[]))], NOERROR, plain),
        (
            "unknown options",
            vec![opt(1232, 0, 0, 0, &[option(65_001, 3, b"abc"), cookie.clone()].concat())],
            NOERROR,
            plain,
        ),
        ("many options", vec![opt(1232, 0, 0, 0, &many_options)], NOERROR, plain),
        ("two OPT records", vec![opt(1232, 0, 0, 0, &[]); 2], FORMERR, None),
        ("an OPT cut short", vec![opt(1232, 0, 0, 0, &[])[..9].to_vec()], FORMERR, None),
        ("an option longer than OPT", vec![opt(1232, 0, 0, 0, &option(10, 9, &[1; 8]))], FORMERR, None),
        ("half an option's head", vec![opt(1232, 0, 0, 0, &[0, 10, 0])], FORMERR, None),
        ("OPT with a name", vec![[&[1, b'x'][..], &opt(1232, 0, 0, 0, &[])].concat()], FORMERR, None),
    ];
    let mut wrong = Vec::new();
    for (what, additionals, rcode, edns) in cases {
        for (name, otherwise) in [(WEB, NOERROR), ("nobody.shop.svc.cluster.local", NXDOMAIN)] {
            let packet = packet(name, A, &additionals);
            let expected = if rcode == NOERROR { otherwise } else { rcode };
            let answer = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
            let told = said(&answer);
            let records = u16::from(expected == NOERROR);
            let want = Said { rcode: expected, opt: edns, answers: records, cut: false };
            if told != want {
                wrong.push(format!("{what} {name}: {told:?} instead of {want:?}"));
            }
            if let Some(kernel) = lab.kernel.answer(&packet, 0, clock::now()) {
                assert_eq!(kernel, answer, "{what} {name}: the kernel's and the forwarder's");
            }
            assert_eq!(said(&tcp(lab.addr, &packet).await), told, "{what} {name}: over TCP");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    lab.dns.shutdown().await;
}

#[tokio::test]
async fn an_answer_is_never_longer_than_the_client_and_the_gateway_take() {
    let (lab, _upstream) = lab().await;
    for (size, most) in [
        (None, 512),
        (Some(0), 512),
        (Some(100), 512),
        (Some(512), 512),
        (Some(700), 700),
        (Some(1232), 1232),
        (Some(65535), 1232),
    ] {
        let packet = packet(MANY, A, &size.map(|size| opt(size, 0, 0, 0, &[])).into_iter().collect::<Vec<_>>());
        let answer = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
        assert!(answer.len() <= most, "{size:?}: {} bytes", answer.len());
        // 60 addresses are 960 bytes.
        assert_eq!(said(&answer).cut, most < 960, "{size:?}");
        assert_eq!(said(&tcp(lab.addr, &packet).await).answers, 60, "{size:?}: whole over TCP");
    }
    lab.dns.shutdown().await;
}

#[tokio::test]
async fn any_is_one_record_everywhere_and_never_the_kernels() {
    let (lab, _upstream) = lab().await;
    for name in [WEB, MANY, "www.example.org"] {
        for additionals in [vec![], vec![opt(4096, 0, 0, 0x8000, &[])]] {
            let packet = packet(name, 255, &additionals);
            assert_eq!(lab.kernel.answer(&packet, 0, clock::now()), None);
            for answer in [udp(lab.addr, DEVELOPER, &packet).await.expect("an answer"), tcp(lab.addr, &packet).await] {
                let message = Message::from_vec(&answer).expect("answer");
                assert_eq!(message.answers.len(), 1, "{name}: {message:?}");
                assert_eq!(u16::from(message.answers[0].record_type()), 13, "HINFO (RFC 8482): {name}");
                assert_eq!(u16::from(message.queries[0].query_type()), 255);
            }
        }
    }
    lab.dns.shutdown().await;
}

/// The forwarder's side of what `kernel_dns/ageing.rs` says of the kernel.
#[tokio::test]
async fn the_forwarders_ttls_never_say_more_than_is_left() {
    let upstream = Fake::good(2).await;
    let mut config = config();
    config.forward = vec![forward(".", &[upstream.addr])];
    let lab = Lab::synced(config).await;
    let packet = packet("www.example.org", A, &[]);
    let began = clock::now();
    let ttl = |answer: &[u8]| Message::from_vec(answer).expect("answer").answers[0].ttl;
    udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
    // It was stored before this.
    let stored = clock::now();
    let mut answers = 0;
    while clock::now() < began + clock::seconds(2) {
        let asked = clock::now();
        let left = ttl(&udp(lab.addr, DEVELOPER, &packet).await.expect("an answer"));
        // One that is asked for just at the end may have been fetched anew.
        if upstream.asked() > 1 {
            break;
        }
        // The first moments of an answer do not count.
        assert!(asked + clock::seconds(left) <= stored + clock::seconds(2) + 20_000_000, "TTL {left}");
        answers += 1;
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    assert!(answers > 10, "{answers} answers");
    lab.dns.shutdown().await;
}
