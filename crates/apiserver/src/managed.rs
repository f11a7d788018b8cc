//! `metadata.managedFields`: who owns which field. The algorithm is `orlop_api::managed`; this is where the registry
//! meets it.

use orlop_api::decode::Gvk;
use orlop_api::status::ApiError;
use serde_json::Value;

use crate::registry::Call;
use crate::resources::Resource;

/// Records an ordinary write.
pub fn update(_call: &Call<'_>, _old: Option<&Value>, _new: &mut Value) {}

/// Records an ordinary write of a kind that has no resource of its own.
pub fn update_as(_gvk: &Gvk<'_>, _subresource: &str, _manager: &str, _old: Option<&Value>, _new: &mut Value) {
}

/// Merges an applied configuration into the live object.
pub fn apply(
    _resource: &Resource,
    _subresource: &str,
    _live: Option<&Value>,
    _configuration: &Value,
    _manager: &str,
    _force: bool,
    _settle: impl Fn(&Value) -> Result<Value, ApiError>,
) -> Result<Value, ApiError> {
    Err(ApiError::generic(501, "NotImplemented", "server-side apply is not built yet"))
}

/// Whether two objects differ in nothing but the times of their managed fields.
pub fn only_times_differ(a: &Value, b: &Value) -> bool {
    let without = |value: &Value| {
        let mut value = value.clone();
        if let Some(list) = value.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut) {
            for entry in list {
                if let Some(entry) = entry.as_object_mut() {
                    entry.shift_remove("time");
                }
            }
        }
        if let Some(metadata) = value["metadata"].as_object_mut() {
            metadata.shift_remove("resourceVersion");
        }
        value
    };
    without(a) == without(b)
}
