//! What happens to a query: the zone, the cache, the servers of the zone rule; and what everybody gets who asks for what is none of
//! these.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use gateway_common::dns::{
    build::Answer,
    emit::{Request, Sending, Ttls},
    limit::Verdict,
    log::Asked,
    resolve::age,
    wire,
};
use hickory_proto::op::ResponseCode;

use super::{
    cache::{Cache, Outcome},
    clock, errors,
    errors::Extended,
    learn::{Learnt, Rr},
    limit::Limiter,
    log::{Entry, QueryLog},
    query::{Odd, Query, request_for},
    rules::{Action, Route, Rules},
    stats::{Dropped, Source, Stats, Transport},
    upstream::Ask,
    views::ViewTable,
    zone::{Found, TYPE_ANY, Zone},
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
    /// Counters.
    pub stats: Arc<Stats>,
    views: RwLock<Arc<ViewTable>>,
    rules: RwLock<Arc<Rules>>,
    log: Option<QueryLog>,
    limiter: Option<Limiter>,
    turn: AtomicU64,
}

/// Who asks, and how.
#[derive(Clone, Copy, Debug)]
struct Asker {
    source: IpAddr,
    view: u8,
    transport: Transport,
    /// When the query came; only of those that are logged.
    began: Option<(SystemTime, Instant)>,
}

/// What is said, beside the records.
struct Said {
    source: Source,
    rcode: u16,
    why: Option<Extended>,
}

impl Said {
    fn new(source: Source, rcode: u16) -> Self {
        Self { source, rcode, why: None }
    }
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
    asker: Asker,
    /// The query itself, or one for what its aliases led to.
    target: Request,
    ask: Ask,
    route: Arc<Route>,
    /// The views whose clients get the same.
    views: u64,
    /// Aliases of the zone that led to `target`.
    aliases: Vec<Rr>,
}

impl Forwarder {
    /// From its parts.
    pub fn new(zone: Zone, cache: Arc<Cache>, rules: Rules, views: ViewTable, stats: Arc<Stats>) -> Self {
        Self {
            zone,
            cache,
            stats,
            views: RwLock::new(Arc::new(views)),
            rules: RwLock::new(Arc::new(rules)),
            log: None,
            limiter: None,
            turn: AtomicU64::new(0),
        }
    }

    /// With a query log.
    pub fn with_log(self, log: Option<QueryLog>) -> Self {
        Self { log, ..self }
    }

    /// With a limit on answers over UDP.
    pub fn with_limit(self, limiter: Option<Limiter>) -> Self {
        Self { limiter, ..self }
    }

    /// Opens the query log's file anew.
    pub fn reopen_log(&self) {
        if let Some(log) = &self.log {
            log.reopen();
        }
    }

    /// Logs a query that the kernel answered.
    pub fn log_kernel(&self, asked: &Asked) {
        let Some(log) = &self.log else { return };
        let age = Duration::from_nanos(clock::now().saturating_sub(asked.at));
        let now = SystemTime::now();
        log.write(Entry {
            time: now.checked_sub(age).unwrap_or(now),
            client: Ipv6Addr::from(asked.source()).into(),
            view: u8::try_from(asked.view).unwrap_or(u8::MAX),
            transport: Transport::Udp,
            name: asked.name().into(),
            qtype: asked.qtype,
            rcode: asked.flags & wire::RCODE,
            source: Source::Kernel,
            took: Duration::ZERO,
        });
    }

    /// Lines that the query log lost.
    pub fn log_lost(&self) -> u64 {
        self.log.as_ref().map_or(0, QueryLog::lost)
    }

    /// Who is asked for other names.
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the rules.
    pub fn set_rules(&self, rules: Arc<Rules>) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
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
        let logged = self.log.as_ref().is_some_and(QueryLog::samples);
        let began = logged.then(|| (SystemTime::now(), Instant::now()));
        let asker = Asker { source, view, transport, began };
        let parsed = Query::parse(packet);
        if parsed == Err(Odd::Drop) {
            self.stats.dropped(Dropped::NotAQuery);
            return Step::Drop;
        }
        // Before anybody is asked: what is above the rate is not worth an upstream's time either.
        let verdict = match &self.limiter {
            Some(limiter) if transport == Transport::Udp => limiter.take(source, view),
            _ => Verdict::Send,
        };
        if verdict == Verdict::Drop {
            self.stats.dropped(Dropped::Limited);
            return Step::Drop;
        }
        let query = match parsed {
            Ok(query) if verdict == Verdict::Slip => {
                let message = query.request.emit_slip();
                return self.send(&query, message, &Said::new(Source::Slip, wire::NOERROR), &asker);
            }
            Ok(query) => query,
            Err(Odd::Drop) => return Step::Drop,
            // Refusals and errors have nothing that TCP could add, and are no longer than their queries.
            Err(Odd::Reply { message, rcode }) => {
                self.stats.answer(Source::Local, rcode);
                self.note(&asker, None, Source::Local, rcode);
                return Step::Reply(message);
            }
        };
        self.answer(query, &asker)
    }

    fn answer(&self, query: Query, asker: &Asker) -> Step {
        self.follow(query, Vec::new(), None, asker)
    }

    /// Answers a query whose aliases have led to `target` so far.
    fn follow(&self, query: Query, mut aliases: Vec<Rr>, mut target: Option<Request>, asker: &Asker) -> Step {
        while aliases.len() <= MAX_ALIASES {
            let request = target.as_ref().unwrap_or(&query.request);
            match self.zone.find(request, asker.view, query.any) {
                Found::Answer(answer) => return self.zone_answer(&query, request, &answer, &aliases, asker),
                Found::Negative(zone, rcode) if aliases.is_empty() => {
                    let message = request.emit_negative(&zone, rcode, limit(request, asker.transport));
                    return self.send(&query, message, &Said::new(Source::Zone, rcode), asker);
                }
                Found::Negative(zone, rcode) => {
                    let message = request.emit_negative(&zone, rcode, usize::from(u16::MAX));
                    return self.after_aliases(&query, &message, &aliases, Source::Zone, asker);
                }
                Found::Alias(alias) => {
                    // The target is spelt out; the next question is for it.
                    let next = request_for(&alias.rdata, query.request.query.qtype, query.request.query.bits);
                    aliases.push(alias);
                    let Some(next) = next else { return self.fail(&query, ResponseCode::ServFail, None, asker) };
                    target = Some(next);
                }
                Found::Elsewhere => {
                    let rules = self.rules();
                    let route = rules.route(request.name(), asker.view);
                    let Some(alias) = route.and_then(|route| self.zone.redirected(request, &route.action, query.any))
                    else {
                        let target = target.unwrap_or_else(|| query.request.clone());
                        return self.elsewhere(query, target, aliases, asker);
                    };
                    let next = request_for(&alias.rdata, request.query.qtype, request.query.bits);
                    aliases.push(alias);
                    let Some(next) = next else { return self.fail(&query, ResponseCode::ServFail, None, asker) };
                    target = Some(next);
                }
                Found::Unknown => {
                    return self.fail(&query, ResponseCode::ServFail, Some(errors::NOT_READY), asker);
                }
            }
        }
        self.fail(&query, ResponseCode::ServFail, None, asker)
    }

    fn zone_answer(&self, query: &Query, request: &Request, answer: &Answer, aliases: &[Rr], asker: &Asker) -> Step {
        let rcode = answer.head().header & wire::RCODE;
        let turn = self.turn();
        if aliases.is_empty() {
            let sending = Sending { limit: limit(request, asker.transport), ttls: Ttls::Aged(0), turn };
            return self.send(query, request.emit(answer, &sending), &Said::new(Source::Zone, rcode), asker);
        }
        let message = request.emit(answer, &Sending::tcp(0, turn));
        self.after_aliases(query, &message, aliases, Source::Zone, asker)
    }

    /// The answer for the last alias's target, put behind the aliases.
    fn after_aliases(&self, query: &Query, message: &[u8], aliases: &[Rr], source: Source, asker: &Asker) -> Step {
        let name = query.request.name();
        match Learnt::of_message(message).and_then(|learnt| learnt.build_after(name, aliases)) {
            Ok(answer) => {
                let sending = Sending { limit: limit(&query.request, asker.transport), ttls: Ttls::Aged(0), turn: 0 };
                let rcode = answer.head().header & wire::RCODE;
                self.send(
                    query,
                    query.request.emit(&answer, &sending),
                    &Said { source, rcode, why: stale(source, rcode) },
                    asker,
                )
            }
            Err(error) => {
                tracing::warn!("following an alias: {error}");
                self.fail(query, ResponseCode::ServFail, None, asker)
            }
        }
    }

    /// A name outside the zone, asked for or aliased to.
    fn elsewhere(&self, query: Query, target: Request, aliases: Vec<Rr>, asker: &Asker) -> Step {
        let rules = self.rules();
        let route = rules.route(target.name(), asker.view);
        match route.map(|route| (&route.action, route)) {
            Some((Action::Forward(_), _)) if query.any => match self.zone.minimal_any(query.request.name()) {
                Some(answer) => self.zone_answer(&query, &query.request, &answer, &[], asker),
                None => self.fail(&query, ResponseCode::ServFail, None, asker),
            },
            Some((Action::Forward(_), route)) => {
                let Query { request, .. } = &query;
                let ask = Ask {
                    qtype: request.query.qtype,
                    flags: request.query.bits,
                    name: target.name().into(),
                    via: route.id,
                };
                if let Some(outcome) = self.cache.peek(&ask, clock::now()) {
                    return self.end(&query, asker, &target, &aliases, &outcome);
                }
                let views = rules.views_of(target.name(), route.id);
                let route = Arc::clone(route);
                Step::Wait(Box::new(Waiting { query, asker: *asker, target, ask, route, views, aliases }))
            }
            Some((action @ (Action::Addresses(_) | Action::Alias(_)), route)) => {
                let message = self.zone.redirect(&target, &route.zone, action, query.any);
                match message {
                    Some((message, _)) if !aliases.is_empty() => {
                        self.after_aliases(&query, &message, &aliases, Source::Rule, asker)
                    }
                    Some((message, rcode)) => self.redirected(&query, message, rcode, asker),
                    None => self.fail(&query, ResponseCode::ServFail, None, asker),
                }
            }
            // The alias is true, and all that may be said.
            _ if !aliases.is_empty() => {
                self.after_aliases(&query, &target.emit_empty(wire::NOERROR), &aliases, Source::Zone, asker)
            }
            route => {
                // A rule for just this, or none for anything.
                let ruled = route.is_some_and(|(_, route)| *route.zone != [0]);
                let why = if ruled { errors::BLOCKED } else { errors::PROHIBITED };
                self.fail(&query, ResponseCode::Refused, Some(why), asker)
            }
        }
    }

    /// Ends with what a rule says about a name itself.
    fn redirected(&self, query: &Query, message: Vec<u8>, rcode: u16, asker: &Asker) -> Step {
        if message.len() <= limit(&query.request, asker.transport) {
            return self.send(query, message, &Said::new(Source::Rule, rcode), asker);
        }
        self.after_aliases(query, &message, &[], Source::Rule, asker)
    }

    /// Ends with a query that waits for others.
    pub async fn finish(&self, waiting: &Waiting) -> Step {
        let mut step = self.finish_one(waiting).await;
        // What it is an alias of may be others', too. Each time there are more aliases, of which there is an end.
        while let Step::Wait(next) = step {
            step = self.finish_one(&next).await;
        }
        step
    }

    async fn finish_one(&self, waiting: &Waiting) -> Step {
        let outcome = self.cache.get(waiting.ask.clone(), &waiting.route, waiting.views).await;
        let Waiting { query, asker, target, aliases, .. } = waiting;
        self.end(query, asker, target, aliases, &outcome)
    }

    /// Ends with a query for which there is no place to wait in.
    pub fn overloaded(&self, waiting: &Waiting) -> Step {
        self.fail(&waiting.query, ResponseCode::ServFail, Some(errors::OVERLOAD), &waiting.asker)
    }

    fn end(&self, query: &Query, asker: &Asker, target: &Request, aliases: &[Rr], outcome: &Outcome) -> Step {
        let (answer, source, leads) = match outcome {
            Outcome::Answer(answer, source) => (answer, source, None),
            Outcome::Alias(answer, source, leads) => (answer, source, Some(leads)),
            Outcome::Failed(why) => return self.fail(query, ResponseCode::ServFail, Some(*why), asker),
        };
        let ttls = match source {
            Source::Stale => Ttls::Fixed(STALE_TTL),
            // It has just come: as its server gave it, however busy this machine is.
            Source::Upstream => Ttls::Aged(0),
            _ => Ttls::Aged(age(answer.head().stored, clock::now())),
        };
        let whole = aliases.is_empty() && leads.is_none();
        let limit = if whole { limit(target, asker.transport) } else { usize::from(u16::MAX) };
        let message = target.emit(answer, &Sending { limit, ttls, turn: self.turn() });
        if let Some(leads) = leads {
            return self.after_learnt(query, &message, aliases, leads, asker);
        }
        if aliases.is_empty() {
            let rcode = answer.head().header & wire::RCODE;
            self.send(query, message, &Said { source: *source, rcode, why: stale(*source, rcode) }, asker)
        } else {
            self.after_aliases(query, &message, aliases, *source, asker)
        }
    }

    /// Goes on where learnt aliases led into the cluster's zone: who may see what is there is the zone's to say.
    fn after_learnt(&self, query: &Query, message: &[u8], aliases: &[Rr], leads: &[u8], asker: &Asker) -> Step {
        let learnt = Learnt::of_message(message).map(|learnt| [aliases, &learnt.answers].concat());
        let next = request_for(leads, query.request.query.qtype, query.request.query.bits);
        match (learnt, next) {
            (Ok(aliases), Some(next)) => self.follow(query.clone(), aliases, Some(next), asker),
            _ => self.fail(query, ResponseCode::ServFail, None, asker),
        }
    }

    fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, query: &Query, mut message: Vec<u8>, said: &Said, asker: &Asker) -> Step {
        self.stats.answer(said.source, said.rcode);
        self.note(asker, Some(query), said.source, said.rcode);
        if let Some(why) = said.why.filter(|_| query.request.query.edns) {
            why.add_to(&mut message, limit(&query.request, asker.transport));
        }
        Step::Reply(query.finish(message))
    }

    fn fail(&self, query: &Query, rcode: ResponseCode, why: Option<Extended>, asker: &Asker) -> Step {
        let rcode = u16::from(rcode);
        let said = Said { source: Source::Local, rcode, why };
        self.send(query, query.request.emit_empty(rcode), &said, asker)
    }

    /// Logs an answered query; `None`: one that could not be read.
    fn note(&self, asker: &Asker, query: Option<&Query>, source: Source, rcode: u16) {
        let (Some(log), Some((time, began))) = (&self.log, asker.began) else { return };
        log.write(Entry {
            time,
            client: asker.source,
            view: asker.view,
            transport: asker.transport,
            name: query.map(|query| query.request.name().into()).unwrap_or_default(),
            qtype: query.map_or(0, |query| if query.any { TYPE_ANY } else { query.request.query.qtype }),
            rcode,
            source,
            took: began.elapsed(),
        });
    }
}

/// Why a stale answer is one.
fn stale(source: Source, rcode: u16) -> Option<Extended> {
    let why = if rcode == wire::NXDOMAIN { errors::STALE_NXDOMAIN } else { errors::STALE };
    (source == Source::Stale).then_some(why)
}

/// The largest answer that the client takes.
fn limit(request: &Request, transport: Transport) -> usize {
    match transport {
        Transport::Udp => request.query.limit(),
        Transport::Tcp => usize::from(u16::MAX),
    }
}
