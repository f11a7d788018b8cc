//! Starts Jobs at times of the clock. Answers to upstream's `cronjob-controller`.

mod decide;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::api::{Api, DeleteParams, PostParams};
use orlop_client::{EventRecorder, EventType, Informer, InformerEvent, ObjectKey, WorkQueue, run_workers};

use crate::error::{Error, is_already_exists, is_namespace_terminating, message};
use crate::objects::{BY_CONTROLLER, Meta, index_by_controller};
use crate::shell::Shell;
use decide::{Next, Told};

struct Controller {
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    client: kube::Client,
    recorder: EventRecorder,
}

pub(crate) async fn run(shell: Shell) -> Result<(), Error> {
    let controller = Controller {
        crons: shell.informers.informer(),
        jobs: shell.informers.informer(),
        client: shell.client,
        recorder: shell.recorder,
    };
    index_by_controller(&controller.jobs);
    controller.crons.synced().await;
    controller.jobs.synced().await;
    let queue = WorkQueue::named("cronjob");
    let (own, recorder) = (queue.clone(), controller.recorder.clone());
    controller.crons.subscribe(move |event| {
        let key = ObjectKey::of(&event.object().metadata);
        match event {
            InformerEvent::Updated { old, new } if !decide::same_schedule(old, new) => {
                match decide::after_change(new, Timestamp::now()) {
                    Ok(wait) => own.add_after(key, wait.unwrap_or_default()),
                    Err(told) => recorder.event(&**new, EventType::Warning, told.reason, told.message),
                }
            }
            _ => own.add(key),
        }
    });
    let (own, crons) = (queue.clone(), controller.crons.clone());
    controller.jobs.subscribe(move |event| {
        let wake = |job: &Job| {
            let Some(owner) = job.controller().filter(|owner| owner.kind == "CronJob") else { return };
            if let Some(cron) = crons.get(job.namespace(), &owner.name).filter(|cron| cron.uid() == owner.uid)
            {
                own.add(ObjectKey::of(&cron.metadata));
            }
        };
        if let InformerEvent::Updated { old, new } = event
            && old.controller() != new.controller()
        {
            wake(old);
        }
        wake(event.object());
    });
    run_workers("cronjob-controller", queue, 5, shell.shutdown, |key| controller.sync(key)).await;
    Ok(())
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(cached) = self.crons.get_key(&key) else { return Ok(None) };
        let mut cron = (*cached).clone();
        let jobs = self.jobs.by_index(BY_CONTROLLER, cached.uid());
        let mut changed = self.clean_up(&mut cron, &jobs).await;
        let (result, written) = self.reconcile(&mut cron, &jobs, Timestamp::now()).await;
        changed |= written;
        if changed {
            let api = Api::<CronJob>::namespaced(self.client.clone(), &key.namespace);
            api.replace_status(&key.name, &PostParams::default(), &cron).await?;
        }
        result
    }

    /// Returns what to do next, and whether the status changed, whatever became of the rest.
    async fn reconcile(
        &self,
        cron: &mut CronJob,
        jobs: &[Arc<Job>],
        now: Timestamp,
    ) -> (Result<Option<Duration>, Error>, bool) {
        let mut told = Vec::new();
        let mut changed = decide::take_note(cron, jobs, &mut told);
        self.tell(cron, told);
        if let Err(error) = self.check_list(cron, jobs, &mut changed).await {
            return (Err(error), changed);
        }
        let mut told = Vec::new();
        let next = decide::next(cron, now, &mut told);
        self.tell(cron, told);
        let result = match next {
            Next::Nothing => Ok(None),
            Next::Wait(wait) => Ok(Some(wait)),
            Next::Start(at, again) => self.start(cron, at, &mut changed).await.map(|()| again),
        };
        (result, changed)
    }

    fn tell(&self, cron: &CronJob, told: Vec<Told>) {
        for told in told {
            let kind = if told.warning { EventType::Warning } else { EventType::Normal };
            self.recorder.event(cron, kind, told.reason, told.message);
        }
    }

    fn jobs_of(&self, cron: &CronJob) -> Api<Job> {
        Api::namespaced(self.client.clone(), cron.namespace())
    }

    /// The list of active Jobs against those there are: the caches of the two kinds need not be equally new.
    async fn check_list(
        &self,
        cron: &mut CronJob,
        jobs: &[Arc<Job>],
        changed: &mut bool,
    ) -> Result<(), Error> {
        let unknown =
            |cron: &CronJob, job: &Job| decide::end_of(job).is_none() && !decide::is_listed(cron, job.uid());
        for job in jobs {
            if !unknown(cron, job) {
                continue;
            }
            let api = Api::<CronJob>::namespaced(self.client.clone(), cron.namespace());
            let live = api.get(cron.name()).await?;
            if decide::is_listed(&live, job.uid()) {
                *cron = live;
                continue;
            }
            let text = format!("Saw a job that the controller did not create or forgot: {}", job.name());
            self.recorder.event(cron, EventType::Warning, "UnexpectedJob", text);
        }
        let active = cron.status.as_ref().and_then(|status| status.active.clone()).unwrap_or_default();
        for reference in active {
            let (uid, name) = (reference.uid.unwrap_or_default(), reference.name.unwrap_or_default());
            if jobs.iter().any(|job| job.uid() == uid) {
                continue;
            }
            if self.jobs_of(cron).get_opt(&name).await?.is_none() {
                let text = format!("Active job went missing: {name}");
                self.recorder.event(cron, EventType::Normal, "MissingJob", text);
                *changed |= decide::unlist(cron, &uid);
            }
        }
        Ok(())
    }

    async fn start(&self, cron: &mut CronJob, at: Timestamp, changed: &mut bool) -> Result<(), Error> {
        if cron.spec.concurrency_policy.as_deref() == Some("Replace") {
            let active = cron.status.as_ref().and_then(|status| status.active.clone()).unwrap_or_default();
            for reference in active {
                let name = reference.name.unwrap_or_default();
                let job = match self.jobs_of(cron).get(&name).await {
                    Ok(job) => job,
                    Err(error) => {
                        let text = format!("Get job: {}", message(&error));
                        self.recorder.event(cron, EventType::Warning, "FailedGet", text);
                        return Err(error.into());
                    }
                };
                self.remove(cron, &job).await?;
                *changed = true;
            }
        }
        let wanted = decide::job_at(cron, at);
        let job = match self.jobs_of(cron).create(&PostParams::default(), &wanted).await {
            Ok(job) => {
                let text = format!("Created job {}", job.name());
                self.recorder.event(cron, EventType::Normal, "SuccessfulCreate", text);
                job
            }
            Err(error) if is_namespace_terminating(&error) => return Err(error.into()),
            // Perhaps ours, from a sync whose status was not written.
            Err(error) if is_already_exists(&error) => {
                let job = self.jobs_of(cron).get(wanted.name()).await?;
                let ours = job.controller().is_some_and(|owner| owner.uid == cron.uid());
                if !ours || decide::is_listed(cron, job.uid()) {
                    return Ok(());
                }
                job
            }
            Err(error) => {
                let text = format!("Error creating job: {}", message(&error));
                self.recorder.event(cron, EventType::Warning, "FailedCreate", text);
                return Err(error.into());
            }
        };
        decide::list(cron, &job, at);
        *changed = true;
        Ok(())
    }

    /// Deletes the Jobs beyond the history limits; whether the status changed.
    async fn clean_up(&self, cron: &mut CronJob, jobs: &[Arc<Job>]) -> bool {
        let mut changed = false;
        for job in decide::history(&cron.spec, jobs).iter().filter(|job| !job.deleting()) {
            changed |= self.remove(cron, job).await.unwrap_or(false);
        }
        changed
    }

    async fn remove(&self, cron: &mut CronJob, job: &Job) -> Result<bool, Error> {
        if let Err(error) = self.jobs_of(cron).delete(job.name(), &DeleteParams::background()).await {
            let text = format!("Deleted job: {}", message(&error));
            self.recorder.event(cron, EventType::Warning, "FailedDelete", text);
            return Err(error.into());
        }
        let text = format!("Deleted job {}", job.name());
        self.recorder.event(cron, EventType::Normal, "SuccessfulDelete", text);
        Ok(decide::unlist(cron, job.uid()))
    }
}
