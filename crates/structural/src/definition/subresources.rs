//! Subresources, printer columns and selectable fields.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::{child, text};
use crate::paths;
use crate::schema::Schema;

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
/// More fields cannot be selected by.
const MAX_SELECTABLE: usize = 8;

fn simple_json_path(value: &str, path: &Path) -> Option<field::FieldError> {
    (!value.starts_with('.'))
        .then(|| field::invalid(path, value, "must be a simple json path starting with ."))
}

pub(super) fn validate(subresources: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let Some(scale) = child(subresources, "scale") else { return errors };
    let mut required = |name: &str, prefix: &str| {
        let value = text(scale, name);
        let at = path.child("scale").child(name);
        if value.is_empty() {
            errors.push(field::required(&at, ""));
        } else if let Some(error) = simple_json_path(value, &at) {
            errors.push(error);
        } else if !value.starts_with(&format!("{prefix}.")) {
            errors.push(field::invalid(&at, value, format!("should be a json path under {prefix}")));
        }
    };
    required("specReplicasPath", ".spec");
    required("statusReplicasPath", ".status");
    let selector = text(scale, "labelSelectorPath");
    if !selector.is_empty() {
        let at = path.child("scale").child("labelSelectorPath");
        if let Some(error) = simple_json_path(selector, &at) {
            errors.push(error);
        } else if !selector.starts_with(".spec.") && !selector.starts_with(".status.") {
            let detail = "should be a json path under either .spec or .status";
            errors.push(field::invalid(&at, selector, detail));
        }
    }
    errors
}

pub(super) fn validate_column(column: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if text(column, "name").is_empty() {
        errors.push(field::required(&path.child("name"), ""));
    }
    let types = format!("must be one of {}", COLUMN_TYPES.join(","));
    match text(column, "type") {
        "" => errors.push(field::required(&path.child("type"), &types)),
        kind if !COLUMN_TYPES.contains(&kind) => {
            errors.push(field::invalid(&path.child("type"), kind, types));
        }
        _ => {}
    }
    let format = text(column, "format");
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errors.push(field::invalid(&path.child("format"), format, detail));
    }
    let json_path = text(column, "jsonPath");
    let at = path.child("JSONPath");
    if json_path.is_empty() {
        errors.push(field::required(&at, ""));
    } else {
        errors.extend(simple_json_path(json_path, &at));
    }
    errors
}

pub(super) fn validate_selectable(fields: &[Value], schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let schema = Schema::of(schema);
    let mut seen: Vec<String> = Vec::new();
    for (at, selectable) in fields.iter().enumerate() {
        let at = path.index(at).child("jsonPath");
        let json_path = text(selectable, "jsonPath");
        if json_path.is_empty() {
            errors.push(field::required(&at, ""));
            continue;
        }
        let (steps, found) = match paths::resolve(json_path, &schema, false) {
            Ok(found) => found,
            Err(why) => {
                errors.push(field::invalid(&at, json_path, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if steps.starts_with("metadata") {
            errors.push(field::invalid(&at, json_path, "must not point to fields in metadata"));
        }
        if !found.is_some_and(|found| matches!(found.ty.as_str(), "string" | "boolean" | "integer")) {
            errors.push(field::invalid(
                &at,
                json_path,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ));
        }
        if seen.contains(&steps) {
            errors.push(field::duplicate(&at, json_path));
        } else {
            seen.push(steps);
        }
    }
    if seen.len() > MAX_SELECTABLE {
        errors.push(field::too_many(path, seen.len(), MAX_SELECTABLE));
    }
    errors
}
