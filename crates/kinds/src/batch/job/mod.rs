//! Job: pods that run until enough of them have succeeded.

mod indexes;
mod status;
pub(super) mod validation;

use jiff::Timestamp;
use orlop_api::field::ErrorList;
use orlop_api::field::Path;
use serde_json::Value;

use crate::core::pod::warnings::pod_warnings;
use crate::core::pod_template;
use crate::cursor::{Cursor, child, default_to, same};
use crate::duration::human_duration;
use crate::workload::{self, Workload};
use crate::{Strategy, printer};

/// The strategy of Jobs.
pub struct Job;

const RULES: Workload = Workload { pod_spec: "/spec/template/spec", ..Workload::PLAIN };

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";

/// The selector and labels that tie a job to its pods, unless the writer manages them. Needs `metadata.uid` and
/// `metadata.name`.
fn generate_selector(obj: &mut Value) {
    if obj["spec"]["manualSelector"].flag() {
        return;
    }
    let name = obj["metadata"]["name"].clone();
    let uid = obj["metadata"]["uid"].clone();
    let labels = [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ];
    // A job without labels shares those of its template, upstream even in memory: it gets these too.
    let shared = same(&obj["metadata"]["labels"], &obj["spec"]["template"]["metadata"]["labels"]);
    for (key, value) in labels {
        // What the writer has set stays, to be refused when it is wrong.
        let template = child(child(obj, "spec"), "template");
        default_to(child(child(template, "metadata"), "labels"), key, value.clone());
        if shared {
            default_to(child(child(obj, "metadata"), "labels"), key, value.clone());
        }
    }
    let selector = child(child(obj, "spec"), "selector");
    default_to(child(selector, "matchLabels"), CONTROLLER_UID, uid);
}

/// Warnings about a job's spec, in a job or in a template of one.
pub(super) fn spec_warnings(path: &Path, spec: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if spec["completionMode"].text() == "Indexed"
        && spec["completions"].int() > 100_000
        && spec["parallelism"].int() > 10_000
    {
        out.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
    out.extend(pod_warnings(&path.child("template"), &spec["template"]));
    out
}

fn has_condition(obj: &Value, kind: &str) -> bool {
    obj["status"]["conditions"]
        .items()
        .iter()
        .any(|c| c["type"].text() == kind && c["status"].text() == "True")
}

fn summary(obj: &Value) -> &'static str {
    if has_condition(obj, "Complete") {
        "Complete"
    } else if has_condition(obj, "Failed") {
        "Failed"
    } else if obj["metadata"].has("deletionTimestamp") {
        "Terminating"
    } else if has_condition(obj, "Suspended") {
        "Suspended"
    } else if has_condition(obj, "FailureTarget") {
        "FailureTarget"
    } else if has_condition(obj, "SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn duration(obj: &Value, now: Timestamp) -> String {
    let time = |key: &str| obj["status"][key].text().parse::<Timestamp>().ok();
    match time("startTime") {
        None => String::new(),
        Some(start) => {
            let end = time("completionTime").unwrap_or(now);
            human_duration((end.as_millisecond() - start.as_millisecond()) / 1000)
        }
    }
}

impl Strategy for Job {
    fn defaults(&self, obj: &mut Value) {
        let spec = child(obj, "spec");
        pod_template::set_defaults(spec);
        if !spec["completions"].is_set() && !spec["parallelism"].is_set() {
            spec["completions"] = 1.into();
        }
        default_to(spec, "parallelism", 1);
        let limit = if spec["backoffLimitPerIndex"].is_set() { i32::MAX } else { 6 };
        default_to(spec, "backoffLimit", limit);
        default_to(spec, "completionMode", "NonIndexed");
        default_to(spec, "suspend", false);
        let replacement = if spec["podFailurePolicy"].is_set() { "Failed" } else { "TerminatingOrFailed" };
        default_to(spec, "podReplacementPolicy", replacement);
        default_to(spec, "manualSelector", false);
        let labels = spec["template"]["metadata"]["labels"].clone();
        if obj["metadata"]["labels"].is_empty() && !labels.is_empty() {
            child(obj, "metadata")["labels"] = labels;
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        generate_selector(obj);
        RULES.prepare_create(obj);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        RULES.prepare_update(obj, old);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        validation::validate_job(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        validation::validate_job_update(obj, old)
    }

    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        if workload::same_generation(obj, old) {
            return Vec::new();
        }
        let name = if old.is_none() { workload::pod_name_warning(obj) } else { None };
        name.into_iter().chain(spec_warnings(&Path::new("spec"), &obj["spec"])).collect()
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        status::validate(obj, old)
    }

    fn orphans_dependents(&self) -> bool {
        true
    }

    fn deletion_warning(&self) -> &'static str {
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        match label {
            "status.successful" => Some(obj["status"]["succeeded"].int().to_string()),
            _ => crate::metadata_field(true, obj, label),
        }
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &obj["spec"];
        let succeeded = obj["status"]["succeeded"].int();
        let completions = match (spec["completions"].as_i64(), spec["parallelism"].int()) {
            (Some(all), _) => format!("{succeeded}/{all}"),
            (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let (containers, images) = printer::containers_and_images(&spec["template"]["spec"]);
        vec![
            printer::name(obj),
            summary(obj).into(),
            completions.into(),
            duration(obj, now).into(),
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
    use crate::testing::{check_cells, check_create, check_update};
    use serde_json::json;

    fn job(extra: Value) -> Value {
        let mut spec = json!({"template": {"metadata": {"labels": {"app": "x"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            spec[k] = v;
        }
        json!({"metadata": {"name": "j", "uid": "u"}, "spec": spec})
    }

    #[test]
    fn the_selector_is_generated() {
        let mut j = job(json!({}));
        Job.defaults(&mut j);
        Job.prepare_create(&mut j);
        let labels = json!({"app": "x", "batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "j",
            "controller-uid": "u", "job-name": "j"});
        assert_eq!(j["metadata"]["labels"], labels);
        assert_eq!(j["spec"]["template"]["metadata"]["labels"], labels);
        assert_eq!(j["spec"]["selector"], json!({"matchLabels": {CONTROLLER_UID: "u"}}));
    }

    #[test]
    fn validation() {
        let check = |extra: Value, expected: &[&str]| check_create("batch", "Job", job(extra), expected);
        check(json!({}), &[]);
        check(
            json!({"managedBy": "a b"}),
            &[
                "spec.managedBy: Invalid value: \"a b\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ],
        );
        check(
            json!({"manualSelector": true}),
            &[
                "spec.selector: Required value",
                "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`",
            ],
        );
        check(
            json!({"completionMode": "Foo"}),
            &[
                "spec.completionMode: Unsupported value: \"Foo\": supported values: \"NonIndexed\", \"Indexed\"",
            ],
        );
        check(
            json!({"backoffLimitPerIndex": 1}),
            &["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"],
        );
        check(
            json!({"podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [0, 3, 2]}}]}}),
            &[
                "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
                "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [0,3,2]: must be ordered",
            ],
        );
    }

    #[test]
    fn updates() {
        let update = |new: Value, old: Value, expected: &[&str]| {
            check_update("batch", "Job", new, old, expected);
        };
        let mut old = job(json!({"completions": 2}));
        Job.defaults(&mut old);
        Job.prepare_create(&mut old);
        let mut new = old.clone();
        new["spec"]["parallelism"] = 5.into();
        update(new, old.clone(), &[]);
        let mut new = old.clone();
        new["spec"]["completions"] = 3.into();
        update(new, old, &["spec.completions: Invalid value: 3: field is immutable"]);
    }

    #[test]
    fn rows() {
        check_cells(
            "batch",
            "Job",
            json!({"metadata": {"name": "j", "creationTimestamp": "2024-01-01T00:00:00Z"}, "spec": {"completions": 2},
                "status": {"succeeded": 1, "startTime": "2024-01-01T00:00:00Z", "completionTime": "2024-01-01T00:02:05Z",
                    "conditions": [{"type": "Complete", "status": "True"}]}}),
            json!(["j", "Complete", "1/2", "2m5s", "24h", "", "", "<none>"]),
        );
    }
}
