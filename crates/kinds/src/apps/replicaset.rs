//! ReplicaSet: so many pods of one template.

use jiff::Timestamp;
use orlop_api::field::{ErrorList, Path};
use serde_json::{Value, json};

use super::validate_replica_counts;
use crate::core::pod_template;
use crate::cursor::{Cursor, bump_generation, child, default_to, keep, set_generation};
use crate::validate::nonnegative;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of ReplicaSets.
pub struct ReplicaSet;

fn validate_spec(errs: &mut ErrorList, spec: &Value) {
    let path = Path::new("spec");
    nonnegative(errs, &path.child("replicas"), &spec["replicas"]);
    nonnegative(errs, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
    pod_template::validate_selector_and_template(errs, &path, spec, "deployment", |errs, path, spec| {
        pod_template::validate_always_running(errs, path, spec, "ReplicaSet");
    });
}

fn validate_status(errs: &mut ErrorList, obj: &Value) {
    validate_replica_counts(
        errs,
        &obj["status"],
        &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "terminatingReplicas",
            "observedGeneration",
        ],
        &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
    );
}

impl Strategy for ReplicaSet {
    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        default_to(spec, "replicas", 1);
        pod_template::set_defaults(spec);
    }

    fn prepare_create(&self, obj: &mut Value) {
        pod_template::drop_disabled_fields(&mut obj["spec"]);
        obj["status"] = json!({"replicas": 0});
        set_generation(obj, 1);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        pod_template::drop_disabled_fields(&mut obj["spec"]);
        keep(obj, old, &["status"]);
        bump_generation(obj, old, &["spec"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"]);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        validate_spec(&mut errs, &obj["spec"]);
        errs.extend(metadata::validate_immutable(
            &obj["spec"]["selector"],
            &old["spec"]["selector"],
            &Path::new("spec").child("selector"),
        ));
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        pod_template::warnings(obj)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        validate_status(&mut errs, obj);
        errs
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        crate::metadata_field(true, obj, label)
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj["spec"], &obj["status"]);
        let (containers, images) = printer::containers_and_images(&spec["template"]["spec"]);
        vec![
            printer::name(obj),
            spec["replicas"].int().into(),
            status["replicas"].int().into(),
            status["readyReplicas"].int().into(),
            printer::age(obj, now),
            containers.into(),
            images.into(),
            printer::format_label_selector(&spec["selector"]).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_create, texts};

    #[test]
    fn validation() {
        check_create(
            "apps",
            "ReplicaSet",
            json!({"spec": {"replicas": -1, "selector": {"matchLabels": {"app": "z"}},
                "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
            &[
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`",
            ],
        );
    }

    #[test]
    fn status() {
        let mut errs = ErrorList::new();
        validate_status(
            &mut errs,
            &json!({"status": {"replicas": 1, "readyReplicas": 2, "availableReplicas": 1}}),
        );
        assert_eq!(
            texts(&errs),
            ["status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"]
        );
    }
}
