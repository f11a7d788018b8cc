//! `autoscaling/v1`: an autoscaler as it was when only the CPU counted. What this version has no field for travels in
//! annotations, with the field names that upstream's conversion gives them there.

use jiff::Timestamp;
use orlop_api::field::ErrorList;
use orlop_json::{Map, Value, json};

use super::{HorizontalPodAutoscaler, cpu_utilization, default_metrics};
use crate::cursor::{Cursor, child, default_to, items_mut, remove};
use crate::{Conversion, Strategy};

/// The conversion between `autoscaling/v1` and the stored `autoscaling/v2`.
pub struct V1;

/// The strategy of HorizontalPodAutoscalers in `autoscaling/v1`: its own defaults, and the rules of `autoscaling/v2`.
pub struct HorizontalPodAutoscalerV1;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

/// The kinds of metrics with the names of their `autoscaling/v1` fields.
struct Source {
    key: &'static str,
    /// `metric.name` and `metric.selector`; empty for resources, whose name is `name`.
    metric: Option<(&'static str, &'static str)>,
    /// Fields of a target: its `value`, `averageValue` and `averageUtilization`.
    target: [&'static str; 3],
    /// Fields of a current value.
    current: [&'static str; 3],
    /// The order of this version's fields.
    order: &'static [&'static str],
}

const SOURCES: [Source; 5] = [
    Source {
        key: "object",
        metric: Some(("metricName", "selector")),
        target: ["targetValue", "averageValue", ""],
        current: ["currentValue", "averageValue", ""],
        order: &["target", "metricName", "targetValue", "currentValue", "selector", "averageValue"],
    },
    Source {
        key: "pods",
        metric: Some(("metricName", "selector")),
        target: ["", "targetAverageValue", ""],
        current: ["", "currentAverageValue", ""],
        order: &["metricName", "targetAverageValue", "currentAverageValue", "selector"],
    },
    Source {
        key: "resource",
        metric: None,
        target: ["", "targetAverageValue", "targetAverageUtilization"],
        current: ["", "currentAverageValue", "currentAverageUtilization"],
        order: &[
            "name",
            "targetAverageUtilization",
            "targetAverageValue",
            "currentAverageUtilization",
            "currentAverageValue",
        ],
    },
    Source {
        key: "containerResource",
        metric: None,
        target: ["", "targetAverageValue", "targetAverageUtilization"],
        current: ["", "currentAverageValue", "currentAverageUtilization"],
        order: &[
            "name",
            "targetAverageUtilization",
            "targetAverageValue",
            "currentAverageUtilization",
            "currentAverageValue",
            "container",
        ],
    },
    Source {
        key: "external",
        metric: Some(("metricName", "metricSelector")),
        target: ["targetValue", "targetAverageValue", ""],
        current: ["currentValue", "currentAverageValue", ""],
        order: &[
            "metricName",
            "metricSelector",
            "targetValue",
            "currentValue",
            "targetAverageValue",
            "currentAverageValue",
        ],
    },
];

/// Fields of this version that are no pointers upstream: they are `0` where nothing is said.
const ALWAYS: [(&str, &str); 7] = [
    ("object", "targetValue"),
    ("object", "currentValue"),
    ("pods", "targetAverageValue"),
    ("pods", "currentAverageValue"),
    ("resource", "currentAverageValue"),
    ("containerResource", "currentAverageValue"),
    ("external", "currentValue"),
];
const VALUES: [&str; 3] = ["value", "averageValue", "averageUtilization"];

/// A copy with only those of `keys` that are set, in their order.
fn picked(value: &Value, keys: &[&str]) -> Value {
    let chosen: Map =
        keys.iter().filter(|key| value.has(key)).map(|key| ((*key).into(), value[*key].clone())).collect();
    chosen.into()
}

/// A metric (its target) or a metric's status (its current value) of `autoscaling/v2` in this version.
fn metric_to_v1(metric: &Value, current: bool) -> Value {
    let mut out = json!({"type": metric["type"]});
    for source in &SOURCES {
        let from = &metric[source.key];
        if !from.is_set() {
            continue;
        }
        let (part, names) = if current { ("current", source.current) } else { ("target", source.target) };
        let mut to = json!({"name": from["name"], "container": from["container"]});
        if let Some((name, selector)) = source.metric {
            to = json!({name: from["metric"]["name"].text(), selector: from["metric"]["selector"]});
        }
        if source.key == "object" {
            to["target"] = picked(&from["describedObject"], &["kind", "name", "apiVersion"]);
        }
        for (name, value) in names.iter().zip(VALUES) {
            if name.is_empty() {
                continue;
            }
            to[*name] = from[part][value].clone();
            if to[*name].is_null() && ALWAYS.contains(&(source.key, name)) {
                to[*name] = "0".into();
            }
        }
        out[source.key] = picked(&to, source.order);
    }
    out
}

/// [`metric_to_v1`] backwards.
fn metric_from_v1(metric: &Value, current: bool) -> Value {
    let mut out = json!({"type": metric["type"]});
    for source in &SOURCES {
        let from = &metric[source.key];
        if !from.is_set() {
            continue;
        }
        let names = if current { source.current } else { source.target };
        let mut values = json!({});
        for (name, value) in names.iter().zip(VALUES) {
            if from.has(name) {
                values[value] = from[*name].clone();
            }
        }
        let mut to = json!({"name": from["name"], "container": from["container"]});
        if let Some((name, selector)) = source.metric {
            let identifier = json!({"name": from[name].text(), "selector": from[selector]});
            to = json!({"metric": picked(&identifier, &["name", "selector"])});
        }
        if source.key == "object" {
            to["describedObject"] = picked(&from["target"], &["kind", "name", "apiVersion"]);
        }
        if current {
            to["current"] = picked(&values, &VALUES);
        } else {
            values["type"] = target_type(source.key, &values).into();
            to["target"] = picked(&values, &["type", "value", "averageValue", "averageUtilization"]);
        }
        let order: &[&str] = match (source.key, current) {
            ("object", false) => &["describedObject", "target", "metric"],
            _ => &["metric", "name", "target", "current", "container", "describedObject"],
        };
        out[source.key] = picked(&to, order);
    }
    out
}

/// What kind of target is meant by the values that are given.
fn target_type(source: &str, values: &Value) -> &'static str {
    match source {
        "object" if values.has("averageValue") => "AverageValue",
        "object" => "Value",
        "external" if values.has("value") => "Value",
        "resource" | "containerResource" if values.has("averageUtilization") => "Utilization",
        _ => "AverageValue",
    }
}

/// A behavior under the names of upstream's internal type, where nothing is left out.
fn behavior_to_v1(behavior: &Value) -> Value {
    let rules = |rules: &Value| {
        if !rules.is_set() {
            return Value::Null;
        }
        let policies: Vec<Value> = rules["policies"]
            .items()
            .iter()
            .map(|p| json!({"Type": p["type"], "Value": p["value"], "PeriodSeconds": p["periodSeconds"]}))
            .collect();
        json!({
            "StabilizationWindowSeconds": rules["stabilizationWindowSeconds"],
            "SelectPolicy": rules["selectPolicy"],
            "Policies": if rules["policies"].is_set() { Value::from(policies) } else { Value::Null },
            "Tolerance": rules["tolerance"],
        })
    };
    json!({"ScaleUp": rules(&behavior["scaleUp"]), "ScaleDown": rules(&behavior["scaleDown"])})
}

/// [`behavior_to_v1`] backwards; `None` when there is nothing in it. Go reads names in any case.
fn behavior_from_v1(text: &str) -> Option<Value> {
    let behavior: Value = orlop_json::from_str(text).ok()?;
    let get = |value: &Value, name: &str| -> Value {
        let found = value.entries().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map_or(Value::Null, |(_, value)| value.clone())
    };
    let take = |value: &Value, names: &[&str]| {
        let mut out = json!({});
        for name in names {
            out[*name] = get(value, name);
        }
        picked(&out, names)
    };
    let mut out = json!({});
    for key in ["scaleUp", "scaleDown"] {
        let rules = get(&behavior, key);
        if !rules.is_set() {
            continue;
        }
        let mut rules =
            take(&rules, &["stabilizationWindowSeconds", "selectPolicy", "policies", "tolerance"]);
        for policy in items_mut(&mut rules, "policies") {
            *policy = take(policy, &["type", "value", "periodSeconds"]);
        }
        out[key] = rules;
    }
    (!out.is_empty()).then_some(out)
}

/// Takes the annotations of this version off an object that says all of it in fields.
pub(super) fn drop_annotations(obj: &mut Value) {
    let Some(meta) = obj.get_mut("metadata") else { return };
    let Some(annotations) = meta.get_mut("annotations") else { return };
    for key in [METRICS, BEHAVIOR, CURRENT_METRICS, CONDITIONS] {
        remove(annotations, key);
    }
    if annotations.is_empty() {
        remove(meta, "annotations");
    }
}

/// Whether the metric is what this version has a field for.
fn is_cpu_utilization(metric: &Value) -> bool {
    is_cpu(metric) && metric["resource"]["target"].has("averageUtilization")
}

fn is_cpu(metric: &Value) -> bool {
    metric["type"].text() == "Resource" && metric["resource"]["name"].text() == "cpu"
}

/// A JSON list in an annotation that reads as one.
fn list_in(obj: &Value, annotation: &str) -> Option<Vec<Value>> {
    match orlop_json::from_str(obj["metadata"]["annotations"][annotation].as_str()?) {
        Ok(Value::Array(list)) if list.iter().all(Value::is_object) => Some(list),
        _ => None,
    }
}

impl Conversion for V1 {
    fn strategy(&self) -> &'static dyn Strategy {
        &HorizontalPodAutoscalerV1
    }

    fn stored_kind(&self) -> (&'static str, &'static str) {
        ("autoscaling", "HorizontalPodAutoscaler")
    }

    fn to_stored(&self, mut obj: Value) -> Value {
        obj["apiVersion"] = "autoscaling/v2".into();
        let (given, status) = (obj["spec"].clone(), obj["status"].clone());
        let mut metrics: Vec<Value> = list_in(&obj, METRICS).unwrap_or_default();
        metrics = metrics.iter().map(|metric| metric_from_v1(metric, false)).collect();
        let percent = &given["targetCPUUtilizationPercentage"];
        if percent.is_set() {
            metrics.extend(cpu_utilization(percent).items().iter().cloned());
        }
        if metrics.is_empty() {
            metrics = default_metrics().items().to_vec();
        }
        let mut spec = picked(&given, &["scaleTargetRef", "minReplicas"]);
        spec["maxReplicas"] = given["maxReplicas"].int().into();
        spec["metrics"] = metrics.into();
        if let Some(behavior) = behavior_from_v1(obj["metadata"]["annotations"][BEHAVIOR].text()) {
            spec["behavior"] = behavior;
        }
        let mut out = picked(&status, &["observedGeneration", "lastScaleTime"]);
        if status["currentReplicas"].int() != 0 {
            out["currentReplicas"] = status["currentReplicas"].clone();
        }
        out["desiredReplicas"] = status["desiredReplicas"].int().into();
        let percent = &status["currentCPUUtilizationPercentage"];
        out["currentMetrics"] = match list_in(&obj, CURRENT_METRICS) {
            Some(list) => list.iter().map(|metric| metric_from_v1(metric, true)).collect(),
            None if percent.is_set() => json!([{"type": "Resource", "resource": {"name": "cpu",
                "current": {"averageUtilization": percent}}}]),
            None => Value::Null,
        };
        if let Some(conditions) = list_in(&obj, CONDITIONS) {
            out["conditions"] = conditions.into();
        }
        drop_annotations(&mut obj);
        obj["spec"] = spec;
        obj["status"] = out;
        obj
    }

    fn to_served(&self, mut obj: Value) -> Value {
        drop_annotations(&mut obj);
        obj["apiVersion"] = "autoscaling/v1".into();
        let (given, status) = (obj["spec"].clone(), obj["status"].clone());
        let mut notes: Vec<(&str, Value)> = Vec::new();
        let (all, now) = (given["metrics"].items(), status["currentMetrics"].items());
        if given["behavior"].is_set() {
            notes.push((BEHAVIOR, behavior_to_v1(&given["behavior"])));
        }
        if !status["conditions"].is_empty() {
            notes.push((CONDITIONS, conditions_to_v1(&status["conditions"])));
        }
        // The status is kept even where there is a field for it: it says more.
        if !now.is_empty() {
            notes.push((CURRENT_METRICS, now.iter().map(|metric| metric_to_v1(metric, true)).collect()));
        }
        let others: Vec<Value> =
            all.iter().filter(|m| !is_cpu_utilization(m)).map(|m| metric_to_v1(m, false)).collect();
        if !others.is_empty() {
            notes.push((METRICS, others.into()));
        }
        if !notes.is_empty() {
            let annotations = child(child(&mut obj, "metadata"), "annotations");
            for (key, value) in notes {
                annotations[key] = orlop_api::field::go_json(&value).into();
            }
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.sort_keys();
            }
        }
        let mut spec = picked(&given, &["scaleTargetRef", "minReplicas"]);
        spec["maxReplicas"] = given["maxReplicas"].int().into();
        let first_cpu =
            all.iter().find(|m| is_cpu(m)).map(|m| &m["resource"]["target"]["averageUtilization"]);
        if let Some(percent) = first_cpu.filter(|p| p.is_set()) {
            spec["targetCPUUtilizationPercentage"] = percent.clone();
        }
        let mut out = picked(&status, &["observedGeneration", "lastScaleTime"]);
        out["currentReplicas"] = status["currentReplicas"].int().into();
        out["desiredReplicas"] = status["desiredReplicas"].int().into();
        let last_cpu = now.iter().rev().filter(|m| is_cpu(m));
        let mut percents = last_cpu.map(|m| &m["resource"]["current"]["averageUtilization"]);
        if let Some(percent) = percents.find(|p| p.is_set()) {
            out["currentCPUUtilizationPercentage"] = percent.clone();
        }
        obj["spec"] = spec;
        obj["status"] = out;
        obj
    }
}

/// Conditions with the field that Go prints even when there is no time.
fn conditions_to_v1(conditions: &Value) -> Value {
    const ORDER: [&str; 5] = ["type", "status", "lastTransitionTime", "reason", "message"];
    let one = |condition: &Value| {
        let mut out = json!({});
        for key in ORDER {
            if condition.has(key) || key == "lastTransitionTime" {
                out[key] = condition[key].clone();
            }
        }
        out
    };
    conditions.items().iter().map(one).collect()
}

/// Runs a step on the stored form of an object and shows it again in this version.
fn as_stored(obj: &mut Value, step: impl FnOnce(&mut Value)) {
    let mut stored = V1.to_stored(std::mem::take(obj));
    step(&mut stored);
    *obj = V1.to_served(stored);
}

impl Strategy for HorizontalPodAutoscalerV1 {
    fn defaults(&self, obj: &mut Value) {
        default_to(child(obj, "spec"), "minReplicas", 1);
    }

    fn prepare_create(&self, obj: &mut Value) {
        as_stored(obj, |stored| HorizontalPodAutoscaler.prepare_create(stored));
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        let old = V1.to_stored(old.clone());
        as_stored(obj, |stored| HorizontalPodAutoscaler.prepare_update(stored, &old));
    }

    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        let old = V1.to_stored(old.clone());
        as_stored(obj, |stored| HorizontalPodAutoscaler.prepare_status_update(stored, &old));
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        HorizontalPodAutoscaler.validate_create(&V1.to_stored(obj.clone()))
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        HorizontalPodAutoscaler.validate_update(&V1.to_stored(obj.clone()), &V1.to_stored(old.clone()))
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        HorizontalPodAutoscaler.validate_status_update(&V1.to_stored(obj.clone()), &V1.to_stored(old.clone()))
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        HorizontalPodAutoscaler.cells(&V1.to_stored(obj.clone()), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pretty_assertions::assert_eq;

    fn stored() -> Value {
        json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2",
            "metadata": {"name": "x", "annotations": {"z": "1"}},
            "spec": {
                "scaleTargetRef": {"kind": "ReplicationController", "name": "d"}, "minReplicas": 2, "maxReplicas": 9,
                "metrics": [
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "100Mi"}}},
                    {"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
                    {"type": "External", "external": {"metric": {"name": "e", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "Value", "value": "10"}}},
                    {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "target": {"type": "Value", "value": "1k"}, "metric": {"name": "m"}}},
                    {"type": "ContainerResource", "containerResource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}, "container": "c"}},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 55}}}],
                "behavior": {
                    "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
                        {"type": "Pods", "value": 4, "periodSeconds": 15}]},
                    "scaleDown": {"stabilizationWindowSeconds": 60, "selectPolicy": "Max", "policies": [
                        {"type": "Percent", "value": 10, "periodSeconds": 30}]}}},
            "status": {"observedGeneration": 3, "currentReplicas": 2, "desiredReplicas": 4,
                "currentMetrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "current": {"averageValue": "3m", "averageUtilization": 7}}}],
                "conditions": [{"type": "AbleToScale", "status": "True", "reason": "R"}]}})
    }

    #[test]
    fn what_v1_has_no_field_for_is_annotated() {
        let served = V1.to_served(stored());
        assert_eq!(
            served["spec"],
            json!({"scaleTargetRef": {"kind": "ReplicationController", "name": "d"}, "minReplicas": 2, "maxReplicas": 9,
                "targetCPUUtilizationPercentage": 55})
        );
        assert_eq!(
            served["status"],
            json!({"observedGeneration": 3, "currentReplicas": 2, "desiredReplicas": 4, "currentCPUUtilizationPercentage": 7})
        );
        let annotation = |key: &str| served["metadata"]["annotations"][key].text().to_owned();
        assert_eq!(
            annotation(METRICS),
            r#"[{"type":"Resource","resource":{"name":"memory","targetAverageValue":"100Mi"}},{"type":"Pods","pods":{"metricName":"q","targetAverageValue":"5"}},{"type":"External","external":{"metricName":"e","metricSelector":{"matchLabels":{"a":"b"}},"targetValue":"10"}},{"type":"Object","object":{"target":{"kind":"Service","name":"s"},"metricName":"m","targetValue":"1k"}},{"type":"ContainerResource","containerResource":{"name":"cpu","targetAverageUtilization":50,"container":"c"}}]"#
        );
        assert_eq!(
            annotation(BEHAVIOR),
            r#"{"ScaleUp":{"StabilizationWindowSeconds":0,"SelectPolicy":"Max","Policies":[{"Type":"Pods","Value":4,"PeriodSeconds":15}],"Tolerance":null},"ScaleDown":{"StabilizationWindowSeconds":60,"SelectPolicy":"Max","Policies":[{"Type":"Percent","Value":10,"PeriodSeconds":30}],"Tolerance":null}}"#
        );
        assert_eq!(
            annotation(CURRENT_METRICS),
            r#"[{"type":"Resource","resource":{"name":"cpu","currentAverageUtilization":7,"currentAverageValue":"3m"}}]"#
        );
        assert_eq!(
            annotation(CONDITIONS),
            r#"[{"type":"AbleToScale","status":"True","lastTransitionTime":null,"reason":"R"}]"#
        );
        // And back, but for the null of a time.
        let mut back = V1.to_stored(served);
        remove(&mut back["status"]["conditions"][0], "lastTransitionTime");
        assert_eq!(orlop_json::to_string(&back).ok(), orlop_json::to_string(&stored()).ok());
    }

    #[test]
    fn annotations_that_do_not_read_are_dropped() {
        let v1 = json!({"metadata": {"annotations": {METRICS: "x", BEHAVIOR: "[]", CONDITIONS: "{}", "a": "b"}},
            "spec": {"scaleTargetRef": {}, "maxReplicas": 1}, "status": {}});
        let stored = V1.to_stored(v1);
        assert_eq!(stored["metadata"]["annotations"], json!({"a": "b"}));
        assert_eq!(stored["spec"]["metrics"], default_metrics());
        assert_eq!(stored["status"], json!({"desiredReplicas": 0, "currentMetrics": null}));
    }

    #[test]
    fn v1_follows_the_rules_of_v2() {
        let mut obj = json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1", "metadata": {"name": "x", "namespace": "n"},
            "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}, "maxReplicas": 3,
                "targetCPUUtilizationPercentage": 0}});
        let v1 = HorizontalPodAutoscalerV1;
        v1.defaults(&mut obj);
        v1.prepare_create(&mut obj);
        assert_eq!(obj["status"], json!({"currentReplicas": 0, "desiredReplicas": 0}));
        let errs = crate::testing::texts(&v1.validate_create(&obj));
        assert_eq!(
            errs,
            ["spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0"]
        );
    }
}
