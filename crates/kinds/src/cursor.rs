//! Small readers and writers over `&Value`, so that a rule reads like its sentence in the documentation. A field that
//! is absent reads as its Go zero value, which is what upstream's rules see.

use orlop_json::{Key, Map, Value};

/// Reads a field the way Go reads one: absence is the zero value.
pub(crate) trait Cursor {
    /// The string, `""` when absent or no string.
    fn text(&self) -> &str;
    /// The integer, 0 when absent or no integer.
    fn int(&self) -> i64;
    /// The boolean, false when absent.
    fn flag(&self) -> bool;
    /// The list's items, none when absent.
    fn items(&self) -> &[Value];
    /// The map's entries in their order, none when absent.
    fn entries(&self) -> Box<dyn Iterator<Item = (&Key, &Value)> + '_>;
    /// Whether the field is present and not null: a Go pointer that is not nil.
    fn is_set(&self) -> bool;
    /// Whether a Go value of this field would be empty: absent, null, `""`, `[]`, `{}`, 0 or false.
    fn is_empty(&self) -> bool;
    /// Whether the map has the key.
    fn has(&self, key: &str) -> bool;
    /// The strings of a list of strings.
    fn texts(&self) -> Vec<&str>;
}

impl Cursor for Value {
    fn text(&self) -> &str {
        self.as_str().unwrap_or_default()
    }
    fn int(&self) -> i64 {
        self.as_i64().unwrap_or_default()
    }
    fn flag(&self) -> bool {
        self.as_bool().unwrap_or_default()
    }
    fn items(&self) -> &[Value] {
        self.as_array().map_or(&[], Vec::as_slice)
    }
    fn entries(&self) -> Box<dyn Iterator<Item = (&Key, &Value)> + '_> {
        Box::new(self.as_object().into_iter().flatten())
    }
    fn is_set(&self) -> bool {
        !self.is_null()
    }
    fn is_empty(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(b) => !b,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
        }
    }
    fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| !v.is_null())
    }
    fn texts(&self) -> Vec<&str> {
        self.items().iter().map(Cursor::text).collect()
    }
}

/// The object at `parent[key]`, made when it is not there. Gives `parent` itself's map back when `parent` is no object,
/// which a normalised object never has.
pub(crate) fn child<'a>(parent: &'a mut Value, key: &str) -> &'a mut Value {
    if !parent.is_object() {
        *parent = Value::Object(Map::new());
    }
    let slot = &mut parent[key];
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot
}

/// Sets `parent[key]` when it is absent or null: the default of a Go pointer.
pub(crate) fn default_to(parent: &mut Value, key: &str, value: impl Into<Value>) {
    if !parent.has(key) && parent.is_object() {
        parent[key] = value.into();
    }
}

/// Sets `parent[key]` when it is absent or the Go zero value: the default of a Go string or integer.
pub(crate) fn default_empty_to(parent: &mut Value, key: &str, value: impl Into<Value>) {
    if parent.is_object() && parent.get(key).is_none_or(Cursor::is_empty) {
        parent[key] = value.into();
    }
}

/// Mutable items of the list at `parent[key]`, none when absent.
pub(crate) fn items_mut<'a>(parent: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    parent.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Removes `parent[key]`.
pub(crate) fn remove(parent: &mut Value, key: &str) {
    if let Some(map) = parent.as_object_mut() {
        map.remove(key);
    }
}

/// Makes the top-level fields `keys` of `obj` what they are in `old`.
pub(crate) fn keep(obj: &mut Value, old: &Value, keys: &[&str]) {
    for key in keys {
        keep_field(obj, old, key);
    }
}

/// Makes `obj[key]` what it is in `old`, absent when absent there.
pub(crate) fn keep_field(obj: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(value) => obj[key] = value.clone(),
        None => remove(obj, key),
    }
}

/// Makes `metadata` what it is in `old`, but for the managed fields and the version: for subresources that write only
/// their own part of an object.
pub(crate) fn keep_metadata(obj: &mut Value, old: &Value) {
    let mut metadata = old["metadata"].clone();
    for key in ["managedFields", "resourceVersion"] {
        if obj["metadata"].has(key) {
            metadata[key] = obj["metadata"][key].clone();
        }
    }
    *child(obj, "metadata") = metadata;
}

/// Makes everything in `metadata` but the managed fields what it is in `old`: upstream's `ResetObjectMetaForStatus`.
pub(crate) fn keep_metadata_for_status(obj: &mut Value, old: &Value) {
    const KEPT: [&str; 7] = [
        "deletionTimestamp",
        "generation",
        "selfLink",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
    ];
    keep(child(obj, "metadata"), &old["metadata"], &KEPT);
}

/// Go's semantic equality of two values in normalised form, upstream's `equality.Semantic.DeepEqual`: no list and an
/// empty one are the same.
///
/// No object and `{}` are not: in normalised form a struct that Go holds by value is always there and an empty map
/// never is, so that what is missing on one side is a pointer that is nil, which differs from one to an empty struct.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, b.get(k).unwrap_or(&Value::Null)))
                && y.iter().all(|(k, v)| x.contains_key(k) || same(&Value::Null, v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(p, q)| same(p, q)),
        (Value::Null, Value::Array(v)) | (Value::Array(v), Value::Null) => v.is_empty(),
        _ => a == b,
    }
}

/// Sets `metadata.generation`.
pub(crate) fn set_generation(obj: &mut Value, generation: i64) {
    child(obj, "metadata")["generation"] = generation.into();
}

/// Keeps the old generation, or counts one up when one of the top-level fields `desired` changed.
pub(crate) fn bump_generation(obj: &mut Value, old: &Value, desired: &[&str]) {
    let before = old["metadata"]["generation"].int();
    let changed = desired.iter().any(|key| !same(&obj[*key], &old[*key]));
    let now = if changed { before + 1 } else { before };
    if now != 0 || obj["metadata"].has("generation") {
        set_generation(obj, now);
    }
}

/// What differs between two objects, a hunk for each field, in the manner of the diff that ends upstream's messages.
pub fn differences(old: &Value, new: &Value) -> String {
    let mut hunks = String::new();
    let mut keys: Vec<&Key> = old.entries().map(|(k, _)| k).collect();
    keys.extend(new.entries().map(|(k, _)| k).filter(|k| !old.has(k)));
    for key in keys {
        let (a, b) = (&old[key.as_str()], &new[key.as_str()]);
        if !same(a, b) {
            hunks.push_str(&format!("@@ -1 +1 @@\n-{key}: {a}\n+{key}: {b}\n"));
        }
    }
    hunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn equality() {
        let check = |a: Value, b: Value, expected: bool| {
            assert_eq!(same(&a, &b), expected, "{a} {b}");
            assert_eq!(same(&b, &a), expected, "{b} {a}");
        };
        check(json!({"l": []}), json!({}), true);
        check(json!({"l": null, "p": null}), json!({}), true);
        check(json!({"a": 1, "b": [{"c": []}]}), json!({"b": [{}], "a": 1}), true);
        check(json!({"p": {}}), json!({}), false);
        check(json!({"p": {}}), json!({"p": null}), false);
        check(json!([{"p": {}}]), json!([{}]), false);
        check(json!({"s": ""}), json!({}), false);
        check(json!([1]), json!([1, 2]), false);
    }
}
