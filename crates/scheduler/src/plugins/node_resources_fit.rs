//! A node must have what a pod asks for; among those that do, the strategy prefers emptier or fuller ones.

use std::borrow::Cow;
use std::sync::Arc;

use crate::cache::{Cache, NodeInfo};
use crate::config::{NodeResourcesFitArgs, ResourceSpec, ScoringStrategy, UtilizationShapePoint};
use crate::dynamic_resources::{Claims, stands_for};
use crate::framework::{
    ActionType, Change, ClusterEvent, Code, EventResource, ExtensionPoint, Filter, MAX_NODE_SCORE, Plugin,
    PreFilter, QueueingHint, Registration, Scorer, Status,
};
use crate::pod_info::PodInfo;
use crate::resources::Resources;

pub struct NodeResourcesFit {
    args: NodeResourcesFitArgs,
    strategy: Strategy,
    resources: Vec<ResourceSpec>,
}

#[derive(Debug, Clone)]
enum Strategy {
    LeastAllocated,
    MostAllocated,
    RequestedToCapacityRatio(Vec<UtilizationShapePoint>),
}

impl NodeResourcesFit {
    pub fn new(mut args: NodeResourcesFitArgs) -> Self {
        let given = args.scoring_strategy.take();
        let (strategy, resources) = match given {
            None => (Strategy::LeastAllocated, Vec::new()),
            Some(ScoringStrategy { kind, resources, requested_to_capacity_ratio }) => {
                let strategy = match (kind.as_str(), requested_to_capacity_ratio) {
                    ("MostAllocated", _) => Strategy::MostAllocated,
                    ("RequestedToCapacityRatio", Some(ratio)) => {
                        Strategy::RequestedToCapacityRatio(ratio.shape)
                    }
                    _ => Strategy::LeastAllocated,
                };
                (strategy, resources)
            }
        };
        Self { args, strategy, resources }
    }

    fn ignores(&self, name: &str) -> bool {
        let group = name.split_once('/').map_or("", |(group, _)| group);
        self.args.ignored_resources.iter().any(|ignored| ignored == name)
            || self.args.ignored_resource_groups.iter().any(|ignored| ignored == group)
    }
}

struct Fit<'a> {
    cache: &'a Cache,
    wanted: &'a Resources,
    /// Extended resources, without those that are ignored.
    scalar: Vec<(&'a String, i64)>,
    /// Whether devices may stand behind one of them (KEP-5004).
    devices: bool,
}

impl<'a> Fit<'a> {
    fn of(plugin: &NodeResourcesFit, pod: &'a PodInfo, cache: &'a Cache) -> Self {
        let native = |name: &str| !crate::config::is_extended_resource_name(name);
        let counts =
            |(name, amount): &(&String, &i64)| **amount > 0 && (native(name) || !plugin.ignores(name));
        let scalar = pod.requests.scalar.iter().filter(counts);
        Self {
            cache,
            wanted: &pod.requests,
            scalar: scalar.map(|(name, amount)| (name, *amount)).collect(),
            devices: cache.claims.classes_of_resources(pod).next().is_some(),
        }
    }
}

impl Filter for Fit<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        let (wanted, offered, taken) = (self.wanted, &node.allocatable, &node.requested);
        let lacks = |wanted: i64, offered: i64, taken: i64| wanted > 0 && wanted > offered - taken;
        let crowded = node.pods.len() as i64 + 1 > node.allowed_pods;
        let native = [
            ("Insufficient cpu", wanted.milli_cpu, offered.milli_cpu, taken.milli_cpu),
            ("Insufficient memory", wanted.memory, offered.memory, taken.memory),
            (
                "Insufficient ephemeral-storage",
                wanted.ephemeral_storage,
                offered.ephemeral_storage,
                taken.ephemeral_storage,
            ),
        ];
        let short = native.iter().any(|(_, wanted, offered, taken)| lacks(*wanted, *offered, *taken));
        let by_devices = |name: &str| self.devices && self.cache.claims.is_left_to_devices(name, node);
        let mut missing = self
            .scalar
            .iter()
            .filter(|(name, _)| !by_devices(name))
            .map(|(name, wanted)| (*name, *wanted, offered.get(name), taken.get(name)))
            .filter(|(_, wanted, offered, taken)| lacks(*wanted, *offered, *taken))
            .peekable();
        if !crowded && !short && missing.peek().is_none() {
            return Ok(());
        }
        // No eviction makes a node larger than it is.
        let mut code = Code::Unschedulable;
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        if crowded {
            reasons.push("Too many pods".into());
        }
        for (reason, wanted, offered, taken) in native {
            if lacks(wanted, offered, taken) {
                reasons.push(reason.into());
                if wanted > offered {
                    code = Code::UnschedulableAndUnresolvable;
                }
            }
        }
        for (name, wanted, offered, _) in missing {
            reasons.push(format!("Insufficient {name}").into());
            if wanted > offered {
                code = Code::UnschedulableAndUnresolvable;
            }
        }
        Err(Status::with_reasons(code, reasons))
    }

    fn is_local(&self) -> bool {
        !self.devices
    }
}

/// One resource of a score: how much the pod wants of it, and what nodes have and have given away.
#[derive(Debug, Clone)]
pub(super) struct Scored {
    pub spec: ResourceSpec,
    pub wanted: i64,
    /// CPU and memory count with defaults for containers that ask for none.
    pub non_zero: bool,
}

impl Scored {
    pub(super) fn allocatable(&self, node: &NodeInfo) -> i64 {
        node.allocatable.get(&self.spec.name)
    }

    /// What would be requested of the node with the pod on it.
    pub(super) fn requested(&self, node: &NodeInfo) -> i64 {
        let taken = match self.spec.name.as_str() {
            "cpu" if self.non_zero => node.non_zero_requested.milli_cpu,
            "memory" if self.non_zero => node.non_zero_requested.memory,
            name => node.requested.get(name),
        };
        taken + self.wanted
    }

    /// The resources a pod is scored by. It is not scored by extended resources that it does not ask for.
    pub(super) fn of(resources: &[ResourceSpec], pod: &PodInfo, non_zero: bool) -> Vec<Self> {
        let scored = resources.iter().map(|spec| {
            let wanted = match spec.name.as_str() {
                "cpu" if non_zero => pod.non_zero_requests.milli_cpu,
                "memory" if non_zero => pod.non_zero_requests.memory,
                name => pod.requests.get(name),
            };
            Self { spec: spec.clone(), wanted, non_zero }
        });
        let native = |name: &str| matches!(name, "cpu" | "memory" | "ephemeral-storage");
        scored.filter(|scored| scored.wanted > 0 || native(&scored.spec.name)).collect()
    }
}

struct Allocation<'a> {
    strategy: &'a Strategy,
    resources: Vec<Scored>,
}

impl Scorer for Allocation<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for resource in &self.resources {
            let capacity = resource.allocatable(node);
            if capacity == 0 {
                continue;
            }
            let (requested, weight) = (resource.requested(node), resource.spec.weight);
            let score = match self.strategy {
                Strategy::LeastAllocated if requested > capacity => 0,
                Strategy::LeastAllocated => share(capacity - requested, capacity),
                Strategy::MostAllocated => share(requested.min(capacity), capacity),
                Strategy::RequestedToCapacityRatio(shape) => {
                    let utilization = if requested > capacity { 100 } else { share(requested, capacity) };
                    let score = interpolate(shape, utilization);
                    if score <= 0 {
                        continue;
                    }
                    score
                }
            };
            sum += score * weight;
            weights += weight;
        }
        match (weights, self.strategy) {
            (0, _) => 0,
            // Rounded to the nearest; both are small and not negative.
            (_, Strategy::RequestedToCapacityRatio(_)) => (2 * sum + weights) / (2 * weights),
            _ => sum / weights,
        }
    }

    fn is_local(&self) -> bool {
        true
    }
}

/// Hundredths of the whole, rounded down.
fn share(part: i64, whole: i64) -> i64 {
    // Bytes may be large: 100 times an exbibyte does not fit.
    part.checked_mul(MAX_NODE_SCORE)
        .map_or_else(|| part / (whole / MAX_NODE_SCORE).max(1), |product| product / whole)
}

/// The function of a shape at a utilisation (percent), from 0 to [`MAX_NODE_SCORE`].
fn interpolate(shape: &[UtilizationShapePoint], utilization: i64) -> i64 {
    let point = |point: &UtilizationShapePoint| (i64::from(point.utilization), i64::from(point.score) * 10);
    let mut before: Option<(i64, i64)> = None;
    for (at, score) in shape.iter().map(point) {
        if utilization <= at {
            return match before {
                None => score,
                Some((from, start)) => start + (score - start) * (utilization - from) / (at - from),
            };
        }
        before = Some((at, score));
    }
    before.map_or(0, |(_, score)| score)
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreFilter, ExtensionPoint::Filter, ExtensionPoint::PreScore, ExtensionPoint::Score]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![
            Registration::new(
                EventResource::AssignedPod,
                ActionType::DELETE | ActionType::UPDATE_POD_SCALE_DOWN,
            ),
            Registration::new(EventResource::TargetPod, ActionType::UPDATE_POD_SCALE_DOWN),
            Registration::new(EventResource::Node, ActionType::ADD | ActionType::UPDATE_NODE_ALLOCATABLE),
            Registration::new(EventResource::DeviceClass, ActionType::ADD | ActionType::UPDATE),
        ]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, cache: &Cache) -> QueueingHint {
        match &event.change {
            Change::Pod(Some(old), new) => {
                let freed = |name: &str| {
                    old.requests.get(name) > new.as_ref().map_or(0, |new| new.requests.get(name))
                };
                let wanted = &pod.requests;
                let own = new.as_ref().is_some_and(|new| new.uid == pod.uid);
                // A pod less is also one more that fits on a crowded node.
                let gone = new.is_none();
                let helps = wanted.milli_cpu > 0 && freed("cpu")
                    || wanted.memory > 0 && freed("memory")
                    || wanted.ephemeral_storage > 0 && freed("ephemeral-storage")
                    || wanted.scalar.iter().any(|(name, amount)| *amount > 0 && freed(name));
                QueueingHint::queue_if(own || gone || helps)
            }
            Change::Node(old, Some(new)) => {
                QueueingHint::queue_if(may_fit(pod, old.as_deref(), new, &cache.claims))
            }
            Change::DeviceClass(old, Some(new)) => {
                let wanted = pod.requests.scalar.keys();
                let names = |resource: &String| stands_for(new, old.as_deref(), resource);
                QueueingHint::queue_if(wanted.into_iter().any(names))
            }
            _ => QueueingHint::Queue,
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        PreFilter::Filter(Box::new(Fit::of(self, pod, cache)))
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cache,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Scorer + 'a>> {
        let non_zero = !matches!(self.strategy, Strategy::RequestedToCapacityRatio(_));
        let resources = Scored::of(&self.resources, pod, non_zero);
        Some(Box::new(Allocation { strategy: &self.strategy, resources }))
    }
}

/// Whether an empty node of this size could take the pod, and has become larger in something the pod wants.
fn may_fit(
    pod: &PodInfo,
    old: Option<&k8s_openapi::api::core::v1::Node>,
    new: &Arc<k8s_openapi::api::core::v1::Node>,
    claims: &Claims,
) -> bool {
    let list = |node: &k8s_openapi::api::core::v1::Node| {
        node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default()
    };
    let offered = Resources::from_list(Some(&list(new)));
    let wanted = &pod.requests;
    let mut all =
        ["cpu", "memory", "ephemeral-storage"].into_iter().chain(wanted.scalar.keys().map(String::as_str));
    let by_devices = |name: &str| offered.get(name) <= 0 && claims.class_of_resource(name).is_some();
    let fits = all.clone().all(|name| wanted.get(name) <= offered.get(name) || by_devices(name));
    let Some(old) = old else { return fits };
    let before = Resources::from_list(Some(&list(old)));
    let more_pods = list(old).get("pods") != list(new).get("pods");
    let grown = |name: &str| offered.get(name) > before.get(name) || by_devices(name);
    fits && (more_pods || all.any(|name| wanted.get(name) > 0 && grown(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Scene, node, pod, pod_with};
    use serde_json::{Value, json};

    fn fit(args: Value) -> NodeResourcesFit {
        match crate::config::PluginArgs::parse("NodeResourcesFit", &args).unwrap() {
            crate::config::PluginArgs::NodeResourcesFit(args) => NodeResourcesFit::new(args),
            _ => unreachable!(),
        }
    }

    #[test]
    fn what_fits_and_what_does_not() {
        let mut scene = Scene::new(fit(json!(null)));
        scene.node(node("n", "2", "1Gi"));
        scene.place(pod("there", "1500m", "512Mi"), "n");
        scene.fits(pod("a", "500m", "512Mi"), "n");
        scene.fits(pod("b", "0", "0"), "n");
        scene.refused(pod("c", "501m", "1Mi"), "n", Code::Unschedulable, "Insufficient cpu");
        scene.refused(
            pod("d", "3", "600Mi"),
            "n",
            Code::UnschedulableAndUnresolvable,
            "Insufficient cpu, Insufficient memory",
        );
        let gpu = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]});
        let gpu = pod_with("e", gpu);
        scene.refused(gpu.clone(), "n", Code::UnschedulableAndUnresolvable, "Insufficient example.com/gpu");
        scene.plugin(fit(json!({"ignoredResources": ["example.com/gpu"]}))).fits(gpu.clone(), "n");
        scene.plugin(fit(json!({"ignoredResourceGroups": ["example.com"]}))).fits(gpu, "n");
    }

    #[test]
    fn a_full_node_takes_no_more_pods() {
        let mut scene = Scene::new(fit(json!(null)));
        scene.node(node("n", "1", "1Gi"));
        for number in 0..110 {
            scene.place(pod(&format!("p{number}"), "0", "0"), "n");
        }
        scene.refused(pod("last", "0", "0"), "n", Code::Unschedulable, "Too many pods");
    }

    #[test]
    fn strategies() {
        let check = |args: Value, expected: [i64; 2]| {
            let mut scene = Scene::new(fit(args));
            scene.node(node("empty", "4", "4Gi"));
            scene.node(node("half", "4", "4Gi"));
            scene.place(pod("there", "2", "2Gi"), "half");
            assert_eq!(scene.scores(pod("a", "1", "1Gi")).unwrap(), expected);
        };
        let strategy = |kind: &str| json!({"scoringStrategy": {"type": kind}});
        check(json!(null), [75, 25]);
        check(strategy("MostAllocated"), [25, 75]);
        let ratio = |shape: Value| json!({"scoringStrategy": {"type": "RequestedToCapacityRatio", "requestedToCapacityRatio": {"shape": shape}}});
        check(ratio(json!([{"utilization": 0, "score": 10}, {"utilization": 100, "score": 0}])), [75, 25]);
        check(ratio(json!([{"utilization": 0, "score": 0}, {"utilization": 50, "score": 10}])), [50, 100]);
        check(
            json!({"scoringStrategy": {"type": "LeastAllocated", "resources": [{"name": "cpu", "weight": 3}]}}),
            [75, 25],
        );
    }

    #[test]
    fn hints() {
        let mut scene = Scene::new(fit(json!(null)));
        let waiting = pod("w", "2", "1Gi");
        let large = node("n", "4", "4Gi");
        scene.hint(&waiting, ClusterEvent::node(None, &large), QueueingHint::Queue);
        scene.hint(&waiting, ClusterEvent::node(None, &node("n", "1", "4Gi")), QueueingHint::Skip);
        let grown = ClusterEvent::node(Some(&node("n", "1", "4Gi")), &large);
        scene.hint(&waiting, grown, QueueingHint::Queue);
        let other = ClusterEvent::node(Some(&node("n", "4", "2Gi")), &node("n", "3", "2Gi"));
        scene.hint(&waiting, other, QueueingHint::Skip);
        let gone = Arc::new(PodInfo::new(pod("gone", "1", "1Gi")));
        scene.hint(&waiting, Some(ClusterEvent::assigned_pod_deleted(gone)), QueueingHint::Queue);
    }
}
