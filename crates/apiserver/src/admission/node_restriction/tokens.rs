//! Tokens that a kubelet asks for: bound to a pod on its node, and for an audience that the pod speaks of.

use orlop_api::field::go_quote;
use orlop_api::status::ApiError;
use orlop_json::Value;

use super::pods::node_of;
use crate::admission::Request;
use crate::admission::fields::Fields as _;
use crate::admission::permission::{Action, may};
use crate::registry::{Registry, object};

pub(super) fn check(registry: &Registry, request: &Request<'_>, node: &str) -> Result<(), ApiError> {
    let spec = &request.object["spec"];
    let bound = &spec["boundObjectRef"];
    if bound.text("apiVersion") != "v1" || bound.text("kind") != "Pod" || bound.text("name").is_empty() {
        return Err(request.forbidden("node requested token not bound to a pod"));
    }
    let uid = bound.text("uid");
    if uid.is_empty() {
        return Err(request.forbidden("node requested token with a pod binding without a uid"));
    }
    let (namespace, name) = (request.call.namespace, bound.text("name"));
    let pod = registry
        .resources
        .cache("", "Pod")
        .and_then(|pods| pods.get(&format!("{namespace}/{name}")))
        .ok_or_else(|| ApiError::not_found("", "pods", name))?
        .value();
    if object::meta(&pod, "uid") != uid {
        return Err(request.forbidden(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        )));
    }
    if node_of(&pod) != node {
        return Err(request.forbidden("node requested token bound to a pod scheduled on a different node"));
    }
    check_audience(registry, request, &pod).map_err(|message| request.forbidden(message))
}

/// A token's audience is one that the pod's volumes name, or that the node has been allowed to ask for.
fn check_audience(registry: &Registry, request: &Request<'_>, pod: &Value) -> Result<(), String> {
    let audience = match request.object["spec"].items("audiences") {
        [] => "",
        [audience] => audience.as_str().unwrap_or(""),
        _ => return Err("node may only request 0 or 1 audiences".to_string()),
    };
    if pod["spec"].items("volumes").iter().any(|volume| names_audience(registry, pod, volume, audience)) {
        return Ok(());
    }
    let action = Action {
        verb: "request-serviceaccounts-token-audience",
        group: "",
        resource: audience,
        subresource: "",
        namespace: request.call.namespace,
        name: request.call.name,
    };
    may(registry, request, &action).map_err(|_| {
        format!(
            "audience {} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            go_quote(audience),
            request.call.user.name
        )
    })
}

/// Whether a volume brings a token for this audience into the pod, itself or by its driver.
fn names_audience(registry: &Registry, pod: &Value, volume: &Value, audience: &str) -> bool {
    let projected = volume["projected"].items("sources").iter().any(|source| {
        source.has("serviceAccountToken") && source["serviceAccountToken"].text("audience") == audience
    });
    if projected {
        return true;
    }
    let namespace = object::meta(pod, "namespace");
    let driver = if volume.has("csi") {
        Some(volume["csi"].text("driver").to_string())
    } else if volume.has("persistentVolumeClaim") {
        driver_of_claim(registry, namespace, volume["persistentVolumeClaim"].text("claimName"))
    } else if volume.has("ephemeral") {
        let claim = format!("{}-{}", object::meta(pod, "name"), volume.text("name"));
        driver_of_claim(registry, namespace, &claim)
    } else {
        None
    };
    let Some(driver) = driver else { return false };
    let Some(drivers) = registry.resources.cache("storage.k8s.io", "CSIDriver") else { return false };
    drivers.get(&driver).is_some_and(|entry| {
        entry.value()["spec"].items("tokenRequests").iter().any(|token| token.text("audience") == audience)
    })
}

/// The CSI driver behind a claim that is bound.
fn driver_of_claim(registry: &Registry, namespace: &str, claim: &str) -> Option<String> {
    let claims = registry.resources.cache("", "PersistentVolumeClaim")?;
    let claim = claims.get(&format!("{namespace}/{claim}"))?.value();
    let volume = claim["spec"].text("volumeName");
    let volume = registry.resources.cache("", "PersistentVolume")?.get(volume)?.value();
    volume["spec"].has("csi").then(|| volume["spec"]["csi"].text("driver").to_string())
}
