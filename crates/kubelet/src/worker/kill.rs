//! Ending containers and pods: hooks, grace periods, the order of sidecars. Answers to upstream's
//! `kuberuntime_container.go` (`killContainer`) and KEP-753.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use orlop_client::EventType;
use orlop_cri::{ContainerFilter, ContainerState, CriError, PodSandboxState, StringMap};
use tracing::{debug, warn};

use crate::context::Context;
use crate::hooks;
use crate::pod::{PodExt, Sort, is_sidecar};
use crate::runtime_status::{GRACE_PERIOD, POD_UID, PodRuntimeStatus, container_name};

/// What a container gets at least between the stop signal and the kill.
const MINIMUM_GRACE: Duration = Duration::from_secs(2);

/// The grace period of a pod that ends, as its object says.
pub(super) fn grace_period(pod: &Pod) -> Duration {
    let seconds = if pod.is_deleted() { pod.metadata.deletion_grace_period_seconds } else { None };
    let seconds = seconds.or(pod.pod_spec().termination_grace_period_seconds).unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// A container that is to be stopped.
pub(super) struct Victim<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub sort: Sort,
    pub id: &'a str,
    pub pod_ip: &'a str,
}

/// Stops one container: event, preStop hook, signal, kill. `grace` is for hook and signal together.
pub(super) async fn kill_container(
    context: &Context,
    victim: Victim<'_>,
    message: String,
    grace: Duration,
) -> Result<(), CriError> {
    let Victim { pod, container, sort, id, pod_ip } = victim;
    let object = pod.container_reference(sort, &container.name);
    context.recorder.event_for(object.clone(), EventType::Normal, "Killing", message);
    let begun = Instant::now();
    let mut left = grace;
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
        && !grace.is_zero()
    {
        let run = hooks::run(&*context.runtime, id, container, pod_ip, hook);
        match tokio::time::timeout(grace, run).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(pod = %pod.described(), container = container.name, %error, "preStop hook failed; stopping the container all the same");
                context.recorder.event_for(
                    object,
                    EventType::Warning,
                    "FailedPreStopHook",
                    "PreStopHook failed",
                );
            }
            Err(_) => {
                debug!(pod = %pod.described(), container = container.name, "preStop hook used up the grace period");
            }
        }
        left = grace.saturating_sub(begun.elapsed());
    }
    // Whatever the hook took, and unless less was asked for, there is a moment to end.
    let left = left.max(MINIMUM_GRACE.min(grace.max(Duration::from_secs(1))));
    match context.runtime.stop_container(id, left).await {
        Err(CriError::NotFound(_)) | Ok(()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Stops everything of a pod: regular containers together, then sidecars last to first, then the sandboxes.
pub(super) async fn kill_pod(
    context: &Context,
    pod: &Pod,
    status: &PodRuntimeStatus,
    grace: Duration,
) -> Result<(), CriError> {
    let begun = Instant::now();
    let ips = if pod.host_network() { context.host_ips().to_vec() } else { status.ips() };
    let ip = ips.first().map(ToString::to_string).unwrap_or_default();
    let ip = ip.as_str();
    let active: Vec<_> = status
        .containers
        .iter()
        .filter(|c| matches!(c.container.state, ContainerState::Running | ContainerState::Unknown))
        .collect();
    let mut sidecars: HashMap<&str, &str> = HashMap::new();
    let mut first = Vec::new();
    for running in active {
        let name = container_name(running);
        let id = running.container.id.as_str();
        match pod.find_container(name) {
            Some((Sort::Init, container)) if is_sidecar(&container) => {
                sidecars.insert(name, id);
            }
            Some((sort, container)) => first.push(async move {
                let message = format!("Stopping container {name}");
                kill_container(
                    context,
                    Victim { pod, container: &container, sort, id, pod_ip: ip },
                    message,
                    grace,
                )
                .await
            }),
            None => {
                // The definition is gone from the object: there is no hook to run.
                let container = Container { name: name.to_owned(), ..Container::default() };
                let message = format!("Stopping container {name}");
                let victim = Victim { pod, container: &container, sort: Sort::Regular, id, pod_ip: ip };
                kill_container(context, victim, message, grace).await?;
            }
        }
    }
    let mut outcome = join_all(first).await.into_iter().collect::<Result<Vec<()>, _>>().map(|_| ());
    for container in pod.init_containers().iter().rev() {
        let Some(id) = sidecars.get(container.name.as_str()) else { continue };
        let left = grace.saturating_sub(begun.elapsed());
        let message = format!("Stopping container {}", container.name);
        let victim = Victim { pod, container, sort: Sort::Init, id, pod_ip: ip };
        let ended = kill_container(context, victim, message, left).await;
        outcome = outcome.and(ended);
    }
    outcome?;
    for sandbox in status.sandboxes.iter().filter(|s| s.sandbox.state == PodSandboxState::Ready) {
        match context.runtime.stop_pod_sandbox(&sandbox.sandbox.id).await {
            Ok(()) | Err(CriError::NotFound(_)) => {}
            Err(error) => {
                let message =
                    format!("error killing pod: failed to \"KillPodSandbox\" for \"{}\": {error}", pod.uid());
                context.recorder.event(pod, EventType::Warning, "FailedKillPod", message);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Ends and removes what the runtime still has of a pod whose object is gone.
pub(crate) async fn kill_orphan(context: &Context, uid: &str) -> Result<(), CriError> {
    let labels: StringMap = [(POD_UID.to_owned(), uid.to_owned())].into();
    let containers =
        context.runtime.list_containers(&ContainerFilter { labels, ..Default::default() }).await?;
    let stops = containers.iter().filter(|c| c.state == ContainerState::Running).map(|c| {
        let noted = c.annotations.get(GRACE_PERIOD).and_then(|text| text.parse().ok());
        context.runtime.stop_container(&c.id, Duration::from_secs(noted.unwrap_or(30)))
    });
    for outcome in join_all(stops).await {
        match outcome {
            Ok(()) | Err(CriError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    remove_pod(context, uid).await
}

/// Removes a pod's sandboxes and containers, which have ended.
pub(super) async fn remove_pod(context: &Context, uid: &str) -> Result<(), CriError> {
    let status = PodRuntimeStatus::read(&*context.runtime, uid).await?;
    for container in &status.containers {
        done(context.runtime.remove_container(&container.container.id).await)?;
    }
    for sandbox in &status.sandboxes {
        done(context.runtime.stop_pod_sandbox(&sandbox.sandbox.id).await)?;
        done(context.runtime.remove_pod_sandbox(&sandbox.sandbox.id).await)?;
    }
    Ok(())
}

/// What is gone already is what was wanted.
fn done(outcome: Result<(), CriError>) -> Result<(), CriError> {
    match outcome {
        Err(CriError::NotFound(_)) => Ok(()),
        other => other,
    }
}
