//! One informer per kind and selection, however many ask for it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::informer::{Informer, Object};

#[derive(PartialEq, Eq, Hash)]
struct InformerId {
    kind: TypeId,
    /// Plural and API version for kinds known only at run time.
    resource: String,
    fields: String,
    labels: String,
}

/// Hands out informers and starts each on first use. Cheap to clone; clones share the informers.
#[derive(Clone)]
pub struct SharedInformerFactory {
    reader: kube::Client,
    client: kube::Client,
    shutdown: CancellationToken,
    informers: Arc<Mutex<HashMap<InformerId, Box<dyn Any + Send + Sync>>>>,
}

impl SharedInformerFactory {
    /// A factory whose informers watch through `client` until `shutdown`.
    pub fn new(client: kube::Client, shutdown: CancellationToken) -> Self {
        Self { reader: client.clone(), client, shutdown, informers: Arc::default() }
    }

    /// The same informers, which go on watching through the client they have, for somebody who writes through `client`.
    #[must_use]
    pub fn with_client(&self, client: kube::Client) -> Self {
        Self { client, ..self.clone() }
    }

    /// The client to write through.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// The informer of all objects of kind `K`, in all namespaces.
    pub fn informer<K>(&self) -> Informer<K>
    where
        K: Object<DynamicType = ()>,
    {
        self.selected::<K>("", "")
    }

    /// The informer of the objects of kind `K` that match a field selector (`spec.nodeName=n1`) and a label selector,
    /// in all namespaces; an empty string selects all.
    pub fn selected<K>(&self, fields: &str, labels: &str) -> Informer<K>
    where
        K: Object<DynamicType = ()>,
    {
        let kind = format!("{} {}", K::api_version(&()), K::kind(&()));
        self.shared(id::<K>(String::new(), fields, labels), || {
            let stream = watcher::watcher(Api::<K>::all(self.reader.clone()), config(fields, labels));
            Informer::spawn(kind, stream.default_backoff(), self.shutdown.clone())
        })
    }

    /// The informer of the metadata of all objects of a kind known only at run time: what a garbage collector needs.
    pub fn metadata(&self, resource: &ApiResource) -> Informer<PartialObjectMeta<DynamicObject>> {
        let name = format!("{} {}", resource.api_version, resource.plural);
        self.shared(id::<PartialObjectMeta<DynamicObject>>(name.clone(), "", ""), || {
            let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(self.reader.clone(), resource);
            Informer::spawn(
                name,
                watcher::watcher(api, config("", "")).default_backoff(),
                self.shutdown.clone(),
            )
        })
    }

    fn shared<K: Object>(&self, id: InformerId, start: impl FnOnce() -> Informer<K>) -> Informer<K> {
        let mut informers = self.informers.lock();
        if let Some(present) = informers.get(&id).and_then(|any| any.downcast_ref::<Informer<K>>()) {
            return present.clone();
        }
        let informer = start();
        informers.insert(id, Box::new(informer.clone()));
        informer
    }
}

fn id<K: 'static>(resource: String, fields: &str, labels: &str) -> InformerId {
    InformerId { kind: TypeId::of::<K>(), resource, fields: fields.to_owned(), labels: labels.to_owned() }
}

fn config(fields: &str, labels: &str) -> Config {
    let mut config = Config::default().streaming_lists();
    if !fields.is_empty() {
        config = config.fields(fields);
    }
    if !labels.is_empty() {
        config = config.labels(labels);
    }
    config
}
