//! The table of served resources: a row of `orlop_api::resources`, its strategy and its cache.
//!
//! A row is served when its kind has a strategy in `orlop_kinds` or is one of the virtual kinds (reviews, bindings)
//! that this crate answers itself.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_api::resources::Resource as Facts;
use orlop_api::resources::Subresource;
use orlop_kinds::Strategy;
use serde_json::Value;

use crate::cache::{Cache, Caches, Fields};

/// How stored objects differ from what this resource serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversion {
    /// They are the same.
    None,
    /// `events.k8s.io/v1` Events are stored as core `v1` Events.
    Events,
}

/// A resource that is served.
pub struct Resource {
    /// Its row.
    pub facts: Facts,
    /// How its objects behave; `None` for virtual kinds, which are not stored.
    pub strategy: Option<&'static dyn Strategy>,
    /// Its objects; `None` for virtual kinds.
    pub cache: Option<Arc<Cache>>,
    /// Difference between stored and served form.
    pub conversion: Conversion,
}

impl std::ops::Deref for Resource {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.facts
    }
}

impl Resource {
    /// Whether the resource answers a verb.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The end of the storage key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{namespace}/{name}") } else { name.to_string() }
    }
}

/// Kinds that exist only as requests and answers.
const VIRTUAL: [(&str, &str); 7] = [
    ("", "Binding"),
    ("authentication.k8s.io", "SelfSubjectReview"),
    ("authentication.k8s.io", "TokenReview"),
    ("authorization.k8s.io", "LocalSubjectAccessReview"),
    ("authorization.k8s.io", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "SelfSubjectRulesReview"),
    ("authorization.k8s.io", "SubjectAccessReview"),
];

/// Subresources that are not answered yet; discovery does not show them.
const UNBUILT_SUBRESOURCES: [&str; 2] = ["proxy", "resize"];

/// Upstream's storage prefix of a resource.
fn storage_prefix(facts: &Facts) -> String {
    let name = match (facts.group.as_str(), facts.plural.as_str()) {
        ("", "services") => "services/specs",
        ("", "endpoints") => "services/endpoints",
        ("", "nodes") => "minions",
        ("networking.k8s.io", "ingresses") => "ingress",
        (_, plural) => plural,
    };
    format!("/registry/{name}/")
}

/// All served resources.
pub struct Resources {
    list: Vec<Arc<Resource>>,
    by_path: HashMap<(String, String, String), Arc<Resource>>,
    by_kind: HashMap<(String, String), Arc<Resource>>,
}

impl Resources {
    /// Makes a cache, with room for `capacity` recent changes, for every stored kind.
    pub fn load(caches: &mut Caches, capacity: usize) -> Resources {
        let mut resources = Resources { list: Vec::new(), by_path: HashMap::new(), by_kind: HashMap::new() };
        for row in orlop_api::resources::all() {
            let mut facts = row.clone();
            facts.subresources.retain(|s| !UNBUILT_SUBRESOURCES.contains(&s.name.as_str()));
            let is_virtual = VIRTUAL.contains(&(facts.group.as_str(), facts.kind.as_str()));
            let strategy = orlop_kinds::strategy(&facts.group, &facts.kind);
            if strategy.is_none() && !is_virtual {
                continue;
            }
            let conversion =
                if facts.group == "events.k8s.io" { Conversion::Events } else { Conversion::None };
            // The stored form decides what can be selected.
            let stored = match conversion {
                Conversion::None => strategy,
                Conversion::Events => orlop_kinds::strategy("", "Event"),
            };
            let cache = stored.map(|strategy| {
                let labels: Vec<Arc<str>> = facts
                    .field_labels
                    .iter()
                    .filter(|l| !matches!(l.as_str(), "metadata.name" | "metadata.namespace"))
                    .map(|l| Arc::from(l.as_str()))
                    .collect();
                let fields_of = move |object: &Value| -> Fields {
                    labels
                        .iter()
                        .filter_map(|label| {
                            Some((label.clone(), strategy.selectable_field(object, label)?.into()))
                        })
                        .collect()
                };
                caches.add(&storage_prefix(&facts), capacity, Box::new(fields_of))
            });
            resources.insert(Resource { facts, strategy, cache, conversion });
        }
        resources
    }

    fn insert(&mut self, resource: Resource) {
        let resource = Arc::new(resource);
        self.by_path.insert(
            (resource.group.clone(), resource.version.clone(), resource.plural.clone()),
            resource.clone(),
        );
        self.by_kind.entry((resource.group.clone(), resource.kind.clone())).or_insert(resource.clone());
        self.list.push(resource);
    }

    /// The resource at a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_path.get(&(group.to_string(), version.to_string(), plural.to_string()))
    }

    /// The resource of a kind.
    pub fn of_kind(&self, group: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.by_kind.get(&(group.to_string(), kind.to_string()))
    }

    /// The cache of a kind.
    pub fn cache(&self, group: &str, kind: &str) -> Option<Arc<Cache>> {
        self.of_kind(group, kind)?.cache.clone()
    }

    /// Every resource in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.list.iter()
    }
}
