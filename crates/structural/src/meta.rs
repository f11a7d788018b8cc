//! `metadata` (and `kind` and `apiVersion`) of custom resources and of the resources embedded in them: read as what they
//! are, whatever the schema says.
//!
//! Answers to `apiserver/schema/objectmeta`.

use orlop_api::decode::{self, DecodeError, FieldValidation};
use orlop_api::field::{self, ErrorList, FieldError, Path};
use orlop_api::schema::{Schemas, Struct};
use serde_json::Value;

use crate::prune::Place;
use crate::schema::Schema;

fn object_meta() -> Option<&'static Struct> {
    Schemas::get().openapi("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

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
    let mut coercer = Coercer { malformed, place: Place::default(), unknown: Vec::new() };
    coercer.metadata(object, &Path::root())?;
    let own = std::mem::take(&mut coercer.unknown);
    coercer.walk(object, schema, &Path::root(), true)?;
    let mut unknown = own;
    unknown.append(&mut coercer.unknown);
    Ok(unknown)
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
                map.shift_remove("metadata");
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
        root: bool,
    ) -> Result<(), Box<FieldError>> {
        if schema.embedded && !root && value.is_object() {
            for key in ["apiVersion", "kind"] {
                let Some(given) = value.get(key).filter(|given| !given.is_string()) else { continue };
                if self.malformed == Malformed::Refuse {
                    let error = field::invalid(&path.child(key), given.clone(), "must be a string");
                    return Err(Box::new(error));
                }
                if let Some(map) = value.as_object_mut() {
                    map.shift_remove(key);
                }
            }
            self.metadata(value, path)?;
        }
        match value {
            Value::Object(map) => {
                for (key, value) in map.iter_mut() {
                    let Some(property) = schema.property(key) else { continue };
                    let length = self.place.key(key);
                    self.walk(value, property, &path.child(key), false)?;
                    self.place.back(length);
                }
            }
            Value::Array(items) => {
                if let Some(schema) = schema.items.as_deref() {
                    for (at, item) in items.iter_mut().enumerate() {
                        let length = self.place.index(at);
                        self.walk(item, schema, &path.index(at), false)?;
                        self.place.back(length);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The fields of metadata that can be read each on its own.
fn without_malformed(given: &Value, ty: &'static Struct) -> Value {
    let mut kept = serde_json::Map::new();
    for (key, value) in given.as_object().into_iter().flatten() {
        let one = serde_json::json!({ key: value });
        if let Ok(decoded) = decode::decode_as(one.to_string().as_bytes(), ty, FieldValidation::Ignore)
            && let Some(value) = decoded.value.get(key)
        {
            kept.insert(key.clone(), value.clone());
        }
    }
    Value::Object(kept)
}

/// What is wrong with the resources embedded in an object. `validate_meta` looks at the object that it is given (an
/// embedded resource); its errors are reported below that one's path.
pub fn validate_embedded(
    object: &Value,
    schema: &Schema,
    validate_meta: &dyn Fn(&Value) -> ErrorList,
) -> ErrorList {
    let mut errors = ErrorList::new();
    embedded(&mut errors, object, schema, &Path::root(), true, validate_meta);
    errors
}

fn embedded(
    errors: &mut ErrorList,
    value: &Value,
    schema: &Schema,
    path: &Path,
    root: bool,
    validate_meta: &dyn Fn(&Value) -> ErrorList,
) {
    if schema.embedded && !root && value.is_object() {
        for key in ["apiVersion", "kind"] {
            if value.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
                errors.push(field::required(&path.child(key), ""));
            }
        }
        for mut error in validate_meta(value) {
            error.field = format!("{path}.{}", error.field);
            errors.push(error);
        }
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if let Some(property) = schema.property(key) {
                    embedded(errors, value, property, &path.child(key), false, validate_meta);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.items.as_deref() {
                for (at, item) in items.iter().enumerate() {
                    embedded(errors, item, schema, &path.index(at), false, validate_meta);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use pretty_assertions::assert_eq;
    use serde_json::json;

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
    fn embedded_resources_have_a_kind() {
        let found = validate_embedded(&json!({"t": {"a": 1}}), &schema(), &|_| ErrorList::new());
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["t.apiVersion: Required value", "t.kind: Required value"]);
    }
}
