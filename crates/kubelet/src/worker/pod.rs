//! The life of one pod on the node: syncing, then terminating, then gone. The worker itself never waits for slow work;
//! that runs in a task of its own, so that status and deletion are served meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use orlop_client::EventType;
use orlop_cri::{ContainerState, CriError, PodSandboxState};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::kill::{grace_period, kill_pod, remove_pod};
use super::start::{Shared, Sync};
use super::{Handle, PodWorkers};
use crate::actions::{self, PodActions, ProbeViews};
use crate::admission;
use crate::backoff::Backoff;
use crate::context::Context;
use crate::images::go_duration;
use crate::logs::termination_message;
use crate::pod::PodExt;
use crate::runtime_status::{PodRuntimeStatus, container_name, time};
use crate::status::{PodFailure, StatusInput, generate};

/// A task that acts for the pod.
struct Acting {
    task: JoinHandle<Option<Duration>>,
    cancel: CancellationToken,
    /// For killing tasks: the grace period they go by.
    grace: Option<Duration>,
}

/// What a step leaves behind.
enum Step {
    /// Sleep until something happens, at most so long.
    Wait(Option<Duration>),
    /// Look again at once.
    Again,
    /// Nothing of the pod is left.
    Gone,
}

pub(super) struct Worker {
    context: Arc<Context>,
    handle: Arc<Handle>,
    workers: Arc<PodWorkers>,
    shared: Arc<Mutex<Shared>>,
    acting: Option<Acting>,
    /// When the last task wants another run.
    again_at: Option<Instant>,
    /// Termination messages by container id.
    messages: HashMap<String, String>,
    /// Back-offs that were told in an event, by container id.
    announced: HashSet<String>,
    registered: Option<Arc<Pod>>,
    failure: Option<PodFailure>,
    rejected: bool,
    /// The containers have ended for good, with the status they ended with.
    ended: Option<PodStatus>,
}

impl Worker {
    pub(super) fn new(context: Arc<Context>, handle: Arc<Handle>, workers: Arc<PodWorkers>) -> Self {
        let backoff =
            Backoff::new(context.options.initial_container_backoff, context.options.max_container_backoff);
        let shared = Shared {
            reasons: HashMap::new(),
            backoff,
            not_before: HashMap::new(),
            told: HashMap::new(),
            sandbox_failures: 0,
        };
        Self {
            context,
            handle,
            workers,
            shared: Arc::new(Mutex::new(shared)),
            acting: None,
            again_at: None,
            messages: HashMap::new(),
            announced: HashSet::new(),
            registered: None,
            failure: None,
            rejected: false,
            ended: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut failures = 0_u32;
        loop {
            let wait = match self.step().await {
                Ok(Step::Gone) => return,
                Ok(Step::Again) => {
                    failures = 0;
                    continue;
                }
                Ok(Step::Wait(wait)) => {
                    failures = 0;
                    wait
                }
                Err(error) => {
                    failures += 1;
                    let delay = Duration::from_millis(200 << failures.min(6)).min(Duration::from_secs(10));
                    warn!(pod = %self.handle.pod().described(), %error, ?delay, "the runtime did not answer for the pod; trying again");
                    Some(delay)
                }
            };
            let again = self.again_at.map(|at| at.saturating_duration_since(Instant::now()));
            let wait = [wait, again].into_iter().flatten().min();
            let timer = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            let finished = async {
                match &mut self.acting {
                    Some(acting) => (&mut acting.task).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.handle.wake.notified() => {}
                () = timer => {}
                outcome = finished => {
                    self.acting = None;
                    let again = match outcome {
                        Ok(again) => again,
                        Err(error) => {
                            warn!(pod = %self.handle.pod().described(), %error, "acting for the pod failed; trying again");
                            Some(Duration::from_secs(10))
                        }
                    };
                    self.again_at = again.map(|delay| Instant::now() + delay);
                }
            }
            if self.again_at.is_some_and(|at| at <= Instant::now()) {
                self.again_at = None;
            }
        }
    }

    async fn step(&mut self) -> Result<Step, CriError> {
        let pod = self.handle.pod();
        if self.handle.is_removed() {
            return self.removed(&pod).await;
        }
        if let Some(ended) = self.ended.clone() {
            // Only the object's end is waited for; a changed object may ask for the final delete.
            let status = PodStatus { observed_generation: pod.metadata.generation, ..ended };
            self.context.status.set(&pod, status, true);
            return Ok(Step::Wait(None));
        }
        let status = PodRuntimeStatus::read(&*self.context.runtime, pod.uid()).await?;
        self.read_messages(&status);
        if pod.is_deleted() || pod.is_terminal() || self.failure.is_some() {
            return self.terminate(&pod, status).await;
        }
        self.sync(&pod, status).await
    }

    async fn sync(&mut self, pod: &Arc<Pod>, status: PodRuntimeStatus) -> Result<Step, CriError> {
        if let Err(failure) = self.admit(pod, &status) {
            info!(pod = %pod.described(), reason = failure.reason, message = failure.message, "pod rejected");
            self.context.recorder.event(&**pod, EventType::Warning, &failure.reason, failure.message.clone());
            self.failure =
                Some(PodFailure { message: format!("Pod was rejected: {}", failure.message), ..failure });
            self.rejected = true;
            return Ok(Step::Again);
        }
        if !self.registered.as_ref().is_some_and(|known| Arc::ptr_eq(known, pod)) {
            self.context.volumes.sources.register(pod, &self.handle.wake);
            self.registered = Some(pod.clone());
        }
        let deadline = match deadline(pod, Timestamp::now()) {
            Some(left) if left.is_zero() => {
                let message = "Pod was active on the node longer than the specified deadline".to_owned();
                self.context.recorder.event(&**pod, EventType::Normal, "DeadlineExceeded", message.clone());
                self.failure = Some(PodFailure { reason: "DeadlineExceeded".to_owned(), message });
                return Ok(Step::Again);
            }
            left => left,
        };
        self.context.probes.update(pod, &status, self.context.host_ips(), &self.handle.wake);
        let views = self.context.probes.views(&status);
        let mut wait = deadline;
        let mut planned = None;
        if self.acting.is_none() {
            let mut actions = actions::compute(pod, &status, &views);
            wait = [wait, self.hold_back(pod, &status, &mut actions)].into_iter().flatten().min();
            if !actions.is_empty() {
                planned = Some(actions);
            }
        }
        let new = self.generate(pod, &status, &views, false);
        let over = matches!(new.phase.as_deref(), Some("Succeeded" | "Failed"));
        if over {
            self.context.status.set(pod, self.generate(pod, &status, &views, true), false);
            return self.terminate(pod, status).await;
        }
        self.context.status.set(pod, new, false);
        match planned {
            Some(actions) => self.act(pod, status, actions),
            None if self.acting.is_none() => {
                wait = [wait, self.keep_up(pod, &status).await].into_iter().flatten().min();
            }
            None => {}
        }
        Ok(Step::Wait(wait))
    }

    /// First sight of a pod: does it fit here? What has a sandbox was admitted by an earlier kubelet.
    fn admit(&self, pod: &Arc<Pod>, status: &PodRuntimeStatus) -> Result<(), PodFailure> {
        if self.handle.admitted.load(Ordering::Acquire) {
            return Ok(());
        }
        if status.sandboxes.is_empty()
            && let Some(node) = self.context.nodes.get("", &self.context.options.node_name)
        {
            let others = self.workers.admitted(pod.uid());
            admission::admit(pod, &node, others.iter().map(|p| &**p), &self.context.allocatable())?;
        }
        self.handle.admitted.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes out of `actions` what is under back-off and notes why. Returns how long the shortest wait is.
    fn hold_back(
        &mut self,
        pod: &Pod,
        status: &PodRuntimeStatus,
        actions: &mut PodActions,
    ) -> Option<Duration> {
        let now = Timestamp::now();
        let instant = Instant::now();
        let mut wait: Option<Duration> = None;
        let mut shared = self.shared.lock();
        if actions.create_sandbox
            && let Some(at) = shared.not_before.get("")
            && *at > instant
        {
            let left = *at - instant;
            *actions = PodActions { attempt: actions.attempt, ..PodActions::default() };
            return Some(left);
        }
        let killed: HashSet<&str> = actions.kill.iter().map(|kill| kill.name.as_str()).collect();
        let announced = &mut self.announced;
        let recorder = &self.context.recorder;
        let mut ready = |name: &str| {
            if let Some(at) = shared.not_before.get(name).filter(|at| **at > instant) {
                let left = *at - instant;
                wait = Some(wait.map_or(left, |known| known.min(left)));
                return false;
            }
            let Some(latest) = status.latest(name).filter(|s| s.container.state == ContainerState::Exited)
            else {
                return true;
            };
            if killed.contains(name) {
                return true;
            }
            let Some((delay, left)) = shared.backoff.waiting(name, time(latest.finished_at), now) else {
                // Not held back any more, unless what failed last was something else than the container itself.
                if shared.reasons.get(name).is_some_and(|(reason, _)| reason == "CrashLoopBackOff") {
                    shared.reasons.remove(name);
                }
                return true;
            };
            let message = format!(
                "back-off {} restarting failed container={name} pod={}",
                go_duration(delay),
                pod.described()
            );
            shared.reasons.insert(name.to_owned(), ("CrashLoopBackOff".to_owned(), message));
            if announced.insert(latest.container.id.clone())
                && let Some((sort, _)) = pod.find_container(name)
            {
                let message =
                    format!("Back-off restarting failed container {name} in pod {}", pod.described());
                recorder.event_for(
                    pod.container_reference(sort, name),
                    EventType::Warning,
                    "BackOff",
                    message,
                );
            }
            wait = Some(wait.map_or(left, |known| known.min(left)));
            false
        };
        if !actions.create_sandbox {
            let spec = pod.pod_spec();
            let ephemeral = pod.ephemeral_containers();
            actions.start_ephemeral.retain(|i| ephemeral.get(*i).is_some_and(|c| ready(&c.name)));
            actions.start_init.retain(|i| pod.init_containers().get(*i).is_some_and(|c| ready(&c.name)));
            actions.start.retain(|i| spec.containers.get(*i).is_some_and(|c| ready(&c.name)));
        }
        wait
    }

    fn act(&mut self, pod: &Arc<Pod>, status: PodRuntimeStatus, actions: PodActions) {
        debug!(pod = %pod.described(), ?actions, "acting");
        let cancel = CancellationToken::new();
        let sync = Sync {
            context: self.context.clone(),
            pod: pod.clone(),
            status,
            actions,
            shared: self.shared.clone(),
            workers: self.workers.clone(),
            cancel: cancel.clone(),
        };
        self.again_at = None;
        self.acting = Some(Acting { task: tokio::spawn(sync.run()), cancel, grace: None });
    }

    /// A settled pod: its volumes follow their objects, and old instances of its containers go.
    async fn keep_up(&self, pod: &Arc<Pod>, status: &PodRuntimeStatus) -> Option<Duration> {
        let mut wait = None;
        if status.ready_sandbox().is_some() {
            match self.context.volumes.set_up(pod, &self.context.fields(pod, status)).await {
                Ok(volumes) => {
                    let left = volumes.again_at.map(|at| at.duration_since(Timestamp::now()));
                    wait = left
                        .map(|left| Duration::try_from(left).unwrap_or_default().max(Duration::from_secs(1)));
                }
                Err(errors) => debug!(pod = %pod.described(), ?errors, "volumes not brought up to date"),
            }
        }
        self.collect(status).await;
        wait
    }

    /// Removes all but the two newest instances of each container, with their logs, and sandboxes out of use.
    async fn collect(&self, status: &PodRuntimeStatus) {
        let mut seen: HashMap<&str, u32> = HashMap::new();
        let mut kept_sandboxes = HashSet::new();
        for container in &status.containers {
            let count = seen.entry(container_name(container)).or_default();
            *count += 1;
            if *count <= 2 || container.container.state != ContainerState::Exited {
                kept_sandboxes.insert(container.container.pod_sandbox_id.as_str());
                continue;
            }
            let id = &container.container.id;
            match self.context.runtime.remove_container(id).await {
                Ok(()) | Err(CriError::NotFound(_)) => crate::logs::remove(&container.log_path),
                Err(error) => warn!(id, %error, "dead container not removed"),
            }
        }
        for old in status.sandboxes.iter().skip(1) {
            let id = &old.sandbox.id;
            if old.sandbox.state == PodSandboxState::NotReady
                && !kept_sandboxes.contains(id.as_str())
                && let Err(error) = self.context.runtime.remove_pod_sandbox(id).await
            {
                warn!(id, %error, "dead sandbox not removed");
            }
        }
    }

    async fn terminate(&mut self, pod: &Arc<Pod>, mut status: PodRuntimeStatus) -> Result<Step, CriError> {
        self.context.probes.stop_liveness(pod.uid());
        let mut grace = grace_period(pod);
        if self.failure.is_some() && !pod.is_deleted() {
            grace = Duration::from_secs(
                u64::try_from(pod.pod_spec().termination_grace_period_seconds.unwrap_or(30)).unwrap_or(30),
            );
        }
        if let Some(acting) = &self.acting {
            match acting.grace {
                // It acts for the living pod: ask it to stop, and wait for its end.
                None => {
                    acting.cancel.cancel();
                    self.publish_terminating(pod, &status);
                    return Ok(Step::Wait(None));
                }
                Some(known) if grace < known => {
                    // A shorter grace period was asked for meanwhile.
                    acting.task.abort();
                    self.acting = None;
                }
                Some(_) => {
                    self.publish_terminating(pod, &status);
                    return Ok(Step::Wait(None));
                }
            }
        }
        let open = status.sandboxes.iter().any(|s| s.sandbox.state == PodSandboxState::Ready);
        if status.is_active() || open {
            self.publish_terminating(pod, &status);
            self.kill(pod, status, grace);
            return Ok(Step::Wait(None));
        }
        status.sort();
        self.finish(pod, &status).await
    }

    fn publish_terminating(&mut self, pod: &Arc<Pod>, status: &PodRuntimeStatus) {
        if self.rejected || (pod.is_terminal() && !pod.is_deleted() && self.failure.is_none()) {
            return;
        }
        self.context.probes.update(pod, status, self.context.host_ips(), &self.handle.wake);
        let views = self.context.probes.views(status);
        let new = self.generate(pod, status, &views, true);
        self.context.status.set(pod, new, false);
    }

    fn kill(&mut self, pod: &Arc<Pod>, status: PodRuntimeStatus, grace: Duration) {
        let (context, pod) = (self.context.clone(), pod.clone());
        self.again_at = None;
        let task = tokio::spawn(async move {
            match kill_pod(&context, &pod, &status, grace).await {
                Ok(()) => None,
                Err(error) => {
                    warn!(pod = %pod.described(), %error, "pod not stopped; trying again");
                    Some(Duration::from_secs(5))
                }
            }
        });
        self.acting = Some(Acting { task, cancel: CancellationToken::new(), grace: Some(grace) });
    }

    /// Nothing runs any more: volumes go, and the last status is written.
    async fn finish(&mut self, pod: &Arc<Pod>, status: &PodRuntimeStatus) -> Result<Step, CriError> {
        let last = if self.rejected {
            let failure = self.failure.as_ref();
            PodStatus {
                phase: Some("Failed".to_owned()),
                reason: failure.map(|f| f.reason.clone()),
                message: failure.map(|f| f.message.clone()),
                start_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now())),
                qos_class: pod.pod_status().qos_class.clone(),
                observed_generation: pod.metadata.generation,
                ..PodStatus::default()
            }
        } else if pod.is_terminal() && self.failure.is_none() && !self.seen_here(pod) {
            // Ended under an earlier kubelet: what it wrote is better than what can still be known.
            pod.pod_status().clone()
        } else {
            let views = self.context.probes.views(status);
            self.generate(pod, status, &views, true)
        };
        self.context.probes.remove(pod.uid(), status);
        self.handle.admitted.store(false, Ordering::Release);
        self.workers.update_weights();
        if let Err(error) = self.context.volumes.tear_down(pod.uid()).await {
            warn!(pod = %pod.described(), %error, "volumes not removed; trying again");
            self.context.status.set(pod, last, false);
            return Ok(Step::Wait(Some(Duration::from_secs(5))));
        }
        self.context.status.set(pod, last.clone(), true);
        self.ended = Some(last);
        Ok(Step::Wait(None))
    }

    /// Whether this kubelet has computed a status for the pod before.
    fn seen_here(&self, pod: &Pod) -> bool {
        self.context.status.get(pod.uid()).is_some()
    }

    /// The object is gone: whatever is left goes too.
    async fn removed(&mut self, pod: &Arc<Pod>) -> Result<Step, CriError> {
        if let Some(acting) = &self.acting {
            if acting.grace.is_none() {
                acting.cancel.cancel();
                return Ok(Step::Wait(None));
            }
            if self.ended.is_none() && acting.grace > Some(Duration::from_secs(1)) {
                // Deleted by force: nobody waits for a graceful end.
                acting.task.abort();
                self.acting = None;
            } else {
                return Ok(Step::Wait(None));
            }
        }
        self.context.probes.stop_liveness(pod.uid());
        let status = PodRuntimeStatus::read(&*self.context.runtime, pod.uid()).await?;
        let open = status.sandboxes.iter().any(|s| s.sandbox.state == PodSandboxState::Ready);
        if status.is_active() || open {
            self.kill(pod, status, Duration::from_secs(1));
            return Ok(Step::Wait(None));
        }
        self.context.probes.remove(pod.uid(), &status);
        remove_pod(&self.context, pod.uid()).await?;
        if let Err(error) = self.context.volumes.tear_down(pod.uid()).await {
            warn!(pod = %pod.described(), %error, "volumes not removed; trying again");
            return Ok(Step::Wait(Some(Duration::from_secs(5))));
        }
        let logs = self.context.options.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
        let _ = tokio::fs::remove_dir_all(logs).await;
        self.context.status.forget(pod.uid());
        self.context.images.forget(pod.uid());
        info!(pod = %pod.described(), "pod is gone from the node");
        Ok(Step::Gone)
    }

    fn generate(
        &self,
        pod: &Pod,
        status: &PodRuntimeStatus,
        probes: &ProbeViews,
        terminating: bool,
    ) -> PodStatus {
        let shared = self.shared.lock();
        generate(&StatusInput {
            pod,
            runtime: status,
            reasons: &shared.reasons,
            probes,
            messages: &self.messages,
            host_ips: self.context.host_ips(),
            runtime_name: &self.context.runtime_name,
            terminating,
            failure: self.failure.as_ref(),
            now: Timestamp::now(),
        })
    }

    /// Reads the last words of containers that have ended, once each.
    fn read_messages(&mut self, status: &PodRuntimeStatus) {
        for ended in status.containers.iter().filter(|c| c.container.state == ContainerState::Exited) {
            self.messages.entry(ended.container.id.clone()).or_insert_with(|| termination_message(ended));
        }
        self.messages.retain(|id, _| status.by_id(id).is_some());
    }
}

/// What is left of `activeDeadlineSeconds`; `None` without one.
fn deadline(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let seconds = u64::try_from(pod.pod_spec().active_deadline_seconds?).ok()?;
    let started = pod.pod_status().start_time.as_ref()?.0;
    let active = Duration::try_from(now.duration_since(started)).unwrap_or_default();
    Some(Duration::from_secs(seconds).saturating_sub(active))
}
