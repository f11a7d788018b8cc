#![allow(clippy::unwrap_used)]

use orlop_cri::{
    Container as CriContainer, ContainerMetadata, NamespaceOptions, PodSandbox, PodSandboxMetadata,
    PodSandboxStatus,
};
use serde_json::{Value, json};

use super::*;
use crate::runtime_status::{CONTAINER_NAME, container_annotations};

/// A container of the pod as the runtime has it: `name state`, state one of `created running unknown exit=N changed`,
/// with probe results as further words (`live=no start=yes`). Newest first.
fn status(pod: &Pod, sandbox: &str, containers: &[&str]) -> (PodRuntimeStatus, ProbeViews) {
    let mut out = PodRuntimeStatus::default();
    let mut views = ProbeViews::new();
    for (index, text) in containers.iter().enumerate() {
        let mut words = text.split(' ');
        let (name, state) = (words.next().unwrap(), words.next().unwrap());
        let (state, code) = match state.split_once('=') {
            Some((_, code)) => (ContainerState::Exited, code.parse().unwrap()),
            None if state == "created" => (ContainerState::Created, 0),
            None if state == "unknown" => (ContainerState::Unknown, 0),
            None => (ContainerState::Running, 0),
        };
        let mut annotations =
            pod.find_container(name).map(|(_, c)| container_annotations(pod, &c, 0)).unwrap_or_default();
        let mut view = ProbeView::default();
        for word in words {
            match word {
                "live=no" => view.liveness = Some(false),
                "start=yes" => view.startup = Some(true),
                "start=no" => view.startup = Some(false),
                "changed" => drop(annotations.insert(HASH.to_owned(), "other".to_owned())),
                _ => panic!("{word}"),
            }
        }
        let id = format!("{name}{index}");
        views.insert(id.clone(), view);
        out.containers.push(ContainerStatus {
            container: CriContainer {
                id,
                pod_sandbox_id: "s".to_owned(),
                metadata: ContainerMetadata { name: name.to_owned(), attempt: 0 },
                image: String::new(),
                image_id: String::new(),
                state,
                created_at: -(index as i64),
                labels: [(CONTAINER_NAME.to_owned(), name.to_owned())].into(),
                annotations,
            },
            image_ref: String::new(),
            started_at: 1,
            finished_at: 2,
            exit_code: code,
            reason: String::new(),
            message: String::new(),
            pid: None,
            mounts: vec![],
            log_path: "".into(),
            user: None,
        });
    }
    if !sandbox.is_empty() {
        out.sandboxes.push(PodSandboxStatus {
            sandbox: PodSandbox {
                id: "s".to_owned(),
                metadata: PodSandboxMetadata { attempt: 3, ..Default::default() },
                state: if sandbox == "dead" { PodSandboxState::NotReady } else { PodSandboxState::Ready },
                created_at: 0,
                labels: Default::default(),
                annotations: Default::default(),
            },
            ips: if sandbox == "no-ip" { vec![] } else { vec!["10.0.0.2".parse().unwrap()] },
            namespaces: NamespaceOptions::default(),
        });
    }
    (out, views)
}

/// What is done, in a few words.
fn told(actions: &PodActions) -> String {
    let mut out = Vec::new();
    if actions.kill_pod {
        out.push("kill-pod".to_owned());
    }
    if actions.create_sandbox {
        out.push(format!("sandbox#{}", actions.attempt));
    }
    out.extend(actions.kill.iter().map(|kill| format!("kill({})", kill.message)));
    let lists =
        [("ephemeral", &actions.start_ephemeral), ("init", &actions.start_init), ("start", &actions.start)];
    for (name, list) in lists {
        if !list.is_empty() {
            out.push(format!("{name}{list:?}"));
        }
    }
    out.join(" ")
}

fn check(spec: &Value, sandbox: &str, containers: &[&str], expected: &str) {
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec})).unwrap();
    let (status, views) = status(&pod, sandbox, containers);
    assert_eq!(told(&compute(&pod, &status, &views)), expected, "{spec} {sandbox} {containers:?}");
}

fn two(policy: &str) -> Value {
    let probe = json!({"exec": {"command": ["x"]}});
    json!({"restartPolicy": policy, "containers": [
        {"name": "a", "image": "i", "livenessProbe": probe, "startupProbe": probe}, {"name": "b", "image": "i"},
    ]})
}

#[test]
fn sandboxes() {
    check(&two("Always"), "", &[], "kill-pod sandbox#0 start[0, 1]");
    check(&two("Always"), "dead", &["a exit=0", "b exit=1"], "kill-pod sandbox#4 start[0, 1]");
    check(&two("OnFailure"), "dead", &["a exit=0", "b exit=1"], "kill-pod sandbox#4 start[1]");
    check(&two("OnFailure"), "dead", &["a exit=0", "b exit=0"], "kill-pod");
    check(&two("Never"), "dead", &["a exit=0", "b exit=1"], "kill-pod");
    check(&two("Never"), "dead", &[], "kill-pod sandbox#4 start[0, 1]");
    check(&two("Always"), "no-ip", &["a running", "b running"], "kill-pod sandbox#4 start[0, 1]");
    let mut host = two("Always");
    host["hostNetwork"] = json!(true);
    check(&host, "ready", &["a running", "b running"], "kill-pod sandbox#4 start[0, 1]");
}

#[test]
fn containers_by_restart_policy() {
    for (policy, containers, expected) in [
        ("Always", &["a running", "b running"][..], ""),
        ("Always", &["a running"], "start[1]"),
        ("Always", &["a running", "b exit=0"], "start[1]"),
        ("OnFailure", &["a running", "b exit=0"], ""),
        ("OnFailure", &["a running", "b exit=2"], "start[1]"),
        ("Never", &["a running", "b exit=2"], ""),
        ("Never", &["a exit=0", "b exit=2"], "kill-pod"),
        ("OnFailure", &["a exit=0", "b exit=0"], "kill-pod"),
        ("Always", &["a running", "b created"], "start[1]"),
        (
            "Always",
            &["a running", "b unknown"],
            "kill(Container is in unknown state, try killing it before starting it again) start[1]",
        ),
        // Only the newest instance counts.
        ("Always", &["a running", "b running", "b exit=1"], ""),
    ] {
        check(&two(policy), "ready", containers, expected);
    }
}

#[test]
fn a_containers_own_policy_and_rules_go_first() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({"restartPolicy": "Always", "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}, {"name": "b", "restartPolicy": "OnFailure"},
    ]});
    check(&spec, "ready", &["a exit=42", "b exit=0"], "start[0]");
    check(&spec, "ready", &["a exit=1", "b exit=1"], "start[1]");
    check(&spec, "ready", &["a exit=1", "b exit=0"], "kill-pod");
}

#[test]
fn failed_probes_and_changes_kill() {
    check(
        &two("Always"),
        "ready",
        &["a running live=no", "b running"],
        "kill(Container a failed liveness probe, will be restarted) start[0]",
    );
    check(
        &two("Always"),
        "ready",
        &["a running start=no", "b running"],
        "kill(Container a failed startup probe, will be restarted) start[0]",
    );
    check(
        &two("Never"),
        "ready",
        &["a running live=no", "b running"],
        "kill(Container a failed liveness probe)",
    );
    check(
        &two("Never"),
        "ready",
        &["a running changed", "b running"],
        "kill(Container a definition changed, will be restarted) start[0]",
    );
}

#[test]
fn init_containers() {
    let spec = |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
    for (policy, containers, expected) in [
        ("Always", &[][..], "init[0]"),
        ("Always", &["i running"], ""),
        ("Always", &["i exit=0"], "init[1]"),
        ("Always", &["j exit=0", "i exit=0"], "start[0]"),
        ("Always", &["j exit=0"], "start[0]"),
        ("Always", &["i exit=1"], "init[0]"),
        ("OnFailure", &["i exit=1"], "init[0]"),
        ("Never", &["i exit=1"], "kill-pod"),
        ("Always", &["a running", "j exit=0", "i exit=0"], ""),
        // Initialization is never repeated in the same sandbox.
        ("Always", &["a exit=1"], "start[0]"),
    ] {
        check(&spec(policy), "ready", containers, expected);
    }
    check(&spec("Always"), "", &[], "kill-pod sandbox#0 init[0]");
    check(&spec("Always"), "dead", &["a exit=1", "j exit=0", "i exit=0"], "kill-pod sandbox#4 init[0]");
}

#[test]
fn sidecars() {
    let probe = json!({"exec": {"command": ["x"]}});
    let spec = json!({"restartPolicy": "Never", "initContainers": [
        {"name": "s", "restartPolicy": "Always", "startupProbe": probe, "livenessProbe": probe}, {"name": "i"},
    ], "containers": [{"name": "a"}]});
    for (containers, expected) in [
        (&[][..], "init[0]"),
        (&["s running"], ""),
        (&["s running start=yes"], "init[1]"),
        (&["i exit=0", "s running start=yes"], "start[0]"),
        (&["i running", "s exit=1"], "init[0]"),
        (&["a running", "i exit=0", "s exit=0"], "init[0]"),
        (
            &["a running", "i exit=0", "s running start=yes live=no"],
            "kill(Container s failed liveness probe, will be restarted) init[0]",
        ),
        (&["a exit=0", "i exit=0", "s running start=yes"], "kill-pod"),
        (&["a exit=0", "i exit=0", "s exit=0"], "kill-pod"),
    ] {
        check(&spec, "ready", containers, expected);
    }
}

#[test]
fn ephemeral_containers_start_once() {
    let spec =
        json!({"containers": [{"name": "a"}], "ephemeralContainers": [{"name": "debug", "image": "x"}]});
    check(&spec, "ready", &["a running"], "ephemeral[0]");
    check(&spec, "ready", &["debug exit=1", "a running"], "");
}
