//! NodePorts: two pods that want the same port of the host do not share a node.

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, Filter, FilterPlugin, Rejection};
use crate::pod_info::PodInfo;

pub struct NodePorts;

impl FilterPlugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn events(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeAdded, ClusterEvent::PlacedPodDeleted]
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Cache) -> Filter<'a> {
        if pod.host_ports.is_empty() {
            return Filter::Skip;
        }
        Filter::Check(Box::new(|node: &NodeInfo| {
            let mut taken = node.pods.values().flat_map(|placed| &placed.host_ports);
            if !taken.any(|port| pod.host_ports.iter().any(|wanted| wanted.conflicts(port))) {
                return Ok(());
            }
            let reason = "node(s) didn't have free ports for the requested pod ports".to_owned();
            Err(Rejection { plugin: "NodePorts", reasons: vec![reason], resolvable: true })
        }))
    }
}
