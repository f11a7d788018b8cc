//! What of a definition is published in OpenAPI documents: its schema, as `kubectl explain` reads it, with what every
//! resource has. Version 2 knows less, and clients of it are told less.
//!
//! Answers to `controller/openapi/builder` and `v2`.

use orlop_json::{Key, Map, Value, json};

use super::strategy::CustomKind;
use crate::http::openapi::{API_VERSION, KIND, LIST_METADATA, Version};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const EMBEDDED_API_VERSION: &str = "apiVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const EMBEDDED_KIND: &str = "kind is a string value representing the type of this object. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// The name of a kind's schema: `com.example.v1.Widget`.
pub fn name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').rev().collect();
    parts.extend([version, kind]);
    parts.join(".")
}

/// The schemas of a kind and of its list, by name.
pub fn schemas(kind: &CustomKind, version: Version) -> [(Key, Value); 2] {
    let definition = &kind.definition;
    let (group, served) = (&definition.group, &kind.version().name);
    let gvk = |kind: &str| json!([{"group": group, "version": served, "kind": kind}]);
    let mut schema = published(definition.raw_schema(kind.version()), version);
    schema["x-kubernetes-group-version-kind"] = gvk(&definition.kind);
    let own = name(group, served, &definition.kind);
    let list = json!({
        "description": format!("{} is a list of {}", definition.list_kind, definition.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"description": API_VERSION, "type": "string"},
            "items": {
                "description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", definition.plural),
                "type": "array",
                "items": version.reference(&own),
            },
            "kind": {"description": KIND, "type": "string"},
            "metadata": described(version, LIST_META, LIST_METADATA),
        },
        "x-kubernetes-group-version-kind": gvk(&definition.list_kind),
    });
    [(own.into(), schema), (name(group, served, &definition.list_kind).into(), list)]
}

/// What is said of a version's schema.
fn published(mut schema: Value, version: Version) -> Value {
    let preserves = flag(&schema, "x-kubernetes-preserve-unknown-fields");
    if !schema.is_object() || version == Version::V2 && preserves {
        // Clients would refuse every field but those that are named.
        return json!({"type": "object"});
    }
    unfold(&mut schema, version);
    embedded(&mut schema, version, true);
    as_resource(&mut schema, version, API_VERSION, KIND);
    schema
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name) == Some(&Value::Bool(true))
}

/// A reference with a description of its own.
fn described(version: Version, name: &str, description: &str) -> Value {
    let mut beside = Map::new();
    beside.insert("description".into(), json!(description));
    version.reference_with(name, beside)
}

fn as_resource(schema: &mut Value, version: Version, api_version: &str, kind: &str) {
    let Some(map) = schema.as_object_mut() else { return };
    let properties = map.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    properties["apiVersion"] = json!({"description": api_version, "type": "string"});
    properties["kind"] = json!({"description": kind, "type": "string"});
    properties["metadata"] = described(version, OBJECT_META, METADATA);
}

/// The schemas of a schema's values.
fn children(schema: &mut Value) -> impl Iterator<Item = &mut Value> {
    let map = schema.as_object_mut().into_iter().flatten();
    map.flat_map(|(key, value)| {
        let (many, one) = match key.as_str() {
            "properties" => (value.as_object_mut(), None),
            "items" | "additionalProperties" => (None, Some(value)),
            _ => (None, None),
        };
        many.into_iter().flat_map(|map| map.values_mut()).chain(one)
    })
}

/// Gives the resources inside of a schema what every resource has.
fn embedded(schema: &mut Value, version: Version, root: bool) {
    children(schema).for_each(|child| embedded(child, version, false));
    let says_nothing = version == Version::V2 && flag(schema, "x-kubernetes-preserve-unknown-fields");
    if root || says_nothing || !flag(schema, "x-kubernetes-embedded-resource") {
        return;
    }
    as_resource(schema, version, EMBEDDED_API_VERSION, EMBEDDED_KIND);
    let Some(map) = schema.as_object_mut() else { return };
    let required = map.entry("required").or_insert_with(|| json!([]));
    for name in ["kind", "apiVersion"] {
        if let Some(list) = required.as_array_mut().filter(|list| !list.iter().any(|known| known == name)) {
            list.push(json!(name));
        }
    }
}

fn int_or_string() -> Value {
    json!([{"type": "integer"}, {"type": "string"}])
}

/// Says in other words what extensions mean; leaves out what version 2 cannot say.
fn unfold(schema: &mut Value, version: Version) {
    if !schema.is_object() {
        return;
    }
    match version {
        Version::V2 => reduce(schema),
        Version::V3 => either_type(schema),
    }
    children(schema).for_each(|child| unfold(child, version));
}

/// `x-kubernetes-int-or-string` as `anyOf`, unless it says so itself.
fn either_type(schema: &mut Value) {
    let says_so = schema.get("anyOf") == Some(&int_or_string())
        || schema.pointer("/allOf/0/anyOf") == Some(&int_or_string());
    let Some(map) = schema.as_object_mut() else { return };
    if says_so || map.get("x-kubernetes-int-or-string") != Some(&Value::Bool(true)) {
        return;
    }
    if map.get("anyOf").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        map.insert("anyOf".into(), int_or_string());
    } else {
        let all = map.entry("allOf").or_insert_with(|| json!([]));
        if let Some(all) = all.as_array_mut() {
            all.insert(0, json!({"anyOf": int_or_string()}));
        }
    }
}

fn reduce(schema: &mut Value) {
    let nullable = flag(schema, "nullable");
    let preserves = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let nullable_fields: Vec<Key> = schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, property)| flag(property, "nullable"))
        .map(|(name, _)| name.clone())
        .collect();
    let nullable_values = schema.get("additionalProperties").is_some_and(|values| flag(values, "nullable"));
    let Some(map) = schema.as_object_mut() else { return };
    for field in ["allOf", "anyOf", "oneOf", "not"] {
        map.remove(field);
    }
    if nullable {
        // Null is no value there, so nothing is said about the type.
        map.remove("type");
        map.remove("nullable");
    }
    if nullable || preserves {
        map.remove("items");
        map.remove("properties");
    }
    let ty = map.get("type").and_then(Value::as_str).unwrap_or("");
    // kubectl understands neither lists of anything nor objects of anything.
    if ty == "array" && !map.contains_key("items") || ty == "object" && preserves {
        map.remove("type");
    }
    if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut) {
        required
            .retain(|name| !nullable_values && !nullable_fields.iter().any(|field| *name == *field.as_str()));
        if required.is_empty() {
            map.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pretty_assertions::assert_eq;

    #[test]
    fn names_are_reversed_domains() {
        assert_eq!(name("stable.example.com", "v1", "Widget"), "com.example.stable.v1.Widget");
    }

    #[test]
    fn unfolded() {
        let check = |version: Version, schema: Value, expected: Value| {
            let mut found = schema.clone();
            unfold(&mut found, version);
            assert_eq!(found, expected, "{schema}");
        };
        let either = json!({"x-kubernetes-int-or-string": true});
        check(
            Version::V3,
            json!({"items": either, "type": "array", "nullable": true}),
            json!({"type": "array", "nullable": true,
                "items": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}),
        );
        check(
            Version::V3,
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"minimum": 1}]}),
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"minimum": 1}],
                "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}]}),
        );
        check(
            Version::V2,
            json!({"type": "object", "required": ["n", "d"], "properties": {
                "n": {"type": "string", "nullable": true, "pattern": "a"},
                "i": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "p": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"a": {"type": "string"}}},
                "l": {"type": "array", "x-kubernetes-preserve-unknown-fields": true, "items": {"type": "object"}},
                "m": {"type": "object", "required": ["x"],
                    "additionalProperties": {"type": "string", "nullable": true}},
                "d": {"type": "integer", "default": 3, "not": {"enum": [4]}},
            }}),
            json!({"type": "object", "required": ["d"], "properties": {
                "n": {"pattern": "a"},
                "i": {"x-kubernetes-int-or-string": true},
                "p": {"x-kubernetes-preserve-unknown-fields": true},
                "l": {"x-kubernetes-preserve-unknown-fields": true},
                "m": {"type": "object", "additionalProperties": {}},
                "d": {"type": "integer", "default": 3},
            }}),
        );
    }

    #[test]
    fn what_is_published() {
        let keys = |schema: Value, version: Version| -> Vec<Key> {
            let found = published(schema, version);
            let properties = found.get("properties").and_then(Value::as_object);
            properties.into_iter().flatten().map(|(name, _)| name.clone()).collect()
        };
        let own = ["apiVersion", "kind", "metadata"];
        let schema = json!({"type": "object"});
        assert_eq!(keys(schema.clone(), Version::V2), own);
        assert_eq!(keys(schema, Version::V3), own);
        let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        assert_eq!(keys(anything.clone(), Version::V3), own);
        // Nothing is known of it, so nothing is said that a client could take for all of it.
        assert_eq!(published(anything, Version::V2), json!({"type": "object"}));
        assert_eq!(published(Value::Null, Version::V3), json!({"type": "object"}));
        let template = json!({"type": "object", "properties": {"t": {
            "type": "object", "x-kubernetes-embedded-resource": true, "required": ["kind"]}}});
        let found = published(template, Version::V3);
        assert_eq!(found["properties"]["t"]["required"], json!(["kind", "apiVersion"]));
        assert_eq!(found["properties"]["t"]["properties"]["kind"]["description"], EMBEDDED_KIND);
    }
}
