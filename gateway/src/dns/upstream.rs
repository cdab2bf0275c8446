//! Questions to other DNS servers, and how these are doing: in the clear ([`plain`]) or over TLS ([`tls`]); what does not match the
//! question is not an answer ([`message`]).

mod message;
mod plain;

pub use self::message::match_answer;
pub mod tls;

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::rdata::opt::EdnsOption,
};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::{clock, rules::Route};
use message::Opt;
use tls::{Channel, Trust, TrustError};

/// Where a server is, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// Its address.
    pub addr: SocketAddr,
    /// Over TLS: the name, or the address, that its certificate must be for.
    pub tls: Option<Arc<str>>,
}

impl From<SocketAddr> for Upstream {
    fn from(addr: SocketAddr) -> Self {
        Self { addr, tls: None }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tls {
            Some(name) => write!(f, "tls://{}#{name}", self.addr),
            None => self.addr.fmt(f),
        }
    }
}

/// How long one server may take to answer over UDP before the next one is asked.
const UDP_PATIENCE: Duration = Duration::from_millis(1500);
/// How long a TCP exchange may take after a cut answer.
const TCP_PATIENCE: Duration = Duration::from_millis(3000);
/// How long an answer over TLS may take, a new session included: three round trips and the server's own work.
const TLS_PATIENCE: Duration = Duration::from_millis(2000);
/// How long all servers together may take: below the five seconds after which stub resolvers give up.
const PATIENCE: Duration = Duration::from_millis(4500);
/// A question is asked at least this often before it fails for want of an answer: datagrams get lost.
const ATTEMPTS: usize = 3;
/// A server that failed is tried again after a second, then after twice that, at last every minute. Until it answers, clients are
/// asked to wait for it only when the others failed too.
const BACK_OFF: u64 = clock::seconds(1);
const LONGEST_BACK_OFF: u64 = clock::seconds(60);

/// Answers over UDP that nobody waits for alone any more: `None` is one that must be asked for over TCP.
type Late = FuturesUnordered<Pin<Box<dyn Future<Output = io::Result<Option<Message>>> + Send>>>;

/// What is asked: the question and the bits of the query that change its answer. Class IN.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ask {
    /// Wire format with its root byte, folded to lower case.
    pub name: Box<[u8]>,
    /// Query type.
    pub qtype: u16,
    /// [`dns_key`](gateway_common::maps::dns_key) bits: DO and CD.
    pub flags: u8,
    /// Number of the rule by which it is asked: clients of other views may be told otherwise.
    pub via: u32,
}

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Nothing that matches the question came in time.
    #[error("{0}: no answer in time")]
    Timeout(Upstream),
    /// It cannot be reached, or proved to be the one that was meant.
    #[error("{0}: {1}")]
    Network(Upstream, String),
    /// It answered that it cannot, or will not.
    #[error("{server} answered {code}")]
    Refused {
        /// Who.
        server: Upstream,
        /// What.
        code: ResponseCode,
        /// Why, when it said so: the code of an Extended DNS Error.
        info: Option<u16>,
    },
    /// It answered over TCP with something that is not an answer to the question.
    #[error("{0}: not an answer to the question")]
    Mismatch(Upstream),
    /// There was nobody to ask.
    #[error("no server to ask")]
    Nobody,
}

/// A server and how it has been doing.
#[derive(Debug)]
pub struct Server {
    upstream: Upstream,
    /// Over TLS: its session.
    channel: Option<Channel>,
    last_error: Mutex<Option<String>>,
    queries: AtomicU64,
    failures: AtomicU64,
    consecutive: AtomicU32,
    /// When it is to be tried again.
    try_at: AtomicU64,
    rtt_us: AtomicU64,
}

/// A server's health, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerInfo {
    /// `ip:port`, or `tls://ip:port#name`.
    pub address: String,
    /// Its last answer was a good one, or it was not asked yet.
    pub healthy: bool,
    /// Questions sent.
    pub queries: u64,
    /// Questions without a usable answer.
    pub failures: u64,
    /// How long its last answer took, in microseconds; 0: none yet.
    pub rtt_us: u64,
    /// TLS sessions begun.
    pub sessions: u64,
    /// It is one of the cluster's own DNS, and known for that alone.
    pub cluster: bool,
    /// Why its last question failed; absent when the last one did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Server {
    /// A server that has not been asked yet.
    ///
    /// # Errors
    /// When it is to be spoken to over TLS and what its certificate must be for is no name.
    pub fn new(upstream: Upstream, trust: &Trust) -> Result<Self, TrustError> {
        let channel = upstream.tls.as_deref().map(|name| Channel::new(upstream.addr, name, trust)).transpose()?;
        Ok(Self { channel, ..Self::plain(upstream) })
    }

    /// One that is spoken to in the clear and has not been asked yet.
    fn plain(upstream: Upstream) -> Self {
        Self {
            upstream,
            channel: None,
            last_error: Mutex::default(),
            queries: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            consecutive: AtomicU32::new(0),
            try_at: AtomicU64::new(0),
            rtt_us: AtomicU64::new(0),
        }
    }

    /// A server at this address, spoken to in the clear.
    pub fn at(addr: SocketAddr) -> Self {
        Self::plain(addr.into())
    }

    /// Where it is.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Its health, for people.
    pub fn info(&self) -> ServerInfo {
        ServerInfo {
            address: self.upstream.to_string(),
            healthy: self.is_well(),
            queries: self.queries.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            rtt_us: self.rtt_us.load(Ordering::Relaxed),
            sessions: self.channel.as_ref().map_or(0, Channel::sessions),
            cluster: false,
            error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Its last answer was a good one, or it was not asked yet.
    pub fn is_well(&self) -> bool {
        self.consecutive.load(Ordering::Relaxed) == 0
    }

    fn back_off(&self) -> u64 {
        let doublings = self.consecutive.load(Ordering::Relaxed).saturating_sub(1).min(10);
        (BACK_OFF << doublings).min(LONGEST_BACK_OFF)
    }

    /// Whether it is time to see how a server is that failed; says so once.
    fn is_due(&self, now: u64) -> bool {
        let at = self.try_at.load(Ordering::Relaxed);
        !self.is_well()
            && now >= at
            && self.try_at.compare_exchange(at, now + self.back_off(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn succeeded(&self, began: Instant) {
        if self.consecutive.swap(0, Ordering::Relaxed) > 0 {
            tracing::info!(server = %self.upstream, "the DNS server answers again");
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.rtt_us.store(us.max(1), Ordering::Relaxed);
    }

    fn failed(&self, error: &ExchangeError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let error = error.to_string();
        if self.consecutive.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(%error, "a DNS server failed: it is asked last until it answers");
        }
        self.try_at.store(clock::now() + self.back_off(), Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// One question to this server: a usable answer, or why there is none.
    /// What it may yet say after the time for one server goes to `late`.
    async fn ask(
        &self,
        ask: &Ask,
        mixed_case: bool,
        deadline: Instant,
        late: &mut Late,
    ) -> Result<Message, ExchangeError> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let result = match self.exchange(ask, true, mixed_case, deadline, late).await {
            // A server from before EDNS (RFC 6891 section 7).
            Ok(answer) if answer.metadata.response_code == ResponseCode::FormErr && answer.edns.is_none() => {
                self.exchange(ask, false, mixed_case, deadline, late).await
            }
            other => other,
        };
        let result = result.and_then(|answer| match answer.metadata.response_code {
            code if !is_usable(code) => {
                Err(ExchangeError::Refused { server: self.upstream.clone(), code, info: extended_error(&answer) })
            }
            _ => Ok(answer),
        });
        match &result {
            Ok(_) => self.succeeded(began),
            Err(error) => self.failed(error),
        }
        result
    }

    async fn exchange(
        &self,
        ask: &Ask,
        edns: bool,
        mixed_case: bool,
        end: Instant,
        late: &mut Late,
    ) -> Result<Message, ExchangeError> {
        match &self.channel {
            Some(channel) => {
                let opt = if edns { Opt::Padded } else { Opt::Absent };
                channel.ask(&self.upstream, ask, opt, end.min(Instant::now() + TLS_PATIENCE)).await
            }
            None => {
                let opt = if edns { Opt::Plain } else { Opt::Absent };
                plain::exchange(&self.upstream, ask, opt, mixed_case, end, late).await
            }
        }
    }
}

const fn is_usable(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// The first usable answer to an earlier question, for as long as there are such that may come.
async fn next_late(late: &mut Late) -> Option<Message> {
    while let Some(answer) = late.next().await {
        if let Ok(Some(answer)) = answer
            && !answer.metadata.truncation
            && is_usable(answer.metadata.response_code)
        {
            return Some(answer);
        }
    }
    None
}

/// The code of the first Extended DNS Error in a message.
fn extended_error(message: &Message) -> Option<u16> {
    let options = message.edns.as_ref()?.options();
    options.as_ref().iter().find_map(|(_, option)| match option {
        EdnsOption::Unknown(code, data) if *code == super::errors::OPTION => {
            data.first_chunk().map(|code| u16::from_be_bytes(*code))
        }
        _ => None,
    })
}

/// Asks the servers of a rule in turn, those that failed and have not answered since last, until one gives a usable answer: NOERROR or
/// NXDOMAIN. Servers that did not answer are asked again, unless they are gone from the rule meanwhile, and so are those that came;
/// those that said no are not. What a slow server says to an earlier question is as good.
///
/// # Errors
/// What the last server did, when none gave an answer within `patience` or the resolver's own limit.
pub async fn ask(route: &Route, ask: &Ask, patience: Option<Duration>) -> Result<Message, ExchangeError> {
    let end = Instant::now() + patience.map_or(PATIENCE, |patience| patience.min(PATIENCE));
    let mut order = route.servers();
    let mut known = order.clone();
    order.sort_by_key(|server| !server.is_well());
    if order.first().is_some_and(|server| server.is_well()) {
        try_again(&order, route, ask);
    }
    let mut last = ExchangeError::Nobody;
    let (mut attempts, mut late) = (0, Late::new());
    while !order.is_empty() && attempts < ATTEMPTS {
        let mut silent = Vec::with_capacity(order.len());
        for server in order {
            if Instant::now() >= end {
                return Err(last);
            }
            attempts += 1;
            let mut later = Late::new();
            let answer = tokio::select! {
                answer = server.ask(ask, route.mixed_case, end, &mut later) => answer,
                Some(answer) = next_late(&mut late) => return Ok(answer),
            };
            late.extend(later);
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    if matches!(error, ExchangeError::Timeout(_)) {
                        silent.push(server);
                    }
                    last = error;
                }
            }
        }
        let now = route.servers();
        silent.retain(|server| holds(&now, server));
        order = now.into_iter().filter(|server| !holds(&known, server)).collect();
        known.extend(order.iter().cloned());
        order.append(&mut silent);
    }
    // Servers that said no have been passed over at once: who is slow still has time.
    match timeout_at(end, next_late(&mut late)).await {
        Ok(Some(answer)) => Ok(answer),
        _ => Err(last),
    }
}

fn holds(servers: &[Arc<Server>], server: &Arc<Server>) -> bool {
    servers.iter().any(|one| Arc::ptr_eq(one, server))
}

/// Asks servers that failed and are due the same question, while the client has its answer from another: how they are is found out
/// at nobody's cost.
fn try_again(servers: &[Arc<Server>], route: &Route, ask: &Ask) {
    let now = clock::now();
    for server in servers.iter().filter(|server| server.is_due(now)) {
        let (server, ask, mixed_case) = (Arc::clone(server), ask.clone(), route.mixed_case);
        tokio::spawn(async move {
            // One that is slow is not well.
            server.ask(&ask, mixed_case, Instant::now() + PATIENCE, &mut Late::new()).await.ok()
        });
    }
}
