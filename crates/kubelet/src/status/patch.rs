//! The smallest strategic merge patch from one pod status to another. Pure. Only conditions that are in the new status
//! are touched: the others belong to somebody else.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// The lists the API merges by a key; all other fields of a status are replaced as a whole.
const MERGED: [(&str, &str); 3] = [("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip")];

/// The `status` part of the patch; `None` when nothing changes.
pub(super) fn status_patch(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (Ok(Value::Object(old)), Ok(Value::Object(new))) =
        (serde_json::to_value(old), serde_json::to_value(new))
    else {
        return None;
    };
    let mut patch = Map::new();
    // What another writer owns (e.g. `resize`, `nominatedNodeName`) is not in a generated status and is left alone.
    for name in OWNED {
        let (before, after) = (old.get(name), new.get(name));
        if before == after {
            continue;
        }
        let change = match MERGED.iter().find(|(list, _)| *list == name) {
            Some((_, key)) => merged_list(name, key, before, after),
            None => Some(after.cloned().unwrap_or(Value::Null)),
        };
        if let Some(change) = change {
            patch.insert(name.to_owned(), change);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The fields a kubelet writes.
const OWNED: [&str; 14] = [
    "observedGeneration",
    "phase",
    "conditions",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "qosClass",
];

fn merged_list(name: &str, key: &str, before: Option<&Value>, after: Option<&Value>) -> Option<Value> {
    let items = |list: Option<&Value>| list.and_then(Value::as_array).cloned().unwrap_or_default();
    let (before, after) = (items(before), items(after));
    let same = |a: &Value, b: &Value| a.get(key) == b.get(key);
    let mut changes = Vec::new();
    for new in &after {
        match before.iter().find(|old| same(old, new)) {
            Some(old) if old == new => {}
            Some(old) => changes.push(with_removals(old, new)),
            None => changes.push(new.clone()),
        }
    }
    if name != "conditions" {
        for gone in before.iter().filter(|old| !after.iter().any(|new| same(old, new))) {
            changes.push(json!({"$patch": "delete", key: gone.get(key)}));
        }
    }
    (!changes.is_empty()).then_some(Value::Array(changes))
}

/// An item whose fields that went away are set to null, so that the merge removes them.
fn with_removals(old: &Value, new: &Value) -> Value {
    let mut out = new.clone();
    if let (Some(old), Value::Object(out)) = (old.as_object(), &mut out) {
        for name in old.keys() {
            // `lastProbeTime` is null in every encoded condition.
            if !out.contains_key(name) && name != "lastProbeTime" {
                out.insert(name.clone(), Value::Null);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(old: Value, new: Value, expected: Option<Value>) {
        let read = |value: Value| serde_json::from_value::<PodStatus>(value).unwrap();
        assert_eq!(status_patch(&read(old), &read(new)), expected);
    }

    #[test]
    fn only_what_changed_is_sent() {
        check(json!({"phase": "Running"}), json!({"phase": "Running"}), None);
        check(
            json!({"phase": "Pending", "hostIP": "a"}),
            json!({"phase": "Running", "hostIP": "a"}),
            Some(json!({"phase": "Running"})),
        );
        check(json!({"reason": "x"}), json!({}), Some(json!({"reason": null})));
        check(json!({"nominatedNodeName": "x", "resize": "Proposed"}), json!({}), None);
    }

    #[test]
    fn merged_lists_touch_only_their_own_items() {
        check(
            json!({"conditions": [{"type": "Ready", "status": "False", "reason": "r"}, {"type": "Gate", "status": "True"}]}),
            json!({"conditions": [{"type": "Ready", "status": "True"}]}),
            Some(json!({"conditions": [{"status": "True", "type": "Ready", "reason": null}]})),
        );
        check(
            json!({"podIPs": [{"ip": "1.1.1.1"}]}),
            json!({"podIPs": [{"ip": "2.2.2.2"}]}),
            Some(json!({"podIPs": [{"ip": "2.2.2.2"}, {"$patch": "delete", "ip": "1.1.1.1"}]})),
        );
    }
}
