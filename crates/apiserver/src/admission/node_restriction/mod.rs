//! `NodeRestriction`: a kubelet writes its own Node, Lease, CSINode and ResourceSlices, the status of the pods bound to
//! it and the mirrors of its static pods, and nothing else. What it may read is the Node authorizer's business.

mod labels;
mod pods;
mod tokens;

use async_trait::async_trait;
use orlop_api::equality::semantic_equal;
use orlop_api::field::go_quote;
use orlop_api::status::ApiError;
use orlop_json::Value;

use super::certificates::subject_of;
use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::{Registry, object};

pub(super) struct NodeRestriction;

/// The operation as upstream prints it.
fn operation(request: &Request<'_>) -> &'static str {
    match request.operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// The name of the object the request is about.
fn named<'a>(request: &'a Request<'_>) -> &'a str {
    if request.operation == Operation::Create {
        object::meta(request.object, "name")
    } else {
        request.call.name
    }
}

#[async_trait]
impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation != Operation::Connect && request.call.user.node_name().is_some()
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        let Some(node) = request.call.user.node_name() else { return Ok(()) };
        if node.is_empty() {
            let user = go_quote(&request.call.user.name);
            return Err(request.forbidden(format!("could not determine node from user {user}")));
        }
        let resource = request.call.resource;
        let subresource = request.call.subresource;
        let checked = match (resource.group.as_str(), resource.plural.as_str(), subresource) {
            ("", "pods", "") => return pods::check(registry, request, node),
            ("", "pods", "status") => pods::check_status(request, node),
            ("", "pods", "eviction") => return pods::check_eviction(registry, request, node),
            ("", "pods", other) => Err(format!(
                "unexpected pod subresource {}, only 'status' and 'eviction' are allowed",
                go_quote(other)
            )),
            ("", "nodes", _) => check_node(request, node),
            ("", "persistentvolumeclaims", "status") => check_claim_status(request, node),
            ("", "persistentvolumeclaims", _) => Err("may only update PVC status".to_string()),
            ("", "serviceaccounts", "token") if request.operation == Operation::Create => {
                return tokens::check(registry, request, node);
            }
            ("coordination.k8s.io", "leases", _) => check_lease(request, node),
            ("storage.k8s.io", "csinodes", _) if named(request) != node => {
                Err("can only access CSINode with the same name as the requesting node".to_string())
            }
            ("resource.k8s.io", "resourceslices", _) => check_slice(request, node),
            ("certificates.k8s.io", "certificatesigningrequests", _) => check_csr(request, node),
            _ => Ok(()),
        };
        checked.map_err(|message| request.forbidden(message))
    }
}

fn check_node(request: &Request<'_>, node: &str) -> Result<(), String> {
    let quoted = go_quote(node);
    let requested = match request.call.name {
        "" => named(request),
        name => name,
    };
    if requested != node {
        return Err(format!("node {quoted} is not allowed to modify node {}", go_quote(requested)));
    }
    let new = &*request.object;
    let field = |node: &Value, field: &str| node["spec"].get(field).cloned().unwrap_or(Value::Null);
    match (request.operation, request.old) {
        (Operation::Create, _) => {
            if new["spec"].has("configSource") {
                return Err(format!(
                    "node {quoted} is not allowed to create pods with a non-nil configSource"
                ));
            }
            let forbidden = labels::forbidden(new, &Value::Null);
            if !forbidden.is_empty() {
                return Err(format!(
                    "node {quoted} is not allowed to set the following labels: {}",
                    forbidden.join(", ")
                ));
            }
        }
        (Operation::Update, Some(old)) => {
            if new["spec"].has("configSource")
                && !semantic_equal(&field(new, "configSource"), &field(old, "configSource"))
            {
                return Err(format!(
                    "node {quoted} is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            if !semantic_equal(&field(new, "taints"), &field(old, "taints")) {
                return Err(format!("node {quoted} is not allowed to modify taints"));
            }
            if new["metadata"].items("ownerReferences") != old["metadata"].items("ownerReferences") {
                return Err(format!("node {quoted} is not allowed to modify ownerReferences"));
            }
            let forbidden = labels::forbidden(new, old);
            if !forbidden.is_empty() {
                return Err(format!("is not allowed to modify labels: {}", forbidden.join(", ")));
            }
        }
        _ => {}
    }
    Ok(())
}

/// What a kubelet may say of a claim: its size, what happens to it, and nothing else.
fn check_claim_status(request: &Request<'_>, node: &str) -> Result<(), String> {
    let (Operation::Update, Some(old)) = (request.operation, request.old) else {
        return Err(format!("unexpected operation {}", go_quote(operation(request))));
    };
    let strip = |claim: &Value| {
        let mut claim = claim.clone();
        for (part, fields) in [
            ("metadata", &["resourceVersion", "managedFields"][..]),
            ("status", &["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"][..]),
        ] {
            if let Some(part) = claim.get_mut(part).and_then(Value::as_object_mut) {
                for field in fields {
                    part.remove(field);
                }
            }
        }
        claim
    };
    let (new, old) = (strip(request.object), strip(old));
    if semantic_equal(&new, &old) {
        return Ok(());
    }
    Err(format!(
        "node {} is not allowed to update fields other than status.quantity and status.conditions: {}",
        go_quote(node),
        orlop_kinds::differences(&old, &new)
    ))
}

fn check_lease(request: &Request<'_>, node: &str) -> Result<(), String> {
    const NAMESPACE: &str = "kube-node-lease";
    if request.call.namespace != NAMESPACE {
        return Err(format!("can only access leases in the {} system namespace", go_quote(NAMESPACE)));
    }
    if named(request) != node {
        return Err("can only access node lease with the same name as the requesting node".to_string());
    }
    Ok(())
}

fn check_slice(request: &Request<'_>, node: &str) -> Result<(), String> {
    let of = |slice: &Value| slice["spec"].text("nodeName") == node;
    match (request.operation, request.old) {
        (Operation::Create, _) if !of(request.object) => {
            Err("can only create ResourceSlice with the same NodeName as the requesting node".to_string())
        }
        (Operation::Delete, Some(old)) if !of(old) => {
            Err("can only delete ResourceSlice with the same NodeName as the requesting node".to_string())
        }
        _ => Ok(()),
    }
}

/// A kubelet asks for certificates in its own name.
fn check_csr(request: &Request<'_>, node: &str) -> Result<(), String> {
    let spec = &request.object["spec"];
    let kubelets = matches!(
        spec.text("signerName"),
        "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet"
    );
    if request.operation != Operation::Create || !kubelets {
        return Ok(());
    }
    let (common_name, _) =
        subject_of(spec.text("request")).map_err(|error| format!("unable to parse csr: {error}"))?;
    if common_name == format!("system:node:{node}") {
        return Ok(());
    }
    Err(format!("can only create a node CSR with CN=system:node:{node}"))
}
