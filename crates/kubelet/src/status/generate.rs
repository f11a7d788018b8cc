//! The whole `PodStatus` from one reading of the runtime. Pure; answers to upstream's `generateAPIPodStatus` and
//! `getPhase`.

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::conditions::conditions;
use super::containers::statuses;
use crate::actions::ProbeViews;
use crate::pod::{PodExt, Sort, is_sidecar, restarts_after};
use crate::resources::qos_class;
use crate::runtime_status::PodRuntimeStatus;

/// Why the kubelet ended a pod: `status.reason` and `status.message` of a `Failed` pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodFailure {
    pub reason: String,
    pub message: String,
}

/// Everything a status is made of.
pub(crate) struct StatusInput<'a> {
    pub pod: &'a Pod,
    pub runtime: &'a PodRuntimeStatus,
    /// Waiting reason and message by container name, for what could not be started.
    pub reasons: &'a HashMap<String, (String, String)>,
    pub probes: &'a ProbeViews,
    /// Termination messages by container id.
    pub messages: &'a HashMap<String, String>,
    pub host_ips: &'a [IpAddr],
    /// Scheme of container ids.
    pub runtime_name: &'a str,
    /// The pod is on its way out: nothing will be restarted.
    pub terminating: bool,
    pub failure: Option<&'a PodFailure>,
    pub now: Timestamp,
}

/// Computes the status. Its conditions are only those a kubelet owns.
pub(crate) fn generate(input: &StatusInput<'_>) -> PodStatus {
    let pod = input.pod;
    let old = pod.pod_status();
    let init = statuses(input, Sort::Init);
    let regular = statuses(input, Sort::Regular);
    let ephemeral = statuses(input, Sort::Ephemeral);
    let mut phase = phase(pod, &init, &regular, input.terminating);
    // An ended pod never comes back to life.
    if let Some(ended @ ("Failed" | "Succeeded")) = old.phase.as_deref() {
        phase = if ended == "Failed" { "Failed" } else { "Succeeded" };
    }
    let mut reason = old.reason.clone();
    let mut message = old.message.clone();
    if let Some(failure) = input.failure {
        phase = "Failed";
        reason = Some(failure.reason.clone());
        message = Some(failure.message.clone());
    }
    let pod_ips: Vec<IpAddr> = if pod.host_network() {
        if input.runtime.sandboxes.is_empty() { Vec::new() } else { input.host_ips.to_vec() }
    } else {
        input.runtime.ips()
    };
    let sandbox_ready = input.runtime.ready_sandbox().is_some() && !pod_ips.is_empty();
    let conditions = conditions(pod, phase, sandbox_ready, &init, &regular, input.now);
    let filled = |list: Vec<ContainerStatus>| Some(list).filter(|list| !list.is_empty());
    let old_ips = old.pod_ips.clone().filter(|_| input.terminating);
    let new_ips = Some(pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect::<Vec<_>>())
        .filter(|l| !l.is_empty());
    let pod_ips = new_ips.or(old_ips);
    PodStatus {
        observed_generation: pod.metadata.generation,
        phase: Some(phase.to_owned()),
        reason,
        message,
        conditions: Some(conditions),
        host_ip: input.host_ips.first().map(ToString::to_string),
        host_ips: Some(input.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: pod_ips.as_ref().and_then(|ips| ips.first()).map(|ip| ip.ip.clone()),
        pod_ips,
        start_time: Some(old.start_time.clone().unwrap_or(Time(input.now))),
        init_container_statuses: filled(init),
        container_statuses: filled(regular),
        ephemeral_container_statuses: filled(ephemeral),
        qos_class: Some(old.qos_class.clone().unwrap_or_else(|| qos_class(pod).as_str().to_owned())),
        ..PodStatus::default()
    }
}

/// The phase, from what the containers did.
pub(crate) fn phase(
    pod: &Pod,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    terminating: bool,
) -> &'static str {
    let mut pending_init = 0;
    let mut failed_init = false;
    for container in pod.init_containers() {
        let status = init.iter().find(|s| s.name == container.name);
        let state = status.and_then(|s| s.state.as_ref());
        if is_sidecar(container) {
            if !terminating && status.is_none_or(|s| s.started != Some(true)) && !started_before(status) {
                pending_init += 1;
            }
            continue;
        }
        if let Some(terminated) = state.and_then(|s| s.terminated.as_ref()) {
            if terminated.exit_code != 0 {
                pending_init += 1;
                failed_init |= terminating || !restarts_after(pod, container, terminated.exit_code);
            }
        } else {
            // Running, waiting or not there: not done, unless an earlier run of a waiting one succeeded.
            let before = status.and_then(|s| s.last_state.as_ref()).and_then(|s| s.terminated.as_ref());
            let waiting = state.is_some_and(|s| s.waiting.is_some());
            if !(waiting && before.is_some_and(|t| t.exit_code == 0)) {
                pending_init += 1;
            }
        }
    }
    let (mut unknown, mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0, 0);
    let mut restartable = false;
    for container in &pod.pod_spec().containers {
        let status = regular.iter().find(|s| s.name == container.name);
        let Some(state) = status.and_then(|s| s.state.as_ref()) else {
            unknown += 1;
            continue;
        };
        if state.running.is_some() {
            running += 1;
        } else if let Some(terminated) = &state.terminated {
            stopped += 1;
            succeeded += i32::from(terminated.exit_code == 0);
            restartable |= restarts_after(pod, container, terminated.exit_code);
        } else if state.waiting.is_some() {
            if let Some(before) =
                status.and_then(|s| s.last_state.as_ref()).and_then(|s| s.terminated.as_ref())
            {
                stopped += 1;
                restartable |= restarts_after(pod, container, before.exit_code);
            } else {
                waiting += 1;
            }
        } else {
            unknown += 1;
        }
    }
    if failed_init && running + stopped == 0 {
        return "Failed";
    }
    if pending_init > 0 && running + stopped == 0 {
        return if terminating && all_ended(init, regular) { "Failed" } else { "Pending" };
    }
    if waiting > 0 {
        return if terminating && running == 0 && stopped > 0 { "Failed" } else { "Pending" };
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        if restartable && !terminating {
            return "Running";
        }
        return if stopped == succeeded { "Succeeded" } else { "Failed" };
    }
    "Pending"
}

fn started_before(status: Option<&ContainerStatus>) -> bool {
    status.is_some_and(|s| s.state.as_ref().is_some_and(|s| s.terminated.is_some()) || s.restart_count > 0)
}

/// Whether a pod that goes away before it was initialized has nothing left that runs, and had something.
fn all_ended(init: &[ContainerStatus], regular: &[ContainerStatus]) -> bool {
    let mut all = init.iter().chain(regular).filter_map(|s| s.state.as_ref());
    all.clone().any(|s| s.terminated.is_some()) && all.all(|s| s.running.is_none())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
