//! What the scheduler writes: bindings, volumes, claims, evictions and the status of pods it could not place.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Binding, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
    PodExtendedResourceClaimStatus,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use orlop_client::{EventType, Informer, ObjectKey, Occurrence, SeriesRecorder, object_reference};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

use crate::dynamic_resources::{Readiness, readiness};
use crate::pod_info::PodInfo;
use crate::preemption::Candidate;
use crate::volumes::{PodVolumes, Progress};

/// Requests that may be under way at once.
const REQUESTS: usize = 128;
/// The longest note of an event.
const MAX_NOTE: usize = 1024;

/// Keeps a claim that is allocated.
pub const CLAIM_FINALIZER: &str = "resource.kubernetes.io/delete-protection";

/// The way to the API server.
pub struct Shell {
    client: kube::Client,
    recorders: Vec<(String, SeriesRecorder)>,
    permits: Semaphore,
    nodes: Informer<Node>,
    volumes: Informer<PersistentVolume>,
    claims: Informer<PersistentVolumeClaim>,
    /// Changes with every change of a volume, claim (for volumes or devices) or pod: whoever waits for one looks again.
    storage_changes: watch::Sender<()>,
    pods: Informer<Pod>,
    resource_claims: Informer<ResourceClaim>,
}

/// The caches that binding looks at.
pub struct Caches {
    pub nodes: Informer<Node>,
    pub volumes: Informer<PersistentVolume>,
    pub claims: Informer<PersistentVolumeClaim>,
    pub pods: Informer<Pod>,
    pub resource_claims: Informer<ResourceClaim>,
}

/// What becomes of `status.nominatedNodeName`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nomination {
    Keep,
    Clear,
    Set(String),
}

/// Why a pod is not scheduled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `Unschedulable` or `SchedulerError`.
    pub reason: &'static str,
    pub message: String,
}

impl Shell {
    /// Events are recorded under the scheduler names that pods give.
    pub fn new(client: kube::Client, scheduler_names: &[String], caches: Caches) -> Arc<Self> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let instance = |name: &str| format!("{name}-{}", host.trim());
        let recorder =
            |name: &String| (name.clone(), SeriesRecorder::new(client.clone(), name, &instance(name)));
        Arc::new(Self {
            recorders: scheduler_names.iter().map(recorder).collect(),
            permits: Semaphore::new(REQUESTS),
            nodes: caches.nodes,
            volumes: caches.volumes,
            claims: caches.claims,
            pods: caches.pods,
            resource_claims: caches.resource_claims,
            storage_changes: watch::Sender::new(()),
            client,
        })
    }

    /// A volume, a claim of either kind or a pod has changed.
    pub fn storage_changed(&self) {
        self.storage_changes.send_replace(());
    }

    /// Records that a pod is bound.
    pub fn scheduled(&self, pod: &PodInfo, node: &str) {
        let note = format!("Successfully assigned {} to {node}", pod.key);
        let happened =
            Occurrence { kind: EventType::Normal, reason: "Scheduled", action: "Binding", note: &note };
        self.event(pod.scheduler_name(), pod, None, happened);
    }

    /// Records why no node takes a pod.
    pub fn failed_scheduling(&self, pod: &PodInfo, message: &str) {
        let happened = Occurrence {
            kind: EventType::Warning,
            reason: "FailedScheduling",
            action: "Scheduling",
            note: &truncated(message),
        };
        self.event(pod.scheduler_name(), pod, None, happened);
    }

    fn preempted(&self, victim: &PodInfo, preemptor: &PodInfo, node: &str) {
        let note = format!("Preempted by pod {} on node {node}", preemptor.uid);
        let happened =
            Occurrence { kind: EventType::Normal, reason: "Preempted", action: "Preempting", note: &note };
        self.event(preemptor.scheduler_name(), victim, Some(preemptor), happened);
    }

    fn event(&self, scheduler: &str, pod: &PodInfo, related: Option<&PodInfo>, happened: Occurrence<'_>) {
        if let Some((_, recorder)) = self.recorders.iter().find(|(own, _)| own == scheduler) {
            recorder.event(&*pod.pod, related.map(|pod| object_reference(&*pod.pod)), happened);
        }
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Binds a pod to a node.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let text = |text: &str| Some(text.to_owned());
        let binding = Binding {
            metadata: ObjectMeta {
                name: text(&pod.key.name),
                namespace: text(&pod.key.namespace),
                uid: text(&pod.uid),
                ..Default::default()
            },
            target: ObjectReference {
                api_version: text("v1"),
                kind: text("Node"),
                name: text(node),
                ..Default::default()
            },
        };
        let pods = self.pods(&pod.key.namespace);
        let _: IgnoredAny =
            pods.create_subresource("binding", &pod.key.name, &PostParams::default(), &binding).await?;
        Ok(())
    }

    /// Writes the bindings of a pod's volumes, and waits until the volume controller has finished them.
    pub async fn bind_volumes(
        &self,
        pod: &PodInfo,
        node: &str,
        volumes: PodVolumes,
        timeout: Duration,
    ) -> Result<(), String> {
        let mut changes = self.storage_changes.subscribe();
        let mut written = PodVolumes::default();
        let params = PostParams::default();
        for (volume, claim) in &volumes.bindings {
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let answer = api.replace(name, &params, volume).await.map_err(|error| error.to_string())?;
            written.bindings.push((Arc::new(answer), claim.clone()));
        }
        for claim in &volumes.provisions {
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &pod.key.namespace);
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let answer = api.replace(name, &params, claim).await.map_err(|error| error.to_string())?;
            written.provisions.push(Arc::new(answer));
        }
        let bound = async {
            while !self.are_volumes_bound(pod, node, &written)? {
                // The sender lives as long as `self`.
                let _ = changes.changed().await;
            }
            Ok(())
        };
        let done = tokio::time::timeout(timeout, bound).await;
        let done = done.unwrap_or_else(|_| Err("context deadline exceeded".to_owned()));
        done.map_err(|reason: String| format!("binding volumes: {reason}"))
    }

    fn still_there(&self, pod: &PodInfo) -> Result<(), String> {
        match self.pods.get_key(&pod.key) {
            Some(found) if found.metadata.uid.as_deref() == Some(&pod.uid) => Ok(()),
            _ => Err(format!("pod does not exist any more: pod \"{}\" not found", pod.key.name)),
        }
    }

    fn are_volumes_bound(&self, pod: &PodInfo, node: &str, written: &PodVolumes) -> Result<bool, String> {
        self.still_there(pod)?;
        let Some(node) = self.nodes.get("", node) else {
            return Err(format!("failed to get node \"{node}\": node \"{node}\" not found"));
        };
        let claim = |key: &str| {
            let (namespace, name) = key.split_once('/')?;
            self.claims.get(namespace, name)
        };
        let progress = Progress { node: &node, claim: &claim, volume: &|name| self.volumes.get("", name) };
        progress.check(written)
    }

    /// The claims of a claim's namespace.
    fn claims_in(&self, claim: &ResourceClaim) -> Api<ResourceClaim> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Writes a claim's allocation and reservation. The answer is the claim as it is stored.
    pub async fn update_claim_status(&self, claim: &ResourceClaim) -> Result<ResourceClaim, kube::Error> {
        let _permit = self.permits.acquire().await;
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        self.claims_in(claim).replace_status(name, &PostParams::default(), claim).await
    }

    /// Writes a claim. The answer is the claim as it is stored.
    pub async fn update_claim(&self, claim: &ResourceClaim) -> Result<ResourceClaim, kube::Error> {
        let _permit = self.permits.acquire().await;
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        self.claims_in(claim).replace(name, &PostParams::default(), claim).await
    }

    /// Makes a claim. The answer is the claim as it is stored.
    pub async fn create_claim(&self, claim: &ResourceClaim) -> Result<ResourceClaim, kube::Error> {
        let _permit = self.permits.acquire().await;
        self.claims_in(claim).create(&PostParams::default(), claim).await
    }

    /// Deletes a claim that the scheduler made, in the background.
    pub fn delete_claim(self: &Arc<Self>, mut claim: ResourceClaim) {
        let shell = self.clone();
        tokio::spawn(async move {
            let _permit = shell.permits.acquire().await;
            let api = shell.claims_in(&claim);
            let name = claim.metadata.name.take().unwrap_or_default();
            // Else the finalizer would keep it.
            let patch = json!({"metadata": {"uid": claim.metadata.uid,
                "$deleteFromPrimitiveList/finalizers": [CLAIM_FINALIZER]}});
            let patched = api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            let same = Preconditions { uid: claim.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
            let deleted = match gone(patched.map(drop)) {
                Ok(true) => gone(api.delete(&name, &params).await.map(drop)),
                other => other,
            };
            if let Err(error) = deleted {
                warn!(claim = name, %error, "could not delete the claim for a pod's extended resources; the next attempt to schedule the pod tries again");
            }
        });
    }

    /// Waits until drivers have made the devices of a pod's claims ready (KEP-5007).
    pub async fn devices_are_ready(
        &self,
        pod: &PodInfo,
        node: &str,
        claims: &[String],
        timeout: Duration,
    ) -> Result<(), String> {
        let mut changes = self.storage_changes.subscribe();
        let note = format!("waiting for binding conditions for device on node {node}");
        let happened = Occurrence {
            kind: EventType::Normal,
            reason: "BindingConditionsPending",
            action: "Scheduling",
            note: &note,
        };
        self.event(pod.scheduler_name(), pod, None, happened);
        let mut seen = HashSet::new();
        let ready = async {
            loop {
                self.still_there(pod)?;
                let mut waiting = false;
                for name in claims {
                    let claim = self.resource_claims.get(&pod.key.namespace, name);
                    match claim.as_deref().map(readiness) {
                        Some(Readiness::Ready) => {}
                        Some(Readiness::Waiting) => waiting = true,
                        Some(Readiness::Failed(reason)) => return Err(reason),
                        None if seen.contains(name) => {
                            return Err(format!("resourceclaim.resource.k8s.io \"{name}\" not found"));
                        }
                        // Made a moment ago.
                        None => waiting = true,
                    }
                    if claim.is_some() {
                        seen.insert(name);
                    }
                }
                if !waiting {
                    return Ok(());
                }
                // The sender lives as long as `self`.
                let _ = changes.changed().await;
            }
        };
        let done = tokio::time::timeout(timeout, ready).await;
        done.unwrap_or_else(|_| Err("device binding timeout".to_owned()))
    }

    /// Writes which claim has been made for a pod's extended resources.
    pub async fn write_extended_claim(
        &self,
        pod: &PodInfo,
        status: &PodExtendedResourceClaimStatus,
    ) -> Result<(), kube::Error> {
        let _permit = self.permits.acquire().await;
        let patch = json!({"metadata": {"uid": pod.uid}, "status": {"extendedResourceClaimStatus": status}});
        let pods = self.pods(&pod.key.namespace);
        pods.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
    }

    /// Evicts the victims of a candidate.
    pub async fn evict(&self, preemptor: &PodInfo, candidate: &Candidate) {
        for victim in &candidate.victims {
            if let Err(error) = self.evict_one(preemptor, victim, &candidate.node).await {
                warn!(pod = %victim.key, preemptor = %preemptor.key, %error, "not preempted; trying again with the pod");
            }
        }
    }

    async fn evict_one(&self, preemptor: &PodInfo, victim: &PodInfo, node: &str) -> Result<(), kube::Error> {
        let _permit = self.permits.acquire().await;
        let pods = self.pods(&victim.key.namespace);
        let condition = json!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", preemptor.scheduler_name()),
            "lastTransitionTime": now(),
            "observedGeneration": victim.pod.metadata.generation,
        });
        let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
        let patched =
            pods.patch_status(&victim.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        match gone(patched.map(drop)) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err(error),
        }
        let same = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        if gone(pods.delete(&victim.key.name, &params).await.map(drop))? {
            self.preempted(victim, preemptor, node);
        }
        Ok(())
    }

    /// Writes why a pod is not scheduled, and its nomination, unless its status says so already.
    pub fn write_status(
        self: &Arc<Self>,
        pod: &Arc<PodInfo>,
        refusal: Option<Refusal>,
        nomination: Nomination,
    ) {
        let mut status = serde_json::Map::new();
        if let Some(refusal) = refusal.filter(|refusal| !has_condition(&pod.pod, refusal)) {
            let condition = json!({
                "type": "PodScheduled",
                "status": "False",
                "reason": refusal.reason,
                "message": refusal.message,
                "lastTransitionTime": transition_time(&pod.pod),
                "observedGeneration": pod.pod.metadata.generation,
            });
            status.insert("conditions".to_owned(), json!([condition]));
        }
        let nominated = pod.nominated_node_name();
        match nomination {
            Nomination::Clear if nominated.is_some() => {
                status.insert("nominatedNodeName".to_owned(), Value::Null);
            }
            Nomination::Set(node) if nominated != Some(&node) => {
                status.insert("nominatedNodeName".to_owned(), node.into());
            }
            _ => {}
        }
        if status.is_empty() {
            return;
        }
        let (shell, key, uid) = (self.clone(), pod.key.clone(), pod.uid.clone());
        tokio::spawn(async move { shell.patch_status(&key, &uid, status).await });
    }

    async fn patch_status(&self, key: &ObjectKey, uid: &str, status: serde_json::Map<String, Value>) {
        let _permit = self.permits.acquire().await;
        let patch = Patch::Strategic(json!({"metadata": {"uid": uid}, "status": status}));
        let pods = self.pods(&key.namespace);
        let patched = pods.patch_status(&key.name, &PatchParams::default(), &patch).await;
        match gone(patched.map(drop)) {
            Ok(_) => debug!(pod = %key, "status written"),
            Err(error) => warn!(pod = %key, %error, "could not write why the pod is not scheduled"),
        }
    }
}

/// Whether a write reached its object; an object that is gone or another one by now is no error.
fn gone(result: Result<(), kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(error),
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Only a change of `status` is a transition.
fn transition_time(pod: &Pod) -> String {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut unscheduled = conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let since = unscheduled.find_map(|condition| condition.last_transition_time.as_ref());
    since.map_or_else(now, |since| since.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn has_condition(pod: &Pod, refusal: &Refusal) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some(refusal.reason)
            && condition.message.as_deref() == Some(&refusal.message)
    })
}

fn truncated(message: &str) -> String {
    if message.len() <= MAX_NOTE {
        return message.to_owned();
    }
    const SUFFIX: &str = " ...";
    let mut end = MAX_NOTE - SUFFIX.len();
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{SUFFIX}", &message[..end])
}
