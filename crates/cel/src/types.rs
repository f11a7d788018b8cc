//! The types of CEL expressions, with the two ways upstream prints them: [`Type`]'s `Display` is what callers put into
//! "must evaluate to …", [`Type::checked_name`] is what the type checker's messages use.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A CEL type.
#[derive(Clone, Debug)]
pub enum Type {
    /// Checked at run time only.
    Dyn,
    /// `google.protobuf.Any`.
    Any,
    /// The type of `null`.
    Null,
    /// `bool`.
    Bool,
    /// Signed 64-bit integers.
    Int,
    /// Unsigned 64-bit integers.
    Uint,
    /// IEEE doubles.
    Double,
    /// Unicode strings.
    String,
    /// Byte sequences.
    Bytes,
    /// `google.protobuf.Duration`.
    Duration,
    /// `google.protobuf.Timestamp`.
    Timestamp,
    /// The type of a type; the parameter is the type it denotes, where it is known.
    TypeType(Option<Arc<Type>>),
    /// `list(T)`.
    List(Arc<Type>),
    /// `map(K, V)`.
    Map(Arc<Type>, Arc<Type>),
    /// A structure with declared fields.
    Object(Arc<ObjectType>),
    /// A type of a library (`net.IP`), possibly with parameters.
    Opaque(Arc<str>, Arc<[Type]>),
    /// `optional_type(T)`.
    Optional(Arc<Type>),
    /// A type parameter of a declaration, or a variable of the type checker.
    Param(Arc<str>),
    /// The type of an expression in which an error was already reported.
    Error,
}

/// A structure type. Two object types are the same when their names are.
#[derive(Debug)]
pub struct ObjectType {
    /// The name, as error messages and struct literals (`Object.spec{…}`) say it.
    pub name: Arc<str>,
    /// The fields by the name expressions use (escaped).
    pub fields: BTreeMap<Arc<str>, Type>,
    /// Whether there are fields of every name (of type `dyn`), as in the `Object` of mutating policies.
    pub open: bool,
}

impl ObjectType {
    /// An object type of `(field, type)` pairs.
    pub fn new<'a>(name: &str, fields: impl IntoIterator<Item = (&'a str, Type)>) -> Arc<ObjectType> {
        Arc::new(ObjectType {
            name: Arc::from(name),
            fields: fields.into_iter().map(|(field, ty)| (Arc::from(field), ty)).collect(),
            open: false,
        })
    }

    /// An object type with fields of every name.
    pub fn open(name: &str) -> Arc<ObjectType> {
        Arc::new(ObjectType { name: Arc::from(name), fields: BTreeMap::new(), open: true })
    }

    /// The type of a field.
    pub fn field(&self, name: &str) -> Option<Type> {
        if self.open { Some(Type::Dyn) } else { self.fields.get(name).cloned() }
    }
}

/// The kinds upstream's checker and cost estimator tell apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Kind {
    Dyn,
    Any,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    Type,
    List,
    Map,
    Struct,
    Opaque,
    Param,
    Error,
}

impl Type {
    /// `list(element)`.
    pub fn list(element: Type) -> Type {
        Type::List(Arc::new(element))
    }

    /// `map(key, value)`.
    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    /// `optional_type(value)`.
    pub fn optional(value: Type) -> Type {
        Type::Optional(Arc::new(value))
    }

    /// A library type without parameters.
    pub fn opaque(name: &str) -> Type {
        Type::Opaque(Arc::from(name), Arc::from([]))
    }

    /// A structure without declared fields, which upstream uses for its library's own types.
    pub fn object(name: &str) -> Type {
        Type::Object(ObjectType::new(name, []))
    }

    /// The kind of this type.
    pub fn kind(&self) -> Kind {
        match self {
            Type::Dyn => Kind::Dyn,
            Type::Any => Kind::Any,
            Type::Null => Kind::Null,
            Type::Bool => Kind::Bool,
            Type::Int => Kind::Int,
            Type::Uint => Kind::Uint,
            Type::Double => Kind::Double,
            Type::String => Kind::String,
            Type::Bytes => Kind::Bytes,
            Type::Duration => Kind::Duration,
            Type::Timestamp => Kind::Timestamp,
            Type::TypeType(_) => Kind::Type,
            Type::List(_) => Kind::List,
            Type::Map(..) => Kind::Map,
            Type::Object(_) => Kind::Struct,
            Type::Opaque(..) | Type::Optional(_) => Kind::Opaque,
            Type::Param(_) => Kind::Param,
            Type::Error => Kind::Error,
        }
    }

    /// The name without parameters: what `type(x)` compares by.
    pub fn name(&self) -> &str {
        match self {
            Type::Dyn => "dyn",
            Type::Any => "google.protobuf.Any",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::TypeType(_) => "type",
            Type::List(_) => "list",
            Type::Map(..) => "map",
            Type::Object(object) => &object.name,
            Type::Opaque(name, _) | Type::Param(name) => name,
            Type::Optional(_) => "optional_type",
            Type::Error => "*error*",
        }
    }

    /// The type parameters.
    pub fn parameters(&self) -> Vec<&Type> {
        match self {
            Type::List(element) | Type::Optional(element) => vec![element],
            Type::Map(key, value) => vec![key, value],
            Type::TypeType(Some(inner)) => vec![inner],
            Type::Opaque(_, parameters) => parameters.iter().collect(),
            _ => Vec::new(),
        }
    }

    /// Whether the type is `dyn`, `any` or already erroneous.
    pub fn is_dyn_or_error(&self) -> bool {
        matches!(self, Type::Dyn | Type::Any | Type::Error)
    }

    /// Whether two types are exactly the same, parameters included.
    pub fn same(&self, other: &Type) -> bool {
        if self.kind() != other.kind() || self.name() != other.name() {
            return false;
        }
        let (mine, theirs) = (self.parameters(), other.parameters());
        mine.len() == theirs.len() && mine.iter().zip(theirs).all(|(a, b)| a.same(b))
    }

    /// The name in messages of the type checker: `map(string, int)`, `timestamp`, `!error!`.
    pub fn checked_name(&self) -> String {
        match self {
            Type::Any => "any".to_owned(),
            Type::Duration => "duration".to_owned(),
            Type::Timestamp => "timestamp".to_owned(),
            Type::Null => "null".to_owned(),
            Type::Error => "!error!".to_owned(),
            _ => {
                let parameters = self.parameters();
                if parameters.is_empty() {
                    return self.name().to_owned();
                }
                let parameters: Vec<String> = parameters.iter().map(|p| p.checked_name()).collect();
                format!("{}({})", self.name(), parameters.join(", "))
            }
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let parameters = self.parameters();
        if parameters.is_empty() {
            return Ok(());
        }
        let parameters: Vec<String> = parameters.iter().map(|p| p.to_string()).collect();
        write!(f, "({})", parameters.join(", "))
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Type) -> bool {
        self.same(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases = [
            (
                Type::map(Type::String, Type::Timestamp),
                "map(string, google.protobuf.Timestamp)",
                "map(string, timestamp)",
            ),
            (Type::list(Type::Dyn), "list(dyn)", "list(dyn)"),
            (Type::optional(Type::Int), "optional_type(int)", "optional_type(int)"),
            (Type::TypeType(Some(Arc::new(Type::Int))), "type(int)", "type(int)"),
            (Type::Null, "null_type", "null"),
            (Type::opaque("net.IP"), "net.IP", "net.IP"),
        ];
        for (ty, display, checked) in cases {
            assert_eq!(ty.to_string(), display);
            assert_eq!(ty.checked_name(), checked);
        }
    }
}
