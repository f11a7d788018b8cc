//! Validation of one `openAPIV3Schema`, node by node.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::{Options, child, defaults, flag, items, structural, text};
use crate::paths;
use crate::rules;
use crate::schema::Schema;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Fields that the root may have beside a status subresource, by their names in JSON and in upstream's type.
const AT_ROOT: [(&str, &str); 22] = [
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    ("x-kubernetes-preserve-unknown-fields", "XPreserveUnknownFields"),
    ("x-kubernetes-validations", "XValidations"),
];

/// Fields of a schema that are not supported at all.
const UNSUPPORTED: [(&str, &str); 6] = [
    ("id", "id is not supported"),
    ("additionalItems", "additionalItems is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("$ref", "$ref is not supported"),
];

/// What is wrong with a version's `schema` (upstream's `validation`).
pub(super) fn validate(validation: &Value, status: bool, path: &Path, options: &Options<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    let Some(schema) = child(validation, "openAPIV3Schema") else { return errors };
    let path = path.child("openAPIV3Schema");
    if status {
        errors.extend(root_fields(schema, &path));
    }
    if flag(schema, "nullable") {
        errors.push(field::forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
    }
    // What has no structural form at all is neither asked for more of its structure nor for its rules.
    let unconvertible = structural::unconvertible(schema);
    let mut sound = unconvertible.is_none();
    if sound {
        let mut problems = structural::validate(schema, &path);
        if problems.is_empty() {
            problems = defaults::validate(&Schema::of(schema), schema, &path, options);
        }
        sound = problems.is_empty();
        errors.extend(problems);
    }
    let mut found = ErrorList::new();
    let context = Context { root: true, ..Context::default() };
    walk(&mut found, schema, &path, &context);
    let broken: Vec<String> = found.iter().map(|error| error.field.clone()).collect();
    errors.extend(found);
    match unconvertible {
        Some(why) if errors.is_empty() => errors.push(field::invalid(&path, "", why)),
        _ if sound => errors.extend(rules::validate(schema, &path, options.old, &broken)),
        _ => {}
    }
    errors
}

fn root_fields(schema: &Value, path: &Path) -> Option<field::FieldError> {
    for (name, value) in schema.as_object().into_iter().flatten() {
        let empty = match value {
            Value::Null => true,
            Value::Bool(false) => name != "additionalProperties",
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if empty {
            continue;
        }
        if name == "type" {
            if value != "object" {
                let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
                return Some(field::invalid(&path.child("type"), value.clone(), detail));
            }
            continue;
        }
        if !AT_ROOT.iter().any(|(allowed, _)| allowed == name) {
            let allowed: Vec<&str> = AT_ROOT.iter().map(|(_, name)| *name).collect();
            let detail = format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                allowed.join(" ")
            );
            return Some(field::invalid(path, schema.clone(), detail));
        }
    }
    None
}

/// What a node's ancestors say about it.
#[derive(Clone, Default)]
struct Context {
    root: bool,
    /// Why defaults are forbidden here.
    no_defaults: Option<String>,
    inside_meta: bool,
}

fn schema_at<'a>(schema: &'a Value, field: &str) -> Option<&'a Value> {
    schema.get(field).filter(|value| value.is_object())
}

fn walk(found: &mut ErrorList, schema: &Value, path: &Path, context: &Context) {
    node(found, schema, path, context);
    let below = Context { root: false, ..context.clone() };
    let properties = schema.get("properties").and_then(Value::as_object);
    let has_properties = properties.is_some_and(|properties| !properties.is_empty());
    if let Some(additional) = child(schema, "additionalProperties") {
        let at = path.child("additionalProperties");
        if has_properties && *additional != Value::Bool(true) {
            let detail = "additionalProperties and properties are mutual exclusive";
            found.push(field::forbidden(&at, detail));
        }
        if additional.is_object() {
            let mut inner = below.clone();
            if context.inside_meta {
                inner.no_defaults =
                    Some("inside additionalProperties applying to object metadata".to_string());
            }
            walk(found, additional, &at, &inner);
        }
    }
    for (name, property) in properties.into_iter().flatten() {
        let mut inner = below.clone();
        let is_resource = context.root || flag(schema, "x-kubernetes-embedded-resource");
        if is_resource && crate::META_FIELDS.contains(&name.as_str()) {
            inner.inside_meta = true;
            if context.root {
                inner.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        walk(found, property, &path.child("properties").key(name), &inner);
    }
    if let Some(not) = schema_at(schema, "not") {
        walk(found, not, &path.child("not"), &below);
    }
    for field in ["allOf", "oneOf", "anyOf"] {
        for (at, nested) in items(schema, field).iter().enumerate() {
            walk(found, nested, &path.child(field).index(at), &below);
        }
    }
    match schema.get("items") {
        Some(single @ Value::Object(_)) => walk(found, single, &path.child("items"), &below),
        Some(Value::Array(many)) => {
            for (at, one) in many.iter().enumerate() {
                walk(found, one, &path.child("items").index(at), &below);
            }
        }
        _ => {}
    }
    let errors = found;
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let at = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(field::invalid(&at, false, "must be true or undefined"));
    }
    map_type(errors, schema, path);
    list_type(errors, schema, path);
    for (at, rule) in items(schema, "x-kubernetes-validations").iter().enumerate() {
        rule_texts(errors, schema, rule, &path.child("x-kubernetes-validations").index(at));
    }
}

fn node(errors: &mut ErrorList, schema: &Value, path: &Path, context: &Context) {
    let ty = text(schema, "type");
    if !ty.is_empty() && !TYPES.contains(&ty) {
        errors.push(field::not_supported(&path.child("type"), ty, &TYPES));
    }
    if let Some(reason) = context.no_defaults.as_ref().filter(|_| child(schema, "default").is_some()) {
        errors.push(field::forbidden(&path.child("default"), format!("must not be set {reason}")));
    }
    for (name, detail) in UNSUPPORTED {
        let set = match schema.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        };
        if set {
            errors.push(field::forbidden(&path.child(name), detail));
        }
    }
    if ty == "null" {
        let detail = "type cannot be set to null, use nullable as an alternative";
        errors.push(field::forbidden(&path.child("type"), detail));
    }
    if schema.get("items").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
        let detail = "items must be a schema object and not an array";
        errors.push(field::forbidden(&path.child("items"), detail));
    }
    if context.inside_meta && flag(schema, "x-kubernetes-embedded-resource") {
        let at = path.child("x-kubernetes-embedded-resource");
        errors.push(field::forbidden(&at, "must not be used inside of resource meta"));
    }
    if flag(schema, "uniqueItems") {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(field::forbidden(&path.child("uniqueItems"), detail));
    }
}

/// A type that another field asks for.
fn wanted_type(errors: &mut ErrorList, schema: &Value, path: &Path, wanted: &str, why: &str) {
    let ty = text(schema, "type");
    let detail = format!("must be {wanted} if {why}");
    errors.push(if ty.is_empty() {
        field::required(&path.child("type"), &detail)
    } else {
        field::invalid(&path.child("type"), ty, detail)
    });
}

fn map_type(errors: &mut ErrorList, schema: &Value, path: &Path) {
    let Some(map_type) = child(schema, "x-kubernetes-map-type").and_then(Value::as_str) else { return };
    if text(schema, "type") != "object" {
        wanted_type(errors, schema, path, "object", "x-kubernetes-map-type is specified");
    }
    if !matches!(map_type, "atomic" | "granular") {
        let at = path.child("x-kubernetes-map-type");
        errors.push(field::not_supported(&at, map_type, &["atomic", "granular"]));
    }
}

fn list_type(errors: &mut ErrorList, schema: &Value, path: &Path) {
    let list_type = child(schema, "x-kubernetes-list-type").and_then(Value::as_str);
    let keys = items(schema, "x-kubernetes-list-map-keys");
    let type_path = path.child("x-kubernetes-list-type");
    let item = schema_at(schema, "items");
    let items_path = path.child("items");
    if let Some(list_type) = list_type {
        if text(schema, "type") != "array" {
            wanted_type(errors, schema, path, "array", "x-kubernetes-list-type is specified");
        } else if let ("set", Some(item)) = (list_type, item) {
            let atomic = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let inner = child(item, "x-kubernetes-list-type").cloned();
            let name = match text(item, "type") {
                "array" if inner.as_ref().is_some_and(|inner| inner != "atomic") => {
                    Some("x-kubernetes-list-type")
                }
                "object" if text(item, "x-kubernetes-map-type") != "atomic" => Some("x-kubernetes-map-type"),
                _ => None,
            };
            if let Some(name) = name {
                errors.push(field::invalid(&items_path.child(name), inner.unwrap_or_default(), atomic));
            }
        }
        if !matches!(list_type, "atomic" | "set" | "map") {
            errors.push(field::not_supported(&type_path, list_type, &["atomic", "set", "map"]));
        }
    }
    if !keys.is_empty() {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            None => errors.push(field::required(&type_path, detail)),
            Some("map") => {}
            Some(other) => errors.push(field::invalid(&type_path, other, detail)),
        }
    }
    if list_type == Some("map") {
        map_keys(errors, schema, keys, path);
    }
    if let (Some(list_type @ ("set" | "map")), Some(item)) = (list_type, item) {
        if flag(item, "nullable") {
            let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
            errors.push(field::forbidden(&items_path.child("nullable"), detail));
        }
        if list_type == "map" {
            required_keys(errors, item, keys, &items_path);
        }
    }
}

fn map_keys(errors: &mut ErrorList, schema: &Value, keys: &[Value], path: &Path) {
    let keys_path = path.child("x-kubernetes-list-map-keys");
    let items_path = path.child("items");
    if keys.is_empty() {
        let detail = "must not be empty if x-kubernetes-list-type is map";
        errors.push(field::required(&keys_path, detail));
    }
    let item = match schema.get("items") {
        None | Some(Value::Null) => {
            let detail = "must have a schema if x-kubernetes-list-type is map";
            errors.push(field::required(&items_path, detail));
            return;
        }
        Some(item @ Value::Object(_)) => item,
        Some(other) => {
            let detail = "must only have a single schema if x-kubernetes-list-type is map";
            errors.push(field::invalid(&items_path, other.clone(), detail));
            return;
        }
    };
    if text(item, "type") != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(field::invalid(&items_path.child("type"), text(item, "type"), detail));
        return;
    }
    let mut seen: Vec<&Value> = Vec::new();
    for key in keys {
        let name = key.as_str().unwrap_or("");
        match item.get("properties").and_then(|properties| properties.get(name)) {
            Some(property) if matches!(text(property, "type"), "array" | "object") => {
                let at = items_path.child("properties").key(name).child("type");
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.push(field::invalid(&at, text(item, "type"), detail));
            }
            Some(_) => {}
            None => {
                let detail = "entries must all be names of item properties";
                errors.push(field::invalid(&keys_path, keys, detail));
            }
        }
        if seen.contains(&key) {
            errors.push(field::invalid(&keys_path, keys, "must not contain duplicate entries"));
        }
        seen.push(key);
    }
}

fn required_keys(errors: &mut ErrorList, item: &Value, keys: &[Value], path: &Path) {
    for key in keys {
        let name = key.as_str().unwrap_or("");
        let Some(property) = item.get("properties").and_then(|properties| properties.get(name)) else {
            continue;
        };
        let at = path.child("properties").key(name);
        if !items(item, "required").contains(key) && child(property, "default").is_none() {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(field::required(&at.child("default"), detail));
        }
        if flag(property, "nullable") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(field::forbidden(&at.child("nullable"), detail));
        }
    }
}

fn has_newlines(text: &str) -> bool {
    text.contains(['\n', '\r'])
}

/// The texts of a rule, before anybody compiles it.
fn rule_texts(errors: &mut ErrorList, schema: &Value, rule: &Value, path: &Path) {
    let (expression, message) = (text(rule, "rule"), text(rule, "message"));
    let (message_expression, field_path) = (text(rule, "messageExpression"), text(rule, "fieldPath"));
    let trimmed = message.trim();
    if expression.trim().is_empty() {
        errors.push(field::required(&path.child("rule"), "rule is not specified"));
    } else if !message.is_empty() && trimmed.is_empty() {
        errors.push(field::invalid(&path.child("message"), message, "must be non-empty if specified"));
    } else if has_newlines(trimmed) {
        errors.push(field::invalid(&path.child("message"), message, "must not contain line breaks"));
    } else if has_newlines(expression.trim()) && trimmed.is_empty() {
        let detail = "must be specified if rule contains line breaks";
        errors.push(field::required(&path.child("message"), detail));
    }
    if !message_expression.is_empty() && message_expression.trim().is_empty() {
        let at = path.child("messageExpression");
        errors.push(field::required(&at, "must be non-empty if specified"));
    }
    if let Some(reason) = child(rule, "reason").and_then(Value::as_str)
        && !REASONS.contains(&reason)
    {
        errors.push(field::not_supported(&path.child("reason"), reason, &REASONS));
    }
    if field_path.is_empty() {
        return;
    }
    let at = path.child("fieldPath");
    if field_path.trim().is_empty() {
        errors.push(field::invalid(&at, field_path, "must be non-empty if specified"));
    }
    if has_newlines(field_path) {
        errors.push(field::invalid(&at, field_path, "must not contain line breaks"));
    }
    if paths::resolve(field_path, &Schema::of(schema), true).is_err() {
        errors.push(field::invalid(&at, field_path, "must be a valid path"));
    }
}
