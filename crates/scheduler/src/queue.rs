//! Pods that wait for a node: ready to be tried, in back-off, unschedulable until something changes that concerns
//! them, or gated. Answers to upstream's `backend/queue`. One owner, no locks; the clock is passed in. No event can slip
//! through between a pod's attempt and its way back here, since both are turns of one loop: nothing has to be recorded
//! for pods in flight.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use orlop_client::ObjectKey;
use tokio::time::Instant;

use crate::framework::{ClusterEvent, QueueingHint, SortKey};
use crate::metrics::{Attempt, Pending};
use crate::pod_info::PodInfo;

/// After this long an unschedulable pod is tried again in any case.
pub const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(300);

/// Under which pods are found that nobody in particular has rejected.
const NOBODY: &str = "";

/// What plugins say about waiting pods.
pub trait Policy {
    /// The plugin that keeps a pod from being tried at all (PreEnqueue).
    fn gate(&self, pod: &PodInfo) -> Option<&'static str>;
    /// The order of the active queue (QueueSort).
    fn sort_key(&self, pod: &PodInfo, sequence: u64) -> SortKey;
    /// Whether an event is worth another attempt for a pod that a plugin has rejected.
    fn hint(&self, plugin: &'static str, pod: &PodInfo, event: &ClusterEvent) -> QueueingHint;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Taken by the scheduling cycle, or being bound.
    InFlight,
    Active(SortKey),
    /// Until when; and whether because something failed, as opposed to the pod not fitting.
    Backoff(Instant, bool),
    /// Tried in vain; when that was.
    Unschedulable(Instant),
    /// Held back by this plugin.
    Gated(&'static str),
}

#[derive(Debug)]
struct Waiting {
    info: Arc<PodInfo>,
    place: Place,
    /// First come, first served among equals.
    sequence: u64,
    attempts: u32,
    /// Attempts since it last only failed, for the back-off.
    errors: u32,
    rejected_by: BTreeSet<&'static str>,
    /// Plugins that wait for something under way: the pod is tried at once when it comes.
    pending: BTreeSet<&'static str>,
    /// When it was last put back.
    since: Instant,
    /// Since when nothing gates it.
    waits_since: Option<Instant>,
    /// When the latest attempt began.
    tried: Instant,
}

/// The scheduling queue.
#[derive(Debug)]
pub struct SchedulingQueue {
    pods: HashMap<ObjectKey, Waiting>,
    active: BTreeMap<SortKey, ObjectKey>,
    backoff: BTreeSet<(Instant, ObjectKey)>,
    /// The same without those that failed: taken when nothing is active.
    early: BTreeSet<(Instant, ObjectKey)>,
    unschedulable: BTreeSet<(Instant, ObjectKey)>,
    by_plugin: HashMap<&'static str, HashSet<ObjectKey>>,
    gated: HashMap<&'static str, HashSet<ObjectKey>>,
    sequence: u64,
    initial_backoff: Duration,
    max_backoff: Duration,
}

impl SchedulingQueue {
    pub fn new(initial_backoff: Duration, max_backoff: Duration) -> Self {
        Self {
            pods: HashMap::new(),
            active: BTreeMap::new(),
            backoff: BTreeSet::new(),
            early: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            by_plugin: HashMap::new(),
            gated: HashMap::new(),
            sequence: 0,
            initial_backoff,
            max_backoff,
        }
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// A new pod, or a changed one. `event` is what the change means for plugins that have rejected it.
    pub fn set(
        &mut self,
        info: Arc<PodInfo>,
        event: Option<&ClusterEvent>,
        policy: &impl Policy,
        now: Instant,
    ) {
        let key = info.key.clone();
        let Some(waiting) = self.pods.get_mut(&key) else {
            let sequence = self.next_sequence();
            let waiting = Waiting {
                info,
                place: Place::InFlight,
                sequence,
                attempts: 0,
                errors: 0,
                rejected_by: BTreeSet::new(),
                pending: BTreeSet::new(),
                since: now,
                waits_since: None,
                tried: now,
            };
            self.pods.insert(key.clone(), waiting);
            return self.enqueue(&key, policy, now);
        };
        waiting.info = info;
        match waiting.place {
            // The priority may have changed with it, and gates may have come before the first attempt.
            Place::Active(_) | Place::Gated(_) => self.enqueue(&key, policy, now),
            Place::Unschedulable(_) => {
                if let Some(event) = event {
                    self.consider(&key, event, policy, now);
                }
            }
            Place::InFlight | Place::Backoff(..) => {}
        }
    }

    /// A pod that is deleted or bound.
    pub fn remove(&mut self, key: &ObjectKey) {
        self.leave(key);
        self.pods.remove(key);
    }

    /// A pod that waits or is in flight.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<PodInfo>> {
        self.pods.get(key).map(|waiting| &waiting.info)
    }

    /// The next pod to try; it is in flight until it is put back or removed. With nothing else to do, pods are taken
    /// before their back-off ends.
    pub fn pop(&mut self, policy: &impl Policy, now: Instant) -> Option<Arc<PodInfo>> {
        self.flush(policy, now);
        let key = match self.active.first_key_value() {
            Some((_, key)) => key.clone(),
            None => self.early.first()?.1.clone(),
        };
        self.put(&key, Place::InFlight);
        let waiting = self.pods.get_mut(&key)?;
        waiting.attempts += 1;
        waiting.tried = now;
        Some(waiting.info.clone())
    }

    /// The latest attempt with a pod.
    pub fn attempt(&self, key: &ObjectKey) -> Option<Attempt> {
        let waiting = self.pods.get(key)?;
        let waits_since = waiting.waits_since.unwrap_or(waiting.tried);
        Some(Attempt { number: waiting.attempts, began: waiting.tried, waits_since })
    }

    /// How many pods wait, and for what.
    pub fn pending(&self) -> Pending {
        Pending {
            active: self.active.len(),
            backoff: self.backoff.len(),
            unschedulable: self.unschedulable.len(),
            gated: self.gated.values().map(HashSet::len).sum(),
        }
    }

    fn flush(&mut self, policy: &impl Policy, now: Instant) {
        while let Some((_, key)) = self.backoff.first().filter(|(due, _)| *due <= now).cloned() {
            self.activate(&key, policy);
        }
        while let Some((_, key)) =
            self.unschedulable.first().filter(|(since, _)| *since + MAX_UNSCHEDULABLE <= now).cloned()
        {
            self.enqueue(&key, policy, now);
        }
    }

    /// When [`pop`](Self::pop) may have something that it has not now.
    pub fn next_wake(&self) -> Option<Instant> {
        let backoff = self.backoff.first().map(|(due, _)| *due);
        let unschedulable = self.unschedulable.first().map(|(since, _)| *since + MAX_UNSCHEDULABLE);
        backoff.into_iter().chain(unschedulable).min()
    }

    /// Puts a pod back that no node can take, until an event that concerns one of these plugins.
    pub fn unschedulable(
        &mut self,
        key: &ObjectKey,
        rejected_by: BTreeSet<&'static str>,
        pending: BTreeSet<&'static str>,
        now: Instant,
    ) {
        let sequence = self.next_sequence();
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.sequence = sequence;
        waiting.since = now;
        waiting.errors = 0;
        (waiting.rejected_by, waiting.pending) = (rejected_by, pending);
        self.put(key, Place::Unschedulable(now));
    }

    /// Puts a pod back for which something failed: it is tried again after its back-off.
    pub fn failed(&mut self, key: &ObjectKey, now: Instant) {
        let sequence = self.next_sequence();
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.sequence = sequence;
        waiting.since = now;
        waiting.errors += 1;
        waiting.rejected_by.clear();
        waiting.pending.clear();
        let until = now + backoff(waiting.errors, self.initial_backoff, self.max_backoff);
        self.put(key, Place::Backoff(until, true));
    }

    /// Something changed that concerns these plugins: pods they have rejected are tried again if they think so.
    pub fn event<'a>(
        &mut self,
        event: &ClusterEvent,
        concerned: impl Iterator<Item = &'a str>,
        policy: &impl Policy,
        now: Instant,
    ) {
        if self.unschedulable.is_empty() {
            return;
        }
        let mut keys = HashSet::new();
        for plugin in concerned.chain([NOBODY, crate::extender::NAME]) {
            keys.extend(self.by_plugin.get(plugin).into_iter().flatten().cloned());
        }
        for key in keys {
            self.consider(&key, event, policy, now);
        }
    }

    fn consider(&mut self, key: &ObjectKey, event: &ClusterEvent, policy: &impl Policy, now: Instant) {
        let Some(waiting) = self.pods.get(key) else { return };
        let worth = |plugin: &&'static str| policy.hint(plugin, &waiting.info, event) == QueueingHint::Queue;
        if waiting.pending.iter().any(&worth) {
            return self.activate(key, policy);
        }
        let nobody = waiting.rejected_by.is_empty() && waiting.pending.is_empty();
        if nobody || waiting.rejected_by.iter().any(worth) {
            self.enqueue(key, policy, now);
        }
    }

    /// A plugin may hold a pod back no longer.
    pub fn ungate(&mut self, key: &ObjectKey, policy: &impl Policy, now: Instant) {
        if matches!(self.pods.get(key), Some(Waiting { place: Place::Gated(_), .. })) {
            self.enqueue(key, policy, now);
        }
    }

    /// The same for all pods that a plugin holds back.
    pub fn ungate_all(&mut self, plugin: &'static str, policy: &impl Policy, now: Instant) {
        let gated = self.gated.get(plugin).into_iter().flatten();
        for key in gated.cloned().collect::<Vec<_>>() {
            self.enqueue(&key, policy, now);
        }
    }

    /// To be tried after what is left of the back-off.
    fn enqueue(&mut self, key: &ObjectKey, policy: &impl Policy, now: Instant) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        if let Some(plugin) = policy.gate(&waiting.info) {
            return self.put(key, Place::Gated(plugin));
        }
        waiting.waits_since.get_or_insert(now);
        let until = waiting.since + backoff(waiting.attempts, self.initial_backoff, self.max_backoff);
        if waiting.attempts > 0 && until > now {
            return self.put(key, Place::Backoff(until, false));
        }
        self.activate(key, policy);
    }

    fn activate(&mut self, key: &ObjectKey, policy: &impl Policy) {
        let Some(waiting) = self.pods.get(key) else { return };
        let place = match policy.gate(&waiting.info) {
            Some(plugin) => Place::Gated(plugin),
            None => Place::Active(policy.sort_key(&waiting.info, waiting.sequence)),
        };
        self.put(key, place);
    }

    fn put(&mut self, key: &ObjectKey, place: Place) {
        self.leave(key);
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.place = place;
        match place {
            Place::Active(order) => _ = self.active.insert(order, key.clone()),
            Place::Backoff(until, error) => {
                self.backoff.insert((until, key.clone()));
                if !error {
                    self.early.insert((until, key.clone()));
                }
            }
            Place::Unschedulable(since) => {
                self.unschedulable.insert((since, key.clone()));
                for plugin in found_under(waiting) {
                    self.by_plugin.entry(plugin).or_default().insert(key.clone());
                }
            }
            Place::Gated(plugin) => _ = self.gated.entry(plugin).or_default().insert(key.clone()),
            Place::InFlight => {}
        }
    }

    fn leave(&mut self, key: &ObjectKey) {
        let Some(waiting) = self.pods.get(key) else { return };
        match waiting.place {
            Place::Active(order) => _ = self.active.remove(&order),
            Place::Backoff(until, _) => {
                self.backoff.remove(&(until, key.clone()));
                self.early.remove(&(until, key.clone()));
            }
            Place::Unschedulable(since) => {
                self.unschedulable.remove(&(since, key.clone()));
                for plugin in found_under(waiting) {
                    if let Some(keys) = self.by_plugin.get_mut(plugin) {
                        keys.remove(key);
                    }
                }
            }
            Place::Gated(plugin) => {
                if let Some(keys) = self.gated.get_mut(plugin) {
                    keys.remove(key);
                }
            }
            Place::InFlight => {}
        }
    }
}

fn found_under(waiting: &Waiting) -> Vec<&'static str> {
    let plugins: Vec<_> = waiting.rejected_by.union(&waiting.pending).copied().collect();
    if plugins.is_empty() { vec![NOBODY] } else { plugins }
}

fn backoff(attempts: u32, initial: Duration, max: Duration) -> Duration {
    let doublings = attempts.saturating_sub(1).min(20);
    initial.saturating_mul(1 << doublings).min(max)
}

#[cfg(test)]
mod tests;
