//! NodeName: a pod that names its node goes there or nowhere.

use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, Filter, FilterPlugin, Rejection};
use crate::pod_info::PodInfo;

pub struct NodeName;

impl FilterPlugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn events(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeAdded]
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Cache) -> Filter<'a> {
        let Some(wanted) = pod.node_name() else { return Filter::Skip };
        Filter::Check(Box::new(move |node: &NodeInfo| {
            if node.name == wanted {
                return Ok(());
            }
            let reason = "node(s) didn't match the requested node name".to_owned();
            Err(Rejection { plugin: "NodeName", reasons: vec![reason], resolvable: false })
        }))
    }
}
