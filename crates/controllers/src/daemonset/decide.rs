//! Which daemon pods to make and delete next, and what the status says. Answers to upstream's `manage`,
//! `rollingUpdate` and `updateDaemonSetStatus`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use orlop_client::EventType;

use super::nodes::{Demands, Fit, is_updated, target_node};
use crate::objects::{Meta, is_available, is_finished, is_ready, node_name, phase, scaled, until_available};

/// No more creations, and no more deletions, than this in one go; the rest follows when these have shown up.
const BURST: usize = 250;
/// A node where daemon pods fail is tried again after this long, doubled each time.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(15 * 60);

/// The writes of one step.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Names of nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) events: Vec<(EventType, &'static str, String)>,
    /// Look again then, even if nothing changes.
    pub(super) again: Option<Duration>,
    pub(super) status: DaemonSetStatus,
}

/// How long to wait before a failed pod of a node is replaced, by set, generation and node.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    entries: HashMap<(String, i64, String), (Duration, Timestamp)>,
}

impl Backoff {
    /// `None`: now, and the next time takes longer.
    fn wait(&mut self, set: &DaemonSet, node: &str, now: Timestamp) -> Option<Duration> {
        let observed = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
        let key = (set.uid().to_owned(), observed, node.to_owned());
        let age = |since: Timestamp| {
            Duration::from_nanos(u64::try_from(now.as_nanosecond() - since.as_nanosecond()).unwrap_or(0))
        };
        // What was long ago is forgotten, also for nodes and sets that are gone.
        self.entries.retain(|_, (_, since)| age(*since) <= LONGEST_DELAY * 2);
        let next = match self.entries.get(&key) {
            Some((delay, since)) if age(*since) < *delay => return Some(*delay - age(*since)),
            Some((delay, _)) => (*delay * 2).min(LONGEST_DELAY),
            None => FIRST_DELAY,
        };
        self.entries.insert(key, (next, now));
        None
    }
}

/// What there is to decide on.
pub(super) struct State<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) spec: &'a DaemonSetSpec,
    pub(super) nodes: &'a [Arc<Node>],
    /// The set's own pods.
    pub(super) pods: &'a [Arc<Pod>],
    /// Of the present revision.
    pub(super) hash: &'a str,
    pub(super) collisions: Option<i32>,
    /// Whether the cache shows all that was done before.
    pub(super) may_act: bool,
    pub(super) now: Timestamp,
}

type MaybePod<'a> = Option<&'a Arc<Pod>>;
type ByNode = BTreeMap<String, Vec<Arc<Pod>>>;

pub(super) fn plan(state: &State<'_>, backoff: &mut Backoff) -> Plan {
    let demands = Demands::of(state.set);
    let fits: Vec<(&Node, Fit)> = state.nodes.iter().map(|node| (&**node, demands.fit(node))).collect();
    let by_node = state.by_node();
    let mut plan =
        Plan { status: state.status(&fits, &by_node), again: state.next_available(), ..Plan::default() };
    if !state.may_act {
        return plan;
    }
    state.manage(&fits, &by_node, backoff, &mut plan);
    // An update counts pods, so it waits until all are where they belong.
    if plan.create.is_empty() && plan.delete.is_empty() && state.rolls() {
        state.roll(&fits, by_node, &mut plan);
    }
    plan.create.truncate(BURST);
    plan.delete.truncate(BURST);
    plan
}

/// Whether writing `new` would change anything that readers see.
pub(super) fn differs(old: Option<&DaemonSetStatus>, new: &DaemonSetStatus) -> bool {
    let Some(old) = old else { return true };
    let count = |field: Option<i32>| field.unwrap_or(0);
    old.desired_number_scheduled != new.desired_number_scheduled
        || old.current_number_scheduled != new.current_number_scheduled
        || old.number_misscheduled != new.number_misscheduled
        || old.number_ready != new.number_ready
        || count(old.updated_number_scheduled) != count(new.updated_number_scheduled)
        || count(old.number_available) != count(new.number_available)
        || count(old.number_unavailable) != count(new.number_unavailable)
        || old.collision_count != new.collision_count
        || old.observed_generation < new.observed_generation
}

/// The pods of one node that are not on their way out: one of the present revision and one of another. `None` when
/// there are more.
fn new_and_old<'a>(pods: &'a [Arc<Pod>], hash: &str) -> Option<(MaybePod<'a>, MaybePod<'a>)> {
    let live = pods.iter().filter(|pod| !pod.deleting());
    let (new, old): (Vec<_>, Vec<_>) = live.partition(|pod| is_updated(pod, hash));
    (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
}

impl State<'_> {
    fn available(&self, pod: &Pod) -> bool {
        is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn rolls(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
        strategy != Some("OnDelete")
    }

    /// A limit of the rolling update, of so many pods. Percentages round up.
    fn limit(
        &self,
        of: usize,
        field: fn(&k8s_openapi::api::apps::v1::RollingUpdateDaemonSet) -> Option<&IntOrString>,
    ) -> usize {
        let rolling =
            self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let total = i32::try_from(of).unwrap_or(i32::MAX);
        let value = rolling.filter(|_| self.rolls()).and_then(field);
        value.map_or(0, |value| usize::try_from(scaled(value, total, true)).unwrap_or(0))
    }

    fn max_surge(&self, of: usize) -> usize {
        self.limit(of, |rolling| rolling.max_surge.as_ref())
    }

    /// The pods by the node they are meant for, the oldest first and bound ones before others. Those that have ended and
    /// are being deleted do not count any more.
    fn by_node(&self) -> ByNode {
        let mut by_node = ByNode::new();
        for pod in self.pods.iter().filter(|pod| !(is_finished(pod) && pod.deleting())) {
            if let Some(node) = target_node(pod) {
                by_node.entry(node.to_owned()).or_default().push(pod.clone());
            }
        }
        for pods in by_node.values_mut() {
            pods.sort_by(|a, b| {
                let unbound = |pod: &Pod| node_name(pod).is_empty();
                let by_age = || a.created().cmp(&b.created()).then_with(|| a.name().cmp(b.name()));
                unbound(a).cmp(&unbound(b)).then_with(by_age)
            });
        }
        by_node
    }

    fn next_available(&self) -> Option<Duration> {
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        let waits = self.pods.iter().filter_map(|pod| until_available(pod, min_ready, self.now));
        waits.filter(|wait| !wait.is_zero()).min()
    }

    fn status(&self, fits: &[(&Node, Fit)], by_node: &ByNode) -> DaemonSetStatus {
        let mut status = self.set.status.clone().unwrap_or_default();
        let (mut desired, mut current, mut ready, mut updated, mut available, mut misplaced) =
            (0, 0, 0, 0, 0, 0);
        for (node, fit) in fits {
            let oldest = by_node.get(node.name()).and_then(|pods| pods.first());
            match (*fit == Fit::Run, oldest) {
                (true, None) => desired += 1,
                (true, Some(pod)) => {
                    desired += 1;
                    current += 1;
                    ready += i32::from(is_ready(pod));
                    available += i32::from(self.available(pod));
                    updated += i32::from(is_updated(pod, self.hash));
                }
                (false, Some(_)) => misplaced += 1,
                (false, None) => {}
            }
        }
        status.desired_number_scheduled = desired;
        status.current_number_scheduled = current;
        status.number_misscheduled = misplaced;
        status.number_ready = ready;
        status.updated_number_scheduled = Some(updated);
        status.number_available = Some(available);
        status.number_unavailable = Some(desired - available);
        status.collision_count = self.collisions;
        if self.may_act {
            status.observed_generation = Some(self.set.generation());
        }
        status
    }

    /// One pod on each node that fits, none on those that do not; failed ones go.
    fn manage(&self, fits: &[(&Node, Fit)], by_node: &ByNode, backoff: &mut Backoff, plan: &mut Plan) {
        for (node, fit) in fits {
            match (fit, by_node.get(node.name())) {
                (Fit::Run, None) => plan.create.push(node.name().to_owned()),
                (Fit::Avoid, Some(pods)) => {
                    plan.delete.extend(pods.iter().filter(|pod| !pod.deleting()).cloned());
                }
                (Fit::Run | Fit::Stay, Some(pods)) => self.manage_node(node, *fit, pods, backoff, plan),
                (Fit::Avoid | Fit::Stay, None) => {}
            }
        }
        // Nobody else deletes a pod that waits for a node that is gone.
        let known = |name: &str| fits.iter().any(|(node, _)| node.name() == name);
        for pods in by_node.iter().filter(|(name, _)| !known(name)).map(|(_, pods)| pods) {
            plan.delete
                .extend(pods.iter().filter(|pod| node_name(pod).is_empty() && !pod.deleting()).cloned());
        }
    }

    fn manage_node(&self, node: &Node, fit: Fit, pods: &[Arc<Pod>], backoff: &mut Backoff, plan: &mut Plan) {
        let mut running = Vec::new();
        for pod in pods.iter().filter(|pod| !pod.deleting()) {
            let place = format!("{}/{} on node {}", pod.namespace(), pod.name(), node.name());
            match phase(pod) {
                "Failed" => match backoff.wait(self.set, node.name(), self.now) {
                    // Kubelets may reject a pod again and again; this must not become a race.
                    Some(delay) => plan.again = Some(plan.again.map_or(delay, |again| again.min(delay))),
                    None => {
                        let text = format!("Found failed daemon pod {place}, will try to kill it");
                        plan.events.push((EventType::Warning, "FailedDaemonPod", text));
                        plan.delete.push(pod.clone());
                    }
                },
                "Succeeded" => {
                    let text = format!("Found succeeded daemon pod {place}, will try to delete it");
                    plan.events.push((EventType::Normal, "SucceededDaemonPod", text));
                    plan.delete.push(pod.clone());
                }
                _ => running.push(pod),
            }
        }
        if self.max_surge(1) == 0 {
            plan.delete.extend(running.into_iter().skip(1).cloned());
            return;
        }
        if running.is_empty() && fit == Fit::Run {
            // With surge a node is never left without a pod, not even while the last one ends.
            plan.create.push(node.name().to_owned());
        }
        if running.len() <= 1 {
            return;
        }
        // Two may be there: an old one that works until the new one does.
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| is_updated(pod, self.hash));
        plan.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).map(|pod| (*pod).clone()));
        if let (Some(new), Some(old)) = (new.first(), old.first())
            && (!is_ready(old) || self.available(new))
        {
            plan.delete.push((*old).clone());
        }
    }

    fn roll(&self, fits: &[(&Node, Fit)], mut by_node: ByNode, plan: &mut Plan) {
        let wanted: Vec<_> =
            fits.iter().filter(|(_, fit)| *fit == Fit::Run).map(|(node, _)| node.name()).collect();
        for name in &wanted {
            by_node.entry((*name).to_owned()).or_default();
        }
        match self.max_surge(wanted.len()) {
            0 => self.roll_in_place(wanted.len(), &by_node, plan),
            surge => self.roll_with_surge(surge, &wanted, &by_node, plan),
        }
    }

    /// Deletes old pods: useless ones at once, others as long as no more than the limit are unavailable.
    fn roll_in_place(&self, wanted: usize, by_node: &ByNode, plan: &mut Plan) {
        // Neither surge nor unavailability would stand still.
        let limit = self.limit(wanted, |rolling| rolling.max_unavailable.as_ref()).max(1);
        let (mut unavailable, mut candidates) = (0, Vec::new());
        for pods in by_node.values() {
            match new_and_old(pods, self.hash) {
                Some((Some(new), None)) => unavailable += usize::from(!self.available(new)),
                Some((None, Some(old))) if self.available(old) => candidates.push(old.clone()),
                Some((None, Some(old))) => {
                    unavailable += 1;
                    plan.delete.push(old.clone());
                }
                // Not as it should be yet; the next steps will see to it.
                _ => unavailable += 1,
            }
        }
        candidates.truncate(limit.saturating_sub(unavailable));
        plan.delete.append(&mut candidates);
    }

    /// Makes new pods beside old ones, and deletes the old when the new are available.
    fn roll_with_surge(&self, surge: usize, wanted: &[&str], by_node: &ByNode, plan: &mut Plan) {
        let (mut surging, mut available) = (0, 0);
        let (mut candidates, mut misplaced) = (Vec::new(), Vec::new());
        for (node, pods) in by_node {
            let Some((new, old)) = new_and_old(pods, self.hash) else {
                surging += 1;
                continue;
            };
            available += usize::from(old.or(new).is_some_and(|pod| self.available(pod)));
            let Some(old) = old else { continue };
            let belongs = wanted.contains(&node.as_str());
            match (new, self.available(old)) {
                (Some(new), _) if self.available(new) => plan.delete.push(old.clone()),
                (Some(_), _) => surging += 1,
                (None, false) if belongs => plan.create.push(node.clone()),
                (None, false) => plan.delete.push(old.clone()),
                (None, true) if belongs => candidates.push(node.clone()),
                (None, true) => misplaced.push(old.clone()),
            }
        }
        // A pod that works on a node where it does not belong any more stays until another one does its work.
        misplaced.truncate(available.saturating_sub(wanted.len()));
        plan.delete.append(&mut misplaced);
        candidates.truncate(surge.saturating_sub(surging));
        plan.create.append(&mut candidates);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
