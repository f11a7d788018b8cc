//! NodeAffinity: `spec.nodeSelector` and `spec.affinity.nodeAffinity`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeAffinity as Affinity, NodeSelectorRequirement, NodeSelectorTerm};

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, Filter, FilterPlugin, Rejection, ScorePlugin, normalize};
use crate::pod_info::PodInfo;

pub struct NodeAffinity;

fn affinity(pod: &PodInfo) -> Option<&Affinity> {
    pod.spec()?.affinity.as_ref()?.node_affinity.as_ref()
}

/// Whether a node is one that the pod must run on: its selector and one of its required terms match.
pub fn required_matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let Some(spec) = pod.spec() else { return true };
    let labels = node.labels();
    let mut selector = spec.node_selector.iter().flatten();
    if !selector.all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    match affinity(pod)
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())
    {
        Some(required) => required.node_selector_terms.iter().any(|term| term_matches(term, node)),
        None => true,
    }
}

/// An empty term matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let name = BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]);
    expressions.iter().all(|requirement| matches(requirement, node.labels()))
        && fields.iter().all(|requirement| matches(requirement, &name))
}

fn matches(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let compare = |holds: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(number);
        matches!((value.and_then(number), bound), (Some(value), Some(bound)) if holds(value, bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, bound| value > bound),
        "Lt" => compare(|value, bound| value < bound),
        _ => false,
    }
}

impl FilterPlugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn events(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeAdded, ClusterEvent::NodeLabels]
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Cache) -> Filter<'a> {
        let selects =
            pod.spec().is_some_and(|spec| spec.node_selector.as_ref().is_some_and(|map| !map.is_empty()));
        let required = affinity(pod)
            .is_some_and(|affinity| affinity.required_during_scheduling_ignored_during_execution.is_some());
        if !selects && !required {
            return Filter::Skip;
        }
        Filter::Check(Box::new(|node: &NodeInfo| {
            if required_matches(pod, node) {
                return Ok(());
            }
            let reason = "node(s) didn't match Pod's node affinity/selector".to_owned();
            Err(Rejection { plugin: "NodeAffinity", reasons: vec![reason], resolvable: false })
        }))
    }
}

impl ScorePlugin for NodeAffinity {
    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], _: &Cache) -> Option<Vec<i64>> {
        let preferred = affinity(pod)?.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        let weight = |node: &NodeInfo| {
            let matching = preferred.iter().filter(|term| term_matches(&term.preference, node));
            matching.map(|term| i64::from(term.weight)).sum()
        };
        let mut scores: Vec<i64> = nodes.iter().map(|node| weight(node)).collect();
        normalize(&mut scores, false);
        Some(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{labelled_node, pod_with};
    use serde_json::{Value, json};

    fn check(spec: Value, expected: bool) {
        let mut cache = Cache::default();
        cache.set_node(labelled_node("n1", json!({"disk": "ssd", "gen": "7"}), json!({})));
        let pod = PodInfo::new(pod_with("p", spec.clone()));
        let node = cache.nodes().next().unwrap();
        assert_eq!(required_matches(&pod, node), expected, "{spec}");
    }

    fn required(terms: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    #[test]
    fn selectors_and_required_terms() {
        check(json!({}), true);
        check(json!({"nodeSelector": {"disk": "ssd"}}), true);
        check(json!({"nodeSelector": {"disk": "hdd"}}), false);
        let expression = |key: &str, operator: &str, values: Value| json!({"key": key, "operator": operator, "values": values});
        for (requirement, expected) in [
            (expression("disk", "In", json!(["hdd", "ssd"])), true),
            (expression("disk", "NotIn", json!(["hdd"])), true),
            (expression("none", "NotIn", json!(["hdd"])), true),
            (expression("disk", "Exists", json!([])), true),
            (expression("none", "Exists", json!([])), false),
            (expression("none", "DoesNotExist", json!([])), true),
            (expression("gen", "Gt", json!(["6"])), true),
            (expression("gen", "Gt", json!(["7"])), false),
            (expression("gen", "Lt", json!(["8"])), true),
            (expression("disk", "Gt", json!(["1"])), false),
        ] {
            check(required(json!([{"matchExpressions": [requirement]}])), expected);
        }
        check(required(json!([{}])), false);
        check(
            required(json!([{}, {"matchFields": [expression("metadata.name", "In", json!(["n1"]))]}])),
            true,
        );
        check(required(json!([{"matchFields": [expression("metadata.name", "In", json!(["n2"]))]}])), false);
    }
}
