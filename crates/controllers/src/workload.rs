//! What the controllers of pods have in common: which of their objects a changed pod concerns.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use orlop_client::{Informer, InformerEvent, ObjectKey, WorkQueue};

use crate::claim::Namespaced;
use crate::expectations::Expectations;
use crate::objects::{Meta, is_active, selects};

/// An object that makes pods and finds them again by a selector.
pub(crate) trait Workload: Namespaced {
    /// Which pods are its own; an empty selector means none.
    fn selector(&self) -> LabelSelector;
}

macro_rules! workloads {
    ($($kind:ty),*) => {$(
        impl Workload for $kind {
            fn selector(&self) -> LabelSelector {
                self.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default()
            }
        }
    )*};
}
workloads!(DaemonSet, ReplicaSet, StatefulSet);

impl Workload for ReplicationController {
    fn selector(&self) -> LabelSelector {
        let labels = self.spec.as_ref().and_then(|spec| spec.selector.clone());
        LabelSelector { match_labels: labels, ..LabelSelector::default() }
    }
}

/// How long a change waits that only shows in a status: what changes together is then written once. (Upstream's Job
/// controller waits a second for its pods.)
pub(crate) const STATUS_BATCH: Duration = Duration::from_millis(20);

/// Queues the owner of every pod that changes, and whoever could adopt a pod without an owner. Takes note of what
/// `expectations` wait for. What changes about a pod that stays waits for `batch`; a pod that comes or goes does not.
pub(crate) fn queue_for_pods<O: Workload>(
    pods: &Informer<Pod>,
    owners: &Informer<O>,
    expectations: &Expectations,
    queue: &WorkQueue<ObjectKey>,
    batch: Duration,
) {
    let (owners, expectations, queue) = (owners.clone(), expectations.clone(), queue.clone());
    let watch = PodWatch { owners, expectations, queue, batch };
    pods.subscribe(move |event| watch.pod(event));
}

struct PodWatch<O> {
    owners: Informer<O>,
    expectations: Expectations,
    queue: WorkQueue<ObjectKey>,
    batch: Duration,
}

impl<O: Workload> PodWatch<O> {
    fn owner(&self, pod: &Pod) -> Option<ObjectKey> {
        let reference = pod.controller().filter(|owner| owner.kind == O::kind(&()))?;
        let owner: Arc<O> = self.owners.get(pod.namespace(), &reference.name)?;
        (owner.uid() == reference.uid).then(|| ObjectKey::of(Meta::meta(&*owner)))
    }

    fn pod(&self, event: &InformerEvent<Pod>) {
        let pod = event.object();
        if let InformerEvent::Updated { old, .. } = event
            && old.controller().map(|owner| &owner.uid) != pod.controller().map(|owner| &owner.uid)
            && let Some(former) = self.owner(old)
        {
            self.queue.add(former);
        }
        let Some(key) = self.owner(pod) else {
            return self.orphan(event);
        };
        if matches!(event, InformerEvent::Added(_)) {
            self.expectations.creation_observed(&key);
        }
        // A pod with a deletion timestamp does not count any more, long before it is gone.
        if pod.deleting() || matches!(event, InformerEvent::Deleted(_)) {
            self.expectations.deletion_observed(&key, pod.uid());
        }
        match event {
            InformerEvent::Updated { old, new } if is_active(old) && is_active(new) => {
                self.queue.add_after(key, self.batch);
            }
            _ => self.queue.add(key),
        }
    }

    fn orphan(&self, event: &InformerEvent<Pod>) {
        let pod = event.object();
        let unchanged = matches!(event, InformerEvent::Updated { old, .. }
            if old.metadata.labels == pod.metadata.labels && old.controller().is_none());
        if pod.controller().is_some() || unchanged || matches!(event, InformerEvent::Deleted(_)) {
            return;
        }
        for owner in self.owners.list_namespace(pod.namespace()) {
            if selects(&owner.selector(), &pod.metadata) {
                self.queue.add(ObjectKey::of(Meta::meta(&*owner)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn what_changes_together_is_looked_at_once() {
        let pod = |number: u32, version: u32, phase: &str| -> Pod {
            object(
                json!({"metadata": {"namespace": "n", "name": format!("p-{number}"), "uid": number.to_string(),
                "resourceVersion": version.to_string(), "ownerReferences": [{"apiVersion": "apps/v1",
                    "kind": "ReplicaSet", "name": "s", "uid": "s", "controller": true}]}, "status": {"phase": phase}}),
            )
        };
        let set: ReplicaSet = object(json!({"metadata": {"namespace": "n", "name": "s", "uid": "s"}}));
        let (pods, sets) = (Informer::fixed([]), Informer::fixed([set]));
        let queue = WorkQueue::new();
        queue_for_pods(&pods, &sets, &Expectations::default(), &queue, STATUS_BATCH);
        let taken = async || {
            let key = queue.get().await.unwrap();
            queue.done(&key);
            assert_eq!((key.name.as_str(), queue.is_empty()), ("s", true));
        };
        (0..3).for_each(|number| pods.insert(pod(number, 1, "Pending")));
        // New pods are seen at once, and all of them together.
        assert_eq!(queue.len(), 1);
        taken().await;
        let since = tokio::time::Instant::now();
        (0..3).for_each(|number| pods.insert(pod(number, 2, "Running")));
        assert!(queue.is_empty());
        taken().await;
        assert!(since.elapsed() >= STATUS_BATCH && since.elapsed() < 2 * STATUS_BATCH);
        // One that ends, or goes, changes how many there are.
        pods.insert(pod(0, 3, "Failed"));
        assert_eq!(queue.len(), 1);
        taken().await;
        pods.remove(&ObjectKey::new("n", "p-1"));
        assert_eq!(queue.len(), 1);
    }
}
