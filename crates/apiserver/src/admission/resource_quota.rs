//! `ResourceQuota`: what an object uses is charged to the quotas of its namespace before it is stored. The arithmetic is
//! `orlop_kinds::quota`; here are the quotas as they are, the order in which requests are charged, and the write.
//!
//! Requests in one namespace are charged one after the other: between reading what is used and writing what will be, no
//! other request of this server may come. A quota that somebody else has written meanwhile (its controller) makes the
//! write fail and the request be checked again.

use std::hash::{BuildHasher as _, RandomState};

use async_trait::async_trait;
use orlop_api::decode::Gvk;
use orlop_api::status::ApiError;
use orlop_json::Value;
use orlop_kinds::quota::{self, Change, Evaluator, Limited, Refusal, ResourceList};
use tokio::sync::Mutex;

use super::fields::Fields as _;
use super::{Admission, Operation, Request};
use crate::authn::UserInfo;
use crate::managed;
use crate::registry::update::{Edit, MODIFIED};
use crate::registry::{Call, CallOptions, Registry, object};

/// How often a request is checked again when a quota was written by somebody else.
const ATTEMPTS: usize = 4;
/// Namespaces share this many queues.
const QUEUES: usize = 64;

pub(super) struct ResourceQuota {
    limited: Vec<Limited>,
    queues: Vec<Mutex<()>>,
    hasher: RandomState,
}

impl ResourceQuota {
    /// With the plugin's configuration, if it has one.
    pub(super) fn new(configuration: Option<&Value>) -> Result<ResourceQuota, String> {
        Ok(ResourceQuota {
            limited: configuration.map_or(Ok(Vec::new()), limited_resources)?,
            queues: (0..QUEUES).map(|_| Mutex::new(())).collect(),
            hasher: RandomState::new(),
        })
    }

    /// Where requests of a namespace wait for each other.
    fn queue(&self, namespace: &str) -> &Mutex<()> {
        let hash = self.hasher.hash_one(namespace);
        &self.queues[(hash % QUEUES as u64) as usize]
    }
}

/// `limitedResources` of a `ResourceQuotaConfiguration`.
fn limited_resources(configuration: &Value) -> Result<Vec<Limited>, String> {
    let group = configuration.text("apiVersion").split('/').next().unwrap_or("");
    let known = matches!(configuration.text("kind"), "ResourceQuotaConfiguration" | "Configuration")
        && matches!(group, "apiserver.config.k8s.io" | "resourcequota.admission.k8s.io");
    if !known {
        return Err(format!(
            "no kind {} is registered for version {}",
            orlop_api::field::go_quote(configuration.text("kind")),
            orlop_api::field::go_quote(configuration.text("apiVersion"))
        ));
    }
    let mut out = Vec::new();
    for (index, limit) in configuration.items("limitedResources").iter().enumerate() {
        if limit.text("resource").is_empty() {
            return Err(format!("limitedResources[{index}].resource: Required value"));
        }
        let contains = limit.items("matchContains").iter().filter_map(Value::as_str).map(String::from);
        out.push(Limited {
            group: limit.text("apiGroup").to_string(),
            resource: limit.text("resource").to_string(),
            match_contains: contains.collect(),
            match_scopes: limit.items("matchScopes").to_vec(),
        });
    }
    Ok(out)
}

/// The quotas of a namespace, by name.
fn quotas_of(registry: &Registry, namespace: &str) -> Vec<Value> {
    let Some(cache) = registry.resources.cache("", "ResourceQuota") else { return Vec::new() };
    let (snapshot, _) = cache.snapshot();
    snapshot
        .range::<_, str>(crate::cache::from(&format!("{namespace}/")))
        .take_while(|(_, entry)| entry.namespace() == namespace)
        .map(|(_, entry)| entry.value())
        .collect()
}

/// Writes what is used of a quota, if it still is the quota that was checked.
struct SetUsed {
    version: String,
    used: ResourceList,
}

impl Edit for SetUsed {
    fn edit(&self, quota: &mut Value) -> Result<(), ApiError> {
        if object::meta(quota, "resourceVersion") != self.version {
            return Err(ApiError::conflict("", "resourcequotas", object::meta(quota, "name"), MODIFIED));
        }
        let old = quota.clone();
        quota["status"]["used"] = quota::to_value(&self.used);
        let gvk = Gvk { group: "", version: "v1", kind: "ResourceQuota" };
        managed::update_as(&gvk, "status", "kube-apiserver", Some(&old), quota);
        Ok(())
    }

    fn attempts(&self) -> usize {
        1
    }
}

async fn write(
    registry: &Registry,
    request: &Request<'_>,
    quota: &Value,
    used: ResourceList,
) -> Result<(), ApiError> {
    let Some(resource) = registry.resources.of_kind("", "ResourceQuota") else { return Ok(()) };
    let user = UserInfo::loopback();
    let call = Call {
        user: &user,
        resource: &resource.clone(),
        namespace: request.call.namespace,
        name: object::meta(quota, "name"),
        subresource: "status",
        dry_run: false,
        field_manager: "kube-apiserver",
        warnings: request.call.warnings,
        annotations: None,
        options: CallOptions::None,
    };
    let change = SetUsed { version: object::meta(quota, "resourceVersion").to_string(), used };
    registry.update_raw(&call, &change).await.map(|_| ())
}

#[async_trait]
impl Admission for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        let resource = request.call.resource;
        let subresource = match (resource.group.as_str(), resource.plural.as_str()) {
            ("", "pods") => matches!(request.call.subresource, "" | "resize"),
            ("", "persistentvolumeclaims") => matches!(request.call.subresource, "" | "status"),
            _ => request.call.subresource.is_empty(),
        };
        subresource
            && !request.call.namespace.is_empty()
            && resource.cache.is_some()
            && matches!(request.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let (call, resource) = (request.call, request.call.resource);
        let namespace = call.namespace;
        if self.limited.is_empty() && quotas_of(registry, namespace).is_empty() {
            return Ok(());
        }
        let Some(evaluator) = Evaluator::of(&resource.group, &resource.plural) else { return Ok(()) };
        let change = if request.operation == Operation::Create { Change::Create } else { Change::Update };
        if !evaluator.handles(change, call.subresource, request.object, request.old) {
            return Ok(());
        }
        let asked = quota::Request {
            group: &resource.group,
            plural: &resource.plural,
            evaluator: &evaluator,
            change,
            object: request.object,
            old: request.old,
        };
        let _turn = self.queue(namespace).lock().await;
        let mut names: Option<Vec<String>> = None;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let mut quotas = quotas_of(registry, namespace);
            // The second time, only those that could not be charged are.
            if let Some(names) = &names {
                quotas.retain(|quota| names.iter().any(|name| name == object::meta(quota, "name")));
            }
            let changes =
                quota::check(&quotas, &asked, &self.limited, jiff::Timestamp::now()).map_err(|refusal| {
                    match refusal {
                        Refusal::Forbidden(message) => request.forbidden(message),
                        Refusal::Failed(message) => ApiError::generic(500, "", message),
                    }
                })?;
            if call.dry_run {
                return Ok(());
            }
            let mut failed = Vec::new();
            for (index, used) in changes {
                match write(registry, request, &quotas[index], used).await {
                    Ok(()) => {}
                    // A quota that is gone limits nothing any more.
                    Err(error) if error.code() == 404 => {}
                    Err(error) => {
                        failed.push(object::meta(&quotas[index], "name").to_string());
                        last = Some(error);
                    }
                }
            }
            if failed.is_empty() {
                return Ok(());
            }
            names = Some(failed);
        }
        Err(last.unwrap_or_else(|| ApiError::internal("resource quota evaluates timeout")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    #[test]
    fn configuration() {
        let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "ResourceQuotaConfiguration",
            "limitedResources": [{"resource": "pods", "matchScopes": [{"scopeName": "PriorityClass", "operator": "In", "values": ["x"]}]}]});
        let limited = limited_resources(&configuration).unwrap();
        assert_eq!((limited[0].resource.as_str(), limited[0].match_scopes.len()), ("pods", 1));
        assert_eq!(
            limited_resources(&json!({"kind": "X", "apiVersion": "v1"})).unwrap_err(),
            "no kind \"X\" is registered for version \"v1\""
        );
    }
}
