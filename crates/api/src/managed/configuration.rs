//! An apply configuration laid over an object without anybody owning anything: what mutating admission policies do.

use orlop_json::Value;

use super::ObjectType;
use super::set::print_step;
use super::walk::{FieldSet, Kind, merge};

/// The object with the configuration merged into it.
///
/// # Errors
/// Upstream's text about a configuration that does not fit the type, or that touches an atomic list, map or structure
/// (which it could only replace as a whole).
pub fn merge_configuration(
    object: &Value,
    configuration: &Value,
    ty: ObjectType<'_>,
) -> Result<Value, String> {
    let kind = Kind::root(ty);
    let mut reader = FieldSet { errors: Vec::new(), allow_duplicates: false };
    reader.of(configuration, kind, &mut String::new());
    if !reader.errors.is_empty() {
        let text = match reader.errors.as_slice() {
            [only] => only.clone(),
            many => format!("errors:\n  {}", many.join("\n  ")),
        };
        return Err(format!("failed to convert patch object to typed object: {text}"));
    }
    let mut atomics = Vec::new();
    find_atomics(configuration, kind, &mut String::new(), &mut atomics);
    if !atomics.is_empty() {
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomics.join(", ")
        ));
    }
    Ok(merge(Some(object), Some(configuration), kind).unwrap_or_default())
}

fn find_atomics(value: &Value, kind: Kind<'_>, path: &mut String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if kind.is_atomic_map() {
                found.push(path.clone());
            }
            for (name, value) in map {
                let Some(child) = kind.granular().field(name) else { continue };
                let length = path.len();
                path.push_str(&print_step(&format!("f:{name}")));
                find_atomics(value, child, path, found);
                path.truncate(length);
            }
        }
        Value::Array(list) => {
            if kind.is_atomic_list(value) {
                found.push(path.clone());
            }
            for (at, value) in list.iter().enumerate() {
                let length = path.len();
                path.push_str(&print_step(&format!("i:{at}")));
                find_atomics(value, kind.item(), path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    #[test]
    fn configurations() {
        let deployment = crate::schema::kind("apps", "v1", "Deployment");
        let object = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}});
        let check = |configuration: Value, expected: Result<Value, &str>| {
            let got = merge_configuration(&object, &configuration, deployment.into());
            assert_eq!(got, expected.map_err(String::from), "{configuration}");
        };
        check(
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"template": {"spec": {"containers": [{"name": "b", "image": "y"}]}}}}),
            Ok(json!({
                "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}}},
                "metadata": {"labels": {"a": "b"}},
            })),
        );
        check(
            json!({"spec": {"bogus": 1}}),
            Err("failed to convert patch object to typed object: .spec.bogus: field not declared in schema"),
        );
        check(
            json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}),
            Err("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector"),
        );
        check(
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "args": ["x"]}]}}}}),
            Err(
                "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.template.spec.containers[0].args",
            ),
        );
    }
}
