//! A resolver on loopback and clients of it.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use gateway::{
    dns::{CacheConfig, DnsConfig, ForwardRule, Limits, Resolver, ResolverHandle},
    model::ObjectName,
    plan::{Record, RecordData, ServicePlan},
};
use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use crate::recorder::Recorder;

/// In view 0.
pub const DEVELOPER: &str = "127.0.0.1";
/// In view 1.
pub const GUEST: &str = "127.0.0.2";
/// In no view.
pub const STRANGER: &str = "127.0.0.9";
pub const BOTH: u64 = 3;

pub struct Lab {
    pub dns: ResolverHandle,
    pub kernel: Arc<Recorder>,
    pub addr: SocketAddr,
}

pub fn config() -> DnsConfig {
    let view = |addr: &str| vec![format!("{addr}/32").parse().expect("prefix")];
    DnsConfig {
        listen: vec!["127.0.0.1:0".parse().expect("address")],
        views: vec![view(DEVELOPER), view(GUEST)],
        cache: CacheConfig {
            entries: 1000,
            memory: 1 << 24,
            max_ttl: 3600,
            negative_ttl: 60,
            stale: 3600,
            failure_ttl: 1,
        },
        limits: Limits { tcp_idle: Duration::from_millis(700), ..Limits::default() },
        ..DnsConfig::default()
    }
}

pub fn forward(zone: &str, to: &[SocketAddr]) -> ForwardRule {
    ForwardRule { zone: zone.to_owned(), to: to.iter().map(|addr| (*addr).into()).collect(), ..ForwardRule::default() }
}

impl Lab {
    pub async fn start(config: DnsConfig) -> Self {
        let kernel = Arc::new(Recorder::default());
        let dns = Resolver::start(config, Arc::<Recorder>::clone(&kernel)).await.expect("the resolver starts");
        let addr = dns.addresses()[0];
        Self { dns, kernel, addr }
    }

    /// With the zone loaded.
    pub async fn synced(config: DnsConfig) -> Self {
        let lab = Self::start(config).await;
        lab.dns.synced();
        lab
    }

    pub fn service(&self, name: &str, records: &[(&str, u64, RecordData)]) {
        let records = records
            .iter()
            .map(|(name, views, data)| Record { name: (*name).to_owned(), ttl: 30, views: *views, data: data.clone() })
            .collect();
        let plan = ServicePlan { records, ..ServicePlan::default() };
        self.dns.apply(&ObjectName::new("shop", name), Some(&plan));
    }

    pub fn gone(&self, name: &str) {
        self.dns.apply(&ObjectName::new("shop", name), None);
    }

    pub async fn ask(&self, name: &str, qtype: RecordType) -> Message {
        self.ask_from(DEVELOPER, name, qtype).await
    }

    pub async fn ask_from(&self, client: &str, name: &str, qtype: RecordType) -> Message {
        let answer = udp(self.addr, client, &query(name, qtype)).await.expect("an answer in time");
        Message::from_vec(&answer).expect("a readable answer")
    }

    pub async fn rcode(&self, name: &str, qtype: RecordType) -> ResponseCode {
        self.ask(name, qtype).await.metadata.response_code
    }

    /// Upstream questions, answers from the cache, stale answers so far.
    pub fn answers(&self, source: &str) -> u64 {
        self.dns.counters().answers[source]
    }
}

pub fn query(name: &str, qtype: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).expect("name"), qtype));
    message.to_vec().expect("query")
}

pub fn query_edns(name: &str, qtype: RecordType, size: u16, dnssec_ok: bool) -> Vec<u8> {
    let mut message = Message::from_vec(&query(name, qtype)).expect("query");
    let mut edns = Edns::new();
    edns.set_max_payload(size).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message.to_vec().expect("query")
}

/// One query over UDP; `None` after two seconds and a half: longer than the resolver waits for one server.
pub async fn udp(server: SocketAddr, client: &str, query: &[u8]) -> Option<Vec<u8>> {
    udp_within(server, client, query, Duration::from_millis(6000)).await
}

pub async fn udp_within(server: SocketAddr, client: &str, query: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind((IpAddr::from_str(client).expect("address"), 0)).await.expect("a socket");
    socket.connect(server).await.expect("connect");
    socket.send(query).await.expect("send");
    let mut buffer = vec![0; 65_535];
    let len = tokio::time::timeout(patience, socket.recv(&mut buffer)).await.ok()?.ok()?;
    assert_eq!(buffer[..2], query[..2], "the answer has the query's ID");
    Some(buffer[..len].to_vec())
}

pub async fn tcp(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).await.expect("connect");
    write_frame(&mut stream, query).await;
    read_frame(&mut stream).await.expect("an answer")
}

pub async fn write_frame(stream: &mut TcpStream, message: &[u8]) {
    let len = u16::try_from(message.len()).expect("length").to_be_bytes();
    stream.write_all(&[&len[..], message].concat()).await.expect("write");
}

pub async fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let len = tokio::time::timeout(Duration::from_secs(6), stream.read_u16()).await.expect("in time").ok()?;
    let mut message = vec![0; len.into()];
    stream.read_exact(&mut message).await.ok()?;
    Some(message)
}

pub fn addresses(message: &Message) -> Vec<String> {
    let mut addresses: Vec<String> = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(a.to_string()),
            RData::AAAA(a) => Some(a.to_string()),
            _ => None,
        })
        .collect();
    addresses.sort();
    addresses
}

pub fn a(addr: &str) -> RecordData {
    RecordData::Address(addr.parse().expect("address"))
}

pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..100 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within five seconds: {what}");
}
