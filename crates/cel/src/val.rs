//! Values. A value of JSON stays where it is: [`Val`] borrows from the object, and an element or field becomes a value
//! of its own only when an expression asks for it, by the declared type if there is one.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_json::Value;

use crate::decl::{DeclType, FieldDecl, ListKind, Shape};
use crate::error::EvalError;
use crate::library::opaque::Opaque;
use crate::time::{Duration, Timestamp};
use crate::types::{ObjectType, Type};

/// What an evaluation step gives.
pub type Res<'a> = Result<Val<'a>, EvalError>;

/// A value.
#[derive(Clone, Debug)]
pub enum Val<'a> {
    /// `null`
    Null,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `uint`
    Uint(u64),
    /// `double`
    Double(f64),
    /// `string`
    String(Str<'a>),
    /// `bytes`
    Bytes(Arc<[u8]>),
    /// `google.protobuf.Duration`
    Duration(Duration),
    /// `google.protobuf.Timestamp`
    Timestamp(Timestamp),
    /// A type as a value.
    Type(Type),
    /// `list`
    List(List<'a>),
    /// `map`, and objects with declared fields.
    Map(Map<'a>),
    /// An object made by an expression (`Object{…}`).
    Struct(Arc<Struct<'a>>),
    /// `optional_type`
    Optional(Option<Arc<Val<'a>>>),
    /// A value of a library.
    Opaque(Opaque<'a>),
}

/// A string: of the object or made by the expression.
#[derive(Clone, Debug)]
pub enum Str<'a> {
    /// Borrowed from an object.
    Borrowed(&'a str),
    /// Made while evaluating, or a literal.
    Owned(Arc<str>),
}

impl Str<'_> {
    /// The characters.
    pub fn as_str(&self) -> &str {
        match self {
            Str::Borrowed(text) => text,
            Str::Owned(text) => text,
        }
    }
}

/// A list.
#[derive(Clone, Debug)]
pub enum List<'a> {
    /// A JSON array, with the declaration of its elements.
    Json(&'a [Value], Option<&'a DeclType>, &'a ListKind),
    /// Made while evaluating.
    Owned(Arc<Vec<Val<'a>>>),
    /// Made from lists of objects with the semantics of `x-kubernetes-list-type`.
    Typed(Arc<Vec<Val<'a>>>, &'a ListKind),
}

/// A map or an object.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// A JSON object; the declaration says which keys are fields and how their values are read.
    Json(&'a orlop_json::Map, MapShape<'a>),
    /// Made while evaluating.
    Owned(Arc<OwnedMap<'a>>),
}

/// A map made while evaluating, in the order of insertion.
#[derive(Clone, Debug, Default)]
pub struct OwnedMap<'a> {
    entries: Vec<(Val<'a>, Val<'a>)>,
    index: HashMap<Key, usize>,
}

/// What can be a key. Whole numbers of all numeric types are the same key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Bool(bool),
    Number(i128),
    String(Arc<str>),
}

impl Key {
    fn of(val: &Val<'_>) -> Option<Key> {
        Some(match val {
            Val::Bool(b) => Key::Bool(*b),
            Val::Int(i) => Key::Number(i128::from(*i)),
            Val::Uint(u) => Key::Number(i128::from(*u)),
            Val::Double(f) if f.fract() == 0.0 && f.abs() < 1e19 => Key::Number(*f as i128),
            Val::String(Str::Owned(text)) => Key::String(text.clone()),
            Val::String(Str::Borrowed(text)) => Key::String(Arc::from(*text)),
            _ => return None,
        })
    }
}

impl<'a> OwnedMap<'a> {
    /// Adds an entry. `false` where the key was there already (it keeps its place and gets the new value).
    pub fn insert(&mut self, key: Val<'a>, value: Val<'a>) -> Result<bool, EvalError> {
        let hashed = match (&key, Key::of(&key)) {
            (Val::Double(_), _) | (_, None) => {
                return Err(EvalError::text(format!("unsupported key type: {}", key.type_name())));
            }
            (_, Some(hashed)) => hashed,
        };
        match self.index.get(&hashed) {
            Some(place) => {
                self.entries[*place].1 = value;
                Ok(false)
            }
            None => {
                self.index.insert(hashed, self.entries.len());
                self.entries.push((key, value));
                Ok(true)
            }
        }
    }

    /// The entries.
    pub fn entries(&self) -> &[(Val<'a>, Val<'a>)] {
        &self.entries
    }

    /// The value of a key.
    pub fn get(&self, key: &Val<'_>) -> Option<&Val<'a>> {
        self.index.get(&Key::of(key)?).map(|place| &self.entries[*place].1)
    }
}

/// What is known of a JSON object's members.
#[derive(Clone, Copy, Debug)]
pub enum MapShape<'a> {
    /// Nothing: members are read as they are.
    Dyn,
    /// All members are of this type.
    Values(&'a DeclType),
    /// Only these are visible, by their escaped names.
    Fields(&'a std::collections::BTreeMap<Arc<str>, FieldDecl>),
}

/// An object made by an expression.
#[derive(Debug)]
pub struct Struct<'a> {
    /// Its type.
    pub ty: Arc<ObjectType>,
    /// The fields that were set, by their escaped names.
    pub fields: Vec<(Arc<str>, Val<'a>)>,
}

const ATOMIC: &ListKind = &ListKind::Atomic;

impl<'a> Val<'a> {
    /// A string made while evaluating.
    pub fn string(text: impl Into<Arc<str>>) -> Val<'a> {
        Val::String(Str::Owned(text.into()))
    }

    /// A list made while evaluating.
    pub fn list(items: Vec<Val<'a>>) -> Val<'a> {
        Val::List(List::Owned(Arc::new(items)))
    }

    /// A map made while evaluating.
    pub fn map(map: OwnedMap<'a>) -> Val<'a> {
        Val::Map(Map::Owned(Arc::new(map)))
    }

    /// A value of JSON, read as it is: numbers are `int` where they are whole, else `double`.
    pub fn from_json(value: &'a Value) -> Val<'a> {
        match value {
            Value::Null => Val::Null,
            Value::Bool(b) => Val::Bool(*b),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(i), _) => Val::Int(i),
                (None, Some(u)) => Val::Uint(u),
                _ => Val::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Val::String(Str::Borrowed(text)),
            Value::Array(items) => Val::List(List::Json(items, None, ATOMIC)),
            Value::Object(members) => Val::from_json_object(members),
        }
    }

    /// A JSON object, read as it is.
    pub fn from_json_object(members: &'a orlop_json::Map) -> Val<'a> {
        Val::Map(Map::Json(members, MapShape::Dyn))
    }

    /// A value of JSON, read by its declared type.
    pub fn from_declared(value: &'a Value, decl: &'a DeclType) -> Res<'a> {
        if value.is_null() {
            return match &decl.shape {
                Shape::Dyn => Ok(Val::Null),
                _ if decl.nullable => Ok(Val::Null),
                _ => Err(EvalError::text("invalid data, got null for schema with nullable=false")),
            };
        }
        match (&decl.shape, value) {
            (Shape::Dyn, value) => Ok(Val::from_json(value)),
            (Shape::IntOrString, Value::String(text)) => Ok(Val::String(Str::Borrowed(text))),
            (Shape::IntOrString, Value::Number(number)) if number.as_i64().is_some() => {
                Ok(Val::Int(number.as_i64().unwrap_or_default()))
            }
            (Shape::IntOrString, _) => Err(EvalError::text(
                "invalid data, expected XIntOrString value to be either a string or integer",
            )),
            (Shape::List(element, kind), Value::Array(items)) => {
                Ok(Val::List(List::Json(items, Some(element), kind)))
            }
            (Shape::List(..), _) => Err(EvalError::text(
                "invalid data, expected an array for the provided schema with type=array",
            )),
            (Shape::Map(value), Value::Object(members)) => {
                Ok(Val::Map(Map::Json(members, MapShape::Values(value))))
            }
            (Shape::Object(fields), Value::Object(members)) => {
                Ok(Val::Map(Map::Json(members, MapShape::Fields(fields))))
            }
            (Shape::Map(_) | Shape::Object(_), _) => {
                Err(EvalError::text("invalid data, expected a map for the provided schema with type=object"))
            }
            (Shape::Scalar, value) => Val::scalar(value, &decl.ty),
        }
    }

    fn scalar(value: &'a Value, ty: &Type) -> Res<'a> {
        match (ty, value) {
            (Type::Bool, Value::Bool(b)) => Ok(Val::Bool(*b)),
            (Type::Int, Value::Number(number)) => match number.as_i64() {
                Some(i) => Ok(Val::Int(i)),
                None => match number.as_f64() {
                    Some(f) if f.fract() == 0.0 && f.abs() < 9.2e18 => Ok(Val::Int(f as i64)),
                    _ => Err(EvalError::text("invalid data, expected int, got float64")),
                },
            },
            (Type::Double, Value::Number(number)) => Ok(Val::Double(number.as_f64().unwrap_or(f64::NAN))),
            (Type::String, Value::String(text)) => Ok(Val::String(Str::Borrowed(text))),
            (Type::Bytes, Value::String(text)) => {
                use base64::Engine;
                match base64::engine::general_purpose::STANDARD.decode(text) {
                    Ok(bytes) => Ok(Val::Bytes(Arc::from(bytes))),
                    Err(error) => {
                        Err(EvalError::text(format!("Invalid byte formatted string {text}: {error}")))
                    }
                }
            }
            (Type::Duration, Value::String(text)) => match Duration::parse_format(text) {
                Some(duration) => Ok(Val::Duration(duration)),
                None => Err(EvalError::text(format!(
                    "Invalid duration {text}: time: invalid duration \"{text}\""
                ))),
            },
            (Type::Timestamp, Value::String(text)) => match Timestamp::parse_format(text) {
                Some(time) => Ok(Val::Timestamp(time)),
                None => Err(EvalError::text(format!("Invalid date-time formatted string {text}"))),
            },
            (Type::Null, _) => Ok(Val::Null),
            (Type::Bool, other) => Err(wrong("bool", other)),
            (Type::Int, other) => Err(wrong("int", other)),
            (Type::Double, other) => Err(wrong("float", other)),
            (Type::String | Type::Bytes | Type::Duration | Type::Timestamp, other) => {
                Err(wrong("string", other))
            }
            (_, other) => Ok(Val::from_json(other)),
        }
    }

    /// The type at run time. Lists and maps are of `dyn`, as upstream's are.
    pub fn ty(&self) -> Type {
        match self {
            Val::Null => Type::Null,
            Val::Bool(_) => Type::Bool,
            Val::Int(_) => Type::Int,
            Val::Uint(_) => Type::Uint,
            Val::Double(_) => Type::Double,
            Val::String(_) => Type::String,
            Val::Bytes(_) => Type::Bytes,
            Val::Duration(_) => Type::Duration,
            Val::Timestamp(_) => Type::Timestamp,
            Val::Type(_) => Type::TypeType(None),
            Val::List(_) => Type::list(Type::Dyn),
            Val::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Val::Struct(object) => Type::Object(object.ty.clone()),
            Val::Optional(_) => Type::optional(Type::Dyn),
            Val::Opaque(opaque) => opaque.ty(),
        }
    }

    /// The name of the type at run time, as "no such overload" errors print it.
    pub fn type_name(&self) -> String {
        self.ty().name().to_owned()
    }

    /// `size()` for the cost of calls: 1 for what has no size.
    pub fn cost_size(&self) -> u64 {
        self.size().unwrap_or(1) as u64
    }

    /// `size()`.
    pub fn size(&self) -> Option<i64> {
        match self {
            Val::String(text) => Some(text.as_str().chars().count() as i64),
            Val::Bytes(bytes) => Some(bytes.len() as i64),
            Val::List(list) => Some(list.len() as i64),
            Val::Map(map) => Some(map.len() as i64),
            Val::Opaque(opaque) => opaque.size(),
            _ => None,
        }
    }

    /// The string, where it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Val::String(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// The value as JSON; `None` for values that have no JSON form (types, library values) or far too large a one.
    pub fn to_json(&self) -> Option<Value> {
        // Values can share parts, so that their JSON is far larger than they are.
        self.json(0, &mut 4_000_000)
    }

    fn json(&self, depth: usize, left: &mut usize) -> Option<Value> {
        *left = left.checked_sub(1)?;
        if depth > 300 {
            return None;
        }
        Some(match self {
            Val::Null => Value::Null,
            Val::Bool(b) => Value::Bool(*b),
            Val::Int(i) => Value::from(*i),
            Val::Uint(u) => Value::from(*u),
            Val::Double(f) => orlop_json::Number::from_f64(*f).map(Value::Number)?,
            Val::String(text) => Value::String(text.as_str().to_owned()),
            Val::Bytes(bytes) => {
                use base64::Engine;
                Value::String(base64::engine::general_purpose::STANDARD.encode(bytes))
            }
            Val::Duration(duration) => Value::String(duration.to_string()),
            Val::Timestamp(time) => Value::String(time.to_string()),
            Val::List(List::Json(items, ..)) => Value::Array(items.to_vec()),
            Val::List(List::Owned(items) | List::Typed(items, _)) => {
                Value::Array(items.iter().map(|item| item.json(depth + 1, left)).collect::<Option<_>>()?)
            }
            Val::Map(Map::Json(members, _)) => Value::Object((*members).clone()),
            Val::Map(Map::Owned(entries)) => {
                let mut out = orlop_json::Map::new();
                for (key, value) in entries.entries() {
                    out.insert(key.key_text()?.into(), value.json(depth + 1, left)?);
                }
                Value::Object(out)
            }
            Val::Struct(object) => {
                let mut out = orlop_json::Map::new();
                for (name, value) in &object.fields {
                    out.insert(crate::escaping::unescape(name).into(), value.json(depth + 1, left)?);
                }
                Value::Object(out)
            }
            Val::Optional(Some(value)) => value.json(depth + 1, left)?,
            Val::Optional(None) => Value::Null,
            Val::Type(_) | Val::Opaque(_) => return None,
        })
    }

    /// Whether each object made by an expression has the type its place asks for (`Object{spec: Object.spec{…}}`).
    /// The error is upstream's text. Objects in lists and maps have the type of the field.
    pub fn check_type_names(&self) -> Result<(), String> {
        let Val::Struct(object) = self else { return Ok(()) };
        self.check_type_names_at(&object.ty.name, 0)
    }

    fn check_type_names_at(&self, expected: &str, depth: usize) -> Result<(), String> {
        if depth > 300 {
            return Err("the object is nested too deeply".to_owned());
        }
        match self {
            Val::Struct(object) => {
                if *object.ty.name != *expected {
                    return Err(format!(
                        "unexpected type name {:?}, expected {expected:?}, which matches field name path from root \
                         Object type",
                        &*object.ty.name
                    ));
                }
                for (name, value) in &object.fields {
                    let name = crate::escaping::unescape(name);
                    value.check_type_names_at(&format!("{expected}.{name}"), depth + 1)?;
                }
                Ok(())
            }
            Val::List(List::Owned(items)) => {
                items.iter().try_for_each(|item| item.check_type_names_at(expected, depth + 1))
            }
            Val::Map(Map::Owned(map)) => {
                map.entries().iter().try_for_each(|(_, value)| value.check_type_names_at(expected, depth + 1))
            }
            Val::Optional(Some(value)) => value.check_type_names_at(expected, depth + 1),
            _ => Ok(()),
        }
    }

    fn key_text(&self) -> Option<String> {
        match self {
            Val::String(text) => Some(text.as_str().to_owned()),
            Val::Int(i) => Some(i.to_string()),
            Val::Uint(u) => Some(u.to_string()),
            Val::Bool(b) => Some(b.to_string()),
            _ => None,
        }
    }
}

fn wrong(expected: &str, got: &Value) -> EvalError {
    let got = match got {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    EvalError::text(format!("invalid data, expected {expected}, got {got}"))
}

impl<'a> List<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            List::Json(items, ..) => items.len(),
            List::Owned(items) | List::Typed(items, _) => items.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An element.
    pub fn get(&self, index: usize) -> Option<Res<'a>> {
        match self {
            List::Json(items, None, _) => items.get(index).map(|item| Ok(Val::from_json(item))),
            List::Json(items, Some(decl), _) => items.get(index).map(|item| Val::from_declared(item, decl)),
            List::Owned(items) | List::Typed(items, _) => items.get(index).cloned().map(Ok),
        }
    }

    /// All elements.
    pub fn iter(&self) -> impl Iterator<Item = Res<'a>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The semantics of the list.
    pub fn kind(&self) -> &'a ListKind {
        match self {
            List::Json(_, _, kind) | List::Typed(_, kind) => kind,
            List::Owned(_) => ATOMIC,
        }
    }
}

impl<'a> Map<'a> {
    /// The number of entries (upstream counts undeclared members of an object, too).
    pub fn len(&self) -> usize {
        match self {
            Map::Json(members, _) => members.len(),
            Map::Owned(entries) => entries.entries.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a string key.
    pub fn get_str(&self, key: &str) -> Option<Res<'a>> {
        match self {
            Map::Json(members, MapShape::Dyn) => members.get(key).map(|value| Ok(Val::from_json(value))),
            Map::Json(members, MapShape::Values(decl)) => {
                members.get(key).map(|value| Val::from_declared(value, decl))
            }
            Map::Json(members, MapShape::Fields(fields)) => {
                let field = fields.get(key)?;
                members.get(&field.json).map(|value| Val::from_declared(value, &field.decl))
            }
            Map::Owned(entries) => entries.get(&Val::string(key)).map(|value| Ok(value.clone())),
        }
    }

    /// The value of a key. Numeric keys are found across numeric types.
    pub fn get(&self, key: &Val<'_>) -> Option<Res<'a>> {
        if let Some(text) = key.as_str() {
            return self.get_str(text);
        }
        match self {
            Map::Owned(entries) => entries.get(key).map(|value| Ok(value.clone())),
            Map::Json(..) => None,
        }
    }

    /// The keys: declared fields that are present under their escaped names, or all members.
    pub fn keys(&self) -> Vec<Val<'a>> {
        match self {
            Map::Json(members, MapShape::Fields(fields)) => fields
                .iter()
                .filter(|(_, field)| members.contains_key(&field.json))
                .map(|(name, _)| Val::String(Str::Owned(name.clone())))
                .collect(),
            Map::Json(members, _) => members.keys().map(|key| Val::String(Str::Borrowed(key))).collect(),
            Map::Owned(entries) => entries.entries.iter().map(|(key, _)| key.clone()).collect(),
        }
    }
}
