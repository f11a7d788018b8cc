//! Deletes pods that do not tolerate a NoExecute taint of their node, at once or when their toleration runs out.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;

use super::lifecycle::{BY_NODE, index_by_node};
use super::taints_of;
use crate::error::{Error, unless_gone};
use crate::objects::{Meta, is_finished, node_name};
use crate::placement::tolerates;
use crate::shell::Shell;

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    /// Seconds from when the taint was put until the pod goes; 0 at once.
    GoesAfter(i64),
}

/// What becomes of a pod with these tolerations under these NoExecute taints.
fn fate(tolerations: &[Toleration], taints: &[&Taint]) -> Fate {
    let mut least: Option<i64> = None;
    for taint in taints {
        let Some(used) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
            return Fate::GoesAfter(0);
        };
        if let Some(seconds) = used.toleration_seconds {
            least = Some(least.map_or(seconds, |known| known.min(seconds)).max(0));
        }
    }
    least.map_or(Fate::Stays, Fate::GoesAfter)
}

struct Controller {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    client: kube::Client,
    recorder: EventRecorder,
    /// Pods whose time runs, to tell when it stops.
    scheduled: Mutex<HashSet<ObjectKey>>,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        nodes: shell.informers.informer(),
        pods: shell.informers.informer(),
        client: shell.client,
        recorder: shell.recorder,
        scheduled: Mutex::default(),
    };
    index_by_node(&controller.pods);
    controller.nodes.synced().await;
    controller.pods.synced().await;
    let queue = WorkQueue::named("noexec_taint_pod");
    let (own, pods) = (queue.clone(), controller.pods.clone());
    controller.nodes.subscribe(move |event| {
        let changed = match event {
            InformerEvent::Updated { old, new } => taints_of(old) != taints_of(new),
            InformerEvent::Added(node) => !taints_of(node).is_empty(),
            InformerEvent::Deleted(_) => false,
        };
        if changed {
            for pod in pods.by_index(BY_NODE, event.object().name()) {
                own.add(ObjectKey::of(&pod.metadata));
            }
        }
    });
    let own = queue.clone();
    controller.pods.subscribe(move |event| {
        let relevant = match event {
            InformerEvent::Updated { old, new } => {
                let about = |pod: &Pod| {
                    pod.spec.as_ref().map(|spec| (spec.node_name.clone(), spec.tolerations.clone()))
                };
                about(old) != about(new)
            }
            _ => true,
        };
        if relevant && !node_name(event.object()).is_empty() {
            own.add(ObjectKey::of(&event.object().metadata));
        }
    });
    run_workers("taint-eviction-controller", queue, 8, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.pods.get_key(&key).filter(|pod| !pod.deleting() && !is_finished(pod)) else {
            self.scheduled.lock().remove(&key);
            return Ok(None);
        };
        let node = self.nodes.get("", node_name(&pod));
        let taints: Vec<_> = node
            .iter()
            .flat_map(|node| taints_of(node))
            .filter(|taint| taint.effect == "NoExecute")
            .collect();
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        let Fate::GoesAfter(seconds) = fate(tolerations, &taints) else {
            if self.scheduled.lock().remove(&key) {
                let text = format!("Cancelling deletion of Pod {key}");
                self.recorder.event(&*pod, EventType::Normal, "TaintManagerEviction", text);
            }
            return Ok(None);
        };
        let now = Timestamp::now();
        // From when the youngest taint was put, so that a restart does not begin anew.
        let since = taints
            .iter()
            .filter_map(|taint| taint.time_added.as_ref())
            .map(|time| time.0)
            .max()
            .unwrap_or(now);
        let left = seconds - now.duration_since(since).as_secs();
        if left > 0 && seconds > 0 {
            self.scheduled.lock().insert(key);
            return Ok(Some(Duration::from_secs(u64::try_from(left).unwrap_or(1))));
        }
        self.evict(&key, &pod, now).await?;
        self.scheduled.lock().remove(&key);
        Ok(None)
    }

    async fn evict(&self, key: &ObjectKey, pod: &Pod, now: Timestamp) -> Result<(), Error> {
        let text = format!("Marking for deletion Pod {key}");
        self.recorder.event(pod, EventType::Normal, "TaintManagerEviction", text);
        let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        let body = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(now)}]}});
        unless_gone(api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(body)).await)?;
        Ok(unless_gone(api.delete(&key.name, &DeleteParams::default()).await)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::object;
    use serde_json::Value;

    #[test]
    fn tolerations_decide() {
        let check = |tolerations: Value, taints: &[(&str, &str)], expected: Fate| {
            let taints: Vec<Taint> = taints
                .iter()
                .map(|(key, value)| Taint {
                    key: (*key).to_owned(),
                    value: Some((*value).to_owned()),
                    effect: "NoExecute".to_owned(),
                    time_added: None,
                })
                .collect();
            let list: Vec<Toleration> = object(tolerations.clone());
            assert_eq!(fate(&list, &taints.iter().collect::<Vec<_>>()), expected, "{tolerations}");
        };
        check(json!([]), &[], Fate::Stays);
        check(json!([]), &[("a", "")], Fate::GoesAfter(0));
        check(json!([{"operator": "Exists"}]), &[("a", ""), ("b", "x")], Fate::Stays);
        check(
            json!([{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]),
            &[("a", "")],
            Fate::GoesAfter(300),
        );
        check(
            json!([{"key": "a", "value": "x", "tolerationSeconds": 30}, {"key": "b", "value": "y", "tolerationSeconds": 9}]),
            &[("a", "x"), ("b", "y")],
            Fate::GoesAfter(9),
        );
        check(json!([{"key": "a", "value": "x"}]), &[("a", "z")], Fate::GoesAfter(0));
        check(
            json!([{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]),
            &[("a", "")],
            Fate::GoesAfter(0),
        );
        check(json!([{"operator": "Exists", "tolerationSeconds": -5}]), &[("a", "")], Fate::GoesAfter(0));
    }
}
