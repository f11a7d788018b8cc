#![allow(clippy::unwrap_used)]
use jiff::SignedDuration;
use pretty_assertions::assert_eq;
use serde_json::{Value, json};

use super::behavior::allow;
use super::replicas::*;
use super::*;
use crate::objects::testing::{at, object};

const NOW: &str = "2026-01-01T01:00:00Z";

/// `ready`, `unready`, `pending`, `failed` or `dying` pods that request a CPU each; those with a number use so much.
fn pods(text: &str) -> (Vec<Arc<Pod>>, Samples) {
    let mut samples = Samples::new();
    let pods = text.split(' ').enumerate().map(|(index, word)| {
        let name = format!("p{index}");
        let (state, used) = word.split_once(':').unwrap_or((word, ""));
        if let Ok(milli) = used.parse() {
            let sample = Sample { milli, at: at(NOW), window: SignedDuration::from_secs(30) };
            samples.insert(name.clone(), sample);
        }
        let phase = match state {
            "pending" => "Pending",
            "failed" => "Failed",
            _ => "Running",
        };
        let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": "1"}}}]}, "status": {"phase": phase,
            "startTime": "2026-01-01T00:59:00Z", "conditions": [{"type": "Ready",
            "status": if state == "unready" { "False" } else { "True" }, "lastTransitionTime": "2026-01-01T00:59:10Z"}]}});
        if state == "dying" {
            pod["metadata"]["deletionTimestamp"] = json!(NOW);
        }
        Arc::new(object(pod))
    });
    (pods.collect(), samples)
}

const TOLERANT: Tolerances = Tolerances { down: 0.1, up: 0.1 };

#[test]
fn pods_against_a_target() {
    let check =
        |current: i32, text: &str, target: Target, expected: Result<(i32, Option<i32>, i64), &str>| {
            let (pods, samples) = pods(text);
            let seen = of_pods(current, &pods, samples, ("cpu", None), target, TOLERANT, at(NOW));
            let seen = seen.map(|seen| (seen.replicas, seen.utilization, seen.milli));
            assert_eq!(seen, expected.map_err(str::to_owned), "{text} for {target:?}");
        };
    let half = Target::Utilization(50);
    check(2, "ready:900 ready:700", half, Ok((4, Some(80), 800)));
    check(3, "ready:100 ready:100 ready:100", half, Ok((1, Some(10), 100)));
    check(2, "ready:520 ready:540", half, Ok((2, Some(53), 530)));
    check(2, "ready:1000 unready:1000", half, Ok((2, Some(100), 1000)));
    check(2, "ready:2000 unready:2000", half, Ok((4, Some(200), 2000)));
    check(3, "ready:1000 ready:1000 missing", half, Ok((4, Some(100), 1000)));
    check(3, "ready:200 ready:200 missing", half, Ok((3, Some(20), 200)));
    check(3, "ready:1000 dying:1000 failed:1000", half, Ok((2, Some(100), 1000)));
    check(1, "unready:500", half, Err("did not receive metrics for targeted pods (pods might be unready)"));
    check(2, "ready:300 ready:100", Target::Average(100), Ok((4, None, 200)));
    check(4, "ready:100 ready:100 missing missing", Target::Average(400), Ok((3, None, 100)));
    let (none, samples) = (Vec::new(), Samples::new());
    let seen = of_pods(1, &none, samples, ("cpu", None), half, TOLERANT, at(NOW));
    assert_eq!(seen, Err("no pods returned by selector while calculating replica count".to_owned()));
    let (all, samples) = pods("ready:100");
    let seen = of_pods(1, &all, samples.clone(), ("memory", None), half, TOLERANT, at(NOW));
    assert_eq!(seen, Err("missing request for memory in container c of Pod p0".to_owned()));
    let seen = of_pods(1, &all, samples, ("cpu", Some("d")), half, TOLERANT, at(NOW));
    assert_eq!(seen, Err("container d not found in Pod p0".to_owned()));
}

#[test]
fn tolerances_are_configurable() {
    let check = |behavior: Value, milli: i64, expected: i32| {
        let spec: HorizontalPodAutoscalerSpec = object(json!({"maxReplicas": 9, "behavior": behavior,
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}}));
        let (pods, _) = pods("ready ready ready ready");
        let seen = of_value(4, &pods, milli, 1000, tolerances(&spec)).unwrap();
        assert_eq!(seen.replicas, expected, "{behavior} at {milli}");
    };
    check(json!(null), 1090, 4);
    check(json!(null), 1110, 5);
    check(json!({"scaleUp": {"tolerance": "0"}}), 1010, 5);
    check(json!({"scaleUp": {"tolerance": "500m"}}), 1400, 4);
    check(json!({"scaleDown": {"tolerance": "0.5"}}), 600, 4);
    check(json!({"scaleDown": {"tolerance": "0.5"}}), 400, 2);
}

#[test]
fn shares() {
    let check = |status: i32, milli: i64, expected: (i32, i64)| {
        let seen = of_share(status, milli, 1000, TOLERANT);
        assert_eq!((seen.replicas, seen.milli), expected, "{milli} among {status}");
    };
    check(2, 5000, (5, 2500));
    check(2, 2100, (2, 1050));
    check(4, 1500, (2, 375));
}

fn spec(behavior: Value) -> HorizontalPodAutoscalerSpec {
    object(
        json!({"minReplicas": 2, "maxReplicas": 20, "behavior": behavior, "scaleTargetRef": {"kind": "Deployment", "name": "web"}}),
    )
}

#[test]
fn without_behaviour() {
    let check = |before: &[(i64, i32)], current: i32, desired: i32, expected: (i32, &str, &str)| {
        let (spec, mut history) = (spec(json!(null)), History::default());
        for (ago, number) in before {
            history.begin(*number, at(NOW) - SignedDuration::from_secs(*ago));
        }
        let seen = allow(&spec, &mut history, current, desired, at(NOW));
        assert_eq!((seen.replicas, seen.able.0, seen.limit.0), expected, "{current} to {desired}");
    };
    check(&[], 3, 5, (5, "ReadyForNewScale", "DesiredWithinRange"));
    check(&[], 3, 9, (6, "ReadyForNewScale", "ScaleUpLimit"));
    check(&[], 2, 9, (4, "ReadyForNewScale", "ScaleUpLimit"));
    check(&[], 15, 40, (20, "ReadyForNewScale", "TooManyReplicas"));
    check(&[], 5, 1, (2, "ReadyForNewScale", "TooFewReplicas"));
    check(&[(100, 8)], 8, 3, (8, "ScaleDownStabilized", "DesiredWithinRange"));
    check(&[(400, 8)], 8, 3, (3, "ReadyForNewScale", "DesiredWithinRange"));
}

#[test]
fn with_behaviour() {
    let check =
        |behavior: Value, changes: &[(i64, i32)], current: i32, desired: i32, expected: (i32, &str, &str)| {
            let (spec, mut history) = (spec(behavior.clone()), History::default());
            for (ago, change) in changes {
                history.scaled(0, *change, &spec, at(NOW) - SignedDuration::from_secs(*ago));
            }
            let seen = allow(&spec, &mut history, current, desired, at(NOW));
            assert_eq!(
                (seen.replicas, seen.able.0, seen.limit.0),
                expected,
                "{behavior}: {current} to {desired}"
            );
        };
    let policies = |select: &str| {
        json!({"selectPolicy": select, "policies": [
        {"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 100, "periodSeconds": 60}]})
    };
    let (ready, within) = ("ReadyForNewScale", "DesiredWithinRange");
    check(json!({"scaleUp": policies("Max")}), &[], 5, 15, (10, ready, "ScaleUpLimit"));
    check(json!({"scaleUp": policies("Min")}), &[], 5, 15, (7, ready, "ScaleUpLimit"));
    check(json!({"scaleUp": policies("Disabled")}), &[], 5, 15, (5, ready, "ScaleUpLimit"));
    check(json!({"scaleUp": policies("Max")}), &[], 5, 8, (8, ready, within));
    check(json!({"scaleUp": policies("Min")}), &[(30, 2)], 5, 15, (5, ready, "ScaleUpLimit"));
    check(json!({"scaleUp": policies("Min")}), &[(90, 2)], 5, 15, (7, ready, "ScaleUpLimit"));
    check(json!({"scaleDown": policies("Min")}), &[], 9, 3, (7, ready, "ScaleDownLimit"));
    check(json!({"scaleDown": policies("Max")}), &[], 9, 1, (2, ready, "TooFewReplicas"));
    check(json!({"scaleDown": policies("Disabled")}), &[], 9, 3, (9, ready, "ScaleDownLimit"));
    check(json!({}), &[], 15, 99, (20, ready, "TooManyReplicas"));
}

#[test]
fn windows_hold_both_ways() {
    let rules = json!({"stabilizationWindowSeconds": 60,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]});
    let spec = spec(json!({"scaleUp": rules, "scaleDown": rules}));
    let mut history = History::default();
    history.begin(5, at(NOW));
    let mut look = |after: i64, desired: i32| {
        let seen = allow(&spec, &mut history, 5, desired, at(NOW) + SignedDuration::from_secs(after));
        (seen.replicas, seen.able.0)
    };
    assert_eq!(look(10, 8), (5, "ScaleUpStabilized"));
    assert_eq!(look(30, 3), (5, "ScaleDownStabilized"));
    assert_eq!(look(71, 4), (4, "ReadyForNewScale"));
}
