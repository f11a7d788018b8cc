//! `RuntimeClass`: what a pod costs beyond its containers, and on which nodes its runtime is found.

use async_trait::async_trait;
use orlop_api::equality;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::{Admission, Operation, Request};
use crate::registry::Registry;

pub(super) struct RuntimeClass;

/// The class a pod names; 403 when there is none of that name.
fn class_of(registry: &Registry, request: &Request<'_>) -> Result<Option<Value>, ApiError> {
    let Some(name) = request.object["spec"].get("runtimeClassName").and_then(Value::as_str) else {
        return Ok(None);
    };
    match registry.resources.cache("node.k8s.io", "RuntimeClass").and_then(|cache| cache.get(name)) {
        Some(entry) => Ok(Some(entry.value())),
        None => Err(request
            .forbidden(format!("pod rejected: RuntimeClass {} not found", orlop_api::field::go_quote(name)))),
    }
}

/// The overhead of a class; `None` when it has none.
fn overhead_of(class: &Value) -> Option<&Value> {
    class.pointer("/overhead/podFixed").filter(|overhead| !is_empty(overhead))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

/// Adds the class's node selector to the pod's; the message when they contradict each other.
fn add_selector(spec: &mut Value, selector: &Value) -> Result<(), String> {
    for (key, value) in selector.as_object().into_iter().flatten() {
        let own = spec.get("nodeSelector").and_then(|own| own.get(key));
        if let Some(own) = own.filter(|own| *own != value) {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                value.as_str().unwrap_or(""),
                own.as_str().unwrap_or("")
            ));
        }
    }
    for (key, value) in selector.as_object().into_iter().flatten() {
        spec["nodeSelector"][key] = value.clone();
    }
    if let Some(own) = spec.get_mut("nodeSelector").and_then(Value::as_object_mut) {
        own.sort_keys();
    }
    Ok(())
}

/// Adds the class's tolerations that the pod does not have.
fn add_tolerations(spec: &mut Value, tolerations: &Value) {
    let mut own = spec.get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    for toleration in tolerations.as_array().into_iter().flatten() {
        if !own.contains(toleration) {
            own.push(toleration.clone());
        }
    }
    if !own.is_empty() {
        spec["tolerations"] = Value::Array(own);
    }
}

#[async_trait]
impl Admission for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is_core("pods") && request.operation == Operation::Create
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        let Some(class) = class_of(registry, request)? else { return Ok(()) };
        if let Some(overhead) = overhead_of(&class) {
            match request.object["spec"].get("overhead").filter(|own| !is_empty(own)) {
                Some(own) if !equality::semantic_equal(own, overhead) => {
                    return Err(request.forbidden(MISMATCH));
                }
                _ => request.object["spec"]["overhead"] = json!(overhead),
            }
        }
        let scheduling = &class["scheduling"];
        let spec = &mut request.object["spec"];
        if let Err(message) = add_selector(spec, &scheduling["nodeSelector"]) {
            return Err(request.forbidden(message));
        }
        add_tolerations(spec, &scheduling["tolerations"]);
        Ok(())
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let class = class_of(registry, request)?;
        let own = request.object["spec"].get("overhead").filter(|own| !is_empty(own));
        match (class.as_ref().and_then(overhead_of), own) {
            (Some(wanted), Some(own)) if !equality::semantic_equal(own, wanted) => {
                Err(request.forbidden(MISMATCH))
            }
            (None, Some(_)) => Err(request.forbidden(
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduling_is_merged() {
        let check = |mut spec: Value, selector: Value, expected: Result<Value, &str>| {
            let outcome = add_selector(&mut spec, &selector).map(|()| spec);
            assert_eq!(outcome, expected.map_err(String::from));
        };
        check(json!({}), json!({"a": "1"}), Ok(json!({"nodeSelector": {"a": "1"}})));
        check(json!({}), Value::Null, Ok(json!({})));
        check(
            json!({"nodeSelector": {"a": "2"}}),
            json!({"a": "1"}),
            Err("conflict: runtimeClass.scheduling.nodeSelector[a] = 1; pod.spec.nodeSelector[a] = 2"),
        );
        let mut spec = json!({"tolerations": [{"key": "x"}]});
        add_tolerations(&mut spec, &json!([{"key": "x"}, {"key": "y"}]));
        assert_eq!(spec, json!({"tolerations": [{"key": "x"}, {"key": "y"}]}));
    }
}
