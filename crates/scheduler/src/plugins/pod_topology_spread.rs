//! Pods spread over the values of a node label: strictly (`DoNotSchedule`) or by score (`ScheduleAnyway`). Pods without
//! constraints of their own are spread by the default ones, with the pods of their Services and controller.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, TopologySpreadConstraint};

use super::taint_toleration::tolerates_all;
use crate::cache::{Cache, CounterKey, Counts, Domain, NodeInfo, TopologyTable};
use crate::config::PodTopologySpreadArgs;
use crate::framework::{
    ActionType, Change, ClusterEvent, EventResource, ExtensionPoint, Filter, MAX_NODE_SCORE, Plugin,
    PreFilter, QueueingHint, Registration, Scorer, Status,
};
use crate::pod_info::{PodInfo, SpreadConstraint, WhenUnsatisfiable};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

pub struct PodTopologySpread {
    defaults: Vec<TopologySpreadConstraint>,
    /// The defaults are the system's: nodes may lack a label then.
    system: bool,
}

impl PodTopologySpread {
    pub fn new(args: PodTopologySpreadArgs) -> Self {
        let system = args.defaulting_type == "System";
        let constraint = |key: &str, max_skew| TopologySpreadConstraint {
            topology_key: key.to_owned(),
            max_skew,
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            ..TopologySpreadConstraint::default()
        };
        let defaults = match system {
            true => vec![constraint(HOSTNAME, 3), constraint(ZONE, 5)],
            false => args.default_constraints,
        };
        Self { defaults, system }
    }

    /// The pod's constraints, or the default ones.
    fn constraints<'a>(&self, pod: &'a PodInfo, cache: &Cache) -> Cow<'a, [SpreadConstraint]> {
        if !pod.spread_constraints.is_empty() || self.defaults.is_empty() {
            return Cow::Borrowed(&pod.spread_constraints);
        }
        let Some(selector) = cache.workloads.selector_of(pod) else { return Cow::Borrowed(&[]) };
        let of =
            |constraint| SpreadConstraint::with_selector(constraint, &pod.key.namespace, selector.clone());
        Cow::Owned(self.defaults.iter().filter_map(of).collect())
    }

    fn of_kind(&self, pod: &PodInfo, cache: &Cache, when: WhenUnsatisfiable) -> Vec<SpreadConstraint> {
        let all = self.constraints(pod, cache);
        all.iter().filter(|constraint| constraint.when == when).cloned().collect()
    }
}

fn counter(constraint: &SpreadConstraint) -> CounterKey {
    CounterKey { matchers: constraint.matcher.clone(), live_only: true }
}

/// Whether pods on a node count for a constraint of this pod.
fn counts(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeInfo, cache: &Cache) -> bool {
    let allowed = || cache.matched_nodes(&pod.node_matcher).is_none_or(|nodes| nodes[node.index.place()]);
    (!constraint.honor_affinity || allowed())
        && (!constraint.honor_taints || tolerates_all(pod, cache.taints(node)))
}

/// Whether all nodes count that have the label.
fn all_count(constraint: &SpreadConstraint, pod: &PodInfo, cache: &Cache) -> bool {
    (!constraint.honor_affinity || pod.node_matcher.is_everything())
        && (!constraint.honor_taints || cache.taint_sets().iter().all(|taints| tolerates_all(pod, taints)))
}

struct Spread<'a> {
    constraint: SpreadConstraint,
    table: &'a TopologyTable,
    /// Matching pods by domain.
    matching: Cow<'a, [i64]>,
    /// The two domains with the fewest: the second is the one that counts when the first gets a pod.
    fewest: [(Option<Domain>, i64); 2],
    domains: i64,
    /// Whether the pod itself is one of those that are spread.
    own: i64,
    delta: Vec<(Domain, i64)>,
}

impl<'a> Spread<'a> {
    fn new(
        constraint: SpreadConstraint,
        pod: &PodInfo,
        cache: &'a Cache,
        nodes: Option<&[&'a NodeInfo]>,
    ) -> Option<Self> {
        let key = cache.topology().key(&constraint.topology_key)?;
        let table = cache.topology().table(key);
        let counted = cache.pods().counts(&counter(&constraint))?;
        let (matching, present): (Cow<'a, [i64]>, Vec<Domain>) = match nodes {
            None => (Cow::Borrowed(counted.domains(key)), table.live_domains().collect()),
            Some(nodes) => {
                let mut matching = vec![0; table.len()];
                let mut seen = vec![false; table.len()];
                let eligible = nodes.iter().filter(|node| counts(&constraint, pod, node, cache));
                for node in eligible {
                    let Some(domain) = table.domain(node.index) else { continue };
                    seen[domain.place()] = true;
                    matching[domain.place()] += counted.on(node.index);
                }
                let present = table.live_domains().filter(|domain| seen[domain.place()]).collect();
                (Cow::Owned(matching), present)
            }
        };
        let mut fewest = [(None, i64::MAX); 2];
        for domain in &present {
            let count = matching.get(domain.place()).copied().unwrap_or(0);
            if count < fewest[0].1 {
                fewest = [(Some(*domain), count), fewest[0]];
            } else if count < fewest[1].1 {
                fewest[1] = (Some(*domain), count);
            }
        }
        let own = constraint.matcher.iter().all(|matcher| cache.pods().matches(matcher, pod));
        let domains = i64::try_from(present.len()).unwrap_or(i64::MAX);
        Some(Self { constraint, table, matching, fewest, domains, own: i64::from(own), delta: Vec::new() })
    }

    fn delta(&self, domain: Domain) -> i64 {
        self.delta.iter().find(|(other, _)| *other == domain).map_or(0, |(_, amount)| *amount)
    }

    fn at(&self, domain: Domain) -> i64 {
        self.matching.get(domain.place()).copied().unwrap_or(0) + self.delta(domain)
    }

    /// The fewest matching pods of any domain. Hypothetical pods are all in one domain: that of the node in question.
    fn minimum(&self) -> i64 {
        if self.domains < self.constraint.min_domains {
            // The missing domains count as empty ones.
            return 0;
        }
        let Some((changed, _)) = self.delta.first().copied() else { return self.fewest[0].1 };
        let others = if self.fewest[0].0 == Some(changed) { self.fewest[1].1 } else { self.fewest[0].1 };
        others.min(self.at(changed))
    }

    fn change(&mut self, domain: Domain, amount: i64) {
        match self.delta.iter().position(|(other, _)| *other == domain) {
            Some(place) => {
                self.delta[place].1 += amount;
                if self.delta[place].1 == 0 {
                    self.delta.swap_remove(place);
                }
            }
            None => self.delta.push((domain, amount)),
        }
    }
}

struct Constraints<'a> {
    pod: &'a PodInfo,
    cache: &'a Cache,
    spreads: Vec<Spread<'a>>,
}

impl Constraints<'_> {
    fn change(&mut self, pod: &PodInfo, node: &NodeInfo, amount: i64) {
        if pod.terminating {
            return;
        }
        for spread in &mut self.spreads {
            let matches =
                spread.constraint.matcher.iter().all(|matcher| self.cache.pods().matches(matcher, pod));
            if matches
                && counts(&spread.constraint, self.pod, node, self.cache)
                && let Some(domain) = spread.table.domain(node.index)
            {
                spread.change(domain, amount);
            }
        }
    }
}

impl Filter for Constraints<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        for spread in &self.spreads {
            let Some(domain) = spread.table.domain(node.index) else {
                return Err(Status::unresolvable(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            if spread.at(domain) + spread.own - spread.minimum() > spread.constraint.max_skew {
                return Err(Status::unschedulable("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node, 1);
    }

    fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node, -1);
    }
}

struct Soft<'a> {
    table: &'a TopologyTable,
    /// By domain; on hosts each node's own.
    matching: Matching<'a>,
    max_skew: i64,
    weight: f64,
}

enum Matching<'a> {
    ByNode(&'a Counts),
    ByDomain(Cow<'a, [i64]>),
}

struct Preference<'a> {
    softs: Vec<Soft<'a>>,
    /// Nodes that lack one of the labels come last.
    require_all: bool,
}

impl Preference<'_> {
    fn ignores(&self, node: &NodeInfo) -> bool {
        self.require_all && self.softs.iter().any(|soft| soft.table.domain(node.index).is_none())
    }
}

impl Scorer for Preference<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        if self.ignores(node) {
            return 0;
        }
        let weighted = self.softs.iter().filter_map(|soft| {
            let domain = soft.table.domain(node.index)?;
            let count = match &soft.matching {
                Matching::ByNode(counts) => counts.on(node.index),
                Matching::ByDomain(counts) => counts.get(domain.place()).copied().unwrap_or(0),
            };
            Some(count as f64 * soft.weight + (soft.max_skew - 1) as f64)
        });
        // At most the number of pods times ten.
        weighted.sum::<f64>().round() as i64
    }

    fn normalize(&self, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let (mut lowest, mut highest) = (i64::MAX, 0);
        for (node, score) in nodes.iter().zip(&*scores) {
            if !self.ignores(node) {
                lowest = lowest.min(*score);
                highest = highest.max(*score);
            }
        }
        for (node, score) in nodes.iter().zip(scores) {
            *score = match highest {
                _ if self.ignores(node) => 0,
                0 => MAX_NODE_SCORE,
                _ => MAX_NODE_SCORE * (highest + lowest - *score) / highest,
            };
        }
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreFilter, ExtensionPoint::Filter, ExtensionPoint::PreScore, ExtensionPoint::Score]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![
            Registration::new(
                EventResource::AssignedPod,
                ActionType::ADD
                    | ActionType::DELETE
                    | ActionType::UPDATE_POD_LABEL
                    | ActionType::UPDATE_OTHER,
            ),
            Registration::new(
                EventResource::TargetPod,
                ActionType::UPDATE_POD_LABEL | ActionType::UPDATE_POD_TOLERATION,
            ),
            Registration::new(
                EventResource::Node,
                ActionType::ADD
                    | ActionType::DELETE
                    | ActionType::UPDATE_NODE_LABEL
                    | ActionType::UPDATE_NODE_TAINT,
            ),
        ]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, cache: &Cache) -> QueueingHint {
        let hard = self.of_kind(pod, cache, WhenUnsatisfiable::DoNotSchedule);
        let spread = |other: &PodInfo| {
            !other.terminating
                && hard.iter().any(|constraint| {
                    constraint.matcher.iter().all(|matcher| cache.pods().matches(matcher, other))
                })
        };
        match &event.change {
            Change::Pod(_, Some(new)) if new.uid == pod.uid => QueueingHint::Queue,
            Change::Pod(old, new) => {
                let before = old.as_ref().is_some_and(|old| spread(old));
                let after = new.as_ref().is_some_and(|new| spread(new));
                QueueingHint::queue_if(before != after)
            }
            Change::Node(old, new) => {
                let labelled = |node: &Option<Arc<Node>>| {
                    node.as_ref().and_then(|node| node.metadata.labels.as_ref()).is_some_and(|labels| {
                        hard.iter().all(|constraint| labels.contains_key(&constraint.topology_key))
                    })
                };
                QueueingHint::queue_if(labelled(old) || labelled(new))
            }
            _ => QueueingHint::Queue,
        }
    }

    fn prepare(&self, pod: &PodInfo, cache: &mut Cache) {
        if pod.spread_constraints.is_empty() && !self.defaults.is_empty() {
            cache.workloads.resolve(pod);
        }
        let constraints = self.constraints(pod, cache);
        if !constraints.is_empty() {
            cache.match_nodes(&pod.node_matcher);
        }
        for constraint in constraints.iter() {
            cache.count_pods(&counter(constraint), &[&constraint.topology_key]);
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        let hard = self.of_kind(pod, cache, WhenUnsatisfiable::DoNotSchedule);
        if hard.is_empty() {
            return PreFilter::Skip;
        }
        let nodes = eligible_nodes(&hard, pod, cache);
        let spreads =
            hard.into_iter().filter_map(|constraint| Spread::new(constraint, pod, cache, nodes.as_deref()));
        PreFilter::Filter(Box::new(Constraints { pod, cache, spreads: spreads.collect() }))
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cache: &'a Cache,
        nodes: &[&'a NodeInfo],
    ) -> Option<Box<dyn Scorer + 'a>> {
        let soft = self.of_kind(pod, cache, WhenUnsatisfiable::ScheduleAnyway);
        if soft.is_empty() {
            return None;
        }
        let require_all = !pod.spread_constraints.is_empty() || !self.system;
        let tables: Option<Vec<_>> = soft
            .iter()
            .map(|constraint| Some(cache.topology().table(cache.topology().key(&constraint.topology_key)?)))
            .collect();
        let tables = tables?;
        let scored: Vec<_> = nodes
            .iter()
            .filter(|node| !require_all || tables.iter().all(|table| table.domain(node.index).is_some()))
            .collect();
        // Without all labels a node's pods do not count, unless the constraints are the system's.
        let eligible = if require_all { eligible_nodes(&soft, pod, cache) } else { None };
        let softs = soft.iter().zip(&tables).filter_map(|(constraint, table)| {
            let key = cache.topology().key(&constraint.topology_key)?;
            let counted = cache.pods().counts(&counter(constraint))?;
            let (matching, size) = if constraint.topology_key == HOSTNAME {
                (Matching::ByNode(counted), scored.len())
            } else {
                let matching = match &eligible {
                    None if all_count(constraint, pod, cache) => Cow::Borrowed(counted.domains(key)),
                    nodes => {
                        let mut matching = vec![0; table.len()];
                        let mut add = |node: &NodeInfo| {
                            if let Some(domain) = table.domain(node.index)
                                && counts(constraint, pod, node, cache)
                            {
                                matching[domain.place()] += counted.on(node.index);
                            }
                        };
                        match nodes {
                            Some(nodes) => nodes.iter().for_each(|node| add(node)),
                            None => cache.nodes().for_each(&mut add),
                        }
                        Cow::Owned(matching)
                    }
                };
                let mut seen = vec![false; table.len()];
                let domains = scored.iter().filter_map(|node| table.domain(node.index));
                domains.for_each(|domain| seen[domain.place()] = true);
                (Matching::ByDomain(matching), seen.iter().filter(|seen| **seen).count())
            };
            Some(Soft { table, matching, max_skew: constraint.max_skew, weight: ((size + 2) as f64).ln() })
        });
        Some(Box::new(Preference { softs: softs.collect(), require_all }))
    }
}

/// The nodes that have all labels, unless these are all nodes that have any of them and all of these count: the counts
/// by domain are right then as they are.
fn eligible_nodes<'a>(
    constraints: &[SpreadConstraint],
    pod: &PodInfo,
    cache: &'a Cache,
) -> Option<Vec<&'a NodeInfo>> {
    let total = cache.order().len();
    let tables = || {
        constraints.iter().filter_map(|constraint| {
            Some(cache.topology().table(cache.topology().key(&constraint.topology_key)?))
        })
    };
    let complete = constraints.len() == 1 || tables().all(|table| table.nodes == total);
    if complete && constraints.iter().all(|constraint| all_count(constraint, pod, cache)) {
        return None;
    }
    Some(cache.nodes().filter(|node| tables().all(|table| table.domain(node.index).is_some())).collect())
}
