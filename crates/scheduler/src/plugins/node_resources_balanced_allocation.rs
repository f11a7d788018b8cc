//! Nodes are preferred on which all resources would run out together.

use super::node_resources_fit::Scored;
use crate::cache::{Cache, NodeInfo};
use crate::config::{NodeResourcesBalancedAllocationArgs, ResourceSpec};
use crate::framework::{ExtensionPoint, MAX_NODE_SCORE, Plugin, Scorer};
use crate::pod_info::PodInfo;

pub struct NodeResourcesBalancedAllocation {
    resources: Vec<ResourceSpec>,
}

impl NodeResourcesBalancedAllocation {
    pub fn new(args: NodeResourcesBalancedAllocationArgs) -> Self {
        Self { resources: args.resources }
    }
}

struct Balance(Vec<Scored>);

impl Scorer for Balance {
    fn score(&self, node: &NodeInfo) -> i64 {
        let fraction = |resource: &Scored| {
            let capacity = resource.allocatable(node);
            (capacity > 0).then(|| (resource.requested(node) as f64 / capacity as f64).min(1.0))
        };
        let fractions = || self.0.iter().filter_map(fraction);
        let (count, sum) = fractions().fold((0.0, 0.0), |(count, sum), one| (count + 1.0, sum + one));
        let deviation: f64 = if count < 2.0 {
            0.0
        } else {
            let mean = sum / count;
            (fractions().map(|one| (one - mean) * (one - mean)).sum::<f64>() / count).sqrt()
        };
        // Between 0 and 100, so the cast cuts off nothing but the fraction.
        ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
    }

    fn is_local(&self) -> bool {
        true
    }
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreScore, ExtensionPoint::Score]
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cache,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Scorer + 'a>> {
        let resources = Scored::of(&self.resources, pod, false);
        // A pod without requests changes no balance.
        let changes = resources.iter().any(|resource| resource.wanted > 0);
        changes.then(|| Box::new(Balance(resources)) as Box<dyn Scorer + 'a>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PluginArgs;
    use crate::testing::{Scene, node, pod};

    #[test]
    fn the_better_balanced_node_scores_higher() {
        let plugin = match PluginArgs::parse("NodeResourcesBalancedAllocation", &serde_json::Value::Null) {
            Ok(PluginArgs::NodeResourcesBalancedAllocation(args)) => {
                NodeResourcesBalancedAllocation::new(args)
            }
            _ => unreachable!(),
        };
        let mut scene = Scene::new(plugin);
        scene.node(node("balanced", "4", "4Gi"));
        scene.node(node("slanted", "4", "40Gi"));
        assert_eq!(scene.scores(pod("a", "2", "2Gi")).unwrap(), [100, 77]);
        assert!(scene.scores(pod("none", "0", "0")).is_none());
    }
}
