//! A pod runs where its volumes are or can be: bound claims restrict it, and claims that wait for their first consumer
//! are bound or provisioned for the node that is chosen.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::{Cache, NodeInfo};
use crate::config::VolumeBindingArgs;
use crate::framework::{
    ActionType, BoxFuture, Change, ClusterEvent, Code, EventResource, ExtensionPoint, Filter, Plugin,
    PreFilter, QueueingHint, Registration, Reservation, Status,
};
use crate::pod_info::PodInfo;
use crate::shell::Shell;
use crate::volumes::{PodClaims, PodVolumes, volume_limit};

pub struct VolumeBinding {
    timeout: Duration,
}

impl VolumeBinding {
    pub fn new(args: VolumeBindingArgs) -> Self {
        Self { timeout: Duration::from_secs(u64::try_from(args.bind_timeout_seconds).unwrap_or(0)) }
    }
}

struct Claims<'a> {
    claims: PodClaims,
    cache: &'a Cache,
}

impl Filter for Claims<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        match self.cache.volumes.find(&self.claims, &node.name, node.labels()) {
            Ok(_) => Ok(()),
            Err(conflicts) => {
                let reasons = conflicts.iter().map(|conflict| conflict.reason().into()).collect();
                Err(Status::with_reasons(Code::UnschedulableAndUnresolvable, reasons))
            }
        }
    }
}

/// Volumes taken for a pod.
struct Taken {
    pod: Arc<PodInfo>,
    node: String,
    volumes: PodVolumes,
    timeout: Duration,
}

impl Reservation for Taken {
    fn pre_bind(&self, shell: Arc<Shell>) -> BoxFuture<Result<(), Status>> {
        let (pod, node, volumes, timeout) =
            (self.pod.clone(), self.node.clone(), self.volumes.clone(), self.timeout);
        Box::pin(async move {
            let bound = shell.bind_volumes(&pod, &node, volumes, timeout).await;
            bound.map_err(|message| Status::error(message).by("VolumeBinding"))
        })
    }

    fn unreserve(&self, cache: &mut Cache) {
        cache.volumes.revert(&self.volumes);
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[
            ExtensionPoint::PreFilter,
            ExtensionPoint::Filter,
            ExtensionPoint::PreScore,
            ExtensionPoint::Score,
            ExtensionPoint::Reserve,
            ExtensionPoint::PreBind,
        ]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        let changed = ActionType::ADD | ActionType::UPDATE;
        vec![
            Registration::new(EventResource::StorageClass, changed),
            Registration::new(EventResource::PersistentVolumeClaim, changed),
            Registration::new(EventResource::PersistentVolume, changed),
            Registration::new(EventResource::Node, ActionType::ADD | ActionType::UPDATE_NODE_LABEL),
            Registration::new(EventResource::CSIDriver, ActionType::UPDATE),
            Registration::new(EventResource::CSIStorageCapacity, changed),
        ]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, _: &Cache) -> QueueingHint {
        match &event.change {
            Change::PersistentVolumeClaim(_, Some(claim)) => {
                let meta = &claim.metadata;
                let own = meta.namespace.as_deref() == Some(&pod.key.namespace)
                    && pod.claims.iter().any(|used| Some(&used.name) == meta.name.as_ref());
                QueueingHint::queue_if(own)
            }
            Change::StorageClass(Some(old), Some(new)) => {
                QueueingHint::queue_if(old.allowed_topologies != new.allowed_topologies)
            }
            Change::CSIStorageCapacity(Some(old), Some(new)) => {
                QueueingHint::queue_if(volume_limit(new) > volume_limit(old))
            }
            Change::CSIDriver(Some(old), Some(new)) => {
                let tracked = |storage_capacity: Option<bool>| storage_capacity == Some(true);
                let (before, after) =
                    (tracked(old.spec.storage_capacity), tracked(new.spec.storage_capacity));
                QueueingHint::queue_if(before && !after)
            }
            _ => QueueingHint::Queue,
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        if pod.claims.is_empty() {
            return PreFilter::Skip;
        }
        match cache.volumes.claims_of(pod) {
            Err(reason) => PreFilter::Reject(Status::unresolvable(reason)),
            Ok(claims) if !claims.immediate.is_empty() => {
                PreFilter::Reject(Status::unresolvable("pod has unbound immediate PersistentVolumeClaims"))
            }
            Ok(claims) => PreFilter::Filter(Box::new(Claims { claims, cache })),
        }
    }

    fn reserve(
        &self,
        pod: &Arc<PodInfo>,
        node: &str,
        cache: &mut Cache,
    ) -> Result<Option<Box<dyn Reservation>>, Status> {
        if pod.claims.is_empty() {
            return Ok(None);
        }
        let claims = cache.volumes.claims_of(pod).map_err(Status::error)?;
        if claims.delayed.is_empty() {
            return Ok(None);
        }
        let Some(info) = cache.node_by_name(node) else {
            return Err(Status::error(format!("node {node:?} not found")));
        };
        let found = cache.volumes.find(&claims, &info.name, info.labels());
        let found = found.map_err(|conflicts| {
            let reasons = conflicts.iter().map(|conflict| conflict.reason().into()).collect();
            Status::with_reasons(Code::UnschedulableAndUnresolvable, reasons)
        })?;
        let volumes = cache.volumes.assume(&found, node);
        Ok(Some(Box::new(Taken { pod: pod.clone(), node: node.to_owned(), volumes, timeout: self.timeout })))
    }
}
