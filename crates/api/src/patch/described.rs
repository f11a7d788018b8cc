//! JSON Patch with upstream's words for what does not fit, for those who are shown them: authors of admission webhooks
//! and policies. The operations are RFC 6902's; where upstream's library is more lenient, so is this.

use orlop_json::Value;

/// Why a patch could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescribedError {
    /// A `test` operation found another value.
    #[error("testing value {0} failed: test failed")]
    TestFailed(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

fn failed(text: impl Into<String>) -> DescribedError {
    DescribedError::Failed(text.into())
}

/// The steps of a pointer, unescaped.
fn steps(path: &str) -> Vec<String> {
    path.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
}

/// The container that holds the last step of a path, and that step.
fn container<'a>(doc: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    if !path.starts_with('/') {
        return None;
    }
    let mut steps = steps(path);
    let last = steps.pop()?;
    let mut at = doc;
    for step in steps {
        at = match at {
            Value::Object(map) => map.get_mut(&step)?,
            Value::Array(list) => {
                let index = step.parse::<usize>().ok()?;
                list.get_mut(index)?
            }
            _ => return None,
        };
    }
    matches!(at, Value::Object(_) | Value::Array(_)).then_some((at, last))
}

/// The index a step means in a list of `len`; one behind the end only where something is added.
fn index(step: &str, len: usize, adding: bool) -> Result<usize, String> {
    if step == "-" && adding {
        return Ok(len);
    }
    let wrong = || format!("Unable to access invalid index: {step}: invalid index");
    let number: i64 = step
        .parse()
        .map_err(|_| format!("strconv.Atoi: parsing {}: invalid syntax", crate::field::go_quote(step)))?;
    let limit = if adding { len } else { len.saturating_sub(1) };
    let found = if number < 0 {
        // Upstream's library counts from the end.
        let back = usize::try_from(-number).map_err(|_| wrong())?;
        let total = if adding { len + 1 } else { len };
        total.checked_sub(back).ok_or_else(wrong)?
    } else {
        usize::try_from(number).map_err(|_| wrong())?
    };
    if found > limit || (!adding && len == 0) { Err(wrong()) } else { Ok(found) }
}

fn get(at: &Value, step: &str) -> Result<Value, String> {
    match at {
        Value::Object(map) => map
            .get(step)
            .cloned()
            .ok_or_else(|| format!("unable to get nonexistent key: {step}: missing value")),
        Value::Array(list) => index(step, list.len(), false).map(|at| list[at].clone()),
        _ => Err("missing value".into()),
    }
}

fn add(at: &mut Value, step: &str, value: Value) -> Result<(), String> {
    match at {
        Value::Object(map) => {
            map.insert(step.into(), value);
            Ok(())
        }
        Value::Array(list) => {
            let at = index(step, list.len(), true)?;
            list.insert(at, value);
            Ok(())
        }
        _ => Err("missing value".into()),
    }
}

fn remove(at: &mut Value, step: &str) -> Result<(), String> {
    match at {
        Value::Object(map) => match map.remove(step) {
            Some(_) => Ok(()),
            None => Err(format!("Unable to remove nonexistent key: {step}: missing value")),
        },
        Value::Array(list) => {
            let at = index(step, list.len(), false)?;
            list.remove(at);
            Ok(())
        }
        _ => Err("missing value".into()),
    }
}

fn set(at: &mut Value, step: &str, value: Value) -> Result<(), String> {
    match at {
        Value::Object(map) => {
            map.insert(step.into(), value);
            Ok(())
        }
        Value::Array(list) => {
            let at = index(step, list.len(), false)?;
            list[at] = value;
            Ok(())
        }
        _ => Err("missing value".into()),
    }
}

fn one(doc: &mut Value, operation: &Value) -> Result<(), DescribedError> {
    let text = |key: &str| operation.get(key).and_then(Value::as_str);
    let kind = text("op").unwrap_or("unknown");
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    let path = || {
        text("path").ok_or_else(|| failed(format!("{kind} operation failed to decode path: missing value")))
    };
    let from = || {
        text("from").ok_or_else(|| failed(format!("{kind} operation failed to decode from: missing value")))
    };
    match kind {
        "add" => {
            let path = path()?;
            let (at, step) = container(doc, path).ok_or_else(|| {
                failed(format!(
                    "add operation does not apply: doc is missing path: \"{path}\": missing value"
                ))
            })?;
            add(at, &step, value()).map_err(|why| failed(format!("error in add for path: '{path}': {why}")))
        }
        "remove" => {
            let path = path()?;
            let (at, step) = container(doc, path).ok_or_else(|| {
                failed(format!(
                    "remove operation does not apply: doc is missing path: \"{path}\": missing value"
                ))
            })?;
            remove(at, &step).map_err(|why| failed(format!("error in remove for path: '{path}': {why}")))
        }
        "replace" => {
            let path = path()?;
            let (at, step) = container(doc, path).ok_or_else(|| {
                failed(format!(
                    "replace operation does not apply: doc is missing path: {path}: missing value"
                ))
            })?;
            if get(at, &step).is_err() {
                return Err(failed(format!(
                    "replace operation does not apply: doc is missing key: {path}: missing value"
                )));
            }
            set(at, &step, value())
                .map_err(|why| failed(format!("error in remove for path: '{path}': {why}")))
        }
        "move" | "copy" => {
            let from = from()?;
            let (at, step) = container(doc, from).ok_or_else(|| {
                failed(format!(
                    "{kind} operation does not apply: doc is missing from path: {from}: missing value"
                ))
            })?;
            let moved = if kind == "move" {
                let wrong = |why: String| failed(format!("error in move for path: '{step}': {why}"));
                let value = get(at, &step).map_err(wrong)?;
                remove(at, &step).map_err(wrong)?;
                value
            } else {
                get(at, &step).map_err(|why| failed(format!("error in copy for from: '{from}': {why}")))?
            };
            let path = path()?;
            let (at, step) = container(doc, path).ok_or_else(|| {
                failed(format!(
                    "{kind} operation does not apply: doc is missing destination path: {path}: missing value"
                ))
            })?;
            let wrong = if kind == "move" {
                format!("error in move for path: '{path}'")
            } else {
                "error while adding value during copy".to_string()
            };
            add(at, &step, moved).map_err(|why| failed(format!("{wrong}: {why}")))
        }
        "test" => {
            let path = path()?;
            let (at, step) = container(doc, path).ok_or_else(|| {
                failed(format!(
                    "test operation for path does not apply: doc is missing path: {path}: missing value"
                ))
            })?;
            let found = match at {
                // A key that is not there tests as null.
                Value::Object(map) => map.get(&step).cloned().unwrap_or(Value::Null),
                other => get(other, &step)
                    .map_err(|why| failed(format!("error in test for path: '{path}': {why}")))?,
            };
            if crate::equality::semantic_equal(&found, &value()) {
                Ok(())
            } else {
                Err(DescribedError::TestFailed(path.to_string()))
            }
        }
        other => Err(failed(format!("Unexpected kind: {other}"))),
    }
}

/// The document after the operations.
///
/// # Errors
/// [`DescribedError`], with the texts of upstream's library.
pub fn apply(doc: &Value, patch: &Value) -> Result<Value, DescribedError> {
    let Some(operations) = patch.as_array() else { return Err(failed("the patch is not a list")) };
    if operations.len() > super::json::MAX_OPERATIONS {
        return Err(failed(format!(
            "The allowed maximum operations in a JSON patch is {}, got {}",
            super::json::MAX_OPERATIONS,
            operations.len()
        )));
    }
    let mut doc = doc.clone();
    for operation in operations {
        one(&mut doc, operation)?;
    }
    Ok(doc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn operations_and_complaints() {
        let doc = json!({"a": {"b": [1, 2]}, "c": "x", "d~e": {"f/g": 1}});
        let check = |patch: Value, expected: Result<Value, &str>| {
            let got = apply(&doc, &json!([patch])).map_err(|error| error.to_string());
            assert_eq!(got, expected.map_err(String::from), "{patch}");
        };
        check(
            json!({"op": "add", "path": "/a/b/-", "value": 3}),
            Ok(json!({"a": {"b": [1, 2, 3]}, "c": "x", "d~e": {"f/g": 1}})),
        );
        check(
            json!({"op": "add", "path": "/a/b/0", "value": 0}),
            Ok(json!({"a": {"b": [0, 1, 2]}, "c": "x", "d~e": {"f/g": 1}})),
        );
        check(
            json!({"op": "remove", "path": "/d~0e/f~1g"}),
            Ok(json!({"a": {"b": [1, 2]}, "c": "x", "d~e": {}})),
        );
        check(
            json!({"op": "move", "from": "/c", "path": "/a/c"}),
            Ok(json!({"a": {"b": [1, 2], "c": "x"}, "d~e": {"f/g": 1}})),
        );
        check(
            json!({"op": "copy", "from": "/c", "path": "/a/b/1"}),
            Ok(json!({"a": {"b": [1, "x", 2]}, "c": "x", "d~e": {"f/g": 1}})),
        );
        check(json!({"op": "test", "path": "/c", "value": "x"}), Ok(doc.clone()));
        check(json!({"op": "test", "path": "/nope", "value": null}), Ok(doc.clone()));
        check(
            json!({"op": "replace", "path": "/nope/x", "value": "yes"}),
            Err("replace operation does not apply: doc is missing path: /nope/x: missing value"),
        );
        check(
            json!({"op": "replace", "path": "/nope", "value": "yes"}),
            Err("replace operation does not apply: doc is missing key: /nope: missing value"),
        );
        check(
            json!({"op": "add", "path": "/x/y", "value": 1}),
            Err("add operation does not apply: doc is missing path: \"/x/y\": missing value"),
        );
        check(
            json!({"op": "add", "path": "/a/b/7", "value": 1}),
            Err("error in add for path: '/a/b/7': Unable to access invalid index: 7: invalid index"),
        );
        check(
            json!({"op": "remove", "path": "/x"}),
            Err("error in remove for path: '/x': Unable to remove nonexistent key: x: missing value"),
        );
        check(json!({"op": "test", "path": "/c", "value": 1}), Err("testing value /c failed: test failed"));
        check(json!({"op": "frob", "path": "/c"}), Err("Unexpected kind: frob"));
    }
}
