//! The ConfigMaps and Secrets that pods of this node use, each watched by name and only while a pod uses it: a
//! kubelet may not see others (Node authorizer). Answers to upstream's watch-based object managers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config};
use orlop_client::{Informer, Object, ObjectKey};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a pod waits for the first answer about an object.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

struct Watched<K> {
    informer: Informer<K>,
    /// Whom to wake on a change: pods by uid.
    users: Arc<Mutex<HashMap<String, Arc<Notify>>>>,
    _stop: DropGuard,
}

/// Watches of single objects of one kind.
pub(crate) struct ObjectStore<K> {
    client: kube::Client,
    kind: &'static str,
    watched: Mutex<HashMap<ObjectKey, Watched<K>>>,
}

impl<K> ObjectStore<K>
where
    K: Object<DynamicType = (), Scope = NamespaceResourceScope> + kube::Resource,
{
    pub(crate) fn new(client: kube::Client, kind: &'static str) -> Self {
        Self { client, kind, watched: Mutex::default() }
    }

    /// Makes the pod `uid` a user of exactly these objects; `wake` is notified when one changes.
    pub(crate) fn register(&self, uid: &str, namespace: &str, names: &BTreeSet<String>, wake: &Arc<Notify>) {
        let mut watched = self.watched.lock();
        watched.retain(|key, entry| {
            if key.namespace != namespace || names.contains(&key.name) {
                return true;
            }
            let mut users = entry.users.lock();
            users.remove(uid);
            !users.is_empty()
        });
        for name in names {
            let key = ObjectKey::new(namespace, name);
            let entry = watched.entry(key.clone()).or_insert_with(|| self.watch(&key));
            entry.users.lock().insert(uid.to_owned(), wake.clone());
        }
    }

    /// The pod is gone: watches that nobody needs any more end.
    pub(crate) fn unregister(&self, uid: &str) {
        self.watched.lock().retain(|_, entry| {
            let mut users = entry.users.lock();
            users.remove(uid);
            !users.is_empty()
        });
    }

    fn watch(&self, key: &ObjectKey) -> Watched<K> {
        let stop = CancellationToken::new();
        let api = Api::<K>::namespaced(self.client.clone(), &key.namespace);
        let config = Config::default().fields(&format!("metadata.name={}", key.name));
        let stream = watcher::watcher(api, config).default_backoff();
        let informer = Informer::spawn(format!("{} {key}", self.kind), stream, stop.clone());
        let users: Arc<Mutex<HashMap<String, Arc<Notify>>>> = Arc::default();
        let woken = users.clone();
        informer.subscribe(move |_| woken.lock().values().for_each(|wake| wake.notify_one()));
        Watched { informer, users, _stop: stop.drop_guard() }
    }

    /// An object some pod registered for; `Ok(None)` when it does not exist.
    pub(crate) async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, String> {
        let key = ObjectKey::new(namespace, name);
        let informer = self.watched.lock().get(&key).map(|entry| entry.informer.clone());
        let Some(informer) = informer else { return Ok(None) };
        if tokio::time::timeout(FIRST_ANSWER, informer.synced()).await.is_err() {
            let kind = self.kind;
            return Err(format!(
                "failed to sync {kind} {key} cache: timed out waiting for the API server; it is asked again"
            ));
        }
        Ok(informer.get_key(&key))
    }
}
