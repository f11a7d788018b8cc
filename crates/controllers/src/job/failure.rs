//! Failed pods: what the pod failure policy makes of them, when they ended, and how long their replacements wait.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use crate::objects::{Meta, condition};

/// The first wait after a failure; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(360);
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// What a failed pod means for its Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It counts towards the back-off limits.
    Counts,
    /// It does not count: a replacement is made as if nothing had been.
    Ignored,
    /// Its index is lost whatever the limit.
    FailsIndex,
    /// The whole Job is lost, for this reason.
    FailsJob(String),
}

impl Failure {
    pub(crate) fn counts(&self) -> bool {
        *self != Self::Ignored
    }
}

/// The first rule that matches decides.
pub(crate) fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Failure {
    let (Some(policy), Some(status)) = (policy, &pod.status) else { return Failure::Counts };
    for (index, rule) in policy.rules.iter().enumerate() {
        let matched = if let Some(requirement) = &rule.on_exit_codes {
            exit_code(status, requirement).map(|(container, code)| {
                format!(
                    "Container {container} for pod {}/{} failed with exit code {code}",
                    pod.namespace(),
                    pod.name()
                )
            })
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            let mut conditions = status.conditions.iter().flatten();
            let found = conditions.find(|condition| {
                patterns.iter().any(|pattern| {
                    pattern.type_ == condition.type_
                        && pattern.status.as_deref().unwrap_or("True") == condition.status
                })
            });
            found.map(|condition| {
                format!("Pod {}/{} has condition {}", pod.namespace(), pod.name(), condition.type_)
            })
        };
        let Some(what) = matched else { continue };
        match rule.action.as_str() {
            "Ignore" => return Failure::Ignored,
            "FailIndex" => return Failure::FailsIndex,
            "Count" => return Failure::Counts,
            "FailJob" => return Failure::FailsJob(format!("{what} matching FailJob rule at index {index}")),
            _ => {}
        }
    }
    Failure::Counts
}

/// The first container, init containers last, that ended as the requirement says, with its exit code.
fn exit_code<'a>(
    status: &'a PodStatus,
    requirement: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(&'a str, i32)> {
    let containers = status.container_statuses.iter().flatten();
    let containers = containers.chain(status.init_container_statuses.iter().flatten());
    let named = |container: &&ContainerStatus| {
        requirement.container_name.as_ref().is_none_or(|name| *name == container.name)
    };
    let ended = |container: &'a ContainerStatus| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        let listed = requirement.values.contains(&code);
        let fits = match requirement.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        (code != 0 && fits).then_some((container.name.as_str(), code))
    };
    containers.filter(named).find_map(ended)
}

/// When a pod ended: by its containers, else by its readiness, else by its deletion, else its creation.
pub(crate) fn finished_at(pod: &Pod) -> Timestamp {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends: Option<Vec<Timestamp>> = containers
        .map(|container| Some(container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0))
        .collect();
    if let Some(last) = ends.and_then(|ends| ends.into_iter().max()) {
        return last;
    }
    let unready = condition(pod, "Ready").filter(|ready| ready.status == "False");
    if let Some(since) = unready.and_then(|ready| ready.last_transition_time.as_ref()) {
        return since.0;
    }
    if let Some(deletion) = &pod.metadata.deletion_timestamp {
        let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
        return deletion.0.checked_sub(grace).unwrap_or(deletion.0);
    }
    pod.created()
}

/// How a Job's pods failed lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// Failures after the last success.
    failures: u32,
    last: Option<Timestamp>,
}

impl Backoff {
    /// The record after these pods, which were not known before.
    pub(crate) fn after(self, succeeded: &[Timestamp], failed: &[Timestamp]) -> Self {
        let success = succeeded.iter().max();
        let since: Vec<_> = failed.iter().filter(|at| success.is_none_or(|success| *at > success)).collect();
        let before = if success.is_some() { Self::default() } else { self };
        let Some(last) = since.iter().max() else { return before };
        let added = u32::try_from(since.len()).unwrap_or(u32::MAX);
        Self { failures: before.failures.saturating_add(added), last: Some(**last) }
    }

    /// How long no replacement may be made; zero when it may be.
    pub(crate) fn remaining(self, now: Timestamp) -> Duration {
        let Some(last) = self.last.filter(|_| self.failures > 0) else { return Duration::ZERO };
        let wait = FIRST_WAIT.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST_WAIT);
        let elapsed = now.duration_since(last);
        let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
        Duration::try_from(wait.saturating_sub(elapsed)).unwrap_or(Duration::ZERO)
    }

    /// The record of one index, whose newest failed pod is `pod`.
    pub(crate) fn of_index(pod: &Pod) -> Self {
        Self { failures: all_index_failures(pod).saturating_add(1), last: Some(finished_at(pod)) }
    }
}

fn count(pod: &Pod, annotation: &str) -> u32 {
    let counted = pod.annotation(annotation).and_then(|text| text.parse::<i32>().ok());
    counted.and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

/// How often the pod's index failed before this pod; whatever cannot be read counts as 0.
pub(crate) fn index_failures(pod: &Pod) -> u32 {
    count(pod, INDEX_FAILURES)
}

/// The same with the failures that the policy ignores.
pub(crate) fn all_index_failures(pod: &Pod) -> u32 {
    index_failures(pod).saturating_add(count(pod, IGNORED_INDEX_FAILURES))
}

/// The annotations that carry an index's failures on to the pod that replaces `replaced`.
pub(crate) fn failure_annotations(
    policy: Option<&PodFailurePolicy>,
    replaced: Option<&Pod>,
) -> Vec<(String, String)> {
    let (mut counted, mut ignored) = (0, 0);
    if let Some(pod) = replaced {
        (counted, ignored) = (index_failures(pod), count(pod, IGNORED_INDEX_FAILURES));
        if judge(policy, pod).counts() { counted += 1 } else { ignored += 1 }
    }
    let mut annotations = vec![(INDEX_FAILURES.to_owned(), counted.to_string())];
    if ignored > 0 {
        annotations.push((IGNORED_INDEX_FAILURES.to_owned(), ignored.to_string()));
    }
    annotations
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::{at, object};
    use pretty_assertions::assert_eq;
    use serde_json::{Value, json};

    #[test]
    fn policies() {
        let check = |rules: Value, status: Value, expected: Failure| {
            let policy: PodFailurePolicy = object(json!({"rules": rules}));
            let pod = object(json!({"metadata": {"namespace": "a", "name": "p"}, "status": status}));
            assert_eq!(judge(Some(&policy), &pod), expected, "{rules}");
        };
        let exited = |name: &str, code: i32| {
            json!({"name": name, "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": code}}})
        };
        let ended = json!({"phase": "Failed", "containerStatuses": [exited("main", 42), exited("side", 0)],
            "initContainerStatuses": [exited("init", 7)], "conditions": [{"type": "DisruptionTarget", "status": "True"}]});
        let codes = |action: &str, operator: &str, values: &[i32]| json!([{"action": action, "onExitCodes": {"operator": operator, "values": values}}]);
        check(json!([]), ended.clone(), Failure::Counts);
        check(codes("Ignore", "In", &[42]), ended.clone(), Failure::Ignored);
        check(codes("FailIndex", "In", &[7]), ended.clone(), Failure::FailsIndex);
        check(codes("Ignore", "In", &[1]), ended.clone(), Failure::Counts);
        check(codes("Ignore", "NotIn", &[42, 7]), ended.clone(), Failure::Counts);
        check(codes("Count", "NotIn", &[1]), ended.clone(), Failure::Counts);
        check(
            codes("FailJob", "In", &[41, 42]),
            ended.clone(),
            Failure::FailsJob(
                "Container main for pod a/p failed with exit code 42 matching FailJob rule at index 0".into(),
            ),
        );
        check(
            json!([{"action": "Ignore", "onExitCodes": {"containerName": "side", "operator": "NotIn", "values": [5]}},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]),
            ended.clone(),
            Failure::FailsJob(
                "Pod a/p has condition DisruptionTarget matching FailJob rule at index 1".into(),
            ),
        );
        check(
            json!([{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "False"}]}]),
            ended,
            Failure::Counts,
        );
        assert_eq!(judge(None, &Pod::default()), Failure::Counts);
    }

    #[test]
    fn waits() {
        let now = at("2026-01-01T01:00:00Z");
        let ago = |seconds: i64| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap();
        let check = |record: Backoff, failures, remaining| {
            assert_eq!((record.failures, record.remaining(now).as_secs()), (failures, remaining));
        };
        let none = Backoff::default();
        check(none, 0, 0);
        check(none.after(&[], &[ago(4)]), 1, 6);
        check(none.after(&[], &[ago(10)]), 1, 0);
        check(none.after(&[], &[ago(30), ago(4)]), 2, 16);
        check(none.after(&[], &[ago(4)]).after(&[], &[ago(2)]), 2, 18);
        check(none.after(&[], &[ago(4)]).after(&[ago(3)], &[]), 0, 0);
        check(none.after(&[ago(3)], &[ago(5), ago(2)]), 1, 8);
        check(none.after(&[], &[ago(1); 40]), 40, 359);
        check(none.after(&[], &[ago(-5)]), 1, 15);
    }

    #[test]
    fn ends() {
        let check =
            |pod: Value, expected: &str| assert_eq!(finished_at(&object(pod.clone())), at(expected), "{pod}");
        let container = |ended: &str| {
            json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 1, "finishedAt": ended}}})
        };
        let running =
            json!({"name": "d", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {}});
        let (one, two) = ("2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z");
        let meta = json!({"creationTimestamp": "2026-01-01T00:00:00Z"});
        check(
            json!({"metadata": meta, "status": {"containerStatuses": [container(two), container(one)]}}),
            two,
        );
        check(
            json!({"metadata": meta, "status": {"containerStatuses": [container(two), running]}}),
            "2026-01-01T00:00:00Z",
        );
        let unready = json!([{"type": "Ready", "status": "False", "lastTransitionTime": one}]);
        check(
            json!({"metadata": meta, "status": {"containerStatuses": [running], "conditions": unready}}),
            one,
        );
        let deleted = json!({"deletionTimestamp": two, "deletionGracePeriodSeconds": 30});
        check(json!({"metadata": deleted}), "2026-01-01T00:01:30Z");
    }

    #[test]
    fn an_index_remembers() {
        let policy: PodFailurePolicy = object(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}));
        let shown = |replaced: Option<Value>| {
            let pod: Option<Pod> = replaced.map(object);
            let annotations = failure_annotations(Some(&policy), pod.as_ref());
            annotations.into_iter().map(|(_, value)| value).collect::<Vec<_>>()
        };
        let annotated = json!({INDEX_FAILURES: "2", IGNORED_INDEX_FAILURES: "x"});
        assert_eq!(shown(None), ["0"]);
        assert_eq!(shown(Some(json!({"metadata": {"annotations": annotated}}))), ["3"]);
        let disrupted = json!({"conditions": [{"type": "DisruptionTarget", "status": "True"}]});
        assert_eq!(
            shown(Some(json!({"metadata": {"annotations": annotated}, "status": disrupted}))),
            ["2", "1"]
        );
        assert_eq!(shown(Some(json!({"metadata": {"annotations": {INDEX_FAILURES: "-4"}}}))), ["1"]);
    }
}
