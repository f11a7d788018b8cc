//! Filling in defaults, and nulls that are no values.
//!
//! Answers to `apiserver/schema/defaulting`.

use orlop_json::Value;

use crate::schema::Schema;

fn is_misplaced_null(value: &Value, schema: Option<&Schema>) -> bool {
    value.is_null() && schema.is_some_and(|schema| !schema.nullable)
}

/// Sets every absent property that has a default, and every null that may not be one.
pub fn fill(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => {
            for (name, property) in &schema.properties {
                if let Some(default) = &property.default {
                    let missing = match map.get(name) {
                        None => true,
                        Some(value) => is_misplaced_null(value, Some(property)),
                    };
                    if missing {
                        map.insert(name.clone(), default.clone());
                    }
                }
            }
            for (name, value) in map.iter_mut() {
                if let Some(property) = schema.properties.get(name) {
                    fill(value, property);
                } else if let Some(additional) = schema.additional_schema() {
                    fill_entry(value, additional);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.items.as_deref() {
                items.iter_mut().for_each(|item| fill_entry(item, schema));
            }
        }
        _ => {}
    }
}

fn fill_entry(value: &mut Value, schema: &Schema) {
    if is_misplaced_null(value, Some(schema)) {
        *value = schema.default.clone().unwrap_or(Value::Null);
    }
    fill(value, schema);
}

/// Drops nulls that are no values and that no default will replace.
pub fn drop_nulls(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => map.retain(|name, value| {
            let Some(property) = schema.property(name) else { return true };
            if is_misplaced_null(value, Some(property)) {
                return property.default.is_some();
            }
            drop_nulls(value, property);
            true
        }),
        Value::Array(items) => {
            if let Some(schema) = schema.items.as_deref() {
                items.iter_mut().for_each(|item| drop_nulls(item, schema));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;
    use pretty_assertions::assert_eq;

    #[track_caller]
    fn check(schema: &Value, object: Value, expected: Value) {
        let schema = Schema::of(schema);
        let mut value = object;
        drop_nulls(&mut value, &schema);
        fill(&mut value, &schema);
        assert_eq!(value, expected);
    }

    #[test]
    fn defaults() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "default": {"a": "top"}, "properties": {
            "a": {"type": "string", "default": "d"},
            "n": {"type": "object", "default": {}, "properties": {"x": {"type": "integer", "default": 5}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"q": {"default": true}}}},
            "null": {"type": "string", "nullable": true, "default": "x"},
            "bare": {"type": "string"},
        }}}});
        check(&schema, json!({}), json!({"spec": {"a": "top", "n": {"x": 5}, "null": "x"}}));
        check(
            &schema,
            json!({"spec": {"a": null, "l": [{}, {"p": "UDP"}], "m": {"k": {}}, "null": null, "bare": null}}),
            json!({"spec": {"a": "d", "l": [{"p": "TCP"}, {"p": "UDP"}], "m": {"k": {"q": true}}, "null": null, "n": {"x": 5}}}),
        );
    }
}
