//! `spec.nodeSelector` and node affinity, and the affinity that a profile adds to all its pods.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PreferredSchedulingTerm};

use crate::cache::{Cache, NodeInfo};
use crate::config::NodeAffinityArgs;
use crate::framework::{
    ActionType, Change, ClusterEvent, EventResource, ExtensionPoint, Filter, Plugin, PreFilter, QueueingHint,
    Registration, Scorer, Status, default_normalize_score,
};
use crate::pod_info::PodInfo;
use crate::selector::{Labels, NodeMatcher};

pub struct NodeAffinity {
    added: Option<Arc<NodeMatcher>>,
    added_preferences: Vec<(i64, Arc<NodeMatcher>)>,
}

impl NodeAffinity {
    pub fn new(args: NodeAffinityArgs) -> Self {
        let affinity = args.added_affinity.unwrap_or_default();
        let required = affinity.required_during_scheduling_ignored_during_execution;
        Self {
            added: required.map(|selector| Arc::new(NodeMatcher::new(None, Some(&selector)))),
            added_preferences: preferences(
                affinity.preferred_during_scheduling_ignored_during_execution.as_deref(),
            ),
        }
    }

    fn preferences(&self, pod: &PodInfo) -> Vec<(i64, Arc<NodeMatcher>)> {
        let affinity = pod
            .spec()
            .and_then(|spec| spec.affinity.as_ref())
            .and_then(|affinity| affinity.node_affinity.as_ref());
        let own = affinity
            .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_deref());
        self.added_preferences.iter().cloned().chain(preferences(own)).collect()
    }
}

fn preferences(terms: Option<&[PreferredSchedulingTerm]>) -> Vec<(i64, Arc<NodeMatcher>)> {
    let terms = terms.unwrap_or_default().iter().filter(|term| term.weight != 0);
    terms.map(|term| (i64::from(term.weight), Arc::new(NodeMatcher::of_term(&term.preference)))).collect()
}

/// Which nodes match, by place; `None` for all.
struct Required<'a> {
    added: Option<&'a [bool]>,
    own: Option<&'a [bool]>,
}

impl Filter for Required<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        let place = node.index.place();
        if self.added.is_some_and(|nodes| !nodes[place]) {
            return Err(Status::unresolvable("node(s) didn't match scheduler-enforced node affinity"));
        }
        if self.own.is_some_and(|nodes| !nodes[place]) {
            return Err(Status::unresolvable("node(s) didn't match Pod's node affinity/selector"));
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        true
    }
}

struct Preferred<'a>(Vec<(i64, &'a [bool])>);

impl Scorer for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let matching = self.0.iter().filter(|(_, nodes)| nodes[node.index.place()]);
        matching.map(|(weight, _)| weight).sum()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        default_normalize_score(scores, false);
    }
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreFilter, ExtensionPoint::Filter, ExtensionPoint::PreScore, ExtensionPoint::Score]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![Registration::new(EventResource::Node, ActionType::ADD | ActionType::UPDATE_NODE_LABEL)]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, _: &Cache) -> QueueingHint {
        let Change::Node(old, Some(new)) = &event.change else { return QueueingHint::Queue };
        let matches = |node: &Node| {
            let none = Labels::new();
            let labels = node.metadata.labels.as_ref().unwrap_or(&none);
            let name = node.metadata.name.clone().unwrap_or_default();
            pod.node_matcher.matches(&name, labels)
                && self.added.as_ref().is_none_or(|added| added.matches(&name, labels))
        };
        QueueingHint::queue_if(matches(new) && !old.as_ref().is_some_and(|old| matches(old)))
    }

    fn prepare(&self, pod: &PodInfo, cache: &mut Cache) {
        cache.match_nodes(&pod.node_matcher);
        self.added.iter().for_each(|added| cache.match_nodes(added));
        self.preferences(pod).iter().for_each(|(_, matcher)| cache.match_nodes(matcher));
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        if self.added.is_none() && pod.node_matcher.is_everything() {
            return PreFilter::Skip;
        }
        let added = self.added.as_ref().and_then(|added| cache.matched_nodes(added));
        let filter = Box::new(Required { added, own: cache.matched_nodes(&pod.node_matcher) });
        match pod.node_matcher.node_names() {
            Some(names) if names.is_empty() => {
                PreFilter::Reject(Status::unresolvable("pod affinity terms conflict"))
            }
            Some(names) => PreFilter::Nodes(names.into_iter().collect::<BTreeSet<_>>(), Some(filter)),
            None => PreFilter::Filter(filter),
        }
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cache: &'a Cache,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Scorer + 'a>> {
        let preferences = self.preferences(pod);
        let matched = preferences
            .iter()
            .filter_map(|(weight, matcher)| Some((*weight, cache.matched_nodes(matcher)?)))
            .collect::<Vec<_>>();
        (!matched.is_empty()).then(|| Box::new(Preferred(matched)) as Box<dyn Scorer + 'a>)
    }
}
