//! Which labels a node may give itself: not those by which workloads are steered or isolated.

use orlop_json::{Map, Value};

use crate::admission::fields::Fields as _;

/// Labels under `kubernetes.io` and `k8s.io` that kubelets set.
const KUBELET_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/windows-build",
];

/// Whether a label's prefix is this domain or below it.
fn is_under(key: &str, domain: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return false };
    prefix == domain || prefix.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

fn is_kubelet_label(key: &str) -> bool {
    KUBELET_LABELS.contains(&key)
        || ["kubelet.kubernetes.io", "node.kubernetes.io"].iter().any(|domain| is_under(key, domain))
}

fn is_forbidden(key: &str) -> bool {
    let kubernetes = is_under(key, "kubernetes.io") || is_under(key, "k8s.io");
    is_under(key, "node-restriction.kubernetes.io") || (kubernetes && !is_kubelet_label(key))
}

/// The labels that differ between two nodes and that a node may not touch, sorted.
pub(super) fn forbidden(new: &Value, old: &Value) -> Vec<String> {
    let empty = Map::new();
    let labels = |node: &'_ Value| node.get("metadata").and_then(|m| m.map("labels")).cloned();
    let (new, old) = (labels(new).unwrap_or(empty.clone()), labels(old).unwrap_or(empty));
    let mut out: Vec<String> = new
        .iter()
        .filter(|(key, value)| old.get(key) != Some(value))
        .chain(old.iter().filter(|(key, _)| !new.contains_key(key)))
        .map(|(key, _)| key.to_string())
        .filter(|key| is_forbidden(key))
        .collect();
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn labels_of_nodes() {
        let node = |labels: Value| json!({"metadata": {"labels": labels}});
        let check = |new: Value, old: Value, expected: &[&str]| {
            assert_eq!(forbidden(&node(new), &node(old)), expected);
        };
        check(json!({"kubernetes.io/hostname": "n", "example.com/x": "y", "plain": "z"}), json!({}), &[]);
        check(
            json!({"node-role.kubernetes.io/control-plane": ""}),
            json!({}),
            &["node-role.kubernetes.io/control-plane"],
        );
        check(
            json!({"a.node-restriction.kubernetes.io/x": "1", "b.k8s.io/y": "2", "x.node.kubernetes.io/z": "3"}),
            json!({}),
            &["a.node-restriction.kubernetes.io/x", "b.k8s.io/y"],
        );
        check(json!({}), json!({"kubernetes.io/role": "x"}), &["kubernetes.io/role"]);
        check(json!({"kubernetes.io/role": "x"}), json!({"kubernetes.io/role": "x"}), &[]);
    }
}
