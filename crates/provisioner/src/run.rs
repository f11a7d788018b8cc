//! The shell: caches in, directories and objects out.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use orlop_client::{
    EventRecorder, EventType, Informer, InformerEvent, ObjectKey, SharedInformerFactory, WorkQueue,
    run_workers,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::decide::{self, ClaimStep, FINALIZER, SELECTED_NODE, VolumeStep};
use crate::{Options, PROVISIONER, directory};

/// How many claims and volumes are worked on at a time: removing a directory may take long.
const WORKERS: usize = 4;

/// Why something has to be tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The API server refused or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The node's disk did.
    #[error("{0}")]
    Disk(#[from] std::io::Error),
    /// The class of a claim is not there.
    #[error("storageClass {0:?} not found")]
    Class(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Work {
    Claim(ObjectKey),
    Volume(String),
}

/// The provisioner of one node. Made by [`Provisioner::new`], lives in [`Provisioner::run`].
pub struct Provisioner {
    options: Options,
    client: kube::Client,
    recorder: EventRecorder,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
}

fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

impl Provisioner {
    /// A provisioner that acts through the client of `informers`.
    pub fn new(options: Options, informers: &SharedInformerFactory) -> Self {
        let client = informers.client().clone();
        let component = format!("{PROVISIONER}_{}", options.node_name);
        Self {
            recorder: EventRecorder::new(client.clone(), &component, ""),
            client,
            claims: informers.informer(),
            volumes: informers.informer(),
            classes: informers.informer(),
            options,
        }
    }

    /// Provisions, grows and deletes until `shutdown`.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(self.work_until(shutdown))
    }

    async fn work_until(self, shutdown: CancellationToken) {
        let synced = async {
            self.classes.synced().await;
            self.volumes.synced().await;
            self.claims.synced().await;
        };
        if shutdown.run_until_cancelled(synced).await.is_none() {
            return;
        }
        self.remove_leftovers().await;
        let queue = WorkQueue::new();
        let (own, node, volumes) = (queue.clone(), self.options.node_name.clone(), self.volumes.clone());
        self.claims.subscribe(move |event| {
            let claim = event.object();
            let volume = volumes.get("", &decide::volume_name(claim));
            let here = volume.is_some_and(|volume| decide::is_here(&volume, &node));
            if !matches!(event, InformerEvent::Deleted(_)) && (here || decide::is_ours(claim)) {
                own.add(Work::Claim(ObjectKey::of(&claim.metadata)));
            }
        });
        let (own, node) = (queue.clone(), self.options.node_name.clone());
        self.volumes.subscribe(move |event| {
            let volume = event.object();
            if !matches!(event, InformerEvent::Deleted(_)) && decide::is_here(volume, &node) {
                own.add(Work::Volume(volume.metadata.name.clone().unwrap_or_default()));
            }
        });
        run_workers("local-path-provisioner", queue, WORKERS, shutdown, |work| self.sync(work)).await;
    }

    async fn remove_leftovers(&self) {
        let claims = self.claims.list();
        let mut known: std::collections::HashSet<String> =
            claims.iter().map(|claim| decide::volume_name(claim)).collect();
        known.extend(self.volumes.list().iter().filter_map(|volume| volume.metadata.name.clone()));
        let root = self.options.root.clone();
        let swept = tokio::task::spawn_blocking(move || {
            directory::remove_leftovers(&root, |name| known.contains(name));
        });
        // A panic there has been reported; leftovers are empty.
        let _ = swept.await;
    }

    async fn sync(&self, work: Work) -> Result<Option<Duration>, Error> {
        let done = match work {
            Work::Claim(key) => match self.claims.get_key(&key) {
                Some(claim) => self.sync_claim(&claim).await,
                None => Ok(()),
            },
            Work::Volume(name) => match self.volumes.get("", &name) {
                Some(volume) => self.sync_volume(&volume).await,
                None => Ok(()),
            },
        };
        match done {
            // Gone meanwhile, or changed: the news is on its way here.
            Err(Error::Api(error)) if is_code(&error, 404) || is_code(&error, 409) => Ok(None),
            done => done.map(|()| None),
        }
    }

    fn claims_of(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), claim.metadata.namespace.as_deref().unwrap_or_default())
    }

    fn all_volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    async fn sync_claim(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<(), Error> {
        let name = decide::class_name(claim);
        let class = self.classes.get("", name);
        let volume = self.volumes.get("", &decide::volume_name(claim));
        match decide::claim_step(claim, class.as_deref(), volume.as_deref(), &self.options.node_name) {
            ClaimStep::Nothing => Ok(()),
            ClaimStep::Refuse(text) => {
                self.recorder.event(&**claim, EventType::Warning, "ProvisioningFailed", text);
                Ok(())
            }
            ClaimStep::Take => self.take(claim, class.as_deref()).await,
            ClaimStep::Provision => {
                let class = class.ok_or_else(|| Error::Class(name.to_owned()))?;
                self.provision(claim, &class).await.inspect_err(|error| {
                    let text = format!("failed to provision volume with StorageClass {name:?}: {error}");
                    self.recorder.event(&**claim, EventType::Warning, "ProvisioningFailed", text);
                })
            }
            ClaimStep::Grow(size) => match volume {
                Some(volume) => self.grow(claim, &volume, size).await,
                None => Ok(()),
            },
        }
    }

    /// Makes this node the claim's. When two try, the API server lets one of them.
    async fn take(&self, claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> Result<(), Error> {
        let node = Api::<Node>::all(self.client.clone()).get(&self.options.node_name).await?;
        if !class.is_some_and(|class| decide::allows(class, &node.metadata.labels.unwrap_or_default())) {
            return Ok(());
        }
        let mut taken = claim.clone();
        let annotations = taken.metadata.annotations.get_or_insert_default();
        annotations.insert(SELECTED_NODE.to_owned(), self.options.node_name.clone());
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        self.claims_of(claim).replace(name, &PostParams::default(), &taken).await?;
        Ok(())
    }

    /// The directory first: a volume that can be seen can be used.
    async fn provision(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<(), Error> {
        let key = ObjectKey::of(&claim.metadata);
        let text = format!("External provisioner is provisioning volume for claim \"{key}\"");
        self.recorder.event(claim, EventType::Normal, "Provisioning", text);
        let (root, name) = (self.options.root.clone(), decide::volume_name(claim));
        let path = on_disk(move || directory::make(&root, &name)).await?;
        let volume = decide::volume(claim, class, &path, &self.options.node_name);
        match self.all_volumes().create(&PostParams::default(), &volume).await {
            Ok(_) => {}
            Err(error) if is_code(&error, 409) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let name = decide::volume_name(claim);
        info!(claim = %key, volume = name, path = %path.display(), "volume provisioned");
        let text = format!("Successfully provisioned volume {name}");
        self.recorder.event(claim, EventType::Normal, "ProvisioningSucceeded", text);
        Ok(())
    }

    /// A directory grows by itself: only the books are kept.
    async fn grow(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        size: Quantity,
    ) -> Result<(), Error> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let text = format!("External resizer is resizing volume {name}");
        self.recorder.event(claim, EventType::Normal, "Resizing", text);
        let amount = json!({"storage": size});
        let patch = Patch::Merge(json!({"spec": {"capacity": amount}}));
        self.all_volumes().patch(name, &PatchParams::default(), &patch).await?;
        // Both conditions of a resize under way are over.
        let conditions: Vec<_> =
            claim.status.iter().flat_map(|status| status.conditions.iter().flatten()).collect();
        let conditions: Vec<_> = conditions
            .into_iter()
            .filter(|condition| !matches!(&*condition.type_, "Resizing" | "FileSystemResizePending"))
            .collect();
        let patch = Patch::Merge(json!({"status": {"capacity": amount, "allocatedResources": amount,
            "allocatedResourceStatuses": null, "conditions": conditions}}));
        let own = claim.metadata.name.as_deref().unwrap_or_default();
        self.claims_of(claim).patch_status(own, &PatchParams::default(), &patch).await?;
        self.recorder.event(claim, EventType::Normal, "VolumeResizeSuccessful", "Resize volume succeeded");
        Ok(())
    }

    async fn sync_volume(&self, volume: &PersistentVolume) -> Result<(), Error> {
        match decide::volume_step(volume) {
            VolumeStep::Nothing => Ok(()),
            VolumeStep::Finalizers(finalizers) => self.set_finalizers(volume, finalizers).await,
            VolumeStep::Delete => self.delete(volume).await,
        }
    }

    async fn set_finalizers(&self, volume: &PersistentVolume, finalizers: Vec<String>) -> Result<(), Error> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({"metadata": {"resourceVersion": volume.metadata.resource_version, "finalizers": finalizers}});
        self.all_volumes().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// The directory, then the object, then what kept the object.
    async fn delete(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let path = volume.spec.as_ref().and_then(|spec| spec.local.as_ref()).map(|local| local.path.clone());
        let (root, own) = (self.options.root.clone(), name.clone());
        let removed =
            on_disk(move || directory::remove(&root, &own, Path::new(&path.unwrap_or_default()))).await;
        if let Err(error) = removed {
            self.recorder.event(volume, EventType::Warning, "VolumeFailedDelete", error.to_string());
            return Err(error);
        }
        info!(volume = name, "volume deleted with its directory");
        let same = Preconditions { uid: volume.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        self.all_volumes().delete(&name, &params).await?;
        let Some(mut left) = self.all_volumes().get_opt(&name).await? else { return Ok(()) };
        let finalizers = left.metadata.finalizers.take().unwrap_or_default();
        let others = finalizers.into_iter().filter(|finalizer| finalizer != FINALIZER).collect();
        self.set_finalizers(&left, others).await
    }
}

/// Disks may be slow.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?;
    Ok(done?)
}
