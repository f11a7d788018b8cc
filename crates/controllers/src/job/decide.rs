//! What the rules say about a Job and its pods at one moment: how it stands ([`Look`]), and what to do about its pods
//! ([`Action`]). Counting is the matter of [`super::account`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::failure::{Backoff, Failure, all_index_failures, finished_at, index_failures, judge};
use super::indexes::{Indexes, index_of, success};
use super::surplus::pods_to_remove;
use crate::objects::{Meta, is_active, is_ready, is_terminating, phase};

/// Keeps a finished pod until its end is in the Job's status.
pub(crate) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(crate) const CONTROLLER: &str = "kubernetes.io/job-controller";
/// No more pods than this are created or deleted in one go.
const BURST: usize = 500;

pub(crate) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

pub(crate) fn condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.iter().flatten();
    conditions.into_iter().find(|condition| condition.type_ == kind && condition.status == "True")
}

/// Complete or Failed: nothing is done about it any more.
pub(crate) fn is_finished(job: &Job) -> bool {
    condition(job, "Complete").or_else(|| condition(job, "Failed")).is_some()
}

/// Whether another controller takes care of the Job.
pub(crate) fn is_managed_elsewhere(job: &Job) -> bool {
    let managed_by = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    managed_by.is_some_and(|name| name != CONTROLLER)
}

pub(crate) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

/// Whether a terminating pod keeps its place until it has ended.
fn replaces_failed_only(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Failed, or (unless the replacement waits for the end) on its way out.
pub(crate) fn is_failed(pod: &Pod, spec: &JobSpec) -> bool {
    match phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pod.deleting() && !replaces_failed_only(spec),
    }
}

pub(crate) fn new_condition(kind: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// How a Job stands.
pub(crate) struct Look {
    /// The Job, whose status is being brought up to date.
    pub(super) job: Job,
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) active: Vec<Arc<Pod>>,
    /// Pods whose finalizer was taken away, though the cache does not show it yet.
    pub(super) freed: HashSet<String>,
    pub(super) ready: i32,
    pub(super) terminating: i32,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    pub(super) known_indexes: Indexes,
    pub(super) succeeded_indexes: Indexes,
    pub(super) failed_indexes: Option<Indexes>,
    /// The newest failed pod of each index that awaits a replacement. It is kept, because its annotations carry the
    /// number of failures.
    pub(super) awaiting: HashMap<u32, Arc<Pod>>,
    /// What ends the Job, when something does: SuccessCriteriaMet, FailureTarget or, when the latter was written before, Failed.
    pub(super) verdict: Option<JobCondition>,
    /// To be remembered when the status has been written.
    pub(crate) backoff: Backoff,
    /// When the deadline passes.
    pub(crate) again: Option<Duration>,
    pub(super) now: Timestamp,
}

/// What to do about the pods.
#[derive(Debug)]
pub(crate) enum Action {
    Nothing,
    /// The Job is over: delete these, but keep their finalizers, for they are counted as failed.
    End(Vec<Arc<Pod>>),
    /// Free these of their finalizers and delete them; they never count.
    Remove(Vec<Arc<Pod>>),
    /// Create this many pods, or one for each of these indexes.
    Create(usize),
    CreateIndexes(Vec<u32>),
    /// Pods are missing, but the back-off holds for so long.
    Wait(Duration),
}

impl Look {
    /// `backoff` is what was remembered when the last status was written.
    pub(crate) fn at(
        mut job: Job,
        pods: Vec<Arc<Pod>>,
        freed: HashSet<String>,
        backoff: Backoff,
        now: Timestamp,
    ) -> Self {
        job.status.get_or_insert_default().uncounted_terminated_pods.get_or_insert_default();
        let active: Vec<_> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
        let count = |test: &dyn Fn(&Pod) -> bool, pods: &[Arc<Pod>]| {
            i32::try_from(pods.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
        };
        let mut look = Self {
            ready: count(&is_ready, &active),
            terminating: count(&is_terminating, &pods),
            active,
            pods,
            freed,
            succeeded: 0,
            failed: 0,
            known_indexes: Indexes::default(),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            awaiting: HashMap::new(),
            verdict: None,
            backoff,
            again: None,
            now,
            job,
        };
        look.count();
        look.judge();
        look.look_at_indexes();
        look
    }

    pub(super) fn spec(&self) -> JobSpec {
        self.job.spec.clone().unwrap_or_default()
    }

    pub(super) fn status(&mut self) -> &mut JobStatus {
        self.job.status.get_or_insert_default()
    }

    /// `spec.completions` of an Indexed Job.
    pub(super) fn completions(&self) -> u32 {
        let completions = self.job.spec.as_ref().and_then(|spec| spec.completions);
        u32::try_from(completions.unwrap_or(0)).unwrap_or(0)
    }

    /// The index of a pod, when it is one of the Job's.
    pub(super) fn valid_index(&self, pod: &Pod) -> Option<u32> {
        index_of(pod).filter(|index| *index < self.completions())
    }

    /// Whether the pod still waits for being counted.
    pub(super) fn is_open(&self, pod: &Pod) -> bool {
        is_tracked(pod) && !self.freed.contains(pod.uid())
    }

    fn count(&mut self) {
        let spec = self.spec();
        let status = self.job.status.clone().unwrap_or_default();
        let uncounted = status.uncounted_terminated_pods.unwrap_or_default();
        let (succeeded, failed) =
            (uncounted.succeeded.unwrap_or_default(), uncounted.failed.unwrap_or_default());
        let fresh = |pod: &&Arc<Pod>, known: &[String]| {
            self.is_open(pod)
                && !known.iter().any(|uid| uid == pod.uid())
                && (!is_indexed(&spec) || self.valid_index(pod).is_some())
        };
        let new_succeeded: Vec<_> =
            self.pods.iter().filter(|pod| phase(pod) == "Succeeded" && fresh(pod, &succeeded)).collect();
        let new_failed: Vec<_> =
            self.pods.iter().filter(|pod| is_failed(pod, &spec) && fresh(pod, &failed)).collect();
        let counting =
            new_failed.iter().filter(|pod| judge(spec.pod_failure_policy.as_ref(), pod).counts()).count();
        let sum = |counted: Option<i32>, uncounted: usize, new: usize| {
            counted.unwrap_or(0).saturating_add(i32::try_from(uncounted + new).unwrap_or(i32::MAX))
        };
        let ends = |pods: &[&Arc<Pod>]| pods.iter().map(|pod| finished_at(pod)).collect::<Vec<_>>();
        let backoff = self.backoff.after(&ends(&new_succeeded), &ends(&new_failed));
        let counts = (
            sum(status.succeeded, succeeded.len(), new_succeeded.len()),
            sum(status.failed, failed.len(), counting),
        );
        (self.succeeded, self.failed) = counts;
        self.backoff = backoff;
        if status.start_time.is_none() && !is_suspended(&spec) {
            let now = Time(self.now);
            self.status().start_time = Some(now);
        }
    }

    /// What ends the Job whatever its indexes are.
    fn judge(&mut self) {
        let spec = self.spec();
        let failing = |reason, message: &str| Some(new_condition("FailureTarget", reason, message, self.now));
        let policy_message = || {
            let failed = self.pods.iter().filter(|pod| is_failed(pod, &spec));
            failed.into_iter().find_map(|pod| match judge(spec.pod_failure_policy.as_ref(), pod) {
                Failure::FailsJob(message) => Some(message),
                _ => None,
            })
        };
        self.verdict = if let Some(met) = condition(&self.job, "SuccessCriteriaMet") {
            Some(met.clone())
        } else if let Some(target) = condition(&self.job, "FailureTarget") {
            Some(failed_after(target, self.now))
        } else if let Some(message) = policy_message() {
            failing("PodFailurePolicy", &message)
        } else if self.failed > spec.backoff_limit.unwrap_or(6) || self.restarted_too_often(&spec) {
            failing("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        } else {
            let started = self.job.status.as_ref().and_then(|status| status.start_time.as_ref());
            let left = match (spec.active_deadline_seconds, started) {
                (Some(seconds), Some(start)) if !is_suspended(&spec) => {
                    let left = start.0.as_nanosecond() + i128::from(seconds) * 1_000_000_000
                        - self.now.as_nanosecond();
                    Some(left.max(0))
                }
                _ => None,
            };
            self.again = left.and_then(|left| u64::try_from(left).ok()).map(Duration::from_nanos);
            match left {
                Some(0) => failing("DeadlineExceeded", "Job was active longer than specified deadline"),
                _ => None,
            }
        };
    }

    /// Containers that are restarted in place count like failed pods.
    fn restarted_too_often(&self, spec: &JobSpec) -> bool {
        let policy = spec.template.spec.as_ref().and_then(|pod| pod.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let running = self.pods.iter().filter(|pod| matches!(phase(pod), "Running" | "Pending"));
        let restarts: i64 = running
            .filter_map(|pod| pod.status.as_ref())
            .flat_map(|status| {
                let init = status.init_container_statuses.iter().flatten();
                init.chain(status.container_statuses.iter().flatten())
            })
            .map(|container| i64::from(container.restart_count))
            .sum();
        restarts >= i64::from(spec.backoff_limit.unwrap_or(6)).max(1)
    }

    fn look_at_indexes(&mut self) {
        let spec = self.spec();
        if !is_indexed(&spec) {
            return;
        }
        let completions = self.completions();
        let status = self.job.status.clone().unwrap_or_default();
        self.known_indexes =
            Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), completions);
        let tracked = || self.pods.iter().filter(|pod| is_tracked(pod));
        let done = tracked().filter(|pod| phase(pod) == "Succeeded").filter_map(|pod| self.valid_index(pod));
        self.succeeded_indexes = self.known_indexes.with(done);
        self.succeeded = self.succeeded_indexes.total();
        if let Some(limit) = spec.backoff_limit_per_index {
            let known = Indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), completions);
            let lost =
                tracked().filter(|pod| is_lost(pod, &spec, limit)).filter_map(|pod| self.valid_index(pod));
            let lost = known.with(lost);
            let (failed, all) = (lost.total(), lost.total().saturating_add(self.succeeded));
            self.awaiting = self.awaiting_replacement(&spec, &lost);
            self.failed_indexes = Some(lost);
            if self.verdict.is_none() {
                self.verdict = if spec.max_failed_indexes.is_some_and(|limit| failed > limit) {
                    let text = "Job has exceeded the specified maximal number of failed indexes";
                    Some(new_condition("FailureTarget", "MaxFailedIndexesExceeded", text, self.now))
                } else if failed > 0 && all >= spec.completions.unwrap_or(0) {
                    Some(new_condition("FailureTarget", "FailedIndexes", "Job has failed indexes", self.now))
                } else {
                    None
                };
            }
        }
        if self.verdict.is_none()
            && let Some(policy) = &spec.success_policy
            && let Some(message) = success(policy, completions, &self.succeeded_indexes)
        {
            self.verdict = Some(new_condition("SuccessCriteriaMet", "SuccessPolicy", &message, self.now));
        }
    }

    fn awaiting_replacement(&self, spec: &JobSpec, lost: &Indexes) -> HashMap<u32, Arc<Pod>> {
        let running: HashSet<u32> = self.active.iter().filter_map(|pod| index_of(pod)).collect();
        let mut newest: HashMap<u32, Arc<Pod>> = HashMap::new();
        for pod in self.pods.iter().filter(|pod| self.is_open(pod) && is_failed(pod, spec)) {
            let Some(index) = self.valid_index(pod) else { continue };
            if self.succeeded_indexes.has(index) || lost.has(index) || running.contains(&index) {
                continue;
            }
            let age = |pod: &Pod| (all_index_failures(pod), finished_at(pod));
            let newer = newest.get(&index).is_none_or(|known| {
                let (known, this) = (age(known), age(pod));
                known.0 <= this.0 && known.1 <= this.1
            });
            if newer {
                newest.insert(index, pod.clone());
            }
        }
        newest
    }

    /// What to do now. `settled` says that the cache shows everything that was done before.
    pub(crate) fn action(&self, settled: bool) -> Action {
        if self.verdict.is_some() {
            Action::End(self.active.clone())
        } else if settled && !self.job.deleting() {
            self.manage()
        } else {
            Action::Nothing
        }
    }

    fn manage(&self) -> Action {
        let spec = self.spec();
        let completions = is_indexed(&spec).then(|| self.completions());
        if is_suspended(&spec) {
            let all = pods_to_remove(&self.active, completions, self.active.len(), self.now);
            return if all.is_empty() { Action::Nothing } else { Action::Remove(all) };
        }
        let active = i32::try_from(self.active.len()).unwrap_or(i32::MAX);
        let parallelism = spec.parallelism.unwrap_or(1);
        let wanted = match spec.completions {
            // The first success says that the work is done: the others may finish, but none is started.
            None if self.succeeded > 0 => active,
            None => parallelism,
            Some(completions) => (completions - self.succeeded).min(parallelism).max(0),
        };
        let surplus = usize::try_from(active - wanted).unwrap_or(0);
        let mut remove = pods_to_remove(&self.active, completions, surplus, self.now);
        remove.truncate(BURST);
        if !remove.is_empty() {
            return Action::Remove(remove);
        }
        let leaving = if replaces_failed_only(&spec) { self.terminating } else { 0 };
        let missing = usize::try_from(wanted - leaving - active).unwrap_or(0).min(BURST);
        if missing == 0 {
            return Action::Nothing;
        }
        if spec.backoff_limit_per_index.is_none() {
            let wait = self.backoff.remaining(self.now);
            if !wait.is_zero() {
                return Action::Wait(wait);
            }
        }
        let Some(completions) = completions else { return Action::Create(missing) };
        let pending = self.pending_indexes(&spec, missing, completions);
        let wait = |index: &u32| {
            self.awaiting.get(index).map_or(Duration::ZERO, |pod| Backoff::of_index(pod).remaining(self.now))
        };
        let due: Vec<_> = pending.iter().copied().filter(|index| wait(index).is_zero()).collect();
        match pending.iter().map(wait).min() {
            None => Action::Nothing,
            Some(least) if due.is_empty() => Action::Wait(least),
            Some(_) => Action::CreateIndexes(due),
        }
    }

    fn pending_indexes(&self, spec: &JobSpec, count: usize, completions: u32) -> Vec<u32> {
        let mut taken = self.succeeded_indexes.with(self.active.iter().filter_map(|pod| index_of(pod)));
        if replaces_failed_only(spec) {
            let leaving = self.pods.iter().filter(|pod| is_terminating(pod));
            taken = taken.with(leaving.filter_map(|pod| index_of(pod)));
        }
        if let Some(failed) = &self.failed_indexes {
            taken = taken.union(failed);
        }
        taken.first_missing(count, completions)
    }
}

/// The Failed condition that follows an interim FailureTarget.
pub(super) fn failed_after(target: &JobCondition, now: Timestamp) -> JobCondition {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    new_condition("Failed", &text(&target.reason), &text(&target.message), now)
}

/// Whether a pod's failure loses its index.
fn is_lost(pod: &Pod, spec: &JobSpec, limit: i32) -> bool {
    if !is_failed(pod, spec) {
        return false;
    }
    match judge(spec.pod_failure_policy.as_ref(), pod) {
        Failure::FailsIndex => true,
        judged => judged.counts() && i64::from(index_failures(pod)) >= i64::from(limit),
    }
}
