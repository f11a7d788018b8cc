//! Job: pods that run until enough of them have succeeded.

mod indexes;
mod status;
pub(super) mod validation;

use jiff::Timestamp;
use orlop_api::field::ErrorList;
use orlop_api::field::Path;
use orlop_json::Value;

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

/// Whether a condition of the status holds.
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
    use crate::testing::{check_cells, check_create};
    use orlop_json::json;

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
    fn numbers_and_modes() {
        let check = |extra: Value, expected: &[&str]| check_create("batch", "Job", job(extra), expected);
        check(
            json!({"parallelism": -1, "completions": -1, "activeDeadlineSeconds": -1, "backoffLimit": -1,
                "ttlSecondsAfterFinished": -1, "backoffLimitPerIndex": -1, "maxFailedIndexes": -1}),
            &[
                "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
                "spec.completions: Invalid value: -1: must be greater than or equal to 0",
                "spec.activeDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0",
                "spec.ttlSecondsAfterFinished: Invalid value: -1: must be greater than or equal to 0",
                "spec.backoffLimitPerIndex: Invalid value: -1: must be greater than or equal to 0",
                "spec.maxFailedIndexes: Invalid value: -1: must be greater than or equal to 0",
                "spec.backoffLimitPerIndex: Invalid value: -1: requires indexed completion mode",
                "spec.maxFailedIndexes: Invalid value: -1: requires indexed completion mode",
            ],
        );
        let indexed = |extra: Value| {
            let mut spec = json!({"completionMode": "Indexed"});
            for (key, value) in extra.entries() {
                spec[key.as_str()] = value.clone();
            }
            spec
        };
        check(
            indexed(json!({"parallelism": 100_001})),
            &[
                "spec.completions: Required value: when completion mode is Indexed",
                "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed",
            ],
        );
        check(
            indexed(json!({"completions": 2, "maxFailedIndexes": 3})),
            &[
                "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
                "spec.maxFailedIndexes: Invalid value: 3: must be less than or equal to completions",
            ],
        );
        check(
            indexed(json!({"completions": 100_001, "parallelism": 10_001, "backoffLimitPerIndex": 1})),
            &[
                "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000",
                "spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index",
            ],
        );
        check(
            json!({"managedBy": format!("example.com/{}", "x".repeat(52))}),
            &["spec.managedBy: Too long: may not be more than 63 bytes"],
        );
        check(
            json!({"podReplacementPolicy": "Foo"}),
            &[
                "spec.podReplacementPolicy: Unsupported value: \"Foo\": supported values: \"Failed\", \"TerminatingOrFailed\"",
            ],
        );
        let mut long = job(indexed(json!({"completions": 11})));
        let name = "j".repeat(62);
        long["metadata"]["name"] = name.as_str().into();
        check_create(
            "batch",
            "Job",
            long,
            &[&format!(
                "metadata.name: Invalid value: \"{name}\": will not able to create pod with invalid DNS label: {name}-10"
            )],
        );
    }

    #[test]
    fn failure_policies() {
        let check = |rule: Value, expected: &[&str]| {
            check_create("batch", "Job", job(json!({"podFailurePolicy": {"rules": [rule]}})), expected);
        };
        let rule = "spec.podFailurePolicy.rules[0]";
        check(
            json!({}),
            &[
                &format!(
                    "{rule}.action: Required value: valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"
                ),
                &format!(
                    "{rule}: Invalid value: specifying one of OnExitCodes and OnPodConditions is required"
                ),
            ],
        );
        check(
            json!({"action": "Foo", "onExitCodes": {}}),
            &[
                &format!(
                    "{rule}.action: Unsupported value: \"Foo\": supported values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\""
                ),
                &format!("{rule}.onExitCodes.operator: Required value: valid values: [\"In\" \"NotIn\"]"),
                &format!("{rule}.onExitCodes.values: Invalid value: null: at least one value is required"),
            ],
        );
        check(
            json!({"action": "FailIndex", "onExitCodes": {"operator": "Is", "containerName": "d", "values": [1, 1]}}),
            &[
                &format!(
                    "{rule}.action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set"
                ),
                &format!(
                    "{rule}.onExitCodes.operator: Unsupported value: \"Is\": supported values: \"In\", \"NotIn\""
                ),
                &format!(
                    "{rule}.onExitCodes.containerName: Invalid value: \"d\": must be one of the container or initContainer names in the pod template"
                ),
                &format!("{rule}.onExitCodes.values[1]: Duplicate value: 1"),
            ],
        );
        check(
            json!({"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [0]},
                "onPodConditions": [{"type": "", "status": ""}, {"type": "A", "status": "Maybe"}]}),
            &[
                &format!("{rule}.onPodConditions[0].type: Invalid value: \"\": name part must be non-empty"),
                &format!(
                    "{rule}.onPodConditions[0].type: Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
                ),
                &format!(
                    "{rule}.onPodConditions[0].status: Required value: valid values: [\"False\" \"True\" \"Unknown\"]"
                ),
                &format!(
                    "{rule}.onPodConditions[1].status: Unsupported value: \"Maybe\": supported values: \"False\", \"True\", \"Unknown\""
                ),
                &format!(
                    "{rule}: Invalid value: specifying both OnExitCodes and OnPodConditions is not supported"
                ),
            ],
        );
        let good =
            json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
        let with = |extra: Value| {
            let mut job = job(json!({"podFailurePolicy": {"rules": [good.clone()]}}));
            for (key, value) in extra.entries() {
                job["spec"][key.as_str()] = value.clone();
            }
            job
        };
        check_create("batch", "Job", with(json!({})), &[]);
        check_create(
            "batch",
            "Job",
            with(json!({"podReplacementPolicy": "TerminatingOrFailed"})),
            &[
                "spec.podReplacementPolicy: Unsupported value: \"TerminatingOrFailed\": supported values: \"Failed\"",
            ],
        );
        let mut restarting = with(json!({}));
        restarting["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure".into();
        check_create(
            "batch",
            "Job",
            restarting,
            &[
                "spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy is specified",
            ],
        );
        let rules = Value::Array(vec![good.clone(); 21]);
        check_create(
            "batch",
            "Job",
            with(json!({"podFailurePolicy": {"rules": rules}})),
            &["spec.podFailurePolicy.rules: Too many: 21: must have at most 20 items"],
        );
    }

    #[test]
    fn success_policies() {
        let check = |rules: Value, expected: &[&str]| {
            let spec =
                json!({"completionMode": "Indexed", "completions": 5, "successPolicy": {"rules": rules}});
            check_create("batch", "Job", job(spec), expected);
        };
        check(json!([{"succeededIndexes": "1-3", "succeededCount": 2}]), &[]);
        check(
            json!([]),
            &[
                "spec.successPolicy.rules: Required value: at least one rules must be specified when the successPolicy is specified",
            ],
        );
        check(
            json!([{}, {"succeededCount": 6}, {"succeededIndexes": "1,x"}, {"succeededIndexes": "1-2", "succeededCount": 3}, {"succeededCount": -1}]),
            &[
                "spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified",
                "spec.successPolicy.rules[1].succeededCount: Invalid value: 6: must be less than or equal to 5 (the number of specified completions)",
                "spec.successPolicy.rules[2].succeededIndexes: Invalid value: \"1,x\": error parsing succeededIndexes: cannot convert string to integer for index: \"x\"",
                "spec.successPolicy.rules[3].succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)",
                "spec.successPolicy.rules[4].succeededCount: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
        check_create(
            "batch",
            "Job",
            job(json!({"successPolicy": {"rules": []}})),
            &["spec.successPolicy: Invalid value: {\"rules\":[]}: requires indexed completion mode"],
        );
    }

    /// An update by `change` of a job with this spec and status.
    fn check_change(extra: Value, status: Value, change: fn(&mut Value), expected: &[&str]) {
        let mut old = job(extra);
        Job.defaults(&mut old);
        Job.prepare_create(&mut old);
        old["metadata"]["namespace"] = "default".into();
        old["metadata"]["resourceVersion"] = "1".into();
        old["status"] = status;
        let mut new = old.clone();
        change(&mut new);
        Job.prepare_update(&mut new, &old);
        assert_eq!(crate::testing::texts(&Job.validate_update(&new, &old)), expected, "{new}");
    }

    #[test]
    fn updates() {
        let check = |extra: Value, change: fn(&mut Value), expected: &[&str]| {
            check_change(extra, json!({}), change, expected);
        };
        check(json!({"completions": 2}), |job| job["spec"]["parallelism"] = 5.into(), &[]);
        check(
            json!({"completions": 2}),
            |job| job["spec"]["completions"] = 3.into(),
            &["spec.completions: Invalid value: 3: field is immutable"],
        );
        let indexed = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2});
        let resize = |job: &mut Value| job["spec"]["completions"] = 3.into();
        check(
            indexed.clone(),
            resize,
            &["spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism"],
        );
        let scale = |job: &mut Value| {
            job["spec"]["completions"] = 3.into();
            job["spec"]["parallelism"] = 3.into();
        };
        check(indexed.clone(), scale, &[]);
        check(
            indexed.clone(),
            |job| job["spec"]["managedBy"] = "example.com/x".into(),
            &["spec.managedBy: Invalid value: \"example.com/x\": field is immutable"],
        );
        check(
            indexed.clone(),
            |job| job["spec"]["backoffLimitPerIndex"] = 1.into(),
            &["spec.backoffLimitPerIndex: Invalid value: 1: field is immutable"],
        );
        check(
            indexed.clone(),
            |job| job["spec"]["successPolicy"] = json!({"rules": [{"succeededCount": 1}]}),
            &["spec.successPolicy: Invalid value: {\"rules\":[{\"succeededCount\":1}]}: field is immutable"],
        );
        for (key, value) in
            [("activeDeadlineSeconds", 5), ("backoffLimit", 1), ("ttlSecondsAfterFinished", 1)]
        {
            let mut old = indexed.clone();
            old[key] = value.into();
            check(old, |_| {}, &[]);
        }
        let negative = "spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0";
        check(indexed, |job| job["spec"]["backoffLimit"] = (-1).into(), &[negative, negative]);
    }

    #[test]
    fn a_job_at_rest_may_be_told_where_to_run() {
        let place = |job: &mut Value| {
            let template = child(child(job, "spec"), "template");
            template["metadata"]["annotations"] = json!({"a": "b"});
            template["spec"]["nodeSelector"] = json!({"zone": "a"});
            template["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
            template["spec"]["affinity"] = json!({"nodeAffinity": {}});
            template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        };
        let started = "2024-01-01T00:00:00Z";
        let held = json!([{"type": "Suspended", "status": "True"}]);
        for (suspend, status, allowed) in [
            (true, json!({}), true),
            (false, json!({}), false),
            (true, json!({"active": 1}), false),
            (true, json!({"startTime": started}), false),
            (true, json!({"startTime": started, "conditions": held}), true),
            (true, json!({"startTime": started, "conditions": held, "active": 1}), false),
        ] {
            let mut old = job(json!({"suspend": suspend}));
            Job.defaults(&mut old);
            Job.prepare_create(&mut old);
            old["status"] = status;
            let mut new = old.clone();
            place(&mut new);
            let errs = Job.validate_update(&new, &old);
            let fixed = errs.iter().any(|e| e.field == "spec.template" && e.detail == "field is immutable");
            assert_eq!(fixed, !allowed, "{}", old["status"]);
        }
        check_change(
            json!({"suspend": true}),
            json!({}),
            |job| job["spec"]["template"]["spec"]["affinity"] = json!({}),
            &[],
        );
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
