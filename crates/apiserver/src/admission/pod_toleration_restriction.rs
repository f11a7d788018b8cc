//! `PodTolerationRestriction`: a namespace says in annotations which tolerations its pods get and which they may have;
//! the plugin's configuration says it for namespaces that do not.

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::registry::Registry;

const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

pub(super) struct PodTolerationRestriction {
    defaults: Vec<Value>,
    allowed: Vec<Value>,
}

impl PodTolerationRestriction {
    /// With the plugin's configuration, if it has one.
    pub(super) fn new(configuration: Option<&Value>) -> Result<PodTolerationRestriction, String> {
        let list = |field: &str| configuration.map_or(Vec::new(), |c| c.items(field).to_vec());
        Ok(PodTolerationRestriction { defaults: list("default"), allowed: list("whitelist") })
    }
}

/// The tolerations in an annotation; `None` when it is not there.
fn annotated(namespace: &Value, key: &str) -> Result<Option<Vec<Value>>, ApiError> {
    let Some(text) = namespace.annotation(key) else { return Ok(None) };
    if text.is_empty() {
        return Ok(Some(Vec::new()));
    }
    orlop_json::from_str(text).map(Some).map_err(|error| ApiError::generic(500, "", error.to_string()))
}

/// Whether everything that `narrow` tolerates `wide` tolerates too.
fn is_superset(wide: &Value, narrow: &Value) -> bool {
    let exists = |toleration: &Value| toleration.text("operator") == "Exists";
    if wide.text("key").is_empty() && exists(wide) {
        return true;
    }
    if wide.text("key") != narrow.text("key") {
        return false;
    }
    let effect = wide.text("effect");
    if !effect.is_empty() && effect != narrow.text("effect") {
        return false;
    }
    if effect == "NoExecute" {
        let seconds = |toleration: &Value| toleration.get("tolerationSeconds").and_then(Value::as_i64);
        if let Some(most) = seconds(wide)
            && seconds(narrow).is_none_or(|own| own > most)
        {
            return false;
        }
    }
    exists(wide) || (!exists(narrow) && wide.text("value") == narrow.text("value"))
}

/// All of them, without those that others include.
fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut out: Vec<Value> = Vec::new();
    for (index, toleration) in all.iter().enumerate() {
        let covered = out.iter().any(|kept| is_superset(kept, toleration))
            || all[index + 1..].iter().any(|later| is_superset(later, toleration));
        if !covered {
            out.push((*toleration).clone());
        }
    }
    out
}

#[async_trait]
impl Admission for PodTolerationRestriction {
    fn name(&self) -> &'static str {
        "PodTolerationRestriction"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is_core("pods") && matches!(request.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        if request.operation == Operation::Create {
            let namespace = namespace_of(registry, request)?;
            let defaults = annotated(&namespace, DEFAULTS)?.unwrap_or_else(|| self.defaults.clone());
            let own = request.object["spec"].items("tolerations");
            let mut merged = merge(&defaults, own);
            // A pod with memory requests is kept when memory runs low, as any other of its quality of service.
            if orlop_kinds::core::pod::qos::class(&request.object["spec"]) != "BestEffort" {
                let pressure = json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"});
                merged = merge(&merged, &[pressure]);
            }
            if !merged.is_empty() {
                request.object["spec"]["tolerations"] = Value::Array(merged);
            }
        }
        self.validate(registry, request).await
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let own = request.object["spec"].items("tolerations");
        if own.is_empty() {
            return Ok(());
        }
        let namespace = namespace_of(registry, request)?;
        let allowed = annotated(&namespace, ALLOWED)?.unwrap_or_else(|| self.allowed.clone());
        let fits = |toleration: &Value| allowed.iter().any(|wide| is_superset(wide, toleration));
        if allowed.is_empty() || own.iter().all(fits) {
            return Ok(());
        }
        Err(ApiError::generic(
            500,
            "",
            "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist",
        ))
    }
}

fn namespace_of(registry: &Registry, request: &Request<'_>) -> Result<Value, ApiError> {
    let name = request.call.namespace;
    let namespaces = registry.resources.cache("", "Namespace");
    namespaces
        .and_then(|namespaces| namespaces.get(name))
        .map(|entry| entry.value())
        .ok_or_else(|| ApiError::not_found("", "namespaces", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_tolerations_include_which() {
        let check = |wide: Value, narrow: Value, expected: bool| {
            assert_eq!(is_superset(&wide, &narrow), expected, "{wide} {narrow}");
        };
        let all = json!({"operator": "Exists"});
        let key = json!({"key": "k", "operator": "Exists"});
        let value = json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"});
        check(all.clone(), value.clone(), true);
        check(key.clone(), value.clone(), true);
        check(value.clone(), key.clone(), false);
        check(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), value.clone(), false);
        let seconds =
            |n: i64| json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": n});
        check(seconds(10), seconds(5), true);
        check(seconds(5), seconds(10), false);
        assert_eq!(merge(std::slice::from_ref(&value), std::slice::from_ref(&key)), [key]);
        assert_eq!(merge(std::slice::from_ref(&value), std::slice::from_ref(&value)), [value]);
    }
}
