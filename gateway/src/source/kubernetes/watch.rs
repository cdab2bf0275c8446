//! A watcher for each kind: Kubernetes objects in, messages in the model's terms out.

use std::{error::Error, fmt, time::Duration};

use futures::StreamExt as _;
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet};

use super::super::{Extra, convert};
use crate::model::{self, ObjectName};

/// How long one watch request lasts, before it is asked for anew from where it was. Short, because it is also how long
/// a server that vanished without a word goes unnoticed; cheap, because nothing is listed.
pub(super) const WATCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Before listing anew after the server has forgotten the version asked for.
const RELIST_PAUSE: Duration = Duration::from_millis(500);

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
            Self::Cidrs => extra.service_cidrs,
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
    /// It does not, or not what was asked. `refused`: by its rules, so that waiting for it is no use.
    Failed { error: String, refused: bool },
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
    if extra.service_cidrs {
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
    let mut config = watcher::Config::default().timeout(WATCH_TIMEOUT.as_secs() as u32);
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
    loop {
        let mut stream = watcher(api.clone(), config.clone()).default_backoff().boxed();
        while let Some(told) = stream.next().await {
            let what = match told {
                Ok(watcher::Event::Init) => What::ListBegins,
                Ok(watcher::Event::InitApply(o) | watcher::Event::Apply(o)) => object(o),
                Ok(watcher::Event::InitDone) => What::Listed,
                Ok(watcher::Event::Delete(o)) => What::Gone(key(&o)),
                Err(error) => match status_code(&error) {
                    // As an event in the stream, the watcher itself lists anew. As the answer to the request, it would ask for
                    // the same version for ever: it must be begun again.
                    Some(410) if matches!(error, watcher::Error::WatchError(_)) => continue,
                    Some(410) => break,
                    Some(404) => What::Failed {
                        error: "this API server has none; Kubernetes 1.33 or later is needed".to_owned(),
                        refused: true,
                    },
                    code => What::Failed { error: chain(&error), refused: matches!(code, Some(401 | 403)) },
                },
            };
            if messages.send(Message { kind, what }).is_err() {
                return;
            }
        }
        tokio::time::sleep(RELIST_PAUSE).await;
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

/// An error with its causes, each said once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
