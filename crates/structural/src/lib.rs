//! Structural schemas of custom resources: pruning, defaulting, validation of values, lists that are sets or maps, rules,
//! and the validation of the definitions that carry the schemas.
//!
//! Pure functions over JSON values. This crate must never know of HTTP, storage, the registry or which definitions exist.

mod apply;
mod defaults;
pub mod definition;
mod formats;
mod jsonpath;
mod lists;
mod meta;
mod paths;
mod pattern;
mod prune;
mod rules;
mod schema;
mod value;

pub use apply::object_type;
pub use defaults::{drop_nulls, fill as fill_defaults};
pub use jsonpath::{JsonPath, print as print_json_path};
pub use lists::validate as validate_lists;
pub use meta::{Malformed, MetaRule, coerce as coerce_metadata, validate_embedded};
pub use prune::{META_FIELDS, prune};
pub use rules::Rules;
pub use schema::{Additional, Checks, ListType, Rule, Schema};
pub use value::{validate as validate_value, validate_update as validate_value_update};

use orlop_json::{Key, Value};

/// A value with the keys of its objects in the order of the alphabet, as Go encodes maps.
pub fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&Key> = map.keys().collect();
            keys.sort();
            Value::Object(keys.into_iter().map(|key| (key.clone(), sorted(&map[key]))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}
