//! What happens to nodes that fall silent or come anew: health by lease, taints, eviction, pod ranges, what they are
//! told of the cluster's size. Answers to upstream's `node-lifecycle-controller`, `taint-eviction-controller`,
//! `node-ipam-controller` and `ttl-controller`.

pub(crate) mod eviction;
mod health;
pub(crate) mod ipam;
pub(crate) mod lifecycle;
mod taints;
pub(crate) mod ttl;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};

/// A condition of a node by type.
fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// `True`, `False` or `Unknown`; `Unknown` when the condition is missing.
fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str())
}

fn taints_of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}
