//! JSON straight into the normalised form of a type: one pass over the bytes.
//!
//! The result is what Go would encode after decoding: fields in the struct's order, empty `omitempty` fields left
//! out, the zero values of the others present, quantities and times canonical. Unknown and repeated fields are noted,
//! a value of the wrong type is noted (the first one counts) and reading goes on, as in Go.

use std::fmt::Write;

use orlop_json::{Map, Number, Value};

use super::lexer::{Lexer, Syntax, number};
use super::scalar;
use crate::quantity::Quantity;
use crate::schema::{Field, Struct, Type};

/// At most so many complaints about unknown and repeated fields are kept.
const MAX_STRICT: usize = 100;

/// Where the reader is, as a list on the stack: nothing is allocated unless there is something to complain about.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    parent: Option<&'a Frame<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'static str, &'a str),
    Key(&'a str),
    Index(usize),
}

type Place<'a> = Option<&'a Frame<'a>>;

fn frame<'a>(parent: Place<'a>, step: Step<'a>) -> Frame<'a> {
    Frame { parent, step }
}

/// The path with indexes: `spec.containers[0].name`.
fn full_path(place: Place, out: &mut String) {
    let Some(frame) = place else { return };
    full_path(frame.parent, out);
    match frame.step {
        Step::Field(_, name) | Step::Key(name) => {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(name);
        }
        Step::Index(index) => {
            let _ = write!(out, "[{index}]");
        }
    }
}

/// The path of struct fields alone and the innermost struct, as Go's type errors name a place.
fn go_context(place: Place) -> Option<(&'static str, String)> {
    let mut names = Vec::new();
    let mut innermost = None;
    let mut at = place;
    while let Some(frame) = at {
        if let Step::Field(owner, name) = frame.step {
            innermost.get_or_insert(owner);
            names.push(name);
        }
        at = frame.parent;
    }
    names.reverse();
    innermost.map(|owner| (owner, names.join(".")))
}

/// Reads one document of a type.
pub(super) struct Reader<'a> {
    pub lexer: Lexer<'a>,
    /// `unknown field "…"`, `duplicate field "…"`.
    pub strict: Vec<String>,
    /// The first value of a wrong type.
    pub mismatch: Option<String>,
    /// The first value that its own notation refuses; counts before `mismatch`.
    pub refused: Option<String>,
    /// `kind` or `apiVersion` of the document is no string.
    pub meta_mismatch: Option<String>,
}

impl<'a> Reader<'a> {
    pub fn new(body: &'a [u8]) -> Reader<'a> {
        Reader {
            lexer: Lexer::new(body),
            strict: Vec::new(),
            mismatch: None,
            refused: None,
            meta_mismatch: None,
        }
    }

    /// The document; the caller has seen that it begins an object.
    pub fn document(&mut self, ty: &'static Struct) -> Result<Value, Syntax> {
        let value = self.structure(ty, None)?;
        self.lexer.end()?;
        Ok(value)
    }

    fn complain(&mut self, what: &str, place: Place) {
        if self.strict.len() >= MAX_STRICT {
            return;
        }
        let mut path = String::new();
        full_path(place, &mut path);
        let text = format!("{what} field {}", crate::field::go_quote(&path));
        if !self.strict.contains(&text) {
            self.strict.push(text);
        }
    }

    fn mismatch_text(what: &str, place: Place, go_type: &str) -> String {
        match go_context(place) {
            Some((owner, path)) => {
                format!("json: cannot unmarshal {what} into Go struct field {owner}.{path} of type {go_type}")
            }
            None => format!("json: cannot unmarshal {what} into Go value of type {go_type}"),
        }
    }

    fn wrong(&mut self, what: &str, place: Place, go_type: &str) {
        if let Some(Frame { parent: None, step: Step::Field(_, name @ ("kind" | "apiVersion")) }) = place {
            self.meta_mismatch.get_or_insert_with(|| {
                format!("json: cannot unmarshal {what} into Go struct field .{name} of type string")
            });
        }
        if self.mismatch.is_none() {
            self.mismatch = Some(Self::mismatch_text(what, place, go_type));
        }
    }

    fn refuse(&mut self, text: String) {
        self.refused.get_or_insert(text);
    }

    /// Skips the value under the reader, which is of the wrong type.
    fn skip_wrong(&mut self, place: Place, go_type: &str) -> Result<(), Syntax> {
        let what = match self.lexer.begin()? {
            b'{' => "object",
            b'[' => "array",
            b'"' => "string",
            b't' | b'f' => "bool",
            _ => "number",
        };
        self.skip()?;
        self.wrong(what, place, go_type);
        Ok(())
    }

    fn skip(&mut self) -> Result<(), Syntax> {
        self.lexer.any(&mut String::new()).map(|_| ())
    }

    /// A value; `None` = null or unreadable, that is, the type's zero.
    fn value(&mut self, ty: &Type, go_type: &str, place: Place) -> Result<Option<Value>, Syntax> {
        let first = self.lexer.begin()?;
        if first == b'n' {
            self.lexer.literal("null")?;
            return Ok(None);
        }
        match ty {
            Type::String if first == b'"' => Ok(Some(Value::String(self.lexer.string()?.into_owned()))),
            Type::Bool if first == b't' => self.lexer.literal("true").map(|()| Some(Value::Bool(true))),
            Type::Bool if first == b'f' => self.lexer.literal("false").map(|()| Some(Value::Bool(false))),
            Type::Int32 | Type::Int64 if is_number(first) => {
                let text = self.lexer.number()?;
                let whole = text.parse::<i64>().ok();
                match whole.filter(|n| matches!(ty, Type::Int64) || i32::try_from(*n).is_ok()) {
                    Some(whole) => Ok(Some(Value::from(whole))),
                    None => {
                        self.wrong(&format!("number {text}"), place, go_type);
                        Ok(None)
                    }
                }
            }
            Type::Float64 if is_number(first) => Ok(Some(go_float(self.lexer.number()?))),
            Type::Bytes if first == b'"' => {
                let text = self.lexer.string()?;
                match scalar::normalise_base64(&text) {
                    Ok(text) => Ok(Some(Value::String(text))),
                    Err(error) => {
                        self.mismatch.get_or_insert(error);
                        Ok(None)
                    }
                }
            }
            Type::List(item) if first == b'[' => self.list(item, go_type, place).map(Some),
            Type::Map(item) if first == b'{' => self.map(item, go_type, place).map(Some),
            Type::Struct(at) if first == b'{' => self.structure(at.get(), place).map(Some),
            Type::Json | Type::RawExtension | Type::FieldsV1 => self.lexer.any(&mut String::new()).map(Some),
            Type::Quantity => self.quantity(first),
            Type::IntOrString => self.int_or_string(first, place),
            Type::Time => self.notation(first, place, scalar::normalise_time),
            Type::MicroTime => self.notation(first, place, scalar::normalise_micro_time),
            Type::Duration => self.notation(first, place, scalar::normalise_duration),
            Type::StructOrList(at) | Type::StructOrBool(at) | Type::StructOrStrings(at) => {
                match (ty, first) {
                    (_, b'{') => self.structure(at.get(), place).map(Some),
                    (Type::StructOrList(at), b'[') => self.list(&Type::Struct(*at), go_type, place).map(Some),
                    (Type::StructOrStrings(_), b'[') => self.list(&Type::String, "[]string", place).map(Some),
                    (Type::StructOrBool(_), b't') => {
                        self.lexer.literal("true").map(|()| Some(Value::Bool(true)))
                    }
                    (Type::StructOrBool(_), b'f') => {
                        self.lexer.literal("false").map(|()| Some(Value::Bool(false)))
                    }
                    (Type::StructOrBool(_), _) => {
                        self.skip()?;
                        self.refuse("boolean or JSON schema expected".into());
                        Ok(None)
                    }
                    _ => {
                        self.skip_wrong(place, go_type)?;
                        Ok(None)
                    }
                }
            }
            _ => {
                self.skip_wrong(place, go_type)?;
                Ok(None)
            }
        }
    }

    fn quantity(&mut self, first: u8) -> Result<Option<Value>, Syntax> {
        let text = match first {
            b'"' => self.lexer.string()?.into_owned(),
            _ => {
                let from = self.lexer.position();
                self.skip()?;
                String::from_utf8_lossy(self.lexer.raw(from)).into_owned()
            }
        };
        match Quantity::normalise(text.trim()) {
            Ok(text) => Ok(Some(Value::String(text))),
            Err(error) => {
                self.refuse(error.to_string());
                Ok(None)
            }
        }
    }

    fn int_or_string(&mut self, first: u8, place: Place) -> Result<Option<Value>, Syntax> {
        if first == b'"' {
            return Ok(Some(Value::String(self.lexer.string()?.into_owned())));
        }
        let before = self.mismatch.take();
        let value = self.value(&Type::Int32, "int32", place)?;
        if let Some(error) = self.mismatch.take() {
            self.refuse(error);
        }
        self.mismatch = before;
        Ok(value)
    }

    /// A string with a notation of its own.
    fn notation(
        &mut self,
        first: u8,
        place: Place,
        normalise: fn(&str) -> Result<String, String>,
    ) -> Result<Option<Value>, Syntax> {
        if first != b'"' {
            let before = self.mismatch.take();
            self.skip_wrong(place, "string")?;
            if let Some(error) = self.mismatch.take() {
                self.refuse(error);
            }
            self.mismatch = before;
            return Ok(None);
        }
        let text = self.lexer.string()?;
        match normalise(&text) {
            Ok(text) => Ok(Some(Value::String(text))),
            Err(error) => {
                self.refuse(error);
                Ok(None)
            }
        }
    }

    fn list(&mut self, item: &Type, go_type: &str, place: Place) -> Result<Value, Syntax> {
        let item_type = go_type.strip_prefix("[]").unwrap_or(match item {
            Type::String => "string",
            other => usual_name(other),
        });
        let mut items = Vec::new();
        let mut more = self.lexer.array_begin()?;
        while more {
            let here = frame(place, Step::Index(items.len()));
            let value = self.value(item, item_type, Some(&here))?;
            items.push(value.unwrap_or_else(|| zero(item)));
            more = self.lexer.array_next()?;
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, item: &Type, go_type: &str, place: Place) -> Result<Value, Syntax> {
        let item_type = go_type
            .strip_prefix("map[")
            .and_then(|rest| rest.split_once(']'))
            .map_or_else(|| usual_name(item), |(_, item)| item);
        let mut map = Map::new();
        let (mut sorted, mut last) = (true, String::new());
        let mut more = self.lexer.object_begin()?;
        while more {
            let key = self.lexer.object_key()?;
            let here = frame(place, Step::Key(&key));
            if map.contains_key(&key) {
                self.complain("duplicate", Some(&here));
            }
            let value = self.value(item, item_type, Some(&here))?;
            let value = value.unwrap_or_else(|| match item {
                // A nil slice of bytes comes back from storage as an empty one.
                Type::Bytes => Value::String(String::new()),
                other => zero(other),
            });
            let key = key.into_owned();
            sorted &= last <= key;
            last.clone_from(&key);
            map.insert(key.into(), value);
            more = self.lexer.object_next()?;
        }
        if !sorted {
            map.sort_keys();
        }
        Ok(Value::Object(map))
    }

    fn structure(&mut self, ty: &'static Struct, place: Place) -> Result<Value, Syntax> {
        let mut slots: Vec<Option<Value>> = Vec::new();
        slots.resize_with(ty.fields.len(), || None);
        // Bits of the fields that were there, null or not.
        let mut seen = vec![0u64; ty.fields.len().div_ceil(64)];
        let mut more = self.lexer.object_begin()?;
        while more {
            let key = self.lexer.object_key()?;
            match ty.position(&key) {
                Some(at) => {
                    let field = &ty.fields[at];
                    let here = frame(place, Step::Field(ty.name(), field.json));
                    let bit = 1u64 << (at % 64);
                    if seen[at / 64] & bit != 0 {
                        self.complain("duplicate", Some(&here));
                    }
                    seen[at / 64] |= bit;
                    let value = self.value(&field.ty, field.go_type, Some(&here))?;
                    match (&mut slots[at], value) {
                        // Go decodes a repeated map into the map it has.
                        (Some(Value::Object(old)), Some(Value::Object(new)))
                            if matches!(field.ty, Type::Map(_)) =>
                        {
                            old.extend(new);
                            old.sort_keys();
                        }
                        (slot, value) => *slot = value,
                    }
                }
                None => {
                    self.skip()?;
                    let here = frame(place, Step::Key(&key));
                    self.complain("unknown", Some(&here));
                }
            }
            more = self.lexer.object_next()?;
        }
        Ok(emit(ty, &mut slots))
    }
}

fn is_number(first: u8) -> bool {
    first == b'-' || first.is_ascii_digit()
}

fn usual_name(ty: &Type) -> &'static str {
    match ty {
        Type::String => "string",
        Type::Int32 => "int32",
        Type::Int64 => "int64",
        Type::Bool => "bool",
        Type::Float64 => "float64",
        Type::Bytes => "[]uint8",
        Type::Quantity => "resource.Quantity",
        Type::Struct(at) => at.get().go_type,
        _ => "interface {}",
    }
}

/// A float as Go encodes it: whole ones without a point.
fn go_float(text: &str) -> Value {
    let value = number(text);
    match value.as_f64() {
        Some(float) if value.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => {
            Value::from(float as i64)
        }
        Some(_) => value,
        None => Value::Number(Number::from(0)),
    }
}

/// What Go encodes for a type's zero value.
pub(crate) fn zero(ty: &Type) -> Value {
    match ty {
        Type::String => Value::String(String::new()),
        Type::Int32 | Type::Int64 | Type::Float64 | Type::IntOrString => Value::from(0),
        Type::Bool => Value::Bool(false),
        Type::Quantity => Value::from("0"),
        Type::Duration => Value::from("0s"),
        Type::Struct(at) => {
            let ty = at.get();
            let mut slots = Vec::new();
            slots.resize_with(ty.fields.len(), || None);
            emit(ty, &mut slots)
        }
        _ => Value::Null,
    }
}

/// The fields in their order, as Go's encoder decides which to write.
pub(crate) fn emit(ty: &'static Struct, slots: &mut [Option<Value>]) -> Value {
    let mut map = Map::with_capacity(slots.iter().filter(|slot| slot.is_some()).count() + 2);
    for (field, slot) in ty.fields.iter().zip(slots) {
        if let Some(value) = encoded(field, slot.take()) {
            map.insert(orlop_json::Key::new_static(field.json), value);
        }
    }
    Value::Object(map)
}

fn encoded(field: &Field, value: Option<Value>) -> Option<Value> {
    match value {
        Some(value) if field.pointer => Some(value),
        Some(value) => {
            if !is_empty(&value, &field.ty) {
                return Some(value);
            }
            if field.omitempty {
                // An empty list of managers, said out loud, resets them.
                return (field.json == "managedFields" && value.is_array()).then_some(value);
            }
            Some(value)
        }
        None if field.pointer => (!field.omitempty).then_some(Value::Null),
        // The one field that Go leaves out by `omitzero`.
        None if field.json == "creationTimestamp" => None,
        None if field.omitempty && !always_there(&field.ty) => None,
        None => Some(zero(&field.ty)),
    }
}

/// Storage knows no difference between an empty list and none: an object that comes back from it shows `null` for
/// both. Call it on what is about to be stored, once it is settled who owns what.
pub fn forget_empty_lists(value: &mut Value, ty: &'static Struct) {
    let (true, Some(map)) = (ty.shows_empty_lists, value.as_object_mut()) else { return };
    for (name, value) in map {
        let Some(field) = ty.field(name) else { continue };
        let empty =
            value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
        if empty && field.shows_empty_list() {
            *value = Value::Null;
        } else {
            forget_inside(value, &field.ty);
        }
    }
}

fn forget_inside(value: &mut Value, ty: &Type) {
    match (ty, value) {
        (Type::Struct(at), value) => forget_empty_lists(value, at.get()),
        (Type::List(item), Value::Array(items)) => items.iter_mut().for_each(|v| forget_inside(v, item)),
        (Type::Map(item), Value::Object(map)) => map.values_mut().for_each(|v| forget_inside(v, item)),
        _ => {}
    }
}

/// Structs are never empty for Go's `omitempty`.
fn always_there(ty: &Type) -> bool {
    matches!(
        ty,
        Type::Struct(_)
            | Type::Time
            | Type::MicroTime
            | Type::Duration
            | Type::Quantity
            | Type::IntOrString
            | Type::RawExtension
    )
}

fn is_empty(value: &Value, ty: &Type) -> bool {
    if always_there(ty) {
        return false;
    }
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_i64() == Some(0) || value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.is_empty() && matches!(ty, Type::Map(_)),
    }
}
