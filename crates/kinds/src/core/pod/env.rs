//! Environment variables and references to fields: `env`, `envFrom`, `fieldRef`, `resourceFieldRef`.

use orlop_api::field::{self, ErrorList, Path};
use orlop_api::names;
use orlop_json::Value;

use super::resources::quantity;
use super::validation::Pod;
use crate::NameRule;
use crate::cursor::Cursor;
use crate::validate::{invalids, local_descending_path, object_name, qualified_name, require_text};

/// What `fieldRef` may name in an environment variable.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// What `fieldRef` may name in a file of a volume.
pub(super) const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// What `fieldRef` may name at all, in a version that knows labels.
const ALL_FIELDS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const BYTE_DIVISORS: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";

pub(super) fn validate_env(errs: &mut ErrorList, path: &Path, env: &Value, pod: &Pod) {
    for (i, var) in env.items().iter().enumerate() {
        let path = path.index(i);
        let name = var["name"].text();
        if name.is_empty() {
            errs.push(field::required(&path.child("name"), ""));
        } else {
            invalids(errs, &path.child("name"), name, names::is_relaxed_env_var_name(name));
        }
        let source = &var["valueFrom"];
        if source.is_set() {
            validate_value_from(errs, &path.child("valueFrom"), source, var["value"].text(), pod);
        }
    }
}

fn validate_value_from(errs: &mut ErrorList, path: &Path, source: &Value, value: &str, pod: &Pod) {
    let mut sources = 0;
    if source["fieldRef"].is_set() {
        sources += 1;
        validate_field_ref(errs, &path.child("fieldRef"), &source["fieldRef"], &ENV_FIELDS);
    }
    if source["resourceFieldRef"].is_set() {
        sources += 1;
        let path = path.child("resourceFieldRef");
        validate_resource_field_ref(errs, &path, &source["resourceFieldRef"], false);
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        let key_ref = &source[kind];
        if key_ref.is_set() {
            sources += 1;
            let path = path.child(kind);
            object_name(errs, &path.child("name"), key_ref["name"].text(), NameRule::DnsSubdomain);
            let key = key_ref["key"].text();
            if key.is_empty() {
                errs.push(field::required(&path.child("key"), ""));
            } else {
                invalids(errs, &path.child("key"), key, names::is_config_map_key(key));
            }
        }
    }
    let file = &source["fileKeyRef"];
    if file.is_set() {
        sources += 1;
        let path = path.child("fileKeyRef");
        for key in ["volumeName", "path", "key"] {
            require_text(errs, &path.child(key), file[key].text());
        }
        local_descending_path(errs, &path.child("path"), file["path"].text());
        let volume = file["volumeName"].text();
        if !volume.is_empty() && !pod.volume(volume).is_some_and(|v| v["emptyDir"].is_set()) {
            errs.push(field::not_found(&path.child("volumeName"), volume));
        }
    }
    if sources == 0 {
        errs.push(field::invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ));
    } else if !value.is_empty() {
        errs.push(field::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errs.push(field::invalid(path, "", "may not have more than one field specified at a time"));
    }
}

pub(super) fn validate_env_from(errs: &mut ErrorList, path: &Path, sources: &Value) {
    for (i, source) in sources.items().iter().enumerate() {
        let at = path.index(i);
        let prefix = source["prefix"].text();
        if !prefix.is_empty() {
            invalids(errs, &at.child("prefix"), prefix, names::is_relaxed_env_var_name(prefix));
        }
        let mut count = 0;
        for kind in ["configMapRef", "secretRef"] {
            if source[kind].is_set() {
                count += 1;
                let path = at.child(kind).child("name");
                let name = source[kind]["name"].text();
                if name.is_empty() {
                    errs.push(field::required(&path, ""));
                } else {
                    invalids(errs, &path, name, NameRule::DnsSubdomain.check(name, true));
                }
            }
        }
        // Upstream reports both at the list.
        if count == 0 {
            errs.push(field::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"));
        } else if count > 1 {
            errs.push(field::invalid(path, "", "may not have more than one field specified at a time"));
        }
    }
}

/// `metadata.labels['key']` split into path and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

/// A reference to a field of the pod.
pub(super) fn validate_field_ref(errs: &mut ErrorList, path: &Path, field_ref: &Value, valid: &[&str]) {
    let version = field_ref["apiVersion"].text();
    if version.is_empty() {
        errs.push(field::required(&path.child("apiVersion"), ""));
        return;
    }
    let label = field_ref["fieldPath"].text();
    let label_path = path.child("fieldPath");
    if label.is_empty() {
        errs.push(field::required(&label_path, ""));
        return;
    }
    if version != "v1" {
        let why = format!("error converting fieldPath: unsupported pod version: {version}");
        errs.push(field::invalid(&label_path, label, why));
        return;
    }
    if let Some((map, key)) = subscript(label) {
        match map {
            "metadata.annotations" => qualified_name(errs, path, &key.to_lowercase()),
            "metadata.labels" => qualified_name(errs, path, key),
            _ => errs.push(field::invalid(
                &label_path,
                label,
                format!("error converting fieldPath: field label does not support subscript: {label}"),
            )),
        }
        return;
    }
    let label = if label == "spec.host" { "spec.nodeName" } else { label };
    if !ALL_FIELDS.contains(&label) {
        let why = format!("error converting fieldPath: field label not supported: {label}");
        errs.push(field::invalid(&label_path, label, why));
    } else if !valid.contains(&label) {
        errs.push(field::not_supported(&label_path, label, valid));
    }
}

/// A reference to a container's requests or limits.
pub(super) fn validate_resource_field_ref(
    errs: &mut ErrorList,
    path: &Path,
    field_ref: &Value,
    volume: bool,
) {
    let resource = field_ref["resource"].text();
    let huge_pages = ["requests.hugepages-", "limits.hugepages-"].iter().any(|p| resource.starts_with(p));
    if volume && field_ref["containerName"].text().is_empty() {
        errs.push(field::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errs.push(field::required(&path.child("resource"), ""));
    } else if !RESOURCES.contains(&resource) && !huge_pages {
        errs.push(field::not_supported(&path.child("resource"), resource, &RESOURCES));
    }
    let divisor = field_ref["divisor"].text();
    if quantity(&field_ref["divisor"]).is_zero() {
        return;
    }
    let (valid, of): (String, &str) = match resource {
        "limits.cpu" | "requests.cpu" => ("1m and 1".to_owned(), "cpu"),
        "limits.memory" | "requests.memory" => (BYTE_DIVISORS.to_owned(), "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => {
            (BYTE_DIVISORS.to_owned(), "local ephemeral storage")
        }
        _ if huge_pages => (BYTE_DIVISORS.to_owned(), "hugepages"),
        _ => return,
    };
    let good = if of == "cpu" {
        matches!(divisor, "1m" | "1")
    } else {
        BYTE_DIVISORS.split(", ").any(|d| d == divisor)
    };
    if !good {
        errs.push(field::invalid(
            &path.child("divisor"),
            resource,
            format!("only divisor's values {valid} are supported with the {of} resource"),
        ));
    }
}
