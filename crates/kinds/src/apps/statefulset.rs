//! StatefulSet: pods with names and volumes of their own, made and replaced in order.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use super::{not_more_than_100_percent, number, positive_int_or_percent};
use crate::core::persistentvolumeclaim::{set_spec_defaults, spec_warnings, validate_claim_spec};
use crate::core::pod::validation::validate_pod_template_with_volumes;
use crate::core::pod_template;
use crate::cursor::{Cursor, child, default_empty_to, default_to, items_mut, keep_field, remove, same};
use crate::validate::{dns_label, nonnegative, one_of};
use crate::workload::{self, Workload};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of StatefulSets.
pub struct StatefulSet;

const RULES: Workload = Workload {
    fresh: &["replicas", "availableReplicas"],
    pod_spec: "/spec/template/spec",
    counters: &[
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ],
    parts: &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
    ready: "status.readyReplicas",
};

/// What may change in the spec.
const MUTABLE: [&str; 7] = [
    "replicas",
    "template",
    "updateStrategy",
    "minReadySeconds",
    "ordinals",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
];

/// What no update can change is looked at once, when there is no `old` spec.
fn validate_spec(errs: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    let at = path.child("podManagementPolicy");
    match spec["podManagementPolicy"].text() {
        "" => errs.push(field::required(&at, "")),
        "OrderedReady" | "Parallel" => {}
        other => errs.push(field::invalid(&at, other, "must be 'OrderedReady' or 'Parallel'")),
    }
    validate_strategy(errs, &path.child("updateStrategy"), &spec["updateStrategy"]);
    let retention = &spec["persistentVolumeClaimRetentionPolicy"];
    for key in ["whenDeleted", "whenScaled"] {
        let at = path.child("persistentVolumeClaimRetentionPolicy").child(key);
        one_of(errs, &at, &retention[key], &["Retain", "Delete"]);
    }
    if old.is_none() {
        let claims = path.child("volumeClaimTemplates");
        for (i, claim) in spec["volumeClaimTemplates"].items().iter().enumerate() {
            validate_claim_spec(errs, &claims.index(i).child("spec"), &claim["spec"]);
        }
    }
    nonnegative(errs, &path.child("replicas"), &spec["replicas"]);
    nonnegative(errs, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
    nonnegative(errs, &path.child("ordinals.start"), &spec["ordinals"]["start"]);
    validate_template(errs, &path, spec, old);
    let service = spec["serviceName"].text();
    if old.is_none() && !service.is_empty() {
        dns_label(errs, &path.child("serviceName"), service);
    }
}

/// The template and the selector of its pods, which may mount what the claim templates make.
fn validate_template(errs: &mut ErrorList, path: &Path, spec: &Value, old: Option<&Value>) {
    let (selector, template, at) = (&spec["selector"], &spec["template"], path.child("template"));
    if pod_template::validate_selector(errs, &path.child("selector"), selector, "statefulset", "") {
        let made = |claim: &Value| json!({"name": claim["metadata"]["name"], "persistentVolumeClaim": {}});
        let claims: Vec<Value> = spec["volumeClaimTemplates"].items().iter().map(made).collect();
        pod_template::validate_labels_match(errs, &at, selector, template);
        let before = old.map(|old| &old["template"]);
        validate_pod_template_with_volumes(errs, &at, template, before, &claims);
    }
    pod_template::validate_always_running(errs, &at.child("spec"), &template["spec"], "StatefulSet");
}

/// How many pods may be replaced at once is off by default upstream, and dropped from what did not have it.
fn drop_disabled(obj: &mut Value, old: Option<&Value>) {
    const ROLLING: &str = "/spec/updateStrategy/rollingUpdate";
    let kept = old.and_then(|old| old.pointer(ROLLING)).is_some_and(|rolling| rolling.has("maxUnavailable"));
    if !kept && let Some(rolling) = obj.pointer_mut(ROLLING) {
        remove(rolling, "maxUnavailable");
    }
}

fn validate_strategy(errs: &mut ErrorList, path: &Path, strategy: &Value) {
    let rolling = &strategy["rollingUpdate"];
    let at = path.child("rollingUpdate");
    match strategy["type"].text() {
        "" => errs.push(field::required(path, "")),
        "OnDelete" => {
            if rolling.is_set() {
                errs.push(field::invalid(
                    &at,
                    rolling.clone(),
                    "only allowed for updateStrategy 'RollingUpdate'",
                ));
            }
        }
        "RollingUpdate" => {
            nonnegative(errs, &at.child("partition"), &rolling["partition"]);
            let unavailable = &rolling["maxUnavailable"];
            if unavailable.is_set() {
                let at = at.child("maxUnavailable");
                positive_int_or_percent(errs, &at, unavailable);
                if number(unavailable) == 0 {
                    errs.push(field::invalid(&at, unavailable.clone(), "cannot be 0"));
                }
                not_more_than_100_percent(errs, &at, unavailable);
            }
        }
        _ => errs.push(field::invalid(path, strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'")),
    }
}

impl Strategy for StatefulSet {
    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        default_to(spec, "replicas", 1);
        pod_template::set_defaults(spec);
        default_empty_to(spec, "podManagementPolicy", "OrderedReady");
        let strategy = child(spec, "updateStrategy");
        default_empty_to(strategy, "type", "RollingUpdate");
        if strategy["type"].text() == "RollingUpdate" {
            default_to(child(strategy, "rollingUpdate"), "partition", 0);
        }
        default_to(spec, "revisionHistoryLimit", 10);
        let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
        default_empty_to(retention, "whenDeleted", "Retain");
        default_empty_to(retention, "whenScaled", "Retain");
        for claim in items_mut(spec, "volumeClaimTemplates") {
            default_to(claim, "kind", "PersistentVolumeClaim");
            default_to(claim, "apiVersion", "v1");
            set_spec_defaults(child(claim, "spec"));
            default_empty_to(child(claim, "status"), "phase", "Pending");
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        drop_disabled(obj, None);
        RULES.prepare_create(obj);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        drop_disabled(obj, Some(old));
        RULES.prepare_update(obj, old);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsLabel);
        validate_spec(&mut errs, &obj["spec"], None);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        validate_spec(&mut errs, &obj["spec"], Some(&old["spec"]));
        let mut munged = obj["spec"].clone();
        for key in MUTABLE {
            keep_field(&mut munged, &old["spec"], key);
        }
        if !same(&munged, &old["spec"]) {
            errs.push(field::forbidden(
                &Path::new("spec"),
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            ));
        }
        errs
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if !workload::same_generation(obj, old) {
            out = pod_template::warnings(obj);
        }
        let claims = Path::new("spec").child("volumeClaimTemplates");
        for (i, claim) in obj["spec"]["volumeClaimTemplates"].items().iter().enumerate() {
            // Upstream's path has this slip on update.
            let path = if old.is_some() { claims.index(i).child("Spec") } else { claims.index(i) };
            out.extend(spec_warnings(&path, &claim["spec"]));
        }
        if obj["spec"]["revisionHistoryLimit"].int() < 0 {
            out.push(
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                    .to_owned(),
            );
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = ErrorList::new();
        RULES.validate_counters(&mut errs, &obj["status"]);
        errs.extend(metadata::validate_object_meta_update(obj, old));
        workload::validate_not_decremented(&mut errs, &obj["status"], &old["status"]);
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj["spec"], &obj["status"]);
        let (containers, images) = printer::containers_and_images(&spec["template"]["spec"]);
        vec![
            printer::name(obj),
            format!("{}/{}", status["readyReplicas"].int(), spec["replicas"].int()).into(),
            printer::age(obj, now),
            containers.into(),
            images.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_create, check_update};
    use orlop_json::json;

    fn stateful_set(extra: Value) -> Value {
        let mut spec = json!({"serviceName": "s", "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            spec[k] = v;
        }
        json!({"spec": spec})
    }

    #[test]
    fn validation() {
        let check = |extra: Value, expected: &[&str]| {
            check_create("apps", "StatefulSet", stateful_set(extra), expected)
        };
        check(json!({}), &[]);
        let template = |spec: Value| {
            let mut pod = json!({"containers": [{"name": "c", "image": "i"}]});
            for (k, v) in spec.entries() {
                pod[k.as_str()] = v.clone();
            }
            json!({"metadata": {"labels": {"app": "x"}}, "spec": pod})
        };
        let mounting = |volume: &str| {
            template(
                json!({"containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": volume, "mountPath": "/d"}]}]}),
            )
        };
        let claims = json!([{"metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
        check(json!({"volumeClaimTemplates": claims, "template": mounting("data")}), &[]);
        check(
            json!({"volumeClaimTemplates": claims, "template": mounting("date")}),
            &["spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"date\""],
        );
        check(
            json!({"replicas": -1, "minReadySeconds": -1, "ordinals": {"start": -1},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": -1}},
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Foo", "whenScaled": "Bar"}}),
            &[
                "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
                "spec.persistentVolumeClaimRetentionPolicy.whenDeleted: Unsupported value: \"Foo\": supported values: \"Retain\", \"Delete\"",
                "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Bar\": supported values: \"Retain\", \"Delete\"",
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
        check(
            json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": 1}}}),
            &[
                "spec.updateStrategy.rollingUpdate: Invalid value: {\"partition\":1}: only allowed for updateStrategy 'RollingUpdate'",
            ],
        );
        check(
            json!({"selector": null}),
            &[
                "spec.selector: Required value",
                "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`",
            ],
        );
        check(
            json!({"selector": {}}),
            &["spec.selector: Invalid value: {}: empty selector is invalid for statefulset"],
        );
        check(
            json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Foo"}]}}),
            &[
                "spec.selector.matchExpressions[0].operator: Invalid value: \"Foo\": not a valid selector operator",
                "spec.selector: Invalid value: {\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"Foo\"}]}",
            ],
        );
        check(
            json!({"template": template(json!({"restartPolicy": "Never", "activeDeadlineSeconds": 3}))}),
            &[
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in StatefulSet is not Supported",
            ],
        );
        check(
            json!({"podManagementPolicy": "Foo"}),
            &["spec.podManagementPolicy: Invalid value: \"Foo\": must be 'OrderedReady' or 'Parallel'"],
        );
        check(
            json!({"updateStrategy": {"type": "Foo"}}),
            &[
                "spec.updateStrategy: Invalid value: {\"type\":\"Foo\"}: must be 'RollingUpdate' or 'OnDelete'",
            ],
        );
    }

    #[test]
    fn how_many_at_once_is_off_by_default() {
        let set = |unavailable: Value| {
            stateful_set(
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": unavailable}}}),
            )
        };
        let left = |obj: &Value| obj["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"].clone();
        let mut new = set(json!(2));
        StatefulSet.prepare_create(&mut new);
        assert_eq!(left(&new), Value::Null);
        let (mut new, old) = (set(json!(2)), set(json!("0%")));
        StatefulSet.prepare_update(&mut new, &old);
        assert_eq!(left(&new), 2);
        let errs = StatefulSet.validate_update(&set(json!("0%")), &old);
        let expected =
            ["spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": cannot be 0"];
        let found = crate::testing::texts(&errs);
        assert_eq!(found.iter().filter(|e| e.contains("maxUnavailable")).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn updates() {
        let update = |extra: Value, expected: &[&str]| {
            check_update("apps", "StatefulSet", stateful_set(extra), stateful_set(json!({})), expected);
        };
        update(json!({"replicas": 3}), &[]);
        update(
            json!({"serviceName": "t"}),
            &[
                "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            ],
        );
    }
}
