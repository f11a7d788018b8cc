//! `scale`: the number of replicas of a workload behind one uniform object, `autoscaling/v1` Scale.

use bytes::Bytes;
use orlop_api::decode::{self, Gvk, Media};
use orlop_api::field::{self, Path};
use orlop_api::status::ApiError;
use serde_json::{Value, json};

use super::Endpoint;
use crate::admission::ObjectKind;
use crate::http::body::{self, Response};
use crate::http::negotiate::media_type;
use crate::registry::Call;
use crate::registry::options::WriteOptions;
use crate::registry::patch::{PatchKind, apply_plain};
use crate::registry::render;
use crate::registry::update::{Change, View};

const GVK: Gvk<'static> = Gvk { group: "autoscaling", version: "v1", kind: "Scale" };

/// The Scale of a workload.
fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut out = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {},
        "spec": {},
        "status": {"replicas": object.pointer("/status/replicas").and_then(Value::as_i64).unwrap_or(0)},
    });
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            out["metadata"][field] = value.clone();
        }
    }
    let replicas = object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if replicas != 0 {
        out["spec"]["replicas"] = json!(replicas);
    }
    let selector = selector_text(&object["spec"]["selector"]);
    if !selector.is_empty() {
        out["status"]["selector"] = json!(selector);
    }
    out
}

/// A label selector object in the string form; a plain map is that of a replication controller.
fn selector_text(selector: &Value) -> String {
    let pairs = |map: &Value| -> Vec<String> {
        map.as_object()
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some(format!("{k}={}", v.as_str()?)))
            .collect()
    };
    let mut terms = if selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some() {
        pairs(&selector["matchLabels"])
    } else {
        pairs(selector)
    };
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or("");
        let mut values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        match expression["operator"].as_str() {
            Some("In") => terms.push(format!("{key} in ({})", values.join(","))),
            Some("NotIn") => terms.push(format!("{key} notin ({})", values.join(","))),
            Some("Exists") => terms.push(key.to_string()),
            Some("DoesNotExist") => terms.push(format!("!{key}")),
            _ => {}
        }
    }
    terms.sort();
    terms.join(",")
}

/// Changes the replicas; the new Scale is made from the current one.
struct SetScale<F>(F);

/// To admission a scale is a Scale.
struct ScaleView;

impl View for ScaleView {
    fn kind(&self) -> ObjectKind<'static> {
        ObjectKind::new(GVK.group, GVK.version, GVK.kind)
    }

    fn of(&self, object: &Value) -> Value {
        scale_of(object)
    }

    fn apply(&self, view: &Value, object: &mut Value) {
        object["spec"]["replicas"] =
            json!(view.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0));
    }
}

impl<F: Fn(&Value) -> Result<Value, ApiError> + Send + Sync> Change for SetScale<F> {
    fn view(&self) -> Option<&dyn View> {
        Some(&ScaleView)
    }

    fn make(&self, current: &Value) -> Result<Value, ApiError> {
        let name = current["metadata"]["name"].as_str().unwrap_or("");
        let scale = (self.0)(&scale_of(current))?;
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        if replicas < 0 {
            let path = Path::new("spec").child("replicas");
            let error = field::invalid(&path, replicas, "must be greater than or equal to 0");
            return Err(ApiError::invalid("autoscaling", "Scale", name, vec![error]));
        }
        let mut object = current.clone();
        object["spec"]["replicas"] = json!(replicas);
        let metadata = crate::registry::object::metadata_mut(&mut object);
        match scale.pointer("/metadata/resourceVersion").and_then(Value::as_str).filter(|v| !v.is_empty()) {
            Some(version) => metadata.insert("resourceVersion".into(), json!(version)),
            None => metadata.shift_remove("resourceVersion"),
        };
        Ok(object)
    }
}

pub(super) async fn serve(endpoint: &Endpoint<'_>, body: Bytes) -> Result<Response, ApiError> {
    let registry = &endpoint.server.registry;
    let info = &endpoint.request.info;
    let answer = |object: &Value| {
        let bytes = render::encode(&scale_of(object), endpoint.request.accept);
        body::response(200, endpoint.request.accept.format.content_type(), bytes)
    };
    if info.verb == "get" {
        return Ok(answer(&registry.get(&endpoint.call(false, ""))?.value()));
    }
    let patching = info.verb == "patch";
    let kind = if patching {
        Some(PatchKind::of_media_type(&media_type(&endpoint.request.parts.headers))?)
    } else {
        None
    };
    let options = WriteOptions::parse(
        &endpoint.request.query,
        if patching { "PatchOptions" } else { "UpdateOptions" },
        kind == Some(PatchKind::Apply),
    )?;
    let manager = endpoint.manager(&options);
    let call: Call<'_> = endpoint.write_call(&options, &manager);
    let written = match kind {
        None => {
            let scale = endpoint.decode(&body, &GVK, &options)?;
            let named = scale.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
            if named != call.name {
                return Err(ApiError::bad_request(format!(
                    "the name of the object ({named}) does not match the name on the URL ({})",
                    call.name
                )));
            }
            registry.update(&call, &SetScale(move |_: &Value| Ok(scale.clone()))).await?
        }
        Some(kind) => {
            let media = if kind == PatchKind::Apply { Media::Yaml } else { Media::Json };
            let patch =
                decode::parse(&body, media).map_err(|error| ApiError::bad_request(error.to_string()))?;
            let schema = orlop_api::schema::kind(GVK.group, GVK.version, GVK.kind);
            registry
                .update(
                    &call,
                    &SetScale(move |current: &Value| {
                        let mut scale = current.clone();
                        // What is not said about the version is not meant.
                        if let Some(metadata) = scale["metadata"].as_object_mut() {
                            metadata.shift_remove("resourceVersion");
                        }
                        apply_plain(kind, &scale, &patch, schema)
                    }),
                )
                .await?
        }
    };
    Ok(answer(&written.value()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let check = |selector: Value, expected: &str| assert_eq!(selector_text(&selector), expected);
        check(json!({"matchLabels": {"b": "2", "a": "1"}}), "a=1,b=2");
        check(json!({"app": "x"}), "app=x");
        check(
            json!({"matchExpressions": [{"key": "t", "operator": "In", "values": ["b", "a"]}, {"key": "z", "operator": "DoesNotExist"}]}),
            "!z,t in (a,b)",
        );
    }
}
