//! Watches over nodes: those that nobody hears of become Unknown, get their taints, and their pods become not ready.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::health::{Zone, eviction_pause, silenced, spoke, zone_of, zone_state};
use super::taints::{self, Evicting, wants_eviction};
use super::{condition, readiness};
use crate::error::{Error, unless_gone};
use crate::objects::{Meta, is_ready};
use crate::shell::{Options, Shell};

pub(crate) const BY_NODE: &str = "node";
const LEASES: &str = "kube-node-lease";

/// Indexes pods by the node they are bound to.
pub(crate) fn index_by_node(pods: &Informer<Pod>) {
    pods.add_index(BY_NODE, |pod: &Pod| {
        Some(crate::objects::node_name(pod).to_owned()).filter(|name| !name.is_empty()).into_iter().collect()
    });
}

struct Controller {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    client: kube::Client,
    recorder: EventRecorder,
    options: Arc<Options>,
    /// When each node was last heard of, by this process's clock: clocks of nodes may differ.
    heard: Arc<Mutex<HashMap<String, Instant>>>,
    /// When each zone last had an evicting taint put.
    evicted: Mutex<HashMap<String, Instant>>,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        nodes: shell.informers.informer(),
        pods: shell.informers.informer(),
        client: shell.client,
        recorder: shell.recorder,
        options: shell.options,
        heard: Arc::default(),
        evicted: Mutex::default(),
    };
    let leases = shell.informers.informer::<Lease>();
    index_by_node(&controller.pods);
    controller.nodes.synced().await;
    controller.pods.synced().await;
    leases.synced().await;
    let queue = WorkQueue::named("node_lifecycle_controller");
    let (own, heard) = (queue.clone(), controller.heard.clone());
    leases.subscribe(move |event| {
        let lease = event.object();
        let renewed = match event {
            InformerEvent::Updated { old, new } => {
                let time = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
                time(old) != time(new)
            }
            InformerEvent::Added(_) => true,
            InformerEvent::Deleted(_) => false,
        };
        if renewed && lease.namespace() == LEASES {
            // Only a sign of life: no work unless the node was thought silent.
            if heard.lock().insert(lease.name().to_owned(), Instant::now()).is_none() {
                own.add(lease.name().to_owned());
            }
        }
    });
    let (own, heard, recorder, all) =
        (queue.clone(), controller.heard.clone(), controller.recorder.clone(), controller.nodes.clone());
    controller.nodes.subscribe(move |event| {
        let name = event.object().name().to_owned();
        match event {
            InformerEvent::Added(node) => {
                heard.lock().entry(name.clone()).or_insert_with(Instant::now);
                tell(
                    &recorder,
                    node,
                    "RegisteredNode",
                    format!("Node {name} event: Registered Node {name} in Controller"),
                );
            }
            InformerEvent::Deleted(node) => {
                heard.lock().remove(&name);
                tell(
                    &recorder,
                    node,
                    "RemovingNode",
                    format!("Node {name} event: Removing Node {name} from Controller"),
                );
            }
            InformerEvent::Updated { old, new } => {
                if spoke(old, new) {
                    heard.lock().insert(name.clone(), Instant::now());
                }
                if readiness(old) != readiness(new) {
                    // What a zone may do depends on all its nodes.
                    all.list().iter().for_each(|node| own.add(node.name().to_owned()));
                }
            }
        }
        own.add(name);
    });
    let own = queue.clone();
    controller.pods.subscribe(move |event| {
        // A pod that is bound or becomes ready on a node that is not ready.
        let node = crate::objects::node_name(event.object());
        if !node.is_empty() && is_ready(event.object()) && !matches!(event, InformerEvent::Deleted(_)) {
            own.add(node.to_owned());
        }
    });
    run_workers("node-lifecycle-controller", queue, 8, shell.shutdown, |name| controller.sync(name)).await;
    Ok(())
}

/// Records an event about a node itself, not about one version of it: it may be gone by now.
fn tell(recorder: &EventRecorder, node: &Node, reason: &str, text: String) {
    let object = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: node.metadata.name.clone(),
        uid: node.metadata.uid.clone(),
        ..ObjectReference::default()
    };
    recorder.event_for(object, EventType::Normal, reason, text);
}

impl Controller {
    async fn sync(&self, name: String) -> Result<Option<Duration>, Error> {
        let Some(cached) = self.nodes.get("", &name) else { return Ok(None) };
        if cached.deleting() {
            return Ok(None);
        }
        let mut node = (*cached).clone();
        let before = readiness(&node).to_owned();
        let silent_for = self.heard.lock().entry(name.clone()).or_insert_with(Instant::now).elapsed();
        let grace = if condition(&node, "Ready").is_some() {
            self.options.node_monitor_grace_period
        } else {
            self.options.node_startup_grace_period
        };
        let mut again = grace.checked_sub(silent_for).map(|left| left + Duration::from_millis(100));
        let api = Api::<Node>::all(self.client.clone());
        if again.is_none() {
            if let Some(changed) = silenced(&node, Timestamp::now()) {
                node = api.replace_status(&name, &PostParams::default(), &changed).await?;
                tracing::warn!(node = %name, silent_seconds = silent_for.as_secs(), "node is not heard of: its conditions are Unknown");
            }
            // The next sign of life counts as news again.
            self.heard.lock().remove(&name);
            self.heard.lock().entry(name.clone()).or_insert_with(|| Instant::now() - silent_for);
            again = Some(grace.min(Duration::from_secs(5)));
        }
        if readiness(&node) != "True" && condition(&node, "Ready").is_some() {
            if before == "True" {
                tell(
                    &self.recorder,
                    &node,
                    "NodeNotReady",
                    format!("Node {name} status is now: NodeNotReady"),
                );
            }
            self.mark_pods_not_ready(&name).await?;
        }
        let (evicting, wait) = self.may_evict(&node);
        if let Some(wanted) = taints::desired(&node, evicting, Timestamp::now()) {
            let body = json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": wanted}});
            unless_gone(api.patch(&name, &PatchParams::default(), &Patch::Merge(body)).await)?;
        }
        Ok(wait.into_iter().chain(again).min())
    }

    /// Whether the node may get an evicting taint now, and when to ask again if not.
    fn may_evict(&self, node: &Node) -> (Evicting, Option<Duration>) {
        let all = self.nodes.list();
        let status = |other: &Arc<Node>| {
            // The node at hand is newer than the cache.
            if other.name() == node.name() { readiness(node).to_owned() } else { readiness(other).to_owned() }
        };
        let statuses: Vec<_> = all.iter().map(|other| (zone_of(other), status(other))).collect();
        if !statuses.iter().any(|(_, status)| status == "True") {
            return (Evicting::Remove, None);
        }
        if !wants_eviction(node) {
            return (Evicting::Hold, None);
        }
        let zone = zone_of(node);
        let state: Zone = zone_state(
            statuses.iter().filter(|(other, _)| *other == zone).map(|(_, status)| status.as_str()),
        );
        let Some(pause) = eviction_pause(state) else { return (Evicting::Hold, None) };
        let pause = Duration::from_secs_f64(pause);
        let mut evicted = self.evicted.lock();
        match evicted
            .get(&zone)
            .and_then(|last| pause.checked_sub(last.elapsed()))
            .filter(|left| !left.is_zero())
        {
            Some(left) => (Evicting::Hold, Some(left)),
            None => {
                evicted.insert(zone, Instant::now());
                (Evicting::Put, None)
            }
        }
    }

    /// Services must not send to pods that nobody vouches for.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), Error> {
        let mut errors = Vec::new();
        for pod in self.pods.by_index(BY_NODE, node).into_iter().filter(|pod| is_ready(pod)) {
            let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
            let body = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": now}]}});
            let api = Api::<Pod>::namespaced(self.client.clone(), pod.namespace());
            match unless_gone(
                api.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(body)).await,
            ) {
                Ok(()) => self.recorder.event(&*pod, EventType::Warning, "NodeNotReady", "Node is not ready"),
                Err(error) => errors.push(error.into()),
            }
        }
        Error::all(errors)
    }
}
