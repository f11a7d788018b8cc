//! One scheduling cycle: from a pod and the cluster to the nodes that can take it, and the best of them. Pure. Answers
//! to upstream's `schedule_one.go`.

use rand::Rng;

use crate::cache::{Cache, NodeIndex};
use crate::framework::status::{Code, Diagnosis, Status};
use crate::framework::{ExtensionPoint, Framework};
use crate::nominator::Nominator;
use crate::pod_info::PodInfo;
use crate::shared::Shared;

/// So many feasible nodes are looked for at least.
const MIN_FEASIBLE_NODES: usize = 100;
/// The smallest share of the nodes that is looked for, percent.
const MIN_PERCENTAGE: usize = 5;

/// What the filters leave.
#[derive(Debug, Default)]
pub struct Feasible {
    pub nodes: Vec<NodeIndex>,
    /// Why the others are not among them.
    pub diagnosis: Diagnosis,
}

/// Where the search for feasible nodes goes on; each pod begins where the one before it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor(usize);

/// How many feasible nodes are enough. `percentage` 0 adapts to the number of nodes.
pub fn num_feasible_nodes_to_find(percentage: i32, nodes: usize) -> usize {
    if nodes < MIN_FEASIBLE_NODES {
        return nodes;
    }
    let percentage = match usize::try_from(percentage) {
        Ok(0) | Err(_) => 50_usize.saturating_sub(nodes / 125).max(MIN_PERCENTAGE),
        Ok(given) => given,
    };
    (nodes * percentage / 100).max(MIN_FEASIBLE_NODES)
}

/// What a cycle needs besides the pod.
pub struct Cycle<'a> {
    pub framework: &'a Framework,
    pub cache: &'a Cache,
    pub nominator: &'a Nominator,
    /// Of the nodes to score, when the profile does not say.
    pub percentage: i32,
    /// Whether extenders filter or prioritise: one feasible node is not enough then.
    pub extenders: bool,
}

impl Cycle<'_> {
    /// The nodes that pass all filters; enough of them, not all. Fails when a plugin does.
    pub fn find_feasible(
        &self,
        pod: &PodInfo,
        cursor: &mut Cursor,
        shared: &mut Shared,
    ) -> Result<Feasible, Status> {
        let order = self.cache.order();
        let mut feasible = Feasible { diagnosis: Diagnosis::new(order.len()), ..Feasible::default() };
        if order.is_empty() {
            return Ok(feasible);
        }
        let mut filters = match self.framework.run_pre_filter(pod, self.cache) {
            Ok(filters) => filters,
            Err(status) if status.code == Code::Error => return Err(status),
            Err(status) => {
                feasible.diagnosis.pre_filter = status.message();
                feasible.diagnosis.note_plugin(&status);
                feasible.diagnosis.absent = Some(status);
                return Ok(feasible);
            }
        };
        // Preemption has made room there: most likely the only node there is.
        let nominated = pod.nominated_node_name().or_else(|| self.nominator.node_of(&pod.key));
        if let Some(node) = nominated.and_then(|name| self.cache.node_by_name(name)) {
            let allowed = filters.nodes.as_ref().is_none_or(|nodes| nodes.contains(&node.name));
            if allowed && filters.run_with_nominated(pod, node, self.nominator).is_ok() {
                feasible.nodes.push(node.index);
                return Ok(feasible);
            }
        }
        let restricted: Option<Vec<NodeIndex>> = filters.nodes.as_ref().map(|names| {
            names.iter().filter_map(|name| Some(self.cache.node_by_name(name)?.index)).collect()
        });
        if restricted.is_some() {
            let plugins: Vec<_> = filters.restricted_by.iter().copied().collect();
            let message = format!("node(s) didn't satisfy plugin(s) [{}]", plugins.join(" "));
            feasible.diagnosis.absent = Some(Status::unresolvable(message));
            feasible.diagnosis.unschedulable_plugins.extend(plugins);
        }
        let candidates = restricted.as_deref().unwrap_or(order);
        let percentage = self.framework.percentage_of_nodes_to_score.unwrap_or(self.percentage);
        let scoring = !self.framework.at(ExtensionPoint::Score).is_empty() || self.extenders;
        let enough = if scoring { num_feasible_nodes_to_find(percentage, candidates.len()) } else { 1 };
        let share = self.nominator.is_empty() && filters.are_local();
        let mut looked_at = 0;
        for offset in 0..candidates.len() {
            let index = candidates[(cursor.0 + offset) % candidates.len()];
            looked_at += 1;
            let judged;
            let verdict = match share {
                true => shared.verdict(self.cache, index, || filters.run(self.cache.node(index))),
                false => {
                    judged = filters.run_with_nominated(pod, self.cache.node(index), self.nominator);
                    &judged
                }
            };
            match verdict {
                Ok(()) => {
                    feasible.nodes.push(index);
                    if feasible.nodes.len() == enough {
                        break;
                    }
                }
                Err(status) if status.code == Code::Error => return Err(status.clone()),
                Err(status) => feasible.diagnosis.refuse(index, status),
            }
        }
        cursor.0 = (cursor.0 + looked_at) % order.len();
        Ok(feasible)
    }

    /// Weighted scores of nodes, in their order.
    pub fn prioritize(&self, pod: &PodInfo, nodes: &[NodeIndex], shared: &mut Shared) -> Vec<i64> {
        self.framework.run_score(pod, self.cache, nodes, shared)
    }
}

/// Of the nodes with the highest score any.
pub fn select_host(nodes: &[NodeIndex], scores: &[i64], random: &mut impl Rng) -> Option<NodeIndex> {
    let best = scores.iter().copied().max()?;
    let equals = scores.iter().filter(|score| **score == best).count();
    let chosen = random.random_range(0..equals);
    let mut candidates = nodes.iter().zip(scores).filter(|(_, score)| **score == best);
    candidates.nth(chosen).map(|(node, _)| *node)
}
