use super::*;
use crate::framework::{ActionType, Change, EventResource};
use crate::testing::pod_with;
use serde_json::{Value, json};

const INITIAL: Duration = Duration::from_secs(1);
const MAX: Duration = Duration::from_secs(10);

/// Gates as SchedulingGates does, sorts by priority; a plugin cares about what its name says.
struct Rules;

impl Policy for Rules {
    fn gate(&self, pod: &PodInfo) -> Option<&'static str> {
        pod.is_gated().then_some("SchedulingGates")
    }

    fn sort_key(&self, pod: &PodInfo, sequence: u64) -> SortKey {
        (-i64::from(pod.priority), sequence)
    }

    fn hint(&self, plugin: &'static str, _: &PodInfo, event: &ClusterEvent) -> QueueingHint {
        let cares = match event.resource {
            EventResource::Node => plugin == "NodeAffinity",
            EventResource::ResourceClaim => plugin == "DynamicResources",
            _ => false,
        };
        QueueingHint::queue_if(cares)
    }
}

fn info(name: &str, spec: Value) -> Arc<PodInfo> {
    Arc::new(PodInfo::new(pod_with(name, spec)))
}

fn queue() -> (SchedulingQueue, Instant) {
    (SchedulingQueue::new(INITIAL, MAX), Instant::now())
}

fn pop(queue: &mut SchedulingQueue, now: Instant) -> Option<String> {
    queue.pop(&Rules, now).map(|info| info.key.name.clone())
}

fn event(resource: EventResource) -> ClusterEvent {
    ClusterEvent { resource, action: ActionType::ADD, change: Change::Other }
}

/// Pods of these names, tried in vain because of a plugin.
fn rejected(names: &[&str], plugin: &'static str) -> (SchedulingQueue, Instant) {
    let (mut queue, now) = queue();
    for name in names {
        queue.set(info(name, json!({})), None, &Rules, now);
    }
    for _ in names {
        let pod = queue.pop(&Rules, now).unwrap();
        queue.unschedulable(&pod.key, BTreeSet::from([plugin]), BTreeSet::new(), now);
    }
    (queue, now)
}

#[test]
fn higher_priority_first_then_first_come() {
    let (mut queue, now) = queue();
    for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
        queue.set(info(name, json!({"priority": priority})), None, &Rules, now);
    }
    queue.remove(&info("c", json!({})).key);
    let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, now)).collect();
    assert_eq!(order, ["b", "d", "a"]);
}

#[test]
fn a_pod_waits_for_an_event_that_concerns_who_rejected_it() {
    let (mut queue, now) = rejected(&["a"], "NodeAffinity");
    queue.event(&event(EventResource::AssignedPod), ["NodeAffinity"].into_iter(), &Rules, now);
    assert_eq!((pop(&mut queue, now), queue.next_wake()), (None, Some(now + MAX_UNSCHEDULABLE)));
    // A plugin that is not asked has not rejected it.
    queue.event(&event(EventResource::Node), ["Other"].into_iter(), &Rules, now);
    assert_eq!(queue.next_wake(), Some(now + MAX_UNSCHEDULABLE));
    queue.event(&event(EventResource::Node), ["NodeAffinity"].into_iter(), &Rules, now);
    assert_eq!(queue.next_wake(), Some(now + INITIAL));
}

#[test]
fn a_pod_that_nobody_rejected_is_moved_by_any_event() {
    let (mut queue, now) = queue();
    queue.set(info("a", json!({})), None, &Rules, now);
    let pod = queue.pop(&Rules, now).unwrap();
    queue.unschedulable(&pod.key, BTreeSet::new(), BTreeSet::new(), now);
    queue.event(&event(EventResource::AssignedPod), std::iter::empty(), &Rules, now);
    assert_eq!(queue.next_wake(), Some(now + INITIAL));
}

#[test]
fn a_pod_that_waits_for_something_under_way_skips_its_back_off() {
    let (mut queue, now) = queue();
    queue.set(info("a", json!({})), None, &Rules, now);
    let pod = queue.pop(&Rules, now).unwrap();
    queue.unschedulable(&pod.key, BTreeSet::new(), BTreeSet::from(["DynamicResources"]), now);
    queue.event(&event(EventResource::ResourceClaim), ["DynamicResources"].into_iter(), &Rules, now);
    assert_eq!(queue.next_wake(), None);
    assert_eq!(pop(&mut queue, now).as_deref(), Some("a"));
}

#[test]
fn with_nothing_else_to_do_pods_are_taken_before_their_back_off_ends() {
    let (mut queue, now) = rejected(&["a"], "NodeAffinity");
    queue.event(&event(EventResource::Node), ["NodeAffinity"].into_iter(), &Rules, now);
    queue.set(info("b", json!({})), None, &Rules, now);
    assert_eq!(pop(&mut queue, now).as_deref(), Some("b"));
    assert_eq!(pop(&mut queue, now).as_deref(), Some("a"));
}

#[test]
fn after_a_failure_the_back_off_is_kept_in_any_case() {
    let (mut queue, now) = queue();
    queue.set(info("a", json!({})), None, &Rules, now);
    let pod = queue.pop(&Rules, now).unwrap();
    queue.failed(&pod.key, now);
    assert_eq!(pop(&mut queue, now), None);
    assert_eq!(pop(&mut queue, now + INITIAL).as_deref(), Some("a"));
    queue.failed(&pod.key, now);
    assert_eq!(queue.next_wake(), Some(now + 2 * INITIAL));
}

#[test]
fn the_back_off_doubles_up_to_ten_seconds() {
    let seconds: Vec<_> = (0..7).map(|attempts| backoff(attempts, INITIAL, MAX).as_secs()).collect();
    assert_eq!(seconds, [1, 1, 2, 4, 8, 10, 10]);
}

#[test]
fn gates_hold_a_pod_back_until_they_are_gone() {
    let (mut queue, now) = queue();
    let gated = json!({"schedulingGates": [{"name": "wait"}]});
    queue.set(info("a", gated), None, &Rules, now);
    queue.event(&event(EventResource::Node), ["SchedulingGates"].into_iter(), &Rules, now);
    assert_eq!((pop(&mut queue, now), queue.next_wake()), (None, None));
    assert_eq!(queue.pending(), Pending { gated: 1, ..Pending::default() });
    let (free, tried) = (now + Duration::from_secs(100), now + Duration::from_secs(103));
    queue.set(info("a", json!({})), None, &Rules, free);
    assert_eq!(queue.pending(), Pending { active: 1, ..Pending::default() });
    assert_eq!(pop(&mut queue, tried).as_deref(), Some("a"));
    // Nobody waited for it while it was gated.
    let attempt = queue.attempt(&info("a", json!({})).key).unwrap();
    assert_eq!((attempt.number, attempt.waits_since, attempt.began), (1, free, tried));
}

#[test]
fn every_unschedulable_pod_is_tried_again_after_five_minutes() {
    let (mut queue, now) = rejected(&["a", "b"], "NodeAffinity");
    queue.remove(&info("b", json!({})).key);
    assert_eq!(pop(&mut queue, now + MAX_UNSCHEDULABLE).as_deref(), Some("a"));
    assert_eq!(pop(&mut queue, now + MAX_UNSCHEDULABLE), None);
}

#[test]
fn a_pods_own_change_is_an_event_too() {
    let (mut queue, now) = rejected(&["a", "b"], "NodeAffinity");
    queue.set(info("a", json!({})), None, &Rules, now);
    assert_eq!(pop(&mut queue, now), None, "nothing that concerns the plugin has changed");
    queue.set(info("a", json!({})), Some(&event(EventResource::Node)), &Rules, now + INITIAL);
    assert_eq!(pop(&mut queue, now + INITIAL).as_deref(), Some("a"));
}
