//! How many pods a budget needs, how many may go, and what its status says. Answers to upstream's `disruption.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::objects::{Meta, condition, is_finished, is_ready, matches, scaled, selector};

/// An eviction was allowed, or announced, this long ago and the pod is still not being deleted: it will not be.
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);
const ALLOWED: &str = "DisruptionAllowed";

/// How many pods a budget counts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) expected: i32,
    pub(super) healthy: i32,
}

/// Whether a budget is about pods; one without a selector is about none, an empty one about all.
pub(super) fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let by = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()).and_then(selector);
    by.is_some_and(|by| matches(&by, pod.metadata.labels.as_ref()))
}

/// Whether the demand depends on how many pods the owners want.
pub(super) fn needs_scale(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// `pods` are there now; `scale` is what their owners want, where that is needed.
pub(super) fn demand(spec: &PodDisruptionBudgetSpec, pods: i32, scale: i32) -> Demand {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => {
            Demand { expected: scale, healthy: (scale - scaled(unavailable, scale, true)).max(0) }
        }
        (None, Some(IntOrString::Int(available))) => Demand { expected: pods, healthy: *available },
        (None, Some(share)) => Demand { expected: scale, healthy: scaled(share, scale, true) },
        (None, None) => Demand { expected: 0, healthy: 0 },
    }
}

/// What a look at the pods leads to.
#[derive(Debug)]
pub(super) struct Findings {
    /// `None` when the present one is right.
    pub(super) status: Option<PodDisruptionBudgetStatus>,
    /// When the first pod that should be deleted is not waited for any more.
    pub(super) again: Option<Duration>,
    /// Pods that should have been deleted and were not.
    pub(super) overdue: Vec<Arc<Pod>>,
}

pub(super) fn findings(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    demand: Demand,
    now: Timestamp,
) -> Findings {
    let old = budget.status.clone().unwrap_or_default();
    let announced = old.disrupted_pods.clone().unwrap_or_default();
    let (mut disrupted, mut overdue, mut healthy) = (BTreeMap::new(), Vec::new(), 0);
    for pod in pods.iter().filter(|pod| !pod.deleting()) {
        match announced.get(pod.name()) {
            Some(time) if time.0 + DELETION_TIMEOUT >= now => {
                disrupted.insert(pod.name().to_owned(), time.clone());
                continue;
            }
            Some(_) => overdue.push(pod.clone()),
            None => {}
        }
        healthy += i32::from(is_ready(pod));
    }
    let due = disrupted.values().map(|time| time.0 + DELETION_TIMEOUT).min();
    let again = due.map(|due| Duration::try_from(due.duration_since(now)).unwrap_or_default());
    let allowed = if demand.expected > 0 { (healthy - demand.healthy).max(0) } else { 0 };
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(demand.healthy),
        expected_pods: Some(demand.expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(disrupted).filter(|disrupted| !disrupted.is_empty()),
        observed_generation: Some(budget.generation()),
        conditions: old.conditions.clone(),
    };
    let verdict = if allowed > 0 { "True" } else { "False" };
    let told = condition_of(&old);
    let up_to_date = told
        .is_some_and(|told| told.status == verdict && told.observed_generation == Some(budget.generation()));
    if !up_to_date {
        let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
        set_condition(&mut status, verdict, reason, String::new(), now);
    }
    // No disrupted pods, as an empty map or none, are the same thing on the wire.
    let before =
        PodDisruptionBudgetStatus { disrupted_pods: Some(announced).filter(|all| !all.is_empty()), ..old };
    Findings { status: (status != before).then_some(status), again, overdue }
}

/// Nothing may go while it is not known how many there should be. `None` when the status says so already.
pub(super) fn failed(
    budget: &PodDisruptionBudget,
    message: String,
    now: Timestamp,
) -> Option<PodDisruptionBudgetStatus> {
    let old = budget.status.clone().unwrap_or_default();
    let mut status = old.clone();
    status.disruptions_allowed = Some(0);
    set_condition(&mut status, "False", "SyncFailed", message, now);
    (status != old).then_some(status)
}

fn condition_of(status: &PodDisruptionBudgetStatus) -> Option<&Condition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == ALLOWED)
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    verdict: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let same = condition_of(status).filter(|told| told.status == verdict);
    let since = same.map_or(Time(now), |told| told.last_transition_time.clone());
    let condition = Condition {
        type_: ALLOWED.to_owned(),
        status: verdict.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: status.observed_generation,
        last_transition_time: since,
    };
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|told| told.type_ == ALLOWED) {
        Some(told) => *told = condition,
        None => conditions.push(condition),
    }
}

/// How long until a pod's announcement of its end is taken back; `None` for a pod without one, or one that ends.
/// What a kubelet announces is kept: a pod may take long to be stopped by its node.
pub(super) fn stale_announcement(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let told = condition(pod, "DisruptionTarget").filter(|told| told.status == "True")?;
    if pod.deleting() || is_finished(pod) || told.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    let since = told.last_transition_time.as_ref().map_or(now, |time| time.0);
    Some(Duration::try_from((since + DELETION_TIMEOUT).duration_since(now)).unwrap_or_default())
}

/// A selector as Go prints it.
pub(super) fn print_selector(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".to_owned() };
    let labels: String =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions: String = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|expression| {
            let values = expression.values.clone().unwrap_or_default().join(" ");
            let (key, operator) = (&expression.key, &expression.operator);
            format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},")
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::{at, object};
    use pretty_assertions::assert_eq;
    use serde_json::{Value, json};

    #[test]
    fn demands() {
        let check = |spec: Value, pods: i32, scale: i32, expected: (i32, i32)| {
            let Demand { expected: count, healthy } = demand(&object(spec.clone()), pods, scale);
            assert_eq!((count, healthy), expected, "{spec} {pods} {scale}");
        };
        check(json!({"minAvailable": 2}), 5, 0, (5, 2));
        check(json!({"minAvailable": "50%"}), 2, 5, (5, 3));
        check(json!({"minAvailable": "0%"}), 2, 5, (5, 0));
        check(json!({"maxUnavailable": 1}), 2, 5, (5, 4));
        check(json!({"maxUnavailable": "30%"}), 2, 5, (5, 3));
        check(json!({"maxUnavailable": 9}), 2, 5, (5, 0));
        check(json!({}), 2, 5, (0, 0));
        assert!(!needs_scale(&object(json!({"minAvailable": 2}))));
        assert!(needs_scale(&object(json!({"minAvailable": "2%"}))));
        assert!(needs_scale(&object(json!({"maxUnavailable": 2}))));
    }

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        Arc::new(object(json!({"metadata": {"name": name, "labels": {"app": "web"}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}})))
    }

    fn budget(status: Value) -> PodDisruptionBudget {
        object(
            json!({"metadata": {"name": "b", "generation": 2}, "spec": {"minAvailable": 1}, "status": status}),
        )
    }

    #[test]
    fn what_may_go() {
        let now = at("2026-01-01T00:10:00Z");
        let check = |ready: usize, unready: usize, healthy: i32, allowed: i32, reason: &str| {
            let pods: Vec<_> =
                (0..ready + unready).map(|place| pod(&format!("p{place}"), place < ready)).collect();
            let expected = i32::try_from(pods.len()).unwrap();
            let seen = findings(&budget(json!({})), &pods, Demand { expected, healthy }, now).status.unwrap();
            let told = &seen.conditions.as_ref().unwrap()[0];
            assert_eq!((seen.disruptions_allowed, told.reason.as_str()), (Some(allowed), reason));
            assert_eq!(told.observed_generation, Some(2));
            let again = PodDisruptionBudget { status: Some(seen), ..budget(json!({})) };
            assert_eq!(findings(&again, &pods, Demand { expected, healthy }, now).status, None, "told once");
        };
        check(3, 0, 2, 1, "SufficientPods");
        check(3, 1, 3, 0, "InsufficientPods");
        check(1, 0, 2, 0, "InsufficientPods");
        check(0, 0, 0, 0, "InsufficientPods");
    }

    #[test]
    fn pods_that_are_about_to_go_do_not_count() {
        let now = at("2026-01-01T00:10:00Z");
        let announced =
            budget(json!({"disruptedPods": {"p0": "2026-01-01T00:09:00Z", "p1": "2026-01-01T00:07:00Z",
            "gone": "2026-01-01T00:09:00Z"}}));
        let pods = [pod("p0", true), pod("p1", true), pod("p2", true)];
        let found = findings(&announced, &pods, Demand { expected: 3, healthy: 1 }, now);
        let status = found.status.unwrap();
        assert_eq!((status.current_healthy, status.disruptions_allowed), (Some(2), Some(1)));
        assert_eq!(status.disrupted_pods.unwrap().into_keys().collect::<Vec<_>>(), ["p0"]);
        assert_eq!(found.again, Some(Duration::from_secs(60)));
        assert_eq!(found.overdue[0].name(), "p1");
    }

    #[test]
    fn a_failure_allows_nothing() {
        let now = at("2026-01-01T00:10:00Z");
        let status = failed(&budget(json!({"disruptionsAllowed": 2})), "no scale".into(), now).unwrap();
        let told = &status.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (status.disruptions_allowed, told.reason.as_str(), told.message.as_str()),
            (Some(0), "SyncFailed", "no scale")
        );
        let again = PodDisruptionBudget { status: Some(status), ..budget(json!({})) };
        assert_eq!(failed(&again, "no scale".into(), now), None);
    }

    #[test]
    fn announcements_are_taken_back() {
        let check = |reason: &str, status: &str, phase: &str, expected: Option<u64>| {
            let pod: Pod = object(json!({"metadata": {}, "status": {"phase": phase, "conditions": [
                {"type": "DisruptionTarget", "status": status, "reason": reason,
                    "lastTransitionTime": "2026-01-01T00:09:00Z"}]}}));
            let wait = stale_announcement(&pod, at("2026-01-01T00:10:00Z")).map(|wait| wait.as_secs());
            assert_eq!(wait, expected, "{reason} {status} {phase}");
        };
        check("EvictionByEvictionAPI", "True", "Running", Some(60));
        check("EvictionByEvictionAPI", "False", "Running", None);
        check("EvictionByEvictionAPI", "True", "Failed", None);
        check("TerminationByKubelet", "True", "Running", None);
    }

    #[test]
    fn selectors_print_as_in_go() {
        let selector: LabelSelector = object(json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["a", "b"]}]}));
        assert_eq!(
            print_selector(Some(&selector)),
            "&LabelSelector{MatchLabels:map[string]string{app: web,},MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:tier,Operator:In,Values:[a b],},},}"
        );
    }
}
