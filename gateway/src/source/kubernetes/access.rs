//! What the gateway's identity may ask of the API server, asked by `SelfSubjectAccessReview`, which every identity may.

use std::{path::PathBuf, time::Duration};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec as Spec,
};
use kube::{Api, Client, api::PostParams};

use super::{
    super::{Access, Denied, Extra, SourceError},
    feedback,
    watch::{Kind, chain},
};

/// How long the API server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(in super::super) async fn access(
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    extra: Extra,
    status: bool,
) -> Result<Access, SourceError> {
    let outside = kubeconfig.is_some() || context.is_some();
    let mut config = super::configuration(kubeconfig, context).await?;
    let namespace = feedback::namespace(outside, &config.default_namespace);
    (config.connect_timeout, config.read_timeout) = (Some(PATIENCE), Some(PATIENCE));
    let server = config.cluster_url.to_string();
    let program = super::program(&config);
    let client = Client::try_from(config).map_err(|error| SourceError::Client {
        server: server.clone(),
        program,
        error: Box::new(error),
    })?;
    let silent =
        |error: &(dyn std::error::Error + 'static)| SourceError::Silent { server: server.clone(), error: chain(error) };
    // Its absence is not a matter of permission; that it keeps its version to itself says that it is there and knows who asks.
    let version = match client.apiserver_version().await {
        Ok(version) => version.git_version,
        Err(kube::Error::Api(status)) if status.code == 403 => "version not told to this identity".to_owned(),
        Err(error) => return Err(silent(&error)),
    };
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut denied = Vec::new();
    for kind in Kind::wanted(extra) {
        for verb in ["list", "watch"] {
            let attributes = ResourceAttributes {
                group: Some(kind.group().to_owned()),
                resource: Some(kind.plural().to_owned()),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            };
            let review = SelfSubjectAccessReview {
                spec: Spec { resource_attributes: Some(attributes), ..Spec::default() },
                ..SelfSubjectAccessReview::default()
            };
            let answer = reviews.create(&PostParams::default(), &review).await.map_err(|error| silent(&error))?;
            if !answer.status.is_some_and(|status| status.allowed) {
                denied.push(Denied {
                    verb,
                    resource: kind.plural(),
                    group: kind.group(),
                    // Asked for only where the config does not give the CIDRs.
                    required: kind.required() || kind == Kind::Cidrs,
                });
            }
        }
    }
    let mut off = Vec::new();
    for need in [feedback::LEASE, feedback::EVENTS].iter().filter(|_| status) {
        let missing = need.missing(&client, &namespace).await.map_err(|error| silent(&error))?;
        if !missing.is_empty() {
            off.push(need.off(&missing, &namespace));
        }
    }
    Ok(Access { server, version, denied, silent: off })
}
