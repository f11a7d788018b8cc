//! Nodes and pods for tests.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

/// A node with this much CPU and memory and room for 110 pods.
pub fn node(name: &str, cpu: &str, memory: &str) -> Arc<Node> {
    node_with(name, json!({}), json!({"allocatable": {"cpu": cpu, "memory": memory, "pods": "110"}}))
}

/// A node with these labels' and spec's JSON.
pub fn labelled_node(name: &str, labels: Value, spec: Value) -> Arc<Node> {
    let mut node = json!({"metadata": {"name": name, "labels": labels}, "spec": spec});
    node["status"] = json!({"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}});
    parse(node)
}

fn node_with(name: &str, spec: Value, status: Value) -> Arc<Node> {
    parse(json!({"metadata": {"name": name}, "spec": spec, "status": status}))
}

/// A pod with one container that asks for this much.
pub fn pod(name: &str, cpu: &str, memory: &str) -> Arc<Pod> {
    pod_with(
        name,
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}),
    )
}

/// A pod with this spec; containers are added when it has none.
pub fn pod_with(name: &str, mut spec: Value) -> Arc<Pod> {
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    let metadata = json!({"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}});
    parse(json!({"metadata": metadata, "spec": spec}))
}

fn parse<K: serde::de::DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).expect("a valid object"))
}
