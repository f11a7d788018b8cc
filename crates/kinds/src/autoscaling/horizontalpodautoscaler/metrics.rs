//! Metrics as `kubectl get` shows them: what is and what should be, two of them and how many more.

use orlop_json::Value;

use crate::cursor::Cursor;

/// So many are shown.
const SHOWN: usize = 2;

fn quantity(value: &Value) -> &str {
    value.as_str().unwrap_or("<unknown>")
}

fn percent(value: &Value, missing: &str) -> String {
    value.as_i64().map_or_else(|| missing.to_owned(), |percent| format!("{percent}%"))
}

/// One metric with its status, which may be missing.
fn one(spec: &Value, status: &Value) -> String {
    let source = |key: &str| (&spec[key]["target"], &status[key]["current"], spec[key]["name"].text());
    let plain_or_average = |key: &str| {
        let (target, current, _) = source(key);
        if target["averageValue"].is_set() {
            let (is, should) = (quantity(&current["averageValue"]), quantity(&target["averageValue"]));
            format!("{is}/{should} (avg)")
        } else {
            format!("{}/{}", quantity(&current["value"]), quantity(&target["value"]))
        }
    };
    let named = |key: &str| {
        let (target, current, name) = source(key);
        if target["averageValue"].is_set() {
            let (is, should) = (quantity(&current["averageValue"]), quantity(&target["averageValue"]));
            return format!("{name}: {is}/{should}");
        }
        let is = percent(&current["averageUtilization"], "<unknown>");
        format!("{name}: {is}/{}", percent(&target["averageUtilization"], "<auto>"))
    };
    match spec["type"].text() {
        "External" => plain_or_average("external"),
        "Object" => plain_or_average("object"),
        "Pods" => {
            let (target, current, _) = source("pods");
            format!("{}/{}", quantity(&current["averageValue"]), quantity(&target["averageValue"]))
        }
        "Resource" => named("resource"),
        "ContainerResource" => named("containerResource"),
        _ => "<unknown type>".to_owned(),
    }
}

/// The cell of an autoscaler with these metrics.
pub(super) fn summary(specs: &[Value], statuses: &[Value]) -> String {
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let shown: Vec<String> = specs
        .iter()
        .enumerate()
        .take(SHOWN)
        .map(|(i, spec)| one(spec, statuses.get(i).unwrap_or(&Value::Null)))
        .collect();
    let shown = shown.join(", ");
    match specs.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn summaries() {
        let check = |specs: Value, statuses: Value, expected: &str| {
            assert_eq!(summary(specs.items(), statuses.items()), expected, "{specs}");
        };
        check(json!([]), json!([]), "<none>");
        let average = json!({"type": "Pods", "pods": {"target": {"averageValue": "5"}}});
        check(json!([average]), json!([{"type": "Pods", "pods": {"current": {"averageValue": "3"}}}]), "3/5");
        check(
            json!([
                {"type": "External", "external": {"target": {"averageValue": "5"}}},
                {"type": "Object", "object": {"target": {"value": "1k"}}},
                average,
                average
            ]),
            json!([]),
            "<unknown>/5 (avg), <unknown>/1k + 2 more...",
        );
        check(
            json!([{"type": "Resource", "resource": {"name": "memory", "target": {"averageValue": "1Mi"}}},
                {"type": "ContainerResource", "containerResource": {"name": "cpu", "target": {}}}]),
            json!([{"resource": {"current": {"averageValue": "2Mi"}}}, {"containerResource": {"current": {"averageUtilization": 7}}}]),
            "memory: 2Mi/1Mi, cpu: 7%/<auto>",
        );
    }
}
