//! TaintToleration: taints keep pods away that do not tolerate them.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, Filter, FilterPlugin, Rejection, ScorePlugin, normalize};
use crate::pod_info::PodInfo;

pub struct TaintToleration;

/// Whether a toleration covers a taint (API field `spec.tolerations`).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let value = toleration.value.as_deref().unwrap_or_default();
    let tainted = taint.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => !key.is_empty() && value == tainted,
        "Exists" => true,
        operator @ ("Gt" | "Lt") => match (tainted.parse::<i64>(), value.parse::<i64>()) {
            (Ok(tainted), Ok(value)) => {
                if operator == "Gt" {
                    tainted > value
                } else {
                    tainted < value
                }
            }
            _ => false,
        },
        _ => false,
    }
}

fn taints(node: &NodeInfo) -> impl Iterator<Item = &Taint> {
    let spec = node.node.as_ref().and_then(|node| node.spec.as_ref());
    spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten()
}

fn tolerations(pod: &PodInfo) -> &[Toleration] {
    pod.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

impl FilterPlugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn events(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeAdded, ClusterEvent::NodeTaints]
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Cache) -> Filter<'a> {
        let tolerations = tolerations(pod);
        Filter::Check(Box::new(move |node: &NodeInfo| {
            let mut repelling =
                taints(node).filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
            if repelling.all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint))) {
                return Ok(());
            }
            let reason = "node(s) had untolerated taint(s)".to_owned();
            Err(Rejection { plugin: "TaintToleration", reasons: vec![reason], resolvable: false })
        }))
    }
}

impl ScorePlugin for TaintToleration {
    fn weight(&self) -> i64 {
        3
    }

    fn score(&self, pod: &PodInfo, nodes: &[&NodeInfo], _: &Cache) -> Option<Vec<i64>> {
        let tolerations = tolerations(pod);
        let repelling = |node: &NodeInfo| {
            let soft = taints(node).filter(|taint| taint.effect == "PreferNoSchedule");
            soft.filter(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint))).count()
        };
        let mut scores: Vec<i64> =
            nodes.iter().map(|node| i64::try_from(repelling(node)).unwrap_or(i64::MAX)).collect();
        normalize(&mut scores, true);
        Some(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn which_tolerations_cover_which_taints() {
        let check = |toleration: Value, taint: Value, expected: bool| {
            let (parsed, tainted) = (
                serde_json::from_value(toleration.clone()).unwrap(),
                serde_json::from_value(taint.clone()).unwrap(),
            );
            assert_eq!(tolerates(&parsed, &tainted), expected, "{toleration} {taint}");
        };
        let taint = json!({"key": "k", "value": "v", "effect": "NoSchedule"});
        check(json!({"key": "k", "value": "v"}), taint.clone(), true);
        check(json!({"key": "k", "value": "w"}), taint.clone(), false);
        check(json!({"key": "k", "operator": "Exists"}), taint.clone(), true);
        check(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), taint.clone(), false);
        check(json!({"operator": "Exists"}), taint.clone(), true);
        check(json!({"key": "other", "operator": "Exists"}), taint, false);
        let numeric = json!({"key": "k", "value": "10", "effect": "NoSchedule"});
        check(json!({"key": "k", "operator": "Gt", "value": "5"}), numeric.clone(), true);
        check(json!({"key": "k", "operator": "Lt", "value": "5"}), numeric.clone(), false);
        check(json!({"key": "k", "operator": "Gt", "value": "x"}), numeric, false);
    }
}
