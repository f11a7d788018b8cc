//! Equality of objects.

use orlop_json::{Map, Value};

use crate::quantity::Quantity;

/// Whether two values mean the same: absent, null and empty lists and maps are one, numbers compare by value.
pub fn semantic_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => covers(a, b) && covers(b, a),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| semantic_equal(a, b))
        }
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (a, b) => a == b || (empty(a) && empty(b)),
    }
}

/// Whether two texts are the same quantity; texts that are none compare as texts.
pub fn quantity_equal(a: &str, b: &str) -> bool {
    match (Quantity::parse(a), Quantity::parse(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

fn covers(a: &Map, b: &Map) -> bool {
    a.iter().all(|(key, value)| match b.get(key) {
        Some(other) => semantic_equal(value, other),
        None => empty(value),
    })
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn emptiness_is_one() {
        assert!(semantic_equal(&json!({"a": null, "b": [], "c": 1}), &json!({"c": 1.0, "d": {}})));
        assert!(!semantic_equal(&json!({"a": ""}), &json!({})));
        assert!(!semantic_equal(&json!([1]), &json!([1, 2])));
        assert!(quantity_equal("1", "1000m") && !quantity_equal("1", "1k"));
    }
}
