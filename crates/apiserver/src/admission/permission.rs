//! What a plugin asks of the authorizer about the user of a request.

use super::Request;
use crate::authz::{Attributes, Decision};
use crate::registry::Registry;

/// What the user would do.
pub(super) struct Action<'a> {
    pub(super) verb: &'a str,
    pub(super) group: &'a str,
    pub(super) resource: &'a str,
    pub(super) subresource: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

/// Whether the user may; else why not (may be empty).
pub(super) fn may(registry: &Registry, request: &Request<'_>, action: &Action<'_>) -> Result<(), String> {
    let attributes = Attributes {
        subresource: action.subresource,
        namespace: action.namespace,
        name: action.name,
        ..Attributes::resource(request.call.user, action.verb, action.group, action.resource)
    };
    match registry.authorizer.decide(&attributes) {
        Decision::Allow(_) => Ok(()),
        decision => Err(decision.reason().to_string()),
    }
}
