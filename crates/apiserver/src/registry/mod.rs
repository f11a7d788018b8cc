//! The generic registry: what create, get, list, watch, update, patch and delete mean for any kind.
//!
//! It decides in terms of objects, strategies and the store's revisions and knows nothing of HTTP. Upstream's
//! counterpart is `registry/generic` with `registry/rest`.

pub mod create;
pub mod delete;
pub mod list;
pub mod object;
pub mod options;
pub mod patch;
mod per_kind;
pub mod render;
pub mod selection;
pub mod update;
pub mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use orlop_api::status::ApiError;
use orlop_json::Value;
use orlop_store::{Revision, Store, StoreError, Txn, TxnOutcome};
use parking_lot::Mutex;

use crate::admission::Admission;
use crate::authn::UserInfo;
use crate::cache::{Cache, Caches, Entry, labels_of};
use crate::resources::{Resource, Resources};
use crate::services::Allocators;

/// Texts for `Warning` headers, collected while a request is served.
#[derive(Default)]
pub struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    /// Adds one unless it is already there.
    pub fn add(&self, text: impl Into<String>) {
        let text = text.into();
        let mut list = self.0.lock();
        if !list.contains(&text) {
            list.push(text);
        }
    }

    /// Takes all.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

/// What is noted about a request while it is served: annotations for its audit event, and how long it waited for
/// webhooks.
#[derive(Default)]
pub struct Annotations(Mutex<Vec<(String, String)>>, AtomicU64);

impl Annotations {
    /// Adds one; the first value of a key stays, as upstream has it.
    pub fn add(&self, key: impl Into<String>, value: impl Into<String>) {
        let (key, value) = (key.into(), value.into());
        let mut list = self.0.lock();
        if !list.iter().any(|(known, _)| *known == key) {
            list.push((key, value));
        }
    }

    /// Takes all, in the order in which they came.
    pub fn take(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.0.lock())
    }

    /// How long the request waited for webhooks.
    pub fn waited(&self) -> Duration {
        Duration::from_micros(self.1.load(Ordering::Relaxed))
    }
}

/// What the client asked for beside the object: the source of the options object that admission shows.
#[derive(Clone, Copy, Default)]
pub enum CallOptions<'a> {
    /// Nothing: the server's own writes, connections.
    #[default]
    None,
    /// Of a create, update or patch.
    Write(&'a options::WriteOptions),
    /// Of a deletion.
    Delete(&'a options::DeleteOptions),
}

/// One operation on one resource by somebody.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Who.
    pub user: &'a UserInfo,
    /// On what.
    pub resource: &'a Arc<Resource>,
    /// In which namespace; empty at cluster scope.
    pub namespace: &'a str,
    /// Object name; may be empty.
    pub name: &'a str,
    /// Subresource; may be empty.
    pub subresource: &'a str,
    /// Whether nothing may be persisted (`dryRun=All`).
    pub dry_run: bool,
    /// Who is recorded in `managedFields`.
    pub field_manager: &'a str,
    /// Where warnings go.
    pub warnings: &'a Warnings,
    /// Where annotations for the audit event go; nowhere for the server's own writes.
    pub annotations: Option<&'a Annotations>,
    /// What was asked for beside the object.
    pub options: CallOptions<'a>,
}

impl Call<'_> {
    /// Adds an annotation to the request's audit event.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        if let Some(annotations) = self.annotations {
            annotations.add(key, value);
        }
    }

    /// Notes that webhooks took so long: the server answers for its own time only.
    pub fn waited(&self, elapsed: Duration) {
        if let Some(annotations) = self.annotations {
            let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX / 2);
            annotations.1.fetch_add(elapsed, Ordering::Relaxed);
        }
    }
}

/// What a write left behind.
pub enum Written {
    /// A stored object.
    Stored(Arc<Entry>),
    /// An object that was not stored (dry run).
    Unstored(Value),
}

impl Written {
    /// The object.
    pub fn value(&self) -> Value {
        match self {
            Written::Stored(entry) => entry.value(),
            Written::Unstored(value) => value.clone(),
        }
    }
}

/// The registry of a server.
pub struct Registry {
    /// Whether pods may have privileged containers.
    pub allow_privileged: bool,
    /// What is counted.
    pub metrics: Arc<crate::metrics::Metrics>,
    /// The engine.
    pub store: Arc<dyn Store>,
    /// Live state.
    pub caches: Arc<Caches>,
    /// What is served.
    pub resources: Resources,
    /// Admission plugins in order.
    pub admission: Vec<Box<dyn Admission>>,
    /// Webhooks and policies.
    pub dynamic: crate::admission::Dynamic,
    /// Cluster addresses and node ports.
    pub allocators: Allocators,
    /// Roles and bindings, for escalation checks.
    pub authorizer: Arc<crate::authz::Authorizer>,
    /// Plurals of kinds that nothing in this cluster acts on.
    pub unattended: Vec<String>,
    /// Encryption at rest: the same as `store`, when it is on.
    pub encryption: Option<Arc<crate::encryption::EncryptedStore>>,
}

/// The current second as the API writes it.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Turns an engine's error into what the client is told; the operator's log gets the cause.
pub fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::TooLarge { size, limit, .. } => ApiError::request_entity_too_large(format!(
            "the object is {size} bytes long, the limit is {limit}"
        )),
        error => {
            tracing::error!(%error, "the store failed");
            ApiError::internal(format!("store: {error}"))
        }
    }
}

impl Registry {
    /// Whether a stored object should be written again although nothing has changed: its encryption key is an old one.
    pub fn must_rewrite(&self, resource: &Resource, key: &str) -> bool {
        let (Some(encryption), Some(cache)) = (&self.encryption, &resource.cache) else { return false };
        encryption.is_stale(format!("{}{key}", cache.prefix()).as_bytes())
    }

    /// The cache of a stored resource.
    pub fn cache<'a>(&self, resource: &'a Resource) -> Result<&'a Arc<Cache>, ApiError> {
        resource.cache.as_ref().ok_or_else(ApiError::path_not_found)
    }

    /// The stored object of a call, or 404.
    pub fn get(&self, call: &Call<'_>) -> Result<Arc<Entry>, ApiError> {
        self.cache(call.resource)?
            .get(&call.resource.key(call.namespace, call.name))
            .ok_or_else(|| ApiError::not_found(&call.resource.group, &call.resource.plural, call.name))
    }

    /// Writes an object if the key is still at `expected` (0: absent). `None`: it is not; the cache has caught up with
    /// whoever was faster.
    pub(crate) async fn put(
        &self,
        resource: &Resource,
        key: &str,
        object: &Value,
        expected: u64,
    ) -> Result<Option<Arc<Entry>>, ApiError> {
        self.put_with(resource, key, object, expected, Txn::default()).await
    }

    /// [`Registry::put`], with other changes in the same transaction: all happen or none.
    async fn put_with(
        &self,
        resource: &Resource,
        key: &str,
        object: &Value,
        expected: u64,
        beside: Txn,
    ) -> Result<Option<Arc<Entry>>, ApiError> {
        let value = Bytes::from(object::encode(object));
        self.put_encoded(resource, key, object, value, expected, beside).await
    }

    /// [`Registry::put_with`] of an object whose encoding is known.
    async fn put_encoded(
        &self,
        resource: &Resource,
        key: &str,
        object: &Value,
        value: Bytes,
        expected: u64,
        beside: Txn,
    ) -> Result<Option<Arc<Entry>>, ApiError> {
        let cache = self.cache(resource)?;
        let storage_key = Bytes::from(format!("{}{key}", cache.prefix()));
        let (labels, fields) = (labels_of(object), cache.fields_of(object));
        let prepared =
            self.caches.prepare(storage_key.clone(), value.clone(), labels.clone(), fields.clone());
        let mut txn = Txn::put(storage_key, value.clone(), Revision(expected));
        txn.guards.extend(beside.guards);
        txn.ops.extend(beside.ops);
        let begun = std::time::Instant::now();
        let outcome = self.store.txn(txn).await.map_err(store_error)?;
        self.metrics.store_writes[0].time(begun.elapsed());
        match outcome {
            TxnOutcome::Committed(revision) => {
                self.caches.wait(revision.0).await;
                drop(prepared);
                if let Some(entry) = cache.get(key).filter(|entry| entry.revision == revision.0) {
                    return Ok(Some(entry));
                }
                // Somebody has overwritten it already; the answer still is what this request wrote.
                Entry::from_stored(key.into(), revision.0, &value, labels, fields)
                    .map(|entry| Some(Arc::new(entry)))
                    .ok_or_else(|| ApiError::internal("the object has no metadata"))
            }
            TxnOutcome::GuardFailed { current } => {
                self.catch_up(&current).await;
                let own = current.first().and_then(Option::as_ref).map_or(0, |kv| kv.mod_revision.0);
                if own == expected {
                    // Only what was to be written beside it is in the way.
                    return Err(ApiError::conflict(
                        &resource.group,
                        &resource.plural,
                        object::meta(object, "name"),
                        "an address has been taken by somebody else meanwhile; please try again",
                    ));
                }
                Ok(None)
            }
        }
    }

    /// Deletes a key that is at `expected`, with other changes in the same transaction; its deletion's revision, or `None`
    /// when it is not there any more.
    pub(crate) async fn remove(
        &self,
        resource: &Resource,
        key: &str,
        expected: u64,
        beside: Txn,
    ) -> Result<Option<u64>, ApiError> {
        let cache = self.cache(resource)?;
        let storage_key = Bytes::from(format!("{}{key}", cache.prefix()));
        let mut txn = Txn::delete(storage_key, Revision(expected));
        txn.guards.extend(beside.guards);
        txn.ops.extend(beside.ops);
        let begun = std::time::Instant::now();
        let outcome = self.store.txn(txn).await.map_err(store_error)?;
        self.metrics.store_writes[1].time(begun.elapsed());
        match outcome {
            TxnOutcome::Committed(revision) => {
                self.caches.wait(revision.0).await;
                Ok(Some(revision.0))
            }
            TxnOutcome::GuardFailed { current } => {
                self.catch_up(&current).await;
                Ok(None)
            }
        }
    }

    /// Waits until the cache knows what made a guard fail.
    async fn catch_up(&self, current: &[Option<orlop_store::KeyValue>]) {
        let seen = current.iter().flatten().map(|kv| kv.mod_revision.0).max();
        match seen {
            Some(revision) => self.caches.wait(revision).await,
            // It is gone, and nothing here tells since when. Who deleted it may be another call, whose removal is not in
            // the cache yet: without waiting, the next attempt would find the object there and fail again.
            None => {
                if let Ok(latest) = self.store.latest().await {
                    self.caches.wait(latest.0).await;
                }
            }
        }
    }

    /// Waits until the caches hold everything that was committed before the call. A store that only this server writes
    /// needs no waiting: a write is answered after it has reached the cache.
    pub async fn freshen(&self) -> Result<(), ApiError> {
        if self.store.is_shared() {
            let latest = self.store.latest().await.map_err(store_error)?;
            self.caches.wait(latest.0).await;
        }
        Ok(())
    }

    /// Runs the mutating plugins; once more, when a webhook or policy changed the object.
    pub async fn mutate(&self, request: &mut crate::admission::Request<'_>) -> Result<(), ApiError> {
        // Only what users configure touches managed fields.
        let foreign = self.dynamic.may_mutate(&request.call.resource.plural);
        let guard = foreign.then(|| crate::managed::Guard::of(request.object));
        self.mutate_once(request).await?;
        if request.reinvocation.wanted {
            request.reinvocation.second = true;
            self.mutate_once(request).await?;
        }
        if let Some(guard) = guard {
            guard.restore(request.object, request.call.warnings);
        }
        Ok(())
    }

    async fn mutate_once(&self, request: &mut crate::admission::Request<'_>) -> Result<(), ApiError> {
        let mut clock = AdmissionClock::start(&self.metrics, 0, request.operation);
        for (at, plugin) in self.admission.iter().enumerate() {
            if plugin.handles(request) {
                clock.note(at, plugin.mutate(self, request).await)?;
            }
        }
        clock.finish(false);
        Ok(())
    }

    /// Runs all plugins, for what is not stored as it is sent: deletions, subresources that are actions, connections.
    pub async fn admit(&self, request: &mut crate::admission::Request<'_>) -> Result<(), ApiError> {
        self.mutate(request).await?;
        self.validate(request).await
    }

    /// Runs the validating plugins.
    pub async fn validate(&self, request: &crate::admission::Request<'_>) -> Result<(), ApiError> {
        let mut clock = AdmissionClock::start(&self.metrics, 1, request.operation);
        for (at, plugin) in self.admission.iter().enumerate() {
            if plugin.handles(request) {
                clock.note(at, plugin.validate(self, request).await)?;
            }
        }
        clock.finish(false);
        Ok(())
    }
}

/// Measures a step of admission and its plugins, one look at the clock for each plugin.
struct AdmissionClock<'a> {
    metrics: &'a crate::metrics::Metrics,
    step: usize,
    operation: crate::admission::Operation,
    begun: std::time::Instant,
    last: std::time::Instant,
}

impl<'a> AdmissionClock<'a> {
    fn start(
        metrics: &'a crate::metrics::Metrics,
        step: usize,
        operation: crate::admission::Operation,
    ) -> AdmissionClock<'a> {
        let now = std::time::Instant::now();
        AdmissionClock { metrics, step, operation, begun: now, last: now }
    }

    fn note(&mut self, plugin: usize, result: Result<(), ApiError>) -> Result<(), ApiError> {
        let now = std::time::Instant::now();
        self.metrics.plugin(plugin, self.step, self.operation.as_str(), result.is_err(), now - self.last);
        self.last = now;
        if result.is_err() {
            self.finish(true);
        }
        result
    }

    fn finish(&self, rejected: bool) {
        self.metrics.admission[self.step].observe(self.operation.as_str(), rejected, self.last - self.begun);
    }
}
