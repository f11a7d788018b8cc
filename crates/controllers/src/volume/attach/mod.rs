//! Attaches volumes of CSI drivers to the nodes of the pods that use them: writes the VolumeAttachments that the drivers'
//! attachers act on, and tells kubelets in `node.status.volumesAttached` what has come. Answers to upstream's
//! `persistentvolume-attach-detach-controller`; what is attached is read from the VolumeAttachments themselves, so that
//! there is no state of its own to rebuild.

mod decide;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{AttachedVolume, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{
    CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec, VolumeError,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{BY_CLAIM, claim_names, index_by_claim, uses};
use crate::error::{Error, is_already_exists, message, unless_gone};
use crate::node::lifecycle::{BY_NODE, index_by_node};
use crate::objects::{Meta, node_name};
use crate::shell::Shell;
use decide::{Attachable, Attachment, NodeView, Step};

/// Index of VolumeAttachments by volume, and by node.
const BY_VOLUME: &str = "volume";
/// Index of volumes by CSI driver.
const BY_DRIVER: &str = "driver";
/// How long an attacher may take before pods are told.
const ATTACHER_TIMEOUT: Duration = Duration::from_secs(120);
const WORKERS: usize = 4;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Work {
    Volume(String),
    /// The node's `volumesAttached`.
    Node(String),
}

/// What the API does not remember; after a restart every clock starts again, as upstream's do.
#[derive(Default)]
struct Memory {
    /// Since when attachments are unwanted, or wanted and not there, by name.
    unwanted: HashMap<String, Instant>,
    waiting: HashMap<String, Instant>,
    /// Attachments that are being taken away: not reported any more.
    leaving: HashSet<String>,
    /// Pods of these nodes know that they have to wait for the volume: volume and node.
    refused: HashSet<(String, String)>,
    /// What nodes that are gone used last.
    departed: HashMap<String, Vec<String>>,
}

struct Controller {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    nodes: Informer<Node>,
    drivers: Informer<CSIDriver>,
    attachments: Informer<VolumeAttachment>,
    queue: WorkQueue<Work>,
    client: kube::Client,
    recorder: EventRecorder,
    memory: Mutex<Memory>,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Arc::new(Controller {
        pods: shell.informers.informer(),
        claims: shell.informers.informer(),
        volumes: shell.informers.informer(),
        nodes: shell.informers.informer(),
        drivers: shell.informers.informer(),
        attachments: shell.informers.informer(),
        queue: WorkQueue::named("pvcs"),
        client: shell.client,
        recorder: shell.recorder,
        memory: Mutex::default(),
    });
    index_by_claim(&controller.pods);
    index_by_node(&controller.pods);
    controller.volumes.add_index(BY_DRIVER, |volume: &PersistentVolume| driver(volume).into_iter().collect());
    controller
        .attachments
        .add_index(BY_VOLUME, |attachment: &VolumeAttachment| volume_of(attachment).into_iter().collect());
    controller
        .attachments
        .add_index(BY_NODE, |attachment: &VolumeAttachment| vec![attachment.spec.node_name.clone()]);
    controller.pods.synced().await;
    controller.claims.synced().await;
    controller.volumes.synced().await;
    controller.nodes.synced().await;
    controller.drivers.synced().await;
    controller.attachments.synced().await;
    controller.subscribe();
    let queue = controller.queue.clone();
    let name = "persistentvolume-attach-detach-controller";
    run_workers(name, queue, WORKERS, shell.shutdown, |work| controller.sync(work)).await;
    Ok(())
}

fn driver(volume: &PersistentVolume) -> Option<String> {
    volume.spec.as_ref()?.csi.as_ref().map(|source| source.driver.clone())
}

fn volume_of(attachment: &VolumeAttachment) -> Option<String> {
    attachment.spec.source.persistent_volume_name.clone()
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|status| status.attached)
}

fn attach_error(attachment: &VolumeAttachment) -> Option<&VolumeError> {
    attachment.status.as_ref()?.attach_error.as_ref()
}

fn attached(node: &Node) -> &[AttachedVolume] {
    node.status.as_ref().and_then(|status| status.volumes_attached.as_deref()).unwrap_or_default()
}

impl Controller {
    /// Each handler holds the controller weakly: handlers stay with the informers when the controller starts anew.
    fn on<K: orlop_client::Object>(
        self: &Arc<Self>,
        informer: &Informer<K>,
        handler: impl Fn(&Self, &InformerEvent<K>) + Send + Sync + 'static,
    ) {
        let own = Arc::downgrade(self);
        informer.subscribe(move |event| {
            if let Some(controller) = own.upgrade() {
                handler(&controller, event);
            }
        });
    }

    fn subscribe(self: &Arc<Self>) {
        self.on(&self.drivers, |own, event| {
            for volume in own.volumes.by_index(BY_DRIVER, event.object().name()) {
                own.queue.add(Work::Volume(volume.name().to_owned()));
            }
        });
        self.on(&self.volumes, |own, event| {
            if driver(event.object()).is_some() {
                own.queue.add(Work::Volume(event.object().name().to_owned()));
            }
        });
        self.on(&self.claims, |own, event| own.wake_claim(event.object()));
        self.on(&self.pods, |own, event| own.wake_pod(event.object()));
        self.on(&self.nodes, Self::node_changed);
        self.on(&self.attachments, Self::attachment_changed);
    }

    fn wake_claim(&self, claim: &PersistentVolumeClaim) {
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        if self.volumes.get("", name).is_some_and(|volume| driver(&volume).is_some()) {
            self.queue.add(Work::Volume(name.to_owned()));
        }
    }

    fn wake_pod(&self, pod: &Pod) {
        for name in claim_names(pod) {
            if let Some(claim) = self.claims.get(pod.namespace(), &name) {
                self.wake_claim(&claim);
            }
        }
    }

    fn node_changed(&self, event: &InformerEvent<Node>) {
        let node = event.object();
        let name = node.name();
        let here = self.attachments.by_index(BY_NODE, name);
        match event {
            InformerEvent::Added(_) => {
                self.memory.lock().departed.remove(name);
                self.pods.by_index(BY_NODE, name).iter().for_each(|pod| self.wake_pod(pod));
            }
            InformerEvent::Updated { old, new } => {
                if NodeView::of(Some(&**old), "", false) != NodeView::of(Some(&**new), "", false) {
                    self.pods.by_index(BY_NODE, name).iter().for_each(|pod| self.wake_pod(pod));
                } else if decide::in_use(old) == decide::in_use(new) && attached(old) == attached(new) {
                    return;
                }
            }
            InformerEvent::Deleted(_) if here.is_empty() => {}
            InformerEvent::Deleted(_) => {
                self.memory.lock().departed.insert(name.to_owned(), decide::in_use(node).to_vec());
            }
        }
        here.iter().filter_map(|one| volume_of(one)).for_each(|volume| self.queue.add(Work::Volume(volume)));
        if !here.is_empty() || !attached(node).is_empty() {
            self.queue.add(Work::Node(name.to_owned()));
        }
    }

    fn attachment_changed(&self, event: &InformerEvent<VolumeAttachment>) {
        let attachment = event.object();
        match event {
            InformerEvent::Updated { old, new } => {
                if is_attached(new) && !is_attached(old) {
                    self.tell(
                        new,
                        EventType::Normal,
                        "SuccessfulAttachVolume",
                        "AttachVolume.Attach succeeded",
                        "",
                    );
                }
                if let Some(error) = attach_error(new)
                    && attach_error(old) != Some(error)
                {
                    let error = format!(": {}", error.message.as_deref().unwrap_or_default());
                    self.tell(
                        new,
                        EventType::Warning,
                        "FailedAttachVolume",
                        "AttachVolume.Attach failed",
                        &error,
                    );
                }
            }
            InformerEvent::Deleted(_) => {
                let mut memory = self.memory.lock();
                memory.unwanted.remove(attachment.name());
                memory.waiting.remove(attachment.name());
                memory.leaving.remove(attachment.name());
            }
            InformerEvent::Added(_) => {}
        }
        self.queue.add(Work::Node(attachment.spec.node_name.clone()));
        if let Some(volume) = volume_of(attachment) {
            self.queue.add(Work::Volume(volume));
        }
    }

    /// Tells the pods that wait for an attachment.
    fn tell(&self, attachment: &VolumeAttachment, kind: EventType, reason: &str, what: &str, why: &str) {
        let Some(volume) = volume_of(attachment).and_then(|name| self.volumes.get("", &name)) else { return };
        let text = format!("{what} for volume \"{}\" {why}", volume.name());
        for pod in self.users(&volume).iter().filter(|pod| node_name(pod) == attachment.spec.node_name) {
            self.recorder.event(&**pod, kind, reason, text.clone());
        }
    }

    /// The scheduled pods that need a volume, the oldest first.
    fn users(&self, volume: &PersistentVolume) -> Vec<Arc<Pod>> {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let Some(reference) = reference else { return Vec::new() };
        let key = ObjectKey::new(
            reference.namespace.as_deref().unwrap_or_default(),
            reference.name.as_deref().unwrap_or_default(),
        );
        let Some(claim) = self.claims.get_key(&key) else { return Vec::new() };
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
            && claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()) == Some(volume.name())
            && reference.uid.as_deref() == Some(claim.uid());
        if !bound {
            return Vec::new();
        }
        let keeps = |pod: &Pod| {
            self.nodes.get("", node_name(pod)).is_some_and(|node| decide::keeps_terminated(&node))
        };
        let mut pods = self.pods.by_index(BY_CLAIM, &key.to_string());
        pods.retain(|pod| uses(pod, &claim) && decide::needs_volumes(pod, keeps(pod)));
        pods.sort_by_key(|pod| (pod.created(), pod.name().to_owned()));
        pods
    }

    async fn sync(&self, work: Work) -> Result<Option<Duration>, Error> {
        match work {
            Work::Volume(name) => match self.volumes.get("", &name) {
                Some(volume) => self.sync_volume(&volume).await,
                None => Ok(None),
            },
            Work::Node(name) => self.report(&name).await.map(|()| None),
        }
    }

    async fn sync_volume(&self, volume: &PersistentVolume) -> Result<Option<Duration>, Error> {
        let plugin = driver(volume).and_then(|name| self.drivers.get("", &name));
        let Some(attachable) = Attachable::of(volume, plugin.as_deref()) else { return Ok(None) };
        let users = self.users(volume);
        let mut wanted: Vec<String> = Vec::new();
        for pod in &users {
            if !wanted.iter().any(|node| node == node_name(pod)) {
                wanted.push(node_name(pod).to_owned());
            }
        }
        let mut again = None;
        let attachments = self.attachments_of(volume, &attachable, &wanted, &mut again);
        let unique = attachable.unique_name();
        let view = |name: &str| {
            let node = self.nodes.get("", name);
            // Of a node that nobody has ever seen the worst is assumed.
            let was = self.memory.lock().departed.get(name).is_none_or(|used| used.contains(&unique));
            NodeView::of(node.as_deref(), &unique, was)
        };
        self.memory.lock().refused.retain(|(of, node)| of != volume.name() || wanted.contains(node));
        let mut errors = Vec::new();
        for step in decide::steps(attachable.exclusive, &wanted, &attachments, view) {
            let done = match step {
                Step::Attach(node) => self.attach(volume, &attachable, &node, &users).await,
                Step::Refuse { node, others } => {
                    self.refuse(volume, node, &others, &users);
                    Ok(())
                }
                Step::Detach { node, safely } => self.detach(&attachable, &node, safely).await,
                Step::Wait(delay) => {
                    again = Some(again.map_or(delay, |known: Duration| known.min(delay)));
                    Ok(())
                }
            };
            errors.extend(done.err());
        }
        Error::all(errors).map(|()| again)
    }

    /// The volume's attachments with their clocks. Those of other names are not this controller's.
    fn attachments_of(
        &self,
        volume: &PersistentVolume,
        attachable: &Attachable,
        wanted: &[String],
        again: &mut Option<Duration>,
    ) -> Vec<Attachment> {
        let now = Instant::now();
        let mut found = Vec::new();
        for one in self.attachments.by_index(BY_VOLUME, volume.name()) {
            let (name, node) = (one.name().to_owned(), one.spec.node_name.clone());
            if name != attachable.attachment_name(&node) {
                continue;
            }
            let mut memory = self.memory.lock();
            let mut unwanted = Duration::ZERO;
            if !wanted.contains(&node) {
                memory.waiting.remove(&name);
                unwanted = now.duration_since(*memory.unwanted.entry(name).or_insert(now));
            } else {
                memory.unwanted.remove(&name);
                if is_attached(&one) || one.deleting() {
                    memory.waiting.remove(&name);
                } else {
                    let since = memory.waiting.entry(name).or_insert(now);
                    if now.duration_since(*since) >= ATTACHER_TIMEOUT {
                        *since = now;
                        let why = format!(
                            ": timed out waiting for external-attacher of {} CSI driver to attach volume {}",
                            attachable.driver, attachable.handle
                        );
                        drop(memory);
                        self.tell(
                            &one,
                            EventType::Warning,
                            "FailedAttachVolume",
                            "AttachVolume.Attach failed",
                            &why,
                        );
                        *again = Some(ATTACHER_TIMEOUT);
                    } else {
                        *again = Some(ATTACHER_TIMEOUT.saturating_sub(now.duration_since(*since)));
                    }
                }
            }
            found.push(Attachment { node, deleting: one.deleting(), unwanted });
        }
        found
    }

    async fn attach(
        &self,
        volume: &PersistentVolume,
        attachable: &Attachable,
        node: &str,
        users: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let name = attachable.attachment_name(node);
        let attachment = VolumeAttachment {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            spec: VolumeAttachmentSpec {
                attacher: attachable.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(volume.name().to_owned()),
                    ..VolumeAttachmentSource::default()
                },
            },
            status: None,
        };
        match Api::all(self.client.clone()).create(&PostParams::default(), &attachment).await {
            Ok(_) => info!(volume = volume.name(), node, attachment = name, "volume is to be attached"),
            Err(error) if is_already_exists(&error) => {}
            Err(error) => {
                let text = format!(
                    "AttachVolume.Attach failed for volume \"{}\" : {}",
                    volume.name(),
                    message(&error)
                );
                for pod in users.iter().filter(|pod| node_name(pod) == node) {
                    self.recorder.event(&**pod, EventType::Warning, "FailedAttachVolume", text.clone());
                }
                return Err(error.into());
            }
        }
        self.memory.lock().refused.remove(&(volume.name().to_owned(), node.to_owned()));
        Ok(())
    }

    /// Pods are told once that another node has their volume.
    fn refuse(&self, volume: &PersistentVolume, node: String, others: &[String], users: &[Arc<Pod>]) {
        if !self.memory.lock().refused.insert((volume.name().to_owned(), node.clone())) {
            return;
        }
        let there: Vec<_> = users
            .iter()
            .filter(|pod| others.iter().any(|other| other == node_name(pod)))
            .map(|pod| (pod.namespace().to_owned(), pod.name().to_owned()))
            .collect();
        for pod in users.iter().filter(|pod| node_name(pod) == node) {
            let text = decide::multi_attach(volume.name(), pod.namespace(), &there);
            self.recorder.event(&**pod, EventType::Warning, "FailedAttachVolume", text);
        }
    }

    /// First the kubelet is told that it must not use the volume any more, then the attacher.
    async fn detach(&self, attachable: &Attachable, node: &str, safely: bool) -> Result<(), Error> {
        let name = attachable.attachment_name(node);
        let Some(attachment) = self.attachments.get("", &name) else { return Ok(()) };
        if safely {
            let live = Api::<Node>::all(self.client.clone()).get_opt(node).await?;
            if live.is_some_and(|node| decide::in_use(&node).contains(&attachable.unique_name())) {
                // The cache will show it, too, and the node's next status that it is free again.
                return Ok(());
            }
        }
        self.memory.lock().leaving.insert(name.clone());
        let done = match self.report(node).await {
            Ok(()) => {
                let uid = Preconditions { uid: attachment.metadata.uid.clone(), resource_version: None };
                let params = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
                let api = Api::<VolumeAttachment>::all(self.client.clone());
                unless_gone(api.delete(&name, &params).await).map_err(Error::from)
            }
            Err(error) => Err(error),
        };
        match &done {
            Ok(()) if safely => info!(node, attachment = name, "volume is to be detached"),
            Ok(()) => warn!(node, attachment = name, "volume is detached from a node that may still use it"),
            // It is there still: the kubelet may know.
            Err(_) => _ = self.memory.lock().leaving.remove(&name),
        }
        done
    }

    /// Brings `volumesAttached` of a node in line with its attachments.
    async fn report(&self, name: &str) -> Result<(), Error> {
        let Some(node) = self.nodes.get("", name) else { return Ok(()) };
        let mut wanted = Vec::new();
        for attachment in self.attachments.by_index(BY_NODE, name) {
            let leaving = self.memory.lock().leaving.contains(attachment.name());
            if leaving || attachment.deleting() || !is_attached(&attachment) {
                continue;
            }
            let volume = volume_of(&attachment).and_then(|volume| self.volumes.get("", &volume));
            if let Some(attachable) = volume.and_then(|volume| Attachable::of(&volume, None)) {
                wanted.push(AttachedVolume { name: attachable.unique_name(), device_path: String::new() });
            }
        }
        wanted.sort_by(|a, b| a.name.cmp(&b.name));
        if wanted == attached(&node) {
            return Ok(());
        }
        let list = Some(wanted).filter(|list| !list.is_empty());
        let patch = Patch::Merge(json!({"status": {"volumesAttached": list}}));
        let api = Api::<Node>::all(self.client.clone());
        unless_gone(api.patch_status(name, &PatchParams::default(), &patch).await)?;
        Ok(())
    }
}
