//! Deployment: a template, how many, and how to go from one template to the next.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::{
    not_more_than_100_percent, number, positive_int_or_percent, unknown_strategy, validate_selector_stays,
};
use crate::core::pod_template;
use crate::cursor::{Cursor, child, default_empty_to, default_to, keep, keep_field, same, set_generation};
use crate::validate::nonnegative;
use crate::workload::Workload;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of Deployments.
pub struct Deployment;

const RULES: Workload = Workload {
    fresh: &[],
    pod_spec: "/spec/template/spec",
    counters: &[
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "collisionCount",
    ],
    parts: &["updatedReplicas", "readyReplicas", "availableReplicas"],
    ready: "readyReplicas",
};

fn validate_spec(errs: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    nonnegative(errs, &path.child("replicas"), &spec["replicas"]);
    pod_template::validate_replicas_of_template(errs, &path, spec, old);
    validate_strategy(errs, &path.child("strategy"), &spec["strategy"]);
    nonnegative(errs, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
    nonnegative(errs, &path.child("revisionHistoryLimit"), &spec["revisionHistoryLimit"]);
    let deadline = &spec["progressDeadlineSeconds"];
    if deadline.is_set() {
        let at = path.child("progressDeadlineSeconds");
        nonnegative(errs, &at, deadline);
        if deadline.int() <= spec["minReadySeconds"].int() {
            errs.push(field::invalid(&at, deadline.int(), "must be greater than minReadySeconds"));
        }
    }
}

fn validate_strategy(errs: &mut ErrorList, path: &Path, strategy: &Value) {
    let rolling = &strategy["rollingUpdate"];
    let at = path.child("rollingUpdate");
    match strategy["type"].text() {
        "Recreate" => {
            if rolling.is_set() {
                errs.push(field::forbidden(&at, "may not be specified when strategy `type` is 'Recreate'"));
            }
        }
        "RollingUpdate" if !rolling.is_set() => {
            errs.push(field::required(&at, "this should be defaulted and never be nil"))
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
            positive_int_or_percent(errs, &at.child("maxUnavailable"), unavailable);
            positive_int_or_percent(errs, &at.child("maxSurge"), surge);
            if number(unavailable) == 0 && number(surge) == 0 {
                errs.push(field::invalid(
                    &at.child("maxUnavailable"),
                    unavailable.clone(),
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
            not_more_than_100_percent(errs, &at.child("maxUnavailable"), unavailable);
        }
        _ => errs.push(unknown_strategy(path, strategy, &["Recreate", "RollingUpdate"])),
    }
}

impl Strategy for Deployment {
    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        default_to(spec, "replicas", 1);
        pod_template::set_defaults(spec);
        let strategy = child(spec, "strategy");
        default_empty_to(strategy, "type", "RollingUpdate");
        if strategy["type"].text() == "RollingUpdate" {
            let rolling = child(strategy, "rollingUpdate");
            default_to(rolling, "maxUnavailable", "25%");
            default_to(rolling, "maxSurge", "25%");
        }
        default_to(spec, "revisionHistoryLimit", 10);
        default_to(spec, "progressDeadlineSeconds", 600);
    }

    fn prepare_create(&self, obj: &mut Value) {
        RULES.prepare_create(obj);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        RULES.keep_status(obj, old);
        // Annotations count as desired state here.
        let changed = !same(&obj["spec"], &old["spec"])
            || !same(&obj["metadata"]["annotations"], &old["metadata"]["annotations"]);
        set_generation(obj, old["metadata"]["generation"].int() + i64::from(changed));
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &obj["spec"], None);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
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

    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["spec"]);
        keep_field(child(obj, "metadata"), &old["metadata"], "labels");
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        RULES.validate_status_update(obj, old)
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj["spec"], &obj["status"]);
        let (containers, images) = printer::containers_and_images(&spec["template"]["spec"]);
        vec![
            printer::name(obj),
            format!("{}/{}", status["readyReplicas"].int(), spec["replicas"].int()).into(),
            status["updatedReplicas"].int().into(),
            status["availableReplicas"].int().into(),
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
    use crate::testing::{check_cells, check_create, check_defaults, check_update};
    use orlop_json::json;

    fn deployment(extra: Value) -> Value {
        let mut spec = json!({"selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            spec[k] = v;
        }
        json!({"spec": spec})
    }

    fn check(spec: Value, expected: &[&str]) {
        check_create("apps", "Deployment", deployment(spec), expected);
    }

    #[test]
    fn defaults() {
        check_defaults(
            "apps",
            "Deployment",
            deployment(json!({})),
            json!({"spec": {
                "selector": {"matchLabels": {"app": "x"}},
                "template": {"metadata": {"labels": {"app": "x"}}, "spec": {
                    "containers": [{"name": "c", "image": "i", "resources": {}, "terminationMessagePath": "/dev/termination-log",
                        "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}],
                    "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                    "securityContext": {}, "schedulerName": "default-scheduler"}},
                "replicas": 1,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
                "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600}}),
        );
    }

    #[test]
    fn validation() {
        check(json!({}), &[]);
        check(
            json!({"template": {}}),
            &[
                "spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`",
                "spec.template.spec.containers: Required value",
            ],
        );
        check(
            json!({"minReadySeconds": 600}),
            &["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"],
        );
        check(
            json!({"strategy": {"rollingUpdate": {"maxSurge": "abc", "maxUnavailable": "120%"}}}),
            &[
                "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"abc\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"120%\": must not be greater than 100%",
            ],
        );
        check(
            json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}),
            &[
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            ],
        );
        check(
            json!({"strategy": {"type": "Foo", "rollingUpdate": {"maxSurge": "1%"}}}),
            &[
                "spec.strategy: Unsupported value: {\"Type\":\"Foo\",\"RollingUpdate\":{\"MaxUnavailable\":0,\"MaxSurge\":\"1%\"}}: supported values: \"Recreate\", \"RollingUpdate\"",
            ],
        );
        check(
            json!({"strategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}}),
            &[
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ],
        );
        check(
            json!({"replicas": -1, "minReadySeconds": -1, "revisionHistoryLimit": -1, "progressDeadlineSeconds": -1}),
            &[
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
                "spec.progressDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.progressDeadlineSeconds: Invalid value: -1: must be greater than minReadySeconds",
            ],
        );
        check(
            json!({"selector": {}}),
            &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
        );
        check(
            json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Foo"}]}}),
            &[
                "spec.selector.matchExpressions[0].operator: Invalid value: \"Foo\": not a valid selector operator",
                "spec.selector: Invalid value: {\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"Foo\"}]}: invalid label selector",
            ],
        );
        let template = |spec: Value| {
            let mut t = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            for (k, v) in spec.as_object().cloned().unwrap_or_default() {
                t["spec"][k] = v;
            }
            json!({"template": t})
        };
        check(
            template(json!({"restartPolicy": "Never"})),
            &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
        );
        check(
            template(json!({"activeDeadlineSeconds": 5})),
            &[
                "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported",
            ],
        );
        check(
            template(json!({"ephemeralContainers": [{"name": "e", "image": "x"}]})),
            &[
                "spec.template.spec.ephemeralContainers: Forbidden: ephemeral containers not allowed in pod template",
            ],
        );
    }

    #[test]
    fn updates() {
        let other = json!({"selector": {"matchLabels": {"app": "y"}},
            "template": {"metadata": {"labels": {"app": "y"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
        check_update(
            "apps",
            "Deployment",
            deployment(other),
            deployment(json!({})),
            &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"y\"}}: field is immutable"],
        );
        let old = json!({"metadata": {"generation": 3}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        for (new, generation) in [
            (json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}}), 3),
            (json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"replicas": 1}}), 4),
            (json!({"metadata": {"generation": 77}, "spec": {"replicas": 2}}), 4),
        ] {
            let mut new = new;
            Deployment.prepare_update(&mut new, &old);
            assert_eq!(new["metadata"]["generation"], generation, "{new}");
            assert_eq!(new["status"], old["status"]);
        }
    }

    #[test]
    fn rows() {
        let mut d = deployment(json!({"replicas": 3}));
        d["metadata"] = json!({"name": "d", "creationTimestamp": "2024-01-01T00:00:00Z"});
        d["status"] = json!({"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1});
        check_cells("apps", "Deployment", d, json!(["d", "2/3", 3, 1, "24h", "c", "i", "app=x"]));
    }
}
