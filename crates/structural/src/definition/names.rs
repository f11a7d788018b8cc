//! Group, scope, names, and who approved a group of the community's.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use super::{items, joined, text};

const APPROVED: &str = "api-approved.kubernetes.io";

pub(super) fn validate_group_and_scope(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let group = text(spec, "group");
    let at = path.child("group");
    if group.is_empty() {
        errors.push(field::required(&at, ""));
    } else if let Some(messages) = joined(names::is_dns1123_subdomain(group)) {
        errors.push(field::invalid(&at, group, messages));
    } else if !group.contains('.') {
        errors.push(field::invalid(&at, group, "should be a domain with at least one dot"));
    }
    match text(spec, "scope") {
        "" => errors.push(field::required(&path.child("scope"), "")),
        "Cluster" | "Namespaced" => {}
        other => errors.push(field::not_supported(&path.child("scope"), other, &["Cluster", "Namespaced"])),
    }
    errors
}

pub(super) fn validate_names(names_of: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut label = |path: Path, value: &str, prefix: &str| {
        let lower = if prefix.is_empty() { value.to_string() } else { value.to_lowercase() };
        if let Some(messages) = joined(names::is_dns1035_label(&lower)).filter(|_| !value.is_empty()) {
            errors.push(field::invalid(&path, value, format!("{prefix}{messages}")));
        }
    };
    const MIXED: &str = "may have mixed case, but should otherwise match: ";
    label(path.child("plural"), text(names_of, "plural"), "");
    label(path.child("singular"), text(names_of, "singular"), "");
    label(path.child("kind"), text(names_of, "kind"), MIXED);
    label(path.child("listKind"), text(names_of, "listKind"), MIXED);
    let list = |errors: &mut ErrorList, field: &str| {
        for (at, name) in items(names_of, field).iter().enumerate() {
            let name = name.as_str().unwrap_or("");
            if let Some(messages) = joined(names::is_dns1035_label(name)) {
                errors.push(field::invalid(&path.child(field).index(at), name, messages));
            }
        }
    };
    list(&mut errors, "shortNames");
    let kind = text(names_of, "kind");
    if !kind.is_empty() && kind == text(names_of, "listKind") {
        errors.push(field::invalid(&path.child("listKind"), kind, "kind and listKind may not be the same"));
    }
    list(&mut errors, "categories");
    errors
}

/// Whether a group belongs to the Kubernetes community.
fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group == *domain || group.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')))
}

/// The state of a definition's approval: the reason of the condition `KubernetesAPIApprovalPolicyConformant`, its status
/// and its message. `None` = the group needs no approval.
pub fn api_approval(definition: &Value) -> Option<(&'static str, bool, String)> {
    let group = definition.get("spec").map_or("", |spec| text(spec, "group"));
    if !is_protected(group) {
        return None;
    }
    let annotation =
        definition.pointer("/metadata/annotations").map_or("", |annotations| text(annotations, APPROVED));
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    if annotation.is_empty() {
        let message = format!("protected groups must have approval annotation \"{APPROVED}\", {see}");
        return Some(("MissingAnnotation", false, message));
    }
    if annotation.starts_with("unapproved") {
        return Some(("UnapprovedAnnotation", false, format!("not approved: {annotation:?}")));
    }
    let url = annotation.split_once("://").is_some_and(|(scheme, rest)| {
        let host = rest.split(['/', '?', '#']).next().unwrap_or("");
        let named = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
        named && !host.is_empty() && !annotation.contains(char::is_whitespace)
    });
    if url {
        return Some(("ApprovedAnnotation", true, format!("approved in {annotation}")));
    }
    let message = format!(
        "protected groups must have approval annotation \"{APPROVED}\" with either a URL or a reason starting with \"unapproved\", {see}"
    );
    Some(("InvalidAnnotation", false, message))
}

pub(super) fn validate_api_approval(definition: &Value, old: Option<&Value>) -> ErrorList {
    let Some((reason, _, message)) = api_approval(definition) else { return ErrorList::new() };
    // What was so before may stay.
    if old.and_then(api_approval).is_some_and(|(before, ..)| before == reason) {
        return ErrorList::new();
    }
    let path = Path::new("metadata").child("annotations").key(APPROVED);
    match reason {
        "MissingAnnotation" => vec![field::required(&path, &message)],
        "InvalidAnnotation" => {
            let value = definition.pointer("/metadata/annotations").map_or("", |all| text(all, APPROVED));
            vec![field::invalid(&path, value, message)]
        }
        _ => ErrorList::new(),
    }
}
