//! `NamespaceLifecycle`: nothing is created in a namespace that does not exist or is being deleted, and three
//! namespaces are never deleted.

use async_trait::async_trait;
use orlop_api::status::{ApiError, StatusCause};
use orlop_json::Value;

use super::{Admission, Operation, Request};
use crate::registry::Registry;
use crate::registry::object::is_deleting;

const PROTECTED: [&str; 3] = ["default", "kube-public", "kube-system"];

pub(super) struct NamespaceLifecycle;

impl NamespaceLifecycle {
    fn check(registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        let call = request.call;
        if request.is_core("namespaces") {
            if request.operation == Operation::Delete && PROTECTED.contains(&call.name) {
                return Err(request.forbidden("this namespace may not be deleted"));
            }
            return Ok(());
        }
        if !call.resource.namespaced || request.operation != Operation::Create {
            return Ok(());
        }
        // Access reviews ask about namespaces; they do not live in them.
        if call.resource.plural == "localsubjectaccessreviews" {
            return Ok(());
        }
        let Some(namespaces) = registry.resources.cache("", "Namespace") else { return Ok(()) };
        let Some(namespace) = namespaces.get(call.namespace) else {
            return Err(ApiError::not_found("", "namespaces", call.namespace));
        };
        if contains(&namespace.bytes, b"\"deletionTimestamp\"") && is_deleting(&namespace.value()) {
            let mut error = request.forbidden(format!(
                "unable to create new content in namespace {} because it is being terminated",
                call.namespace
            ));
            if let Some(details) = &mut error.0.details {
                details.causes.push(StatusCause {
                    reason: "NamespaceTerminating".into(),
                    message: format!("namespace {} is being terminated", call.namespace),
                    field: "metadata.namespace".into(),
                });
            }
            return Err(error);
        }
        Ok(())
    }
}

/// A quick look, so that namespaces that live need not be parsed.
fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[async_trait]
impl Admission for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation != Operation::Connect
    }

    async fn mutate(&self, registry: &Registry, request: &mut Request<'_>) -> Result<(), ApiError> {
        if request.is_core("namespaces")
            && request.operation != Operation::Delete
            && let Some(name) =
                request.object.pointer("/metadata/name").and_then(Value::as_str).map(String::from)
            && !name.is_empty()
        {
            orlop_api::meta::set_label(request.object, "kubernetes.io/metadata.name", &name);
        }
        NamespaceLifecycle::check(registry, request)
    }

    async fn validate(&self, registry: &Registry, request: &Request<'_>) -> Result<(), ApiError> {
        NamespaceLifecycle::check(registry, request)
    }
}
