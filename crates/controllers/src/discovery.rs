//! What resources the server has, for the controllers that deal with all kinds: namespace deletion, garbage collection
//! and quota.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, ApiResource, DynamicObject};
use orlop_client::SharedInformerFactory;
use tokio::sync::Notify;
use tracing::warn;

use crate::error::message;

/// One resource in its group's preferred version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Resource {
    pub(crate) api: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Resource {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// Requests for objects of this resource in `namespace` (ignored for cluster-scoped ones).
    pub(crate) fn objects(&self, client: &kube::Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced && !namespace.is_empty() {
            Api::namespaced_with(client.clone(), namespace, &self.api)
        } else {
            Api::all_with(client.clone(), &self.api)
        }
    }
}

/// The answer of one discovery.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    pub(crate) resources: Vec<Resource>,
    /// Group versions that could not be asked, with the reason; their resources are unknown.
    pub(crate) failures: Vec<(String, String)>,
}

/// Asks for all groups. A group that fails does not hide the others.
pub(crate) async fn discover(client: &kube::Client) -> Discovered {
    let mut found = Discovered::default();
    match client.list_core_api_resources("v1").await {
        Ok(list) => found.add("v1", list),
        Err(error) => found.failures.push(("v1".to_owned(), message(&error))),
    }
    let groups = match client.list_api_groups().await {
        Ok(list) => list.groups,
        Err(error) => {
            found.failures.push(("apis".to_owned(), message(&error)));
            return found;
        }
    };
    for group in groups {
        // The preferred version first: what it has is not taken from another.
        let mut versions: Vec<_> =
            group.versions.iter().map(|version| version.group_version.clone()).collect();
        if let Some(preferred) = &group.preferred_version {
            versions.sort_by_key(|version| *version != preferred.group_version);
        }
        for version in versions {
            match client.list_api_group_resources(&version).await {
                Ok(list) => found.add(&version, list),
                Err(error) => found.failures.push((version, message(&error))),
            }
        }
    }
    found
}

/// Asks at once, and again whenever definitions of resources change; does not end by itself. `found` gets all resources,
/// and those among them that were not there before and can be listed, watched and deleted.
pub(crate) async fn follow<F, Fut>(
    client: &kube::Client,
    informers: &SharedInformerFactory,
    controller: &'static str,
    found: F,
) where
    F: Fn(Vec<Arc<Resource>>, Vec<Arc<Resource>>) -> Fut,
    Fut: Future<Output = ()>,
{
    let changed = Arc::new(Notify::new());
    let mut known = HashSet::new();
    let mut wait = Duration::from_secs(1);
    loop {
        let discovered = discover(client).await;
        let all: Vec<_> = discovered.resources.into_iter().map(Arc::new).collect();
        let mut new = Vec::new();
        for resource in &all {
            let usable = ["list", "watch", "delete"].iter().all(|verb| resource.can(verb));
            let (group, plural) = (resource.api.group.clone(), resource.api.plural.clone());
            let defines = matches!(plural.as_str(), "customresourcedefinitions" | "apiservices");
            if !usable || !known.insert((group, plural)) {
                continue;
            }
            if defines {
                let changed = changed.clone();
                informers.metadata(&resource.api).subscribe(move |_| changed.notify_one());
            }
            new.push(resource.clone());
        }
        found(all, new).await;
        if discovered.failures.is_empty() {
            wait = Duration::from_secs(1);
            changed.notified().await;
            // A definition takes a moment until it is served, and several often come together.
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else {
            warn!(controller, failures = ?discovered.failures, "some resources are not known; asking again");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(60));
        }
    }
}

impl Discovered {
    fn add(
        &mut self,
        group_version: &str,
        list: k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList,
    ) {
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        for resource in list.resources.into_iter().filter(|resource| !resource.name.contains('/')) {
            let known = |other: &Resource| other.api.group == group && other.api.plural == resource.name;
            if self.resources.iter().any(known) {
                continue;
            }
            self.resources.push(Resource {
                api: ApiResource {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    api_version: group_version.to_owned(),
                    kind: resource.kind,
                    plural: resource.name,
                },
                namespaced: resource.namespaced,
                verbs: resource.verbs,
            });
        }
    }
}
