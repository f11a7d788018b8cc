//! Cordoned nodes take only pods that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use crate::cache::{Cache, NodeInfo};
use crate::framework::{
    ActionType, Change, ClusterEvent, EventResource, ExtensionPoint, Filter, Plugin, PreFilter, QueueingHint,
    Registration, Status,
};
use crate::pod_info::PodInfo;
use crate::selector::tolerates;

pub struct NodeUnschedulable;

struct Schedulable;

impl Filter for Schedulable {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        if node.unschedulable { Err(Status::unresolvable("node(s) were unschedulable")) } else { Ok(()) }
    }

    fn is_local(&self) -> bool {
        true
    }
}

fn tolerates_unschedulable(pod: &PodInfo) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let tolerations = pod.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    tolerations.iter().any(|toleration| tolerates(toleration, &taint))
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::Filter]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![
            Registration::new(EventResource::Node, ActionType::ADD | ActionType::UPDATE_NODE_TAINT),
            Registration::new(EventResource::TargetPod, ActionType::UPDATE_POD_TOLERATION),
        ]
    }

    fn queueing_hint(&self, pod: &PodInfo, event: &ClusterEvent, _: &Cache) -> QueueingHint {
        match &event.change {
            Change::Node(_, Some(node)) => {
                let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
                QueueingHint::queue_if(!cordoned || tolerates_unschedulable(pod))
            }
            _ => QueueingHint::queue_if(tolerates_unschedulable(pod)),
        }
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, _: &'a Cache) -> PreFilter<'a> {
        if tolerates_unschedulable(pod) { PreFilter::Skip } else { PreFilter::Filter(Box::new(Schedulable)) }
    }
}
