//! NodeUnschedulable: a cordoned node takes only pods that tolerate `node.kubernetes.io/unschedulable`.

use k8s_openapi::api::core::v1::Taint;

use super::taint_toleration::tolerates;
use crate::cache::{Cache, NodeInfo};
use crate::framework::{ClusterEvent, Filter, FilterPlugin, Rejection};
use crate::pod_info::PodInfo;

pub struct NodeUnschedulable;

impl FilterPlugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn events(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeAdded, ClusterEvent::NodeTaints]
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Cache) -> Filter<'a> {
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        let tolerations = pod.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        if tolerations.iter().any(|toleration| tolerates(toleration, &taint)) {
            return Filter::Skip;
        }
        Filter::Check(Box::new(|node: &NodeInfo| {
            let spec = node.node.as_ref().and_then(|node| node.spec.as_ref());
            if spec.and_then(|spec| spec.unschedulable) != Some(true) {
                return Ok(());
            }
            let reason = "node(s) were unschedulable".to_owned();
            Err(Rejection { plugin: "NodeUnschedulable", reasons: vec![reason], resolvable: false })
        }))
    }
}
