//! The pod template inside workloads: its defaults, its validation against a selector, its warnings.

use orlop_api::field::{self, ErrorList, Path};
use orlop_json::Value;

use super::pod::defaults::{self, set_pod_spec};
use super::pod::validation::validate_pod_template_spec;
use super::pod::warnings::pod_warnings;
use crate::cursor::{Cursor, child};
use crate::metadata::{validate_annotations, validate_labels};
use crate::validate::{label_selector, selector_is_empty, selector_is_valid, selector_matches};
use crate::workload::{pod_name_warning, same_generation};

/// Defaults of `spec.template` of a workload.
pub(crate) fn set_defaults(spec: &mut Value) {
    set_pod_spec(child(child(spec, "template"), "spec"));
}

/// Takes out of `template` of this spec (or pod template) what upstream's features that are off by default would read.
pub(crate) fn drop_disabled_fields(owner: &mut Value) {
    if let Some(spec) = owner.pointer_mut("/template/spec") {
        defaults::drop_disabled_fields(spec);
    }
}

/// Warnings about `spec.template` of a workload.
pub(crate) fn warnings(obj: &Value) -> Vec<String> {
    pod_warnings(&Path::new("spec").child("template"), &obj["spec"]["template"])
}

/// `metadata` of a template whose objects get only labels and annotations from it.
pub(crate) fn validate_template_metadata(errs: &mut ErrorList, path: &Path, meta: &Value) {
    /// Fields in the order of Go's struct, with the names it gives them but for the first letter.
    const NOT_ALLOWED: [(&str, &str); 13] = [
        ("name", "name"),
        ("generateName", "generateName"),
        ("namespace", "namespace"),
        ("selfLink", "selfLink"),
        ("uid", "uID"),
        ("resourceVersion", "resourceVersion"),
        ("generation", "generation"),
        ("creationTimestamp", "creationTimestamp"),
        ("deletionTimestamp", "deletionTimestamp"),
        ("deletionGracePeriodSeconds", "deletionGracePeriodSeconds"),
        ("ownerReferences", "ownerReferences"),
        ("finalizers", "finalizers"),
        ("managedFields", "managedFields"),
    ];
    errs.extend(validate_annotations(&meta["annotations"], &path.child("annotations")));
    errs.extend(validate_labels(&meta["labels"], &path.child("labels")));
    for (key, name) in NOT_ALLOWED {
        if !meta[key].is_empty() {
            errs.push(field::forbidden(&path.child(name), "cannot be set"));
        }
    }
}

/// Warnings about a workload whose pods are named after it; an update that changes nothing of it warns of nothing.
pub(crate) fn workload_warnings(obj: &Value, old: Option<&Value>) -> Vec<String> {
    if same_generation(obj, old) {
        return Vec::new();
    }
    let name = if old.is_none() { pod_name_warning(obj) } else { None };
    name.into_iter().chain(warnings(obj)).collect()
}

/// `selector` of a workload spec that keeps pods running; whether pods can be told by it. `kind` and `unusable` are what
/// upstream's messages say of an empty selector and of one that cannot be used.
pub(crate) fn validate_selector(
    errs: &mut ErrorList,
    path: &Path,
    selector: &Value,
    kind: &str,
    unusable: &str,
) -> bool {
    if selector.is_set() {
        label_selector(errs, path, selector);
        if selector_is_empty(selector) {
            let why = format!("empty selector is invalid for {kind}");
            errs.push(field::invalid(path, selector.clone(), why));
        }
    } else {
        errs.push(field::required(path, ""));
    }
    let usable = selector_is_valid(selector);
    if !usable {
        errs.push(field::invalid(path, selector.clone(), unusable));
    }
    usable
}

/// `selector` and `template` of a Deployment's or ReplicaSet's spec; upstream has the same words for both.
pub(crate) fn validate_replicas_of_template(
    errs: &mut ErrorList,
    path: &Path,
    spec: &Value,
    old: Option<&Value>,
) {
    let selector = &spec["selector"];
    let unusable = "invalid label selector";
    if !validate_selector(errs, &path.child("selector"), selector, "deployment", unusable) {
        return;
    }
    let (template, path) = (&spec["template"], path.child("template"));
    validate_labels_match(errs, &path, selector, template);
    validate_pod_template_spec(errs, &path, template, old.map(|old| &old["template"]));
    validate_always_running(errs, &path.child("spec"), &template["spec"], "ReplicaSet");
}

/// The template's labels are such that the workload finds its pods again. A missing selector selects nothing.
pub(crate) fn validate_labels_match(errs: &mut ErrorList, path: &Path, selector: &Value, template: &Value) {
    let labels = &template["metadata"]["labels"];
    let matches = selector.is_set() && selector_matches(selector, labels);
    if !matches {
        errs.push(field::invalid(
            &path.child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
}

/// Pods of a workload that keeps them running restart always and have no deadline. `owner` is named in the message.
pub(crate) fn validate_always_running(errs: &mut ErrorList, path: &Path, spec: &Value, owner: &str) {
    let policy = spec["restartPolicy"].text();
    if policy != "Always" {
        errs.push(field::not_supported(&path.child("restartPolicy"), policy, &["Always"]));
    }
    if spec["activeDeadlineSeconds"].is_set() {
        errs.push(field::forbidden(
            &path.child("activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {owner} is not Supported"),
        ));
    }
}
