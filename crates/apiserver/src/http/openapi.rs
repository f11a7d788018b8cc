//! OpenAPI documents: schemas from `k8s-openapi`'s types, paths from the resource table. Built when first asked for
//! and kept.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header;
use orlop_api::status::ApiError;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::body::{self, Response};
use super::pipeline::Request;
use crate::ApiServer;
use crate::resources::Resource;

/// The documents made so far, by path, with their hashes.
#[derive(Default)]
pub struct Documents(Mutex<HashMap<String, Document>>);

struct Document {
    stamp: u64,
    bytes: Bytes,
    hash: String,
}

/// Whether this is a path of OpenAPI.
pub fn is_path(path: &str) -> bool {
    path == "/openapi/v2" || path == "/openapi/v3" || path.starts_with("/openapi/v3/")
}

/// Answers it.
pub fn serve(server: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let path = request.info.path.trim_end_matches('/');
    if path == "/openapi/v3" {
        return Ok(body::json(200, &index(server)));
    }
    if path == "/openapi/v2" {
        let Some((name, content_type)) = v2_form(request) else {
            return Ok(body::text(406, ""));
        };
        let (bytes, hash) = document(server, name).ok_or_else(ApiError::path_not_found)?;
        return Ok(with_etag(request, content_type, bytes, &hash));
    }
    let Some((bytes, hash)) = document(server, path) else {
        return Ok(body::text(404, "404 page not found\n"));
    };
    Ok(with_etag(request, "application/json", bytes, &hash))
}

/// Under which name the version 2 document is kept as protobuf.
const V2_PROTOBUF: &str = "/openapi/v2#protobuf";

/// The name of the document and its content type, by the `Accept` header; `None` = neither form is accepted.
fn v2_form(request: &Request) -> Option<(&'static str, &'static str)> {
    const JSON: (&str, &str) = ("/openapi/v2", "application/json");
    let header: Vec<&str> =
        request.parts.headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let header = header.join(",");
    if header.trim().is_empty() {
        return Some(JSON);
    }
    header.split(',').find_map(|clause| match clause.split(';').next().unwrap_or("").trim() {
        "application/json" | "application/*" | "*/*" => Some(JSON),
        // The first is what clients of old ask for; media types have no `@`.
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
        | "application/com.github.proto-openapi.spec.v2.v1.0+protobuf" => {
            Some((V2_PROTOBUF, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"))
        }
        _ => None,
    })
}

fn with_etag(request: &Request, content_type: &'static str, bytes: Bytes, hash: &str) -> Response {
    let etag = format!("\"{hash}\"");
    let same =
        request.parts.headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
    let mut response =
        if same { body::response(304, content_type, "") } else { body::response(200, content_type, bytes) };
    if let Ok(value) = etag.parse() {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// The group versions served, as document paths: `api/v1`, `apis/apps/v1`.
fn document_paths(server: &ApiServer) -> Vec<String> {
    let mut paths: Vec<String> = server.registry.resources.table().list.iter().map(|r| prefix(r)).collect();
    paths.dedup();
    paths.sort();
    paths.dedup();
    paths
}

fn prefix(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("api/{}", resource.version)
    } else {
        format!("apis/{}/{}", resource.group, resource.version)
    }
}

fn index(server: &ApiServer) -> Value {
    let mut paths = Map::new();
    for path in document_paths(server) {
        if let Some((_, hash)) = document(server, &format!("/openapi/v3/{path}")) {
            paths.insert(
                path.clone(),
                json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
            );
        }
    }
    for remote in server.aggregator.published().remotes.values() {
        if let Some((_, hash)) = &remote.openapi.v3 {
            let path = format!("apis/{}/{}", remote.group, remote.version);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}

/// What a document was made from, in short: it is made again when this differs.
fn stamp(resources: &[Arc<Resource>], published: u64) -> u64 {
    use std::hash::{Hash as _, Hasher as _};
    let mut hasher = std::hash::DefaultHasher::new();
    published.hash(&mut hasher);
    for resource in resources {
        (&resource.group, &resource.version, &resource.plural, resource.stamp).hash(&mut hasher);
    }
    hasher.finish()
}

/// A document from memory, or made now; `None` when there is no such group version.
fn document(server: &ApiServer, path: &str) -> Option<(Bytes, String)> {
    let (table, published) = (server.registry.resources.table(), server.aggregator.published());
    if let Some((group, version)) =
        path.strip_prefix("/openapi/v3/apis/").and_then(|rest| rest.split_once('/'))
        && let Some(remote) = published.remotes.get(&(group.to_string(), version.to_string()))
    {
        return remote.openapi.v3.clone();
    }
    let whole = matches!(path, "/openapi/v2" | V2_PROTOBUF);
    let resources: Vec<Arc<Resource>> = match path.strip_prefix("/openapi/v3/") {
        Some(group_version) => table.list.iter().filter(|r| prefix(r) == group_version).cloned().collect(),
        None => table.list.clone(),
    };
    if resources.is_empty() {
        server.openapi.0.lock().remove(path);
        return None;
    }
    // Version 2 is one document of all servers.
    let stamp = stamp(&resources, if whole { published.generation } else { 0 });
    if let Some(found) = server.openapi.0.lock().get(path).filter(|found| found.stamp == stamp) {
        return Some((found.bytes.clone(), found.hash.clone()));
    }
    let resources: Vec<&Resource> = resources.iter().map(|r| r.as_ref()).collect();
    let bytes = match path {
        "/openapi/v2" => {
            let mut document = v2(&resources);
            for other in published.remotes.values().filter_map(|remote| remote.openapi.v2.as_ref()) {
                crate::aggregation::documents::merge_v2(&mut document, other);
            }
            Bytes::from(document.to_string())
        }
        V2_PROTOBUF => {
            let (json, _) = document(server, "/openapi/v2")?;
            Bytes::from(super::openapi_message::document(&serde_json::from_slice(&json).ok()?))
        }
        _ => Bytes::from(v3(&resources).to_string()),
    };
    use sha2::Digest as _;
    let hash: String = sha2::Sha256::digest(&bytes).iter().map(|b| format!("{b:02X}")).collect();
    let kept = Document { stamp, bytes: bytes.clone(), hash: hash.clone() };
    server.openapi.0.lock().insert(path.to_string(), kept);
    Some((bytes, hash))
}

fn v3(resources: &[&Resource]) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": paths(resources, false),
        "components": {"schemas": schemas(resources, "#/components/schemas/", false)},
    })
}

fn v2(resources: &[&Resource]) -> Value {
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": paths(resources, true),
        "definitions": schemas(resources, "#/definitions/", true),
    })
}

fn gvk(resource: &Resource) -> Value {
    json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
}

/// The name of a resource's schema.
fn name_of(resource: &Resource) -> String {
    match &resource.custom {
        Some(_) => crate::custom::openapi::name(&resource.group, &resource.version, &resource.kind),
        None => schema_name(&resource.group, &resource.version, &resource.kind),
    }
}

/// The name of a kind's schema, as `k8s-openapi` and upstream call it.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    let package = match group {
        "" => "api.core",
        "apiextensions.k8s.io" => "apiextensions-apiserver.pkg.apis.apiextensions",
        "apiregistration.k8s.io" => "kube-aggregator.pkg.apis.apiregistration",
        group => return format!("io.k8s.api.{}.{version}.{kind}", group.split('.').next().unwrap_or(group)),
    };
    format!("io.k8s.{package}.{version}.{kind}")
}

fn parameter(name: &str, kind: &str, place: &str, v2: bool) -> Value {
    let mut out = json!({"name": name, "in": place, "uniqueItems": true});
    if place == "path" {
        out["required"] = json!(true);
    }
    if v2 {
        out["type"] = json!(kind);
    } else {
        out["schema"] = json!({"type": kind, "uniqueItems": true});
    }
    out
}

/// Paths with their verbs. Clients look here for the parameters that a verb accepts.
fn paths(resources: &[&Resource], v2: bool) -> Value {
    let mut out = Map::new();
    let strings = |names: &[&str]| -> Vec<Value> {
        names.iter().map(|n| parameter(n, "string", "query", v2)).collect()
    };
    let operation = |resource: &Resource, verb: &str, parameters: Vec<Value>| {
        let name = name_of(resource);
        let reference =
            if v2 { format!("#/definitions/{name}") } else { format!("#/components/schemas/{name}") };
        let ok = if v2 {
            json!({"description": "OK", "schema": {"$ref": reference}})
        } else {
            json!({"description": "OK", "content": {"application/json": {"schema": {"$ref": reference}}}})
        };
        json!({
            "x-kubernetes-action": verb,
            "x-kubernetes-group-version-kind": gvk(resource),
            "parameters": parameters,
            "responses": {"200": ok},
        })
    };
    let write = ["dryRun", "fieldManager", "fieldValidation"];
    for resource in resources {
        let base = prefix(resource);
        let collection = if resource.namespaced {
            format!("/{base}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("/{base}/{}", resource.plural)
        };
        let mut shared = vec![parameter("pretty", "string", "query", v2)];
        if resource.namespaced {
            shared.push(parameter("namespace", "string", "path", v2));
        }
        let mut many = Map::new();
        if resource.allows("list") {
            many.insert(
                "get".into(),
                operation(
                    resource,
                    "list",
                    strings(&[
                        "fieldSelector",
                        "labelSelector",
                        "continue",
                        "resourceVersion",
                        "resourceVersionMatch",
                    ]),
                ),
            );
        }
        if resource.allows("create") {
            many.insert("post".into(), operation(resource, "post", strings(&write)));
        }
        if resource.allows("deletecollection") {
            many.insert(
                "delete".into(),
                operation(
                    resource,
                    "deletecollection",
                    strings(&["dryRun", "fieldSelector", "labelSelector", "propagationPolicy"]),
                ),
            );
        }
        many.insert("parameters".into(), json!(shared));
        out.insert(collection.clone(), Value::Object(many));
        if !resource.allows("get") {
            continue;
        }
        shared.push(parameter("name", "string", "path", v2));
        let mut one = Map::new();
        one.insert("get".into(), operation(resource, "get", Vec::new()));
        if resource.allows("update") {
            one.insert("put".into(), operation(resource, "put", strings(&write)));
        }
        if resource.allows("patch") {
            let mut parameters = strings(&write);
            parameters.push(parameter("force", "boolean", "query", v2));
            one.insert("patch".into(), operation(resource, "patch", parameters));
        }
        if resource.allows("delete") {
            one.insert(
                "delete".into(),
                operation(resource, "delete", strings(&["dryRun", "propagationPolicy"])),
            );
        }
        one.insert("parameters".into(), json!(shared));
        out.insert(format!("{collection}/{{name}}"), Value::Object(one));
    }
    Value::Object(out)
}

/// Schemas of the kinds and of everything they refer to.
fn schemas(resources: &[&Resource], prefix: &str, v2: bool) -> Value {
    let mut settings = schemars::generate::SchemaSettings::openapi3();
    settings.definitions_path = prefix.trim_start_matches('#').trim_end_matches('/').to_string().into();
    let mut generator = schemars::SchemaGenerator::new(settings);
    for resource in resources {
        add_type(&mut generator, &resource.group, &resource.version, &resource.kind);
    }
    if resources.iter().any(|resource| resource.custom.is_some()) {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
        generator.subschema_for::<ObjectMeta>();
        generator.subschema_for::<ListMeta>();
    }
    let mut definitions: Map<String, Value> = generator.take_definitions(false).into_iter().collect();
    for resource in resources {
        let name = name_of(resource);
        if let Some(schema) = definitions.get_mut(&name) {
            schema["x-kubernetes-group-version-kind"] = json!([gvk(resource)]);
        }
    }
    for (name, schema) in &mut definitions {
        overlay(name, schema);
    }
    for kind in resources.iter().filter_map(|resource| resource.custom.as_ref()) {
        definitions.extend(crate::custom::openapi::schemas(kind, prefix, v2));
    }
    Value::Object(definitions)
}

/// What the types do not say: list types, merge keys.
fn overlay(name: &str, schema: &mut Value) {
    let Some(facts) = orlop_api::schema::Schemas::get().openapi(name) else { return };
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (json_name, property) in properties {
        if let Some(field) = facts.field(json_name) {
            field_overlay(field, property);
        }
    }
}

fn field_overlay(field: &orlop_api::schema::Field, property: &mut Value) {
    use orlop_api::schema::{ListType, Type};
    let list = matches!(field.ty, Type::List(_));
    match &field.list {
        ListType::Default => {}
        ListType::Granular => {
            property["x-kubernetes-map-type"] = json!("granular");
        }
        ListType::Atomic => {
            property[if list { "x-kubernetes-list-type" } else { "x-kubernetes-map-type" }] = json!("atomic")
        }
        ListType::Set => property["x-kubernetes-list-type"] = json!("set"),
        ListType::Map(keys) => {
            property["x-kubernetes-list-type"] = json!("map");
            property["x-kubernetes-list-map-keys"] = json!(keys);
        }
    }
    if !field.patch_strategy.is_empty() {
        property["x-kubernetes-patch-strategy"] = json!(field.patch_strategy);
    }
    if !field.patch_merge_key.is_empty() {
        property["x-kubernetes-patch-merge-key"] = json!(field.patch_merge_key);
    }
    if let Some(default) = &field.default {
        property["default"] = default.clone();
    }
}

macro_rules! kinds {
    ($generator:ident, $wanted:expr; $($group:literal $version:literal { $($path:path => $kind:literal),* $(,)? })*) => {
        match $wanted {
            $($(($group, $version, $kind) => { $generator.subschema_for::<$path>(); })*)*
            _ => {}
        }
    };
}

/// Adds a kind's schema, and its list's, to the generator.
fn add_type(generator: &mut schemars::SchemaGenerator, group: &str, version: &str, kind: &str) {
    use k8s_openapi::api::{
        admissionregistration, apps, authentication, authorization, autoscaling, batch, certificates,
        coordination, core, discovery, events, flowcontrol, networking, node, policy, rbac, resource,
        scheduling, storage,
    };
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
    use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
    kinds!(generator, (group, version, kind);
        "" "v1" {
            core::v1::Binding => "Binding", core::v1::ConfigMap => "ConfigMap", core::v1::Endpoints => "Endpoints",
            core::v1::Event => "Event", core::v1::Namespace => "Namespace", core::v1::Node => "Node",
            core::v1::Pod => "Pod", core::v1::Secret => "Secret", core::v1::Service => "Service",
            core::v1::ServiceAccount => "ServiceAccount", core::v1::LimitRange => "LimitRange",
            core::v1::PersistentVolume => "PersistentVolume",
            core::v1::PersistentVolumeClaim => "PersistentVolumeClaim", core::v1::PodTemplate => "PodTemplate",
            core::v1::ReplicationController => "ReplicationController",
            core::v1::ResourceQuota => "ResourceQuota", core::v1::ComponentStatus => "ComponentStatus",
        }
        "admissionregistration.k8s.io" "v1" {
            admissionregistration::v1::MutatingAdmissionPolicy => "MutatingAdmissionPolicy",
            admissionregistration::v1::MutatingAdmissionPolicyBinding => "MutatingAdmissionPolicyBinding",
            admissionregistration::v1::MutatingWebhookConfiguration => "MutatingWebhookConfiguration",
            admissionregistration::v1::ValidatingAdmissionPolicy => "ValidatingAdmissionPolicy",
            admissionregistration::v1::ValidatingAdmissionPolicyBinding => "ValidatingAdmissionPolicyBinding",
            admissionregistration::v1::ValidatingWebhookConfiguration => "ValidatingWebhookConfiguration",
        }
        "apiextensions.k8s.io" "v1" {
            apiextensions::v1::CustomResourceDefinition => "CustomResourceDefinition",
        }
        "apiregistration.k8s.io" "v1" { apiregistration::v1::APIService => "APIService" }
        "apps" "v1" {
            apps::v1::ControllerRevision => "ControllerRevision", apps::v1::Deployment => "Deployment",
            apps::v1::ReplicaSet => "ReplicaSet", apps::v1::DaemonSet => "DaemonSet", apps::v1::StatefulSet => "StatefulSet",
        }
        "authentication.k8s.io" "v1" {
            authentication::v1::SelfSubjectReview => "SelfSubjectReview", authentication::v1::TokenReview => "TokenReview",
        }
        "authorization.k8s.io" "v1" {
            authorization::v1::LocalSubjectAccessReview => "LocalSubjectAccessReview",
            authorization::v1::SelfSubjectAccessReview => "SelfSubjectAccessReview",
            authorization::v1::SelfSubjectRulesReview => "SelfSubjectRulesReview",
            authorization::v1::SubjectAccessReview => "SubjectAccessReview",
        }
        "autoscaling" "v1" {
            autoscaling::v1::HorizontalPodAutoscaler => "HorizontalPodAutoscaler", autoscaling::v1::Scale => "Scale",
        }
        "autoscaling" "v2" { autoscaling::v2::HorizontalPodAutoscaler => "HorizontalPodAutoscaler" }
        "batch" "v1" { batch::v1::CronJob => "CronJob", batch::v1::Job => "Job" }
        "certificates.k8s.io" "v1" {
            certificates::v1::CertificateSigningRequest => "CertificateSigningRequest",
        }
        "flowcontrol.apiserver.k8s.io" "v1" {
            flowcontrol::v1::FlowSchema => "FlowSchema",
            flowcontrol::v1::PriorityLevelConfiguration => "PriorityLevelConfiguration",
        }
        "networking.k8s.io" "v1" {
            networking::v1::Ingress => "Ingress", networking::v1::IngressClass => "IngressClass",
            networking::v1::IPAddress => "IPAddress", networking::v1::NetworkPolicy => "NetworkPolicy",
            networking::v1::ServiceCIDR => "ServiceCIDR",
        }
        "node.k8s.io" "v1" { node::v1::RuntimeClass => "RuntimeClass" }
        "policy" "v1" {
            policy::v1::Eviction => "Eviction", policy::v1::PodDisruptionBudget => "PodDisruptionBudget",
        }
        "resource.k8s.io" "v1" {
            resource::v1::DeviceClass => "DeviceClass", resource::v1::ResourceClaim => "ResourceClaim",
            resource::v1::ResourceClaimTemplate => "ResourceClaimTemplate",
            resource::v1::ResourceSlice => "ResourceSlice",
        }
        "scheduling.k8s.io" "v1" { scheduling::v1::PriorityClass => "PriorityClass" }
        "storage.k8s.io" "v1" {
            storage::v1::CSIDriver => "CSIDriver", storage::v1::CSINode => "CSINode",
            storage::v1::CSIStorageCapacity => "CSIStorageCapacity", storage::v1::StorageClass => "StorageClass",
            storage::v1::VolumeAttachment => "VolumeAttachment",
            storage::v1::VolumeAttributesClass => "VolumeAttributesClass",
        }
        "coordination.k8s.io" "v1" { coordination::v1::Lease => "Lease" }
        "discovery.k8s.io" "v1" { discovery::v1::EndpointSlice => "EndpointSlice" }
        "events.k8s.io" "v1" { events::v1::Event => "Event" }
        "rbac.authorization.k8s.io" "v1" {
            rbac::v1::ClusterRole => "ClusterRole", rbac::v1::ClusterRoleBinding => "ClusterRoleBinding",
            rbac::v1::Role => "Role", rbac::v1::RoleBinding => "RoleBinding",
        }
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// `kubectl explain` finds a kind by the definition of its resource.
    #[test]
    fn every_kind_has_a_schema() {
        for row in orlop_api::resources::all() {
            let mut generator = schemars::SchemaGenerator::default();
            add_type(&mut generator, &row.group, &row.version, &row.kind);
            let name = schema_name(&row.group, &row.version, &row.kind);
            let known = generator.take_definitions(false);
            assert!(known.contains_key(&name), "{name} is not among {:?}", known.keys().collect::<Vec<_>>());
        }
    }
}
