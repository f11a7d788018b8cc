//! Pods that wait for a node: ready to be tried, in back-off, or unschedulable until something changes. Answers to
//! upstream's `PriorityQueue`. One owner, no locks; the clock is passed in.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use orlop_client::ObjectKey;
use tokio::time::Instant;

use crate::framework::ClusterEvent;
use crate::pod_info::PodInfo;

const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// After this long an unschedulable pod is tried again in any case.
const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Taken by the scheduling cycle, or being bound.
    InFlight,
    Active,
    Backoff(Instant),
    /// Tried in vain; when that was.
    Unschedulable(Instant),
    /// Held back by `spec.schedulingGates`.
    Gated,
}

#[derive(Debug)]
struct Waiting {
    info: Arc<PodInfo>,
    place: Place,
    /// First come, first served among equals.
    sequence: u64,
    attempts: u32,
    /// When its back-off ends.
    backoff_until: Option<Instant>,
    rejected_by: BTreeSet<&'static str>,
}

type Order = (Reverse<i32>, u64);

/// The scheduling queue.
#[derive(Debug, Default)]
pub struct SchedulingQueue {
    pods: HashMap<ObjectKey, Waiting>,
    active: std::collections::BTreeMap<Order, ObjectKey>,
    timers: BTreeSet<(Instant, ObjectKey)>,
    sequence: u64,
}

fn gated(info: &PodInfo) -> bool {
    info.spec().is_some_and(|spec| spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()))
}

impl SchedulingQueue {
    /// A new pod, or a changed one: a change may make it schedulable.
    pub fn set(&mut self, info: Arc<PodInfo>, now: Instant) {
        let key = info.key.clone();
        if !self.pods.contains_key(&key) {
            self.sequence += 1;
            let sequence = self.sequence;
            let waiting = Waiting {
                info: info.clone(),
                place: Place::Gated,
                sequence,
                attempts: 0,
                backoff_until: None,
                rejected_by: BTreeSet::new(),
            };
            self.pods.insert(key.clone(), waiting);
        }
        let Some(waiting) = self.pods.get_mut(&key) else { return };
        let (old, place) = (std::mem::replace(&mut waiting.info, info.clone()), waiting.place);
        match place {
            _ if gated(&info) => self.put(&key, Place::Gated),
            Place::InFlight | Place::Backoff(_) => {}
            // The priority may have changed with it.
            Place::Active => {
                self.active.remove(&(Reverse(old.priority()), self.order(&key).1));
                self.put(&key, Place::Active);
            }
            Place::Gated => self.put(&key, Place::Active),
            Place::Unschedulable(_) if old.pod.spec != info.pod.spec || old.labels() != info.labels() => {
                self.wake(&key, now);
            }
            Place::Unschedulable(_) => {}
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

    /// The next pod to try; it is in flight until it is put back or removed.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        while let Some((due, key)) = self.timers.first().cloned() {
            if due > now {
                break;
            }
            self.put(&key, Place::Active);
        }
        let (_, key) = self.active.pop_first()?;
        let waiting = self.pods.get_mut(&key)?;
        waiting.place = Place::InFlight;
        waiting.attempts += 1;
        Some(waiting.info.clone())
    }

    /// Puts a pod back that no node can take, until an event that concerns one of these plugins.
    pub fn unschedulable(&mut self, key: &ObjectKey, rejected_by: BTreeSet<&'static str>, now: Instant) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.rejected_by = rejected_by;
        waiting.backoff_until = Some(now + backoff(waiting.attempts));
        let place = if gated(&waiting.info) { Place::Gated } else { Place::Unschedulable(now) };
        self.put(key, place);
    }

    /// Puts a pod back that could not be bound: it is tried again after its back-off.
    pub fn failed(&mut self, key: &ObjectKey, now: Instant) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let until = now + backoff(waiting.attempts);
        waiting.backoff_until = Some(until);
        self.put(key, Place::Backoff(until));
    }

    /// Something changed: pods that a plugin has rejected which cares about it are tried again, after what is left of
    /// their back-off.
    pub fn event(
        &mut self,
        event: ClusterEvent,
        concerned: impl Fn(&'static str, ClusterEvent) -> bool,
        now: Instant,
    ) {
        let waiting =
            self.pods.iter().filter(|(_, waiting)| matches!(waiting.place, Place::Unschedulable(_)));
        // Rejected by nobody: there was no node at all.
        let moved = waiting.filter(|(_, waiting)| {
            waiting.rejected_by.is_empty()
                || waiting.rejected_by.iter().any(|plugin| concerned(plugin, event))
        });
        let moved: Vec<_> = moved.map(|(key, _)| key.clone()).collect();
        for key in moved {
            self.wake(&key, now);
        }
    }

    /// When [`pop`](Self::pop) may have something that it has not now.
    pub fn next_wake(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    fn wake(&mut self, key: &ObjectKey, now: Instant) {
        let until = self.pods.get(key).and_then(|waiting| waiting.backoff_until).filter(|until| *until > now);
        self.put(key, until.map_or(Place::Active, Place::Backoff));
    }

    fn order(&self, key: &ObjectKey) -> Order {
        self.pods
            .get(key)
            .map_or((Reverse(0), 0), |waiting| (Reverse(waiting.info.priority()), waiting.sequence))
    }

    fn put(&mut self, key: &ObjectKey, place: Place) {
        self.leave(key);
        let order = self.order(key);
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.place = place;
        match place {
            Place::Active => _ = self.active.insert(order, key.clone()),
            Place::Backoff(until) => _ = self.timers.insert((until, key.clone())),
            Place::Unschedulable(since) => _ = self.timers.insert((since + MAX_UNSCHEDULABLE, key.clone())),
            Place::InFlight | Place::Gated => {}
        }
    }

    fn leave(&mut self, key: &ObjectKey) {
        let Some(waiting) = self.pods.get(key) else { return };
        match waiting.place {
            Place::Active => _ = self.active.remove(&self.order(key)),
            Place::Backoff(until) => _ = self.timers.remove(&(until, key.clone())),
            Place::Unschedulable(since) => _ = self.timers.remove(&(since + MAX_UNSCHEDULABLE, key.clone())),
            Place::InFlight | Place::Gated => {}
        }
    }
}

fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(10);
    INITIAL_BACKOFF.saturating_mul(1 << doublings).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod_with;
    use serde_json::{Value, json};

    fn info(name: &str, spec: Value) -> Arc<PodInfo> {
        Arc::new(PodInfo::new(pod_with(name, spec)))
    }

    fn pop(queue: &mut SchedulingQueue, now: Instant) -> Option<String> {
        queue.pop(now).map(|info| info.key.name.clone())
    }

    #[test]
    fn higher_priority_first_then_first_come() {
        let (mut queue, now) = (SchedulingQueue::default(), Instant::now());
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.set(info(name, json!({"priority": priority})), now);
        }
        queue.remove(&info("c", json!({})).key);
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, now)).collect();
        assert_eq!(order, ["b", "d", "a"]);
    }

    #[test]
    fn an_unschedulable_pod_waits_for_an_event_that_concerns_it_and_for_its_back_off() {
        let (mut queue, now) = (SchedulingQueue::default(), Instant::now());
        let pod = info("a", json!({}));
        queue.set(pod.clone(), now);
        assert_eq!(pop(&mut queue, now).as_deref(), Some("a"));
        queue.unschedulable(&pod.key, BTreeSet::from(["NodeAffinity"]), now);
        let concerned = |plugin: &str, event| plugin == "NodeAffinity" && event == ClusterEvent::NodeLabels;
        queue.event(ClusterEvent::PlacedPodDeleted, concerned, now);
        assert_eq!(queue.next_wake(), Some(now + MAX_UNSCHEDULABLE));
        queue.event(ClusterEvent::NodeLabels, concerned, now);
        assert_eq!(queue.next_wake(), Some(now + INITIAL_BACKOFF));
        assert_eq!(pop(&mut queue, now), None);
        assert_eq!(pop(&mut queue, now + INITIAL_BACKOFF).as_deref(), Some("a"));
    }

    #[test]
    fn the_back_off_doubles_up_to_ten_seconds() {
        let seconds: Vec<_> = (0..7).map(|attempts| backoff(attempts).as_secs()).collect();
        assert_eq!(seconds, [1, 1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn gates_hold_a_pod_back_until_they_are_gone() {
        let (mut queue, now) = (SchedulingQueue::default(), Instant::now());
        queue.set(info("a", json!({"schedulingGates": [{"name": "wait"}]})), now);
        assert_eq!((pop(&mut queue, now), queue.next_wake()), (None, None));
        queue.set(info("a", json!({})), now);
        assert_eq!(pop(&mut queue, now).as_deref(), Some("a"));
    }

    #[test]
    fn a_changed_pod_is_tried_again_and_a_forgotten_one_is_not() {
        let (mut queue, now) = (SchedulingQueue::default(), Instant::now());
        let later = now + MAX_BACKOFF;
        for name in ["a", "b"] {
            queue.set(info(name, json!({})), now);
            pop(&mut queue, now);
            queue.unschedulable(&info(name, json!({})).key, BTreeSet::from(["NodeAffinity"]), now);
        }
        queue.set(info("b", json!({})), later);
        assert_eq!(pop(&mut queue, later), None, "nothing of b's spec has changed");
        queue.set(info("a", json!({"nodeSelector": {"x": "y"}})), later);
        queue.remove(&info("b", json!({})).key);
        assert_eq!(pop(&mut queue, later).as_deref(), Some("a"));
        assert_eq!(pop(&mut queue, later + MAX_UNSCHEDULABLE), None);
    }
}
