//! Taking out what a schema does not know, and noting where it stood.
//!
//! Answers to `apiserver/schema/pruning`.

use orlop_json::{Key, Value};

use crate::schema::{Additional, Schema};

/// The fields that every resource has.
pub const META_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// A path as upstream writes it in `unknown field "spec.list[0].name"`.
#[derive(Default)]
pub(crate) struct Place(String);

impl Place {
    pub(crate) fn key(&mut self, key: &str) -> usize {
        let length = self.0.len();
        if length > 0 {
            self.0.push('.');
        }
        self.0.push_str(key);
        length
    }

    pub(crate) fn index(&mut self, index: usize) -> usize {
        let length = self.0.len();
        self.0.push_str(&format!("[{index}]"));
        length
    }

    pub(crate) fn back(&mut self, length: usize) {
        self.0.truncate(length);
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

/// Takes unknown fields out of a resource and answers with their paths, sorted.
pub fn prune(object: &mut Value, schema: &Schema) -> Vec<String> {
    let mut pruner = Pruner::default();
    pruner.walk(object, Some(schema), true);
    pruner.unknown.sort();
    pruner.unknown
}

/// The same for a value that is no whole resource.
pub fn prune_value(value: &mut Value, schema: &Schema, is_resource: bool) -> Vec<String> {
    let mut pruner = Pruner::default();
    pruner.walk(value, Some(schema), is_resource);
    pruner.unknown.sort();
    pruner.unknown
}

#[derive(Default)]
struct Pruner {
    place: Place,
    unknown: Vec<String>,
}

impl Pruner {
    fn record(&mut self, key: &str) {
        let length = self.place.key(key);
        self.unknown.push(self.place.text().to_string());
        self.place.back(length);
    }

    fn walk(&mut self, value: &mut Value, schema: Option<&Schema>, root: bool) {
        match value {
            Value::Object(map) => {
                let Some(schema) = schema else {
                    let keys: Vec<Key> = map.keys().cloned().collect();
                    keys.iter().for_each(|key| self.record(key));
                    map.clear();
                    return;
                };
                let embedded = root || schema.embedded;
                let mut gone: Vec<String> = Vec::new();
                for (key, value) in map.iter_mut() {
                    if embedded && META_FIELDS.contains(&key.as_str()) {
                        continue;
                    }
                    let child = match (schema.properties.get(key), &schema.additional) {
                        (Some(property), _) => Some(property),
                        (None, Some(Additional::Schema(schema))) => Some(schema.as_ref()),
                        (None, Some(Additional::Allowed(_))) => None,
                        (None, None) if schema.preserve_unknown => continue,
                        (None, None) => {
                            gone.push(key.clone().into());
                            continue;
                        }
                    };
                    let length = self.place.key(key);
                    self.walk(value, child, false);
                    self.place.back(length);
                }
                for key in gone {
                    if !META_FIELDS.contains(&key.as_str()) || !self.place.text().is_empty() {
                        self.record(&key);
                    }
                    map.remove(&key);
                }
            }
            Value::Array(items) => {
                let child = schema.and_then(|schema| schema.items.as_deref());
                // A list of which nothing is known may hold anything where unknown fields are preserved.
                if child.is_none() && schema.is_some_and(|schema| schema.preserve_unknown) {
                    return;
                }
                for (at, item) in items.iter_mut().enumerate() {
                    let length = self.place.index(at);
                    self.walk(item, child, false);
                    self.place.back(length);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;
    use pretty_assertions::assert_eq;

    #[track_caller]
    fn check(schema: Value, object: Value, expected: Value, unknown: &[&str]) {
        let mut pruned = object;
        let found = prune(&mut pruned, &Schema::of(&schema));
        assert_eq!((pruned, found), (expected, unknown.iter().map(|s| s.to_string()).collect()));
    }

    #[test]
    fn unknown_fields_go() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "string"},
            "l": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string"}}}},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"q": {}}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"n": {"type": "object"}}},
        }}}});
        check(
            schema,
            json!({"kind": "K", "apiVersion": "g/v1", "metadata": {"x": 1}, "top": 1, "spec": {
                "a": "b", "zz": 1, "l": [{"p": "", "r": 1}], "m": {"k": {"q": 1, "s": 2}}, "free": {"any": {"x": 1}, "n": {"y": 1}}}}),
            json!({"kind": "K", "apiVersion": "g/v1", "metadata": {"x": 1}, "spec": {
                "a": "b", "l": [{"p": ""}], "m": {"k": {"q": 1}}, "free": {"any": {"x": 1}, "n": {}}}}),
            &["spec.free.n.y", "spec.l[0].r", "spec.m.k.s", "spec.zz", "top"],
        );
    }
}
