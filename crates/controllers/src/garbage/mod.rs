//! Deletes what nobody owns any more: background, foreground and orphan deletion. Answers to upstream's
//! `garbage-collector-controller`.
//!
//! The graph is made from watches and may be behind; before anything is deleted, the object and its owners are looked
//! at live, and the deletion names the uid and the version it was judged by.

mod decide;
mod graph;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use orlop_client::{EventRecorder, EventType, InformerEvent, SharedInformerFactory, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::discovery::{Resource, follow};
use crate::error::{Error, is_not_found, unless_gone};
use crate::objects::Meta;
use crate::shell::Shell;
use decide::{Owner, Policy, Verdict, judge};
use graph::{FOREGROUND, Graph, Look, ORPHAN, Place};

/// A resource whose list never arrives does not hold up the collection of all others.
const SYNC_LIMIT: Duration = Duration::from_secs(30);

type Object = PartialObjectMeta<DynamicObject>;

/// So many absent owners are remembered, to ask for each only once.
const ABSENT_LIMIT: usize = 500;

struct Collector {
    client: kube::Client,
    recorder: EventRecorder,
    graph: Mutex<Graph>,
    delete: WorkQueue<String>,
    orphan: WorkQueue<String>,
    /// Resources by group and kind, to find what an owner reference means.
    kinds: Mutex<HashMap<(String, String), Arc<Resource>>>,
    absent: Mutex<HashSet<(String, String)>>,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let collector = Arc::new(Collector {
        client: shell.client,
        recorder: shell.recorder,
        graph: Mutex::default(),
        delete: WorkQueue::named("garbage_collector_attempt_to_delete"),
        orphan: WorkQueue::named("garbage_collector_attempt_to_orphan"),
        kinds: Mutex::default(),
        absent: Mutex::default(),
    });
    let (delete, orphan) = (collector.delete.clone(), collector.orphan.clone());
    // Before the graph is whole, every owner not seen yet would cost a request.
    let whole = CancellationToken::new();
    let watching =
        shell.shutdown.run_until_cancelled(keep_watching(&collector, &shell.informers, whole.clone()));
    let deletes =
        run_workers("garbage-collector-controller", delete, 20, shell.shutdown.clone(), |uid: String| {
            let collector = collector.clone();
            async move { collector.attempt_to_delete(&uid).await.map(|()| None::<Duration>) }
        });
    let orphans =
        run_workers("garbage-collector-controller", orphan, 5, shell.shutdown.clone(), |uid: String| {
            let collector = collector.clone();
            async move { collector.attempt_to_orphan(&uid).await.map(|()| None::<Duration>) }
        });
    let working = async {
        if shell.shutdown.run_until_cancelled(whole.cancelled()).await.is_some() {
            tokio::join!(deletes, orphans);
        }
    };
    tokio::join!(working, watching);
    Ok(())
}

/// Watches every resource there is. `whole` is cancelled when the first caches are filled, or when that takes too long
/// to be waited for.
async fn keep_watching(
    collector: &Arc<Collector>,
    informers: &SharedInformerFactory,
    whole: CancellationToken,
) {
    let whole = &whole;
    follow(&collector.client, informers, "garbage-collector-controller", |all, new| {
        let kind =
            |resource: Arc<Resource>| ((resource.api.group.clone(), resource.api.kind.clone()), resource);
        collector.kinds.lock().extend(all.into_iter().map(kind));
        let mut filling = Vec::new();
        // Events are short-lived and own nothing.
        for resource in new.into_iter().filter(|resource| resource.api.plural != "events") {
            let informer = informers.metadata(&resource.api);
            let own = collector.clone();
            informer.subscribe(move |event| own.observe(&resource, event));
            filling.push(async move { informer.synced().await });
        }
        async move {
            if !whole.is_cancelled() {
                let _ = tokio::time::timeout(SYNC_LIMIT, futures::future::join_all(filling)).await;
                whole.cancel();
            }
        }
    })
    .await;
}

impl Collector {
    fn observe(&self, resource: &Arc<Resource>, event: &InformerEvent<Object>) {
        let meta = &event.object().metadata;
        let place = Place {
            resource: resource.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        let mut looks = Vec::new();
        {
            let mut graph = self.graph.lock();
            let uid = meta.uid.as_deref().unwrap_or_default();
            match event {
                InformerEvent::Deleted(_) => {
                    let owned: Vec<_> =
                        graph.get(uid).into_iter().flat_map(|node| node.dependents.clone()).collect();
                    if !owned.is_empty() {
                        self.remember_absent(uid, &place.namespace);
                    }
                    looks.push(graph.gone(uid));
                }
                InformerEvent::Updated { old, .. } if old.metadata.uid != meta.uid => {
                    // Deleted and made anew between two lists.
                    looks.push(graph.gone(old.metadata.uid.as_deref().unwrap_or_default()));
                    looks.push(graph.seen(place, meta));
                }
                _ => looks.push(graph.seen(place, meta)),
            }
        }
        looks.into_iter().for_each(|look| self.queue(look));
    }

    fn queue(&self, look: Look) {
        look.delete.into_iter().for_each(|uid| self.delete.add(uid));
        look.orphan.into_iter().for_each(|uid| self.orphan.add(uid));
        for (child, owner) in look.invalid {
            self.report_invalid(&child, &owner);
        }
    }

    fn remember_absent(&self, uid: &str, namespace: &str) {
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_LIMIT {
            absent.clear();
        }
        absent.insert((namespace.to_owned(), uid.to_owned()));
    }

    fn report_invalid(&self, child: &str, owner: &str) {
        let graph = self.graph.lock();
        let Some(node) = graph.get(child) else { return };
        let Some(place) = &node.place else { return };
        let Some(reference) = node.owners.iter().find(|reference| reference.uid == owner) else { return };
        let OwnerReference { api_version, kind, name, uid, .. } = reference;
        let namespace = &place.namespace;
        let text = format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] does not exist in namespace \"{namespace}\""
        );
        let object = ObjectReference {
            api_version: Some(place.resource.api.api_version.clone()),
            kind: Some(place.resource.api.kind.clone()),
            namespace: Some(namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(place.name.clone()),
            uid: Some(child.to_owned()),
            ..ObjectReference::default()
        };
        self.recorder.event_for(object, EventType::Warning, "OwnerRefInvalidNamespace", text);
    }

    fn kind(&self, reference: &OwnerReference) -> Option<Arc<Resource>> {
        let group = reference.api_version.split_once('/').map_or("", |(group, _)| group);
        self.kinds.lock().get(&(group.to_owned(), reference.kind.clone())).cloned()
    }

    /// Looks at an object live: it is gone, or its owners decide.
    async fn attempt_to_delete(&self, uid: &str) -> Result<(), Error> {
        let (place, deleting, deleting_dependents, dependents) = {
            let graph = self.graph.lock();
            let Some(node) = graph.get(uid) else { return Ok(()) };
            if graph.is_settled(uid) {
                return Ok(());
            }
            (node.place.clone(), node.deleting, node.deleting_dependents, node.dependents.len())
        };
        let Some(place) = place else { return self.look_up_owner(uid).await };
        if deleting && !deleting_dependents {
            return Ok(());
        }
        let api = place.resource.objects(&self.client, &place.namespace);
        let live = match api.get_metadata_opt(&place.name).await? {
            Some(live) if live.uid() == uid => live,
            _ => {
                let look = self.graph.lock().gone(uid);
                self.queue(look);
                return Ok(());
            }
        };
        if deleting_dependents {
            let blocking = self.graph.lock().blocking(uid);
            if blocking.is_empty() {
                return self.remove_finalizer(&place, &live.metadata, FOREGROUND).await;
            }
            blocking.into_iter().for_each(|dependent| self.delete.add(dependent));
            return Ok(());
        }
        let mut owners = Vec::new();
        for reference in live.metadata.owner_references.iter().flatten() {
            match self.state_of(reference, &place).await? {
                Some(state) => owners.push((reference.clone(), state)),
                // What the reference means cannot be told, so nothing may be concluded from it.
                None => return Ok(()),
            }
        }
        match judge(&live.metadata, &owners, dependents > 0) {
            Verdict::Keep => Ok(()),
            Verdict::Release(kept) => {
                let body = json!({"metadata": {"uid": uid, "resourceVersion": live.metadata.resource_version, "ownerReferences": kept}});
                Ok(unless_gone(
                    api.patch_metadata(&place.name, &PatchParams::default(), &Patch::Merge(body)).await,
                )?)
            }
            Verdict::Delete(policy) => {
                if policy == Policy::Foreground && self.graph.lock().in_ring(uid) {
                    // Owners that wait for each other would wait for ever: this one stops blocking.
                    let mut free = live.metadata.owner_references.clone().unwrap_or_default();
                    free.iter_mut().for_each(|reference| reference.block_owner_deletion = Some(false));
                    let body = json!({"metadata": {"uid": uid, "ownerReferences": free}});
                    unless_gone(
                        api.patch_metadata(&place.name, &PatchParams::default(), &Patch::Merge(body)).await,
                    )?;
                }
                let params = DeleteParams {
                    propagation_policy: Some(match policy {
                        Policy::Orphan => PropagationPolicy::Orphan,
                        Policy::Foreground => PropagationPolicy::Foreground,
                        Policy::Background => PropagationPolicy::Background,
                    }),
                    preconditions: Some(Preconditions {
                        uid: Some(uid.to_owned()),
                        // Judged by these references: when they change, it is judged again.
                        resource_version: live
                            .metadata
                            .resource_version
                            .clone()
                            .filter(|_| policy != Policy::Foreground),
                    }),
                    ..DeleteParams::default()
                };
                Ok(unless_gone(api.delete(&place.name, &params).await)?)
            }
        }
    }

    /// An owner that only its dependents know: is it there at all?
    async fn look_up_owner(&self, uid: &str) -> Result<(), Error> {
        let reference = self.graph.lock().reference_to(uid);
        let Some((reference, place)) = reference else { return Ok(()) };
        // It is there: its own watch will tell. It cannot be told: nothing may be concluded.
        if self.state_of(&reference, &place).await? == Some(Owner::Absent) {
            let look = self.graph.lock().gone(uid);
            self.queue(look);
        }
        Ok(())
    }

    /// What an owner is like now, as seen from a dependent at `place`. `None` when the reference cannot be resolved.
    async fn state_of(&self, reference: &OwnerReference, place: &Place) -> Result<Option<Owner>, Error> {
        let key = (place.namespace.clone(), reference.uid.clone());
        if self.absent.lock().contains(&key) {
            return Ok(Some(Owner::Absent));
        }
        let Some(resource) = self.kind(reference) else {
            return Err(Error::Object(format!(
                "no matches for kind \"{}\" in version \"{}\"",
                reference.kind, reference.api_version
            )));
        };
        if resource.namespaced && place.namespace.is_empty() {
            // A cluster-scoped object cannot have an owner in a namespace: which one would it be?
            return Ok(None);
        }
        let api = resource.objects(&self.client, &place.namespace);
        let live = match api.get_metadata_opt(&reference.name).await? {
            Some(live) if live.uid() == reference.uid => live,
            _ => {
                self.remember_absent(&reference.uid, &place.namespace);
                return Ok(Some(Owner::Absent));
            }
        };
        let waits = live.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FOREGROUND);
        Ok(Some(if live.deleting() && waits { Owner::Waiting } else { Owner::Solid }))
    }

    /// Sets the dependents of an owner free, then lets the owner go.
    async fn attempt_to_orphan(&self, uid: &str) -> Result<(), Error> {
        let (place, dependents) = {
            let graph = self.graph.lock();
            let Some(node) = graph.get(uid) else { return Ok(()) };
            let Some(place) = node.place.clone() else { return Ok(()) };
            let places: Vec<_> =
                node.dependents.iter().filter_map(|dependent| graph.get(dependent)?.place.clone()).collect();
            (place, places)
        };
        let mut errors = Vec::new();
        for dependent in dependents {
            if let Err(error) = self.drop_reference(&dependent, uid).await {
                errors.push(error);
            }
        }
        Error::all(errors)?;
        let api = place.resource.objects(&self.client, &place.namespace);
        match api.get_metadata_opt(&place.name).await? {
            Some(live) if live.uid() == uid => self.remove_finalizer(&place, &live.metadata, ORPHAN).await,
            _ => Ok(()),
        }
    }

    async fn drop_reference(&self, dependent: &Place, owner: &str) -> Result<(), Error> {
        let api = dependent.resource.objects(&self.client, &dependent.namespace);
        let Some(live) = api.get_metadata_opt(&dependent.name).await? else { return Ok(()) };
        let references = live.metadata.owner_references.clone().unwrap_or_default();
        let kept: Vec<_> = references.iter().filter(|reference| reference.uid != owner).collect();
        if kept.len() == references.len() {
            return Ok(());
        }
        let body =
            json!({"metadata": {"resourceVersion": live.metadata.resource_version, "ownerReferences": kept}});
        Ok(unless_gone(
            api.patch_metadata(&dependent.name, &PatchParams::default(), &Patch::Merge(body)).await,
        )?)
    }

    async fn remove_finalizer(&self, place: &Place, live: &ObjectMeta, finalizer: &str) -> Result<(), Error> {
        let finalizers = live.finalizers.clone().unwrap_or_default();
        let kept: Vec<_> = finalizers.iter().filter(|present| *present != finalizer).collect();
        if kept.len() == finalizers.len() {
            return Ok(());
        }
        let body = json!({"metadata": {"resourceVersion": live.resource_version, "finalizers": kept}});
        let api = place.resource.objects(&self.client, &place.namespace);
        match api.patch_metadata(&place.name, &PatchParams::default(), &Patch::Merge(body)).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}
