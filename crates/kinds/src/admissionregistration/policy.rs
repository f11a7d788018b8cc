//! What validating and mutating admission policies share: parameters, match constraints, variables.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use super::rules;
use crate::cursor::{Cursor, default_to, same};
use crate::validate::require_one_of;

pub(super) use super::expression::Expressions;

/// Fills in a policy's failure policy and match constraints.
pub(super) fn defaults(obj: &mut Value) {
    let Some(spec) = obj.get_mut("spec").filter(|s| s.is_object()) else { return };
    default_to(spec, "failurePolicy", "Fail");
    rules::default_match_resources(spec, "matchConstraints");
}

/// The parts of a policy before its variables; gives what its expressions are checked with.
pub(super) fn validate_head(
    errs: &mut ErrorList,
    spec: &Value,
    old: Option<&Value>,
    mutating: bool,
    path: &Path,
) -> Expressions {
    require_one_of(
        errs,
        &path.child("failurePolicy"),
        spec["failurePolicy"].text(),
        &rules::FAILURE_POLICIES,
    );
    let has_params = spec["paramKind"].is_set();
    if has_params {
        validate_param_kind(errs, &spec["paramKind"], &path.child("paramKind"));
    }
    let constraints = path.child("matchConstraints");
    if spec["matchConstraints"].is_set() {
        rules::validate_match_resources(errs, &spec["matchConstraints"], &constraints);
        if spec["matchConstraints"]["resourceRules"].items().is_empty() {
            errs.push(field::required(&constraints.child("resourceRules"), ""));
        }
        if mutating {
            rules::validate_mutable_operations(errs, &spec["matchConstraints"], &constraints);
        }
    } else {
        errs.push(field::required(&constraints, ""));
    }
    let unchanged = old.is_some_and(|old| {
        same(&old["paramKind"], &spec["paramKind"]) && same(&old["matchConditions"], &spec["matchConditions"])
    });
    if !unchanged {
        let mut stateless = Expressions::stateless(has_params);
        let at = path.child("matchConditions");
        rules::validate_match_conditions(errs, &spec["matchConditions"], &mut stateless, &at);
    }
    Expressions::stateless(has_params)
}

fn validate_param_kind(errs: &mut ErrorList, kind: &Value, path: &Path) {
    let api_version = kind["apiVersion"].text();
    let at = path.child("apiVersion");
    if api_version.is_empty() {
        errs.push(field::required(&at, ""));
    } else if api_version.matches('/').count() > 1 {
        let detail = format!("unexpected GroupVersion string: {api_version}");
        errs.push(field::invalid(&at, api_version, detail));
    } else {
        let (group, version) = match api_version {
            "/" => ("", ""),
            text => text.split_once('/').unwrap_or(("", text)),
        };
        if !group.is_empty() {
            let wrong = names::is_dns1123_subdomain(group);
            if !wrong.is_empty() {
                errs.push(field::invalid(&at, group, wrong.join(",")));
            }
        }
        if version.is_empty() {
            errs.push(field::invalid(&at, api_version, "version must be specified"));
        } else {
            let wrong = names::is_dns1035_label(version);
            if !wrong.is_empty() {
                errs.push(field::invalid(&at, version, wrong.join(",")));
            }
        }
    }
    let name = kind["kind"].text();
    let at = path.child("kind");
    if name.is_empty() {
        errs.push(field::required(&at, ""));
        return;
    }
    let wrong = names::is_dns1035_label(&name.to_lowercase());
    if !wrong.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errs.push(field::invalid(&at, name, detail));
    }
}

/// The policy's variables, each of which the later expressions may use.
pub(super) fn validate_variables(
    errs: &mut ErrorList,
    spec: &Value,
    expressions: &mut Expressions,
    path: &Path,
) {
    for (i, variable) in spec["variables"].items().iter().enumerate() {
        let at = path.child("variables").index(i);
        let (name, expression) = (variable["name"].text(), variable["expression"].text());
        if name.trim().is_empty() {
            errs.push(field::required(&at.child("name"), "name is not specified"));
        } else if !is_identifier(name) {
            errs.push(field::invalid(&at.child("name"), name, "must be a valid CEL identifier"));
        }
        if expression.trim().is_empty() {
            errs.push(field::required(&at.child("expression"), "expression is not specified"));
        } else {
            expressions.variable(errs, name, expression, &at.child("expression"));
        }
    }
}

/// Whether CEL could read the name as an identifier.
fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = |b: u8| b == b'_' || b.is_ascii_alphabetic();
    bytes.next().is_some_and(first)
        && bytes.all(|b| first(b) || b.is_ascii_digit())
        && !orlop_cel::escaping::RESERVED.contains(&name)
}

/// The `ParamKind` cell.
pub(super) fn param_kind_cell(obj: &Value) -> Value {
    let kind = &obj["spec"]["paramKind"];
    if !kind.is_set() {
        return "<unset>".into();
    }
    format!("{}/{}", kind["apiVersion"].text(), kind["kind"].text()).into()
}
