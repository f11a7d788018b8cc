//! What of a definition is published in OpenAPI documents: its schema, as `kubectl explain` reads it, with what every
//! resource has. Version 2 knows less, and clients of it are told less.
//!
//! Answers to `controller/openapi/builder` and `v2`.

use serde_json::{Map, Value, json};

use super::strategy::CustomKind;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_METADATA: &str = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// The name of a kind's schema: `com.example.v1.Widget`.
pub fn name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').rev().collect();
    parts.extend([version, kind]);
    parts.join(".")
}

/// The schemas of a kind and of its list, by name; `prefix` is what references begin with.
pub fn schemas(kind: &CustomKind, prefix: &str, v2: bool) -> Vec<(String, Value)> {
    let definition = &kind.definition;
    let (group, version) = (&definition.group, &kind.version().name);
    let mut schema = definition.raw_schema(kind.version());
    if !schema.is_object() {
        schema = json!({"type": "object"});
    }
    if v2 {
        reduce(&mut schema);
    }
    embedded(&mut schema, prefix, v2);
    // A schema that preserves everything at the root says nothing about it.
    as_resource(&mut schema, prefix, v2);
    let gvk = |kind: &str| json!([{"group": group, "version": version, "kind": kind}]);
    schema["x-kubernetes-group-version-kind"] = gvk(&definition.kind);
    let own = name(group, version, &definition.kind);
    let list = json!({
        "description": format!("{} is a list of {}", definition.list_kind, definition.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"description": API_VERSION, "type": "string"},
            "items": {
                "description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", definition.plural),
                "type": "array",
                "items": reference(prefix, &own),
            },
            "kind": {"description": KIND, "type": "string"},
            "metadata": described(prefix, LIST_META, LIST_METADATA, v2),
        },
        "x-kubernetes-group-version-kind": gvk(&definition.list_kind),
    });
    vec![(own, schema), (name(group, version, &definition.list_kind), list)]
}

fn reference(prefix: &str, name: &str) -> Value {
    json!({"$ref": format!("{prefix}{name}")})
}

/// A reference with a description of its own.
fn described(prefix: &str, name: &str, description: &str, v2: bool) -> Value {
    if v2 {
        json!({"$ref": format!("{prefix}{name}"), "description": description})
    } else {
        json!({"allOf": [reference(prefix, name)], "description": description})
    }
}

fn as_resource(schema: &mut Value, prefix: &str, v2: bool) {
    let Some(map) = schema.as_object_mut() else { return };
    let properties = map.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    properties["apiVersion"] = json!({"description": API_VERSION, "type": "string"});
    properties["kind"] = json!({"description": KIND, "type": "string"});
    properties["metadata"] = described(prefix, OBJECT_META, METADATA, v2);
}

/// Gives the resources inside of a schema what every resource has.
fn embedded(schema: &mut Value, prefix: &str, v2: bool) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|property| embedded_in(property, prefix, v2));
    }
    for field in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(field).filter(|inner| inner.is_object()) {
            embedded_in(inner, prefix, v2);
        }
    }
}

fn embedded_in(schema: &mut Value, prefix: &str, v2: bool) {
    embedded(schema, prefix, v2);
    if schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true)) {
        as_resource(schema, prefix, v2);
    }
}

/// Leaves out what version 2 cannot say.
fn reduce(schema: &mut Value) {
    let flag = |schema: &Value, name: &str| schema.get(name) == Some(&Value::Bool(true));
    let nullable = flag(schema, "nullable");
    let preserves = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let either = flag(schema, "x-kubernetes-int-or-string");
    let Some(map) = schema.as_object_mut() else { return };
    for field in ["allOf", "anyOf", "oneOf", "not", "nullable", "default"] {
        map.shift_remove(field);
    }
    if nullable {
        // Null is no value there, so nothing is said about the type at all.
        for field in ["type", "items", "properties", "additionalProperties", "enum"] {
            map.shift_remove(field);
        }
    }
    if preserves {
        map.shift_remove("items");
        map.shift_remove("properties");
    }
    if either {
        map.shift_remove("type");
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(reduce);
    }
    for field in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(field).filter(|inner| inner.is_object()) {
            reduce(inner);
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
    fn version_two_knows_less() {
        let mut schema = json!({"type": "object", "properties": {
            "n": {"type": "string", "nullable": true},
            "i": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "p": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}},
            "d": {"type": "integer", "default": 3},
        }});
        reduce(&mut schema);
        assert_eq!(
            schema,
            json!({"type": "object", "properties": {
                "n": {}, "i": {"x-kubernetes-int-or-string": true},
                "p": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}, "d": {"type": "integer"},
            }})
        );
    }
}
