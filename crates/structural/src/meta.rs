//! `metadata` (and `kind` and `apiVersion`) of custom resources and of the resources embedded in them: read as what they
//! are, whatever the schema says.
//!
//! Answers to `apiserver/schema/objectmeta`.

use orlop_api::decode::{self, DecodeError, FieldValidation};
use orlop_api::field::{self, ErrorList, FieldError, Path};
use orlop_api::names;
use orlop_api::schema::{Schemas, Struct};
use orlop_json::Value;

use crate::prune::Place;
use crate::schema::Schema;

fn object_meta() -> Option<&'static Struct> {
    Schemas::get().openapi("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

/// What is wrong with the `metadata` of a resource; the fields of errors begin with `metadata`.
pub type MetaRule = fn(&Value) -> ErrorList;

/// What to do about metadata that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Refuse it: a request.
    Refuse,
    /// Leave it out: what was stored before anybody looked.
    Drop,
}

/// Reads the metadata of a resource and of everything embedded in it, in normalised form; answers with the paths of
/// unknown fields.
///
/// # Errors
/// A field of the wrong type.
pub fn coerce(
    object: &mut Value,
    schema: &Schema,
    malformed: Malformed,
) -> Result<Vec<String>, Box<FieldError>> {
    coerce_at(&Path::root(), object, schema, true, malformed)
}

/// [`coerce`] for a value at a place of an object; `is_resource` = it is a resource, whatever its schema says.
pub(crate) fn coerce_at(
    path: &Path,
    value: &mut Value,
    schema: &Schema,
    is_resource: bool,
    malformed: Malformed,
) -> Result<Vec<String>, Box<FieldError>> {
    let mut coercer = Coercer { malformed, place: Place::default(), unknown: Vec::new() };
    coercer.walk(value, schema, path, is_resource)?;
    Ok(coercer.unknown)
}

struct Coercer {
    malformed: Malformed,
    place: Place,
    unknown: Vec<String>,
}

impl Coercer {
    fn metadata(&mut self, object: &mut Value, path: &Path) -> Result<(), Box<FieldError>> {
        let Some(given) = object.get("metadata").filter(|given| !given.is_null()) else {
            if let Some(map) = object.as_object_mut() {
                map.remove("metadata");
            }
            return Ok(());
        };
        let Some(ty) = object_meta() else { return Ok(()) };
        let path = path.child("metadata");
        match decode::decode_as(given.to_string().as_bytes(), ty, FieldValidation::Warn) {
            Ok(decoded) => {
                let length = self.place.key("metadata");
                for warning in decoded.warnings {
                    let quoted = warning.strip_prefix("unknown field ").unwrap_or("").trim_matches('"');
                    if !quoted.is_empty() {
                        let inner = self.place.key(quoted);
                        self.unknown.push(self.place.text().to_string());
                        self.place.back(inner);
                    }
                }
                self.place.back(length);
                object["metadata"] = decoded.value;
                Ok(())
            }
            Err(error) => {
                if self.malformed == Malformed::Drop {
                    let kept = without_malformed(given, ty);
                    object["metadata"] = kept;
                    return Ok(());
                }
                let text = match error {
                    DecodeError::Unrecognized(text) | DecodeError::Malformed(text) => text,
                    other => other.to_string(),
                };
                let text = text.replace("v1.ObjectMeta", "ObjectMeta");
                Err(Box::new(field::invalid(&path, given.clone(), text)))
            }
        }
    }

    fn walk(
        &mut self,
        value: &mut Value,
        schema: &Schema,
        path: &Path,
        is_resource: bool,
    ) -> Result<(), Box<FieldError>> {
        if is_resource && value.is_object() {
            for key in ["apiVersion", "kind"] {
                let Some(given) = value.get(key).filter(|given| !given.is_string()) else { continue };
                if self.malformed == Malformed::Refuse {
                    let error = field::invalid(&path.child(key), given.clone(), "must be a string");
                    return Err(Box::new(error));
                }
                if let Some(map) = value.as_object_mut() {
                    map.remove(key);
                }
            }
            self.metadata(value, path)?;
        }
        match value {
            Value::Object(map) => {
                for (key, value) in map.iter_mut() {
                    let Some((property, path)) = below(schema, key, path) else { continue };
                    let length = self.place.key(key);
                    self.walk(value, property, &path, property.embedded)?;
                    self.place.back(length);
                }
            }
            Value::Array(items) => {
                if let Some(schema) = schema.items.as_deref() {
                    for (at, item) in items.iter_mut().enumerate() {
                        let length = self.place.index(at);
                        self.walk(item, schema, &path.index(at), schema.embedded)?;
                        self.place.back(length);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The schema and the path of a field or of an entry.
fn below<'a>(schema: &'a Schema, key: &str, path: &Path) -> Option<(&'a Schema, Path)> {
    match schema.properties.get(key) {
        Some(property) => Some((property, path.child(key))),
        None => schema.additional_schema().map(|additional| (additional, path.key(key))),
    }
}

/// The fields of metadata that can be read each on its own.
fn without_malformed(given: &Value, ty: &'static Struct) -> Value {
    let mut kept = orlop_json::Map::new();
    for (key, value) in given.as_object().into_iter().flatten() {
        let one = orlop_json::json!({ (key.clone()): value });
        if let Ok(decoded) = decode::decode_as(one.to_string().as_bytes(), ty, FieldValidation::Ignore)
            && let Some(value) = decoded.value.get(key)
        {
            kept.insert(key.clone(), value.clone());
        }
    }
    Value::Object(kept)
}

/// What is wrong with the resources embedded in an object.
pub fn validate_embedded(object: &Value, schema: &Schema, meta_rule: MetaRule) -> ErrorList {
    let mut errors = ErrorList::new();
    embedded(&mut errors, object, schema, &Path::root(), false, meta_rule);
    errors
}

/// What is wrong with the resources embedded in a value at a place of an object, or with the value itself when it is one.
pub(crate) fn validate_at(
    path: &Path,
    value: &Value,
    schema: &Schema,
    is_resource: bool,
    meta_rule: MetaRule,
) -> ErrorList {
    let mut errors = ErrorList::new();
    embedded(&mut errors, value, schema, path, is_resource, meta_rule);
    errors
}

fn embedded(
    errors: &mut ErrorList,
    value: &Value,
    schema: &Schema,
    path: &Path,
    is_resource: bool,
    meta_rule: MetaRule,
) {
    if is_resource && value.is_object() {
        resource(errors, value, path, meta_rule);
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if let Some((property, path)) = below(schema, key, path) {
                    embedded(errors, value, property, &path, property.embedded, meta_rule);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.items.as_deref() {
                for (at, item) in items.iter().enumerate() {
                    embedded(errors, item, schema, &path.index(at), schema.embedded, meta_rule);
                }
            }
        }
        _ => {}
    }
}

/// What is wrong with what every resource has.
fn resource(errors: &mut ErrorList, value: &Value, path: &Path, meta_rule: MetaRule) {
    let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    match text("apiVersion") {
        None => errors.push(field::required(&path.child("apiVersion"), "")),
        Some(version) if version.matches('/').count() > 1 => {
            let detail = format!("unexpected GroupVersion string: {version}");
            errors.push(field::invalid(&path.child("apiVersion"), version, detail));
        }
        Some(_) => {}
    }
    match text("kind") {
        None => errors.push(field::required(&path.child("kind"), "")),
        Some(kind) => {
            let wrong = names::is_dns1035_label(&kind.to_lowercase());
            if !wrong.is_empty() {
                let detail = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                errors.push(field::invalid(&path.child("kind"), kind, detail));
            }
        }
    }
    for mut error in meta_rule(value) {
        error.field = path.child(&error.field).to_string();
        errors.push(error);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;
    use pretty_assertions::assert_eq;

    fn schema() -> Schema {
        Schema::of(&json!({"type": "object", "properties": {"t": {
            "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}))
    }

    #[test]
    fn metadata_is_read_as_metadata() {
        let mut object = json!({"metadata": {"name": "a", "x": 1, "creationTimestamp": null},
            "t": {"kind": "K", "apiVersion": "v1", "metadata": {"name": "b", "foo": 1, "labels": {}}}});
        let unknown = coerce(&mut object, &schema(), Malformed::Refuse).unwrap();
        assert_eq!(unknown, ["metadata.x", "t.metadata.foo"]);
        assert_eq!(
            object,
            json!({"metadata": {"name": "a"}, "t": {"kind": "K", "apiVersion": "v1", "metadata": {"name": "b"}}})
        );
    }

    #[test]
    fn malformed_metadata() {
        let bad = json!({"metadata": {"name": "a"}, "t": {"metadata": {"labels": {"a b": 1}, "name": "n"}}});
        let error = coerce(&mut bad.clone(), &schema(), Malformed::Refuse).unwrap_err();
        assert_eq!(
            error.to_string(),
            "t.metadata: Invalid value: {\"labels\":{\"a b\":1},\"name\":\"n\"}: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"
        );
        let mut kept = bad;
        coerce(&mut kept, &schema(), Malformed::Drop).unwrap();
        assert_eq!(kept["t"]["metadata"], json!({"name": "n"}));
    }

    #[test]
    fn embedded_resources_are_resources() {
        let check = |object: Value, expected: &[&str]| {
            let schema = Schema::of(&json!({"type": "object", "properties": {"m": {"type": "object",
                "additionalProperties": {"type": "object", "x-kubernetes-embedded-resource": true}}}}));
            let rule: MetaRule = |object| match object["metadata"]["name"].as_str() {
                Some("bad") => vec![field::invalid(&Path::new("metadata").child("name"), "bad", "no")],
                _ => ErrorList::new(),
            };
            let found = validate_embedded(&object, &schema, rule);
            let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(texts, expected, "{object}");
        };
        check(json!({"m": {"x": {"apiVersion": "apps/v1", "kind": "Deployment"}}}), &[]);
        check(
            json!({"m": {"x": {"a": 1, "kind": ""}}}),
            &["m[x].apiVersion: Required value", "m[x].kind: Required value"],
        );
        check(
            json!({"m": {"x": {"apiVersion": "a/b/c", "kind": "a b", "metadata": {"name": "bad"}}}}),
            &[
                "m[x].apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
                "m[x].kind: Invalid value: \"a b\": may have mixed case, but should otherwise match: a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
                "m[x].metadata.name: Invalid value: \"bad\": no",
            ],
        );
    }
}
