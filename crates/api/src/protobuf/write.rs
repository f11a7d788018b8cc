//! Objects to messages.
//!
//! Upstream's encoder writes every field that is no pointer, list, map or bytes, zero or not, by ascending number; so
//! does this, and the bytes are the same.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_json::{Key, Value};

use super::wire::{put_bytes, put_double, put_message, put_number};
use crate::decode::scalar;
use crate::schema::{Field, Place, Struct, Type};

pub(super) fn structure(out: &mut Vec<u8>, value: &Value, ty: &'static Struct) {
    fields(out, value, ty, &ty.message);
}

fn fields(out: &mut Vec<u8>, value: &Value, ty: &'static Struct, places: &[(u32, Place)]) {
    for (number, place) in places {
        match place {
            Place::Inline(inner) => put_message(out, *number, |out| fields(out, value, ty, inner)),
            Place::Field(at) => {
                let field = &ty.fields[*at];
                let value = value.get(field.json).unwrap_or(&Value::Null);
                self::field(out, *number, field, value);
            }
        }
    }
}

fn field(out: &mut Vec<u8>, number: u32, field: &Field, value: &Value) {
    match &field.ty {
        Type::List(item) if !field.is_wrapped() => {
            for value in value.as_array().into_iter().flatten() {
                element(out, number, item, value);
            }
        }
        Type::Map(item) => {
            let Value::Object(map) = value else { return };
            let mut entries: Vec<(&Key, &Value)> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            for (key, value) in entries {
                put_message(out, number, |out| {
                    put_bytes(out, 1, key.as_bytes());
                    element(out, 2, item, value);
                });
            }
        }
        ty => {
            let absent = value.is_null();
            let unset = field.pointer || matches!(ty, Type::Bytes | Type::List(_));
            if !(absent && unset) {
                element(out, number, ty, value);
            }
        }
    }
}

/// One value; null is the type's zero.
fn element(out: &mut Vec<u8>, number: u32, ty: &Type, value: &Value) {
    let text = || value.as_str().unwrap_or("");
    match ty {
        Type::String => put_bytes(out, number, text().as_bytes()),
        Type::Int32 | Type::Int64 => put_number(out, number, value.as_i64().unwrap_or(0) as u64),
        Type::Bool => put_number(out, number, u64::from(value.as_bool().unwrap_or(false))),
        Type::Float64 => put_double(out, number, value.as_f64().unwrap_or(0.0)),
        Type::Bytes => put_bytes(out, number, &STANDARD.decode(text()).unwrap_or_default()),
        Type::Quantity => {
            let text = if value.is_null() { "0" } else { text() };
            put_message(out, number, |out| put_bytes(out, 1, text.as_bytes()));
        }
        Type::Time | Type::MicroTime => put_message(out, number, |out| {
            if let Some(time) = crate::time::parse(text()) {
                let micros = time.as_microsecond();
                let (seconds, micros) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
                // A Time has no part of a second; its JSON has none either.
                let nanos = if matches!(ty, Type::Time) { 0 } else { micros * 1_000 };
                put_number(out, 1, seconds as u64);
                put_number(out, 2, nanos as u64);
            }
        }),
        Type::Duration => put_message(out, number, |out| {
            put_number(out, 1, scalar::parse_duration(text()).unwrap_or(0) as u64);
        }),
        Type::IntOrString => put_message(out, number, |out| {
            put_number(out, 1, u64::from(value.is_string()));
            put_number(out, 2, value.as_i64().unwrap_or(0) as u64);
            put_bytes(out, 3, text().as_bytes());
        }),
        Type::RawExtension | Type::FieldsV1 | Type::Json => put_message(out, number, |out| {
            if !value.is_null() {
                put_bytes(out, 1, value.to_string().as_bytes());
            }
        }),
        Type::List(item) => put_message(out, number, |out| {
            for value in value.as_array().into_iter().flatten() {
                element(out, 1, item, value);
            }
        }),
        // No type has a map that is not a field.
        Type::Map(_) => {}
        Type::Struct(at) => put_message(out, number, |out| structure(out, value, at.get())),
        Type::StructOrList(at) | Type::StructOrBool(at) | Type::StructOrStrings(at) => {
            let schema = if matches!(ty, Type::StructOrBool(_)) { 2 } else { 1 };
            put_message(out, number, |out| {
                if matches!(ty, Type::StructOrBool(_)) {
                    put_number(out, 1, u64::from(!matches!(value, Value::Bool(false))));
                }
                match value {
                    Value::Object(_) => put_message(out, schema, |out| structure(out, value, at.get())),
                    Value::Array(list) => {
                        let item = match ty {
                            Type::StructOrStrings(_) => Type::String,
                            _ => Type::Struct(*at),
                        };
                        for value in list {
                            element(out, 2, &item, value);
                        }
                    }
                    _ => {}
                }
            });
        }
    }
}
