//! Which pods of a Job go when there are too many. Answers to upstream's `activePodsForRemoval`.

use std::cmp::Ordering;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::indexes::index_of;
use crate::objects::{Meta, is_ready, node_name, phase, ready_since};

/// At least `count` of the active pods; more when an Indexed Job of so many `completions` has pods without an index,
/// with one it does not know, or several for one.
pub(super) fn pods_to_remove(
    active: &[Arc<Pod>],
    completions: Option<u32>,
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let (mut remove, mut left) = (Vec::new(), Vec::new());
    if let Some(completions) = completions {
        let mut by_index: BTreeMap<u32, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in active {
            match index_of(pod).filter(|index| *index < completions) {
                Some(index) => by_index.entry(index).or_default().push(pod.clone()),
                None => remove.push(pod.clone()),
            }
        }
        for mut pods in by_index.into_values() {
            pods.sort_by(|a, b| before(a, b, now));
            left.extend(pods.pop());
            remove.append(&mut pods);
        }
    } else {
        left = active.to_vec();
    }
    if remove.len() < count {
        left.sort_by(|a, b| before(a, b, now));
        remove.extend(left.into_iter().take(count - remove.len()));
    }
    remove
}

/// Those that did less come first.
fn before(a: &Pod, b: &Pod, now: Timestamp) -> Ordering {
    let stage = |pod: &Pod| match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let restarts = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        statuses.map(|container| container.restart_count).max().unwrap_or(0)
    };
    let key = |pod: &Pod| {
        // What has no time yet counts as the youngest.
        let ready = is_ready(pod).then(|| ready_since(pod).unwrap_or(now));
        (!node_name(pod).is_empty(), stage(pod), ready.is_some(), Reverse(ready), Reverse(restarts(pod)))
    };
    key(a).cmp(&key(b)).then_with(|| b.created().cmp(&a.created()))
}
