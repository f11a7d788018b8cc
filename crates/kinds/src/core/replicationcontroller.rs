//! ReplicationController: the elder of ReplicaSet, with a plain map for a selector.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Key, Value};

use super::pod::validation::validate_pod_template_spec;
use super::pod_template;
use crate::cursor::{Cursor, child, default_to};
use crate::validate::nonnegative;
use crate::workload::{REPLICAS, replica_cells};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of ReplicationControllers.
pub struct ReplicationController;

fn validate(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    validate_spec(&mut errs, &obj["spec"], old.map(|old| &old["spec"]));
    errs
}

fn validate_spec(errs: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    nonnegative(errs, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
    if spec["selector"].is_empty() {
        errs.push(field::required(&path.child("selector"), ""));
    }
    nonnegative(errs, &path.child("replicas"), &spec["replicas"]);
    let template = &spec["template"];
    let at = path.child("template");
    if !template.is_set() {
        errs.push(field::required(&at, ""));
        return;
    }
    let labels = &template["metadata"]["labels"];
    let selected = |(key, value): (&Key, &Value)| labels.get(key) == Some(value);
    if !spec["selector"].entries().all(selected) {
        errs.push(field::invalid(
            &at.child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
    validate_pod_template_spec(errs, &at, template, old.map(|old| &old["template"]));
    pod_template::validate_always_running(
        errs,
        &at.child("spec"),
        &template["spec"],
        "ReplicationController",
    );
}

impl Strategy for ReplicationController {
    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        default_to(spec, "replicas", 1);
        if !spec["template"].is_set() {
            return;
        }
        pod_template::set_defaults(spec);
        let labels = spec["template"]["metadata"]["labels"].clone();
        if labels.is_empty() {
            return;
        }
        if spec["selector"].is_empty() {
            spec["selector"] = labels.clone();
        }
        if obj["metadata"]["labels"].is_empty() {
            child(obj, "metadata")["labels"] = labels;
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        REPLICAS.prepare_create(obj);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        REPLICAS.prepare_update(obj, old);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj, None)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        // Upstream looks at the whole object and again at its update.
        let mut errs = validate(obj, Some(old));
        errs.extend(metadata::validate_object_meta_update(obj, old));
        validate_spec(&mut errs, &obj["spec"], Some(&old["spec"]));
        errs
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        pod_template::workload_warnings(obj, old)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        REPLICAS.validate_status_update(obj, old)
    }

    fn orphans_dependents(&self) -> bool {
        true
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        match label {
            "status.replicas" => Some(obj["status"]["replicas"].int().to_string()),
            _ => crate::metadata_field(true, obj, label),
        }
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        replica_cells(obj, now, printer::format_labels(&obj["spec"]["selector"]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_cells, check_create};
    use orlop_json::json;

    fn controller(extra: Value) -> Value {
        let mut spec = json!({"template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            spec[k] = v;
        }
        json!({"spec": spec})
    }

    #[test]
    fn the_template_gives_selector_and_labels() {
        let mut obj = controller(json!({}));
        ReplicationController.defaults(&mut obj);
        assert_eq!(obj["spec"]["selector"], json!({"app": "x"}));
        assert_eq!(obj["metadata"]["labels"], json!({"app": "x"}));
        assert_eq!(obj["spec"]["replicas"], 1);
    }

    #[test]
    fn validation() {
        let check = |extra: Value, expected: &[&str]| {
            check_create("", "ReplicationController", controller(extra), expected);
        };
        check(json!({}), &[]);
        check(
            json!({"replicas": -1, "minReadySeconds": -1, "selector": {"app": "y"}}),
            &[
                "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`",
            ],
        );
        check(json!({"template": null}), &["spec.selector: Required value", "spec.template: Required value"]);
        check(
            json!({"template": {"metadata": {"labels": {"app": "x"}},
                "spec": {"restartPolicy": "Never", "activeDeadlineSeconds": 3, "containers": [{"name": "c", "image": "i"}]}}}),
            &[
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicationController is not Supported",
            ],
        );
    }

    #[test]
    fn rows() {
        let mut obj = controller(json!({"replicas": 3, "selector": {"b": "2", "a": "1"}}));
        obj["metadata"] = json!({"name": "r", "creationTimestamp": "2024-01-01T00:00:00Z"});
        obj["status"] = json!({"replicas": 2, "readyReplicas": 1});
        check_cells("", "ReplicationController", obj, json!(["r", 3, 2, 1, "24h", "c", "i", "a=1,b=2"]));
    }
}
