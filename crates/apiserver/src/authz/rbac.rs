//! Role based access control over the cached roles and bindings (`rbac.authorization.k8s.io/v1`).
//!
//! Decisions are made from an index of bindings by user and group, with the rules of their roles in place. It is made
//! again when a role or binding has changed, from parsed forms of which only the changed ones are parsed again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use orlop_api::selector::LabelSelector;
use orlop_json::Value;
use parking_lot::Mutex;
use serde::Deserialize;

use super::{Attributes, Decision};
use crate::authn::UserInfo;
use crate::cache::{Cache, ChangeKind};

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
            .map(|rules| {
                rules.iter().filter_map(|rule| orlop_json::from_value::<PolicyRule>(rule).ok()).collect()
            })
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
    /// Namespace of a service account.
    fn namespace<'a>(&'a self, binding_namespace: &'a str) -> &'a str {
        if self.namespace.is_empty() { binding_namespace } else { &self.namespace }
    }

    fn describe(&self, binding_namespace: &str) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => {
                format!("ServiceAccount \"{}/{}\"", self.name, self.namespace(binding_namespace))
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
    labels: Option<orlop_json::Map>,
    /// `aggregationRule.clusterRoleSelectors[]`
    aggregates: Vec<LabelSelector>,
}

impl ClusterRole {
    fn parse(object: &Value) -> ClusterRole {
        let selectors = object.pointer("/aggregationRule/clusterRoleSelectors").and_then(Value::as_array);
        ClusterRole {
            rules: PolicyRule::list(object.get("rules")),
            labels: object.pointer("/metadata/labels").and_then(Value::as_object).cloned(),
            aggregates: selectors
                .into_iter()
                .flatten()
                .filter_map(|selector| LabelSelector::from_object(selector).ok())
                .filter(|selector| !selector.is_empty())
                .collect(),
        }
    }
}

/// Aggregation may nest (view in edit in admin), but not without end.
const AGGREGATION_DEPTH: usize = 4;

/// A parsed form of one kind's objects, brought up to date by what has changed.
struct Parsed<T> {
    cache: Arc<Cache>,
    at: Option<u64>,
    items: BTreeMap<Arc<str>, Arc<T>>,
    parse: fn(&str, &str, &Value) -> T,
}

impl<T> Parsed<T> {
    fn new(cache: Arc<Cache>, parse: fn(&str, &str, &Value) -> T) -> Parsed<T> {
        Parsed { cache, at: None, items: BTreeMap::new(), parse }
    }

    fn is_current(&self) -> bool {
        self.at == Some(self.cache.last_change())
    }

    /// Takes in what has changed.
    fn refresh(&mut self) {
        if self.is_current() {
            return;
        }
        if let Some((changes, last)) = self.at.and_then(|at| self.cache.changes_since(at)) {
            for change in changes {
                let entry = &change.entry;
                match change.kind {
                    ChangeKind::Deleted => {
                        self.items.remove(&entry.key);
                    }
                    _ => {
                        let item = (self.parse)(entry.namespace(), entry.name(), &entry.value());
                        self.items.insert(entry.key.clone(), Arc::new(item));
                    }
                }
            }
            self.at = Some(last);
            return;
        }
        // Read before the snapshot: a change in between is taken in again by the next refresh.
        let last = self.cache.last_change();
        let (snapshot, _) = self.cache.snapshot();
        self.items = snapshot
            .iter()
            .map(|(key, entry)| {
                let item = (self.parse)(entry.namespace(), entry.name(), &entry.value());
                (key.clone(), Arc::new(item))
            })
            .collect();
        self.at = Some(last);
    }
}

/// A binding with the rules of its role.
struct Grant {
    binding: Arc<Binding>,
    /// `None`: there is no such role.
    rules: Option<Arc<[PolicyRule]>>,
}

/// Bindings of one scope by whom they are about.
#[derive(Default)]
struct Scope {
    grants: Vec<Grant>,
    /// Positions of grants and of their subjects.
    users: HashMap<String, Vec<(u32, u32)>>,
    groups: HashMap<String, Vec<(u32, u32)>>,
}

impl Scope {
    fn add(&mut self, grant: Grant) {
        let at = self.grants.len() as u32;
        for (position, subject) in grant.binding.subjects.iter().enumerate() {
            let place = (at, position as u32);
            match subject.kind.as_str() {
                "User" => self.users.entry(subject.name.clone()).or_default().push(place),
                "Group" => self.groups.entry(subject.name.clone()).or_default().push(place),
                "ServiceAccount" => {
                    let namespace = subject.namespace(&grant.binding.namespace);
                    if !namespace.is_empty() {
                        let name = format!("system:serviceaccount:{namespace}:{}", subject.name);
                        self.users.entry(name).or_default().push(place);
                    }
                }
                _ => {}
            }
        }
        self.grants.push(grant);
    }

    /// Grants about a user in their order, each with the first subject that he is.
    fn of<'a>(&'a self, user: &UserInfo) -> Vec<(&'a Grant, &'a Subject)> {
        let mut places: Vec<(u32, u32)> = self.users.get(&user.name).cloned().unwrap_or_default();
        for group in &user.groups {
            places.extend(self.groups.get(group).into_iter().flatten());
        }
        places.sort_unstable();
        places.dedup_by_key(|(grant, _)| *grant);
        places
            .into_iter()
            .filter_map(|(grant, subject)| {
                let grant = self.grants.get(grant as usize)?;
                Some((grant, grant.binding.subjects.get(subject as usize)?))
            })
            .collect()
    }
}

/// What decisions are made from: never changed, replaced when something has changed.
#[derive(Default)]
struct Index {
    cluster: Scope,
    namespaces: HashMap<String, Scope>,
    cluster_roles: HashMap<String, Arc<[PolicyRule]>>,
    roles: HashMap<Arc<str>, Arc<[PolicyRule]>>,
}

struct Sources {
    roles: Parsed<Vec<PolicyRule>>,
    cluster_roles: Parsed<ClusterRole>,
    role_bindings: Parsed<Binding>,
    cluster_role_bindings: Parsed<Binding>,
}

impl Sources {
    fn at(&self) -> [u64; 4] {
        [
            self.roles.cache.last_change(),
            self.cluster_roles.cache.last_change(),
            self.role_bindings.cache.last_change(),
            self.cluster_role_bindings.cache.last_change(),
        ]
    }

    fn refresh(&mut self) {
        self.roles.refresh();
        self.cluster_roles.refresh();
        self.role_bindings.refresh();
        self.cluster_role_bindings.refresh();
    }

    /// The rules that count: an aggregating role has those of the roles it selects, whether or not a controller has
    /// already written them into it.
    fn effective(&self, role: &ClusterRole, depth: usize, out: &mut Vec<PolicyRule>) {
        out.extend(role.rules.iter().cloned());
        if depth == 0 {
            return;
        }
        for selector in &role.aggregates {
            for other in self.cluster_roles.items.values() {
                if !selector.matches(other.labels.as_ref()) {
                    continue;
                }
                self.effective(other, depth - 1, out);
            }
        }
    }

    fn index(&self) -> Index {
        let mut index = Index::default();
        for (name, role) in &self.cluster_roles.items {
            let mut rules = Vec::new();
            self.effective(role, AGGREGATION_DEPTH, &mut rules);
            index.cluster_roles.insert(name.to_string(), rules.into());
        }
        for (key, rules) in &self.roles.items {
            index.roles.insert(key.clone(), rules.as_slice().into());
        }
        for binding in self.cluster_role_bindings.items.values() {
            let rules = index.rules_of(&binding.role, "");
            index.cluster.add(Grant { binding: binding.clone(), rules });
        }
        for binding in self.role_bindings.items.values() {
            let rules = index.rules_of(&binding.role, &binding.namespace);
            let scope = index.namespaces.entry(binding.namespace.clone()).or_default();
            scope.add(Grant { binding: binding.clone(), rules });
        }
        index
    }
}

impl Index {
    fn rules_of(&self, role: &RoleRef, namespace: &str) -> Option<Arc<[PolicyRule]>> {
        if role.kind == "ClusterRole" {
            return self.cluster_roles.get(&role.name).cloned();
        }
        self.roles.get(format!("{namespace}/{}", role.name).as_str()).cloned()
    }
}

/// The RBAC authorizer.
pub struct Rbac {
    sources: Mutex<Sources>,
    /// The index, and the last changes of the four kinds it was made at.
    index: ArcSwap<([u64; 4], Index)>,
    caches: [Arc<Cache>; 4],
}

fn binding(namespace: &str, name: &str, object: &Value) -> Binding {
    Binding {
        name: name.to_string(),
        namespace: namespace.to_string(),
        role: object
            .get("roleRef")
            .and_then(|r| orlop_json::from_value::<RoleRef>(r).ok())
            .unwrap_or_default(),
        subjects: object
            .get("subjects")
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(|s| orlop_json::from_value::<Subject>(s).ok()).collect())
            .unwrap_or_default(),
    }
}

/// A role that a binding names and that does not exist.
fn missing(role: &RoleRef) -> String {
    format!("{}.rbac.authorization.k8s.io \"{}\" not found", role.kind.to_ascii_lowercase(), role.name)
}

impl Rbac {
    /// Reads roles and bindings from these caches.
    pub fn new(
        roles: Arc<Cache>,
        cluster_roles: Arc<Cache>,
        role_bindings: Arc<Cache>,
        cluster_role_bindings: Arc<Cache>,
    ) -> Rbac {
        let caches =
            [roles.clone(), cluster_roles.clone(), role_bindings.clone(), cluster_role_bindings.clone()];
        let rules = |_: &str, _: &str, object: &Value| PolicyRule::list(object.get("rules"));
        let sources = Sources {
            roles: Parsed::new(roles, rules),
            cluster_roles: Parsed::new(cluster_roles, |_, _, object| ClusterRole::parse(object)),
            role_bindings: Parsed::new(role_bindings, binding),
            cluster_role_bindings: Parsed::new(cluster_role_bindings, binding),
        };
        // No change has this revision, so that the first question makes the index.
        let index = ArcSwap::from_pointee(([u64::MAX; 4], Index::default()));
        Rbac { sources: Mutex::new(sources), index, caches }
    }

    /// The index of the present objects.
    fn index(&self) -> arc_swap::Guard<Arc<([u64; 4], Index)>> {
        let current = self.index.load();
        let at = [0, 1, 2, 3].map(|cache| self.caches[cache].last_change());
        if current.0 == at {
            return current;
        }
        let mut sources = self.sources.lock();
        let at = sources.at();
        // Somebody else may have made it while this one waited.
        if self.index.load().0 != at {
            sources.refresh();
            self.index.store(Arc::new((at, sources.index())));
        }
        self.index.load()
    }

    /// The rules of the role a reference names; `None` when there is no such role.
    pub fn rules_of(&self, role: &RoleRef, namespace: &str) -> Option<Vec<PolicyRule>> {
        self.index().1.rules_of(role, namespace).map(|rules| rules.to_vec())
    }

    /// Whether some rule allows it.
    pub fn decide(&self, attributes: &Attributes<'_>) -> Decision {
        let guard = self.index();
        let index = &guard.1;
        let mut errors = Vec::new();
        for (grant, subject) in index.cluster.of(attributes.user) {
            match &grant.rules {
                None => errors.push(missing(&grant.binding.role)),
                Some(rules) if rules.iter().any(|rule| rule.allows(attributes)) => {
                    let Binding { name, role, .. } = grant.binding.as_ref();
                    return Decision::Allow(format!(
                        "RBAC: allowed by ClusterRoleBinding \"{name}\" of {} \"{}\" to {}",
                        role.kind,
                        role.name,
                        subject.describe("")
                    ));
                }
                Some(_) => {}
            }
        }
        let scope = (!attributes.namespace.is_empty()).then(|| index.namespaces.get(attributes.namespace));
        for (grant, subject) in scope.flatten().map(|scope| scope.of(attributes.user)).unwrap_or_default() {
            match &grant.rules {
                None => errors.push(missing(&grant.binding.role)),
                Some(rules) if rules.iter().any(|rule| rule.allows(attributes)) => {
                    let Binding { name, role, namespace, .. } = grant.binding.as_ref();
                    return Decision::Allow(format!(
                        "RBAC: allowed by RoleBinding \"{name}/{namespace}\" of {} \"{}\" to {}",
                        role.kind,
                        role.name,
                        subject.describe(namespace)
                    ));
                }
                Some(_) => {}
            }
        }
        errors.sort();
        errors.dedup();
        Decision::NoOpinion(match errors.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    /// Every rule a user has in a namespace, cluster-wide ones included, and what is wrong with his bindings.
    pub fn rules_and_errors(&self, user: &UserInfo, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let guard = self.index();
        let index = &guard.1;
        let scope = (!namespace.is_empty()).then(|| index.namespaces.get(namespace)).flatten();
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for (grant, _) in [Some(&index.cluster), scope].into_iter().flatten().flat_map(|scope| scope.of(user))
        {
            match &grant.rules {
                Some(granted) => rules.extend(granted.iter().cloned()),
                None => errors.push(missing(&grant.binding.role)),
            }
        }
        errors.sort();
        errors.dedup();
        (rules, errors)
    }

    /// Every rule a user has in a namespace, cluster-wide ones included.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<PolicyRule> {
        self.rules_and_errors(user, namespace).0
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
