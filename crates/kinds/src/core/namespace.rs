//! Namespace: its finalizers live in `spec` and are changed through `/finalize` only; its phase follows its deletion.

use jiff::Timestamp;
use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::{Value, json};

use crate::cursor::{Cursor, child, keep};
use crate::{NameRule, Strategy, metadata, printer};

/// The strategy of Namespaces.
pub struct Namespace;

fn validate_spec_finalizers(obj: &Value) -> ErrorList {
    let path = Path::new("spec").child("finalizers");
    let mut errs = ErrorList::new();
    for name in obj["spec"]["finalizers"].texts() {
        for msg in names::is_qualified_name(name) {
            errs.push(field::invalid(&path, name, msg));
        }
        if !name.contains('/') && !metadata::is_standard_finalizer(name) {
            errs.push(field::invalid(
                &path,
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errs
}

/// Prepares a write of the `/finalize` subresource: only `spec.finalizers` (and metadata) may differ.
pub fn prepare_finalize(obj: &mut Value, old: &Value) {
    keep(obj, old, &["status"]);
}

/// What is wrong with a write of the `/finalize` subresource.
pub fn validate_finalize_update(obj: &Value, old: &Value) -> ErrorList {
    let mut errs = metadata::validate_object_meta_update(obj, old);
    errs.extend(validate_spec_finalizers(obj));
    errs
}

impl Strategy for Namespace {
    fn name_rule(&self) -> NameRule {
        NameRule::DnsLabel
    }

    fn namespaced(&self) -> bool {
        false
    }

    fn defaults(&self, obj: &mut Value) {
        // The name as a label, so that selectors can pick namespaces by name.
        let name = obj["metadata"]["name"].text().to_owned();
        if !name.is_empty() {
            child(child(obj, "metadata"), "labels")["kubernetes.io/metadata.name"] = name.into();
        }
        let status = child(obj, "status");
        if status["phase"].text().is_empty() {
            status["phase"] = "Active".into();
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({"phase": "Active"});
        let finalizers = &mut child(obj, "spec")["finalizers"];
        if !finalizers.texts().contains(&"kubernetes") {
            match finalizers.as_array_mut() {
                Some(list) => list.push("kubernetes".into()),
                None => *finalizers = json!(["kubernetes"]),
            }
        }
    }

    fn prepare_update(&self, obj: &mut Value, old: &Value) {
        keep(obj, old, &["spec", "status"]);
    }

    fn validate_create(&self, obj: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta(obj, false, NameRule::DnsLabel);
        errs.extend(validate_spec_finalizers(obj));
        errs
    }

    fn validate_update(&self, obj: &Value, old: &Value) -> ErrorList {
        metadata::validate_object_meta_update(obj, old)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_status_update(&self, obj: &Value, old: &Value) -> ErrorList {
        let mut errs = metadata::validate_object_meta_update(obj, old);
        let phase = obj["status"]["phase"].text();
        let path = Path::new("status").child("Phase");
        if !obj["metadata"].has("deletionTimestamp") {
            if phase != "Active" {
                errs.push(field::invalid(
                    &path,
                    phase,
                    "may only be 'Active' if `deletionTimestamp` is empty",
                ));
            }
        } else if phase != "Terminating" {
            errs.push(field::invalid(
                &path,
                phase,
                "may only be 'Terminating' if `deletionTimestamp` is not empty",
            ));
        }
        errs
    }

    fn selectable_field(&self, obj: &Value, label: &str) -> Option<String> {
        match label {
            "metadata.name" => Some(obj["metadata"]["name"].text().to_owned()),
            "status.phase" => Some(obj["status"]["phase"].text().to_owned()),
            _ => None,
        }
    }

    fn cells(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![printer::name(obj), obj["status"]["phase"].text().into(), printer::age(obj, now)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check_create;

    #[test]
    fn created_active_with_the_system_finalizer() {
        let mut ns = json!({"metadata": {"name": "x"}, "spec": {"finalizers": ["example.com/x"]}, "status": {"phase": "Terminating"}});
        Namespace.defaults(&mut ns);
        Namespace.prepare_create(&mut ns);
        assert_eq!(
            ns,
            json!({"metadata": {"name": "x", "labels": {"kubernetes.io/metadata.name": "x"}},
                "spec": {"finalizers": ["example.com/x", "kubernetes"]}, "status": {"phase": "Active"}})
        );
    }

    #[test]
    fn finalizers() {
        check_create(
            "",
            "Namespace",
            json!({"spec": {"finalizers": ["foo"]}}),
            &[
                "spec.finalizers: Invalid value: \"foo\": name is neither a standard finalizer name nor is it fully qualified",
            ],
        );
    }
}
