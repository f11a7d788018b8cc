//! Volumes that carry zone labels are used in their zone.

use std::collections::BTreeSet;

use crate::cache::{Cache, NodeInfo};
use crate::framework::{
    ActionType, Change, ClusterEvent, EventResource, ExtensionPoint, Filter, Plugin, PreFilter, QueueingHint,
    Registration, Status,
};
use crate::pod_info::PodInfo;
use crate::volumes::{class_of_claim, volume_name};

pub struct VolumeZone;

/// Labels of zones and regions, with the names they had before.
const LABELS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
];

/// A label and its other name, and the values that a volume can be used with.
struct Zones(Vec<(&'static str, &'static str, BTreeSet<String>)>);

impl Filter for Zones {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        let labels = node.labels();
        // A node without any zone is in all of them.
        if !LABELS.iter().any(|(label, _)| labels.contains_key(*label)) {
            return Ok(());
        }
        for (label, other, zones) in &self.0 {
            let here = labels.get(*label).or_else(|| labels.get(*other));
            if !here.is_some_and(|here| zones.contains(here)) {
                return Err(Status::unresolvable("node(s) had no available volume zone"));
            }
        }
        Ok(())
    }
}

fn zones(pod: &PodInfo, cache: &Cache) -> Result<Zones, Status> {
    let mut zones = Vec::new();
    for used in &pod.claims {
        let key = format!("{}/{}", pod.key.namespace, used.name);
        let Some(claim) = cache.volumes.claim(&key) else {
            return Err(Status::unresolvable(format!("persistentvolumeclaim \"{}\" not found", used.name)));
        };
        let Some(name) = volume_name(claim) else {
            let class = class_of_claim(claim);
            if class.is_empty() {
                return Err(Status::unresolvable(
                    "PersistentVolumeClaim had no pv name and storageClass name",
                ));
            }
            let Some(class) = cache.volumes.class(class) else {
                return Err(Status::unresolvable(format!(
                    "storageclass.storage.k8s.io \"{class}\" not found"
                )));
            };
            // It has no volume yet, and gets one where the pod goes.
            match class.volume_binding_mode.as_deref() {
                Some("WaitForFirstConsumer") => continue,
                _ => return Err(Status::unresolvable("PersistentVolume had no name")),
            }
        };
        let Some(volume) = cache.volumes.volume(name) else {
            return Err(Status::unresolvable(format!("persistentvolume \"{name}\" not found")));
        };
        for (label, other) in LABELS {
            if let Some(value) = volume.metadata.labels.as_ref().and_then(|labels| labels.get(label)) {
                zones.push((label, other, value.split("__").map(str::to_owned).collect()));
            }
        }
    }
    Ok(Zones(zones))
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreFilter, ExtensionPoint::Filter]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        let changed = ActionType::ADD | ActionType::UPDATE;
        vec![
            Registration::new(EventResource::StorageClass, ActionType::ADD),
            Registration::new(EventResource::Node, ActionType::ADD | ActionType::UPDATE_NODE_LABEL),
            Registration::new(EventResource::PersistentVolumeClaim, changed),
            Registration::new(EventResource::PersistentVolume, changed),
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
            _ => QueueingHint::Queue,
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        if pod.claims.is_empty() {
            return PreFilter::Skip;
        }
        match zones(pod, cache) {
            Err(status) => PreFilter::Reject(status),
            Ok(zones) if zones.0.is_empty() => PreFilter::Skip,
            Ok(zones) => PreFilter::Filter(Box::new(zones)),
        }
    }
}
