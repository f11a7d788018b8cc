//! Volumes that only one pod, or one writer, may have: `ReadWriteOncePod` claims, and disks of some old providers.

use k8s_openapi::api::core::v1::Volume;

use crate::cache::{Cache, NodeInfo};
use crate::framework::{
    ActionType, Change, ClusterEvent, EventResource, ExtensionPoint, Filter, Plugin, PreFilter, QueueingHint,
    Registration, Status,
};
use crate::pod_info::PodInfo;

pub struct VolumeRestrictions;

struct Restrictions<'a> {
    pod: &'a PodInfo,
    disks: Vec<&'a Volume>,
    /// Keys of the pod's claims that only one pod may use.
    exclusive: Vec<String>,
    /// How many placed pods use one of them.
    conflicts: i64,
}

impl Restrictions<'_> {
    fn uses(&self, pod: &PodInfo) -> i64 {
        let used = pod.claims.iter().map(|claim| format!("{}/{}", pod.key.namespace, claim.name));
        i64::try_from(used.filter(|key| self.exclusive.contains(key)).count()).unwrap_or(i64::MAX)
    }
}

impl Filter for Restrictions<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        let taken =
            |disk: &&&Volume| node.pods.iter().any(|other| disks(other).any(|used| conflict(disk, used)));
        if self.disks.iter().any(|disk| taken(&disk)) {
            return Err(Status::unschedulable("node(s) had no available disk"));
        }
        if self.conflicts > 0 {
            return Err(Status::unschedulable(
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            ));
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, _: &NodeInfo) {
        if pod.uid != self.pod.uid {
            self.conflicts += self.uses(pod);
        }
    }

    fn remove_pod(&mut self, pod: &PodInfo, _: &NodeInfo) {
        if pod.uid != self.pod.uid {
            self.conflicts -= self.uses(pod);
        }
    }
}

/// The volumes that are restricted by their kind.
fn disks(pod: &PodInfo) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    volumes.filter(|volume| {
        volume.gce_persistent_disk.is_some()
            || volume.aws_elastic_block_store.is_some()
            || volume.iscsi.is_some()
            || volume.rbd.is_some()
    })
}

/// Whether both cannot be used on one node.
fn conflict(one: &Volume, other: &Volume) -> bool {
    let reading = |one: Option<bool>, other: Option<bool>| one == Some(true) && other == Some(true);
    if let (Some(one), Some(other)) = (&one.gce_persistent_disk, &other.gce_persistent_disk) {
        return one.pd_name == other.pd_name && !reading(one.read_only, other.read_only);
    }
    if let (Some(one), Some(other)) = (&one.aws_elastic_block_store, &other.aws_elastic_block_store) {
        return one.volume_id == other.volume_id;
    }
    if let (Some(one), Some(other)) = (&one.iscsi, &other.iscsi) {
        return one.iqn == other.iqn && !reading(one.read_only, other.read_only);
    }
    if let (Some(one), Some(other)) = (&one.rbd, &other.rbd) {
        return one.monitors.iter().any(|monitor| other.monitors.contains(monitor))
            && one.pool == other.pool
            && one.image == other.image
            && !reading(one.read_only, other.read_only);
    }
    false
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreFilter, ExtensionPoint::Filter]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![
            Registration::new(EventResource::AssignedPod, ActionType::DELETE),
            Registration::new(EventResource::Node, ActionType::ADD),
            Registration::new(EventResource::PersistentVolumeClaim, ActionType::ADD | ActionType::UPDATE),
        ]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, _: &Cache) -> QueueingHint {
        match &event.change {
            Change::Pod(Some(gone), None) => {
                let same_claim = gone.key.namespace == pod.key.namespace
                    && gone.claims.iter().any(|claim| pod.claims.iter().any(|own| own.name == claim.name));
                let same_disk = disks(gone).any(|used| disks(pod).any(|disk| conflict(disk, used)));
                QueueingHint::queue_if(same_claim || same_disk)
            }
            Change::PersistentVolumeClaim(_, Some(claim)) => {
                let meta = &claim.metadata;
                let own = meta.namespace.as_deref() == Some(&pod.key.namespace)
                    && pod.claims.iter().any(|used| Some(&used.name) == meta.name.as_ref());
                QueueingHint::queue_if(own)
            }
            _ => QueueingHint::Queue,
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        let disks: Vec<_> = disks(pod).collect();
        let mut exclusive = Vec::new();
        for used in &pod.claims {
            let key = format!("{}/{}", pod.key.namespace, used.name);
            let Some(claim) = cache.volumes.claim(&key) else {
                let message = format!("persistentvolumeclaim \"{}\" not found", used.name);
                return PreFilter::Reject(Status::unresolvable(message));
            };
            let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
            if modes.into_iter().flatten().any(|mode| mode == "ReadWriteOncePod") {
                exclusive.push(key);
            }
        }
        if disks.is_empty() && exclusive.is_empty() {
            return PreFilter::Skip;
        }
        let conflicts = exclusive.iter().map(|key| i64::from(cache.claim_uses(key))).sum();
        PreFilter::Filter(Box::new(Restrictions { pod, disks, exclusive, conflicts }))
    }
}
