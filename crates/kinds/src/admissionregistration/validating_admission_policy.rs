//! ValidatingAdmissionPolicy: rules in CEL that every request they match must satisfy.

use std::collections::HashSet;

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use super::field_ref;
use super::policy::{self, Expressions};
use super::static_suffix_warnings;
use crate::cursor::{Cursor, bump_generation, keep, set_generation};
use crate::validate::one_of;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of ValidatingAdmissionPolicies.
pub struct ValidatingAdmissionPolicy;

const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
const MAX_AUDIT_ANNOTATIONS: usize = 20;
/// Longest expression of an audit annotation in bytes.
const MAX_AUDIT_EXPRESSION: usize = 5 * 1024;

fn validate_validation(errs: &mut ErrorList, validation: &Value, expressions: &mut Expressions, path: &Path) {
    let expression = validation["expression"].text();
    if expression.trim().is_empty() {
        errs.push(field::required(&path.child("expression"), "expression is not specified"));
    } else {
        expressions.validation(errs, expression, &path.child("expression"));
    }
    let message_expression = validation["messageExpression"].text();
    if !message_expression.is_empty() {
        let at = path.child("messageExpression");
        if message_expression.trim().is_empty() {
            errs.push(field::invalid(&at, message_expression, "must be non-empty if specified"));
        } else {
            expressions.message(errs, message_expression, &at);
        }
    }
    let message = validation["message"].text();
    if !message.is_empty() && message.trim().is_empty() {
        errs.push(field::invalid(&path.child("message"), message, "must be non-empty if specified"));
    } else if message.trim().contains(['\n', '\r']) {
        errs.push(field::invalid(&path.child("message"), message, "must not contain line breaks"));
    }
    one_of(errs, &path.child("reason"), &validation["reason"], &REASONS);
}

fn validate_audit_annotations(errs: &mut ErrorList, obj: &Value, expressions: &mut Expressions, path: &Path) {
    let annotations = &obj["spec"]["auditAnnotations"];
    let list = annotations.items();
    if list.len() > MAX_AUDIT_ANNOTATIONS {
        errs.push(field::invalid(
            path,
            annotations.clone(),
            format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations"),
        ));
    }
    let policy = obj["metadata"]["name"].text();
    let mut seen = HashSet::new();
    for (i, annotation) in list.iter().enumerate() {
        let at = path.index(i);
        let key = annotation["key"].text();
        if policy.is_empty() {
            errs.push(field::invalid(&at.child("key"), key, "requires metadata.name be non-empty"));
        } else {
            let full = format!("{policy}/{key}");
            for message in names::is_qualified_name(&full) {
                errs.push(field::invalid(&at.child("key"), full.as_str(), message));
            }
        }
        let value = annotation["valueExpression"].text();
        let value_path = at.child("valueExpression");
        if value.trim().is_empty() {
            errs.push(field::required(&value_path, "valueExpression is not specified"));
        } else if value.trim().len() > MAX_AUDIT_EXPRESSION {
            let detail = format!("must not exceed {MAX_AUDIT_EXPRESSION} bytes in length");
            errs.push(field::required(&value_path, &detail));
        } else {
            expressions.audit_annotation(errs, value, &value_path);
        }
        if !seen.insert(key) {
            errs.push(field::duplicate(&at.child("key"), key));
        }
    }
}

fn validate(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut errs = metadata::validate_generic_object_meta(obj, false, NameRule::DnsSubdomain);
    let (spec, path) = (&obj["spec"], Path::new("spec"));
    let mut expressions = policy::validate_head(&mut errs, spec, old.map(|old| &old["spec"]), false, &path);
    policy::validate_variables(&mut errs, spec, &mut expressions, &path);
    if spec["validations"].is_empty() && spec["auditAnnotations"].is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        errs.push(field::required(&path.child("validations"), detail));
        errs.push(field::required(&path.child("auditAnnotations"), detail));
        return errs;
    }
    for (i, validation) in spec["validations"].items().iter().enumerate() {
        validate_validation(&mut errs, validation, &mut expressions, &path.child("validations").index(i));
    }
    validate_audit_annotations(&mut errs, obj, &mut expressions, &path.child("auditAnnotations"));
    errs
}

impl Strategy for ValidatingAdmissionPolicy {
    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        policy::defaults(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({});
        set_generation(obj, 1);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
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

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, _old: &Value) -> ErrorList {
        let mut errs = ErrorList::new();
        let (status, path) = (&obj["status"], Path::new("status"));
        let warnings = path.child("typeChecking").child("expressionWarnings");
        for (i, warning) in status["typeChecking"]["expressionWarnings"].items().iter().enumerate() {
            let at = warnings.index(i);
            if warning["warning"].text().is_empty() {
                errs.push(field::required(&at.child("warning"), ""));
            }
            field_ref::validate(&mut errs, &at.child("fieldRef"), warning["fieldRef"].text());
        }
        crate::validate::conditions(&mut errs, &path.child("conditions"), &status["conditions"]);
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            printer::name(obj),
            obj["spec"]["validations"].items().len().into(),
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
    use crate::testing::{check_cells, check_create, check_update};
    use orlop_json::{Value, json};

    const GROUP: &str = "admissionregistration.k8s.io";
    const KIND: &str = "ValidatingAdmissionPolicy";

    fn policy(changes: Value) -> Value {
        let mut spec = json!({
            "matchConstraints": {"resourceRules": [
                {"apiGroups": ["g"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["x"]}]},
            "validations": [{"expression": "true"}],
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        json!({"spec": spec})
    }

    #[test]
    fn validation() {
        let check = |changes: Value, expected: &[&str]| check_create(GROUP, KIND, policy(changes), expected);
        check(json!({}), &[]);
        check(
            json!({"variables": [{"name": "v", "expression": "1"}, {"name": "v", "expression": "2"}]}),
            &[],
        );
        check(
            json!({"variables": [{"name": "1v", "expression": "1"}, {"name": "namespace", "expression": ""}, {}]}),
            &[
                "spec.variables[0].name: Invalid value: \"1v\": must be a valid CEL identifier",
                "spec.variables[1].name: Invalid value: \"namespace\": must be a valid CEL identifier",
                "spec.variables[1].expression: Required value: expression is not specified",
                "spec.variables[2].name: Required value: name is not specified",
                "spec.variables[2].expression: Required value: expression is not specified",
            ],
        );
        check(
            json!({"failurePolicy": "Maybe", "paramKind": {"apiVersion": "a/b/c", "kind": "9"}, "matchConstraints": {}}),
            &[
                "spec.failurePolicy: Unsupported value: \"Maybe\": supported values: \"Fail\", \"Ignore\"",
                "spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
                "spec.paramKind.kind: Invalid value: \"9\": may have mixed case, but should otherwise match: a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
                "spec.matchConstraints.resourceRules: Required value",
            ],
        );
        check(
            json!({"validations": []}),
            &[
                "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
                "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
            ],
        );
        check(
            json!({"validations": [{"expression": " ", "message": " ", "messageExpression": " ", "reason": "Why"}, {"expression": "true", "message": "a\nb"}]}),
            &[
                "spec.validations[0].expression: Required value: expression is not specified",
                "spec.validations[0].messageExpression: Invalid value: \" \": must be non-empty if specified",
                "spec.validations[0].message: Invalid value: \" \": must be non-empty if specified",
                "spec.validations[0].reason: Unsupported value: \"Why\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\"",
                "spec.validations[1].message: Invalid value: \"a\\nb\": must not contain line breaks",
            ],
        );
        check(
            json!({"auditAnnotations": [{"key": "k", "valueExpression": "'v'"}, {"key": "k", "valueExpression": ""}]}),
            &[
                "spec.auditAnnotations[1].valueExpression: Required value: valueExpression is not specified",
                "spec.auditAnnotations[1].key: Duplicate value: \"k\"",
            ],
        );
    }

    #[test]
    fn expressions_are_compiled() {
        let check = |changes: Value, expected: &[&str]| check_create(GROUP, KIND, policy(changes), expected);
        check(
            json!({"validations": [{"expression": "'a'", "messageExpression": "1"}]}),
            &[
                "spec.validations[0].expression: Invalid value: \"'a'\": must evaluate to bool but got string",
                "spec.validations[0].messageExpression: Invalid value: \"1\": must evaluate to string but got int",
            ],
        );
        check(
            json!({"validations": [{"expression": "params.x", "messageExpression": "authorizer.path('/x').check('get').reason()"}]}),
            &[
                "spec.validations[0].expression: Invalid value: \"params.x\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')\n | params.x\n | ^",
                "spec.validations[0].messageExpression: Invalid value: \"authorizer.path('/x').check('get').reason()\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'authorizer' (in container '')\n | authorizer.path('/x').check('get').reason()\n | ^",
            ],
        );
        check(
            json!({"variables": [{"name": "v", "expression": "[1]"}], "validations": [{"expression": "variables.v[0] == 1"}, {"expression": "variables.v"}]}),
            &[
                "spec.validations[1].expression: Invalid value: \"variables.v\": must evaluate to bool but got list(int)",
            ],
        );
        check(
            json!({"auditAnnotations": [{"key": "k", "valueExpression": "1"}]}),
            &[
                "spec.auditAnnotations[0].valueExpression: Invalid value: \"1\": must evaluate to one of [string null_type] but got int",
            ],
        );
    }

    #[test]
    fn match_conditions_that_stay_are_not_looked_at_again() {
        let broken = policy(json!({"matchConditions": [{"name": "a", "expression": "this is not CEL"}]}));
        check_update(GROUP, KIND, broken.clone(), broken, &[]);
    }

    #[test]
    fn cells() {
        check_cells(
            GROUP,
            KIND,
            json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"}, "spec": {"validations": [{}], "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}}}),
            json!(["x", 1, "v1/ConfigMap", "24h"]),
        );
    }
}
