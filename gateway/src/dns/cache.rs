//! Learnt answers: kept by their TTLs, bounded, published to the kernel; one question to the servers however many clients wait for it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use gateway_common::{
    dns::{
        build::{Answer, key},
        wire,
    },
    maps::DnsKey,
};
use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RecordType},
};
use tokio::sync::watch;

use super::{
    CacheConfig, clock,
    errors::Extended,
    learn,
    learn::LearnError,
    name,
    publish::Publisher,
    rules::Route,
    stats::{CachedInfo, Source, Stats},
    upstream::{self, Ask},
    zone::ALL_VIEWS,
};

/// A client with a stale answer in reach waits no longer for the servers (RFC 8767 section 5).
const STALE_PATIENCE: Duration = Duration::from_millis(1800);
/// After the servers failed, stale answers are given for so long without asking again.
const STALE_HOLD: u64 = clock::seconds(5);
/// An answer that was asked for so often while it held is worth asking for again before it expires.
const POPULAR: u64 = 3;
/// Answers that hold for less than this are not refreshed early: they are gone between two looks.
const REFRESHED_TTL: u32 = 5;
/// A refreshed answer is asked for when a tenth of its time is left, and no later than this many seconds before its end.
const REFRESH_LEAD: u32 = 2;
/// Questions of the cache's own at one time; what is more expires, and is asked for when a client wants it.
const REFRESHES: usize = 256;
/// Order numbers of answers that were asked for again begin here; those that nobody asked for since they were learnt are numbered
/// below, and expired ones below these: what is numbered lowest is evicted first. A flood of names never comes above those in use.
const LIVE: u64 = 1 << 63;
const NEW: u64 = 1 << 62;
/// What an answer costs beside its name (four times), body and places of TTLs: the maps' nodes, the answer's head.
const OVERHEAD: usize = 640;
/// Popular answers that eviction passes over before it takes the next one all the same.
const SECOND_CHANCES: usize = 16;

/// What a client gets.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// An answer, and where it came from.
    Answer(Arc<Answer>, Source),
    /// As above, aliases that end in this name of the cluster's.
    Alias(Arc<Answer>, Source, Arc<[u8]>),
    /// SERVFAIL, and why.
    Failed(Extended),
}

/// By which rule, and for which views, an answer is known.
type Known = (u32, u64);

struct Slot {
    answer: Arc<Answer>,
    /// The cluster's name that its aliases end in.
    leads: Option<Arc<[u8]>>,
    expires: u64,
    dead: u64,
    order: u64,
    due: (u64, u64),
    /// What is due next is a look at how popular it is.
    fresh: bool,
    kernel: Option<DnsKey>,
    /// Whose clients may get it.
    views: u64,
    kernel_hits: u64,
    hits: u64,
    /// Stale: the servers are not asked again before.
    hold: u64,
}

impl Slot {
    fn outcome(&self, source: Source) -> Outcome {
        outcome(&self.answer, source, self.leads.as_ref())
    }
}

fn outcome(answer: &Arc<Answer>, source: Source, leads: Option<&Arc<[u8]>>) -> Outcome {
    match leads {
        Some(target) => Outcome::Alias(Arc::clone(answer), source, Arc::clone(target)),
        None => Outcome::Answer(Arc::clone(answer), source),
    }
}

#[derive(Default)]
struct Inner {
    slots: HashMap<Arc<Ask>, Slot>,
    order: BTreeMap<u64, Arc<Ask>>,
    /// When something happens to an answer: it expires, or it is too old even to be stale.
    due: BTreeMap<(u64, u64), Arc<Ask>>,
    asking: HashMap<Arc<Ask>, watch::Receiver<Option<Outcome>>>,
    failed: HashMap<Arc<Ask>, (u64, Extended)>,
    /// Bytes that the answers take.
    bytes: usize,
    /// Entries of the kernel that not every view may see, and whose they are: there is one for a name and type.
    owners: HashMap<DnsKey, Arc<Ask>>,
    /// Changes of the zone rules so far.
    epoch: u64,
    next: u64,
}

/// The cache.
pub struct Cache {
    config: CacheConfig,
    /// The cluster's domain: what others say of it is not believed.
    own: Name,
    publisher: Arc<Publisher>,
    stats: Arc<Stats>,
    inner: Mutex<Inner>,
}

impl Cache {
    /// An empty cache. `own` is the cluster's domain.
    pub fn new(config: CacheConfig, own: Name, publisher: Arc<Publisher>, stats: Arc<Stats>) -> Self {
        Self { config, own, publisher, stats, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What can be said without asking anybody.
    pub fn peek(&self, ask: &Ask, now: u64) -> Option<Outcome> {
        self.lock().peek(ask, now)
    }

    /// The answer: from here, or from the rule's servers. Clients that ask the same at one time wait for one question. `views` are
    /// those whose clients get the same answer.
    pub async fn get(self: &Arc<Self>, ask: Ask, route: &Arc<Route>, views: u64) -> Outcome {
        let mut waiting = match self.join(ask, route, views) {
            Ok(outcome) => return outcome,
            Err(waiting) => waiting,
        };
        // The sender goes without a word only when its task did.
        let outcome = waiting.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or(Outcome::Failed(Extended::unusable()))
    }

    /// The answer that is here by now; or joins those who wait for it; or asks. A question is asked to the end even when all who
    /// wait have gone.
    fn join(
        self: &Arc<Self>,
        ask: Ask,
        route: &Arc<Route>,
        views: u64,
    ) -> Result<Outcome, watch::Receiver<Option<Outcome>>> {
        let mut inner = self.lock();
        if let Some(outcome) = inner.peek(&ask, clock::now()) {
            return Ok(outcome);
        }
        if let Some(waiting) = inner.asking.get(&ask) {
            return Err(waiting.clone());
        }
        let patience = inner.slots.contains_key(&ask).then_some(STALE_PATIENCE);
        Err(self.start(&mut inner, Arc::new(ask), (route, views), patience))
    }

    /// Asks for an answer that is there, so that it is there anew before it expires.
    pub fn refresh(self: &Arc<Self>, ask: Arc<Ask>, route: &Arc<Route>, views: u64) {
        let mut inner = self.lock();
        if !inner.asking.contains_key(&ask) {
            self.stats.refreshed.fetch_add(1, Ordering::Relaxed);
            drop(self.start(&mut inner, ask, (route, views), None));
        }
    }

    fn start(
        self: &Arc<Self>,
        inner: &mut Inner,
        ask: Arc<Ask>,
        (route, views): (&Arc<Route>, u64),
        patience: Option<Duration>,
    ) -> watch::Receiver<Option<Outcome>> {
        let (sender, receiver) = watch::channel(None);
        inner.asking.insert(Arc::clone(&ask), receiver.clone());
        let asking = Asking { cache: Arc::clone(self), ask, views, epoch: inner.epoch };
        let route = Arc::clone(route);
        tokio::spawn(async move {
            let outcome = match upstream::ask(&route, &asking.ask, patience).await {
                Ok(message) => learn::learn(&asking.ask, &message, &asking.cache.config, &asking.cache.own)
                    .and_then(|learnt| asking.cache.insert(&asking, &learnt))
                    .unwrap_or_else(|error| asking.cache.failure(&asking, Extended::unusable(), &error)),
                Err(error) => asking.cache.failure(&asking, Extended::of(&error), &error),
            };
            drop(asking);
            sender.send_replace(Some(outcome));
        });
        receiver
    }

    fn failure(&self, asking: &Asking, why: Extended, error: &dyn std::error::Error) -> Outcome {
        let ask = &asking.ask;
        tracing::debug!(name = %name::to_text(&ask.name), qtype = ask.qtype, "no answer from upstream: {error}");
        self.stats.upstream_failures.fetch_add(1, Ordering::Relaxed);
        let now = clock::now();
        let mut inner = self.lock();
        if let Some(slot) = inner.slots.get_mut(ask).filter(|slot| now < slot.dead) {
            slot.hold = now + STALE_HOLD;
            return slot.outcome(Source::Stale);
        }
        if inner.failed.len() < self.config.entries && asking.epoch == inner.epoch {
            let until = now + clock::seconds(self.config.failure_ttl);
            inner.failed.insert(Arc::clone(ask), (until, why));
        }
        Outcome::Failed(why)
    }

    /// Keeps what was learnt and teaches the kernel.
    fn insert(&self, asking: &Asking, learnt: &learn::Learnt) -> Result<Outcome, LearnError> {
        let ask = &asking.ask;
        let now = clock::now();
        let answer = Arc::new(learnt.build(&ask.name, now)?);
        // The kernel follows no aliases, and who may see what they lead to is said anew each time.
        let leads: Option<Arc<[u8]>> = learnt.leads.as_deref().map(Into::into);
        let mut inner = self.lock();
        let before = inner.detach(ask);
        inner.failed.remove(ask);
        // What was asked under other rules is for those who asked.
        let kept = learnt.ttl > 0 && self.config.entries > 0 && asking.epoch == inner.epoch;
        let kernel = key(&ask.name, ask.qtype, ask.flags)
            .filter(|key| kept && leads.is_none() && self.publish(&mut inner, key, ask, &answer, asking.views));
        let (old, used) = before.map_or((None, false), |slot| (slot.kernel, slot.order >= LIVE));
        if let Some(key) = old.filter(|_| kernel.is_none()) {
            self.unpublish(&mut inner, &key);
        }
        if kept {
            let expires = answer.head().expires;
            let room = cost(ask, &answer);
            while inner.slots.len() >= self.config.entries
                || inner.bytes + room > self.config.memory && !inner.slots.is_empty()
            {
                self.evict(&mut inner);
            }
            let number = inner.number();
            let slot = Slot {
                answer: Arc::clone(&answer),
                leads: leads.clone(),
                expires,
                dead: expires.saturating_add(clock::seconds(self.config.stale)),
                order: number | if used { LIVE } else { NEW },
                due: (look_at(learnt.ttl, expires).unwrap_or(expires), number),
                fresh: look_at(learnt.ttl, expires).is_some(),
                kernel,
                views: asking.views,
                kernel_hits: 0,
                hits: 0,
                hold: 0,
            };
            inner.attach(Arc::clone(ask), slot);
        }
        Ok(outcome(&answer, Source::Upstream, leads.as_ref()))
    }

    /// Teaches the kernel, which has one answer for a name and type: of those for some views only, the first.
    fn publish(&self, inner: &mut Inner, key: &DnsKey, ask: &Arc<Ask>, answer: &Answer, views: u64) -> bool {
        let other = views != ALL_VIEWS && inner.owners.get(key).is_some_and(|owner| owner != ask);
        if other || views == 0 || !self.publisher.put_learnt(key, answer, views) {
            return false;
        }
        if views == ALL_VIEWS {
            inner.owners.remove(key);
        } else {
            inner.owners.insert(*key, Arc::clone(ask));
        }
        true
    }

    fn remove(&self, inner: &mut Inner, ask: &Ask) {
        if let Some(key) = inner.detach(ask).and_then(|slot| slot.kernel) {
            self.unpublish(inner, &key);
        }
    }

    /// The rules changed. `carried` says under which rule, and for which views, an answer is known now; `None`: others answer for that
    /// name, and it is forgotten, here and in the kernel.
    pub fn retain(&self, carried: impl Fn(&Ask) -> Option<Known>) {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.failed.clear();
        let changed: Vec<(Arc<Ask>, Option<Known>)> = inner
            .slots
            .iter()
            .map(|(ask, slot)| (ask, slot, carried(ask)))
            .filter(|(ask, slot, now)| *now != Some((ask.via, slot.views)))
            .map(|(ask, _, now)| (Arc::clone(ask), now))
            .collect();
        // First all are taken out, so that what one group of views leaves in the kernel is free for another.
        let mut moved = Vec::new();
        for (ask, now) in changed {
            let Some(mut slot) = inner.detach(&ask) else { continue };
            let in_kernel = slot.kernel.take();
            if let Some(key) = &in_kernel {
                self.unpublish(&mut inner, key);
            }
            if let Some((via, views)) = now {
                slot.views = views;
                moved.push((Arc::new(Ask { via, ..Ask::clone(&ask) }), slot, in_kernel));
            }
        }
        for (ask, mut slot, in_kernel) in moved {
            if !inner.slots.contains_key(&ask) {
                slot.kernel =
                    in_kernel.filter(|key| self.publish(&mut inner, key, &ask, &Arc::clone(&slot.answer), slot.views));
                inner.attach(ask, slot);
            }
        }
    }

    /// Other servers may do better: what failed is asked again when somebody wants it.
    pub fn forget_failures(&self) {
        let mut inner = self.lock();
        inner.failed.clear();
    }

    /// What cannot be removed still expires by itself.
    fn unpublish(&self, inner: &mut Inner, key: &DnsKey) {
        inner.owners.remove(key);
        if let Err(error) = self.publisher.remove_learnt(key) {
            tracing::warn!("the kernel did not remove a learnt answer: {error}");
        }
    }

    /// Removes one answer: an expired one, else one that nobody asked for again, else the least recently used. Those that the kernel
    /// served lately stay.
    fn evict(&self, inner: &mut Inner) {
        for chance in 0.. {
            let Some(ask) = inner.order.first_key_value().map(|(_, ask)| Arc::clone(ask)) else { return };
            let now_used = inner.slots.get_mut(&ask).is_some_and(|slot| {
                let hits = slot.kernel.as_ref().and_then(|key| self.publisher.hits(key)).unwrap_or(slot.kernel_hits);
                let used = slot.order >= NEW && hits > slot.kernel_hits;
                slot.kernel_hits = hits;
                used
            });
            if now_used && chance < SECOND_CHANCES {
                inner.touch(&ask);
            } else {
                self.remove(inner, &ask);
                return;
            }
        }
    }

    /// Takes what has expired out of the kernel, and what is too old even to be stale out of the cache. Returns what is popular and
    /// about to expire.
    pub fn sweep(&self, now: u64) -> Vec<Arc<Ask>> {
        let mut popular = Vec::new();
        let mut inner = self.lock();
        while let Some((due, ask)) = inner.due.first_key_value().map(|(due, ask)| (*due, Arc::clone(ask))) {
            if due.0 > now {
                break;
            }
            inner.due.remove(&due);
            let number = inner.number();
            let Some(slot) = inner.slots.get_mut(&ask) else { continue };
            if std::mem::take(&mut slot.fresh) {
                let hits = slot.kernel.as_ref().and_then(|key| self.publisher.hits(key)).unwrap_or(0);
                if hits.saturating_add(slot.hits) >= POPULAR && popular.len() < REFRESHES {
                    popular.push(Arc::clone(&ask));
                }
                slot.due = (slot.expires, due.1);
                let due = slot.due;
                inner.due.insert(due, ask);
                continue;
            }
            if slot.dead <= now {
                self.remove(&mut inner, &ask);
                continue;
            }
            let kernel = slot.kernel.take();
            slot.due = (slot.dead, due.1);
            let old = std::mem::replace(&mut slot.order, number);
            let due = slot.due;
            if let Some(key) = kernel {
                self.unpublish(&mut inner, &key);
            }
            inner.order.remove(&old);
            inner.order.insert(number, Arc::clone(&ask));
            inner.due.insert(due, ask);
        }
        inner.failed.retain(|_, (until, _)| now < *until);
        popular
    }

    /// Answers held.
    pub fn count(&self) -> usize {
        self.lock().slots.len()
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// At most `limit` answers, sorted by name and type.
    pub fn info(&self, limit: usize) -> Vec<CachedInfo> {
        let now = clock::now();
        let inner = self.lock();
        let mut asks: Vec<(&Arc<Ask>, &Slot)> = inner.slots.iter().collect();
        asks.sort_unstable_by_key(|(ask, _)| *ask);
        asks.into_iter()
            .take(limit)
            .map(|(ask, slot)| CachedInfo {
                name: name::to_text(&ask.name),
                rtype: RecordType::from(ask.qtype).to_string(),
                rcode: rcode_name(slot.answer.head().header & wire::RCODE),
                ttl: u32::try_from(slot.expires.saturating_sub(now).div_ceil(1_000_000_000)).unwrap_or(u32::MAX),
                stale: slot.expires <= now,
                kernel: slot.kernel.is_some(),
                kernel_hits: slot.kernel.as_ref().and_then(|key| self.publisher.hits(key)).unwrap_or(0),
                hits: slot.hits,
            })
            .collect()
    }
}

/// Bytes that an answer takes here, roughly.
fn cost(ask: &Ask, answer: &Answer) -> usize {
    OVERHEAD + 4 * ask.name.len() + answer.body().len() + 2 * answer.ttls().len()
}

/// When to look how popular an answer is; `None`: it is not refreshed early.
fn look_at(ttl: u32, expires: u64) -> Option<u64> {
    let lead = (ttl / 10).max(REFRESH_LEAD);
    (ttl >= REFRESHED_TTL).then(|| expires.saturating_sub(clock::seconds(lead)))
}

fn rcode_name(rcode: u16) -> String {
    match ResponseCode::from(0, u8::try_from(rcode).unwrap_or(u8::MAX)) {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        other => format!("RCODE{}", u16::from(other)),
    }
}

impl Inner {
    fn peek(&mut self, ask: &Ask, now: u64) -> Option<Outcome> {
        if let Some(slot) = self.slots.get_mut(ask) {
            if now < slot.expires {
                slot.hits += 1;
                let outcome = slot.outcome(Source::Cache);
                self.touch(ask);
                return Some(outcome);
            }
            if now < slot.hold && now < slot.dead {
                slot.hits += 1;
                return Some(slot.outcome(Source::Stale));
            }
        }
        self.failed.get(ask).filter(|(until, _)| now < *until).map(|(_, why)| Outcome::Failed(*why))
    }

    fn detach(&mut self, ask: &Ask) -> Option<Slot> {
        let slot = self.slots.remove(ask)?;
        self.order.remove(&slot.order);
        self.due.remove(&slot.due);
        self.bytes = self.bytes.saturating_sub(cost(ask, &slot.answer));
        Some(slot)
    }

    fn attach(&mut self, ask: Arc<Ask>, slot: Slot) {
        self.bytes += cost(&ask, &slot.answer);
        self.order.insert(slot.order, Arc::clone(&ask));
        self.due.insert(slot.due, Arc::clone(&ask));
        self.slots.insert(ask, slot);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Makes an answer the most recently used one.
    fn touch(&mut self, ask: &Ask) {
        let number = LIVE | self.number();
        let Some(slot) = self.slots.get_mut(ask) else { return };
        let old = std::mem::replace(&mut slot.order, number);
        if let Some(ask) = self.order.remove(&old) {
            self.order.insert(number, ask);
        }
    }
}

/// A question on its way; when it ends, in whatever way, the next client may ask again.
struct Asking {
    cache: Arc<Cache>,
    ask: Arc<Ask>,
    /// Whose clients get the same answer.
    views: u64,
    /// Of the rules it is asked by.
    epoch: u64,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.cache.lock().asking.remove(&self.ask);
    }
}
