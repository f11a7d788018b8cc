//! Counts every finished pod exactly once, in two writes: first the pods' uids go into `uncountedTerminatedPods`, then
//! their finalizers are taken away, then the numbers grow. Whatever dies in between, the next look goes on from there.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::{Action, Look, failed_after, is_failed, is_indexed, new_condition};
use super::failure::judge;
use super::indexes::index_of;
use crate::objects::{Meta, phase};

/// A status carries at most so many uids.
const MOST_UNCOUNTED: usize = 500;

/// What became of an [`Action`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) created: i32,
    /// Of them, `removed_ready` were ready.
    pub(crate) removed: i32,
    pub(crate) removed_ready: i32,
}

/// The books of one sync.
pub(crate) struct Account {
    pub(crate) job: Job,
    /// Whether `job.status` has something to write before finalizers go.
    pub(crate) changed: bool,
    /// The pods whose finalizers go next.
    pub(crate) to_free: Vec<Arc<Pod>>,
    /// The Suspended condition changed: an event tells it.
    pub(crate) told: Option<(&'static str, &'static str)>,
    /// Uids of the pods that still have a finalizer.
    tracked: HashSet<String>,
    verdict: Option<JobCondition>,
    /// There are more finished pods than one status can carry.
    more: bool,
}

impl Look {
    /// The status after `action` went as `outcome` tells. `settled` as in [`Look::action`].
    pub(crate) fn account(mut self, action: &Action, outcome: Outcome, settled: bool) -> Account {
        let spec = self.spec();
        let before = i32::try_from(self.active.len()).unwrap_or(i32::MAX);
        let active = before + outcome.created - outcome.removed;
        let (ready, terminating) = (self.ready - outcome.removed_ready, self.terminating + outcome.removed);
        let mut told = None;
        if let Action::End(_) = action {
            // Pods may be left, or not be in the cache yet: then it is too early to say that the Job is over.
            if outcome.removed != before || !settled {
                self.verdict = None;
            }
        } else {
            let complete = match spec.completions {
                None => self.succeeded > 0 && active == 0,
                Some(completions) => self.succeeded >= completions && active == 0,
            };
            // A pod that the cache does not show yet must not outlive the Job.
            if complete && settled {
                let text = "Reached expected number of succeeded pods";
                self.verdict =
                    Some(new_condition("SuccessCriteriaMet", "CompletionsReached", text, self.now));
            } else if settled && !self.job.deleting() {
                told = self.tell_suspension(spec.suspend == Some(true));
            }
        }
        let status = self.status();
        let mut changed = told.is_some()
            || status.active.unwrap_or(0) != active
            || status.ready != Some(ready)
            || status.terminating != Some(terminating);
        status.active = Some(active).filter(|active| *active != 0);
        status.ready = Some(ready);
        status.terminating = Some(terminating);

        let open = self.pods.iter().filter(|pod| self.is_open(pod));
        let tracked: HashSet<String> = open.map(|pod| pod.uid().to_owned()).collect();
        let uncounted = self.status().uncounted_terminated_pods.clone().unwrap_or_default();
        let was_failed: HashSet<String> = uncounted.failed.into_iter().flatten().collect();
        let was_succeeded: HashSet<String> = uncounted.succeeded.into_iter().flatten().collect();
        changed |= count_freed(self.status(), &tracked);
        if is_indexed(&spec) {
            self.pods.sort_by_key(|pod| index_of(pod));
        }
        let (mut to_free, mut new_indexes, mut more) = (Vec::new(), Vec::new(), false);
        let failing = self.verdict.as_ref().is_some_and(|verdict| verdict.type_ != "SuccessCriteriaMet");
        for pod in self.pods.clone() {
            let failed = is_failed(&pod, &spec);
            if !tracked.contains(pod.uid()) || !self.may_free(&pod, failed) {
                continue;
            }
            to_free.push(pod.clone());
            let uid = pod.uid().to_owned();
            let index = self.valid_index(&pod);
            if phase(&pod) == "Succeeded" && !was_failed.contains(&uid) {
                if is_indexed(&spec) {
                    new_indexes.extend(index.filter(|index| !self.known_indexes.has(*index)));
                } else if !was_succeeded.contains(&uid) {
                    self.uncounted().0.push(uid);
                    changed = true;
                }
            } else if (failed || failing)
                && !was_failed.contains(&uid)
                && (!is_indexed(&spec) || index.is_some())
                && judge(spec.pod_failure_policy.as_ref(), &pod).counts()
            {
                self.uncounted().1.push(uid);
                changed = true;
            }
            let (succeeded, failed) = self.uncounted();
            if new_indexes.len() + succeeded.len() + failed.len() >= MOST_UNCOUNTED {
                more = true;
                break;
            }
        }
        if is_indexed(&spec) {
            changed |= !new_indexes.is_empty();
            changed |= self.write_indexes(&new_indexes);
        }
        count_freed(self.status(), &tracked);
        changed |= self.write_verdict();
        Account { changed, to_free, told, tracked, verdict: self.verdict, more, job: self.job }
    }

    fn uncounted(&mut self) -> (&mut Vec<String>, &mut Vec<String>) {
        let uncounted = self.status().uncounted_terminated_pods.get_or_insert_default();
        (uncounted.succeeded.get_or_insert_default(), uncounted.failed.get_or_insert_default())
    }

    /// A pod is done with when its end is known, or when nothing waits for it any more.
    fn may_free(&self, pod: &Pod, failed: bool) -> bool {
        if self.job.deleting() || self.verdict.is_some() || phase(pod) == "Succeeded" {
            return true;
        }
        let awaits = index_of(pod).and_then(|index| self.awaiting.get(&index));
        failed && awaits.is_none_or(|kept| kept.uid() != pod.uid())
    }

    fn write_indexes(&mut self, new: &[u32]) -> bool {
        let all = self.succeeded_indexes.with(new.iter().copied());
        let failed = self.failed_indexes.as_ref().map(ToString::to_string);
        let status = self.status();
        status.succeeded = Some(all.total()).filter(|total| *total != 0);
        let text = Some(all.to_string()).filter(|text| !text.is_empty());
        let changed = status.completed_indexes != text || status.failed_indexes != failed;
        (status.completed_indexes, status.failed_indexes) = (text, failed);
        changed
    }

    /// Puts the interim condition into the status, before any finalizer goes, and prepares the final one.
    fn write_verdict(&mut self) -> bool {
        let Some(verdict) = self.verdict.take() else { return false };
        let now = self.now;
        self.verdict = Some(match verdict.type_.as_str() {
            "FailureTarget" => failed_after(&verdict, now),
            "SuccessCriteriaMet" => {
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                new_condition("Complete", &text(&verdict.reason), &text(&verdict.message), now)
            }
            _ => verdict.clone(),
        });
        let conditions = self.status().conditions.get_or_insert_default();
        let written = |known: &JobCondition| known.type_ == verdict.type_ && known.status == verdict.status;
        let interim = verdict.type_ != "Failed" && !conditions.iter().any(written);
        if interim {
            conditions.push(verdict);
        }
        interim
    }

    /// Keeps the Suspended condition, and begins the Job's time anew when it goes on.
    fn tell_suspension(&mut self, suspended: bool) -> Option<(&'static str, &'static str)> {
        let now = self.now;
        let (status, reason, event, message) = if suspended {
            ("True", "JobSuspended", "Suspended", "Job suspended")
        } else {
            ("False", "JobResumed", "Resumed", "Job resumed")
        };
        let wanted =
            JobCondition { status: status.to_owned(), ..new_condition("Suspended", reason, message, now) };
        let job = self.status();
        let conditions = job.conditions.get_or_insert_default();
        match conditions.iter_mut().find(|condition| condition.type_ == "Suspended") {
            Some(known) if known.status == wanted.status && known.reason == wanted.reason => return None,
            Some(known) => *known = wanted,
            None if suspended => conditions.push(wanted),
            None => {
                if conditions.is_empty() {
                    job.conditions = None;
                }
                return None;
            }
        }
        if !suspended {
            job.start_time = Some(Time(now));
        }
        Some((event, message))
    }
}

impl Account {
    /// To be called when the finalizers of `freed` are gone: counts them. Returns whether there is something to write.
    pub(crate) fn count(&mut self, freed: &HashSet<String>) -> bool {
        self.tracked.retain(|uid| !freed.contains(uid));
        count_freed(self.job.status.get_or_insert_default(), &self.tracked)
    }

    /// To be called when all is counted: ends the Job if it is over, and returns the final condition for the event.
    pub(crate) fn finish(&mut self) -> Option<&JobCondition> {
        let verdict = self.verdict.as_ref().filter(|_| !self.more)?;
        let status = self.job.status.get_or_insert_default();
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let open =
            uncounted.succeeded.map_or(0, |uids| uids.len()) + uncounted.failed.map_or(0, |uids| uids.len());
        // A pod that is still terminating would outlive its Job.
        if open > 0 || status.terminating.unwrap_or(0) > 0 {
            return None;
        }
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|condition| condition.type_ != verdict.type_);
        conditions.push(verdict.clone());
        if verdict.type_ == "Complete" {
            status.completion_time.clone_from(&verdict.last_transition_time);
        }
        Some(verdict)
    }
}

/// Moves the uids of pods without finalizer from the lists to the numbers.
fn count_freed(status: &mut JobStatus, tracked: &HashSet<String>) -> bool {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let mut gone = [0, 0];
    for (list, gone) in [&mut uncounted.succeeded, &mut uncounted.failed].into_iter().zip(&mut gone) {
        let Some(uids) = list else { continue };
        let all = uids.len();
        uids.retain(|uid| tracked.contains(uid));
        *gone = i32::try_from(all - uids.len()).unwrap_or(i32::MAX);
        if uids.is_empty() {
            *list = None;
        }
    }
    for (count, gone) in [(&mut status.succeeded, gone[0]), (&mut status.failed, gone[1])] {
        if gone > 0 {
            *count = Some(count.unwrap_or(0).saturating_add(gone));
        }
    }
    gone != [0, 0]
}
