//! ControllerRevision: an immutable snapshot of a workload's template, numbered.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use crate::cursor::Cursor;
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of ControllerRevisions.
pub struct ControllerRevision;

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    if !obj["data"].is_set() {
        errs.push(field::required(&Path::new("data"), "data is mandatory"));
    }
    let revision = obj["revision"].int();
    if revision < 0 {
        errs.push(field::invalid(&Path::new("revision"), revision, "must be greater than or equal to 0"));
    }
    errs
}

impl Strategy for ControllerRevision {
    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(validate(obj));
        errs.extend(metadata::validate_immutable(&obj["data"], &old["data"], &Path::new("data")));
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let controller = obj["metadata"]["ownerReferences"]
            .items()
            .iter()
            .find(|o| o["controller"].flag())
            .map_or_else(|| "<none>".to_owned(), printer::resource_name);
        vec![printer::name(obj), controller.into(), obj["revision"].int().into(), printer::age(obj, now)]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_create, check_update};
    use orlop_json::json;

    #[test]
    fn data_is_mandatory_and_immutable() {
        check_create(
            "apps",
            "ControllerRevision",
            json!({"revision": -1}),
            &[
                "data: Required value: data is mandatory",
                "revision: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
        check_update(
            "apps",
            "ControllerRevision",
            json!({"data": {"a": 2}, "revision": 1}),
            json!({"data": {"a": 1}, "revision": 1}),
            &["data: Invalid value: {\"a\":2}: field is immutable"],
        );
    }
}
