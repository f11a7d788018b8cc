//! Strategic merge patch: lists merge by key where the type says so, and directives say the rest.
//!
//! Answers to `k8s.io/apimachinery/pkg/util/strategicpatch`: `$patch` (replace, delete, merge), `$retainKeys`,
//! `$setElementOrder/LIST` and `$deleteFromPrimitiveList/LIST`.

use std::collections::{HashMap, HashSet};

use orlop_json::{Key, Map, Value};

use super::PatchError;
use crate::schema::{Field, Struct, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList/";

type Object = Map;

/// The document after the patch. The result is not normalised.
///
/// # Errors
/// [`PatchError::Directive`] with upstream's texts.
pub fn apply(doc: &Value, patch: &Value, ty: &'static Struct) -> Result<Value, PatchError> {
    let (Value::Object(doc), Value::Object(patch)) = (doc, patch) else {
        return Err(PatchError::Malformed("invalid JSON document".into()));
    };
    Ok(Value::Object(merge_map(doc.clone(), patch.clone(), Schema::Struct(ty))?))
}

/// What is known of the value being merged.
#[derive(Clone, Copy)]
enum Schema {
    Struct(&'static Struct),
    /// A map; its values' type.
    Map(&'static Type),
    /// Nothing is known: no list merges.
    Unknown,
}

/// A field of the value being merged.
struct Known {
    schema: Schema,
    merges: bool,
    replaces: bool,
    merge_key: &'static str,
}

impl Schema {
    fn of(ty: &'static Type) -> Schema {
        match ty {
            Type::Struct(at) => Schema::Struct(at.get()),
            Type::Map(item) => Schema::Map(item),
            Type::List(item) => Schema::of(item),
            _ => Schema::Unknown,
        }
    }

    fn field(self, name: &str) -> Known {
        let plain = |schema| Known { schema, merges: false, replaces: false, merge_key: "" };
        match self {
            Schema::Struct(ty) => match ty.field(name) {
                Some(field) => Known {
                    schema: Schema::of(&field.ty),
                    merges: strategies(field).any(|strategy| strategy == "merge"),
                    replaces: strategies(field).any(|strategy| strategy == "replace"),
                    merge_key: field.patch_merge_key,
                },
                None => plain(Schema::Unknown),
            },
            Schema::Map(item) => plain(Schema::of(item)),
            Schema::Unknown => plain(Schema::Unknown),
        }
    }
}

fn strategies(field: &Field) -> impl Iterator<Item = &'static str> {
    field.patch_strategy.split(',')
}

fn directive(text: impl Into<String>) -> PatchError {
    PatchError::Directive(text.into())
}

fn merge_map(mut original: Object, mut patch: Object, schema: Schema) -> Result<Object, PatchError> {
    if let Some(what) = patch.remove(DIRECTIVE) {
        return match what.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(directive(format!("unknown patch type found: {}", go_print(&what)))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, schema)?;
    // Taken out at once in the end: each removal alone moves all fields behind it.
    let mut gone = HashSet::new();
    for (key, value) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_FROM_PRIMITIVE_LIST) {
            Some(name) => (name.into(), true),
            None => (key, false),
        };
        if value.is_null() {
            gone.insert(key);
            continue;
        }
        let known = schema.field(&key);
        let present = if gone.contains(&key) { None } else { original.get_mut(&key).map(Value::take) };
        let merged = match (present, value) {
            (None, _) if deletes => continue,
            (None, value) => without_directives(value),
            (Some(Value::Object(old)), Value::Object(new)) => {
                if known.replaces {
                    Some(Value::Object(new))
                } else {
                    Some(Value::Object(merge_map(old, new, known.schema)?))
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                if known.merges || deletes {
                    Some(Value::Array(merge_list(old, new, known.schema, known.merge_key, deletes)?))
                } else {
                    Some(Value::Array(new))
                }
            }
            (Some(old), _) if deletes => Some(old),
            (Some(_), value) => without_directives(value),
        };
        match merged {
            Some(value) => {
                gone.remove(&key);
                original.insert(key, value);
            }
            None => {
                gone.insert(key);
            }
        }
    }
    if !gone.is_empty() {
        original.retain(|key, _| !gone.contains(key));
    }
    Ok(original)
}

/// A value that the original does not have: nulls and directives have nothing to act on.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                return None;
            }
            let kept = map
                .into_iter()
                .filter(|(key, _)| !key.starts_with('$') || !is_directive(key))
                .filter_map(|(key, value)| without_directives(value).map(|value| (key, value)))
                .collect();
            Some(Value::Object(kept))
        }
        Value::Array(items) => {
            let kept = items
                .into_iter()
                .filter(|item| !is_bare_directive(item))
                .filter_map(|item| if item.is_null() { Some(item) } else { without_directives(item) })
                .collect();
            Some(Value::Array(kept))
        }
        other => Some(other),
    }
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE
        || key == RETAIN_KEYS
        || key.starts_with(SET_ELEMENT_ORDER)
        || key.starts_with(DELETE_FROM_PRIMITIVE_LIST)
}

/// `{"$patch": "replace"}` alone in a list.
fn is_bare_directive(item: &Value) -> bool {
    item.as_object().is_some_and(|map| map.len() == 1 && map.contains_key(DIRECTIVE))
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(retained) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || directive("invalid patch format of retainKeys");
    let Value::Array(retained) = retained else { return Err(bad()) };
    let retained: HashSet<&str> = retained.iter().filter_map(Value::as_str).collect();
    let listed = |key: &str| retained.contains(key);
    for (key, value) in patch.iter() {
        let skipped = value.is_null()
            || key.starts_with(DELETE_FROM_PRIMITIVE_LIST)
            || key.starts_with(SET_ELEMENT_ORDER);
        if !skipped && !listed(key) {
            return Err(bad());
        }
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

/// Merges the lists that come with an order and puts them into it; they leave the patch.
fn set_element_orders(original: &mut Object, patch: &mut Object, schema: Schema) -> Result<(), PatchError> {
    let mut directives = Vec::new();
    patch.retain(|key, order| match key.strip_prefix(SET_ELEMENT_ORDER) {
        Some(name) => {
            directives.push((Key::from(name), order.take()));
            false
        }
        None => true,
    });
    if directives.is_empty() {
        return Ok(());
    }
    let mut patched: HashMap<Key, Value> = HashMap::new();
    let names: HashSet<&Key> = directives.iter().map(|(name, _)| name).collect();
    patch.retain(|key, value| {
        let ordered = names.contains(key);
        if ordered {
            patched.insert(key.clone(), value.take());
        }
        !ordered
    });
    for (name, order) in &directives {
        let Value::Array(order) = order else {
            return Err(directive("expected a list for the $setElementOrder directive"));
        };
        let known = schema.field(name);
        let merge_key = known.merge_key;
        let as_list = |value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(directive(format!("expected a list, but received {}", go_print(&other)))),
        };
        let patched = as_list(patched.remove(name))?;
        let present = as_list(original.get(name).cloned())?;
        check_order(patched.as_deref().unwrap_or_default(), order, merge_key)?;
        let server_order = present.clone().unwrap_or_default();
        let merged = match (present, patched) {
            (None, None) => continue,
            (Some(present), None) => present,
            (None, Some(patched)) => match without_directives(Value::Array(patched)) {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            },
            (Some(present), Some(patched)) if known.merges => {
                merge_list(present, patched, known.schema, merge_key, false)?
            }
            (Some(_), Some(patched)) => patched,
        };
        let (ordered, server_only) = partition(merged, order, merge_key)?;
        original.insert(
            name.clone(),
            Value::Array(in_order(ordered, server_only, order, &server_order, merge_key)),
        );
    }
    Ok(())
}

/// The items of the patch must come in the order of the directive.
fn check_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<(), PatchError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for item in patch.iter().filter(|item| merge_key.is_empty() || item.get(DIRECTIVE).is_none()) {
        if !wanted.any(|candidate| same(item, candidate, merge_key)) {
            return Err(directive(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                go_print(&Value::Array(patch.to_vec())),
                go_print(&Value::Array(order.to_vec()))
            )));
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, merge_key: &str) -> bool {
    if merge_key.is_empty() {
        a == b
    } else {
        a.get(merge_key).is_some() && a.get(merge_key) == b.get(merge_key)
    }
}

fn position(list: &[Value], item: &Value, merge_key: &str) -> Option<usize> {
    list.iter().position(|candidate| same(candidate, item, merge_key))
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    schema: Schema,
    merge_key: &str,
    deletes: bool,
) -> Result<Vec<Value>, PatchError> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let maps = original.first().or(patch.first()).is_some_and(Value::is_object);
    if !maps {
        if deletes {
            return Ok(original.into_iter().filter(|item| !patch.contains(item)).collect());
        }
        let mut merged: Vec<Value> = Vec::new();
        for item in original.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        let (patched, server_only) = partition(merged, &patch, "")?;
        return Ok(in_order(patched, server_only, &patch, &original, ""));
    }
    if merge_key.is_empty() {
        return Err(directive("cannot merge lists without merge key"));
    }
    let (mut merged, patch) = special_elements(original, patch, merge_key)?;
    let server_order = merged.clone();
    for item in &patch {
        let Value::Object(item_map) = item else {
            return Err(directive("expected a map in a list with a merge key"));
        };
        if !item_map.contains_key(merge_key) {
            return Err(no_merge_key(item, merge_key));
        }
        if let Some(keyless) = merged.iter().find(|known| known.get(merge_key).is_none()) {
            return Err(no_merge_key(keyless, merge_key));
        }
        match position(&merged, item, merge_key) {
            Some(at) => {
                if let Value::Object(old) = merged[at].take() {
                    merged[at] = Value::Object(merge_map(old, item_map.clone(), schema)?);
                }
            }
            None => merged.extend(without_directives(item.clone())),
        }
    }
    let (patched, server_only) = partition(merged, &patch, merge_key)?;
    Ok(in_order(patched, server_only, &patch, &server_order, merge_key))
}

/// Carries out `$patch` in the items of a list; what is left of the original and of the patch.
fn special_elements(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut plain = Vec::new();
    let mut replaces = false;
    for item in patch {
        match item.get(DIRECTIVE).map(|what| what.as_str().unwrap_or("")) {
            None => plain.push(item),
            Some("delete") => {
                if item.get(merge_key).is_none() {
                    return Err(directive(format!(
                        "delete patch type with no merge key {merge_key} defined"
                    )));
                }
                original.retain(|known| !same(known, &item, merge_key));
            }
            Some("replace") => replaces = true,
            Some("merge") => {
                return Err(directive("merging lists cannot yet be specified in the patch"));
            }
            Some(other) => return Err(directive(format!("unknown patch type found: {other}"))),
        }
    }
    if replaces {
        return Ok((plain, Vec::new()));
    }
    Ok((original, plain))
}

/// The items that `list` names, and the others.
fn partition(
    items: Vec<Value>,
    list: &[Value],
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    if !merge_key.is_empty()
        && let Some(keyless) = items.iter().find(|item| item.get(merge_key).is_none())
    {
        return Err(no_merge_key(keyless, merge_key));
    }
    Ok(items.into_iter().partition(|item| position(list, item, merge_key).is_some()))
}

/// The patch's items in their order and the server's in theirs, interleaved by the server's order where it knows both.
fn in_order(
    mut patched: Vec<Value>,
    mut server_only: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: &str,
) -> Vec<Value> {
    patched.sort_by_key(|item| position(patch_order, item, merge_key).unwrap_or(usize::MAX));
    server_only.sort_by_key(|item| position(server_order, item, merge_key).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(patched.len() + server_only.len());
    let (mut left, mut right) = (server_only.into_iter().peekable(), patched.into_iter().peekable());
    while let (Some(l), Some(r)) = (left.peek(), right.peek()) {
        let places = (position(server_order, l, merge_key), position(server_order, r, merge_key));
        let left_first = matches!(places, (Some(l), Some(r)) if l < r);
        out.extend(if left_first { left.next() } else { right.next() });
    }
    out.extend(left);
    out.extend(right);
    out
}

fn no_merge_key(item: &Value, merge_key: &str) -> PatchError {
    directive(format!("map: {} does not contain declared merge key: {merge_key}", go_print(item)))
}

/// A value as Go's `%v` prints it.
fn go_print(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(go_print).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => {
            let mut entries: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}:{}", go_print(value))).collect();
            entries.sort();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;
    use pretty_assertions::assert_eq;

    fn pod_spec(doc: Value, patch: Value) -> Result<Value, PatchError> {
        let ty = crate::schema::kind("", "v1", "Pod").unwrap();
        apply(&json!({"spec": doc}), &json!({"spec": patch}), ty).map(|mut pod| pod["spec"].take())
    }

    fn meta(doc: Value, patch: Value) -> Value {
        let ty = crate::schema::kind("", "v1", "ConfigMap").unwrap();
        apply(&json!({"metadata": doc}), &json!({"metadata": patch}), ty).unwrap()["metadata"].take()
    }

    #[test]
    fn lists_merge_by_key() {
        let doc =
            json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}]});
        let cases = [
            (
                json!({"containers": [{"name": "b", "image": "3"}]}),
                json!([{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "3"}]),
            ),
            (
                json!({"containers": [{"name": "c", "image": "3"}]}),
                json!([{"name": "c", "image": "3"}, {"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}]),
            ),
            (
                json!({"containers": [{"name": "b", "$patch": "delete"}]}),
                json!([{"name": "a", "image": "1", "args": ["x"]}]),
            ),
            (json!({"containers": [{"$patch": "replace"}, {"name": "q"}]}), json!([{"name": "q"}])),
            (
                json!({"containers": [{"name": "a", "args": ["y"], "image": null}]}),
                json!([{"name": "a", "args": ["y"]}, {"name": "b", "image": "2"}]),
            ),
            (
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": "n"}]}),
                json!([{"name": "b", "image": "2"}, {"name": "a", "image": "n", "args": ["x"]}]),
            ),
        ];
        for (patch, want) in cases {
            assert_eq!(pod_spec(doc.clone(), patch.clone()).unwrap()["containers"], want, "{patch}");
        }
    }

    #[test]
    fn directives() {
        let cases = [
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
                json!({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}),
                json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}),
            ),
            (
                json!({"securityContext": {"runAsUser": 1}}),
                json!({"securityContext": {"$patch": "replace", "runAsGroup": 2}}),
                json!({"securityContext": {"runAsGroup": 2}}),
            ),
            (
                json!({"nodeSelector": {"a": "b", "c": "d"}}),
                json!({"nodeSelector": {"a": null, "e": "f"}}),
                json!({"nodeSelector": {"c": "d", "e": "f"}}),
            ),
            (
                json!({"tolerations": [{"key": "a"}]}),
                json!({"tolerations": [{"key": "b"}]}),
                json!({"tolerations": [{"key": "b"}]}),
            ),
        ];
        for (doc, patch, want) in cases {
            assert_eq!(pod_spec(doc, patch.clone()).unwrap(), want, "{patch}");
        }
        assert_eq!(
            meta(json!({"finalizers": ["a", "b"]}), json!({"finalizers": ["d"]})),
            json!({"finalizers": ["d", "a", "b"]})
        );
        assert_eq!(
            meta(json!({"finalizers": ["a", "b"]}), json!({"$deleteFromPrimitiveList/finalizers": ["a"]})),
            json!({"finalizers": ["b"]})
        );
        assert_eq!(
            meta(
                json!({"ownerReferences": [{"uid": "1"}, {"uid": "2"}]}),
                json!({"ownerReferences": [{"uid": "2", "name": "x"}, {"uid": "3"}]})
            ),
            json!({"ownerReferences": [{"uid": "1"}, {"uid": "2", "name": "x"}, {"uid": "3"}]})
        );
    }

    #[test]
    fn refusals() {
        let doc = json!({"containers": [{"name": "a", "image": "1"}]});
        let cases = [
            (
                json!({"containers": [{"image": "new"}]}),
                "map: map[image:new] does not contain declared merge key: name",
            ),
            (
                json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a", "image": "n"}]}),
                "The order in patch list:\n[map[image:n name:a]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n",
            ),
            (json!({"$retainKeys": ["x"], "hostname": "y"}), "invalid patch format of retainKeys"),
        ];
        for (patch, want) in cases {
            assert_eq!(pod_spec(doc.clone(), patch).unwrap_err().to_string(), want);
        }
    }
}
