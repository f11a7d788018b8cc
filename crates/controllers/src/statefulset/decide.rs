//! What a StatefulSet's next step is: a pure function from the cached objects to writes and a status. Answers to
//! upstream's `updateStatefulSet`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};

use super::claims::{self, ClaimWork, Lookup};
use super::identity::{new_pod, ordinal, ordinals, repaired, replicas, revision};
use crate::objects::{Meta, is_available, is_finished, is_ready, phase, scaled, until_available};

/// One write, or the few that belong together.
#[derive(Debug, PartialEq)]
pub(super) enum Op {
    /// Makes a pod, its claims first.
    Create {
        pod: Box<Pod>,
        claims: ClaimWork,
    },
    /// Looks after the claims of a pod that exists.
    Claims {
        pod: Arc<Pod>,
        claims: ClaimWork,
    },
    /// Writes a pod with its identity or storage put right.
    Repair {
        pod: Box<Pod>,
        claims: ClaimWork,
    },
    Delete(Arc<Pod>),
}

/// The writes of one step.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Phases, one after the other; a failure in one ends the step.
    pub(super) phases: Vec<Vec<Op>>,
    /// Whether the writes of a phase go out in growing batches, or one by one.
    pub(super) parallel: bool,
    pub(super) status: StatefulSetStatus,
    /// Look again then, even if nothing changes.
    pub(super) again: Option<Duration>,
}

/// A revision's name and template.
#[derive(Debug, Clone)]
pub(super) struct Revision {
    pub(super) name: String,
    pub(super) template: PodTemplateSpec,
}

/// What there is to decide on.
pub(super) struct State<'a> {
    pub(super) set: &'a StatefulSet,
    pub(super) spec: &'a StatefulSetSpec,
    pub(super) current: &'a Revision,
    pub(super) update: &'a Revision,
    pub(super) collisions: i32,
    /// The set's own pods.
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) claims: Lookup<'a>,
    pub(super) now: Timestamp,
}

/// A place among the replicas.
struct Slot {
    pod: Arc<Pod>,
    /// Whether the pod exists; if not, it is what would be made.
    exists: bool,
}

/// Whether the walk over the pods goes on.
#[derive(PartialEq)]
enum Next {
    Continue,
    Stop,
}

pub(super) fn plan(state: &State<'_>) -> Plan {
    let set = state.set;
    let mut plan = Plan {
        status: state.status(),
        parallel: state.spec.pod_management_policy.as_deref() == Some("Parallel"),
        again: state.next_available(),
        ..Plan::default()
    };
    if set.deleting() {
        state.complete(&mut plan.status);
        return plan;
    }
    let (slots, condemned) = state.partition();
    if state.replicas(&slots, &mut plan) == Next::Continue
        && state.condemned(&slots, &condemned, &mut plan) == Next::Continue
        && state.strategy() != Some("OnDelete")
    {
        state.roll(&slots, &mut plan);
    }
    state.complete(&mut plan.status);
    plan
}

/// Whether writing `new` would change anything that readers see.
pub(super) fn differs(old: Option<&StatefulSetStatus>, new: &StatefulSetStatus) -> bool {
    let Some(old) = old else { return true };
    let count = |field: Option<i32>| field.unwrap_or(0);
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    new.observed_generation > old.observed_generation
        || new.replicas != old.replicas
        || count(new.current_replicas) != count(old.current_replicas)
        || count(new.ready_replicas) != count(old.ready_replicas)
        || count(new.updated_replicas) != count(old.updated_replicas)
        || count(new.available_replicas) != count(old.available_replicas)
        || count(new.collision_count) != count(old.collision_count)
        || text(&new.current_revision) != text(&old.current_revision)
        || text(&new.update_revision) != text(&old.update_revision)
}

fn is_created(pod: &Pod) -> bool {
    !phase(pod).is_empty()
}

impl State<'_> {
    fn min_ready(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn strategy(&self) -> Option<&str> {
        self.spec.update_strategy.as_ref()?.type_.as_deref()
    }

    /// How many pods, counted from the first ordinal, an update leaves alone.
    fn partition_size(&self) -> Option<i32> {
        let rolling = self.spec.update_strategy.as_ref()?.rolling_update.as_ref()?;
        Some(rolling.partition.unwrap_or(0))
    }

    fn available(&self, pod: &Pod) -> bool {
        is_available(pod, self.min_ready(), self.now)
    }

    fn running_and_available(&self, pod: &Pod) -> bool {
        phase(pod) == "Running" && self.available(pod)
    }

    fn unavailable(&self, pod: &Pod) -> bool {
        !self.available(pod) || pod.deleting()
    }

    fn outdated(&self, pod: &Pod) -> bool {
        revision(pod) != self.update.name && !pod.deleting()
    }

    fn status(&self) -> StatefulSetStatus {
        let count = |test: &dyn Fn(&Pod) -> bool| {
            i32::try_from(self.pods.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
        };
        let ready = |pod: &Pod| phase(pod) == "Running" && is_ready(pod);
        let stays = |pod: &Pod| is_created(pod) && !pod.deleting();
        StatefulSetStatus {
            observed_generation: Some(self.set.generation()),
            replicas: count(&is_created),
            ready_replicas: Some(count(&ready)),
            available_replicas: Some(count(&|pod| ready(pod) && self.available(pod))),
            current_replicas: Some(count(&|pod| stays(pod) && revision(pod) == self.current.name)),
            updated_replicas: Some(count(&|pod| stays(pod) && revision(pod) == self.update.name)),
            current_revision: Some(self.current.name.clone()),
            update_revision: Some(self.update.name.clone()),
            collision_count: Some(self.collisions),
            conditions: None,
        }
    }

    /// When all pods are new and ready, the update is over: its revision becomes the current one.
    fn complete(&self, status: &mut StatefulSetStatus) {
        let wanted = replicas(self.set);
        if self.strategy() == Some("RollingUpdate")
            && status.updated_replicas == Some(wanted)
            && status.ready_replicas == Some(wanted)
            && status.replicas == wanted
        {
            status.current_replicas = status.updated_replicas;
            status.current_revision = status.update_revision.clone();
        }
    }

    fn next_available(&self) -> Option<Duration> {
        let min_ready = self.min_ready();
        let waits = self.pods.iter().filter_map(|pod| until_available(pod, min_ready, self.now));
        waits.filter(|wait| !wait.is_zero()).min()
    }

    /// The replicas by ordinal, with pods to be made in the gaps, and the pods outside of the ordinals, highest first.
    fn partition(&self) -> (Vec<Slot>, Vec<Arc<Pod>>) {
        let range = ordinals(self.set);
        let mut present: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        let mut condemned = Vec::new();
        for pod in self.pods {
            match ordinal(pod) {
                Some(ordinal) if range.contains(&ordinal) => {
                    present.insert(ordinal, pod.clone());
                }
                Some(_) => condemned.push(pod.clone()),
                None => {}
            }
        }
        condemned.sort_by_key(|pod| std::cmp::Reverse(ordinal(pod)));
        let slots = range.map(|ordinal| match present.remove(&ordinal) {
            Some(pod) => Slot { pod, exists: true },
            None => Slot { pod: Arc::new(self.missing(ordinal)), exists: false },
        });
        (slots.collect(), condemned)
    }

    /// A pod that is lost in the middle of an update comes back as it was, if the update has not reached it.
    fn missing(&self, ordinal: i32) -> Pod {
        let place = ordinal - ordinals(self.set).start;
        let current_replicas =
            self.set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0);
        let keeps_old = match self.partition_size() {
            Some(partition) => place < partition,
            None => self.strategy() == Some("RollingUpdate") && place < current_replicas,
        };
        let Revision { name, template } = if keeps_old { self.current } else { self.update };
        new_pod(self.set, template, name, ordinal)
    }

    /// Makes what is missing and replaces what has ended. In order, each pod waits for the one before it.
    fn replicas(&self, slots: &[Slot], plan: &mut Plan) -> Next {
        let mut ops = Vec::new();
        let mut next = Next::Continue;
        for slot in slots {
            if self.replica(slot, !plan.parallel, &mut ops) == Next::Stop && !plan.parallel {
                next = Next::Stop;
                break;
            }
        }
        plan.phases.push(ops);
        next
    }

    fn replica(&self, slot: &Slot, in_order: bool, ops: &mut Vec<Op>) -> Next {
        let pod = &slot.pod;
        if is_finished(pod) {
            // The next one can only be made when this one is gone.
            if !pod.deleting() {
                ops.push(Op::Delete(pod.clone()));
            }
            return Next::Stop;
        }
        if !slot.exists {
            if !claims::is_stale(self.set, pod, self.claims) {
                let claims = claims::for_running(self.set, pod, self.claims);
                ops.push(Op::Create { pod: Box::new((**pod).clone()), claims });
            }
            return Next::Stop;
        }
        let mut claims = ClaimWork::default();
        if phase(pod) == "Pending" {
            claims = claims::for_running(self.set, pod, self.claims);
        }
        let waits = in_order && (pod.deleting() || !self.running_and_available(pod));
        if !waits {
            if claims.is_empty() {
                claims = claims::for_retention(self.set, pod, self.claims);
            }
            if let Some(repaired) = repaired(self.set, pod) {
                claims = claims::for_running(self.set, pod, self.claims);
                ops.push(Op::Repair { pod: Box::new(repaired), claims });
                return Next::Continue;
            }
        }
        if !claims.is_empty() {
            ops.push(Op::Claims { pod: pod.clone(), claims });
        }
        if waits { Next::Stop } else { Next::Continue }
    }

    /// Deletes the pods that scaling down leaves over, the highest ordinal first. In order, one at a time and only while
    /// all others are well; the one that is not well may go itself.
    fn condemned(&self, slots: &[Slot], condemned: &[Arc<Pod>], plan: &mut Plan) -> Next {
        let claims = condemned.iter().filter_map(|pod| {
            let claims = claims::for_retention(self.set, pod, self.claims);
            (!claims.is_empty()).then(|| Op::Claims { pod: pod.clone(), claims })
        });
        plan.phases.push(claims.collect());
        let all = slots.iter().map(|slot| &slot.pod).chain(condemned.iter().rev());
        let first_unavailable = all.into_iter().find(|pod| self.unavailable(pod));
        let in_order = !plan.parallel;
        let mut ops = Vec::new();
        let mut next = Next::Continue;
        for pod in condemned {
            let is_first = first_unavailable.is_some_and(|first| Arc::ptr_eq(first, pod));
            let blocked = pod.deleting() || (!self.running_and_available(pod) && !is_first);
            if in_order {
                next = Next::Stop;
            }
            if !(pod.deleting() || in_order && blocked) {
                ops.push(Op::Delete(pod.clone()));
            }
            if in_order {
                break;
            }
        }
        plan.phases.push(ops);
        next
    }

    /// Replaces pods of other revisions, the highest ordinal first.
    fn roll(&self, slots: &[Slot], plan: &mut Plan) {
        let partition = usize::try_from(self.partition_size().unwrap_or(0)).unwrap_or(0);
        let candidates = slots.get(partition..).unwrap_or_default();
        let rolling =
            self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let doomed = match rolling.and_then(|rolling| rolling.max_unavailable.as_ref()) {
            None => self.roll_one(candidates),
            Some(limit) => {
                let limit = scaled(limit, replicas(self.set), false).max(1);
                self.roll_many(slots, candidates, usize::try_from(limit).unwrap_or(1), plan.parallel)
            }
        };
        if let Some(current) = &mut plan.status.current_replicas {
            *current = (*current - i32::try_from(doomed.len()).unwrap_or(0)).max(0);
        }
        plan.phases.push(doomed.into_iter().map(Op::Delete).collect());
    }

    /// One pod, unless an earlier one of the update is not well yet.
    fn roll_one(&self, candidates: &[Slot]) -> Vec<Arc<Pod>> {
        for slot in candidates.iter().rev() {
            if self.outdated(&slot.pod) {
                return vec![slot.pod.clone()];
            }
            if self.unavailable(&slot.pod) {
                break;
            }
        }
        Vec::new()
    }

    /// As many as may be unavailable at a time. In parallel, old pods that are of no use anyway cost nothing.
    fn roll_many(&self, slots: &[Slot], candidates: &[Slot], limit: usize, parallel: bool) -> Vec<Arc<Pod>> {
        let unavailable = slots.iter().filter(|slot| self.unavailable(&slot.pod)).count();
        let outdated: Vec<_> =
            candidates.iter().rev().map(|slot| &slot.pod).filter(|pod| self.outdated(pod)).cloned().collect();
        let room = limit.saturating_sub(unavailable);
        if !parallel {
            return outdated.into_iter().take(room).collect();
        }
        let (useful, useless): (Vec<_>, Vec<_>) = outdated.into_iter().partition(|pod| self.available(pod));
        useless.into_iter().chain(useful.into_iter().take(room)).collect()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
