//! Admission that the cluster's users configure while it runs: webhooks and policies, compiled.

use tokio_util::sync::CancellationToken;

use super::following::Following;
use super::matching::GROUP;
use super::policy::{MutatingPolicies, ValidatingPolicies};
use super::webhook::Webhooks;
use super::webhook::credentials::Credentials;
use crate::resources::Resources;

/// The compiled webhooks and policies.
pub struct Dynamic {
    /// In the order in which they are called.
    pub(super) mutating_webhooks: Following<Webhooks>,
    /// In the order in which they are configured.
    pub(super) validating_webhooks: Following<Webhooks>,
    /// Those that have bindings, in the order of names.
    pub(super) mutating_policies: Following<MutatingPolicies>,
    /// Those that have bindings, in the order of names.
    pub(super) validating_policies: Following<ValidatingPolicies>,
}

impl Dynamic {
    /// Compiles what is configured and follows the configurations until `stop`. The credentials are those for mutating
    /// and for validating webhooks.
    pub fn start(
        resources: &Resources,
        stop: &CancellationToken,
        [mutating, validating]: [Credentials; 2],
    ) -> Dynamic {
        let caches = |kinds: &[&str]| kinds.iter().filter_map(|kind| resources.cache(GROUP, kind)).collect();
        let webhooks = |kind: &str, sort: &'static str, credentials: Credentials| {
            let services = resources.cache("", "Service");
            Following::start(caches(&[kind]), stop.clone(), Webhooks::default(), move |snapshots, former| {
                match snapshots {
                    [configurations] => {
                        Webhooks::compile(configurations, former, services.as_ref(), sort, &credentials)
                    }
                    _ => Webhooks::default(),
                }
            })
        };
        Dynamic {
            mutating_webhooks: webhooks("MutatingWebhookConfiguration", "admit", mutating),
            validating_webhooks: webhooks("ValidatingWebhookConfiguration", "validating", validating),
            mutating_policies: Following::start(
                caches(&["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"]),
                stop.clone(),
                MutatingPolicies::default(),
                MutatingPolicies::compile,
            ),
            validating_policies: Following::start(
                caches(&["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"]),
                stop.clone(),
                ValidatingPolicies::default(),
                ValidatingPolicies::compile,
            ),
        }
    }

    /// Whether a webhook or a policy might change objects of this plural.
    pub fn may_mutate(&self, plural: &str) -> bool {
        self.mutating_webhooks.load().index.candidates(plural).next().is_some()
            || self.mutating_policies.load().concern(plural)
    }
}
