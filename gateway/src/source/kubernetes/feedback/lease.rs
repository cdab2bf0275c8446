//! A Lease for each gateway, as nodes have them: who looks at `renewTime` knows which gateways live.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use rand::Rng as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Fault, PATIENCE, Shared, backoff,
    rights::{LEASE, permitted, seldom},
};
use crate::node;

/// How long a Lease holds, as those of nodes.
const DURATION: Duration = Duration::from_secs(40);
/// How long the end of the agent waits for its Lease to be released; it ends by itself otherwise.
const FAREWELL: Duration = Duration::from_secs(2);
/// Tells a gateway's Lease from what else may have that name.
const LABEL: (&str, &str) = ("app.kubernetes.io/name", "gateway");

/// What to do about a Lease.
#[derive(Debug, PartialEq)]
enum Turn {
    Make(Box<Lease>),
    Renew(Box<Lease>),
    /// Another's: this long at least.
    Wait(Duration),
    /// No gateway made it.
    Foreign,
}

/// Who wants which Lease.
struct Claim {
    /// The Lease's name.
    node: String,
    holder: String,
    /// Another holder's Lease by its version, and since when it has not changed.
    seen: Option<(Option<String>, Instant)>,
}

impl Claim {
    /// What to do about the Lease as it is. Clocks of other machines are not believed: another's Lease is over when it has not changed for
    /// as long as it holds.
    fn turn(&mut self, current: Option<Lease>, now: Instant, time: Timestamp) -> Turn {
        let fresh = LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: Some(MicroTime(time)),
            renew_time: Some(MicroTime(time)),
            ..LeaseSpec::default()
        };
        let Some(mut lease) = current else {
            let labels = BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())]);
            let metadata = ObjectMeta { name: Some(self.node.clone()), labels: Some(labels), ..ObjectMeta::default() };
            return Turn::Make(Box::new(Lease { metadata, spec: Some(fresh) }));
        };
        let label = lease.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL.0));
        if label.map(String::as_str) != Some(LABEL.1) {
            return Turn::Foreign;
        }
        let before = lease.spec.take().unwrap_or_default();
        let other = before.holder_identity.as_deref().filter(|holder| !holder.is_empty() && *holder != self.holder);
        if other.is_some() {
            let version = lease.metadata.resource_version.clone();
            let since = match &self.seen {
                Some((seen, since)) if *seen == version => *since,
                _ => now,
            };
            self.seen = Some((version, since));
            let holds = Duration::from_secs(before.lease_duration_seconds.unwrap_or(0).clamp(1, 600) as u64);
            let left = holds.saturating_sub(now - since);
            if !left.is_zero() {
                return Turn::Wait(left.min(DURATION / 3));
            }
        }
        let ours = before.holder_identity.as_deref() == Some(self.holder.as_str());
        let acquire_time = if ours { before.acquire_time.clone() } else { fresh.acquire_time.clone() };
        let transitions = before.lease_transitions.unwrap_or(0);
        let lease_transitions = if ours { before.lease_transitions } else { Some(transitions.saturating_add(1)) };
        lease.spec = Some(LeaseSpec { acquire_time, lease_transitions, ..fresh });
        Turn::Renew(Box::new(lease))
    }
}

/// Keeps one Lease.
struct Keeper {
    client: Client,
    api: Api<Lease>,
    namespace: String,
    shared: Arc<Shared>,
    claim: Claim,
    /// As it was written last.
    held: Option<Lease>,
    /// It was held once.
    ever: bool,
    said: Option<String>,
}

/// Keeps the Lease of the node whose name is told, until it is stopped; then the Lease is released.
pub(super) async fn keep(
    client: Client,
    namespace: String,
    shared: Arc<Shared>,
    mut node: watch::Receiver<Option<String>>,
    stop: CancellationToken,
) {
    loop {
        let Some(name) = node.borrow_and_update().clone() else {
            tokio::select! {
                changed = node.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            continue;
        };
        let api = Api::namespaced(client.clone(), &namespace);
        let (client, namespace, shared) = (client.clone(), namespace.clone(), shared.clone());
        let claim = Claim { holder: holder(&name), node: name, seen: None };
        let mut keeper = Keeper { client, api, namespace, shared, claim, held: None, ever: false, said: None };
        tokio::select! {
            () = keeper.run() => {}
            changed = node.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return keeper.release().await,
        }
        keeper.release().await;
    }
}

/// The node's name, and the host's where that is another: a second machine with the same name must not take it for its own.
fn holder(node: &str) -> String {
    let host = node::sysctl("kernel/hostname").map(|host| host.trim().to_ascii_lowercase()).unwrap_or_default();
    if host.is_empty() || host == node { node.to_owned() } else { format!("{node}_{host}") }
}

impl Keeper {
    async fn run(&mut self) {
        let (mut failures, mut refusals) = (0, 0);
        permitted(&self.client, &LEASE, &self.namespace).await;
        loop {
            let fault = match timeout(PATIENCE, self.step()).await {
                Ok(Ok(pause)) => {
                    (failures, refusals) = (0, 0);
                    sleep(pause).await;
                    continue;
                }
                Ok(Err(error)) => Fault::of(&error),
                Err(_) => Fault::Away("no answer".to_owned()),
            };
            // Whatever was wrong, it is looked at anew.
            let held = self.held.take().is_some();
            self.shared.count(|figures| figures.lease = false);
            match fault {
                // Somebody was faster, or deleted it.
                Fault::Conflict => failures += 1,
                Fault::Missing if held => failures += 1,
                Fault::Away(error) => {
                    tracing::debug!(error, "the Lease could not be renewed");
                    failures += 1;
                }
                Fault::Missing => {
                    self.say(format!(
                        "Lease {}/{}: there is no namespace {}: deploy/rbac.yaml has it",
                        self.namespace, self.claim.node, self.namespace
                    ));
                    sleep(seldom(refusals)).await;
                    refusals += 1;
                    continue;
                }
                Fault::Denied(error) | Fault::Refused(error) => {
                    // A server that has just started refuses what it grants a moment later.
                    if refusals > 0 {
                        self.say(format!("Lease {}/{}: {error}", self.namespace, self.claim.node));
                    }
                    sleep(seldom(refusals)).await;
                    refusals += 1;
                    permitted(&self.client, &LEASE, &self.namespace).await;
                    continue;
                }
            }
            sleep(backoff(failures)).await;
        }
    }

    /// Each thing once.
    fn say(&mut self, what: String) {
        if self.said.as_ref() != Some(&what) {
            tracing::info!("{what}; it is tried again");
            self.said = Some(what);
        }
    }

    /// Looks and writes once; how long to wait for the next time.
    async fn step(&mut self) -> Result<Duration, kube::Error> {
        let current = match self.held.take() {
            Some(lease) => Some(lease),
            None => self.api.get_opt(&self.claim.node).await?,
        };
        let written = match self.claim.turn(current, Instant::now(), Timestamp::now()) {
            Turn::Make(mut lease) => {
                lease.metadata.owner_references = self.owner().await;
                self.api.create(&PostParams::default(), &lease).await?
            }
            Turn::Renew(lease) => {
                // A failure is told apart from a Lease that was never there.
                self.held = Some((*lease).clone());
                self.api.replace(&self.claim.node, &PostParams::default(), &lease).await?
            }
            Turn::Wait(pause) => {
                self.say(format!(
                    "Lease {}/{}: another gateway holds it, of another machine with this node's name: set `node`",
                    self.namespace, self.claim.node
                ));
                return Ok(pause);
            }
            Turn::Foreign => {
                self.say(format!(
                    "Lease {}/{}: no gateway made it, and it is left alone",
                    self.namespace, self.claim.node
                ));
                return Ok(DURATION);
            }
        };
        if !self.shared.figures().lease {
            tracing::debug!(namespace = self.namespace, name = self.claim.node, "the Lease is held");
        }
        (self.held, self.ever, self.claim.seen, self.said) = (Some(written), true, None, None);
        self.shared.count(|figures| figures.lease = true);
        Ok((DURATION / 3).mul_f64(rand::rng().random_range(0.8..1.0)))
    }

    /// The Node object, so that the Lease goes with it. Without the right to see nodes it stays.
    async fn owner(&self) -> Option<Vec<OwnerReference>> {
        let nodes = Api::<Node>::all(self.client.clone());
        let fields = format!("metadata.name={}", self.claim.node);
        let found = nodes.list_metadata(&ListParams::default().fields(&fields)).await.ok()?;
        let uid = found.items.into_iter().find_map(|node| node.metadata.uid)?;
        let (api_version, kind, name) = ("v1".to_owned(), "Node".to_owned(), self.claim.node.clone());
        Some(vec![OwnerReference { api_version, kind, name, uid, ..OwnerReference::default() }])
    }

    /// Says that nobody holds it any more: who looks can tell a gateway that ended from one that died. Nothing is deleted, which would be
    /// one more right, and the record of when it was seen last.
    async fn release(&mut self) {
        self.shared.count(|figures| figures.lease = false);
        if !self.ever {
            return;
        }
        let released = timeout(FAREWELL, async {
            let Some(mut lease) = self.api.get_opt(&self.claim.node).await? else { return Ok(()) };
            match &mut lease.spec {
                Some(spec) if spec.holder_identity.as_ref() == Some(&self.claim.holder) => {
                    spec.holder_identity = None;
                    spec.renew_time = Some(MicroTime(Timestamp::now()));
                }
                _ => return Ok(()),
            }
            self.api.replace(&self.claim.node, &PostParams::default(), &lease).await.map(drop)
        });
        match released.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the Lease is not released: it ends by itself"),
            Err(_) => tracing::debug!("the Lease is not released: the API server does not answer; it ends by itself"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        Claim { node: "edge".into(), holder: "edge".into(), seen: None }
    }

    /// A gateway's Lease of this holder, as the API server has it at a version.
    fn lease(holder: Option<&str>, version: &str) -> Lease {
        let Turn::Make(mut lease) = claim().turn(None, Instant::now(), Timestamp::UNIX_EPOCH) else { panic!() };
        lease.metadata.resource_version = Some(version.to_owned());
        lease.spec.as_mut().unwrap().holder_identity = holder.map(str::to_owned);
        *lease
    }

    fn renewed(turn: Turn) -> LeaseSpec {
        match turn {
            Turn::Renew(lease) => lease.spec.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ones_own_lease_is_renewed_and_a_released_one_is_taken() {
        let (now, later) = (Instant::now(), Timestamp::from_second(1_000).unwrap());
        let spec = renewed(claim().turn(Some(lease(Some("edge"), "1")), now, later));
        assert_eq!(
            (spec.acquire_time, spec.renew_time),
            (Some(MicroTime(Timestamp::UNIX_EPOCH)), Some(MicroTime(later)))
        );
        assert_eq!((spec.lease_transitions, spec.lease_duration_seconds), (None, Some(40)));
        for nobody in [None, Some("")] {
            let spec = renewed(claim().turn(Some(lease(nobody, "1")), now, later));
            assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("edge"), Some(1)));
            assert_eq!(spec.acquire_time, Some(MicroTime(later)));
        }
    }

    #[test]
    fn anothers_lease_is_taken_when_it_has_not_changed_for_as_long_as_it_holds() {
        let (mut claim, start) = (claim(), Instant::now());
        // Whatever its times say: they are another clock's.
        let mut turn = |seconds: u64, version: &str| {
            claim.turn(Some(lease(Some("other"), version)), start + Duration::from_secs(seconds), Timestamp::UNIX_EPOCH)
        };
        assert_eq!(turn(0, "1"), Turn::Wait(DURATION / 3));
        assert_eq!(turn(39, "1"), Turn::Wait(Duration::from_secs(1)));
        assert_eq!(turn(39, "2"), Turn::Wait(DURATION / 3), "it was renewed");
        assert_eq!(turn(78, "2"), Turn::Wait(Duration::from_secs(1)));
        assert_eq!(renewed(turn(79, "2")).holder_identity.as_deref(), Some("edge"));
    }

    #[test]
    fn what_no_gateway_made_is_left_alone() {
        let mut foreign = lease(Some("edge"), "1");
        foreign.metadata.labels = None;
        assert_eq!(claim().turn(Some(foreign), Instant::now(), Timestamp::UNIX_EPOCH), Turn::Foreign);
    }
}
