//! Small things the registry does to objects: the order they are encoded in, system fields of metadata, names.

use orlop_json::{Key, Map, Value, json};
use rand::Rng as _;

/// The order of metadata fields in upstream's encoding.
const METADATA_ORDER: [&str; 14] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
];

/// The order of an object's top level.
const TOP_ORDER: [&str; 3] = ["kind", "apiVersion", "metadata"];

/// A field's place; what is not named follows in the order it has.
fn rank(order: &[&str], field: &str) -> usize {
    order.iter().position(|known| *known == field).unwrap_or(order.len())
}

fn reorder(map: &mut Map, order: &[&str]) {
    if map.keys().map(|field| rank(order, field)).is_sorted() {
        return;
    }
    let mut fields: Vec<(Key, Value)> = std::mem::take(map).into_iter().collect();
    fields.sort_by_key(|(field, _)| rank(order, field));
    map.extend(fields);
}

/// Writes the fields of an object, the named ones first and in their order.
fn write_fields<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'a Key, &'a Value)>,
    order: &[&str],
    mut write: impl FnMut(&mut Vec<u8>, &str, &Value),
) {
    let mut fields: Vec<(&Key, &Value)> = fields.collect();
    fields.sort_by_key(|(field, _)| rank(order, field));
    out.push(b'{');
    for (at, (field, value)) in fields.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        // Encoding a JSON value into memory cannot fail.
        let _ = orlop_json::to_writer(&mut *out, field.as_str());
        out.push(b':');
        write(out, field, value);
    }
    out.push(b'}');
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    let _ = orlop_json::to_writer(out, value);
}

/// Encodes an object for the store: kind, apiVersion and metadata first, and no resource version.
pub fn encode(object: &Value) -> Vec<u8> {
    let Some(map) = object.as_object() else { return b"null".to_vec() };
    let none = Value::Object(Map::new());
    let metadata = Key::new_static("metadata");
    let missing = (!map.get("metadata").is_some_and(Value::is_object)).then_some((&metadata, &none));
    let fields = map.iter().filter(|(field, value)| *field != "metadata" || value.is_object()).chain(missing);
    let mut out = Vec::with_capacity(1536);
    write_fields(&mut out, fields, &TOP_ORDER, |out, field, value| match (field, value) {
        ("metadata", Value::Object(metadata)) => {
            let kept = metadata.iter().filter(|(field, _)| *field != "resourceVersion");
            write_fields(out, kept, &METADATA_ORDER, |out, _, value| write_value(out, value));
        }
        _ => write_value(out, value),
    });
    out
}

/// Sorts an object's top level and metadata as upstream encodes them.
pub fn order(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
        reorder(metadata, &METADATA_ORDER);
    }
    reorder(map, &TOP_ORDER);
}

/// A field of metadata as text; empty when absent.
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or("")
}

/// Metadata of an object, made when absent.
pub fn metadata_mut(object: &mut Value) -> &mut Map {
    if !object.is_object() {
        *object = json!({});
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    match &mut object["metadata"] {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object just above"),
    }
}

/// Sets or (with `None`) removes a metadata field.
pub fn set_meta(object: &mut Value, field: &str, value: Option<Value>) {
    let metadata = metadata_mut(object);
    match value {
        Some(value) => {
            metadata.insert(field.into(), value);
        }
        None => {
            metadata.remove(field);
        }
    }
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<String> {
    object
        .pointer("/metadata/finalizers")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(|f| f.as_str().map(String::from)).collect())
        .unwrap_or_default()
}

/// An integer field of metadata.
pub fn meta_int(object: &Value, field: &str) -> Option<i64> {
    object.get("metadata")?.get(field)?.as_i64()
}

/// Drops repeated owner references (same uid, kind and name) with upstream's warning.
pub fn dedup_owner_references(object: &mut Value, warnings: &super::Warnings) {
    let Some(list) = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) else {
        return;
    };
    let mut seen: Vec<Value> = Vec::with_capacity(list.len());
    let mut repeated: Vec<String> = Vec::new();
    for reference in list.drain(..) {
        let uid = |r: &Value| r.get("uid").and_then(Value::as_str).unwrap_or("").to_string();
        if seen.contains(&reference) {
            let uid = uid(&reference);
            if !repeated.contains(&uid) {
                repeated.push(uid);
            }
        } else {
            seen.push(reference);
        }
    }
    *list = seen;
    if !repeated.is_empty() {
        warnings.add(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            repeated.join(", ")
        ));
    }
}

/// Whether deletion of the object has begun.
pub fn is_deleting(object: &Value) -> bool {
    !meta(object, "deletionTimestamp").is_empty()
}

/// Longest prefix a generated name keeps: with the five random letters it is a label's 63 characters.
const MAX_GENERATED_BASE: usize = 58;

/// A name of a prefix and five random letters, none of which can spell a word or look like another.
pub fn generate_name(prefix: &str) -> String {
    let mut base = prefix;
    while base.len() > MAX_GENERATED_BASE {
        let end = base.char_indices().next_back().map_or(0, |(at, _)| at);
        base = &base[..end];
    }
    format!("{base}{}", random_suffix())
}

/// Five random letters as upstream's `rand.String`.
pub fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..5).map(|_| LETTERS[rng.random_range(0..LETTERS.len())] as char).collect()
}

/// The user agent's first word: the field manager of those who name none.
pub fn manager_of_agent(agent: &str) -> String {
    let base = agent.split('/').next().unwrap_or("");
    let mut end = base.len().min(128);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let name: String = base[..end].chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { "unknown".to_string() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_order() {
        let object = json!({"spec": {}, "metadata": {"labels": {}, "resourceVersion": "5", "uid": "u", "name": "n"}, "apiVersion": "v1", "kind": "K"});
        assert_eq!(
            String::from_utf8_lossy(&encode(&object)),
            r#"{"kind":"K","apiVersion":"v1","metadata":{"name":"n","uid":"u","labels":{}},"spec":{}}"#
        );
    }

    #[test]
    fn generated_names() {
        let name = generate_name("web-");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_eq!(generate_name(&"a".repeat(100)).len(), 63);
    }
}
