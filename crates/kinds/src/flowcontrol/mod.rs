//! `flowcontrol.apiserver.k8s.io`: how the API server shares itself among its clients (API priority and fairness).

/// What both kinds do alike in the registry; `validate` is the kind's own.
macro_rules! common_rules {
    () => {
        fn namespaced(&self) -> bool {
            false
        }

        fn prepare_create(&self, obj: &mut Value) {
            super::prepare_create(obj);
        }

        fn prepare_update(&self, obj: &mut Value, old: &Value) {
            super::prepare_update(obj, old);
        }

        fn validate_create(&self, obj: &Value) -> ErrorList {
            validate(obj)
        }

        fn validate_update(&self, obj: &Value, _old: &Value) -> ErrorList {
            validate(obj)
        }

        fn has_status(&self) -> bool {
            true
        }

        fn prepare_status_update(&self, obj: &mut Value, old: &Value) {
            super::keep_all_but_status(obj, old);
        }

        fn validate_status_update(&self, obj: &Value, _old: &Value) -> ErrorList {
            let mut errs = ErrorList::new();
            validate_status(&mut errs, obj);
            errs
        }
    };
}

pub mod flowschema;
pub mod prioritylevel;

use std::sync::LazyLock;

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::{Value, json};

use crate::cursor::{Cursor, bump_generation, keep, keep_metadata, set_generation};

/// What a fresh server has, in `flowSchemas` and `priorityLevelConfigurations`: rows of name, annotations, spec and
/// (for the first) conditions.
static BOOTSTRAP: LazyLock<Value> = LazyLock::new(|| {
    // Data that cannot be read would be a broken build, which the test below finds.
    orlop_json::from_str(include_str!("../../data/bootstrap-flowcontrol.json")).unwrap_or_default()
});

/// Objects that exist in every cluster and whose specs are fixed.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// The objects of a fresh server: `flowSchemas` and `priorityLevelConfigurations`.
pub fn bootstrap() -> &'static Value {
    &BOOTSTRAP
}

/// Whether the server creates this object again whenever it is gone, and keeps its spec.
pub fn is_mandatory(name: &str) -> bool {
    MANDATORY.contains(&name)
}

/// The fixed spec of a mandatory object.
fn mandatory_spec(list: &str, name: &str) -> Option<&'static Value> {
    if !is_mandatory(name) {
        return None;
    }
    BOOTSTRAP[list].items().iter().find(|row| row["name"] == name).map(|row| &row["spec"])
}

/// Conditions by type, each once.
fn validate_status(errs: &mut ErrorList, obj: &Value) {
    let path = Path::new("status").child("conditions");
    let conditions = obj["status"]["conditions"].items();
    for (i, condition) in conditions.iter().enumerate() {
        let (kind, path) = (condition["type"].text(), path.index(i).child("type"));
        if conditions[..i].iter().any(|earlier| earlier["type"].text() == kind) {
            errs.push(field::duplicate(&path, kind));
        }
        if kind.is_empty() {
            errs.push(field::required(&path, "must not be empty"));
        }
    }
}

fn prepare_create(obj: &mut Value) {
    obj["status"] = json!({});
    set_generation(obj, 1);
}

fn prepare_update(obj: &mut Value, old: &Value) {
    keep(obj, old, &["status"]);
    bump_generation(obj, old, &["spec"]);
}

/// A write of status changes nothing else but who owns which field.
fn keep_all_but_status(obj: &mut Value, old: &Value) {
    keep(obj, old, &["spec"]);
    keep_metadata(obj, old);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mandatory_objects_are_known() {
        for name in MANDATORY {
            for list in ["flowSchemas", "priorityLevelConfigurations"] {
                assert!(mandatory_spec(list, name).is_some(), "{list} {name}");
            }
        }
        assert!(mandatory_spec("flowSchemas", "global-default").is_none());
    }
}
