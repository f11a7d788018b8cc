//! Removes pods that nobody else will: of nodes that are gone, never scheduled but terminating, or long finished.
//! Answers to upstream's `pod-garbage-collector-controller`.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use orlop_client::{Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::error::{Error, unless_gone};
use crate::node::lifecycle::{BY_NODE, index_by_node};
use crate::objects::{Meta, is_finished, is_ready, node_name};
use crate::shell::Shell;

/// A node that is gone may be coming back under its name: so long its pods are left alone.
const QUARANTINE: Duration = Duration::from_secs(40);
const FINISHED: &str = "finished";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Work {
    Pod(ObjectKey),
    /// The number of finished pods may be over the threshold.
    Finished,
}

struct Controller {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    client: kube::Client,
    threshold: i64,
    missing: Mutex<HashMap<String, Instant>>,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        nodes: shell.informers.informer(),
        pods: shell.informers.informer(),
        client: shell.client,
        threshold: shell.options.terminated_pod_gc_threshold,
        missing: Mutex::default(),
    };
    index_by_node(&controller.pods);
    controller
        .pods
        .add_index(FINISHED, |pod: &Pod| if is_finished(pod) { vec![String::new()] } else { Vec::new() });
    controller.nodes.synced().await;
    controller.pods.synced().await;
    let queue = WorkQueue::named("orphaned_pods_nodes");
    let (own, nodes) = (queue.clone(), controller.nodes.clone());
    controller.pods.subscribe(move |event| {
        let pod = event.object();
        if matches!(event, InformerEvent::Deleted(_)) {
            return;
        }
        let node = node_name(pod);
        let lost =
            if node.is_empty() { pod.deleting() } else { pod.deleting() || nodes.get("", node).is_none() };
        if lost {
            own.add(Work::Pod(ObjectKey::of(&pod.metadata)));
        }
        let before = matches!(event, InformerEvent::Updated { old, .. } if is_finished(old));
        if is_finished(pod) && !before {
            own.add(Work::Finished);
        }
    });
    let (own, pods) = (queue.clone(), controller.pods.clone());
    controller.nodes.subscribe(move |event| {
        if matches!(event, InformerEvent::Deleted(_)) || out_of_service(event.object()) {
            for pod in pods.by_index(BY_NODE, event.object().name()) {
                own.add(Work::Pod(ObjectKey::of(&pod.metadata)));
            }
        }
    });
    run_workers("pod-garbage-collector-controller", queue, 4, shell.shutdown, |work| controller.sync(work))
        .await;
    Ok(())
}

fn out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

fn node_is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// Its node is not there: wait whether it comes back.
    Lost,
    /// Delete now; with a text when it counts as a disruption.
    Delete(Option<&'static str>),
}

fn judge(pod: &Pod, node: Option<&Node>) -> Verdict {
    match node {
        None if node_name(pod).is_empty() && pod.deleting() => Verdict::Delete(None),
        None if node_name(pod).is_empty() => Verdict::Keep,
        None => Verdict::Lost,
        Some(node) if pod.deleting() && out_of_service(node) && !node_is_ready(node) && !is_ready(pod) => {
            Verdict::Delete(None)
        }
        Some(_) => Verdict::Keep,
    }
}

/// The finished pods beyond the threshold, oldest first; evicted ones before others.
fn surplus(mut finished: Vec<std::sync::Arc<Pod>>, threshold: i64) -> Vec<std::sync::Arc<Pod>> {
    let Ok(keep) = usize::try_from(threshold) else { return Vec::new() };
    if keep == 0 || finished.len() <= keep {
        return Vec::new();
    }
    let evicted =
        |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.reason.as_deref() == Some("Evicted"));
    finished.sort_by(|a, b| {
        evicted(b)
            .cmp(&evicted(a))
            .then_with(|| a.created().cmp(&b.created()))
            .then_with(|| a.name().cmp(b.name()))
    });
    finished.truncate(finished.len() - keep);
    finished
}

impl Controller {
    async fn sync(&self, work: Work) -> Result<Option<Duration>, Error> {
        let Work::Pod(key) = work else {
            for pod in surplus(self.pods.by_index(FINISHED, ""), self.threshold) {
                self.delete(&pod, None).await?;
            }
            return Ok(None);
        };
        let Some(pod) = self.pods.get_key(&key) else { return Ok(None) };
        let name = node_name(&pod);
        let node = self.nodes.get("", name);
        if node.is_some() {
            self.missing.lock().remove(name);
        }
        match judge(&pod, node.as_deref()) {
            Verdict::Keep => Ok(None),
            Verdict::Delete(text) => self.delete(&pod, text).await.map(|()| None),
            Verdict::Lost => {
                let since = *self.missing.lock().entry(name.to_owned()).or_insert_with(Instant::now);
                if let Some(left) = QUARANTINE.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) {
                    return Ok(Some(left));
                }
                // The cache may have missed that it came back.
                if Api::<Node>::all(self.client.clone()).get_opt(name).await?.is_some() {
                    return Ok(None);
                }
                self.delete(&pod, Some("PodGC: node no longer exists")).await?;
                if self.pods.by_index(BY_NODE, name).len() <= 1 {
                    self.missing.lock().remove(name);
                }
                Ok(None)
            }
        }
    }

    /// Deletes at once, because no kubelet is there to end it gracefully. A pod that ran counts as failed.
    async fn delete(&self, pod: &Pod, disruption: Option<&str>) -> Result<(), Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), pod.namespace());
        if !is_finished(pod) {
            let mut status = json!({"phase": "Failed"});
            if let Some(message) = disruption {
                status["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                    "message": message, "lastTransitionTime": Time(Timestamp::now())}]);
            }
            let body = json!({"metadata": {"uid": pod.uid()}, "status": status});
            unless_gone(
                api.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(body)).await,
            )?;
        }
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        Ok(unless_gone(api.delete(pod.name(), &at_once).await)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::Value;
    use std::sync::Arc;

    #[test]
    fn judges() {
        let check = |what: &str, pod: Value, node: Option<Value>, expected: Verdict| {
            let node: Option<Node> = node.map(object);
            assert_eq!(judge(&object(pod), node.as_ref()), expected, "{what}");
        };
        let bound = json!({"metadata": {}, "spec": {"nodeName": "n", "containers": []}});
        let dying = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n", "containers": []}});
        let node = json!({"metadata": {"name": "n"}, "spec": {}});
        check("bound", bound.clone(), Some(node.clone()), Verdict::Keep);
        check("node gone", bound, None, Verdict::Lost);
        check("pending", json!({"metadata": {}, "spec": {"containers": []}}), None, Verdict::Keep);
        check(
            "never scheduled",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": []}}),
            None,
            Verdict::Delete(None),
        );
        check("terminating", dying.clone(), Some(node), Verdict::Keep);
        let dead = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]}});
        check("out of service", dying, Some(dead), Verdict::Delete(None));
    }

    #[test]
    fn keeps_the_newest_finished() {
        let pod = |name: &str, created: &str| {
            Arc::new(object::<Pod>(json!({"metadata": {"name": name, "creationTimestamp": created}})))
        };
        let all = vec![
            pod("c", "2026-01-03T00:00:00Z"),
            pod("a", "2026-01-01T00:00:00Z"),
            pod("b", "2026-01-02T00:00:00Z"),
        ];
        let names = |threshold| {
            surplus(all.clone(), threshold).iter().map(|pod| pod.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(1), ["a", "b"]);
        assert_eq!(names(3), Vec::<String>::new());
        assert_eq!(names(0), Vec::<String>::new());
    }
}
