//! Adds up what is used of each ResourceQuota. Admission charges what is created; this controller finds out what was
//! given back, and what was there before the quota. Answers to upstream's `resourcequota-controller`.

mod decide;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::PartialObjectMeta;
use orlop_client::{
    Informer, InformerEvent, Object, ObjectKey, SharedInformerFactory, WorkQueue, run_workers,
};
use orlop_kinds::quota::Evaluator;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::discovery::follow;
use crate::error::{Error, is_not_found};
use crate::objects::{Meta, is_finished};
use crate::shell::Shell;
use decide::Objects;

/// Every quota is looked at again after this long, whatever happened to it.
const RESYNC: Duration = Duration::from_secs(5 * 60);
/// What was charged shows up in the caches within this time. Before, less must not be said.
const SETTLE: Duration = Duration::from_millis(500);
/// A resource whose list never arrives does not hold up the quotas of all others.
const SYNC_LIMIT: Duration = Duration::from_secs(30);

type Metadata = Informer<PartialObjectMeta<DynamicObject>>;

/// Where the objects of a resource are found.
enum Source {
    Pods(Informer<Pod>),
    Services(Informer<Service>),
    VolumeClaims(Informer<PersistentVolumeClaim>),
    DeviceClaims(Informer<ResourceClaim>),
    Other(Metadata),
}

impl Source {
    fn of(evaluator: &Evaluator, informers: &SharedInformerFactory, api: &kube::api::ApiResource) -> Self {
        match evaluator {
            Evaluator::Pods => Self::Pods(informers.informer()),
            Evaluator::Services => Self::Services(informers.informer()),
            Evaluator::VolumeClaims => Self::VolumeClaims(informers.informer()),
            Evaluator::DeviceClaims => Self::DeviceClaims(informers.informer()),
            Evaluator::Count { .. } => Self::Other(informers.metadata(api)),
        }
    }

    async fn synced(&self) {
        match self {
            Self::Pods(informer) => informer.synced().await,
            Self::Services(informer) => informer.synced().await,
            Self::VolumeClaims(informer) => informer.synced().await,
            Self::DeviceClaims(informer) => informer.synced().await,
            Self::Other(informer) => informer.synced().await,
        }
    }

    fn objects(&self, namespace: &str) -> Objects {
        match self {
            Self::Pods(informer) => each(informer, namespace),
            Self::Services(informer) => each(informer, namespace),
            Self::VolumeClaims(informer) => each(informer, namespace),
            Self::DeviceClaims(informer) => each(informer, namespace),
            Self::Other(informer) => Objects::Count(informer.list_namespace(namespace).len()),
        }
    }

    /// Calls `given_back` with the namespace whenever something of this resource may use less than before.
    fn watch(&self, given_back: impl Fn(&str) + Send + Sync + 'static) {
        match self {
            Self::Pods(informer) => watch(informer, given_back, |old, new| {
                is_finished(old) != is_finished(new)
                    || old.deleting() != new.deleting()
                    || old.spec != new.spec
            }),
            Self::Services(informer) => watch(informer, given_back, |old, new| old.spec != new.spec),
            Self::VolumeClaims(informer) => {
                watch(informer, given_back, |old, new| old.spec != new.spec || old.status != new.status);
            }
            Self::DeviceClaims(informer) => watch(informer, given_back, |old, new| old.spec != new.spec),
            Self::Other(informer) => watch(informer, given_back, |_, _| false),
        }
    }
}

fn each<K: Object + Serialize>(informer: &Informer<K>, namespace: &str) -> Objects {
    let objects = informer.list_namespace(namespace);
    Objects::Each(objects.iter().filter_map(|object| orlop_json::to_value(&**object).ok()).collect())
}

fn watch<K: Object>(
    informer: &Informer<K>,
    given_back: impl Fn(&str) + Send + Sync + 'static,
    matters: impl Fn(&K, &K) -> bool + Send + Sync + 'static,
) {
    informer.subscribe(move |event| {
        let relevant = match event {
            InformerEvent::Added(_) => false,
            InformerEvent::Updated { old, new } => matters(old, new),
            InformerEvent::Deleted(_) => true,
        };
        if relevant {
            given_back(event.object().namespace());
        }
    });
}

/// The resources that quotas can be about.
type Sources = Arc<RwLock<Vec<(Evaluator, Arc<Source>)>>>;

struct Controller {
    quotas: Informer<ResourceQuota>,
    sources: Sources,
    /// When each quota changed last, as seen here.
    changed: Arc<Mutex<HashMap<ObjectKey, Instant>>>,
    client: kube::Client,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        quotas: shell.informers.informer(),
        sources: Sources::default(),
        changed: Arc::default(),
        client: shell.client,
    };
    controller.quotas.synced().await;
    let queue = WorkQueue::named("resourcequota_primary");
    // With half of the caches empty every sum would be too small.
    let whole = CancellationToken::new();
    let following = follow(&controller.client, &shell.informers, "resourcequota-controller", |_, new| {
        let mut added = Vec::new();
        for resource in new.into_iter().filter(|resource| resource.namespaced && resource.can("create")) {
            let (group, plural) = (resource.api.group.as_str(), resource.api.plural.as_str());
            let Some(evaluator) = Evaluator::of(group, plural) else { continue };
            let source = Arc::new(Source::of(&evaluator, &shell.informers, &resource.api));
            let (quotas, queue, own) = (controller.quotas.clone(), queue.clone(), evaluator.clone());
            source.watch(move |namespace| queue_quotas(&quotas.list_namespace(namespace), &own, &queue));
            added.push((evaluator, source));
        }
        let (sources, quotas, queue, whole) = (&controller.sources, &controller.quotas, &queue, &whole);
        async move {
            let filling = futures::future::join_all(added.iter().map(|(_, source)| source.synced()));
            let _ = tokio::time::timeout(SYNC_LIMIT, filling).await;
            let all = quotas.list();
            for (evaluator, _) in &added {
                queue_quotas(&all, evaluator, queue);
            }
            sources.write().extend(added);
            whole.cancel();
        }
    });
    let working = async {
        if shell.shutdown.run_until_cancelled(whole.cancelled()).await.is_none() {
            return;
        }
        let (own, changed) = (queue.clone(), controller.changed.clone());
        controller.quotas.subscribe(move |event| {
            let quota = event.object();
            let key = ObjectKey::of(&quota.metadata);
            match event {
                InformerEvent::Deleted(_) => {
                    changed.lock().remove(&key);
                }
                InformerEvent::Updated { old, .. } => {
                    changed.lock().insert(key.clone(), Instant::now());
                    let told =
                        |quota: &ResourceQuota| quota.status.as_ref().map(|status| status.hard.clone());
                    if old.spec != quota.spec || told(old) != told(quota) {
                        own.add(key);
                    }
                }
                InformerEvent::Added(_) => own.add(key),
            }
        });
        let shutdown = shell.shutdown.clone();
        run_workers("resourcequota-controller", queue.clone(), 5, shutdown, |key| controller.sync(key)).await;
    };
    tokio::join!(working, shell.shutdown.run_until_cancelled(following));
    Ok(())
}

/// Queues the quotas that are about a resource.
fn queue_quotas(quotas: &[Arc<ResourceQuota>], evaluator: &Evaluator, queue: &WorkQueue<ObjectKey>) {
    for quota in quotas {
        let mut limited = quota.spec.iter().flat_map(|spec| spec.hard.iter().flat_map(|hard| hard.keys()));
        if limited.any(|name| evaluator.matches_resource(name)) {
            queue.add(ObjectKey::of(&quota.metadata));
        }
    }
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(quota) = self.quotas.get_key(&key) else { return Ok(None) };
        let before = orlop_json::to_value(&*quota)
            .map_err(|error| Error::Object(format!("ResourceQuota {key} cannot be read: {error}")))?;
        let sources = self.sources.read().clone();
        let resources = sources.iter().map(|(evaluator, source)| {
            let (source, namespace) = (source.clone(), key.namespace.as_str());
            (evaluator.clone(), move || source.objects(namespace))
        });
        let Some(status) = decide::status(&before, resources, Timestamp::now()) else {
            return Ok(Some(RESYNC));
        };
        if decide::lowers(&before["status"], &status) {
            let since = self.changed.lock().get(&key).map(Instant::elapsed);
            if let Some(left) = since.and_then(|since| SETTLE.checked_sub(since)) {
                // Charged a moment ago, maybe for an object that the cache does not show yet.
                return Ok(Some(left));
            }
        }
        let mut changed = (*quota).clone();
        changed.status = orlop_json::from_value(&status)
            .map(Some)
            .map_err(|error| Error::Object(format!("status of ResourceQuota {key}: {error}")))?;
        let api = Api::<ResourceQuota>::namespaced(self.client.clone(), &key.namespace);
        match api.replace_status(&key.name, &PostParams::default(), &changed).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Some(RESYNC)),
        }
    }
}
