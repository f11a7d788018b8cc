//! A pod that names its node runs there or nowhere.

use crate::cache::{Cache, NodeInfo};
use crate::framework::{
    ActionType, EventResource, ExtensionPoint, Filter, Plugin, PreFilter, Registration, Status,
};
use crate::pod_info::PodInfo;

pub struct NodeName;

struct Named<'a>(&'a str);

impl Filter for Named<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Status> {
        if node.name == self.0 {
            return Ok(());
        }
        Err(Status::unresolvable("node(s) didn't match the requested node name"))
    }

    fn is_local(&self) -> bool {
        true
    }
}

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn extension_points(&self) -> &'static [ExtensionPoint] {
        &[ExtensionPoint::Filter]
    }

    fn events_to_register(&self) -> Vec<Registration> {
        vec![Registration::new(EventResource::Node, ActionType::ADD)]
    }

    fn pre_filter<'a>(&'a self, pod: &'a PodInfo, _: &'a Cache) -> PreFilter<'a> {
        match pod.node_name() {
            Some(name) => PreFilter::Filter(Box::new(Named(name))),
            None => PreFilter::Skip,
        }
    }
}
