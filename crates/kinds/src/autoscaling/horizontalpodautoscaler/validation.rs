//! Upstream's `ValidateHorizontalPodAutoscaler` and what it calls.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::NameRule;
use crate::core::pod::resources::{quantity, validate_container_resource_name};
use crate::cursor::Cursor;
use crate::metadata;
use crate::validate::{NEGATIVE, dns_label, nonnegative, object_name, one_of};

/// Bounds of a scaling policy's period and of the stabilization window, in seconds.
const MAX_PERIOD: i64 = 1800;
const MAX_WINDOW: i64 = 3600;
/// Types of metrics with the field of each, in upstream's order of messages.
const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];
/// The fields in the order in which they are looked at.
const FIELDS: [&str; 5] = ["object", "external", "pods", "resource", "containerResource"];

/// What an apiVersion of a reference may look like.
#[derive(Clone, Copy)]
struct Reference {
    /// The core group will do.
    any_group: bool,
    /// It is not looked at: it was wrong before.
    any_version: bool,
}

/// How strict an autoscaler is looked at, given what it replaces.
struct Options {
    fewest: i64,
    target: Reference,
    described: Reference,
}

impl Options {
    fn new(obj: &Value, old: Option<&Value>) -> Options {
        let target = &obj["spec"]["scaleTargetRef"];
        let mut options = Options {
            fewest: 1,
            target: Reference { any_group: false, any_version: false },
            described: Reference { any_group: true, any_version: false },
        };
        let unchanged = old.is_some_and(|old| {
            let before = &old["spec"]["scaleTargetRef"];
            ["apiVersion", "kind"].iter().all(|key| before[*key].text() == target[*key].text())
        });
        if unchanged {
            options.target.any_version = true;
        } else if target["kind"].text() == "ReplicationController" {
            options.target.any_group = true;
        }
        let Some(spec) = old.map(|old| &old["spec"]) else { return options };
        if spec["minReplicas"].as_i64() == Some(0) {
            options.fewest = 0;
        }
        options.described.any_version = spec["metrics"].items().iter().any(|metric| {
            metric["type"].text() == "Object"
                && api_version(metric["object"]["describedObject"]["apiVersion"].text(), options.described)
                    .is_err()
        });
        options
    }
}

/// What is wrong with the apiVersion of a reference.
fn api_version(version: &str, rules: Reference) -> Result<(), String> {
    if rules.any_version {
        return Ok(());
    }
    match version.matches('/').count() {
        0 | 1 => {}
        _ => return Err(format!("unexpected GroupVersion string: {version}")),
    }
    let group = version.split_once('/').map_or("", |(group, _)| group);
    if group.is_empty() && !rules.any_group {
        return Err("apiVersion must specify API group".to_owned());
    }
    Ok(())
}

fn validate_reference(errs: &mut ErrorList, path: &Path, reference: &Value, rules: Reference) {
    for key in ["kind", "name"] {
        let value = reference[key].text();
        if value.is_empty() {
            errs.push(field::required(&path.child(key), ""));
        } else {
            object_name(errs, &path.child(key), value, NameRule::PathSegment);
        }
    }
    let version = reference["apiVersion"].text();
    if let Err(why) = api_version(version, rules) {
        errs.push(field::invalid(&path.child("apiVersion"), version, why));
    }
}

fn validate_spec(errs: &mut ErrorList, spec: &Value, options: &Options) {
    let path = Path::new("spec");
    let (fewest, most) = (&spec["minReplicas"], spec["maxReplicas"].int());
    if fewest.is_set() && fewest.int() < options.fewest {
        errs.push(field::invalid(
            &path.child("minReplicas"),
            fewest.int(),
            format!("must be greater than or equal to {}", options.fewest),
        ));
    }
    let at = path.child("maxReplicas");
    if most < 1 {
        errs.push(field::invalid(&at, most, "must be greater than 0"));
    }
    if fewest.is_set() && most < fewest.int() {
        errs.push(field::invalid(&at, most, "must be greater than or equal to `minReplicas`"));
    }
    validate_reference(errs, &path.child("scaleTargetRef"), &spec["scaleTargetRef"], options.target);
    let at = path.child("metrics");
    let metrics = spec["metrics"].items();
    for (i, metric) in metrics.iter().enumerate() {
        validate_metric(errs, &at.index(i), metric, options);
    }
    let wakes = metrics.iter().any(|m| matches!(m["type"].text(), "Object" | "External"));
    if fewest.as_i64() == Some(0) && !wakes {
        errs.push(field::forbidden(
            &at,
            "must specify at least one Object or External metric to support scaling to zero replicas",
        ));
    }
    for key in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][key];
        if rules.is_set() {
            validate_rules(errs, &path.child("behavior").child(key), rules);
        }
    }
}

fn validate_rules(errs: &mut ErrorList, path: &Path, rules: &Value) {
    let window = rules["stabilizationWindowSeconds"].int();
    let at = path.child("stabilizationWindowSeconds");
    if window < 0 {
        errs.push(field::invalid(&at, window, "must be greater than or equal to zero"));
    }
    if window > MAX_WINDOW {
        errs.push(field::invalid(&at, window, format!("must be less than or equal to {MAX_WINDOW}")));
    }
    one_of(errs, &path.child("selectPolicy"), &rules["selectPolicy"], &["Disabled", "Max", "Min"]);
    let policies = path.child("policies");
    if rules["policies"].is_empty() {
        errs.push(field::required(&policies, "must specify at least one Policy"));
    }
    for (i, policy) in rules["policies"].items().iter().enumerate() {
        let path = policies.index(i);
        let kind = policy["type"].text();
        if !matches!(kind, "Pods" | "Percent") {
            errs.push(field::not_supported(&path.child("type"), kind, &["Percent", "Pods"]));
        }
        for key in ["value", "periodSeconds"] {
            if policy[key].int() <= 0 {
                errs.push(field::invalid(&path.child(key), policy[key].int(), "must be greater than zero"));
            }
        }
        let period = policy["periodSeconds"].int();
        if period > MAX_PERIOD {
            errs.push(field::invalid(
                &path.child("periodSeconds"),
                period,
                format!("must be less than or equal to {MAX_PERIOD}"),
            ));
        }
    }
    let tolerance = &rules["tolerance"];
    if quantity(tolerance).sign() < 0 {
        errs.push(field::invalid(&path.child("tolerance"), tolerance.text(), NEGATIVE));
    }
}

fn validate_metric(errs: &mut ErrorList, path: &Path, metric: &Value, options: &Options) {
    let (kind, at) = (metric["type"].text(), path.child("type"));
    if kind.is_empty() {
        errs.push(field::required(&at, "must specify a metric source type"));
    }
    if !TYPES.contains(&kind) {
        errs.push(field::not_supported(&at, kind, &TYPES));
    }
    let present: Vec<&str> = FIELDS.into_iter().filter(|key| metric[*key].is_set()).collect();
    if let Some(first) = present.first() {
        validate_source(errs, &path.child(first), first, &metric[*first], options);
    }
    // Upstream says so once more.
    let known = TYPES.contains(&kind);
    let Some(expected) = FIELDS.into_iter().find(|key| known && key.eq_ignore_ascii_case(kind)) else {
        errs.push(field::not_supported(&at, kind, &TYPES));
        forbid_others(errs, path, &present, "");
        return;
    };
    if !present.contains(&expected) {
        errs.push(field::required(
            &path.child(expected),
            "must populate information for the given metric source",
        ));
    }
    forbid_others(errs, path, &present, expected);
}

fn forbid_others(errs: &mut ErrorList, path: &Path, present: &[&str], expected: &str) {
    if present.len() == 1 {
        return;
    }
    for key in present.iter().filter(|key| **key != expected) {
        errs.push(field::forbidden(&path.child(key), "must populate the given metric source only"));
    }
}

fn validate_source(errs: &mut ErrorList, path: &Path, kind: &str, source: &Value, options: &Options) {
    const NO_VALUE: &str = "must set either a target raw value or a target utilization";
    let target = &source["target"];
    let at = path.child("target");
    match kind {
        "object" => {
            let described = &source["describedObject"];
            validate_reference(errs, &path.child("describedObject"), described, options.described);
            validate_identifier(errs, &path.child("metric"), &source["metric"]);
            validate_target(errs, &at, target);
            if !target["value"].is_set() && !target["averageValue"].is_set() {
                errs.push(field::required(
                    &at.child("averageValue"),
                    "must set either a target value or averageValue",
                ));
            }
        }
        "external" => {
            validate_identifier(errs, &path.child("metric"), &source["metric"]);
            validate_target(errs, &at, target);
            match (target["value"].is_set(), target["averageValue"].is_set()) {
                (false, false) => errs.push(field::required(
                    &at.child("averageValue"),
                    "must set either a target value for metric or a per-pod target",
                )),
                (true, true) => errs.push(field::forbidden(
                    &at.child("value"),
                    "may not set both a target value for metric and a per-pod target",
                )),
                _ => {}
            }
        }
        "pods" => {
            validate_identifier(errs, &path.child("metric"), &source["metric"]);
            validate_target(errs, &at, target);
            if !target["averageValue"].is_set() {
                errs.push(field::required(
                    &at.child("averageValue"),
                    "must specify a positive target averageValue",
                ));
            }
        }
        _ => {
            let name = source["name"].text();
            if name.is_empty() {
                errs.push(field::required(&path.child("name"), "must specify a resource name"));
            } else if kind == "containerResource" {
                validate_container_resource_name(errs, &path.child("name"), name);
            }
            let container = source["container"].text();
            if kind == "containerResource" && container.is_empty() {
                errs.push(field::required(&path.child("container"), "must specify a container"));
            } else if kind == "containerResource" {
                dns_label(errs, &path.child("container"), container);
            }
            validate_target(errs, &at, target);
            match (target["averageUtilization"].is_set(), target["averageValue"].is_set()) {
                (false, false) => errs.push(field::required(&at.child("averageUtilization"), NO_VALUE)),
                (true, true) => errs.push(field::forbidden(
                    &at.child("averageValue"),
                    "may not set both a target raw value and a target utilization",
                )),
                _ => {}
            }
        }
    }
}

fn validate_target(errs: &mut ErrorList, path: &Path, target: &Value) {
    let kind = target["type"].text();
    if kind.is_empty() {
        errs.push(field::required(&path.child("type"), "must specify a metric target type"));
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errs.push(field::invalid(
            &path.child("type"),
            kind,
            "must be either Utilization, Value, or AverageValue",
        ));
    }
    for key in ["value", "averageValue"] {
        if target[key].is_set() && quantity(&target[key]).sign() != 1 {
            errs.push(field::invalid(&path.child(key), target[key].text(), "must be positive"));
        }
    }
    let utilization = &target["averageUtilization"];
    if utilization.is_set() && utilization.int() < 1 {
        errs.push(field::invalid(
            &path.child("averageUtilization"),
            utilization.int(),
            "must be greater than 0",
        ));
    }
}

fn validate_identifier(errs: &mut ErrorList, path: &Path, metric: &Value) {
    let (name, at) = (metric["name"].text(), path.child("name"));
    if name.is_empty() {
        errs.push(field::required(&at, "must specify a metric name"));
    } else {
        object_name(errs, &at, name, NameRule::PathSegment);
    }
}

pub(super) fn validate_create(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    validate_spec(&mut errs, &obj["spec"], &Options::new(obj, None));
    errs
}

pub(super) fn validate_update(obj: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(obj, old);
    validate_spec(&mut errs, &obj["spec"], &Options::new(obj, Some(old)));
    errs
}

pub(super) fn validate_status_update(obj: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(obj, old);
    for key in ["currentReplicas", "desiredReplicas"] {
        nonnegative(&mut errs, &Path::new("status").child(key), &obj["status"][key]);
    }
    errs
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_status, check_update};
    use orlop_json::{Value, json};

    const GROUP: &str = "autoscaling";
    const KIND: &str = "HorizontalPodAutoscaler";

    fn autoscaler(extra: Value) -> Value {
        let mut spec = json!({"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            spec[k] = v;
        }
        json!({"spec": spec})
    }

    fn check(extra: Value, expected: &[&str]) {
        check_create(GROUP, KIND, autoscaler(extra), expected);
    }

    #[test]
    fn replicas_and_target() {
        check(json!({}), &[]);
        check(
            json!({"minReplicas": 0, "maxReplicas": 0}),
            &[
                "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
                "spec.maxReplicas: Invalid value: 0: must be greater than 0",
                "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas",
            ],
        );
        check(
            json!({"minReplicas": 4}),
            &["spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"],
        );
        check(
            json!({"scaleTargetRef": {}}),
            &[
                "spec.scaleTargetRef.kind: Required value",
                "spec.scaleTargetRef.name: Required value",
                "spec.scaleTargetRef.apiVersion: Invalid value: \"\": apiVersion must specify API group",
            ],
        );
        check(json!({"scaleTargetRef": {"kind": "ReplicationController", "name": "r"}}), &[]);
        check(
            json!({"scaleTargetRef": {"kind": "a/b", "name": "r", "apiVersion": "a/b/c"}}),
            &[
                "spec.scaleTargetRef.kind: Invalid value: \"a/b\": may not contain '/'",
                "spec.scaleTargetRef.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
            ],
        );
        let old = json!({"scaleTargetRef": {"kind": "Deployment", "name": "d"}});
        let mut new = old.clone();
        new["maxReplicas"] = 5.into();
        check_update(GROUP, KIND, autoscaler(new), autoscaler(old), &[]);
    }

    #[test]
    fn behaviors() {
        check(
            json!({"behavior": {"scaleUp": {"selectPolicy": "Foo", "stabilizationWindowSeconds": 9999, "tolerance": "-1",
                "policies": [{"type": "X", "value": 0, "periodSeconds": 5000}]}, "scaleDown": {"policies": []}}}),
            &[
                "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 9999: must be less than or equal to 3600",
                "spec.behavior.scaleUp.selectPolicy: Unsupported value: \"Foo\": supported values: \"Disabled\", \"Max\", \"Min\"",
                "spec.behavior.scaleUp.policies[0].type: Unsupported value: \"X\": supported values: \"Percent\", \"Pods\"",
                "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero",
                "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 5000: must be less than or equal to 1800",
                "spec.behavior.scaleUp.tolerance: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.behavior.scaleDown.policies: Required value: must specify at least one Policy",
            ],
        );
    }

    #[test]
    fn metrics() {
        let metric = |metric: Value, expected: &[&str]| check(json!({"metrics": [metric]}), expected);
        metric(
            json!({"type": "Pods"}),
            &["spec.metrics[0].pods: Required value: must populate information for the given metric source"],
        );
        metric(
            json!({}),
            &[
                "spec.metrics[0].type: Required value: must specify a metric source type",
                "spec.metrics[0].type: Unsupported value: null: supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"",
                "spec.metrics[0].type: Unsupported value: null: supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"",
            ]
            .map(|text| text.replace("null", "\"\""))
            .each_ref()
            .map(String::as_str),
        );
        metric(
            json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Foo", "averageUtilization": 0, "averageValue": "0"}},
                "pods": {"metric": {}, "target": {"type": "AverageValue"}}}),
            &[
                "spec.metrics[0].pods.metric.name: Required value: must specify a metric name",
                "spec.metrics[0].pods.target.averageValue: Required value: must specify a positive target averageValue",
                "spec.metrics[0].pods: Forbidden: must populate the given metric source only",
            ],
        );
        metric(
            json!({"type": "Resource", "resource": {"target": {"type": "Foo", "averageUtilization": 0, "averageValue": "0"}}}),
            &[
                "spec.metrics[0].resource.name: Required value: must specify a resource name",
                "spec.metrics[0].resource.target.type: Invalid value: \"Foo\": must be either Utilization, Value, or AverageValue",
                "spec.metrics[0].resource.target.averageValue: Invalid value: \"0\": must be positive",
                "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
                "spec.metrics[0].resource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization",
            ],
        );
        metric(
            json!({"type": "ContainerResource", "containerResource": {"name": "foo", "target": {"type": "Utilization"}}}),
            &[
                "spec.metrics[0].containerResource.name: Invalid value: \"foo\": must be a standard resource type or fully qualified",
                "spec.metrics[0].containerResource.name: Invalid value: \"foo\": must be a standard resource for containers",
                "spec.metrics[0].containerResource.container: Required value: must specify a container",
                "spec.metrics[0].containerResource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
            ],
        );
        metric(
            json!({"type": "External", "external": {"metric": {"name": "e"}, "target": {"type": "Value", "value": "1", "averageValue": "1"}}}),
            &[
                "spec.metrics[0].external.target.value: Forbidden: may not set both a target value for metric and a per-pod target",
            ],
        );
        metric(
            json!({"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "a/b"}, "target": {"type": "Value"}}}),
            &[
                "spec.metrics[0].object.metric.name: Invalid value: \"a/b\": may not contain '/'",
                "spec.metrics[0].object.target.averageValue: Required value: must set either a target value or averageValue",
            ],
        );
    }

    #[test]
    fn statuses() {
        check_status(
            GROUP,
            KIND,
            json!({"currentReplicas": -1, "desiredReplicas": -2}),
            autoscaler(json!({})),
            &[
                "status.currentReplicas: Invalid value: -1: must be greater than or equal to 0",
                "status.desiredReplicas: Invalid value: -2: must be greater than or equal to 0",
            ],
        );
    }
}
