//! Where pods may run.

use orlop_json::json;

use super::{LABEL, check};
use crate::Strategy as _;

#[test]
fn scheduling() {
    check(
        json!({"tolerations": [{"operator": "Equal", "value": "b"}]}),
        &[
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ],
    );
    check(
        json!({"tolerations": [{"key": "a", "operator": "Foo"}]}),
        &[
            "spec.tolerations[0].operator: Unsupported value: \"Foo\": supported values: \"Equal\", \"Exists\"",
        ],
    );
    check(
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a", "namespaces": ["Bad_"]}]}}}),
        &[&format!(
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].namespace: Invalid value: \"Bad_\": {LABEL}"
        )],
    );
    check(
        json!({"nodeName": "n", "schedulingGates": [{"name": "a"}]}),
        &["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"],
    );
    check(
        json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "X"}]}),
        &[
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"X\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
        ],
    );
}

#[test]
fn match_label_keys_become_requirements() {
    let mut obj = json!({"metadata": {"labels": {"rev": "r1"}}, "spec": {"affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "z", "labelSelector": {}, "matchLabelKeys": ["rev", "none"]}]}}}});
    super::super::Pod.prepare_create(&mut obj);
    assert_eq!(
        obj["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"],
        json!({"matchExpressions": [{"key": "rev", "operator": "In", "values": ["r1"]}]})
    );
}
