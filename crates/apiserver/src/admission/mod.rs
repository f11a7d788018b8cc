//! Admission: what is filled in and refused after a request is authorized and before it is committed.
//!
//! A plugin sees the operation, the new and the old object; it never sees HTTP. One file per plugin, named after the
//! upstream plugin.

mod default_ingress_class;
mod default_toleration_seconds;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod runtime_class;
mod service_account;
mod taint_nodes_by_condition;

use async_trait::async_trait;
use orlop_api::status::ApiError;
use serde_json::Value;

use crate::registry::{Call, Registry};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// POST.
    Create,
    /// PUT or PATCH.
    Update,
    /// DELETE.
    Delete,
}

/// One request as a plugin sees it.
pub struct Request<'a> {
    /// Who, on what, where.
    pub call: &'a Call<'a>,
    /// What is being done.
    pub operation: Operation,
    /// The new object; `null` for a deletion.
    pub object: &'a mut Value,
    /// The old object of an update or deletion.
    pub old: Option<&'a Value>,
}

impl<'a> Request<'a> {
    /// A request about these objects.
    pub fn new(
        call: &'a Call<'a>,
        operation: Operation,
        object: &'a mut Value,
        old: Option<&'a Value>,
    ) -> Request<'a> {
        Request { call, operation, object, old }
    }

    /// Whether it is about this resource of the core group, without a subresource.
    pub fn is_core(&self, plural: &str) -> bool {
        let resource = self.call.resource;
        resource.group.is_empty() && resource.plural == plural && self.call.subresource.is_empty()
    }

    /// The 403 a plugin answers with.
    pub fn forbidden(&self, message: impl std::fmt::Display) -> ApiError {
        let resource = self.call.resource;
        let name = match self.object.pointer("/metadata/name").and_then(Value::as_str) {
            Some(name) if !name.is_empty() => name,
            _ => self.call.name,
        };
        ApiError::forbidden(&resource.group, &resource.plural, name, message)
    }
}

/// An admission plugin.
#[async_trait]
pub trait Admission: Send + Sync {
    /// Upstream's name of the plugin.
    fn name(&self) -> &'static str;

    /// Changes the object, or refuses.
    async fn mutate(&self, _registry: &Registry, _request: &mut Request<'_>) -> Result<(), ApiError> {
        Ok(())
    }

    /// Refuses what must not be, after all changes.
    async fn validate(&self, _registry: &Registry, _request: &Request<'_>) -> Result<(), ApiError> {
        Ok(())
    }
}

/// The plugins in upstream's order.
pub fn default_plugins() -> Vec<Box<dyn Admission>> {
    vec![
        Box::new(namespace_lifecycle::NamespaceLifecycle),
        Box::new(service_account::ServiceAccount),
        Box::new(node_restriction::NodeRestriction),
        Box::new(taint_nodes_by_condition::TaintNodesByCondition),
        Box::new(priority::Priority),
        Box::new(default_toleration_seconds::DefaultTolerationSeconds),
        Box::new(runtime_class::RuntimeClass),
        Box::new(default_ingress_class::DefaultIngressClass),
    ]
}
