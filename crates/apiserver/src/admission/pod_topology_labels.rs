//! `PodTopologyLabels`: a pod that is bound to a node learns the node's zone and region as labels of its own, which
//! the downward API can show it (KEP-4742).

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::Value;

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::Registry;

const LABELS: [&str; 2] = ["topology.k8s.io/zone", "topology.k8s.io/region"];

pub(super) struct PodTopologyLabels;

/// The topology labels of a node; none when there is no such node.
fn of_node(registry: &Registry, node: &str) -> Vec<(&'static str, String)> {
    let Some(entry) = registry.resources.cache("", "Node").and_then(|nodes| nodes.get(node)) else {
        return Vec::new();
    };
    LABELS.iter().filter_map(|key| Some((*key, entry.label(key)?.to_string()))).collect()
}

#[async_trait]
impl Admission for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        let resource = request.call.resource;
        request.operation == Operation::Create
            && resource.group.is_empty()
            && resource.plural == "pods"
            && matches!(request.call.subresource, "" | "binding")
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        let object = &*request.object;
        let node = if request.call.subresource == "binding" {
            if object["target"].text("kind") != "Node" {
                return Ok(());
            }
            object["target"].text("name")
        } else {
            object["spec"].text("nodeName")
        };
        if node.is_empty() {
            return Ok(());
        }
        for (key, value) in of_node(registry, node) {
            if request.object.label(key).is_none() {
                orlop_api::meta::set_label(request.object, key, &value);
            }
        }
        if let Some(labels) = request.object.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.sort_keys();
        }
        Ok(())
    }
}
