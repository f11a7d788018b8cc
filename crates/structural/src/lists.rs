//! Uniqueness in lists that are sets or maps.
//!
//! Answers to `apiserver/schema/listtype`.

use std::collections::HashSet;

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Key, Map, Value};

use crate::schema::{ListType, Schema};

/// One error for each repeated item of a set and each repeated key of a map, where the object is walked in order.
pub fn validate(path: &Path, value: &Value, schema: &Schema) -> ErrorList {
    let mut errors = ErrorList::new();
    walk(&mut errors, path, value, schema);
    errors
}

fn walk(errors: &mut ErrorList, path: &Path, value: &Value, schema: &Schema) {
    match value {
        Value::Array(items) => {
            match schema.list_type {
                ListType::Atomic => {}
                ListType::Set => unique(errors, path, items, |item| Some(item.clone())),
                ListType::Map => unique(errors, path, items, |item| Some(keys_of(item, schema))),
            }
            if let Some(item_schema) = schema.items.as_deref() {
                for (at, item) in items.iter().enumerate() {
                    walk(errors, &path.index(at), item, item_schema);
                }
            }
        }
        Value::Object(map) => {
            for (name, value) in map {
                match schema.properties.get(name) {
                    Some(property) => walk(errors, &path.child(name), value, property),
                    None => {
                        if let Some(additional) = schema.additional_schema() {
                            walk(errors, &path.key(name), value, additional);
                        }
                    }
                }
            }
        }
        _ => {}
    }
}

/// The keys of an item of a map list.
pub(crate) fn keys_of(item: &Value, schema: &Schema) -> Value {
    keys_with(item, &schema.list_keys)
}

/// The values of these keys of an item.
pub(crate) fn keys_with(item: &Value, keys: &[String]) -> Value {
    let mut sorted = keys.to_vec();
    sorted.sort();
    let keys: Map = sorted
        .into_iter()
        .filter_map(|key| item.get(&key).cloned().map(|value| (key.into(), value)))
        .collect();
    Value::Object(keys)
}

/// A text that two values share only when they are equal.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&Key> = map.keys().collect();
            keys.sort();
            let parts: Vec<String> =
                keys.into_iter().map(|key| format!("{key:?}:{}", canonical(&map[key]))).collect();
            format!("{{{}}}", parts.join(","))
        }
        Value::Array(items) => {
            let parts: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", parts.join(","))
        }
        other => other.to_string(),
    }
}

fn unique(errors: &mut ErrorList, path: &Path, items: &[Value], key: impl Fn(&Value) -> Option<Value>) {
    let mut seen: HashSet<String> = HashSet::new();
    let mut told: HashSet<String> = HashSet::new();
    for (at, item) in items.iter().enumerate() {
        let Some(key) = key(item) else { continue };
        let text = canonical(&key);
        if !seen.insert(text.clone()) && told.insert(text) {
            errors.push(field::duplicate(&path.index(at), key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn repeated_items() {
        let schema = Schema::of(&json!({"type": "object", "properties": {
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                  "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
        }}));
        let object = json!({"s": ["a", "b", "a", "a"], "m": [{"k": "z", "v": 1}, {"k": "z", "v": 2}]});
        let found: Vec<String> =
            validate(&Path::root(), &object, &schema).iter().map(ToString::to_string).collect();
        assert_eq!(found, [r#"s[2]: Duplicate value: "a""#, r#"m[1]: Duplicate value: {"k":"z"}"#]);
    }
}
