//! Runs pods until enough of them have succeeded. Answers to upstream's `job-controller`.
//!
//! Every pod carries a finalizer until its end is counted in the Job's status, so that none is counted twice or never.

mod account;
mod decide;
mod failure;
mod indexes;
#[cfg(test)]
mod model;
mod surplus;
mod template;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use orlop_client::{EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};
use parking_lot::Mutex;
use serde_json::json;

use crate::claim::claim_all_finalized;
use crate::error::{Error, is_not_found};
use crate::expectations::Expectations;
use crate::objects::{BY_CONTROLLER, Meta, claimable, index_by_controller, is_ready, selects};
use crate::pod_control::{PodControl, slow_start};
use crate::shell::Shell;
use account::Outcome;
pub(crate) use decide::is_finished;
use decide::{Action, FINALIZER, Look, is_managed_elsewhere, is_tracked};
use failure::Backoff;

/// Pods of one Job tend to change together: their changes are looked at together.
const BATCH: Duration = Duration::from_millis(100);

/// What the controller did that its cache does not show yet. Cheap to clone.
#[derive(Clone, Default)]
struct Ahead {
    pods: Expectations,
    /// Pods whose finalizer was taken away.
    freed: Arc<Mutex<HashMap<ObjectKey, HashSet<String>>>>,
}

impl Ahead {
    fn free_observed(&self, key: &ObjectKey, uid: &str) {
        if let Some(uids) = self.freed.lock().get_mut(key) {
            uids.remove(uid);
        }
    }

    fn forget(&self, key: &ObjectKey) {
        self.pods.forget(key);
        self.freed.lock().remove(key);
    }
}

struct Controller {
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    ahead: Ahead,
    control: PodControl,
    backoffs: Mutex<HashMap<ObjectKey, Backoff>>,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        jobs: shell.informers.informer(),
        pods: shell.informers.informer(),
        ahead: Ahead::default(),
        control: PodControl { client: shell.client, recorder: shell.recorder },
        backoffs: Mutex::default(),
    };
    index_by_controller(&controller.pods);
    controller.jobs.synced().await;
    controller.pods.synced().await;
    let watch = Arc::new(Watch {
        jobs: controller.jobs.clone(),
        pods: controller.pods.clone(),
        ahead: controller.ahead.clone(),
        queue: WorkQueue::named("job"),
        orphans: WorkQueue::named("job_orphan_pod"),
    });
    let (of_jobs, of_pods) = (watch.clone(), watch.clone());
    controller.jobs.subscribe(move |event| of_jobs.job(event));
    controller.pods.subscribe(move |event| of_pods.pod(event));
    let (queue, orphans) = (watch.queue.clone(), watch.orphans.clone());
    tokio::join!(
        run_workers("job-controller", queue, 5, shell.shutdown.clone(), |key| controller.sync(key)),
        run_workers("job-controller", orphans, 1, shell.shutdown, |key| controller.free_orphan(key)),
    );
    Ok(())
}

/// Finds the Job that a change concerns.
struct Watch {
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    ahead: Ahead,
    queue: WorkQueue<ObjectKey>,
    /// Pods that keep a finalizer though no Job will count them.
    orphans: WorkQueue<ObjectKey>,
}

impl Watch {
    fn owner(&self, pod: &Pod) -> Option<Arc<Job>> {
        let owner = pod.controller().filter(|owner| owner.kind == "Job")?;
        self.jobs.get(pod.namespace(), &owner.name).filter(|job| job.uid() == owner.uid)
    }

    fn job(&self, event: &InformerEvent<Job>) {
        let job = event.object();
        let key = ObjectKey::of(&job.metadata);
        match event {
            // Mostly an echo of the status that was just written.
            InformerEvent::Updated { old, .. } if old.generation() == job.generation() => {
                self.queue.add_after(key, BATCH);
            }
            _ => self.queue.add(key),
        }
        if is_finished(job) || matches!(event, InformerEvent::Deleted(_)) {
            for pod in self.pods.by_index(BY_CONTROLLER, job.uid()).iter().filter(|pod| is_tracked(pod)) {
                self.orphans.add(ObjectKey::of(&pod.metadata));
            }
        }
    }

    fn pod(&self, event: &InformerEvent<Pod>) {
        let pod = event.object();
        let gone = matches!(event, InformerEvent::Deleted(_));
        if let InformerEvent::Updated { old, .. } = event
            && old.controller().map(|owner| &owner.uid) != pod.controller().map(|owner| &owner.uid)
            && let Some(former) = self.owner(old)
        {
            let key = ObjectKey::of(&former.metadata);
            self.ahead.free_observed(&key, pod.uid());
            self.queue.add_after(key, BATCH);
        }
        let Some(job) = self.owner(pod) else {
            if is_tracked(pod) && pod.controller().is_none_or(|owner| owner.kind == "Job") {
                self.orphans.add(ObjectKey::of(&pod.metadata));
            }
            if pod.controller().is_none() && !gone {
                self.adoptable(event);
            }
            return;
        };
        let key = ObjectKey::of(&job.metadata);
        if matches!(event, InformerEvent::Added(_)) {
            self.ahead.pods.creation_observed(&key);
        }
        if pod.deleting() || gone {
            self.ahead.pods.deletion_observed(&key, pod.uid());
        }
        if gone || !is_tracked(pod) {
            self.ahead.free_observed(&key, pod.uid());
        } else if is_finished(&job) {
            self.orphans.add(ObjectKey::of(&pod.metadata));
        }
        self.queue.add_after(key, BATCH);
    }

    /// Wakes the Jobs that may adopt a pod nobody controls.
    fn adoptable(&self, event: &InformerEvent<Pod>) {
        let pod = event.object();
        if matches!(event, InformerEvent::Updated { old, .. }
            if old.metadata.labels == pod.metadata.labels && old.controller().is_none())
        {
            return;
        }
        for job in self.jobs.list_namespace(pod.namespace()) {
            let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            if selector.is_some_and(|selector| selects(selector, &pod.metadata)) {
                self.queue.add_after(ObjectKey::of(&job.metadata), BATCH);
            }
        }
    }
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(job) = self.jobs.get_key(&key) else {
            self.ahead.forget(&key);
            self.backoffs.lock().remove(&key);
            return Ok(None);
        };
        if is_managed_elsewhere(&job) {
            return Ok(None);
        }
        if is_finished(&job) {
            self.backoffs.lock().remove(&key);
            return Ok(None);
        }
        let Some(spec) = &job.spec else { return Ok(None) };
        if spec.completion_mode.as_deref().is_some_and(|mode| mode != "Indexed" && mode != "NonIndexed") {
            let text = "Skipped Job sync because completion mode is unknown";
            self.control.recorder.event(&*job, EventType::Warning, "UnknownCompletionMode", text);
            return Ok(None);
        }
        let settled = self.ahead.pods.satisfied(&key);
        let candidates = claimable(&self.pods, &job.metadata);
        let selector = spec.selector.clone().unwrap_or_default();
        let client = &self.control.client;
        let pods =
            claim_all_finalized(client, &*job, &selector, candidates, |_| true, Some(FINALIZER)).await?;
        let freed = self.ahead.freed.lock().get(&key).cloned().unwrap_or_default();
        let backoff = self.backoffs.lock().get(&key).copied().unwrap_or_default();
        let look = Look::at((*job).clone(), pods, freed, backoff, Timestamp::now());
        let action = look.action(settled);
        let (outcome, failure) = self.act(&key, &job, &look, &action).await;
        let (backoff, deadline) = (look.backoff, look.again);
        let account = look.account(&action, outcome, settled);
        self.settle(&key, account, backoff).await?;
        failure.map_or(Ok(()), Err)?;
        let wait = match action {
            Action::Wait(wait) => Some(wait),
            _ => None,
        };
        Ok(wait.into_iter().chain(deadline).min())
    }

    /// Carries out what is to be done about the pods. What did not succeed comes back as the error.
    async fn act(
        &self,
        key: &ObjectKey,
        job: &Job,
        look: &Look,
        action: &Action,
    ) -> (Outcome, Option<Error>) {
        let expect_gone = |pods: &[Arc<Pod>]| {
            self.ahead.pods.expect_deletions(key, pods.iter().map(|pod| pod.uid().to_owned()))
        };
        match action {
            Action::Nothing | Action::Wait(_) => (Outcome::default(), None),
            // Nothing is expected of these: an expectation that is open for one of them must stay open.
            Action::End(pods) => self.delete(job, pods, |_| ()).await,
            Action::Remove(pods) => {
                expect_gone(pods);
                let freed = self.free(None, pods).await;
                let (free, stuck): (Vec<_>, Vec<_>) =
                    pods.iter().cloned().partition(|pod| freed.0.contains(pod.uid()));
                stuck.iter().for_each(|pod| self.ahead.pods.deletion_observed(key, pod.uid()));
                let unseen = |pod: &Pod| self.ahead.pods.deletion_observed(key, pod.uid());
                let (outcome, failure) = self.delete(job, &free, unseen).await;
                (outcome, freed.1.or(failure))
            }
            Action::Create(count) => self.create(key, job, *count, |_| look.pod(None)).await,
            Action::CreateIndexes(indexes) => {
                let pod = |position: usize| look.pod(indexes.get(position).copied());
                self.create(key, job, indexes.len(), pod).await
            }
        }
    }

    async fn create(
        &self,
        key: &ObjectKey,
        job: &Job,
        count: usize,
        pod: impl Fn(usize) -> Pod,
    ) -> (Outcome, Option<Error>) {
        self.ahead.pods.expect_creations(key, count);
        let (created, skipped, failures) = slow_start(count, |position| {
            let pod = pod(position);
            async move {
                let created = self.control.create(job, &pod).await;
                if !matches!(created, Ok(true)) {
                    self.ahead.pods.creation_observed(key);
                }
                created
            }
        })
        .await;
        (0..skipped).for_each(|_| self.ahead.pods.creation_observed(key));
        let created = i32::try_from(created).unwrap_or(i32::MAX);
        (Outcome { created, ..Outcome::default() }, failures.into_iter().next())
    }

    /// `unseen` hears of each pod whose deletion no event will tell.
    async fn delete(&self, job: &Job, pods: &[Arc<Pod>], unseen: impl Fn(&Pod)) -> (Outcome, Option<Error>) {
        let unseen = &unseen;
        let deletions = pods.iter().map(|pod| async move {
            let deleted = self.control.delete(job, pod.name()).await;
            if !matches!(deleted, Ok(true)) {
                unseen(pod);
            }
            deleted.map(|_| is_ready(pod))
        });
        let (mut outcome, mut failure) = (Outcome::default(), None);
        for deleted in join_all(deletions).await {
            match deleted {
                Ok(ready) => {
                    outcome.removed += 1;
                    outcome.removed_ready += i32::from(ready);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        (outcome, failure)
    }

    /// Takes the finalizer off pods and returns the uids of those that have none any more. With a Job's key, it is
    /// remembered until the cache shows it.
    async fn free(&self, key: Option<&ObjectKey>, pods: &[Arc<Pod>]) -> (HashSet<String>, Option<Error>) {
        if let Some(key) = key {
            let mut freed = self.ahead.freed.lock();
            freed.entry(key.clone()).or_default().extend(pods.iter().map(|pod| pod.uid().to_owned()));
        }
        let body = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        let patches = pods.iter().map(|pod| async {
            if !is_tracked(pod) {
                return Ok(pod.uid().to_owned());
            }
            let api = Api::<Pod>::namespaced(self.control.client.clone(), pod.namespace());
            let freed = api.patch(pod.name(), &PatchParams::default(), &Patch::Strategic(&body)).await;
            if let (Err(_), Some(key)) = (&freed, key) {
                self.ahead.free_observed(key, pod.uid());
            }
            match freed {
                Err(error) if !is_not_found(&error) => Err(error),
                _ => Ok(pod.uid().to_owned()),
            }
        });
        let (mut freed, mut failure) = (HashSet::new(), None);
        for result in join_all(patches).await {
            match result {
                Ok(uid) => _ = freed.insert(uid),
                Err(error) => failure = failure.or(Some(Error::from(error))),
            }
        }
        (freed, failure)
    }

    /// Writes the uids, takes the finalizers, writes the numbers.
    async fn settle(
        &self,
        key: &ObjectKey,
        mut account: account::Account,
        backoff: Backoff,
    ) -> Result<(), Error> {
        if account.changed {
            account.job = self.write_status(&account.job).await?;
            self.backoffs.lock().insert(key.clone(), backoff);
            if let Some((reason, message)) = account.told {
                self.control.recorder.event(&account.job, EventType::Normal, reason, message);
            }
        }
        let to_free = std::mem::take(&mut account.to_free);
        let (freed, failure) = self.free(Some(key), &to_free).await;
        let counted = account.count(&freed);
        if let Some(failure) = failure {
            if counted {
                self.write_status(&account.job).await?;
            }
            return Err(failure);
        }
        let end = account.finish().cloned();
        if counted || end.is_some() {
            self.write_status(&account.job).await?;
        }
        let Some(end) = end else { return Ok(()) };
        let recorder = &self.control.recorder;
        if end.type_ == "Complete" {
            let spec = account.job.spec.as_ref();
            let succeeded = account.job.status.as_ref().and_then(|status| status.succeeded).unwrap_or(0);
            if spec.and_then(|spec| spec.completions).is_some_and(|completions| succeeded > completions) {
                let text = "Too many succeeded pods running after completion count reached";
                recorder.event(&account.job, EventType::Warning, "TooManySucceededPods", text);
            }
            recorder.event(&account.job, EventType::Normal, "Completed", "Job completed");
        } else {
            let (reason, message) = (end.reason.unwrap_or_default(), end.message.unwrap_or_default());
            recorder.event(&account.job, EventType::Warning, &reason, message);
        }
        Ok(())
    }

    async fn write_status(&self, job: &Job) -> Result<Job, Error> {
        let api = Api::<Job>::namespaced(self.control.client.clone(), job.namespace());
        Ok(api.replace_status(job.name(), &PostParams::default(), job).await?)
    }

    /// Frees a pod that no Job will count: its Job is gone, finished, or was never there.
    async fn free_orphan(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.pods.get_key(&key).filter(|pod| is_tracked(pod)) else { return Ok(None) };
        if let Some(owner) = pod.controller() {
            if owner.kind != "Job" || owner.api_version != "batch/v1" {
                return Ok(None);
            }
            let job = self.jobs.get(&key.namespace, &owner.name).filter(|job| job.uid() == owner.uid);
            if job.is_some_and(|job| is_managed_elsewhere(&job) || !is_finished(&job)) {
                return Ok(None);
            }
        }
        self.free(None, &[pod]).await.1.map_or(Ok(None), Err)
    }
}
