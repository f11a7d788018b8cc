//! `scale`: the number of replicas of a workload behind one uniform object, `autoscaling/v1` Scale.

use bytes::Bytes;
use orlop_api::decode::{self, Gvk};
use orlop_api::field::{self, Path};
use orlop_api::managed::{scale_owners, workload_owners};
use orlop_api::meta::managed_fields;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::Endpoint;
use crate::admission::ObjectKind;
use crate::custom::strategy::at_path;
use crate::http::body::{self, Response};
use crate::http::negotiate::media_type;
use crate::managed;
use crate::registry::Call;
use crate::registry::object::{meta, set_meta};
use crate::registry::options::WriteOptions;
use crate::registry::patch::{self, PatchKind, apply_plain, settled_by};
use crate::registry::render;
use crate::registry::update::{Change, View, check_name};
use crate::resources::Resource;

const GVK: Gvk<'static> = Gvk { group: "autoscaling", version: "v1", kind: "Scale" };
/// What a patch of a custom resource's Scale finds as replicas that were not said.
const UNSAID: i64 = i32::MIN as i64;

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

    /// Whether this is a custom resource, with upstream's other rules.
    fn is_custom(&self) -> bool {
        self.selector.is_some()
    }

    /// Whether a custom resource does not say how many replicas it wants.
    fn unsaid(&self, object: &Value) -> bool {
        self.is_custom() && at_path(object, &self.spec).is_none()
    }

    /// The field of the replicas, for messages.
    fn shown(&self) -> String {
        field::go_quote(&format!(".{}", self.spec.join(".")))
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

/// What a request makes of a Scale.
enum NewScale {
    /// A PUT.
    Replaced(Value),
    /// A patch, as it was sent.
    Patched(PatchKind, Value),
}

/// Changes the replicas: the workload's Scale is written, and what has become of it is written back.
struct SetScale<'a> {
    new: NewScale,
    view: ScaleView,
    call: &'a Call<'a>,
    options: &'a WriteOptions,
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

impl SetScale<'_> {
    /// The new Scale, with its owners.
    fn written(&self, live: &Value) -> Result<Value, ApiError> {
        let mut scale = match &self.new {
            NewScale::Replaced(scale) => scale.clone(),
            NewScale::Patched(PatchKind::Apply, patch) => {
                let manager = self.call.field_manager;
                return managed::apply_as(&GVK, "scale", live, patch, manager, self.options.force);
            }
            NewScale::Patched(kind, patch) => {
                let mut bare = live.clone();
                // What is not said about the version is not meant.
                set_meta(&mut bare, "resourceVersion", None);
                let schema = orlop_api::schema::kind(GVK.group, GVK.version, GVK.kind)
                    .ok_or_else(|| ApiError::internal("no type is known for Scale"))?;
                let patched = apply_plain(*kind, &bare, patch, Some(schema))?;
                let settled = decode::normalise(&patched, schema, self.options.field_validation);
                settled_by(*kind, &patched, settled, self.call.warnings)?
            }
        };
        managed::update_as(&GVK, "scale", self.call.field_manager, Some(live), &mut scale);
        Ok(scale)
    }
}

impl Change for SetScale<'_> {
    fn view(&self) -> Option<&dyn View> {
        Some(&self.view)
    }

    /// Without a version the Scale is of whatever is current, also where the kind itself wants to be told the version.
    fn is_patch(&self) -> bool {
        true
    }

    fn owns_managed_fields(&self) -> bool {
        true
    }

    fn make(&self, current: &Value) -> Result<Value, ApiError> {
        let (places, resource) = (&self.view.0, self.call.resource);
        let (version, path) = (resource.group_version(), places.spec.join("."));
        let mut live = scale_of(current, places);
        let owners = scale_owners(managed_fields(current), &version, &path);
        if !owners.is_empty() {
            set_meta(&mut live, "managedFields", Some(owners.into()));
        }
        if places.unsaid(current) {
            live["spec"]["replicas"] = json!(UNSAID);
        }
        let scale = self.written(&live)?;
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        if places.is_custom() && replicas == UNSAID {
            let message = format!("the spec replicas field {} cannot be empty", places.shown());
            return Err(ApiError::bad_request(message));
        }
        // A custom resource is validated as what it is, when it is written.
        if replicas < 0 && !places.is_custom() {
            let path = Path::new("spec").child("replicas");
            let error = field::invalid(&path, replicas, "must be greater than or equal to 0");
            return Err(ApiError::invalid("autoscaling", "Scale", self.call.name, vec![error]));
        }
        let (uid, actual) = (meta(&scale, "uid"), meta(current, "uid"));
        if !places.is_custom() && !uid.is_empty() && uid != actual {
            return Err(ApiError::conflict(
                &resource.group,
                &format!("{}/scale", resource.plural),
                self.call.name,
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}"),
            ));
        }
        let mut object = current.clone();
        places.set(&mut object, replicas);
        let owners = workload_owners(managed_fields(current), managed_fields(&scale), &version, &path);
        set_meta(&mut object, "managedFields", (!owners.is_empty()).then(|| owners.into()));
        let asked = match &self.new {
            NewScale::Patched(PatchKind::Apply, patch) => meta(patch, "resourceVersion"),
            _ => meta(&scale, "resourceVersion"),
        };
        set_meta(&mut object, "resourceVersion", (!asked.is_empty()).then(|| json!(asked)));
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
        if places.unsaid(&object) {
            let message = format!("the spec replicas field {} does not exist", places.shown());
            return Err(ApiError::internal(message));
        }
        return Ok(answer(&object));
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
    let new = match kind {
        None => {
            let scale = endpoint.decode(&body, &GVK, &options)?;
            check_name(&scale, call.name)?;
            NewScale::Replaced(scale)
        }
        Some(kind) => {
            NewScale::Patched(kind, patch::read(kind, &body, options.field_validation, call.warnings)?)
        }
    };
    let change = SetScale { new, view: ScaleView(places.clone()), call: &call, options: &options };
    let written = registry.update(&call, &change).await?;
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
