//! From informers to the loop.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use orlop_client::{Informer, InformerEvent, ObjectKey, SharedInformerFactory};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Judge, Message, Scheduler};
use crate::framework::{ActionType, Change, ClusterEvent, EventResource};
use crate::preemption::Budget;
use crate::selector::Selector;
use crate::volumes::claim_key;

/// An object as it was and as it is.
type Pair<K> = (Option<Arc<K>>, Option<Arc<K>>);

fn pair<K>(event: &InformerEvent<K>) -> Pair<K> {
    match event {
        InformerEvent::Added(new) => (None, Some(new.clone())),
        InformerEvent::Updated { old, new } => (Some(old.clone()), Some(new.clone())),
        InformerEvent::Deleted(old) => (Some(old.clone()), None),
    }
}

type Sender = mpsc::UnboundedSender<Message>;

fn forward<K: orlop_client::Object>(
    informer: &Informer<K>,
    sender: &Sender,
    apply: fn(&mut Scheduler, Pair<K>),
) {
    let sender = sender.clone();
    informer.subscribe(move |event| {
        let pair = pair(event);
        let message: Message = Box::new(move |scheduler| apply(scheduler, pair));
        // Fails only once the loop has ended.
        let _ = sender.send(message);
    });
}

/// Waits for all caches and has every change sent to the loop: the placed pods after all else, so that the first pod
/// is scheduled in full knowledge.
pub async fn subscribe(factory: &SharedInformerFactory, sender: &Sender) {
    macro_rules! feed {
        ($($kind:ty => $apply:expr;)*) => {{
            tokio::join!($(async { factory.informer::<$kind>().synced().await }),*);
            $(forward::<$kind>(&factory.informer(), sender, $apply);)*
        }};
    }
    feed! {
        Namespace => |scheduler, (old, new)| {
            let name = name(&old, &new, |namespace| &namespace.metadata);
            let labels = new.map(|new| new.metadata.labels.clone().unwrap_or_default());
            scheduler.cache.set_namespace(&name, labels);
        };
        Service => |scheduler, (old, new)| {
            let key = key(&old, &new, |service| &service.metadata);
            let selector = new.and_then(|new| new.spec.as_ref()?.selector.clone());
            scheduler.cache.workloads.set_service(&key, selector);
        };
        ReplicationController => |scheduler, (old, new)| {
            let key = key(&old, &new, |controller| &controller.metadata);
            let selector = new.and_then(|new| new.spec.as_ref()?.selector.clone());
            let selector = selector.map(|selector| Selector::from_labels(&selector));
            scheduler.cache.workloads.set_controller("ReplicationController", key, selector);
        };
        ReplicaSet => |scheduler, (old, new)| {
            let key = key(&old, &new, |set| &set.metadata);
            let selector = new.and_then(|new| Some(Selector::of(Some(&new.spec.as_ref()?.selector))));
            scheduler.cache.workloads.set_controller("ReplicaSet", key, selector);
        };
        StatefulSet => |scheduler, (old, new)| {
            let key = key(&old, &new, |set| &set.metadata);
            let selector = new.and_then(|new| Some(Selector::of(Some(&new.spec.as_ref()?.selector))));
            scheduler.cache.workloads.set_controller("StatefulSet", key, selector);
        };
        PodDisruptionBudget => |scheduler, (old, new)| {
            let key = key(&old, &new, |budget| &budget.metadata);
            let budgets = scheduler.cache.disruption_budgets.entry(key.namespace.clone()).or_default();
            match new {
                Some(new) => _ = budgets.insert(key.name, Budget::of(&new)),
                None => _ = budgets.remove(&key.name),
            }
            if budgets.is_empty() {
                scheduler.cache.disruption_budgets.remove(&key.namespace);
            }
        };
        StorageClass => |scheduler, (old, new)| {
            let name = name(&old, &new, |class| &class.metadata);
            scheduler.cache.volumes.set_class(&name, new.clone());
            scheduler.changed(EventResource::StorageClass, &old, &new, Change::StorageClass(old.clone(), new.clone()));
        };
        CSINode => |scheduler, (old, new)| {
            let name = name(&old, &new, |node| &node.metadata);
            scheduler.cache.volumes.set_csi_node(&name, new.clone());
            scheduler.changed(EventResource::CSINode, &old, &new, Change::CSINode(old.clone(), new.clone()));
        };
        CSIDriver => |scheduler, (old, new)| {
            let name = name(&old, &new, |driver| &driver.metadata);
            scheduler.cache.volumes.set_csi_driver(&name, new.clone());
            scheduler.changed(EventResource::CSIDriver, &old, &new, Change::CSIDriver(old.clone(), new.clone()));
        };
        CSIStorageCapacity => |scheduler, (old, new)| {
            let key = key(&old, &new, |capacity| &capacity.metadata);
            scheduler.cache.volumes.set_capacity(key, new.clone());
            let change = Change::CSIStorageCapacity(old.clone(), new.clone());
            scheduler.changed(EventResource::CSIStorageCapacity, &old, &new, change);
        };
        VolumeAttachment => |scheduler, (old, new)| {
            if let Some(attachment) = new.as_ref().or(old.as_ref()) {
                scheduler.cache.volumes.set_attachment(attachment, new.is_none());
            }
            scheduler.changed(EventResource::VolumeAttachment, &old, &new, Change::Other);
        };
        PersistentVolume => |scheduler, (old, new)| {
            match &new {
                Some(new) => scheduler.cache.volumes.set_volume(new.clone()),
                None => scheduler.cache.volumes.remove_volume(&name(&old, &new, |volume| &volume.metadata)),
            }
            scheduler.shell.storage_changed();
            scheduler.changed(EventResource::PersistentVolume, &old, &new, Change::Other);
        };
        PersistentVolumeClaim => |scheduler, (old, new)| {
            match (&old, &new) {
                (_, Some(new)) => scheduler.cache.volumes.set_claim(new.clone()),
                (Some(old), None) => scheduler.cache.volumes.remove_claim(&claim_key(&old.metadata)),
                (None, None) => {}
            }
            scheduler.shell.storage_changed();
            let change = Change::PersistentVolumeClaim(old.clone(), new.clone());
            scheduler.changed(EventResource::PersistentVolumeClaim, &old, &new, change);
        };
        DeviceClass => |scheduler, (old, new)| {
            let name = name(&old, &new, |class| &class.metadata);
            scheduler.cache.claims.set_class(&name, new.clone());
            let change = Change::DeviceClass(old.clone(), new.clone());
            scheduler.changed(EventResource::DeviceClass, &old, &new, change);
        };
        ResourceSlice => |scheduler, (old, new)| {
            let name = name(&old, &new, |slice| &slice.metadata);
            scheduler.cache.claims.set_slice(&name, new.clone());
            scheduler.changed(EventResource::ResourceSlice, &old, &new, Change::Other);
        };
        ResourceClaim => |scheduler, (old, new)| {
            match &new {
                Some(new) => scheduler.cache.claims.set_claim(new.clone()),
                None => {
                    let key = key(&old, &new, |claim| &claim.metadata).to_string();
                    scheduler.cache.claims.remove_claim(&key);
                }
            }
            scheduler.shell.storage_changed();
            scheduler.claim_changed(&old, &new);
        };
        Node => |scheduler, (old, new)| match (old, new) {
            (old, Some(new)) => {
                scheduler.cache.set_node(new.clone());
                if let Some(event) = ClusterEvent::node(old.as_ref(), &new) {
                    scheduler.event(&event);
                }
            }
            (Some(old), None) => {
                scheduler.cache.remove_node(old.metadata.name.as_deref().unwrap_or_default());
                let change = Change::Node(Some(old), None);
                scheduler.event(&ClusterEvent { resource: EventResource::Node, action: ActionType::DELETE, change });
            }
            (None, None) => {}
        };
        Pod => |scheduler, (old, new)| match (old, new) {
            (old, Some(new)) => scheduler.pod_changed(old, new),
            (Some(old), None) => {
                scheduler.shell.storage_changed();
                scheduler.pod_gone(&ObjectKey::of(&old.metadata));
            }
            (None, None) => {}
        };
    }
}

fn key<K>(old: &Option<Arc<K>>, new: &Option<Arc<K>>, meta: fn(&K) -> &ObjectMeta) -> ObjectKey {
    new.as_ref().or(old.as_ref()).map(|object| ObjectKey::of(meta(object))).unwrap_or_default()
}

fn name<K>(old: &Option<Arc<K>>, new: &Option<Arc<K>>, meta: fn(&K) -> &ObjectMeta) -> String {
    key(old, new, meta).name
}

impl Scheduler {
    fn claim_changed(&mut self, old: &Option<Arc<ResourceClaim>>, new: &Option<Arc<ResourceClaim>>) {
        let change = Change::ResourceClaim(old.clone(), new.clone());
        self.changed(EventResource::ResourceClaim, old, new, change);
        // Pods may be gated until their claims are there.
        if old.is_none() {
            let judge = Judge { profiles: &self.profiles, cache: &self.cache };
            self.queue.ungate_all("DynamicResources", &judge, Instant::now());
        }
    }

    fn changed<K>(
        &mut self,
        resource: EventResource,
        old: &Option<Arc<K>>,
        new: &Option<Arc<K>>,
        change: Change,
    ) {
        let action = match (old, new) {
            (None, _) => ActionType::ADD,
            (_, None) => ActionType::DELETE,
            _ => ActionType::UPDATE_OTHER,
        };
        self.event(&ClusterEvent { resource, action, change });
    }
}
