//! What makes a schema structural: the type of everything is said outside of `allOf`, `anyOf`, `oneOf` and `not`.
//!
//! Answers to `apiserver/schema` (`ValidateStructural`).

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Key, Value};

use super::{child, flag, items, text};
use crate::pattern;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Everything that makes the schema not structural, sorted.
pub(super) fn validate(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    invariants(&mut errors, schema, Level::Root, path);
    completeness(&mut errors, schema, path);
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

/// Why a schema has no structural form; `None` when it has one.
pub(super) fn unconvertible(schema: &Value) -> Option<String> {
    const UNKNOWN: [&str; 7] =
        ["id", "$schema", "$ref", "patternProperties", "dependencies", "additionalItems", "definitions"];
    let filled = |name: &str| match schema.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Object(map)) => !map.is_empty() || name == "additionalItems",
        Some(_) => true,
    };
    if let Some(name) = UNKNOWN.into_iter().find(|name| filled(name)) {
        let name = if name == "$schema" { "schema" } else { name };
        return Some(format!("OpenAPIV3Schema '{name}' is not supported"));
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let why = "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined";
        return Some(why.to_owned());
    }
    if !items(schema, "items").is_empty() {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
    }
    let single =
        ["items", "additionalProperties", "not"].into_iter().filter_map(|name| schema_at(schema, name));
    let choices = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|name| items(schema, name));
    single.chain(choices).chain(properties(schema).map(|(_, property)| property)).find_map(unconvertible)
}

fn properties(schema: &Value) -> impl Iterator<Item = (&Key, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn schema_at<'a>(schema: &'a Value, field: &str) -> Option<&'a Value> {
    schema.get(field).filter(|value| value.is_object())
}

fn invariants(errors: &mut ErrorList, schema: &Value, level: Level, path: &Path) {
    let ty = text(schema, "type");
    if ty == "array" && schema_at(schema, "items").is_none() {
        errors.push(field::required(&path.child("items"), "must be specified"));
    }
    if let Some(items) = schema_at(schema, "items") {
        invariants(errors, items, Level::Item, &path.child("items"));
    }
    for (name, property) in properties(schema) {
        invariants(errors, property, Level::Field, &path.child("properties").key(name));
    }
    let additional_path = path.child("additionalProperties");
    if child(schema, "additionalProperties").is_some() && level == Level::Root {
        errors.push(field::forbidden(&additional_path, "must not be used at the root"));
    }
    if let Some(additional) = schema_at(schema, "additionalProperties") {
        invariants(errors, additional, Level::Field, &additional_path);
    }
    let int_or_string = flag(schema, "x-kubernetes-int-or-string");
    let preserve = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    for (set, name) in
        [(preserve, "x-kubernetes-preserve-unknown-fields"), (embedded, "x-kubernetes-embedded-resource")]
    {
        if int_or_string && set {
            let detail = "must be false if x-kubernetes-int-or-string is true";
            errors.push(field::invalid(&path.child(name), true, detail));
        }
    }
    value_validation(errors, schema, is_either(schema), first_is_either(schema), level, path);

    let type_path = path.child("type");
    if embedded && ty != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if ty.is_empty() {
            field::required(&type_path, detail)
        } else {
            field::invalid(&type_path, ty, detail)
        });
    } else if ty.is_empty() && !int_or_string && !preserve {
        errors.push(field::required(
            &type_path,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    }
    if embedded && child(schema, "additionalProperties").is_some() {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(field::forbidden(&additional_path, detail));
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        errors.push(field::invalid(&type_path, ty, "must be object at the root"));
    }
    let is_resource = level == Level::Root || embedded;
    for name in ["kind", "apiVersion"] {
        if let Some(property) = schema.pointer(&format!("/properties/{name}")).filter(|_| is_resource)
            && text(property, "type") != "string"
        {
            let at = path.child("properties").key(name).child("type");
            errors.push(field::invalid(&at, text(property, "type"), "must be string"));
        }
    }
    if let Some(metadata) = schema.pointer("/properties/metadata") {
        let at = path.child("properties").key("metadata");
        if is_resource && text(metadata, "type") != "object" {
            errors.push(field::invalid(&at.child("type"), text(metadata, "type"), "must be object"));
        }
        if level == Level::Root && !restricts_names_only(metadata) {
            errors.push(field::forbidden(
                &at,
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            ));
        }
    }
    if embedded && !preserve && properties(schema).next().is_none() {
        errors.push(field::required(
            &path.child("properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
}

/// The root's metadata may say something about the name, and nothing else.
fn restricts_names_only(metadata: &Value) -> bool {
    let fields = metadata.as_object().into_iter().flatten();
    let names_only = properties(metadata).all(|(name, _)| matches!(name.as_str(), "name" | "generateName"));
    fields.filter(|(_, value)| !value.is_null()).all(|(field, _)| match field.as_str() {
        // Examples and references have no structural form.
        "type" | "default" | "example" | "externalDocs" => true,
        "properties" => names_only,
        _ => false,
    })
}

/// The pattern of IntOrString: a choice of integer and string.
fn is_either(schema: &Value) -> bool {
    schema
        .get("anyOf")
        .is_some_and(|any| *any == orlop_json::json!([{"type": "integer"}, {"type": "string"}]))
}

fn first_is_either(schema: &Value) -> bool {
    items(schema, "allOf").first().is_some_and(is_either)
}

fn value_validation(
    errors: &mut ErrorList,
    schema: &Value,
    skip_any_of: bool,
    skip_first: bool,
    level: Level,
    path: &Path,
) {
    if !skip_any_of {
        for (at, nested_schema) in items(schema, "anyOf").iter().enumerate() {
            nested(errors, nested_schema, false, level, &path.child("anyOf").index(at));
        }
    }
    for (at, nested_schema) in items(schema, "allOf").iter().enumerate() {
        nested(errors, nested_schema, skip_first && at == 0, level, &path.child("allOf").index(at));
    }
    for (at, nested_schema) in items(schema, "oneOf").iter().enumerate() {
        nested(errors, nested_schema, false, level, &path.child("oneOf").index(at));
    }
    if let Some(not) = schema_at(schema, "not") {
        nested(errors, not, false, level, &path.child("not"));
    }
    let expression = text(schema, "pattern");
    if !expression.is_empty()
        && let Err(why) = pattern::compile(expression)
    {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(field::invalid(&path.child("pattern"), expression, detail));
    }
}

/// Fields that may not be set inside of a choice, with upstream's words.
const FORBIDDEN: [(&str, &str); 13] = [
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("externalDocs", "must be undefined to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
];

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

fn nested(errors: &mut ErrorList, schema: &Value, skip_any_of: bool, level: Level, path: &Path) {
    value_validation(errors, schema, skip_any_of, false, level, path);
    if let Some(items) = schema_at(schema, "items") {
        nested(errors, items, false, level, &path.child("items"));
    }
    for (name, property) in properties(schema) {
        nested(errors, property, false, Level::Field, &path.child("properties").key(name));
    }
    for (name, detail) in FORBIDDEN {
        if schema.get(name).is_some_and(is_set) {
            errors.push(field::forbidden(&path.child(name), detail));
        }
    }
    if !items(schema, "x-kubernetes-validations").is_empty() {
        let at = path.child("x-kubernetes-validations");
        errors.push(field::forbidden(&at, "must be empty to be structural"));
    }
    if schema.pointer("/properties/metadata").is_some() {
        let at = path.child("properties").key("metadata");
        errors.push(field::forbidden(&at, "must not be specified in a nested context"));
    }
}

/// Everything that a choice of the root speaks of is also specified outside of it.
fn completeness(errors: &mut ErrorList, schema: &Value, path: &Path) {
    choices_complete(errors, schema, Some(schema), path, path);
}

fn choices_complete(
    errors: &mut ErrorList,
    choice: &Value,
    schema: Option<&Value>,
    path: &Path,
    choice_path: &Path,
) {
    for field in ["allOf", "anyOf", "oneOf"] {
        for (at, nested) in items(choice, field).iter().enumerate() {
            nested_complete(errors, nested, schema, path, &choice_path.child(field).index(at));
        }
    }
    if let Some(not) = schema_at(choice, "not") {
        nested_complete(errors, not, schema, path, &choice_path.child("not"));
    }
}

fn nested_complete(
    errors: &mut ErrorList,
    nested: &Value,
    schema: Option<&Value>,
    path: &Path,
    choice_path: &Path,
) {
    let Some(schema) = schema else {
        errors.push(field::required(path, &format!("because it is defined in {choice_path}")));
        return;
    };
    choices_complete(errors, nested, Some(schema), path, choice_path);
    if let Some(items) = schema_at(nested, "items") {
        let inner = schema_at(schema, "items");
        nested_complete(errors, items, inner, &path.child("items"), &choice_path.child("items"));
    }
    for (name, property) in properties(nested) {
        let inner = schema.get("properties").and_then(|all| all.get(name));
        let step = |path: &Path| path.child("properties").key(name);
        nested_complete(errors, property, inner, &step(path), &step(choice_path));
    }
}
