//! Defaults must be values of their schema, without fields that would be pruned.
//!
//! Answers to `apiserver/schema/defaulting` (`ValidateDefaults`).

use orlop_api::field::{self, ErrorList, Path};
use serde_json::{Value, json};

use super::Options;
use crate::meta::{Malformed, coerce};
use crate::prune::prune_value;
use crate::schema::Schema;
use crate::value;

pub(super) fn validate(schema: &Schema, path: &Path, options: &Options<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    walk(&mut errors, schema, path, options, true, &[], schema);
    errors
}

/// `inside` is the way from the resource at `root` down to here, when that leads through its metadata.
fn walk(
    errors: &mut ErrorList,
    schema: &Schema,
    path: &Path,
    options: &Options<'_>,
    is_root: bool,
    inside: &[&str],
    root: &Schema,
) {
    let (inside, root): (&[&str], &Schema) = if schema.embedded { (&[], schema) } else { (inside, root) };
    let is_resource = is_root || schema.embedded;
    if let Some(default) = &schema.default {
        let at = path.child("default");
        if inside.is_empty() {
            check(errors, schema, default, &at, options);
        } else {
            check_metadata(errors, schema, default, &at, inside, root);
        }
    }
    if let Some(items) = schema.items.as_deref() {
        walk(errors, items, &path.child("items"), options, false, &[], root);
    }
    for (name, property) in &schema.properties {
        let meta = crate::META_FIELDS.contains(&name.as_str());
        let mut way = inside.to_vec();
        if (is_resource && meta) || !inside.is_empty() {
            way.push(name);
        }
        walk(errors, property, &path.child("properties").key(name), options, false, &way, root);
    }
    if let Some(additional) = schema.additional_schema() {
        walk(errors, additional, &path.child("additionalProperties"), options, false, &[], root);
    }
}

fn check(errors: &mut ErrorList, schema: &Schema, default: &Value, at: &Path, options: &Options<'_>) {
    if options.require_pruned_defaults {
        let mut pruned = default.clone();
        if !prune_value(&mut pruned, schema, schema.embedded).is_empty() || pruned != *default {
            errors.push(field::invalid(at, default.clone(), "must not have unknown fields"));
        }
    }
    errors.extend(value::validate(at, default, schema));
}

/// Metadata with the default in its place must be metadata.
fn check_metadata(
    errors: &mut ErrorList,
    schema: &Schema,
    default: &Value,
    at: &Path,
    inside: &[&str],
    root: &Schema,
) {
    let mut object = default.clone();
    for name in inside.iter().rev() {
        object = json!({ *name: object });
    }
    let result = coerce(&mut object, root, Malformed::Refuse);
    if let Err(error) = result {
        let detail = format!("must result in valid metadata: {error}");
        errors.push(field::invalid(at, default.clone(), detail));
        return;
    }
    errors.extend(value::validate(at, default, schema));
}
