//! The parameters of operations. Version 2 writes a shared one once and refers to it; version 3 writes it where it is.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use orlop_json::{Map, Value, json};

use super::definitions::{META, Version};

/// A parameter of a query or of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// The one with this key in the table.
    Shared(&'static str),
    /// The object's name; with the kind that it names.
    Name(String),
}

/// What requests for lists may say.
pub const LIST: [&str; 10] = [
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];

/// What requests that create or replace may say.
pub const WRITE: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];

/// What patches may say.
pub const PATCH: [&str; 4] = ["dryRun", "fieldManager#patch", "fieldValidation", "force"];

/// What requests that delete one object may say.
pub const DELETE: [&str; 5] = [
    "dryRun",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "orphanDependents",
    "propagationPolicy",
];

/// What requests that delete many may say.
pub const DELETE_COLLECTION: [&str; 13] = [
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "labelSelector",
    "limit",
    "orphanDependents",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];

/// What those who connect to a subresource, or read a log, may say.
pub fn of_options(kind: &str) -> &'static [&'static str] {
    match kind {
        "PodExecOptions" => &["command", "container", "stderr", "stdin", "stdout", "tty"],
        "PodAttachOptions" => &["container", "stderr", "stdin", "stdout", "tty"],
        "PodPortForwardOptions" => &["ports"],
        "PodLogOptions" => &[
            "container",
            "follow",
            "insecureSkipTLSVerifyBackend",
            "limitBytes",
            "pretty",
            "previous",
            "sinceSeconds",
            "stream",
            "tailLines",
            "timestamps",
        ],
        "PodProxyOptions" | "NodeProxyOptions" | "ServiceProxyOptions" => &["path"],
        _ => &[],
    }
}

/// Key (a name, or a name and where it means something else), type, description. Those of paths begin with a slash.
const TABLE: [(&str, &str, &str); 38] = [
    ("/namespace", "string", "object name and auth scope, such as for teams and projects"),
    ("/path", "string", "path to the resource"),
    (
        "allowWatchBookmarks",
        "boolean",
        "Whether a watch may be sent BOOKMARK events. Without effect on lists.",
    ),
    ("command", "string", "The command to run, one argument a parameter. It is not run in a shell."),
    ("container", "string", "The container of the pod; needed when the pod has several."),
    ("continue", "string", "The token with which the previous part of a list ended. Not for watches."),
    ("dryRun", "string", "All: the request goes through every stage, but nothing is persisted."),
    ("fieldManager", "string", "Who makes the change, at most 128 printable characters."),
    (
        "fieldManager#patch",
        "string",
        "Who makes the change, at most 128 printable characters. Apply patches require it; others may leave it out.",
    ),
    ("fieldSelector", "string", "Restricts the objects by their fields. Defaults to everything."),
    (
        "fieldValidation",
        "string",
        "What becomes of unknown and duplicate fields in the request: Ignore drops them, Warn drops them with a warning (the default), Strict refuses the request.",
    ),
    ("follow", "boolean", "Whether the log is followed as it is written."),
    (
        "force",
        "boolean",
        "Whether an apply takes fields over that other managers own. Only for apply patches.",
    ),
    (
        "gracePeriodSeconds",
        "integer",
        "Seconds until the object is deleted, zero = immediately. Defaults to what the object asks for.",
    ),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Whether an object that cannot be read from storage is removed all the same, past finalizers and preconditions. This may break what relied on it.",
    ),
    (
        "insecureSkipTLSVerifyBackend",
        "boolean",
        "Whether the log is read from a kubelet whose serving certificate is not verified.",
    ),
    ("labelSelector", "string", "Restricts the objects by their labels. Defaults to everything."),
    ("limit", "integer", "How many objects the answer holds at most; the list's continue leads to the rest."),
    ("limitBytes", "integer", "How many bytes of the log are sent at most."),
    (
        "orphanDependents",
        "boolean",
        "Deprecated: use propagationPolicy. Whether dependents lose the object as their owner instead of being deleted.",
    ),
    ("path", "string", "The path, and the query, of the proxied request."),
    ("ports", "integer", "The ports to forward. Required for WebSockets."),
    (
        "pretty",
        "string",
        "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent indicates a browser or command-line HTTP tool (curl and wget).",
    ),
    ("previous", "boolean", "Whether the log of the previous run of the container is read."),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan leaves them, Background deletes them afterwards, Foreground deletes them first.",
    ),
    (
        "resourceVersion",
        "string",
        "Constrains the resource versions from which a request may be answered. Defaults to unset.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion applies to a list: NotOlderThan or Exact. Defaults to unset.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Whether a watch begins with the present objects and a bookmark that ends them. Needs resourceVersionMatch=NotOlderThan.",
    ),
    ("sinceSeconds", "integer", "How many seconds back the log begins."),
    ("stderr", "boolean", "Whether standard error is sent to the client."),
    ("stdin", "boolean", "Whether standard input is taken from the client."),
    ("stdout", "boolean", "Whether standard output is sent to the client."),
    ("stream", "string", "Which stream of the log is sent: All, Stdout or Stderr."),
    ("tailLines", "integer", "How many lines from the end of the log are sent."),
    ("timeoutSeconds", "integer", "Seconds after which the list or watch ends."),
    ("timestamps", "boolean", "Whether each line of the log begins with its time."),
    ("tty", "boolean", "Whether the container's process has a terminal."),
    (
        "watch",
        "boolean",
        "Whether changes to the objects are sent as they happen, beginning at resourceVersion.",
    ),
];

/// What version 2 calls a shared parameter, and the parameter itself.
struct Shared {
    v2: Value,
    v3: Value,
    reference: String,
}

static SHARED: LazyLock<HashMap<&'static str, Shared>> = LazyLock::new(|| {
    TABLE
        .iter()
        .map(|(key, ty, description)| {
            let (place, name) = match key.strip_prefix('/') {
                Some(name) => ("path", name),
                None => ("query", key.split('#').next().unwrap_or(key)),
            };
            let v2 = write(name, place, ty, description, Version::V2);
            let v3 = write(name, place, ty, description, Version::V3);
            let reference = shared_name(name, &v2);
            (*key, Shared { v2, v3, reference })
        })
        .collect()
});

/// The bodies that version 2 shares: those that are of no resource.
static BODIES: LazyLock<Vec<(String, Value)>> = LazyLock::new(|| {
    [("DeleteOptions", false), ("Patch", true)]
        .map(|(kind, required)| {
            let body = body(&format!("{META}{kind}"), required);
            (shared_name("body", &body), body)
        })
        .to_vec()
});

fn write(name: &str, place: &str, ty: &str, description: &str, version: Version) -> Value {
    let mut out = json!({"description": description, "in": place, "name": name});
    if place == "path" {
        out["required"] = json!(true);
    }
    if version == Version::V2 {
        out["type"] = json!(ty);
        out["uniqueItems"] = json!(true);
    } else {
        out["schema"] = json!({"type": ty, "uniqueItems": true});
    }
    out
}

fn body(model: &str, required: bool) -> Value {
    let mut out = json!({"in": "body", "name": "body"});
    if required {
        out["required"] = json!(true);
    }
    out["schema"] = Version::V2.reference(model);
    out
}

/// A name that says what is behind it: it changes when the parameter does.
fn shared_name(name: &str, parameter: &Value) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha224::digest(parameter.to_string().as_bytes());
    format!("{name}-{}", base64::engine::general_purpose::URL_SAFE.encode(&hash[..6]))
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/parameters/{name}")})
}

/// The body of an operation in version 2.
pub fn v2_body(model: &str, required: bool) -> Value {
    let body = body(model, required);
    match BODIES.iter().find(|(_, shared)| *shared == body) {
        Some((name, _)) => reference(name),
        None => body,
    }
}

/// The `parameters` of a version 2 document.
pub fn v2_shared() -> Map {
    let mut all: Vec<(&String, &Value)> =
        SHARED.values().map(|shared| (&shared.reference, &shared.v2)).collect();
    all.extend(BODIES.iter().map(|(name, body)| (name, body)));
    all.sort_by_key(|(name, _)| *name);
    all.into_iter().map(|(name, value)| (name.into(), value.clone())).collect()
}

impl Parameter {
    /// By what parameters are told apart and sorted: name, then place.
    pub fn key(&self) -> (&str, &str) {
        match self {
            Parameter::Name(_) => ("name", "path"),
            Parameter::Shared(key) => match key.strip_prefix('/') {
                Some(name) => (name, "path"),
                None => (key.split('#').next().unwrap_or(key), "query"),
            },
        }
    }

    /// As a document has it.
    pub fn value(&self, version: Version) -> Value {
        match self {
            Parameter::Name(kind) => write("name", "path", "string", &format!("name of the {kind}"), version),
            Parameter::Shared(key) => match (SHARED.get(key), version) {
                (Some(shared), Version::V2) => reference(&shared.reference),
                (Some(shared), Version::V3) => shared.v3.clone(),
                (None, _) => Value::Null,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_key_is_in_the_table() {
        let kinds = [
            "PodExecOptions",
            "PodAttachOptions",
            "PodPortForwardOptions",
            "PodLogOptions",
            "PodProxyOptions",
        ];
        let options = kinds.iter().flat_map(|kind| of_options(kind));
        let keys =
            LIST.iter().chain(&WRITE).chain(&PATCH).chain(&DELETE).chain(&DELETE_COLLECTION).chain(options);
        for key in keys.chain(&["pretty", "/namespace", "/path"]) {
            assert!(SHARED.contains_key(key), "{key}");
        }
        assert_eq!(SHARED.len(), TABLE.len());
    }

    #[test]
    fn forms() {
        let shared = v2_shared();
        let check = |parameter: Parameter, v3: Value| {
            assert_eq!(parameter.value(Version::V3), v3);
        };
        check(
            Parameter::Name("Pod".into()),
            json!({"name": "name", "in": "path", "description": "name of the Pod", "required": true,
                "schema": {"type": "string", "uniqueItems": true}}),
        );
        check(
            Parameter::Shared("limit"),
            json!({"name": "limit", "in": "query", "schema": {"type": "integer", "uniqueItems": true},
                "description": "How many objects the answer holds at most; the list's continue leads to the rest."}),
        );
        let reference = Parameter::Shared("fieldManager#patch").value(Version::V2);
        let name = reference["$ref"].as_str().unwrap().strip_prefix("#/parameters/").unwrap();
        assert!(name.starts_with("fieldManager-") && name.len() == "fieldManager-".len() + 8, "{name}");
        assert_eq!(shared[name]["name"], "fieldManager");
        let name = v2_body("io.k8s.apimachinery.pkg.apis.meta.v1.Patch", true);
        assert!(shared.contains_key(name["$ref"].as_str().unwrap().trim_start_matches("#/parameters/")));
        assert_eq!(v2_body("x", true)["schema"]["$ref"], "#/definitions/x");
    }
}
