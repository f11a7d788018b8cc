//! Discovery: `/api`, `/apis`, the resources of each group and version, and all at once in the aggregated form.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use orlop_api::names;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};
use parking_lot::Mutex;

use super::body::{self, Response};
use super::negotiate::{Accept, Format, MEDIA_TYPES};
use super::pipeline::Request;
use crate::ApiServer;
use crate::aggregation::{Published, Remote};
use crate::registry::render;
use crate::resources::{Resource, Table};

/// Who serves a group and version.
enum Served {
    /// This server.
    Here(Vec<Arc<Resource>>),
    /// Another one.
    Elsewhere(Arc<Remote>),
}

/// A group's versions, the preferred one first.
type Versions = Vec<(String, Served)>;

/// Group → versions → who serves them, in the order that their APIServices ask for.
fn groups(table: &Table, published: &Published) -> Vec<(String, Versions)> {
    let mut found: HashMap<&str, Versions> = HashMap::new();
    for ((group, version), remote) in &published.remotes {
        found.entry(group).or_default().push((version.clone(), Served::Elsewhere(remote.clone())));
    }
    for resource in &table.list {
        let versions = found.entry(resource.group.as_str()).or_default();
        match versions.iter_mut().find(|(version, _)| *version == resource.version) {
            Some((_, Served::Here(resources))) => resources.push(resource.clone()),
            Some((_, Served::Elsewhere(_))) => {}
            None => versions.push((resource.version.clone(), Served::Here(vec![resource.clone()]))),
        }
    }
    let mut found: Vec<(i64, String, Versions)> = found
        .into_iter()
        .map(|(group, versions)| {
            let priority = versions.iter().map(|(version, _)| published.priority(group, version).group).max();
            (priority.unwrap_or(0), group.to_string(), versions)
        })
        .collect();
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    for (_, group, versions) in &mut found {
        versions.sort_by(|a, b| {
            let priority = |version: &str| published.priority(group, version).version;
            priority(&b.0).cmp(&priority(&a.0)).then_with(|| names::compare_versions(&b.0, &a.0))
        });
    }
    found.into_iter().map(|(_, group, versions)| (group, versions)).collect()
}

fn segments(path: &str) -> Vec<&str> {
    path.split('/').filter(|s| !s.is_empty()).collect()
}

/// Whether this is a path of discovery that exists.
pub fn is_path(server: &ApiServer, path: &str) -> bool {
    let table = server.registry.resources.table();
    let has = |group: &str, version: Option<&str>| {
        table.list.iter().any(|r| r.group == group && version.is_none_or(|version| r.version == version))
            || version.is_none() && server.aggregator.published().remotes.keys().any(|(g, _)| g == group)
    };
    match segments(path).as_slice() {
        ["api"] | ["apis"] => true,
        ["api", version] => has("", Some(version)),
        ["apis", group] => has(group, None),
        ["apis", group, version] => has(group, Some(version)),
        _ => false,
    }
}

/// Answers a path of discovery.
pub fn serve(server: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let parts = segments(&request.info.path);
    if matches!(parts.as_slice(), ["api"] | ["apis"])
        && let Some(format) = aggregated_form(&request.parts.headers)
    {
        let (bytes, etag) = server.discovery.aggregated(server, parts[0] == "api", format);
        let content_type = match format {
            Format::Json => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Format::Yaml => "application/yaml;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Format::Protobuf => {
                "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
            }
        };
        let asked = request.parts.headers.get(header::IF_NONE_MATCH);
        let mut response = if asked.is_some_and(|value| value.as_bytes() == etag.as_bytes()) {
            body::response(304, content_type, "")
        } else {
            body::response(200, content_type, bytes)
        };
        let headers = response.headers_mut();
        if let Ok(value) = etag.parse() {
            headers.insert(header::ETAG, value);
        }
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        return Ok(response);
    }
    let table = server.registry.resources.table();
    let published = server.aggregator.published();
    let value = match parts.as_slice() {
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{
                "clientCIDR": "0.0.0.0/0",
                "serverAddress": format!("{}:{}", server.advertise_address(), server.options.bind_address.port()),
            }],
        }),
        ["apis"] => {
            let list: Vec<Value> = groups(&table, &published)
                .iter()
                .filter(|(group, _)| !group.is_empty())
                .map(|(group, versions)| group_value(group, versions.iter().map(|(v, _)| v), false))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
        }
        ["apis", group] => {
            let all = groups(&table, &published);
            let Some((_, versions)) = all.iter().find(|(g, _)| g == group) else {
                return Err(ApiError::path_not_found());
            };
            group_value(group, versions.iter().map(|(v, _)| v), true)
        }
        ["api", version] => resource_list(&table, "", version),
        ["apis", group, version] => resource_list(&table, group, version),
        _ => return Err(ApiError::path_not_found()),
    };
    let accept = Accept::negotiate(&request.parts.headers, request.query.get("pretty"))
        .map_err(|_| ApiError::not_acceptable(&MEDIA_TYPES))?;
    Ok(body::response(200, accept.format.content_type(), render::encode(&value, accept)))
}

/// The aggregated documents of one state of the table.
#[derive(Default)]
pub struct Documents(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// Of the table and of what the other servers publish.
    generation: (u64, u64),
    documents: HashMap<(bool, &'static str), (Bytes, String)>,
}

impl Documents {
    /// A document and its hash, from memory unless something has changed.
    fn aggregated(&self, server: &ApiServer, core: bool, format: Format) -> (Bytes, String) {
        let key = (core, format.content_type());
        let (table, published) = (server.registry.resources.table(), server.aggregator.published());
        let generation = (table.generation, published.generation);
        {
            let mut kept = self.0.lock();
            if kept.generation < generation {
                *kept = Kept { generation, documents: HashMap::new() };
            } else if let Some(found) = kept.documents.get(&key) {
                return found.clone();
            }
        }
        let accept = Accept { format, ..Accept::JSON };
        let bytes = render::encode(&aggregated(&table, &published, core), accept);
        let made = (bytes.clone(), etag(&bytes));
        let mut kept = self.0.lock();
        if kept.generation == generation {
            kept.documents.insert(key, made.clone());
        }
        made
    }
}

fn etag(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02X}")).collect();
    format!("\"{hex}\"")
}

/// The form in which the client takes everything at once, if it prefers that to the plain lists.
fn aggregated_form(headers: &HeaderMap) -> Option<Format> {
    let header: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let header = header.join(",");
    let parameter = |clause: &str, name: &str| {
        let pairs = clause.split(';').skip(1).filter_map(|part| part.trim().split_once('='));
        pairs.filter(|(key, _)| *key == name).last().map(|(_, value)| value.to_owned())
    };
    let mut clauses: Vec<(f32, &str)> = header
        .split(',')
        .map(|clause| (parameter(clause, "q").and_then(|q| q.parse().ok()).unwrap_or(1.0), clause.trim()))
        .collect();
    clauses.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, clause) in clauses {
        let format = match clause.split(';').next().unwrap_or("").trim() {
            "application/json" | "application/*" | "*/*" => Format::Json,
            "application/yaml" => Format::Yaml,
            "application/vnd.kubernetes.protobuf" => Format::Protobuf,
            _ => continue,
        };
        match ["g", "v", "as"].map(|name| parameter(clause, name)).each_ref().map(Option::as_deref) {
            [None, None, None] => return None,
            [Some("apidiscovery.k8s.io"), Some("v2"), Some("APIGroupDiscoveryList")] => return Some(format),
            _ => {}
        }
    }
    None
}

fn group_value<'a>(group: &str, versions: impl Iterator<Item = &'a String>, alone: bool) -> Value {
    let versions: Vec<Value> = versions
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    if alone {
        json!({"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": versions, "preferredVersion": preferred})
    } else {
        json!({"name": group, "versions": versions, "preferredVersion": preferred})
    }
}

fn resource_list(table: &Table, group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for resource in table.list.iter().filter(|r| r.group == group && r.version == version) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        if !resource.storage_version_hash.is_empty() {
            entry["storageVersionHash"] = json!(resource.storage_version_hash);
        }
        list.push(entry);
        for sub in &resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, sub.name),
                "singularName": "",
                "namespaced": resource.namespaced,
            });
            if let Some(group) = &sub.group {
                entry["group"] = json!(group);
                entry["version"] = json!(sub.version);
            }
            entry["kind"] = json!(sub.kind);
            entry["verbs"] = json!(sub.verbs);
            list.push(entry);
        }
    }
    let group_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    let mut out = json!({"kind": "APIResourceList"});
    // The core group's list has no apiVersion, for clients older than groups.
    if !group.is_empty() {
        out["apiVersion"] = json!("v1");
    }
    out["groupVersion"] = json!(group_version);
    out["resources"] = Value::Array(list);
    out
}

fn aggregated(table: &Table, published: &Published, core: bool) -> Value {
    let items: Vec<Value> = groups(table, published)
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|(version, served)| match served {
                    Served::Here(resources) => {
                        let resources: Vec<Value> =
                            resources.iter().map(|r| aggregated_resource(r)).collect();
                        json!({"version": version, "resources": resources, "freshness": "Current"})
                    }
                    // What was last seen of a server that is gone is still shown, marked as such.
                    Served::Elsewhere(remote) => json!({
                        "version": version,
                        "resources": *remote.resources,
                        "freshness": if remote.available { "Current" } else { "Stale" },
                    }),
                })
                .collect();
            let mut metadata = json!({"creationTimestamp": null});
            if !group.is_empty() {
                metadata["name"] = json!(group);
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut out = json!({
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        out["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        out["categories"] = json!(resource.categories);
    }
    if !resource.subresources.is_empty() {
        out["subresources"] = resource
            .subresources
            .iter()
            .map(|sub| {
                json!({
                    "subresource": sub.name,
                    "responseKind": {
                        "group": sub.group.as_deref().unwrap_or(&resource.group),
                        "version": sub.version.as_deref().unwrap_or(&resource.version),
                        "kind": sub.kind,
                    },
                    "verbs": sub.verbs,
                })
            })
            .collect();
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn forms() {
        let check = |accept: &str, expected: Option<Format>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(aggregated_form(&headers), expected, "{accept}");
        };
        let v2 = "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        check(&format!("application/json;{v2}"), Some(Format::Json));
        check(&format!("application/json;{v2};profile=nopeer, application/json"), Some(Format::Json));
        check(&format!("application/yaml;{v2}"), Some(Format::Yaml));
        check(
            &format!("application/vnd.kubernetes.protobuf;{v2},application/json;{v2}"),
            Some(Format::Protobuf),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io",
            Some(Format::Protobuf),
        );
        check(&format!("application/json, application/json;{v2}"), None);
        check(&format!("application/json;q=0.5, application/json;{v2}"), Some(Format::Json));
        check(&format!("*/*, application/json;{v2}"), None);
        // The beta form is gone.
        check("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList", None);
        check("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscovery", None);
    }
}
