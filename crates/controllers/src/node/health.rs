//! Whether a node is still heard of, and what its conditions become when it is not.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::condition;
use crate::objects::Meta;

/// The conditions that only a kubelet can vouch for.
const VOUCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The node with its conditions set to Unknown, or `None` when they are already: nobody has heard of it for too long.
pub(crate) fn silenced(node: &Node, now: Timestamp) -> Option<Node> {
    let mut changed = node.clone();
    let created = node.metadata.creation_timestamp.clone();
    let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
    let mut any = false;
    for kind in VOUCHED {
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            None => conditions.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: created.clone(),
                last_transition_time: Some(Time(now)),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => continue,
        }
        any = true;
    }
    any.then_some(changed)
}

/// Whether the kubelet said something between two states of the node.
pub(crate) fn spoke(old: &Node, new: &Node) -> bool {
    let ready = |node: &Node| {
        condition(node, "Ready")
            .map(|ready| (ready.last_heartbeat_time.clone(), ready.last_transition_time.clone()))
    };
    // Our own write to Unknown moves the transition time only, and is no sign of life.
    match (ready(old), ready(new)) {
        (None, None) => false,
        (None, Some(_)) => condition(new, "Ready")
            .is_some_and(|ready| ready.reason.as_deref() != Some("NodeStatusNeverUpdated")),
        (Some((old_beat, old_change)), Some((beat, change))) => {
            old_beat != beat
                || (old_change != change
                    && condition(new, "Ready").is_some_and(|ready| ready.status != "Unknown"))
        }
        (Some(_), None) => false,
    }
}

/// How the zones are doing; taints that evict depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zone {
    Normal,
    /// More than half of its nodes are not ready: evict slowly or, in a small zone, not at all.
    Partial {
        nodes: usize,
    },
    /// No node is ready.
    Full,
}

pub(crate) fn zone_of(node: &Node) -> String {
    let label = |key: &str| node.label(key).unwrap_or_default().to_owned();
    format!("{}:\0:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// The state of a zone from the readiness of its nodes.
pub(crate) fn zone_state<'a>(readiness: impl Iterator<Item = &'a str>) -> Zone {
    let (mut ready, mut not_ready) = (0_usize, 0_usize);
    for status in readiness {
        if status == "True" { ready += 1 } else { not_ready += 1 }
    }
    let nodes = ready + not_ready;
    if ready == 0 && not_ready > 0 {
        Zone::Full
    } else if not_ready > 2 && not_ready * 100 >= nodes * 55 {
        Zone::Partial { nodes }
    } else {
        Zone::Normal
    }
}

/// Seconds between two evicting taints of a zone; `None` when none are put.
pub(crate) fn eviction_pause(zone: Zone) -> Option<f64> {
    match zone {
        Zone::Normal | Zone::Full => Some(10.0),
        Zone::Partial { nodes } if nodes > 50 => Some(100.0),
        Zone::Partial { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objects::testing::{at, object};
    use serde_json::json;

    #[test]
    fn silence_turns_conditions_unknown_once() {
        let node: Node = object(
            json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": "2026-01-01T01:00:00Z"}]}}),
        );
        let now = at("2026-01-01T02:00:00Z");
        let silent = silenced(&node, now).unwrap();
        let shown: Vec<_> = silent
            .status
            .as_ref()
            .unwrap()
            .conditions
            .as_ref()
            .unwrap()
            .iter()
            .map(|c| format!("{} {} {}", c.type_, c.status, c.reason.as_deref().unwrap()))
            .collect();
        assert_eq!(
            shown,
            [
                "Ready Unknown NodeStatusUnknown",
                "MemoryPressure Unknown NodeStatusNeverUpdated",
                "DiskPressure Unknown NodeStatusNeverUpdated",
                "PIDPressure Unknown NodeStatusNeverUpdated"
            ]
        );
        assert_eq!(silenced(&silent, now), None);
        assert!(!spoke(&node, &silent), "our own write is no sign of life");
    }

    #[test]
    fn zones() {
        let check = |ready: usize, not_ready: usize, expected: Zone| {
            let all = std::iter::repeat_n("True", ready).chain(std::iter::repeat_n("Unknown", not_ready));
            assert_eq!(zone_state(all), expected, "{ready} ready, {not_ready} not");
        };
        check(0, 0, Zone::Normal);
        check(1, 0, Zone::Normal);
        check(0, 1, Zone::Full);
        check(1, 2, Zone::Normal);
        check(2, 3, Zone::Partial { nodes: 5 });
        check(10, 3, Zone::Normal);
        assert_eq!(eviction_pause(Zone::Partial { nodes: 5 }), None);
        assert_eq!(eviction_pause(Zone::Partial { nodes: 60 }), Some(100.0));
    }
}
