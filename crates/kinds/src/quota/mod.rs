//! ResourceQuota, the arithmetic of it: what an object uses of which quota resource, which quotas it falls under, and
//! whether it still fits. Admission asks before it lets an object in; the quota controller adds up what is there.
//! Upstream's counterpart is `k8s.io/apiserver/pkg/quota/v1` with `pkg/quota/v1/evaluator/core`.

mod check;
mod claims;
mod evaluator;
mod pods;

use std::collections::BTreeMap;

use orlop_api::Quantity;
use orlop_json::{Map, Value};

use crate::core::pod::resources::{is_extended, quantity};
use crate::cursor::Cursor;

pub use check::{Limited, Refusal, Request, check};
pub use evaluator::{Change, Evaluator};
pub use pods::{pod_requests, pod_spec_resources};

/// Quantities by resource name.
pub type ResourceList = BTreeMap<String, Quantity>;

/// Reads a resource list; what is no quantity counts as nothing.
pub fn resource_list(value: &Value) -> ResourceList {
    value.entries().map(|(name, value)| (name.to_string(), quantity(value))).collect()
}

/// Writes a resource list.
pub fn to_value(list: &ResourceList) -> Value {
    let map: Map = list.iter().map(|(name, value)| (name.into(), Value::String(value.to_string()))).collect();
    Value::Object(map)
}

/// Whether a resource is somebody else's, with a domain, and counted in whole units.
pub fn is_extended_resource(name: &str) -> bool {
    is_extended(name)
}

/// The quota resource that counts the objects of a resource.
pub fn object_count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// Adds `more` to `list`, name by name.
pub fn add(list: &mut ResourceList, more: &ResourceList) {
    for (name, value) in more {
        match list.get_mut(name) {
            Some(sum) => *sum = *sum + *value,
            None => {
                list.insert(name.clone(), *value);
            }
        }
    }
}

/// `new - old`, and nothing where that would be less than nothing.
fn growth(new: &ResourceList, old: &ResourceList) -> ResourceList {
    let mut out: ResourceList = new
        .iter()
        .map(|(name, value)| {
            let rest = old.get(name).map_or(*value, |old| *value - *old);
            (name.clone(), if rest.sign() > 0 { rest } else { Quantity::ZERO })
        })
        .collect();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        out.insert(name.clone(), Quantity::ZERO);
    }
    out
}

/// The entries with these names.
fn mask(list: &ResourceList, names: &[&str]) -> ResourceList {
    list.iter()
        .filter(|(name, _)| names.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), *value))
        .collect()
}

/// `a=1,b=2`.
fn print(list: &ResourceList) -> String {
    list.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// The scopes of a quota as requirements: a plain scope asks that it exists.
fn requirements(quota: &Value) -> Vec<Value> {
    let plain = quota["spec"]["scopes"].texts();
    let mut out: Vec<Value> = plain
        .into_iter()
        .map(|scope| orlop_json::json!({"scopeName": scope, "operator": "Exists"}))
        .collect();
    out.extend(quota["spec"]["scopeSelector"]["matchExpressions"].items().iter().cloned());
    out
}

/// Whether one of the values a scope has for an object (none: the object is outside of it) meets a requirement.
fn meets(requirement: &Value, names: &[&str]) -> bool {
    let values = requirement["values"].texts();
    let outside = names.is_empty();
    match requirement["operator"].text() {
        "In" => names.iter().any(|name| values.contains(name)),
        "NotIn" => outside || names.iter().any(|name| !values.contains(name)),
        "Exists" => !outside,
        "DoesNotExist" => outside,
        _ => false,
    }
}
