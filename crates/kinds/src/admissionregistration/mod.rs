//! `admissionregistration.k8s.io`: webhooks and policies that take part in admission.

pub mod client_config;
pub mod expression;
pub mod mutating_admission_policy;
pub mod policy_binding;
pub mod rules;
pub mod type_check;
pub mod validating_admission_policy;
pub mod webhook_configuration;

mod field_ref;
mod policy;

use crate::Strategy;

/// The strategy of a kind of this group.
pub(crate) fn strategy(kind: &str) -> Option<&'static dyn Strategy> {
    Some(match kind {
        "MutatingAdmissionPolicy" => &mutating_admission_policy::MutatingAdmissionPolicy,
        "MutatingAdmissionPolicyBinding" => &policy_binding::MutatingAdmissionPolicyBinding,
        "MutatingWebhookConfiguration" => &webhook_configuration::MutatingWebhookConfiguration,
        "ValidatingAdmissionPolicy" => &validating_admission_policy::ValidatingAdmissionPolicy,
        "ValidatingAdmissionPolicyBinding" => &policy_binding::ValidatingAdmissionPolicyBinding,
        "ValidatingWebhookConfiguration" => &webhook_configuration::ValidatingWebhookConfiguration,
        _ => return None,
    })
}

/// Names with this ending are kept for configurations that come from files and not through the API.
const STATIC_SUFFIX: &str = ".static.k8s.io";

/// What a writer of such a name is told.
fn static_suffix_warnings(obj: &orlop_json::Value) -> Vec<String> {
    use crate::cursor::Cursor as _;
    if !obj["metadata"]["name"].text().ends_with(STATIC_SUFFIX) {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: names ending with {STATIC_SUFFIX:?} will be reserved for static manifest-based configurations when the ManifestBasedAdmissionControlConfig feature gate is enabled"
    )]
}
