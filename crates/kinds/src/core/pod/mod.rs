//! Pod: what it gets by default, what it must be, what may change, and the parts templates share with it.

mod affinity;
mod containers;
pub(crate) mod defaults;
mod env;
mod printer;
pub mod qos;
pub(crate) mod resources;
mod security;
pub(crate) mod tolerated;
mod update;
pub(crate) mod validation;
mod volumes;
pub(crate) mod warnings;

#[cfg(test)]
mod tests;

pub(crate) use affinity::{
    node_label_values, validate_node_selector, validate_node_selector_with, validate_taint_effect,
    validate_tolerations,
};
pub use security::refuses_privilege;
pub use update::{
    prepare_ephemeral_containers_update, prepare_resize_update, validate_binding,
    validate_ephemeral_containers_update, validate_resize_update,
};

use jiff::Timestamp;
use orlop_api::field::{ErrorList, Path};
use orlop_json::{Value, json};

use crate::Strategy;
use crate::cursor::{Cursor, bump_generation, child, items_mut, keep, keep_field, set_generation};

/// The strategy of Pods.
pub struct Pod;

/// `matchLabelKeys` and `mismatchLabelKeys` become requirements on the values the pod itself has.
fn apply_match_label_keys(pod: &mut Value) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let labels = pod["metadata"]["labels"].clone();
    let Some(spec) = pod.get_mut("spec") else { return };
    if let Some(affinity) = spec.get_mut("affinity") {
        for kind in ["podAffinity", "podAntiAffinity"] {
            let Some(kind) = affinity.get_mut(kind) else { continue };
            for term in items_mut(kind, REQUIRED) {
                merge_label_keys(term, &labels);
            }
            for weighted in items_mut(kind, PREFERRED) {
                if let Some(term) = weighted.get_mut("podAffinityTerm") {
                    merge_label_keys(term, &labels);
                }
            }
        }
    }
    for constraint in items_mut(spec, "topologySpreadConstraints") {
        merge_label_keys(constraint, &labels);
    }
}

fn merge_label_keys(term: &mut Value, labels: &Value) {
    if !term["labelSelector"].is_set() {
        return;
    }
    let mut added: Vec<Value> = Vec::new();
    for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in term[keys].texts() {
            if labels.has(key) {
                added.push(json!({"key": key, "operator": operator, "values": [labels[key]]}));
            }
        }
    }
    if !added.is_empty() {
        let expressions = &mut child(term, "labelSelector")["matchExpressions"];
        match expressions.as_array_mut() {
            Some(list) => list.append(&mut added),
            None => *expressions = added.into(),
        }
    }
}

impl Strategy for Pod {
    fn defaults(&self, obj: &mut Value) {
        defaults::set_pod(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        defaults::drop_disabled_fields(&mut obj["spec"]);
        set_generation(obj, 1);
        obj["status"] = json!({"phase": "Pending", "qosClass": qos::class(&obj["spec"])});
        if !obj["spec"]["schedulingGates"].is_empty() {
            obj["status"]["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "lastProbeTime": null,
                "lastTransitionTime": obj["metadata"]["creationTimestamp"],
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        apply_match_label_keys(obj);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
        defaults::drop_disabled_fields(&mut obj["spec"]);
        bump_generation(obj, old, &["spec"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validation::validate_pod_create(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        update::validate_pod_update(obj, old)
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings::pod_warnings(&Path::root(), obj)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["spec"]);
        // Old kubelets corrupted owner references this way.
        keep_field(child(obj, "metadata"), &old["metadata"], "ownerReferences");
        keep_field(child(obj, "metadata"), &old["metadata"], "deletionTimestamp");
        if obj["status"]["qosClass"].text().is_empty() {
            keep_field(child(obj, "status"), &old["status"], "qosClass");
        }
        if obj["status"]["observedGeneration"].int() == 0 {
            keep_field(child(obj, "status"), &old["status"], "observedGeneration");
        }
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        update::validate_pod_status_update(obj, old)
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        let (spec, status) = (&obj["spec"], &obj["status"]);
        Some(match label {
            "spec.nodeName" | "spec.host" => spec["nodeName"].text().to_owned(),
            "spec.restartPolicy" => spec["restartPolicy"].text().to_owned(),
            "spec.schedulerName" => spec["schedulerName"].text().to_owned(),
            "spec.serviceAccountName" => spec["serviceAccountName"].text().to_owned(),
            "spec.hostNetwork" => spec["hostNetwork"].flag().to_string(),
            "status.phase" => status["phase"].text().to_owned(),
            "status.podIP" => status["podIPs"][0]["ip"].text().to_owned(),
            // Accepted, and never set.
            "status.podIPs" => String::new(),
            "status.nominatedNodeName" => status["nominatedNodeName"].text().to_owned(),
            _ => return crate::metadata_field(true, obj, label),
        })
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        printer::cells(obj, now)
    }
}
