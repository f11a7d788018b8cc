//! Which pods go first when there are too many. Answers to upstream's `ActivePodsWithRanks`.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::objects::{Meta, is_active, is_ready, node_name, phase, ready_since};

/// The `count` pods to delete. `related` are the pods of all sets of the same owner: a node with many of them gives
/// one up sooner.
pub(crate) fn pods_to_delete(
    mut pods: Vec<Arc<Pod>>,
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    if count < pods.len() {
        let mut on_node: HashMap<&str, usize> = HashMap::new();
        for pod in related.iter().filter(|pod| is_active(pod)) {
            *on_node.entry(node_name(pod)).or_default() += 1;
        }
        let crowd = |pod: &Pod| on_node.get(node_name(pod)).copied().unwrap_or(0);
        pods.sort_by(|a, b| before(a, b, crowd(a), crowd(b), now));
    }
    pods.truncate(count);
    pods
}

fn before(a: &Pod, b: &Pod, crowd_a: usize, crowd_b: usize, now: Timestamp) -> Ordering {
    let assigned = |pod: &Pod| !node_name(pod).is_empty();
    let stage = |pod: &Pod| match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| stage(a).cmp(&stage(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| crowd_b.cmp(&crowd_a))
        .then_with(|| younger_first(a, b, ready_since(a), ready_since(b), now))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| {
            let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            younger_first(a, b, created(a), created(b), now)
        })
}

/// Younger first, but ages are compared by their order of magnitude only, and within one the uid decides: so which of
/// many old pods goes is as good as random.
fn younger_first(
    a: &Pod,
    b: &Pod,
    since_a: Option<Timestamp>,
    since_b: Option<Timestamp>,
    now: Timestamp,
) -> Ordering {
    match (since_a, since_b) {
        (Some(a), Some(b)) if a == b => Ordering::Equal,
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(since_a), Some(since_b)) => {
            magnitude(since_a, now).cmp(&magnitude(since_b, now)).then_with(|| a.uid().cmp(b.uid()))
        }
    }
}

fn magnitude(since: Timestamp, now: Timestamp) -> i64 {
    let age = now.as_nanosecond() - since.as_nanosecond();
    if age > 0 { i64::from(age.ilog2()) } else { -1 }
}

/// `controller.kubernetes.io/pod-deletion-cost`; what cannot be read counts as 0.
fn deletion_cost(pod: &Pod) -> i32 {
    pod.annotation("controller.kubernetes.io/pod-deletion-cost")
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses =
        pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().map(|container| container.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::{at, object};
    use serde_json::{Value, json};

    fn pod(name: &str, node: &str, phase: &str, ready: Option<&str>, extra: Value) -> Arc<Pod> {
        let mut conditions = vec![];
        if let Some(since) = ready {
            conditions.push(json!({"type": "Ready", "status": "True", "lastTransitionTime": since}));
        }
        let mut pod = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": conditions},
        });
        if let Some(cost) = extra.get("cost") {
            pod["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": cost});
        }
        if let Some(restarts) = extra.get("restarts") {
            pod["status"]["containerStatuses"] =
                json!([{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": restarts}]);
        }
        if let Some(created) = extra.get("created") {
            pod["metadata"]["creationTimestamp"] = created.clone();
        }
        Arc::new(object(pod))
    }

    fn check(what: &str, keep: Arc<Pod>, goes: Arc<Pod>, neighbours: &[&str]) {
        let mut related: Vec<_> = vec![keep.clone(), goes.clone()];
        related.extend(neighbours.iter().map(|node| pod("n", node, "Running", None, json!({}))));
        let now = at("2026-01-02T00:00:00Z");
        for pods in [vec![keep.clone(), goes.clone()], vec![goes.clone(), keep.clone()]] {
            let chosen = pods_to_delete(pods, &related, 1, now);
            assert_eq!(chosen[0].name(), goes.name(), "{what}");
        }
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let old = Some("2026-01-01T00:00:10Z");
        let p = |name, node, phase, ready, extra| pod(name, node, phase, ready, extra);
        let none = || json!({});
        check("unscheduled", p("a", "n1", "Pending", None, none()), p("b", "", "Pending", None, none()), &[]);
        check("pending", p("a", "n1", "Running", None, none()), p("b", "n1", "Pending", None, none()), &[]);
        check("not ready", p("a", "n1", "Running", old, none()), p("b", "n1", "Running", None, none()), &[]);
        check(
            "cost",
            p("a", "n1", "Running", old, json!({"cost": "10"})),
            p("b", "n1", "Running", old, none()),
            &[],
        );
        check(
            "negative cost",
            p("a", "n1", "Running", old, none()),
            p("b", "n1", "Running", old, json!({"cost": "-1"})),
            &[],
        );
        check(
            "crowded node",
            p("a", "n1", "Running", old, none()),
            p("b", "n2", "Running", old, none()),
            &["n2"],
        );
        check(
            "younger",
            p("a", "n1", "Running", old, none()),
            p("b", "n1", "Running", Some("2026-01-01T23:00:00Z"), none()),
            &[],
        );
        check(
            "restarts",
            p("a", "n1", "Running", old, none()),
            p("b", "n1", "Running", old, json!({"restarts": 3})),
            &[],
        );
        check(
            "created later",
            p("a", "n1", "Running", old, none()),
            p("b", "n1", "Running", old, json!({"created": "2026-01-01T23:59:00Z"})),
            &[],
        );
        check(
            "same magnitude: uid",
            p("b", "n1", "Running", old, none()),
            p("a", "n1", "Running", Some("2026-01-01T01:00:00Z"), none()),
            &[],
        );
    }
}
