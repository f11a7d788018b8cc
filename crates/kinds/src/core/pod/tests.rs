//! Facts about pods, as the upstream API server answers them.

mod containers;
mod lifecycle;
mod scheduling;
mod security;
mod volumes;

use orlop_json::{Value, json};

use crate::testing::check_create;

fn container(extra: Value) -> Value {
    let mut c = json!({"name": "c", "image": "registry.example.com/app:1"});
    for (k, v) in extra.as_object().cloned().unwrap_or_default() {
        c[k] = v;
    }
    c
}

fn pod(extra: Value) -> Value {
    let mut spec = json!({"containers": [container(json!({}))]});
    for (k, v) in extra.as_object().cloned().unwrap_or_default() {
        spec[k] = v;
    }
    json!({"metadata": {"name": "p"}, "spec": spec})
}

/// A pod with these fields in its spec.
fn check(spec: Value, expected: &[&str]) {
    check_create("", "Pod", pod(spec), expected);
}

/// A pod whose one container has these fields.
fn check_container(fields: Value, expected: &[&str]) {
    let volumes = json!([{"name": "v", "emptyDir": {}}]);
    check(json!({"containers": [container(fields)], "volumes": volumes}), expected);
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
