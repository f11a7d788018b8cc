//! `pods/eviction`: deletion of a pod that its disruption budget agrees to.

use bytes::Bytes;
use orlop_api::decode::Gvk;
use orlop_api::selector::LabelSelector;
use orlop_api::status::{ApiError, Status, StatusCause};
use serde_json::{Value, json};

use super::Endpoint;
use crate::admission::ObjectKind;
use crate::http::body::Response;
use crate::managed;
use crate::registry::delete::Origin;
use crate::registry::options::{DeleteOptions, WriteOptions};
use crate::registry::update::Change;
use crate::registry::{Call, Registry, now, object};

const EVICTION: ObjectKind<'static> = ObjectKind::new("policy", "v1", "Eviction");

pub(super) async fn create(endpoint: &Endpoint<'_>, body: Bytes) -> Result<Response, ApiError> {
    let options = WriteOptions::parse(&endpoint.request.query, "CreateOptions", false)?;
    let mut eviction =
        endpoint.decode(&body, &Gvk { group: "policy", version: "v1", kind: "Eviction" }, &options)?;
    let info = &endpoint.request.info;
    let asked = endpoint.write_call(&options, "");
    endpoint.admit_action(&asked, &mut eviction, EVICTION).await?;
    let named = eviction.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
    if !named.is_empty() && named != info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut delete = DeleteOptions::parse(
        eviction.get("deleteOptions").filter(|o| !o.is_null()).or(Some(&Value::Null)),
        &endpoint.request.query,
    )?;
    delete.dry_run |= options.dry_run;
    let registry = &endpoint.server.registry;
    let call = Call { subresource: "", dry_run: delete.dry_run, ..endpoint.call(delete.dry_run, "") };
    let pod = registry.get(&call)?.value();
    if !needs_no_budget(&pod) {
        ask_budgets(registry, &call, &pod).await?;
        registry.update_raw(&call, &DisruptionTarget).await?;
    }
    registry.delete_from(&call, &delete, Origin::Admitted).await?;
    let mut status = Status::success(None);
    status.code = 201;
    Ok(endpoint.done(status))
}

/// A pod that does not run, or is on its way out, disrupts nobody.
fn needs_no_budget(pod: &Value) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or("");
    matches!(phase, "Succeeded" | "Failed" | "Pending") || object::is_deleting(pod)
}

fn is_ready(pod: &Value) -> bool {
    pod.pointer("/status/conditions")
        .and_then(Value::as_array)
        .is_some_and(|list| list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// Finds the pod's budget and takes one disruption from it; 429 when it has none left.
async fn ask_budgets(registry: &Registry, call: &Call<'_>, pod: &Value) -> Result<(), ApiError> {
    let Some(budgets) = registry.resources.of_kind("policy", "PodDisruptionBudget") else { return Ok(()) };
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object);
    let matching: Vec<Value> = registry
        .cache(&budgets)?
        .snapshot()
        .0
        .values()
        .filter(|entry| entry.namespace() == call.namespace)
        .map(|entry| entry.value())
        .filter(|budget| {
            LabelSelector::from_object(&budget["spec"]["selector"])
                .is_ok_and(|selector| selector.matches(labels))
        })
        .collect();
    let budget = match matching.as_slice() {
        [] => return Ok(()),
        [budget] => budget,
        _ => {
            return Err(ApiError::generic(
                500,
                "InternalError",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let number = |field: &str| budget["status"].get(field).and_then(Value::as_i64).unwrap_or(0);
    if !is_ready(pod) {
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        let healthy = number("desiredHealthy") > 0 && number("currentHealthy") >= number("desiredHealthy");
        if always || healthy {
            return Ok(());
        }
    }
    let change = TakeDisruption { pod: call.name.to_string() };
    let name = object::meta(budget, "name").to_string();
    let take = Call { resource: &budgets, name: &name, ..*call };
    registry.update_raw(&take, &change).await.map(|_| ())
}

/// Takes one disruption from a budget.
struct TakeDisruption {
    pod: String,
}

impl Change for TakeDisruption {
    fn make(&self, current: &Value) -> Result<Value, ApiError> {
        let name = object::meta(current, "name");
        let number = |field: &str| current["status"].get(field).and_then(Value::as_i64).unwrap_or(0);
        let generation = object::meta_int(current, "generation").unwrap_or(0);
        let refuse = |retry: i32, message: String| {
            let text = "Cannot evict pod as it would violate the pod's disruption budget.";
            let mut error = ApiError::too_many_requests(text, retry);
            let details = error.0.details.get_or_insert_with(Default::default);
            details.causes.push(StatusCause {
                reason: "DisruptionBudget".into(),
                message,
                ..Default::default()
            });
            error
        };
        if number("observedGeneration") < generation {
            return Err(refuse(
                10,
                format!("The disruption budget {name} is still being processed by the server."),
            ));
        }
        let allowed = number("disruptionsAllowed");
        if allowed < 0 {
            return Err(ApiError::forbidden(
                "policy",
                "poddisruptionbudgets",
                name,
                "pdb disruptions allowed is negative",
            ));
        }
        if allowed == 0 {
            return Err(refuse(
                0,
                format!(
                    "The disruption budget {name} needs {} healthy pods and has {} currently",
                    number("desiredHealthy"),
                    number("currentHealthy")
                ),
            ));
        }
        let mut budget = current.clone();
        budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
        budget["status"]["disruptedPods"][&self.pod] = json!(now());
        if allowed == 1 {
            let condition = json!({
                "type": "DisruptionAllowed", "status": "False", "observedGeneration": generation,
                "lastTransitionTime": now(), "reason": "InsufficientPods", "message": "",
            });
            set_condition(&mut budget, condition);
        }
        // The budget's status is written by the server's own client.
        let gvk = Gvk { group: "policy", version: "v1", kind: "PodDisruptionBudget" };
        managed::update_as(&gvk, "status", "kube-apiserver", Some(current), &mut budget);
        Ok(budget)
    }
}

/// Says on the pod why it goes.
struct DisruptionTarget;

impl Change for DisruptionTarget {
    fn make(&self, current: &Value) -> Result<Value, ApiError> {
        let mut pod = current.clone();
        set_condition(
            &mut pod,
            json!({
                "type": "DisruptionTarget", "status": "True", "lastProbeTime": null, "lastTransitionTime": now(),
                "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
            }),
        );
        Ok(pod)
    }
}

/// Adds a condition, or replaces the one of its type.
fn set_condition(object: &mut Value, condition: Value) {
    let mut list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(old) => *old = condition,
        None => list.push(condition),
    }
    object["status"]["conditions"] = Value::Array(list);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn budgets() {
        let budget = |allowed: i64, observed: i64| {
            json!({"metadata": {"name": "b", "generation": 1}, "spec": {},
                "status": {"observedGeneration": observed, "disruptionsAllowed": allowed, "desiredHealthy": 2, "currentHealthy": 2}})
        };
        let take = TakeDisruption { pod: "p".into() };
        let taken = take.make(&budget(1, 1)).unwrap();
        assert_eq!(taken["status"]["disruptionsAllowed"], 0);
        assert!(taken["status"]["disruptedPods"]["p"].is_string());
        let check = |budget: Value, expected: &str| {
            let error = take.make(&budget).unwrap_err();
            assert_eq!(error.code(), 429);
            assert_eq!(error.status().details.as_ref().unwrap().causes[0].message, expected);
        };
        check(budget(0, 1), "The disruption budget b needs 2 healthy pods and has 2 currently");
        check(budget(1, 0), "The disruption budget b is still being processed by the server.");
    }
}
