//! Writes the EndpointSlices of each Service with a selector. Answers to upstream's `endpointslice-controller`.

mod decide;
mod mirror;
mod written;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use crate::error::{Error, is_conflict, is_namespace_terminating, unless_gone};
use crate::objects::Meta;
use crate::services::{self, TriggerTimes};
use crate::shell::Shell;
use decide::{MANAGED_BY, MANAGER, SERVICE_NAME};
pub(crate) use mirror::run as run_mirroring;
use written::Written;

const BY_SERVICE: &str = "endpointslice-service";

struct Controller {
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    times: TriggerTimes,
    written: Arc<Written>,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        services: shell.informers.informer(),
        pods: shell.informers.informer(),
        nodes: shell.informers.informer(),
        slices: shell.informers.informer(),
        times: TriggerTimes::default(),
        written: Arc::default(),
        client: shell.client,
        recorder: shell.recorder,
    };
    controller.slices.add_index(BY_SERVICE, |slice: &EndpointSlice| {
        service_of(slice).map(|key| key.to_string()).into_iter().collect()
    });
    controller.services.synced().await;
    controller.pods.synced().await;
    controller.nodes.synced().await;
    controller.slices.synced().await;
    let queue = WorkQueue::named("endpoint_slice");
    let own = queue.clone();
    controller.services.subscribe(move |event| own.add(ObjectKey::of(&event.object().metadata)));
    let (own, written) = (queue.clone(), controller.written.clone());
    controller.slices.subscribe(move |event| {
        if matches!(event, InformerEvent::Deleted(_)) {
            written.forget(event.object().uid());
        }
        if let Some(key) = service_of(event.object()) {
            own.add(key);
        }
    });
    let (own, all) = (queue.clone(), controller.services.clone());
    controller.nodes.subscribe(move |event| {
        let zone = |node: &Node| node.label("topology.kubernetes.io/zone").map(str::to_owned);
        let changed = match event {
            InformerEvent::Updated { old, new } => zone(old) != zone(new),
            _ => true,
        };
        if changed {
            all.list().iter().for_each(|service| own.add(ObjectKey::of(&service.metadata)));
        }
    });
    services::queue_for_pods(&controller.pods, &controller.services, &queue);
    run_workers("endpointslice-controller", queue, 5, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

/// The Service of a slice that this controller manages.
fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let ours = slice.label(MANAGED_BY) == Some(MANAGER);
    slice.label(SERVICE_NAME).filter(|_| ours).map(|name| ObjectKey::new(slice.namespace(), name))
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(service) = self.services.get_key(&key) else {
            // The slices go with their owner.
            self.times.forget(&key);
            return Ok(None);
        };
        if services::selector(&service).is_none() {
            return Ok(None);
        }
        let mut slices = self.slices.by_index(BY_SERVICE, &key.to_string());
        slices.retain(|slice| !slice.deleting());
        if self.written.is_ahead(&key, &slices) {
            // Deciding on a cache without our own last write would make double slices.
            return Ok(Some(Duration::from_millis(50)));
        }
        let pods = services::pods_of(&service, &self.pods);
        let trigger = self.times.next(&service, &pods);
        let plan =
            decide::plan(&service, &pods, &slices, |name| self.nodes.get("", name), trigger.as_deref());
        if let Err(error) = self.carry_out(&key, &plan).await {
            if !matches!(&error, Error::Api(api) if is_conflict(api)) {
                let text = format!("Error updating Endpoint Slices for Service {key}: {error}");
                self.recorder.event(&*service, EventType::Warning, "FailedToUpdateEndpointSlices", text);
            }
            return Err(error);
        }
        // A pod whose node is not in the cache yet: the node's arrival queues the Service again.
        if !plan.without_node.is_empty() {
            tracing::debug!(service = %key, pods = ?plan.without_node, "pods left out: their nodes are not known");
        }
        Ok(None)
    }

    async fn carry_out(&self, key: &ObjectKey, plan: &decide::Plan) -> Result<(), Error> {
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &key.namespace);
        let params = PostParams::default();
        for slice in &plan.create {
            match api.create(&params, slice).await {
                Ok(created) => self.written.note(key, &created),
                Err(error) if is_namespace_terminating(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        for slice in &plan.update {
            self.written.note(key, &api.replace(slice.name(), &params, slice).await?);
        }
        for slice in &plan.delete {
            self.written.forget(slice.uid());
            unless_gone(api.delete(slice.name(), &DeleteParams::default()).await)?;
        }
        Ok(())
    }
}
