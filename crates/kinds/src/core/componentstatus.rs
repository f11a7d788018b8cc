//! ComponentStatus: how the components of the control plane are. Nothing stores it; it is only read and printed.

use jiff::Timestamp;
use orlop_api::field::ErrorList;
use orlop_json::{Value, json};

use crate::cursor::Cursor;
use crate::{Strategy, printer};

/// The strategy of ComponentStatuses.
pub struct ComponentStatus;

impl Strategy for ComponentStatus {
    fn namespaced(&self) -> bool {
        false
    }

    // No verb writes this kind.
    fn validate_create(&self, _obj: &Value) -> ErrorList {
        ErrorList::new()
    }

    fn validate_update(&self, _obj: &Value, _old: &Value) -> ErrorList {
        ErrorList::new()
    }

    fn cells(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        let condition = obj["conditions"].items().iter().find(|condition| condition["type"] == "Healthy");
        let (status, message, error) = match condition {
            None => ("Unknown", "", ""),
            Some(condition) => (
                if condition["status"] == "True" { "Healthy" } else { "Unhealthy" },
                condition["message"].text(),
                condition["error"].text(),
            ),
        };
        vec![printer::name(obj), json!(status), json!(message), json!(error)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells() {
        let check = |conditions: Value, expected: [&str; 4]| {
            let obj = json!({"metadata": {"name": "etcd-0"}, "conditions": conditions});
            assert_eq!(ComponentStatus.cells(&obj, Timestamp::UNIX_EPOCH), expected.map(Value::from));
        };
        check(Value::Null, ["etcd-0", "Unknown", "", ""]);
        check(
            json!([{"type": "Other", "status": "False"}, {"type": "Healthy", "status": "True", "message": "ok"}]),
            ["etcd-0", "Healthy", "ok", ""],
        );
        check(
            json!([{"type": "Healthy", "status": "Unknown", "error": "gone"}]),
            ["etcd-0", "Unhealthy", "", "gone"],
        );
    }
}
