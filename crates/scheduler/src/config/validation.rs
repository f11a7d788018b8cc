//! Upstream's validation of the configuration. Answers to `pkg/scheduler/apis/config/validation`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelectorTerm, TopologySpreadConstraint};
use orlop_api::field::{ErrorList, Path, duplicate, forbidden, invalid, not_supported, required};
use orlop_api::names;
use serde_json::{Value, json};

use super::args::{
    DefaultPreemptionArgs, NodeAffinityArgs, NodeResourcesBalancedAllocationArgs, NodeResourcesFitArgs,
    PluginArgs, PodTopologySpreadArgs, UtilizationShapePoint, VolumeBindingArgs,
};
use super::{API_VERSION, ExtenderConfig, KubeSchedulerConfiguration, KubeSchedulerProfile};
use crate::framework::ExtensionPoint;
use crate::go_duration;

/// Plugins that are gone.
const INVALID_PLUGINS: [&str; 4] = ["AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits"];

impl KubeSchedulerConfiguration {
    /// Everything that is wrong, in upstream's words.
    pub fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::new();
        if self.leader_election.get("leaderElect") != Some(&Value::Bool(false))
            && let Some(lock) = self.leader_election.get("resourceLock").filter(|lock| *lock != "leases")
        {
            let path = Path::new("leaderElection").child("resourceLock");
            errors.push(invalid(&path, lock.clone(), "resourceLock value must be \"leases\""));
        }
        if self.parallelism <= 0 {
            let detail = "should be an integer value greater than zero";
            errors.push(invalid(&Path::new("parallelism"), self.parallelism, detail));
        }
        let profiles = Path::new("profiles");
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, profile) in self.profiles.iter().enumerate() {
            let path = profiles.index(index);
            self.validate_profile(profile, &path, &mut errors);
            let name = profile.scheduler_name.as_deref().unwrap_or_default();
            if let Some(first) = seen.get(name) {
                let first = profiles.index(*first).child("schedulerName").to_string();
                errors.push(duplicate(&path.child("schedulerName"), first));
            }
            seen.insert(name, index);
        }
        self.validate_queue_sort(&profiles, &mut errors);
        percentage(&Path::root(), self.percentage_of_nodes_to_score, &mut errors);
        if self.pod_initial_backoff_seconds <= 0 {
            let path = Path::new("podInitialBackoffSeconds");
            errors.push(invalid(&path, self.pod_initial_backoff_seconds, "must be greater than 0"));
        }
        if self.pod_max_backoff_seconds < self.pod_initial_backoff_seconds {
            let detail = "must be greater than or equal to PodInitialBackoffSeconds";
            errors.push(invalid(&Path::new("podMaxBackoffSeconds"), self.pod_max_backoff_seconds, detail));
        }
        extenders(&self.extenders, &Path::new("extenders"), &mut errors);
        errors
    }

    fn validate_profile(&self, profile: &KubeSchedulerProfile, path: &Path, errors: &mut ErrorList) {
        if profile.scheduler_name.as_deref().unwrap_or_default().is_empty() {
            errors.push(required(&path.child("schedulerName"), ""));
        }
        percentage(path, profile.percentage_of_nodes_to_score, errors);
        let gone = format!(
            "was invalid in version \"v1\" (KubeSchedulerConfiguration is version \"{API_VERSION}\")"
        );
        for point in ExtensionPoint::ALL {
            let enabled = path.child("plugins").child(&field_of(point)).child("enabled");
            for (index, plugin) in profile.plugins.at(point).enabled.iter().enumerate() {
                if INVALID_PLUGINS.contains(&plugin.name.as_str()) {
                    errors.push(invalid(&enabled.index(index), plugin.name.clone(), gone.clone()));
                }
            }
        }
        let mut seen = BTreeSet::new();
        for (index, config) in profile.plugin_config.iter().enumerate() {
            let path = path.child("pluginConfig").index(index);
            if !seen.insert(&config.name) {
                errors.push(duplicate(&path, config.name.clone()));
            }
            if INVALID_PLUGINS.contains(&config.name.as_str()) {
                errors.push(invalid(&path, config.name.clone(), gone.clone()));
                continue;
            }
            let path = path.child("args");
            match PluginArgs::parse(&config.name, &config.args) {
                Ok(args) => validate_args(&args, &path, errors),
                Err(reason) => errors.push(invalid(&path, config.args.clone(), reason)),
            }
        }
    }

    fn validate_queue_sort(&self, path: &Path, errors: &mut ErrorList) {
        let Some((first, others)) = self.profiles.split_first() else { return };
        let sort = &first.plugins.queue_sort;
        if sort.enabled.len() > 1 {
            let path = path.index(0).child("plugins").child("queueSort").child("Enabled");
            errors.push(invalid(&path, sort.enabled.len(), "only one queue sort plugin can be enabled"));
        }
        for (index, other) in others.iter().enumerate() {
            if other.plugins.queue_sort != *sort {
                let path = path.index(index + 1).child("plugins").child("queueSort");
                let value = serde_json::to_value(&other.plugins.queue_sort).unwrap_or_default();
                errors.push(invalid(&path, value, "must be the same for all profiles"));
            }
        }
    }
}

fn field_of(point: ExtensionPoint) -> String {
    let name = format!("{point:?}");
    name[..1].to_lowercase() + &name[1..]
}

fn percentage(path: &Path, value: Option<i32>, errors: &mut ErrorList) {
    if let Some(value) = value.filter(|value| !(0..=100).contains(value)) {
        errors.push(invalid(&path.child("percentageOfNodesToScore"), value, "not in valid range [0-100]"));
    }
}

fn extenders(list: &[ExtenderConfig], path: &Path, errors: &mut ErrorList) {
    let mut managed = BTreeSet::new();
    for (index, extender) in list.iter().enumerate() {
        let path = path.index(index);
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            errors.push(invalid(
                &path.child("weight"),
                extender.weight,
                "must have a positive weight applied to it",
            ));
        }
        for (index, resource) in extender.managed_resources.iter().enumerate() {
            let path = path.child("managedResources").index(index).child("name");
            let complaints = names::is_qualified_name(&resource.name);
            if complaints.is_empty() && !is_extended_resource_name(&resource.name) {
                errors.push(invalid(&path, resource.name.clone(), "is an invalid extended resource name"));
            }
            errors.extend(
                complaints.into_iter().map(|complaint| invalid(&path, resource.name.clone(), complaint)),
            );
            if !managed.insert(&resource.name) {
                errors.push(invalid(
                    &path,
                    resource.name.clone(),
                    "duplicate extender managed resource name",
                ));
            }
        }
    }
    let binders = list.iter().filter(|extender| !extender.bind_verb.is_empty()).count();
    if binders > 1 {
        let found = format!("found {binders} extenders implementing bind");
        errors.push(invalid(path, found, "only one extender can implement bind"));
    }
}

/// Not one of Kubernetes' own, and usable in a quota.
pub fn is_extended_resource_name(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    !native
        && !name.starts_with("requests.")
        && names::is_qualified_name(&format!("requests.{name}")).is_empty()
}

fn validate_args(args: &PluginArgs, path: &Path, errors: &mut ErrorList) {
    match args {
        PluginArgs::NodeResourcesFit(args) => node_resources_fit(args, path, errors),
        PluginArgs::NodeResourcesBalancedAllocation(args) => balanced_allocation(args, path, errors),
        PluginArgs::NodeAffinity(args) => node_affinity(args, path, errors),
        PluginArgs::InterPodAffinity(args) => {
            if !(0..=100).contains(&args.hard_pod_affinity_weight) {
                let path = path.child("hardPodAffinityWeight");
                errors.push(invalid(&path, args.hard_pod_affinity_weight, "not in valid range [0, 100]"));
            }
        }
        PluginArgs::PodTopologySpread(args) => pod_topology_spread(args, path, errors),
        PluginArgs::VolumeBinding(args) => volume_binding(args, path, errors),
        PluginArgs::DefaultPreemption(args) => default_preemption(args, path, errors),
        PluginArgs::DynamicResources(args) => {
            for (name, text, at_least, detail) in [
                ("filterTimeout", &args.filter_timeout, 0, "must be zero or positive"),
                ("bindingTimeout", &args.binding_timeout, 1_000_000_000, "must be at least 1 second"),
            ] {
                let Some(text) = text else { continue };
                let nanos = go_duration::parse(text);
                if nanos.is_none_or(|nanos| nanos < at_least) {
                    errors.push(invalid(&path.child(name), text.clone(), detail));
                }
            }
        }
        PluginArgs::None => {}
    }
}

fn default_preemption(args: &DefaultPreemptionArgs, path: &Path, errors: &mut ErrorList) {
    let (percent, absolute) = (args.min_candidate_nodes_percentage, args.min_candidate_nodes_absolute);
    let (percent_path, absolute_path) =
        (path.child("minCandidateNodesPercentage"), path.child("minCandidateNodesAbsolute"));
    if !(0..=100).contains(&percent) {
        errors.push(invalid(&percent_path, percent, "not in valid range [0, 100]"));
    }
    if absolute < 0 {
        errors.push(invalid(&absolute_path, absolute, "not in valid range [0, inf)"));
    }
    if percent == 0 && absolute == 0 {
        let zero = |other: &str| format!("cannot be zero at the same time as {other}");
        errors.push(invalid(&percent_path, percent, zero("minCandidateNodesAbsolute")));
        errors.push(invalid(&absolute_path, absolute, zero("minCandidateNodesPercentage")));
    }
}

fn pod_topology_spread(args: &PodTopologySpreadArgs, path: &Path, errors: &mut ErrorList) {
    let kind = path.child("defaultingType");
    match args.defaulting_type.as_str() {
        "List" => {}
        "System" if args.default_constraints.is_empty() => {}
        "System" => errors.push(invalid(&kind, "System", "when .defaultConstraints are not empty")),
        other => errors.push(not_supported(&kind, other, &["System", "List"])),
    }
    let list = path.child("defaultConstraints");
    for (index, constraint) in args.default_constraints.iter().enumerate() {
        let path = list.index(index);
        if constraint.max_skew <= 0 {
            errors.push(invalid(&path.child("maxSkew"), constraint.max_skew, "not in valid range (0, inf)"));
        }
        let key = path.child("topologyKey");
        if constraint.topology_key.is_empty() {
            errors.push(required(&key, "can not be empty"));
        } else {
            label_name(&constraint.topology_key, &key, errors);
        }
        let when = path.child("whenUnsatisfiable");
        match constraint.when_unsatisfiable.as_str() {
            "DoNotSchedule" | "ScheduleAnyway" => {}
            "" => errors.push(required(&when, "can not be empty")),
            other => errors.push(not_supported(&when, other, &["DoNotSchedule", "ScheduleAnyway"])),
        }
        if constraint.label_selector.is_some() {
            let detail = "constraint must not define a selector, as they deduced for each pod";
            errors.push(forbidden(&path.child("labelSelector"), detail));
        }
        let same = |other: &TopologySpreadConstraint| {
            other.topology_key == constraint.topology_key
                && other.when_unsatisfiable == constraint.when_unsatisfiable
        };
        if args.default_constraints[..index].iter().any(same) {
            let pair = format!("{{{}, {}}}", constraint.topology_key, constraint.when_unsatisfiable);
            errors.push(duplicate(&path, pair));
        }
    }
}

fn label_name(name: &str, path: &Path, errors: &mut ErrorList) {
    let complaints = names::is_qualified_name(name);
    errors.extend(complaints.into_iter().map(|complaint| invalid(path, name, complaint)));
}

fn function_shape(shape: &[UtilizationShapePoint], path: &Path, errors: &mut ErrorList) {
    if shape.is_empty() {
        errors.push(required(path, "at least one point must be specified"));
        return;
    }
    let unsorted = shape.windows(2).position(|pair| pair[0].utilization >= pair[1].utilization);
    if let Some(index) = unsorted {
        let path = path.index(index + 1).child("utilization");
        let value = shape[index + 1].utilization;
        errors.push(invalid(&path, value, "values must be sorted in increasing order"));
    }
    for (index, point) in shape.iter().enumerate() {
        let path = path.index(index);
        if !(0..=100).contains(&point.utilization) {
            errors.push(invalid(
                &path.child("utilization"),
                point.utilization,
                "not in valid range [0, 100]",
            ));
        }
        if !(0..=10).contains(&point.score) {
            errors.push(invalid(&path.child("score"), point.score, "not in valid range [0, 10]"));
        }
    }
}

fn node_resources_fit(args: &NodeResourcesFitArgs, path: &Path, errors: &mut ErrorList) {
    for (index, resource) in args.ignored_resources.iter().enumerate() {
        label_name(resource, &path.child("ignoredResources").index(index), errors);
    }
    for (index, group) in args.ignored_resource_groups.iter().enumerate() {
        let path = path.child("ignoredResourceGroups").index(index);
        if group.contains('/') {
            errors.push(invalid(&path, group.clone(), "resource group name can't contain '/'"));
        }
        label_name(group, &path, errors);
    }
    let path = path.child("scoringStrategy");
    let Some(strategy) = &args.scoring_strategy else {
        errors.push(required(&path, "ScoringStrategy field is required"));
        return;
    };
    const TYPES: [&str; 3] = ["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];
    if !TYPES.contains(&strategy.kind.as_str()) {
        errors.push(not_supported(&path.child("type"), strategy.kind.clone(), &TYPES));
    }
    for (index, resource) in strategy.resources.iter().enumerate() {
        if !(1..=100).contains(&resource.weight) {
            let detail = format!("resource weight of {} not in valid range (0, 100]", resource.name);
            errors.push(invalid(
                &path.child("resources").index(index).child("weight"),
                resource.weight,
                detail,
            ));
        }
    }
    let ratio = path.child("requestedToCapacityRatio");
    match (strategy.kind.as_str(), &strategy.requested_to_capacity_ratio) {
        ("RequestedToCapacityRatio", None) => {
            errors.push(required(&ratio, "must be specified when type is RequestedToCapacityRatio"));
        }
        ("RequestedToCapacityRatio", Some(parameters)) => {
            function_shape(&parameters.shape, &ratio.child("shape"), errors);
        }
        (_, Some(_)) => {
            errors.push(forbidden(&ratio, "must be nil when type is not RequestedToCapacityRatio"));
        }
        (_, None) => {}
    }
}

fn balanced_allocation(args: &NodeResourcesBalancedAllocationArgs, path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (index, resource) in args.resources.iter().enumerate() {
        let path = path.child("resources").index(index);
        if !seen.insert(&resource.name) {
            errors.push(duplicate(&path.child("name"), resource.name.clone()));
        }
        if resource.weight != 1 {
            errors.push(invalid(&path.child("weight"), resource.weight, "must be 1"));
        }
    }
}

fn node_affinity(args: &NodeAffinityArgs, path: &Path, errors: &mut ErrorList) {
    let Some(affinity) = &args.added_affinity else { return };
    let path = path.child("addedAffinity");
    if let Some(selector) = &affinity.required_during_scheduling_ignored_during_execution {
        let terms = path.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms");
        for (index, term) in selector.node_selector_terms.iter().enumerate() {
            node_selector_term(term, &terms.index(index), errors);
        }
    }
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
    for (index, preferred) in preferred.enumerate() {
        let path = path.child("preferredDuringSchedulingIgnoredDuringExecution").index(index);
        node_selector_term(&preferred.preference, &path, errors);
    }
}

fn node_selector_term(term: &NodeSelectorTerm, path: &Path, errors: &mut ErrorList) {
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = requirement.values.as_deref().unwrap_or_default();
        let complain = |detail: &str| invalid(&path.child("values"), json!(values), detail);
        match requirement.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(complain("for 'in', 'notin' operators, values set can't be empty"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.push(complain("values set must be empty for exists and does not exist"));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                errors.push(complain("for 'Gt', 'Lt' operators, exactly one value is required"));
            }
            "Gt" | "Lt" if values[0].parse::<i64>().is_err() => {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(invalid(&path.child("values").index(0), values[0].clone(), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(not_supported(
                &path.child("operator"),
                other,
                &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"],
            )),
        }
        label_name(&requirement.key, &path.child("key"), errors);
    }
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = path.child("matchFields").index(index);
        let values = requirement.values.as_deref().unwrap_or_default();
        match requirement.operator.as_str() {
            "In" | "NotIn" if values.len() != 1 => {
                errors.push(required(&path.child("values"), "must have one element"));
            }
            "In" | "NotIn" => {}
            other => errors.push(not_supported(&path.child("operator"), other, &["In", "NotIn"])),
        }
        if requirement.key != "metadata.name" {
            errors.push(not_supported(&path.child("key"), requirement.key.clone(), &["metadata.name"]));
        }
    }
}

fn volume_binding(args: &VolumeBindingArgs, path: &Path, errors: &mut ErrorList) {
    if args.bind_timeout_seconds < 0 {
        let detail = "invalid BindTimeoutSeconds, should not be a negative value";
        errors.push(invalid(&path.child("bindTimeoutSeconds"), args.bind_timeout_seconds, detail));
    }
    if let Some(shape) = &args.shape {
        let detail = "unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring";
        let value = serde_json::to_value(shape).unwrap_or_default();
        errors.push(invalid(&path.child("shape"), value, detail));
    }
}
