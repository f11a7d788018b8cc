#![allow(clippy::unwrap_used)]
use pretty_assertions::assert_eq;
use serde_json::{Value, json};

use super::*;
use crate::objects::testing::{at, object};

const NOW: &str = "2026-01-01T01:00:00Z";

fn job(spec: Value, status: Value) -> Job {
    let mut all = json!({"parallelism": 2, "completions": 4, "backoffLimit": 6, "completionMode": "NonIndexed",
        "podReplacementPolicy": "TerminatingOrFailed", "template": {"spec": {"containers": [{"name": "c"}]}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    object(json!({"metadata": {"name": "work", "namespace": "a", "uid": "j"}, "spec": all, "status": status}))
}

/// `name phase[/index][!][-][~]`: with a finalizer unless `-`, ready with `!`, terminating with `~`.
fn pods(text: &str) -> Vec<Arc<Pod>> {
    let pod = |text: &str| {
        let (name, state) = text.split_once(' ').unwrap();
        let plain = state.trim_end_matches(['!', '-', '~']);
        let (phase, index) = plain.split_once('/').unwrap_or((plain, ""));
        let mut pod = json!({"metadata": {"name": name, "namespace": "a", "uid": name,
            "creationTimestamp": "2026-01-01T00:30:00Z"}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": phase}});
        if !index.is_empty() {
            pod["metadata"]["annotations"] = json!({indexes::INDEX: index});
        }
        if !state.contains('-') {
            pod["metadata"]["finalizers"] = json!([FINALIZER]);
        }
        if state.contains('!') {
            pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        }
        if state.contains('~') {
            pod["metadata"]["deletionTimestamp"] = json!(NOW);
        }
        Arc::new(object(pod))
    };
    text.split(", ").filter(|part| !part.is_empty()).map(pod).collect()
}

fn shown(action: &Action) -> String {
    let names = |pods: &[Arc<Pod>]| pods.iter().map(|pod| pod.name()).collect::<Vec<_>>().join(" ");
    match action {
        Action::Nothing => "nothing".to_owned(),
        Action::End(pods) => format!("end {}", names(pods)).trim_end().to_owned(),
        Action::Remove(pods) => format!("remove {}", names(pods)),
        Action::Create(count) => format!("create {count}"),
        Action::CreateIndexes(indexes) => format!("create {indexes:?}"),
        Action::Wait(wait) => format!("wait {}", wait.as_secs()),
    }
}

/// Everything goes well: what is done, and the status after it without times.
fn synced(job: Job, pods: Vec<Arc<Pod>>) -> (String, Value) {
    let look = Look::at(job, pods, HashSet::new(), Backoff::default(), at(NOW));
    let action = look.action(true);
    let count = |pods: &[Arc<Pod>], test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(pods.iter().filter(|pod| test(pod)).count()).unwrap()
    };
    let outcome = match &action {
        Action::Create(count) => Outcome { created: i32::try_from(*count).unwrap(), ..Outcome::default() },
        Action::CreateIndexes(all) => {
            Outcome { created: i32::try_from(all.len()).unwrap(), ..Outcome::default() }
        }
        Action::End(pods) | Action::Remove(pods) => {
            Outcome { created: 0, removed: count(pods, &|_| true), removed_ready: count(pods, &is_ready) }
        }
        _ => Outcome::default(),
    };
    let mut account = look.account(&action, outcome, true);
    let freed = account.to_free.iter().map(|pod| pod.uid().to_owned()).collect();
    account.count(&freed);
    account.finish();
    let mut status = serde_json::to_value(account.job.status).unwrap();
    status
        .as_object_mut()
        .unwrap()
        .retain(|key, _| !matches!(key.as_str(), "startTime" | "uncountedTerminatedPods"));
    if let Some(conditions) = status.get_mut("conditions") {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        *conditions = conditions
            .as_array()
            .unwrap()
            .iter()
            .map(|c| {
                json!(format!(
                    "{}={} {}: {}",
                    text(&c["type"]),
                    text(&c["status"]),
                    text(&c["reason"]),
                    text(&c["message"])
                ))
            })
            .collect();
    }
    if status.get("completionTime").is_some() {
        status["completionTime"] = json!("set");
    }
    (shown(&action), status)
}

fn check(what: &str, spec: Value, status: Value, with: &str, action: &str, expected: Value) {
    let (done, after) = synced(job(spec, status), pods(with));
    assert_eq!((done.as_str(), after), (action, expected), "{what}");
}

#[test]
fn pods_are_started_as_far_as_needed() {
    check("new", json!({}), json!({}), "", "create 2", json!({"active": 2, "ready": 0, "terminating": 0}));
    let two = json!({"active": 2, "ready": 1, "terminating": 0});
    check("at work", json!({}), json!({}), "p Running!, q Pending", "nothing", two);
    check(
        "few left",
        json!({"parallelism": 5}),
        json!({"succeeded": 3}),
        "",
        "create 1",
        json!({"active": 1, "ready": 0, "succeeded": 3, "terminating": 0}),
    );
    check(
        "too many",
        json!({"parallelism": 1}),
        json!({}),
        "p Running!, q Pending, r Running",
        "remove q r",
        json!({"active": 1, "ready": 1, "terminating": 2}),
    );
    check(
        "none wanted",
        json!({"parallelism": 0}),
        json!({}),
        "",
        "nothing",
        json!({"ready": 0, "terminating": 0}),
    );
    check(
        "many",
        json!({"parallelism": 900, "completions": 900}),
        json!({}),
        "",
        "create 500",
        json!({"active": 500, "ready": 0, "terminating": 0}),
    );
    check(
        "any number, one success",
        json!({"completions": null, "parallelism": 3}),
        json!({}),
        "p Succeeded, q Running!",
        "nothing",
        json!({"active": 1, "ready": 1, "succeeded": 1, "terminating": 0}),
    );
    check(
        "terminating pods are replaced",
        json!({}),
        json!({}),
        "p Running!, q Running~",
        "wait 10",
        json!({"active": 1, "failed": 1, "ready": 1, "terminating": 1}),
    );
    check(
        "or waited for",
        json!({"podReplacementPolicy": "Failed"}),
        json!({}),
        "p Running!, q Running~",
        "nothing",
        json!({"active": 1, "ready": 1, "terminating": 1}),
    );
}

#[test]
fn ends_are_counted_once() {
    check(
        "success",
        json!({}),
        json!({"active": 2}),
        "p Succeeded, q Running!",
        "create 1",
        json!({"active": 2, "ready": 1, "succeeded": 1, "terminating": 0}),
    );
    check(
        "counted before",
        json!({}),
        json!({"succeeded": 1}),
        "p Succeeded-, q Running!",
        "create 1",
        json!({"active": 2, "ready": 1, "succeeded": 1, "terminating": 0}),
    );
    check(
        "written, not counted",
        json!({}),
        json!({"uncountedTerminatedPods": {"succeeded": ["p"]}}),
        "p Succeeded, q Running!",
        "create 1",
        json!({"active": 2, "ready": 1, "succeeded": 1, "terminating": 0}),
    );
    check(
        "freed, not counted",
        json!({}),
        json!({"uncountedTerminatedPods": {"succeeded": ["p"], "failed": ["x"]}}),
        "p Succeeded-, q Running!",
        "create 1",
        json!({"active": 2, "failed": 1, "ready": 1, "succeeded": 1, "terminating": 0}),
    );
    check(
        "indexed",
        json!({"completionMode": "Indexed"}),
        json!({"completedIndexes": "0"}),
        "p Succeeded/1, q Running!/2, r Succeeded/0, s Succeeded, t Succeeded/9",
        "create [3]",
        json!({"active": 2, "completedIndexes": "0,1", "ready": 1, "succeeded": 2, "terminating": 0}),
    );
}

#[test]
fn jobs_end() {
    let reached = "Reached expected number of succeeded pods";
    let complete = [
        format!("SuccessCriteriaMet=True CompletionsReached: {reached}"),
        format!("Complete=True CompletionsReached: {reached}"),
    ];
    check(
        "complete",
        json!({}),
        json!({"succeeded": 3}),
        "p Succeeded",
        "nothing",
        json!({"completionTime": "set", "conditions": complete, "ready": 0, "succeeded": 4, "terminating": 0}),
    );
    check(
        "complete, one leaving",
        json!({}),
        json!({"succeeded": 4}),
        "p Running~",
        "nothing",
        json!({"conditions": complete[..1], "failed": 1, "ready": 0, "succeeded": 4, "terminating": 1}),
    );
    check(
        "no work",
        json!({"completions": 0}),
        json!({}),
        "",
        "nothing",
        json!({"completionTime": "set", "conditions": complete, "ready": 0, "terminating": 0}),
    );
    let failing = |reason: &str, message: &str| {
        ["FailureTarget", "Failed"].map(|kind| format!("{kind}=True {reason}: {message}"))
    };
    let limit = failing("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    check(
        "back-off limit",
        json!({"backoffLimit": 0}),
        json!({}),
        "p Failed",
        "end",
        json!({"conditions": limit, "failed": 1, "ready": 0, "terminating": 0}),
    );
    check(
        "back-off limit, others running",
        json!({"backoffLimit": 1}),
        json!({"failed": 1}),
        "p Failed, q Running!",
        "end q",
        json!({"conditions": limit[..1], "failed": 3, "ready": 0, "terminating": 1}),
    );
    check(
        "failing goes on",
        json!({"backoffLimit": 1}),
        json!({"failed": 3, "conditions": [
        {"type": "FailureTarget", "status": "True", "reason": "X", "message": "y"}]}),
        "q Running-~",
        "end",
        json!({"conditions": ["FailureTarget=True X: y"], "failed": 3, "ready": 0, "terminating": 1}),
    );
    check(
        "and ends",
        json!({"backoffLimit": 1}),
        json!({"failed": 3, "conditions": [
        {"type": "FailureTarget", "status": "True", "reason": "X", "message": "y"}]}),
        "",
        "end",
        json!({"conditions": ["FailureTarget=True X: y", "Failed=True X: y"], "failed": 3, "ready": 0, "terminating": 0}),
    );
    check(
        "deadline",
        json!({"activeDeadlineSeconds": 60}),
        json!({"startTime": "2026-01-01T00:59:00Z"}),
        "p Pending",
        "end p",
        json!({"conditions": failing("DeadlineExceeded", "Job was active longer than specified deadline")[..1],
            "failed": 1, "ready": 0, "terminating": 1}),
    );
    let policy = json!({"podFailurePolicy": {"rules": [{"action": "FailJob", "onPodConditions": [{"type": "Lost", "status": "True"}]}]}});
    let mut lost = (*pods("p Failed")[0]).clone();
    lost.status.as_mut().unwrap().conditions = Some(vec![object(json!({"type": "Lost", "status": "True"}))]);
    let (_, status) = synced(job(policy, json!({})), vec![Arc::new(lost)]);
    let text = "Pod a/p has condition Lost matching FailJob rule at index 0";
    assert_eq!(status["conditions"], json!(failing("PodFailurePolicy", text)));
}

#[test]
fn restarts_in_place_count() {
    let check = |limit: i32, restarts: i32, expected: &str| {
        let mut pod = (*pods("p Running!")[0]).clone();
        pod.status.as_mut().unwrap().container_statuses =
            Some(vec![object(json!({"name": "c", "image": "", "imageID": "",
            "ready": true, "restartCount": restarts}))]);
        let spec = json!({"backoffLimit": limit, "parallelism": 1, "template": {"spec": {"restartPolicy": "OnFailure", "containers": []}}});
        assert_eq!(synced(job(spec, json!({})), vec![Arc::new(pod)]).0, expected, "{restarts} of {limit}");
    };
    check(0, 0, "nothing");
    check(0, 1, "end p");
    check(3, 2, "nothing");
    check(3, 3, "end p");
}

#[test]
fn indexes_fail_alone() {
    let spec = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "parallelism": 4, "backoffLimit": i32::MAX, "backoffLimitPerIndex": 0});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    check(
        "one is lost",
        spec(json!({})),
        json!({}),
        "p Failed/1",
        "create [0, 2, 3]",
        json!({"active": 3, "failed": 1, "failedIndexes": "1", "ready": 0, "terminating": 0}),
    );
    check(
        "all are done or lost",
        spec(json!({})),
        json!({"completedIndexes": "0,2,3", "succeeded": 3}),
        "p Failed/1",
        "end",
        json!({"completedIndexes": "0,2,3", "conditions": ["FailureTarget=True FailedIndexes: Job has failed indexes",
            "Failed=True FailedIndexes: Job has failed indexes"], "failed": 1, "failedIndexes": "1", "ready": 0,
            "succeeded": 3, "terminating": 0}),
    );
    let text = "MaxFailedIndexesExceeded: Job has exceeded the specified maximal number of failed indexes";
    check(
        "too many are lost",
        spec(json!({"maxFailedIndexes": 1})),
        json!({"failedIndexes": "0"}),
        "p Failed/1",
        "end",
        json!({"conditions": [format!("FailureTarget=True {text}"), format!("Failed=True {text}")], "failed": 1,
            "failedIndexes": "0,1", "ready": 0, "terminating": 0}),
    );
    check(
        "one may fail once: it is kept until replaced",
        spec(json!({"backoffLimitPerIndex": 1, "completions": 1})),
        json!({}),
        "p Failed/0",
        "create [0]",
        json!({"active": 1, "failedIndexes": "", "ready": 0, "terminating": 0}),
    );
    check(
        "then counted",
        spec(json!({"backoffLimitPerIndex": 1, "completions": 1})),
        json!({"failedIndexes": ""}),
        "p Failed/0, q Running!/0",
        "nothing",
        json!({"active": 1, "failed": 1, "failedIndexes": "", "ready": 1, "terminating": 0}),
    );
    check(
        "success policy",
        spec(json!({"successPolicy": {"rules": [{"succeededIndexes": "2"}]}})),
        json!({}),
        "p Succeeded/2, q Running!/0",
        "end q",
        json!({"completedIndexes": "2", "conditions": ["SuccessCriteriaMet=True SuccessPolicy: Matched rules at index 0"],
            "failedIndexes": "", "ready": 0, "succeeded": 1, "terminating": 1}),
    );
    check(
        "twice the same index, one out of range",
        json!({"completionMode": "Indexed", "parallelism": 3}),
        json!({}),
        "p Running!/0, q Pending/0, r Running/7",
        "remove r q",
        json!({"active": 1, "ready": 1, "terminating": 2}),
    );
}

#[test]
fn suspension_stops_and_resumes() {
    check(
        "suspended",
        json!({"suspend": true}),
        json!({}),
        "p Running!, q Failed",
        "remove p",
        json!({"conditions": ["Suspended=True JobSuspended: Job suspended"], "failed": 1, "ready": 0, "terminating": 1}),
    );
    let suspended = json!({"conditions": [{"type": "Suspended", "status": "True", "reason": "JobSuspended", "message": "Job suspended"}]});
    let look = |spec: Value| {
        let job = job(spec, suspended.clone());
        let look = Look::at(job, Vec::new(), HashSet::new(), Backoff::default(), at(NOW));
        let action = look.action(true);
        let account = look.account(&action, Outcome::default(), true);
        (shown(&action), account.told, account.job.status.unwrap().start_time)
    };
    assert_eq!(look(json!({"suspend": true})), ("nothing".to_owned(), None, None));
    let (action, told, start) = look(json!({}));
    assert_eq!((action.as_str(), told), ("create 2", Some(("Resumed", "Job resumed"))));
    assert_eq!(start.unwrap().0, at(NOW));
}

#[test]
fn indexed_pods_know_their_index() {
    let look = Look::at(
        job(json!({"completionMode": "Indexed", "backoffLimitPerIndex": 2}), json!({})),
        pods("p Failed/3"),
        HashSet::new(),
        Backoff::default(),
        at(NOW),
    );
    let pod = serde_json::to_value(look.pod(Some(3))).unwrap();
    assert_eq!(
        pod["metadata"]["annotations"],
        json!({indexes::INDEX: "3", "batch.kubernetes.io/job-index-failure-count": "1"})
    );
    assert_eq!(pod["metadata"]["labels"], json!({indexes::INDEX: "3"}));
    assert_eq!(
        (&pod["metadata"]["generateName"], &pod["spec"]["hostname"]),
        (&json!("work-3-"), &json!("work-3"))
    );
    assert_eq!(pod["metadata"]["finalizers"], json!([FINALIZER]));
    assert_eq!(
        pod["spec"]["containers"][0]["env"][0]["valueFrom"]["fieldRef"]["fieldPath"],
        "metadata.labels['batch.kubernetes.io/job-completion-index']"
    );
}

#[test]
fn nothing_is_decided_on_a_stale_cache() {
    let look = Look::at(job(json!({}), json!({})), Vec::new(), HashSet::new(), Backoff::default(), at(NOW));
    assert_eq!(shown(&look.action(false)), "nothing");
    let mut dying = job(json!({}), json!({}));
    dying.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(NOW)));
    let look = Look::at(dying, pods("p Running"), HashSet::new(), Backoff::default(), at(NOW));
    let action = look.action(true);
    let account = look.account(&action, Outcome::default(), true);
    assert_eq!((shown(&action).as_str(), account.to_free.len()), ("nothing", 1), "its pods are let go");
}
