//! Whether a pod may be on a node: taints and required node affinity, as `k8s.io/component-helpers/scheduling` has them
//! for everybody but the scheduler.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use crate::objects::{Labels, Meta};

/// Whether a toleration covers a taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let field = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key, value) = (field(&toleration.effect), field(&toleration.key), field(&toleration.value));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    let tainted = field(&taint.value);
    let compare = |holds: fn(i64, i64) -> bool| matches!((tainted.parse(), value.parse()), (Ok(tainted), Ok(value)) if holds(tainted, value));
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => value == tainted,
        "Gt" => compare(|tainted, value| tainted > value),
        "Lt" => compare(|tainted, value| tainted < value),
        _ => false,
    }
}

/// Whether all taints with one of these effects are tolerated.
pub(crate) fn tolerates_all(tolerations: &[Toleration], taints: &[Taint], effects: &[&str]) -> bool {
    let mut repelling = taints.iter().filter(|taint| effects.contains(&taint.effect.as_str()));
    repelling.all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// Whether a node has the labels of `spec.nodeSelector` and meets one of the required terms of the node affinity.
pub(crate) fn meets_node_affinity(spec: &PodSpec, node: &Node) -> bool {
    let mut selector = spec.node_selector.iter().flatten();
    if !selector.all(|(key, value)| node.label(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| meets_term(term, node)))
}

/// An empty term matches nothing.
fn meets_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let none = Labels::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let of_name = Labels::from([("metadata.name".to_owned(), node.name().to_owned())]);
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|requirement| meets(requirement, labels))
        && fields.iter().all(|requirement| meets(requirement, &of_name))
}

fn meets(requirement: &NodeSelectorRequirement, labels: &Labels) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::{Value, json};

    #[test]
    fn tolerations() {
        let check = |toleration: Value, taint: Value, expected: bool| {
            let held = tolerates(&object(toleration.clone()), &object(taint.clone()));
            assert_eq!(held, expected, "{toleration} {taint}");
        };
        let taint = || json!({"key": "gpu", "value": "4", "effect": "NoSchedule"});
        check(json!({"operator": "Exists"}), taint(), true);
        check(json!({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}), taint(), true);
        check(json!({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}), taint(), false);
        check(json!({"key": "gpu", "value": "4"}), taint(), true);
        check(json!({"key": "gpu", "value": "5"}), taint(), false);
        check(json!({"key": "gpu", "operator": "Gt", "value": "3"}), taint(), true);
        check(json!({"key": "gpu", "operator": "Lt", "value": "3"}), taint(), false);
        check(json!({"key": "gpu", "operator": "Odd"}), taint(), false);
    }

    #[test]
    fn node_affinity() {
        let check = |spec: Value, expected: bool| {
            let node: Node =
                object(json!({"metadata": {"name": "n1", "labels": {"disk": "ssd", "gen": "7"}}}));
            let mut whole = json!({"containers": []});
            whole.as_object_mut().into_iter().for_each(|fields| {
                fields.extend(spec.as_object().cloned().unwrap_or_default());
            });
            assert_eq!(meets_node_affinity(&object(whole), &node), expected, "{spec}");
        };
        let terms = |terms: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": terms}}}})
        };
        let one = |key: &str, operator: &str, values: Value| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
        check(json!({}), true);
        check(json!({"nodeSelector": {"disk": "ssd"}}), true);
        check(json!({"nodeSelector": {"disk": "hdd"}}), false);
        check(terms(json!([])), false);
        check(terms(json!([{}])), false);
        check(terms(one("disk", "In", json!(["hdd", "ssd"]))), true);
        check(terms(one("disk", "NotIn", json!(["ssd"]))), false);
        check(terms(one("zone", "NotIn", json!(["a"]))), true);
        check(terms(one("zone", "Exists", json!([]))), false);
        check(terms(one("zone", "DoesNotExist", json!([]))), true);
        check(terms(one("gen", "Gt", json!(["6"]))), true);
        check(terms(one("gen", "Lt", json!(["6"]))), false);
        let name = |name: &str| json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]);
        check(terms(name("n1")), true);
        check(terms(name("n2")), false);
    }
}
