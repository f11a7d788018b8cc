//! How custom resources behave in the registry: upstream's `customResourceStrategy`, `statusStrategy` and table convertor.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, ErrorType, Path};
use orlop_api::names;
use orlop_json::{Key, Value};
use orlop_kinds::Strategy;
use orlop_structural::{Schema, print_json_path};

use super::definition::{Compiled, Definition, ScalePaths, Version};
use crate::registry::object::{meta_int, set_meta};

/// One version of a definition, as a kind.
#[derive(Clone, Debug)]
pub struct CustomKind {
    /// The definition.
    pub definition: Arc<Definition>,
    /// Which of its versions.
    at: usize,
}

impl CustomKind {
    /// The version at this place of the definition.
    pub fn new(definition: Arc<Definition>, at: usize) -> CustomKind {
        CustomKind { definition, at }
    }

    /// The version.
    pub fn version(&self) -> &Version {
        &self.definition.versions[self.at]
    }

    /// What its OpenAPI documents follow from, in short.
    pub fn identity(&self) -> String {
        let Definition { uid, generation, plural, kind, list_kind, .. } = self.definition.as_ref();
        format!("{uid} {generation} {plural} {kind} {list_kind} {}\n", self.version().name)
    }

    /// Its schema.
    pub fn compiled(&self) -> &Compiled {
        self.definition.compiled(self.version())
    }

    fn schema(&self) -> &Schema {
        &self.compiled().schema
    }
}

/// The value at a path of fields.
pub fn at_path<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, step| value.get(step))
}

fn keep(object: &mut Value, old: &Value, field: &str) {
    let Some(map) = object.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => {
            map.insert(field.into(), value.clone());
        }
        None => {
            map.remove(field);
        }
    }
}

fn without_metadata(object: &Value) -> impl Iterator<Item = (&Key, &Value)> {
    object.as_object().into_iter().flatten().filter(|(key, _)| *key != "metadata")
}

/// Whether anything but metadata differs.
fn content_differs(a: &Value, b: &Value) -> bool {
    without_metadata(a).count() != without_metadata(b).count()
        || without_metadata(a).any(|(key, value)| b.get(key) != Some(value))
}

/// Errors after which rules are not worth running.
fn blocking(errors: &ErrorList) -> bool {
    errors.iter().any(|error| {
        matches!(
            error.kind,
            ErrorType::NotSupported
                | ErrorType::Required
                | ErrorType::TooLong
                | ErrorType::TooMany
                | ErrorType::TypeInvalid
        )
    })
}

const NOT_CHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

fn type_meta(object: &Value, kind: &CustomKind) -> ErrorList {
    let mut errors = ErrorList::new();
    let wanted = [
        ("kind", kind.definition.kind.clone()),
        ("apiVersion", kind.definition.api_version(&kind.version().name)),
    ];
    for (field_name, wanted) in wanted {
        let found = object.get(field_name).and_then(Value::as_str).unwrap_or("");
        if found != wanted {
            errors.push(field::invalid(&Path::new(field_name), found, format!("must be {wanted}")));
        }
    }
    errors
}

fn replicas(errors: &mut ErrorList, object: &Value, steps: &[String]) {
    let path = Path::new(&format!(".{}", steps.join(".")));
    match at_path(object, steps) {
        None => {}
        Some(value) => match value.as_i64() {
            None => {
                let accessor = format!(".{}", steps.join("."));
                let found = match value {
                    Value::String(text) => format!("{text} is of the type string, expected int64"),
                    other => format!("{other} is of the type {}, expected int64", go_type(other)),
                };
                errors.push(field::invalid(&path, 0, format!("{accessor} accessor error: {found}")));
            }
            Some(count) if count < 0 => {
                errors.push(field::invalid(&path, count, "should be a non-negative integer"));
            }
            Some(count) if count > i64::from(i32::MAX) => {
                let detail = format!("should be less than or equal to {}", i32::MAX);
                errors.push(field::invalid(&path, count, detail));
            }
            Some(_) => {}
        },
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn scale_status(errors: &mut ErrorList, object: &Value, scale: &ScalePaths) {
    replicas(errors, object, &scale.status_replicas);
    if scale.selector.is_empty() {
        return;
    }
    let path = Path::new(&format!(".{}", scale.selector.join(".")));
    match at_path(object, &scale.selector) {
        None | Some(Value::String(_)) => {}
        Some(other) => {
            let detail = format!(
                ".{} accessor error: {other} is of the type {}, expected string",
                scale.selector.join("."),
                go_type(other)
            );
            errors.push(field::invalid(&path, "", detail));
        }
    }
}

impl CustomKind {
    fn scale(&self, errors: &mut ErrorList, object: &Value) {
        if let Some(scale) = &self.version().scale {
            replicas(errors, object, &scale.spec_replicas);
            scale_status(errors, object, scale);
        }
    }

    fn embedded(&self, object: &Value) -> ErrorList {
        orlop_structural::validate_embedded(object, self.schema(), orlop_kinds::validate_embedded_object_meta)
    }

    fn rules(&self, errors: &mut ErrorList, object: &Value, old: Option<&Value>) {
        let Some(rules) = &self.compiled().rules else { return };
        if blocking(errors) {
            errors.push(field::invalid(&Path::root(), Value::Null, NOT_CHECKED));
            return;
        }
        errors.extend(rules.evaluate(object, old));
    }
}

/// Finalizers that need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

fn finalizers(object: &Value) -> BTreeSet<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

impl Strategy for CustomKind {
    fn warnings(&self, obj: &Value, old: Option<&Value>) -> Vec<String> {
        let known = old.map(finalizers).unwrap_or_default();
        let mut warnings = Vec::new();
        for name in finalizers(obj).difference(&known) {
            let shown = field::go_quote(name);
            for message in names::is_qualified_name(name) {
                warnings.push(format!("metadata.finalizers: {shown}: {message}"));
            }
            if !name.contains('/') && !STANDARD_FINALIZERS.contains(name) {
                warnings.push(format!(
                    "metadata.finalizers: {shown}: prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers"
                ));
            }
        }
        warnings
    }

    fn namespaced(&self) -> bool {
        self.definition.namespaced
    }

    fn prepare_create(&self, obj: &mut Value) {
        if self.version().status
            && let Some(map) = obj.as_object_mut()
        {
            map.remove("status");
        }
        set_meta(obj, "generation", Some(1.into()));
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        if self.version().status {
            keep(obj, old, "status");
        }
        let generation = meta_int(old, "generation").unwrap_or(0);
        let next = if content_differs(obj, old) { generation + 1 } else { generation };
        set_meta(obj, "generation", (next != 0).then(|| next.into()));
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errors = type_meta(obj, self);
        if !errors.is_empty() {
            return errors;
        }
        errors.extend(orlop_kinds::validate_generic_object_meta(obj, self.namespaced(), self.name_rule()));
        errors.extend(orlop_structural::validate_value(&Path::root(), obj, self.schema()));
        self.scale(&mut errors, obj);
        errors.extend(self.embedded(obj));
        errors.extend(orlop_structural::validate_lists(&Path::root(), obj, self.schema()));
        self.rules(&mut errors, obj, None);
        errors
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errors = type_meta(obj, self);
        if !errors.is_empty() {
            return errors;
        }
        errors.extend(orlop_kinds::validate_generic_object_meta_update(obj, old));
        errors.extend(orlop_structural::validate_value_update(&Path::root(), obj, old, self.schema()));
        self.scale(&mut errors, obj);
        errors.extend(self.embedded(obj));
        // Lists that were out of order before may stay so.
        let lists = orlop_structural::validate_lists(&Path::root(), obj, self.schema());
        if !lists.is_empty() && orlop_structural::validate_lists(&Path::root(), old, self.schema()).is_empty()
        {
            errors.extend(lists);
        }
        self.rules(&mut errors, obj, Some(old));
        errors
    }

    fn has_status(&self) -> bool {
        self.version().status
    }

    fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
        let status = obj.get("status").cloned();
        let managed = obj.pointer("/metadata/managedFields").cloned();
        let version = obj.pointer("/metadata/resourceVersion").cloned();
        *obj = old.clone();
        set_meta(obj, "managedFields", managed);
        set_meta(obj, "resourceVersion", version);
        match (status, obj.as_object_mut()) {
            (Some(status), _) => obj["status"] = status,
            (None, Some(map)) => {
                map.remove("status");
            }
            (None, None) => {}
        }
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errors = type_meta(obj, self);
        if !errors.is_empty() {
            return errors;
        }
        errors.extend(orlop_kinds::validate_generic_object_meta_update(obj, old));
        let schema = self.schema();
        if let (Some(status), Some(schema)) = (obj.get("status"), schema.properties.get("status")) {
            let path = Path::new("status");
            match old.get("status") {
                Some(old) => {
                    errors.extend(orlop_structural::validate_value_update(&path, status, old, schema));
                }
                None => errors.extend(orlop_structural::validate_value(&path, status, schema)),
            }
        }
        if let Some(scale) = &self.version().scale {
            scale_status(&mut errors, obj, scale);
        }
        let lists = orlop_structural::validate_lists(&Path::root(), obj, schema);
        if !lists.is_empty() && orlop_structural::validate_lists(&Path::root(), old, schema).is_empty() {
            errors.extend(lists);
        }
        self.rules(&mut errors, obj, Some(old));
        errors
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        match label {
            "metadata.name" | "metadata.namespace" => {
                let field = label.trim_start_matches("metadata.");
                Some(obj["metadata"][field].as_str().unwrap_or("").to_string())
            }
            _ => self.version().selected(obj, label),
        }
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let mut cells = vec![obj["metadata"]["name"].clone()];
        for column in &self.version().columns {
            let found = column.path.find(obj).first().copied();
            cells.push(found.map_or(Value::Null, |value| cell(&column.kind, value, now)));
        }
        cells
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// A value in a column of this type; null when it does not fit there.
fn cell(kind: &str, value: &Value, now: Timestamp) -> Value {
    match (kind, value) {
        ("string", value) => print_json_path(value).into(),
        ("integer", Value::Number(number)) => {
            number.as_i64().or_else(|| number.as_f64().map(|float| float as i64)).into()
        }
        ("number", Value::Number(number)) => number.clone().into(),
        ("boolean", Value::Bool(value)) => (*value).into(),
        ("date", Value::String(text)) if matches!(text.as_str(), "" | "null") => "<unknown>".into(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(_) => orlop_kinds::age(text, now).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}
