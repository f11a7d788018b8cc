//! NodeResourcesBalancedAllocation: prefers nodes on which CPU and memory run out together.

use crate::cache::{Cache, NodeInfo};
use crate::framework::{MAX_NODE_SCORE, ScorePlugin};
use crate::pod_info::PodInfo;

pub struct NodeResourcesBalancedAllocation;

fn fraction(wanted: i64, allocatable: i64, taken: i64) -> f64 {
    if allocatable == 0 { 1.0 } else { ((taken + wanted) as f64 / allocatable as f64).min(1.0) }
}

impl ScorePlugin for NodeResourcesBalancedAllocation {
    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], _: &Cache) -> Option<Vec<i64>> {
        let wanted = &pod.requests;
        // Upstream skips pods without requests: they change no balance.
        if wanted.milli_cpu == 0 && wanted.memory == 0 {
            return None;
        }
        let score = |node: &&NodeInfo| {
            let (offered, taken) = (&node.allocatable, &node.requested);
            let cpu = fraction(wanted.milli_cpu, offered.milli_cpu, taken.milli_cpu);
            let memory = fraction(wanted.memory, offered.memory, taken.memory);
            // The standard deviation of two values is half their distance.
            let deviation = (cpu - memory).abs() / 2.0;
            // Between 0 and 100, so the cast cannot cut anything off but the fraction.
            ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
        };
        Some(nodes.iter().map(score).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};

    #[test]
    fn the_better_balanced_node_scores_higher() {
        let mut cache = Cache::default();
        cache.set_node(node("balanced", "4", "4Gi"));
        cache.set_node(node("slanted", "4", "40Gi"));
        let nodes: Vec<_> = cache.nodes().collect();
        let plugin = NodeResourcesBalancedAllocation;
        assert_eq!(plugin.score(&PodInfo::new(pod("a", "2", "2Gi")), &nodes, &cache).unwrap(), [100, 77]);
        assert!(plugin.score(&PodInfo::new(pod("none", "0", "0")), &nodes, &cache).is_none());
    }
}
