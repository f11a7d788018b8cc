//! The `authorizer` library: builders that collect attributes and `check`, which asks the server's authorizer.

use std::fmt;
use std::sync::Arc;

use orlop_api::selector::{FieldSelector, LabelSelector};

use crate::error::EvalError;
use crate::library::opaque::Opaque;
use crate::val::{Res, Val};

/// Who decides. Implementations are asked while an expression is evaluated, so they answer from memory.
pub trait Authorizer: Send + Sync {
    /// The decision on a request.
    fn check(&self, request: &AccessRequest) -> AccessDecision;
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRequest {
    /// Whose access: a service account, or (`None`) the user whose request is being admitted.
    pub service_account: Option<ServiceAccount>,
    /// The verb given to `check`.
    pub verb: String,
    /// The URL path of a non-resource request.
    pub path: Option<String>,
    /// The resource of a resource request.
    pub resource: Option<ResourceAttributes>,
}

/// A service account that `serviceAccount(namespace, name)` named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The attributes of a resource request. Empty strings mean "not given".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ResourceAttributes {
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// The field selector's text, or why it does not parse.
    pub field_selector: Option<Result<String, String>>,
    /// The label selector's text, or why it does not parse.
    pub label_selector: Option<Result<String, String>>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessDecision {
    /// Whether the request is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
    /// What went wrong while deciding.
    pub error: Option<String>,
}

/// The value `authorizer`.
#[derive(Clone)]
pub struct AuthorizerVal<'a> {
    inner: &'a dyn Authorizer,
    service_account: Option<Arc<ServiceAccount>>,
}

impl fmt::Debug for AuthorizerVal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizerVal")
            .field("service_account", &self.service_account)
            .finish_non_exhaustive()
    }
}

/// `authorizer.path(…)`.
#[derive(Debug)]
pub struct PathCheck<'a> {
    authorizer: AuthorizerVal<'a>,
    /// The path.
    pub path: String,
}

/// `authorizer.group(…)`.
#[derive(Debug)]
pub struct GroupCheck<'a> {
    authorizer: AuthorizerVal<'a>,
    /// The API group.
    pub group: String,
}

/// `authorizer.group(…).resource(…)` and what narrows it.
#[derive(Debug)]
pub struct ResourceCheck<'a> {
    authorizer: AuthorizerVal<'a>,
    attributes: ResourceAttributes,
}

impl ResourceCheck<'_> {
    /// Whether two checks ask the same.
    pub fn same(&self, other: &ResourceCheck<'_>) -> bool {
        self.attributes == other.attributes
    }
}

impl<'a> Val<'a> {
    /// The value of the variable `authorizer`.
    pub fn authorizer(authorizer: &'a dyn Authorizer) -> Val<'a> {
        Val::Opaque(Opaque::Authorizer(AuthorizerVal { inner: authorizer, service_account: None }))
    }
}

/// The value of the variable `authorizer.requestResource`.
pub fn request_resource<'a>(authorizer: &'a dyn Authorizer, attributes: ResourceAttributes) -> Val<'a> {
    let authorizer = AuthorizerVal { inner: authorizer, service_account: None };
    Val::Opaque(Opaque::ResourceCheck(Arc::new(ResourceCheck { authorizer, attributes })))
}

/// The functions of this library, by name; `None` where this library has none for these arguments.
pub(crate) fn call<'a>(function: &str, args: &[Val<'a>]) -> Option<Res<'a>> {
    let Val::Opaque(target) = args.first()? else { return None };
    let text = |index: usize| args.get(index).and_then(Val::as_str).map(str::to_owned);
    match (target, function) {
        (Opaque::Authorizer(authorizer), "path") => {
            let path = text(1)?;
            if path.is_empty() {
                return Some(Err(EvalError::text("path must not be empty")));
            }
            let check = PathCheck { authorizer: authorizer.clone(), path };
            Some(Ok(Val::Opaque(Opaque::PathCheck(Arc::new(check)))))
        }
        (Opaque::Authorizer(authorizer), "group") => {
            let check = GroupCheck { authorizer: authorizer.clone(), group: text(1)? };
            Some(Ok(Val::Opaque(Opaque::GroupCheck(Arc::new(check)))))
        }
        (Opaque::Authorizer(authorizer), "serviceAccount") => {
            let (namespace, name) = (text(1)?, text(2)?);
            if let Some(problem) = orlop_api::names::is_dns1123_subdomain(&name).first() {
                return Some(Err(EvalError::text(format!("Invalid service account name: {problem}"))));
            }
            if let Some(problem) = orlop_api::names::is_dns1123_label(&namespace).first() {
                return Some(Err(EvalError::text(format!("Invalid service account namespace: {problem}"))));
            }
            let service_account = Some(Arc::new(ServiceAccount { namespace, name }));
            Some(Ok(Val::Opaque(Opaque::Authorizer(AuthorizerVal {
                inner: authorizer.inner,
                service_account,
            }))))
        }
        (Opaque::GroupCheck(group), "resource") => {
            let attributes =
                ResourceAttributes { group: group.group.clone(), resource: text(1)?, ..Default::default() };
            Some(Ok(resource(group.authorizer.clone(), attributes)))
        }
        (
            Opaque::ResourceCheck(check),
            "subresource" | "namespace" | "name" | "fieldSelector" | "labelSelector",
        ) => {
            let given = text(1)?;
            let mut attributes = check.attributes.clone();
            match function {
                "subresource" => attributes.subresource = given,
                "namespace" => attributes.namespace = given,
                "name" => attributes.name = given,
                "fieldSelector" => {
                    attributes.field_selector =
                        Some(FieldSelector::parse(&given).map(|_| given).map_err(|error| error.to_string()));
                }
                _ => {
                    attributes.label_selector =
                        Some(LabelSelector::parse(&given).map(|_| given).map_err(|error| error.to_string()));
                }
            }
            Some(Ok(resource(check.authorizer.clone(), attributes)))
        }
        (Opaque::ResourceCheck(check), "check") => {
            Some(Ok(decide(&check.authorizer, text(1)?, None, Some(check.attributes.clone()))))
        }
        (Opaque::PathCheck(check), "check") => {
            Some(Ok(decide(&check.authorizer, text(1)?, Some(check.path.clone()), None)))
        }
        (Opaque::Decision(decision), "allowed") => Some(Ok(Val::Bool(decision.allowed))),
        (Opaque::Decision(decision), "reason") => Some(Ok(Val::string(decision.reason.as_str()))),
        (Opaque::Decision(decision), "errored") => Some(Ok(Val::Bool(decision.error.is_some()))),
        (Opaque::Decision(decision), "error") => {
            Some(Ok(Val::string(decision.error.as_deref().unwrap_or_default())))
        }
        _ => None,
    }
}

fn resource<'a>(authorizer: AuthorizerVal<'a>, attributes: ResourceAttributes) -> Val<'a> {
    Val::Opaque(Opaque::ResourceCheck(Arc::new(ResourceCheck { authorizer, attributes })))
}

fn decide<'a>(
    authorizer: &AuthorizerVal<'a>,
    verb: String,
    path: Option<String>,
    resource: Option<ResourceAttributes>,
) -> Val<'a> {
    let service_account = authorizer.service_account.as_deref().cloned();
    let decision = authorizer.inner.check(&AccessRequest { service_account, verb, path, resource });
    Val::Opaque(Opaque::Decision(Arc::new(decision)))
}
