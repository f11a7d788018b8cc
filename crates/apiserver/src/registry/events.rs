//! Events are stored once, as core `v1` Events, and served in two groups. The fields of `events.k8s.io/v1` have other
//! names; this is the translation in both directions.

use serde_json::{Map, Value, json};

use crate::resources::{Conversion, Resource};

/// `v1` name and `events.k8s.io/v1` name of each field that is called differently.
const RENAMED: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];
/// The reporting controller's name differs too, but only on this side.
const REPORTER: (&str, &str) = ("reportingComponent", "reportingController");

fn rename(object: Value, to_v1: bool) -> Value {
    let Value::Object(map) = object else { return object };
    let mut out = Map::with_capacity(map.len());
    for (key, value) in map {
        let new = RENAMED.iter().chain([&REPORTER]).find_map(|(v1, events)| {
            let (from, to) = if to_v1 { (events, v1) } else { (v1, events) };
            (key == *from).then_some(*to)
        });
        out.insert(new.map_or(key, String::from), value);
    }
    out.insert("apiVersion".into(), json!(if to_v1 { "v1" } else { "events.k8s.io/v1" }));
    Value::Object(out)
}

/// The stored form of a served object.
pub fn to_stored(resource: &Resource, object: Value) -> Value {
    if resource.conversion == Conversion::None {
        return object;
    }
    let mut event = rename(object, true);
    // Fields that core events always print.
    for (field, empty) in [
        ("involvedObject", json!({})),
        ("source", json!({})),
        ("firstTimestamp", Value::Null),
        ("lastTimestamp", Value::Null),
        ("eventTime", Value::Null),
        ("reportingComponent", json!("")),
        ("reportingInstance", json!("")),
    ] {
        if event.get(field).is_none() {
            event[field] = empty;
        }
    }
    event
}

/// The served form of a stored object.
pub fn to_served(resource: &Resource, object: Value) -> Value {
    match resource.conversion {
        Conversion::None => object,
        Conversion::Events => rename(object, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_both_groups() {
        let v1 = json!({"kind": "Event", "apiVersion": "v1", "involvedObject": {"name": "p"}, "message": "m", "reportingComponent": "c", "count": 2});
        let served = rename(v1.clone(), false);
        assert_eq!(served["regarding"]["name"], "p");
        assert_eq!(served["reportingController"], "c");
        assert_eq!(served["deprecatedCount"], 2);
        assert_eq!(rename(served, true), v1);
    }
}
