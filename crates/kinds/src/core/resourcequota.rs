//! ResourceQuota: what all objects of a namespace may use together.

use std::collections::BTreeSet;

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Key, Value, json};

use super::pod::defaults::round_quantities;
use super::pod::resources::{is_huge_page, validate_resource_name, validate_resource_quantity};
use crate::cursor::{Cursor, keep};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of ResourceQuotas.
pub struct ResourceQuota;

const POD_SCOPES: [&str; 5] =
    ["Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "CrossNamespacePodAffinity"];
const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];
const QUOTA_RESOURCES: [&str; 18] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
];

fn is_standard_quota(name: &str) -> bool {
    QUOTA_RESOURCES.contains(&name)
        || name == "services.loadbalancers"
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
}

/// Whether a quota on `resource` can be narrowed to `scope`.
fn scope_applies(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => matches!(
            resource,
            "pods" | "cpu" | "memory" | "requests.cpu" | "requests.memory" | "limits.cpu" | "limits.memory"
        ),
    }
}

fn validate_list(errs: &mut ErrorList, path: &Path, list: &Value) {
    for (name, value) in list.entries() {
        let path = path.key(name);
        validate_resource_name(errs, &path, name);
        if !name.contains('/') && !is_standard_quota(name) {
            errs.push(field::invalid(&path, name.as_str(), "must be a standard resource for quota"));
        }
        validate_resource_quantity(errs, &path, name, value);
    }
}

fn validate_spec(errs: &mut ErrorList, spec: &Value) {
    let path = Path::new("spec");
    validate_list(errs, &path.child("hard"), &spec["hard"]);
    let hard: Vec<&str> = spec["hard"].entries().map(|(name, _)| name.as_str()).collect();
    let misfits = |scope: &str| {
        hard.iter().filter(|name| is_standard_quota(name) && !scope_applies(scope, name)).count()
    };
    let scopes = spec["scopes"].texts();
    let at = path.child("scopes");
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errs.push(field::invalid(&at, spec["scopes"].clone(), "unsupported scope"));
            continue;
        }
        for _ in 0..misfits(scope) {
            errs.push(field::invalid(&at, spec["scopes"].clone(), "unsupported scope applied to resource"));
        }
    }
    for (a, b) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if scopes.contains(&a) && scopes.contains(&b) {
            errs.push(field::invalid(&at, spec["scopes"].clone(), "conflicting scopes"));
        }
    }
    let at = path.child("scopeSelector").child("matchExpressions");
    for requirement in spec["scopeSelector"]["matchExpressions"].items() {
        let (scope, operator) = (requirement["scopeName"].text(), requirement["operator"].text());
        if !SCOPES.contains(&scope) {
            errs.push(field::invalid(&at.child("scopeName"), scope, "unsupported scope"));
        } else {
            for _ in 0..misfits(scope) {
                errs.push(field::invalid(
                    &at,
                    spec["scopeSelector"].clone(),
                    "unsupported scope applied to resource",
                ));
            }
        }
        if POD_SCOPES.contains(&scope) && operator != "Exists" {
            errs.push(field::invalid(
                &at.child("operator"),
                operator,
                "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            ));
        }
        let values = requirement["values"].items();
        match operator {
            "In" | "NotIn" if values.is_empty() => errs.push(field::required(
                &at.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errs.push(field::invalid(
                &at.child("values"),
                requirement["values"].clone(),
                "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errs.push(field::invalid(&at.child("operator"), other, "not a valid selector operator")),
        }
    }
}

impl Strategy for ResourceQuota {
    fn defaults(&self, obj: &mut Value) {
        for (part, list) in [("spec", "hard"), ("status", "hard"), ("status", "used")] {
            if let Some(list) = obj.get_mut(part).and_then(|p| p.get_mut(list)) {
                round_quantities(list);
            }
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({});
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"]);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        validate_spec(&mut errs, &obj["spec"]);
        let scopes = |quota: &Value| quota["spec"]["scopes"].texts().into_iter().map(str::to_owned).collect();
        let (now, before): (BTreeSet<String>, BTreeSet<String>) = (scopes(obj), scopes(old));
        if now != before {
            errs.push(field::invalid(
                &Path::new("spec").child("scopes"),
                obj["spec"]["scopes"].clone(),
                metadata::IMMUTABLE,
            ));
        }
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        for list in ["hard", "used"] {
            validate_list(&mut errs, &Path::new("status").child(list), &obj["status"][list]);
        }
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let status = &obj["status"];
        let mut names: Vec<&Key> = status["hard"].entries().map(|(name, _)| name).collect();
        names.sort_unstable();
        let column = |limits: bool| -> Value {
            let all: Vec<String> = names
                .iter()
                .filter(|name| name.starts_with("limits") == limits)
                .map(|name| {
                    let used = match status["used"][name.as_str()].text() {
                        "" => "0",
                        used => used,
                    };
                    format!("{name}: {used}/{}", status["hard"][name.as_str()].text())
                })
                .collect();
            all.join(", ").into()
        };
        vec![printer::name(obj), column(false), column(true), printer::age(obj, now)]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create};
    use orlop_json::{Value, json};

    #[test]
    fn validation() {
        let check = |spec: Value, expected: &[&str]| {
            check_create("", "ResourceQuota", json!({"spec": spec}), expected)
        };
        check(json!({"hard": {"pods": "1", "count/deployments.apps": "3", "services.nodeports": "1"}}), &[]);
        check(
            json!({"hard": {"foo": "1"}}),
            &[
                "spec.hard[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified",
                "spec.hard[foo]: Invalid value: \"foo\": must be a standard resource for quota",
            ],
        );
        check(
            json!({"hard": {"requests.cpu": "1"}, "scopes": ["BestEffort"]}),
            &["spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"],
        );
    }

    #[test]
    fn rows() {
        check_cells(
            "",
            "ResourceQuota",
            json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "status": {"hard": {"pods": "10", "limits.cpu": "4", "cpu": "2"}, "used": {"pods": "1"}}}),
            json!(["x", "cpu: 0/2, pods: 1/10", "limits.cpu: 0/4", "24h"]),
        );
    }
}
