//! Where a pod may go: node and pod affinity, topology spread, tolerations.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use serde_json::Value;

use crate::NameRule;
use crate::cursor::Cursor;
use crate::metadata::validate_label_name;
use crate::validate::{invalids, label_selector, object_name, one_of};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
/// Effects of taints, in upstream's order.
const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn validate_affinity(errs: &mut ErrorList, path: &Path, affinity: &Value) {
    let node = &affinity["nodeAffinity"];
    let node_path = path.child("nodeAffinity");
    if node[REQUIRED].is_set() {
        validate_node_selector(errs, &node_path.child(REQUIRED), &node[REQUIRED]);
    }
    for (i, term) in node[PREFERRED].items().iter().enumerate() {
        let path = node_path.child(PREFERRED).index(i);
        validate_weight(errs, &path, term);
        validate_node_selector_term(errs, &path.child("preference"), &term["preference"], false);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let path = path.child(kind);
        for (i, term) in affinity[kind][REQUIRED].items().iter().enumerate() {
            validate_pod_affinity_term(errs, &path.child(REQUIRED).index(i), term);
        }
        for (i, weighted) in affinity[kind][PREFERRED].items().iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            validate_weight(errs, &path, weighted);
            validate_pod_affinity_term(errs, &path.child("podAffinityTerm"), &weighted["podAffinityTerm"]);
        }
    }
}

fn validate_weight(errs: &mut ErrorList, path: &Path, term: &Value) {
    let weight = term["weight"].int();
    if !(1..=100).contains(&weight) {
        errs.push(field::invalid(&path.child("weight"), weight, "must be in the range 1-100"));
    }
}

/// A `NodeSelector`: at least one term.
pub(crate) fn validate_node_selector(errs: &mut ErrorList, path: &Path, selector: &Value) {
    let path = path.child("nodeSelectorTerms");
    let terms = selector["nodeSelectorTerms"].items();
    if terms.is_empty() {
        errs.push(field::required(&path, "must have at least one node selector term"));
    }
    for (i, term) in terms.iter().enumerate() {
        validate_node_selector_term(errs, &path.index(i), term, true);
    }
}

/// `strict` refuses values that no label could have; a preference may name them, it just never applies.
fn validate_node_selector_term(errs: &mut ErrorList, path: &Path, term: &Value, strict: bool) {
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
        if strict {
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

fn validate_pod_affinity_term(errs: &mut ErrorList, path: &Path, term: &Value) {
    label_selector(errs, &path.child("labelSelector"), &term["labelSelector"]);
    label_selector(errs, &path.child("namespaceSelector"), &term["namespaceSelector"]);
    for namespace in term["namespaces"].texts() {
        object_name(errs, &path.child("namespace"), namespace, NameRule::DnsLabel);
    }
    for keys in ["matchLabelKeys", "mismatchLabelKeys"] {
        validate_label_keys(errs, &path.child(keys), &term[keys], &term["labelSelector"]);
    }
    let mismatch = term["mismatchLabelKeys"].texts();
    for (i, key) in term["matchLabelKeys"].texts().into_iter().enumerate() {
        if mismatch.contains(&key) {
            errs.push(field::invalid(
                &path.child("matchLabelKeys").index(i),
                key,
                "exists in both matchLabelKeys and mismatchLabelKeys",
            ));
        }
    }
    let topology = term["topologyKey"].text();
    if topology.is_empty() {
        errs.push(field::required(&path.child("topologyKey"), "can not be empty"));
    }
    errs.extend(validate_label_name(topology, &path.child("topologyKey")));
}

fn validate_label_keys(errs: &mut ErrorList, path: &Path, keys: &Value, selector: &Value) {
    let keys = keys.texts();
    if keys.is_empty() {
        return;
    }
    if !selector.is_set() {
        errs.push(field::forbidden(path, "must not be specified when labelSelector is not set"));
    }
    for (i, key) in keys.into_iter().enumerate() {
        errs.extend(validate_label_name(key, &path.index(i)));
    }
}

pub(super) fn validate_topology_spread(errs: &mut ErrorList, path: &Path, constraints: &Value) {
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
        validate_label_keys(
            errs,
            &path.child("matchLabelKeys"),
            &constraint["matchLabelKeys"],
            &constraint["labelSelector"],
        );
        label_selector(errs, &path.child("labelSelector"), &constraint["labelSelector"]);
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
