//! Writes pod statuses to the API: only on change, the latest wins, and the final delete of a pod that has ended on
//! this node. Answers to upstream's `pkg/kubelet/status`.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use orlop_client::{WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::patch::status_patch;
use crate::pod::PodExt;

struct Entry {
    namespace: String,
    name: String,
    status: PodStatus,
    /// Nothing of the pod is left on this node: once the status is written, the object may go.
    finished: bool,
}

/// The write-behind cache of statuses. Cheap to clone.
#[derive(Clone)]
pub(crate) struct StatusManager {
    client: kube::Client,
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    queue: WorkQueue<String>,
}

impl StatusManager {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, entries: Arc::default(), queue: WorkQueue::new() }
    }

    /// Takes a pod's newest status. `finished` says that the pod's containers and volumes are gone.
    pub(crate) fn set(&self, pod: &Pod, status: PodStatus, finished: bool) {
        let uid = pod.uid().to_owned();
        let mut entries = self.entries.lock();
        let repeated = entries.get(&uid).is_some_and(|e| e.status == status && e.finished == finished);
        let in_api = status_patch(pod.pod_status(), &status).is_none();
        let must_delete = finished && pod.is_deleted();
        let entry =
            Entry { namespace: pod.namespace().to_owned(), name: pod.name().to_owned(), status, finished };
        entries.insert(uid.clone(), entry);
        drop(entries);
        if !(repeated && in_api) || must_delete {
            self.queue.add(uid);
        }
    }

    /// The newest status that was set, written or not.
    pub(crate) fn get(&self, uid: &str) -> Option<PodStatus> {
        self.entries.lock().get(uid).map(|entry| entry.status.clone())
    }

    /// Forgets a pod that is gone from the API.
    pub(crate) fn forget(&self, uid: &str) {
        self.entries.lock().remove(uid);
    }

    /// Writes until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers("kubelet-status", queue, 8, shutdown, |uid| {
            let manager = self.clone();
            async move { manager.sync(&uid).await.map(|()| None) }
        })
        .await;
    }

    async fn sync(&self, uid: &str) -> Result<(), kube::Error> {
        let Some((namespace, name, status, finished)) = self
            .entries
            .lock()
            .get(uid)
            .map(|e| (e.namespace.clone(), e.name.clone(), e.status.clone(), e.finished))
        else {
            return Ok(());
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), &namespace);
        let Some(mut present) = api.get_opt(&name).await?.filter(|present| present.uid() == uid) else {
            // Deleted, or another pod of the same name took its place.
            self.forget(uid);
            return Ok(());
        };
        if let Some(status) = status_patch(present.pod_status(), &status) {
            // The uid makes the patch a conflict when the name was taken by another pod meanwhile.
            let patch = json!({"metadata": {"uid": uid}, "status": status});
            present = match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(present) => present,
                Err(kube::Error::Api(answer)) if answer.code == 404 => {
                    self.forget(uid);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
        }
        if finished && present.is_deleted() {
            debug!(pod = %format!("{namespace}/{name}"), "containers and volumes are gone; deleting the object");
            let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(preconditions),
                ..Default::default()
            };
            match api.delete(&name, &params).await {
                Ok(_) => self.forget(uid),
                Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => self.forget(uid),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
