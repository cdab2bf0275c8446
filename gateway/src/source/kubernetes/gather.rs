//! What the watchers tell → batches of events. Pure: no time, no network.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use ipnet::IpNet;

use super::{
    super::{Extra, ServiceCidrs},
    watch::{Item, Kind, Message, Refusal, What},
};
use crate::model::{Cluster, Event, ObjectName};

const NO_CIDRS: &str = "servicecidrs: the API server has none yet; it is waited for, or set serviceCIDRs";

/// One kind's state.
#[derive(Debug, Default)]
struct State {
    /// Objects that were told of.
    known: BTreeSet<ObjectName>,
    /// Objects of a list that is not complete yet.
    listing: Option<BTreeMap<ObjectName, Option<Item>>>,
    /// Its first list is complete, or is not to be had.
    settled: bool,
    /// The server's last word on it was a good one.
    answered: bool,
    failure: Option<String>,
    /// What is wrong with its objects.
    problems: BTreeMap<ObjectName, Vec<String>>,
}

/// Gathers all kinds into one stream.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    /// Kinds whose first lists make the snapshot.
    awaited: Vec<Kind>,
    kinds: BTreeMap<Kind, State>,
    cidrs: BTreeMap<ObjectName, Vec<IpNet>>,
    /// There is no snapshot without any, unless the server does not know the kind.
    cidrs_required: bool,
    /// They are listed, and there is none.
    none_yet: bool,
    /// Until every kind is settled: what will be the snapshot.
    early: Vec<Event>,
    synced: bool,
    /// Something that [`Gatherer::news`] tells has changed.
    news: bool,
}

impl Gatherer {
    /// One that waits for what the config needs.
    pub(super) fn new(extra: Extra) -> Self {
        Self {
            awaited: Kind::wanted(extra).collect(),
            cidrs_required: extra.service_cidrs == ServiceCidrs::Required,
            ..Self::default()
        }
    }

    /// The events of a batch of messages; the first that are not empty are the snapshot.
    pub(super) fn take(&mut self, messages: impl Iterator<Item = Message>) -> Vec<Event> {
        let mut events = Vec::new();
        for Message { kind, what } in messages {
            self.one(kind, what, &mut events);
        }
        if self.synced {
            return events;
        }
        self.early.append(&mut events);
        let settled = |kind: &Kind| self.kinds.get(kind).is_some_and(|state| state.settled);
        if !self.awaited.iter().all(settled) {
            return Vec::new();
        }
        self.synced = true;
        let mut whole = Cluster::default();
        whole.apply(self.early.drain(..));
        vec![Event::Snapshot(Box::new(whole.objects))]
    }

    /// Whether the server answers for what is required, and everything that is wrong; nothing when that is as before.
    pub(super) fn news(&mut self) -> Option<(bool, Vec<String>)> {
        if !mem::take(&mut self.news) {
            return None;
        }
        let answered = |kind: &Kind| self.kinds.get(kind).is_some_and(|state| state.answered);
        let connected = Kind::ALL.iter().filter(|kind| kind.required()).all(answered);
        let failures = self.kinds.values().filter_map(|state| state.failure.clone());
        let none = self.none_yet.then(|| NO_CIDRS.to_owned());
        let objects = self.kinds.values().flat_map(|state| state.problems.values().flatten().cloned());
        Some((connected, failures.chain(none).chain(objects).collect()))
    }

    fn one(&mut self, kind: Kind, what: What, events: &mut Vec<Event>) {
        let state = self.kinds.entry(kind).or_default();
        match what {
            What::ListBegins => state.listing = Some(BTreeMap::new()),
            What::Object { key, item, problems } => {
                self.news |= state.say(&key, problems);
                match (item, &mut state.listing) {
                    (item, Some(listing)) => drop(listing.insert(key, item)),
                    (Some(item), None) => {
                        state.settled = true;
                        self.put(kind, key, item, events);
                    }
                    (None, None) => self.remove(kind, &key, events),
                }
            }
            What::Gone(key) => {
                self.news |= state.say(&key, Vec::new());
                self.remove(kind, &key, events);
            }
            What::Listed => {
                let listed = state.listing.take().unwrap_or_default();
                // A server makes the first one shortly after its start.
                let missing = kind == Kind::Cidrs && self.cidrs_required && listed.values().all(Option::is_none);
                state.settled |= !missing;
                self.none_yet = missing && !state.settled;
                state.problems.retain(|key, _| listed.contains_key(key));
                self.news = true;
                let stays = |key: &ObjectName| listed.get(key).is_some_and(Option::is_some);
                let gone: Vec<_> = state.known.iter().filter(|key| !stays(key)).cloned().collect();
                for key in gone {
                    self.remove(kind, &key, events);
                }
                if kind == Kind::Cidrs && listed.is_empty() {
                    // Allowed to list, and there are none: that is known, too.
                    events.push(self.service_cidrs());
                }
                for (key, item) in listed {
                    if let Some(item) = item {
                        self.put(kind, key, item, events);
                    }
                }
            }
            What::Answered => {
                self.news |= !state.answered || state.failure.is_some();
                state.answered = true;
                state.failure = None;
            }
            What::Failed { error, refusal } => {
                // An optional kind that the server refuses does not keep the gateway waiting. A server that has just started refuses what it
                // grants a moment later: what cannot be done without is waited for, and told.
                let waits = kind.required()
                    || kind == Kind::Cidrs && self.cidrs_required && refusal == Some(Refusal::Forbidden);
                state.settled |= refusal.is_some() && !waits;
                state.answered = false;
                let plural = kind.plural();
                let mend = match (refusal, kind) {
                    (None, _) => "it is tried again".to_owned(),
                    (Some(Refusal::Unknown), Kind::Cidrs) => "set serviceCIDRs".to_owned(),
                    (Some(_), Kind::Cidrs) => {
                        format!("allow list and watch of {plural} in its ClusterRole, or set serviceCIDRs")
                    }
                    (Some(_), Kind::Pods) => format!(
                        "allow list and watch of {plural} as in deploy/rbac-pods.yaml, or set dns.pods to another value than verified"
                    ),
                    (Some(_), _) => format!("allow list and watch of {plural} in its ClusterRole"),
                };
                state.failure = Some(format!("{plural}: {error}; {mend}"));
                self.news = true;
            }
        }
    }

    fn put(&mut self, kind: Kind, key: ObjectName, item: Item, events: &mut Vec<Event>) {
        self.kinds.entry(kind).or_default().known.insert(key.clone());
        events.push(match item {
            Item::Service(service) => Event::Service(service),
            Item::Slice(slice) => Event::Slice(slice),
            Item::Namespace(name) => Event::Namespace(name),
            Item::Node(node) => Event::Node(node),
            Item::Pod(pod) => Event::Pod(pod),
            Item::Cidrs(cidrs) => {
                self.none_yet = false;
                self.news = true;
                self.cidrs.insert(key, cidrs);
                self.service_cidrs()
            }
        });
    }

    fn remove(&mut self, kind: Kind, key: &ObjectName, events: &mut Vec<Event>) {
        if !self.kinds.entry(kind).or_default().known.remove(key) {
            return;
        }
        events.push(match kind {
            Kind::Services => Event::ServiceGone(key.clone()),
            Kind::Slices => Event::SliceGone(key.clone()),
            Kind::Namespaces => Event::NamespaceGone(key.name.to_string()),
            Kind::Nodes => Event::NodeGone(key.name.to_string()),
            Kind::Pods => Event::PodGone(key.clone()),
            Kind::Cidrs => {
                self.cidrs.remove(key);
                self.service_cidrs()
            }
        });
    }

    fn service_cidrs(&self) -> Event {
        let all: BTreeSet<IpNet> = self.cidrs.values().flatten().copied().collect();
        Event::ServiceCidrs(all.into_iter().collect())
    }
}

impl State {
    /// Keeps what is wrong with an object; whether that is news.
    fn say(&mut self, key: &ObjectName, problems: Vec<String>) -> bool {
        if problems.is_empty() {
            return self.problems.remove(key).is_some();
        }
        let news = self.problems.get(key) != Some(&problems);
        self.problems.insert(key.clone(), problems);
        news
    }
}
