//! Custom resources: definitions are followed, their names accepted, their versions served, their instances removed with
//! them. Upstream's `apiextensions-apiserver`.
//!
//! One task follows the cache of definitions and is the only one that changes what is served. Everything it decides it
//! decides from stored state, so that a restart finds its way from anywhere.

pub mod convert;
pub mod decode;
pub mod definition;
mod naming;
pub mod openapi;
pub mod strategy;
mod webhook;
mod webhook_client;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use orlop_api::decode::Gvk;
use orlop_api::status::ApiError;
use orlop_json::{Value, json};
use orlop_structural::definition::is_condition_true;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ApiServer;
use crate::authn::UserInfo;
use crate::cache::{Cache, Entry, Interest};
use crate::registry::object::{self, is_deleting, set_meta};
use crate::registry::options::DeleteOptions;
use crate::registry::{Call, CallOptions, Registry, Warnings, now};
use crate::resources::{Resource, StrategyRef};

pub use definition::{Definition, ScalePaths};
pub use strategy::CustomKind;

/// API group of definitions.
pub const GROUP: &str = "apiextensions.k8s.io";
/// The kind of definitions.
pub const KIND: &str = "CustomResourceDefinition";
/// The finalizer that keeps a definition until its instances are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Who writes the status of definitions.
const MANAGER: &str = "kube-apiserver";
/// How long to wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Whether a resource is that of the definitions.
pub fn is_definitions(resource: &Resource) -> bool {
    resource.group == GROUP && resource.kind == KIND
}

/// Marks a definition for deletion: it goes when its instances have gone.
pub fn mark_for_deletion(definition: &mut Value) {
    set_meta(definition, "deletionTimestamp", Some(json!(now())));
    let mut finalizers = object::finalizers(definition);
    if !finalizers.iter().any(|finalizer| finalizer == CLEANUP) {
        finalizers.push(CLEANUP.to_string());
    }
    set_meta(definition, "finalizers", Some(json!(finalizers)));
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    naming::set_condition(definition, "Terminating", true, "InstanceDeletionPending", message, &now());
}

/// The 403 for a new object of a definition that is being deleted.
pub fn refuse_create(resource: &Resource, name: &str) -> Result<(), ApiError> {
    match &resource.custom {
        Some(kind) if kind.definition.terminating => Err(ApiError::forbidden(
            &resource.group,
            &resource.plural,
            name,
            "create not allowed while custom resource definition is terminating",
        )),
        _ => Ok(()),
    }
}

struct Served {
    definition: Arc<Definition>,
    cache: Arc<Cache>,
    /// Ends the task that waits for the last instance to go.
    cleanup: Option<CancellationToken>,
}

/// What is served at present, by the definitions' names.
#[derive(Default)]
pub struct CustomResources {
    served: Mutex<HashMap<String, Served>>,
}

impl CustomResources {
    fn current(&self, name: &str) -> Option<(Arc<Definition>, Arc<Cache>)> {
        self.served.lock().get(name).map(|served| (served.definition.clone(), served.cache.clone()))
    }
}

/// Serves what is defined already and starts to follow.
pub async fn start(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let Some(definitions) = server.registry.resources.cache(GROUP, KIND) else { return Ok(()) };
    let subscription = definitions
        .subscribe(None, Interest::All)
        .map_err(|_| ApiError::internal("definitions cannot be followed"))?;
    let (wake, mut woken) = mpsc::unbounded_channel::<String>();
    let follower = Follower { server: Arc::downgrade(server), wake, names: Mutex::default() };
    for entry in subscription.initial.iter().flat_map(|initial| initial.values()) {
        let again = follower.reconcile(server, entry.name()).await;
        follower.retry(entry.name(), again);
    }
    let Some(mut changes) = subscription.receiver else { return Ok(()) };
    let stop = server.stopped();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                () = stop.cancelled() => return,
                name = woken.recv() => name,
                change = changes.recv() => match change {
                    Some(change) => Some(change.entry.name().to_string()),
                    None => {
                        // The queue ran over: begin again, with everything.
                        let Some(server) = follower.server.upgrade() else { return };
                        let Some(cache) = server.registry.resources.cache(GROUP, KIND) else { return };
                        let Ok(again) = cache.subscribe(None, Interest::All) else { return };
                        for entry in again.initial.iter().flat_map(|initial| initial.values()) {
                            let _ = follower.wake.send(entry.name().to_string());
                        }
                        let Some(receiver) = again.receiver else { return };
                        changes = receiver;
                        None
                    }
                },
            };
            let (Some(name), Some(server)) = (name, follower.server.upgrade()) else { continue };
            let again = follower.reconcile(&server, &name).await;
            follower.retry(&name, again);
        }
    });
    Ok(())
}

/// The group in a definition's name, which is `plural.group`.
fn group_of(name: &str) -> &str {
    name.split_once('.').map_or("", |(_, group)| group)
}

struct Follower {
    server: Weak<ApiServer>,
    wake: mpsc::UnboundedSender<String>,
    names: Mutex<HashMap<Arc<str>, AcceptedNames>>,
}

/// The accepted names of a definition as they were read at a revision: reading a definition is expensive.
#[derive(Default)]
struct AcceptedNames {
    revision: u64,
    names: Option<Value>,
}

impl Follower {
    /// Says what failed, and tries it again.
    fn retry(&self, name: &str, result: Result<(), ApiError>) {
        let Err(error) = result else { return };
        tracing::warn!(definition = name, %error, "a definition could not be brought up to date; it is tried again");
        let (wake, name) = (self.wake.clone(), name.to_string());
        tokio::spawn(async move {
            tokio::time::sleep(RETRY).await;
            let _ = wake.send(name);
        });
    }

    /// Brings one definition's status and what is served of it up to date.
    async fn reconcile(&self, server: &Arc<ApiServer>, name: &str) -> Result<(), ApiError> {
        let registry = &server.registry;
        let Some(definitions) = registry.resources.of_kind(GROUP, KIND) else { return Ok(()) };
        let cache = registry.cache(&definitions)?.clone();
        let Some(entry) = cache.get(name) else {
            self.names.lock().remove(name);
            self.unserve(server, name);
            self.wake_rivals(&cache, name);
            return Ok(());
        };
        let object = entry.value();
        let group: Vec<Value> = if orlop_structural::definition::is_condition_true(&object, "NamesAccepted")
            && object.pointer("/spec/names") == object.pointer("/status/acceptedNames")
        {
            // It has what it wants; nobody can take it away.
            Vec::new()
        } else {
            self.accepted_names(&cache, group_of(name))
        };
        let settled = naming::settle(&object, group.iter(), &now());
        if settled["status"] != object["status"] && !is_deleting(&object) {
            write(registry, &definitions, &entry, settled).await?;
            return Ok(());
        }
        self.serve(server, &entry).await?;
        if is_deleting(&object) {
            return self.clean_up(server, &definitions, &entry, object).await;
        }
        if !is_condition_true(&object, "Established") && is_condition_true(&object, "NamesAccepted") {
            write(registry, &definitions, &entry, naming::establish(&object, &now())).await?;
        }
        Ok(())
    }

    /// The accepted names of the definitions of a group.
    fn accepted_names(&self, definitions: &Cache, group: &str) -> Vec<Value> {
        let mut known = self.names.lock();
        let of_group = |entry: &&Arc<Entry>| group_of(entry.name()) == group;
        definitions
            .snapshot()
            .0
            .values()
            .filter(of_group)
            .filter_map(|entry| {
                let known = known.entry(entry.key.clone()).or_default();
                if known.revision != entry.revision {
                    known.revision = entry.revision;
                    known.names = entry.value().pointer_mut("/status/acceptedNames").map(Value::take);
                }
                known.names.clone()
            })
            .collect()
    }

    /// A name that became free may be what another definition waits for.
    fn wake_rivals(&self, cache: &Cache, gone: &str) {
        for entry in cache.snapshot().0.values() {
            if group_of(entry.name()) == group_of(gone) {
                let _ = self.wake.send(entry.name().to_string());
            }
        }
    }

    fn unserve(&self, server: &ApiServer, name: &str) {
        let Some(served) = server.custom.served.lock().remove(name) else { return };
        if let Some(cleanup) = served.cleanup {
            cleanup.cancel();
        }
        let prefix = served.definition.prefix();
        server
            .registry
            .resources
            .replace(|resource| resource.custom.as_ref().is_some_and(|k| k.definition.name == name), &[]);
        server.registry.caches.remove(&prefix);
    }

    /// Serves the versions of a definition whose names are accepted.
    async fn serve(&self, server: &ApiServer, entry: &Arc<Entry>) -> Result<(), ApiError> {
        let name = entry.name();
        let before = server.custom.current(name);
        if before.as_ref().is_some_and(|(definition, _)| definition.revision() == entry.revision) {
            return Ok(());
        }
        let Some(definition) = Definition::of(entry) else {
            self.unserve(server, name);
            return Ok(());
        };
        let registry = &server.registry;
        let table = registry.resources.table();
        let builtin = |r: &Arc<Resource>| {
            r.custom.is_none() && r.group == definition.group && r.plural == definition.plural
        };
        if table.list.iter().any(builtin) {
            tracing::warn!(definition = name, "a definition of a built-in resource is not served");
            return Ok(());
        }
        let definition = Arc::new(definition);
        let cache = match &before {
            Some((known, cache)) if known.stores_like(&definition) => cache.clone(),
            _ => {
                let (fields, normal) = (definition.clone(), definition.clone());
                registry
                    .caches
                    .add_running(
                        registry.store.as_ref(),
                        &definition.prefix(),
                        server.options.watch_cache_size,
                        Box::new(move |object| fields.fields_of(object)),
                        Box::new(move |object| normal.normalise(object)),
                    )
                    .await
                    .map_err(crate::registry::store_error)?
            }
        };
        let resources: Vec<Arc<Resource>> = (0..definition.versions.len())
            .filter(|at| definition.versions[*at].served)
            .map(|at| {
                let kind = Arc::new(CustomKind::new(definition.clone(), at));
                Arc::new(Resource {
                    facts: definition.facts(kind.version()),
                    strategy: Some(StrategyRef::Defined(kind.clone())),
                    cache: Some(cache.clone()),
                    conversion: None,
                    versions: None,
                    schema: None,
                    custom: Some(kind),
                })
            })
            .collect();
        registry.resources.replace(
            |resource| resource.custom.as_ref().is_some_and(|kind| kind.definition.name == name),
            &resources,
        );
        let cleanup = server.custom.served.lock().remove(name).and_then(|served| served.cleanup);
        let served = Served { definition, cache, cleanup };
        server.custom.served.lock().insert(name.to_string(), served);
        Ok(())
    }

    /// Deletes the instances of a definition that is being deleted, and lets it go when there are none.
    async fn clean_up(
        &self,
        server: &Arc<ApiServer>,
        definitions: &Arc<Resource>,
        entry: &Arc<Entry>,
        object: Value,
    ) -> Result<(), ApiError> {
        let finalizers = object::finalizers(&object);
        if !finalizers.iter().any(|finalizer| finalizer == CLEANUP) {
            return Ok(());
        }
        let registry = &server.registry;
        let name = entry.name();
        let served = server.custom.current(name);
        let mut object = object;
        let established = is_condition_true(&object, "Established");
        if established && let Some((definition, cache)) = &served {
            let instances: Vec<Arc<Entry>> = cache.snapshot().0.values().cloned().collect();
            if !instances.is_empty() {
                self.await_instances(server, name, cache);
                delete_instances(registry, definition, &instances).await?;
                if !cache.snapshot().0.is_empty() {
                    let (reason, message) =
                        ("InstanceDeletionInProgress", "CustomResource deletion is in progress");
                    naming::set_condition(&mut object, "Terminating", true, reason, message, &now());
                    if object["status"] != entry.value()["status"] {
                        write(registry, definitions, entry, object).await?;
                    }
                    return Ok(());
                }
            }
        }
        let (reason, message) = if established {
            ("InstanceDeletionCompleted", "removed all instances")
        } else {
            ("NeverEstablished", "resource was never established")
        };
        naming::set_condition(&mut object, "Terminating", false, reason, message, &now());
        let left: Vec<String> = finalizers.into_iter().filter(|finalizer| finalizer != CLEANUP).collect();
        set_meta(&mut object, "finalizers", (!left.is_empty()).then(|| json!(left)));
        if left.is_empty() {
            registry.remove(definitions, name, entry.revision, orlop_store::Txn::default()).await?;
        } else {
            write(registry, definitions, entry, object).await?;
        }
        Ok(())
    }

    /// Looks again at a definition when one of its instances changes.
    fn await_instances(&self, server: &ApiServer, name: &str, cache: &Arc<Cache>) {
        let mut all = server.custom.served.lock();
        let Some(served) = all.get_mut(name).filter(|served| served.cleanup.is_none()) else { return };
        let stop = CancellationToken::new();
        served.cleanup = Some(stop.clone());
        let Ok(subscription) = cache.subscribe(None, Interest::All) else { return };
        let Some(mut receiver) = subscription.receiver else { return };
        let (wake, name) = (self.wake.clone(), name.to_string());
        tokio::spawn(async move {
            while let Some(Some(_)) = stop.run_until_cancelled(receiver.recv()).await {
                while receiver.try_recv().is_ok() {}
                let _ = wake.send(name.clone());
            }
        });
    }
}

/// Writes a definition if it is still what was read; a race is settled by the next change.
async fn write(
    registry: &Registry,
    definitions: &Arc<Resource>,
    entry: &Entry,
    mut object: Value,
) -> Result<(), ApiError> {
    let gvk = Gvk { group: GROUP, version: &definitions.version, kind: KIND };
    crate::managed::update_as(&gvk, "status", MANAGER, Some(&entry.value()), &mut object);
    object::order(&mut object);
    registry.put(definitions, &entry.key, &object, entry.revision).await.map(|_| ())
}

async fn delete_instances(
    registry: &Registry,
    definition: &Definition,
    instances: &[Arc<Entry>],
) -> Result<(), ApiError> {
    let table = registry.resources.table();
    let of_definition =
        |r: &&Arc<Resource>| r.custom.as_ref().is_some_and(|kind| kind.definition.name == definition.name);
    // The storage version needs no conversion, if it is served.
    let resource = table
        .list
        .iter()
        .filter(of_definition)
        .find(|r| r.version == definition.storage_version)
        .or_else(|| table.list.iter().find(of_definition));
    let Some(resource) = resource else { return Ok(()) };
    let (user, warnings) = (UserInfo::loopback(), Warnings::default());
    let call = Call {
        user: &user,
        resource,
        namespace: "",
        name: "",
        subresource: "",
        dry_run: false,
        field_manager: "",
        warnings: &warnings,
        annotations: None,
        options: CallOptions::None,
    };
    registry.delete_collection(&call, &DeleteOptions::default(), instances).await
}
