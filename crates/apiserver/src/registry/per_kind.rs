//! What some kinds need of the registry beyond their strategy, which knows neither identities nor clocks nor other objects:
//! who asked for a certificate, when a condition or a taint came, whether a namespace allows administrative access.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use super::{Call, Registry, now};

const DRA_GROUP: &str = "resource.k8s.io";
/// Namespaces with this label set to `true` may ask for devices that are in use, for monitoring.
const ADMIN_ACCESS_LABEL: &str = "resource.kubernetes.io/admin-access";

fn is(call: &Call<'_>, group: &str, kind: &str) -> bool {
    call.resource.kind == kind && call.resource.group == group
}

fn is_request(call: &Call<'_>) -> bool {
    is(call, "certificates.k8s.io", "CertificateSigningRequest")
}

/// Records in a new object what only the server knows.
pub fn settle_create(call: &Call<'_>, object: &mut Value) {
    if is_request(call) {
        set_requester(call, object);
    }
    if is(call, DRA_GROUP, "ResourceSlice") {
        stamp_taints(object);
    }
}

/// Records in a changed object what only the server knows.
pub fn settle_update(call: &Call<'_>, object: &mut Value, old: &Value) {
    if is_request(call) && !call.subresource.is_empty() {
        orlop_kinds::certificates::csr::stamp_conditions(object, old, &now());
    }
    if is(call, DRA_GROUP, "ResourceSlice") {
        stamp_taints(object);
    }
}

/// What other objects have against a new one.
pub fn refusals_of_create(registry: &Registry, call: &Call<'_>, object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let asking = if is(call, DRA_GROUP, "ResourceClaim") {
        orlop_kinds::resource::claim::admin_access_requests(&object["spec"], &path)
    } else if is(call, DRA_GROUP, "ResourceClaimTemplate") {
        orlop_kinds::resource::claim::admin_access_requests(&object["spec"]["spec"], &path.child("spec"))
    } else {
        return ErrorList::new();
    };
    let Some(first) = asking.first() else { return ErrorList::new() };
    let namespace = registry.resources.cache("", "Namespace").and_then(|cache| cache.get(call.namespace));
    let allowed = namespace.is_some_and(|entry| {
        entry.value()["metadata"]["labels"].get(ADMIN_ACCESS_LABEL).is_some_and(|value| value == "true")
    });
    if allowed {
        return ErrorList::new();
    }
    vec![field::forbidden(
        first,
        format!(
            "admin access to devices requires the `{ADMIN_ACCESS_LABEL}: true` label on the containing namespace"
        ),
    )]
}

/// In a cluster that has privileged containers, none is refused.
pub fn allow_privileged(registry: &Registry, errors: &mut ErrorList) {
    if registry.allow_privileged {
        errors.retain(|error| !orlop_kinds::core::pod::refuses_privilege(error));
    }
}

/// Whoever sends a request for a certificate is the one who asks.
fn set_requester(call: &Call<'_>, object: &mut Value) {
    let user = call.user;
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for key in ["username", "uid", "groups", "extra"] {
        spec.remove(key);
    }
    for (key, text) in [("username", &user.name), ("uid", &user.uid)] {
        if !text.is_empty() {
            spec.insert(key.into(), json!(text));
        }
    }
    if !user.groups.is_empty() {
        spec.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
}

/// A taint without a time came just now.
fn stamp_taints(object: &mut Value) {
    let devices = object["spec"].get_mut("devices").and_then(Value::as_array_mut);
    for device in devices.into_iter().flatten() {
        let taints = device.get_mut("taints").and_then(Value::as_array_mut);
        for taint in taints.into_iter().flatten() {
            if taint.get("timeAdded").is_none_or(Value::is_null) {
                taint["timeAdded"] = json!(now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_get_a_time_once() {
        let mut slice = json!({"spec": {"devices": [{"taints": [{"key": "a"}, {"key": "b", "timeAdded": "2020-01-01T00:00:00Z"}]}]}});
        stamp_taints(&mut slice);
        let taints = &slice["spec"]["devices"][0]["taints"];
        assert!(taints[0]["timeAdded"].is_string());
        assert_eq!(taints[1]["timeAdded"], "2020-01-01T00:00:00Z");
    }
}
