//! The conditions of a pod that a kubelet owns. Pure; answers to upstream's `status/generate.go`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod::{PodExt, is_sidecar};

/// Status, reason and message of one condition.
struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    const TRUE: Self = Self { status: true, reason: None, message: None };

    fn because(status: bool, reason: &'static str, message: Option<String>) -> Self {
        Self { status, reason: Some(reason), message }
    }
}

/// All conditions, in upstream's order.
pub(super) fn conditions(
    pod: &Pod,
    phase: &str,
    sandbox_ready: bool,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    now: Timestamp,
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(pod, phase, init, regular);
    let ready = pod_ready(pod, &containers_ready);
    let verdicts = [
        ("PodReadyToStartContainers", Verdict { status: sandbox_ready, reason: None, message: None }),
        ("Initialized", initialized(pod, phase, init, regular)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::TRUE),
    ];
    verdicts.into_iter().map(|(kind, verdict)| condition(pod, kind, verdict, now)).collect()
}

fn condition(pod: &Pod, kind: &str, verdict: Verdict, now: Timestamp) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let old = pod.pod_status().conditions.iter().flatten().find(|old| old.type_ == kind);
    let since = old.filter(|old| old.status == status).and_then(|old| old.last_transition_time.clone());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_probe_time: None,
        last_transition_time: Some(since.unwrap_or(Time(now))),
        observed_generation: pod.metadata.generation,
    }
}

/// Names of containers as Go prints a slice.
fn listed(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn initialized(pod: &Pod, phase: &str, init: &[ContainerStatus], regular: &[ContainerStatus]) -> Verdict {
    if phase == "Succeeded" {
        return Verdict::because(true, "PodCompleted", None);
    }
    // Once a regular container has started, initialization is over for good.
    let over = regular.iter().any(|s| {
        let past = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
        };
        past(&s.state) || past(&s.last_state)
    });
    if over {
        return Verdict::TRUE;
    }
    let incomplete: Vec<&str> = pod
        .init_containers()
        .iter()
        .filter(|container| {
            let status = init.iter().find(|s| s.name == container.name);
            !status.is_some_and(|s| if is_sidecar(container) { s.started == Some(true) } else { s.ready })
        })
        .map(|container| container.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return Verdict::TRUE;
    }
    let message = format!("containers with incomplete status: {}", listed(&incomplete));
    Verdict::because(false, "ContainersNotInitialized", Some(message))
}

fn containers_ready(
    pod: &Pod,
    phase: &str,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::because(false, "PodCompleted", None),
        "Failed" => return Verdict::because(false, "PodFailed", None),
        _ => {}
    }
    let sidecars = pod.init_containers().iter().filter(|c| is_sidecar(c)).map(|c| (c, init));
    let mut unready = Vec::new();
    for (container, statuses) in sidecars.chain(pod.pod_spec().containers.iter().map(|c| (c, regular))) {
        if !statuses.iter().any(|s| s.name == container.name && s.ready) {
            unready.push(container.name.as_str());
        }
    }
    if unready.is_empty() {
        return Verdict::TRUE;
    }
    let message = format!("containers with unready status: {}", listed(&unready));
    Verdict::because(false, "ContainersNotReady", Some(message))
}

fn pod_ready(pod: &Pod, containers: &Verdict) -> Verdict {
    if !containers.status {
        return Verdict { status: false, reason: containers.reason, message: containers.message.clone() };
    }
    let mut unmet = Vec::new();
    for gate in pod.pod_spec().readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match pod.pod_status().conditions.iter().flatten().find(|c| c.type_ == *kind) {
            None => unmet
                .push(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            Some(c) if c.status != "True" => {
                unmet.push(format!(
                    "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                    c.status
                ));
            }
            Some(_) => {}
        }
    }
    match unmet.len() {
        0 => Verdict::TRUE,
        1 => Verdict::because(false, "ReadinessGatesNotReady", unmet.pop()),
        _ => Verdict::because(false, "ReadinessGatesNotReady", Some(format!("[{}]", unmet.join(", ")))),
    }
}
