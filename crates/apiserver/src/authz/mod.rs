//! Whether an identity may do a thing: `system:masters`, then the configured authorizers in order.

pub mod abac;
pub mod config;
pub mod escalation;
pub mod escalation_guard;
pub mod impersonation;
pub mod node;
pub mod policy_guard;
pub mod rbac;
pub mod webhook;

use arc_swap::ArcSwap;

use crate::authn::{MASTERS, UserInfo};
use orlop_api::status::{ApiError, aggregate};

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
    /// API version; may be empty.
    pub version: &'a str,
    /// The field selector of a list, watch or deletecollection, as it was written.
    pub field_selector: &'a str,
    /// The label selector of such a request.
    pub label_selector: &'a str,
}

impl<'a> Attributes<'a> {
    /// A verb on a resource; the rest is filled in by struct update.
    pub fn resource(user: &'a UserInfo, verb: &'a str, group: &'a str, resource: &'a str) -> Attributes<'a> {
        Attributes {
            user,
            verb,
            is_resource: true,
            group,
            resource,
            subresource: "",
            namespace: "",
            name: "",
            path: "",
            version: "",
            field_selector: "",
            label_selector: "",
        }
    }

    /// A verb on a path that is no resource.
    pub fn path(user: &'a UserInfo, verb: &'a str, path: &'a str) -> Attributes<'a> {
        Attributes { is_resource: false, path, ..Attributes::resource(user, verb, "", "") }
    }
}

/// An authorizer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes, and why.
    Allow(String),
    /// Not by this authorizer, and why (may be empty).
    NoOpinion(String),
    /// No, whatever others say, and why (may be empty).
    Deny(String),
    /// It could not be found out, and nobody else has allowed it.
    Failed(Failure),
}

/// An authorizer that could not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub error: String,
    /// What the authorizers said nevertheless (may be empty).
    pub reason: String,
    /// Whether that counts as a no, whatever others say.
    pub denied: bool,
}

impl Decision {
    /// Why (may be empty).
    pub fn reason(&self) -> &str {
        match self {
            Decision::Allow(reason) | Decision::NoOpinion(reason) | Decision::Deny(reason) => reason,
            Decision::Failed(failure) => &failure.reason,
        }
    }
}

/// One authorizer of the chain.
pub enum Step {
    /// Everything is allowed.
    AlwaysAllow,
    /// Nothing is allowed.
    AlwaysDeny,
    /// Kubelets.
    Node,
    /// Roles and bindings.
    Rbac,
    /// Policies of a file.
    Abac(abac::Abac),
    /// A service outside.
    Webhook(Box<webhook::WebhookAuthorizer>),
}

/// The authorizers of a server.
pub struct Authorizer {
    /// In the order they are asked; a configuration file may change them while the server runs.
    pub chain: ArcSwap<Vec<Step>>,
    /// Roles and bindings.
    pub rbac: rbac::Rbac,
    /// Kubelets.
    pub node: node::NodeAuthorizer,
}

impl Authorizer {
    /// Asks everyone; the first yes or no counts.
    pub async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group(MASTERS) {
            return Decision::Allow(String::new());
        }
        let chain = self.chain.load_full();
        let (mut reasons, mut errors) = (Vec::new(), Vec::new());
        for step in chain.iter() {
            let decision = match step {
                Step::Webhook(webhook) => webhook.decide(attributes).await,
                step => self.here(step, attributes),
            };
            match decision {
                Decision::NoOpinion(reason) => reasons.push(reason),
                Decision::Failed(failure) if !failure.denied => errors.push(failure.error),
                decided => return decided,
            }
        }
        reasons.retain(|reason| !reason.is_empty());
        let reason = reasons.join("\n");
        match errors.is_empty() {
            true => Decision::NoOpinion(reason),
            false => Decision::Failed(Failure { error: aggregate(errors), reason, denied: false }),
        }
    }

    /// What an authorizer that needs nobody else says.
    fn here(&self, step: &Step, attributes: &Attributes<'_>) -> Decision {
        match step {
            Step::AlwaysAllow => Decision::Allow(String::new()),
            Step::AlwaysDeny => Decision::NoOpinion("Everything is forbidden.".to_string()),
            Step::Node => self.node.decide(attributes),
            Step::Rbac => self.rbac.decide(attributes),
            Step::Abac(abac) => abac.decide(attributes),
            Step::Webhook(_) => Decision::NoOpinion(String::new()),
        }
    }

    /// What authorizers that cannot list a user's rules say about that.
    pub fn cannot_list(&self, user: &UserInfo) -> Vec<String> {
        let chain = self.chain.load();
        let text = |step: &Step| match step {
            Step::Node if user.in_group("system:nodes") => {
                Some("node authorizer does not support user rule resolution")
            }
            Step::Webhook(_) => Some("webhook authorizer does not support user rule resolution"),
            _ => None,
        };
        chain.iter().filter_map(text).map(String::from).collect()
    }

    /// `authorize` for callers that cannot wait, such as CEL expressions. Where a webhook is configured the thread waits
    /// for it.
    pub fn decide(&self, attributes: &Attributes<'_>) -> Decision {
        use futures::FutureExt as _;
        if let Some(decision) = Box::pin(self.authorize(attributes)).now_or_never() {
            return decision;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(handle) if handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(|| handle.block_on(self.authorize(attributes)))
            }
            _ => Decision::NoOpinion("the authorization webhook cannot be asked here".to_string()),
        }
    }

    /// Refuses what is not allowed, with upstream's message.
    pub async fn check(&self, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        match self.authorize(attributes).await {
            Decision::Allow(_) => Ok(()),
            Decision::NoOpinion(reason) | Decision::Deny(reason) => Err(forbidden(attributes, &reason)),
            Decision::Failed(failure) => Err(ApiError::internal(failure.error)),
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
