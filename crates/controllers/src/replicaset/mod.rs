//! Keeps as many pods of a ReplicaSet as it asks for. Answers to upstream's `replicaset-controller`.

mod decide;
mod rank;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use orlop_client::{Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use crate::claim::claim_all;
use crate::error::{Error, is_not_found};
use crate::expectations::Expectations;
use crate::objects::{
    BY_CONTROLLER, Meta, claimable, controller_ref, index_by_controller, is_active, is_terminating, selects,
};
use crate::pod_control::{PodControl, pod_from_template, slow_start};
use crate::shell::Shell;
use decide::Action;

struct Controller {
    pods: Informer<Pod>,
    sets: Informer<ReplicaSet>,
    expectations: Expectations,
    control: PodControl,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        pods: shell.informers.informer(),
        sets: shell.informers.informer(),
        expectations: Expectations::default(),
        control: PodControl { client: shell.client, recorder: shell.recorder },
    };
    let queue = WorkQueue::new();
    index_by_controller(&controller.pods);
    index_by_controller(&controller.sets);
    controller.sets.synced().await;
    controller.pods.synced().await;
    let sets_queue = queue.clone();
    controller.sets.subscribe(move |event| sets_queue.add(ObjectKey::of(&event.object().metadata)));
    let watch = PodWatch {
        sets: controller.sets.clone(),
        expectations: controller.expectations.clone(),
        queue: queue.clone(),
    };
    controller.pods.subscribe(move |event| watch.pod(event));
    run_workers("replicaset-controller", queue, 5, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

/// Finds the set that a changed pod concerns.
struct PodWatch {
    sets: Informer<ReplicaSet>,
    expectations: Expectations,
    queue: WorkQueue<ObjectKey>,
}

impl PodWatch {
    fn owner(&self, pod: &Pod) -> Option<ObjectKey> {
        let owner = pod.controller().filter(|owner| owner.kind == "ReplicaSet")?;
        let set = self.sets.get(pod.namespace(), &owner.name).filter(|set| set.uid() == owner.uid)?;
        Some(ObjectKey::of(&set.metadata))
    }

    fn pod(&self, event: &InformerEvent<Pod>) {
        let pod = event.object();
        let owner = self.owner(pod);
        if let InformerEvent::Updated { old, .. } = event
            && old.controller().map(|owner| &owner.uid) != pod.controller().map(|owner| &owner.uid)
            && let Some(former) = self.owner(old)
        {
            self.queue.add(former);
        }
        let Some(key) = owner else {
            let changed = !matches!(event, InformerEvent::Updated { old, .. }
                if old.metadata.labels == pod.metadata.labels && old.controller().is_none());
            if pod.controller().is_none() && changed && !matches!(event, InformerEvent::Deleted(_)) {
                for set in self.sets.list_namespace(pod.namespace()) {
                    if set.spec.as_ref().is_some_and(|spec| selects(&spec.selector, &pod.metadata)) {
                        self.queue.add(ObjectKey::of(&set.metadata));
                    }
                }
            }
            return;
        };
        if matches!(event, InformerEvent::Added(_)) {
            self.expectations.creation_observed(&key);
        }
        // A pod with a deletion timestamp does not count any more, long before it is gone.
        if pod.deleting() || matches!(event, InformerEvent::Deleted(_)) {
            self.expectations.deletion_observed(&key, pod.uid());
        }
        self.queue.add(key);
    }
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(set) = self.sets.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(None);
        };
        let may_scale = self.expectations.satisfied(&key);
        let Some(spec) = &set.spec else { return Ok(None) };
        let candidates = claimable(&self.pods, &set.metadata);
        let owned = claim_all(&self.control.client, &*set, &spec.selector, candidates, is_active).await?;
        let terminating = owned.iter().filter(|pod| is_terminating(pod)).count();
        let active: Vec<_> = owned.into_iter().filter(|pod| is_active(pod)).collect();

        let scaled = if may_scale { self.scale(&key, &set, &active).await } else { Ok(()) };
        let failure = scaled.as_ref().err().map(ToString::to_string);
        let now = Timestamp::now();
        let status = decide::status(&set, &active, terminating, failure.as_deref(), now);
        if decide::differs(set.status.as_ref(), &status) {
            let mut changed = (*set).clone();
            changed.status = Some(status);
            let api = Api::<ReplicaSet>::namespaced(self.control.client.clone(), &key.namespace);
            match api.replace_status(&key.name, &PostParams::default(), &changed).await {
                Err(error) if !is_not_found(&error) => {
                    scaled?;
                    return Err(error.into());
                }
                _ => {}
            }
        }
        scaled?;
        Ok(decide::next_available(&set, &active, now))
    }

    async fn scale(&self, key: &ObjectKey, set: &ReplicaSet, active: &[Arc<Pod>]) -> Result<(), Error> {
        match decide::scale(set, active, || self.related(set), Timestamp::now()) {
            Action::Nothing => Ok(()),
            Action::Create(count) => {
                let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
                let template =
                    template.ok_or_else(|| Error::Object(format!("ReplicaSet {key} has no template")))?;
                let pod = pod_from_template(template, &key.name, controller_ref(set));
                self.expectations.expect_creations(key, count);
                let (_, skipped, failures) = slow_start(count, |_| async {
                    let created = self.control.create(set, &pod).await;
                    if !matches!(created, Ok(true)) {
                        self.expectations.creation_observed(key);
                    }
                    created
                })
                .await;
                (0..skipped).for_each(|_| self.expectations.creation_observed(key));
                // They fail for the same reason; one says it.
                failures.into_iter().next().map_or(Ok(()), Err)
            }
            Action::Delete(pods) => {
                self.expectations.expect_deletions(key, pods.iter().map(|pod| pod.uid().to_owned()));
                let deletions = pods.iter().map(|pod| async {
                    let deleted = self.control.delete(set, pod.name()).await;
                    if !matches!(deleted, Ok(true)) {
                        self.expectations.deletion_observed(key, pod.uid());
                    }
                    deleted.err()
                });
                let failures = futures::future::join_all(deletions).await;
                failures.into_iter().flatten().next().map_or(Ok(()), Err)
            }
        }
    }

    /// The pods of all sets that the same Deployment controls: old and new pods of a rollout share nodes.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let Some(owner) = set.controller() else { return self.pods.by_index(BY_CONTROLLER, set.uid()) };
        let sets = self.sets.by_index(BY_CONTROLLER, &owner.uid);
        sets.iter().flat_map(|set| self.pods.by_index(BY_CONTROLLER, set.uid())).collect()
    }
}
