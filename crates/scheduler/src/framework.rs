//! The contract between the scheduling cycle and its plugins. Answers to upstream's scheduling framework.
//!
//! A plugin looks at a pod once (PreFilter, PreScore) and gives back a function over nodes (Filter, Score): whatever
//! is the same for all nodes is worked out only once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::cache::{Cache, NodeInfo};
use crate::pod_info::PodInfo;

/// The highest score of a node.
pub const MAX_NODE_SCORE: i64 = 100;

/// Why a node cannot take a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Name of the plugin.
    pub plugin: &'static str,
    /// In upstream's words, each counted by itself.
    pub reasons: Vec<String>,
    /// Whether the removal of pods from the node could change it (upstream's `Unschedulable`, as opposed to
    /// `UnschedulableAndUnresolvable`).
    pub resolvable: bool,
}

/// A node's verdict on one pod.
pub type Check<'a> = Box<dyn Fn(&NodeInfo) -> Result<(), Rejection> + 'a>;

/// A filter for one pod.
pub enum Filter<'a> {
    /// The plugin has nothing to say about this pod.
    Skip,
    /// Asked for every node.
    Check(Check<'a>),
}

/// What changed in the cluster, as far as it can make a pod schedulable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClusterEvent {
    NodeAdded,
    NodeAllocatable,
    NodeLabels,
    NodeTaints,
    /// A pod was bound, or a bound pod's labels changed.
    PlacedPodAdded,
    PlacedPodDeleted,
}

/// A plugin that can exclude nodes.
pub trait FilterPlugin: Send + Sync {
    fn name(&self) -> &'static str;
    /// The events that may make a pod schedulable which this plugin has rejected (its queueing hints).
    fn events(&self) -> &'static [ClusterEvent];
    fn prepare<'a>(&self, pod: &'a PodInfo, cache: &'a Cache) -> Filter<'a>;
}

/// A score for one pod: raw scores per node, in the order of the nodes given.
pub trait ScorePlugin: Send + Sync {
    fn weight(&self) -> i64;
    /// Scores of the feasible nodes from 0 to [`MAX_NODE_SCORE`]; `None` when the plugin has nothing to say.
    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], cache: &Cache) -> Option<Vec<i64>>;
}

/// Stretches scores so that the highest becomes [`MAX_NODE_SCORE`]; with `reverse` the lowest is the best.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        if max != 0 {
            *score = *score * MAX_NODE_SCORE / max;
        }
        if reverse {
            *score = MAX_NODE_SCORE - *score;
        }
    }
}

/// Why no node can take a pod. Displays as the message of `FailedScheduling` and of the pod's condition.
#[derive(Debug, Default)]
pub struct FitError {
    pub nodes: usize,
    /// How many nodes were rejected for each reason.
    reasons: BTreeMap<String, usize>,
    /// The plugins that rejected a node.
    pub rejected_by: BTreeSet<&'static str>,
    resolvable: usize,
    /// `preemptionPolicy: Never`.
    never_preempts: bool,
}

impl FitError {
    pub fn new(never_preempts: bool) -> Self {
        Self { never_preempts, ..Self::default() }
    }

    pub fn reject(&mut self, rejection: Rejection) {
        self.nodes += 1;
        self.rejected_by.insert(rejection.plugin);
        self.resolvable += usize::from(rejection.resolvable);
        for reason in rejection.reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write_counts(f, self.nodes, self.reasons.iter().map(|(reason, count)| (*count, reason.as_str())))?;
        f.write_str(" no new claims to deallocate, preemption: ")?;
        if self.never_preempts {
            return f.write_str("not eligible due to preemptionPolicy=Never.");
        }
        let hopeless = self.nodes - self.resolvable;
        let causes = [
            (self.resolvable, "No preemption victims found for incoming pod"),
            (hopeless, "Preemption is not helpful for scheduling"),
        ];
        write_counts(f, self.nodes, causes.into_iter().filter(|(count, _)| *count > 0))
    }
}

/// `0/3 nodes are available: 1 A, 2 B.`, sorted as text, as upstream prints it.
fn write_counts<'a>(
    f: &mut fmt::Formatter<'_>,
    nodes: usize,
    reasons: impl Iterator<Item = (usize, &'a str)>,
) -> fmt::Result {
    let mut parts: Vec<String> = reasons.map(|(count, reason)| format!("{count} {reason}")).collect();
    parts.sort();
    write!(f, "0/{nodes} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(reason: &str, resolvable: bool) -> Rejection {
        Rejection { plugin: "Test", reasons: vec![reason.to_owned()], resolvable }
    }

    #[test]
    fn the_message_is_upstreams() {
        let check = |rejections: Vec<Rejection>, never: bool, expected: &str| {
            let mut error = FitError::new(never);
            rejections.into_iter().for_each(|rejection| error.reject(rejection));
            assert_eq!(error.to_string(), expected);
        };
        check(vec![], false, "no nodes available to schedule pods");
        check(
            vec![
                rejection("node(s) had untolerated taint(s)", false),
                rejection("Insufficient cpu", true),
                rejection("Insufficient cpu", true),
            ],
            false,
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu. no new claims to \
             deallocate, preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, 2 No \
             preemption victims found for incoming pod.",
        );
        check(
            vec![rejection("Insufficient memory", true)],
            true,
            "0/1 nodes are available: 1 Insufficient memory. no new claims to deallocate, preemption: not eligible due \
             to preemptionPolicy=Never.",
        );
    }

    #[test]
    fn scores_are_stretched() {
        let check = |mut scores: Vec<i64>, reverse: bool, expected: &[i64]| {
            normalize(&mut scores, reverse);
            assert_eq!(scores, expected);
        };
        check(vec![0, 5, 10], false, &[0, 50, 100]);
        check(vec![0, 5, 10], true, &[100, 50, 0]);
        check(vec![0, 0], false, &[0, 0]);
        check(vec![0, 0], true, &[100, 100]);
    }
}
