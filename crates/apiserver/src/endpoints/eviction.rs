//! `pods/eviction`: deletion of a pod that its disruption budget agrees to.

use bytes::Bytes;
use orlop_api::decode::{self, Gvk};
use orlop_api::selector::LabelSelector;
use orlop_api::status::{ApiError, Status, StatusCause};
use orlop_json::{Value, json};

use super::Endpoint;
use crate::admission::ObjectKind;
use crate::http::body::Response;
use crate::managed;
use crate::registry::delete::Origin;
use crate::registry::options::{DeleteOptions, WriteOptions};
use crate::registry::update::Edit;
use crate::registry::{Call, Registry, now, object};

const EVICTION: ObjectKind<'static> = ObjectKind::new("policy", "v1", "Eviction");

pub(super) async fn create(endpoint: &Endpoint<'_>, body: Bytes) -> Result<Response, ApiError> {
    let options = WriteOptions::parse(&endpoint.request.query, "CreateOptions", false)?;
    let mut eviction = endpoint.decode_eviction(&body, &options)?;
    let info = &endpoint.request.info;
    let asked = endpoint.write_call(&options, "");
    endpoint.admit_action(&asked, &mut eviction, EVICTION).await?;
    if object::meta(&eviction, "name") != info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut delete = DeleteOptions::parse(
        eviction.get("deleteOptions").filter(|o| !o.is_null()).or(Some(&Value::Null)),
        &endpoint.request.query,
    )?;
    delete.dry_run |= options.dry_run;
    let registry = &endpoint.server.registry;
    let call = Call { subresource: "", dry_run: delete.dry_run, ..endpoint.call(delete.dry_run, "") };
    if let Some(status) = evict(registry, &call, delete).await? {
        return Ok(endpoint.done(status));
    }
    let mut status = Status::success(None);
    status.code = 201;
    Ok(endpoint.done(status))
}

impl Endpoint<'_> {
    /// Evictions of the version before the stable one are still taken.
    fn decode_eviction(&self, body: &[u8], options: &WriteOptions) -> Result<Value, ApiError> {
        let stable = Gvk { group: "policy", version: "v1", kind: "Eviction" };
        let mut eviction = match decode::parse(body, self.media()?) {
            Ok(Value::Object(eviction)) if eviction.get("apiVersion") == Some(&json!("policy/v1beta1")) => {
                Value::Object(eviction)
            }
            _ => return self.decode(body, &stable, options),
        };
        eviction["apiVersion"] = json!("policy/v1");
        self.decode(eviction.to_string().as_bytes(), &stable, options)
    }
}

/// How often a lost race is tried again.
const ATTEMPTS: usize = 20;

/// Asks the budgets and deletes. A status is an answer that upstream gives with a success's code.
async fn evict(
    registry: &Registry,
    call: &Call<'_>,
    delete: DeleteOptions,
) -> Result<Option<Status>, ApiError> {
    let named_version = delete.resource_version.is_some();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let pod = registry.get(call)?.value();
        if !needs_no_budget(&pod) {
            return evict_by_budget(registry, call, delete, &pod).await;
        }
        let mut options = delete.clone();
        if !has_ended(&pod) && !named_version {
            // It must not have begun to run meanwhile.
            options.resource_version = Some(object::meta(&pod, "resourceVersion").to_string());
        }
        match mark_and_delete(registry, call, options).await {
            Err(error) if error.code() == 409 && !named_version && attempts < ATTEMPTS => {}
            outcome => return outcome.map(|()| None),
        }
    }
}

/// What a budget says about a pod's eviction.
enum Verdict {
    /// No budget, or one that has given a disruption.
    Evict,
    /// The pod is not healthy, so its budget is not asked; the name is the budget's.
    EvictUnhealthy(String),
    /// There are several budgets.
    Several,
}

async fn evict_by_budget(
    registry: &Registry,
    call: &Call<'_>,
    delete: DeleteOptions,
    pod: &Value,
) -> Result<Option<Status>, ApiError> {
    match ask_budgets(registry, call, pod).await? {
        Verdict::Evict => mark_and_delete(registry, call, delete).await.map(|()| None),
        Verdict::EvictUnhealthy(budget) => {
            let named_version = delete.resource_version.is_some();
            let version = object::meta(pod, "resourceVersion").to_string();
            let options = DeleteOptions {
                resource_version: delete.resource_version.clone().or(Some(version)),
                ..delete
            };
            match mark_and_delete(registry, call, options).await {
                // It may have become healthy; the client is to ask again.
                Err(error) if error.code() == 409 && !named_version => Err(still_processed(&budget)),
                outcome => outcome.map(|()| None),
            }
        }
        Verdict::Several => {
            let text = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            Ok(Some(Status::failure(500, "", text)))
        }
    }
}

/// Writes on the pod why it goes, and deletes it.
async fn mark_and_delete(
    registry: &Registry,
    call: &Call<'_>,
    mut options: DeleteOptions,
) -> Result<(), ApiError> {
    if !call.dry_run {
        let target = DisruptionTarget { uid: options.uid.clone(), version: options.resource_version.clone() };
        let marked = registry.update_raw(call, &target).await?.value();
        if options.resource_version.is_some() {
            options.resource_version = Some(object::meta(&marked, "resourceVersion").to_string());
        }
    }
    registry.delete_from(call, &options, Origin::Admitted).await.map(|_| ())
}

/// The 429 of a budget.
fn refuse(retry: i32, message: String) -> ApiError {
    let text = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut error = ApiError::too_many_requests(text, retry);
    let details = error.0.details.get_or_insert_with(Default::default);
    details.causes.push(StatusCause { reason: "DisruptionBudget".into(), message, ..Default::default() });
    error
}

fn still_processed(budget: &str) -> ApiError {
    refuse(10, format!("The disruption budget {budget} is still being processed by the server."))
}

/// Whether a pod has ended or is on its way out: nothing that happens to it now disrupts anybody.
fn has_ended(pod: &Value) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or("");
    matches!(phase, "Succeeded" | "Failed") || object::is_deleting(pod)
}

/// A pod that does not run, or is on its way out, disrupts nobody.
fn needs_no_budget(pod: &Value) -> bool {
    has_ended(pod) || pod.pointer("/status/phase").and_then(Value::as_str) == Some("Pending")
}

fn is_ready(pod: &Value) -> bool {
    pod.pointer("/status/conditions")
        .and_then(Value::as_array)
        .is_some_and(|list| list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// Finds the pod's budget and takes one disruption from it; 429 when it has none left.
async fn ask_budgets(registry: &Registry, call: &Call<'_>, pod: &Value) -> Result<Verdict, ApiError> {
    let Some(budgets) = registry.resources.of_kind("policy", "PodDisruptionBudget") else {
        return Ok(Verdict::Evict);
    };
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object);
    let (snapshot, _) = registry.cache(&budgets)?.snapshot();
    let matching: Vec<Value> = snapshot
        .range::<_, str>(crate::cache::from(&format!("{}/", call.namespace)))
        .take_while(|(_, entry)| entry.namespace() == call.namespace)
        .map(|(_, entry)| entry.value())
        .filter(|budget| {
            LabelSelector::from_object(&budget["spec"]["selector"])
                .is_ok_and(|selector| selector.matches(labels))
        })
        .collect();
    let budget = match matching.as_slice() {
        [] => return Ok(Verdict::Evict),
        [budget] => budget,
        _ => return Ok(Verdict::Several),
    };
    let name = object::meta(budget, "name").to_string();
    let number = |field: &str| budget["status"].get(field).and_then(Value::as_i64).unwrap_or(0);
    if !is_ready(pod) {
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        let healthy = number("desiredHealthy") > 0 && number("currentHealthy") >= number("desiredHealthy");
        if always || healthy {
            return Ok(Verdict::EvictUnhealthy(name));
        }
    }
    let change = TakeDisruption { pod: call.name.to_string() };
    let take = Call { resource: &budgets, name: &name, ..*call };
    registry.update_raw(&take, &change).await.map(|_| Verdict::Evict)
}

/// How many evictions a budget's controller may not have seen yet.
const MAX_DISRUPTED_PODS: usize = 2000;

/// Takes one disruption from a budget.
struct TakeDisruption {
    pod: String,
}

impl Edit for TakeDisruption {
    fn edit(&self, budget: &mut Value) -> Result<(), ApiError> {
        let old = budget.clone();
        let current = &old;
        let name = object::meta(current, "name");
        let number = |field: &str| current["status"].get(field).and_then(Value::as_i64).unwrap_or(0);
        let generation = object::meta_int(current, "generation").unwrap_or(0);
        if number("observedGeneration") < generation {
            return Err(still_processed(name));
        }
        let forbidden =
            |message: &str| Err(ApiError::forbidden("policy", "poddisruptionbudget", name, message));
        let allowed = number("disruptionsAllowed");
        if allowed < 0 {
            return forbidden("pdb disruptions allowed is negative");
        }
        let disrupted = current["status"].get("disruptedPods").and_then(Value::as_object);
        if disrupted.is_some_and(|pods| pods.len() > MAX_DISRUPTED_PODS) {
            return forbidden(
                "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
            );
        }
        if allowed == 0 {
            let conditions = current["status"]["conditions"].as_array();
            let failed = conditions.into_iter().flatten().find(|c| {
                c["type"] == "DisruptionAllowed" && c["status"] == "False" && c["reason"] == "SyncFailed"
            });
            let message = match failed {
                Some(condition) => format!(
                    "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                    condition["message"].as_str().unwrap_or("")
                ),
                None => format!(
                    "The disruption budget {name} needs {} healthy pods and has {} currently",
                    number("desiredHealthy"),
                    number("currentHealthy")
                ),
            };
            return Err(refuse(0, message));
        }
        budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
        budget["status"]["disruptedPods"][&self.pod] = json!(now());
        if allowed == 1 {
            let condition = json!({
                "type": "DisruptionAllowed", "status": "False", "observedGeneration": number("observedGeneration"),
                "lastTransitionTime": now(), "reason": "InsufficientPods", "message": "",
            });
            set_condition(budget, condition);
        }
        // The budget's status is written by the server's own client.
        let gvk = Gvk { group: "policy", version: "v1", kind: "PodDisruptionBudget" };
        managed::update_as(&gvk, "status", "kube-apiserver", Some(current), budget);
        Ok(())
    }
}

/// Says on the pod why it goes.
struct DisruptionTarget {
    /// The pod that must still be meant.
    uid: Option<String>,
    /// The version the pod must still have.
    version: Option<String>,
}

impl Edit for DisruptionTarget {
    fn edit(&self, pod: &mut Value) -> Result<(), ApiError> {
        let current = &*pod;
        let conflict =
            |message: String| Err(ApiError::conflict("", "Pod", object::meta(current, "name"), message));
        let (uid, version) = (object::meta(current, "uid"), object::meta(current, "resourceVersion"));
        if let Some(asked) = self.uid.as_deref().filter(|asked| !asked.is_empty() && *asked != uid) {
            return conflict(format!(
                "the UID in the precondition ({asked}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
            ));
        }
        if let Some(asked) = self.version.as_deref().filter(|asked| !asked.is_empty() && *asked != version) {
            return conflict(format!(
                "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record ({version}). The object might have been modified"
            ));
        }
        set_condition(
            pod,
            json!({
                "type": "DisruptionTarget", "status": "True", "lastProbeTime": null, "lastTransitionTime": now(),
                "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
            }),
        );
        Ok(())
    }
}

/// Adds a condition, or replaces the one of its type.
fn set_condition(object: &mut Value, condition: Value) {
    let mut list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(old) => {
            let since = (old["status"] == condition["status"]).then(|| old["lastTransitionTime"].clone());
            *old = condition;
            if let Some(since) = since {
                old["lastTransitionTime"] = since;
            }
        }
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
        let mut taken = budget(1, 1);
        take.edit(&mut taken).unwrap();
        assert_eq!(taken["status"]["disruptionsAllowed"], 0);
        assert!(taken["status"]["disruptedPods"]["p"].is_string());
        let check = |mut budget: Value, expected: &str| {
            let error = take.edit(&mut budget).unwrap_err();
            assert_eq!(error.code(), 429);
            assert_eq!(error.status().details.as_ref().unwrap().causes[0].message, expected);
        };
        check(budget(0, 1), "The disruption budget b needs 2 healthy pods and has 2 currently");
        check(budget(1, 0), "The disruption budget b is still being processed by the server.");
    }
}
