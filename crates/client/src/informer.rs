//! One kind's live cache, filled by one watch and read by everybody in the process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Debug};
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Event};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// What an informer can hold: any typed or dynamic object.
pub trait Object: kube::Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K: kube::Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Object for K {}

/// Namespace and name; the namespace is empty for cluster-scoped objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// `metadata.namespace`, or empty.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A change of the cache. The cache already shows the new state when a handler sees it.
#[derive(Debug)]
pub enum InformerEvent<K> {
    /// A new object, or one that was there when the handler subscribed.
    Added(Arc<K>),
    /// A changed object. Also sent when a re-list finds the object at another resourceVersion.
    Updated {
        /// As it was.
        old: Arc<K>,
        /// As it is.
        new: Arc<K>,
    },
    /// A deleted object, in its last known state.
    Deleted(Arc<K>),
}

impl<K> InformerEvent<K> {
    /// The object the event is about, in its newest state.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Deleted(object) => object,
            Self::Updated { new, .. } => new,
        }
    }
}

type Handler<K> = Box<dyn Fn(&InformerEvent<K>) + Send + Sync>;
type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

struct Index<K> {
    values: IndexFn<K>,
    keys: HashMap<String, BTreeSet<ObjectKey>>,
}

impl<K> Index<K> {
    fn insert(&mut self, key: &ObjectKey, values: Vec<String>) {
        for value in values {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &ObjectKey, values: &[String]) {
        for value in values {
            if let Some(keys) = self.keys.get_mut(value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(value);
                }
            }
        }
    }

    fn update(&mut self, key: &ObjectKey, old: Option<&K>, new: &K) {
        let (before, after) = (old.map(&self.values).unwrap_or_default(), (self.values)(new));
        // Most changes are none of the index's business.
        if before != after {
            self.remove(key, &before);
            self.insert(key, after);
        }
    }
}

struct Cache<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
}

impl<K> Cache<K> {
    fn put(&mut self, key: ObjectKey, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.objects.insert(key.clone(), object.clone());
        for index in self.indexes.values_mut() {
            index.update(&key, old.as_deref(), &object);
        }
        old
    }

    fn take(&mut self, key: &ObjectKey) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for index in self.indexes.values_mut() {
            let values = (index.values)(&old);
            index.remove(key, &values);
        }
        Some(old)
    }
}

struct Shared<K> {
    cache: RwLock<Cache<K>>,
    /// Held while events are handed out, so that a new handler sees each object exactly once.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// A handle to one kind's shared cache. Cheap to clone; all clones read the same cache.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K> Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Informer<{}>({} objects)",
            std::any::type_name::<K>(),
            self.shared.cache.read().objects.len()
        )
    }
}

impl<K: Object> Informer<K> {
    /// An informer fed by `stream` until `shutdown`. `kind` is for log lines only.
    pub fn spawn<S>(kind: String, stream: S, shutdown: CancellationToken) -> Self
    where
        S: Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    {
        let informer = Self::detached();
        let feed = informer.clone();
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(stream);
            let mut relist = None;
            let mut failing = false;
            while let Some(Some(event)) = shutdown.run_until_cancelled(stream.next()).await {
                match event {
                    Ok(event) => {
                        failing = false;
                        feed.apply(event, &mut relist);
                    }
                    // Watches end and begin again as a matter of course; only the first failure of a row is news.
                    Err(error) if !failing => {
                        failing = true;
                        warn!(kind, %error, "watch failed; retrying with back-off");
                    }
                    Err(_) => {}
                }
            }
        });
        informer
    }

    /// An informer that nothing feeds but [`insert`](Self::insert) and [`remove`](Self::remove): for tests of pure
    /// decisions. It counts as synced.
    pub fn fixed(objects: impl IntoIterator<Item = K>) -> Self {
        let informer = Self::detached();
        for object in objects {
            informer.insert(object);
        }
        informer.shared.synced.send_replace(true);
        informer
    }

    fn detached() -> Self {
        Self {
            shared: Arc::new(Shared {
                cache: RwLock::new(Cache { objects: BTreeMap::new(), indexes: HashMap::new() }),
                handlers: Mutex::new(Vec::new()),
                synced: watch::Sender::new(false),
            }),
        }
    }

    fn apply(&self, event: Event<K>, relist: &mut Option<BTreeSet<ObjectKey>>) {
        match event {
            Event::Init => *relist = Some(BTreeSet::new()),
            Event::InitApply(object) => {
                if let Some(seen) = relist {
                    seen.insert(ObjectKey::of(object.meta()));
                }
                self.insert(object);
            }
            Event::InitDone => {
                if let Some(seen) = relist.take() {
                    let gone: Vec<_> = self
                        .shared
                        .cache
                        .read()
                        .objects
                        .keys()
                        .filter(|key| !seen.contains(key))
                        .cloned()
                        .collect();
                    for key in gone {
                        self.remove(&key);
                    }
                }
                self.shared.synced.send_replace(true);
            }
            Event::Apply(object) => self.insert(object),
            Event::Delete(object) => self.remove(&ObjectKey::of(object.meta())),
        }
    }

    /// Puts an object into the cache and tells the handlers. For feeds and tests.
    pub fn insert(&self, mut object: K) {
        // Nobody in the process reads managedFields from a cache, and they are the larger half of many objects.
        object.meta_mut().managed_fields = None;
        let key = ObjectKey::of(object.meta());
        let new = Arc::new(object);
        let handlers = self.shared.handlers.lock();
        let event = match self.shared.cache.write().put(key, new.clone()) {
            None => InformerEvent::Added(new),
            Some(old) if same_version(old.meta(), new.meta()) => return,
            Some(old) => InformerEvent::Updated { old, new },
        };
        handlers.iter().for_each(|handler| handler(&event));
    }

    /// Takes an object out of the cache and tells the handlers. For feeds and tests.
    pub fn remove(&self, key: &ObjectKey) {
        let handlers = self.shared.handlers.lock();
        let Some(old) = self.shared.cache.write().take(key) else { return };
        let event = InformerEvent::Deleted(old);
        handlers.iter().for_each(|handler| handler(&event));
    }

    /// Calls `handler` for every object there is and for every change from now on. It runs on the informer's task:
    /// it must be quick and must not wait (put a key on a work queue, send on a channel). It may read any cache.
    pub fn subscribe(&self, handler: impl Fn(&InformerEvent<K>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        let present: Vec<_> = self.shared.cache.read().objects.values().cloned().collect();
        for object in present {
            handler(&InformerEvent::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// Adds an index under `name`: `values` gives the strings an object is found under. Adding a name twice keeps the
    /// first, so each user may ask for the index it needs.
    pub fn add_index(&self, name: &'static str, values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        let mut cache = self.shared.cache.write();
        let cache = &mut *cache;
        cache.indexes.entry(name).or_insert_with(|| {
            let mut index = Index { values: Box::new(values), keys: HashMap::new() };
            for (key, object) in &cache.objects {
                index.update(key, None, object);
            }
            index
        });
    }

    /// The objects that index `name` holds under `value`; empty when the index was never added.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let cache = self.shared.cache.read();
        let keys = cache.indexes.get(name).and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| cache.objects.get(key).cloned()).collect()
    }

    /// The objects that index `name` holds under that one of the values which has the fewest; none without a value.
    pub fn by_rarest(&self, name: &str, values: &[String]) -> Vec<Arc<K>> {
        let cache = self.shared.cache.read();
        let Some(index) = cache.indexes.get(name) else { return Vec::new() };
        let keys = values.iter().map(|value| index.keys.get(value));
        let rarest = keys.min_by_key(|keys| keys.map_or(0, BTreeSet::len)).flatten();
        rarest.into_iter().flatten().filter_map(|key| cache.objects.get(key).cloned()).collect()
    }

    /// One object. `namespace` is empty for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    /// One object by key.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.shared.cache.read().objects.get(key).cloned()
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.cache.read().objects.values().cloned().collect()
    }

    /// The objects of one namespace, by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let cache = self.shared.cache.read();
        let from = ObjectKey::new(namespace, "");
        let range = cache.objects.range(from..).take_while(|(key, _)| key.namespace == namespace);
        range.map(|(_, object)| object.clone()).collect()
    }

    /// How many objects the cache holds.
    pub fn len(&self) -> usize {
        self.shared.cache.read().objects.len()
    }

    /// Whether the cache holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first full list has arrived.
    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits until the first full list has arrived.
    pub async fn synced(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }
}

fn same_version(old: &ObjectMeta, new: &ObjectMeta) -> bool {
    old.resource_version.is_some() && old.resource_version == new.resource_version && old.uid == new.uid
}

#[cfg(test)]
mod tests;
