//! How many pods to create, which to delete, and what the status says.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rank::pods_to_delete;
use crate::objects::{Meta, is_available, is_ready, until_available};

/// No more pods than this in one go; the rest follows when these have shown up.
const BURST: usize = 500;

#[derive(Debug)]
pub(crate) enum Action {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn min_ready(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
}

/// `active` are the set's own pods that count; `related` those of all sets of the same owner.
pub(crate) fn scale(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    related: impl FnOnce() -> Vec<Arc<Pod>>,
    now: Timestamp,
) -> Action {
    let wanted = usize::try_from(replicas(set)).unwrap_or(0);
    if set.deleting() || active.len() == wanted {
        Action::Nothing
    } else if active.len() < wanted {
        Action::Create((wanted - active.len()).min(BURST))
    } else {
        let count = (active.len() - wanted).min(BURST);
        Action::Delete(pods_to_delete(active.to_vec(), &related(), count, now))
    }
}

/// What the status should be. `failure` is why the last scaling failed; `terminating` is `None` for a kind that does not
/// tell.
pub(crate) fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: Option<usize>,
    failure: Option<&str>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let mut status = set.status.clone().unwrap_or_default();
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let labels =
        template.and_then(|template| template.metadata.as_ref()).and_then(|meta| meta.labels.as_ref());
    status.replicas = count(&|_| true);
    status.fully_labeled_replicas = Some(count(&|pod| {
        labels.into_iter().flatten().all(|(key, value)| pod.label(key) == Some(value.as_str()))
    }));
    status.ready_replicas = Some(count(&is_ready));
    status.available_replicas = Some(count(&|pod| is_available(pod, min_ready(set), now)));
    status.terminating_replicas = terminating.map(|count| i32::try_from(count).unwrap_or(i32::MAX));
    status.observed_generation = Some(set.generation());

    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().any(|condition| condition.type_ == "ReplicaFailure");
    match failure {
        Some(message) if !known => {
            let diff = i64::from(status.replicas) - i64::from(replicas(set));
            let reason = if diff < 0 { "FailedCreate" } else { "FailedDelete" };
            conditions.push(ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_transition_time: Some(Time(now)),
            });
        }
        None if known => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
        _ => {}
    }
    if conditions.is_empty() {
        status.conditions = None;
    }
    status
}

/// Whether writing `new` would change anything that readers see.
pub(crate) fn differs(old: Option<&ReplicaSetStatus>, new: &ReplicaSetStatus) -> bool {
    let Some(old) = old else { return true };
    let count = |field: Option<i32>| field.unwrap_or(0);
    old.replicas != new.replicas
        || count(old.fully_labeled_replicas) != count(new.fully_labeled_replicas)
        || count(old.ready_replicas) != count(new.ready_replicas)
        || count(old.available_replicas) != count(new.available_replicas)
        || old.terminating_replicas != new.terminating_replicas
        || old.observed_generation.unwrap_or(0) != new.observed_generation.unwrap_or(0)
        || old.conditions.as_deref().unwrap_or_default() != new.conditions.as_deref().unwrap_or_default()
}

/// When the next ready pod becomes available, if none does on its own account.
pub(crate) fn next_available(set: &ReplicaSet, active: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let min_ready = min_ready(set);
    if min_ready <= 0 {
        return None;
    }
    let waits = active.iter().filter_map(|pod| until_available(pod, min_ready, now));
    waits.filter(|wait| !wait.is_zero()).min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::{at, object};
    use pretty_assertions::assert_eq;
    use serde_json::json;

    fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
        object(json!({"metadata": {"name": "web", "namespace": "a", "uid": "1", "generation": 2}, "spec": {
            "replicas": replicas, "minReadySeconds": min_ready, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web", "tier": "front"}}, "spec": {"containers": []}}}}))
    }

    fn pods(count: usize, ready: Option<&str>) -> Vec<Arc<Pod>> {
        (0..count).map(|index| Arc::new(object(json!({
            "metadata": {"name": format!("web-{index}"), "labels": {"app": "web", "tier": "front"}},
            "status": {"phase": "Running", "conditions": ready.iter().map(|since|
                json!({"type": "Ready", "status": "True", "lastTransitionTime": since})).collect::<Vec<_>>()}})))).collect()
    }

    #[test]
    fn counts_up_and_down() {
        let now = at("2026-01-01T00:00:00Z");
        let check = |wanted, present, expected: &str| {
            let shown = match scale(&set(wanted, 0), &pods(present, None), Vec::new, now) {
                Action::Nothing => "nothing".to_owned(),
                Action::Create(count) => format!("create {count}"),
                Action::Delete(pods) => format!("delete {}", pods.len()),
            };
            assert_eq!(shown, expected, "{wanted} wanted, {present} there");
        };
        check(3, 3, "nothing");
        check(3, 1, "create 2");
        check(0, 0, "nothing");
        check(0, 2, "delete 2");
        check(1, 4, "delete 3");
        check(2000, 0, "create 500");
        let mut dying = set(3, 0);
        dying.metadata.deletion_timestamp = Some(Time(now));
        assert!(matches!(scale(&dying, &[], Vec::new, now), Action::Nothing));
    }

    #[test]
    fn tells_what_it_sees() {
        let now = at("2026-01-01T00:01:00Z");
        let seen = status(&set(3, 30), &pods(2, Some("2026-01-01T00:00:45Z")), Some(1), None, now);
        assert_eq!(
            serde_json::to_value(&seen).unwrap(),
            json!({"availableReplicas": 0, "fullyLabeledReplicas": 2,
            "observedGeneration": 2, "readyReplicas": 2, "replicas": 2, "terminatingReplicas": 1})
        );
        assert_eq!(
            next_available(&set(3, 30), &pods(2, Some("2026-01-01T00:00:45Z")), now),
            Some(Duration::from_secs(15))
        );
        let later =
            status(&set(3, 30), &pods(2, Some("2026-01-01T00:00:30Z")), Some(0), Some("no quota"), now);
        assert_eq!(later.available_replicas, Some(2));
        let failure = &later.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (failure.reason.as_deref(), failure.message.as_deref()),
            (Some("FailedCreate"), Some("no quota"))
        );
        let mut failing = set(3, 0);
        failing.status = Some(later);
        assert_eq!(status(&failing, &pods(3, None), None, None, now).conditions, None, "it works again");
        assert!(differs(None, &seen) && !differs(Some(&seen), &seen));
    }
}
