//! Rules that say which requests a webhook or policy is for, the selectors beside them and their conditions: what
//! webhooks and policies share.

use std::collections::HashSet;

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use super::policy::Expressions;
use crate::cursor::{Cursor, default_to, items_mut};
use crate::validate::{label_selector, one_of};

pub(super) const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
pub(super) const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
pub(super) const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const MUTABLE_OPERATIONS: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
const MAX_MATCH_CONDITIONS: usize = 64;

/// Fills in the scope of each rule of a list.
pub(super) fn default_rules(parent: &mut Value, key: &str) {
    for rule in items_mut(parent, key) {
        default_to(rule, "scope", "*");
    }
}

/// Fills in a `MatchResources`.
pub(super) fn default_match_resources(parent: &mut Value, key: &str) {
    let Some(resources) = parent.get_mut(key).filter(|r| r.is_object()) else { return };
    default_to(resources, "matchPolicy", "Equivalent");
    default_to(resources, "namespaceSelector", orlop_json::json!({}));
    default_to(resources, "objectSelector", orlop_json::json!({}));
    default_rules(resources, "resourceRules");
    default_rules(resources, "excludeResourceRules");
}

fn has_wildcard(list: &[&str]) -> bool {
    list.contains(&"*")
}

/// `resources` of a rule: `pods`, `pods/log`, `*`, `pods/*`, `*/scale`, `*/*`, none of them covering another.
fn validate_resources(errs: &mut ErrorList, value: &Value, path: &Path) {
    let list = value.texts();
    if list.is_empty() {
        errs.push(field::required(path, ""));
    }
    let (mut all_of_resource, mut of_every_resource) = (HashSet::new(), HashSet::new());
    let (mut double, mut single, mut plain) = (false, false, false);
    for (i, item) in list.iter().copied().enumerate() {
        if item.is_empty() {
            errs.push(field::required(&path.index(i), ""));
            continue;
        }
        double |= item == "*/*";
        single |= item == "*";
        let Some((resource, subresource)) = item.split_once('/') else {
            // As upstream: the last one without a subresource counts.
            plain = item != "*";
            continue;
        };
        if all_of_resource.contains(resource) {
            errs.push(field::invalid(
                &path.index(i),
                item,
                format!("if '{resource}/*' is present, must not specify {item}"),
            ));
        }
        if of_every_resource.contains(subresource) {
            errs.push(field::invalid(
                &path.index(i),
                item,
                format!("if '*/{subresource}' is present, must not specify {item}"),
            ));
        }
        if subresource == "*" {
            all_of_resource.insert(resource);
        }
        if resource == "*" {
            of_every_resource.insert(subresource);
        }
    }
    if list.len() > 1 && double {
        errs.push(field::invalid(
            path,
            value.clone(),
            "if '*/*' is present, must not specify other resources",
        ));
    }
    if single && plain {
        errs.push(field::invalid(
            path,
            value.clone(),
            "if '*' is present, must not specify other resources without subresources",
        ));
    }
}

/// A `RuleWithOperations`.
pub(super) fn validate_rule(errs: &mut ErrorList, rule: &Value, path: &Path) {
    let at = path.child("operations");
    let operations = rule["operations"].texts();
    if operations.is_empty() {
        errs.push(field::required(&at, ""));
    }
    if operations.len() > 1 && has_wildcard(&operations) {
        errs.push(field::invalid(
            &at,
            rule["operations"].clone(),
            "if '*' is present, must not specify other operations",
        ));
    }
    for (i, operation) in operations.iter().enumerate() {
        if !OPERATIONS.contains(operation) {
            errs.push(field::not_supported(&at.index(i), *operation, &OPERATIONS));
        }
    }
    let at = path.child("apiGroups");
    let groups = rule["apiGroups"].texts();
    if groups.is_empty() {
        errs.push(field::required(&at, ""));
    }
    if groups.len() > 1 && has_wildcard(&groups) {
        errs.push(field::invalid(
            &at,
            rule["apiGroups"].clone(),
            "if '*' is present, must not specify other API groups",
        ));
    }
    let at = path.child("apiVersions");
    let versions = rule["apiVersions"].texts();
    if versions.is_empty() {
        errs.push(field::required(&at, ""));
    }
    if versions.len() > 1 && has_wildcard(&versions) {
        errs.push(field::invalid(
            &at,
            rule["apiVersions"].clone(),
            "if '*' is present, must not specify other API versions",
        ));
    }
    for (i, version) in versions.iter().enumerate() {
        if version.is_empty() {
            errs.push(field::required(&at.index(i), ""));
        }
    }
    validate_resources(errs, &rule["resources"], &path.child("resources"));
    one_of(errs, &path.child("scope"), &rule["scope"], &SCOPES);
}

fn validate_named_rule(errs: &mut ErrorList, rule: &Value, path: &Path) {
    let mut seen = HashSet::new();
    for (i, name) in rule["resourceNames"].texts().into_iter().enumerate() {
        let at = path.child("resourceNames").index(i);
        for message in names::path_segment(name) {
            errs.push(field::invalid(&at, name, message));
        }
        if !seen.insert(name) {
            errs.push(field::duplicate(&at, name));
        }
    }
    validate_rule(errs, rule, path);
}

/// A `MatchResources`; absent is fine.
pub(super) fn validate_match_resources(errs: &mut ErrorList, resources: &Value, path: &Path) {
    if !resources.is_set() {
        return;
    }
    if resources["matchPolicy"].is_set() {
        one_of(errs, &path.child("matchPolicy"), &resources["matchPolicy"], &MATCH_POLICIES);
    } else {
        errs.push(field::required(&path.child("matchPolicy"), ""));
    }
    for key in ["namespaceSelector", "objectSelector"] {
        if resources[key].is_set() {
            label_selector(errs, &path.child(key), &resources[key]);
        } else {
            errs.push(field::required(&path.child(key), ""));
        }
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in resources[key].items().iter().enumerate() {
            validate_named_rule(errs, rule, &path.child(key).index(i));
        }
    }
}

/// A deletion cannot be mutated.
pub(super) fn validate_mutable_operations(errs: &mut ErrorList, resources: &Value, path: &Path) {
    let at = path.child("resourceRules").child("operations");
    for rule in resources["resourceRules"].items() {
        for operation in rule["operations"].texts() {
            if !MUTABLE_OPERATIONS.contains(&operation) {
                errs.push(field::not_supported(&at, operation, &MUTABLE_OPERATIONS));
            }
        }
    }
}

/// Conditions written in CEL under which a webhook or policy is asked at all.
pub(super) fn validate_match_conditions(
    errs: &mut ErrorList,
    conditions: &Value,
    expressions: &mut Expressions,
    path: &Path,
) {
    let list = conditions.items();
    if list.len() > MAX_MATCH_CONDITIONS {
        errs.push(field::too_many(path, list.len(), MAX_MATCH_CONDITIONS));
    }
    let mut seen = HashSet::new();
    for (i, condition) in list.iter().enumerate() {
        let at = path.index(i);
        let expression = condition["expression"].text().trim();
        if expression.is_empty() {
            errs.push(field::required(&at.child("expression"), ""));
        } else {
            expressions.match_condition(errs, expression, &at.child("expression"));
        }
        let name = condition["name"].text();
        if name.is_empty() {
            errs.push(field::required(&at.child("name"), ""));
            continue;
        }
        for message in names::is_qualified_name(name) {
            errs.push(field::invalid(&at.child("name"), name, message));
        }
        if !seen.insert(name) {
            errs.push(field::duplicate(&at.child("name"), name));
        }
    }
}
