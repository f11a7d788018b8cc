//! Pods of a node: mirrors of static pods, which refer to nothing, and the status of what is bound to it.

use orlop_api::field::go_quote;
use orlop_api::status::ApiError;
use orlop_json::Value;

use super::operation;
use crate::admission::fields::Fields as _;
use crate::admission::pod_refs::refers_to_secrets;
use crate::admission::{Operation, Request};
use crate::registry::{Registry, object};

const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn node_of(pod: &Value) -> &str {
    pod["spec"].text("nodeName")
}

fn pod_of(registry: &Registry, namespace: &str, name: &str) -> Result<Value, ApiError> {
    registry
        .resources
        .cache("", "Pod")
        .and_then(|pods| pods.get(&format!("{namespace}/{name}")))
        .map(|entry| entry.value())
        .ok_or_else(|| ApiError::not_found("", "pods", name))
}

/// Creation and deletion of pods.
pub(super) fn check(registry: &Registry, request: &Request<'_>, node: &str) -> Result<(), ApiError> {
    let quoted = go_quote(node);
    match (request.operation, request.old) {
        (Operation::Create, _) => {
            check_create(request, &quoted, node).map_err(|message| request.forbidden(message))?;
            check_owner(registry, request, node)?;
            check_references(request.object, &quoted).map_err(|message| request.forbidden(message))
        }
        (Operation::Delete, Some(old)) if node_of(old) == node => Ok(()),
        (Operation::Delete, _) => {
            Err(request
                .forbidden(format!("node {quoted} can only delete pods with spec.nodeName set to itself")))
        }
        _ => Err(request.forbidden(format!(
            "unexpected operation {}, node {quoted} can only create and delete mirror pods",
            go_quote(operation(request))
        ))),
    }
}

fn check_create(request: &Request<'_>, quoted: &str, node: &str) -> Result<(), String> {
    let pod = &*request.object;
    if pod.annotation(MIRROR).is_none() {
        return Err(format!(
            "pod does not have {} annotation, node {quoted} can only create mirror pods",
            go_quote(MIRROR)
        ));
    }
    if node_of(pod) != node {
        return Err(format!("node {quoted} can only create pods with spec.nodeName set to itself"));
    }
    let owner = match pod["metadata"].items("ownerReferences") {
        [] => {
            return Err(format!("node {quoted} can only create pods with an owner reference set to itself"));
        }
        [owner] => owner,
        _ => {
            return Err(format!(
                "node {quoted} can only create pods with a single owner reference set to itself"
            ));
        }
    };
    if owner.text("apiVersion") != "v1" || owner.text("kind") != "Node" || owner.text("name") != node {
        return Err(format!("node {quoted} can only create pods with an owner reference set to itself"));
    }
    if owner.flag("controller") != Some(true) {
        return Err(format!(
            "node {quoted} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner.flag("blockOwnerDeletion") == Some(true) {
        return Err(format!("node {quoted} must not set blockOwnerDeletion on an owner reference"));
    }
    Ok(())
}

/// The owner must be the node that is there now.
fn check_owner(registry: &Registry, request: &Request<'_>, node: &str) -> Result<(), ApiError> {
    let stored = registry
        .resources
        .cache("", "Node")
        .and_then(|nodes| nodes.get(node))
        .ok_or_else(|| ApiError::not_found("", "nodes", node))?
        .value();
    let (named, actual) = (
        request.object["metadata"].items("ownerReferences").first().map_or("", |owner| owner.text("uid")),
        object::meta(&stored, "uid"),
    );
    if named == actual {
        return Ok(());
    }
    Err(request.forbidden(format!("node {node} UID mismatch: expected {named} got {actual}")))
}

fn check_references(pod: &Value, quoted: &str) -> Result<(), String> {
    let refuse = |what: &str| Err(format!("node {quoted} can not create pods that reference {what}"));
    let spec = &pod["spec"];
    let volumes = spec.items("volumes");
    let projected = |source: &str| {
        volumes.iter().any(|volume| volume["projected"].items("sources").iter().any(|s| s.has(source)))
    };
    let environment = |from: &str, of: &str| {
        ["initContainers", "containers", "ephemeralContainers"].iter().flat_map(|list| spec.items(list)).any(
            |container| {
                container.items("envFrom").iter().any(|source| source.has(from))
                    || container.items("env").iter().any(|variable| variable["valueFrom"].has(of))
            },
        )
    };
    if !spec.text("serviceAccountName").is_empty() {
        return refuse("a service account");
    }
    if refers_to_secrets(spec) {
        return refuse("secrets");
    }
    if volumes.iter().any(|volume| volume.has("configMap"))
        || projected("configMap")
        || environment("configMapRef", "configMapKeyRef")
    {
        return refuse("configmaps");
    }
    if projected("clusterTrustBundle") {
        return refuse("clustertrustbundles");
    }
    if volumes.iter().any(|volume| volume.has("persistentVolumeClaim")) {
        return refuse("persistentvolumeclaims");
    }
    if !spec.items("resourceClaims").is_empty() {
        return refuse("resourceclaims");
    }
    Ok(())
}

/// Status of the node's own pods, and nothing that the scheduler or controllers write there.
pub(super) fn check_status(request: &Request<'_>, node: &str) -> Result<(), String> {
    let quoted = go_quote(node);
    let (Operation::Update, Some(old)) = (request.operation, request.old) else {
        return Err(format!("unexpected operation {}", go_quote(operation(request))));
    };
    if node_of(old) != node {
        return Err(format!(
            "node {quoted} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    let new = &*request.object;
    let empty = orlop_json::Map::new();
    let labels = |pod: &Value| pod["metadata"].map("labels").cloned().unwrap_or(empty.clone());
    if labels(new) != labels(old) {
        return Err(format!("node {quoted} cannot update labels through pod status"));
    }
    let claims = |pod: &Value| -> Vec<(String, Option<String>)> {
        let statuses = pod["status"].items("resourceClaimStatuses").iter();
        let claim = |s: &Value| s.get("resourceClaimName").and_then(Value::as_str).map(String::from);
        statuses.map(|status| (status.text("name").to_string(), claim(status))).collect()
    };
    if claims(new) != claims(old) {
        return Err(format!("node {quoted} cannot update resource claim statues"));
    }
    let extended = |pod: &Value| pod["status"].get("extendedResourceClaimStatus").cloned();
    if extended(new) != extended(old) {
        return Err(format!("node {quoted} cannot update extended resource claim status"));
    }
    Ok(())
}

/// Eviction of the node's own pods.
pub(super) fn check_eviction(registry: &Registry, request: &Request<'_>, node: &str) -> Result<(), ApiError> {
    if request.operation != Operation::Create {
        return Err(request.forbidden(format!("unexpected operation {}", operation(request))));
    }
    let name = request.name();
    if name.is_empty() {
        return Err(request.forbidden("could not determine pod from request data"));
    }
    if node_of(&pod_of(registry, request.call.namespace, name)?) != node {
        return Err(
            request.forbidden(format!("node {node} can only evict pods with spec.nodeName set to itself"))
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn what_a_mirror_may_not_refer_to() {
        let check = |spec: Value, expected: Option<&str>| {
            let expected =
                expected.map(|what| format!("node \"n\" can not create pods that reference {what}"));
            assert_eq!(check_references(&json!({"spec": spec}), "\"n\"").err(), expected, "{spec}");
        };
        check(json!({"containers": [{"name": "c"}], "volumes": [{"name": "v", "hostPath": {}}]}), None);
        check(json!({"serviceAccountName": "x"}), Some("a service account"));
        check(json!({"volumes": [{"secret": {"secretName": "s"}}]}), Some("secrets"));
        check(json!({"containers": [{"envFrom": [{"configMapRef": {"name": "x"}}]}]}), Some("configmaps"));
        check(json!({"volumes": [{"projected": {"sources": [{"configMap": {}}]}}]}), Some("configmaps"));
        check(
            json!({"volumes": [{"projected": {"sources": [{"clusterTrustBundle": {}}]}}]}),
            Some("clustertrustbundles"),
        );
        check(json!({"volumes": [{"persistentVolumeClaim": {}}]}), Some("persistentvolumeclaims"));
    }
}
