//! The cluster as the scheduler sees it: nodes, the pods on each including those it has just decided about, and what
//! the plugins count. One owner, no locks: the scheduling loop. Answers to upstream's `backend/cache`, whose snapshot
//! is not needed where nothing changes during a scheduling cycle.

mod counts;
mod images;
mod node_info;
mod pods;
mod topology;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use orlop_client::ObjectKey;
use tokio::time::Instant;

pub use counts::Counts;
pub use images::Images;
pub use node_info::{NodeIndex, NodeInfo, TaintSet};
pub use pods::{CounterKey, ExistingTerm, PodIndex, TermKind};
pub use topology::{Domain, Topology, TopologyKey, TopologyTable};

use crate::dynamic_resources::Claims;
use crate::pod_info::PodInfo;
use crate::preemption::Budget;
use crate::selector::{Labels, NodeMatcher};
use crate::volumes::Volumes;
use crate::workloads::Workloads;

/// How many node selectors are remembered with the nodes they match.
const MAX_MATCHERS: usize = 512;

const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

#[derive(Debug)]
struct PodState {
    info: Arc<PodInfo>,
    node: NodeIndex,
    /// Decided here and not yet confirmed by the API server.
    assumed: bool,
    /// When an assumed pod whose binding is done is given up.
    deadline: Option<Instant>,
}

/// Which nodes a selector matches, as of a generation of the nodes.
#[derive(Debug, Default)]
struct MatchedNodes {
    generation: u64,
    matches: Vec<bool>,
    last_used: u64,
}

/// All nodes and placed pods.
#[derive(Debug, Default)]
pub struct Cache {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, NodeIndex>,
    free: Vec<NodeIndex>,
    /// The nodes that exist, zones taking turns; made anew after nodes came or went.
    order: Vec<NodeIndex>,
    order_is_old: bool,
    /// Grows with every change of a node object.
    generation: u64,
    /// Grows with every change of a node or of the pods on one.
    touches: u64,
    /// The last touch of each node, by its place: beside the nodes, because each cycle looks at many.
    touched: Vec<u64>,

    placed: HashMap<ObjectKey, PodState>,
    assumed: HashSet<ObjectKey>,
    /// The deadlines of assumed pods, soonest first. What has been confirmed or forgotten since stays until it is due.
    deadlines: VecDeque<(Instant, ObjectKey)>,

    taint_sets: Vec<Vec<Taint>>,
    topology: Topology,
    pods: PodIndex,
    images: Images,
    matched: HashMap<Arc<NodeMatcher>, MatchedNodes>,
    uses: u64,

    /// Uses of claims by placed pods, by `namespace/name`.
    claim_uses: HashMap<String, u32>,

    pub volumes: Volumes,
    pub workloads: Workloads,
    pub claims: Claims,
    /// By namespace and name.
    pub disruption_budgets: HashMap<String, BTreeMap<String, Budget>>,
    /// Pods whose victims are being evicted right now, by UID.
    pub preempting: HashSet<String>,
}

impl Cache {
    /// The nodes that exist, in the order in which they are tried; zones take turns.
    pub fn order(&self) -> &[NodeIndex] {
        &self.order
    }

    pub fn node(&self, index: NodeIndex) -> &NodeInfo {
        &self.nodes[index.place()]
    }

    /// A number that differs after every change of the node or of the pods on it; never the same for two nodes at one
    /// place.
    pub fn touched(&self, index: NodeIndex) -> u64 {
        self.touched[index.place()]
    }

    /// A node that exists.
    pub fn node_by_name(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|index| self.node(*index)).filter(|info| info.node.is_some())
    }

    /// The nodes that exist.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> + Clone {
        self.nodes.iter().filter(|info| info.node.is_some())
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    pub fn pods(&self) -> &PodIndex {
        &self.pods
    }

    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The taints behind each number that is in use.
    pub fn taint_sets(&self) -> &[Vec<Taint>] {
        &self.taint_sets
    }

    pub fn taints(&self, node: &NodeInfo) -> &[Taint] {
        self.taint_sets.get(node.taints.0 as usize).map_or(&[], Vec::as_slice)
    }

    /// How many placed pods use a claim.
    pub fn claim_uses(&self, key: &str) -> u32 {
        self.claim_uses.get(key).copied().unwrap_or(0)
    }

    /// What has to be made ready before a scheduling cycle may look at it.
    pub fn refresh(&mut self) {
        if self.taint_sets.is_empty() {
            self.taint_sets.push(Vec::new());
        }
        if std::mem::take(&mut self.order_is_old) {
            self.order = zones_take_turns(&self.nodes);
        }
    }

    fn place_of(&mut self, name: &str) -> NodeIndex {
        if let Some(known) = self.by_name.get(name) {
            return *known;
        }
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index.place()] = NodeInfo::new(index, name);
                index
            }
            None => {
                let index = NodeIndex(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
                self.nodes.push(NodeInfo::new(index, name));
                self.touched.push(0);
                index
            }
        };
        self.by_name.insert(name.to_owned(), index);
        index
    }

    fn taint_set(&mut self, node: &Node) -> TaintSet {
        if self.taint_sets.is_empty() {
            self.taint_sets.push(Vec::new());
        }
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let known = self.taint_sets.iter().position(|set| *set == taints);
        let number = known.unwrap_or_else(|| {
            self.taint_sets.push(taints);
            self.taint_sets.len() - 1
        });
        TaintSet(u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// Sets taints on a clean slate when most of the remembered sets belong to no node any more.
    fn forget_unused_taints(&mut self) {
        if self.taint_sets.len() <= 64 + 2 * self.by_name.len() {
            return;
        }
        let mut kept: Vec<Vec<Taint>> = vec![Vec::new()];
        for info in &mut self.nodes {
            let taints = self.taint_sets.get(info.taints.0 as usize).cloned().unwrap_or_default();
            let known = kept.iter().position(|set| *set == taints);
            let number = known.unwrap_or_else(|| {
                kept.push(taints);
                kept.len() - 1
            });
            info.taints = TaintSet(u32::try_from(number).unwrap_or(u32::MAX));
        }
        self.taint_sets = kept;
    }

    /// Adds a node or replaces what is known of it.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let index = self.place_of(&name);
        let taints = self.taint_set(&node);
        self.generation += 1;
        let info = &mut self.nodes[index.place()];
        let zone_changed = info.node.as_ref().map(|old| zone(old)) != Some(zone(&node));
        self.order_is_old |= zone_changed;
        self.images.set_node(index, info.node.as_deref(), Some(&node));
        info.set_node(node, self.generation, taints);
        for change in self.topology.set_node(index, Some(info.labels())) {
            self.pods.follow(&change);
        }
        self.touch(index);
        self.forget_unused_taints();
    }

    /// Forgets a node; its pods stay known until they are deleted.
    pub fn remove_node(&mut self, name: &str) {
        let Some(index) = self.by_name.get(name).copied() else { return };
        let info = &mut self.nodes[index.place()];
        self.images.set_node(index, info.node.as_deref(), None);
        info.node = None;
        self.generation += 1;
        info.generation = self.generation;
        self.order_is_old = true;
        for change in self.topology.set_node(index, None) {
            self.pods.follow(&change);
        }
        self.release(index);
    }

    fn touch(&mut self, index: NodeIndex) {
        self.touches += 1;
        self.touched[index.place()] = self.touches;
    }

    fn release(&mut self, index: NodeIndex) {
        let info = &self.nodes[index.place()];
        if info.node.is_none() && info.pods.is_empty() {
            self.by_name.remove(&info.name);
            self.free.push(index);
        }
    }

    /// Counts a pod on a node for now, until [`place`](Self::place) confirms it or [`displace`](Self::displace)
    /// forgets it.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: NodeIndex) {
        self.displace(&pod.key);
        self.assumed.insert(pod.key.clone());
        self.put(pod, node, true);
    }

    /// The binding of an assumed pod is done; without a confirmation it is given up at `deadline`. Deadlines come in
    /// the order of time.
    pub fn finish_binding(&mut self, key: &ObjectKey, deadline: Option<Instant>) {
        if let Some(state) = self.placed.get_mut(key).filter(|state| state.assumed) {
            state.deadline = deadline;
            self.deadlines.extend(deadline.map(|deadline| (deadline, key.clone())));
        }
    }

    /// The assumed pods that were never confirmed in time; each is named once.
    pub fn expired(&mut self, now: Instant) -> Vec<ObjectKey> {
        let due = self.deadlines.partition_point(|(deadline, _)| *deadline <= now);
        let waits = |(deadline, key): (Instant, ObjectKey)| {
            let state = self.placed.get(&key)?;
            (state.assumed && state.deadline == Some(deadline)).then_some(key)
        };
        self.deadlines.drain(..due).filter_map(waits).collect()
    }

    /// When to look for expired pods again.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Whether a pod is decided about here and not yet confirmed.
    pub fn is_assumed(&self, key: &ObjectKey) -> bool {
        self.assumed.contains(key)
    }

    /// Counts a pod where the API server says it is, instead of wherever it counted before.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.displace(&pod.key);
        let index = self.place_of(node);
        self.put(pod, index, false);
    }

    fn put(&mut self, pod: Arc<PodInfo>, node: NodeIndex, assumed: bool) {
        let keys: Vec<_> = pods::terms_of(&pod).map(|(_, _, term)| term.topology_key.clone()).collect();
        let keys: Vec<_> = keys.iter().map(|key| self.topology_key(key)).collect();
        self.pods.add(&pod, node, &keys, &self.topology);
        for claim in &pod.claims {
            *self.claim_uses.entry(format!("{}/{}", pod.key.namespace, claim.name)).or_default() += 1;
        }
        self.nodes[node.place()].add_pod(pod.clone());
        self.touch(node);
        self.placed.insert(pod.key.clone(), PodState { info: pod, node, assumed, deadline: None });
    }

    /// Stops counting a pod. Gives what was counted.
    pub fn displace(&mut self, key: &ObjectKey) -> Option<Arc<PodInfo>> {
        let state = self.placed.remove(key)?;
        self.assumed.remove(key);
        self.pods.remove(&state.info, state.node, &self.topology);
        for claim in &state.info.claims {
            let claim = format!("{}/{}", state.info.key.namespace, claim.name);
            if let Some(uses) = self.claim_uses.get_mut(&claim) {
                *uses -= 1;
                if *uses == 0 {
                    self.claim_uses.remove(&claim);
                }
            }
        }
        self.nodes[state.node.place()].remove_pod(&state.info);
        self.touch(state.node);
        self.release(state.node);
        Some(state.info)
    }

    /// A placed pod and its node.
    pub fn placed(&self, key: &ObjectKey) -> Option<(&Arc<PodInfo>, &NodeInfo)> {
        self.placed.get(key).map(|state| (&state.info, self.node(state.node)))
    }

    /// The number of a topology key, with a table of its domains from now on.
    pub fn topology_key(&mut self, key: &str) -> TopologyKey {
        let existing = self.nodes.iter().filter(|info| info.node.is_some());
        self.topology.register(key, existing.map(|info| (info.index, info.labels())))
    }

    /// Counts pods by a matcher and these topology keys from now on.
    pub fn count_pods(&mut self, counter: &CounterKey, topology_keys: &[&str]) {
        let keys: Vec<_> = topology_keys.iter().map(|key| self.topology_key(key)).collect();
        self.pods.register(counter, &keys, &self.topology);
    }

    /// Finds the affinity terms of placed pods that match a pod.
    pub fn match_terms(&mut self, pod: &PodInfo) {
        self.pods.match_terms(pod);
    }

    /// The labels of a namespace; `None` when it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        self.pods.set_namespace(name, labels);
    }

    /// Finds the nodes that a matcher matches, looking only at nodes that changed since it was last asked.
    pub fn match_nodes(&mut self, matcher: &Arc<NodeMatcher>) {
        if matcher.is_everything() {
            return;
        }
        self.uses += 1;
        if !self.matched.contains_key(matcher) {
            if self.matched.len() >= MAX_MATCHERS {
                let oldest = self.matched.iter().min_by_key(|(_, nodes)| nodes.last_used);
                if let Some(oldest) = oldest.map(|(matcher, _)| matcher.clone()) {
                    self.matched.remove(&oldest);
                }
            }
            self.matched.insert(matcher.clone(), MatchedNodes::default());
        }
        let Some(matched) = self.matched.get_mut(matcher) else { return };
        matched.last_used = self.uses;
        if matched.generation == self.generation {
            return;
        }
        matched.matches.resize(self.nodes.len(), false);
        for info in self.nodes.iter().filter(|info| info.generation > matched.generation) {
            matched.matches[info.index.place()] =
                info.node.is_some() && matcher.matches(&info.name, info.labels());
        }
        matched.generation = self.generation;
    }

    /// The nodes that [`match_nodes`](Self::match_nodes) has found, by place; `None` for all.
    pub fn matched_nodes(&self, matcher: &NodeMatcher) -> Option<&[bool]> {
        self.matched.get(matcher).map(|matched| matched.matches.as_slice())
    }
}

fn zone(node: &Node) -> (Option<&String>, Option<&String>) {
    let label = |key| node.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    (label(REGION), label(ZONE))
}

/// The existing nodes: one of each zone, then the next of each, so that those tried first are spread.
fn zones_take_turns(nodes: &[NodeInfo]) -> Vec<NodeIndex> {
    let mut zones: BTreeMap<_, Vec<NodeIndex>> = BTreeMap::new();
    for info in nodes {
        if let Some(node) = &info.node {
            zones.entry(zone(node)).or_default().push(info.index);
        }
    }
    let longest = zones.values().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|turn| zones.values().filter_map(move |zone| zone.get(turn).copied())).collect()
}

#[cfg(test)]
mod tests;
