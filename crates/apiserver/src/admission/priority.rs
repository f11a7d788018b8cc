//! `Priority`: the number behind a pod's priority class. The two system classes and the default of zero are
//! known even before there is any class.

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};

use super::{Admission, Operation, Request};
use crate::registry::{Registry, object};

pub(super) struct Priority;

/// The classes every cluster has.
fn builtin(name: &str) -> Option<i64> {
    match name {
        "system-node-critical" => Some(2_000_001_000),
        "system-cluster-critical" => Some(2_000_000_000),
        _ => None,
    }
}

/// The class of pods that name none; the lowest when several claim to be it.
fn default_class(registry: &Registry) -> Option<Value> {
    let cache = registry.resources.cache("scheduling.k8s.io", "PriorityClass")?;
    cache
        .snapshot()
        .0
        .values()
        .map(|entry| entry.value())
        .filter(|class| class["globalDefault"] == true)
        .min_by_key(|class| class["value"].as_i64().unwrap_or(0))
}

#[async_trait]
impl Admission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        (request.is_core("pods") && writes)
            || (request.is("scheduling.k8s.io", "priorityclasses") && request.operation != Operation::Connect)
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let resource = request.call.resource;
        if resource.kind == "PriorityClass"
            && request.operation == Operation::Delete
            && builtin(request.call.name).is_some()
        {
            return Err(request.forbidden("this is a system priority class and cannot be deleted"));
        }
        if resource.kind != "PriorityClass"
            || request.operation == Operation::Delete
            || request.object["globalDefault"] != true
        {
            return Ok(());
        }
        match default_class(registry).map(|class| object::meta(&class, "name").to_string()) {
            Some(name) if request.operation == Operation::Create || name != request.call.name => Err(request
                .forbidden(format!(
                    "PriorityClass {name} is already marked as default. Only one default can exist"
                ))),
            _ => Ok(()),
        }
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        if !request.is_core("pods") {
            return Ok(());
        }
        if request.operation == Operation::Update {
            // Priority is settled at creation; an update that leaves it out does not change it.
            if let Some(old) = request.old {
                for field in ["priority", "preemptionPolicy"] {
                    if request.object["spec"].get(field).is_none()
                        && let Some(value) = old["spec"].get(field)
                    {
                        request.object["spec"][field] = value.clone();
                    }
                }
            }
            return Ok(());
        }
        let mut class =
            request.object["spec"].get("priorityClassName").and_then(Value::as_str).unwrap_or("").to_string();
        if class.is_empty()
            && let Some(default) = default_class(registry)
        {
            class = object::meta(&default, "name").to_string();
            request.object["spec"]["priorityClassName"] = json!(class);
        }
        let (priority, policy) = if class.is_empty() {
            (0, "PreemptLowerPriority".to_string())
        } else if let Some(value) = builtin(&class) {
            (value, "PreemptLowerPriority".to_string())
        } else {
            let found =
                registry.resources.cache("scheduling.k8s.io", "PriorityClass").and_then(|c| c.get(&class));
            let Some(found) = found else {
                return Err(request.forbidden(format!("no PriorityClass with name {class} was found")));
            };
            let object = found.value();
            (
                object.get("value").and_then(Value::as_i64).unwrap_or(0),
                object
                    .get("preemptionPolicy")
                    .and_then(Value::as_str)
                    .unwrap_or("PreemptLowerPriority")
                    .to_string(),
            )
        };
        let given = request.object["spec"].get("priority").and_then(Value::as_i64);
        if let Some(given) = given
            && given != priority
        {
            return Err(request.forbidden(format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
            )));
        }
        let given = request.object["spec"].get("preemptionPolicy").and_then(Value::as_str);
        if let Some(given) = given
            && given != policy
        {
            return Err(request.forbidden(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            )));
        }
        request.object["spec"]["priority"] = json!(priority);
        if request.object["spec"].get("preemptionPolicy").is_none() {
            request.object["spec"]["preemptionPolicy"] = json!(policy);
        }
        Ok(())
    }
}
