//! `NodeRestriction`: a kubelet writes its own Node, Lease and the pods bound to it, and nobody else's.

use async_trait::async_trait;
use orlop_api::status::ApiError;
use serde_json::Value;

use super::{Admission, Operation, Request};
use crate::registry::Registry;

pub(super) struct NodeRestriction;

fn node_of(pod: &Value) -> &str {
    pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("")
}

#[async_trait]
impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        self.check(registry, request)
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        // Deletions run only the validating half here.
        if request.operation == Operation::Delete { self.check(registry, request) } else { Ok(()) }
    }
}

impl NodeRestriction {
    fn check(&self, _registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let Some(node) = request.call.user.node_name() else { return Ok(()) };
        let resource = request.call.resource;
        match (resource.group.as_str(), resource.plural.as_str(), request.call.subresource) {
            ("", "nodes", _) => {
                let named = if request.call.name.is_empty() {
                    request.object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("")
                } else {
                    request.call.name
                };
                if named != node {
                    let verb = match request.operation {
                        Operation::Create => "create",
                        _ => "modify",
                    };
                    return Err(
                        request.forbidden(format!("node {node:?} is not allowed to {verb} node {named:?}"))
                    );
                }
                if let (Operation::Update, Some(old)) = (request.operation, request.old)
                    && request.call.subresource.is_empty()
                    && request.object.pointer("/spec/taints") != old.pointer("/spec/taints")
                {
                    return Err(request.forbidden(format!("node {node:?} is not allowed to modify taints")));
                }
                Ok(())
            }
            ("", "pods", "") if request.operation == Operation::Create => {
                let mirror = request
                    .object
                    .pointer("/metadata/annotations")
                    .is_some_and(|a| a.get("kubernetes.io/config.mirror").is_some());
                if !mirror {
                    return Err(request.forbidden(format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods")));
                }
                if node_of(request.object) != node {
                    return Err(request.forbidden(format!(
                        "node {node:?} can only create pods with spec.nodeName set to itself"
                    )));
                }
                Ok(())
            }
            ("", "pods", "status") if request.operation == Operation::Update => match request.old {
                Some(old) if node_of(old) != node => Err(request.forbidden(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                ))),
                _ => Ok(()),
            },
            ("", "pods", "") if request.operation == Operation::Delete => match request.old {
                Some(old) if node_of(old) != node => Err(request.forbidden(format!(
                    "node {node:?} can only delete pods with spec.nodeName set to itself"
                ))),
                _ => Ok(()),
            },
            ("coordination.k8s.io", "leases", _) => {
                let named = if request.call.name.is_empty() {
                    request.object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("")
                } else {
                    request.call.name
                };
                if request.call.namespace != "kube-node-lease" {
                    return Err(request
                        .forbidden("can only access leases in the \"kube-node-lease\" system namespace"));
                }
                if named != node {
                    return Err(request
                        .forbidden("can only access node lease with the same name as the requesting node"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
