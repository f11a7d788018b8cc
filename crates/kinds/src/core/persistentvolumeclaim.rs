//! PersistentVolumeClaim: a wish for storage.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use super::persistentvolume::{validate_access_modes, validate_basic_resource};
use super::pod::defaults::round_quantities;
use super::pod::resources::{is_native, quantity, validate_resource_quantity};
use crate::cursor::{Cursor, child, default_empty_to, default_to, keep, keep_field, remove, same};
use crate::validate::{
    SelectorValues, dns_subdomain, label_selector_with, object_name, one_of, qualified_name, require_text,
};
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
/// Access modes in the order of upstream's messages.
pub(super) const MODE_NAMES: [&str; 4] =
    ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Where a resize can stand.
const RESIZE_STATES: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];
/// The annotation that named a storage class before the field did.
pub(super) const STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Defaults of a claim's spec, in a claim or in a template of one.
pub(crate) fn set_spec_defaults(spec: &mut Value) {
    default_to(spec, "volumeMode", "Filesystem");
    for list in ["limits", "requests"] {
        if let Some(list) = spec.get_mut("resources").and_then(|r| r.get_mut(list)) {
            round_quantities(list);
        }
    }
}

/// Warnings about a claim's spec, in a claim or in a template of one.
pub(crate) fn spec_warnings(path: &Path, spec: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for list in ["requests", "limits"] {
        let storage = &spec["resources"][list]["storage"];
        if storage.is_set() && !quantity(storage).is_integer() {
            let at = path.child("resources").child(list).key("storage");
            out.push(format!(
                "{at}: fractional byte value {:?} is invalid, must be an integer",
                storage.text()
            ));
        }
    }
    out
}

/// A claim's spec, in a claim or in a template of one.
pub(crate) fn validate_claim_spec(errs: &mut ErrorList, path: &Path, spec: &Value) {
    validate_spec(errs, path, spec, None);
}

/// `old` is the spec that this one replaces: the group of a source and the values of a selector are not looked at again.
fn validate_spec(errs: &mut ErrorList, path: &Path, spec: &Value, old: Option<&Value>) {
    let had_group = |old: &Value| ["dataSource", "dataSourceRef"].iter().any(|key| old[*key].has("apiGroup"));
    let any_group = old.is_some_and(had_group);
    let values = SelectorValues::replacing(old.map(|old| &old["selector"]));
    let modes = &spec["accessModes"];
    let at = path.child("accessModes");
    if modes.is_empty() {
        errs.push(field::required(&at, "at least 1 access mode is required"));
    }
    label_selector_with(errs, &path.child("selector"), &spec["selector"], values);
    if !modes.is_empty() {
        validate_access_modes(errs, &at, modes, "");
    }
    let storage = &spec["resources"]["requests"]["storage"];
    let at = path.child("resources").key("storage");
    if !storage.is_set() {
        errs.push(field::required(&at, ""));
    } else if quantity(storage).sign() <= 0 {
        errs.push(field::invalid(&at, storage.text(), "must be greater than zero"));
    } else {
        validate_resource_quantity(errs, &at, "storage", storage);
    }
    let class = spec["storageClassName"].text();
    if !class.is_empty() {
        object_name(errs, &path.child("storageClassName"), class, NameRule::DnsSubdomain);
    }
    one_of(errs, &path.child("volumeMode"), &spec["volumeMode"], &["Block", "Filesystem"]);
    for key in ["dataSource", "dataSourceRef"] {
        validate_data_source(errs, &path.child(key), &spec[key], any_group);
    }
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    if source.is_set() && !reference["namespace"].text().is_empty() {
        errs.push(field::invalid(
            path,
            json!({}),
            "may not be specified when dataSourceRef.namespace is specified",
        ));
    } else if source.is_set() && reference.is_set() {
        let agree = ["apiGroup", "kind", "name"].iter().all(|key| source[*key] == reference[*key]);
        if !agree {
            errs.push(field::invalid(path, json!({}), "must match dataSourceRef"));
        }
    }
    let class = spec["volumeAttributesClassName"].text();
    if !class.is_empty() {
        object_name(errs, &path.child("volumeAttributesClassName"), class, NameRule::DnsSubdomain);
    }
}

fn validate_data_source(errs: &mut ErrorList, path: &Path, source: &Value, any_group: bool) {
    if !source.is_set() {
        return;
    }
    for key in ["name", "kind"] {
        require_text(errs, &path.child(key), source[key].text());
    }
    let group = source["apiGroup"].text();
    if group.is_empty() && source["kind"].text() != "PersistentVolumeClaim" {
        errs.push(field::invalid(
            path,
            source["kind"].text(),
            "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        ));
    }
    if !group.is_empty() && !any_group {
        dns_subdomain(errs, &path.child("apiGroup"), group);
    }
    let namespace = source["namespace"].text();
    if !namespace.is_empty() {
        object_name(errs, &path.child("namespace"), namespace, NameRule::DnsLabel);
    }
}

/// What the older field always ignored goes, unless the claim had a source before; and a source in another namespace is
/// a feature that is off by default.
fn drop_ignored_sources(spec: &mut Value, old: &Value) {
    if !old["dataSourceRef"].has("namespace")
        && let Some(reference) = spec.get_mut("dataSourceRef")
    {
        remove(reference, "namespace");
    }
    if old["dataSource"].is_set() || old["dataSourceRef"].is_set() {
        return;
    }
    let source = &spec["dataSource"];
    let known = matches!(
        (source["apiGroup"].text(), source["kind"].text()),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    );
    if source.is_set() && !known {
        remove(spec, "dataSource");
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

/// Access modes as they are printed: `RWO,RWX`.
pub(super) fn short_modes(modes: &Value) -> String {
    let modes = modes.texts();
    let shown: Vec<&str> =
        MODES.iter().filter(|(mode, _)| modes.contains(mode)).map(|(_, short)| *short).collect();
    shown.join(",")
}

/// The spec as it must not differ from the old one: what may change is taken from there.
fn but_for_mutable_parts(errs: &mut ErrorList, obj: &Value, old: &Value) -> Value {
    let (spec, was) = (&obj["spec"], &old["spec"]);
    let mut munged = spec.clone();
    if was["volumeName"].text().is_empty() {
        // Binding sets it once.
        keep_field(&mut munged, was, "volumeName");
    }
    let annotation = |obj: &Value| obj["metadata"]["annotations"].get(STORAGE_CLASS).cloned();
    let (class, annotated, before) = (&spec["storageClassName"], annotation(obj), annotation(old));
    let late = class.is_set() && !was["storageClassName"].is_set();
    let moved = late
        && before.as_ref() == Some(class)
        && annotated.as_ref().is_none_or(|now| Some(now) == before.as_ref());
    if !moved {
        let text = |class: &Option<Value>| class.as_ref().map_or(String::new(), |c| c.text().to_owned());
        if text(&annotated) != text(&before) {
            errs.push(field::invalid(
                &Path::new("metadata").child("annotations").child(STORAGE_CLASS),
                text(&annotated),
                metadata::IMMUTABLE,
            ));
        }
    }
    if moved || (late && before.as_ref().is_none_or(|before| before == class)) {
        // A class may be given later to a claim that had none, or had it as an annotation.
        remove(&mut munged, "storageClassName");
    }
    if obj["status"]["phase"].text() == "Bound"
        && let Some(requests) = munged.get_mut("resources").and_then(|r| r.get_mut("requests"))
    {
        keep_field(requests, &was["resources"]["requests"], "storage");
    }
    keep_field(&mut munged, was, "volumeAttributesClassName");
    munged
}

/// A resource of a claim: storage, or one of somebody else.
fn validate_resource_key(errs: &mut ErrorList, path: &Path, name: &str) -> bool {
    let before = errs.len();
    qualified_name(errs, path, name);
    if errs.len() == before && is_native(name) && name != "storage" {
        errs.push(field::not_supported(path, name, &["storage"]));
    }
    errs.len() == before
}

impl Strategy for PersistentVolumeClaim {
    fn defaults(&self, obj: &mut Value) {
        set_spec_defaults(child(obj, "spec"));
        default_empty_to(child(obj, "status"), "phase", "Pending");
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({"phase": "Pending"});
        let spec = child(obj, "spec");
        drop_ignored_sources(spec, &Value::Null);
        normalize_data_sources(spec);
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["status"]);
        let spec = child(obj, "spec");
        drop_ignored_sources(spec, &old["spec"]);
        normalize_data_sources(spec);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain);
        validate_spec(&mut errs, &Path::new("spec"), &obj["spec"], None);
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        errs.extend(metadata::validate_object_meta(obj, true, NameRule::DnsSubdomain));
        let (spec, was) = (&obj["spec"], &old["spec"]);
        let path = Path::new("spec");
        validate_spec(&mut errs, &path, spec, Some(was));
        let munged = but_for_mutable_parts(&mut errs, obj, old);
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
        if before.is_set() && class.text().is_empty() && class != before {
            let to = if class.is_set() { "an empty string" } else { "nil" };
            errs.push(field::forbidden(
                &path.child("volumeAttributesClassName"),
                format!("update from non-nil value to {to} is forbidden"),
            ));
        }
        errs
    }

    fn warnings(&self, obj: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if obj["metadata"]["annotations"].has(STORAGE_CLASS) {
            out.push(format!(
                "metadata.annotations[{STORAGE_CLASS}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
            ));
        }
        out.extend(spec_warnings(&Path::new("spec"), &obj["spec"]));
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        if obj["spec"]["accessModes"].is_empty() {
            errs.push(field::required(&Path::new("Spec").child("accessModes"), ""));
        }
        let (path, status) = (Path::new("status"), &obj["status"]);
        for (name, value) in status["capacity"].entries() {
            validate_basic_resource(&mut errs, &path.child("capacity").key(name), value);
        }
        // The path lacks its last letters upstream too, and the message shows the key.
        let at = path.child("allocatedResourceStatus");
        for (name, state) in status["allocatedResourceStatuses"].entries() {
            validate_resource_key(&mut errs, &at, name);
            if !RESIZE_STATES.contains(&state.text()) {
                errs.push(field::not_supported(&at, name.as_str(), &RESIZE_STATES));
            }
        }
        let at = path.child("allocatedResources");
        for (name, value) in status["allocatedResources"].entries() {
            if !validate_resource_key(&mut errs, &at, name) {
                continue;
            }
            let before = errs.len();
            validate_basic_resource(&mut errs, &at.key(name), value);
            if errs.len() == before {
                validate_resource_quantity(&mut errs, &at.key(name), "storage", value);
            }
        }
        errs
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj["spec"], &obj["status"]);
        let phase =
            if obj["metadata"].has("deletionTimestamp") { "Terminating" } else { status["phase"].text() };
        let bound = !spec["volumeName"].text().is_empty();
        let class = match obj["metadata"]["annotations"].get(STORAGE_CLASS) {
            Some(class) => class.text(),
            None => spec["storageClassName"].text(),
        };
        let or_unset = |v: &Value| -> Value { v.as_str().unwrap_or("<unset>").into() };
        vec![
            printer::name(obj),
            phase.into(),
            spec["volumeName"].text().into(),
            if bound { status["capacity"]["storage"].as_str().unwrap_or("0").into() } else { "".into() },
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
    use orlop_json::{Value, json};

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
