//! PodDisruptionBudget: how many of some pods may be evicted at a time.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::apps::{not_more_than_100_percent, positive_int_or_percent};
use crate::cursor::Cursor;
use crate::validate::{SelectorValues, conditions, label_selector_with, one_of};
use crate::workload::Workload;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of PodDisruptionBudgets.
pub struct PodDisruptionBudget;

const RULES: Workload = Workload {
    fresh: &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"],
    counters: &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"],
    ..Workload::PLAIN
};

fn validate_spec(errs: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    if spec["minAvailable"].is_set() && spec["maxUnavailable"].is_set() {
        errs.push(field::invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set"));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        if spec[key].is_set() {
            positive_int_or_percent(errs, &path.child(key), &spec[key]);
            not_more_than_100_percent(errs, &path.child(key), &spec[key]);
        }
    }
    let values = SelectorValues::replacing(old.map(|old| &old["selector"]));
    label_selector_with(errs, &path.child("selector"), &spec["selector"], values);
    one_of(
        errs,
        &path.child("unhealthyPodEvictionPolicy"),
        &spec["unhealthyPodEvictionPolicy"],
        &["AlwaysAllow", "IfHealthyBudget"],
    );
}

impl Strategy for PodDisruptionBudget {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn prepare_create(&self, obj: &mut Value) {
        RULES.prepare_create(obj);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        RULES.prepare_update(obj, old);
    }

    /// Of the metadata, upstream looks only at what all objects are looked at for, and when nothing else is wrong.
    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = ErrorList::new();
        validate_spec(&mut errs, &obj["spec"], None);
        if errs.is_empty() {
            errs = metadata::validate_generic_object_meta(obj, true, self.name_rule());
        }
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = ErrorList::new();
        validate_spec(&mut errs, &obj["spec"], Some(&old["spec"]));
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, _old: &Value) -> ErrorList {
        let mut errs = ErrorList::new();
        let status = &obj["status"];
        conditions(&mut errs, &Path::new("status").child("conditions"), &status["conditions"]);
        RULES.validate_counters(&mut errs, status);
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let amount = |key: &str| -> Value {
            match &obj["spec"][key] {
                Value::Null => "N/A".into(),
                Value::String(text) => text.as_str().into(),
                number => number.to_string().into(),
            }
        };
        vec![
            printer::name(obj),
            amount("minAvailable"),
            amount("maxUnavailable"),
            obj["status"]["disruptionsAllowed"].int().into(),
            printer::age(obj, now),
        ]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create, check_status};
    use orlop_json::{Value, json};

    #[test]
    fn metadata_is_not_looked_at_twice() {
        let check = |meta: Value, expected: &[&str]| {
            let budget = json!({"metadata": meta, "spec": {"minAvailable": 1}});
            check_create("policy", "PodDisruptionBudget", budget, expected);
        };
        check(json!({"name": "A_b", "finalizers": ["anything"]}), &[]);
        check(json!({"name": "a/b"}), &["metadata.name: Invalid value: \"a/b\": may not contain '/'"]);
        let both = json!({"metadata": {"name": "a/b"}, "spec": {"minAvailable": 1, "maxUnavailable": 1}});
        let found = crate::strategy("policy", "PodDisruptionBudget").map(|s| s.validate_create(&both).len());
        assert_eq!(found, Some(1));
    }

    #[test]
    fn validation() {
        let check = |spec: Value, expected: &[&str]| {
            check_create("policy", "PodDisruptionBudget", json!({"spec": spec}), expected)
        };
        check(json!({"minAvailable": 1}), &[]);
        check(
            json!({"minAvailable": -1}),
            &["spec.minAvailable: Invalid value: -1: must be greater than or equal to 0"],
        );
        check(
            json!({"minAvailable": 1, "maxUnavailable": 1}),
            &[
                "spec: Invalid value: {\"minAvailable\":1,\"maxUnavailable\":1}: minAvailable and maxUnavailable cannot be both set",
            ],
        );
        check_status(
            "policy",
            "PodDisruptionBudget",
            json!({"disruptionsAllowed": -1, "conditions": [{"type": "A", "status": "x", "reason": "R", "lastTransitionTime": "2024-01-01T00:00:00Z"}]}),
            json!({"spec": {}}),
            &[
                "status.conditions[0].status: Unsupported value: \"x\": supported values: \"False\", \"True\", \"Unknown\"",
                "status.disruptionsAllowed: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
        check_cells(
            "policy",
            "PodDisruptionBudget",
            json!({"metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"}, "spec": {"maxUnavailable": "25%"}, "status": {"disruptionsAllowed": 1}}),
            json!(["x", "N/A", "25%", 1, "24h"]),
        );
    }
}
