#![allow(clippy::unwrap_used)]
use pretty_assertions::assert_eq;
use serde_json::{Value, json};

use super::decide::*;
use super::*;
use crate::objects::testing::{at, object};

fn cron(spec: Value, status: Value) -> CronJob {
    let mut all = json!({"schedule": "*/10 * * * *", "jobTemplate": {"metadata": {"labels": {"a": "b"}},
        "spec": {"template": {"spec": {"containers": []}}}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    object(
        json!({"metadata": {"name": "tick", "namespace": "a", "uid": "c", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": all, "status": status}),
    )
}

fn check(spec: Value, status: Value, now: &str, expected: &str, reasons: &[&str]) {
    let mut told = Vec::new();
    let shown = match next(&cron(spec.clone(), status), at(now), &mut told) {
        Next::Nothing => "nothing".to_owned(),
        Next::Wait(wait) => format!("wait {}s", wait.as_secs_f64()),
        Next::Start(at, again) => format!("start {at}, wait {}s", again.unwrap().as_secs_f64()),
    };
    let seen: Vec<_> = told.iter().map(|told| told.reason).collect();
    assert_eq!((shown.as_str(), &seen[..]), (expected, reasons), "{spec} at {now}");
}

#[test]
fn jobs_are_due() {
    let last = |time: &str| json!({"lastScheduleTime": time});
    check(json!({}), json!({}), "2026-01-01T00:04:00Z", "wait 360.1s", &[]);
    check(json!({}), json!({}), "2026-01-01T00:10:00Z", "start 2026-01-01T00:10:00Z, wait 600.1s", &[]);
    check(json!({}), last("2026-01-01T00:10:00Z"), "2026-01-01T00:10:30Z", "wait 570.1s", &[]);
    check(json!({}), json!({}), "2026-01-01T00:45:00Z", "start 2026-01-01T00:40:00Z, wait 300.1s", &[]);
    check(
        json!({}),
        json!({}),
        "2026-01-02T00:45:00Z",
        "start 2026-01-02T00:40:00Z, wait 300.1s",
        &["TooManyMissedTimes"],
    );
    let short = json!({"startingDeadlineSeconds": 60});
    check(short.clone(), json!({}), "2026-01-02T00:40:30Z", "start 2026-01-02T00:40:00Z, wait 570.1s", &[]);
    check(short, json!({}), "2026-01-02T00:45:00Z", "wait 300.1s", &[]);
    check(json!({"suspend": true}), json!({}), "2026-01-01T00:10:00Z", "nothing", &[]);
    check(
        json!({"schedule": "0 0 31 2 *"}),
        json!({}),
        "2026-01-01T00:10:00Z",
        "nothing",
        &["InvalidSchedule"],
    );
    check(json!({"schedule": "x"}), json!({}), "2026-01-01T00:10:00Z", "nothing", &["UnparseableSchedule"]);
    check(
        json!({"timeZone": "Mars/Base"}),
        json!({}),
        "2026-01-01T00:10:00Z",
        "nothing",
        &["UnknownTimeZone"],
    );
    check(
        json!({"schedule": "TZ=UTC @daily"}),
        json!({}),
        "2026-01-01T12:00:00Z",
        "wait 43200.1s",
        &["UnsupportedSchedule"],
    );
    check(
        json!({"schedule": "0 9 * * *", "timeZone": "Asia/Tokyo"}),
        last("2026-01-01T00:00:00Z"),
        "2026-01-02T00:00:01Z",
        "start 2026-01-02T00:00:00Z, wait 86399.1s",
        &[],
    );
    check(
        json!({"schedule": "@every 1h30m"}),
        json!({}),
        "2026-01-01T03:10:00Z",
        "start 2026-01-01T03:00:00Z, wait 4800.1s",
        &[],
    );
    check(
        json!({"schedule": "30 6-16/4 * * 1-5"}),
        json!({}),
        "2026-01-12T08:00:00Z",
        "start 2026-01-12T06:30:00Z, wait 9000.1s",
        &[],
    );
}

#[test]
fn other_runs_may_stand_in_the_way() {
    let running = json!({"active": [{"name": "tick-1", "uid": "j"}]});
    let now = "2026-01-01T00:10:00Z";
    check(json!({"concurrencyPolicy": "Forbid"}), running.clone(), now, "wait 600.1s", &["JobAlreadyActive"]);
    for policy in ["Allow", "Replace"] {
        let spec = json!({"concurrencyPolicy": policy});
        check(spec, running.clone(), now, "start 2026-01-01T00:10:00Z, wait 600.1s", &[]);
    }
    let minutes = at(now).as_second() / 60;
    let same = json!({"active": [{"name": format!("tick-{minutes}"), "uid": "j"}]});
    check(json!({"concurrencyPolicy": "Allow"}), same, now, "wait 600.1s", &[]);
}

fn ended(name: &str, end: &str, start: &str, completion: Option<&str>) -> Arc<Job> {
    Arc::new(object(json!({"metadata": {"name": name, "uid": name}, "status": {"startTime": start,
        "completionTime": completion, "conditions": [{"type": end, "status": "True"}]}})))
}

#[test]
fn ends_are_noted() {
    let mut cron = cron(
        json!({}),
        json!({"active": [{"name": "a", "uid": "a"}, {"name": "b", "uid": "b"}, {"name": "c", "uid": "c"}]}),
    );
    let (one, two) = ("2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z");
    let jobs = [
        ended("a", "Complete", one, Some(two)),
        ended("b", "Failed", one, None),
        ended("old", "Complete", one, Some(one)),
    ];
    let mut told = Vec::new();
    assert!(take_note(&mut cron, &jobs, &mut told));
    let texts: Vec<_> = told.iter().map(|told| told.message.as_str()).collect();
    assert_eq!(
        texts,
        ["Saw completed job: a, condition: Complete", "Saw completed job: b, condition: Failed"]
    );
    let status = serde_json::to_value(cron.status.as_ref().unwrap()).unwrap();
    assert_eq!(status, json!({"active": [{"name": "c", "uid": "c"}], "lastSuccessfulTime": two}));
    assert!(!take_note(&mut cron, &jobs, &mut Vec::new()), "a second look changes nothing");
}

#[test]
fn histories_are_short() {
    let times = ["2026-01-01T00:03:00Z", "2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"];
    let mut jobs: Vec<_> =
        times.iter().zip(["x", "y", "z"]).map(|(start, name)| ended(name, "Complete", start, None)).collect();
    jobs.push(ended("f", "Failed", times[0], None));
    jobs.push(Arc::new(object(json!({"metadata": {"name": "running"}}))));
    let check = |spec: Value, expected: &[&str]| {
        let spec = cron(spec, json!({})).spec;
        let removed = history(&spec, &jobs);
        assert_eq!(removed.iter().map(|job| job.name()).collect::<Vec<_>>(), expected);
    };
    check(json!({}), &[]);
    check(json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1}), &["y", "z"]);
    check(json!({"successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 0}), &["f"]);
}

#[test]
fn jobs_say_their_time() {
    let utc = job_at(&cron(json!({}), json!({})), at("2026-01-01T00:10:00Z"));
    assert_eq!(utc.name(), "tick-29453770");
    let annotation = "batch.kubernetes.io/cronjob-scheduled-timestamp";
    assert_eq!((utc.annotation(annotation), utc.label("a")), (Some("2026-01-01T00:10:00Z"), Some("b")));
    let zoned = job_at(&cron(json!({"timeZone": "Asia/Kolkata"}), json!({})), at("2026-01-01T00:10:00Z"));
    assert_eq!(zoned.annotation(annotation), Some("2026-01-01T05:40:00+05:30"));
    assert_eq!(zoned.controller().unwrap().kind, "CronJob");
}
