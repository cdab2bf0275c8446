//! Permission is the switch: what the gateway may not say, it does not try to say.

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec as Spec,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{sleep, timeout};

use super::{PATIENCE, backoff};

/// Rights that one thing needs.
pub(in super::super) struct Need {
    /// What it is, for people.
    pub what: &'static str,
    pub group: &'static str,
    pub resource: &'static str,
    pub verbs: &'static [&'static str],
    /// Only in the gateways' own namespace.
    pub own: bool,
}

pub(in super::super) const LEASE: Need = Need {
    what: "the gateway's Lease",
    group: "coordination.k8s.io",
    resource: "leases",
    verbs: &["get", "create", "update"],
    own: true,
};
pub(in super::super) const EVENTS: Need = Need {
    what: "Events on Services",
    group: "events.k8s.io",
    resource: "events",
    verbs: &["create", "patch"],
    own: false,
};

/// What grants them.
const MANIFEST: &str = "deploy/rbac-status.yaml";
/// Between two looks, doubled up to the second one.
const LOOK: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10 * 60));

impl Need {
    /// The verbs that are missing.
    ///
    /// # Errors
    /// When the API server does not answer the question.
    pub(in super::super) async fn missing(
        &self,
        client: &Client,
        namespace: &str,
    ) -> Result<Vec<&'static str>, kube::Error> {
        let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
        let mut missing = Vec::new();
        for verb in self.verbs {
            let attributes = ResourceAttributes {
                group: Some(self.group.to_owned()),
                resource: Some(self.resource.to_owned()),
                verb: Some((*verb).to_owned()),
                namespace: self.own.then(|| namespace.to_owned()),
                ..ResourceAttributes::default()
            };
            let spec = Spec { resource_attributes: Some(attributes), ..Spec::default() };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            let answer = reviews.create(&PostParams::default(), &review).await?;
            if !answer.status.is_some_and(|status| status.allowed) {
                missing.push(*verb);
            }
        }
        Ok(missing)
    }

    /// That they are missing, and what to do, in one line.
    pub(in super::super) fn off(&self, missing: &[&str], namespace: &str) -> String {
        let place = if self.own { format!(" in namespace {namespace}") } else { String::new() };
        format!(
            "{} off: no right to {} {} of {}{place}; {MANIFEST} grants it",
            if self.own { "Lease" } else { self.what },
            missing.join(", "),
            self.resource,
            self.group
        )
    }
}

/// How long to wait after so many refusals: nobody is in a hurry to be refused again.
pub(super) fn seldom(refusals: u32) -> Duration {
    LOOK.1.min(LOOK.0 * 2_u32.pow(refusals.min(10)))
}

/// Waits until all of it is permitted. A server that has just started refuses what it grants a moment later: only what is refused twice is
/// told, once.
pub(super) async fn permitted(client: &Client, need: &Need, namespace: &str) {
    let (mut refusals, mut failures) = (0_u32, 0_u32);
    loop {
        let pause = match timeout(PATIENCE, need.missing(client, namespace)).await {
            Ok(Ok(missing)) if missing.is_empty() => {
                if refusals > 1 {
                    tracing::info!("{}: permitted now", need.what);
                }
                return;
            }
            Ok(Ok(missing)) => {
                refusals += 1;
                if refusals == 2 {
                    tracing::info!("{}", need.off(&missing, namespace));
                }
                seldom(refusals - 1)
            }
            // The source says when the server is away.
            Ok(Err(_)) | Err(_) => {
                failures += 1;
                backoff(failures)
            }
        };
        sleep(pause).await;
    }
}
