//! Conditions of a Deployment and the questions its progress is judged by.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSetCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::sets::Shape;
use crate::objects::{Meta, seconds_since};

pub(crate) const PROGRESSING: &str = "Progressing";
pub(crate) const AVAILABLE: &str = "Available";
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";
pub(crate) const COMPLETE: &str = "NewReplicaSetAvailable";
pub(crate) const TIMED_OUT: &str = "ProgressDeadlineExceeded";

pub(crate) fn new(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

pub(crate) fn get<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub(crate) fn reason<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a str> {
    get(status, kind)?.reason.as_deref()
}

/// Sets a condition unless it says the same already; the transition time moves only with the status.
pub(crate) fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(current) = get(status, &condition.type_) {
        if current.status == condition.status && current.reason == condition.reason {
            return;
        }
        if current.status == condition.status {
            condition.last_transition_time = current.last_transition_time.clone();
        }
    }
    remove(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

pub(crate) fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

pub(crate) fn from_replica_set(condition: &ReplicaSetCondition) -> DeploymentCondition {
    DeploymentCondition {
        type_: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        last_transition_time: condition.last_transition_time.clone(),
        last_update_time: condition.last_transition_time.clone(),
    }
}

fn count(field: Option<i32>) -> i32 {
    field.unwrap_or(0)
}

/// All pods are new, available, and there are no others.
pub(crate) fn is_complete(deployment: &Deployment, shape: &Shape, status: &DeploymentStatus) -> bool {
    count(status.updated_replicas) == shape.replicas
        && count(status.replicas) == shape.replicas
        && count(status.available_replicas) == shape.replicas
        && status.observed_generation.unwrap_or(0) >= deployment.generation()
}

/// Something got better since `old`.
pub(crate) fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let outdated = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

pub(crate) fn is_timed_out(shape: &Shape, status: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(deadline), Some(condition)) = (shape.deadline, get(status, PROGRESSING)) else { return false };
    match condition.reason.as_deref() {
        // A finished rollout cannot get stuck; what happens to its pods later is no rollout.
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => condition
            .last_update_time
            .as_ref()
            .is_some_and(|since| seconds_since(since.0, now) > f64::from(deadline)),
    }
}

/// When to look again whether the deadline has passed.
pub(crate) fn deadline_check(
    deployment: &Deployment,
    shape: &Shape,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let current = get(deployment.status.as_ref()?, PROGRESSING)?;
    if is_complete(deployment, shape, status) || current.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    // Complete by condition: the deadline is not running.
    if current.reason.as_deref() == Some(COMPLETE) {
        return None;
    }
    let left = f64::from(shape.deadline?) - seconds_since(current.last_update_time.as_ref()?.0, now);
    // One second more, because times have whole seconds.
    Some(Duration::from_secs_f64(left.max(0.0) + 1.0))
}
