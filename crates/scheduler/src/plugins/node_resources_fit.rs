//! NodeResourcesFit: a node must have what a pod asks for; of those that have it, the emptier one is better
//! (LeastAllocated).

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, Filter, FilterPlugin, MAX_NODE_SCORE, Rejection, ScorePlugin};
use crate::pod_info::PodInfo;

pub struct NodeResourcesFit;

fn check(pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
    let mut reasons = Vec::new();
    let mut resolvable = true;
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) + 1 > node.allowed_pods {
        reasons.push("Too many pods".to_owned());
    }
    let mut compare = |name: &str, wanted: i64, allocatable: i64, taken: i64| {
        if wanted > 0 && wanted > allocatable - taken {
            reasons.push(format!("Insufficient {name}"));
            // No eviction makes a node larger than it is.
            resolvable &= wanted <= allocatable;
        }
    };
    let (wanted, offered, taken) = (&pod.requests, &node.allocatable, &node.requested);
    compare("cpu", wanted.milli_cpu, offered.milli_cpu, taken.milli_cpu);
    compare("memory", wanted.memory, offered.memory, taken.memory);
    compare(
        "ephemeral-storage",
        wanted.ephemeral_storage,
        offered.ephemeral_storage,
        taken.ephemeral_storage,
    );
    for (name, amount) in &wanted.scalar {
        let of = |resources: &crate::resources::Resources| resources.scalar.get(name).copied().unwrap_or(0);
        compare(name, *amount, of(offered), of(taken));
    }
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Rejection { plugin: "NodeResourcesFit", reasons, resolvable })
    }
}

impl FilterPlugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn events(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeAdded, ClusterEvent::NodeAllocatable, ClusterEvent::PlacedPodDeleted]
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Cache) -> Filter<'a> {
        Filter::Check(Box::new(|node: &NodeInfo| check(pod, node)))
    }
}

impl ScorePlugin for NodeResourcesFit {
    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], _: &Cache) -> Option<Vec<i64>> {
        let free = |wanted: i64, allocatable: i64, taken: i64| {
            let left = allocatable - taken - wanted;
            if allocatable == 0 || left < 0 { 0 } else { left.saturating_mul(MAX_NODE_SCORE) / allocatable }
        };
        let score = |node: &&NodeInfo| {
            let (wanted, offered, taken) =
                (&pod.non_zero_requests, &node.allocatable, &node.non_zero_requested);
            let cpu = free(wanted.milli_cpu, offered.milli_cpu, taken.milli_cpu);
            let memory = free(wanted.memory, offered.memory, taken.memory);
            (cpu + memory) / 2
        };
        Some(nodes.iter().map(score).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod, pod_with};
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn what_fits_and_what_does_not() {
        let mut cache = Cache::default();
        cache.set_node(node("n", "2", "1Gi"));
        cache.place(Arc::new(PodInfo::new(pod("there", "1500m", "512Mi"))), "n");
        let verdict = |pod: Arc<_>| {
            let info = PodInfo::new(pod);
            check(&info, cache.nodes().next().unwrap())
                .map_err(|rejection| (rejection.reasons.join(","), rejection.resolvable))
        };
        assert_eq!(verdict(pod("a", "500m", "512Mi")), Ok(()));
        assert_eq!(verdict(pod("b", "0", "0")), Ok(()));
        assert_eq!(verdict(pod("c", "501m", "1Mi")), Err(("Insufficient cpu".into(), true)));
        assert_eq!(
            verdict(pod("d", "3", "600Mi")),
            Err(("Insufficient cpu,Insufficient memory".into(), false))
        );
        let gpu = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]});
        assert_eq!(verdict(pod_with("e", gpu)), Err(("Insufficient example.com/gpu".into(), false)));
    }

    #[test]
    fn a_full_node_takes_no_more_pods() {
        let mut cache = Cache::default();
        cache.set_node(node("n", "1", "1Gi"));
        for number in 0..110 {
            cache.place(Arc::new(PodInfo::new(pod(&format!("p{number}"), "0", "0"))), "n");
        }
        let info = PodInfo::new(pod("last", "0", "0"));
        let rejection = check(&info, cache.nodes().next().unwrap()).unwrap_err();
        assert_eq!(rejection.reasons, ["Too many pods"]);
    }

    #[test]
    fn the_emptier_node_scores_higher() {
        let mut cache = Cache::default();
        cache.set_node(node("empty", "4", "4Gi"));
        cache.set_node(node("half", "4", "4Gi"));
        cache.place(Arc::new(PodInfo::new(pod("there", "2", "2Gi"))), "half");
        let nodes: Vec<_> = cache.nodes().collect();
        let scores = NodeResourcesFit.score(&PodInfo::new(pod("a", "1", "1Gi")), &nodes, &cache).unwrap();
        assert_eq!(scores, [75, 25]);
    }
}
