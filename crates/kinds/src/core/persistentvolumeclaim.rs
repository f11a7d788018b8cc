//! PersistentVolumeClaim: a wish for storage.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use serde_json::{Value, json};

use super::pod::resources::{quantity, validate_resource_quantity};
use crate::cursor::{Cursor, child, default_empty_to, default_to, keep, keep_field, remove, same};
use crate::validate::{label_selector, object_name, one_of, require_text};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of PersistentVolumeClaims.
pub struct PersistentVolumeClaim;

/// Access modes in the order they are printed, with their short forms.
const MODES: [(&str, &str); 4] = [
    ("ReadWriteOnce", "RWO"),
    ("ReadOnlyMany", "ROX"),
    ("ReadWriteMany", "RWX"),
    ("ReadWriteOncePod", "RWOP"),
];
const MODE_NAMES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Defaults of a claim's spec, in a claim or in a template of one.
pub(crate) fn set_spec_defaults(spec: &mut Value) {
    default_to(spec, "volumeMode", "Filesystem");
}

/// A claim's spec, in a claim or in an ephemeral volume.
pub(crate) fn validate_claim_spec(errs: &mut ErrorList, path: &Path, spec: &Value) {
    let modes = spec["accessModes"].texts();
    let at = path.child("accessModes");
    if modes.is_empty() {
        errs.push(field::required(&at, "at least 1 access mode is required"));
    }
    label_selector(errs, &path.child("selector"), &spec["selector"]);
    for mode in &modes {
        if !MODE_NAMES.contains(mode) {
            errs.push(field::not_supported(&at, *mode, &MODE_NAMES));
        }
    }
    if modes.len() > 1 && modes.contains(&"ReadWriteOncePod") {
        errs.push(field::forbidden(&at, "may not use ReadWriteOncePod with other access modes"));
    }
    let storage = &spec["resources"]["requests"]["storage"];
    let at = path.child("resources").key("storage");
    if storage.is_set() {
        validate_resource_quantity(errs, &at, "storage", storage);
        if quantity(storage).sign() <= 0 {
            errs.push(field::invalid(&at, storage.text(), "must be greater than zero"));
        }
    } else {
        errs.push(field::required(&at, ""));
    }
    let class = spec["storageClassName"].text();
    if !class.is_empty() {
        object_name(errs, &path.child("storageClassName"), class, NameRule::DnsSubdomain);
    }
    one_of(errs, &path.child("volumeMode"), &spec["volumeMode"], &["Block", "Filesystem"]);
    for key in ["dataSource", "dataSourceRef"] {
        validate_data_source(errs, &path.child(key), &spec[key]);
    }
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    if source.is_set() && reference.is_set() && !reference.has("namespace") && !same(source, reference) {
        errs.push(field::invalid(path, json!({}), "must match dataSourceRef"));
    }
    let class = spec["volumeAttributesClassName"].text();
    if !class.is_empty() {
        object_name(errs, &path.child("volumeAttributesClassName"), class, NameRule::DnsSubdomain);
    }
}

fn validate_data_source(errs: &mut ErrorList, path: &Path, source: &Value) {
    if !source.is_set() {
        return;
    }
    for key in ["name", "kind"] {
        require_text(errs, &path.child(key), source[key].text());
    }
    if source["apiGroup"].text().is_empty() && source["kind"].text() != "PersistentVolumeClaim" {
        errs.push(field::invalid(
            path,
            source["kind"].text(),
            "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        ));
    }
}

/// Two fields for one thing: whichever is set tells the other.
fn normalize_data_sources(spec: &mut Value) {
    let (source, reference) = (spec["dataSource"].clone(), spec["dataSourceRef"].clone());
    if source.is_set() && !reference.is_set() {
        spec["dataSourceRef"] = source;
    } else if reference.is_set() && !source.is_set() && !reference.has("namespace") {
        spec["dataSource"] = reference;
    }
}

fn short_modes(modes: &Value) -> String {
    let modes = modes.texts();
    let shown: Vec<&str> =
        MODES.iter().filter(|(mode, _)| modes.contains(mode)).map(|(_, short)| *short).collect();
    shown.join(",")
}

impl Strategy for PersistentVolumeClaim {
    fn defaults(&self, obj: &mut Value) {
        set_spec_defaults(child(obj, "spec"));
        default_empty_to(child(obj, "status"), "phase", "Pending");
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({"phase": "Pending"});
        normalize_data_sources(child(obj, "spec"));
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
        normalize_data_sources(child(obj, "spec"));
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        validate_claim_spec(&mut errs, &Path::new("spec"), &obj["spec"]);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(self.validate_create(obj));
        let (spec, was) = (&obj["spec"], &old["spec"]);
        let path = Path::new("spec");
        let mut munged = spec.clone();
        if was["volumeName"].text().is_empty() {
            // Binding sets it once.
            remove(&mut munged, "volumeName");
        }
        if !was["storageClassName"].is_set() && spec["storageClassName"].is_set() {
            // A class may be given later to a claim that had none.
            remove(&mut munged, "storageClassName");
        }
        if old["status"]["phase"].text() == "Bound" {
            if let Some(requests) = munged.get_mut("resources").and_then(|r| r.get_mut("requests")) {
                keep_field(requests, &was["resources"]["requests"], "storage");
            }
            keep_field(&mut munged, was, "volumeAttributesClassName");
        }
        if !same(&munged, was) {
            errs.push(field::forbidden(
                &path,
                format!(
                    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
                    crate::cursor::differences(was, &munged)
                ),
            ));
        }
        let size = |spec: &Value| quantity(&spec["resources"]["requests"]["storage"]);
        if size(spec) < size(was) && size(spec) <= quantity(&old["status"]["capacity"]["storage"]) {
            errs.push(field::forbidden(
                &path.child("resources").child("requests").child("storage"),
                "field can not be less than status.capacity",
            ));
        }
        errs.extend(metadata::validate_immutable(
            &spec["volumeMode"],
            &was["volumeMode"],
            &Path::new("volumeMode"),
        ));
        let (class, before) = (&spec["volumeAttributesClassName"], &was["volumeAttributesClassName"]);
        if before.is_set() && class.text().is_empty() {
            let to = if class.is_set() { "an empty string" } else { "nil" };
            errs.push(field::forbidden(
                &path.child("volumeAttributesClassName"),
                format!("update from non-nil value to {to} is forbidden"),
            ));
        }
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        if obj["spec"]["accessModes"].is_empty() {
            errs.push(field::required(&Path::new("Spec").child("accessModes"), ""));
        }
        let path = Path::new("status").child("capacity");
        for (name, value) in obj["status"]["capacity"].entries() {
            if quantity(value).sign() < 0 {
                errs.push(field::invalid(&path.key(name), value.text(), "must be a valid resource quantity"));
            }
        }
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj["spec"], &obj["status"]);
        let phase =
            if obj["metadata"].has("deletionTimestamp") { "Terminating" } else { status["phase"].text() };
        let bound = !spec["volumeName"].text().is_empty();
        let class = match obj["metadata"]["annotations"].get(CLASS) {
            Some(class) => class.text(),
            None => spec["storageClassName"].text(),
        };
        let or_unset = |v: &Value| -> Value { v.as_str().unwrap_or("<unset>").into() };
        vec![
            printer::name(obj),
            phase.into(),
            spec["volumeName"].text().into(),
            if bound { status["capacity"]["storage"].text().into() } else { "".into() },
            if bound { short_modes(&status["accessModes"]).into() } else { "".into() },
            class.into(),
            or_unset(&spec["volumeAttributesClassName"]),
            printer::age(obj, now),
            or_unset(&spec["volumeMode"]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_cells, check_create, check_update};
    use serde_json::{Value, json};

    fn claim(extra: Value) -> Value {
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}});
        for (k, v) in extra.as_object().cloned().unwrap_or_default() {
            spec[k] = v;
        }
        json!({"spec": spec})
    }

    #[test]
    fn validation() {
        let check = |extra: Value, expected: &[&str]| {
            check_create("", "PersistentVolumeClaim", claim(extra), expected)
        };
        check(json!({}), &[]);
        check(
            json!({"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}),
            &["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"],
        );
        check(json!({"resources": {}}), &["spec.resources[storage]: Required value"]);
    }

    #[test]
    fn updates() {
        let update = |extra: Value, expected: &[&str]| {
            check_update("", "PersistentVolumeClaim", claim(extra), claim(json!({})), expected);
        };
        update(json!({"volumeName": "v"}), &[]);
        update(
            json!({"accessModes": ["ReadWriteMany"]}),
            &[
                "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n@@ -1 +1 @@\n-accessModes: [\"ReadWriteOnce\"]\n+accessModes: [\"ReadWriteMany\"]\n",
            ],
        );
    }

    #[test]
    fn rows() {
        check_cells(
            "",
            "PersistentVolumeClaim",
            json!({"metadata": {"name": "c", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"volumeName": "v", "storageClassName": "s", "volumeMode": "Filesystem"},
                "status": {"phase": "Bound", "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}}),
            json!(["c", "Bound", "v", "2Gi", "RWO,RWX", "s", "<unset>", "24h", "Filesystem"]),
        );
    }
}
