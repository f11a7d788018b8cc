#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::{Value, json};

fn pod(spec: Value, status: Value) -> Pod {
    let meta = json!({"name": "p", "namespace": "n", "uid": "u", "generation": 4});
    serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
}

/// Container statuses in a few words: `name running|waiting|exit=N`, `/exit=N` for the state before.
fn statuses(list: &[&str]) -> Vec<ContainerStatus> {
    let state = |text: &str| match text.split_once('=') {
        Some((_, code)) => json!({"terminated": {"exitCode": code.parse::<i32>().unwrap()}}),
        None if text == "running" => json!({"running": {}}),
        None => json!({"waiting": {}}),
    };
    let one = |text: &&str| {
        let (name, rest) = text.split_once(' ').unwrap();
        let (now, before) = rest.split_once('/').unwrap_or((rest, ""));
        let before = if before.is_empty() { json!({}) } else { state(before) };
        let started = now == "running";
        json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "started": started,
            "state": state(now), "lastState": before})
    };
    list.iter().map(|text| serde_json::from_value(one(text)).unwrap()).collect()
}

fn check_phase(policy: &str, init: &[&str], regular: &[&str], terminating: bool, expected: &str) {
    let named = |list: &[&str]| {
        list.iter().map(|text| json!({"name": text.split(' ').next().unwrap()})).collect::<Vec<_>>()
    };
    let pod = pod(
        json!({"restartPolicy": policy, "initContainers": named(init), "containers": named(regular)}),
        json!({}),
    );
    let got = phase(&pod, &statuses(init), &statuses(regular), terminating);
    assert_eq!(got, expected, "{policy} {init:?} {regular:?} terminating={terminating}");
}

#[test]
fn phases() {
    for (policy, init, regular, expected) in [
        ("Always", &[][..], &["a waiting"][..], "Pending"),
        ("Always", &[], &["a running", "b waiting"], "Pending"),
        ("Always", &[], &["a running", "b running"], "Running"),
        ("Always", &[], &["a running", "b exit=1"], "Running"),
        ("Always", &[], &["a exit=0"], "Running"),
        ("Always", &[], &["a waiting/exit=1"], "Running"),
        ("OnFailure", &[], &["a exit=0"], "Succeeded"),
        ("OnFailure", &[], &["a exit=1"], "Running"),
        ("Never", &[], &["a exit=0", "b exit=0"], "Succeeded"),
        ("Never", &[], &["a exit=0", "b exit=1"], "Failed"),
        ("Never", &[], &["a running", "b exit=1"], "Running"),
        ("Always", &["i running"], &["a waiting"], "Pending"),
        ("Always", &["i exit=1"], &["a waiting"], "Pending"),
        ("Never", &["i exit=1"], &["a waiting"], "Failed"),
        ("Never", &["i exit=0"], &["a running"], "Running"),
    ] {
        check_phase(policy, init, regular, false, expected);
    }
    // On its way out nothing is restarted.
    check_phase("Always", &[], &["a exit=0"], true, "Succeeded");
    check_phase("Always", &[], &["a exit=137"], true, "Failed");
    check_phase("Always", &[], &["a running"], true, "Running");
    check_phase("Always", &[], &["a waiting"], true, "Pending");
}

fn generated(pod: &Pod, failure: Option<&PodFailure>) -> Value {
    let status = generate(&StatusInput {
        pod,
        runtime: &PodRuntimeStatus::default(),
        reasons: &HashMap::from([("c".to_owned(), ("ErrImagePull".to_owned(), "no".to_owned()))]),
        probes: &ProbeViews::new(),
        messages: &HashMap::new(),
        host_ips: &["10.0.0.1".parse().unwrap()],
        runtime_name: "fake",
        terminating: failure.is_some(),
        failure,
        now: Timestamp::from_second(1000).unwrap(),
    });
    serde_json::to_value(status).unwrap()
}

#[test]
fn a_new_pod_waits_and_says_why() {
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "d"}, {"name": "c", "image": "x"}], "readinessGates": [{"conditionType": "g"}]});
    let got = generated(&pod(spec, json!({})), None);
    assert_eq!(got["phase"], "Pending");
    assert_eq!(got["hostIPs"], json!([{"ip": "10.0.0.1"}]));
    assert_eq!(got["observedGeneration"], 4);
    assert_eq!(got["containerStatuses"][0]["name"], "c", "sorted by name");
    assert_eq!(
        got["containerStatuses"][0]["state"],
        json!({"waiting": {"reason": "ErrImagePull", "message": "no"}})
    );
    assert_eq!(got["containerStatuses"][1]["state"], json!({"waiting": {"reason": "PodInitializing"}}));
    let conditions = got["conditions"].as_array().unwrap();
    let shown: Vec<String> = conditions
        .iter()
        .map(|c| {
            format!(
                "{}={} {}",
                c["type"].as_str().unwrap(),
                c["status"].as_str().unwrap(),
                c["message"].as_str().unwrap_or_default()
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "PodReadyToStartContainers=False ",
            "Initialized=False containers with incomplete status: [i]",
            "Ready=False containers with unready status: [d c]",
            "ContainersReady=False containers with unready status: [d c]",
            "PodScheduled=True ",
        ]
    );
    assert_eq!(conditions[0]["lastTransitionTime"], "1970-01-01T00:16:40Z");
}

#[test]
fn an_evicted_pod_keeps_what_was() {
    let old = json!({"phase": "Running", "startTime": "1970-01-01T00:00:01Z", "podIPs": [{"ip": "10.1.1.1"}],
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:02Z"}],
        "containerStatuses": [{"name": "c", "image": "x", "imageID": "x", "ready": true, "restartCount": 2,
            "state": {"running": {}}, "lastState": {}}]});
    let failure = PodFailure { reason: "DeadlineExceeded".to_owned(), message: "m".to_owned() };
    let got = generated(&pod(json!({"containers": [{"name": "c"}]}), old), Some(&failure));
    assert_eq!(
        (&got["phase"], &got["reason"], &got["message"]),
        (&json!("Failed"), &json!("DeadlineExceeded"), &json!("m"))
    );
    assert_eq!(got["startTime"], "1970-01-01T00:00:01Z");
    assert_eq!(got["podIP"], "10.1.1.1");
    assert_eq!(got["containerStatuses"][0]["restartCount"], 2);
    assert_eq!(got["containerStatuses"][0]["state"]["terminated"]["reason"], "ContainerStatusUnknown");
    let scheduled =
        got["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "PodScheduled").unwrap();
    assert_eq!(scheduled["lastTransitionTime"], "1970-01-01T00:00:02Z");
}
