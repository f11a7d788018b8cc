//! Container statuses as the API shows them. Pure; answers to upstream's `convertToAPIContainerStatuses`.

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus as ApiStatus, ContainerUser, LinuxContainerUser, Pod,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use orlop_cri::{ContainerState, ContainerStatus};

use super::generate::StatusInput;
use crate::actions::should_restart;
use crate::pod::{PodExt, Sort, is_sidecar};
use crate::runtime_status::{restart_count, time};

fn waiting(reason: &str, message: Option<&str>) -> ApiState {
    let message = message.filter(|m| !m.is_empty()).map(str::to_owned);
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ApiState { waiting: Some(waiting), ..ApiState::default() }
}

fn lost(message: &str) -> ApiState {
    let terminated = ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some(message.to_owned()),
        ..ContainerStateTerminated::default()
    };
    ApiState { terminated: Some(terminated), ..ApiState::default() }
}

fn state(input: &StatusInput<'_>, status: &ContainerStatus, default_reason: &str) -> ApiState {
    let id = &status.container.id;
    match status.container.state {
        ContainerState::Running => ApiState {
            running: Some(ContainerStateRunning { started_at: Some(Time(time(status.started_at))) }),
            ..ApiState::default()
        },
        ContainerState::Exited => {
            let said = input.messages.get(id).filter(|text| !text.is_empty()).unwrap_or(&status.message);
            let reason = if !status.reason.is_empty() {
                status.reason.clone()
            } else if status.exit_code == 0 {
                "Completed".to_owned()
            } else {
                "Error".to_owned()
            };
            let terminated = ContainerStateTerminated {
                container_id: Some(format!("{}://{id}", input.runtime_name)),
                exit_code: status.exit_code,
                finished_at: Some(Time(time(status.finished_at))),
                started_at: Some(Time(time(status.started_at))),
                reason: Some(reason),
                message: Some(said.clone()).filter(|text| !text.is_empty()),
                signal: None,
            };
            ApiState { terminated: Some(terminated), ..ApiState::default() }
        }
        ContainerState::Created => waiting(default_reason, None),
        ContainerState::Unknown => lost("The container could not be located when the pod was terminated"),
    }
}

/// The status of every container of one of the pod's lists.
pub(super) fn statuses(input: &StatusInput<'_>, sort: Sort) -> Vec<ApiStatus> {
    let pod = input.pod;
    let ephemeral = pod.ephemeral_containers();
    let (containers, old) = match sort {
        Sort::Init => (pod.init_containers(), &pod.pod_status().init_container_statuses),
        Sort::Regular => (pod.pod_spec().containers.as_slice(), &pod.pod_status().container_statuses),
        Sort::Ephemeral => (ephemeral.as_slice(), &pod.pod_status().ephemeral_container_statuses),
    };
    let mut out: Vec<ApiStatus> = containers
        .iter()
        .map(|container| {
            let old = old.iter().flatten().find(|status| status.name == container.name);
            one(input, container, sort, old)
        })
        .collect();
    // Init containers keep their order; the others are sorted, as upstream shows them.
    if sort != Sort::Init {
        out.sort_by(|a, b| a.name.cmp(&b.name));
    }
    out
}

fn one(input: &StatusInput<'_>, container: &Container, sort: Sort, old: Option<&ApiStatus>) -> ApiStatus {
    let pod = input.pod;
    let default_reason = if pod.init_containers().is_empty() || sort == Sort::Ephemeral {
        "ContainerCreating"
    } else {
        "PodInitializing"
    };
    let mut out = ApiStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(waiting(default_reason, None)),
        last_state: Some(ApiState::default()),
        started: Some(false),
        ..ApiStatus::default()
    };
    let mut instances = input.runtime.all(&container.name);
    match instances.next() {
        Some(latest) => {
            out.restart_count = i32::try_from(restart_count(latest)).unwrap_or(i32::MAX);
            out.image = latest.container.image.clone();
            out.image_id = latest.image_ref.clone();
            out.container_id = Some(format!("{}://{}", input.runtime_name, latest.container.id));
            out.state = Some(state(input, latest, default_reason));
            if let Some(before) = instances.find(|s| s.container.state == ContainerState::Exited) {
                out.last_state = Some(state(input, before, default_reason));
            }
            let resources = container.resources.clone().unwrap_or_default();
            out.allocated_resources = resources.requests.clone().filter(|requests| !requests.is_empty());
            out.resources = Some(resources);
            out.volume_mounts = volume_mounts(container);
            out.user = latest.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: *uid,
                    gid: *gid,
                    supplemental_groups: Some(groups.clone()).filter(|g| !g.is_empty()),
                }),
            });
        }
        None => without_instance(pod, container, old, &mut out, input.terminating),
    }
    let waits = out.state.as_ref().is_some_and(|s| s.running.is_none()) && !input.terminating;
    if let Some((reason, message)) = input.reasons.get(&container.name)
        && waits
        && should_restart(pod, container, input.runtime)
    {
        let was = out.state.replace(waiting(reason, Some(message)));
        if was.as_ref().is_some_and(|s| s.terminated.is_some()) {
            out.last_state = was;
        }
    }
    readiness(input, container, sort, &mut out);
    out
}

/// The runtime knows no instance: none was made yet, or it was removed.
fn without_instance(
    pod: &Pod,
    container: &Container,
    old: Option<&ApiStatus>,
    out: &mut ApiStatus,
    terminating: bool,
) {
    let Some(old) = old else { return };
    out.restart_count = old.restart_count;
    out.last_state = old.last_state.clone().or_else(|| Some(ApiState::default()));
    let Some(old_state) = &old.state else { return };
    if old_state.terminated.is_some() {
        *out = old.clone();
    } else if old_state.running.is_some() {
        let gone = lost(
            "The container could not be located when the pod was deleted.  The container used to be Running",
        );
        if terminating || pod.restart_policy() == "Never" && !is_sidecar(container) {
            *out = ApiStatus { state: Some(gone), ..old.clone() };
        } else {
            out.last_state = Some(gone);
            out.restart_count += 1;
        }
    } else if terminating && old_state.waiting.is_some() {
        out.state = Some(waiting("ContainerCreating", None));
    }
}

/// `started` and `ready`, from the probes' results.
fn readiness(input: &StatusInput<'_>, container: &Container, sort: Sort, out: &mut ApiStatus) {
    let running = out.state.as_ref().is_some_and(|s| s.running.is_some());
    let view = input
        .runtime
        .latest(&container.name)
        .and_then(|latest| input.probes.get(&latest.container.id))
        .copied()
        .unwrap_or_default();
    let started = running && (container.startup_probe.is_none() || view.startup == Some(true));
    out.started = Some(started);
    out.ready = match sort {
        Sort::Init if !is_sidecar(container) => {
            out.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0)
        }
        Sort::Ephemeral => false,
        _ => started && (container.readiness_probe.is_none() || view.readiness == Some(true)),
    };
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let shown = mounts.iter().map(|mount| {
        let read_only = mount.read_only == Some(true);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| match mount.recursive_read_only.as_deref() {
                Some("Enabled" | "IfPossible") => "Enabled".to_owned(),
                _ => "Disabled".to_owned(),
            }),
            ..VolumeMountStatus::default()
        }
    });
    Some(shown.collect())
}
