//! Keeps as many pods of a ReplicaSet or ReplicationController as it asks for. Answers to upstream's
//! `replicaset-controller` and `replicationcontroller-controller`, which are one controller there too.

mod decide;
mod rank;
mod replicated;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::api::{Api, PostParams};
use orlop_client::{Informer, ObjectKey, WorkQueue, run_workers};

use crate::claim::claim_all;
use crate::error::{Error, unless_gone};
use crate::expectations::Expectations;
use crate::objects::{
    BY_CONTROLLER, Meta, claimable, controller_ref, index_by_controller, is_active, is_terminating,
};
use crate::pod_control::{PodControl, pod_from_template, slow_start};
use crate::shell::Shell;
use crate::workload::{STATUS_BATCH, queue_for_pods};
use decide::Action;
use replicated::Replicated;

struct Controller<O> {
    pods: Informer<Pod>,
    owners: Informer<O>,
    expectations: Expectations,
    control: PodControl,
}

/// Runs the controller of ReplicaSets.
pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    run_for::<ReplicaSet>("replicaset-controller", "replicaset", shell).await
}

/// Runs the controller of ReplicationControllers.
pub(crate) async fn run_replication_controllers(shell: Shell) -> Result<(), Error> {
    run_for::<ReplicationController>("replicationcontroller-controller", "replicationmanager", shell).await
}

async fn run_for<O: Replicated>(name: &'static str, queue: &'static str, shell: Shell) -> Result<(), Error> {
    let controller = Controller::<O> {
        pods: shell.informers.informer(),
        owners: shell.informers.informer(),
        expectations: Expectations::default(),
        control: PodControl { client: shell.client, recorder: shell.recorder },
    };
    let queue = WorkQueue::named(queue);
    index_by_controller(&controller.pods);
    index_by_controller(&controller.owners);
    controller.owners.synced().await;
    controller.pods.synced().await;
    let own = queue.clone();
    controller.owners.subscribe(move |event| own.add(ObjectKey::of(Meta::meta(&**event.object()))));
    queue_for_pods(&controller.pods, &controller.owners, &controller.expectations, &queue, STATUS_BATCH);
    run_workers(name, queue, 5, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

impl<O: Replicated> Controller<O> {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(owner) = self.owners.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(None);
        };
        let may_scale = self.expectations.satisfied(&key);
        let candidates = claimable(&self.pods, Meta::meta(&*owner));
        let owned =
            claim_all(&self.control.client, &*owner, &owner.selector(), candidates, is_active).await?;
        let terminating = owned.iter().filter(|pod| is_terminating(pod)).count();
        let active: Vec<_> = owned.into_iter().filter(|pod| is_active(pod)).collect();

        let set = owner.as_set();
        let scaled = if may_scale { self.scale(&key, &owner, &set, &active).await } else { Ok(()) };
        let failure = scaled.as_ref().err().map(ToString::to_string);
        let now = Timestamp::now();
        let terminating = O::REPORTS_TERMINATING.then_some(terminating);
        let status = decide::status(&set, &active, terminating, failure.as_deref(), now);
        if decide::differs(set.status.as_ref(), &status) {
            let api = Api::<O>::namespaced(self.control.client.clone(), &key.namespace);
            let changed = owner.with_status(status);
            let written = unless_gone(api.replace_status(&key.name, &PostParams::default(), &changed).await);
            // Why the pods could not be made says more than that the status could not be written.
            scaled.and(written.map_err(Error::from))?;
        } else {
            scaled?;
        }
        Ok(decide::next_available(&set, &active, now))
    }

    async fn scale(
        &self,
        key: &ObjectKey,
        owner: &O,
        set: &ReplicaSet,
        active: &[Arc<Pod>],
    ) -> Result<(), Error> {
        match decide::scale(set, active, || self.related(owner), Timestamp::now()) {
            Action::Nothing => Ok(()),
            Action::Create(count) => {
                let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
                let template = template
                    .ok_or_else(|| Error::Object(format!("{} {key} has no template", O::kind(&()))))?;
                let pod = pod_from_template(template, &key.name, controller_ref(owner));
                self.expectations.expect_creations(key, count);
                let (_, skipped, failures) = slow_start(count, |_| async {
                    let created = self.control.create(owner, &pod).await;
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
                    let deleted = self.control.delete(owner, pod.name()).await;
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
    fn related(&self, owner: &O) -> Vec<Arc<Pod>> {
        let Some(above) = owner.controller() else { return self.pods.by_index(BY_CONTROLLER, owner.uid()) };
        let siblings = self.owners.by_index(BY_CONTROLLER, &above.uid);
        siblings.iter().flat_map(|sibling| self.pods.by_index(BY_CONTROLLER, sibling.uid())).collect()
    }
}
