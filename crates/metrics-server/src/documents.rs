//! Discovery and OpenAPI of the group: what the API server in front merges into its own.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use serde_json::{Map, Value, json};

use crate::{GROUP, VERSION};

/// Plural, kind, whether it lives in namespaces.
pub(crate) const RESOURCES: [(&str, &str, bool); 2] =
    [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)];

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// `/apis/metrics.k8s.io/v1beta1`.
pub(crate) fn resource_list() -> Value {
    let rows: Vec<Value> = RESOURCES
        .iter()
        .map(|(name, kind, namespaced)| {
            json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]})
        })
        .collect();
    json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{VERSION}"), "resources": rows,
    })
}

/// `/openapi/v3`.
pub(crate) fn openapi_index() -> Value {
    let path = format!("apis/{GROUP}/{VERSION}");
    let url = format!("/openapi/v3/{path}");
    json!({"paths": {path: {"serverRelativeURL": url}}})
}

/// `/openapi/v3/apis/metrics.k8s.io/v1beta1`.
pub(crate) fn openapi_v3() -> Value {
    let mut settings = schemars::generate::SchemaSettings::openapi3();
    settings.definitions_path = "/components/schemas".into();
    let mut generator = schemars::SchemaGenerator::new(settings);
    generator.subschema_for::<ObjectMeta>();
    generator.subschema_for::<ListMeta>();
    let mut schemas: Map<String, Value> = generator.take_definitions(false).into_iter().collect();
    schemas.extend(definitions("#/components/schemas/"));
    json!({
        "openapi": "3.0.0", "info": {"title": "metrics-server", "version": "unversioned"},
        "paths": paths(false), "components": {"schemas": schemas},
    })
}

/// `/openapi/v2`. The metadata that it refers to is among the API server's own definitions, into which these are merged.
pub(crate) fn openapi_v2() -> Value {
    json!({
        "swagger": "2.0", "info": {"title": "metrics-server", "version": "unversioned"},
        "paths": paths(true), "definitions": definitions("#/definitions/"),
    })
}

fn schema_name(kind: &str) -> String {
    format!("io.k8s.metrics.pkg.apis.metrics.{VERSION}.{kind}")
}

fn group_version_kind(kind: &str) -> Value {
    json!({"group": GROUP, "version": VERSION, "kind": kind})
}

fn definitions(prefix: &str) -> Map<String, Value> {
    let reference = |name: &str| json!({"$ref": format!("{prefix}{name}")});
    let string = |description: &str| json!({"description": description, "type": "string"});
    let usage = json!({
        "description": "What was used of each resource: `cpu`, on average over the window, and `memory`.",
        "type": "object", "additionalProperties": {"type": "string"},
    });
    let (api_version, kind) =
        (string("Version of the schema of this object."), string("Kind of this object."));
    let time = json!({"description": "When the window ended.", "type": "string", "format": "date-time"});
    let window = string("Length of the window, such as `15s`.");
    let mut all = Map::new();
    let container = json!({
        "description": "What one container used.", "type": "object", "required": ["name", "usage"],
        "properties": {"name": string("Name of the container."), "usage": usage},
    });
    all.insert(schema_name("ContainerMetrics"), container);
    for (resource, kind_name, namespaced) in RESOURCES {
        let (field, used) = match namespaced {
            true => {
                let of = reference(&schema_name("ContainerMetrics"));
                (
                    "containers",
                    json!({"description": "The containers of the pod.", "type": "array", "items": of}),
                )
            }
            false => ("usage", usage.clone()),
        };
        let mut one = json!({
            "description": format!("What one of the {resource} used over a window of time."),
            "type": "object", "required": ["timestamp", "window", field],
            "properties": {
                "apiVersion": api_version, "kind": kind, "metadata": reference(&format!("{META}.ObjectMeta")),
                "timestamp": time, "window": window,
            },
            "x-kubernetes-group-version-kind": [group_version_kind(kind_name)],
        });
        one["properties"][field] = used;
        all.insert(schema_name(kind_name), one);
        let list_kind = format!("{kind_name}List");
        let items = json!({"type": "array", "items": reference(&schema_name(kind_name))});
        let list = json!({
            "description": format!("A list of {kind_name}."), "type": "object", "required": ["metadata", "items"],
            "properties": {
                "apiVersion": api_version, "kind": kind, "metadata": reference(&format!("{META}.ListMeta")),
                "items": items,
            },
            "x-kubernetes-group-version-kind": [group_version_kind(&list_kind)],
        });
        all.insert(schema_name(&list_kind), list);
    }
    all
}

fn paths(v2: bool) -> Map<String, Value> {
    let parameter = |name: &str, place: &str| {
        let mut parameter = json!({"name": name, "in": place, "uniqueItems": true});
        if place == "path" {
            parameter["required"] = json!(true);
        }
        match v2 {
            true => parameter["type"] = json!("string"),
            false => parameter["schema"] = json!({"type": "string", "uniqueItems": true}),
        }
        parameter
    };
    let operation = |action: &str, kind: &str, schema: &str, parameters: &[Value]| {
        let name = schema_name(schema);
        let ok = match v2 {
            true => json!({"description": "OK", "schema": {"$ref": format!("#/definitions/{name}")}}),
            false => json!({"description": "OK", "content": {"application/json": {"schema": {
                "$ref": format!("#/components/schemas/{name}"),
            }}}}),
        };
        json!({
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": group_version_kind(kind),
            "parameters": parameters, "responses": {"200": ok},
        })
    };
    let base = format!("/apis/{GROUP}/{VERSION}");
    let mut all = Map::new();
    for (resource, kind, namespaced) in RESOURCES {
        let selectors = [parameter("fieldSelector", "query"), parameter("labelSelector", "query")];
        let list = operation("list", kind, &format!("{kind}List"), &selectors);
        let mut shared = Vec::new();
        let mut collection = format!("{base}/{resource}");
        if namespaced {
            all.insert(collection, json!({"get": list.clone()}));
            collection = format!("{base}/namespaces/{{namespace}}/{resource}");
            shared.push(parameter("namespace", "path"));
        }
        all.insert(collection.clone(), json!({"get": list, "parameters": shared.clone()}));
        shared.push(parameter("name", "path"));
        let get = operation("get", kind, kind, &[]);
        all.insert(format!("{collection}/{{name}}"), json!({"get": get, "parameters": shared}));
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every reference in a document, and whether it leads to something there.
    fn dangling(value: &Value, document: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(reference) = map.get("$ref").and_then(Value::as_str)
                    && document.pointer(&reference[1..]).is_none()
                {
                    found.push(reference.to_owned());
                }
                map.values().for_each(|value| dangling(value, document, found));
            }
            Value::Array(list) => list.iter().for_each(|value| dangling(value, document, found)),
            _ => {}
        }
    }

    #[test]
    fn references_lead_somewhere() {
        let check = |document: Value, expected: &[&str]| {
            let mut found = Vec::new();
            dangling(&document, &document, &mut found);
            found.sort();
            found.dedup();
            assert_eq!(found, expected);
        };
        check(openapi_v3(), &[]);
        // These the API server has.
        let meta = ["ListMeta", "ObjectMeta"].map(|name| format!("#/definitions/{META}.{name}"));
        check(openapi_v2(), &meta.each_ref().map(String::as_str));
    }

    #[test]
    fn paths_of_both_resources() {
        let document = openapi_v3();
        let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
        let base = "/apis/metrics.k8s.io/v1beta1";
        let expected = [
            "nodes",
            "nodes/{name}",
            "pods",
            "namespaces/{namespace}/pods",
            "namespaces/{namespace}/pods/{name}",
        ];
        assert_eq!(paths, expected.map(|path| format!("{base}/{path}")).iter().collect::<Vec<_>>());
    }
}
