//! Documents as protobuf messages of gnostic: version 2, `openapi.v2.Document`, here, version 3 in `v3`.
//!
//! Only what the JSON document has is known here; keys without a place of their own go where `x-` keys go.

mod v3;

use orlop_api::protobuf::wire::{put_bytes, put_double, put_message, put_number};
use orlop_json::{Map, Value};

/// How a key of an object is written, and at which number.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Texts,
    Bool,
    Int,
    Double,
    Any,
    Anys,
    /// A message of this form.
    Object(&'static Form),
    /// Several of them.
    Objects(&'static Form),
    /// A map: repeated messages of a name and a value, in a message of their own.
    Named(&'static Form),
    /// The type of a schema: one text or several, in a message.
    Type,
    /// The items of a schema, in a message.
    Items,
    /// A schema or a bool, in a message.
    Additional,
    /// Parameters: messages within messages say of which sort each is.
    Parameters,
    /// Parameters by name.
    SharedParameters,
    /// Lists of text by name, several times.
    Security,
    /// Answers by code.
    Responses,
    /// One of a message of this form and a reference to one.
    Either(&'static Form),
    /// Several of those.
    Eithers(&'static Form),
    /// One of those, or a bool, in a message.
    InEither(&'static Form),
    /// Those by name, at this number of a message.
    NamedEither(u32, &'static Form),
    /// A number, a bool or text, in a message; anything else cannot be said.
    Scalar,
}

/// A message: its keys, and the number of what else an object may hold (0 = nothing).
struct Form {
    keys: &'static [(&'static str, u32, Shape)],
    others: u32,
}

static DOCUMENT: Form = Form {
    keys: &[
        ("swagger", 1, Shape::Text),
        ("info", 2, Shape::Object(&INFO)),
        ("definitions", 9, Shape::Named(&SCHEMA)),
        ("parameters", 10, Shape::SharedParameters),
        ("security", 12, Shape::Security),
        ("securityDefinitions", 13, Shape::Named(&SECURITY)),
    ],
    others: 16,
};

static INFO: Form = Form { keys: &[("title", 1, Shape::Text), ("version", 2, Shape::Text)], others: 7 };

/// Stands for a scheme within the message that tells the sorts of schemes apart; all are keys in headers.
static SECURITY: Form = Form { keys: &[("", 2, Shape::Object(&API_KEY))], others: 0 };

static API_KEY: Form = Form {
    keys: &[
        ("type", 1, Shape::Text),
        ("name", 2, Shape::Text),
        ("in", 3, Shape::Text),
        ("description", 4, Shape::Text),
    ],
    others: 5,
};

static PATH: Form = Form {
    keys: &[
        ("get", 2, Shape::Object(&OPERATION)),
        ("put", 3, Shape::Object(&OPERATION)),
        ("post", 4, Shape::Object(&OPERATION)),
        ("delete", 5, Shape::Object(&OPERATION)),
        ("options", 6, Shape::Object(&OPERATION)),
        ("head", 7, Shape::Object(&OPERATION)),
        ("patch", 8, Shape::Object(&OPERATION)),
        ("parameters", 9, Shape::Parameters),
    ],
    others: 10,
};

static OPERATION: Form = Form {
    keys: &[
        ("tags", 1, Shape::Texts),
        ("summary", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("operationId", 5, Shape::Text),
        ("produces", 6, Shape::Texts),
        ("consumes", 7, Shape::Texts),
        ("parameters", 8, Shape::Parameters),
        ("responses", 9, Shape::Responses),
        ("schemes", 10, Shape::Texts),
        ("deprecated", 11, Shape::Bool),
    ],
    others: 13,
};

static QUERY_PARAMETER: Form = Form {
    keys: &[
        ("required", 1, Shape::Bool),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("name", 4, Shape::Text),
        ("type", 6, Shape::Text),
        ("format", 7, Shape::Text),
        ("uniqueItems", 20, Shape::Bool),
    ],
    others: 23,
};

static PATH_PARAMETER: Form = Form {
    keys: &[
        ("required", 1, Shape::Bool),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("name", 4, Shape::Text),
        ("type", 5, Shape::Text),
        ("format", 6, Shape::Text),
        ("uniqueItems", 19, Shape::Bool),
    ],
    others: 22,
};

static BODY_PARAMETER: Form = Form {
    keys: &[
        ("description", 1, Shape::Text),
        ("name", 2, Shape::Text),
        ("in", 3, Shape::Text),
        ("required", 4, Shape::Bool),
        ("schema", 5, Shape::Object(&SCHEMA)),
    ],
    others: 6,
};

static RESPONSE: Form =
    Form { keys: &[("description", 1, Shape::Text), ("schema", 2, Shape::Object(&SCHEMA_ITEM))], others: 5 };

/// Stands for a schema within the message that tells schemas from files.
static SCHEMA_ITEM: Form = Form { keys: &[("", 1, Shape::Object(&SCHEMA))], others: 0 };

static SCHEMA: Form = Form {
    keys: &[
        ("$ref", 1, Shape::Text),
        ("format", 2, Shape::Text),
        ("title", 3, Shape::Text),
        ("description", 4, Shape::Text),
        ("default", 5, Shape::Any),
        ("multipleOf", 6, Shape::Double),
        ("maximum", 7, Shape::Double),
        ("exclusiveMaximum", 8, Shape::Bool),
        ("minimum", 9, Shape::Double),
        ("exclusiveMinimum", 10, Shape::Bool),
        ("maxLength", 11, Shape::Int),
        ("minLength", 12, Shape::Int),
        ("pattern", 13, Shape::Text),
        ("maxItems", 14, Shape::Int),
        ("minItems", 15, Shape::Int),
        ("uniqueItems", 16, Shape::Bool),
        ("maxProperties", 17, Shape::Int),
        ("minProperties", 18, Shape::Int),
        ("required", 19, Shape::Texts),
        ("enum", 20, Shape::Anys),
        ("additionalProperties", 21, Shape::Additional),
        ("type", 22, Shape::Type),
        ("items", 23, Shape::Items),
        ("allOf", 24, Shape::Objects(&SCHEMA)),
        ("properties", 25, Shape::Named(&SCHEMA)),
        ("readOnly", 27, Shape::Bool),
        ("example", 30, Shape::Any),
    ],
    others: 31,
};

/// The message of a document of version 3.
pub fn v3(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(map) = value.as_object() {
        object(&mut out, map, &v3::DOCUMENT);
    }
    out
}

/// The message of a document of version 2.
pub fn document(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(map) = value.as_object() else { return out };
    let mut rest = map.clone();
    let paths = rest.remove("paths");
    object(&mut out, &rest, &DOCUMENT);
    put_message(&mut out, 8, |out| named(out, 2, paths.as_ref().unwrap_or(&Value::Null), &PATH));
    out
}

fn object(out: &mut Vec<u8>, map: &Map, form: &Form) {
    for (key, number, shape) in form.keys {
        if let Some(value) = map.get(key) {
            property(out, *number, *shape, value);
        }
    }
    if form.others > 0 {
        for (key, value) in map.iter().filter(|(key, _)| key.starts_with("x-")) {
            put_message(out, form.others, |out| {
                put_bytes(out, 1, key.as_bytes());
                put_message(out, 2, |out| any(out, value));
            });
        }
    }
}

/// A value of any sort: YAML, of which JSON is a part.
fn any(out: &mut Vec<u8>, value: &Value) {
    put_bytes(out, 2, format!("{value}\n").as_bytes());
}

fn text(value: &Value) -> &[u8] {
    value.as_str().unwrap_or("").as_bytes()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn form(out: &mut Vec<u8>, number: u32, value: &Value, form: &Form) {
    let Some(map) = value.as_object() else { return };
    // A form of one nameless key is a wrapper around the same object.
    if let [("", inner_number, Shape::Object(inner))] = form.keys {
        put_message(out, number, |out| self::form(out, *inner_number, value, inner));
    } else {
        put_message(out, number, |out| object(out, map, form));
    }
}

fn named(out: &mut Vec<u8>, number: u32, value: &Value, form: &Form) {
    for (name, value) in value.as_object().into_iter().flatten() {
        put_message(out, number, |out| {
            put_bytes(out, 1, name.as_bytes());
            self::form(out, 2, value, form);
        });
    }
}

/// One of a message and a reference to one.
fn either(out: &mut Vec<u8>, number: u32, value: &Value, form: &Form) {
    put_message(out, number, |out| match value.get("$ref") {
        Some(reference) => put_message(out, 2, |out| put_bytes(out, 1, text(reference))),
        None => self::form(out, 1, value, form),
    });
}

fn property(out: &mut Vec<u8>, number: u32, shape: Shape, value: &Value) {
    match shape {
        Shape::Text => put_bytes(out, number, text(value)),
        Shape::Texts => list(value).for_each(|value| put_bytes(out, number, text(value))),
        Shape::Bool => put_number(out, number, u64::from(value.as_bool().unwrap_or(false))),
        Shape::Int => put_number(out, number, value.as_i64().unwrap_or(0) as u64),
        Shape::Double => put_double(out, number, value.as_f64().unwrap_or(0.0)),
        Shape::Any => put_message(out, number, |out| any(out, value)),
        Shape::Anys => list(value).for_each(|value| put_message(out, number, |out| any(out, value))),
        Shape::Object(inner) => form(out, number, value, inner),
        Shape::Objects(inner) => list(value).for_each(|value| form(out, number, value, inner)),
        Shape::Named(inner) => put_message(out, number, |out| named(out, 1, value, inner)),
        Shape::Type => put_message(out, number, |out| match value {
            Value::Array(types) => types.iter().for_each(|value| put_bytes(out, 1, text(value))),
            one => put_bytes(out, 1, text(one)),
        }),
        Shape::Items => put_message(out, number, |out| match value {
            Value::Array(schemas) => schemas.iter().for_each(|value| form(out, 1, value, &SCHEMA)),
            one => form(out, 1, one, &SCHEMA),
        }),
        Shape::Additional => put_message(out, number, |out| match value {
            Value::Bool(allowed) => put_number(out, 2, u64::from(*allowed)),
            schema => form(out, 1, schema, &SCHEMA),
        }),
        Shape::Parameters => {
            list(value).for_each(|value| put_message(out, number, |out| parameter(out, value)))
        }
        Shape::SharedParameters => put_message(out, number, |out| {
            for (name, value) in value.as_object().into_iter().flatten() {
                put_message(out, 1, |out| {
                    put_bytes(out, 1, name.as_bytes());
                    put_message(out, 2, |out| own_parameter(out, value));
                });
            }
        }),
        Shape::Security => {
            for (name, scopes) in list(value).filter_map(Value::as_object).flatten() {
                put_message(out, number, |out| {
                    put_message(out, 1, |out| {
                        put_bytes(out, 1, name.as_bytes());
                        put_message(out, 2, |out| {
                            list(scopes).for_each(|scope| put_bytes(out, 1, text(scope)));
                        });
                    });
                });
            }
        }
        Shape::Either(inner) => either(out, number, value, inner),
        Shape::Eithers(inner) => list(value).for_each(|value| either(out, number, value, inner)),
        Shape::InEither(inner) => put_message(out, number, |out| match value {
            Value::Bool(allowed) => put_number(out, 2, u64::from(*allowed)),
            one => either(out, 1, one, inner),
        }),
        Shape::NamedEither(at, inner) => put_message(out, number, |out| {
            for (name, value) in value.as_object().into_iter().flatten() {
                put_message(out, at, |out| {
                    put_bytes(out, 1, name.as_bytes());
                    either(out, 2, value, inner);
                });
            }
        }),
        Shape::Scalar => put_message(out, number, |out| match value {
            Value::Number(number) => put_double(out, 1, number.as_f64().unwrap_or(0.0)),
            Value::Bool(value) => put_number(out, 2, u64::from(*value)),
            Value::String(text) => put_bytes(out, 3, text.as_bytes()),
            _ => {}
        }),
        Shape::Responses => put_message(out, number, |out| {
            for (code, value) in value.as_object().into_iter().flatten() {
                put_message(out, 1, |out| {
                    put_bytes(out, 1, code.as_bytes());
                    put_message(out, 2, |out| form(out, 1, value, &RESPONSE));
                });
            }
        }),
    }
}

/// One of a parameter and a reference to one.
fn parameter(out: &mut Vec<u8>, value: &Value) {
    match value.get("$ref") {
        Some(reference) => put_message(out, 2, |out| put_bytes(out, 1, text(reference))),
        None => put_message(out, 1, |out| own_parameter(out, value)),
    }
}

fn own_parameter(out: &mut Vec<u8>, value: &Value) {
    match value["in"].as_str() {
        Some("body") => form(out, 1, value, &BODY_PARAMETER),
        Some("path") => put_message(out, 2, |out| form(out, 4, value, &PATH_PARAMETER)),
        _ => put_message(out, 2, |out| form(out, 3, value, &QUERY_PARAMETER)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn documents_are_messages() {
        let check = |value: Value, expected: &[u8]| {
            assert_eq!(document(&value), expected, "{value}\n{}", document(&value).escape_ascii());
        };
        check(json!({"swagger": "2.0"}), b"\n\x032.0B\0");
        check(
            json!({"info": {"title": "K"}, "paths": {"/a": {"get": {}}}}),
            b"\x12\x03\n\x01KB\x0a\x12\x08\n\x02/a\x12\x02\x12\0",
        );
        check(json!({"security": [{"T": ["s"]}]}), b"b\n\n\x08\n\x01T\x12\x03\n\x01sB\0");
        check(
            json!({"securityDefinitions": {"T": {"type": "apiKey", "in": "header"}}}),
            b"j\x19\n\x17\n\x01T\x12\x12\x12\x10\n\x06apiKey\x1a\x06headerB\0".as_slice(),
        );
        check(
            json!({"paths": {"/a": {"parameters": [{"$ref": "#/p"}]}}}),
            b"B\x11\x12\x0f\n\x02/a\x12\x09J\x07\x12\x05\n\x03#/p",
        );
        check(
            json!({"definitions": {"A": {"type": "array", "items": {"$ref": "#/b"}, "x-k": [1]}}}),
            b"J+\n)\n\x01A\x12$\xb2\x01\x07\n\x05array\xba\x01\x07\n\x05\n\x03#/b\xfa\x01\r\n\x03x-k\x12\x06\x12\x04[1]\nB\0",
        );
    }

    #[test]
    fn documents_of_version_three_are_messages() {
        let check = |value: Value, expected: &[u8]| {
            assert_eq!(v3(&value), expected, "{value}\n{}", v3(&value).escape_ascii());
        };
        check(json!({"openapi": "3.0.0", "info": {"version": "v1"}}), b"\n\x053.0.0\x12\x042\x02v1");
        check(
            json!({"components": {"schemas": {"A": {"items": {"$ref": "#/b"}, "default": "x"}, "B": {"additionalProperties": true}}}}),
            b"\x2a\x2b\x0a\x29\x0a\x19\x0a\x01\x41\x12\x14\x0a\x12\xf2\x01\x09\x0a\x07\x12\x05\x0a\x03\x23\x2f\x62\x8a\x02\x03\x1a\x01\x78\x0a\x0c\x0a\x01\x42\x12\x07\x0a\x05\x82\x02\x02\x10\x01",
        );
    }
}
