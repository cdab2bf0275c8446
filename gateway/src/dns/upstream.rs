//! Questions to other DNS servers: UDP from a fresh port each, TCP when the answer was cut; what does not match the question is
//! not an answer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use gateway_common::{limits::DNS_MAX_UDP, maps::dns_key};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

use super::clock;

/// How long one server may take to answer over UDP before the next one is asked.
const UDP_PATIENCE: Duration = Duration::from_millis(1500);
/// How long a TCP exchange may take after a cut answer.
const TCP_PATIENCE: Duration = Duration::from_millis(3000);
/// How long all servers together may take: below the five seconds after which stub resolvers give up.
const PATIENCE: Duration = Duration::from_millis(4500);
/// A question is asked at least this often before it fails for want of an answer: datagrams get lost.
const ATTEMPTS: usize = 3;
/// For so long after a failure a server is asked only when the others failed too.
const SHUNNED_NS: u64 = 10_000_000_000;

/// What is asked: the question and the bits of the query that change its answer. Class IN.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ask {
    /// Wire format with its root byte, folded to lower case.
    pub name: Box<[u8]>,
    /// Query type.
    pub qtype: u16,
    /// [`dns_key`] bits: DO and CD.
    pub flags: u8,
}

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Nothing that matches the question came in time.
    #[error("{0}: no answer in time")]
    Timeout(SocketAddr),
    /// The socket said no.
    #[error("{0}: {1}")]
    Io(SocketAddr, #[source] io::Error),
    /// It answered that it cannot, or will not.
    #[error("{0} answered {1}")]
    Refused(SocketAddr, ResponseCode),
    /// It answered over TCP with something that is not an answer to the question.
    #[error("{0}: not an answer to the question")]
    Mismatch(SocketAddr),
    /// There was nobody to ask.
    #[error("no server to ask")]
    Nobody,
}

/// A server and how it has been doing.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    queries: AtomicU64,
    failures: AtomicU64,
    consecutive: AtomicU32,
    failed_at: AtomicU64,
    rtt_us: AtomicU64,
}

/// A server's health, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerInfo {
    /// `ip:port`.
    pub address: String,
    /// Its last answer was a good one, or it was not asked yet.
    pub healthy: bool,
    /// Questions sent.
    pub queries: u64,
    /// Questions without a usable answer.
    pub failures: u64,
    /// How long its last answer took, in microseconds; 0: none yet.
    pub rtt_us: u64,
}

impl Server {
    /// A server that has not been asked yet.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            queries: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            consecutive: AtomicU32::new(0),
            failed_at: AtomicU64::new(0),
            rtt_us: AtomicU64::new(0),
        }
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its health, for people.
    pub fn info(&self) -> ServerInfo {
        ServerInfo {
            address: self.addr.to_string(),
            healthy: self.consecutive.load(Ordering::Relaxed) == 0,
            queries: self.queries.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            rtt_us: self.rtt_us.load(Ordering::Relaxed),
        }
    }

    fn shunned(&self, now: u64) -> bool {
        self.consecutive.load(Ordering::Relaxed) > 0
            && now.saturating_sub(self.failed_at.load(Ordering::Relaxed)) < SHUNNED_NS
    }

    fn succeeded(&self, began: Instant) {
        self.consecutive.store(0, Ordering::Relaxed);
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.rtt_us.store(us.max(1), Ordering::Relaxed);
    }

    fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.consecutive.fetch_add(1, Ordering::Relaxed);
        self.failed_at.store(clock::now(), Ordering::Relaxed);
    }

    /// One question to this server: a usable answer, or why there is none.
    async fn ask(&self, ask: &Ask, deadline: Instant) -> Result<Message, ExchangeError> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let result = match exchange(self.addr, ask, true, deadline).await {
            // A server from before EDNS (RFC 6891 section 7).
            Ok(answer) if answer.metadata.response_code == ResponseCode::FormErr && answer.edns.is_none() => {
                exchange(self.addr, ask, false, deadline).await
            }
            other => other,
        };
        let result = result.and_then(|answer| match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
            code => Err(ExchangeError::Refused(self.addr, code)),
        });
        match &result {
            Ok(_) => self.succeeded(began),
            Err(_) => self.failed(),
        }
        result
    }
}

/// Asks the servers in turn, those that failed lately last, until one gives a usable answer: NOERROR or NXDOMAIN.
/// Servers that did not answer are asked again; those that said no are not.
///
/// # Errors
/// What the last server did, when none gave an answer within `patience` or the resolver's own limit.
pub async fn ask(servers: &[Arc<Server>], ask: &Ask, patience: Option<Duration>) -> Result<Message, ExchangeError> {
    let end = Instant::now() + patience.map_or(PATIENCE, |patience| patience.min(PATIENCE));
    let now = clock::now();
    let mut order: Vec<&Arc<Server>> = servers.iter().collect();
    order.sort_by_key(|server| server.shunned(now));
    let mut last = ExchangeError::Nobody;
    let mut attempts = 0;
    while !order.is_empty() && attempts < ATTEMPTS {
        let mut silent = Vec::with_capacity(order.len());
        for server in order {
            if Instant::now() >= end {
                return Err(last);
            }
            attempts += 1;
            match server.ask(ask, end).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    if matches!(error, ExchangeError::Timeout(_)) {
                        silent.push(server);
                    }
                    last = error;
                }
            }
        }
        order = silent;
    }
    Err(last)
}

async fn exchange(server: SocketAddr, ask: &Ask, edns: bool, end: Instant) -> Result<Message, ExchangeError> {
    let id = rand::random();
    let query = encode(id, ask, edns);
    let deadline = end.min(Instant::now() + UDP_PATIENCE);
    let answer = match timeout_at(deadline, over_udp(server, id, ask, &query)).await {
        Ok(answer) => answer.map_err(|error| ExchangeError::Io(server, error))?,
        Err(_) => return Err(ExchangeError::Timeout(server)),
    };
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let deadline = end.max(Instant::now() + UDP_PATIENCE).min(Instant::now() + TCP_PATIENCE);
    match timeout_at(deadline, over_tcp(server, &query)).await {
        Ok(Ok(bytes)) => match_answer(id, ask, &bytes).ok_or(ExchangeError::Mismatch(server)),
        Ok(Err(error)) => Err(ExchangeError::Io(server, error)),
        Err(_) => Err(ExchangeError::Timeout(server)),
    }
}

/// A socket of its own for each question: the port is as unpredictable as the ID, and only the server can be heard.
async fn over_udp(server: SocketAddr, id: u16, ask: &Ask, query: &[u8]) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if let Some(answer) = match_answer(id, ask, &buffer[..len]) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let len = u16::try_from(query.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&[&len.to_be_bytes(), query].concat()).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The query in wire format: RD set, CD and DO as the client had them.
fn encode(id: u16, ask: &Ask, edns: bool) -> Vec<u8> {
    let cd = if ask.flags & dns_key::CD != 0 { 0x10 } else { 0 };
    let mut query = Vec::with_capacity(12 + ask.name.len() + 4 + 11);
    query.extend_from_slice(&id.to_be_bytes());
    query.extend_from_slice(&[1, cd, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
    query.extend_from_slice(&ask.name);
    query.extend_from_slice(&ask.qtype.to_be_bytes());
    query.extend_from_slice(&[0, 1]);
    if edns {
        let dnssec_ok = if ask.flags & dns_key::DO != 0 { 0x80 } else { 0 };
        query.extend_from_slice(&[0, 0, 41]);
        query.extend_from_slice(&DNS_MAX_UDP.to_be_bytes());
        query.extend_from_slice(&[0, 0, dnssec_ok, 0, 0, 0]);
    }
    query
}

/// The message, when it answers this question: a response with the ID and the question asked, the name in whatever case.
/// A server that cannot read the question may leave it out of its FORMERR, and a cut answer may end anywhere behind the question.
fn match_answer(id: u16, ask: &Ask, bytes: &[u8]) -> Option<Message> {
    let header: &[u8; 12] = bytes.first_chunk()?;
    if header[..2] != id.to_be_bytes() || header[2] & 0xf8 != 0x80 {
        return None;
    }
    if header[4..6] == [0, 0] && header[3] & 0xf == 1 {
        return Message::from_vec(bytes).ok();
    }
    let question = bytes.get(12..12 + ask.name.len() + 4)?;
    let (name, rest) = question.split_at(ask.name.len());
    if header[4..6] != [0, 1]
        || !name.eq_ignore_ascii_case(&ask.name)
        || rest[..2] != ask.qtype.to_be_bytes()
        || rest[2..] != [0, 1]
    {
        return None;
    }
    let cut = header[2] & 2 != 0;
    let answer = Message::from_vec(bytes).ok().or_else(|| {
        cut.then(|| {
            let mut empty = Message::response(id, hickory_proto::op::OpCode::Query);
            empty.metadata.truncation = true;
            empty
        })
    })?;
    (answer.metadata.message_type == MessageType::Response).then_some(answer)
}
