//! What has to be done to bring a pod's sandbox and containers from what is to what shall be. Pure; answers to
//! upstream's `kuberuntime.computePodActions` (KEP-753 for sidecars).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use orlop_cri::{ContainerState, ContainerStatus, NamespaceMode, PodSandboxState};

use crate::pod::{PodExt, is_sidecar, restarts_after, restarts_on_failure};
use crate::runtime_status::{HASH, PodRuntimeStatus, hash};

/// The latest results of a container's probes; `None` while there is no result yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProbeView {
    pub startup: Option<bool>,
    pub readiness: Option<bool>,
    pub liveness: Option<bool>,
}

/// Probe results by container id.
pub(crate) type ProbeViews = HashMap<String, ProbeView>;

/// A container that has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kill {
    pub id: String,
    pub name: String,
    /// For the `Killing` event.
    pub message: String,
    /// Whether a failed probe is the reason: then the probe's own grace period counts.
    pub by_probe: Option<&'static str>,
}

/// The outcome of [`compute`]: indexes are those of the pod's lists.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PodActions {
    /// Kill all containers and stop the sandbox first.
    pub kill_pod: bool,
    /// Make a sandbox (`attempt` says the how-manieth).
    pub create_sandbox: bool,
    pub attempt: u32,
    pub kill: Vec<Kill>,
    pub start_ephemeral: Vec<usize>,
    pub start_init: Vec<usize>,
    pub start: Vec<usize>,
}

impl PodActions {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self { attempt: self.attempt, ..Self::default() }
    }
}

/// Whether the pod needs a new sandbox, and its attempt number.
fn sandbox_changed(pod: &Pod, status: &PodRuntimeStatus) -> (bool, u32) {
    let Some(latest) = status.sandboxes.first() else { return (true, 0) };
    let again = latest.sandbox.metadata.attempt + 1;
    let ready = status.sandboxes.iter().filter(|s| s.sandbox.state == PodSandboxState::Ready).count();
    let on_host = latest.namespaces.network == NamespaceMode::Node;
    let usable = ready == 1
        && latest.sandbox.state == PodSandboxState::Ready
        && on_host == pod.host_network()
        && (on_host || !latest.ips.is_empty());
    if usable { (false, latest.sandbox.metadata.attempt) } else { (true, again) }
}

fn succeeded(status: Option<&ContainerStatus>) -> bool {
    status.is_some_and(|s| s.container.state == ContainerState::Exited && s.exit_code == 0)
}

/// Whether any regular container was ever made: then initialization is behind the pod.
fn was_initialized(pod: &Pod, status: &PodRuntimeStatus) -> bool {
    pod.pod_spec().containers.iter().any(|c| status.latest(&c.name).is_some())
}

/// Whether a container that does not run shall be started.
pub(crate) fn should_restart(pod: &Pod, container: &Container, status: &PodRuntimeStatus) -> bool {
    if pod.is_deleted() {
        return false;
    }
    match status.latest(&container.name) {
        None => true,
        Some(latest) => match latest.container.state {
            ContainerState::Running => false,
            ContainerState::Created | ContainerState::Unknown => true,
            ContainerState::Exited => restarts_after(pod, container, latest.exit_code),
        },
    }
}

/// Compares the pod with what runs.
pub(crate) fn compute(pod: &Pod, status: &PodRuntimeStatus, probes: &ProbeViews) -> PodActions {
    let spec = pod.pod_spec();
    let (changed, attempt) = sandbox_changed(pod, status);
    let mut actions = PodActions { attempt, ..PodActions::default() };
    if changed {
        new_sandbox(pod, status, &mut actions);
        return actions;
    }
    for (index, container) in pod.ephemeral_containers().iter().enumerate() {
        if status.latest(&container.name).is_none() {
            actions.start_ephemeral.push(index);
        }
    }
    let initialized = init_actions(pod, status, probes, &mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }
    let mut kept = 0;
    for (index, container) in spec.containers.iter().enumerate() {
        let latest = status.latest(&container.name);
        let Some(latest) = latest.filter(|s| s.container.state == ContainerState::Running) else {
            if should_restart(pod, container, status) {
                actions.start.push(index);
                if let Some(unknown) = latest.filter(|s| s.container.state == ContainerState::Unknown) {
                    actions.kill.push(unknown_kill(container, unknown));
                }
            }
            continue;
        };
        let Some((message, by_probe)) = reason_to_kill(container, latest, probes) else {
            kept += 1;
            continue;
        };
        // A changed definition restarts whatever the policy says.
        let restart = by_probe.is_none() || restarts_on_failure(pod, container);
        kill(&mut actions, container, latest, message, by_probe, restart);
        if restart {
            actions.start.push(index);
        }
    }
    if kept == 0 && actions.start.is_empty() {
        actions.kill_pod = true;
        actions.start_init.clear();
    }
    actions
}

fn new_sandbox(pod: &Pod, status: &PodRuntimeStatus, actions: &mut PodActions) {
    actions.kill_pod = true;
    actions.create_sandbox = true;
    if pod.restart_policy() == "Never" && actions.attempt != 0 && !status.containers.is_empty() {
        // A pod that never restarts ended with its sandbox.
        actions.create_sandbox = false;
        return;
    }
    let pending = pod.pod_spec().containers.iter().enumerate().filter(|(_, container)| {
        match status.latest(&container.name) {
            Some(latest) if succeeded(Some(latest)) => restarts_after(pod, container, 0),
            _ => true,
        }
    });
    let pending: Vec<usize> = pending.map(|(index, _)| index).collect();
    if pending.is_empty() {
        actions.create_sandbox = false;
        return;
    }
    // In a new sandbox initialization runs again from the first step.
    if pod.init_containers().is_empty() {
        actions.start = pending;
    } else {
        actions.start_init = vec![0];
    }
}

fn reason_to_kill(
    container: &Container,
    latest: &ContainerStatus,
    probes: &ProbeViews,
) -> Option<(String, Option<&'static str>)> {
    let name = &container.name;
    if latest.container.annotations.get(HASH).is_some_and(|noted| *noted != hash(container)) {
        return Some((format!("Container {name} definition changed"), None));
    }
    let view = probes.get(&latest.container.id).copied().unwrap_or_default();
    if container.liveness_probe.is_some() && view.liveness == Some(false) {
        return Some((format!("Container {name} failed liveness probe"), Some("livenessProbe")));
    }
    if container.startup_probe.is_some() && view.startup == Some(false) {
        return Some((format!("Container {name} failed startup probe"), Some("startupProbe")));
    }
    None
}

fn kill(
    actions: &mut PodActions,
    container: &Container,
    latest: &ContainerStatus,
    mut message: String,
    by_probe: Option<&'static str>,
    restart: bool,
) {
    if restart {
        message.push_str(", will be restarted");
    }
    actions.kill.push(Kill {
        id: latest.container.id.clone(),
        name: container.name.clone(),
        message,
        by_probe,
    });
}

fn unknown_kill(container: &Container, latest: &ContainerStatus) -> Kill {
    Kill {
        id: latest.container.id.clone(),
        name: container.name.clone(),
        message: "Container is in unknown state, try killing it before starting it again".to_owned(),
        by_probe: None,
    }
}

/// Steps through the init containers; `true` when regular containers may run.
fn init_actions(pod: &Pod, status: &PodRuntimeStatus, probes: &ProbeViews, actions: &mut PodActions) -> bool {
    let init = pod.init_containers();
    let initialized = was_initialized(pod, status);
    let later_exists = |index: usize| init[index + 1..].iter().any(|c| status.latest(&c.name).is_some());
    for (index, container) in init.iter().enumerate() {
        let latest = status.latest(&container.name);
        if is_sidecar(container) {
            let goes_on = sidecar_actions(index, container, latest, probes, actions);
            if !goes_on && !initialized && !later_exists(index) {
                return false;
            }
            continue;
        }
        if initialized {
            continue;
        }
        match latest.map(|s| (s, s.container.state)) {
            Some((_, ContainerState::Running)) => return false,
            Some((s, ContainerState::Exited)) if s.exit_code == 0 => {}
            Some((s, ContainerState::Exited)) => {
                if restarts_after(pod, container, s.exit_code) {
                    actions.start_init.push(index);
                } else {
                    actions.kill_pod = true;
                    actions.start_init.clear();
                }
                return false;
            }
            Some((_, ContainerState::Created)) => {
                actions.start_init.push(index);
                return false;
            }
            Some((s, ContainerState::Unknown)) => {
                actions.kill.push(unknown_kill(container, s));
                actions.start_init.push(index);
                return false;
            }
            // Its record was collected when a later step began.
            None if later_exists(index) => {}
            None => {
                actions.start_init.push(index);
                return false;
            }
        }
    }
    true
}

/// Keeps one sidecar running; `true` when it has started, so that the next step may begin.
fn sidecar_actions(
    index: usize,
    container: &Container,
    latest: Option<&ContainerStatus>,
    probes: &ProbeViews,
    actions: &mut PodActions,
) -> bool {
    let Some(latest) = latest else {
        actions.start_init.push(index);
        return false;
    };
    match latest.container.state {
        ContainerState::Running => {
            if let Some((message, by_probe)) = reason_to_kill(container, latest, probes) {
                kill(actions, container, latest, message, by_probe, true);
                actions.start_init.push(index);
                return false;
            }
            let view = probes.get(&latest.container.id).copied().unwrap_or_default();
            container.startup_probe.is_none() || view.startup == Some(true)
        }
        ContainerState::Unknown => {
            actions.kill.push(unknown_kill(container, latest));
            actions.start_init.push(index);
            false
        }
        ContainerState::Created | ContainerState::Exited => {
            actions.start_init.push(index);
            false
        }
    }
}

#[cfg(test)]
mod tests;
