//! ReplicaSet: so many pods of one template.

use jiff::Timestamp;
use orlop_api::field::{ErrorList, Path};
use orlop_json::Value;

use super::validate_selector_stays;
use crate::core::pod_template;
use crate::cursor::{child, default_to};
use crate::validate::nonnegative;
use crate::workload::{REPLICAS, replica_cells};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of ReplicaSets.
pub struct ReplicaSet;

fn validate(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    validate_spec(&mut errs, &obj["spec"], old.map(|old| &old["spec"]));
    errs
}

fn validate_spec(errs: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    nonnegative(errs, &path.child("replicas"), &spec["replicas"]);
    nonnegative(errs, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
    pod_template::validate_replicas_of_template(errs, &path, spec, old);
}

impl Strategy for ReplicaSet {
    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        default_to(spec, "replicas", 1);
        pod_template::set_defaults(spec);
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
        validate_selector_stays(&mut errs, obj, old);
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

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        replica_cells(obj, now, printer::format_label_selector(&obj["spec"]["selector"]))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update};
    use orlop_json::json;

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
    fn an_update_is_looked_at_twice() {
        let set = |replicas: i64, label: &str| {
            json!({"spec": {"replicas": replicas, "selector": {"matchLabels": {"app": label}},
                "template": {"metadata": {"labels": {"app": label}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
        };
        let negative = "spec.replicas: Invalid value: -1: must be greater than or equal to 0";
        check_update("apps", "ReplicaSet", set(-1, "x"), set(1, "x"), &[negative, negative]);
        check_update(
            "apps",
            "ReplicaSet",
            set(1, "y"),
            set(1, "x"),
            &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"y\"}}: field is immutable"],
        );
    }
}
