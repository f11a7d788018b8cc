//! Random lives of Jobs, with a cache that lags, writes that fail at any point, pods that end or are deleted.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::indexes::{Indexes, index_of};
use super::*;
use crate::objects::testing::{at, object};
use crate::objects::{is_active, phase};

#[derive(Clone)]
enum Change {
    Put(Box<Pod>),
    Gone(String),
}

struct World {
    rng: StdRng,
    now: Timestamp,
    job: Job,
    /// What there is.
    pods: BTreeMap<String, Pod>,
    /// What the controller's cache shows, and what it does not show yet.
    cache: BTreeMap<String, Pod>,
    late: Vec<Change>,
    ahead: Ahead,
    backoff: Backoff,
    created: usize,
    /// Pods that were removed before they ended: they never count.
    dismissed: usize,
    /// Pods that were removed when they had ended or been deleted, though the cache did not show it: they count once or
    /// never.
    doubtful: usize,
}

fn key() -> ObjectKey {
    ObjectKey::new("a", "work")
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let indexed = rng.random_bool(0.5);
        let mut spec = json!({"parallelism": rng.random_range(1..5), "completions": rng.random_range(0..9),
            "completionMode": if indexed { "Indexed" } else { "NonIndexed" }, "backoffLimit": rng.random_range(0..12),
            "podReplacementPolicy": if rng.random_bool(0.5) { "Failed" } else { "TerminatingOrFailed" },
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}});
        if indexed && rng.random_bool(0.5) {
            spec["backoffLimitPerIndex"] = json!(rng.random_range(0..3));
        }
        let job = object(json!({"metadata": {"name": "work", "namespace": "a", "uid": "j"}, "spec": spec}));
        Self {
            rng,
            now: at("2026-01-01T00:00:00Z"),
            job,
            pods: BTreeMap::new(),
            cache: BTreeMap::new(),
            late: Vec::new(),
            ahead: Ahead::default(),
            backoff: Backoff::default(),
            created: 0,
            dismissed: 0,
            doubtful: 0,
        }
    }

    fn status(&self) -> k8s_openapi::api::batch::v1::JobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    fn put(&mut self, pod: Pod) {
        let name = pod.name().to_owned();
        let ended = is_finished_pod(&pod);
        let change = if pod.deleting() && ended && !is_tracked(&pod) {
            self.pods.remove(&name);
            Change::Gone(name)
        } else {
            self.pods.insert(name, pod.clone());
            Change::Put(Box::new(pod))
        };
        self.late.push(change);
    }

    fn deliver(&mut self, count: usize) {
        for change in self.late.drain(..count).collect::<Vec<_>>() {
            match change {
                Change::Put(pod) => {
                    if self.cache.insert(pod.name().to_owned(), (*pod).clone()).is_none() {
                        self.ahead.pods.creation_observed(&key());
                    }
                    if pod.deleting() {
                        self.ahead.pods.deletion_observed(&key(), pod.uid());
                    }
                    if !is_tracked(&pod) {
                        self.ahead.free_observed(&key(), pod.uid());
                    }
                }
                Change::Gone(name) => {
                    self.cache.remove(&name);
                    self.ahead.pods.deletion_observed(&key(), &name);
                    self.ahead.free_observed(&key(), &name);
                }
            }
        }
    }

    fn delete(&mut self, name: &str) {
        let Some(mut pod) = self.pods.get(name).cloned() else { return };
        pod.metadata.deletion_timestamp.get_or_insert(Time(self.now));
        self.put(pod);
    }

    fn free(&mut self, name: &str) {
        let Some(mut pod) = self.pods.get(name).cloned() else { return };
        pod.metadata.finalizers = None;
        self.put(pod);
    }

    /// A kubelet or a user does something.
    fn happen(&mut self) {
        self.now += SignedDuration::from_secs(self.rng.random_range(0..40));
        let names: Vec<_> = self.pods.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let name = names[self.rng.random_range(0..names.len())].clone();
        let mut pod = self.pods[&name].clone();
        if is_finished_pod(&pod) {
            return;
        }
        let phase = match self.rng.random_range(0..10) {
            0 => return self.delete(&name),
            1..=3 => "Running",
            4..=5 => "Failed",
            // A pod that was taken for failed when its deletion began, and then succeeds all the same, fulfils its index
            // besides: it counts twice.
            _ if pod.deleting() => "Failed",
            _ => "Succeeded",
        };
        pod.status.get_or_insert_default().phase = Some(phase.to_owned());
        self.put(pod);
    }

    /// Whether a call gets through.
    fn works(&mut self) -> bool {
        self.rng.random_bool(0.93)
    }

    fn write(&mut self, job: &Job) -> bool {
        let works = self.works();
        if works {
            let known = |job: &Job| {
                let status = job.status.clone().unwrap_or_default();
                Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), 100)
            };
            let (before, after) = (known(&self.job), known(job));
            assert_eq!(before.union(&after), after, "a completed index stays completed");
            self.job = job.clone();
        }
        works
    }

    fn sync(&mut self) {
        let settled = self.ahead.pods.satisfied(&key());
        let pods: Vec<_> = self.cache.values().cloned().map(Arc::new).collect();
        let freed = self.ahead.freed.lock().get(&key()).cloned().unwrap_or_default();
        let look = Look::at(self.job.clone(), pods, freed, self.backoff, self.now);
        let action = look.action(settled);
        let outcome = self.act(&look, &action);
        let backoff = look.backoff;
        let mut account = look.account(&action, outcome, settled);
        if account.changed {
            if !self.write(&account.job) {
                return;
            }
            self.backoff = backoff;
        }
        let mut freed = HashSet::new();
        for pod in account.to_free.clone() {
            if self.works() {
                self.ahead.freed.lock().entry(key()).or_default().insert(pod.uid().to_owned());
                self.free(pod.name());
                freed.insert(pod.uid().to_owned());
            }
        }
        let counted = account.count(&freed);
        if freed.len() < account.to_free.len() {
            if counted {
                self.write(&account.job);
            }
            return;
        }
        if account.finish().is_some() || counted {
            self.write(&account.job);
        }
    }

    fn act(&mut self, look: &Look, action: &Action) -> Outcome {
        let mut outcome = Outcome::default();
        let pods: Vec<_> = match action {
            Action::Nothing | Action::Wait(_) => return outcome,
            Action::Create(count) => (0..*count).map(|_| look.pod(None)).collect(),
            Action::CreateIndexes(indexes) => indexes.iter().map(|index| look.pod(Some(*index))).collect(),
            Action::End(pods) | Action::Remove(pods) => {
                let dismiss = matches!(action, Action::Remove(_));
                if dismiss {
                    self.ahead.pods.expect_deletions(&key(), pods.iter().map(|pod| pod.uid().to_owned()));
                }
                for pod in pods {
                    if self.works() {
                        if dismiss {
                            match self.pods.get(pod.name()) {
                                Some(pod) if is_active(pod) => self.dismissed += 1,
                                _ => self.doubtful += 1,
                            }
                            self.free(pod.name());
                        }
                        self.delete(pod.name());
                        outcome.removed += 1;
                        outcome.removed_ready += i32::from(is_ready(pod));
                    } else if dismiss {
                        self.ahead.pods.deletion_observed(&key(), pod.uid());
                    }
                }
                return outcome;
            }
        };
        self.ahead.pods.expect_creations(&key(), pods.len());
        for mut pod in pods {
            if !self.works() {
                self.ahead.pods.creation_observed(&key());
                continue;
            }
            let name = format!("p{:04}", self.created);
            self.created += 1;
            outcome.created += 1;
            pod.metadata.name = Some(name.clone());
            pod.metadata.namespace = Some("a".to_owned());
            pod.metadata.uid = Some(name);
            pod.metadata.creation_timestamp = Some(Time(self.now));
            pod.status = Some(object(json!({"phase": "Pending"})));
            self.put(pod);
        }
        let parallelism = self.job.spec.as_ref().unwrap().parallelism.unwrap();
        let active: Vec<_> = self.pods.values().filter(|pod| is_active(pod)).collect();
        assert!(active.len() <= usize::try_from(parallelism).unwrap(), "more active pods than parallelism");
        let indexes: HashSet<_> = active.iter().filter_map(|pod| index_of(pod)).collect();
        assert!(indexes.is_empty() || indexes.len() == active.len(), "an index runs twice");
        outcome
    }

    fn toggle_suspension(&mut self) {
        let spec = self.job.spec.as_mut().unwrap();
        spec.suspend = Some(spec.suspend != Some(true));
    }
}

fn is_finished_pod(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

fn live(seed: u64) {
    let mut world = World::new(seed);
    for step in 0..3000 {
        if is_finished(&world.job) {
            break;
        }
        match world.rng.random_range(0..20) {
            // Later it is left in peace, so that it can end.
            0 if step < 300 => world.toggle_suspension(),
            0..=8 => world.happen(),
            9..=13 => {
                let count = world.rng.random_range(0..=world.late.len());
                world.deliver(count);
            }
            _ => world.sync(),
        }
        if step == 300 && world.job.spec.as_ref().unwrap().suspend == Some(true) {
            world.toggle_suspension();
        }
    }
    assert!(is_finished(&world.job), "seed {seed}: it never ends: {:#?}", world.status());
    let status = world.status();
    let spec = world.job.spec.clone().unwrap();
    assert!(world.pods.values().all(|pod| !is_active(pod)), "seed {seed}: pods outlive their Job");
    let counted = status.succeeded.unwrap_or(0) + status.failed.unwrap_or(0);
    let most = world.created - world.dismissed;
    let counted = usize::try_from(counted).unwrap();
    let once = (most - world.doubtful..=most).contains(&counted);
    assert!(once, "seed {seed}: {counted} counted of {most}, {} doubtful: {status:#?}", world.doubtful);
    if decide::condition(&world.job, "Complete").is_some() {
        assert_eq!(status.succeeded.unwrap_or(0), spec.completions.unwrap(), "seed {seed}");
        assert!(status.completion_time.is_some());
    }
    let left = status.uncounted_terminated_pods.unwrap();
    assert!(left.succeeded.is_none() && left.failed.is_none(), "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn every_job_ends_and_every_pod_counts_once() {
    (0..400).for_each(live);
}
