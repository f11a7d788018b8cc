//! What server-side apply knows of the type of a custom resource: the three faces (scalar, list, map) that a value may
//! show, as `structured-merge-diff` models them. Built-in types are described by [`crate::schema`] instead.

use std::collections::BTreeMap;

use orlop_json::{Key, Value};

use crate::schema::{Struct, Type};

/// The type of an object for server-side apply.
#[derive(Clone, Copy, Debug)]
pub enum ObjectType<'a> {
    /// A kind of the built-in API.
    Builtin(&'static Struct),
    /// A custom resource with a schema, and whether its status is a subresource.
    Custom(&'a CustomType, bool),
    /// Nothing is known but metadata: the rest is what it looks like.
    Unknown,
}

impl From<Option<&'static Struct>> for ObjectType<'_> {
    fn from(ty: Option<&'static Struct>) -> Self {
        ty.map_or(ObjectType::Unknown, ObjectType::Builtin)
    }
}

impl ObjectType<'_> {
    /// The name of a built-in kind; empty for others.
    pub(super) fn builtin_name(self) -> &'static str {
        match self {
            ObjectType::Builtin(ty) => ty.name(),
            _ => "",
        }
    }
}

/// The type of a value of a custom resource.
#[derive(Clone, Debug, PartialEq)]
pub enum CustomType {
    /// A built-in struct (ObjectMeta), by its OpenAPI name.
    Builtin(&'static str),
    /// What the value looks like: objects are granular, lists are one value.
    Deduced,
    /// What the schema says. A value shows the face that it looks like.
    Faces {
        /// As a scalar.
        scalar: Option<Scalar>,
        /// As a list.
        list: Option<Box<CustomList>>,
        /// As a map or struct.
        map: Option<Box<CustomMap>>,
    },
}

/// A scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// Text.
    String,
    /// Whole or not.
    Numeric,
    /// True or false.
    Boolean,
    /// Any of them.
    Untyped,
}

impl Scalar {
    /// The built-in type that accepts the same values.
    pub(super) fn as_type(self) -> &'static Type {
        match self {
            Scalar::String => &Type::String,
            Scalar::Numeric => &Type::Int64,
            Scalar::Boolean => &Type::Bool,
            Scalar::Untyped => &Type::IntOrString,
        }
    }
}

/// How the items of a list are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListRelation {
    /// Not at all: it is one value.
    Atomic,
    /// By themselves.
    Set,
    /// By these keys of theirs.
    Map(Vec<String>),
}

/// A list.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomList {
    /// The type of its items.
    pub item: CustomType,
    /// How they are told apart.
    pub relation: ListRelation,
}

/// A map or struct.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CustomMap {
    /// Declared fields, with their defaults.
    pub fields: BTreeMap<Key, (CustomType, Option<Value>)>,
    /// The type of other entries; `None` = there may be none.
    pub element: Option<CustomType>,
    /// Whether it is one value.
    pub atomic: bool,
}

impl CustomType {
    /// A scalar.
    pub fn scalar(scalar: Scalar) -> CustomType {
        CustomType::Faces { scalar: Some(scalar), list: None, map: None }
    }

    /// The type of a declared field of its map face.
    pub(super) fn declared(&self, name: &str) -> Option<&CustomType> {
        match self {
            CustomType::Faces { map: Some(map), .. } => map.fields.get(name).map(|(ty, _)| ty),
            _ => None,
        }
    }
}
