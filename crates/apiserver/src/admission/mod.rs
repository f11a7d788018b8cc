//! Admission: what is filled in and refused after a request is authorized and before it is committed.
//!
//! A plugin sees the operation, the new and the old object; it never sees HTTP. One file per plugin, named after the
//! upstream plugin.

mod always;
mod always_pull_images;
mod cel;
mod certificates;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod dynamic;
mod event_rate_limit;
mod extended_resource_toleration;
mod external_ips;
pub(crate) mod fields;
mod following;
mod hard_anti_affinity;
mod image_policy;
mod limit_ranger;
mod matching;
mod namespace_exists;
mod namespace_lifecycle;
mod node_restriction;
mod owner_references;
mod permission;
mod plugins;
mod pod_node_selector;
mod pod_refs;
mod pod_security;
mod pod_toleration_restriction;
mod pod_topology_labels;
mod policy;
mod priority;
mod reinvocation;
mod resource_quota;
mod review;
mod runtime_class;
mod service_account;
mod settle;
mod storage_protection;
mod taint_nodes_by_condition;
mod volume_resize;
pub(crate) mod webhook;

use async_trait::async_trait;
use orlop_api::status::ApiError;
use orlop_json::Value;

use crate::registry::{Call, Registry};

pub use dynamic::Dynamic;
pub use plugins::{PluginError, default_plugins, plugins, webhook_credentials};
pub use reinvocation::Reinvocation;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// POST.
    Create,
    /// PUT or PATCH.
    Update,
    /// DELETE.
    Delete,
    /// A connection through the server: `exec`, `attach`, `portforward`, `proxy`.
    Connect,
}

impl Operation {
    /// The operation in upstream's words.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// The kind of the object in a request: for most subresources not the resource's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectKind<'a> {
    /// API group; empty for the core group.
    pub group: &'a str,
    /// Version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
}

impl ObjectKind<'static> {
    /// A kind of a fixed name.
    pub const fn new(group: &'static str, version: &'static str, kind: &'static str) -> ObjectKind<'static> {
        ObjectKind { group, version, kind }
    }
}

impl ObjectKind<'_> {
    /// `v1` or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
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
    /// The kind of these objects when it is not the resource's (`Scale`, `Eviction`, `PodExecOptions`, …).
    pub own_kind: Option<ObjectKind<'static>>,
    /// The name the request came with, in its path or its object; `None` stands for the call's.
    pub requested_name: Option<&'a str>,
    /// What the mutating plugins remember between their two rounds.
    pub reinvocation: Reinvocation,
}

impl<'a> Request<'a> {
    /// A request about these objects.
    pub fn new(
        call: &'a Call<'a>,
        operation: Operation,
        object: &'a mut Value,
        old: Option<&'a Value>,
    ) -> Request<'a> {
        Request {
            call,
            operation,
            object,
            old,
            own_kind: None,
            requested_name: None,
            reinvocation: Reinvocation::default(),
        }
    }

    /// The same with a kind of its own.
    pub fn of_kind(self, kind: Option<ObjectKind<'static>>) -> Request<'a> {
        Request { own_kind: kind, ..self }
    }

    /// The same with the name it came with.
    pub fn named(self, name: &'a str) -> Request<'a> {
        Request { requested_name: Some(name), ..self }
    }

    /// The kind of the objects.
    pub fn kind(&self) -> ObjectKind<'_> {
        let resource = self.call.resource;
        self.own_kind.unwrap_or(ObjectKind {
            group: &resource.group,
            version: &resource.version,
            kind: &resource.kind,
        })
    }

    /// The name as upstream's admission attributes have it: empty while one is still to be generated, and for each
    /// item of a collection that is deleted.
    pub fn attribute_name(&self) -> &str {
        self.requested_name.unwrap_or(self.call.name)
    }

    /// The namespace as upstream's admission attributes have it: a namespace is in itself.
    pub fn attribute_namespace(&self) -> &str {
        let resource = self.call.resource;
        if resource.plural == "namespaces" && resource.group.is_empty() {
            return self.attribute_name();
        }
        self.call.namespace
    }

    /// Whether it is about this resource of the core group, without a subresource.
    pub fn is_core(&self, plural: &str) -> bool {
        let resource = self.call.resource;
        resource.group.is_empty() && resource.plural == plural && self.call.subresource.is_empty()
    }

    /// Whether this writes containers of a pod: the pod itself, or those that are put into it while it runs.
    pub fn writes_containers(&self) -> bool {
        let resource = self.call.resource;
        resource.group.is_empty()
            && resource.plural == "pods"
            && matches!(self.call.subresource, "" | "ephemeralcontainers")
            && matches!(self.operation, Operation::Create | Operation::Update)
    }

    /// Whether it is about this resource, without a subresource.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        let resource = self.call.resource;
        resource.group == group && resource.plural == plural && self.call.subresource.is_empty()
    }

    /// The object's name: as in the path, as in the object, or what a name will be generated from.
    pub fn name(&self) -> &str {
        let meta = |field: &str| self.object.get("metadata").map_or("", |m| fields::Fields::text(m, field));
        [self.call.name, meta("name"), meta("generateName")].into_iter().find(|n| !n.is_empty()).unwrap_or("")
    }

    /// The 403 a plugin answers with.
    pub fn forbidden(&self, message: impl std::fmt::Display) -> ApiError {
        let resource = self.call.resource;
        let name = match self.name() {
            "" => "Unknown",
            name => name,
        };
        ApiError::forbidden(&resource.group, &resource.plural, name, message)
    }
}

/// An admission plugin.
#[async_trait]
pub trait Admission: Send + Sync {
    /// Upstream's name of the plugin.
    fn name(&self) -> &'static str;

    /// Whether the request is the plugin's business at all: asked of every request, so it looks at kind and operation
    /// only.
    fn handles(&self, _request: &Request<'_>) -> bool {
        true
    }

    /// Changes the object, or refuses.
    async fn mutate(&self, _registry: &Registry, _request: &mut Request<'_>) -> Result<(), ApiError> {
        Ok(())
    }

    /// Refuses what must not be, after all changes.
    async fn validate(&self, _registry: &Registry, _request: &Request<'_>) -> Result<(), ApiError> {
        Ok(())
    }
}
