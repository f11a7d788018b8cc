//! `KubeSchedulerConfiguration` v1: reading, upstream's defaults and merging of plugin sets.

mod args;
mod validation;

pub use validation::is_extended_resource_name;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use args::{
    DefaultPreemptionArgs, DynamicResourcesArgs, InterPodAffinityArgs, NodeAffinityArgs,
    NodeResourcesBalancedAllocationArgs, NodeResourcesFitArgs, PluginArgs, PodTopologySpreadArgs,
    ResourceSpec, ScoringStrategy, UtilizationShapePoint, VolumeBindingArgs,
};

use crate::framework::ExtensionPoint;

/// The API version that is understood.
pub const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
/// The name of the profile that is there without a configuration.
pub const DEFAULT_SCHEDULER_NAME: &str = "default-scheduler";

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not YAML, or not of the configuration's form.
    #[error("scheduler configuration: {0}")]
    Malformed(String),
    /// Of another kind or version.
    #[error(
        "scheduler configuration: no kind {kind:?} is registered for version {version:?}; use KubeSchedulerConfiguration of {API_VERSION}"
    )]
    Unknown {
        /// As given.
        kind: String,
        /// As given.
        version: String,
    },
    /// Fields with values that are not allowed, in upstream's words.
    #[error("{}", join(.0))]
    Invalid(Vec<orlop_api::FieldError>),
    /// Profiles that cannot be built: a plugin that does not exist or is enabled twice.
    #[error("initializing profiles: {0}")]
    Profile(String),
}

fn join(errors: &[orlop_api::FieldError]) -> String {
    match errors {
        [one] => one.to_string(),
        many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// The whole configuration. Durations are in seconds where the name says so.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubeSchedulerConfiguration {
    api_version: String,
    kind: String,
    /// How many threads upstream uses; only its range is checked, for one loop serves all.
    pub parallelism: i32,
    /// Passed on to the leader election of whoever runs the scheduler.
    pub leader_election: Value,
    /// Only its form is checked: the client comes from outside.
    pub client_connection: Value,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    enable_profiling: Option<bool>,
    enable_contention_profiling: Option<bool>,
    delay_cache_until_active: Option<bool>,
    /// How many of the nodes are looked at for enough feasible ones; 0 adapts to the size of the cluster.
    pub percentage_of_nodes_to_score: Option<i32>,
    /// The first back-off.
    pub pod_initial_backoff_seconds: i64,
    /// The longest back-off.
    pub pod_max_backoff_seconds: i64,
    /// One for each `spec.schedulerName`.
    pub profiles: Vec<KubeSchedulerProfile>,
    /// HTTP services that are asked too.
    pub extenders: Vec<ExtenderConfig>,
}

impl Default for KubeSchedulerConfiguration {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: "KubeSchedulerConfiguration".to_owned(),
            parallelism: 16,
            leader_election: Value::Null,
            client_connection: Value::Null,
            healthz_bind_address: None,
            metrics_bind_address: None,
            enable_profiling: None,
            enable_contention_profiling: None,
            delay_cache_until_active: None,
            percentage_of_nodes_to_score: None,
            pod_initial_backoff_seconds: 1,
            pod_max_backoff_seconds: 10,
            profiles: vec![KubeSchedulerProfile::default()],
            extenders: Vec::new(),
        }
    }
}

/// How the pods of one scheduler name are scheduled.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubeSchedulerProfile {
    /// `spec.schedulerName` of its pods.
    pub scheduler_name: Option<String>,
    /// Instead of the configuration's.
    pub percentage_of_nodes_to_score: Option<i32>,
    /// Changes to the default plugins.
    pub plugins: Plugins,
    /// Arguments of plugins.
    pub plugin_config: Vec<PluginConfig>,
}

/// The arguments of one plugin.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PluginConfig {
    /// Of the plugin.
    pub name: String,
    /// In the plugin's own form.
    #[serde(default)]
    pub args: Value,
}

/// A plugin in a set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PluginRef {
    /// Of the plugin; `*` in `disabled` means all.
    pub name: String,
    /// How much its score counts; 0 or absent is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
}

/// What is enabled and disabled at one extension point.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PluginSet {
    /// Besides the default ones, or instead of the default's weight.
    pub enabled: Vec<PluginRef>,
    /// Of the default ones.
    pub disabled: Vec<PluginRef>,
}

/// The plugin sets of a profile.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)] // Each is the extension point of its name.
pub struct Plugins {
    pub pre_enqueue: PluginSet,
    pub queue_sort: PluginSet,
    pub pre_filter: PluginSet,
    pub filter: PluginSet,
    pub post_filter: PluginSet,
    pub pre_score: PluginSet,
    pub score: PluginSet,
    pub reserve: PluginSet,
    pub permit: PluginSet,
    pub pre_bind: PluginSet,
    pub bind: PluginSet,
    pub post_bind: PluginSet,
    /// For all extension points that a plugin has.
    pub multi_point: PluginSet,
}

impl Plugins {
    /// The set of one extension point.
    pub fn at(&self, point: ExtensionPoint) -> &PluginSet {
        match point {
            ExtensionPoint::PreEnqueue => &self.pre_enqueue,
            ExtensionPoint::QueueSort => &self.queue_sort,
            ExtensionPoint::PreFilter => &self.pre_filter,
            ExtensionPoint::Filter => &self.filter,
            ExtensionPoint::PostFilter => &self.post_filter,
            ExtensionPoint::PreScore => &self.pre_score,
            ExtensionPoint::Score => &self.score,
            ExtensionPoint::Reserve => &self.reserve,
            ExtensionPoint::Permit => &self.permit,
            ExtensionPoint::PreBind => &self.pre_bind,
            ExtensionPoint::Bind => &self.bind,
            ExtensionPoint::PostBind => &self.post_bind,
        }
    }
}

/// An HTTP service that filters, prioritises, preempts or binds.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExtenderConfig {
    /// Where it is.
    pub url_prefix: String,
    /// Appended to the prefix; empty verbs are not called.
    pub filter_verb: String,
    #[allow(missing_docs)]
    pub preempt_verb: String,
    #[allow(missing_docs)]
    pub prioritize_verb: String,
    #[allow(missing_docs)]
    pub bind_verb: String,
    /// How much its scores count.
    pub weight: i64,
    /// Whether TLS is used.
    #[serde(rename = "enableHTTPS")]
    pub enable_https: bool,
    /// How TLS is used.
    pub tls_config: Option<ExtenderTlsConfig>,
    /// A Go duration; 5 s when absent or 0.
    pub http_timeout: Option<String>,
    /// Whether it knows the nodes and is sent names only.
    pub node_cache_capable: bool,
    /// Only pods that ask for one of these are its business.
    pub managed_resources: Vec<ExtenderManagedResource>,
    /// Whether scheduling goes on when it fails.
    pub ignorable: bool,
}

/// A resource an extender manages.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtenderManagedResource {
    /// An extended resource.
    pub name: String,
    /// Whether NodeResourcesFit leaves it alone.
    #[serde(default)]
    pub ignored_by_scheduler: bool,
}

/// TLS of an extender. Data are base64.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)] // As in a kubeconfig.
pub struct ExtenderTlsConfig {
    pub insecure: bool,
    pub server_name: String,
    pub cert_file: String,
    pub key_file: String,
    pub ca_file: String,
    pub cert_data: String,
    pub key_data: String,
    pub ca_data: String,
}

/// The plugins that are on by default, in order, with the weight of their scores.
const DEFAULT_PLUGINS: [(&str, Option<i32>); 19] = [
    ("SchedulingGates", None),
    ("PrioritySort", None),
    ("NodeUnschedulable", None),
    ("NodeName", None),
    ("TaintToleration", Some(3)),
    ("NodeAffinity", Some(2)),
    ("NodePorts", None),
    ("NodeResourcesFit", Some(1)),
    ("VolumeRestrictions", None),
    ("NodeVolumeLimits", None),
    ("VolumeBinding", None),
    ("VolumeZone", None),
    ("PodTopologySpread", Some(2)),
    ("InterPodAffinity", Some(2)),
    // Before preemption: to give back an idle claim is better than to evict a pod.
    ("DynamicResources", None),
    ("DefaultPreemption", None),
    ("NodeResourcesBalancedAllocation", Some(1)),
    ("ImageLocality", Some(1)),
    ("DefaultBinder", None),
];

/// The multi-point set of a profile that says nothing.
pub fn default_plugins() -> PluginSet {
    let plugin = |(name, weight): (&str, Option<i32>)| PluginRef { name: name.to_owned(), weight };
    let enabled = DEFAULT_PLUGINS.map(plugin).into();
    PluginSet { enabled, disabled: Vec::new() }
}

/// A custom set over a default one. A plugin that is enabled again keeps its place and takes the new weight.
pub fn merge_plugin_set(default: &PluginSet, custom: &PluginSet) -> PluginSet {
    let disabled: Vec<_> = custom.disabled.iter().chain(&default.disabled).cloned().collect();
    let names: BTreeSet<_> = disabled.iter().map(|plugin| plugin.name.as_str()).collect();
    let mut replaced = BTreeSet::new();
    let mut enabled = Vec::new();
    if !names.contains("*") {
        for plugin in default.enabled.iter().filter(|plugin| !names.contains(plugin.name.as_str())) {
            // As upstream does, the last of several wins.
            let again = custom.enabled.iter().rposition(|other| other.name == plugin.name);
            enabled.push(again.map_or(plugin, |place| {
                replaced.insert(place);
                &custom.enabled[place]
            }));
        }
    }
    let added = custom.enabled.iter().enumerate().filter(|(place, _)| !replaced.contains(place));
    enabled.extend(added.map(|(_, plugin)| plugin));
    PluginSet { enabled: enabled.into_iter().cloned().collect(), disabled }
}

impl KubeSchedulerConfiguration {
    /// Reads a configuration in YAML or JSON, applies the defaults and checks it.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let value: Value =
            serde_saphyr::from_str(text).map_err(|error| ConfigError::Malformed(error.to_string()))?;
        let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, version) = (field("kind"), field("apiVersion"));
        if kind != "KubeSchedulerConfiguration" || version != API_VERSION {
            return Err(ConfigError::Unknown { kind, version });
        }
        let mut config: Self = decode_strictly(value)?;
        config.set_defaults();
        let errors = config.validate();
        if errors.is_empty() { Ok(config) } else { Err(ConfigError::Invalid(errors)) }
    }

    /// Upstream's defaults for what is left out.
    pub fn set_defaults(&mut self) {
        if self.profiles.is_empty() {
            self.profiles.push(KubeSchedulerProfile::default());
        }
        if let [only] = self.profiles.as_mut_slice() {
            only.scheduler_name.get_or_insert_with(|| DEFAULT_SCHEDULER_NAME.to_owned());
        }
        for profile in &mut self.profiles {
            let plugins = &mut profile.plugins;
            plugins.multi_point = merge_plugin_set(&default_plugins(), &plugins.multi_point);
        }
    }

    /// The default configuration, with its defaults applied.
    pub fn defaulted() -> Self {
        let mut config = Self::default();
        config.set_defaults();
        config
    }
}

fn decode_strictly<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, ConfigError> {
    serde_json::from_value(value)
        .map_err(|error| ConfigError::Malformed(format!("strict decoding error: {error}")))
}

#[cfg(test)]
mod tests;
