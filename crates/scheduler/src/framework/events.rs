//! What changes in the cluster, as far as it can make a pod schedulable, and which plugin cares. Answers to upstream's
//! `fwk.ClusterEvent` and queueing hints (KEP-4247).

use std::ops::BitOr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};

use crate::pod_info::PodInfo;

/// What kind of object changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventResource {
    /// A pod that is bound or assumed.
    AssignedPod,
    /// The waiting pod itself.
    TargetPod,
    Node,
    PersistentVolume,
    PersistentVolumeClaim,
    CSINode,
    CSIDriver,
    CSIStorageCapacity,
    StorageClass,
    VolumeAttachment,
    ResourceClaim,
    ResourceSlice,
    DeviceClass,
}

/// What happened to it; a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ActionType(u32);

impl ActionType {
    pub const ADD: Self = Self(1);
    pub const DELETE: Self = Self(1 << 1);
    pub const UPDATE_NODE_ALLOCATABLE: Self = Self(1 << 2);
    pub const UPDATE_NODE_LABEL: Self = Self(1 << 3);
    pub const UPDATE_NODE_TAINT: Self = Self(1 << 4);
    pub const UPDATE_POD_LABEL: Self = Self(1 << 5);
    pub const UPDATE_POD_SCALE_DOWN: Self = Self(1 << 6);
    pub const UPDATE_POD_TOLERATION: Self = Self(1 << 7);
    pub const UPDATE_POD_GATES_ELIMINATED: Self = Self(1 << 8);
    pub const UPDATE_POD_GENERATED_CLAIM: Self = Self(1 << 9);
    /// Any other change.
    pub const UPDATE_OTHER: Self = Self(1 << 10);
    /// Every change that is neither ADD nor DELETE.
    pub const UPDATE: Self = Self(!0b11);

    /// The empty set.
    pub const NONE: Self = Self(0);

    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for ActionType {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The object, as it was and as it is. `None` where there was or is none.
#[derive(Debug, Clone)]
pub enum Change {
    Pod(Option<Arc<PodInfo>>, Option<Arc<PodInfo>>),
    Node(Option<Arc<Node>>, Option<Arc<Node>>),
    PersistentVolumeClaim(Option<Arc<PersistentVolumeClaim>>, Option<Arc<PersistentVolumeClaim>>),
    CSINode(Option<Arc<CSINode>>, Option<Arc<CSINode>>),
    CSIDriver(Option<Arc<CSIDriver>>, Option<Arc<CSIDriver>>),
    CSIStorageCapacity(Option<Arc<CSIStorageCapacity>>, Option<Arc<CSIStorageCapacity>>),
    StorageClass(Option<Arc<StorageClass>>, Option<Arc<StorageClass>>),
    ResourceClaim(Option<Arc<ResourceClaim>>, Option<Arc<ResourceClaim>>),
    DeviceClass(Option<Arc<DeviceClass>>, Option<Arc<DeviceClass>>),
    /// An object no hint looks at.
    Other,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct ClusterEvent {
    pub resource: EventResource,
    pub action: ActionType,
    pub change: Change,
}

impl ClusterEvent {
    /// A bound or assumed pod that is counted from now on.
    pub fn assigned_pod_added(pod: Arc<PodInfo>) -> Self {
        Self {
            resource: EventResource::AssignedPod,
            action: ActionType::ADD,
            change: Change::Pod(None, Some(pod)),
        }
    }

    /// A bound or assumed pod that is not counted any more.
    pub fn assigned_pod_deleted(pod: Arc<PodInfo>) -> Self {
        Self {
            resource: EventResource::AssignedPod,
            action: ActionType::DELETE,
            change: Change::Pod(Some(pod), None),
        }
    }

    /// What a pod's change may mean. `None` when nothing in it concerns a scheduler.
    pub fn pod_updated(resource: EventResource, old: &Arc<PodInfo>, new: &Arc<PodInfo>) -> Option<Self> {
        let mut action = ActionType::NONE;
        if old.labels() != new.labels() {
            action = action | ActionType::UPDATE_POD_LABEL;
        }
        if scaled_down(old, new) {
            action = action | ActionType::UPDATE_POD_SCALE_DOWN;
        }
        if old.is_gated() && !new.is_gated() {
            action = action | ActionType::UPDATE_POD_GATES_ELIMINATED;
        }
        let tolerations = |pod: &PodInfo| pod.spec().and_then(|spec| spec.tolerations.clone());
        if tolerations(old) != tolerations(new) {
            action = action | ActionType::UPDATE_POD_TOLERATION;
        }
        let generated =
            |pod: &PodInfo| pod.pod.status.as_ref().and_then(|status| status.resource_claim_statuses.clone());
        if generated(old) != generated(new) {
            action = action | ActionType::UPDATE_POD_GENERATED_CLAIM;
        }
        if old.terminating != new.terminating {
            action = action | ActionType::UPDATE_OTHER;
        }
        (action != ActionType::NONE).then(|| Self {
            resource,
            action,
            change: Change::Pod(Some(old.clone()), Some(new.clone())),
        })
    }

    /// What a node's change may mean. `None` for mere heartbeats.
    pub fn node(old: Option<&Arc<Node>>, new: &Arc<Node>) -> Option<Self> {
        let action = match old {
            None => ActionType::ADD,
            Some(old) => node_actions(old, new),
        };
        let change = Change::Node(old.cloned(), Some(new.clone()));
        (action != ActionType::NONE).then_some(Self { resource: EventResource::Node, action, change })
    }
}

fn node_actions(old: &Node, new: &Node) -> ActionType {
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    let repels = |node: &Node| node.spec.as_ref().map(|spec| (spec.taints.clone(), spec.unschedulable));
    let mut action = ActionType::NONE;
    if allocatable(old) != allocatable(new) {
        action = action | ActionType::UPDATE_NODE_ALLOCATABLE;
    }
    if old.metadata.labels != new.metadata.labels {
        action = action | ActionType::UPDATE_NODE_LABEL;
    }
    if repels(old) != repels(new) {
        action = action | ActionType::UPDATE_NODE_TAINT;
    }
    action
}

fn scaled_down(old: &PodInfo, new: &PodInfo) -> bool {
    let (old, new) = (&old.requests, &new.requests);
    new.milli_cpu < old.milli_cpu
        || new.memory < old.memory
        || new.ephemeral_storage < old.ephemeral_storage
        || old.scalar.iter().any(|(name, amount)| new.get(name) < *amount)
}

/// Whether an event is worth another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueingHint {
    Skip,
    Queue,
}

impl QueueingHint {
    pub fn queue_if(worth: bool) -> Self {
        if worth { Self::Queue } else { Self::Skip }
    }
}

/// An event that may make a pod schedulable which a plugin has rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    pub resource: EventResource,
    pub action: ActionType,
}

impl Registration {
    pub const fn new(resource: EventResource, action: ActionType) -> Self {
        Self { resource, action }
    }

    pub fn covers(&self, event: &ClusterEvent) -> bool {
        self.resource == event.resource && self.action.intersects(event.action)
    }
}
