//! Validation of CustomResourceDefinitions, `apiextensions.k8s.io/v1`, as JSON in normalised form.
//!
//! Answers to `apiextensions-apiserver/pkg/apis/apiextensions/validation`. Upstream validates its internal type, where
//! what all versions have in common stands at the top (`spec.validation`): the paths of errors are those of that type.

mod conversion;
mod defaults;
mod names;
mod openapi;
mod structural;
mod subresources;

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names as rules_of_names;
use orlop_json::Value;

use crate::meta::MetaRule;

pub use names::api_approval;

/// An absent field.
static NULL: Value = Value::Null;

pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

pub(crate) fn flag(value: &Value, field: &str) -> bool {
    value.get(field).and_then(Value::as_bool).unwrap_or(false)
}

pub(crate) fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(crate) fn child<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    value.get(field).filter(|value| !value.is_null())
}

/// The messages about a name, one after the other.
fn joined(messages: Vec<String>) -> Option<String> {
    (!messages.is_empty()).then(|| messages.join(","))
}

/// What a definition had before an update; rules that came later do not strike what was there.
#[derive(Clone, Copy, Debug)]
struct Options<'a> {
    require_schema: bool,
    require_pruned_defaults: bool,
    require_recognized_review: bool,
    allow_invalid_ca: bool,
    /// The spec before the update.
    old: Option<&'a Value>,
    /// The rule for metadata within defaults.
    meta_rule: MetaRule,
}

/// Whether a condition of a definition is true.
pub fn is_condition_true(definition: &Value, kind: &str) -> bool {
    let conditions = definition.get("status").map_or(&[][..], |status| items(status, "conditions"));
    conditions.iter().any(|condition| text(condition, "type") == kind && text(condition, "status") == "True")
}

/// All that is wrong with a new definition but its metadata.
pub fn validate(definition: &Value, meta_rule: MetaRule) -> ErrorList {
    let options = Options {
        require_schema: true,
        require_pruned_defaults: true,
        require_recognized_review: true,
        allow_invalid_ca: true,
        old: None,
        meta_rule,
    };
    let spec = definition.get("spec").unwrap_or(&NULL);
    let mut errors = validate_spec(spec, &options);
    errors.extend(validate_status(definition));
    errors.extend(validate_stored_versions(definition));
    errors.extend(names::validate_api_approval(definition, None));
    errors.extend(validate_preserve_unknown_fields(spec));
    errors
}

/// All that is wrong with an update of a definition but its metadata.
pub fn validate_update(definition: &Value, old: &Value, meta_rule: MetaRule) -> ErrorList {
    let spec = definition.get("spec").unwrap_or(&NULL);
    let old_spec = old.get("spec").unwrap_or(&NULL);
    let established = is_condition_true(old, "Established");
    let complete = items(old_spec, "versions").iter().all(|version| {
        child(version, "schema").is_some_and(|schema| child(schema, "openAPIV3Schema").is_some())
    });
    let options = Options {
        require_schema: complete,
        require_pruned_defaults: true,
        require_recognized_review: conversion::recognizes_review(old_spec),
        allow_invalid_ca: !established || conversion::has_invalid_ca(old_spec),
        old: Some(old_spec),
        meta_rule,
    };
    let mut errors = validate_spec(spec, &options);
    let path = Path::new("spec");
    let mut immutable = |path: Path, new: &Value, old: &Value| {
        if new != old {
            errors.push(field::invalid(&path, new.clone(), "field is immutable"));
        }
    };
    let name = |spec: &Value, field: &str| spec["names"][field].clone();
    if established {
        immutable(path.child("scope"), &spec["scope"], &old_spec["scope"]);
        immutable(path.child("names").child("kind"), &name(spec, "kind"), &name(old_spec, "kind"));
    }
    immutable(path.child("group"), &spec["group"], &old_spec["group"]);
    immutable(path.child("names").child("plural"), &name(spec, "plural"), &name(old_spec, "plural"));
    errors.extend(validate_status(definition));
    errors.extend(validate_stored_versions(definition));
    errors.extend(names::validate_api_approval(definition, Some(old)));
    errors.extend(validate_preserve_unknown_fields(spec));
    errors
}

/// What is wrong with the names that a definition's status claims.
pub fn validate_status(definition: &Value) -> ErrorList {
    let accepted = definition.pointer("/status/acceptedNames").unwrap_or(&NULL);
    names::validate_names(accepted, &Path::new("status").child("acceptedNames"))
}

fn validate_preserve_unknown_fields(spec: &Value) -> ErrorList {
    if !flag(spec, "preserveUnknownFields") {
        return ErrorList::new();
    }
    vec![field::invalid(
        &Path::new("spec").child("preserveUnknownFields"),
        true,
        "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
    )]
}

fn validate_stored_versions(definition: &Value) -> ErrorList {
    let path = Path::new("status").child("storedVersions");
    let stored: Vec<&str> = definition
        .get("status")
        .map_or(&[][..], |status| items(status, "storedVersions"))
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let value = if stored.is_empty() { Value::Null } else { stored.as_slice().into() };
    if stored.is_empty() {
        return vec![field::invalid(&path, value, "must have at least one stored version")];
    }
    let mut errors = ErrorList::new();
    let versions = definition.get("spec").map_or(&[][..], |spec| items(spec, "versions"));
    for version in versions {
        let name = text(version, "name");
        if flag(version, "storage") && !stored.contains(&name) {
            let detail = format!("must have the storage version {name}");
            errors.push(field::invalid(&path, value.clone(), detail));
        }
    }
    for (at, name) in stored.iter().enumerate() {
        if !versions.iter().any(|version| text(version, "name") == *name) {
            errors.push(field::invalid(
                &path.index(at),
                *name,
                format!(
                    "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
                ),
            ));
        }
    }
    errors
}

/// What all versions have in common, and what each has for itself.
struct Shared<'a> {
    schema: Option<&'a Value>,
    subresources: Option<&'a Value>,
    columns: Option<&'a Value>,
    selectable: Option<&'a Value>,
    /// Whether the field above is the same in every version, present or not.
    same: [bool; 4],
}

const PER_VERSION: [&str; 4] = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"];

impl<'a> Shared<'a> {
    fn of(versions: &'a [Value]) -> Shared<'a> {
        let common = |field: &str| {
            let first = versions.first().and_then(|version| child(version, field));
            let same = versions.iter().all(|version| child(version, field) == first);
            (first.filter(|_| same), same)
        };
        let [schema, subresources, columns, selectable] = PER_VERSION.map(common);
        Shared {
            schema: schema.0,
            subresources: subresources.0,
            columns: columns.0,
            selectable: selectable.0,
            same: [schema.1, subresources.1, columns.1, selectable.1],
        }
    }
}

/// The versions as upstream's internal type prints them.
fn printed(versions: &[Value], shared: &Shared<'_>) -> Value {
    let own = |version: &Value, at: usize| {
        if shared.same[at] { Value::Null } else { version.get(PER_VERSION[at]).cloned().unwrap_or_default() }
    };
    versions
        .iter()
        .map(|version| {
            orlop_json::json!({
                "Name": text(version, "name"),
                "Served": flag(version, "served"),
                "Storage": flag(version, "storage"),
                "Deprecated": flag(version, "deprecated"),
                "DeprecationWarning": version.get("deprecationWarning"),
                "Schema": own(version, 0),
                "Subresources": own(version, 1),
                "AdditionalPrinterColumns": own(version, 2),
                "SelectableFields": own(version, 3),
            })
        })
        .collect()
}

fn has_status(subresources: Option<&Value>) -> bool {
    subresources.is_some_and(|subresources| child(subresources, "status").is_some())
}

fn validate_spec(spec: &Value, options: &Options<'_>) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = names::validate_group_and_scope(spec, &path);
    let versions = items(spec, "versions");
    let shared = Shared::of(versions);
    let open_api =
        |schema: Option<&'_ Value>| schema.is_some_and(|schema| child(schema, "openAPIV3Schema").is_some());
    if !open_api(shared.schema) {
        for (at, version) in versions.iter().enumerate() {
            let own = if shared.same[0] { None } else { child(version, "schema") };
            let path = path.child("versions").index(at).child("schema").child("openAPIV3Schema");
            if options.require_schema && !open_api(own) {
                errors.push(field::required(&path, "schemas are required"));
            } else if !options.require_schema && flag(version, "served") && !open_api(own) {
                errors.push(field::required(&path, "because otherwise all fields are pruned"));
            }
        }
    }
    let preserves = flag(spec, "preserveUnknownFields");
    let schemas = versions.iter().filter_map(|version| child(child(version, "schema")?, "openAPIV3Schema"));
    if preserves && schemas.into_iter().any(has_defaults) {
        let detail = "must be false in order to use defaults in the schema";
        errors.push(field::invalid(&path.child("preserveUnknownFields"), true, detail));
    }
    let mut names_seen: Vec<&str> = Vec::new();
    let mut unique = true;
    for (at, version) in versions.iter().enumerate() {
        let path = path.child("versions").index(at);
        let name = text(version, "name");
        unique &= !names_seen.contains(&name);
        names_seen.push(name);
        if let Some(messages) = joined(rules_of_names::is_dns1035_label(name)) {
            errors.push(field::invalid(&path.child("name"), name, messages));
        }
        let own = |field: &str, at: usize| if shared.same[at] { None } else { child(version, field) };
        let status = has_status(own("subresources", 1).or(shared.subresources));
        errors.extend(validate_version(version, own, status, &path, options));
    }
    if !unique {
        let value = printed(versions, &shared);
        errors.push(field::invalid(&path.child("versions"), value, "must contain unique version names"));
    }
    if versions.iter().filter(|version| flag(version, "storage")).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(field::invalid(&path.child("versions"), printed(versions, &shared), detail));
    }
    if let Some(first) = versions.first()
        && let Some(messages) = joined(rules_of_names::is_dns1035_label(text(first, "name")))
    {
        errors.push(field::invalid(&path.child("version"), text(first, "name"), messages));
    }
    let names = spec.get("names").unwrap_or(&NULL);
    for field in ["plural", "singular", "kind", "listKind"] {
        if text(names, field).is_empty() {
            errors.push(field::required(&path.child("names").child(field), ""));
        }
    }
    errors.extend(names::validate_names(names, &path.child("names")));
    let any_status = has_status(shared.subresources)
        || versions.iter().any(|version| has_status(child(version, "subresources")));
    if let Some(schema) = shared.schema {
        errors.extend(openapi::validate(schema, any_status, &path.child("validation"), options));
    }
    if let Some(subresources) = shared.subresources {
        errors.extend(subresources::validate(subresources, &path.child("subresources")));
    }
    for (at, column) in shared.columns.and_then(Value::as_array).into_iter().flatten().enumerate() {
        errors
            .extend(subresources::validate_column(column, &path.child("additionalPrinterColumns").index(at)));
    }
    if let Some(selectable) = shared.selectable.and_then(Value::as_array).filter(|list| !list.is_empty()) {
        let path = path.child("selectableFields");
        match shared.schema.and_then(|schema| child(schema, "openAPIV3Schema")) {
            Some(schema) => errors.extend(subresources::validate_selectable(selectable, schema, &path)),
            None => errors.push(field::invalid(
                &path,
                "",
                "selectableFields may only be set when validations.schema is included",
            )),
        }
    }
    let strategy = child(spec, "conversion").map(|conversion| text(conversion, "strategy"));
    if let Some(strategy) = strategy.filter(|strategy| preserves && *strategy != "None") {
        let detail = "must be None if spec.preserveUnknownFields is true";
        errors.push(field::invalid(&path.child("conversion").child("strategy"), strategy, detail));
    }
    errors.extend(conversion::validate(spec, options, &path.child("conversion")));
    errors
}

/// The schemas that a schema is made of.
fn parts(schema: &Value) -> impl Iterator<Item = &Value> {
    let items_and_choices =
        ["items", "allOf", "anyOf", "oneOf"].into_iter().flat_map(|field| match schema.get(field) {
            Some(one @ Value::Object(_)) => std::slice::from_ref(one),
            _ => items(schema, field),
        });
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    items_and_choices
        .chain(child(schema, "not"))
        .chain(properties.map(|(_, property)| property))
        .chain(schema.get("additionalProperties").filter(|value| value.is_object()))
}

/// Whether a schema has a default anywhere.
fn has_defaults(schema: &Value) -> bool {
    child(schema, "default").is_some() || parts(schema).any(has_defaults)
}

/// The formats of a definition's schemas that mean nothing, each once.
pub fn unknown_formats(definition: &Value) -> Vec<String> {
    fn walk(schema: &Value, found: &mut Vec<String>) {
        let format = text(schema, "format");
        if !format.is_empty()
            && !crate::formats::is_known(text(schema, "type"), format)
            && !found.iter().any(|known| known == format)
        {
            found.push(format.to_owned());
        }
        parts(schema).for_each(|part| walk(part, found));
    }
    let mut found = Vec::new();
    let versions = definition.get("spec").map_or(&[][..], |spec| items(spec, "versions"));
    for schema in versions.iter().filter_map(|version| child(child(version, "schema")?, "openAPIV3Schema")) {
        walk(schema, &mut found);
    }
    found
}

fn validate_version<'a>(
    version: &'a Value,
    own: impl Fn(&str, usize) -> Option<&'a Value>,
    status: bool,
    path: &Path,
    options: &Options<'_>,
) -> ErrorList {
    let mut errors = ErrorList::new();
    let warning = version.get("deprecationWarning").and_then(Value::as_str);
    for message in deprecation_messages(flag(version, "deprecated"), warning) {
        errors.push(field::invalid(&path.child("deprecationWarning"), warning.unwrap_or(""), message));
    }
    let schema = own("schema", 0);
    if let Some(schema) = schema {
        errors.extend(openapi::validate(schema, status, &path.child("schema"), options));
    }
    if let Some(subresources) = own("subresources", 1) {
        errors.extend(subresources::validate(subresources, &path.child("subresources")));
    }
    for (at, column) in
        own("additionalPrinterColumns", 2).and_then(Value::as_array).into_iter().flatten().enumerate()
    {
        errors
            .extend(subresources::validate_column(column, &path.child("additionalPrinterColumns").index(at)));
    }
    if let Some(selectable) =
        own("selectableFields", 3).and_then(Value::as_array).filter(|list| !list.is_empty())
    {
        let path = path.child("selectableFields");
        // As upstream: a schema that all versions share stands at the top, and is not seen from here.
        match schema.and_then(|schema| child(schema, "openAPIV3Schema")) {
            Some(schema) => errors.extend(subresources::validate_selectable(selectable, schema, &path)),
            None => errors.push(field::invalid(
                &path,
                "",
                "selectableFields may only be set when version.schema.openAPIV3Schema is not included",
            )),
        }
    }
    errors
}

fn deprecation_messages(deprecated: bool, warning: Option<&str>) -> Vec<String> {
    let Some(warning) = warning else { return Vec::new() };
    if !deprecated {
        return vec!["can only be set for deprecated versions".to_string()];
    }
    let mut messages = Vec::new();
    if warning.len() > 256 {
        messages.push("must be <= 256 characters long".to_string());
    }
    if warning.is_empty() {
        messages.push("must not be an empty string".to_string());
    }
    let hidden = |c: &(usize, char)| c.1.is_control() || (c.1 != ' ' && c.1.is_whitespace());
    if let Some((at, _)) = warning.char_indices().find(hidden) {
        messages.push(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        ));
    }
    messages
}

#[cfg(test)]
mod tests;
