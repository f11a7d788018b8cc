//! Role based access control over the cached roles and bindings (`rbac.authorization.k8s.io/v1`).
//!
//! Parsed roles and bindings are kept between requests and parsed again only when their resource version changes.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;

use super::{Attributes, Decision};
use crate::authn::UserInfo;
use crate::cache::Cache;

/// One rule of a role.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// Verbs.
    #[serde(deserialize_with = "nullable")]
    pub verbs: Vec<String>,
    /// API groups.
    #[serde(deserialize_with = "nullable")]
    pub api_groups: Vec<String>,
    /// Resources, `resource/subresource`, `*/subresource` or `*`.
    #[serde(deserialize_with = "nullable")]
    pub resources: Vec<String>,
    /// Object names; none means all.
    #[serde(deserialize_with = "nullable")]
    pub resource_names: Vec<String>,
    /// Paths; a trailing `*` matches any rest.
    #[serde(rename = "nonResourceURLs", deserialize_with = "nullable")]
    pub non_resource_urls: Vec<String>,
}

fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl PolicyRule {
    /// Reads `rules` of a role object.
    pub fn list(rules: Option<&Value>) -> Vec<PolicyRule> {
        rules
            .and_then(Value::as_array)
            .map(|rules| rules.iter().filter_map(|rule| PolicyRule::deserialize(rule).ok()).collect())
            .unwrap_or_default()
    }

    /// Whether the rule covers a request.
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if !a.is_resource {
            return self.non_resource_urls.iter().any(|url| {
                url == "*"
                    || url == a.path
                    || url.strip_suffix('*').is_some_and(|prefix| a.path.starts_with(prefix))
            });
        }
        has(&self.api_groups, a.group)
            && self.resources.iter().any(|resource| resource_matches(resource, a.resource, a.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == a.name))
    }
}

/// Whether a rule's resource entry covers a resource and subresource.
pub fn resource_matches(entry: &str, resource: &str, subresource: &str) -> bool {
    if entry == "*" {
        return true;
    }
    match entry.split_once('/') {
        None => subresource.is_empty() && entry == resource,
        Some((main, sub)) => {
            !subresource.is_empty() && sub == subresource && (main == "*" || main == resource)
        }
    }
}

/// The role a binding grants.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleRef {
    /// Always `rbac.authorization.k8s.io`.
    pub api_group: String,
    /// `Role` or `ClusterRole`.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// Whom a binding grants it to.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject {
    /// `User`, `Group` or `ServiceAccount`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace of a service account.
    pub namespace: String,
}

impl Subject {
    fn is(&self, user: &UserInfo, binding_namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => user.name == self.name,
            "Group" => user.in_group(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                !namespace.is_empty()
                    && user
                        .name
                        .strip_prefix("system:serviceaccount:")
                        .and_then(|rest| rest.split_once(':'))
                        .is_some_and(|(ns, name)| ns == namespace && name == self.name)
            }
            _ => false,
        }
    }

    fn describe(&self, binding_namespace: &str) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                format!("ServiceAccount \"{}/{namespace}\"", self.name)
            }
            kind => format!("{kind} \"{}\"", self.name),
        }
    }
}

#[derive(Clone, Debug)]
struct Binding {
    name: String,
    namespace: String,
    role: RoleRef,
    subjects: Vec<Subject>,
}

/// A cluster role: its own rules, and whose rules it takes over.
#[derive(Clone, Debug)]
struct ClusterRole {
    rules: Vec<PolicyRule>,
    labels: crate::cache::Labels,
    /// `aggregationRule.clusterRoleSelectors[].matchLabels`
    aggregates: Vec<Vec<(String, String)>>,
}

type ClusterRoles = HashMap<Arc<str>, (u64, Arc<ClusterRole>)>;

impl ClusterRole {
    fn parse(object: &Value) -> ClusterRole {
        let selectors = object.pointer("/aggregationRule/clusterRoleSelectors").and_then(Value::as_array);
        ClusterRole {
            rules: PolicyRule::list(object.get("rules")),
            labels: crate::cache::labels_of(object),
            aggregates: selectors
                .into_iter()
                .flatten()
                .filter_map(|selector| {
                    let labels = selector.get("matchLabels")?.as_object()?;
                    Some(
                        labels
                            .iter()
                            .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string())))
                            .collect(),
                    )
                })
                .collect(),
        }
    }

    fn has_labels(&self, wanted: &[(String, String)]) -> bool {
        !wanted.is_empty()
            && wanted.iter().all(|(key, value)| {
                self.labels.iter().any(|(k, v)| k.as_ref() == key.as_str() && v.as_ref() == value.as_str())
            })
    }

    /// The rules that count: an aggregating role has those of the roles it selects, whether or not a controller has
    /// already written them into it.
    fn effective(&self, all: &ClusterRoles, depth: usize, out: &mut Vec<PolicyRule>) {
        out.extend(self.rules.iter().cloned());
        if depth == 0 {
            return;
        }
        for wanted in &self.aggregates {
            for (_, role) in all.values() {
                if role.has_labels(wanted) {
                    role.effective(all, depth - 1, out);
                }
            }
        }
    }
}

/// Aggregation may nest (view in edit in admin), but not without end.
const AGGREGATION_DEPTH: usize = 4;

fn cluster_rules(all: &ClusterRoles, name: &str) -> Option<Vec<PolicyRule>> {
    let (_, role) = all.get(name)?;
    let mut rules = Vec::new();
    role.effective(all, AGGREGATION_DEPTH, &mut rules);
    Some(rules)
}

/// A parsed form of one kind's objects.
struct Parsed<T> {
    cache: Arc<Cache>,
    kept: Mutex<Kept<T>>,
    parse: fn(&str, &str, &Value) -> T,
}

/// Parsed objects by key, each with the revision it was parsed at.
type Items<T> = Arc<HashMap<Arc<str>, (u64, Arc<T>)>>;

struct Kept<T> {
    at: Option<u64>,
    items: Items<T>,
}

impl<T> Parsed<T> {
    fn new(cache: Arc<Cache>, parse: fn(&str, &str, &Value) -> T) -> Parsed<T> {
        Parsed { cache, kept: Mutex::new(Kept { at: None, items: Arc::default() }), parse }
    }

    fn items(&self) -> Items<T> {
        let mut kept = self.kept.lock();
        let last = self.cache.last_change();
        if kept.at == Some(last) {
            return kept.items.clone();
        }
        let (snapshot, _) = self.cache.snapshot();
        let items = snapshot
            .iter()
            .map(|(key, entry)| match kept.items.get(key) {
                Some((revision, item)) if *revision == entry.revision => {
                    (key.clone(), (*revision, item.clone()))
                }
                _ => {
                    let item = (self.parse)(entry.namespace(), entry.name(), &entry.value());
                    (key.clone(), (entry.revision, Arc::new(item)))
                }
            })
            .collect();
        kept.items = Arc::new(items);
        // `last` was read before the snapshot: a change in between is seen by the next request.
        kept.at = Some(last);
        kept.items.clone()
    }
}

/// The RBAC authorizer.
pub struct Rbac {
    roles: Parsed<Vec<PolicyRule>>,
    cluster_roles: Parsed<ClusterRole>,
    role_bindings: Parsed<Binding>,
    cluster_role_bindings: Parsed<Binding>,
}

fn binding(namespace: &str, name: &str, object: &Value) -> Binding {
    Binding {
        name: name.to_string(),
        namespace: namespace.to_string(),
        role: object.get("roleRef").and_then(|r| RoleRef::deserialize(r).ok()).unwrap_or_default(),
        subjects: object
            .get("subjects")
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(|s| Subject::deserialize(s).ok()).collect())
            .unwrap_or_default(),
    }
}

impl Rbac {
    /// Reads roles and bindings from these caches.
    pub fn new(
        roles: Arc<Cache>,
        cluster_roles: Arc<Cache>,
        role_bindings: Arc<Cache>,
        cluster_role_bindings: Arc<Cache>,
    ) -> Rbac {
        let rules = |_: &str, _: &str, object: &Value| PolicyRule::list(object.get("rules"));
        Rbac {
            roles: Parsed::new(roles, rules),
            cluster_roles: Parsed::new(cluster_roles, |_, _, object| ClusterRole::parse(object)),
            role_bindings: Parsed::new(role_bindings, binding),
            cluster_role_bindings: Parsed::new(cluster_role_bindings, binding),
        }
    }

    /// The rules of the role a reference names; `None` when there is no such role.
    pub fn rules_of(&self, role: &RoleRef, namespace: &str) -> Option<Vec<PolicyRule>> {
        if role.kind == "ClusterRole" {
            return cluster_rules(&self.cluster_roles.items(), &role.name);
        }
        let key = format!("{namespace}/{}", role.name);
        self.roles.items().get(key.as_str()).map(|(_, rules)| rules.as_ref().clone())
    }

    /// Visits every rule that a user has in a namespace (and cluster-wide) until `visit` says stop by `true`. It is
    /// told the binding and subject that grant the rule. Returns the messages about roles that do not exist.
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(&PolicyRule, &dyn Fn() -> String) -> bool,
    ) -> Vec<String> {
        let mut errors = Vec::new();
        let cluster_roles = self.cluster_roles.items();
        let missing = |kind: &str, name: &str| {
            format!("{}.rbac.authorization.k8s.io \"{name}\" not found", kind.to_ascii_lowercase())
        };
        for (_, binding) in self.cluster_role_bindings.items().values() {
            let Some(subject) = binding.subjects.iter().find(|s| s.is(user, "")) else { continue };
            let Some(rules) = cluster_rules(&cluster_roles, &binding.role.name) else {
                errors.push(missing("clusterrole", &binding.role.name));
                continue;
            };
            let why = || {
                format!(
                    "ClusterRoleBinding \"{}\" of {} \"{}\" to {}",
                    binding.name,
                    binding.role.kind,
                    binding.role.name,
                    subject.describe("")
                )
            };
            if rules.iter().any(|rule| visit(rule, &why)) {
                return errors;
            }
        }
        if namespace.is_empty() {
            return errors;
        }
        let roles = self.roles.items();
        for (_, binding) in self.role_bindings.items().values() {
            if binding.namespace != namespace {
                continue;
            }
            let Some(subject) = binding.subjects.iter().find(|s| s.is(user, namespace)) else { continue };
            let found = if binding.role.kind == "ClusterRole" {
                cluster_rules(&cluster_roles, &binding.role.name)
            } else {
                let key = format!("{namespace}/{}", binding.role.name);
                roles.get(key.as_str()).map(|(_, rules)| rules.as_ref().clone())
            };
            let Some(rules) = found else {
                errors.push(missing(&binding.role.kind, &binding.role.name));
                continue;
            };
            let why = || {
                format!(
                    "RoleBinding \"{}/{namespace}\" of {} \"{}\" to {}",
                    binding.name,
                    binding.role.kind,
                    binding.role.name,
                    subject.describe(namespace)
                )
            };
            if rules.iter().any(|rule| visit(rule, &why)) {
                return errors;
            }
        }
        errors
    }

    /// Whether some rule allows it.
    pub fn decide(&self, attributes: &Attributes<'_>) -> Decision {
        let mut allowed = None;
        let mut errors = self.visit(attributes.user, attributes.namespace, |rule, why| {
            let yes = rule.allows(attributes);
            if yes {
                allowed = Some(format!("RBAC: allowed by {}", why()));
            }
            yes
        });
        if let Some(reason) = allowed {
            return Decision::Allow(reason);
        }
        errors.sort();
        errors.dedup();
        Decision::NoOpinion(match errors.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    /// Every rule a user has in a namespace, cluster-wide ones included.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<PolicyRule> {
        let mut rules = Vec::new();
        self.visit(user, namespace, |rule, _| {
            rules.push(rule.clone());
            false
        });
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources() {
        let check = |entry: &str, resource: &str, sub: &str, expected: bool| {
            assert_eq!(resource_matches(entry, resource, sub), expected, "{entry} {resource}/{sub}");
        };
        check("*", "pods", "log", true);
        check("pods", "pods", "", true);
        check("pods", "pods", "log", false);
        check("pods/log", "pods", "log", true);
        check("*/scale", "deployments", "scale", true);
        check("*/scale", "deployments", "", false);
        check("pods/*", "pods", "log", false);
    }
}
