//! What other servers publish about themselves, read by this one and merged into its own documents.

use bytes::Bytes;
use orlop_json::{Map, Value, json};

use super::backend::Backend;
use super::check::get;
use super::text;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// The OpenAPI documents of a group and version of another server.
#[derive(Debug, Default)]
pub struct OpenApi {
    /// Version 3, and its hash.
    pub v3: Option<(Bytes, String)>,
    /// Paths, definitions and shared parameters of version 2.
    pub v2: Option<Value>,
}

/// The resources of a group and version in the form of aggregated discovery.
pub async fn resources(
    backend: &Backend,
    host: &str,
    group: &str,
    version: &str,
) -> Result<Vec<Value>, String> {
    let (status, headers, bytes) = get(backend, host, "/apis", AGGREGATED).await?;
    let aggregated = headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains("as=APIGroupDiscoveryList"));
    if (200..300).contains(&status) && aggregated {
        let all: Value = orlop_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        let found = all["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|item| text(item, "/metadata/name") == group)
            .filter_map(|item| item["versions"].as_array())
            .flatten()
            .find(|v| v["version"] == version);
        if let Some(found) = found {
            return Ok(found["resources"].as_array().cloned().unwrap_or_default());
        }
    }
    let path = format!("/apis/{group}/{version}");
    let (status, _, bytes) = get(backend, host, &path, "application/json").await?;
    if !(200..300).contains(&status) {
        return Err(format!("{path}: status {status}"));
    }
    let list: Value = orlop_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    Ok(from_resource_list(&list, group, version))
}

/// Turns an `APIResourceList` into the aggregated form: subresources stand in their resource.
fn from_resource_list(list: &Value, group: &str, version: &str) -> Vec<Value> {
    let rows: Vec<&Value> = list["resources"].as_array().into_iter().flatten().collect();
    let or = |value: &Value, default: &str| {
        let own = value.as_str().unwrap_or("");
        if own.is_empty() { default.to_string() } else { own.to_string() }
    };
    let kind = |row: &Value| json!({"group": or(&row["group"], group), "version": or(&row["version"], version), "kind": row["kind"]});
    rows.iter()
        .filter(|row| !text(row, "/name").contains('/'))
        .map(|row| {
            let name = text(row, "/name");
            let mut out = json!({
                "resource": name,
                "responseKind": kind(row),
                "scope": if row["namespaced"] == true { "Namespaced" } else { "Cluster" },
                "singularResource": text(row, "/singularName"),
                "verbs": row["verbs"],
            });
            for key in ["shortNames", "categories"] {
                if row[key].as_array().is_some_and(|list| !list.is_empty()) {
                    out[key] = row[key].clone();
                }
            }
            let subresources: Vec<Value> = rows
                .iter()
                .filter_map(|sub| {
                    let subresource = text(sub, "/name").strip_prefix(name)?.strip_prefix('/')?;
                    Some(
                        json!({"subresource": subresource, "responseKind": kind(sub), "verbs": sub["verbs"]}),
                    )
                })
                .collect();
            if !subresources.is_empty() {
                out["subresources"] = Value::Array(subresources);
            }
            out
        })
        .collect()
}

/// The OpenAPI documents; what cannot be read is left out.
pub async fn openapi(backend: &Backend, host: &str, group: &str, version: &str) -> OpenApi {
    let own = format!("/apis/{group}/{version}");
    let v2 = get(backend, host, "/openapi/v2", "application/json").await.ok();
    let v2 = v2.filter(|(status, ..)| *status == 200).and_then(|(_, _, bytes)| {
        let document: Value = orlop_json::from_slice(&bytes).ok()?;
        let paths: Map = document["paths"]
            .as_object()?
            .iter()
            .filter(|(path, _)| {
                path.strip_prefix(&own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
            .map(|(path, item)| (path.clone(), item.clone()))
            .collect();
        let of = |section: &str| document.get(section).cloned().unwrap_or_else(|| json!({}));
        Some(json!({"paths": paths, "definitions": of("definitions"), "parameters": of("parameters")}))
    });
    OpenApi { v3: v3(backend, host, group, version).await, v2 }
}

async fn v3(backend: &Backend, host: &str, group: &str, version: &str) -> Option<(Bytes, String)> {
    let (status, _, bytes) = get(backend, host, "/openapi/v3", "application/json").await.ok()?;
    let index: Value = orlop_json::from_slice(&bytes).ok().filter(|_| status == 200)?;
    let entry = index["paths"].get(format!("apis/{group}/{version}"))?;
    let url = entry["serverRelativeURL"].as_str().filter(|url| url.starts_with("/openapi/v3/"))?;
    let (status, _, bytes) = get(backend, host, url, "application/json").await.ok()?;
    if status != 200 {
        return None;
    }
    use sha2::Digest as _;
    let hash: String = sha2::Sha256::digest(&bytes).iter().map(|b| format!("{b:02X}")).collect();
    Some((bytes, hash))
}

/// Adds another server's version 2 document to this one's. Its definitions and shared parameters keep their names unless
/// this server means something else by them.
pub fn merge_v2(document: &mut Value, other: &Value) {
    let mut references: Map = Map::new();
    let mut added: Vec<(&str, String, Value)> = Vec::new();
    for section in ["definitions", "parameters"] {
        let known = &document[section];
        for (name, own) in other[section].as_object().into_iter().flatten() {
            match known.get(name) {
                Some(same) if same == own => {}
                Some(_) => {
                    let free = (2..).map(|n| format!("{name}_v{n}")).find(|free| known.get(free).is_none());
                    let Some(free) = free else { continue };
                    references
                        .insert(format!("#/{section}/{name}").into(), json!(format!("#/{section}/{free}")));
                    added.push((section, free, own.clone()));
                }
                None => added.push((section, name.clone().into(), own.clone())),
            }
        }
    }
    for (section, name, mut own) in added {
        rename(&mut own, &references);
        document[section][name] = own;
    }
    for (path, item) in other["paths"].as_object().into_iter().flatten() {
        let mut item = item.clone();
        rename(&mut item, &references);
        document["paths"][path] = item;
    }
}

/// Lets references follow what was renamed. Parsed JSON is nested at most 128 deep.
fn rename(value: &mut Value, references: &Map) {
    if references.is_empty() {
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                let target = value.as_str().filter(|_| key == "$ref").and_then(|text| references.get(text));
                match target {
                    Some(target) => *value = target.clone(),
                    None => rename(value, references),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| rename(value, references)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_aggregated() {
        let list = json!({"resources": [
            {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get"], "shortNames": ["th"]},
            {"name": "things/status", "namespaced": true, "kind": "Thing", "verbs": ["get", "patch"]},
            {"name": "things/scale", "namespaced": true, "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get"]},
        ]});
        let expected = json!([{
            "resource": "things", "responseKind": {"group": "g", "version": "v1", "kind": "Thing"},
            "scope": "Namespaced", "singularResource": "thing", "verbs": ["get"], "shortNames": ["th"],
            "subresources": [
                {"subresource": "status", "responseKind": {"group": "g", "version": "v1", "kind": "Thing"}, "verbs": ["get", "patch"]},
                {"subresource": "scale", "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}, "verbs": ["get"]},
            ],
        }]);
        assert_eq!(Value::Array(from_resource_list(&list, "g", "v1")), expected);
    }

    #[test]
    fn definitions_of_the_same_name_do_not_mix() {
        let mut document = json!({"paths": {"/a": {}}, "definitions": {"Same": {"type": "object"}, "Other": {"type": "string"}}});
        let reference = |name: &str| json!({"schema": {"$ref": format!("#/definitions/{name}")}});
        let other = json!({
            "paths": {"/apis/g/v1": [reference("Other"), reference("Same"), reference("New")]},
            "definitions": {"Same": {"type": "object"}, "Other": {"properties": {"x": {"$ref": "#/definitions/Other"}}}, "New": {}},
        });
        merge_v2(&mut document, &other);
        assert_eq!(
            document["paths"]["/apis/g/v1"],
            json!([reference("Other_v2"), reference("Same"), reference("New")])
        );
        assert_eq!(document["definitions"]["Other"], json!({"type": "string"}));
        assert_eq!(document["definitions"]["Other_v2"]["properties"]["x"]["$ref"], "#/definitions/Other_v2");
        assert_eq!(document["definitions"].as_object().map(|d| d.len()), Some(4));
    }

    #[test]
    fn shared_parameters_come_along() {
        let mut document = json!({"paths": {}, "definitions": {}, "parameters": {"a-1": {"name": "a"}, "b-1": {"name": "b"}}});
        let reference = |name: &str| json!([{"$ref": format!("#/parameters/{name}")}]);
        let other = json!({
            "paths": {"/apis/g/v1": {"parameters": reference("b-1")}, "/apis/g/v1/x": {"parameters": reference("c-1")}},
            "parameters": {"a-1": {"name": "a"}, "b-1": {"name": "else"}, "c-1": {"name": "c"}},
        });
        merge_v2(&mut document, &other);
        assert_eq!(document["paths"]["/apis/g/v1"]["parameters"], reference("b-1_v2"));
        assert_eq!(document["paths"]["/apis/g/v1/x"]["parameters"], reference("c-1"));
        let names: Vec<&orlop_json::Key> =
            document["parameters"].as_object().into_iter().flat_map(|all| all.keys()).collect();
        assert_eq!(names, ["a-1", "b-1", "b-1_v2", "c-1"]);
    }
}
