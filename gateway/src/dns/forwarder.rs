//! What happens to a query: the zone, the cache, the servers of the zone rule; and what everybody gets who asks for what is none of
//! these.

use std::{
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use gateway_common::dns::{
    build::Answer,
    emit::{Request, Sending, Ttls},
    resolve::age,
    wire,
};
use hickory_proto::op::ResponseCode;

use super::{
    cache::{Cache, Outcome},
    clock,
    learn::{Learnt, Rr},
    query::{Odd, Query, request_for},
    rules::Rules,
    stats::{Dropped, Source, Stats, Transport},
    upstream::{Ask, Server},
    views::ViewTable,
    zone::{Found, Zone},
};

/// TTL of stale answers (RFC 8767 section 4).
const STALE_TTL: u32 = 30;
/// Longest chain of aliases inside the zone.
const MAX_ALIASES: usize = 8;

/// Everything that answers.
pub struct Forwarder {
    /// The cluster zone.
    pub zone: Zone,
    /// Learnt answers.
    pub cache: Arc<Cache>,
    /// Who is asked for other names.
    pub rules: Rules,
    /// Counters.
    pub stats: Arc<Stats>,
    views: RwLock<Arc<ViewTable>>,
    turn: AtomicU64,
}

/// What to do with a query.
pub enum Step {
    /// Nothing: its sender gets no answer.
    Drop,
    /// Send this.
    Reply(Vec<u8>),
    /// Servers must be asked.
    Wait(Box<Waiting>),
}

/// A query whose answer others have.
pub struct Waiting {
    query: Query,
    /// The query itself, or one for what its aliases led to.
    target: Request,
    ask: Ask,
    servers: Arc<[Arc<Server>]>,
    /// Aliases of the zone that led to `target`.
    aliases: Vec<Rr>,
}

impl Forwarder {
    /// From its parts.
    pub fn new(zone: Zone, cache: Arc<Cache>, rules: Rules, views: ViewTable, stats: Arc<Stats>) -> Self {
        Self { zone, cache, rules, stats, views: RwLock::new(Arc::new(views)), turn: AtomicU64::new(0) }
    }

    /// Replaces the views.
    pub fn set_views(&self, views: ViewTable) {
        *self.views.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(views);
    }

    /// The view of a source; `None`: a stranger.
    pub fn view_of(&self, source: IpAddr) -> Option<u8> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).of(source)
    }

    /// Begins with a query, and ends with it when nobody else must be asked.
    pub fn begin(&self, packet: &[u8], source: IpAddr, transport: Transport) -> Step {
        self.stats.query(transport);
        let Some(view) = self.view_of(source) else {
            self.stats.dropped(Dropped::Stranger);
            return Step::Drop;
        };
        let query = match Query::parse(packet) {
            Ok(query) => query,
            Err(Odd::Drop) => {
                self.stats.dropped(Dropped::NotAQuery);
                return Step::Drop;
            }
            Err(Odd::Reply { message, rcode }) => {
                self.stats.answer(Source::Local, rcode);
                return Step::Reply(message);
            }
        };
        self.answer(query, view, transport)
    }

    fn answer(&self, query: Query, view: u8, transport: Transport) -> Step {
        let mut aliases: Vec<Rr> = Vec::new();
        let mut target = None;
        while aliases.len() <= MAX_ALIASES {
            let request = target.as_ref().unwrap_or(&query.request);
            match self.zone.find(request, view, query.any) {
                Found::Answer(answer) => return self.zone_answer(&query, request, &answer, &aliases, transport),
                Found::Negative(zone, rcode) if aliases.is_empty() => {
                    let message = request.emit_negative(&zone, rcode, limit(request, transport));
                    return self.send(&query, message, Source::Zone, rcode);
                }
                Found::Negative(zone, rcode) => {
                    let message = request.emit_negative(&zone, rcode, usize::from(u16::MAX));
                    return self.after_aliases(&query, &message, &aliases, Source::Zone, transport);
                }
                Found::Alias(alias) => {
                    // The target is spelt out; the next question is for it.
                    let next = request_for(&alias.rdata, query.request.query.qtype, query.request.query.bits);
                    aliases.push(alias);
                    let Some(next) = next else { return self.fail(&query, ResponseCode::ServFail) };
                    target = Some(next);
                }
                Found::Elsewhere => {
                    let target = target.unwrap_or_else(|| query.request.clone());
                    return self.elsewhere(query, target, aliases, transport);
                }
                Found::Unknown => break,
            }
        }
        self.fail(&query, ResponseCode::ServFail)
    }

    fn zone_answer(
        &self,
        query: &Query,
        request: &Request,
        answer: &Answer,
        aliases: &[Rr],
        transport: Transport,
    ) -> Step {
        let rcode = answer.head().header & wire::RCODE;
        let turn = self.turn();
        if aliases.is_empty() {
            let sending = Sending { limit: limit(request, transport), ttls: Ttls::Aged(0), turn };
            return self.send(query, request.emit(answer, &sending), Source::Zone, rcode);
        }
        let message = request.emit(answer, &Sending::tcp(0, turn));
        self.after_aliases(query, &message, aliases, Source::Zone, transport)
    }

    /// The answer for the last alias's target, put behind the aliases.
    fn after_aliases(
        &self,
        query: &Query,
        message: &[u8],
        aliases: &[Rr],
        source: Source,
        transport: Transport,
    ) -> Step {
        let name = query.request.name();
        match Learnt::of_message(message).and_then(|learnt| learnt.build_after(name, aliases)) {
            Ok(answer) => {
                let sending = Sending { limit: limit(&query.request, transport), ttls: Ttls::Aged(0), turn: 0 };
                let rcode = answer.head().header & wire::RCODE;
                self.send(query, query.request.emit(&answer, &sending), source, rcode)
            }
            Err(error) => {
                tracing::warn!("following an alias: {error}");
                self.fail(query, ResponseCode::ServFail)
            }
        }
    }

    /// A name outside the zone, asked for or aliased to.
    fn elsewhere(&self, query: Query, target: Request, aliases: Vec<Rr>, transport: Transport) -> Step {
        let Some(servers) = self.rules.servers_for(target.name()) else {
            // The alias is true, and all that may be said.
            return if aliases.is_empty() {
                self.fail(&query, ResponseCode::Refused)
            } else {
                self.after_aliases(&query, &target.emit_empty(wire::NOERROR), &aliases, Source::Zone, transport)
            };
        };
        if query.any {
            return match self.zone.minimal_any(query.request.name()) {
                Some(answer) => self.zone_answer(&query, &query.request, &answer, &[], transport),
                None => self.fail(&query, ResponseCode::ServFail),
            };
        }
        let ask = Ask { qtype: target.query.qtype, flags: target.query.bits, name: target.name().into() };
        let waiting = Waiting { servers: Arc::clone(servers), query, target, ask, aliases };
        match self.cache.peek(&waiting.ask, clock::now()) {
            Some(outcome) => self.end(&waiting, &outcome, transport),
            None => Step::Wait(Box::new(waiting)),
        }
    }

    /// Ends with a query that waits for others.
    pub async fn finish(&self, waiting: &Waiting, transport: Transport) -> Step {
        let outcome = self.cache.get(waiting.ask.clone(), &waiting.servers).await;
        self.end(waiting, &outcome, transport)
    }

    fn end(&self, waiting: &Waiting, outcome: &Outcome, transport: Transport) -> Step {
        let Waiting { query, target, aliases, .. } = waiting;
        let Outcome::Answer(answer, source) = outcome else { return self.fail(query, ResponseCode::ServFail) };
        let ttls = match source {
            Source::Stale => Ttls::Fixed(STALE_TTL),
            _ => Ttls::Aged(age(answer.head().stored, clock::now())),
        };
        let limit = if aliases.is_empty() { limit(target, transport) } else { usize::from(u16::MAX) };
        let message = target.emit(answer, &Sending { limit, ttls, turn: self.turn() });
        if aliases.is_empty() {
            self.send(query, message, *source, answer.head().header & wire::RCODE)
        } else {
            self.after_aliases(query, &message, aliases, *source, transport)
        }
    }

    fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, query: &Query, message: Vec<u8>, source: Source, rcode: u16) -> Step {
        self.stats.answer(source, rcode);
        Step::Reply(query.finish(message))
    }

    fn fail(&self, query: &Query, rcode: ResponseCode) -> Step {
        let rcode = u16::from(rcode);
        self.send(query, query.request.emit_empty(rcode), Source::Local, rcode)
    }
}

/// The largest answer that the client takes.
fn limit(request: &Request, transport: Transport) -> usize {
    match transport {
        Transport::Udp => request.query.limit(),
        Transport::Tcp => usize::from(u16::MAX),
    }
}
