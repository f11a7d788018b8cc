//! Writes of a job's status: upstream's `ValidateJobStatusUpdate`. Most rules look only at what changed, so that a
//! status that was wrong already does not block writes of something else.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::indexes;
use crate::cursor::{Cursor, same};
use crate::metadata;
use crate::validate::nonnegative;

/// The conditions of one status.
struct Conditions<'a>(&'a Value);

impl Conditions<'_> {
    fn has(&self, kind: &str) -> bool {
        self.0["conditions"].items().iter().any(|c| c["type"].text() == kind && c["status"].text() == "True")
    }

    fn complete(&self) -> bool {
        self.has("Complete")
    }

    fn failed(&self) -> bool {
        self.has("Failed")
    }

    fn finished(&self) -> bool {
        self.complete() || self.failed()
    }
}

pub(super) fn validate(obj: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(obj, old);
    let (status, was) = (&obj["status"], &old["status"]);
    let path = Path::new("status");
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        nonnegative(&mut errs, &path.child(key), &status[key]);
    }
    validate_uncounted(&mut errs, &path.child("uncountedTerminatedPods"), &status["uncountedTerminatedPods"]);
    validate_conditions_and_times(&mut errs, &path, status, was);
    validate_indexes(&mut errs, &path, obj, was);
    validate_success_policy(&mut errs, &path, obj);
    validate_transition(&mut errs, &path, obj, was);
    errs
}

fn validate_uncounted(errs: &mut ErrorList, path: &Path, uncounted: &Value) {
    let mut seen: Vec<&str> = Vec::new();
    for list in ["succeeded", "failed"] {
        for (i, uid) in uncounted[list].texts().into_iter().enumerate() {
            let at = path.child(list).index(i);
            if uid.is_empty() {
                errs.push(field::invalid(&at, uid, "must not be empty"));
            } else if seen.contains(&uid) {
                errs.push(field::duplicate(&at, uid));
            } else {
                seen.push(uid);
            }
        }
    }
}

fn validate_conditions_and_times(errs: &mut ErrorList, path: &Path, status: &Value, was: &Value) {
    let (now, then) = (Conditions(status), Conditions(was));
    let conditions = path.child("conditions");
    let changed = |key: &str| !same(&status[key], &was[key]);
    let complete_changed = now.complete() != then.complete();
    let failed_changed = now.failed() != then.failed();
    let finished_changed = now.finished() != then.finished();
    let mut bad = |why: &str| errs.push(field::invalid_omitted(&conditions, why));
    if (complete_changed || failed_changed) && now.complete() && now.failed() {
        bad("cannot set Complete=True and Failed=true conditions");
    }
    let target_changed = now.has("FailureTarget") != then.has("FailureTarget");
    if (complete_changed || target_changed) && now.complete() && now.has("FailureTarget") {
        bad("cannot set Complete=True and FailureTarget=true conditions");
    }
    let (start, completion) = (&status["startTime"], &status["completionTime"]);
    let at = path.child("completionTime");
    if complete_changed || changed("completionTime") {
        if completion.is_set() && !now.complete() {
            errs.push(field::invalid(
                &at,
                completion.clone(),
                "cannot set completionTime when there is no Complete=True condition",
            ));
        }
        if !completion.is_set() && now.complete() {
            errs.push(field::required(&at, "completionTime is required for Complete jobs"));
        }
    }
    let time = |value: &Value| orlop_api::time::parse(value.text());
    if (changed("startTime") || changed("completionTime"))
        && let (Some(start), Some(end)) = (time(start), time(completion))
        && end < start
    {
        errs.push(field::invalid(&at, completion.clone(), "completionTime cannot be set before startTime"));
    }
    let mut bad = |why: &str| errs.push(field::invalid_omitted(&conditions, why));
    if (failed_changed || target_changed) && now.failed() && !now.has("FailureTarget") {
        bad("cannot set Failed=True condition without the FailureTarget=true condition");
    }
    let met_changed = now.has("SuccessCriteriaMet") != then.has("SuccessCriteriaMet");
    if (complete_changed || met_changed) && now.complete() && !now.has("SuccessCriteriaMet") {
        bad("cannot set Complete=True condition without the SuccessCriteriaMet=true condition");
    }
    if finished_changed || changed("active") {
        let active = status["active"].int();
        if active > 0 && now.finished() {
            errs.push(field::invalid(&path.child("active"), active, "active>0 is invalid for finished job"));
        }
    }
    if (finished_changed || changed("startTime")) && !start.is_set() && now.finished() {
        errs.push(field::required(&path.child("startTime"), "startTime is required for finished job"));
    }
    let uncounted = &status["uncountedTerminatedPods"];
    if (finished_changed || changed("uncountedTerminatedPods"))
        && now.finished()
        && !(uncounted["succeeded"].is_empty() && uncounted["failed"].is_empty())
    {
        errs.push(field::invalid(
            &path.child("uncountedTerminatedPods"),
            uncounted.clone(),
            "uncountedTerminatedPods needs to be empty for finished job",
        ));
    }
}

fn validate_indexes(errs: &mut ErrorList, path: &Path, obj: &Value, was: &Value) {
    let (spec, status) = (&obj["spec"], &obj["status"]);
    let completions = spec["completions"].as_i64();
    let (completed, failed) = (&status["completedIndexes"], &status["failedIndexes"]);
    let completed_changed = !same(completed, &was["completedIndexes"]);
    let failed_changed = !same(failed, &was["failedIndexes"]);
    let per_index = spec["backoffLimitPerIndex"].is_set();
    let mut parse = |key: &str, text: &str, completions: i64| {
        if let Err(why) = indexes::parse(text, completions) {
            errs.push(field::invalid(&path.child(key), text, format!("error parsing {key}: {why}")));
        }
    };
    if let (true, Some(completions)) = (completed_changed, completions) {
        parse("completedIndexes", completed.text(), completions);
    }
    if let (true, true, Some(completions)) = (failed_changed && per_index, failed.is_set(), completions) {
        parse("failedIndexes", failed.text(), completions);
    }
    if completed_changed && !completed.text().is_empty() && spec["completionMode"].text() != "Indexed" {
        errs.push(field::invalid(
            &path.child("completedIndexes"),
            completed.text(),
            "cannot set non-empty completedIndexes when non-indexed completion mode",
        ));
    }
    let at = path.child("failedIndexes");
    if failed_changed && failed.is_set() && !per_index {
        errs.push(field::invalid(
            &at,
            failed.text(),
            "cannot set non-null failedIndexes when backoffLimitPerIndex is null",
        ));
    }
    if (failed_changed || completed_changed)
        && failed.is_set()
        && let Some(completions) = completions
        && !completed.text().is_empty()
        && !failed.text().is_empty()
        && let Some(why) = indexes::overlap(completed.text(), failed.text(), completions)
    {
        errs.push(field::invalid(&at, failed.text(), why));
    }
    let (ready, active) = (status["ready"].int(), status["active"].int());
    let finished = Conditions(status).finished();
    let terminating = status["terminating"].int();
    let finish_changed = finished != Conditions(was).finished();
    if (finish_changed || !same(&status["terminating"], &was["terminating"])) && terminating > 0 && finished {
        errs.push(field::invalid(
            &path.child("terminating"),
            terminating,
            "terminating>0 is invalid for finished job",
        ));
    }
    let changed = |key: &str| !same(&status[key], &was[key]);
    if (changed("ready") || changed("active")) && ready > active {
        errs.push(field::invalid(&path.child("ready"), ready, "cannot set more ready pods than active"));
    }
}

fn validate_success_policy(errs: &mut ErrorList, path: &Path, obj: &Value) {
    let now = Conditions(&obj["status"]);
    let met = now.has("SuccessCriteriaMet");
    let mut bad = |why: &str| errs.push(field::invalid_omitted(&path.child("conditions"), why));
    if met && now.failed() {
        bad("cannot set SuccessCriteriaMet=True and Failed=true conditions");
    }
    if met && now.has("FailureTarget") {
        bad("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    }
    if obj["spec"]["successPolicy"].is_set() && !met && now.complete() {
        bad("cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True");
    }
}

fn validate_transition(errs: &mut ErrorList, path: &Path, obj: &Value, was: &Value) {
    let (spec, status) = (&obj["spec"], &obj["status"]);
    let (now, then) = (Conditions(status), Conditions(was));
    let conditions = path.child("conditions");
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if then.has(kind) && !now.has(kind) {
            errs.push(field::invalid_omitted(
                &conditions,
                format!("cannot disable the terminal {kind}=True condition"),
            ));
        }
    }
    let indexed = spec["completionMode"].text() == "Indexed";
    let scalable = indexed && spec["completions"] == spec["parallelism"];
    for (key, steady) in [("failed", true), ("succeeded", !scalable)] {
        if steady && status[key].int() < was[key].int() {
            errs.push(field::invalid(
                &path.child(key),
                status[key].int(),
                format!("cannot decrease the {key} counter"),
            ));
        }
    }
    let moved = |key: &str| was[key].is_set() && !same(&status[key], &was[key]);
    if status["completionTime"].is_set() && moved("completionTime") {
        errs.push(field::invalid(
            &path.child("completionTime"),
            status["completionTime"].clone(),
            "completionTime cannot be mutated",
        ));
    }
    if moved("startTime") && !spec["suspend"].flag() {
        errs.push(field::required(
            &path.child("startTime"),
            "startTime cannot be removed for unsuspended job",
        ));
    }
    if then.has("SuccessCriteriaMet") && !now.has("SuccessCriteriaMet") {
        errs.push(field::invalid_omitted(
            &conditions,
            "cannot disable the SuccessCriteriaMet=True condition",
        ));
    }
    if then.complete() && !then.has("SuccessCriteriaMet") && now.has("SuccessCriteriaMet") {
        errs.push(field::invalid_omitted(
            &conditions,
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::texts;
    use orlop_json::json;
    use pretty_assertions::assert_eq;

    fn job(spec: Value, status: Value) -> Value {
        json!({"metadata": {"name": "j", "namespace": "n", "resourceVersion": "1"}, "spec": spec, "status": status})
    }

    #[test]
    fn statuses() {
        let check = |spec: Value, status: Value, old: Value, expected: &[&str]| {
            let errs = validate(&job(spec.clone(), status), &job(spec, old));
            assert_eq!(texts(&errs), expected);
        };
        let condition = |kind: &str| json!({"type": kind, "status": "True"});
        let start = "2024-01-01T00:00:00Z";
        let end = "2024-01-01T00:01:00Z";
        check(
            json!({}),
            json!({"active": -1, "ready": 1}),
            json!({}),
            &[
                "status.active: Invalid value: -1: must be greater than or equal to 0",
                "status.ready: Invalid value: 1: cannot set more ready pods than active",
            ],
        );
        check(
            json!({}),
            json!({"uncountedTerminatedPods": {"succeeded": ["a", ""], "failed": ["a"]}}),
            json!({}),
            &[
                "status.uncountedTerminatedPods.succeeded[1]: Invalid value: \"\": must not be empty",
                "status.uncountedTerminatedPods.failed[0]: Duplicate value: \"a\"",
            ],
        );
        check(
            json!({}),
            json!({"conditions": [condition("Complete"), condition("SuccessCriteriaMet")]}),
            json!({}),
            &[
                "status.completionTime: Required value: completionTime is required for Complete jobs",
                "status.startTime: Required value: startTime is required for finished job",
            ],
        );
        check(
            json!({}),
            json!({"startTime": end, "completionTime": start}),
            json!({}),
            &[
                "status.completionTime: Invalid value: \"2024-01-01T00:00:00Z\": cannot set completionTime when there is no Complete=True condition",
                "status.completionTime: Invalid value: \"2024-01-01T00:00:00Z\": completionTime cannot be set before startTime",
            ],
        );
        check(
            json!({"completions": 3, "completionMode": "Indexed"}),
            json!({"completedIndexes": "5", "failedIndexes": "1"}),
            json!({}),
            &[
                "status.completedIndexes: Invalid value: \"5\": error parsing completedIndexes: too large index: \"5\"",
                "status.failedIndexes: Invalid value: \"1\": cannot set non-null failedIndexes when backoffLimitPerIndex is null",
            ],
        );
        check(
            json!({}),
            json!({"failed": 1}),
            json!({"failed": 2, "succeeded": 1, "startTime": start, "conditions": [condition("Failed")]}),
            &[
                "status.conditions: Invalid value: cannot disable the terminal Failed=True condition",
                "status.failed: Invalid value: 1: cannot decrease the failed counter",
                "status.succeeded: Invalid value: 0: cannot decrease the succeeded counter",
                "status.startTime: Required value: startTime cannot be removed for unsuspended job",
            ],
        );
    }
}
