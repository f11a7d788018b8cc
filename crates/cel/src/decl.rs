//! Declared types: a [`Type`] with what a schema adds to it, namely the bounds the cost estimate needs (upstream's
//! `DeclType`), how JSON becomes values of it, and the list semantics of `x-kubernetes-list-type`.
//! [`declare`] makes one from a structural OpenAPI v3 schema in JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_json::Value;

use crate::escaping::escape;
use crate::types::{ObjectType, Type};

/// The largest request body upstream's estimates assume, in bytes.
pub const MAX_REQUEST_SIZE: u64 = 3 * 1024 * 1024;
/// "No bound is known."
pub const UNBOUNDED: u64 = i64::MAX as u64;

const MIN_STRING_SIZE: u64 = 2;
const MIN_BOOL_SIZE: u64 = 4;
const MIN_NUMBER_SIZE: u64 = 1;
const MIN_DURATION_SIZE: u64 = 3;
const DATE_SIZE: u64 = 12;
const MIN_DATETIME_SIZE: u64 = 21;
const MAX_TIME_SIZE: u64 = 32;

/// Deeper schemas are not declared (they cannot be written as structural schemas of a bounded request either).
const MAX_DEPTH: usize = 200;

/// A type, its bounds, and the shape of the JSON it is read from.
#[derive(Clone, Debug)]
pub struct DeclType {
    /// The type expressions see.
    pub ty: Type,
    /// The largest `size()` a value can have; [`UNBOUNDED`] where nothing is known.
    pub max_elements: u64,
    /// The largest size a key of a map can have; [`UNBOUNDED`] where nothing is known.
    pub max_key_size: u64,
    /// The fewest bytes a value needs in JSON.
    pub min_serialized_size: u64,
    /// Whether JSON `null` is a value.
    pub nullable: bool,
    /// How JSON is read.
    pub shape: Shape,
}

/// How JSON of a declared type becomes values.
#[derive(Clone, Debug)]
pub enum Shape {
    /// By the JSON itself.
    Dyn,
    /// A string or an integer.
    IntOrString,
    /// By the type: string, bytes (base64), duration, timestamp (`date` and `date-time`), bool, double, int.
    Scalar,
    /// A list, with the semantics of its `x-kubernetes-list-type`.
    List(Arc<DeclType>, ListKind),
    /// A map from strings.
    Map(Arc<DeclType>),
    /// An object with declared fields.
    Object(BTreeMap<Arc<str>, FieldDecl>),
}

/// A declared field.
#[derive(Clone, Debug)]
pub struct FieldDecl {
    /// The key in JSON (the map's key is the escaped name).
    pub json: Arc<str>,
    /// Its type.
    pub decl: Arc<DeclType>,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Compared and concatenated element by element.
    Atomic,
    /// Order and duplicates do not matter.
    Set,
    /// Elements are identified by these keys.
    Map(Arc<[Arc<str>]>),
}

impl DeclType {
    /// A declaration of a type about which nothing more is known; JSON is read as it is.
    pub fn of(ty: Type) -> Arc<DeclType> {
        let shape = match ty {
            Type::Dyn | Type::Any | Type::List(_) | Type::Map(..) | Type::Object(_) => Shape::Dyn,
            _ => Shape::Scalar,
        };
        Arc::new(DeclType {
            ty,
            max_elements: UNBOUNDED,
            max_key_size: UNBOUNDED,
            min_serialized_size: 0,
            nullable: true,
            shape,
        })
    }

    /// [`DeclType::of`] with the largest size a value can have.
    pub fn sized(ty: Type, max_elements: u64) -> Arc<DeclType> {
        let mut decl = Arc::unwrap_or_clone(DeclType::of(ty));
        decl.max_elements = max_elements;
        Arc::new(decl)
    }

    /// A map from strings with the largest sizes of it and of its keys.
    pub fn sized_map(max_key_size: u64, value: Arc<DeclType>, max_elements: u64) -> Arc<DeclType> {
        let mut decl = Arc::unwrap_or_clone(DeclType::map(value));
        (decl.max_elements, decl.max_key_size) = (max_elements, max_key_size);
        Arc::new(decl)
    }

    /// An object of `(field, declaration)` pairs; the field names are the JSON keys (they are escaped here).
    pub fn object<'a>(
        name: &str,
        fields: impl IntoIterator<Item = (&'a str, Arc<DeclType>)>,
    ) -> Arc<DeclType> {
        let fields = fields.into_iter().map(|(json, decl)| (json.to_owned(), decl)).collect();
        Arc::new(object_of(name, fields, 2, true))
    }

    /// An object whose fields have the names they have in JSON, without escapes: `request.namespace` is written so in
    /// the environments upstream declares by hand, although a schema's field of that name would have to be escaped.
    pub fn record<'a>(
        name: &str,
        fields: impl IntoIterator<Item = (&'a str, Arc<DeclType>)>,
    ) -> Arc<DeclType> {
        let fields: BTreeMap<Arc<str>, FieldDecl> = fields
            .into_iter()
            .map(|(json, decl)| (Arc::from(json), FieldDecl { json: Arc::from(json), decl }))
            .collect();
        let types = fields.iter().map(|(name, field)| (name.as_ref(), field.decl.ty.clone()));
        Arc::new(DeclType {
            ty: Type::Object(ObjectType::new(name, types)),
            max_elements: UNBOUNDED,
            max_key_size: UNBOUNDED,
            min_serialized_size: 2,
            nullable: true,
            shape: Shape::Object(fields),
        })
    }

    /// A list.
    pub fn list(element: Arc<DeclType>) -> Arc<DeclType> {
        Arc::new(DeclType {
            ty: Type::list(element.ty.clone()),
            max_elements: UNBOUNDED,
            max_key_size: UNBOUNDED,
            min_serialized_size: 2,
            nullable: true,
            shape: Shape::List(element, ListKind::Atomic),
        })
    }

    /// A map from strings.
    pub fn map(value: Arc<DeclType>) -> Arc<DeclType> {
        Arc::new(DeclType {
            ty: Type::map(Type::String, value.ty.clone()),
            max_elements: UNBOUNDED,
            max_key_size: UNBOUNDED,
            min_serialized_size: 2,
            nullable: true,
            shape: Shape::Map(value),
        })
    }

    /// The declaration at a path of field names, `@items` and `@values` below this one. A value of any type in a map can
    /// also be selected like a field.
    pub fn at<S: AsRef<str>>(&self, path: &[S]) -> Option<&DeclType> {
        let mut current = self;
        for name in path {
            current = match (&current.shape, name.as_ref()) {
                (Shape::List(element, _), "@items") => element,
                (Shape::Map(value), "@values") => value,
                (Shape::Map(value), _) if matches!(value.ty, Type::Any) => value,
                (Shape::Object(fields), name) => &fields.get(name)?.decl,
                _ => return None,
            };
        }
        Some(current)
    }
}

fn object_of(name: &str, fields: Vec<(String, Arc<DeclType>)>, min: u64, nullable: bool) -> DeclType {
    let fields: BTreeMap<Arc<str>, FieldDecl> = fields
        .into_iter()
        .filter_map(|(json, decl)| {
            Some((Arc::from(escape(&json)?), FieldDecl { json: Arc::from(json.as_str()), decl }))
        })
        .collect();
    let ty = Type::Object(Arc::new(ObjectType {
        name: Arc::from(name),
        fields: fields.iter().map(|(field, decl)| (field.clone(), decl.decl.ty.clone())).collect(),
        open: false,
    }));
    DeclType {
        ty,
        max_elements: UNBOUNDED,
        max_key_size: UNBOUNDED,
        min_serialized_size: min,
        nullable,
        shape: Shape::Object(fields),
    }
}

/// The declaration of a structural OpenAPI v3 schema, or `None` where expressions cannot see values of it
/// (`x-kubernetes-preserve-unknown-fields` without a type, arrays without items). `name` is the name object types
/// begin with; `resource_root` adds `apiVersion`, `kind` and `metadata.{name,generateName}`.
pub fn declare(schema: &Value, name: &str, resource_root: bool) -> Option<Arc<DeclType>> {
    declare_at(schema, name, resource_root, 0).map(Arc::new)
}

fn declare_at(schema: &Value, name: &str, resource: bool, depth: usize) -> Option<DeclType> {
    if depth > MAX_DEPTH {
        return None;
    }
    let flag = |key: &str| schema.get(key).and_then(Value::as_bool).unwrap_or(false);
    let bound = |key: &str| schema.get(key).and_then(Value::as_i64).map(|n| n.max(0) as u64);
    let nullable = flag("nullable");
    let scalar = |ty: Type, max_elements: u64, min_serialized_size: u64| DeclType {
        ty,
        max_elements,
        max_key_size: UNBOUNDED,
        min_serialized_size,
        nullable,
        shape: Shape::Scalar,
    };
    if flag("x-kubernetes-int-or-string") {
        return Some(DeclType {
            ty: Type::Dyn,
            max_elements: MAX_REQUEST_SIZE - 2,
            max_key_size: UNBOUNDED,
            min_serialized_size: 1,
            nullable,
            shape: Shape::IntOrString,
        });
    }
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or(if resource { "object" } else { "" });
    let format = schema.get("format").and_then(Value::as_str).unwrap_or("");
    match kind {
        "array" => {
            let items = schema.get("items").filter(|items| items.is_object())?;
            let embedded =
                items.get("x-kubernetes-embedded-resource").and_then(Value::as_bool).unwrap_or(false);
            let element = declare_at(items, &format!("{name}.@items"), embedded, depth + 1)?;
            let max = bound("maxItems").unwrap_or_else(|| max_of_items(element.min_serialized_size));
            let element = Arc::new(element);
            Some(DeclType {
                ty: Type::list(element.ty.clone()),
                max_elements: max,
                max_key_size: UNBOUNDED,
                min_serialized_size: 2,
                nullable,
                shape: Shape::List(element, list_kind(schema)),
            })
        }
        "object" => {
            if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
                let embedded =
                    values.get("x-kubernetes-embedded-resource").and_then(Value::as_bool).unwrap_or(false);
                let value = declare_at(values, &format!("{name}.@values"), embedded, depth + 1)?;
                let max =
                    bound("maxProperties").unwrap_or_else(|| max_of_properties(value.min_serialized_size));
                let value = Arc::new(value);
                return Some(DeclType {
                    ty: Type::map(Type::String, value.ty.clone()),
                    max_elements: max,
                    max_key_size: UNBOUNDED,
                    min_serialized_size: 2,
                    nullable,
                    shape: Shape::Map(value),
                });
            }
            Some(declare_object(schema, name, resource, nullable, depth))
        }
        "string" => {
            let given = bound("maxLength");
            Some(match format {
                "byte" => {
                    scalar(Type::Bytes, given.unwrap_or_else(|| max_of_string(format)), MIN_STRING_SIZE)
                }
                "duration" => scalar(Type::Duration, max_of_string(format), MIN_DURATION_SIZE),
                "date" => scalar(Type::Timestamp, max_of_string(format), DATE_SIZE),
                "date-time" => scalar(Type::Timestamp, max_of_string(format), MIN_DATETIME_SIZE),
                _ => {
                    // Lengths count characters, sizes bytes: a character has at most four.
                    let max = given
                        .map(|n| n.saturating_mul(4))
                        .or_else(|| max_of_enum(schema))
                        .unwrap_or_else(|| max_of_string(format));
                    scalar(Type::String, max, MIN_STRING_SIZE)
                }
            })
        }
        "boolean" => Some(scalar(Type::Bool, UNBOUNDED, MIN_BOOL_SIZE)),
        "number" => Some(scalar(Type::Double, UNBOUNDED, MIN_NUMBER_SIZE)),
        "integer" => Some(scalar(Type::Int, UNBOUNDED, MIN_NUMBER_SIZE)),
        _ => None,
    }
}

fn declare_object(schema: &Value, name: &str, resource: bool, nullable: bool, depth: usize) -> DeclType {
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let mut fields = Vec::new();
    let mut min = 2;
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (property, sub) in properties {
            if resource && matches!(property.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let embedded =
                sub.get("x-kubernetes-embedded-resource").and_then(Value::as_bool).unwrap_or(false);
            let Some(decl) = declare_at(sub, &format!("{name}.{property}"), embedded, depth + 1) else {
                continue;
            };
            if required.contains(&property.as_str()) && sub.get("default").is_none() {
                min += property.len() as u64 + decl.min_serialized_size + 4;
            }
            fields.push((property.to_string(), Arc::new(decl)));
        }
    }
    if resource {
        let string = || {
            Arc::new(DeclType {
                ty: Type::String,
                max_elements: max_of_string(""),
                max_key_size: UNBOUNDED,
                min_serialized_size: MIN_STRING_SIZE,
                nullable: false,
                shape: Shape::Scalar,
            })
        };
        let meta = vec![("name".to_owned(), string()), ("generateName".to_owned(), string())];
        fields.push(("kind".to_owned(), string()));
        fields.push(("apiVersion".to_owned(), string()));
        fields
            .push(("metadata".to_owned(), Arc::new(object_of(&format!("{name}.metadata"), meta, 2, false))));
    }
    object_of(name, fields, min, nullable)
}

fn list_kind(schema: &Value) -> ListKind {
    match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
            ListKind::Map(keys.into_iter().flatten().filter_map(Value::as_str).map(Arc::from).collect())
        }
        _ => ListKind::Atomic,
    }
}

fn max_of_string(format: &str) -> u64 {
    match format {
        "duration" | "date-time" => MAX_TIME_SIZE,
        "date" => DATE_SIZE,
        _ => MAX_REQUEST_SIZE - 2,
    }
}

fn max_of_enum(schema: &Value) -> Option<u64> {
    let values = schema.get("enum")?.as_array().filter(|values| !values.is_empty())?;
    values.iter().filter_map(Value::as_str).map(|text| text.len() as u64).max()
}

/// How many elements of at least this size fit into a request: "[" element "," … "]".
fn max_of_items(min_size: u64) -> u64 {
    (MAX_REQUEST_SIZE - 2) / (min_size + 1)
}

/// How many entries with values of at least this size fit: a key, two quotes and a colon, the value, a comma.
fn max_of_properties(min_size: u64) -> u64 {
    (MAX_REQUEST_SIZE - 2) / (min_size + 6)
}
