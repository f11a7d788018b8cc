//! The types that server-side apply walks, made from a schema.
//!
//! Answers to `kube-openapi/pkg/schemaconv` over what `apiextensions-apiserver` publishes for a definition.

use orlop_api::managed::{CustomList, CustomMap, CustomType, ListRelation, Scalar};

use crate::schema::{Additional, ListType, Schema};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The type of a whole resource.
pub fn object_type(schema: &Schema) -> CustomType {
    let mut map = map_of(schema, schema.preserve_unknown);
    resource_fields(&mut map);
    CustomType::Faces { scalar: None, list: None, map: Some(Box::new(map)) }
}

fn resource_fields(map: &mut CustomMap) {
    for name in ["apiVersion", "kind"] {
        map.fields.insert(name.into(), (CustomType::scalar(Scalar::String), None));
    }
    map.fields.insert("metadata".into(), (CustomType::Builtin(OBJECT_META), None));
}

/// `preserve` is inherited: below a node that preserves unknown fields every struct takes them.
fn type_of(schema: &Schema, preserve: bool) -> CustomType {
    let preserve = preserve || schema.preserve_unknown;
    if schema.int_or_string {
        return CustomType::scalar(Scalar::Untyped);
    }
    let map = || {
        let mut map = map_of(schema, preserve);
        if schema.embedded {
            resource_fields(&mut map);
        }
        Some(Box::new(map))
    };
    match schema.ty.as_str() {
        "object" => CustomType::Faces { scalar: None, list: None, map: map() },
        "array" => {
            CustomType::Faces { scalar: None, list: Some(Box::new(list_of(schema, preserve))), map: None }
        }
        "integer" | "number" => CustomType::scalar(Scalar::Numeric),
        "boolean" => CustomType::scalar(Scalar::Boolean),
        "string" => {
            let format = schema.checks.as_deref().map_or("", |checks| checks.format.as_str());
            let plain = matches!(format, "" | "byte");
            CustomType::scalar(if plain { Scalar::String } else { Scalar::Untyped })
        }
        _ => CustomType::Faces {
            scalar: Some(Scalar::Untyped),
            list: Some(Box::new(list_of(schema, preserve))),
            map: map(),
        },
    }
}

fn map_of(schema: &Schema, preserve: bool) -> CustomMap {
    let fields = schema
        .properties
        .iter()
        .map(|(name, property)| (name.clone(), (type_of(property, preserve), property.default.clone())))
        .collect();
    let element = match &schema.additional {
        Some(Additional::Schema(schema)) => Some(type_of(schema, preserve)),
        Some(Additional::Allowed(true)) => Some(CustomType::Deduced),
        Some(Additional::Allowed(false)) => None,
        None => (preserve || schema.properties.is_empty()).then_some(CustomType::Deduced),
    };
    CustomMap { fields, element, atomic: schema.map_atomic }
}

fn list_of(schema: &Schema, preserve: bool) -> CustomList {
    CustomList {
        item: schema.items.as_deref().map_or(CustomType::Deduced, |items| type_of(items, preserve)),
        relation: match schema.list_type {
            ListType::Atomic => ListRelation::Atomic,
            ListType::Set => ListRelation::Set,
            ListType::Map => ListRelation::Map(schema.list_keys.clone()),
        },
    }
}
