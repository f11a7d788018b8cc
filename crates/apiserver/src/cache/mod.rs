//! The live state of every kind in memory: an ordered persistent map and a ring of recent events per kind.
//!
//! Reads take a snapshot (a pointer copy) and never wait for writers or the engine. Committed events of the store
//! enter here in revision order through [`Caches::run`]; a writer waits for its own revision before it answers, so
//! everything it reads afterwards includes its write. The upstream counterpart is the watch cache (`Cacher`).

mod applied;
mod entry;
mod hub;
mod prepared;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use imbl::OrdMap;
use orlop_json::Value;
use parking_lot::RwLock;

use applied::Applied;
pub use entry::{Entry, Fields, Labels};
use hub::Hub;
pub use hub::{Change, ChangeKind, Interest, Mailbox, Subscription, frame};
use prepared::Preparations;
pub use prepared::PreparedGuard;

/// A snapshot of one kind: objects by `namespace/name`.
pub type Snapshot = OrdMap<Arc<str>, Arc<Entry>>;

/// The range of keys from `start` on.
pub fn from(start: &str) -> (Bound<&str>, Bound<&str>) {
    (Bound::Included(start), Bound::Unbounded)
}

/// Finds the selectable fields of an object.
pub type FieldsOf = Box<dyn Fn(&Value) -> Fields + Send + Sync>;

/// Brings a stored object into the form its kind has today; says whether anything changed.
pub type Normalise = Box<dyn Fn(&mut Value) -> bool + Send + Sync>;

/// The revision asked for is no longer (or never was) known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOld {
    /// What was asked for.
    pub requested: u64,
    /// The oldest revision that can still be answered.
    pub oldest: u64,
}

/// Bytes of recent objects a kind keeps, but never fewer changes than [`RING_MINIMUM`].
const RING_BYTES: usize = 8 * 1024 * 1024;
const RING_MINIMUM: usize = 100;

/// What is known of the stored objects of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// How many.
    pub objects: u64,
    /// Bytes of their encodings.
    pub bytes: u64,
}

struct State {
    map: Snapshot,
    /// Bytes of the objects in the map.
    bytes: u64,
    /// Revision of the last event of this kind.
    last: u64,
    /// Every event of this kind with a revision above `floor`, oldest first.
    ring: VecDeque<Arc<Change>>,
    /// Bytes of the objects in the ring.
    ring_bytes: usize,
    floor: u64,
    hub: Hub,
    /// While the cache is being filled: what was committed meanwhile.
    pending: Option<Vec<(u64, Changes)>>,
}

/// Changes of one revision: keys and what they hold afterwards.
type Changes = Vec<(Arc<str>, Option<Entry>)>;

/// The cache of one stored kind.
pub struct Cache {
    prefix: String,
    capacity: usize,
    state: RwLock<State>,
    fields_of: FieldsOf,
    normalise: Option<Normalise>,
    applied: Arc<Applied>,
    /// What is read from it.
    pub reads: crate::metrics::Reads,
}

/// Sorted labels of an object.
pub fn labels_of(object: &Value) -> Labels {
    let Some(labels) = object.pointer("/metadata/labels").and_then(Value::as_object) else {
        return Labels::default();
    };
    let mut sorted: Vec<(Box<str>, Box<str>)> =
        labels.iter().filter_map(|(k, v)| Some((k.as_str().into(), v.as_str()?.into()))).collect();
    sorted.sort();
    sorted.into_boxed_slice()
}

impl Cache {
    /// The prefix of this kind's storage keys, with a slash at the end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Selectable fields of an object of this kind.
    pub fn fields_of(&self, object: &Value) -> Fields {
        (self.fields_of)(object)
    }

    /// The current snapshot and the revision it is current at: a watch from that revision neither misses nor
    /// repeats a change.
    pub fn snapshot(&self) -> (Snapshot, u64) {
        let state = self.state.read();
        // Under the lock: everything up to `applied` is in the map, and nothing of this kind beyond `last`.
        (state.map.clone(), state.last.max(self.applied.revision()))
    }

    /// The object with this `namespace/name`.
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.state.read().map.get(key).cloned()
    }

    /// Revision of the last change of this kind: a cheap "has anything changed".
    pub fn last_change(&self) -> u64 {
        self.state.read().last
    }

    /// The changes after `revision`, oldest first, and the revision of the last one; `None` when they are not all
    /// remembered.
    pub fn changes_since(&self, revision: u64) -> Option<(Vec<Arc<Change>>, u64)> {
        let state = self.state.read();
        if revision < state.floor {
            return None;
        }
        let start = state.ring.partition_point(|change| change.revision <= revision);
        Some((state.ring.range(start..).cloned().collect(), state.last))
    }

    /// The state as it was at `revision`, by undoing the ring's later events.
    pub fn snapshot_at(&self, revision: u64) -> Result<Snapshot, TooOld> {
        let state = self.state.read();
        if revision < state.floor {
            return Err(TooOld { requested: revision, oldest: state.floor });
        }
        let mut map = state.map.clone();
        let start = state.ring.partition_point(|change| change.revision <= revision);
        let undo: Vec<Arc<Change>> = state.ring.range(start..).rev().cloned().collect();
        drop(state);
        for change in undo {
            match &change.previous {
                Some(previous) => map.insert(previous.key.clone(), previous.clone()),
                None => map.remove(&change.entry.key),
            };
        }
        Ok(map)
    }

    /// Starts a watch of the changes after `from` (exclusive), or with the whole current state when `None`.
    pub fn subscribe(&self, from: Option<u64>, interest: Interest) -> Result<Subscription, TooOld> {
        let mut state = self.state.write();
        let current = state.last.max(self.applied.revision());
        let mut subscription =
            Subscription { initial: None, backlog: Vec::new(), revision: current, receiver: None };
        match from {
            None => subscription.initial = Some(state.map.clone()),
            Some(from) => {
                if from < state.floor {
                    return Err(TooOld { requested: from, oldest: state.floor });
                }
                let start = state.ring.partition_point(|change| change.revision <= from);
                subscription.backlog = state.ring.range(start..).cloned().collect();
                subscription.revision = from.max(current);
            }
        }
        subscription.receiver = Some(state.hub.register(interest));
        Ok(subscription)
    }

    /// Revision up to which every event of every kind has been taken in.
    pub fn applied(&self) -> u64 {
        self.applied.revision()
    }

    /// How many objects there are, and how large they are together.
    pub fn stats(&self) -> CacheStats {
        let state = self.state.read();
        CacheStats { objects: state.map.len() as u64, bytes: state.bytes }
    }

    /// How many watchers are told of a change of the object `key` in `namespace`.
    pub fn interested(&self, namespace: &str, key: &str) -> usize {
        self.state.read().hub.interested(namespace, key)
    }

    /// Watchers that were cut because they did not keep up.
    pub fn cut_watchers(&self) -> u64 {
        self.state.read().hub.cut
    }

    /// How many watchers are registered.
    pub fn watchers(&self) -> usize {
        self.state.read().hub.len()
    }

    fn load(&self, entries: Vec<Entry>, revision: u64) {
        let mut state = self.state.write();
        state.map = entries.into_iter().map(|entry| (entry.key.clone(), Arc::new(entry))).collect();
        state.bytes = state.map.values().map(|entry| entry.bytes.len() as u64).sum();
        state.last = revision;
        state.floor = revision;
        state.ring.clear();
        state.ring_bytes = 0;
        for (revision, changes) in state.pending.take().unwrap_or_default() {
            state.apply(revision, changes, self.capacity);
        }
    }

    /// Ends every watch: the kind is not served any more, or anew.
    fn close(&self) {
        self.state.write().hub = Hub::default();
    }

    fn entry(
        &self,
        key: &[u8],
        value: &[u8],
        revision: u64,
        facts: Option<(Labels, Fields)>,
    ) -> Option<Entry> {
        let key: Arc<str> = std::str::from_utf8(key.get(self.prefix.len()..)?).ok()?.into();
        let (labels, fields) = match facts {
            Some(facts) => facts,
            None => {
                let mut object: Value = orlop_json::from_slice(value).ok()?;
                let changed = self.normalise.as_ref().is_some_and(|normalise| normalise(&mut object));
                let (labels, fields) = (labels_of(&object), (self.fields_of)(&object));
                if changed {
                    let value = crate::registry::object::encode(&object);
                    return Entry::from_stored(key, revision, &value, labels, fields);
                }
                (labels, fields)
            }
        };
        Entry::from_stored(key, revision, value, labels, fields)
    }

    fn entries(&self, kvs: &[orlop_store::KeyValue]) -> Vec<Entry> {
        kvs.iter()
            .filter_map(|kv| {
                let entry = self.entry(&kv.key, &kv.value, kv.mod_revision.0, None);
                if entry.is_none() {
                    tracing::error!(key = %String::from_utf8_lossy(&kv.key), "stored object cannot be decoded; it is left out until it is overwritten or deleted");
                }
                entry
            })
            .collect()
    }

    /// Takes in the changes of one revision.
    fn apply(&self, revision: u64, changes: Changes) {
        let mut state = self.state.write();
        match &mut state.pending {
            Some(pending) => pending.push((revision, changes)),
            None => state.apply(revision, changes, self.capacity),
        }
    }
}

impl State {
    fn apply(&mut self, revision: u64, changes: Changes, capacity: usize) {
        // What the cache was filled with is in it.
        if revision <= self.last {
            return;
        }
        for (key, entry) in changes {
            let change = match entry {
                Some(entry) => {
                    let entry = Arc::new(entry);
                    let previous = self.map.insert(key, entry.clone());
                    self.bytes += entry.bytes.len() as u64;
                    self.bytes -= previous.as_ref().map_or(0, |previous| previous.bytes.len() as u64);
                    let kind = if previous.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
                    Change::new(revision, kind, entry, previous)
                }
                None => {
                    let Some(previous) = self.map.remove(&key) else { continue };
                    self.bytes -= previous.bytes.len() as u64;
                    let last = Arc::new(previous.with_revision(revision));
                    Change::new(revision, ChangeKind::Deleted, last, Some(previous))
                }
            };
            let change = Arc::new(change);
            self.hub.dispatch(&change);
            self.ring_bytes += change.entry.bytes.len();
            self.ring.push_back(change);
        }
        self.last = revision;
        while self.ring.len() > capacity || (self.ring_bytes > RING_BYTES && self.ring.len() > RING_MINIMUM) {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.floor = oldest.revision;
            self.ring_bytes -= oldest.entry.bytes.len();
        }
        // Changes of one revision leave together, or a list at that revision would undo only half of them.
        while self.ring.front().is_some_and(|change| change.revision <= self.floor) {
            if let Some(oldest) = self.ring.pop_front() {
                self.ring_bytes -= oldest.entry.bytes.len();
            }
        }
    }
}

/// All caches, fed by one event stream.
pub struct Caches {
    by_prefix: ArcSwap<BTreeMap<String, Arc<Cache>>>,
    applied: Arc<Applied>,
    prepared: Preparations,
}

impl Caches {
    /// No kinds yet.
    pub fn new() -> Caches {
        Caches { by_prefix: ArcSwap::default(), applied: Arc::default(), prepared: Preparations::default() }
    }

    fn make(
        &self,
        prefix: &str,
        capacity: usize,
        fields_of: FieldsOf,
        normalise: Option<Normalise>,
        filled: bool,
    ) -> Arc<Cache> {
        Arc::new(Cache {
            prefix: prefix.to_string(),
            capacity,
            state: RwLock::new(State {
                map: OrdMap::new(),
                bytes: 0,
                last: 0,
                ring: VecDeque::new(),
                ring_bytes: 0,
                floor: 0,
                hub: Hub::default(),
                pending: (!filled).then(Vec::new),
            }),
            fields_of,
            normalise,
            applied: self.applied.clone(),
            reads: crate::metrics::Reads::default(),
        })
    }

    /// Adds a kind whose storage keys begin with `prefix` (with a slash at the end), or finds it. For kinds that are
    /// known before [`Caches::start`].
    pub fn add(&self, prefix: &str, capacity: usize, fields_of: FieldsOf) -> Arc<Cache> {
        if let Some(known) = self.by_prefix.load().get(prefix) {
            return known.clone();
        }
        let cache = self.make(prefix, capacity, fields_of, None, true);
        self.insert(prefix, &cache);
        cache
    }

    fn insert(&self, prefix: &str, cache: &Arc<Cache>) {
        self.by_prefix.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.insert(prefix.to_string(), cache.clone());
            all
        });
    }

    /// Adds a kind to running caches, or replaces it: reads what the store holds of it and follows it from there. The
    /// watches of a replaced kind end.
    pub async fn add_running(
        &self,
        store: &dyn orlop_store::Store,
        prefix: &str,
        capacity: usize,
        fields_of: FieldsOf,
        normalise: Normalise,
    ) -> Result<Arc<Cache>, orlop_store::StoreError> {
        let cache = self.make(prefix, capacity, fields_of, Some(normalise), false);
        let replaced = self.by_prefix.load().get(prefix).cloned();
        // From here on commits are put aside; everything older is in what is read.
        self.insert(prefix, &cache);
        let revision = store.revision();
        let kvs = match read_all(store, prefix, revision).await {
            Ok(kvs) => kvs,
            Err(error) => {
                self.by_prefix.rcu(|all| {
                    let mut all = BTreeMap::clone(all);
                    match &replaced {
                        Some(before) => all.insert(prefix.to_string(), before.clone()),
                        None => all.remove(prefix),
                    };
                    all
                });
                return Err(error);
            }
        };
        cache.load(cache.entries(&kvs), revision.0);
        if let Some(replaced) = replaced {
            replaced.close();
        }
        Ok(cache)
    }

    /// Forgets a kind and ends its watches.
    pub fn remove(&self, prefix: &str) {
        let known = self.by_prefix.load().get(prefix).cloned();
        self.by_prefix.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.remove(prefix);
            all
        });
        if let Some(cache) = known {
            cache.close();
        }
    }

    /// Revision up to which every event has been taken in.
    pub fn applied(&self) -> u64 {
        self.applied.revision()
    }

    /// Waits until the event of `revision` has been taken in.
    pub async fn wait(&self, revision: u64) {
        self.applied.wait(revision).await;
    }

    /// Announces the facts of a value that is about to be written under `key`.
    pub fn prepare(&self, key: Bytes, value: Bytes, labels: Labels, fields: Fields) -> PreparedGuard<'_> {
        self.prepared.announce(key, value, labels, fields)
    }

    /// Fills every cache from the store and follows its events until `stop`; returns when the caches are filled.
    pub async fn start(
        self: &Arc<Self>,
        store: Arc<dyn orlop_store::Store>,
        stop: tokio_util::sync::CancellationToken,
    ) -> Result<(), orlop_store::StoreError> {
        let revision = store.revision();
        for cache in self.by_prefix.load_full().values() {
            let kvs = read_all(store.as_ref(), cache.prefix(), revision).await?;
            cache.load(cache.entries(&kvs), revision.0);
        }
        self.applied.advance(revision.0);
        let stream =
            store.watch(Bytes::from_static(b"/registry/"), orlop_store::Revision(revision.0 + 1)).await?;
        let caches = self.clone();
        tokio::spawn(async move { caches.follow(store, stream, stop).await });
        Ok(())
    }

    async fn follow(
        self: Arc<Self>,
        store: Arc<dyn orlop_store::Store>,
        mut stream: orlop_store::WatchStream,
        stop: tokio_util::sync::CancellationToken,
    ) {
        use futures::StreamExt as _;
        loop {
            let batch = tokio::select! {
                () = stop.cancelled() => return,
                batch = stream.next() => batch,
            };
            match batch {
                Some(Ok(events)) => self.take_in(events),
                other => {
                    // The stream broke (a slow reader was cut, or the engine closed): follow again from where it stopped.
                    if let Some(Err(error)) = other {
                        tracing::warn!(%error, "store watch broke; starting it again");
                    }
                    let from = orlop_store::Revision(self.applied() + 1);
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    match store.watch(Bytes::from_static(b"/registry/"), from).await {
                        Ok(again) => stream = again,
                        Err(error) => tracing::error!(%error, "store watch cannot be started; retrying"),
                    }
                }
            }
        }
    }

    fn take_in(&self, events: Vec<orlop_store::Event>) {
        let mut at = 0;
        while at < events.len() {
            let revision = events[at].revision.0;
            let end = at + events[at..].iter().take_while(|event| event.revision.0 == revision).count();
            if revision > self.applied() {
                self.take_in_revision(revision, &events[at..end]);
                self.applied.advance(revision);
            }
            at = end;
        }
    }

    fn take_in_revision(&self, revision: u64, events: &[orlop_store::Event]) {
        let all = self.by_prefix.load();
        let mut by_cache: Vec<(Arc<Cache>, Changes)> = Vec::new();
        for event in events {
            if event.kind == orlop_store::EventKind::Progress {
                continue;
            }
            let Some(cache) = cache_of(&all, &event.kv.key) else { continue };
            let Ok(key) = std::str::from_utf8(&event.kv.key[cache.prefix.len()..]) else { continue };
            let entry = match event.kind {
                orlop_store::EventKind::Delete | orlop_store::EventKind::Progress => None,
                orlop_store::EventKind::Put => {
                    let facts = self.prepared.facts(&event.kv.key, &event.kv.value);
                    let entry = cache.entry(&event.kv.key, &event.kv.value, revision, facts);
                    if entry.is_none() {
                        tracing::error!(key, "committed object cannot be decoded; ignored");
                        continue;
                    }
                    entry
                }
            };
            match by_cache.iter_mut().find(|(known, _)| Arc::ptr_eq(known, cache)) {
                Some((_, changes)) => changes.push((key.into(), entry)),
                None => by_cache.push((cache.clone(), vec![(key.into(), entry)])),
            }
        }
        for (cache, changes) in by_cache {
            cache.apply(revision, changes);
        }
    }
}

fn cache_of<'a>(all: &'a BTreeMap<String, Arc<Cache>>, key: &[u8]) -> Option<&'a Arc<Cache>> {
    let key = std::str::from_utf8(key).ok()?;
    let (prefix, cache) = all.range::<str, _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
    key.starts_with(prefix.as_str()).then_some(cache)
}

impl Default for Caches {
    fn default() -> Caches {
        Caches::new()
    }
}

/// Reads everything under a prefix at one revision, in pages.
async fn read_all(
    store: &dyn orlop_store::Store,
    prefix: &str,
    at: orlop_store::Revision,
) -> Result<Vec<orlop_store::KeyValue>, orlop_store::StoreError> {
    let mut start = Bytes::copy_from_slice(prefix.as_bytes());
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    let end = Bytes::from(end);
    let mut all = Vec::new();
    loop {
        let page = store
            .range(orlop_store::Range {
                start: start.clone(),
                end: end.clone(),
                limit: 10_000,
                at: (at.0 > 0).then_some(at),
            })
            .await?;
        let more = page.more;
        if let Some(last) = page.kvs.last() {
            let mut next = last.key.to_vec();
            next.push(0);
            start = Bytes::from(next);
        }
        all.extend(page.kvs);
        if !more {
            return Ok(all);
        }
    }
}
