//! Rolls a Deployment's pods from one template to the next by resizing ReplicaSets. Answers to upstream's
//! `deployment-controller`. It never touches a pod.

mod conditions;
mod decide;
mod sets;
#[cfg(test)]
mod tests;

use sets::same_template;
pub(crate) use sets::template_hash;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use crate::claim::claim_all;
use crate::error::{Error, is_already_exists, is_namespace_terminating, message, unless_gone};
use crate::objects::{BY_CONTROLLER, Meta, claimable, index_by_controller, is_finished, selects};
use crate::shell::Shell;
use crate::workload::STATUS_BATCH;

struct Controller {
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        deployments: shell.informers.informer(),
        sets: shell.informers.informer(),
        pods: shell.informers.informer(),
        client: shell.client,
        recorder: shell.recorder,
    };
    index_by_controller(&controller.sets);
    index_by_controller(&controller.pods);
    controller.deployments.synced().await;
    controller.sets.synced().await;
    controller.pods.synced().await;
    let queue = WorkQueue::named("deployment");
    let own = queue.clone();
    controller.deployments.subscribe(move |event| own.add(ObjectKey::of(&event.object().metadata)));
    let watch = Watch {
        deployments: controller.deployments.clone(),
        sets: controller.sets.clone(),
        queue: queue.clone(),
    };
    let watch = Arc::new(watch);
    let of_sets = watch.clone();
    controller.sets.subscribe(move |event| of_sets.set(event));
    controller.pods.subscribe(move |event| watch.pod(event));
    run_workers("deployment-controller", queue, 5, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

/// Finds the Deployment that a change concerns.
struct Watch {
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    queue: WorkQueue<ObjectKey>,
}

impl Watch {
    fn owner(&self, set: &ReplicaSet) -> Option<Arc<Deployment>> {
        let owner = set.controller().filter(|owner| owner.kind == "Deployment")?;
        self.deployments.get(set.namespace(), &owner.name).filter(|deployment| deployment.uid() == owner.uid)
    }

    fn set(&self, event: &InformerEvent<ReplicaSet>) {
        let set = event.object();
        if let InformerEvent::Updated { old, .. } = event
            && old.controller() != set.controller()
            && let Some(former) = self.owner(old)
        {
            self.queue.add(ObjectKey::of(&former.metadata));
        }
        if let Some(owner) = self.owner(set) {
            let key = ObjectKey::of(&owner.metadata);
            match event {
                InformerEvent::Updated { old, .. } if old.generation() == set.generation() => {
                    self.queue.add_after(key, STATUS_BATCH);
                }
                _ => self.queue.add(key),
            }
        } else if set.controller().is_none() && !matches!(event, InformerEvent::Deleted(_)) {
            for deployment in self.deployments.list_namespace(set.namespace()) {
                if deployment.spec.as_ref().is_some_and(|spec| selects(&spec.selector, &set.metadata)) {
                    self.queue.add(ObjectKey::of(&deployment.metadata));
                }
            }
        }
    }

    /// Recreate waits for the last old pod to be gone; its set's status may be too early by then.
    fn pod(&self, event: &InformerEvent<Pod>) {
        let pod = event.object();
        if !matches!(event, InformerEvent::Deleted(_)) && !is_finished(pod) {
            return;
        }
        let Some(owner) = pod.controller().filter(|owner| owner.kind == "ReplicaSet") else { return };
        let Some(deployment) = self.sets.get(pod.namespace(), &owner.name).and_then(|set| self.owner(&set))
        else {
            return;
        };
        let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            self.queue.add(ObjectKey::of(&deployment.metadata));
        }
    }
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(deployment) = self.deployments.get_key(&key) else { return Ok(None) };
        let Some(spec) = &deployment.spec else { return Ok(None) };
        if spec.selector == Default::default() {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&*deployment, EventType::Warning, "SelectingAll", text);
            let mut seen = (*deployment).clone();
            let status = seen.status.get_or_insert_default();
            if status.observed_generation.unwrap_or(0) < deployment.generation() {
                status.observed_generation = Some(deployment.generation());
                self.write_status(&seen).await?;
            }
            return Ok(None);
        }
        let candidates = claimable(&self.sets, &deployment.metadata);
        let owned = claim_all(&self.client, &*deployment, &spec.selector, candidates, |_| true).await?;
        let uids: HashSet<String> = owned.iter().map(|set| set.uid().to_owned()).collect();
        let others_run = |new: Option<&str>| {
            let others = uids.iter().filter(|uid| Some(uid.as_str()) != new);
            others.flat_map(|uid| self.pods.by_index(BY_CONTROLLER, uid)).any(|pod| !is_finished(&pod))
        };
        let sets = owned.iter().map(|set| (**set).clone()).collect();
        let plan = decide::plan(&deployment, spec, sets, others_run, Timestamp::now());
        self.carry_out(&deployment, plan).await
    }

    async fn carry_out(
        &self,
        deployment: &Deployment,
        plan: decide::Plan,
    ) -> Result<Option<Duration>, Error> {
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), deployment.namespace());
        let tell = |event: Option<String>| {
            if let Some(text) = event {
                self.recorder.event(deployment, EventType::Normal, "ScalingReplicaSet", text);
            }
        };
        if let Some(create) = plan.create {
            match api.create(&PostParams::default(), &create.set).await {
                Ok(_) => tell(create.event),
                Err(error) if is_namespace_terminating(&error) => return Ok(None),
                Err(error) => return self.not_created(deployment, &create.set, error).await,
            }
        }
        for update in plan.updates {
            api.replace(update.set.name(), &PostParams::default(), &update.set).await?;
            tell(update.event);
        }
        for set in plan.deletes {
            unless_gone(api.delete(set.name(), &DeleteParams::default()).await)?;
        }
        if let Some(changed) = &plan.status {
            self.write_status(changed).await?;
        }
        Ok(plan.again)
    }

    /// The name may be taken by a set of ours that the cache does not show yet (fine), or by one with another template
    /// that hashes alike (then another hash is tried).
    async fn not_created(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
        error: kube::Error,
    ) -> Result<Option<Duration>, Error> {
        let mut changed = deployment.clone();
        let status = changed.status.get_or_insert_default();
        if is_already_exists(&error) {
            let api = Api::<ReplicaSet>::namespaced(self.client.clone(), deployment.namespace());
            let Some(present) = api.get_opt(set.name()).await? else { return Err(error.into()) };
            let template = |set: &ReplicaSet| {
                set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default()
            };
            let ours = present.controller().is_some_and(|owner| owner.uid == deployment.uid());
            if ours && same_template(&template(&present), &template(set)) {
                return Err(error.into());
            }
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            self.write_status(&changed).await?;
            return Err(error.into());
        }
        let text = format!("Failed to create new replica set \"{}\": {}", set.name(), message(&error));
        if deployment.spec.as_ref().is_some_and(|spec| sets::Shape::of(spec).deadline.is_some()) {
            let now = Timestamp::now();
            let condition =
                conditions::new(conditions::PROGRESSING, "False", "ReplicaSetCreateError", text.clone(), now);
            conditions::set(status, condition);
            if deployment.status != changed.status {
                self.write_status(&changed).await?;
            }
        }
        self.recorder.event(deployment, EventType::Warning, "ReplicaSetCreateError", text);
        Err(error.into())
    }

    async fn write_status(&self, deployment: &Deployment) -> Result<(), Error> {
        let api = Api::<Deployment>::namespaced(self.client.clone(), deployment.namespace());
        unless_gone(api.replace_status(deployment.name(), &PostParams::default(), deployment).await)?;
        Ok(())
    }
}
