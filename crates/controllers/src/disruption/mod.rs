//! Tells how many pods of each PodDisruptionBudget may be evicted, and takes back announcements of evictions that never
//! came. Answers to upstream's `disruption-controller`. The eviction itself, and `unhealthyPodEvictionPolicy`, are the
//! API server's.

mod decide;
mod scale;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use kube::api::{Api, Patch, PatchParams, PostParams};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;

use crate::error::{Error, is_conflict, unless_gone};
use crate::labels;
use crate::objects::Meta;
use crate::shell::Shell;
use decide::{Demand, covers, demand, failed, findings, needs_scale, print_selector, stale_announcement};
use scale::Scales;

struct Controller {
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    scales: Scales,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        budgets: shell.informers.informer(),
        pods: shell.informers.informer(),
        scales: Scales {
            controllers: shell.informers.informer(),
            sets: shell.informers.informer(),
            deployments: shell.informers.informer(),
            stateful_sets: shell.informers.informer(),
            client: shell.client.clone(),
            kinds: Mutex::default(),
        },
        client: shell.client,
        recorder: shell.recorder,
    };
    controller.budgets.synced().await;
    controller.pods.synced().await;
    controller.scales.controllers.synced().await;
    controller.scales.sets.synced().await;
    controller.scales.deployments.synced().await;
    controller.scales.stateful_sets.synced().await;
    let (queue, announced) = (WorkQueue::named("disruption"), WorkQueue::named("stale_pod_disruption"));
    let own = queue.clone();
    controller.budgets.subscribe(move |event| own.add(ObjectKey::of(&event.object().metadata)));
    labels::index(&controller.pods);
    queue_for_pods(&controller, &queue, &announced);
    let controller = &controller;
    tokio::join!(
        run_workers("disruption-controller", queue, 1, shell.shutdown.clone(), |key| controller.sync(key)),
        run_workers("disruption-controller", announced, 1, shell.shutdown, |key| controller.take_back(key)),
    );
    Ok(())
}

fn queue_for_pods(controller: &Controller, queue: &WorkQueue<ObjectKey>, announced: &WorkQueue<ObjectKey>) {
    let (budgets, recorder) = (controller.budgets.clone(), controller.recorder.clone());
    let (queue, announced) = (queue.clone(), announced.clone());
    controller.pods.subscribe(move |event| {
        let pod = event.object();
        let old = match event {
            InformerEvent::Updated { old, .. } => Some(old),
            _ => None,
        };
        let relabelled = old.is_none_or(|old| old.metadata.labels != pod.metadata.labels);
        let all = budgets.list_namespace(pod.namespace());
        let mut covering = Vec::new();
        for budget in &all {
            let covered = covers(budget, pod);
            if covered {
                covering.push(budget.name());
            }
            if covered || relabelled && old.is_some_and(|old| covers(budget, old)) {
                queue.add(ObjectKey::of(&budget.metadata));
            }
        }
        if let [first, _, ..] = covering[..]
            && relabelled
            && !matches!(event, InformerEvent::Deleted(_))
        {
            let text = format!(
                "Pod \"{}\"/\"{}\" matches multiple PodDisruptionBudgets.  Chose \"{first}\" arbitrarily.",
                pod.namespace(),
                pod.name()
            );
            recorder.event(&**pod, EventType::Warning, "MultiplePodDisruptionBudgets", text);
        }
        if !matches!(event, InformerEvent::Deleted(_))
            && let Some(wait) = stale_announcement(pod, Timestamp::now())
        {
            announced.add_after(ObjectKey::of(&pod.metadata), wait);
        }
    });
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(budget) = self.budgets.get_key(&key) else { return Ok(None) };
        let Some(spec) = &budget.spec else { return Ok(None) };
        let labels = spec.selector.as_ref().and_then(|selector| selector.match_labels.as_ref());
        let mut pods = match labels.filter(|labels| !labels.is_empty()) {
            Some(labels) => labels::with_labels(&self.pods, &key.namespace, labels),
            None => self.pods.list_namespace(&key.namespace),
        };
        pods.retain(|pod| covers(&budget, pod));
        match self.look(&budget, spec, &pods).await {
            Err(Error::Api(error)) if is_conflict(&error) => Err(error.into()),
            // Better no eviction than one too many; the next change of a pod tries again.
            Err(error) => {
                if let Some(status) = failed(&budget, error.to_string(), Timestamp::now()) {
                    self.write_status(&budget, status).await?;
                }
                Ok(None)
            }
            done => done,
        }
    }

    async fn look(
        &self,
        budget: &PodDisruptionBudget,
        spec: &PodDisruptionBudgetSpec,
        pods: &[Arc<Pod>],
    ) -> Result<Option<Duration>, Error> {
        if pods.is_empty() {
            self.recorder.event(budget, EventType::Normal, "NoPods", "No matching pods found");
        }
        let demand = self.demand(budget, spec, pods).await.inspect_err(|error| {
            let text = format!("Failed to calculate the number of expected pods: {error}");
            self.recorder.event(budget, EventType::Warning, "CalculateExpectedPodCountFailed", text);
        })?;
        let found = findings(budget, pods, demand, Timestamp::now());
        for pod in &found.overdue {
            // The namespace in place of the name is upstream's.
            let namespace = budget.namespace();
            let text = format!("Pod was expected by PDB {namespace}/{namespace} to be deleted but it wasn't");
            self.recorder.event(&**pod, EventType::Warning, "NotDeleted", text);
        }
        if let Some(status) = found.status {
            self.write_status(budget, status).await?;
        }
        Ok(found.again)
    }

    async fn demand(
        &self,
        budget: &PodDisruptionBudget,
        spec: &PodDisruptionBudgetSpec,
        pods: &[Arc<Pod>],
    ) -> Result<Demand, Error> {
        let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
        if !needs_scale(spec) {
            return Ok(demand(spec, count, 0));
        }
        let (scale, unmanaged) = self.scales.of(pods).await?;
        if !unmanaged.is_empty() {
            let text = format!(
                "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                print_selector(spec.selector.as_ref())
            );
            self.recorder.event(budget, EventType::Warning, "UnmanagedPods", text);
        }
        Ok(demand(spec, count, scale))
    }

    async fn write_status(
        &self,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result<(), Error> {
        let changed = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        let api = Api::<PodDisruptionBudget>::namespaced(self.client.clone(), budget.namespace());
        Ok(unless_gone(api.replace_status(budget.name(), &PostParams::default(), &changed).await)?)
    }

    /// A pod whose eviction was announced and never came says so no more.
    async fn take_back(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.pods.get_key(&key) else { return Ok(None) };
        match stale_announcement(&pod, Timestamp::now()) {
            None => Ok(None),
            Some(wait) if !wait.is_zero() => Ok(Some(wait)),
            Some(_) => {
                let condition = json!({"type": "DisruptionTarget", "status": "False", "reason": null, "message": null,
                    "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
                let body = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
                let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
                let params = PatchParams::default();
                unless_gone(api.patch_status(&key.name, &params, &Patch::Strategic(body)).await)?;
                Ok(None)
            }
        }
    }
}
