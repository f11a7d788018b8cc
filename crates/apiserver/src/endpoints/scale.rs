//! `scale`: the number of replicas of a workload behind one uniform object, `autoscaling/v1` Scale.

use bytes::Bytes;
use orlop_api::decode::{self, Gvk, Media};
use orlop_api::field::{self, Path};
use orlop_api::status::ApiError;
use serde_json::{Value, json};

use super::Endpoint;
use crate::admission::ObjectKind;
use crate::custom::strategy::at_path;
use crate::http::body::{self, Response};
use crate::http::negotiate::media_type;
use crate::registry::Call;
use crate::registry::options::WriteOptions;
use crate::registry::patch::{PatchKind, apply_plain};
use crate::registry::render;
use crate::registry::update::{Change, View};
use crate::resources::Resource;

const GVK: Gvk<'static> = Gvk { group: "autoscaling", version: "v1", kind: "Scale" };

/// Where a kind keeps what its Scale shows.
#[derive(Clone)]
struct Places {
    spec: Vec<String>,
    status: Vec<String>,
    /// The selector as text; `None` = it is an object at `spec.selector`.
    selector: Option<Vec<String>>,
}

impl Places {
    fn of(resource: &Resource) -> Places {
        let builtin = |field: &str| vec![field.to_string(), "replicas".to_string()];
        match resource.custom.as_ref().and_then(|kind| kind.version().scale.clone()) {
            Some(paths) => Places {
                spec: paths.spec_replicas,
                status: paths.status_replicas,
                selector: Some(paths.selector),
            },
            None => Places { spec: builtin("spec"), status: builtin("status"), selector: None },
        }
    }

    /// Upstream's complaint about a custom resource that does not say how many replicas it wants.
    fn check(&self, object: &Value) -> Result<(), ApiError> {
        if self.selector.is_some() && at_path(object, &self.spec).is_none() {
            let path = format!(".{}", self.spec.join("."));
            return Err(ApiError::internal(format!("the spec replicas field {path:?} does not exist")));
        }
        Ok(())
    }

    fn set(&self, object: &mut Value, replicas: i64) {
        let mut place = object;
        for step in &self.spec {
            if !place.is_object() {
                *place = json!({});
            }
            place = &mut place[step.as_str()];
        }
        *place = json!(replicas);
    }
}

/// The Scale of a workload.
fn scale_of(object: &Value, places: &Places) -> Value {
    let metadata = &object["metadata"];
    let count = |path: &[String]| at_path(object, path).and_then(Value::as_i64).unwrap_or(0);
    let mut out = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {},
        "spec": {},
        "status": {"replicas": count(&places.status)},
    });
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            out["metadata"][field] = value.clone();
        }
    }
    let replicas = count(&places.spec);
    if replicas != 0 {
        out["spec"]["replicas"] = json!(replicas);
    }
    let selector = match &places.selector {
        None => selector_text(&object["spec"]["selector"]),
        Some(path) if path.is_empty() => String::new(),
        Some(path) => at_path(object, path).and_then(Value::as_str).unwrap_or("").to_string(),
    };
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
struct SetScale<F> {
    new: F,
    view: ScaleView,
}

/// To admission a scale is a Scale.
struct ScaleView(Places);

impl View for ScaleView {
    fn kind(&self) -> ObjectKind<'static> {
        ObjectKind::new(GVK.group, GVK.version, GVK.kind)
    }

    fn of(&self, object: &Value) -> Value {
        scale_of(object, &self.0)
    }

    fn apply(&self, view: &Value, object: &mut Value) {
        self.0.set(object, view.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0));
    }
}

impl<F: Fn(&Value) -> Result<Value, ApiError> + Send + Sync> Change for SetScale<F> {
    fn view(&self) -> Option<&dyn View> {
        Some(&self.view)
    }

    /// Without a version the Scale is of whatever is current, also where the kind itself wants to be told the version.
    fn is_patch(&self) -> bool {
        true
    }

    fn make(&self, current: &Value) -> Result<Value, ApiError> {
        let name = current["metadata"]["name"].as_str().unwrap_or("");
        let places = &self.view.0;
        let scale = (self.new)(&scale_of(current, places))?;
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        if replicas < 0 {
            let path = Path::new("spec").child("replicas");
            let error = field::invalid(&path, replicas, "must be greater than or equal to 0");
            return Err(ApiError::invalid("autoscaling", "Scale", name, vec![error]));
        }
        let mut object = current.clone();
        places.set(&mut object, replicas);
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
    let places = Places::of(endpoint.resource);
    let answer = |object: &Value| {
        let bytes = render::encode(&scale_of(object, &places), endpoint.request.accept);
        body::response(200, endpoint.request.accept.format.content_type(), bytes)
    };
    if info.verb == "get" {
        let entry = registry.get(&endpoint.call(false, ""))?;
        let object = registry.served(endpoint.resource, &entry).await?;
        places.check(&object)?;
        return Ok(answer(&object));
    }
    let set = |new| SetScale { new, view: ScaleView(places.clone()) };
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
            let new = move |_: &Value| Ok(scale.clone());
            registry.update(&call, &SetScale { new, view: ScaleView(places.clone()) }).await?
        }
        Some(kind) => {
            let media = if kind == PatchKind::Apply { Media::Yaml } else { Media::Json };
            let patch =
                decode::parse(&body, media).map_err(|error| ApiError::bad_request(error.to_string()))?;
            let schema = orlop_api::schema::kind(GVK.group, GVK.version, GVK.kind);
            registry
                .update(
                    &call,
                    &set(move |current: &Value| {
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
