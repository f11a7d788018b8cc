//! ValidatingAdmissionPolicyBinding and MutatingAdmissionPolicyBinding: where a policy applies, and with which
//! parameters.

use std::collections::HashSet;

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use super::{rules, static_suffix_warnings};
use crate::cursor::{Cursor, bump_generation, set_generation};
use crate::validate::{dns_subdomain, label_selector};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of ValidatingAdmissionPolicyBindings.
pub struct ValidatingAdmissionPolicyBinding;

/// The strategy of MutatingAdmissionPolicyBindings.
pub struct MutatingAdmissionPolicyBinding;

const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];

fn validate_param_ref(errs: &mut ErrorList, reference: &Value, path: &Path) {
    if !reference.is_set() {
        return;
    }
    let (name, selector) = (reference["name"].text(), &reference["selector"]);
    if !name.is_empty() {
        for message in names::path_segment(name) {
            errs.push(field::invalid(&path.child("name"), name, message));
        }
        if selector.is_set() {
            errs.push(field::forbidden(&path.child("name"), "name and selector are mutually exclusive"));
        }
    }
    if selector.is_set() {
        label_selector(errs, &path.child("selector"), selector);
        if !name.is_empty() {
            errs.push(field::forbidden(&path.child("selector"), "name and selector are mutually exclusive"));
        }
    } else if name.is_empty() {
        errs.push(field::required(path, "one of name or selector must be specified"));
    }
    let at = path.child("parameterNotFoundAction");
    match reference["parameterNotFoundAction"].text() {
        "" => errs.push(field::required(&at, "")),
        "Deny" | "Allow" => {}
        other => errs.push(field::not_supported(&at, other, &["Deny", "Allow"])),
    }
}

fn validate_actions(errs: &mut ErrorList, value: &Value, path: &Path) {
    let list = value.texts();
    let mut seen = HashSet::new();
    for (i, action) in list.iter().copied().enumerate() {
        if !ACTIONS.contains(&action) {
            errs.push(field::not_supported(&path.index(i), action, &ACTIONS));
        }
        if !seen.insert(action) {
            errs.push(field::duplicate(&path.index(i), action));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        errs.push(field::invalid(
            path,
            value.clone(),
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        ));
    }
    if seen.is_empty() {
        errs.push(field::required(path, "at least one validation action is required"));
    }
}

fn validate(obj: &Value, mutating: bool) -> ErrorList {
    let mut errs = metadata::validate_generic_object_meta(obj, false, NameRule::DnsSubdomain);
    let (spec, path) = (&obj["spec"], Path::new("spec"));
    let policy = spec["policyName"].text();
    if policy.is_empty() {
        errs.push(field::required(&path.child("policyName"), ""));
    } else {
        dns_subdomain(&mut errs, &path.child("policyName"), policy);
    }
    validate_param_ref(&mut errs, &spec["paramRef"], &path.child("paramRef"));
    let resources = path.child("matchResources");
    rules::validate_match_resources(&mut errs, &spec["matchResources"], &resources);
    if mutating {
        rules::validate_mutable_operations(&mut errs, &spec["matchResources"], &resources);
    } else {
        validate_actions(&mut errs, &spec["validationActions"], &path.child("validationActions"));
    }
    errs
}

fn cells(obj: &Value, now: Timestamp) -> Vec<Value> {
    let reference = &obj["spec"]["paramRef"];
    let param = match (reference.is_set(), reference["namespace"].text()) {
        (false, _) => "<unset>".to_owned(),
        (true, "") => reference["name"].text().to_owned(),
        (true, namespace) => format!("{namespace}/{}", reference["name"].text()),
    };
    vec![printer::name(obj), obj["spec"]["policyName"].text().into(), param.into(), printer::age(obj, now)]
}

macro_rules! strategy {
    ($kind:ident, $mutating:literal) => {
        impl Strategy for $kind {
            fn namespaced(&self) -> bool {
                false
            }

            fn defaults(&self, obj: &mut Value) {
                if let Some(spec) = obj.get_mut("spec") {
                    rules::default_match_resources(spec, "matchResources");
                }
            }

            fn prepare_create(&self, obj: &mut Value) {
                set_generation(obj, 1);
            }

            fn prepare_update(&self, obj: &mut Value, old: &Value) {
                bump_generation(obj, old, &["spec"]);
            }

            fn validate_create(&self, obj: &Value) -> ErrorList {
                validate(obj, $mutating)
            }

            fn validate_update(&self, obj: &Value, _old: &Value) -> ErrorList {
                validate(obj, $mutating)
            }

            fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
                static_suffix_warnings(obj)
            }

            fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
                cells(obj, now)
            }

            fn allow_unconditional_update(&self) -> bool {
                false
            }
        }
    };
}

strategy!(ValidatingAdmissionPolicyBinding, false);
strategy!(MutatingAdmissionPolicyBinding, true);

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create};
    use orlop_json::{Value, json};

    const GROUP: &str = "admissionregistration.k8s.io";

    #[test]
    fn validation() {
        let check = |spec: Value, expected: &[&str]| {
            check_create(GROUP, "ValidatingAdmissionPolicyBinding", json!({"spec": spec}), expected);
        };
        check(json!({"policyName": "p", "validationActions": ["Deny", "Audit"]}), &[]);
        check(
            json!({"validationActions": ["Deny", "Warn", "Deny", "Log"], "paramRef": {}}),
            &[
                "spec.policyName: Required value",
                "spec.paramRef: Required value: one of name or selector must be specified",
                "spec.paramRef.parameterNotFoundAction: Required value",
                "spec.validationActions[2]: Duplicate value: \"Deny\"",
                "spec.validationActions[3]: Unsupported value: \"Log\": supported values: \"Audit\", \"Deny\", \"Warn\"",
                "spec.validationActions: Invalid value: [\"Deny\",\"Warn\",\"Deny\",\"Log\"]: must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
            ],
        );
        check(
            json!({"policyName": "p", "paramRef": {"name": "a", "selector": {}, "parameterNotFoundAction": "Maybe"}}),
            &[
                "spec.paramRef.name: Forbidden: name and selector are mutually exclusive",
                "spec.paramRef.selector: Forbidden: name and selector are mutually exclusive",
                "spec.paramRef.parameterNotFoundAction: Unsupported value: \"Maybe\": supported values: \"Deny\", \"Allow\"",
                "spec.validationActions: Required value: at least one validation action is required",
            ],
        );
        check_create(
            GROUP,
            "MutatingAdmissionPolicyBinding",
            json!({"spec": {"policyName": "p", "matchResources": {"resourceRules": [
                {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["DELETE"], "resources": ["*"]}]}}}),
            &[
                "spec.matchResources.resourceRules.operations: Unsupported value: \"DELETE\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"UPDATE\"",
            ],
        );
    }

    #[test]
    fn cells() {
        let check = |spec: Value, expected: &str| {
            let obj =
                json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"}, "spec": spec});
            check_cells(GROUP, "ValidatingAdmissionPolicyBinding", obj, json!(["x", "p", expected, "24h"]));
        };
        check(json!({"policyName": "p"}), "<unset>");
        check(json!({"policyName": "p", "paramRef": {"name": "n"}}), "n");
        check(json!({"policyName": "p", "paramRef": {"name": "n", "namespace": "s"}}), "s/n");
    }
}
