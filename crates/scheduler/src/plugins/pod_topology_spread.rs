//! PodTopologySpread: pods that belong together are spread over zones, hosts or whatever label the pod names
//! (KEP-895). Pods that name nothing are spread by upstream's system defaults.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use kube::core::{Selector, SelectorExt};

use super::node_affinity::required_matches;
use super::taint_toleration::tolerates;
use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, Filter, FilterPlugin, MAX_NODE_SCORE, Rejection, ScorePlugin};
use crate::pod_info::PodInfo;

pub struct PodTopologySpread;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

struct Constraint {
    max_skew: i64,
    key: String,
    selector: Selector,
    min_domains: i64,
    /// `nodeAffinityPolicy: Honor`.
    honor_affinity: bool,
    /// `nodeTaintsPolicy: Honor`.
    honor_taints: bool,
}

impl Constraint {
    fn of(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> Option<Self> {
        let mut selector: Selector = constraint.label_selector.clone()?.try_into().ok()?;
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = pod.labels().get(key) {
                selector.extend(Selector::from_iter([(key.clone(), value.clone())]));
            }
        }
        Some(Self {
            max_skew: i64::from(constraint.max_skew),
            key: constraint.topology_key.clone(),
            selector,
            min_domains: constraint.min_domains.map_or(1, i64::from),
            honor_affinity: constraint.node_affinity_policy.as_deref().unwrap_or("Honor") == "Honor",
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        })
    }

    fn counts(&self, node: &NodeInfo, pod: &PodInfo) -> bool {
        if self.honor_affinity && !required_matches(pod, node) {
            return false;
        }
        !self.honor_taints || {
            let tolerations = pod.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
            let spec = node.node.as_ref().and_then(|node| node.spec.as_ref());
            let taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
            let mut repelling = taints.filter(|taint| taint.effect != "PreferNoSchedule");
            repelling.all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
        }
    }

    fn matching(&self, node: &NodeInfo, namespace: &str) -> i64 {
        let pods = node.pods.values().filter(|placed| {
            placed.key.namespace == namespace
                && placed.pod.metadata.deletion_timestamp.is_none()
                && self.selector.matches(placed.labels())
        });
        i64::try_from(pods.count()).unwrap_or(i64::MAX)
    }

    /// Matching pods by value of the topology label, over the nodes that count.
    fn domains<'a>(&self, nodes: impl Iterator<Item = &'a NodeInfo>, pod: &PodInfo) -> HashMap<&'a str, i64> {
        let mut domains = HashMap::new();
        for node in nodes {
            if let Some(value) = node.labels().get(&self.key)
                && self.counts(node, pod)
            {
                *domains.entry(value.as_str()).or_default() += self.matching(node, &pod.key.namespace);
            }
        }
        domains
    }
}

fn constraints(pod: &PodInfo, when: &str) -> Vec<Constraint> {
    let named = pod.spec().and_then(|spec| spec.topology_spread_constraints.as_deref()).unwrap_or_default();
    if named.is_empty() && when == "ScheduleAnyway" {
        let Some(selector) = &pod.default_selector else { return Vec::new() };
        return [(HOSTNAME, 3), (ZONE, 5)]
            .map(|(key, max_skew)| Constraint {
                max_skew,
                key: key.to_owned(),
                selector: selector.clone(),
                min_domains: 1,
                honor_affinity: true,
                honor_taints: false,
            })
            .into();
    }
    let wanted = named.iter().filter(|constraint| constraint.when_unsatisfiable == when);
    wanted.filter_map(|constraint| Constraint::of(constraint, pod)).collect()
}

impl FilterPlugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn events(&self) -> &'static [ClusterEvent] {
        &[
            ClusterEvent::NodeAdded,
            ClusterEvent::NodeLabels,
            ClusterEvent::NodeTaints,
            ClusterEvent::PlacedPodAdded,
            ClusterEvent::PlacedPodDeleted,
        ]
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, cache: &'a Cache) -> Filter<'a> {
        let hard = constraints(pod, "DoNotSchedule");
        if hard.is_empty() {
            return Filter::Skip;
        }
        let domains: Vec<_> = hard
            .into_iter()
            .map(|constraint| {
                let counts = constraint.domains(cache.nodes(), pod);
                let fewest = counts.values().copied().min().unwrap_or(0);
                // With fewer domains than asked for, the missing ones count as empty.
                let enough = i64::try_from(counts.len()).unwrap_or(i64::MAX) >= constraint.min_domains;
                let own = i64::from(constraint.selector.matches(pod.labels()));
                (constraint, counts, if enough { fewest } else { 0 }, own)
            })
            .collect();
        Filter::Check(Box::new(move |node: &NodeInfo| {
            let reject = |reason: &str, resolvable| {
                Err(Rejection { plugin: "PodTopologySpread", reasons: vec![reason.to_owned()], resolvable })
            };
            for (constraint, counts, fewest, own) in &domains {
                let Some(value) = node.labels().get(&constraint.key) else {
                    return reject(
                        "node(s) didn't match pod topology spread constraints (missing required label)",
                        false,
                    );
                };
                let here = counts.get(value.as_str()).copied().unwrap_or(0);
                if here + own - fewest > constraint.max_skew {
                    return reject("node(s) didn't match pod topology spread constraints", true);
                }
            }
            Ok(())
        }))
    }
}

impl ScorePlugin for PodTopologySpread {
    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], cache: &Cache) -> Option<Vec<i64>> {
        let soft = constraints(pod, "ScheduleAnyway");
        if soft.is_empty() {
            return None;
        }
        // With the system's defaults a cluster without zones is still spread over hosts.
        let defaulted = pod.default_selector.is_some();
        let soft: Vec<_> = soft
            .into_iter()
            .filter(|constraint| {
                !defaulted || nodes.iter().all(|node| node.labels().contains_key(&constraint.key))
            })
            .map(|constraint| {
                let counts: BTreeMap<_, _> = constraint.domains(cache.nodes(), pod).into_iter().collect();
                let sizes = nodes.iter().filter_map(|node| node.labels().get(&constraint.key));
                let size = sizes.collect::<std::collections::BTreeSet<_>>().len();
                (constraint, counts, ((size + 2) as f64).ln())
            })
            .collect();
        let raw: Vec<Option<f64>> = nodes
            .iter()
            .map(|node| {
                soft.iter()
                    .map(|(constraint, counts, weight)| {
                        let value = node.labels().get(&constraint.key)?;
                        let count = counts.get(value.as_str()).copied().unwrap_or(0);
                        Some(count as f64 * weight + (constraint.max_skew - 1) as f64)
                    })
                    .sum()
            })
            .collect();
        let known = || raw.iter().flatten().copied();
        let (lowest, highest) = (known().fold(f64::INFINITY, f64::min), known().fold(0.0, f64::max));
        let normalized = raw.iter().map(|score| match score {
            // A node without the label is the last choice.
            None => 0,
            Some(_) if highest == 0.0 => MAX_NODE_SCORE,
            // Both are at most `highest`, so the result is between 0 and 100.
            Some(score) => (MAX_NODE_SCORE as f64 * (highest + lowest - score) / highest).round() as i64,
        });
        Some(normalized.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{labelled_node, pod_with};
    use serde_json::{Value, json};
    use std::sync::Arc;

    /// Three nodes, `a1` and `a2` in zone a, `b1` in zone b, with these many pods each.
    fn cluster(pods: [usize; 3]) -> Cache {
        let mut cache = Cache::default();
        for ((name, zone), count) in [("a1", "a"), ("a2", "a"), ("b1", "b")].into_iter().zip(pods) {
            cache.set_node(labelled_node(name, json!({ZONE: zone, HOSTNAME: name}), json!({})));
            for number in 0..count {
                cache.place(Arc::new(PodInfo::new(pod_with(&format!("{name}-{number}"), json!({})))), name);
            }
        }
        cache
    }

    fn constraint(key: &str, when: &str) -> Value {
        json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "web"}}})
    }

    #[test]
    fn hard_constraints_keep_the_skew() {
        let check = |pods: [usize; 3], constraint: Value, expected: &[&str]| {
            let cache = cluster(pods);
            let pod = PodInfo::new(pod_with("p", json!({"topologySpreadConstraints": [constraint.clone()]})));
            let Filter::Check(filter) = PodTopologySpread.prepare(&pod, &cache) else { panic!("no filter") };
            let fits: Vec<_> =
                cache.nodes().filter(|node| filter(node).is_ok()).map(|node| node.name.as_str()).collect();
            assert_eq!(fits, expected, "{pods:?} {constraint}");
        };
        check([0, 0, 0], constraint(ZONE, "DoNotSchedule"), &["a1", "a2", "b1"]);
        check([1, 0, 0], constraint(ZONE, "DoNotSchedule"), &["b1"]);
        check([1, 0, 1], constraint(HOSTNAME, "DoNotSchedule"), &["a2"]);
        check([1, 0, 0], constraint("rack", "DoNotSchedule"), &[]);
        let mut three = constraint(ZONE, "DoNotSchedule");
        three["minDomains"] = json!(3);
        check([1, 0, 1], three, &[]);
    }

    #[test]
    fn soft_constraints_prefer_the_emptier_domain() {
        let cache = cluster([1, 1, 0]);
        let nodes: Vec<_> = cache.nodes().collect();
        let pod = PodInfo::new(pod_with(
            "p",
            json!({"topologySpreadConstraints": [constraint(ZONE, "ScheduleAnyway")]}),
        ));
        let scores = PodTopologySpread.score(&pod, &nodes, &cache).unwrap();
        assert!(scores[2] > scores[0] && scores[0] == scores[1], "{scores:?}");
        let unlabelled = PodInfo::new(pod_with("q", json!({})));
        assert!(PodTopologySpread.score(&unlabelled, &nodes, &cache).is_none());
    }

    #[test]
    fn pods_of_one_service_are_spread_over_hosts_by_default() {
        let cache = cluster([2, 1, 0]);
        let nodes: Vec<_> = cache.nodes().collect();
        let selector = Selector::from_iter([("app".to_owned(), "web".to_owned())]);
        let pod = PodInfo::new(pod_with("p", json!({}))).with_default_selector(Some(selector));
        let scores = PodTopologySpread.score(&pod, &nodes, &cache).unwrap();
        assert!(scores[2] > scores[1] && scores[1] > scores[0], "{scores:?}");
    }
}
