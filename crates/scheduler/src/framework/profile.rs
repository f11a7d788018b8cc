//! The plugins of one profile at their extension points, and how they are run. Answers to upstream's
//! `framework/runtime`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::registry::Registry;
use super::status::{Code, Status};
use super::{
    ClusterEvent, ExtensionPoint, Filter, Plugin, PreFilter, QueueingHint, Registration, Reservation,
};
use crate::cache::{Cache, NodeIndex, NodeInfo};
use crate::config::{ConfigError, KubeSchedulerProfile, PluginRef};
use crate::nominator::Nominator;
use crate::pod_info::PodInfo;
use crate::shared::Shared;

type Plugins = Vec<Arc<dyn Plugin>>;

/// A profile, ready to be run.
pub struct Framework {
    /// `spec.schedulerName` of its pods.
    pub scheduler_name: String,
    /// Instead of the configuration's.
    pub percentage_of_nodes_to_score: Option<i32>,
    points: Vec<(ExtensionPoint, Plugins)>,
    scores: Vec<(Arc<dyn Plugin>, i64)>,
    /// What looks at a pod before its nodes: the PreFilter plugins, then those that only filter; each with its place
    /// among the Filter plugins.
    filtering: Vec<(Arc<dyn Plugin>, Option<usize>)>,
    /// What filters or scores, each once.
    preparing: Plugins,
    registrations: Vec<(Arc<dyn Plugin>, Vec<Registration>)>,
}

impl Framework {
    /// Builds the plugins of a profile whose configuration has its defaults.
    pub fn new(profile: &KubeSchedulerProfile, registry: &Registry) -> Result<Self, ConfigError> {
        let fail = |reason: String| ConfigError::Profile(reason);
        let scheduler_name = profile.scheduler_name.clone().unwrap_or_default();
        let built = registry.build(profile)?;
        let find = |name: &str| built.iter().find(|plugin| plugin.name() == name).cloned();
        let mut points = Vec::new();
        for point in ExtensionPoint::ALL {
            let mut plugins = Plugins::new();
            for reference in plugins_at(profile, point, &built)? {
                let plugin = find(&reference.name)
                    .ok_or_else(|| fail(format!("{point:?} plugin {:?} does not exist", reference.name)))?;
                if !plugin.extension_points().contains(&point) {
                    return Err(fail(format!(
                        "plugin {:?} does not extend {point:?} plugin",
                        reference.name
                    )));
                }
                if plugins.iter().any(|other| other.name() == plugin.name()) {
                    return Err(fail(format!("plugin {:?} already registered as {point:?}", reference.name)));
                }
                plugins.push(plugin);
            }
            points.push((point, plugins));
        }
        let at = |wanted| {
            points.iter().find(|(point, _)| *point == wanted).map_or(&[][..], |(_, plugins)| plugins)
        };
        match at(ExtensionPoint::QueueSort).len() {
            1 => {}
            0 => {
                return Err(fail(format!(
                    "no queue sort plugin is enabled for profile with scheduler name {scheduler_name:?}"
                )));
            }
            many => {
                return Err(fail(format!(
                    "only one queue sort plugin required for profile with scheduler name {scheduler_name:?}, but got {many}"
                )));
            }
        }
        if at(ExtensionPoint::Bind).is_empty() {
            return Err(fail(format!(
                "at least one bind plugin is needed for profile with scheduler name {scheduler_name:?}"
            )));
        }
        let scores =
            at(ExtensionPoint::Score).iter().map(|plugin| (plugin.clone(), weight(profile, plugin.name())));
        let scores: Vec<_> = scores.collect();
        let (pre, filter) = (at(ExtensionPoint::PreFilter), at(ExtensionPoint::Filter));
        let place = |plugin: &Arc<dyn Plugin>, list: &[Arc<dyn Plugin>]| {
            list.iter().position(|other| other.name() == plugin.name())
        };
        let only_filter = filter.iter().filter(|plugin| place(plugin, pre).is_none());
        let filtering = pre.iter().chain(only_filter);
        let filtering: Vec<_> = filtering.map(|plugin| (plugin.clone(), place(plugin, filter))).collect();
        let mut preparing: Plugins = filtering.iter().map(|(plugin, _)| plugin.clone()).collect();
        for (plugin, _) in &scores {
            if place(plugin, &preparing).is_none() {
                preparing.push(plugin.clone());
            }
        }
        let registrations =
            built.iter().map(|plugin| (plugin.clone(), plugin.events_to_register())).collect();
        Ok(Self {
            scheduler_name,
            percentage_of_nodes_to_score: profile.percentage_of_nodes_to_score,
            points,
            scores,
            filtering,
            preparing,
            registrations,
        })
    }

    /// The plugins of an extension point, in order.
    pub fn at(&self, wanted: ExtensionPoint) -> &[Arc<dyn Plugin>] {
        self.points.iter().find(|(point, _)| *point == wanted).map_or(&[], |(_, plugins)| plugins)
    }

    /// The plugins that care about an event.
    pub fn concerned<'a>(&'a self, event: &'a ClusterEvent) -> impl Iterator<Item = &'a Arc<dyn Plugin>> {
        let covers = |registrations: &[Registration]| registrations.iter().any(|one| one.covers(event));
        self.registrations.iter().filter(move |(_, own)| covers(own)).map(|(plugin, _)| plugin)
    }

    /// What a plugin thinks of an event.
    pub fn hint(
        &self,
        plugin: &'static str,
        pod: &PodInfo,
        event: &ClusterEvent,
        cache: &Cache,
    ) -> QueueingHint {
        let found = self.registrations.iter().find(|(registered, _)| registered.name() == plugin);
        match found {
            Some((plugin, own)) if own.iter().any(|one| one.covers(event)) => {
                plugin.queueing_hint(pod, event, cache)
            }
            Some(_) => QueueingHint::Skip,
            // An extender, which cannot say what it waits for.
            None => QueueingHint::Queue,
        }
    }

    /// Whether a pod may enter the active queue.
    pub fn run_pre_enqueue(&self, pod: &PodInfo, cache: &Cache) -> Result<(), Status> {
        let plugins = self.at(ExtensionPoint::PreEnqueue);
        plugins
            .iter()
            .try_for_each(|plugin| plugin.pre_enqueue(pod, cache).map_err(|status| status.by(plugin.name())))
    }

    /// Asks the cache to keep what the plugins will look at.
    pub fn prepare(&self, pod: &PodInfo, cache: &mut Cache) {
        cache.refresh();
        self.preparing.iter().for_each(|plugin| plugin.prepare(pod, cache));
    }

    /// Looks at a pod once for all nodes. A refusal that preemption may change does not keep the other plugins from
    /// looking, so that preemption can ask them.
    pub fn run_pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> Result<Filters<'a>, Status> {
        let mut result = Filters { filters: Vec::new(), nodes: None, restricted_by: BTreeSet::new() };
        let mut refused = None;
        let mut places = Vec::new();
        for (plugin, place) in &self.filtering {
            let name = plugin.name();
            let own = match plugin.pre_filter(pod, cache) {
                PreFilter::Skip => None,
                PreFilter::Filter(own) => Some(own),
                PreFilter::Nodes(nodes, own) => {
                    result.restricted_by.insert(name);
                    result.nodes = Some(match result.nodes.take() {
                        None => nodes,
                        Some(others) => others.intersection(&nodes).cloned().collect(),
                    });
                    own
                }
                PreFilter::Reject(status) if status.code == Code::Unschedulable => {
                    refused = Some(status.by(name));
                    None
                }
                PreFilter::Reject(status) => return Err(status.by(name)),
            };
            if let (Some(own), Some(place)) = (own, place) {
                // In the order of the Filter extension point.
                let at = places.partition_point(|other| other < place);
                places.insert(at, *place);
                result.filters.insert(at, (name, own));
            }
            if result.nodes.as_ref().is_some_and(BTreeSet::is_empty) {
                let plugins: Vec<_> = result.restricted_by.iter().copied().collect();
                let message = match plugins.as_slice() {
                    [one] => format!("node(s) didn't satisfy plugin {one}"),
                    many => format!("node(s) didn't satisfy plugin(s) [{}] simultaneously", many.join(" ")),
                };
                return Err(Status::unresolvable(message).by(name));
            }
        }
        match refused {
            Some(status) => Err(status),
            None => Ok(result),
        }
    }

    /// The weighted scores of nodes that can take the pod.
    pub fn run_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cache: &'a Cache,
        indices: &[NodeIndex],
        shared: &mut Shared,
    ) -> Vec<i64> {
        let nodes: Vec<_> = indices.iter().map(|index| cache.node(*index)).collect();
        let mut totals = vec![0_i64; nodes.len()];
        let mut scores = vec![0_i64; nodes.len()];
        for (place, (plugin, weight)) in self.scores.iter().enumerate() {
            let Some(scorer) = plugin.pre_score(pod, cache, &nodes) else { continue };
            if scorer.is_local() {
                shared.scores(place, cache, indices, &mut scores, |number| scorer.score(nodes[number]));
            } else {
                scores.iter_mut().zip(&nodes).for_each(|(score, node)| *score = scorer.score(node));
            }
            scorer.normalize(&nodes, &mut scores);
            totals.iter_mut().zip(&scores).for_each(|(total, score)| *total += score * weight);
        }
        totals
    }

    /// Takes what a pod needs on its node. On refusal everything taken is given back.
    pub fn run_reserve(
        &self,
        pod: &Arc<PodInfo>,
        node: &str,
        cache: &mut Cache,
    ) -> Result<Vec<Box<dyn Reservation>>, Status> {
        let mut held: Vec<Box<dyn Reservation>> = Vec::new();
        for plugin in self.at(ExtensionPoint::Reserve) {
            match plugin.reserve(pod, node, cache) {
                Ok(reservation) => held.extend(reservation),
                Err(status) => {
                    held.iter().rev().for_each(|reservation| reservation.unreserve(cache));
                    return Err(status.by(plugin.name()));
                }
            }
        }
        Ok(held)
    }
}

/// What is enabled at an extension point: plugins named there that are multi-point too, then the other multi-point
/// ones, then the rest of those named there.
fn plugins_at(
    profile: &KubeSchedulerProfile,
    point: ExtensionPoint,
    built: &[Arc<dyn Plugin>],
) -> Result<Vec<PluginRef>, ConfigError> {
    let set = profile.plugins.at(point);
    let disabled = |name: &str| set.disabled.iter().any(|plugin| plugin.name == name);
    if disabled("*") {
        return Ok(set.enabled.clone());
    }
    let multi = &profile.plugins.multi_point.enabled;
    for (place, plugin) in multi.iter().enumerate() {
        if multi[..place].iter().any(|other| other.name == plugin.name) {
            return Err(ConfigError::Profile(format!(
                "plugin {:?} already registered as MultiPoint",
                plugin.name
            )));
        }
    }
    let extends = |name: &str| {
        built.iter().any(|plugin| plugin.name() == name && plugin.extension_points().contains(&point))
    };
    let expanded: Vec<_> =
        multi.iter().filter(|plugin| extends(&plugin.name) && !disabled(&plugin.name)).collect();
    let in_multi = |plugin: &&PluginRef| expanded.iter().any(|other| other.name == plugin.name);
    let named = |plugin: &&&PluginRef| set.enabled.iter().any(|other| other.name == plugin.name);
    let overriding = set.enabled.iter().filter(in_multi);
    let rest = expanded.iter().filter(|plugin| !named(plugin)).copied();
    let own = set.enabled.iter().filter(|plugin| !in_multi(plugin));
    Ok(overriding.chain(rest).chain(own).cloned().collect())
}

fn weight(profile: &KubeSchedulerProfile, name: &str) -> i64 {
    let plugins = &profile.plugins;
    let of = |list: &[PluginRef]| list.iter().find(|plugin| plugin.name == name).map(|plugin| plugin.weight);
    let given = of(&plugins.score.enabled).or_else(|| of(&plugins.multi_point.enabled)).flatten();
    given.filter(|weight| *weight != 0).map_or(1, i64::from)
}

/// What the plugins say to nodes about one pod.
pub struct Filters<'a> {
    filters: Vec<(&'static str, Box<dyn Filter + 'a>)>,
    /// The only nodes that can take the pod.
    pub nodes: Option<BTreeSet<String>>,
    /// The plugins that said so.
    pub restricted_by: BTreeSet<&'static str>,
}

impl Filters<'_> {
    /// The first refusal.
    pub fn run(&self, node: &NodeInfo) -> Result<(), Status> {
        for (name, filter) in &self.filters {
            if let Err(status) = filter.filter(node) {
                return Err(status.by(name));
            }
        }
        Ok(())
    }

    /// Whether every plugin that has something to say looks at one node at a time.
    pub fn are_local(&self) -> bool {
        self.filters.iter().all(|(_, filter)| filter.is_local())
    }

    pub fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.filters.iter_mut().for_each(|(_, filter)| filter.add_pod(pod, node));
    }

    pub fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.filters.iter_mut().for_each(|(_, filter)| filter.remove_pod(pod, node));
    }

    /// A pod must fit with the equally or more important pods that are nominated to the node, and without them: they
    /// may land elsewhere.
    pub fn run_with_nominated(
        &mut self,
        pod: &PodInfo,
        node: &NodeInfo,
        nominator: &Nominator,
    ) -> Result<(), Status> {
        let nominated = nominator.on(&node.name);
        let counts = |other: &&Arc<PodInfo>| other.priority >= pod.priority && other.uid != pod.uid;
        if nominated.iter().any(|other| counts(&other)) {
            let mut fuller = node.clone();
            for other in nominated.iter().filter(counts) {
                fuller.add_pod(other.clone());
                self.add_pod(other, &fuller);
            }
            let verdict = self.run(&fuller);
            for other in nominated.iter().filter(counts) {
                self.remove_pod(other, &fuller);
            }
            verdict?;
        }
        self.run(node)
    }
}
