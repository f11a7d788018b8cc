//! JSON Patch (RFC 6902), with the licence that upstream's library takes: negative indexes count from the end, an
//! operation without a value means `null`, and a test for `null` holds where there is nothing.

use orlop_json::Value;

use super::PatchError;
use crate::decode::MAX_DEPTH;

/// A patch may name at most so many operations.
pub const MAX_OPERATIONS: usize = 10_000;
/// The `copy` operations of a patch may add at most so many bytes of JSON, as upstream's `JSONPatchMaxCopyBytes` says.
pub const MAX_COPIED: usize = 3 << 20;
/// How deep a document may be between two operations. What is in the end deeper than a request may be is refused; more
/// room on the way means that its depth need not be measured after each step.
const DEEPEST_MEANWHILE: usize = 8 * MAX_DEPTH;

/// The document after the operations, or why they do not fit. Nothing is applied by halves.
///
/// # Errors
/// [`PatchError`]; the texts behind [`PatchError::Unprocessable`] are for logs, clients get a general one.
pub fn apply(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = match patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        other => {
            return Err(PatchError::Malformed(format!(
                "json: cannot unmarshal {} into Go value of type jsonpatch.Patch",
                go_kind(other)
            )));
        }
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut work = Work { doc: doc.clone(), deepest: MAX_DEPTH, copied: 0, disordered: false };
    for operation in operations {
        work.perform(operation).map_err(|why| PatchError::Unprocessable(format!("{operation}: {why}")))?;
    }
    work.finish(doc).map_err(|why| PatchError::Unprocessable(why.to_owned()))
}

/// What the decoder of operations says of a patch that is no list of them, as strict and warning requests read it.
pub fn check_operations(patch: &Value) -> Result<(), String> {
    let operations = match patch {
        Value::Null => return Ok(()),
        Value::Array(operations) => operations,
        other => {
            return Err(format!(
                "json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
                go_kind(other)
            ));
        }
    };
    for operation in operations {
        match operation {
            Value::Null => {}
            Value::Object(fields) => {
                let wrong = ["op", "path", "from"].into_iter().find_map(|name| {
                    fields
                        .get(name)
                        .filter(|value| !value.is_string() && !value.is_null())
                        .map(|value| (name, value))
                });
                if let Some((name, value)) = wrong {
                    return Err(format!(
                        "json: cannot unmarshal {} into Go struct field jsonPatchOp.{name} of type string",
                        go_kind(value)
                    ));
                }
            }
            other => {
                return Err(format!(
                    "json: cannot unmarshal {} into Go value of type handlers.jsonPatchOp",
                    go_kind(other)
                ));
            }
        }
    }
    Ok(())
}

/// What Go's decoder calls a value.
pub fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

type Outcome<T> = Result<T, &'static str>;

const MISSING: &str = "there is nothing at the path";

const TOO_DEEP: &str = "the document becomes too deep";

/// A document that is being patched. Each step may be hostile: a document that doubles, one that becomes a chain without
/// end, fields that are taken out of a large map one by one.
struct Work {
    doc: Value,
    /// It is not deeper than this.
    deepest: usize,
    /// Bytes of JSON that `copy` has added.
    copied: usize,
    /// Whether the fields of some map have lost their order.
    disordered: bool,
}

impl Work {
    fn perform(&mut self, operation: &Value) -> Outcome<()> {
        let text = |field: &str| operation.get(field).and_then(Value::as_str);
        let path = text("path").ok_or("no path")?;
        let value = || operation.get("value").cloned().unwrap_or(Value::Null);
        match text("op") {
            Some("replace") if path.is_empty() => {
                self.doc = value();
                Ok(())
            }
            Some("add") => self.add(path, value(), MAX_DEPTH),
            Some("remove") => self.remove(path).map(drop),
            Some("replace") => {
                let value = value();
                self.deepen(path, &value, MAX_DEPTH)?;
                let (parent, key) = find(&mut self.doc, path)?;
                *member(parent, &key)? = value;
                Ok(())
            }
            Some("move") => {
                let from = text("from").ok_or("no from")?;
                let moved = self.remove(from)?;
                self.add(path, moved, self.below(from))
            }
            Some("copy") => {
                let from = text("from").ok_or("no from")?;
                let (parent, key) = find(&mut self.doc, from)?;
                let source = member(parent, &key)?;
                self.copied += source.to_string().len();
                if self.copied > MAX_COPIED {
                    return Err("the copies become too large");
                }
                let copy = source.clone();
                self.add(path, copy, self.below(from))
            }
            Some("test") => {
                let (parent, key) = find(&mut self.doc, path)?;
                let actual =
                    if parent.is_object() { parent.get(&key) } else { Some(&*member(parent, &key)?) };
                let expected = operation.get("value").unwrap_or(&Value::Null);
                if actual.unwrap_or(&Value::Null) == expected { Ok(()) } else { Err("the test failed") }
            }
            _ => Err("unknown operation"),
        }
    }

    fn finish(mut self, before: &Value) -> Outcome<Value> {
        if self.deepest > MAX_DEPTH && depth(&self.doc) > MAX_DEPTH {
            return Err(TOO_DEEP);
        }
        if self.disordered {
            restore_order(&mut self.doc, before);
        }
        Ok(self.doc)
    }

    fn add(&mut self, path: &str, value: Value, at_most: usize) -> Outcome<()> {
        self.deepen(path, &value, at_most)?;
        match find(&mut self.doc, path)? {
            (Value::Object(map), key) => {
                map.insert(key.into(), value);
            }
            (Value::Array(list), key) if key == "-" => list.push(value),
            (Value::Array(list), key) => {
                let at = index(&key, list.len() + 1)?;
                if at > list.len() {
                    return Err("an index beyond the end");
                }
                list.insert(at, value);
            }
            _ => return Err(MISSING),
        }
        Ok(())
    }

    /// What is at a path is not deeper than this.
    fn below(&self, path: &str) -> usize {
        self.deepest.saturating_sub(steps(path))
    }

    /// A value that is `at_most` so deep is about to be put at a path.
    fn deepen(&mut self, path: &str, value: &Value, at_most: usize) -> Outcome<()> {
        let steps = steps(path);
        let mut below = at_most;
        if steps + below > DEEPEST_MEANWHILE {
            (self.deepest, below) = (depth(&self.doc), depth(value));
        }
        self.deepest = self.deepest.max(steps + below);
        if self.deepest > DEEPEST_MEANWHILE { Err(TOO_DEEP) } else { Ok(()) }
    }

    fn remove(&mut self, path: &str) -> Outcome<Value> {
        match find(&mut self.doc, path)? {
            (Value::Object(map), key) => {
                let (removed, disordered) = map.swap_remove(&key).ok_or(MISSING)?;
                self.disordered |= disordered;
                Ok(removed)
            }
            (Value::Array(list), key) => {
                let at = index(&key, list.len())?;
                if at < list.len() { Ok(list.remove(at)) } else { Err(MISSING) }
            }
            _ => Err(MISSING),
        }
    }
}

fn steps(path: &str) -> usize {
    path.matches('/').count()
}

/// How deep lists and objects nest.
fn depth(value: &Value) -> usize {
    let deepest = match value {
        Value::Object(map) => map.values().map(depth).max(),
        Value::Array(list) => list.iter().map(depth).max(),
        _ => return 0,
    };
    1 + deepest.unwrap_or(0)
}

/// Gives fields that lost their order the one they have in the document before.
fn restore_order(doc: &mut Value, before: &Value) {
    match (doc, before) {
        (Value::Object(map), Value::Object(before)) => {
            map.order_as(before);
            for (name, value) in map {
                if let Some(before) = before.get(name) {
                    restore_order(value, before);
                }
            }
        }
        (Value::Array(list), Value::Array(before)) => {
            list.iter_mut().zip(before).for_each(|(item, before)| restore_order(item, before));
        }
        _ => {}
    }
}

/// The object or list around a path's last step, and that step.
fn find<'d>(doc: &'d mut Value, path: &str) -> Outcome<(&'d mut Value, String)> {
    let (_, steps) = path.split_once('/').ok_or(MISSING)?;
    let mut steps: Vec<String> =
        steps.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    let last = steps.pop().ok_or(MISSING)?;
    let mut place = doc;
    for step in &steps {
        place = member(place, step)?;
    }
    if place.is_object() || place.is_array() { Ok((place, last)) } else { Err(MISSING) }
}

fn member<'d>(parent: &'d mut Value, key: &str) -> Outcome<&'d mut Value> {
    match parent {
        Value::Object(map) => map.get_mut(key).ok_or(MISSING),
        Value::Array(list) => {
            let at = index(key, list.len())?;
            list.get_mut(at).ok_or(MISSING)
        }
        _ => Err(MISSING),
    }
}

/// A list index; negative ones count from the end of `len` items.
fn index(key: &str, len: usize) -> Outcome<usize> {
    let at: i64 = key.parse().map_err(|_| "no index")?;
    let at = if at < 0 { at + i64::try_from(len).unwrap_or(i64::MAX) } else { at };
    usize::try_from(at).map_err(|_| "an index before the beginning")
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

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
            (json!([{"op": "add", "path": "c", "value": 1}]), None),
            (json!([{"op": "add", "path": "/a/b/3", "value": 1}]), None),
            (
                json!([{"op": "add", "path": "/a/b/-1", "value": 3}]),
                Some(json!({"a": {"b": [1, 2, 3]}, "c": "x"})),
            ),
            (json!([{"op": "remove", "path": "/a/b/-1"}]), Some(json!({"a": {"b": [1]}, "c": "x"}))),
            (json!([{"op": "replace", "path": "/a/b/-3", "value": 1}]), None),
            (json!([{"op": "test", "path": "/nope", "value": null}]), Some(doc.clone())),
            (json!([{"op": "test", "path": "/a/b/7", "value": null}]), None),
            (json!([{"op": "add", "path": "/d"}]), Some(json!({"a": {"b": [1, 2]}, "c": "x", "d": null}))),
            (json!([{"op": "replace", "path": "", "value": {}}]), Some(json!({}))),
            (json!([{"op": "remove", "path": ""}]), None),
            (json!([{"op": "copy", "path": "/d"}]), None),
            (json!([{"op": "foo", "path": "/c"}]), None),
            (json!(null), Some(doc.clone())),
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

    /// A patch so many times in a row.
    fn repeated(patch: &Value, times: usize) -> Value {
        let operations = patch.as_array().unwrap();
        Value::Array(operations.iter().cycle().take(operations.len() * times).cloned().collect())
    }

    /// A chain of so many maps.
    fn chain(depth: usize) -> Value {
        (0..depth).fold(json!({}), |inner, _| json!({"a": inner}))
    }

    #[test]
    fn copies_are_bounded() {
        let doc = json!({"a": {"text": "x".repeat(1000)}});
        let double = |from: &str, to: &str| json!({"op": "copy", "from": from, "path": to});
        let doubling: Vec<Value> = (0..MAX_OPERATIONS).map(|n| double("/a", &format!("/a/{n}"))).collect();
        assert!(matches!(apply(&doc, &Value::Array(doubling)), Err(PatchError::Unprocessable(_))));
        let many: Vec<Value> = (0..1000).map(|n| double("/a", &format!("/{n}"))).collect();
        assert!(apply(&doc, &Value::Array(many)).is_ok());
    }

    #[test]
    fn depth_is_bounded() {
        let grow = json!([{"op": "add", "path": "/b", "value": {}}, {"op": "move", "from": "/a", "path": "/b/a"},
            {"op": "move", "from": "/b", "path": "/a"}]);
        let growing = |times: usize| repeated(&grow, times);
        let deepest = |patched: Result<Value, PatchError>| patched.map(|doc| depth(&doc)).ok();
        let doc = json!({"a": {}});
        assert_eq!(deepest(apply(&doc, &growing(125))), Some(MAX_DEPTH));
        assert_eq!(deepest(apply(&doc, &growing(126))), None);
        assert_eq!(deepest(apply(&doc, &growing(3000))), None);

        // A chain that is put to its own end again and again doubles its depth each time.
        let double = |depth: usize| json!({"op": "copy", "from": "/a", "path": "/a".repeat(depth)});
        let doubling = json!([double(61), double(121), double(241), double(481), double(961), double(1921)]);
        assert_eq!(deepest(apply(&chain(60), &doubling)), None);
        assert_eq!(deepest(apply(&chain(60), &json!([double(61)]))), Some(121));

        // What is deep for a while only.
        let shallow = json!([double(61), double(121), {"op": "replace", "path": "/a", "value": 1}]);
        assert_eq!(apply(&chain(60), &shallow), Ok(json!({"a": 1})));
        let add = |path: String, value: Value| json!([{"op": "add", "path": path, "value": value}]);
        assert_eq!(deepest(apply(&chain(60), &add("/a".repeat(61), chain(65)))), Some(MAX_DEPTH));
        assert_eq!(deepest(apply(&chain(60), &add("/a".repeat(61), chain(66)))), None);

        // Moving to and fro makes nothing deeper, however often.
        let to_and_fro =
            json!([{"op": "move", "from": "/a", "path": "/b"}, {"op": "move", "from": "/b", "path": "/a"}]);
        let often = repeated(&to_and_fro, 5000);
        assert_eq!(apply(&chain(100), &often), Ok(chain(100)));
        let down = json!([{"op": "add", "path": "/b", "value": {"a": {"a": {}}}},
            {"op": "move", "from": "/a", "path": "/b/a/a/a"}, {"op": "move", "from": "/b/a/a/a", "path": "/a"}]);
        let often = repeated(&down, 3000);
        assert_eq!(deepest(apply(&chain(100), &often)), Some(101));
    }

    #[test]
    fn what_stays_keeps_its_order() {
        let fields = |numbers: &mut dyn Iterator<Item = usize>| -> Value {
            Value::Object(numbers.map(|n| (n.to_string().into(), json!(n))).collect())
        };
        for size in [3, 100] {
            let doc = json!({"list": [fields(&mut (0..size))]});
            let remove = |n: usize| json!({"op": "remove", "path": format!("/list/0/{n}")});
            let patched = apply(&doc, &json!([remove(0), {"op": "add", "path": "/list/0/new", "value": 7}]));
            let mut kept = fields(&mut (1..size));
            kept.as_object_mut().unwrap().insert("new".into(), json!(7));
            assert_eq!(patched.unwrap().to_string(), json!({"list": [kept]}).to_string());
        }
    }

    #[test]
    fn lists_of_operations() {
        let check = |patch: Value, expected: &str| {
            assert_eq!(check_operations(&patch).err().unwrap_or_default(), expected, "{patch}");
        };
        check(json!([{"op": "add"}, {}, null]), "");
        check(json!({}), "json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp");
        check(json!([1]), "json: cannot unmarshal number into Go value of type handlers.jsonPatchOp");
        check(
            json!([{"op": 1}]),
            "json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string",
        );
    }
}
