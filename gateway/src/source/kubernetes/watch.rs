//! A watcher for each kind: Kubernetes objects in, messages in the model's terms out.

use std::{error::Error, fmt, mem, time::Duration};

use futures::StreamExt as _;
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, Resource,
    runtime::watcher::{self, InitialListStrategy, watcher},
};
use rand::Rng as _;
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet};

use super::super::{Extra, ServiceCidrs, convert};
use crate::model::{self, ObjectName};

/// How long one watch request lasts, before it is asked for anew from where it was. Short, because it is also how long
/// a server that vanished without a word goes unnoticed; cheap, because nothing is listed.
pub(super) const WATCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Between tries, doubled with each failure. The longest is how late a server that is back is noticed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// A kind that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Services,
    Slices,
    Namespaces,
    Nodes,
    Pods,
    Cidrs,
}

impl Kind {
    pub(super) const ALL: [Self; 6] =
        [Self::Services, Self::Slices, Self::Namespaces, Self::Nodes, Self::Pods, Self::Cidrs];

    /// Those that the config needs.
    pub(super) fn wanted(extra: Extra) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |kind| match kind {
            Self::Cidrs => extra.service_cidrs != ServiceCidrs::Given,
            Self::Pods => extra.pods,
            _ => true,
        })
    }

    /// As in the URL, in RBAC rules and in messages.
    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Slices => "endpointslices",
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Cidrs => "servicecidrs",
        }
    }

    /// Its API group; empty for the core.
    pub(super) const fn group(self) -> &'static str {
        match self {
            Self::Services | Self::Namespaces | Self::Nodes | Self::Pods => "",
            Self::Slices => "discovery.k8s.io",
            Self::Cidrs => "networking.k8s.io",
        }
    }

    /// Without these there is nothing to serve; the others may be forbidden.
    pub(super) const fn required(self) -> bool {
        matches!(self, Self::Services | Self::Slices)
    }

    pub(super) fn of_path(path: &str) -> Option<Self> {
        let plural = path.rsplit('/').next()?;
        Self::ALL.into_iter().find(|kind| kind.plural() == plural)
    }
}

/// An object in the model's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Service(model::Service),
    Slice(model::Slice),
    Namespace(String),
    Node(model::Node),
    Pod(model::Pod),
    Cidrs(Vec<IpNet>),
}

/// What a watcher tells.
#[derive(Debug)]
pub(super) struct Message {
    pub kind: Kind,
    pub what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// A list begins; what it will not contain is gone.
    ListBegins,
    /// An object, of a list or changed; without an item it cannot be used.
    Object { key: ObjectName, item: Option<Item>, problems: Vec<String> },
    /// Deleted.
    Gone(ObjectName),
    /// The list is complete.
    Listed,
    /// The server answers.
    Answered,
    /// It does not, or not what was asked. It is asked again, whatever it said.
    Failed { error: String, refusal: Option<Refusal> },
}

/// An answer that says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The identity may not. A server that has just started says so, too, until it has read its rules.
    Forbidden,
    /// There is no such kind.
    Unknown,
}

/// Starts every watcher; those for pods and service CIDRs when they are asked for.
pub(super) fn all(client: &Client, extra: Extra, messages: &mpsc::UnboundedSender<Message>, set: &mut JoinSet<()>) {
    let mut start = Start { client, messages, set };
    start.watch::<Service>(Kind::Services, |o, p| convert::service(o, p).map(Item::Service));
    start.watch::<EndpointSlice>(Kind::Slices, |o, p| convert::slice(o, p).map(Item::Slice));
    start.watch::<Namespace>(Kind::Namespaces, |o, p| convert::namespace(o, p).map(Item::Namespace));
    start.watch::<Node>(Kind::Nodes, |o, p| convert::node(o, p).map(Item::Node));
    if extra.pods {
        start.watch::<Pod>(Kind::Pods, |o, p| convert::pod(o, p).map(Item::Pod));
    }
    if extra.service_cidrs != ServiceCidrs::Given {
        start.watch::<ServiceCIDR>(Kind::Cidrs, |o, p| Some(Item::Cidrs(convert::service_cidr(o, p))));
    }
}

struct Start<'s> {
    client: &'s Client,
    messages: &'s mpsc::UnboundedSender<Message>,
    set: &'s mut JoinSet<()>,
}

impl Start<'_> {
    fn watch<K>(&mut self, kind: Kind, convert: fn(K, &mut Vec<String>) -> Option<Item>)
    where
        K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.set.spawn(watch(Api::<K>::all(self.client.clone()), kind, convert, self.messages.clone()));
    }
}

async fn watch<K>(
    api: Api<K>,
    kind: Kind,
    convert: fn(K, &mut Vec<String>) -> Option<Item>,
    messages: mpsc::UnboundedSender<Message>,
) where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    // A list that is streamed needs no more memory than one object at either end; pages are for servers that have no such lists.
    let mut config = watcher::Config::default().timeout(WATCH_TIMEOUT.as_secs() as u32).streaming_lists();
    if kind == Kind::Pods {
        // Pods that have ended keep their objects for long, and no address.
        config = config.fields("status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown");
    }
    let object = |object: K| {
        let key = key(&object);
        let mut problems = Vec::new();
        let item = convert(object, &mut problems);
        What::Object { key, item, problems }
    };
    let mut pause = Pause::default();
    // A list has begun and is not complete.
    let mut listing = false;
    loop {
        let mut stream = watcher(api.clone(), config.clone()).boxed();
        while let Some(told) = stream.next().await {
            let streamed = config.initial_list_strategy == InitialListStrategy::StreamingList;
            let mut again = false;
            let what = match told {
                Ok(watcher::Event::Init) => {
                    if mem::replace(&mut listing, true) && streamed {
                        // It ended before its end: a server that does not know streamed lists never says that one is complete.
                        config.initial_list_strategy = InitialListStrategy::ListWatch;
                        again = true;
                    }
                    What::ListBegins
                }
                Ok(watcher::Event::InitApply(o)) => object(o),
                Ok(watcher::Event::Apply(o)) => {
                    pause = Pause::default();
                    object(o)
                }
                Ok(watcher::Event::InitDone) => {
                    (listing, pause) = (false, Pause::default());
                    What::Listed
                }
                Ok(watcher::Event::Delete(o)) => {
                    pause = Pause::default();
                    What::Gone(key(&o))
                }
                Err(error) => {
                    listing = false;
                    let code = status_code(&error);
                    match code {
                        // As an event in the stream, the watcher itself lists anew. As the answer to the request, it would ask for
                        // the same version for ever: it must be begun again.
                        Some(410) => again = !matches!(error, watcher::Error::WatchError(_)),
                        Some(400 | 422) if streamed && matches!(error, watcher::Error::WatchStartFailed(_)) => {
                            config.initial_list_strategy = InitialListStrategy::ListWatch;
                            again = true;
                        }
                        _ => {
                            let (error, refusal) = match code {
                                Some(404) => (NONE.to_owned(), Some(Refusal::Unknown)),
                                Some(401 | 403) => (chain(&error), Some(Refusal::Forbidden)),
                                _ => (chain(&error), None),
                            };
                            let what = What::Failed { error, refusal };
                            if messages.send(Message { kind, what }).is_err() {
                                return;
                            }
                        }
                    }
                    pause.wait().await;
                    if again {
                        break;
                    }
                    continue;
                }
            };
            if messages.send(Message { kind, what }).is_err() {
                return;
            }
            if again {
                pause.wait().await;
                break;
            }
        }
        listing = false;
    }
}

/// What a server says that does not have the kind.
const NONE: &str = "this API server has none; Kubernetes 1.33 or later is needed";

/// How long to wait before the next try: twice as long with each, and a random part of it, so that not all gateways come at once.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE.0)
    }
}

impl Pause {
    async fn wait(&mut self) {
        let most = self.0;
        self.0 = PAUSE.1.min(most * 2);
        let pause = most.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::time::sleep(pause).await;
    }
}

/// Namespace and name; the namespace is empty for what has none.
fn key<K: Resource>(object: &K) -> ObjectName {
    let meta = object.meta();
    ObjectName::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn status_code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

/// An error with its causes, each said once; of what the API server answered, its own words.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = own(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = own(error);
        if let Some(kube::Error::Api(_)) = error.downcast_ref() {
            return more;
        }
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn own(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref() {
        // Its form for people repeats everything for programs.
        Some(kube::Error::Api(status)) if !status.message.is_empty() => status.message.clone(),
        _ => error.to_string(),
    }
}
