//! JSON merge patch (RFC 7386).

use orlop_json::{Map, Value};

/// The document after the patch: null removes, objects merge, everything else replaces.
pub fn apply(doc: &Value, patch: &Value) -> Value {
    let mut doc = doc.clone();
    merge(&mut doc, patch);
    doc
}

fn merge(doc: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *doc = patch.clone();
        return;
    };
    if !doc.is_object() {
        *doc = Value::Object(Map::new());
    }
    let Value::Object(doc) = doc else { return };
    // At once: each removal alone moves all fields behind it.
    if patch.values().any(Value::is_null) {
        doc.retain(|key, _| patch.get(key).is_none_or(|value| !value.is_null()));
    }
    for (key, value) in patch.iter().filter(|(_, value)| !value.is_null()) {
        merge(doc.entry(key.clone()).or_insert(Value::Null), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn examples_of_the_rfc() {
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!([1]), json!({"a": 1}), json!({"a": 1})),
        ];
        for (doc, patch, want) in cases {
            assert_eq!(apply(&doc, &patch), want, "{patch}");
        }
    }
}
