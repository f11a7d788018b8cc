//! Whether an identity may do a thing: `system:masters`, then the configured authorizers in order.

pub mod escalation;
pub mod escalation_guard;
pub mod node;
pub mod rbac;

use crate::authn::{MASTERS, UserInfo};
use crate::options::AuthorizationMode;
use orlop_api::status::ApiError;

/// What somebody wants to do, as upstream's `authorizer.Attributes`.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a UserInfo,
    /// Verb.
    pub verb: &'a str,
    /// Whether `group`..`name` apply, or else `path`.
    pub is_resource: bool,
    /// API group.
    pub group: &'a str,
    /// Plural resource.
    pub resource: &'a str,
    /// Subresource; may be empty.
    pub subresource: &'a str,
    /// Namespace; empty at cluster scope.
    pub namespace: &'a str,
    /// Object name; may be empty.
    pub name: &'a str,
    /// Path of a non-resource request.
    pub path: &'a str,
    /// The node that a `spec.nodeName=` selector of a list names.
    pub selected_node: Option<&'a str>,
}

/// An authorizer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes, and why.
    Allow(String),
    /// Not by this authorizer, and why (may be empty).
    NoOpinion(String),
}

/// The authorizers of a server.
pub struct Authorizer {
    /// In the order they are asked.
    pub modes: Vec<AuthorizationMode>,
    /// Roles and bindings.
    pub rbac: rbac::Rbac,
    /// Kubelets.
    pub node: node::NodeAuthorizer,
}

impl Authorizer {
    /// Asks everyone; the first yes counts.
    pub fn decide(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group(MASTERS) {
            return Decision::Allow(String::new());
        }
        let mut reasons = Vec::new();
        for mode in &self.modes {
            let decision = match mode {
                AuthorizationMode::AlwaysAllow => Decision::Allow(String::new()),
                AuthorizationMode::AlwaysDeny => Decision::NoOpinion("Everything is forbidden.".into()),
                AuthorizationMode::Abac | AuthorizationMode::Webhook => Decision::NoOpinion(String::new()),
                AuthorizationMode::Node => self.node.decide(attributes),
                AuthorizationMode::Rbac => self.rbac.decide(attributes),
            };
            match decision {
                Decision::Allow(_) => return decision,
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    /// Refuses what is not allowed, with upstream's message.
    pub fn check(&self, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        match self.decide(attributes) {
            Decision::Allow(_) => Ok(()),
            Decision::NoOpinion(reason) => Err(forbidden(attributes, &reason)),
        }
    }
}

/// The 403 for a refusal.
pub fn forbidden(attributes: &Attributes<'_>, reason: &str) -> ApiError {
    let user = orlop_api::field::go_quote(&attributes.user.name);
    let mut message = if attributes.is_resource {
        let mut resource = attributes.resource.to_string();
        if !attributes.subresource.is_empty() {
            resource = format!("{resource}/{}", attributes.subresource);
        }
        let scope = if attributes.namespace.is_empty() {
            "at the cluster scope".to_string()
        } else {
            format!("in the namespace \"{}\"", attributes.namespace)
        };
        format!(
            "User {user} cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
            attributes.verb, attributes.group
        )
    } else {
        format!("User {user} cannot {} path \"{}\"", attributes.verb, attributes.path)
    };
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    ApiError::forbidden(attributes.group, attributes.resource, attributes.name, message)
}
