//! Discovery: `/api`, `/apis`, the resources of each group and version, and all at once in the aggregated form.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header;
use orlop_api::names;
use orlop_api::status::ApiError;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::body::{self, Response};
use super::negotiate::{Accept, MEDIA_TYPES};
use super::pipeline::Request;
use crate::ApiServer;
use crate::registry::render;
use crate::resources::{Resource, Resources, Table};

/// Groups in the order upstream prefers them; unknown ones follow by name.
const GROUP_ORDER: [&str; 20] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

/// A group's versions, the preferred one first, with their resources.
type Versions = Vec<(String, Vec<Arc<Resource>>)>;

/// Group → versions → resources, in the order of discovery.
fn groups(table: &Table) -> Vec<(String, Versions)> {
    let mut found: HashMap<&str, Versions> = HashMap::new();
    for resource in &table.list {
        let versions = found.entry(resource.group.as_str()).or_default();
        match versions.iter_mut().find(|(version, _)| *version == resource.version) {
            Some((_, resources)) => resources.push(resource.clone()),
            None => versions.push((resource.version.clone(), vec![resource.clone()])),
        }
    }
    let mut found: Vec<(String, Versions)> =
        found.into_iter().map(|(group, versions)| (group.to_string(), versions)).collect();
    let rank = |group: &str| GROUP_ORDER.iter().position(|g| *g == group).unwrap_or(GROUP_ORDER.len());
    found.sort_by(|a, b| rank(&a.0).cmp(&rank(&b.0)).then_with(|| a.0.cmp(&b.0)));
    for (_, versions) in &mut found {
        versions.sort_by(|a, b| names::compare_versions(&b.0, &a.0));
    }
    found
}

fn segments(path: &str) -> Vec<&str> {
    path.split('/').filter(|s| !s.is_empty()).collect()
}

/// Whether this is a path of discovery that exists.
pub fn is_path(server: &ApiServer, path: &str) -> bool {
    let table = server.registry.resources.table();
    let has = |group: &str, version: Option<&str>| {
        table.list.iter().any(|r| r.group == group && version.is_none_or(|version| r.version == version))
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
        && let Some(version) = aggregated_version(request)
    {
        let (bytes, etag) =
            server.discovery.aggregated(&server.registry.resources, parts[0] == "api", version);
        let content_type = match version {
            "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        };
        let same = request
            .parts
            .headers
            .get(header::IF_NONE_MATCH)
            .is_some_and(|value| value.as_bytes() == etag.as_bytes());
        let mut response = if same {
            body::response(304, content_type, "")
        } else {
            body::response(200, content_type, bytes)
        };
        if let Ok(value) = etag.parse() {
            response.headers_mut().insert(header::ETAG, value);
        }
        response.headers_mut().insert(header::VARY, http::HeaderValue::from_static("Accept"));
        return Ok(response);
    }
    let table = server.registry.resources.table();
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
            let list: Vec<Value> = groups(&table)
                .iter()
                .filter(|(group, _)| !group.is_empty())
                .map(|(group, versions)| group_value(group, versions.iter().map(|(v, _)| v), false))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
        }
        ["apis", group] => {
            let all = groups(&table);
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
    generation: u64,
    documents: HashMap<(bool, &'static str), (Bytes, String)>,
}

impl Documents {
    /// A document and its hash, from memory unless the table has changed.
    fn aggregated(&self, resources: &Resources, core: bool, version: &'static str) -> (Bytes, String) {
        let table = resources.table();
        {
            let mut kept = self.0.lock();
            if kept.generation < table.generation {
                *kept = Kept { generation: table.generation, documents: HashMap::new() };
            } else if let Some(found) = kept.documents.get(&(core, version)) {
                return found.clone();
            }
        }
        let bytes = Bytes::from(aggregated(&table, core, version).to_string());
        let made = (bytes.clone(), etag(&bytes));
        let mut kept = self.0.lock();
        if kept.generation == table.generation {
            kept.documents.insert((core, version), made.clone());
        }
        made
    }
}

fn etag(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02X}")).collect();
    format!("\"{hex}\"")
}

/// The version of the aggregated form that the client accepts before the plain one.
fn aggregated_version(request: &Request) -> Option<&'static str> {
    let accept = request.parts.headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    for clause in accept.flat_map(|value| value.split(',')) {
        let mut parts = clause.split(';').map(str::trim);
        if !matches!(parts.next(), Some("application/json")) {
            continue;
        }
        let parameters: Vec<&str> = parts.collect();
        if parameters.contains(&"g=apidiscovery.k8s.io") && parameters.contains(&"as=APIGroupDiscoveryList") {
            if parameters.contains(&"v=v2") {
                return Some("v2");
            }
            if parameters.contains(&"v=v2beta1") {
                return Some("v2beta1");
            }
        } else if parameters.is_empty() {
            return None;
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

fn aggregated(table: &Table, core: bool, version: &str) -> Value {
    let items: Vec<Value> = groups(table)
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|(version, resources)| {
                    let resources: Vec<Value> = resources.iter().map(|r| aggregated_resource(r)).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
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
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
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
