//! InterPodAffinity: pods that want to be near to or away from other pods.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm};
use kube::core::{Selector, SelectorExt};

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, Filter, FilterPlugin, MAX_NODE_SCORE, Rejection, ScorePlugin};
use crate::pod_info::PodInfo;

pub struct InterPodAffinity;

/// One term with its selector made ready.
struct Term {
    namespaces: HashSet<String>,
    all_namespaces: bool,
    selector: Selector,
    key: String,
}

impl Term {
    fn of(term: &PodAffinityTerm, owner: &PodInfo) -> Option<Self> {
        let mut selector: Selector = term.label_selector.clone()?.try_into().ok()?;
        for key in term.match_label_keys.iter().flatten() {
            if let Some(value) = owner.labels().get(key) {
                selector.extend(Selector::from_iter([(key.clone(), value.clone())]));
            }
        }
        let mut namespaces: HashSet<_> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(owner.key.namespace.clone());
        }
        // An empty namespace selector means all. Others need the namespaces' labels, which `run` does not feed yet;
        // treating them as all errs on the side of keeping pods apart, and never puts them where they may not be.
        let all_namespaces = term.namespace_selector.is_some();
        Some(Self { namespaces, all_namespaces, selector, key: term.topology_key.clone() })
    }

    fn matches(&self, pod: &PodInfo) -> bool {
        (self.all_namespaces || self.namespaces.contains(&pod.key.namespace))
            && self.selector.matches(pod.labels())
    }
}

fn affinity(pod: &PodInfo) -> Option<&Affinity> {
    pod.spec()?.affinity.as_ref()
}

fn terms(pod: &PodInfo, list: Option<&Vec<PodAffinityTerm>>) -> Vec<Term> {
    list.into_iter().flatten().filter_map(|term| Term::of(term, pod)).collect()
}

fn required_affinity(pod: &PodInfo) -> Vec<Term> {
    let affinity = affinity(pod).and_then(|affinity| affinity.pod_affinity.as_ref());
    terms(
        pod,
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref()),
    )
}

fn required_anti_affinity(pod: &PodInfo) -> Vec<Term> {
    let affinity = affinity(pod).and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    terms(
        pod,
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref()),
    )
}

/// The topology domains, by key and value, with the number of placed pods in them that a term matches.
fn matching_domains<'a>(term: &Term, cache: &'a Cache) -> HashMap<&'a str, i64> {
    let mut domains = HashMap::new();
    for node in cache.nodes() {
        if let Some(value) = node.labels().get(&term.key) {
            let count = node.pods.values().filter(|placed| term.matches(placed)).count();
            if count > 0 {
                *domains.entry(value.as_str()).or_default() += i64::try_from(count).unwrap_or(i64::MAX);
            }
        }
    }
    domains
}

/// The domains that placed pods keep this pod out of by their own anti-affinity.
fn forbidden_domains(pod: &PodInfo, cache: &Cache) -> HashSet<(String, String)> {
    let mut forbidden = HashSet::new();
    for node in cache.nodes() {
        let guarded = node
            .pods
            .values()
            .filter(|placed| affinity(placed).is_some_and(|affinity| affinity.pod_anti_affinity.is_some()));
        for term in guarded.flat_map(|placed| required_anti_affinity(placed)) {
            if let Some(value) = node.labels().get(&term.key)
                && term.matches(pod)
            {
                forbidden.insert((term.key, value.clone()));
            }
        }
    }
    forbidden
}

impl FilterPlugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn events(&self) -> &'static [ClusterEvent] {
        &[
            ClusterEvent::NodeAdded,
            ClusterEvent::NodeLabels,
            ClusterEvent::PlacedPodAdded,
            ClusterEvent::PlacedPodDeleted,
        ]
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, cache: &'a Cache) -> Filter<'a> {
        let wanted: Vec<_> =
            required_affinity(pod).into_iter().map(|term| (matching_domains(&term, cache), term)).collect();
        let unwanted: Vec<_> = required_anti_affinity(pod)
            .into_iter()
            .map(|term| (matching_domains(&term, cache), term))
            .collect();
        let forbidden = forbidden_domains(pod, cache);
        if wanted.is_empty() && unwanted.is_empty() && forbidden.is_empty() {
            return Filter::Skip;
        }
        // The first pod of a group that wants to be together has nobody to join yet.
        let first = wanted.iter().all(|(domains, term)| domains.is_empty() && term.matches(pod));
        Filter::Check(Box::new(move |node: &NodeInfo| {
            let reject = |reason: &str, resolvable| {
                Err(Rejection { plugin: "InterPodAffinity", reasons: vec![reason.to_owned()], resolvable })
            };
            let value = |key: &str| node.labels().get(key).map(String::as_str);
            for (domains, term) in &wanted {
                match value(&term.key) {
                    Some(value) if first || domains.contains_key(value) => {}
                    _ => return reject("node(s) didn't match pod affinity rules", false),
                }
            }
            if unwanted
                .iter()
                .any(|(domains, term)| value(&term.key).is_some_and(|value| domains.contains_key(value)))
            {
                return reject("node(s) didn't match pod anti-affinity rules", true);
            }
            if forbidden.iter().any(|(key, taken)| value(key) == Some(taken)) {
                return reject("node(s) didn't satisfy existing pods anti-affinity rules", true);
            }
            Ok(())
        }))
    }
}

impl ScorePlugin for InterPodAffinity {
    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], cache: &Cache) -> Option<Vec<i64>> {
        let affinity = affinity(pod)?;
        let near = affinity.pod_affinity.as_ref();
        let near = near.and_then(|near| near.preferred_during_scheduling_ignored_during_execution.as_ref());
        let away = affinity.pod_anti_affinity.as_ref();
        let away = away.and_then(|away| away.preferred_during_scheduling_ignored_during_execution.as_ref());
        let weighted = near.into_iter().flatten().map(|term| (i64::from(term.weight), term));
        let weighted = weighted.chain(away.into_iter().flatten().map(|term| (-i64::from(term.weight), term)));
        let terms: Vec<_> = weighted
            .filter_map(|(weight, term)| Some((weight, Term::of(&term.pod_affinity_term, pod)?)))
            .map(|(weight, term)| (weight, matching_domains(&term, cache), term))
            .collect();
        if terms.is_empty() {
            return None;
        }
        let raw = nodes.iter().map(|node| {
            let scores = terms.iter().filter_map(|(weight, domains, term)| {
                Some(weight * domains.get(node.labels().get(&term.key)?.as_str())?)
            });
            scores.sum::<i64>()
        });
        let raw: Vec<i64> = raw.collect();
        let (lowest, highest) = (raw.iter().copied().min()?, raw.iter().copied().max()?);
        let range = highest - lowest;
        Some(
            raw.iter()
                .map(|score| if range == 0 { 0 } else { MAX_NODE_SCORE * (score - lowest) / range })
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{labelled_node, pod_with};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn term(kind: &str, key: &str) -> Value {
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}}]}}})
    }

    /// Nodes `a` and `b`; one pod with `there` as its spec on `a`.
    fn check(there: Option<Value>, spec: Value, expected: &[&str]) {
        let mut cache = Cache::default();
        for name in ["a", "b"] {
            cache.set_node(labelled_node(name, json!({"host": name}), json!({})));
        }
        if let Some(there) = there {
            cache.place(Arc::new(PodInfo::new(pod_with("there", there))), "a");
        }
        let pod = PodInfo::new(pod_with("p", spec));
        let fits: Vec<_> = match InterPodAffinity.prepare(&pod, &cache) {
            Filter::Skip => cache.nodes().map(|node| node.name.clone()).collect(),
            Filter::Check(filter) => {
                cache.nodes().filter(|node| filter(node).is_ok()).map(|node| node.name.clone()).collect()
            }
        };
        assert_eq!(fits, expected);
    }

    #[test]
    fn required_terms() {
        check(None, json!({}), &["a", "b"]);
        check(Some(json!({})), term("podAffinity", "host"), &["a"]);
        check(None, term("podAffinity", "host"), &["a", "b"]);
        check(Some(json!({})), term("podAffinity", "rack"), &[]);
        check(Some(json!({})), term("podAntiAffinity", "host"), &["b"]);
        check(Some(term("podAntiAffinity", "host")), json!({}), &["b"]);
        check(Some(term("podAntiAffinity", "rack")), json!({}), &["a", "b"]);
    }
}
