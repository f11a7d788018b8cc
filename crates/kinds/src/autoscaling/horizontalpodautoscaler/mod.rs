//! HorizontalPodAutoscaler: as many replicas as metrics ask for. Stored and ruled as `autoscaling/v2`; `autoscaling/v1`
//! shows the part of it that it knows and keeps the rest in annotations.

mod metrics;
mod v1;
mod validation;

pub use v1::{HorizontalPodAutoscalerV1, V1};

use jiff::Timestamp;
use orlop_api::field::ErrorList;
use orlop_json::{Value, json};

use crate::cursor::{Cursor, child, default_to, keep};
use crate::{Strategy, printer};

/// The strategy of HorizontalPodAutoscalers in `autoscaling/v2`.
pub struct HorizontalPodAutoscaler;

/// Of the CPU, in percent, when no metric is given.
const DEFAULT_CPU_UTILIZATION: i64 = 80;
/// How long, in seconds, the default policies look back.
const DEFAULT_PERIOD: i64 = 15;

/// What scales when nothing is said.
fn default_metrics() -> Value {
    cpu_utilization(&DEFAULT_CPU_UTILIZATION.into())
}

/// The metrics that `autoscaling/v1` has a field for: the CPU's utilization alone.
fn cpu_utilization(percent: &Value) -> Value {
    json!([{"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": percent}}}])
}

fn policy(kind: &str, value: i64) -> Value {
    json!({"type": kind, "value": value, "periodSeconds": DEFAULT_PERIOD})
}

/// Rules in upstream's order of fields, each given or by default.
fn rules(given: &Value, stabilization: Value, policies: Value) -> Value {
    let mut out = json!({});
    for (key, default) in [
        ("stabilizationWindowSeconds", stabilization),
        ("selectPolicy", json!("Max")),
        ("policies", policies),
        ("tolerance", Value::Null),
    ] {
        let value = if given.has(key) { given[key].clone() } else { default };
        if !value.is_null() {
            out[key] = value;
        }
    }
    out
}

impl Strategy for HorizontalPodAutoscaler {
    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        default_to(spec, "minReplicas", 1);
        if spec["metrics"].is_empty() {
            spec["metrics"] = default_metrics();
        }
        if spec["behavior"].is_set() {
            let behavior = &spec["behavior"];
            let up = json!([policy("Pods", 4), policy("Percent", 100)]);
            let down = json!([policy("Percent", 100)]);
            spec["behavior"] = json!({
                "scaleUp": rules(&behavior["scaleUp"], json!(0), up),
                "scaleDown": rules(&behavior["scaleDown"], Value::Null, down),
            });
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        v1::drop_annotations(obj);
        obj["status"] = json!({"desiredReplicas": 0, "currentMetrics": null});
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        v1::drop_annotations(obj);
        keep(obj, old, &["status"]);
    }

    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        v1::drop_annotations(obj);
        keep(obj, old, &["spec"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validation::validate_create(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        validation::validate_update(obj, old)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        validation::validate_status_update(obj, old)
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj["spec"], &obj["status"]);
        let target = &spec["scaleTargetRef"];
        let fewest = match spec["minReplicas"].as_i64() {
            Some(replicas) => replicas.to_string(),
            None => "<unset>".to_owned(),
        };
        vec![
            printer::name(obj),
            format!("{}/{}", target["kind"].text(), target["name"].text()).into(),
            metrics::summary(spec["metrics"].items(), status["currentMetrics"].items()).into(),
            fewest.into(),
            spec["maxReplicas"].int().into(),
            status["currentReplicas"].int().into(),
            printer::age(obj, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_cells, check_defaults};

    #[test]
    fn defaults() {
        check_defaults(
            "autoscaling",
            "HorizontalPodAutoscaler",
            json!({"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}}}}),
            json!({"spec": {
                "behavior": {
                    "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
                        {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]},
                    "scaleDown": {"stabilizationWindowSeconds": 60, "selectPolicy": "Max", "policies": [
                        {"type": "Percent", "value": 100, "periodSeconds": 15}]}},
                "minReplicas": 1,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]}}),
        );
    }

    #[test]
    fn rows() {
        check_cells(
            "autoscaling",
            "HorizontalPodAutoscaler",
            json!({"metadata": {"name": "h", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 1, "maxReplicas": 3,
                    "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]},
                "status": {"currentReplicas": 2}}),
            json!(["h", "Deployment/d", "cpu: <unknown>/80%", "1", 3, 2, "24h"]),
        );
    }
}
