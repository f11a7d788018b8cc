//! A structural schema, compiled from the `openAPIV3Schema` of a definition for the work of every request: pruning,
//! defaulting, validation. What only people read (titles, descriptions, examples) is left behind.
//!
//! Answers to `k8s.io/apiextensions-apiserver/pkg/apiserver/schema` (`NewStructural`).

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_json::{Map, Value};
use regex::Regex;

use crate::pattern;

/// How the items of a list are told apart (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// Not at all; the default.
    #[default]
    Atomic,
    /// By themselves.
    Set,
    /// By their keys.
    Map,
}

/// `additionalProperties`.
#[derive(Debug)]
pub enum Additional {
    /// Any (or no) further properties, of which nothing is known.
    Allowed(bool),
    /// Further properties with this schema.
    Schema(Box<Schema>),
}

/// A rule of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// The expression.
    pub rule: String,
    /// What a client is told when it is false; may be empty.
    pub message: String,
    /// An expression that makes the message; may be empty.
    pub message_expression: String,
    /// `FieldValueInvalid` (when empty), `FieldValueForbidden`, …
    pub reason: String,
    /// Where below this node the error is reported; may be empty.
    pub field_path: String,
    /// Whether `oldSelf` is optional, so that the rule also runs on what is new.
    pub optional_old_self: bool,
}

/// Restrictions of a value beyond its type.
#[derive(Debug, Default)]
pub struct Checks {
    /// A format that is known, else empty.
    pub format: String,
    /// `maximum`
    pub maximum: Option<f64>,
    /// `exclusiveMaximum`
    pub exclusive_maximum: bool,
    /// `minimum`
    pub minimum: Option<f64>,
    /// `exclusiveMinimum`
    pub exclusive_minimum: bool,
    /// `multipleOf`
    pub multiple_of: Option<f64>,
    /// `maxLength`
    pub max_length: Option<i64>,
    /// `minLength`
    pub min_length: Option<i64>,
    /// `pattern` as written, and compiled when that is possible.
    pub pattern: Option<(String, Option<Arc<Regex>>)>,
    /// `maxItems`
    pub max_items: Option<i64>,
    /// `minItems`
    pub min_items: Option<i64>,
    /// `uniqueItems`
    pub unique_items: bool,
    /// `maxProperties`
    pub max_properties: Option<i64>,
    /// `minProperties`
    pub min_properties: Option<i64>,
    /// `required`
    pub required: Vec<String>,
    /// `enum`
    pub values: Vec<Value>,
    /// `allOf`
    pub all_of: Vec<Schema>,
    /// `anyOf`
    pub any_of: Vec<Schema>,
    /// `oneOf`
    pub one_of: Vec<Schema>,
    /// `not`
    pub not: Option<Box<Schema>>,
}

/// One node of a schema.
#[derive(Debug, Default)]
pub struct Schema {
    /// `object`, `array`, `string`, …; may be empty.
    pub ty: String,
    /// Whether null is a value.
    pub nullable: bool,
    /// What an absent value becomes.
    pub default: Option<Value>,
    /// The schema of a list's items.
    pub items: Option<Box<Schema>>,
    /// The schemas of an object's properties.
    pub properties: BTreeMap<orlop_json::Key, Schema>,
    /// What other properties may be there.
    pub additional: Option<Additional>,
    /// `x-kubernetes-preserve-unknown-fields`
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`
    pub list_type: ListType,
    /// `x-kubernetes-list-map-keys`
    pub list_keys: Vec<String>,
    /// Whether `x-kubernetes-map-type` is `atomic`.
    pub map_atomic: bool,
    /// Restrictions of the value; `None` when there are none.
    pub checks: Option<Box<Checks>>,
}

fn text(node: &Value, field: &str) -> String {
    node.get(field).and_then(Value::as_str).unwrap_or("").to_string()
}

fn flag(node: &Value, field: &str) -> bool {
    node.get(field).and_then(Value::as_bool).unwrap_or(false)
}

fn texts(node: &Value, field: &str) -> Vec<String> {
    let items = node.get(field).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| item.as_str().map(String::from)).collect()
}

fn schemas(node: &Value, field: &str) -> Vec<Schema> {
    node.get(field).and_then(Value::as_array).into_iter().flatten().map(Schema::of).collect()
}

impl Schema {
    /// Compiles `openAPIV3Schema` as the definition holds it. What a valid definition cannot have is ignored.
    pub fn of(node: &Value) -> Schema {
        let properties = node.get("properties").and_then(Value::as_object);
        Schema {
            ty: text(node, "type"),
            nullable: flag(node, "nullable"),
            default: node.get("default").filter(|value| !value.is_null()).cloned(),
            items: node
                .get("items")
                .filter(|items| items.is_object())
                .map(|items| Box::new(Schema::of(items))),
            properties: properties
                .into_iter()
                .flatten()
                .map(|(name, schema)| (name.clone(), Schema::of(schema)))
                .collect(),
            additional: match node.get("additionalProperties") {
                Some(Value::Bool(allowed)) => Some(Additional::Allowed(*allowed)),
                Some(schema @ Value::Object(_)) => Some(Additional::Schema(Box::new(Schema::of(schema)))),
                _ => None,
            },
            preserve_unknown: flag(node, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(node, "x-kubernetes-embedded-resource"),
            int_or_string: flag(node, "x-kubernetes-int-or-string"),
            list_type: match text(node, "x-kubernetes-list-type").as_str() {
                "set" => ListType::Set,
                "map" => ListType::Map,
                _ => ListType::Atomic,
            },
            list_keys: texts(node, "x-kubernetes-list-map-keys"),
            map_atomic: text(node, "x-kubernetes-map-type") == "atomic",
            checks: Checks::of(node).map(Box::new),
        }
    }

    /// The schema of a property, declared or additional.
    pub fn property(&self, name: &str) -> Option<&Schema> {
        self.properties.get(name).or_else(|| self.additional_schema())
    }

    /// The schema of additional properties.
    pub fn additional_schema(&self) -> Option<&Schema> {
        match &self.additional {
            Some(Additional::Schema(schema)) => Some(schema),
            _ => None,
        }
    }

    /// How many nodes there are: a measure of what the schema costs.
    pub fn size(&self) -> usize {
        let nested = |checks: &Checks| {
            let lists = [&checks.all_of, &checks.any_of, &checks.one_of];
            lists.into_iter().flatten().map(Schema::size).sum::<usize>()
                + checks.not.as_deref().map_or(0, Schema::size)
        };
        1 + self.items.as_deref().map_or(0, Schema::size)
            + self.properties.values().map(Schema::size).sum::<usize>()
            + self.additional_schema().map_or(0, Schema::size)
            + self.checks.as_deref().map_or(0, nested)
    }
}

impl Rule {
    /// Reads one.
    pub fn of(rule: &Value) -> Rule {
        Rule {
            rule: text(rule, "rule"),
            message: text(rule, "message"),
            message_expression: text(rule, "messageExpression"),
            reason: text(rule, "reason"),
            field_path: text(rule, "fieldPath"),
            optional_old_self: flag(rule, "optionalOldSelf"),
        }
    }
}

const CHECKS: [&str; 20] = [
    "format",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "multipleOf",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "maxProperties",
    "minProperties",
    "required",
    "enum",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
];

impl Checks {
    fn of(node: &Value) -> Option<Checks> {
        let has = |map: &Map| CHECKS.iter().any(|check| map.contains_key(check));
        if !node.as_object().is_some_and(has) {
            return None;
        }
        let number = |field: &str| node.get(field).and_then(Value::as_f64);
        let count = |field: &str| node.get(field).and_then(Value::as_i64);
        let format = text(node, "format");
        let pattern = text(node, "pattern");
        Some(Checks {
            format: if crate::formats::is_known(&text(node, "type"), &format) {
                format
            } else {
                String::new()
            },
            maximum: number("maximum"),
            exclusive_maximum: flag(node, "exclusiveMaximum"),
            minimum: number("minimum"),
            exclusive_minimum: flag(node, "exclusiveMinimum"),
            multiple_of: number("multipleOf"),
            max_length: count("maxLength"),
            min_length: count("minLength"),
            pattern: (!pattern.is_empty()).then(|| {
                let compiled = pattern::compile(&pattern).ok().map(Arc::new);
                (pattern, compiled)
            }),
            max_items: count("maxItems"),
            min_items: count("minItems"),
            unique_items: flag(node, "uniqueItems"),
            max_properties: count("maxProperties"),
            min_properties: count("minProperties"),
            required: texts(node, "required"),
            values: node.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            all_of: schemas(node, "allOf"),
            any_of: schemas(node, "anyOf"),
            one_of: schemas(node, "oneOf"),
            not: node.get("not").filter(|not| not.is_object()).map(|not| Box::new(Schema::of(not))),
        })
    }
}
