//! `metadata`: upstream's `ValidateObjectMeta` and `ValidateObjectMetaUpdate` with the core group's rule about finalizers.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use crate::NameRule;
use crate::cursor::{Cursor, same};

/// All annotations of an object together, keys and values, in bytes.
const TOTAL_ANNOTATION_SIZE: usize = 256 * 1024;
/// What upstream says of a field that an update may not change.
pub(crate) const IMMUTABLE: &str = "field is immutable";

/// Messages about a name under `rule`.
pub(crate) fn check_name(rule: NameRule, name: &str, prefix: bool) -> Vec<String> {
    if rule == NameRule::PathSegment {
        return if prefix { names::path_segment_prefix(name) } else { names::path_segment(name) };
    }
    let masked;
    let name = if prefix {
        masked = names::mask_trailing_dash(name);
        masked.as_str()
    } else {
        name
    };
    match rule {
        NameRule::DnsSubdomain => names::is_dns1123_subdomain(name),
        NameRule::DnsLabel => names::is_dns1123_label(name),
        NameRule::PathSegment => Vec::new(),
    }
}

/// What is wrong with a new object's `metadata`: of a kind of the core server, where a finalizer without a domain must be
/// one of the system's own.
pub(crate) fn validate_object_meta(obj: &Value, namespaced: bool, rule: NameRule) -> ErrorList {
    validate_meta(&obj["metadata"], namespaced, rule, &Path::new("metadata"))
}

pub(crate) fn validate_meta(meta: &Value, namespaced: bool, rule: NameRule, path: &Path) -> ErrorList {
    validate_meta_by(meta, namespaced, &|name, prefix| check_name(rule, name, prefix), path)
}

/// [`validate_meta`] of a kind whose names have a rule of their own: messages about a name, or about a prefix.
pub(crate) fn validate_meta_by(
    meta: &Value,
    namespaced: bool,
    rule: &dyn Fn(&str, bool) -> Vec<String>,
    path: &Path,
) -> ErrorList {
    let mut errs = validate_generic_meta_by(meta, namespaced, rule, path);
    errs.extend(validate_kube_finalizers(&meta["finalizers"], &path.child("finalizers")));
    errs
}

/// [`validate_object_meta`] without the rule for finalizers: custom resources and the kinds of the servers for them, of
/// admission and of aggregation, and leases.
pub fn validate_generic_object_meta(obj: &Value, namespaced: bool, rule: NameRule) -> ErrorList {
    let names = |name: &str, prefix| check_name(rule, name, prefix);
    validate_generic_meta_by(&obj["metadata"], namespaced, &names, &Path::new("metadata"))
}

/// What is wrong with the metadata of a resource embedded in another: it need not have a name, and where it lives is its own
/// business.
pub fn validate_embedded_object_meta(obj: &Value) -> ErrorList {
    let mut meta = match &obj["metadata"] {
        meta @ Value::Object(_) => meta.clone(),
        _ => return ErrorList::new(),
    };
    if meta["name"].text().is_empty() {
        meta["name"] = "fakename".into();
    }
    let namespaced = !meta["namespace"].text().is_empty();
    let names = |name: &str, prefix| check_name(NameRule::PathSegment, name, prefix);
    validate_generic_meta_by(&meta, namespaced, &names, &Path::new("metadata"))
}

/// [`validate_meta_by`] without the rule for finalizers.
pub(crate) fn validate_generic_meta_by(
    meta: &Value,
    namespaced: bool,
    rule: &dyn Fn(&str, bool) -> Vec<String>,
    path: &Path,
) -> ErrorList {
    let mut errs = ErrorList::new();
    let generate_name = meta["generateName"].text();
    if !generate_name.is_empty() {
        for msg in rule(generate_name, true) {
            errs.push(field::invalid(&path.child("generateName"), generate_name, msg));
        }
    }
    let name = meta["name"].text();
    if name.is_empty() {
        errs.push(field::required(&path.child("name"), "name or generateName is required"));
    } else {
        for msg in rule(name, false) {
            errs.push(field::invalid(&path.child("name"), name, msg));
        }
    }
    let namespace = meta["namespace"].text();
    if namespaced {
        if namespace.is_empty() {
            errs.push(field::required(&path.child("namespace"), ""));
        } else {
            for msg in check_name(NameRule::DnsLabel, namespace, false) {
                errs.push(field::invalid(&path.child("namespace"), namespace, msg));
            }
        }
    } else if !namespace.is_empty() {
        errs.push(field::forbidden(&path.child("namespace"), "not allowed on this type"));
    }
    let generation = meta["generation"].int();
    if generation < 0 {
        errs.push(field::invalid(
            &path.child("generation"),
            generation,
            "must be greater than or equal to 0",
        ));
    }
    errs.extend(validate_labels(&meta["labels"], &path.child("labels")));
    errs.extend(validate_annotations(&meta["annotations"], &path.child("annotations")));
    errs.extend(validate_owner_references(&meta["ownerReferences"], &path.child("ownerReferences")));
    errs.extend(validate_finalizers(&meta["finalizers"], &path.child("finalizers")));
    errs
}

/// What is wrong with replacing `old`'s `metadata` by `obj`'s, see [`validate_object_meta`].
pub(crate) fn validate_object_meta_update(obj: &Value, old: &Value) -> ErrorList {
    let mut errs = validate_generic_object_meta_update(obj, old);
    let path = Path::new("metadata").child("finalizers");
    errs.extend(validate_kube_finalizers(&obj["metadata"]["finalizers"], &path));
    errs
}

/// [`validate_object_meta_update`] without the rule for finalizers, see [`validate_generic_object_meta`].
pub fn validate_generic_object_meta_update(obj: &Value, old: &Value) -> ErrorList {
    let (meta, was) = (&obj["metadata"], &old["metadata"]);
    let path = Path::new("metadata");
    let mut errs = ErrorList::new();
    if was.has("deletionTimestamp") {
        let before = was["finalizers"].texts();
        let mut extra: Vec<&str> =
            meta["finalizers"].texts().into_iter().filter(|f| !before.contains(f)).collect();
        extra.sort_unstable();
        extra.dedup();
        if !extra.is_empty() {
            let list: Vec<String> = extra.iter().map(|f| format!("{f:?}")).collect();
            errs.push(field::forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                ),
            ));
        }
    }
    if meta["resourceVersion"].text().is_empty() {
        errs.push(field::invalid(&path.child("resourceVersion"), "", "must be specified for an update"));
    }
    if meta["generation"].int() < was["generation"].int() {
        errs.push(field::invalid(
            &path.child("generation"),
            meta["generation"].int(),
            "must not be decremented",
        ));
    }
    for key in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        errs.extend(validate_immutable(&meta[key], &was[key], &path.child(key)));
    }
    errs.extend(validate_labels(&meta["labels"], &path.child("labels")));
    errs.extend(validate_annotations(&meta["annotations"], &path.child("annotations")));
    errs.extend(validate_owner_references(&meta["ownerReferences"], &path.child("ownerReferences")));
    errs
}

/// What every update is checked for before its kind looks at it. Kinds check most of it again, so that upstream lists
/// such causes more than once.
pub fn validate_common_update(obj: &Value, old: &Value, namespaced: bool) -> ErrorList {
    let mut errs = validate_generic_object_meta(obj, namespaced, NameRule::PathSegment);
    errs.extend(validate_generic_object_meta_update(obj, old));
    errs
}

/// One error when the field changed.
pub(crate) fn validate_immutable(new: &Value, old: &Value, path: &Path) -> ErrorList {
    if same(new, old) { ErrorList::new() } else { vec![field::invalid(path, new.clone(), IMMUTABLE)] }
}

/// Label keys are qualified names, values short identifiers. Both kinds of error are reported at the map.
pub fn validate_labels(labels: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (key, value) in labels.entries() {
        errs.extend(validate_label_name(key, path));
        for msg in names::is_valid_label_value(value.text()) {
            errs.push(field::invalid(path, value.text(), msg));
        }
    }
    errs
}

/// A label key.
pub(crate) fn validate_label_name(key: &str, path: &Path) -> ErrorList {
    let name = |msg: String| match msg.strip_prefix("a qualified name") {
        Some(rest) => format!("a valid label key{rest}"),
        None => msg,
    };
    names::is_qualified_name(key).into_iter().map(|msg| field::invalid(path, key, name(msg))).collect()
}

/// Annotation keys are qualified names (in any case), and all together stay below 256 KiB.
pub fn validate_annotations(annotations: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut total = 0;
    for (key, value) in annotations.entries() {
        for msg in names::is_qualified_name(&key.to_lowercase()) {
            errs.push(field::invalid(path, key.as_str(), msg));
        }
        total += key.len() + value.text().len();
    }
    if total > TOTAL_ANNOTATION_SIZE {
        errs.push(field::too_long(path, TOTAL_ANNOTATION_SIZE));
    }
    errs
}

fn validate_owner_references(owners: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut controller: Option<String> = None;
    for owner in owners.items() {
        let api_version = owner["apiVersion"].text();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = owner["kind"].text();
        if version.is_empty() {
            errs.push(field::invalid(&path.child("apiVersion"), api_version, "version must not be empty"));
        }
        for key in ["kind", "name", "uid"] {
            if owner[key].text().is_empty() {
                errs.push(field::invalid(&path.child(key), "", "must not be empty"));
            }
        }
        if (group, version, kind) == ("", "v1", "Event") {
            errs.push(field::invalid(
                path,
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner["controller"].flag() {
            let this = format!("{kind}/{}", owner["name"].text());
            match &controller {
                Some(first) => errs.push(field::invalid(
                    path,
                    owners.clone(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    ),
                )),
                None => controller = Some(this),
            }
        }
    }
    errs
}

fn validate_finalizers(finalizers: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let names_ = finalizers.texts();
    for name in &names_ {
        for msg in names::is_qualified_name(name) {
            errs.push(field::invalid(path, *name, msg));
        }
    }
    if names_.contains(&"orphan") && names_.contains(&"foregroundDeletion") {
        errs.push(field::invalid(
            path,
            finalizers.clone(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errs
}

/// A finalizer without a domain must be one of the system's own.
pub(crate) fn validate_kube_finalizers(finalizers: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, name) in finalizers.texts().into_iter().enumerate() {
        if !name.contains('/') && !is_standard_finalizer(name) {
            errs.push(field::invalid(
                &path.index(i),
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errs
}

pub(crate) fn is_standard_finalizer(name: &str) -> bool {
    matches!(name, "kubernetes" | "orphan" | "foregroundDeletion")
}
