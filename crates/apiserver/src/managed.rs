//! `metadata.managedFields`: who owns which field. The algorithm is `orlop_api::managed`; this is where the registry
//! meets it.

use orlop_api::decode::Gvk;
use orlop_api::managed::{ManagedParams, ObjectType, Versions, on_apply, on_update};
use orlop_api::status::ApiError;
use orlop_json::{Map, Value};

use crate::registry::object::set_meta;
use crate::registry::{Call, Warnings, now};
use crate::resources::Resource;

/// Records an ordinary write. A writer without a name (the server itself, on behalf of a subresource) owns nothing.
pub fn update(call: &Call<'_>, old: Option<&Value>, new: &mut Value) {
    let resource = call.resource;
    let gvk = Gvk { group: &resource.group, version: &resource.version, kind: &resource.kind };
    let versions = resource.versions.as_deref();
    update_typed(&gvk, resource.object_type(), versions, call.subresource, call.field_manager, old, new);
}

/// Records an ordinary write of any kind.
pub fn update_as(gvk: &Gvk<'_>, subresource: &str, manager: &str, old: Option<&Value>, new: &mut Value) {
    let ty = orlop_api::schema::kind(gvk.group, gvk.version, gvk.kind).into();
    update_typed(gvk, ty, None, subresource, manager, old, new);
}

fn update_typed(
    gvk: &Gvk<'_>,
    ty: ObjectType<'_>,
    versions: Option<&dyn Versions>,
    subresource: &str,
    manager: &str,
    old: Option<&Value>,
    new: &mut Value,
) {
    if manager.is_empty() {
        return;
    }
    let api_version =
        if gvk.group.is_empty() { gvk.version.to_string() } else { format!("{}/{}", gvk.group, gvk.version) };
    let now = now();
    let params = ManagedParams { manager, api_version: &api_version, subresource, now: &now, ty, versions };
    on_update(old, new, &params);
}

/// Merges an applied configuration into the live object; `settle` reads the result again as its kind.
pub fn apply(
    resource: &Resource,
    subresource: &str,
    live: Option<&Value>,
    configuration: &Value,
    manager: &str,
    force: bool,
    settle: impl Fn(&Value) -> Result<Value, ApiError>,
) -> Result<Value, ApiError> {
    let gvk = Gvk { group: &resource.group, version: &resource.version, kind: &resource.kind };
    check_type(configuration, &gvk)?;
    let (now, own_version) = (now(), resource.group_version());
    let params = ManagedParams {
        manager,
        api_version: &own_version,
        subresource,
        now: &now,
        ty: resource.object_type(),
        versions: resource.versions.as_deref(),
    };
    let merged = on_apply(live, configuration, &params, force)?;
    settle(&merged)
}

/// The managed fields before others change an object, to be looked at after that.
pub struct Guard(Option<Value>);

impl Guard {
    /// Keeps the managed fields of an object.
    pub fn of(object: &Value) -> Guard {
        Guard(object.pointer("/metadata/managedFields").cloned())
    }

    /// Puts them back if the object's are now such that nobody can read them, and says so.
    pub fn restore(self, object: &mut Value, warnings: &Warnings) {
        let now = object.pointer("/metadata/managedFields");
        if now == self.0.as_ref() {
            return;
        }
        let list = now.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let Some(problem) = orlop_api::managed::problem(list) else { return };
        set_meta(object, "managedFields", self.0);
        warnings.add(format!(
            ".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: {problem}"
        ));
    }
}

/// Refuses a configuration that does not say that it is of the expected kind and version.
fn check_type(configuration: &Value, expected: &Gvk<'_>) -> Result<(), ApiError> {
    let text = |field: &str| configuration.get(field).and_then(Value::as_str).unwrap_or("");
    let kind = text("kind");
    let (group, version) = orlop_api::meta::split_api_version(text("apiVersion"));
    if (group, version, kind) == (expected.group, expected.version, expected.kind) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")))
}

/// Merges an applied configuration into a live object of any kind.
pub fn apply_as(
    gvk: &Gvk<'_>,
    subresource: &str,
    live: &Value,
    configuration: &Value,
    manager: &str,
    force: bool,
) -> Result<Value, ApiError> {
    check_type(configuration, gvk)?;
    let params = ManagedParams {
        manager,
        api_version: &format!("{}/{}", gvk.group, gvk.version),
        subresource,
        now: &now(),
        ty: orlop_api::schema::kind(gvk.group, gvk.version, gvk.kind).into(),
        versions: None,
    };
    on_apply(Some(live), configuration, &params, force)
}

/// Whether two objects differ in nothing but the times of their managed fields.
pub fn only_times_differ(a: &Value, b: &Value) -> bool {
    same(a, b, &[], |field, a, b| match field {
        "metadata" => same(a, b, &["resourceVersion"], |field, a, b| match (field, a, b) {
            ("managedFields", Value::Array(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, &["time"], |_, a, b| a == b))
            }
            _ => a == b,
        }),
        _ => a == b,
    })
}

/// Whether two maps have the same fields, but for those to be left out, and all are the same by `equal`.
fn same(a: &Value, b: &Value, left_out: &[&str], equal: impl Fn(&str, &Value, &Value) -> bool) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    let counted = |map: &Map| map.keys().filter(|field| !left_out.contains(&field.as_str())).count();
    counted(a) == counted(b)
        && a.iter()
            .filter(|(field, _)| !left_out.contains(&field.as_str()))
            .all(|(field, value)| b.get(field).is_some_and(|other| equal(field, value, other)))
}
