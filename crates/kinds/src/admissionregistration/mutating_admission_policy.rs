//! MutatingAdmissionPolicy: changes in CEL that are made to every object they match.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::policy::{self, Expressions};
use super::{rules, static_suffix_warnings};
use crate::cursor::{Cursor, bump_generation, set_generation};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of MutatingAdmissionPolicies.
pub struct MutatingAdmissionPolicy;

fn validate_mutation(errs: &mut ErrorList, mutation: &Value, expressions: &mut Expressions, path: &Path) {
    let kind = mutation["patchType"].text();
    let (own, other) = match kind {
        "" => {
            errs.push(field::required(&path.child("patchType"), ""));
            return;
        }
        "JSONPatch" => ("jsonPatch", "applyConfiguration"),
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
        unknown => {
            let known = ["ApplyConfiguration", "JSONPatch"];
            errs.push(field::not_supported(&path.child("patchType"), unknown, &known));
            return;
        }
    };
    if mutation[own].is_set() {
        let at = path.child(own).child("expression");
        let expression = mutation[own]["expression"].text().trim();
        match (expression, own) {
            ("", _) => errs.push(field::required(&at, "")),
            (_, "jsonPatch") => expressions.json_patch(errs, expression, &at),
            _ => expressions.apply_configuration(errs, expression, &at),
        }
    } else {
        let detail = format!("must be specified when patchType is {kind}");
        errs.push(field::required(&path.child(own), &detail));
    }
    if mutation[other].is_set() {
        errs.push(field::invalid(
            &path.child(other),
            format!("{{{other}}}"),
            format!("must not be specified when patchType is {kind}"),
        ));
    }
}

fn validate(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut errs = metadata::validate_generic_object_meta(obj, false, NameRule::DnsSubdomain);
    let (spec, path) = (&obj["spec"], Path::new("spec"));
    let mut expressions = policy::validate_head(&mut errs, spec, old.map(|old| &old["spec"]), true, &path);
    policy::validate_variables(&mut errs, spec, &mut expressions, &path);
    let mutations = spec["mutations"].items();
    if mutations.is_empty() {
        errs.push(field::required(&path.child("mutations"), "mutations must contain at least one item"));
    }
    for (i, mutation) in mutations.iter().enumerate() {
        validate_mutation(&mut errs, mutation, &mut expressions, &path.child("mutations").index(i));
    }
    crate::validate::require_one_of(
        &mut errs,
        &path.child("reinvocationPolicy"),
        spec["reinvocationPolicy"].text(),
        &rules::REINVOCATION_POLICIES,
    );
    errs
}

impl Strategy for MutatingAdmissionPolicy {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        policy::defaults(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        set_generation(obj, 1);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        bump_generation(obj, old, &["spec"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj, None)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        validate(obj, Some(old))
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        static_suffix_warnings(obj)
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            printer::name(obj),
            obj["spec"]["mutations"].items().len().into(),
            policy::param_kind_cell(obj),
            printer::age(obj, now),
        ]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::check_create;
    use orlop_json::{Value, json};

    #[test]
    fn validation() {
        let check = |changes: Value, expected: &[&str]| {
            let mut spec = json!({
                "matchConstraints": {"resourceRules": [
                    {"apiGroups": ["g"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["x"]}]},
                "reinvocationPolicy": "Never",
                "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}}],
            });
            for (key, value) in changes.as_object().into_iter().flatten() {
                spec[key] = value.clone();
            }
            let obj = json!({"spec": spec});
            check_create("admissionregistration.k8s.io", "MutatingAdmissionPolicy", obj, expected);
        };
        check(json!({}), &[]);
        check(
            json!({"reinvocationPolicy": null, "mutations": []}),
            &[
                "spec.mutations: Required value: mutations must contain at least one item",
                "spec.reinvocationPolicy: Required value",
            ],
        );
        check(
            json!({"mutations": [{}, {"patchType": "Merge"}, {"patchType": "JSONPatch", "applyConfiguration": {}}, {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": " "}}]}),
            &[
                "spec.mutations[0].patchType: Required value",
                "spec.mutations[1].patchType: Unsupported value: \"Merge\": supported values: \"ApplyConfiguration\", \"JSONPatch\"",
                "spec.mutations[2].jsonPatch: Required value: must be specified when patchType is JSONPatch",
                "spec.mutations[2].applyConfiguration: Invalid value: \"{applyConfiguration}\": must not be specified when patchType is JSONPatch",
                "spec.mutations[3].applyConfiguration.expression: Required value",
            ],
        );
        check(
            json!({"matchConstraints": {"resourceRules": [
                {"apiGroups": ["g"], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["x"]}]}}),
            &[
                "spec.matchConstraints.resourceRules.operations: Unsupported value: \"DELETE\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"UPDATE\"",
            ],
        );
    }
}
