//! The taints that a node's conditions ask for.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{condition, taints_of};

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition, its status, and the NoSchedule taint that follows.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// What may be done about the taints that evict pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evicting {
    /// Put the one that the readiness asks for.
    Put,
    /// Change or remove what is there, but begin no eviction now.
    Hold,
    /// Remove them: no node at all is ready, so the fault is rather here than there.
    Remove,
}

/// The taint that evicts pods from a node in its state, if any.
pub(crate) fn evicting_taint(node: &Node) -> Option<&'static str> {
    match condition(node, "Ready")?.status.as_str() {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    }
}

/// Whether the node waits for an evicting taint.
pub(crate) fn wants_eviction(node: &Node) -> bool {
    let has = |key: &str| taints_of(node).iter().any(|taint| taint.effect == "NoExecute" && taint.key == key);
    evicting_taint(node).is_some() && !has(NOT_READY) && !has(UNREACHABLE)
}

/// All taints the node should have, or `None` when it has them.
pub(crate) fn desired(node: &Node, evicting: Evicting, now: Timestamp) -> Option<Vec<Taint>> {
    let current = taints_of(node);
    let ours = |key: &str| key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(.., taint)| *taint == key);
    let evicts =
        |taint: &Taint| taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE);
    let holds =
        |kind: &str, status: &str| condition(node, kind).is_some_and(|condition| condition.status == status);

    let mut wanted: Vec<(&str, &str)> = Vec::new();
    if condition(node, "Ready").is_none() {
        // It has not reported yet; what its registration put stays.
        let kept = current.iter().filter(|taint| taint.effect == "NoSchedule" && (taint.key == NOT_READY));
        wanted.extend(kept.map(|_| (NOT_READY, "NoSchedule")));
    }
    for (kind, status, key) in BY_CONDITION {
        if holds(kind, status) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let evicted = current.iter().any(evicts);
    if let Some(key) = evicting_taint(node)
        && (evicting == Evicting::Put || (evicting == Evicting::Hold && evicted))
    {
        wanted.push((key, "NoExecute"));
    }

    let managed = |taint: &Taint| (taint.effect == "NoSchedule" && ours(&taint.key)) || evicts(taint);
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<_> =
        current.iter().filter(|taint| !managed(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    let keys = |taints: &[Taint]| -> Vec<_> {
        taints.iter().map(|taint| (taint.key.clone(), taint.effect.clone())).collect()
    };
    (keys(&taints) != keys(current)).then_some(taints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::{at, object};
    use serde_json::{Value, json};

    fn check(
        what: &str,
        conditions: &[(&str, &str)],
        spec: Value,
        evicting: Evicting,
        expected: Option<&[&str]>,
    ) {
        let conditions: Vec<_> =
            conditions.iter().map(|(kind, status)| json!({"type": kind, "status": status})).collect();
        let node =
            object(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}}));
        let taints = desired(&node, evicting, at("2026-01-01T00:00:00Z"));
        let shown: Option<Vec<_>> = taints.map(|taints| {
            taints
                .iter()
                .map(|taint| {
                    format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect)
                })
                .collect()
        });
        assert_eq!(
            shown.as_deref(),
            expected.map(|list| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).as_deref(),
            "{what}"
        );
    }

    #[test]
    fn taints_follow_conditions() {
        let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect});
        let none = || json!({});
        let put = Evicting::Put;
        check("ready", &[("Ready", "True")], none(), put, None);
        check(
            "not ready",
            &[("Ready", "False")],
            none(),
            put,
            Some(&["not-ready:NoSchedule", "not-ready:NoExecute"]),
        );
        check(
            "unreachable",
            &[("Ready", "Unknown")],
            none(),
            put,
            Some(&["unreachable:NoSchedule", "unreachable:NoExecute"]),
        );
        check(
            "eviction held",
            &[("Ready", "Unknown")],
            none(),
            Evicting::Hold,
            Some(&["unreachable:NoSchedule"]),
        );
        let evicted = json!({"taints": [taint(NOT_READY, "NoSchedule"), taint(NOT_READY, "NoExecute")]});
        check(
            "moves",
            &[("Ready", "Unknown")],
            evicted.clone(),
            Evicting::Hold,
            Some(&["unreachable:NoSchedule", "unreachable:NoExecute"]),
        );
        check("stays", &[("Ready", "False")], evicted.clone(), Evicting::Hold, None);
        check(
            "all are down",
            &[("Ready", "False")],
            evicted.clone(),
            Evicting::Remove,
            Some(&["not-ready:NoSchedule"]),
        );
        check("comes back", &[("Ready", "True")], evicted, put, Some(&[]));
        check(
            "pressure",
            &[("Ready", "True"), ("MemoryPressure", "True")],
            none(),
            put,
            Some(&["memory-pressure:NoSchedule"]),
        );
        check(
            "cordoned",
            &[("Ready", "True")],
            json!({"unschedulable": true}),
            put,
            Some(&["unschedulable:NoSchedule"]),
        );
        let others = json!({"taints": [taint("mine", "NoExecute"), taint("node.kubernetes.io/disk-pressure", "NoSchedule")]});
        check("others stay", &[("Ready", "True")], others, put, Some(&["mine:NoExecute"]));
        let fresh = json!({"taints": [taint(NOT_READY, "NoSchedule")]});
        check("never reported", &[], fresh, put, None);
    }
}
