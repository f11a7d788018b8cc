//! The arguments of plugins, with upstream's defaults.

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A resource and how much it counts in a score.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceSpec {
    /// `cpu`, `memory` or another resource.
    pub name: String,
    /// 1–100; 0 or absent is 1.
    #[serde(default)]
    pub weight: i64,
}

fn default_resources() -> Vec<ResourceSpec> {
    ["cpu", "memory"].map(|name| ResourceSpec { name: name.to_owned(), weight: 1 }).into()
}

fn default_weights(resources: &mut Vec<ResourceSpec>) {
    if resources.is_empty() {
        *resources = default_resources();
    }
    for resource in resources {
        if resource.weight == 0 {
            resource.weight = 1;
        }
    }
}

/// One point of a function from utilisation (percent) to score (0–10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UtilizationShapePoint {
    /// Percent.
    pub utilization: i32,
    /// 0–10.
    pub score: i32,
}

/// How NodeResourcesFit scores.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScoringStrategy {
    /// `LeastAllocated`, `MostAllocated` or `RequestedToCapacityRatio`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What is scored.
    #[serde(default)]
    pub resources: Vec<ResourceSpec>,
    /// For `RequestedToCapacityRatio` only.
    #[serde(default)]
    pub requested_to_capacity_ratio: Option<RequestedToCapacityRatio>,
}

/// Of `RequestedToCapacityRatio`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RequestedToCapacityRatio {
    /// The function.
    #[serde(default)]
    pub shape: Vec<UtilizationShapePoint>,
}

/// Of NodeResourcesFit.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeResourcesFitArgs {
    /// Resources that are not filtered by.
    pub ignored_resources: Vec<String>,
    /// Groups (what is before the `/`) of resources that are not filtered by.
    pub ignored_resource_groups: Vec<String>,
    /// Set by the defaults.
    pub scoring_strategy: Option<ScoringStrategy>,
}

/// Of NodeResourcesBalancedAllocation.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeResourcesBalancedAllocationArgs {
    /// What is balanced.
    pub resources: Vec<ResourceSpec>,
}

/// Of NodeAffinity.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeAffinityArgs {
    /// Applies to all pods besides their own.
    pub added_affinity: Option<NodeAffinity>,
}

/// Of InterPodAffinity.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InterPodAffinityArgs {
    /// How much a placed pod's required affinity for the pod counts, 0–100.
    pub hard_pod_affinity_weight: i32,
    /// Whether a pod without preferences ignores those of placed pods.
    pub ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for InterPodAffinityArgs {
    fn default() -> Self {
        Self { hard_pod_affinity_weight: 1, ignore_preferred_terms_of_existing_pods: false }
    }
}

/// Of PodTopologySpread.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodTopologySpreadArgs {
    /// For pods without constraints of their own; without selectors.
    pub default_constraints: Vec<TopologySpreadConstraint>,
    /// `System` or `List`.
    pub defaulting_type: String,
}

impl Default for PodTopologySpreadArgs {
    fn default() -> Self {
        Self { default_constraints: Vec::new(), defaulting_type: "System".to_owned() }
    }
}

/// Of VolumeBinding.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VolumeBindingArgs {
    /// How long a binding may take.
    pub bind_timeout_seconds: i64,
    /// For a feature that is off by default.
    pub shape: Option<Vec<UtilizationShapePoint>>,
}

impl Default for VolumeBindingArgs {
    fn default() -> Self {
        Self { bind_timeout_seconds: 600, shape: None }
    }
}

/// Of DefaultPreemption.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DefaultPreemptionArgs {
    /// How many of the nodes are tried at least, percent.
    pub min_candidate_nodes_percentage: i32,
    /// How many nodes are tried at least.
    pub min_candidate_nodes_absolute: i32,
}

impl Default for DefaultPreemptionArgs {
    fn default() -> Self {
        Self { min_candidate_nodes_percentage: 10, min_candidate_nodes_absolute: 100 }
    }
}

/// Of DynamicResources. Go durations.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DynamicResourcesArgs {
    /// How long the allocation for one node may take; 0 means as long as it takes, absent 10 s.
    pub filter_timeout: Option<String>,
    /// How long binding conditions may take; absent 10 min.
    pub binding_timeout: Option<String>,
}

/// Arguments of a plugin that has some.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // Each is its plugin's.
pub enum PluginArgs {
    NodeResourcesFit(NodeResourcesFitArgs),
    NodeResourcesBalancedAllocation(NodeResourcesBalancedAllocationArgs),
    NodeAffinity(NodeAffinityArgs),
    InterPodAffinity(InterPodAffinityArgs),
    PodTopologySpread(PodTopologySpreadArgs),
    VolumeBinding(VolumeBindingArgs),
    DefaultPreemption(DefaultPreemptionArgs),
    DynamicResources(DynamicResourcesArgs),
    /// The plugin has none.
    None,
}

impl PluginArgs {
    /// Reads a plugin's arguments and applies their defaults; `Null` for all defaults.
    pub fn parse(plugin: &str, args: &Value) -> Result<Self, String> {
        Ok(match plugin {
            "NodeResourcesFit" => {
                let mut parsed: NodeResourcesFitArgs = decode(plugin, args)?;
                let strategy = parsed.scoring_strategy.get_or_insert_with(|| ScoringStrategy {
                    kind: "LeastAllocated".to_owned(),
                    resources: Vec::new(),
                    requested_to_capacity_ratio: None,
                });
                default_weights(&mut strategy.resources);
                Self::NodeResourcesFit(parsed)
            }
            "NodeResourcesBalancedAllocation" => {
                let mut parsed: NodeResourcesBalancedAllocationArgs = decode(plugin, args)?;
                default_weights(&mut parsed.resources);
                Self::NodeResourcesBalancedAllocation(parsed)
            }
            "NodeAffinity" => Self::NodeAffinity(decode(plugin, args)?),
            "InterPodAffinity" => Self::InterPodAffinity(decode(plugin, args)?),
            "PodTopologySpread" => Self::PodTopologySpread(decode(plugin, args)?),
            "VolumeBinding" => Self::VolumeBinding(decode(plugin, args)?),
            "DefaultPreemption" => Self::DefaultPreemption(decode(plugin, args)?),
            "DynamicResources" => Self::DynamicResources(decode(plugin, args)?),
            _ => Self::None,
        })
    }
}

/// `apiVersion` and `kind` may be given, and must be the plugin's then.
fn decode<T: Default + serde::de::DeserializeOwned>(plugin: &str, args: &Value) -> Result<T, String> {
    if args.is_null() {
        return Ok(T::default());
    }
    let mut args = args.clone();
    if let Some(map) = args.as_object_mut() {
        let kind = map.shift_remove("kind");
        map.shift_remove("apiVersion");
        let expected = format!("{plugin}Args");
        if kind.is_some_and(|kind| kind != *expected) {
            return Err("has to match plugin args".to_owned());
        }
    }
    serde_json::from_value(args).map_err(|error| error.to_string())
}
