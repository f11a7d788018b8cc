//! Whether a webhook or policy is for a request: rules, namespace and object selectors, equivalent resources. Upstream's
//! `webhook/predicates` and `policy/matching`.

use std::sync::Arc;

use orlop_api::selector::LabelSelector;
use orlop_api::status::ApiError;
use orlop_json::{Map, Value};

use super::{Operation, Request};
use crate::registry::Registry;
use crate::resources::Resource;

/// The group whose objects no webhook or policy ever sees, so that none can lock its administrator out.
pub const GROUP: &str = "admissionregistration.k8s.io";

/// Reviews: what policies never see.
const REVIEWS: [(&str, &str); 6] = [
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
];

/// Whether the request is about a configuration of admission itself.
pub fn is_configuration(request: &Request<'_>) -> bool {
    request.call.resource.group == GROUP
}

/// Whether the request is a review.
pub fn is_review(request: &Request<'_>) -> bool {
    let resource = request.call.resource;
    REVIEWS.contains(&(resource.group.as_str(), resource.plural.as_str()))
}

/// A list of names in which `*` stands for all.
#[derive(Debug)]
struct Names {
    any: bool,
    list: Vec<String>,
}

impl Names {
    fn of(value: &Value) -> Names {
        let list: Vec<String> = texts(value).map(String::from).collect();
        Names { any: list.iter().any(|name| name == "*"), list }
    }

    fn has(&self, name: &str) -> bool {
        self.any || self.list.iter().any(|known| known == name)
    }
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Any,
    Cluster,
    Namespaced,
}

/// One `RuleWithOperations` or `NamedRuleWithOperations`.
#[derive(Debug)]
pub struct Rule {
    operations: Names,
    groups: Names,
    versions: Names,
    resources: Vec<(String, String)>,
    names: Vec<String>,
    scope: Scope,
}

impl Rule {
    /// Reads every rule of a list.
    pub fn list(value: &Value) -> Vec<Rule> {
        value.as_array().into_iter().flatten().map(Rule::of).collect()
    }

    fn of(value: &Value) -> Rule {
        let resource = |text: &str| {
            let (resource, subresource) = text.split_once('/').unwrap_or((text, ""));
            (resource.to_string(), subresource.to_string())
        };
        Rule {
            operations: Names::of(&value["operations"]),
            groups: Names::of(&value["apiGroups"]),
            versions: Names::of(&value["apiVersions"]),
            resources: texts(&value["resources"]).map(resource).collect(),
            names: texts(&value["resourceNames"]).map(String::from).collect(),
            scope: match value["scope"].as_str() {
                Some("Cluster") => Scope::Cluster,
                Some("Namespaced") => Scope::Namespaced,
                _ => Scope::Any,
            },
        }
    }

    /// The plurals the rule names; `None` when it is for all.
    pub fn plurals(&self) -> Option<impl Iterator<Item = &str>> {
        let any = self.resources.iter().any(|(resource, _)| resource == "*");
        (!any).then(|| self.resources.iter().map(|(resource, _)| resource.as_str()))
    }

    fn matches(&self, request: &Request<'_>, resource: &Resource) -> bool {
        let is_namespace = resource.group.is_empty() && resource.plural == "namespaces";
        let in_namespace = !is_namespace && !request.attribute_namespace().is_empty();
        let in_scope = match self.scope {
            Scope::Any => true,
            Scope::Namespaced => in_namespace,
            Scope::Cluster => !in_namespace,
        };
        in_scope
            && self.operations.has(request.operation.as_str())
            && self.groups.has(&resource.group)
            && self.versions.has(&resource.version)
            && self.resources.iter().any(|(plural, subresource)| {
                (plural == "*" || *plural == resource.plural)
                    && (subresource == "*" || subresource == request.call.subresource)
            })
            && (self.names.is_empty() || self.names.iter().any(|name| name == request.attribute_name()))
    }
}

/// Which form of a resource a rule matched: the request's own, or an equivalent one in another group or version.
#[derive(Clone)]
pub enum Matched {
    /// The request's.
    Own,
    /// Another.
    Equivalent(Arc<Resource>),
}

/// What a webhook or a policy says about the requests it is for.
pub struct Criteria {
    namespaces: LabelSelector,
    objects: LabelSelector,
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Without rules everything matches: a binding that does not narrow its policy.
    all_without_rules: bool,
    equivalent: bool,
}

/// A selector that says nothing selects everything; one that cannot be read selects nothing.
fn selector(value: &Value) -> LabelSelector {
    if value.is_null() {
        return LabelSelector::everything();
    }
    LabelSelector::from_object(value).unwrap_or_else(|_| LabelSelector::nothing())
}

impl Criteria {
    /// Of a webhook.
    pub fn of_webhook(hook: &Value) -> Criteria {
        Criteria {
            namespaces: selector(&hook["namespaceSelector"]),
            objects: selector(&hook["objectSelector"]),
            rules: Rule::list(&hook["rules"]),
            excluded: Vec::new(),
            all_without_rules: false,
            equivalent: hook["matchPolicy"].as_str() == Some("Equivalent"),
        }
    }

    /// Of a policy's or binding's `MatchResources`; `null` matches everything.
    pub fn of_match_resources(resources: &Value) -> Criteria {
        Criteria {
            namespaces: selector(&resources["namespaceSelector"]),
            objects: selector(&resources["objectSelector"]),
            rules: Rule::list(&resources["resourceRules"]),
            excluded: Rule::list(&resources["excludeResourceRules"]),
            all_without_rules: true,
            equivalent: resources["matchPolicy"].as_str() == Some("Equivalent"),
        }
    }

    /// The plurals that can match; `None` for all.
    pub fn plurals(&self) -> Option<Vec<&str>> {
        if self.rules.is_empty() {
            return if self.all_without_rules { None } else { Some(Vec::new()) };
        }
        let mut all = Vec::new();
        for rule in &self.rules {
            all.extend(rule.plurals()?);
        }
        Some(all)
    }

    /// Whether the request is meant, and in which form.
    pub fn matches(&self, registry: &Registry, request: &Request<'_>) -> Result<Option<Matched>, ApiError> {
        let in_namespace = self.namespace_matches(registry, request);
        if matches!(in_namespace, Ok(false)) || !self.object_matches(request) {
            return Ok(None);
        }
        if self.rule_match(&self.excluded, registry, request).is_some() {
            return Ok(None);
        }
        let matched = if self.rules.is_empty() && self.all_without_rules {
            Some(Matched::Own)
        } else {
            self.rule_match(&self.rules, registry, request)
        };
        // An error about the namespace is only told to those whom the webhook or policy is for.
        match (matched, in_namespace) {
            (Some(_), Err(error)) => Err(error),
            (matched, _) => Ok(matched),
        }
    }

    fn rule_match(&self, rules: &[Rule], registry: &Registry, request: &Request<'_>) -> Option<Matched> {
        if rules.iter().any(|rule| rule.matches(request, request.call.resource)) {
            return Some(Matched::Own);
        }
        if !self.equivalent || rules.is_empty() {
            return None;
        }
        let equivalents = equivalents(registry, request.call.resource);
        rules.iter().find_map(|rule| {
            let found = equivalents.iter().find(|resource| rule.matches(request, resource))?;
            Some(Matched::Equivalent(found.clone()))
        })
    }

    fn object_matches(&self, request: &Request<'_>) -> bool {
        if self.objects.is_empty() {
            return true;
        }
        let matches = |object: &Value| object.is_object() && self.objects.matches(labels_of(object));
        matches(request.object) || request.old.is_some_and(matches)
    }

    fn namespace_matches(&self, registry: &Registry, request: &Request<'_>) -> Result<bool, ApiError> {
        let resource = request.call.resource;
        let name = request.attribute_namespace();
        if self.namespaces.is_empty() || (name.is_empty() && resource.plural != "namespaces") {
            return Ok(true);
        }
        let is_namespace = resource.plural == "namespaces" && request.call.subresource.is_empty();
        if is_namespace && matches!(request.operation, Operation::Create | Operation::Update) {
            return Ok(self.namespaces.matches(labels_of(request.object)));
        }
        let namespace = namespace(registry, name)?;
        let labels: Map = namespace
            .labels
            .iter()
            .map(|(key, value)| (key.as_ref().into(), value.as_ref().into()))
            .collect();
        Ok(self.namespaces.matches(Some(&labels)))
    }
}

fn labels_of(object: &Value) -> Option<&Map> {
    object.pointer("/metadata/labels").and_then(Value::as_object)
}

/// A namespace, or its 404.
pub fn namespace(registry: &Registry, name: &str) -> Result<Arc<crate::cache::Entry>, ApiError> {
    registry
        .resources
        .cache("", "Namespace")
        .and_then(|cache| cache.get(name))
        .ok_or_else(|| ApiError::not_found("", "namespaces", name))
}

/// Other resources that serve the same objects.
fn equivalents(registry: &Registry, resource: &Resource) -> Vec<Arc<Resource>> {
    let Some(cache) = &resource.cache else { return Vec::new() };
    registry
        .resources
        .table()
        .list
        .iter()
        .filter(|other| {
            let same = other.cache.as_ref().is_some_and(|other| Arc::ptr_eq(other, cache));
            same && (other.group != resource.group || other.version != resource.version)
        })
        .cloned()
        .collect()
}

/// Finds what may match by the plural of a request's resource, in order.
pub struct Index<T> {
    all: Vec<T>,
    by_plural: std::collections::HashMap<Box<str>, Vec<usize>>,
    /// For plurals that nobody names.
    any: Vec<usize>,
}

impl<T> Default for Index<T> {
    fn default() -> Index<T> {
        Index { all: Vec::new(), by_plural: Default::default(), any: Vec::new() }
    }
}

impl<T> Index<T> {
    /// An index of things whose criteria `criteria_of` gives.
    pub fn new(all: Vec<T>, criteria_of: impl Fn(&T) -> &Criteria) -> Index<T> {
        let mut index = Index::default();
        let plurals: Vec<Option<Vec<Box<str>>>> = all
            .iter()
            .map(|item| criteria_of(item).plurals().map(|list| list.into_iter().map(Box::from).collect()))
            .collect();
        for name in plurals.iter().flatten().flatten() {
            index.by_plural.entry(name.clone()).or_default();
        }
        for (at, names) in plurals.iter().enumerate() {
            match names {
                None => {
                    index.any.push(at);
                    index.by_plural.values_mut().for_each(|list| list.push(at));
                }
                Some(names) => {
                    for name in names {
                        let list = index.by_plural.entry(name.clone()).or_default();
                        if list.last() != Some(&at) {
                            list.push(at);
                        }
                    }
                }
            }
        }
        index.all = all;
        index
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Everything, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.all.iter()
    }

    /// Everything that may match a plural, in order.
    pub fn candidates<'a>(&'a self, plural: &str) -> impl Iterator<Item = &'a T> + 'a {
        let list = self.by_plural.get(plural).unwrap_or(&self.any);
        list.iter().map(|at| &self.all[*at])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use orlop_json::json;

    #[test]
    fn candidates_keep_their_order() {
        let criteria = |resources: Value| Criteria::of_webhook(&json!({"rules": [{"resources": resources}]}));
        let all = vec![
            ("a", criteria(json!(["pods"]))),
            ("b", criteria(json!(["*"]))),
            ("c", criteria(json!(["pods/log", "pods"]))),
            ("d", criteria(json!(["*/scale"]))),
            ("e", criteria(json!([]))),
        ];
        let index = Index::new(all, |(_, criteria)| criteria);
        let names = |plural: &str| index.candidates(plural).map(|(name, _)| *name).collect::<String>();
        assert_eq!(names("pods"), "abcd");
        assert_eq!(names("deployments"), "bd");
    }
}
