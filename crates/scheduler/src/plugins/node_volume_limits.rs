//! A node takes no more volumes of a CSI driver than the driver says it can.

use std::collections::{BTreeMap, BTreeSet};

use crate::cache::{Cache, NodeInfo};
use crate::framework::{
    ActionType, Change, ClusterEvent, EventResource, ExtensionPoint, Filter, Plugin, PreFilter, QueueingHint,
    Registration, Status,
};
use crate::pod_info::PodInfo;
use crate::volumes::{class_of_claim, volume_name};

pub struct NodeVolumeLimits;

/// A volume and its driver. Two claims of one volume are one; an unbound claim stands for the volume it will get.
type Attachable = (String, String);

struct Limits<'a> {
    wanted: BTreeSet<Attachable>,
    cache: &'a Cache,
}

fn volume_of_claim(key: &str, cache: &Cache) -> Option<Attachable> {
    let claim = cache.volumes.claim(key)?;
    match volume_name(claim) {
        Some(name) => volume_of(name, cache),
        None => {
            let class = cache.volumes.class(class_of_claim(claim))?;
            Some((class.provisioner.clone(), key.to_owned()))
        }
    }
}

fn volume_of(name: &str, cache: &Cache) -> Option<Attachable> {
    let source = cache.volumes.volume(name)?.spec.as_ref()?.csi.as_ref()?;
    Some((source.driver.clone(), source.volume_handle.clone()))
}

impl Filter for Limits<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        let volumes = &self.cache.volumes;
        let Some(csi_node) = volumes.csi_node(&node.name) else { return self.without_csi_node() };
        let limit = |driver: &str| {
            let driver = csi_node.spec.drivers.iter().find(|known| known.name == driver)?;
            driver.allocatable.as_ref()?.count
        };
        let limits: BTreeMap<&str, i32> =
            self.wanted.iter().filter_map(|(driver, _)| Some((driver.as_str(), limit(driver)?))).collect();
        for (driver, _) in &self.wanted {
            let known = csi_node.spec.drivers.iter().any(|known| known.name == *driver);
            if !known {
                self.needs_driver(driver)?;
            }
        }
        if limits.is_empty() {
            return Ok(());
        }
        let used = node.claims.keys().filter_map(|key| volume_of_claim(key, self.cache));
        let attached = volumes.attached(&node.name).filter_map(|(volume, attacher)| {
            volume_of(volume, self.cache).filter(|(driver, _)| driver == attacher)
        });
        let mut present: BTreeSet<Attachable> = used.chain(attached).collect();
        present.extend(self.wanted.iter().cloned());
        for (driver, limit) in limits {
            let count = present.iter().filter(|(own, _)| own == driver).count();
            let new = self.wanted.iter().any(|(own, _)| own == driver);
            if new && i32::try_from(count).unwrap_or(i32::MAX) > limit {
                return Err(Status::unschedulable("node(s) exceed max volume count"));
            }
        }
        Ok(())
    }
}

impl Limits<'_> {
    fn without_csi_node(&self) -> Result<(), Status> {
        self.wanted.iter().try_for_each(|(driver, _)| self.needs_driver(driver))
    }

    /// Some drivers want their pods only where they are known to run (KEP-5030).
    fn needs_driver(&self, driver: &str) -> Result<(), Status> {
        let prevents = self
            .cache
            .volumes
            .csi_driver(driver)
            .is_some_and(|driver| driver.spec.prevent_pod_scheduling_if_missing == Some(true));
        if prevents {
            return Err(Status::unresolvable(format!("{driver} CSI driver is not installed on the node")));
        }
        Ok(())
    }
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreFilter, ExtensionPoint::Filter]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![
            Registration::new(EventResource::CSINode, ActionType::ADD | ActionType::UPDATE),
            Registration::new(EventResource::AssignedPod, ActionType::DELETE),
            Registration::new(EventResource::PersistentVolumeClaim, ActionType::ADD),
            Registration::new(EventResource::VolumeAttachment, ActionType::DELETE),
        ]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, _: &Cache) -> QueueingHint {
        match &event.change {
            Change::Pod(Some(gone), None) => QueueingHint::queue_if(!gone.claims.is_empty()),
            Change::PersistentVolumeClaim(None, Some(claim)) => {
                let meta = &claim.metadata;
                let own = meta.namespace.as_deref() == Some(&pod.key.namespace)
                    && pod.claims.iter().any(|used| Some(&used.name) == meta.name.as_ref());
                QueueingHint::queue_if(own)
            }
            Change::CSINode(Some(old), Some(new)) => {
                let grown = new.spec.drivers.iter().any(|driver| {
                    let before = old.spec.drivers.iter().find(|known| known.name == driver.name);
                    let limit = |driver: &k8s_openapi::api::storage::v1::CSINodeDriver| {
                        driver.allocatable.as_ref().and_then(|allocatable| allocatable.count)
                    };
                    before.is_none_or(|before| limit(driver) > limit(before))
                });
                QueueingHint::queue_if(grown)
            }
            _ => QueueingHint::Queue,
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> PreFilter<'a> {
        let keys = pod.claims.iter().map(|used| format!("{}/{}", pod.key.namespace, used.name));
        let wanted: BTreeSet<_> = keys.filter_map(|key| volume_of_claim(&key, cache)).collect();
        if wanted.is_empty() {
            PreFilter::Skip
        } else {
            PreFilter::Filter(Box::new(Limits { wanted, cache }))
        }
    }
}
