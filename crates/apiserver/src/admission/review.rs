//! AdmissionReview: how a request is put to a webhook and how its answer is read. The same request object is what
//! expressions see as `request`.

use orlop_api::decode::FieldValidation;
use orlop_api::field::go_quote;
use orlop_json::{Map, Value, json};

use super::matching::Matched;
use super::{ObjectKind, Operation, Request};
use crate::registry::CallOptions;
use crate::registry::options::{DeleteOptions, WriteOptions};

/// A review version this server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReviewVersion {
    /// `admission.k8s.io/v1`
    V1,
    /// `admission.k8s.io/v1beta1`
    V1beta1,
}

impl ReviewVersion {
    /// The first known one of a webhook's list.
    pub fn choose(versions: &Value) -> Option<ReviewVersion> {
        versions.as_array()?.iter().find_map(|version| match version.as_str()? {
            "v1" => Some(ReviewVersion::V1),
            "v1beta1" => Some(ReviewVersion::V1beta1),
            _ => None,
        })
    }

    fn api_version(self) -> &'static str {
        match self {
            ReviewVersion::V1 => "admission.k8s.io/v1",
            ReviewVersion::V1beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// The kind of the objects in the form that matched.
pub fn matched_kind<'a>(request: &'a Request<'_>, matched: &'a Matched) -> ObjectKind<'a> {
    match (matched, request.own_kind) {
        (Matched::Equivalent(resource), None) => {
            ObjectKind { group: &resource.group, version: &resource.version, kind: &resource.kind }
        }
        _ => request.kind(),
    }
}

fn kind_value(kind: &ObjectKind<'_>) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn resource_value(resource: &crate::resources::Resource) -> Value {
    json!({"group": resource.group, "version": resource.version, "resource": resource.plural})
}

/// The parts of an `AdmissionRequest` that are not objects; empty strings are left out, as upstream encodes it.
pub fn request_value(request: &Request<'_>, matched: &Matched) -> Map {
    let call = request.call;
    let resource = match matched {
        Matched::Own => call.resource,
        Matched::Equivalent(resource) => resource,
    };
    let mut out = Map::new();
    out.insert("kind".into(), kind_value(&matched_kind(request, matched)));
    out.insert("resource".into(), resource_value(resource));
    let text = |out: &mut Map, key: &str, value: &str| {
        if !value.is_empty() {
            out.insert(key.into(), value.into());
        }
    };
    text(&mut out, "subResource", call.subresource);
    out.insert("requestKind".into(), kind_value(&request.kind()));
    out.insert("requestResource".into(), resource_value(call.resource));
    text(&mut out, "requestSubResource", call.subresource);
    text(&mut out, "name", request.attribute_name());
    text(&mut out, "namespace", request.attribute_namespace());
    out.insert("operation".into(), request.operation.as_str().into());
    out.insert("userInfo".into(), call.user.to_value());
    out.insert("dryRun".into(), call.dry_run.into());
    out.insert("options".into(), options_value(request));
    out
}

/// The operation's options object.
fn options_value(request: &Request<'_>) -> Value {
    match (request.operation, request.call.options) {
        (Operation::Connect, _) => Value::Null,
        (Operation::Delete, CallOptions::Delete(options)) => delete_options(options),
        (Operation::Delete, _) => json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}),
        (operation, options) => {
            let kind = if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" };
            let mut out = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
            if let CallOptions::Write(options) = options {
                write_options(options, &mut out);
            }
            out
        }
    }
}

fn write_options(options: &WriteOptions, out: &mut Value) {
    if options.dry_run {
        out["dryRun"] = json!(["All"]);
    }
    if !options.field_manager.is_empty() {
        out["fieldManager"] = json!(options.field_manager);
    }
    if options.field_validation_given {
        out["fieldValidation"] = json!(match options.field_validation {
            FieldValidation::Ignore => "Ignore",
            FieldValidation::Warn => "Warn",
            FieldValidation::Strict => "Strict",
        });
    }
}

fn delete_options(options: &DeleteOptions) -> Value {
    let mut out = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
    if let Some(seconds) = options.grace_period_seconds {
        out["gracePeriodSeconds"] = json!(seconds);
    }
    if let Some(uid) = &options.uid {
        out["preconditions"]["uid"] = json!(uid);
    }
    if let Some(version) = &options.resource_version {
        out["preconditions"]["resourceVersion"] = json!(version);
    }
    if let Some(orphan) = options.orphan_dependents {
        out["orphanDependents"] = json!(orphan);
    }
    if let Some(policy) = &options.propagation_policy {
        out["propagationPolicy"] = json!(policy);
    }
    if options.dry_run {
        out["dryRun"] = json!(["All"]);
    }
    out
}

/// The review that is sent.
pub fn review(
    version: ReviewVersion,
    uid: &str,
    request: &Request<'_>,
    matched: &Matched,
    object: &Value,
    old: &Value,
) -> Value {
    let mut fields = Map::new();
    fields.insert("uid".into(), uid.into());
    fields.extend(request_value(request, matched));
    fields.insert("object".into(), object.clone());
    fields.insert("oldObject".into(), old.clone());
    json!({"kind": "AdmissionReview", "apiVersion": version.api_version(), "request": fields})
}

/// What a webhook answered.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Why not, as a Status.
    pub result: Option<Value>,
    /// A patch, as sent.
    pub patch: Vec<u8>,
    /// Its kind; empty where the version lets it be left out.
    pub patch_type: String,
    /// Warnings for the client.
    pub warnings: Vec<String>,
    /// Annotations for the audit event.
    pub annotations: Vec<(String, String)>,
}

/// Reads a review that came back.
pub fn read(answer: &Value, version: ReviewVersion, uid: &str, mutating: bool) -> Result<Verdict, String> {
    use base64::Engine as _;
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_string();
    let response = match answer.get("response") {
        Some(response) if response.is_object() => response,
        _ => return Err("webhook response was absent".into()),
    };
    let encoded = text(response, "patch");
    let patch = base64::engine::general_purpose::STANDARD
        .decode(&encoded)
        .map_err(|_| "illegal base64 data in response.patch".to_string())?;
    let patch_type = response.get("patchType").filter(|t| !t.is_null());
    if version == ReviewVersion::V1 {
        let echoed = text(response, "uid");
        if echoed != uid {
            return Err(format!("expected response.uid={}, got {}", go_quote(uid), go_quote(&echoed)));
        }
        let (kind, api_version) = (text(answer, "kind"), text(answer, "apiVersion"));
        if kind != "AdmissionReview" || api_version != version.api_version() {
            let (group, answered) = api_version.split_once('/').unwrap_or(("", &api_version));
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {group}/{answered}, Kind={kind}"
            ));
        }
        match (mutating, patch.is_empty(), patch_type) {
            (true, false, None) => {
                return Err("webhook returned response.patch but not response.patchType".into());
            }
            (true, true, Some(_)) => {
                return Err("webhook returned response.patchType but not response.patch".into());
            }
            (true, false, Some(kind)) if kind.as_str() == Some("") => {
                return Err("webhook returned invalid response.patchType of \"\"".into());
            }
            (false, false, _) => return Err("validating webhook may not return response.patch".into()),
            (false, true, Some(_)) => {
                return Err("validating webhook may not return response.patchType".into());
            }
            _ => {}
        }
    }
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|w| w.as_str().map(String::from)).collect()
    };
    Ok(Verdict {
        allowed: response.get("allowed").and_then(Value::as_bool).unwrap_or(false),
        result: response.get("status").filter(|s| s.is_object()).cloned(),
        patch: if mutating { patch } else { Vec::new() },
        patch_type: patch_type.and_then(Value::as_str).unwrap_or("").to_string(),
        warnings: strings(&response["warnings"]),
        annotations: response
            .get("auditAnnotations")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.to_string(), value.as_str()?.to_string())))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers() {
        let check = |response: Value, mutating: bool, expected: &str| {
            let answer =
                json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
            let got = read(&answer, ReviewVersion::V1, "u", mutating);
            match got {
                Ok(verdict) => assert_eq!(format!("allowed {}", verdict.allowed), expected),
                Err(error) => assert_eq!(error, expected),
            }
        };
        check(Value::Null, true, "webhook response was absent");
        check(json!({"uid": "x"}), true, "expected response.uid=\"u\", got \"x\"");
        check(json!({"uid": "u", "allowed": true}), true, "allowed true");
        check(json!({"uid": "u"}), false, "allowed false");
        check(
            json!({"uid": "u", "patch": "W10="}),
            true,
            "webhook returned response.patch but not response.patchType",
        );
        check(
            json!({"uid": "u", "patchType": "JSONPatch"}),
            true,
            "webhook returned response.patchType but not response.patch",
        );
        check(
            json!({"uid": "u", "patch": "W10=", "patchType": "JSONPatch"}),
            false,
            "validating webhook may not return response.patch",
        );
        let wrong = json!({"kind": "Pod", "apiVersion": "v1", "response": {"uid": "u"}});
        assert_eq!(
            read(&wrong, ReviewVersion::V1, "u", true).unwrap_err(),
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /v1, Kind=Pod"
        );
    }
}
