//! Two pods cannot have one port of a host.

use crate::cache::{Cache, NodeInfo};
use crate::framework::{
    ActionType, Change, ClusterEvent, EventResource, ExtensionPoint, Filter, Plugin, PreFilter, QueueingHint,
    Registration, Status,
};
use crate::pod_info::{HostPort, PodInfo};

pub struct NodePorts;

struct Wanted<'a>(&'a [HostPort]);

impl Filter for Wanted<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        if conflict(self.0, &node.used_ports) {
            return Err(Status::unschedulable("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        true
    }
}

fn conflict(wanted: &[HostPort], used: &[HostPort]) -> bool {
    wanted.iter().any(|port| used.iter().any(|used| used.conflicts(port)))
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::PreFilter, ExtensionPoint::Filter]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![
            Registration::new(EventResource::AssignedPod, ActionType::DELETE),
            Registration::new(EventResource::Node, ActionType::ADD),
        ]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, _: &Cache) -> QueueingHint {
        match &event.change {
            Change::Pod(Some(gone), None) => {
                QueueingHint::queue_if(conflict(&pod.host_ports, &gone.host_ports))
            }
            _ => QueueingHint::Queue,
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, _: &'a Cache) -> PreFilter<'a> {
        match pod.host_ports.as_slice() {
            [] => PreFilter::Skip,
            ports => PreFilter::Filter(Box::new(Wanted(ports))),
        }
    }
}
