//! `pods/binding` (and the older `bindings`): the scheduler's decision written into a pod.

use bytes::Bytes;
use orlop_api::decode::Gvk;
use orlop_api::field::{self, Path};
use orlop_api::status::{ApiError, Status};
use orlop_json::{Value, json};

use super::Endpoint;
use crate::admission::ObjectKind;
use crate::http::body::Response;
use crate::registry::options::WriteOptions;
use crate::registry::update::Edit;
use crate::registry::{Call, CallOptions};

struct Bind {
    node: String,
    uid: String,
    annotations: Value,
    labels: Value,
}

impl Edit for Bind {
    fn edit(&self, pod: &mut Value) -> Result<(), ApiError> {
        let current = &*pod;
        let name = current["metadata"]["name"].as_str().unwrap_or("");
        let conflict = |message: String| ApiError::conflict("", "pods/binding", name, message);
        let uid = current["metadata"]["uid"].as_str().unwrap_or("");
        if !self.uid.is_empty() && self.uid != uid {
            let namespace = current["metadata"]["namespace"].as_str().unwrap_or("");
            return Err(ApiError::conflict(
                "",
                "pods",
                name,
                format!(
                    "StorageError: invalid object, Code: 4, Key: /registry/pods/{namespace}/{name}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {}, UID in object meta: {uid}",
                    self.uid
                ),
            ));
        }
        if crate::registry::object::is_deleting(current) {
            return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        let assigned = current["spec"]["nodeName"].as_str().unwrap_or("");
        if !assigned.is_empty() {
            return Err(conflict(format!(
                "pod {name} is already assigned to node {}",
                field::go_quote(assigned)
            )));
        }
        if current["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
            return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        pod["spec"]["nodeName"] = json!(self.node);
        for (field, added) in [("annotations", &self.annotations), ("labels", &self.labels)] {
            for (key, value) in added.as_object().into_iter().flatten() {
                if pod["metadata"].get(field).is_none_or(Value::is_null) {
                    pod["metadata"][field] = json!({});
                }
                pod["metadata"][field][key] = value.clone();
            }
        }
        set_condition(pod);
        // The pod's version is not the binder's: a status written meanwhile does not spoil the binding.
        if let Some(metadata) = pod["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        Ok(())
    }
}

/// `PodScheduled=True`.
fn set_condition(pod: &mut Value) {
    let mut conditions = match pod["status"]["conditions"].take() {
        Value::Array(conditions) => conditions,
        _ => Vec::new(),
    };
    let now = crate::registry::now();
    let scheduled = conditions.iter_mut().find(|c| c["type"] == "PodScheduled");
    match scheduled {
        Some(condition) => {
            if condition["status"] != "True" {
                condition["lastTransitionTime"] = json!(now);
            }
            condition["status"] = json!("True");
            if let Some(condition) = condition.as_object_mut() {
                condition.remove("reason");
                condition.remove("message");
            }
        }
        None => conditions.push(json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
        })),
    }
    pod["status"]["conditions"] = Value::Array(conditions);
}

pub(super) async fn create(endpoint: &Endpoint<'_>, body: Bytes, name: &str) -> Result<Response, ApiError> {
    let options = WriteOptions::parse(&endpoint.request.query, "CreateOptions", false)?;
    let mut binding = endpoint.decode(&body, &Gvk { group: "", version: "v1", kind: "Binding" }, &options)?;
    let asked = endpoint.write_call(&options, "");
    endpoint.admit_action(&asked, &mut binding, ObjectKind::new("", "v1", "Binding")).await?;
    let text = |path: &str| binding.pointer(path).and_then(Value::as_str).unwrap_or("").to_string();
    let bound_name = text("/metadata/name");
    if !name.is_empty() && name != bound_name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    let name = if name.is_empty() { bound_name } else { name.to_string() };
    let namespace = text("/metadata/namespace");
    if !namespace.is_empty() && namespace != endpoint.request.info.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let target = Path::new("target");
    let mut errors = Vec::new();
    if !matches!(text("/target/kind").as_str(), "" | "Node") {
        errors.push(field::not_supported(&target.child("kind"), text("/target/kind"), &["Node", "<empty>"]));
    }
    if text("/target/name").is_empty() {
        errors.push(field::required(&target.child("name"), ""));
    }
    if !errors.is_empty() {
        // Upstream does not wrap these: they arrive as a 500 without a reason.
        let messages = errors.iter().map(ToString::to_string);
        return Err(ApiError::generic(500, "", orlop_api::status::aggregate(messages)));
    }
    let registry = &endpoint.server.registry;
    let pods = registry.resources.of_kind("", "Pod").ok_or_else(ApiError::path_not_found)?;
    let call = Call {
        user: &endpoint.request.user,
        resource: &pods,
        namespace: &endpoint.request.info.namespace,
        name: &name,
        subresource: "binding",
        dry_run: options.dry_run,
        field_manager: "",
        warnings: &endpoint.request.warnings,
        annotations: Some(&endpoint.request.annotations),
        options: CallOptions::Write(&options),
    };
    let bind = Bind {
        node: text("/target/name"),
        uid: text("/metadata/uid"),
        annotations: binding["metadata"]["annotations"].clone(),
        labels: binding["metadata"]["labels"].clone(),
    };
    registry.update_raw(&call, &bind).await?;
    let mut status = Status::success(None);
    status.code = 201;
    Ok(endpoint.done(status))
}
