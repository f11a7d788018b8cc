//! How many pods the owners of pods want: from the caches for the built-in workloads, from the scale subresource for
//! everything else.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use orlop_client::{Informer, Object};
use parking_lot::Mutex;

use crate::discovery::{Resource, discover};
use crate::error::{Error, is_not_found};
use crate::objects::Meta;

pub(super) struct Scales {
    pub(super) controllers: Informer<ReplicationController>,
    pub(super) sets: Informer<ReplicaSet>,
    pub(super) deployments: Informer<Deployment>,
    pub(super) stateful_sets: Informer<StatefulSet>,
    pub(super) client: kube::Client,
    /// Resources by group and kind.
    pub(super) kinds: Mutex<HashMap<(String, String), Arc<Resource>>>,
}

/// An owner's uid and how many pods it wants.
type Scale = (String, i32);

fn group_of(reference: &OwnerReference) -> &str {
    reference.api_version.split_once('/').map_or("", |(group, _)| group)
}

/// The object a reference means, and not another of its name.
fn find<K: Object<DynamicType = ()>>(
    informer: &Informer<K>,
    reference: &OwnerReference,
    namespace: &str,
) -> Option<Arc<K>> {
    let kind = reference.kind == K::kind(&()) && group_of(reference) == K::group(&());
    let found = informer.get(namespace, &reference.name).filter(|_| kind)?;
    (found.uid() == reference.uid).then_some(found)
}

impl Scales {
    /// The sum over all owners of the pods, and the names of pods that nobody controls.
    pub(super) async fn of(&self, pods: &[Arc<Pod>]) -> Result<(i32, Vec<String>), Error> {
        let mut known: HashMap<String, i32> = HashMap::new();
        // Pods by the uid of their direct owner, so that each owner is asked for once.
        let mut asked: HashMap<&str, ()> = HashMap::new();
        let mut unmanaged = Vec::new();
        for pod in pods {
            let Some(owner) = pod.controller() else {
                unmanaged.push(pod.name().to_owned());
                continue;
            };
            if asked.insert(&owner.uid, ()).is_some() {
                continue;
            }
            let scale = match self.cached(owner, pod.namespace()) {
                Some(scale) => Some(scale),
                None => self.asked(owner, pod.namespace()).await?,
            };
            let (uid, count) = scale
                .ok_or_else(|| Error::Object(format!("found no controllers for pod \"{}\"", pod.name())))?;
            known.insert(uid, count);
        }
        Ok((known.values().fold(0, |sum, count| sum.saturating_add(*count)), unmanaged))
    }

    fn cached(&self, owner: &OwnerReference, namespace: &str) -> Option<Scale> {
        let scale = |uid: &str, replicas: Option<i32>| Some((uid.to_owned(), replicas.unwrap_or(1)));
        if let Some(found) = find(&self.controllers, owner, namespace) {
            return scale(found.uid(), found.spec.as_ref().and_then(|spec| spec.replicas));
        }
        if let Some(found) = find(&self.stateful_sets, owner, namespace) {
            return scale(found.uid(), found.spec.as_ref().and_then(|spec| spec.replicas));
        }
        let set = find(&self.sets, owner, namespace)?;
        // The sets of a rollout change all the time; their Deployment knows what is wanted.
        if let Some(above) = set.controller().filter(|above| above.kind == "Deployment") {
            let found = find(&self.deployments, above, namespace)?;
            return scale(found.uid(), found.spec.as_ref().and_then(|spec| spec.replicas));
        }
        scale(set.uid(), set.spec.as_ref().and_then(|spec| spec.replicas))
    }

    async fn asked(&self, owner: &OwnerReference, namespace: &str) -> Result<Option<Scale>, Error> {
        let resource = self.resource(owner).await?;
        match resource.objects(&self.client, namespace).get_scale(&owner.name).await {
            Ok(scale) if scale.uid() == owner.uid => {
                let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
                Ok(Some((owner.uid.clone(), replicas)))
            }
            Ok(_) => Ok(None),
            Err(error) if is_not_found(&error) => {
                // The object is gone, or it has no scale: two different answers.
                if self.has_scale(&resource).await? {
                    return Ok(None);
                }
                let name = match resource.api.group.as_str() {
                    "" => resource.api.plural.clone(),
                    group => format!("{}.{group}", resource.api.plural),
                };
                Err(Error::Object(format!("{name} does not implement the scale subresource")))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn resource(&self, owner: &OwnerReference) -> Result<Arc<Resource>, Error> {
        let key = (group_of(owner).to_owned(), owner.kind.clone());
        if let Some(known) = self.kinds.lock().get(&key) {
            return Ok(known.clone());
        }
        let found = discover(&self.client).await;
        let mut kinds = self.kinds.lock();
        for resource in found.resources {
            kinds.insert((resource.api.group.clone(), resource.api.kind.clone()), Arc::new(resource));
        }
        kinds.get(&key).cloned().ok_or_else(|| {
            Error::Object(format!(
                "no matches for kind \"{}\" in version \"{}\"",
                owner.kind, owner.api_version
            ))
        })
    }

    async fn has_scale(&self, resource: &Resource) -> Result<bool, Error> {
        let list = match resource.api.group.as_str() {
            "" => self.client.list_core_api_resources("v1").await?,
            _ => self.client.list_api_group_resources(&resource.api.api_version).await?,
        };
        let name = format!("{}/scale", resource.api.plural);
        Ok(list.resources.iter().any(|known| known.name == name && known.kind == "Scale"))
    }
}
