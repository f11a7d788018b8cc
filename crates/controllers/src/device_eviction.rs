//! Deletes pods whose claims were given devices that have become tainted with NoExecute and are not tolerated (KEP-5055).
//! Answers to upstream's `device-taint-eviction-controller`. Taints come from the drivers' ResourceSlices; DeviceTaintRules
//! are not served by default.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    Device, DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;

use crate::error::{Error, unless_gone};
use crate::objects::{Meta, is_finished, node_name};
use crate::resource_claim::{BY_CLAIM, claim_of, index_by_claim, is_made_for, is_reserved_for, wanted};
use crate::shell::Shell;

const NO_EXECUTE: &str = "NoExecute";
/// Slices, and the claims allocated from them, by `driver/pool`.
const BY_POOL: &str = "device-pool";

/// The devices that a claim was given.
fn results(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    allocation.and_then(|all| all.devices.as_ref()?.results.as_deref()).unwrap_or_default()
}

fn pool_of(slice: &ResourceSlice) -> String {
    format!("{}/{}", slice.spec.driver, slice.spec.pool.name)
}

fn devices(slice: &ResourceSlice) -> impl Iterator<Item = &Device> {
    slice.spec.devices.iter().flatten()
}

fn evicting(device: &Device) -> impl Iterator<Item = &DeviceTaint> {
    device.taints.iter().flatten().filter(|taint| taint.effect == NO_EXECUTE)
}

fn has_evicting(slice: &ResourceSlice) -> bool {
    devices(slice).any(|device| evicting(device).next().is_some())
}

/// Whether the toleration is one of this NoExecute taint. One of every effect does not count, as upstream has it.
fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let key = text(&toleration.key);
    toleration.effect.as_deref() == Some(NO_EXECUTE)
        && (key.is_empty() || key == taint.key)
        && match text(&toleration.operator).as_str() {
            "Exists" => true,
            "" | "Equal" => text(&toleration.value) == text(&taint.value),
            _ => false,
        }
}

/// When who uses the device must go because of this taint; `None` when it may stay.
fn deadline(taint: &DeviceTaint, tolerations: &[DeviceToleration], now: Timestamp) -> Option<Timestamp> {
    // Left of their driver's own, all taints have a time: the API server gives them one.
    let added = taint.time_added.as_ref().map_or(now, |time| time.0);
    let mut least: Option<i64> = None;
    for toleration in tolerations.iter().filter(|toleration| tolerates(toleration, taint)) {
        let seconds = toleration.toleration_seconds?.max(0);
        least = Some(least.map_or(seconds, |known| known.min(seconds)));
    }
    Some(added.saturating_add(SignedDuration::from_secs(least.unwrap_or(0))).unwrap_or(Timestamp::MAX))
}

/// When who uses the claim must go; `slices_of` gives the slices of a pool.
fn claim_deadline(
    claim: &ResourceClaim,
    slices_of: impl Fn(&str) -> Vec<Arc<ResourceSlice>>,
    now: Timestamp,
) -> Option<Timestamp> {
    let mut first: Option<Timestamp> = None;
    for result in results(claim) {
        let slices = slices_of(&format!("{}/{}", result.driver, result.pool));
        // Slices of an earlier generation are about to go.
        let Some(latest) = slices.iter().map(|slice| slice.spec.pool.generation).max() else { continue };
        let tolerations = result.tolerations.as_deref().unwrap_or_default();
        let current = slices.iter().filter(|slice| slice.spec.pool.generation == latest);
        let device = current.flat_map(|slice| devices(slice)).find(|device| device.name == result.device);
        let due = device.into_iter().flat_map(evicting).filter_map(|taint| deadline(taint, tolerations, now));
        first = due.chain(first).min();
    }
    first
}

struct Controller {
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    slices: Informer<ResourceSlice>,
    client: kube::Client,
    recorder: EventRecorder,
    /// Pods whose time runs, to tell when it stops.
    scheduled: Mutex<HashSet<ObjectKey>>,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        pods: shell.informers.informer(),
        claims: shell.informers.informer(),
        slices: shell.informers.informer(),
        client: shell.client,
        recorder: shell.recorder,
        scheduled: Mutex::default(),
    };
    index_by_claim(&controller.pods);
    controller.slices.add_index(BY_POOL, |slice: &ResourceSlice| vec![pool_of(slice)]);
    controller.claims.add_index(BY_POOL, |claim: &ResourceClaim| {
        results(claim).iter().map(|result| format!("{}/{}", result.driver, result.pool)).collect()
    });
    controller.pods.synced().await;
    controller.claims.synced().await;
    controller.slices.synced().await;
    let queue = WorkQueue::named("device_taint_eviction");
    controller.watch(&queue);
    let controller = &controller;
    let name = "device-taint-eviction-controller";
    run_workers(name, queue, 10, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

impl Controller {
    /// Queues the pods that a change may concern.
    fn watch(&self, queue: &WorkQueue<ObjectKey>) {
        let (own, pods) = (queue.clone(), self.pods.clone());
        let users = move |claim: &ResourceClaim| {
            for pod in pods.by_index(BY_CLAIM, &ObjectKey::of(&claim.metadata).to_string()) {
                own.add(ObjectKey::of(&pod.metadata));
            }
        };
        let (claims, slices, users_of) = (self.claims.clone(), self.slices.clone(), users.clone());
        self.slices.subscribe(move |event| {
            let slice = event.object();
            let pool = pool_of(slice);
            let was = match event {
                InformerEvent::Updated { old, .. } => has_evicting(old),
                _ => false,
            };
            // A slice without taints may be what replaces one with them.
            if was || has_evicting(slice) || slices.by_index(BY_POOL, &pool).iter().any(|s| has_evicting(s)) {
                claims.by_index(BY_POOL, &pool).iter().for_each(|claim| users_of(claim));
            }
        });
        self.claims.subscribe(move |event| {
            if !results(event.object()).is_empty() {
                users(event.object());
            }
        });
        let own = queue.clone();
        self.pods.subscribe(move |event| {
            let about = |pod: &Pod| {
                let statuses = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.clone());
                (node_name(pod).to_owned(), statuses)
            };
            let relevant = match event {
                InformerEvent::Updated { old, new } => about(old) != about(new),
                _ => true,
            };
            if relevant && wanted(event.object()).next().is_some() {
                own.add(ObjectKey::of(&event.object().metadata));
            }
        });
    }

    /// When the pod must go.
    fn pod_deadline(&self, pod: &Pod, now: Timestamp) -> Option<Timestamp> {
        let claims = wanted(pod).filter_map(|entry| {
            let claim = self.claims.get(pod.namespace(), &claim_of(pod, entry)?)?;
            let made = entry.resource_claim_template_name.is_none() || is_made_for(&claim, pod);
            (made && is_reserved_for(&claim, pod)).then_some(claim)
        });
        let slices_of = |pool: &str| self.slices.by_index(BY_POOL, pool);
        claims.filter_map(|claim| claim_deadline(&claim, slices_of, now)).min()
    }

    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let alive = |pod: &Arc<Pod>| !pod.deleting() && !is_finished(pod) && !node_name(pod).is_empty();
        let Some(pod) = self.pods.get_key(&key).filter(alive) else {
            self.scheduled.lock().remove(&key);
            return Ok(None);
        };
        let now = Timestamp::now();
        let Some(due) = self.pod_deadline(&pod, now) else {
            if self.scheduled.lock().remove(&key) {
                self.recorder.event(&*pod, EventType::Normal, EVICTION, "Cancelling deletion".to_owned());
            }
            return Ok(None);
        };
        if let Ok(left) = Duration::try_from(due.duration_since(now))
            && !left.is_zero()
        {
            self.scheduled.lock().insert(key);
            return Ok(Some(left));
        }
        self.evict(&key, &pod, now).await?;
        self.scheduled.lock().remove(&key);
        Ok(None)
    }

    async fn evict(&self, key: &ObjectKey, pod: &Pod, now: Timestamp) -> Result<(), Error> {
        self.recorder.event(pod, EventType::Normal, EVICTION, "Marking for deletion".to_owned());
        let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        let body = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByDeviceTaintManager",
            "message": "Device Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(now)}]}});
        unless_gone(api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(body)).await)?;
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let how = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        Ok(unless_gone(api.delete(&key.name, &how).await)?)
    }
}

const EVICTION: &str = "DeviceTaintManagerEviction";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::{at, object};
    use serde_json::Value;

    fn slice(generation: i64, taints: Value) -> Arc<ResourceSlice> {
        Arc::new(object(json!({"metadata": {}, "spec": {"driver": "d", "nodeName": "n",
            "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1},
            "devices": [{"name": "other", "taints": [{"key": "x", "effect": NO_EXECUTE}]},
                {"name": "gpu", "taints": taints}]}})))
    }

    /// Seconds from the taint's time until a claim's pods must go.
    fn check(what: &str, slices: &[Arc<ResourceSlice>], tolerations: Value, expected: Option<i64>) {
        let claim: ResourceClaim = object(
            json!({"metadata": {}, "spec": {}, "status": {"allocation": {"devices": {
            "results": [{"request": "r", "driver": "d", "pool": "p", "device": "gpu", "tolerations": tolerations}]}}}}),
        );
        let slices_of = |pool: &str| if pool == "d/p" { slices.to_vec() } else { Vec::new() };
        let found = claim_deadline(&claim, slices_of, at("2026-01-01T01:00:00Z"));
        let found = found.map(|due| due.duration_since(at("2026-01-01T00:00:00Z")).as_secs());
        assert_eq!(found, expected, "{what}");
    }

    fn taint(key: &str, effect: &str) -> Value {
        json!({"key": key, "value": "v", "effect": effect, "timeAdded": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn tolerations_decide() {
        let bad = [slice(1, json!([taint("bad", NO_EXECUTE)]))];
        check("no taint", &[slice(1, json!([]))], json!([]), None);
        check("no slice", &[], json!([]), None);
        check("an effect on others", &[slice(1, json!([taint("bad", "NoSchedule")]))], json!([]), None);
        check("not tolerated", &bad, json!([]), Some(0));
        let exists = |seconds: Value| json!({"operator": "Exists", "effect": NO_EXECUTE, "tolerationSeconds": seconds});
        check("for ever", &bad, json!([exists(Value::Null)]), None);
        check("for a while", &bad, json!([exists(json!(30))]), Some(30));
        check("the shortest counts", &bad, json!([exists(json!(30)), exists(json!(20))]), Some(20));
        check("for ever counts most", &bad, json!([exists(json!(30)), exists(Value::Null)]), None);
        check("never before the taint", &bad, json!([exists(json!(-5))]), Some(0));
        let equal = |key: &str, value: &str| json!([{"key": key, "value": value, "effect": NO_EXECUTE}]);
        check("its key and value", &bad, equal("bad", "v"), None);
        check("another value", &bad, equal("bad", "w"), Some(0));
        check("another key", &bad, equal("good", "v"), Some(0));
        check("every effect is not this one", &bad, json!([{"operator": "Exists"}]), Some(0));
        let two = [slice(1, json!([taint("a", NO_EXECUTE), taint("b", NO_EXECUTE)]))];
        check("one of two", &two, equal("a", "v"), Some(0));
        check(
            "without a time, now",
            &[slice(1, json!([{"key": "x", "effect": NO_EXECUTE}]))],
            json!([]),
            Some(3600),
        );
    }

    #[test]
    fn the_latest_generation_of_a_pool_counts() {
        let bad = || slice(1, json!([taint("bad", NO_EXECUTE)]));
        check("replaced", &[bad(), slice(2, json!([]))], json!([]), None);
        check("to be replaced", &[slice(0, json!([])), bad()], json!([]), Some(0));
    }
}
