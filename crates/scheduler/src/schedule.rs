//! One scheduling cycle: from a pod and the cluster to a node, or to why there is none. Pure.

use rand::Rng;
use rand::seq::IndexedRandom;

use crate::cache::{Cache, NodeInfo};
use crate::framework::{Filter, FilterPlugin, FitError, ScorePlugin};
use crate::pod_info::PodInfo;

/// The plugins in force.
pub struct Profile {
    pub filters: Vec<Box<dyn FilterPlugin>>,
    pub scores: Vec<Box<dyn ScorePlugin>>,
}

impl Profile {
    /// Chooses the best node for a pod; of equally good ones any.
    pub fn schedule(&self, pod: &PodInfo, cache: &Cache, random: &mut impl Rng) -> Result<String, FitError> {
        let feasible = self.feasible(pod, cache)?;
        let mut totals = vec![0_i64; feasible.len()];
        if feasible.len() > 1 {
            for plugin in &self.scores {
                if let Some(scores) = plugin.score(pod, &feasible, cache) {
                    let weighted = scores.into_iter().map(|score| score * plugin.weight());
                    totals.iter_mut().zip(weighted).for_each(|(total, score)| *total += score);
                }
            }
        }
        let best = totals.iter().copied().max();
        let candidates: Vec<_> = feasible
            .iter()
            .zip(&totals)
            .filter(|(_, total)| Some(**total) == best)
            .map(|(node, _)| node)
            .collect();
        match candidates.choose(random) {
            Some(node) => Ok(node.name.clone()),
            None => Err(FitError::new(never_preempts(pod))),
        }
    }

    fn feasible<'a>(&self, pod: &PodInfo, cache: &'a Cache) -> Result<Vec<&'a NodeInfo>, FitError> {
        let prepared = self.filters.iter().map(|plugin| plugin.prepare(pod, cache));
        let checks: Vec<_> = prepared
            .filter_map(|filter| match filter {
                Filter::Skip => None,
                Filter::Check(check) => Some(check),
            })
            .collect();
        let mut error = FitError::new(never_preempts(pod));
        let mut feasible = Vec::new();
        for node in cache.nodes() {
            match checks.iter().try_for_each(|check| check(node)) {
                Ok(()) => feasible.push(node),
                Err(rejection) => error.reject(rejection),
            }
        }
        if feasible.is_empty() { Err(error) } else { Ok(feasible) }
    }
}

fn never_preempts(pod: &PodInfo) -> bool {
    pod.spec().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins;
    use crate::testing::{labelled_node, node, pod, pod_with};
    use rand::SeedableRng;
    use serde_json::json;
    use std::sync::Arc;

    fn profile() -> Profile {
        Profile { filters: plugins::filters(), scores: plugins::scores() }
    }

    fn choose(pod: &PodInfo, cache: &Cache) -> Result<String, String> {
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        profile().schedule(pod, cache, &mut random).map_err(|error| error.to_string())
    }

    #[test]
    fn pods_fill_nodes_evenly_and_never_beyond_what_they_have() {
        let mut cache = Cache::default();
        for name in ["a", "b", "c"] {
            cache.set_node(node(name, "2", "4Gi"));
        }
        for number in 0..6 {
            let info = Arc::new(PodInfo::new(pod(&format!("p{number}"), "1", "1Gi")));
            let chosen = choose(&info, &cache).unwrap();
            cache.place(info, &chosen);
        }
        assert!(cache.nodes().all(|node| node.pods.len() == 2));
        let refused = choose(&PodInfo::new(pod("last", "1", "1Gi")), &cache).unwrap_err();
        assert_eq!(
            refused,
            "0/3 nodes are available: 3 Insufficient cpu. no new claims to deallocate, preemption: 0/3 nodes are \
             available: 3 No preemption victims found for incoming pod."
        );
    }

    #[test]
    fn each_node_is_rejected_for_its_first_reason() {
        let mut cache = Cache::default();
        let taint = json!({"taints": [{"key": "k", "effect": "NoSchedule"}]});
        cache.set_node(labelled_node("tainted", json!({}), taint));
        cache.set_node(labelled_node("cordoned", json!({}), json!({"unschedulable": true})));
        cache.set_node(labelled_node("other", json!({"disk": "hdd"}), json!({})));
        let refused = choose(&PodInfo::new(pod_with("p", json!({"nodeSelector": {"disk": "ssd"}}))), &cache)
            .unwrap_err();
        assert!(
            refused.starts_with(
                "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had \
                 untolerated taint(s), 1 node(s) were unschedulable. "
            ),
            "{refused}"
        );
        assert_eq!(choose(&PodInfo::new(pod_with("p", json!({}))), &cache).as_deref(), Ok("other"));
    }

    #[test]
    fn host_ports_keep_pods_apart() {
        let mut cache = Cache::default();
        cache.set_node(node("a", "2", "4Gi"));
        let spec = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]}]});
        cache.place(Arc::new(PodInfo::new(pod_with("first", spec.clone()))), "a");
        let refused = choose(&PodInfo::new(pod_with("second", spec)), &cache).unwrap_err();
        assert!(refused.starts_with(
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
        ));
    }
}
