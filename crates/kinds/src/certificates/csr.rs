//! CertificateSigningRequest: somebody asks a signer for a certificate. What is asked for never changes; approval and
//! the certificate are written through subresources of their own. Who asks is recorded by the API server.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use super::pem::{certificate_problem, request_problem};
use crate::cursor::{Cursor, child, keep, keep_field, same};
use crate::metadata::{validate_object_meta, validate_object_meta_update};
use crate::validate::signer_name;
use crate::{NameRule, Strategy, duration, printer};

/// The strategy of CertificateSigningRequests.
pub struct CertificateSigningRequest;

const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const MIN_SECONDS: i64 = 600;
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Which part of a request a write may set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    Nothing,
    Approval,
    Certificate,
}

fn bytes_of(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.text()).unwrap_or_default()
}

fn of_type<'a>(csr: &'a Value, kind: &str) -> Vec<&'a Value> {
    csr["status"]["conditions"].items().iter().filter(|c| c["type"].text() == kind).collect()
}

fn has_duplicates(list: &[&str]) -> bool {
    list.iter().enumerate().any(|(i, item)| list[..i].contains(item))
}

fn condition_types(csr: &Value) -> Vec<&str> {
    csr["status"]["conditions"].items().iter().map(|c| c["type"].text()).collect()
}

/// Faults that a stored object has already are let pass.
fn validate(csr: &Value, old: Option<&Value>) -> ErrorList {
    let mut errs = validate_object_meta(csr, false, NameRule::PathSegment);
    let (spec, path) = (&csr["spec"], Path::new("spec"));
    if let Some(problem) = request_problem(&bytes_of(&spec["request"])) {
        errs.push(field::invalid(&path.child("request"), spec["request"].clone(), problem));
    }
    let (usages, at) = (spec["usages"].texts(), path.child("usages"));
    let old_usages = old.map(|old| old["spec"]["usages"].texts()).unwrap_or_default();
    if usages.is_empty() {
        errs.push(field::required(&at, ""));
    }
    if old_usages.iter().all(|usage| USAGES.contains(usage)) {
        for (i, usage) in usages.iter().enumerate() {
            if !USAGES.contains(usage) {
                errs.push(field::not_supported(&at.index(i), *usage, &USAGES));
            }
        }
    }
    if !has_duplicates(&old_usages) {
        for (i, usage) in usages.iter().enumerate() {
            if usages[..i].contains(usage) {
                errs.push(field::duplicate(&at.index(i), *usage));
            }
        }
    }
    let (signer, at) = (spec["signerName"].text(), path.child("signerName"));
    if signer == LEGACY_SIGNER && old.is_none_or(|old| old["spec"]["signerName"] != LEGACY_SIGNER) {
        errs.push(field::invalid(&at, signer, "the legacy signerName is not allowed via this API version"));
    } else {
        signer_name(&mut errs, &at, signer);
    }
    if let Some(seconds) = spec["expirationSeconds"].as_i64()
        && seconds < MIN_SECONDS
    {
        errs.push(field::invalid(
            &path.child("expirationSeconds"),
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        ));
    }
    validate_conditions(&mut errs, csr, old);
    let certificate = &csr["status"]["certificate"];
    let kept = old.is_some_and(|old| {
        same(&old["status"]["certificate"], certificate)
            || certificate_problem(&bytes_of(&old["status"]["certificate"])).is_some()
    });
    if !kept && let Some(problem) = certificate_problem(&bytes_of(certificate)) {
        errs.push(field::invalid(&Path::new("status").child("certificate"), "<certificate data>", problem));
    }
    errs
}

fn validate_conditions(errs: &mut ErrorList, csr: &Value, old: Option<&Value>) {
    let conditions = Path::new("status").child("conditions");
    let old_types = old.map(condition_types).unwrap_or_default();
    let both = old_types.contains(&"Approved") && old_types.contains(&"Denied");
    let types = condition_types(csr);
    for (i, condition) in csr["status"]["conditions"].items().iter().enumerate() {
        let (kind, status, path) = (types[i], condition["status"].text(), conditions.index(i));
        if kind.is_empty() && !old_types.contains(&"") {
            errs.push(field::required(&path.child("type"), ""));
        }
        let allowed: &[&str] = match kind {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["False", "True", "Unknown"],
        };
        if status.is_empty() {
            errs.push(field::required(&path.child("status"), ""));
        } else if !allowed.contains(&status) {
            errs.push(field::not_supported(&path.child("status"), status, allowed));
        }
        let opposite = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !both && !opposite.is_empty() && types[..i].contains(&opposite) {
            errs.push(field::invalid(
                &conditions,
                kind,
                "Approved and Denied conditions are mutually exclusive",
            ));
        }
        if !has_duplicates(&old_types) && types[..i].contains(&kind) {
            errs.push(field::duplicate(&path.child("type"), kind));
        }
    }
}

fn validate_change(csr: &Value, old: &Value, writes: Writes) -> ErrorList {
    let mut errs = validate(csr, Some(old));
    let (conditions, certificate) =
        (Path::new("status").child("conditions"), Path::new("status").child("certificate"));
    for kind in ["Approved", "Denied", "Failed"] {
        if of_type(csr, kind).len() < of_type(old, kind).len() {
            errs.push(field::forbidden(
                &conditions,
                format!("updates may not remove a condition of type {kind:?}"),
            ));
        }
    }
    if writes != Writes::Approval {
        for kind in ["Approved", "Denied"] {
            let (new, before) = (of_type(csr, kind), of_type(old, kind));
            if new.len() > before.len() {
                errs.push(field::forbidden(
                    &conditions,
                    format!("updates may not add a condition of type {kind:?}"),
                ));
            } else if new.len() == before.len() && !new.iter().zip(&before).all(|(a, b)| same(a, b)) {
                let differences: String =
                    before.iter().zip(&new).map(|(a, b)| crate::cursor::differences(a, b)).collect();
                errs.push(field::forbidden(
                    &conditions,
                    format!("updates may not modify a condition of type {kind:?}\n{differences}"),
                ));
            }
        }
    }
    let before = old["status"]["certificate"].text();
    if csr["status"]["certificate"].text() != before {
        if writes != Writes::Certificate {
            errs.push(field::forbidden(&certificate, "updates may not set certificate content"));
        } else if !before.is_empty() {
            errs.push(field::forbidden(&certificate, "updates may not modify existing certificate content"));
        }
    }
    errs.extend(validate_object_meta_update(csr, old));
    errs
}

/// Keeps what a write of `/approval` may not change: all but the conditions.
pub fn prepare_approval_update(obj: &mut Value, old: &Value) {
    keep(obj, old, &["spec"]);
    keep_field(child(obj, "status"), &old["status"], "certificate");
}

/// Makes the conditions of a type what they were, unless there are more or fewer of them, which is refused later:
/// upstream's `preserveConditionInstances`.
fn keep_conditions(obj: &mut Value, old: &Value, kind: &str) {
    let before: Vec<Value> = of_type(old, kind).into_iter().cloned().collect();
    if of_type(obj, kind).len() != before.len() {
        return;
    }
    let conditions = obj["status"].get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten();
    let own = conditions.filter(|condition| condition["type"].text() == kind);
    for (condition, before) in own.zip(before) {
        *condition = before;
    }
}

/// All that is wrong with a write of `/approval`.
pub fn validate_approval_update(obj: &Value, old: &Value) -> ErrorList {
    validate_change(obj, old, Writes::Approval)
}

/// Fills in the times of conditions that have none: a transition that is not new keeps its time.
pub fn stamp_conditions(obj: &mut Value, old: &Value, now: &str) {
    let Some(conditions) = obj["status"].get_mut("conditions").and_then(Value::as_array_mut) else { return };
    for condition in conditions {
        if condition["lastUpdateTime"].text().is_empty() {
            condition["lastUpdateTime"] = now.into();
        }
        if condition["lastTransitionTime"].text().is_empty() {
            let known = old["status"]["conditions"].items().iter().find(|before| {
                before["type"] == condition["type"]
                    && before["status"] == condition["status"]
                    && !before["lastTransitionTime"].text().is_empty()
            });
            condition["lastTransitionTime"] =
                known.map_or_else(|| now.into(), |before| before["lastTransitionTime"].clone());
        }
    }
}

impl Strategy for CertificateSigningRequest {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn namespaced(&self) -> bool {
        false
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({});
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["spec", "status"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj, None)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        validate_change(obj, old, Writes::Nothing)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["spec"]);
        for kind in ["Approved", "Denied"] {
            keep_conditions(obj, old, kind);
        }
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        validate_change(obj, old, Writes::Certificate)
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        match label {
            "spec.signerName" => Some(obj["spec"]["signerName"].text().to_owned()),
            _ => crate::metadata_field(false, obj, label),
        }
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, types) = (&obj["spec"], condition_types(obj));
        let mut state = if types.contains(&"Denied") {
            "Denied"
        } else if types.contains(&"Approved") {
            "Approved"
        } else {
            "Pending"
        }
        .to_owned();
        if types.contains(&"Failed") {
            state.push_str(",Failed");
        }
        if !obj["status"]["certificate"].text().is_empty() {
            state.push_str(",Issued");
        }
        let asked =
            spec["expirationSeconds"].as_i64().map_or_else(|| "<none>".to_owned(), duration::human_duration);
        let signer = spec["signerName"].text();
        vec![
            printer::name(obj),
            printer::age(obj, now),
            if signer.is_empty() { "<none>".into() } else { signer.into() },
            spec["username"].text().into(),
            asked.into(),
            state.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_cells, check_create, texts};
    use pretty_assertions::assert_eq;

    const GROUP: &str = "certificates.k8s.io";
    const KIND: &str = "CertificateSigningRequest";
    /// A P-256 request for `CN=someone,O=team` in PEM, in base64.
    const REQUEST: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIZE1JR0RBZ0VBTUNFeEVEQU9CZ05WQkFNTUIzTnZiV1Z2Ym1VeERUQUxCZ05WQkFvTUJIUmxZVzB3V1RBVApCZ2NxaGtqT1BRSUJCZ2dxaGtqT1BRTUJCd05DQUFUbm5FWnF3NGk3QmsvOHBUOThKbzhnK1N1TjJRQUpLZ0RYCmdpYncwakdOUWdaVHJrVXd2V25NVkFNa28wNDNRbVNhdlRsU0hmUXlIQWVJMGR4R3BRTkdvQUF3Q2dZSUtvWkkKemowRUF3SURTUUF3UmdJaEFNbWJzWEk3Q0JPdFBDTXNIdzBtS1AvQVY2V2J1U09LZ0Q0Y1NBQnFtU25GQWlFQQo3dFpsamJXTTdVU2dUcjhRQmJySXcydjJFWDBwK25mUmdyZDJDdTE5OG9nPQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";

    fn spec() -> Value {
        json!({"request": REQUEST, "signerName": "example.com/s", "usages": ["client auth"]})
    }

    #[test]
    fn requests() {
        let check = |change: Value, expected: &[&str]| {
            let mut spec = spec();
            for (key, value) in change.entries() {
                spec[key.as_str()] = value.clone();
            }
            check_create(GROUP, KIND, json!({"spec": spec}), expected);
        };
        check(json!({}), &[]);
        check(json!({"usages": []}), &["spec.usages: Required value"]);
        check(
            json!({"usages": ["client auth", "client auth"]}),
            &["spec.usages[1]: Duplicate value: \"client auth\""],
        );
        check(
            json!({"request": "eA=="}),
            &["spec.request: Invalid value: \"eA==\": PEM block type must be CERTIFICATE REQUEST"],
        );
        check(
            json!({"expirationSeconds": 599}),
            &[
                "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)",
            ],
        );
        check(
            json!({"signerName": "kubernetes.io/legacy-unknown"}),
            &[
                "spec.signerName: Invalid value: \"kubernetes.io/legacy-unknown\": the legacy signerName is not allowed via this API version",
            ],
        );
        check(
            json!({"signerName": "example/s"}),
            &[
                "spec.signerName: Invalid value: \"example\": should be a domain with at least two segments separated by dots",
            ],
        );
        check(
            json!({"signerName": "s"}),
            &[
                "spec.signerName: Invalid value: \"s\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ],
        );
    }

    #[test]
    fn approval() {
        let with = |conditions: Value| {
            json!({"metadata": {"name": "x", "resourceVersion": "1"}, "spec": spec(),
                "status": {"conditions": conditions}})
        };
        let approved = json!({"type": "Approved", "status": "True"});
        let denied = json!({"type": "Denied", "status": "True"});
        let check = |new: Value, old: Value, writes: Writes, expected: &[&str]| {
            assert_eq!(texts(&validate_change(&with(new), &with(old), writes)), expected);
        };
        check(json!([approved]), json!([]), Writes::Approval, &[]);
        check(
            json!([approved]),
            json!([]),
            Writes::Certificate,
            &["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""],
        );
        check(
            json!([]),
            json!([approved]),
            Writes::Approval,
            &["status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""],
        );
        check(
            json!([approved, denied]),
            json!([approved]),
            Writes::Approval,
            &[
                "status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive",
            ],
        );
        check(
            json!([{"type": "Denied", "status": "False"}]),
            json!([]),
            Writes::Approval,
            &["status.conditions[0].status: Unsupported value: \"False\": supported values: \"True\""],
        );
    }

    #[test]
    fn conditions() {
        let check = |conditions: Value, expected: &[&str]| {
            let csr = |conditions: Value| {
                json!({"metadata": {"name": "x", "resourceVersion": "1"}, "spec": spec(),
                    "status": {"conditions": conditions}})
            };
            assert_eq!(
                texts(&validate_change(&csr(conditions), &csr(json!([])), Writes::Approval)),
                expected
            );
        };
        check(json!([{"type": "Mine", "status": "Unknown"}]), &[]);
        check(
            json!([{}, {"type": "Failed", "status": "False"}, {"type": "Mine", "status": "Maybe"}, {"type": "Mine", "status": "True"}]),
            &[
                "status.conditions[0].type: Required value",
                "status.conditions[0].status: Required value",
                "status.conditions[1].status: Unsupported value: \"False\": supported values: \"True\"",
                "status.conditions[2].status: Unsupported value: \"Maybe\": supported values: \"False\", \"True\", \"Unknown\"",
                "status.conditions[3].type: Duplicate value: \"Mine\"",
            ],
        );
    }

    #[test]
    fn writes_of_subresources_keep_the_rest() {
        let approved = |message: &str| json!({"type": "Approved", "status": "True", "message": message});
        let old = json!({"spec": {"signerName": "a.b/c"}, "status": {"conditions": [approved("old")], "certificate": "eA=="}});
        let mut new = json!({"spec": {}, "status": {"conditions": [approved("new"), {"type": "Failed"}], "certificate": "eQ=="}});
        let mut approval = new.clone();
        prepare_approval_update(&mut approval, &old);
        assert_eq!(approval["spec"], old["spec"]);
        assert_eq!(approval["status"]["certificate"], "eA==");
        assert_eq!(approval["status"]["conditions"], new["status"]["conditions"]);
        CertificateSigningRequest.prepare_status_update(&mut new, &old);
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(new["status"]["certificate"], "eQ==");
        assert_eq!(new["status"]["conditions"], json!([approved("old"), {"type": "Failed"}]));
    }

    #[test]
    fn rows() {
        check_cells(
            GROUP,
            KIND,
            json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"signerName": "a.b/c", "username": "u", "expirationSeconds": 900},
                "status": {"conditions": [{"type": "Approved"}], "certificate": "eA=="}}),
            json!(["x", "24h", "a.b/c", "u", "15m", "Approved,Issued"]),
        );
    }
}
