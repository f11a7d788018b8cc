//! What a Deployment's next step is: a pure function from the cached objects to one plan of writes. Answers to
//! upstream's `syncDeployment` with its `sync.go`, `rolling.go`, `recreate.go` and `progress.go`.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::conditions::{self, AVAILABLE, COMPLETE, PROGRESSING, REPLICA_FAILURE, TIMED_OUT};
use super::sets::{self, REVISION, Shape, actual, available, size};
use crate::objects::{Meta, controller_ref};

/// A change of one set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Update {
    /// As it shall be.
    pub(crate) set: ReplicaSet,
    /// What to tell when its size changes.
    pub(crate) event: Option<String>,
}

/// The writes of one step, in this order.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) create: Option<Update>,
    pub(crate) updates: Vec<Update>,
    /// Sets beyond the history limit.
    pub(crate) deletes: Vec<ReplicaSet>,
    /// The Deployment with a new status, and maybe a new revision annotation.
    pub(crate) status: Option<Deployment>,
    /// Look again then, even if nothing changes.
    pub(crate) again: Option<Duration>,
}

/// Decides for `deployment` and the sets it controls. `pods_of_others` tells whether any pod of a set other than the
/// given one (by uid) may still run.
pub(crate) fn plan(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    sets: Vec<ReplicaSet>,
    pods_of_others: impl Fn(Option<&str>) -> bool,
    now: Timestamp,
) -> Plan {
    let mut step = Step {
        original: deployment,
        spec,
        shape: Shape::of(spec),
        deployment: deployment.clone(),
        new: sets::find_new(spec, &sets),
        sets: sets.into_iter().map(|set| Candidate { was: Some(size(&set)), set, changed: false }).collect(),
        plan: Plan::default(),
        now,
    };
    step.run(pods_of_others);
    step.finish()
}

/// Zero and absent are the same on the wire; comparing needs one form.
fn unless_zero(count: i32) -> Option<i32> {
    Some(count).filter(|count| *count != 0)
}

/// How many pods of a set can be counted on: one that is about to be removed cannot.
fn dependable(set: &ReplicaSet) -> i32 {
    available(set).min(size(set))
}

/// Whether the set's status speaks of its spec as it is now.
fn is_observed(set: &ReplicaSet) -> bool {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
    observed >= set.generation()
}

struct Candidate {
    set: ReplicaSet,
    /// Its size in the cache; `None` for a set that does not exist yet.
    was: Option<i32>,
    changed: bool,
}

struct Step<'a> {
    original: &'a Deployment,
    spec: &'a DeploymentSpec,
    shape: Shape,
    /// The working copy: its status and annotations move with the decisions.
    deployment: Deployment,
    sets: Vec<Candidate>,
    /// Which of `sets` has the template of now.
    new: Option<usize>,
    plan: Plan,
    now: Timestamp,
}

impl Step<'_> {
    fn run(&mut self, pods_of_others: impl Fn(Option<&str>) -> bool) {
        if self.original.deleting() {
            return self.sync_status();
        }
        self.note_pause();
        if self.shape.paused {
            self.find_new(false);
            self.scale();
            self.clean_up();
            return self.sync_status();
        }
        if self.is_scaling() {
            self.find_new(false);
            self.scale();
            return self.sync_status();
        }
        if self.shape.rolling {
            self.roll()
        } else {
            self.recreate(pods_of_others)
        }
        self.sync_rollout_status();
    }

    fn status(&mut self) -> &mut DeploymentStatus {
        self.deployment.status.get_or_insert_default()
    }

    fn progress(&mut self, status: &str, reason: &str, message: String) {
        let condition = conditions::new(PROGRESSING, status, reason, message, self.now);
        conditions::set(self.status(), condition);
    }

    /// A pause stops the clock of the progress deadline.
    fn note_pause(&mut self) {
        if self.shape.deadline.is_none() {
            return;
        }
        let reason = conditions::reason(self.status(), PROGRESSING).map(str::to_owned);
        let noted = reason.as_deref() == Some("DeploymentPaused");
        if reason.as_deref() == Some(TIMED_OUT) {
            // What was stuck before stays reported as stuck.
        } else if self.shape.paused && !noted {
            self.progress("Unknown", "DeploymentPaused", "Deployment is paused".to_owned());
        } else if !self.shape.paused && noted {
            self.progress("Unknown", "DeploymentResumed", "Deployment is resumed".to_owned());
        }
    }

    /// Brings the newest set's revision up to date; makes the set when there is none and `create`.
    fn find_new(&mut self, create: bool) {
        let old = self.sets.iter().enumerate().filter(|(index, _)| Some(*index) != self.new);
        let revision = old.map(|(_, candidate)| sets::revision(&candidate.set)).max().unwrap_or(0) + 1;
        if let Some(index) = self.new {
            let candidate = &mut self.sets[index];
            candidate.changed |= sets::annotate_new(&mut candidate.set, &self.deployment, revision);
            if let Some(spec) = &mut candidate.set.spec
                && spec.min_ready_seconds.unwrap_or(0) != self.spec.min_ready_seconds.unwrap_or(0)
            {
                spec.min_ready_seconds = self.spec.min_ready_seconds;
                candidate.changed = true;
            }
            let revision = sets::revision(&candidate.set);
            let name = candidate.set.name().to_owned();
            self.set_revision(revision);
            if self.shape.deadline.is_some() && conditions::get(self.status(), PROGRESSING).is_none() {
                self.progress("True", "FoundNewReplicaSet", format!("Found new replica set \"{name}\""));
            }
            return;
        }
        if !create {
            return;
        }
        let mut set = self.new_set();
        sets::annotate_new(&mut set, &self.deployment, revision);
        sets::annotate_size(&mut set, &self.shape);
        let name = set.name().to_owned();
        self.sets.push(Candidate { set, was: None, changed: true });
        self.new = Some(self.sets.len() - 1);
        let count = self.new_size(self.sets.len() - 1);
        if let Some(spec) = self.sets.last_mut().and_then(|candidate| candidate.set.spec.as_mut()) {
            spec.replicas = Some(count);
        }
        self.set_revision(revision);
        if self.shape.deadline.is_some() {
            self.progress("True", "NewReplicaSetCreated", format!("Created new replica set \"{name}\""));
        }
    }

    fn new_set(&mut self) -> ReplicaSet {
        let collisions = self.status().collision_count;
        let hash = sets::template_hash(&self.spec.template, collisions);
        let mut template = self.spec.template.clone();
        let labels = sets::with_hash(template.metadata.as_ref().and_then(|meta| meta.labels.as_ref()), &hash);
        template.metadata.get_or_insert_default().labels = Some(labels.clone());
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(sets::set_name(self.original.name(), &hash)),
                namespace: self.original.metadata.namespace.clone(),
                labels: Some(labels),
                owner_references: Some(vec![controller_ref(self.original)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector: sets::selector_with_hash(&self.spec.selector, &hash),
                template: Some(template),
            }),
            status: None,
        }
    }

    fn set_revision(&mut self, revision: i64) {
        if revision > 0 {
            let annotations = self.deployment.metadata.annotations.get_or_insert_default();
            annotations.insert(REVISION.to_owned(), revision.to_string());
        }
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(|candidate| size(&candidate.set)).sum()
    }

    /// Old sets with pods, in the given order.
    fn old_active(&self) -> Vec<usize> {
        let mut old: Vec<_> = (0..self.sets.len())
            .filter(|index| Some(*index) != self.new && size(&self.sets[*index].set) > 0)
            .collect();
        old.sort_by(|a, b| sets::by_age(&self.sets[*a].set, &self.sets[*b].set));
        old
    }

    /// Resizes a set. Returns whether its size changed.
    fn resize(&mut self, index: usize, replicas: i32) -> bool {
        let candidate = &mut self.sets[index];
        let resized = size(&candidate.set) != replicas;
        candidate.changed |= sets::annotate_size(&mut candidate.set, &self.shape) || resized;
        if let Some(spec) = candidate.set.spec.as_mut() {
            spec.replicas = Some(replicas);
        }
        resized
    }

    fn new_size(&self, index: usize) -> i32 {
        let current = size(&self.sets[index].set);
        if !self.shape.rolling {
            return self.shape.replicas;
        }
        let room = self.shape.max_total() - self.total();
        if room <= 0 { current } else { current + room.min(self.shape.replicas - current) }
    }

    /// The user changed `replicas`: some set with pods was scaled for another number.
    fn is_scaling(&self) -> bool {
        let active = self.sets.iter().map(|candidate| &candidate.set).filter(|set| size(set) > 0);
        active.filter_map(sets::desired_annotation).any(|desired| desired != self.shape.replicas)
    }

    fn scale(&mut self) {
        let mut active: Vec<_> =
            (0..self.sets.len()).filter(|index| size(&self.sets[*index].set) > 0).collect();
        let only = match active[..] {
            [] => self.new.or_else(|| {
                (0..self.sets.len()).max_by(|a, b| sets::by_age(&self.sets[*a].set, &self.sets[*b].set))
            }),
            [one] => Some(one),
            _ => None,
        };
        if let Some(index) = only {
            if size(&self.sets[index].set) != self.shape.replicas {
                self.resize(index, self.shape.replicas);
            }
            return;
        }
        if active.is_empty() {
            return;
        }
        if self.new.is_some_and(|index| self.is_saturated(&self.sets[index].set)) {
            for index in self.old_active() {
                self.resize(index, 0);
            }
            return;
        }
        if !self.shape.rolling {
            return;
        }
        // In the middle of a rollout the change is spread over the sets in proportion to their sizes.
        let allowed = if self.shape.replicas > 0 { self.shape.max_total() } else { 0 };
        let to_add = allowed - self.total();
        let order = if to_add > 0 { sets::by_size_newer } else { sets::by_size_older };
        active.sort_by(|a, b| order(&self.sets[*a].set, &self.sets[*b].set));
        let mut added = 0;
        let mut sizes = Vec::with_capacity(active.len());
        for index in &active {
            let share = self.share(&self.sets[*index].set, to_add, added);
            sizes.push(size(&self.sets[*index].set) + share);
            added += share;
        }
        // Rounding leaves something over; the largest set takes it.
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (index, replicas) in active.into_iter().zip(sizes) {
            self.resize(index, replicas);
        }
    }

    fn is_saturated(&self, new: &ReplicaSet) -> bool {
        let wanted = self.shape.replicas;
        size(new) == wanted && sets::desired_annotation(new) == Some(wanted) && available(new) == wanted
    }

    fn share(&self, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
        if size(set) == 0 || to_add == 0 || to_add == added {
            return 0;
        }
        let share = if self.shape.replicas == 0 {
            -size(set)
        } else {
            let status_replicas =
                self.original.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
            let before = sets::max_annotation(set).filter(|max| *max != 0).unwrap_or(status_replicas);
            if before == 0 {
                0
            } else {
                let scaled = f64::from(size(set)) * f64::from(self.shape.max_total()) / f64::from(before);
                // Within i32: both factors are, and their quotient is a pod count.
                #[allow(clippy::cast_possible_truncation)]
                let rounded = scaled.round() as i32;
                rounded - size(set)
            }
        };
        let allowed = to_add - added;
        if to_add > 0 { share.min(allowed) } else { share.max(allowed) }
    }

    fn roll(&mut self) {
        self.find_new(true);
        let Some(new) = self.new else { return };
        if self.sets[new].was.is_some() && self.resize_new(new) {
            return;
        }
        if self.shrink_old(new) {
            return;
        }
        if self.is_complete() {
            self.clean_up();
        }
    }

    fn is_complete(&mut self) -> bool {
        let status = self.status().clone();
        conditions::is_complete(self.original, &self.shape, &status)
    }

    fn resize_new(&mut self, new: usize) -> bool {
        let current = size(&self.sets[new].set);
        if current == self.shape.replicas {
            return false;
        }
        let wanted = if current > self.shape.replicas { self.shape.replicas } else { self.new_size(new) };
        // Nothing to add means nothing to write, so that a rollout that waits is silent.
        wanted != current && self.resize(new, wanted)
    }

    fn shrink_old(&mut self, new: usize) -> bool {
        let old = self.old_active();
        if old.is_empty() {
            return false;
        }
        let active = self.sets.iter().map(|candidate| &candidate.set).filter(|set| size(set) > 0);
        if !active.into_iter().all(is_observed) {
            // A status may tell of pods from before the set was resized; its own controller reports in a moment.
            return false;
        }
        let min_available = self.shape.replicas - self.shape.max_unavailable;
        let new_unavailable = size(&self.sets[new].set) - dependable(&self.sets[new].set);
        let most = self.total() - min_available - new_unavailable;
        if most <= 0 {
            return false;
        }
        let mut shrunk = 0;
        // Pods that serve nobody first: they may block the rollout.
        for index in &old {
            let set = &self.sets[*index].set;
            let unhealthy = size(set) - dependable(set);
            if shrunk >= most {
                break;
            }
            if unhealthy <= 0 {
                continue;
            }
            let count = unhealthy.min(most - shrunk);
            let left = size(set) - count;
            self.resize(*index, left);
            shrunk += count;
        }
        let available_total: i32 = self.sets.iter().map(|candidate| dependable(&candidate.set)).sum();
        let mut spare = available_total - min_available;
        for index in &old {
            let current = size(&self.sets[*index].set);
            if spare <= 0 {
                break;
            }
            if current == 0 {
                continue;
            }
            let count = current.min(spare);
            self.resize(*index, current - count);
            spare -= count;
            shrunk += count;
        }
        shrunk > 0
    }

    fn recreate(&mut self, pods_of_others: impl Fn(Option<&str>) -> bool) {
        self.find_new(false);
        let old = self.old_active();
        if !old.is_empty() {
            for index in old {
                self.resize(index, 0);
            }
            return;
        }
        let old_actual = self.sets.iter().enumerate().filter(|(index, _)| Some(*index) != self.new);
        let still_there = old_actual.map(|(_, candidate)| actual(&candidate.set)).sum::<i32>() > 0;
        if still_there || pods_of_others(self.new.map(|index| self.sets[index].set.uid())) {
            return;
        }
        self.find_new(true);
        if let Some(new) = self.new
            && size(&self.sets[new].set) != self.shape.replicas
        {
            self.resize(new, self.shape.replicas);
        }
        if self.is_complete() {
            self.clean_up();
        }
    }

    /// Deletes the oldest of the empty old sets beyond the history limit.
    fn clean_up(&mut self) {
        let Some(limit) = self.spec.revision_history_limit.filter(|limit| *limit != i32::MAX) else { return };
        let mut old: Vec<_> =
            self.sets.iter().enumerate().filter(|(index, _)| Some(*index) != self.new).collect();
        old.retain(|(_, candidate)| !candidate.set.deleting());
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by(|(_, a), (_, b)| sets::by_revision(&a.set, &b.set));
        let empty = |set: &ReplicaSet| actual(set) == 0 && size(set) == 0 && is_observed(set);
        let surplus = old.into_iter().take(surplus).map(|(_, candidate)| &candidate.set);
        self.plan.deletes = surplus.filter(|set| empty(set)).cloned().collect();
    }

    fn calculate(&mut self) -> DeploymentStatus {
        let count = |of: &dyn Fn(&ReplicaSet) -> i32| -> i32 {
            self.sets.iter().map(|candidate| of(&candidate.set)).sum()
        };
        let available_total = count(&available);
        let terminating: Vec<_> = self
            .sets
            .iter()
            .filter_map(|candidate| candidate.set.status.as_ref()?.terminating_replicas)
            .collect();
        let mut status = DeploymentStatus {
            observed_generation: Some(self.original.generation()).filter(|generation| *generation != 0),
            replicas: unless_zero(count(&actual)),
            updated_replicas: unless_zero(self.new.map_or(0, |index| actual(&self.sets[index].set))),
            ready_replicas: unless_zero(count(&|set| {
                set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
            })),
            available_replicas: unless_zero(available_total),
            unavailable_replicas: unless_zero((count(&size) - available_total).max(0)),
            terminating_replicas: (!terminating.is_empty()).then(|| terminating.iter().sum()),
            collision_count: self.status().collision_count,
            conditions: self.status().conditions.clone(),
        };
        let enough = available_total >= self.shape.replicas - self.shape.max_unavailable;
        let condition = if enough {
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        let (value, reason, message) = condition;
        conditions::set(&mut status, conditions::new(AVAILABLE, value, reason, message.to_owned(), self.now));
        status
    }

    fn sync_status(&mut self) {
        let status = self.calculate();
        self.deployment.status = Some(status);
    }

    fn sync_rollout_status(&mut self) {
        let mut status = self.calculate();
        if self.shape.deadline.is_none() {
            conditions::remove(&mut status, PROGRESSING);
        }
        let current = conditions::get(self.status(), PROGRESSING).cloned();
        let finished_before = status.replicas == status.updated_replicas
            && current.as_ref().and_then(|condition| condition.reason.as_deref()) == Some(COMPLETE);
        if self.shape.deadline.is_some() && !finished_before {
            let subject = match self.new {
                Some(index) => format!("ReplicaSet \"{}\"", self.sets[index].set.name()),
                None => format!("Deployment \"{}\"", self.original.name()),
            };
            let old = self.original.status.clone().unwrap_or_default();
            if conditions::is_complete(self.original, &self.shape, &status) {
                let message = format!("{subject} has successfully progressed.");
                conditions::set(
                    &mut status,
                    conditions::new(PROGRESSING, "True", COMPLETE, message, self.now),
                );
            } else if conditions::is_progressing(&old, &status) {
                let message = format!("{subject} is progressing.");
                let mut condition =
                    conditions::new(PROGRESSING, "True", "ReplicaSetUpdated", message, self.now);
                if let Some(current) = current {
                    // Each sign of progress moves the update time, even when nothing else about the condition changes.
                    if current.status == "True" {
                        condition.last_transition_time = current.last_transition_time;
                    }
                    conditions::remove(&mut status, PROGRESSING);
                }
                conditions::set(&mut status, condition);
            } else if conditions::is_timed_out(&self.shape, &status, self.now) {
                let message = format!("{subject} has timed out progressing.");
                conditions::set(
                    &mut status,
                    conditions::new(PROGRESSING, "False", TIMED_OUT, message, self.now),
                );
            }
        }
        match self.failure() {
            Some(condition) => conditions::set(&mut status, condition),
            None => conditions::remove(&mut status, REPLICA_FAILURE),
        }
        self.plan.again = conditions::deadline_check(&self.deployment, &self.shape, &status, self.now);
        self.deployment.status = Some(status);
    }

    /// Why pods of a set cannot be made or removed; the newest set's reason comes first.
    fn failure(&self) -> Option<k8s_openapi::api::apps::v1::DeploymentCondition> {
        let newest = self.new.map(|index| &self.sets[index].set);
        let all = newest.into_iter().chain(self.sets.iter().map(|candidate| &candidate.set));
        let conditions =
            all.flat_map(|set| set.status.iter().flat_map(|status| status.conditions.iter().flatten()));
        conditions
            .into_iter()
            .find(|condition| condition.type_ == REPLICA_FAILURE)
            .map(conditions::from_replica_set)
    }

    fn finish(mut self) -> Plan {
        for candidate in self.sets.into_iter().filter(|candidate| candidate.changed) {
            let (from, to) = (candidate.was.unwrap_or(0), size(&candidate.set));
            let direction = if from < to { "up" } else { "down" };
            let name = candidate.set.name();
            let event =
                (from != to).then(|| format!("Scaled {direction} replica set {name} from {from} to {to}"));
            let update = Update { set: candidate.set, event };
            if candidate.was.is_some() {
                self.plan.updates.push(update)
            } else {
                self.plan.create = Some(update)
            }
        }
        let deleted = &self.plan.deletes;
        self.plan.updates.retain(|update| !deleted.iter().any(|set| set.name() == update.set.name()));
        if self.deployment != *self.original {
            self.plan.status = Some(self.deployment);
        }
        self.plan
    }
}
