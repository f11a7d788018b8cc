//! Whether `managedFields` can be read at all.

use orlop_json::Value;

use crate::field::go_quote;

/// Why a list cannot be read, in upstream's words (`DecodeManagedFields`); `None` when it can.
pub fn problem(list: &[Value]) -> Option<String> {
    list.iter().enumerate().find_map(|(at, entry)| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("");
        if !matches!(text("operation"), "Apply" | "Update") {
            return Some("operation must be `Apply` or `Update`".to_owned());
        }
        if text("apiVersion").is_empty() {
            return Some("apiVersion must not be empty".to_owned());
        }
        match text("fieldsType") {
            "FieldsV1" => {}
            "" => return Some(format!("missing fieldsType in managed fields entry {at}")),
            other => {
                return Some(format!("invalid fieldsType {} in managed fields entry {at}", go_quote(other)));
            }
        }
        let broken = entry.get("fieldsV1").and_then(broken_set)?;
        Some(format!("error decoding versioned set from {}: error decoding set: {broken}", printed(entry)))
    })
}

/// An entry as Go prints it.
fn printed(entry: &Value) -> String {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("");
    let time = match text("time").parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
        Err(_) => "<nil>".to_owned(),
    };
    format!(
        "{{{} {} {} {time} {} {} {}}}",
        text("manager"),
        text("operation"),
        text("apiVersion"),
        text("fieldsType"),
        entry["fieldsV1"],
        text("subresource")
    )
}

/// What is wrong with a set of fields.
fn broken_set(set: &Value) -> Option<String> {
    let Value::Object(members) = set else {
        return (!set.is_null()).then(|| "expected an object".to_owned());
    };
    members.iter().find_map(|(step, below)| {
        if step == "." {
            return None;
        }
        if step.len() < 2 {
            return Some(format!("key must be 2 characters long: {step}"));
        }
        let Some((kind, rest)) = step.split_once(':').filter(|(kind, _)| kind.len() == 1) else {
            return Some(format!("missing colon: {step}"));
        };
        let readable = match kind {
            "v" => orlop_json::from_str::<Value>(rest).is_ok(),
            "i" => rest.parse::<i64>().is_ok(),
            "k" => orlop_json::from_str::<Value>(rest).is_ok_and(|key| key.is_object()),
            // Steps of kinds that are not known are passed over.
            _ => true,
        };
        if readable { broken_set(below) } else { Some(format!("cannot read {step}")) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_json::json;

    #[test]
    fn problems() {
        let good = || {
            json!({"operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "m",
            "fieldsV1": {"f:data": {".": {}, "k:{\"a\":1}": {}, "v:\"x\"": {}, "i:0": {}, "z:9": {}}}})
        };
        let check = |key: &str, value: Value, expected: Option<&str>| {
            let mut entry = good();
            entry[key] = value;
            assert_eq!(problem(&[entry]).as_deref(), expected);
        };
        assert_eq!(problem(&[]), None);
        check("manager", json!("other"), None);
        check("operation", json!("Patch"), Some("operation must be `Apply` or `Update`"));
        check("apiVersion", json!(""), Some("apiVersion must not be empty"));
        check("fieldsType", json!(""), Some("missing fieldsType in managed fields entry 0"));
        check("fieldsType", json!("F2"), Some("invalid fieldsType \"F2\" in managed fields entry 0"));
        let printed = "{m Update v1 <nil> FieldsV1 {\"x\":{}} }";
        let text = format!(
            "error decoding versioned set from {printed}: error decoding set: key must be 2 characters long: x"
        );
        check("fieldsV1", json!({"x": {}}), Some(&text));
        for (set, why) in [
            (json!({"x": {}}), "key must be 2 characters long: x"),
            (json!({"fdata": {}}), "missing colon: fdata"),
            (json!({"i:x": {}}), "cannot read i:x"),
            (json!([]), "expected an object"),
        ] {
            let mut entry = good();
            entry["fieldsV1"] = set;
            let problem = problem(&[entry]).unwrap_or_default();
            assert!(problem.ends_with(&format!(": error decoding set: {why}")), "{problem}");
        }
    }
}
