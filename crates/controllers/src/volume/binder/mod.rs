//! Brings claims and volumes together and reclaims volumes. Answers to upstream's `persistentvolume-binder-controller`.
//! Volumes are made and deleted by provisioners outside; which node a claim's volume is for is the scheduler's choice.

mod decide;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use super::{BY_CLAIM, index_by_claim};
use crate::error::{Error, is_not_found};
use crate::objects::{Meta, node_name};
use crate::shell::Shell;
use decide::{
    BETA_PROVISIONER, BIND_COMPLETED, BOUND_BY_CONTROLLER, ClaimStep, PROVISIONER, Told, VolumeStep,
    claim_class, is_for, volume_class,
};

/// Index of volumes, and of claims that are not bound, by class.
const BY_CLASS: &str = "class";
/// Index of volumes by the claim they refer to.
const BY_REFERENCE: &str = "claimRef";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Work {
    Claim(ObjectKey),
    Volume(String),
}

struct Controller {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    queue: WorkQueue<Work>,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Arc::new(Controller {
        claims: shell.informers.informer(),
        volumes: shell.informers.informer(),
        classes: shell.informers.informer(),
        pods: shell.informers.informer(),
        queue: WorkQueue::named("claims"),
        client: shell.client,
        recorder: shell.recorder,
    });
    index_by_claim(&controller.pods);
    controller.volumes.add_index(BY_CLASS, |volume: &PersistentVolume| vec![volume_class(volume).to_owned()]);
    controller
        .volumes
        .add_index(BY_REFERENCE, |volume: &PersistentVolume| reference(volume).into_iter().collect());
    controller.claims.add_index(BY_CLASS, |claim: &PersistentVolumeClaim| {
        let bound = claim.annotation(BIND_COMPLETED).is_some();
        if bound { Vec::new() } else { vec![claim_class(claim).to_owned()] }
    });
    controller.claims.synced().await;
    controller.volumes.synced().await;
    controller.classes.synced().await;
    controller.pods.synced().await;
    let own = Arc::downgrade(&controller);
    controller.claims.subscribe(move |event| {
        if let Some(controller) = own.upgrade() {
            controller.claim_changed(event);
        }
    });
    let own = Arc::downgrade(&controller);
    controller.volumes.subscribe(move |event| {
        if let Some(controller) = own.upgrade() {
            controller.volume_changed(event.object());
        }
    });
    let own = Arc::downgrade(&controller);
    controller.classes.subscribe(move |event| {
        if let Some(controller) = own.upgrade() {
            controller.wake_class(event.object().name());
            // It may be, or have been, the default.
            controller.wake_class("");
        }
    });
    let queue = controller.queue.clone();
    // One worker: two claims must not reach for one volume at the same time.
    let name = "persistentvolume-binder-controller";
    run_workers(name, queue, 1, shell.shutdown, |work| controller.sync(work)).await;
    Ok(())
}

/// `namespace/name` of the claim that a volume refers to.
fn reference(volume: &PersistentVolume) -> Option<String> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(format!("{}/{}", reference.namespace.as_deref()?, reference.name.as_deref()?))
}

fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

impl Controller {
    fn claim_changed(&self, event: &InformerEvent<PersistentVolumeClaim>) {
        let claim = event.object();
        let key = ObjectKey::of(&claim.metadata);
        let volume = volume_name(claim);
        if matches!(event, InformerEvent::Deleted(_)) && !volume.is_empty() {
            self.queue.add(Work::Volume(volume.to_owned()));
        }
        for volume in self.volumes.by_index(BY_REFERENCE, &key.to_string()) {
            self.queue.add(Work::Volume(volume.name().to_owned()));
        }
        self.queue.add(Work::Claim(key));
    }

    fn volume_changed(&self, volume: &PersistentVolume) {
        self.queue.add(Work::Volume(volume.name().to_owned()));
        if let Some((namespace, name)) = reference(volume).as_deref().and_then(|key| key.split_once('/')) {
            self.queue.add(Work::Claim(ObjectKey::new(namespace, name)));
        } else {
            self.wake_class(volume_class(volume));
        }
    }

    fn wake_class(&self, class: &str) {
        for claim in self.claims.by_index(BY_CLASS, class) {
            self.queue.add(Work::Claim(ObjectKey::of(&claim.metadata)));
        }
    }

    async fn sync(&self, work: Work) -> Result<Option<Duration>, Error> {
        let done = match work {
            Work::Claim(key) => match self.claims.get_key(&key) {
                Some(claim) => self.sync_claim(&key, &claim).await,
                None => Ok(()),
            },
            Work::Volume(name) => match self.volumes.get("", &name) {
                Some(volume) => self.sync_volume(&volume).await,
                None => Ok(()),
            },
        };
        match done {
            // What is gone needs nothing any more.
            Err(Error::Api(error)) if is_not_found(&error) => Ok(None),
            done => done.map(|()| None),
        }
    }

    fn tell<K: kube::Resource<DynamicType = ()>>(&self, object: &K, told: Told) {
        let kind = if told.warning { EventType::Warning } else { EventType::Normal };
        self.recorder.event(object, kind, told.reason, told.message);
    }

    fn claims_of(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), claim.namespace())
    }

    async fn sync_claim(&self, key: &ObjectKey, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let mut volumes = self.volumes.by_index(BY_CLASS, claim_class(claim));
        volumes.extend(self.volumes.by_index(BY_REFERENCE, &key.to_string()));
        volumes.extend(self.volumes.get("", volume_name(claim)));
        let users = self.pods.by_index(BY_CLAIM, &key.to_string());
        let waiting = users.iter().find(|pod| node_name(pod).is_empty()).map(|pod| pod.name());
        match decide::claim_step(claim, &volumes, &self.classes.list(), waiting) {
            ClaimStep::Bind(volume) => self.bind(&volume, claim).await,
            ClaimStep::Pending(told) => {
                if let Some(told) = told {
                    self.tell(claim, told);
                }
                self.claim_phase(claim, "Pending", None).await.map(drop)
            }
            ClaimStep::Lost(told) => {
                if self.claim_phase(claim, "Lost", None).await? {
                    self.tell(claim, told);
                }
                Ok(())
            }
            ClaimStep::AssignClass(class) => {
                let mut changed = claim.clone();
                changed.spec.get_or_insert_default().storage_class_name = Some(class);
                self.claims_of(claim).replace(&key.name, &PostParams::default(), &changed).await?;
                Ok(())
            }
            ClaimStep::Provision(provisioner) => {
                let mut changed = claim.clone();
                let annotations = changed.metadata.annotations.get_or_insert_default();
                for annotation in [PROVISIONER, BETA_PROVISIONER] {
                    annotations.insert(annotation.to_owned(), provisioner.clone());
                }
                if changed.metadata.annotations != claim.metadata.annotations {
                    let api = self.claims_of(claim);
                    changed = api.replace(&key.name, &PostParams::default(), &changed).await?;
                }
                self.tell(&changed, decide::provisioning(&provisioner));
                self.claim_phase(&changed, "Pending", None).await.map(drop)
            }
        }
    }

    async fn sync_volume(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let key = reference(volume).unwrap_or_default();
        let (namespace, name) = key.split_once('/').unwrap_or_default();
        let mut claim = self.claims.get(namespace, name);
        if decide::volume_step(volume, claim.as_deref()) == VolumeStep::Reclaim && !name.is_empty() {
            // Data would be lost if only the cache did not show the claim yet.
            let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
            claim = api.get_opt(name).await?.map(Arc::new);
        }
        match decide::volume_step(volume, claim.as_deref()) {
            VolumeStep::Phase(phase) => self.volume_phase(volume, phase, None).await.map(drop),
            VolumeStep::WakeClaim => {
                self.queue.add(Work::Claim(ObjectKey::new(namespace, name)));
                Ok(())
            }
            VolumeStep::Reclaim => {
                let mut released = volume.clone();
                if !matches!(phase(volume), "Released" | "Failed") {
                    released = self.volume_phase(volume, "Released", None).await?;
                }
                if let Some(failure) = decide::reclaim_failure(&released)
                    && phase(&released) != "Failed"
                {
                    self.volume_phase(&released, "Failed", Some(&failure.message)).await?;
                    self.tell(&released, failure);
                }
                Ok(())
            }
            VolumeStep::Unbind => {
                let mut changed = volume.clone();
                let annotations = changed.metadata.annotations.get_or_insert_default();
                let ours = annotations.remove(BOUND_BY_CONTROLLER).is_some();
                let spec = changed.spec.get_or_insert_default();
                match &mut spec.claim_ref {
                    // The user reserved it: it stays reserved.
                    Some(reference) if !ours => reference.uid = None,
                    reference => *reference = None,
                }
                let api = Api::<PersistentVolume>::all(self.client.clone());
                let changed = api.replace(volume.name(), &PostParams::default(), &changed).await?;
                self.volume_phase(&changed, "Available", None).await.map(drop)
            }
        }
    }

    /// Writes both sides, the volume first: whatever is lost in between, the next look goes on.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let mut bound = volume.clone();
        let ours = !is_for(volume, claim);
        let spec = bound.spec.get_or_insert_default();
        let complete = spec.claim_ref.as_ref().is_some_and(|known| known.uid.as_deref() == Some(claim.uid()));
        if ours || !complete {
            spec.claim_ref = Some(orlop_client::object_reference(claim));
            if ours {
                mark(&mut bound.metadata, BOUND_BY_CONTROLLER);
            }
            let api = Api::<PersistentVolume>::all(self.client.clone());
            bound = api.replace(volume.name(), &PostParams::default(), &bound).await?;
        }
        let bound = self.volume_phase(&bound, "Bound", None).await?;

        let mut changed = claim.clone();
        if volume_name(claim) != volume.name() {
            changed.spec.get_or_insert_default().volume_name = Some(volume.name().to_owned());
            mark(&mut changed.metadata, BOUND_BY_CONTROLLER);
        }
        mark(&mut changed.metadata, BIND_COMPLETED);
        if changed != *claim {
            changed = self.claims_of(claim).replace(claim.name(), &PostParams::default(), &changed).await?;
        }
        self.claim_phase(&changed, "Bound", Some(&bound)).await.map(drop)
    }

    /// Whether the phase is another one now.
    async fn claim_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<bool, Error> {
        let mut changed = claim.clone();
        let status = changed.status.get_or_insert_default();
        let before = status.phase.replace(phase.to_owned());
        match volume.and_then(|volume| volume.spec.as_ref()) {
            Some(spec) => {
                status.access_modes.clone_from(&spec.access_modes);
                // Once bound, the file system's size may differ from the volume's.
                if before.as_deref() != Some("Bound") || status.capacity.is_none() {
                    status.capacity.clone_from(&spec.capacity);
                }
                let attributes = &spec.volume_attributes_class_name;
                status.current_volume_attributes_class_name.clone_from(attributes);
            }
            None => (status.access_modes, status.capacity) = (None, None),
        }
        if changed.status != claim.status {
            self.claims_of(claim).replace_status(claim.name(), &PostParams::default(), &changed).await?;
        }
        Ok(before.as_deref() != Some(phase))
    }

    async fn volume_phase(
        &self,
        volume: &PersistentVolume,
        wanted: &str,
        message: Option<&str>,
    ) -> Result<PersistentVolume, Error> {
        if phase(volume) == wanted {
            return Ok(volume.clone());
        }
        let mut changed = volume.clone();
        let status = changed.status.get_or_insert_default();
        status.phase = Some(wanted.to_owned());
        status.message = message.map(str::to_owned);
        status.last_phase_transition_time = Some(Time(Timestamp::now()));
        let api = Api::<PersistentVolume>::all(self.client.clone());
        Ok(api.replace_status(volume.name(), &PostParams::default(), &changed).await?)
    }
}

fn mark(meta: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, annotation: &str) {
    meta.annotations.get_or_insert_default().entry(annotation.to_owned()).or_insert_with(|| "yes".to_owned());
}
