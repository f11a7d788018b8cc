//! Fills the rules of ClusterRoles that have an `aggregationRule` from the roles its selectors find. Answers to
//! upstream's `clusterrole-aggregation-controller`.

use std::time::Duration;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Api, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use orlop_client::{Informer, WorkQueue, run_workers};
use serde_json::json;

use crate::error::Error;
use crate::shell::Shell;

const NAME: &str = "clusterrole-aggregation-controller";

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let roles = shell.informers.informer::<ClusterRole>();
    roles.synced().await;
    let queue = WorkQueue::named("ClusterRoleAggregator");
    let (changed, all) = (queue.clone(), roles.clone());
    // Any role may be part of any aggregate; there are few aggregates, and equal results write nothing.
    roles.subscribe(move |_| {
        for role in all.list().iter().filter(|role| role.aggregation_rule.is_some()) {
            changed.add(role.metadata.name.clone().unwrap_or_default());
        }
    });
    let (roles, client) = (&roles, &shell.client);
    run_workers(NAME, queue, 1, shell.shutdown, |name: String| async move {
        let Some(role) = roles.get("", &name) else { return Ok(None) };
        let Some(rules) = desired(&role, roles) else { return Ok(None) };
        let applied = Patch::Apply(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": rules,
        }));
        let api = Api::<ClusterRole>::all(client.clone());
        match api.patch(&name, &PatchParams::apply(NAME).force(), &applied).await {
            Err(error) => Err(Error::from(error)),
            Ok(_) => Ok(None::<Duration>),
        }
    })
    .await;
    Ok(())
}

/// The rules to write, each once, in the order of selectors and role names; `None` when they are there already.
fn desired(role: &ClusterRole, roles: &Informer<ClusterRole>) -> Option<Vec<PolicyRule>> {
    let rule = role.aggregation_rule.as_ref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in rule.cluster_role_selectors.iter().flatten() {
        // The API server lets no selector pass that does not parse.
        let Ok(selector) = Selector::try_from(selector.clone()) else { continue };
        for part in roles.list() {
            let labels = part.metadata.labels.clone().unwrap_or_default();
            if part.metadata.name == role.metadata.name || !selector.matches(&labels) {
                continue;
            }
            for rule in part.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::Value;

    fn role(name: &str, label: &str, verbs: &[&str]) -> ClusterRole {
        let rules: Vec<Value> =
            verbs.iter().map(|verb| json!({"verbs": [verb], "resources": ["pods"]})).collect();
        parse(json!({"metadata": {"name": name, "labels": {"part": label}}, "rules": rules}))
    }

    fn aggregate(parts: &[&str], verbs: &[&str]) -> ClusterRole {
        let selectors: Vec<Value> = parts.iter().map(|part| json!({"matchLabels": {"part": part}})).collect();
        let mut aggregate = role("all", "own", verbs);
        aggregate.aggregation_rule = Some(parse(json!({"clusterRoleSelectors": selectors})));
        aggregate
    }

    fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn check(aggregate: ClusterRole, expected: Option<&[&str]>) {
        let roles = Informer::fixed([
            role("b", "x", &["get", "list"]),
            role("a", "x", &["watch"]),
            role("c", "y", &["get", "delete"]),
            aggregate.clone(),
        ]);
        let verbs = desired(&aggregate, &roles)
            .map(|rules| rules.iter().map(|rule| rule.verbs[0].clone()).collect::<Vec<_>>());
        assert_eq!(
            verbs.as_deref(),
            expected.map(|verbs| verbs.iter().map(|verb| (*verb).to_owned()).collect::<Vec<_>>()).as_deref()
        );
    }

    #[test]
    fn rules_are_gathered_once_each_in_order() {
        check(aggregate(&["x"], &[]), Some(&["watch", "get", "list"]));
        check(aggregate(&["y", "x"], &[]), Some(&["get", "delete", "watch", "list"]));
        check(aggregate(&["x"], &["watch", "get", "list"]), None);
        check(aggregate(&["none"], &["get"]), Some(&[]));
        check(aggregate(&["own"], &[]), None);
        check(role("plain", "x", &["get"]), None);
    }
}
