//! `NamespaceExists` and `NamespaceAutoProvision`: what is asked of a namespace that is not there is refused, or the
//! namespace is made. `NamespaceLifecycle` does the first for creations already.

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::json;

use super::{Admission, Operation, Request};
use crate::authn::UserInfo;
use crate::registry::{Call, CallOptions, Registry};

/// Whether the request is about something in a namespace that is not there.
fn namespace_is_missing(registry: &Registry, request: &Request<'_>) -> bool {
    registry
        .resources
        .cache("", "Namespace")
        .is_some_and(|namespaces| namespaces.get(request.call.namespace).is_none())
}

fn in_namespace(request: &Request<'_>) -> bool {
    !request.call.namespace.is_empty() && request.call.resource.namespaced
}

pub(super) struct NamespaceExists;

#[async_trait]
impl Admission for NamespaceExists {
    fn name(&self) -> &'static str {
        "NamespaceExists"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        in_namespace(request) && request.operation != Operation::Connect
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        if namespace_is_missing(registry, request) {
            return Err(ApiError::not_found("", "namespaces", request.call.namespace));
        }
        Ok(())
    }
}

pub(super) struct NamespaceAutoProvision;

#[async_trait]
impl Admission for NamespaceAutoProvision {
    fn name(&self) -> &'static str {
        "NamespaceAutoProvision"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        in_namespace(request) && request.operation == Operation::Create && !request.call.dry_run
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        if !namespace_is_missing(registry, request) {
            return Ok(());
        }
        let Some(resource) = registry.resources.of_kind("", "Namespace") else { return Ok(()) };
        let name = request.call.namespace;
        let user = UserInfo::loopback();
        let call = Call {
            user: &user,
            resource: &resource.clone(),
            namespace: "",
            name: "",
            subresource: "",
            dry_run: false,
            field_manager: "kube-apiserver",
            warnings: request.call.warnings,
            annotations: None,
            options: CallOptions::None,
        };
        let mut namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}, "spec": {}, "status": {}});
        if let Some(strategy) = &resource.strategy {
            strategy.defaults(&mut namespace);
        }
        // Boxed: the registry calls its plugins, and this plugin the registry.
        let created: Result<_, ApiError> = Box::pin(registry.create(&call, namespace)).await;
        match created {
            Err(error) if error.reason() != "AlreadyExists" => Err(error),
            _ => Ok(()),
        }
    }
}
