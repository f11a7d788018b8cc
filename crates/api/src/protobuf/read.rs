//! Messages to objects in normalised form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_json::{Map, Number, Value};

use super::wire::{Reader, Scalar};
use super::{Envelope, Error, MAGIC, type_of};
use crate::decode::{self, Media, scalar};
use crate::quantity::Quantity;
use crate::schema::{Field, Place, Struct, StructRef, Type};

/// Years 0 to 9999, in seconds since 1970: what the text form can say.
const TIMES: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;
/// Go's zero time, which JSON shows as null.
const ZERO_TIME: i64 = -62_135_596_800;

pub(super) fn enveloped(body: &[u8], depth: usize) -> Result<Value, Error> {
    let envelope = Envelope::open(body)?;
    let Some(ty) = type_of(envelope.api_version, envelope.kind) else {
        return Err(Error::new(format!(
            "no kind {} is registered for version {}",
            crate::field::go_quote(envelope.kind),
            crate::field::go_quote(envelope.api_version)
        )));
    };
    let mut value = structure(envelope.message, ty, depth)?;
    if let Value::Object(map) = &mut value {
        map.shift_insert(0, "kind".into(), envelope.kind.into());
        map.shift_insert(1, "apiVersion".into(), envelope.api_version.into());
    }
    Ok(value)
}

pub(super) fn structure(message: &[u8], ty: &'static Struct, depth: usize) -> Result<Value, Error> {
    let mut slots: Vec<Option<Value>> = Vec::new();
    slots.resize_with(ty.fields.len(), || None);
    fields(message, ty, &ty.message, &mut slots, below(depth)?)?;
    for (field, slot) in ty.fields.iter().zip(&mut slots) {
        if let (Type::Map(_), Some(Value::Object(map))) = (&field.ty, slot) {
            map.sort_keys();
        }
    }
    Ok(decode::emit(ty, &mut slots))
}

fn below(depth: usize) -> Result<usize, Error> {
    depth.checked_sub(1).ok_or_else(|| Error::new("exceeded max depth"))
}

fn fields(
    message: &[u8],
    ty: &'static Struct,
    places: &'static [(u32, Place)],
    slots: &mut [Option<Value>],
    depth: usize,
) -> Result<(), Error> {
    let mut reader = Reader::new(message);
    while let Some((number, value)) = reader.next()? {
        let Ok(at) = places.binary_search_by_key(&number, |(number, _)| *number) else { continue };
        match &places[at].1 {
            Place::Inline(inner) => fields(value.bytes("inline")?, ty, inner, slots, depth)?,
            Place::Field(at) => field(&ty.fields[*at], value, &mut slots[*at], depth)?,
        }
    }
    Ok(())
}

fn field(
    field: &'static Field,
    value: Scalar<'_>,
    slot: &mut Option<Value>,
    depth: usize,
) -> Result<(), Error> {
    let name = field.json;
    match &field.ty {
        Type::List(item) if !field.is_wrapped() => {
            let Value::Array(list) = slot.get_or_insert_with(|| Value::Array(Vec::new())) else {
                return Ok(());
            };
            push(list, item, value, name, depth)
        }
        Type::Map(item) => {
            let Value::Object(map) = slot.get_or_insert_with(|| Value::Object(Map::new())) else {
                return Ok(());
            };
            let (mut key, mut content) = (String::new(), None);
            let mut entry = Reader::new(value.bytes(name)?);
            while let Some((number, value)) = entry.next()? {
                match number {
                    1 => key = value.text(name)?.to_owned(),
                    2 => content = self::value(item, value, name, depth)?,
                    _ => {}
                }
            }
            let content = content.unwrap_or_else(|| match **item {
                Type::Bytes => Value::String(String::new()),
                ref other => decode::zero(other),
            });
            map.insert(key.into(), content);
            Ok(())
        }
        ty => {
            *slot = self::value(ty, value, name, depth)?;
            Ok(())
        }
    }
}

/// An item of a list; numbers may stand packed in one field.
fn push(
    list: &mut Vec<Value>,
    item: &'static Type,
    value: Scalar<'_>,
    name: &'static str,
    depth: usize,
) -> Result<(), Error> {
    if let (Type::Int32 | Type::Int64 | Type::Bool, Scalar::Bytes(packed)) = (item, value) {
        let mut reader = Reader::new(packed);
        while !reader.is_empty() {
            let number = Scalar::Varint(reader.varint()?);
            list.extend(self::value(item, number, name, depth)?);
        }
        return Ok(());
    }
    let value = self::value(item, value, name, depth)?;
    list.push(value.unwrap_or_else(|| decode::zero(item)));
    Ok(())
}

/// A value; `None` = the type's zero.
fn value(
    ty: &'static Type,
    value: Scalar<'_>,
    name: &'static str,
    depth: usize,
) -> Result<Option<Value>, Error> {
    Ok(Some(match ty {
        Type::String => Value::from(value.text(name)?),
        // Go cuts numbers off at 32 bits.
        Type::Int32 => Value::from(value.varint(name)? as i32),
        Type::Int64 => Value::from(value.varint(name)? as i64),
        Type::Bool => Value::Bool(value.varint(name)? != 0),
        Type::Float64 => float(f64::from_bits(value.fixed64(name)?), name)?,
        Type::Bytes => Value::String(STANDARD.encode(value.bytes(name)?)),
        Type::Quantity => {
            let text = only(value.bytes(name)?)?.map_or(Ok(""), |text| text.text(name))?;
            if text.is_empty() {
                return Ok(None);
            }
            Value::String(Quantity::normalise(text).map_err(|error| Error::new(error.to_string()))?)
        }
        Type::Time | Type::MicroTime => return time(ty, value.bytes(name)?, name),
        Type::Duration => {
            let nanos = only(value.bytes(name)?)?.map_or(Ok(0), |nanos| nanos.varint(name))?;
            Value::String(scalar::format_duration(nanos as i64))
        }
        Type::IntOrString => int_or_string(value.bytes(name)?, name)?,
        Type::RawExtension | Type::FieldsV1 | Type::Json => {
            let raw = only(value.bytes(name)?)?.map_or(Ok(&[][..]), |raw| raw.bytes(name))?;
            if raw.is_empty() {
                return Ok(None);
            }
            if raw.starts_with(MAGIC) {
                enveloped(raw, below(depth)?)?
            } else {
                decode::parse(raw, Media::Json).map_err(|error| Error::new(error.to_string()))?
            }
        }
        Type::List(item) => {
            // A list that is not a field is a message of its own.
            let mut list = Vec::new();
            let mut reader = Reader::new(value.bytes(name)?);
            while let Some((number, value)) = reader.next()? {
                if number == 1 {
                    push(&mut list, item, value, name, below(depth)?)?;
                }
            }
            Value::Array(list)
        }
        Type::Map(_) => return Err(Error::new(format!("proto: field {name} has no protobuf form"))),
        Type::Struct(at) => structure(value.bytes(name)?, at.get(), depth)?,
        Type::StructOrList(at) | Type::StructOrBool(at) | Type::StructOrStrings(at) => {
            either(ty, *at, value.bytes(name)?, name, depth)?
        }
    }))
}

/// Field 1 of a message that has no other.
fn only(message: &[u8]) -> Result<Option<Scalar<'_>>, Error> {
    let (mut reader, mut out) = (Reader::new(message), None);
    while let Some((number, value)) = reader.next()? {
        if number == 1 {
            out = Some(value);
        }
    }
    Ok(out)
}

fn float(value: f64, name: &str) -> Result<Value, Error> {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return Ok(Value::from(value as i64));
    }
    Number::from_f64(value)
        .map(Value::Number)
        .ok_or_else(|| Error::new(format!("json: unsupported value: {value} in field {name}")))
}

fn time(ty: &Type, message: &[u8], name: &str) -> Result<Option<Value>, Error> {
    if message.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0i64, 0i64);
    let mut reader = Reader::new(message);
    while let Some((number, value)) = reader.next()? {
        match number {
            1 => seconds = value.varint(name)? as i64,
            2 => nanos = i64::from(value.varint(name)? as i32),
            _ => {}
        }
    }
    let seconds = seconds.saturating_add(nanos.div_euclid(1_000_000_000));
    let nanos = nanos.rem_euclid(1_000_000_000);
    if !TIMES.contains(&seconds) {
        return Err(Error::new(format!("proto: field {name} is out of the range of times")));
    }
    if (seconds, nanos) == (ZERO_TIME, 0) {
        return Ok(None);
    }
    Ok(Some(Value::String(match ty {
        Type::Time => crate::time::format_seconds(seconds),
        _ => crate::time::format_micros(seconds, (nanos / 1_000) as u32),
    })))
}

fn int_or_string(message: &[u8], name: &str) -> Result<Value, Error> {
    let (mut kind, mut number, mut text) = (0, 0i32, "");
    let mut reader = Reader::new(message);
    while let Some((field, value)) = reader.next()? {
        match field {
            1 => kind = value.varint(name)?,
            2 => number = value.varint(name)? as i32,
            3 => text = value.text(name)?,
            _ => {}
        }
    }
    match kind {
        0 => Ok(Value::from(number)),
        1 => Ok(Value::from(text)),
        _ => Err(Error::new("impossible IntOrString.Type")),
    }
}

/// JSON schema's fields that are one thing or another.
fn either(
    ty: &'static Type,
    at: StructRef,
    message: &[u8],
    name: &'static str,
    depth: usize,
) -> Result<Value, Error> {
    let (mut schema, mut list, mut allows) = (None, Vec::new(), false);
    let mut reader = Reader::new(message);
    while let Some((number, value)) = reader.next()? {
        match (ty, number) {
            (Type::StructOrBool(_), 1) => allows = value.varint(name)? != 0,
            (Type::StructOrBool(_), 2) | (Type::StructOrList(_) | Type::StructOrStrings(_), 1) => {
                schema = Some(structure(value.bytes(name)?, at.get(), depth)?);
            }
            (Type::StructOrList(_), 2) => list.push(structure(value.bytes(name)?, at.get(), depth)?),
            (Type::StructOrStrings(_), 2) => list.push(Value::from(value.text(name)?)),
            _ => {}
        }
    }
    Ok(match (schema, ty) {
        (Some(schema), _) if list.is_empty() => schema,
        (_, Type::StructOrBool(_)) => Value::Bool(allows),
        _ => Value::Array(list),
    })
}
