//! Bodies of custom resources: strict about what the schema does not know, with defaults filled in.

use orlop_api::decode::{self, DecodeError, Decoded, FieldValidation, Gvk, Media};
use orlop_api::field::FieldError;
use orlop_api::status::ApiError;
use orlop_json::{Number, Value};
use orlop_structural::Malformed;

use super::strategy::CustomKind;

/// A body of a create or an update.
pub fn body(
    kind: &CustomKind,
    body: &[u8],
    media: Media,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let version = &kind.version().name;
    let gvk = Gvk { group: &kind.definition.group, version, kind: &kind.definition.kind };
    let (value, duplicates) = decode::decode_custom(body, media, &gvk)?;
    let cannot = |error: &dyn std::fmt::Display| {
        ApiError::bad_request(format!(
            "{0} in version {version:?} cannot be handled as a {0}: {error}",
            gvk.kind
        ))
    };
    let (value, unknown) = settle(kind, value).map_err(|error| cannot(&error))?;
    let mut strict = duplicates;
    strict.extend(unknown);
    if validation == FieldValidation::Strict && !strict.is_empty() {
        return Err(cannot(&DecodeError::Strict(strict)));
    }
    let warnings = if validation == FieldValidation::Warn { strict } else { Vec::new() };
    Ok(Decoded { value, warnings })
}

/// An object that a patch has made.
pub fn patched(
    kind: &CustomKind,
    value: &Value,
    validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    let (value, strict) =
        settle(kind, value.clone()).map_err(|error| DecodeError::Malformed(error.to_string()))?;
    if validation == FieldValidation::Strict && !strict.is_empty() {
        return Err(DecodeError::Strict(strict));
    }
    let warnings = if validation == FieldValidation::Warn { strict } else { Vec::new() };
    Ok(Decoded { value, warnings })
}

/// Brings an object into the form of its schema, and tells what the schema does not know.
pub fn settle(kind: &CustomKind, mut value: Value) -> Result<(Value, Vec<String>), Box<FieldError>> {
    let schema = &kind.compiled().schema;
    whole_numbers(&mut value);
    let mut unknown = orlop_structural::prune(&mut value, schema);
    orlop_structural::drop_nulls(&mut value, schema);
    unknown.extend(orlop_structural::coerce_metadata(&mut value, schema, Malformed::Refuse)?);
    orlop_structural::fill_defaults(&mut value, schema);
    let told = unknown.into_iter().map(|path| format!("unknown field {path:?}")).collect();
    Ok((value, told))
}

/// Floats without a fraction, as Go writes them.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|_| number.is_f64())
                && float.fract() == 0.0
                && float.abs() < 9_007_199_254_740_992.0
            {
                *number = Number::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        _ => {}
    }
}
