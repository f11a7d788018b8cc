//! Where a pod may go: node and pod affinity, topology spread, tolerations.

use std::collections::HashSet;

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use super::tolerated::Tolerated;
use crate::NameRule;
use crate::cursor::Cursor;
use crate::metadata::validate_label_name;
use crate::validate::{SelectorValues, invalids, label_selector_with, object_name, one_of};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
/// Effects of taints, in upstream's order.
const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Whether the values that a node selector asks for must be such that a label can have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NodeLabelValues {
    #[default]
    Checked,
    Any,
}

pub(super) fn validate_affinity(errs: &mut ErrorList, path: &Path, affinity: &Value, tolerated: Tolerated) {
    let node = &affinity["nodeAffinity"];
    let node_path = path.child("nodeAffinity");
    if node[REQUIRED].is_set() {
        let path = node_path.child(REQUIRED);
        validate_node_selector_with(errs, &path, &node[REQUIRED], tolerated.node_label_values);
    }
    for (i, term) in node[PREFERRED].items().iter().enumerate() {
        let path = node_path.child(PREFERRED).index(i);
        validate_weight(errs, &path, term);
        validate_node_selector_term(
            errs,
            &path.child("preference"),
            &term["preference"],
            NodeLabelValues::Any,
        );
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let path = path.child(kind);
        for (i, term) in affinity[kind][REQUIRED].items().iter().enumerate() {
            validate_pod_affinity_term(errs, &path.child(REQUIRED).index(i), term, tolerated.selector_values);
        }
        for (i, weighted) in affinity[kind][PREFERRED].items().iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            validate_weight(errs, &path, weighted);
            let (at, term) = (path.child("podAffinityTerm"), &weighted["podAffinityTerm"]);
            validate_pod_affinity_term(errs, &at, term, tolerated.selector_values);
        }
    }
}

/// The terms about other pods, all of them.
pub(super) fn affinity_terms(affinity: &Value) -> Vec<&Value> {
    let mut terms = Vec::new();
    for kind in ["podAffinity", "podAntiAffinity"] {
        terms.extend(affinity[kind][REQUIRED].items());
        terms.extend(affinity[kind][PREFERRED].items().iter().map(|weighted| &weighted["podAffinityTerm"]));
    }
    terms
}

/// The terms of which a node must meet one.
pub(super) fn required_node_terms(affinity: &Value) -> &[Value] {
    affinity["nodeAffinity"][REQUIRED]["nodeSelectorTerms"].items()
}

fn validate_weight(errs: &mut ErrorList, path: &Path, term: &Value) {
    let weight = term["weight"].int();
    if !(1..=100).contains(&weight) {
        errs.push(field::invalid(&path.child("weight"), weight, "must be in the range 1-100"));
    }
}

/// A `NodeSelector`: at least one term.
pub(crate) fn validate_node_selector(errs: &mut ErrorList, path: &Path, selector: &Value) {
    validate_node_selector_with(errs, path, selector, NodeLabelValues::Checked);
}

/// [`validate_node_selector`] that may have been written before its values were checked.
pub(crate) fn validate_node_selector_with(
    errs: &mut ErrorList,
    path: &Path,
    selector: &Value,
    values: NodeLabelValues,
) {
    let path = path.child("nodeSelectorTerms");
    let terms = selector["nodeSelectorTerms"].items();
    if terms.is_empty() {
        errs.push(field::required(&path, "must have at least one node selector term"));
    }
    for (i, term) in terms.iter().enumerate() {
        validate_node_selector_term(errs, &path.index(i), term, values);
    }
}

/// Whether the terms of a stored node selector have values that no label can have, and its update may too.
pub(crate) fn node_label_values(terms: &[Value]) -> NodeLabelValues {
    let requirements = || terms.iter().flat_map(|term| term["matchExpressions"].items());
    let no_label = |value: &str| !names::is_valid_label_value(value).is_empty();
    if requirements().any(|r| r["values"].texts().into_iter().any(no_label)) {
        NodeLabelValues::Any
    } else {
        NodeLabelValues::Checked
    }
}

/// A preference may ask for values that no label can have; it just never applies.
fn validate_node_selector_term(errs: &mut ErrorList, path: &Path, term: &Value, allowed: NodeLabelValues) {
    for (i, requirement) in term["matchExpressions"].items().iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = requirement["values"].texts();
        let at = path.child("values");
        match requirement["operator"].text() {
            "In" | "NotIn" if values.is_empty() => {
                errs.push(field::required(&at, "must be specified when `operator` is 'In' or 'NotIn'"))
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errs.push(field::forbidden(
                &at,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Gt" | "Lt" if values.len() != 1 => errs
                .push(field::required(&at, "must be specified single value when `operator` is 'Lt' or 'Gt'")),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => {
                errs.push(field::invalid(&path.child("operator"), other, "not a valid selector operator"))
            }
        }
        errs.extend(validate_label_name(requirement["key"].text(), &path.child("key")));
        if allowed == NodeLabelValues::Checked {
            for (v, value) in values.into_iter().enumerate() {
                invalids(errs, &at.index(v), value, names::is_valid_label_value(value));
            }
        }
    }
    for (i, requirement) in term["matchFields"].items().iter().enumerate() {
        let path = path.child("matchFields").index(i);
        let values = requirement["values"].texts();
        match requirement["operator"].text() {
            "In" | "NotIn" => {
                if values.len() != 1 {
                    errs.push(field::required(
                        &path.child("values"),
                        "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                    ));
                }
            }
            other => {
                errs.push(field::invalid(&path.child("operator"), other, "not a valid selector operator"))
            }
        }
        let key = requirement["key"].text();
        if key == "metadata.name" {
            for (v, value) in values.into_iter().enumerate() {
                object_name(errs, &path.child("values").index(v), value, NameRule::DnsSubdomain);
            }
        } else {
            errs.push(field::invalid(&path.child("key"), key, "not a valid field selector key"));
        }
    }
}

fn validate_pod_affinity_term(errs: &mut ErrorList, path: &Path, term: &Value, values: SelectorValues) {
    for key in ["labelSelector", "namespaceSelector"] {
        label_selector_with(errs, &path.child(key), &term[key], values);
    }
    for namespace in term["namespaces"].texts() {
        object_name(errs, &path.child("namespace"), namespace, NameRule::DnsLabel);
    }
    validate_label_keys(errs, path, term);
    let topology = term["topologyKey"].text();
    if topology.is_empty() {
        errs.push(field::required(&path.child("topologyKey"), "can not be empty"));
    }
    errs.extend(validate_label_name(topology, &path.child("topologyKey")));
}

const WITHOUT_SELECTOR: &str = "must not be specified when labelSelector is not set";
const IN_SELECTOR: &str = "exists in both matchLabelKeys and labelSelector";

/// `matchLabelKeys` and `mismatchLabelKeys` of an affinity term or a spread constraint. A new pod's keys have become
/// requirements of its selector by now, so that one that was there before is there twice.
fn validate_label_keys(errs: &mut ErrorList, path: &Path, term: &Value) {
    let selector = &term["labelSelector"];
    let [keys, mismatch] = ["matchLabelKeys", "mismatchLabelKeys"].map(|name| {
        let (keys, at) = (term[name].texts(), path.child(name));
        if !keys.is_empty() && !selector.is_set() {
            errs.push(field::forbidden(&at, WITHOUT_SELECTOR));
        } else {
            for (i, key) in keys.iter().enumerate() {
                errs.extend(validate_label_name(key, &at.index(i)));
            }
        }
        keys
    });
    let mut seen: HashSet<&str> = selector["matchLabels"].entries().map(|(key, _)| key.as_str()).collect();
    for requirement in selector["matchExpressions"].items() {
        let key = requirement["key"].text();
        if !seen.insert(key)
            && let Some(i) = keys.iter().rposition(|k| *k == key)
        {
            // Upstream has this path wrong, and clients see it.
            errs.push(field::invalid(&path.index(i), key, IN_SELECTOR));
        }
    }
    for (i, key) in keys.into_iter().enumerate() {
        if mismatch.contains(&key) {
            errs.push(field::invalid(
                &path.child("matchLabelKeys").index(i),
                key,
                "exists in both matchLabelKeys and mismatchLabelKeys",
            ));
        }
    }
}

/// `matchLabelKeys` of a spread constraint; `stored` ones that break today's rule are held to the rule of their time.
pub(super) fn validate_spread_label_keys(
    errs: &mut ErrorList,
    path: &Path,
    constraint: &Value,
    stored: bool,
) {
    if !stored {
        return validate_label_keys(errs, path, constraint);
    }
    let (keys, path) = (constraint["matchLabelKeys"].texts(), path.child("matchLabelKeys"));
    let selector = &constraint["labelSelector"];
    if !keys.is_empty() && !selector.is_set() {
        errs.push(field::forbidden(&path, WITHOUT_SELECTOR));
    }
    for (i, key) in keys.into_iter().enumerate() {
        errs.extend(validate_label_name(key, &path.index(i)));
        let named = |requirement: &Value| requirement["key"].text() == key;
        if selector["matchLabels"].has(key) || selector["matchExpressions"].items().iter().any(named) {
            errs.push(field::invalid(&path.index(i), key, IN_SELECTOR));
        }
    }
}

pub(super) fn validate_topology_spread(
    errs: &mut ErrorList,
    path: &Path,
    constraints: &Value,
    tolerated: Tolerated,
) {
    let all = constraints.items();
    for (i, constraint) in all.iter().enumerate() {
        let path = path.index(i);
        let skew = constraint["maxSkew"].int();
        if skew <= 0 {
            errs.push(field::invalid(&path.child("maxSkew"), skew, "must be greater than zero"));
        }
        let topology = constraint["topologyKey"].text();
        if topology.is_empty() {
            errs.push(field::required(&path.child("topologyKey"), "can not be empty"));
        } else {
            errs.extend(validate_label_name(topology, &path.child("topologyKey")));
        }
        let action = constraint["whenUnsatisfiable"].text();
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action) {
            errs.push(field::not_supported(
                &path.child("whenUnsatisfiable"),
                action,
                &["DoNotSchedule", "ScheduleAnyway"],
            ));
        }
        let repeated = all[i + 1..].iter().any(|other| {
            other["topologyKey"].text() == topology && other["whenUnsatisfiable"].text() == action
        });
        if repeated {
            errs.push(field::duplicate(
                &path.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{topology}, {action}}}"),
            ));
        }
        let domains = &constraint["minDomains"];
        if domains.is_set() {
            let at = path.child("minDomains");
            if domains.int() <= 0 {
                errs.push(field::invalid(&at, domains.int(), "must be greater than zero"));
            }
            if action != "DoNotSchedule" {
                errs.push(field::invalid(
                    &at,
                    domains.int(),
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"),
                ));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            one_of(errs, &path.child(policy), &constraint[policy], &["Honor", "Ignore"]);
        }
        validate_spread_label_keys(errs, &path, constraint, tolerated.spread_label_keys);
        let at = path.child("labelSelector");
        label_selector_with(errs, &at, &constraint["labelSelector"], tolerated.spread_selector_values);
    }
}

/// A taint's or toleration's effect.
pub(crate) fn validate_taint_effect(errs: &mut ErrorList, path: &Path, effect: &str) {
    if !TAINT_EFFECTS.contains(&effect) {
        errs.push(field::not_supported(path, effect, &TAINT_EFFECTS));
    }
}

pub(crate) fn validate_tolerations(errs: &mut ErrorList, path: &Path, tolerations: &Value) {
    for (i, toleration) in tolerations.items().iter().enumerate() {
        let path = path.index(i);
        let (key, operator) = (toleration["key"].text(), toleration["operator"].text());
        let (value, effect) = (toleration["value"].text(), toleration["effect"].text());
        let at = path.child("operator");
        if !key.is_empty() {
            errs.extend(validate_label_name(key, &path.child("key")));
        }
        if key.is_empty() && operator != "Exists" {
            errs.push(field::invalid(
                &at,
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if toleration["tolerationSeconds"].is_set() && effect != "NoExecute" {
            errs.push(field::invalid(
                &path.child("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator {
            "Equal" | "" => {
                let messages = names::is_valid_label_value(value);
                if !messages.is_empty() {
                    errs.push(field::invalid(&at, value, messages.join(";")));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errs.push(field::invalid(&at, value, "value must be empty when `operator` is 'Exists'"));
                }
            }
            other => errs.push(field::not_supported(&at, other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            validate_taint_effect(errs, &path.child("effect"), effect);
        }
    }
}
