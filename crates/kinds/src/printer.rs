//! Pieces of printed rows that many kinds share.

use jiff::Timestamp;
use orlop_json::Value;

use crate::cursor::Cursor;
use crate::duration;

/// The object's name.
pub(crate) fn name(obj: &Value) -> Value {
    obj["metadata"]["name"].text().into()
}

/// The object's age in short form.
pub(crate) fn age(obj: &Value, now: Timestamp) -> Value {
    duration::age(obj["metadata"]["creationTimestamp"].text(), now).into()
}

/// The `Created At` cell of kinds without a printer of their own.
pub(crate) fn created_at(obj: &Value) -> Value {
    obj["metadata"]["creationTimestamp"].clone()
}

/// Names and images of a pod spec's containers, comma-separated.
pub(crate) fn containers_and_images(pod_spec: &Value) -> (String, String) {
    let column = |key: &str| {
        let all: Vec<&str> = pod_spec["containers"].items().iter().map(|c| c[key].text()).collect();
        all.join(",")
    };
    (column("name"), column("image"))
}

/// A map as `k=v,k=v` in key order; `<none>` when empty.
pub(crate) fn format_labels(labels: &Value) -> String {
    let mut pairs: Vec<String> = labels.entries().map(|(k, v)| format!("{k}={}", v.text())).collect();
    if pairs.is_empty() {
        return "<none>".to_owned();
    }
    pairs.sort_unstable();
    pairs.join(",")
}

/// A `LabelSelector` object as text: `<none>` when absent or empty, `<error>` when it is no valid selector.
pub(crate) fn format_label_selector(selector: &Value) -> String {
    if !selector.is_set() {
        return "<none>".to_owned();
    }
    let mut requirements: Vec<(String, String)> = Vec::new();
    for (key, value) in selector["matchLabels"].entries() {
        requirements.push((key.clone().into(), format!("{key}={}", value.text())));
    }
    for expression in selector["matchExpressions"].items() {
        let key = expression["key"].text();
        let mut values = expression["values"].texts();
        values.sort_unstable();
        let text = match expression["operator"].text() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        requirements.push((key.to_owned(), text));
    }
    if requirements.is_empty() {
        return "<none>".to_owned();
    }
    requirements.sort_by(|a, b| a.0.cmp(&b.0));
    let texts: Vec<String> = requirements.into_iter().map(|(_, t)| t).collect();
    texts.join(",")
}

/// `kind.group/name` of an owner in lower-case kind, as `kubectl` accepts it back.
pub(crate) fn resource_name(owner: &Value) -> String {
    let group = owner["apiVersion"].text().split_once('/').map_or("", |(group, _)| group);
    let kind = owner["kind"].text().to_lowercase();
    let dot = if group.is_empty() { "" } else { "." };
    format!("{kind}{dot}{}/{}", group.to_lowercase(), owner["name"].text())
}
