//! Where the escalation check meets the registry: writes of roles and bindings.

use orlop_api::status::ApiError;
use orlop_json::Value;

use super::escalation::{missing, print};
use super::rbac::{PolicyRule, RoleRef};
use super::{Attributes, Decision};
use crate::authn::MASTERS;
use crate::registry::{Call, Registry};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Refuses a role or binding that grants more than its writer holds.
pub fn check(registry: &Registry, call: &Call<'_>, new: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let resource = call.resource;
    if resource.group != GROUP || call.user.in_group(MASTERS) {
        return Ok(());
    }
    let name = new.pointer("/metadata/name").and_then(Value::as_str).unwrap_or(call.name);
    let refuse = |message: String| ApiError::forbidden(GROUP, &resource.plural, name, message);
    match resource.plural.as_str() {
        "roles" | "clusterroles" => {
            let unchanged = old.is_some_and(|old| {
                old.get("rules") == new.get("rules")
                    && old.get("aggregationRule") == new.get("aggregationRule")
            });
            if unchanged || may(registry, call, "escalate", &resource.plural, name) {
                return Ok(());
            }
            let all = PolicyRule {
                verbs: vec!["*".into()],
                api_groups: vec!["*".into()],
                resources: vec!["*".into()],
                ..PolicyRule::default()
            };
            let aggregates = new.get("aggregationRule").is_some_and(|rule| !rule.is_null());
            if aggregates && !missing(&held(registry, call), &[all]).is_empty() {
                return Err(refuse(
                    "must have cluster-admin privileges to use the aggregationRule".to_string(),
                ));
            }
            confirm(registry, call, &PolicyRule::list(new.get("rules"))).map_err(refuse)
        }
        "rolebindings" | "clusterrolebindings" => {
            if old.is_some_and(|old| {
                old.get("roleRef") == new.get("roleRef") && old.get("subjects") == new.get("subjects")
            }) {
                return Ok(());
            }
            let Some(role) = new.get("roleRef").and_then(|r| orlop_json::from_value::<RoleRef>(r).ok())
            else {
                return Ok(());
            };
            let plural = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
            if may(registry, call, "bind", plural, &role.name) {
                return Ok(());
            }
            let Some(rules) = registry.authorizer.rbac.rules_of(&role, call.namespace) else {
                return Err(ApiError::not_found(GROUP, plural, &role.name));
            };
            confirm(registry, call, &rules).map_err(refuse)
        }
        _ => Ok(()),
    }
}

fn may(registry: &Registry, call: &Call<'_>, verb: &str, resource: &str, name: &str) -> bool {
    let attributes = Attributes {
        namespace: call.namespace,
        name,
        ..Attributes::resource(call.user, verb, GROUP, resource)
    };
    matches!(registry.authorizer.decide(&attributes), Decision::Allow(_))
}

fn held(registry: &Registry, call: &Call<'_>) -> Vec<PolicyRule> {
    registry.authorizer.rbac.rules_for(call.user, call.namespace)
}

fn confirm(registry: &Registry, call: &Call<'_>, wanted: &[PolicyRule]) -> Result<(), String> {
    let lacking = missing(&held(registry, call), wanted);
    if lacking.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = call.user.groups.iter().map(|g| orlop_api::field::go_quote(g)).collect();
    let rules: Vec<String> = lacking.iter().map(print).collect();
    Err(format!(
        "user {} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        orlop_api::field::go_quote(&call.user.name),
        groups.join(" "),
        rules.join("\n")
    ))
}
