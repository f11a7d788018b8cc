//! JSON Patch (RFC 6902).

use json_patch::Patch;
use serde_json::Value;

use super::PatchError;

/// A patch may name at most so many operations.
pub const MAX_OPERATIONS: usize = 10_000;

/// The document after the operations, or why they do not fit. Nothing is applied by halves.
///
/// # Errors
/// [`PatchError`]; the texts behind [`PatchError::Unprocessable`] are for logs, clients get a general one.
pub fn apply(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = patch else {
        let what = match patch {
            Value::Object(_) => "object",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            _ => "null",
        };
        return Err(PatchError::Malformed(format!(
            "json: cannot unmarshal {what} into Go value of type jsonpatch.Patch"
        )));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let patch: Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Unprocessable(error.to_string()))?;
    let mut doc = doc.clone();
    json_patch::patch(&mut doc, &patch).map_err(|error| PatchError::Unprocessable(error.to_string()))?;
    Ok(doc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations() {
        let doc = json!({"a": {"b": [1, 2]}, "c": "x"});
        let cases = [
            (
                json!([{"op": "add", "path": "/a/b/-", "value": 3}]),
                Some(json!({"a": {"b": [1, 2, 3]}, "c": "x"})),
            ),
            (
                json!([{"op": "add", "path": "/a/b/0", "value": 0}]),
                Some(json!({"a": {"b": [0, 1, 2]}, "c": "x"})),
            ),
            (json!([{"op": "remove", "path": "/c"}]), Some(json!({"a": {"b": [1, 2]}}))),
            (
                json!([{"op": "move", "from": "/c", "path": "/d"}]),
                Some(json!({"a": {"b": [1, 2]}, "d": "x"})),
            ),
            (
                json!([{"op": "copy", "from": "/c", "path": "/a/x"}]),
                Some(json!({"a": {"b": [1, 2], "x": "x"}, "c": "x"})),
            ),
            (
                json!([{"op": "test", "path": "/c", "value": "x"}, {"op": "replace", "path": "/c", "value": null}]),
                Some(json!({"a": {"b": [1, 2]}, "c": null})),
            ),
            (json!([{"op": "test", "path": "/c", "value": "y"}]), None),
            (json!([{"op": "add", "path": "/x/y", "value": 1}]), None),
            (json!([{"op": "remove", "path": "/nope"}]), None),
            (json!([{"op": "add", "value": 1}]), None),
        ];
        for (patch, want) in cases {
            match (apply(&doc, &patch), want) {
                (Ok(got), Some(want)) => assert_eq!(got, want, "{patch}"),
                (Err(PatchError::Unprocessable(_)), None) => {}
                (got, want) => panic!("{patch}: {got:?}, not {want:?}"),
            }
        }
        assert!(matches!(apply(&doc, &json!({})), Err(PatchError::Malformed(_))));
    }
}
