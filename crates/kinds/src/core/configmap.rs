//! ConfigMap: text and binary data under file-name-like keys, optionally immutable.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use crate::cursor::{Cursor, same};
use crate::{NameRule, Strategy, metadata, printer};

use super::{MAX_DATA_SIZE, decoded_len};

/// What upstream says of a field that `immutable: true` froze.
pub(super) const FROZEN: &str = "field is immutable when `immutable` is set";

/// The strategy of ConfigMaps.
pub struct ConfigMap;

fn validate(obj: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
    let mut total = 0;
    let data = Path::new("data");
    for (key, value) in obj["data"].entries() {
        for msg in names::is_config_map_key(key) {
            errs.push(field::invalid(&data.key(key), key.as_str(), msg));
        }
        if obj["binaryData"].has(key) {
            errs.push(field::invalid(&data.key(key), key.as_str(), "duplicate of key present in binaryData"));
        }
        total += value.text().len();
    }
    for (key, value) in obj["binaryData"].entries() {
        for msg in names::is_config_map_key(key) {
            errs.push(field::invalid(&Path::new("binaryData").key(key), key.as_str(), msg));
        }
        total += decoded_len(value.text());
    }
    if total > MAX_DATA_SIZE {
        errs.push(field::too_long(&Path::new(""), MAX_DATA_SIZE));
    }
    errs
}

/// What `immutable: true` of the old object forbids, for the data fields `fields`.
pub(super) fn validate_frozen(obj: &Value, old: &Value, fields: &[&str]) -> ErrorList {
    let mut errs = ErrorList::new();
    if old["immutable"].flag() {
        if !obj["immutable"].flag() {
            errs.push(field::forbidden(&Path::new("immutable"), FROZEN));
        }
        for name in fields {
            if !same(&obj[*name], &old[*name]) {
                errs.push(field::forbidden(&Path::new(name), FROZEN));
            }
        }
    }
    errs
}

impl Strategy for ConfigMap {
    fn validate_create(&self, obj: &Value) -> ErrorList {
        validate(obj)
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(validate_frozen(obj, old, &["data", "binaryData"]));
        errs.extend(validate(obj));
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let count = obj["data"].entries().count() + obj["binaryData"].entries().count();
        vec![printer::name(obj), json!(count), printer::age(obj, now)]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{check_create, check_update};

    #[test]
    fn data() {
        check_create("", "ConfigMap", json!({"data": {"a": "b"}, "binaryData": {"c": "AAEC"}}), &[]);
        check_create(
            "",
            "ConfigMap",
            json!({"data": {"a": "b"}, "binaryData": {"a": "AAEC"}}),
            &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
        );
        check_create(
            "",
            "ConfigMap",
            json!({"data": {"a b": "c"}}),
            &[
                "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
            ],
        );
    }

    #[test]
    fn immutable() {
        let old = json!({"data": {"a": "b"}, "immutable": true});
        let frozen = |f: &str| format!("{f}: Forbidden: field is immutable when `immutable` is set");
        check_update(
            "",
            "ConfigMap",
            json!({"data": {"a": "c"}, "immutable": true}),
            old.clone(),
            &[&frozen("data")],
        );
        check_update("", "ConfigMap", json!({"data": {"a": "b"}}), old.clone(), &[&frozen("immutable")]);
        check_update("", "ConfigMap", old.clone(), old, &[]);
    }
}
