//! Events on Services that cannot be served (`events.k8s.io/v1`), written one at a time.

use std::{sync::PoisonError, time::Duration};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service},
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    Fault, PATIENCE, Shared, backoff,
    desk::{self, Desk, Job, Pace, Written},
    rights::{EVENTS, permitted},
};

/// Between two looks at the desk while there is news; less than a problem takes to settle.
const LOOK: Duration = Duration::from_secs(1);
/// Who says so.
const CONTROLLER: &str = "gateway";

fn desk(shared: &Shared) -> std::sync::MutexGuard<'_, Desk> {
    shared.desk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what is due, for as long as it is allowed to.
pub(super) async fn write(client: Client, namespace: String, shared: std::sync::Arc<Shared>) {
    let mut pace = Pace::new(Instant::now());
    let mut failures = 0;
    loop {
        permitted(&client, &EVENTS, &namespace).await;
        loop {
            let due = desk(&shared).due();
            let now = Instant::now();
            if due.is_none_or(|due| due > now) {
                tokio::select! {
                    () = sleep_until(due.unwrap_or_else(|| now + desk::REPEAT)) => desk(&shared).sweep(Instant::now()),
                    // A whole cluster's worth of news is looked through once. Nothing is due at once anyway.
                    () = shared.news.notified() => sleep(LOOK).await,
                }
                continue;
            }
            let wait = pace.next(now);
            if !wait.is_zero() {
                sleep(wait).await;
                continue;
            }
            let Some(job) = desk(&shared).take(now) else { continue };
            let told = timeout(PATIENCE, one(&client, &shared, &job)).await;
            let fault = match told {
                Ok(Ok(written)) => {
                    failures = 0;
                    if let Some(written) = written {
                        desk(&shared).done(&job, written);
                        shared.count(|figures| figures.written += 1);
                    }
                    continue;
                }
                Ok(Err(error)) => Fault::of(&error),
                Err(_) => Fault::Away("no answer".to_owned()),
            };
            shared.count(|figures| figures.failed += 1);
            tracing::debug!(service = %job.service, reason = job.reason, ?fault, "an Event could not be written");
            match fault {
                // Of this Service; the others have their turn.
                Fault::Refused(_) | Fault::Conflict | Fault::Missing => {
                    desk(&shared).later(&job, Instant::now() + desk::CHANGED);
                }
                // Of all Services, or by a quota of this one's namespace.
                Fault::Denied(_) => {
                    desk(&shared).later(&job, Instant::now() + desk::CHANGED);
                    break;
                }
                Fault::Away(_) => {
                    desk(&shared).later(&job, Instant::now());
                    sleep(backoff(failures)).await;
                    failures += 1;
                }
            }
        }
    }
}

/// Writes one; nothing when there is no such Service any more.
async fn one(client: &Client, shared: &Shared, job: &Job) -> Result<Option<Written>, kube::Error> {
    let (namespace, name) = (&job.service.namespace, &job.service.name);
    // `kubectl describe` finds an Event by the UID of what it is about. Listing is what the gateway may do anyway.
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let found = services.list_metadata(&ListParams::default().fields(&format!("metadata.name={name}"))).await?;
    let Some(uid) = found.items.into_iter().find_map(|service| service.metadata.uid) else { return Ok(None) };
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    let now = Timestamp::now();
    if let Some(before) = job.again.as_ref().filter(|before| before.uid == uid) {
        let count = before.count.saturating_add(1);
        let series = EventSeries { count, last_observed_time: MicroTime(now) };
        match events.patch(&before.name, &PatchParams::default(), &Patch::Merge(json!({"series": series}))).await {
            Ok(_) => return Ok(Some(Written { count, at: Instant::now(), ..before.clone() })),
            // Its time was over.
            Err(error) if matches!(Fault::of(&error), Fault::Missing) => {}
            Err(error) => return Err(error),
        }
    }
    let instance = shared.node.borrow().clone().unwrap_or_else(|| CONTROLLER.to_owned());
    let event = Event {
        metadata: ObjectMeta {
            // As other reporters name theirs.
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.to_string()),
            ..ObjectMeta::default()
        },
        action: Some("Serve".to_owned()),
        reason: Some(job.reason.to_owned()),
        note: Some(job.note.clone()),
        type_: Some("Warning".to_owned()),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(namespace.to_string()),
            name: Some(name.to_string()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    };
    let made = events.create(&PostParams::default(), &event).await?;
    let name = made.metadata.name.or(event.metadata.name).unwrap_or_default();
    Ok(Some(Written { name, uid, note: job.note.clone(), count: 1, at: Instant::now() }))
}
