//! The definitions of built-in types: their shape from the tables of `orlop_api::schema`, their descriptions from
//! `k8s-openapi`.

use std::collections::BTreeMap;

use orlop_api::schema::{Field, ListType, Schemas, Struct, Type};
use orlop_json::{Map, Value, json};

use super::descriptions;

/// Everything under `io.k8s.apimachinery.pkg.apis.meta.v1`.
pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";

/// Which version of OpenAPI a document is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Swagger: no defaults, descriptions beside references.
    V2,
    /// References stand alone.
    V3,
}

impl Version {
    /// A reference to a definition.
    pub fn reference(self, name: &str) -> Value {
        match self {
            Version::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Version::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    /// A reference with what is said beside it.
    pub fn reference_with(self, name: &str, beside: Map) -> Value {
        let mut out = beside;
        match self {
            _ if out.is_empty() => return self.reference(name),
            Version::V2 => out.extend(self.reference(name).as_object().cloned().unwrap_or_default()),
            Version::V3 => {
                out.insert("allOf".into(), json!([self.reference(name)]));
            }
        }
        Value::Object(out)
    }
}

/// Whose document a definition stands in: that decides what kinds the types of options are.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Of one built-in group and version.
    GroupVersion(&'a str, &'a str),
    /// Of all of them.
    Everything,
    /// Of custom resources, whose documents say nothing of the kinds of built-in types.
    Custom,
}

/// Groups and versions whose types upstream's server knows, served or not: each has DeleteOptions and WatchEvents.
const KNOWN: &[(&str, &[&str])] = &[
    ("", &["v1"]),
    ("admission.k8s.io", &["v1", "v1beta1"]),
    ("admissionregistration.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("apiextensions.k8s.io", &["v1", "v1beta1"]),
    ("apiregistration.k8s.io", &["v1", "v1beta1"]),
    ("apps", &["v1", "v1beta1", "v1beta2"]),
    ("authentication.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("authorization.k8s.io", &["v1", "v1beta1"]),
    ("autoscaling", &["v1", "v2"]),
    ("batch", &["v1", "v1beta1"]),
    ("certificates.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("coordination.k8s.io", &["v1", "v1alpha2", "v1beta1"]),
    ("discovery.k8s.io", &["v1", "v1beta1"]),
    ("events.k8s.io", &["v1", "v1beta1"]),
    ("extensions", &["v1beta1"]),
    ("flowcontrol.apiserver.k8s.io", &["v1", "v1beta1", "v1beta2", "v1beta3"]),
    ("imagepolicy.k8s.io", &["v1alpha1"]),
    ("internal.apiserver.k8s.io", &["v1alpha1"]),
    ("networking.k8s.io", &["v1", "v1beta1"]),
    ("node.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("policy", &["v1", "v1beta1"]),
    ("rbac.authorization.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("resource.k8s.io", &["v1", "v1alpha3", "v1beta1", "v1beta2"]),
    ("scheduling.k8s.io", &["v1", "v1alpha2", "v1beta1"]),
    ("storage.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("storagemigration.k8s.io", &["v1beta1"]),
];

/// A group, version and kind as documents write them.
pub fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "kind": kind, "version": version})
}

/// The kinds of a type; empty when it is no kind.
fn kinds(name: &str, scope: Scope<'_>) -> Vec<Value> {
    let core = |kind| vec![gvk("", "v1", kind)];
    let everywhere = |kind| match scope {
        Scope::Everything => KNOWN
            .iter()
            .flat_map(|(group, versions)| versions.iter().map(move |version| gvk(group, version, kind)))
            .collect(),
        Scope::GroupVersion("", _) | Scope::Custom => core(kind),
        Scope::GroupVersion(group, version) => vec![gvk("", "v1", kind), gvk(group, version, kind)],
    };
    if matches!(scope, Scope::Custom) {
        return Vec::new();
    }
    match name.strip_prefix(META) {
        Some(kind @ ("DeleteOptions" | "WatchEvent")) => everywhere(kind),
        Some(kind @ ("Status" | "APIGroup" | "APIGroupList" | "APIResourceList" | "APIVersions")) => {
            core(kind)
        }
        Some(_) => Vec::new(),
        None => Schemas::get()
            .kinds_of(name)
            .into_iter()
            .map(|(group, version, kind)| gvk(group, version, kind))
            .collect(),
    }
}

/// The definitions with these names, and those that they refer to.
pub fn closure(names: impl IntoIterator<Item = String>, version: Version, scope: Scope<'_>) -> Map {
    let mut found: BTreeMap<String, Value> = BTreeMap::new();
    let mut wanted: Vec<String> = names.into_iter().collect();
    while let Some(name) = wanted.pop() {
        if found.contains_key(&name) {
            continue;
        }
        if let Some(definition) = definition(&name, version, scope) {
            references(&definition, &mut wanted);
            found.insert(name, definition);
        }
    }
    found.into_iter().map(|(name, definition)| (name.into(), definition)).collect()
}

fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(name) =
                map.get("$ref").and_then(Value::as_str).and_then(|text| text.rsplit('/').next())
            {
                out.push(name.to_string());
            }
            map.values().for_each(|value| references(value, out));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, out)),
        _ => {}
    }
}

/// A built-in type's definition; `None` when there is no such type.
fn definition(name: &str, version: Version, scope: Scope<'_>) -> Option<Value> {
    let mut out = Map::new();
    if let Some(description) = descriptions::of(name) {
        out.insert("description".into(), json!(description));
    }
    let plain = plain(name, version);
    match (plain, Schemas::get().openapi(name)) {
        (Some(plain), _) => out.extend(plain.as_object().cloned().unwrap_or_default()),
        (None, Some(ty)) => structure(&mut out, ty, version),
        // What has no message is no object of the API: the version of the server.
        (None, None) => out.extend(descriptions::schema(name)?.as_object().cloned().unwrap_or_default()),
    }
    let kinds = kinds(name, scope);
    if !kinds.is_empty() {
        out.insert("x-kubernetes-group-version-kind".into(), Value::Array(kinds));
    }
    Some(Value::Object(out))
}

/// The types that are no structs in documents.
fn plain(name: &str, version: Version) -> Option<Value> {
    if let Some(name) = name.strip_prefix(EXTENSIONS) {
        return match name {
            "JSON" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
                Some(json!({}))
            }
            "CustomResourceSubresourceStatus" => Some(json!({"type": "object"})),
            _ => None,
        };
    }
    Some(match name.strip_prefix(META).unwrap_or(name) {
        "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
        "FieldsV1" | "Patch" | RAW_EXTENSION => json!({"type": "object"}),
        QUANTITY if version == Version::V2 => json!({"type": "string"}),
        QUANTITY => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        INT_OR_STRING if version == Version::V2 => json!({"type": "string", "format": "int-or-string"}),
        INT_OR_STRING => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        _ => return None,
    })
}

fn structure(out: &mut Map, ty: &Struct, version: Version) {
    let properties: BTreeMap<&str, Value> =
        ty.fields.iter().map(|field| (field.json, property(ty, field, version))).collect();
    out.insert("type".into(), json!("object"));
    if !properties.is_empty() {
        out.insert("properties".into(), json!(properties));
    }
    if !ty.required.is_empty() {
        out.insert("required".into(), json!(ty.required));
    }
    if ty.atomic {
        out.insert("x-kubernetes-map-type".into(), json!("atomic"));
    }
    if let Some(unions) = &ty.unions {
        out.insert("x-kubernetes-unions".into(), unions.clone());
    }
}

fn property(ty: &Struct, field: &Field, version: Version) -> Value {
    let mut out = Map::new();
    if let Some(description) = descriptions::of_field(ty, field.json) {
        out.insert("description".into(), json!(description));
    }
    // Bytes are a list of them to Go.
    let list = matches!(field.ty, Type::List(_) | Type::Bytes);
    match &field.list {
        ListType::Default => {}
        ListType::Granular => {
            out.insert("x-kubernetes-map-type".into(), json!("granular"));
        }
        ListType::Atomic => {
            let key = if list { "x-kubernetes-list-type" } else { "x-kubernetes-map-type" };
            out.insert(key.into(), json!("atomic"));
        }
        ListType::Set => {
            out.insert("x-kubernetes-list-type".into(), json!("set"));
        }
        ListType::Map(keys) => {
            out.insert("x-kubernetes-list-type".into(), json!("map"));
            out.insert("x-kubernetes-list-map-keys".into(), json!(keys));
        }
    }
    for (key, text) in [
        ("x-kubernetes-patch-strategy", field.patch_strategy),
        ("x-kubernetes-patch-merge-key", field.patch_merge_key),
    ] {
        if !text.is_empty() {
            out.insert(key.into(), json!(text));
        }
    }
    if let Some(default) = field.default.as_ref().filter(|_| version == Version::V3) {
        out.insert("default".into(), default.clone());
    }
    if !field.values.is_empty() {
        out.insert("enum".into(), json!(field.values));
    }
    match name_of(&field.ty) {
        Some(name) => version.reference_with(&name, out),
        None => {
            out.extend(shape(&field.ty, version).as_object().cloned().unwrap_or_default());
            Value::Object(out)
        }
    }
}

/// The name of the definition that a value has; `None` when its shape is written where it stands.
fn name_of(ty: &Type) -> Option<String> {
    Some(match ty {
        Type::Struct(at) => at.get().openapi.to_string(),
        Type::Time => format!("{META}Time"),
        Type::MicroTime => format!("{META}MicroTime"),
        Type::Duration => format!("{META}Duration"),
        Type::FieldsV1 => format!("{META}FieldsV1"),
        Type::Quantity => QUANTITY.to_string(),
        Type::IntOrString => INT_OR_STRING.to_string(),
        Type::RawExtension => RAW_EXTENSION.to_string(),
        Type::Json => format!("{EXTENSIONS}JSON"),
        Type::StructOrList(_) => format!("{EXTENSIONS}JSONSchemaPropsOrArray"),
        Type::StructOrBool(_) => format!("{EXTENSIONS}JSONSchemaPropsOrBool"),
        Type::StructOrStrings(_) => format!("{EXTENSIONS}JSONSchemaPropsOrStringArray"),
        _ => return None,
    })
}

fn shape(ty: &Type, version: Version) -> Value {
    match ty {
        Type::String => json!({"type": "string"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Float64 => json!({"type": "number", "format": "double"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::List(item) => json!({"type": "array", "items": shape(item, version)}),
        Type::Map(item) => json!({"type": "object", "additionalProperties": shape(item, version)}),
        named => name_of(named).map_or_else(|| json!({}), |name| version.reference(&name)),
    }
}
