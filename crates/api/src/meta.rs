//! Reading and writing ObjectMeta on objects held as JSON.
//!
//! Objects are in normalised form: what is empty is absent. Readers answer with empty values for what is absent or
//! of a wrong type; they never fail.

use orlop_json::{Map, Value};

fn metadata(obj: &Value) -> Option<&Map> {
    obj.get("metadata").and_then(Value::as_object)
}

fn text<'a>(obj: &'a Value, field: &str) -> &'a str {
    metadata(obj).and_then(|meta| meta.get(field)).and_then(Value::as_str).unwrap_or("")
}

/// `metadata`, made when it is missing.
pub fn metadata_mut(obj: &mut Value) -> &mut Map {
    child_mut(obj, "metadata")
}

/// The object under `field`, made when it is missing or no object.
pub fn child_mut<'a>(obj: &'a mut Value, field: &str) -> &'a mut Map {
    if !obj.is_object() {
        *obj = Value::Object(Map::new());
    }
    let map = match obj {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    };
    let child = map.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    match child {
        Value::Object(child) => child,
        _ => unreachable!("made an object just above"),
    }
}

fn set_text(obj: &mut Value, field: &str, value: &str) {
    let meta = metadata_mut(obj);
    if value.is_empty() {
        meta.remove(field);
    } else {
        meta.insert(field.into(), Value::String(value.into()));
    }
}

/// `apiVersion`.
pub fn api_version(obj: &Value) -> &str {
    obj.get("apiVersion").and_then(Value::as_str).unwrap_or("")
}

/// `kind`.
pub fn kind(obj: &Value) -> &str {
    obj.get("kind").and_then(Value::as_str).unwrap_or("")
}

/// Group and version of `apiVersion`: (`apps`, `v1`), (``, `v1`).
pub fn group_version(obj: &Value) -> (&str, &str) {
    split_api_version(api_version(obj))
}

/// Group and version: `apps/v1` → (`apps`, `v1`), `v1` → (``, `v1`).
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// `metadata.name`.
pub fn name(obj: &Value) -> &str {
    text(obj, "name")
}

/// `metadata.generateName`.
pub fn generate_name(obj: &Value) -> &str {
    text(obj, "generateName")
}

/// `metadata.namespace`; empty for cluster-scoped objects.
pub fn namespace(obj: &Value) -> &str {
    text(obj, "namespace")
}

/// `metadata.uid`.
pub fn uid(obj: &Value) -> &str {
    text(obj, "uid")
}

/// `metadata.resourceVersion`.
pub fn resource_version(obj: &Value) -> &str {
    text(obj, "resourceVersion")
}

/// `metadata.creationTimestamp`; empty when it is null.
pub fn creation_timestamp(obj: &Value) -> &str {
    text(obj, "creationTimestamp")
}

/// `metadata.deletionTimestamp`, when the object is being deleted.
pub fn deletion_timestamp(obj: &Value) -> Option<&str> {
    Some(text(obj, "deletionTimestamp")).filter(|time| !time.is_empty())
}

/// `metadata.deletionGracePeriodSeconds`.
pub fn deletion_grace_period_seconds(obj: &Value) -> Option<i64> {
    metadata(obj)?.get("deletionGracePeriodSeconds")?.as_i64()
}

/// `metadata.generation`; 0 when it is absent.
pub fn generation(obj: &Value) -> i64 {
    metadata(obj).and_then(|meta| meta.get("generation")).and_then(Value::as_i64).unwrap_or(0)
}

/// `metadata.labels`.
pub fn labels(obj: &Value) -> Option<&Map> {
    metadata(obj)?.get("labels")?.as_object()
}

/// One label.
pub fn label<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    labels(obj)?.get(key)?.as_str()
}

/// `metadata.annotations`.
pub fn annotations(obj: &Value) -> Option<&Map> {
    metadata(obj)?.get("annotations")?.as_object()
}

/// One annotation.
pub fn annotation<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    annotations(obj)?.get(key)?.as_str()
}

/// `metadata.ownerReferences`.
pub fn owner_references(obj: &Value) -> &[Value] {
    list(obj, "ownerReferences")
}

/// The owner reference with `controller: true`.
pub fn controller_of(obj: &Value) -> Option<&Value> {
    owner_references(obj).iter().find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true))
}

/// `metadata.finalizers`.
pub fn finalizers(obj: &Value) -> Vec<&str> {
    list(obj, "finalizers").iter().filter_map(Value::as_str).collect()
}

/// `metadata.managedFields`.
pub fn managed_fields(obj: &Value) -> &[Value] {
    list(obj, "managedFields")
}

fn list<'a>(obj: &'a Value, field: &str) -> &'a [Value] {
    metadata(obj).and_then(|meta| meta.get(field)).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Sets `metadata.name`; empty removes it.
pub fn set_name(obj: &mut Value, value: &str) {
    set_text(obj, "name", value);
}

/// Sets `metadata.namespace`; empty removes it.
pub fn set_namespace(obj: &mut Value, value: &str) {
    set_text(obj, "namespace", value);
}

/// Sets `metadata.uid`; empty removes it.
pub fn set_uid(obj: &mut Value, value: &str) {
    set_text(obj, "uid", value);
}

/// Sets `metadata.resourceVersion`; empty removes it.
pub fn set_resource_version(obj: &mut Value, value: &str) {
    set_text(obj, "resourceVersion", value);
}

/// Sets `metadata.creationTimestamp` (RFC 3339, seconds); empty removes it.
pub fn set_creation_timestamp(obj: &mut Value, value: &str) {
    set_text(obj, "creationTimestamp", value);
}

/// Sets `metadata.deletionTimestamp`; `None` removes it.
pub fn set_deletion_timestamp(obj: &mut Value, value: Option<&str>) {
    set_text(obj, "deletionTimestamp", value.unwrap_or(""));
}

/// Sets `metadata.deletionGracePeriodSeconds`; `None` removes it.
pub fn set_deletion_grace_period_seconds(obj: &mut Value, value: Option<i64>) {
    let meta = metadata_mut(obj);
    match value {
        Some(seconds) => {
            meta.insert("deletionGracePeriodSeconds".into(), seconds.into());
        }
        None => {
            meta.remove("deletionGracePeriodSeconds");
        }
    }
}

/// Sets `metadata.generation`; 0 removes it.
pub fn set_generation(obj: &mut Value, value: i64) {
    let meta = metadata_mut(obj);
    if value == 0 {
        meta.remove("generation");
    } else {
        meta.insert("generation".into(), value.into());
    }
}

/// Sets one label.
pub fn set_label(obj: &mut Value, key: &str, value: &str) {
    set_entry(obj, "labels", key, value);
}

/// Sets one annotation.
pub fn set_annotation(obj: &mut Value, key: &str, value: &str) {
    set_entry(obj, "annotations", key, value);
}

fn set_entry(obj: &mut Value, map: &str, key: &str, value: &str) {
    let entries = metadata_mut(obj).entry(map).or_insert_with(|| Value::Object(Map::new()));
    if !entries.is_object() {
        *entries = Value::Object(Map::new());
    }
    if let Value::Object(entries) = entries {
        entries.insert(key.into(), value.into());
    }
}

/// Sets `metadata.finalizers`; none removes the list.
pub fn set_finalizers(obj: &mut Value, finalizers: &[&str]) {
    let meta = metadata_mut(obj);
    if finalizers.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".into(), finalizers.iter().map(|f| Value::from(*f)).collect());
    }
}

/// The value at a dotted path of plain field names: `get(pod, "spec.nodeName")`.
pub fn get<'a>(obj: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(obj, |value, field| value.get(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn accessors() {
        let mut obj = json!({"apiVersion": "apps/v1", "metadata": {"name": "a", "labels": {"x": "y"},
            "ownerReferences": [{"uid": "1"}, {"uid": "2", "controller": true}]}});
        assert_eq!((name(&obj), namespace(&obj), label(&obj, "x")), ("a", "", Some("y")));
        assert_eq!(group_version(&obj), ("apps", "v1"));
        assert_eq!(controller_of(&obj).and_then(|owner| owner["uid"].as_str()), Some("2"));
        set_namespace(&mut obj, "ns");
        set_finalizers(&mut obj, &["f"]);
        set_annotation(&mut obj, "k", "v");
        assert_eq!((namespace(&obj), finalizers(&obj), annotation(&obj, "k")), ("ns", vec!["f"], Some("v")));
        set_finalizers(&mut obj, &[]);
        assert_eq!(get(&obj, "metadata.finalizers"), None);
    }
}
