//! Kernel and forwarder cannot be told apart: every name of a cluster with every kind of Service and many generated ones, in every type,
//! case and EDNS variant, asked of the kernel's table, over UDP and over TCP.

use std::{collections::BTreeSet, fmt::Write as _, net::SocketAddr, time::Duration};

use gateway::{dns::clock, plan::Pods};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Record, RecordType},
};
use tokio::net::{TcpStream, UdpSocket};

use crate::{
    cluster::lab_of,
    support::{DEVELOPER, GUEST, query, query_edns, read_frame, write_frame},
};

/// Generated Services, of every kind.
const SERVICES: usize = 240;
/// Those that are asked about in every way; of the others' names each type is asked in one EDNS variant, in turns.
const THOROUGH: usize = 24;

const TYPES: [RecordType; 11] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::PTR,
    RecordType::TXT,
    RecordType::CNAME,
    RecordType::MX,
    RecordType::NS,
    RecordType::SOA,
    RecordType::ANY,
    RecordType::HTTPS,
];

/// EDNS size and DO.
const EDNS: [Option<(u16, bool)>; 5] =
    [None, Some((512, false)), Some((1232, false)), Some((4096, false)), Some((1232, true))];

fn manifests() -> String {
    let mut text = "apiVersion: v1\nkind: List\nitems:\n".to_owned();
    for namespace in ["testns", "secret", "bare"] {
        let _ = writeln!(text, "- {{kind: Namespace, apiVersion: v1, metadata: {{name: {namespace}}}}}");
    }
    for number in 0..SERVICES {
        let namespace = if number % 5 == 0 { "secret" } else { "testns" };
        let ports = match number % 4 {
            0 => "[{port: 80}]".to_owned(),
            1 => "[{name: http, port: 80}]".to_owned(),
            2 => format!(
                "[{{name: http, port: 80}}, {{name: dns, port: 53, protocol: UDP}}, {{name: p{number}, port: {}}}]",
                1000 + number
            ),
            _ => "[{name: a, port: 1}, {name: b, port: 2, protocol: SCTP}]".to_owned(),
        };
        let spec = match number % 8 {
            0 | 1 => format!("clusterIP: 10.1.0.{number}, ports: {ports}"),
            2 => format!("clusterIPs: [10.1.1.{number}, 'fd00:1::{number}'], ports: {ports}"),
            3 => format!("clusterIP: 'fd00:1::1:{number}', ports: {ports}"),
            4 => format!("clusterIP: None, publishNotReadyAddresses: true, ports: {ports}"),
            5 => format!("clusterIP: None, ports: {ports}"),
            6 => "type: ExternalName, externalName: s1.testns.svc.cluster.local".to_owned(),
            _ if number % 3 == 0 => format!("type: ExternalName, externalName: 192.0.2.{number}"),
            _ => "type: ExternalName, externalName: www.example.org".to_owned(),
        };
        let _ = writeln!(
            text,
            "- {{kind: Service, apiVersion: v1, metadata: {{name: s{number}, namespace: {namespace}}}, spec: {{{spec}}}}}"
        );
        // More than 512 bytes hold, and more than 1,232.
        let endpoints = if number < THOROUGH { [0, 1, 3, 30, 90][number % 5] } else { number % 4 };
        let list: Vec<String> = (0..endpoints)
            .map(|at| {
                let more = match at % 4 {
                    0 => format!(", hostname: h{}", at / 8),
                    1 if at > 1 => ", conditions: {ready: false}".to_owned(),
                    _ => String::new(),
                };
                format!("{{addresses: [10.42.{number}.{at}]{more}}}")
            })
            .collect();
        let _ = writeln!(
            text,
            "- {{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, metadata: {{name: s{number}-4, namespace: {namespace}, \
             labels: {{kubernetes.io/service-name: s{number}}}}}, addressType: IPv4, ports: [{{name: http, port: 8080}}], \
             endpoints: [{}]}}",
            list.join(", ")
        );
    }
    text
}

/// The names, what is above and below them, and what is next to them and does not exist.
fn names(records: &BTreeSet<String>) -> BTreeSet<String> {
    let mut names = BTreeSet::from(["cluster.local".to_owned(), "no.cluster.local".to_owned()]);
    // Endpoints are many of one kind.
    let some =
        records.iter().enumerate().filter(|(at, name)| !name.contains("h1.") && (name.len() < 30 || at % 3 == 0));
    for (_, name) in some {
        names.insert(name.clone());
        if let Some((_, above)) = name.split_once('.')
            && (above.ends_with("cluster.local") || above.ends_with("arpa"))
        {
            names.extend([above.to_owned(), format!("no.{above}"), format!("*.{above}")]);
        }
    }
    names
}

/// Whether a name is asked about in every way.
fn is_thorough(name: &str) -> bool {
    let number = |label: &str| label.strip_prefix('s').and_then(|number| number.parse::<usize>().ok());
    name.split('.').filter_map(number).all(|number| number < THOROUGH) && !name.ends_with("arpa")
        || name.ends_with("0.42.10.in-addr.arpa")
        || name.ends_with("0.1.10.in-addr.arpa")
}

fn mixed_case(name: &str) -> String {
    let upper = |(at, character): (usize, char)| if at % 2 == 0 { character.to_ascii_uppercase() } else { character };
    name.chars().enumerate().map(upper).collect()
}

/// Code, flags and sections as sets; TC apart.
fn essence(message: &Message) -> (String, bool) {
    let set = |records: &[Record]| {
        let lines: BTreeSet<String> = records.iter().map(|record| record.to_string().to_ascii_lowercase()).collect();
        format!("{lines:?}")
    };
    let meta = &message.metadata;
    let edns = message.edns.as_ref().map(|edns| (edns.max_payload(), edns.version(), edns.flags().dnssec_ok));
    let flags = (meta.authoritative, meta.recursion_available, meta.recursion_desired, meta.authentic_data);
    let sections = [&message.answers, &message.authorities, &message.additionals].map(|records| set(records));
    (format!("{} {flags:?} {edns:?} {sections:?}", meta.response_code), meta.truncation)
}

struct Client {
    server: SocketAddr,
    udp: UdpSocket,
    tcp: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    async fn new(server: SocketAddr, from: &str) -> Self {
        let udp = UdpSocket::bind((from, 0)).await.expect("a socket");
        udp.connect(server).await.expect("connect");
        Self { server, udp, tcp: None, buffer: vec![0; 65_535] }
    }

    async fn over_udp(&mut self, packet: &[u8]) -> Vec<u8> {
        self.udp.send(packet).await.expect("send");
        let received = tokio::time::timeout(Duration::from_secs(20), self.udp.recv(&mut self.buffer)).await;
        let len = received.expect("an answer in time").expect("receive");
        self.buffer[..len].to_vec()
    }

    async fn over_tcp(&mut self, packet: &[u8]) -> Vec<u8> {
        loop {
            let stream = match &mut self.tcp {
                Some(stream) => stream,
                none => none.insert(TcpStream::connect(self.server).await.expect("connect")),
            };
            write_frame(stream, packet).await;
            match read_frame(stream).await {
                Some(answer) => return answer,
                // On a busy machine the connection may have been idle for too long.
                None => self.tcp = None,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_name_type_case_and_edns_variant_gets_the_same_answer_in_the_kernel_over_udp_and_over_tcp() {
    let (lab, records) = lab_of(&manifests(), Pods::Verified).await;
    let names = names(&records);
    let mut developer = Client::new(lab.addr, DEVELOPER).await;
    let mut guest = Client::new(lab.addr, GUEST).await;
    let (mut asked, mut kernel, mut cut) = (0, 0, 0);
    let mut turn = 0;
    for (at, name) in names.iter().enumerate() {
        let thorough = is_thorough(name);
        for qtype in TYPES {
            turn += 1;
            for (variant, edns) in EDNS.into_iter().enumerate() {
                if !thorough && turn % EDNS.len() != variant {
                    continue;
                }
                let packet_of = |spelt: &str| match edns {
                    None => query(spelt, qtype),
                    Some((size, dnssec_ok)) => query_edns(spelt, qtype, size, dnssec_ok),
                };
                // In both cases; all else is asked in one of them, in turns.
                let (mut spelt, mut other) = (name.clone(), mixed_case(name));
                if (at + variant) % 2 == 0 {
                    std::mem::swap(&mut spelt, &mut other);
                }
                let packet = packet_of(&spelt);
                let limit = usize::from(edns.map_or(512, |(size, _)| size).clamp(512, 1232));
                let over_udp = developer.over_udp(&packet).await;
                assert!(over_udp.len() <= limit, "{spelt} {qtype} {edns:?}: {} bytes", over_udp.len());
                let (said, truncated) = essence(&Message::from_vec(&over_udp).expect("readable"));
                assert_eq!(
                    over_udp[12..packet.len().min(over_udp.len()).min(12 + name.len())],
                    packet[12..12 + name.len()]
                );
                let cased = packet_of(&other);
                for answer in [Some(developer.over_udp(&cased).await), lab.kernel.answer(&cased, 0, clock::now())] {
                    let Some(answer) = answer else { continue };
                    let same = essence(&Message::from_vec(&answer).expect("readable"));
                    assert_eq!(same, (said.clone(), truncated), "{other} and {spelt} {qtype} {edns:?}");
                    assert_eq!(answer[12..12 + other.len()], cased[12..12 + other.len()], "the question's case");
                }
                for (view, client, message) in [(0, &mut developer, Some(over_udp.clone())), (1, &mut guest, None)] {
                    let Some(own) = lab.kernel.answer(&packet, view, clock::now()) else { continue };
                    let forwarder = match message {
                        Some(message) => message,
                        None => client.over_udp(&packet).await,
                    };
                    let read = |message: &[u8]| essence(&Message::from_vec(message).expect("readable"));
                    assert_eq!(read(&own), read(&forwarder), "view {view}: {spelt} {qtype} {edns:?}");
                    kernel += 1;
                }
                let over_tcp = Message::from_vec(&developer.over_tcp(&packet).await).expect("readable");
                assert!(!over_tcp.metadata.truncation);
                if truncated {
                    cut += 1;
                    let empty = Message::from_vec(&over_udp).expect("readable");
                    assert_eq!(empty.metadata.response_code, ResponseCode::NoError);
                    assert!(empty.answers.is_empty() && !over_tcp.answers.is_empty());
                } else {
                    assert_eq!(essence(&over_tcp).0, said, "over TCP: {spelt} {qtype} {edns:?}");
                }
                asked += 1;
            }
        }
    }
    println!("{} names, {asked} questions, {kernel} answers of the kernel, {cut} cut", names.len());
    assert!(asked > 20_000 && kernel > asked / 2 && cut > 10, "{asked} {kernel} {cut}");
}
