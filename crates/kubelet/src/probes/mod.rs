//! Probes: one task per probe of a container, asleep until the next is due. Results are kept by container id, and the
//! pod's worker is woken when one changes. Answers to upstream's `pkg/kubelet/prober`.

mod state;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use orlop_client::{EventRecorder, EventType};
use orlop_cri::{CriError, Runtime};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::actions::{ProbeView, ProbeViews};
use crate::net;
use crate::pod::{PodExt, Sort, is_sidecar};
use crate::runtime_status::{PodRuntimeStatus, time};
use state::{Kind, State};

/// Who the probes say they are.
const AGENT: &str = "kube-probe/1.36";

/// The running instance of a container, as far as its probes need it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    id: String,
    started: Timestamp,
    pod_ip: String,
}

struct PodProbes {
    /// By container name.
    targets: HashMap<String, watch::Sender<Option<Target>>>,
    /// Ends the pod's readiness probes.
    _all: DropGuard,
    /// Ends liveness and startup probes when termination begins.
    lethal: CancellationToken,
}

/// All probes of the node.
pub(crate) struct ProbeManager {
    runtime: Arc<dyn Runtime>,
    recorder: EventRecorder,
    pods: Mutex<HashMap<String, PodProbes>>,
    results: Arc<Mutex<HashMap<String, ProbeView>>>,
}

impl ProbeManager {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, recorder: EventRecorder) -> Self {
        Self { runtime, recorder, pods: Mutex::default(), results: Arc::default() }
    }

    /// Starts the tasks of a pod's probes on first call, and tells them which instances run.
    pub(crate) fn update(
        &self,
        pod: &Arc<Pod>,
        status: &PodRuntimeStatus,
        host_ips: &[IpAddr],
        wake: &Arc<Notify>,
    ) {
        let mut pods = self.pods.lock();
        let probes = pods.entry(pod.uid().to_owned()).or_insert_with(|| self.start(pod, wake));
        let ips = if pod.host_network() { host_ips.to_vec() } else { status.ips() };
        let pod_ip = ips.first().map(ToString::to_string).unwrap_or_default();
        for (name, sender) in &probes.targets {
            let running = status.running().find(|s| crate::runtime_status::container_name(s) == name);
            let target = running.map(|s| Target {
                id: s.container.id.clone(),
                started: time(s.started_at),
                pod_ip: pod_ip.clone(),
            });
            sender.send_if_modified(|known| {
                if *known == target {
                    return false;
                }
                *known = target;
                true
            });
        }
    }

    fn start(&self, pod: &Arc<Pod>, wake: &Arc<Notify>) -> PodProbes {
        let all = CancellationToken::new();
        let lethal = all.child_token();
        let changed = watch::Sender::new(());
        let mut targets = HashMap::new();
        let sidecars = pod.init_containers().iter().filter(|c| is_sidecar(c)).map(|c| (Sort::Init, c));
        for (sort, container) in sidecars.chain(pod.pod_spec().containers.iter().map(|c| (Sort::Regular, c)))
        {
            let probes = [
                (Kind::Startup, &container.startup_probe),
                (Kind::Readiness, &container.readiness_probe),
                (Kind::Liveness, &container.liveness_probe),
            ];
            for (kind, probe) in probes {
                let Some(probe) = probe else { continue };
                let sender =
                    targets.entry(container.name.clone()).or_insert_with(|| watch::Sender::new(None));
                let worker = Worker {
                    kind,
                    probe: probe.clone(),
                    container: container.clone(),
                    sort,
                    pod: pod.clone(),
                    runtime: self.runtime.clone(),
                    recorder: self.recorder.clone(),
                    results: self.results.clone(),
                    wake: wake.clone(),
                    changed: changed.clone(),
                };
                let stop = if kind == Kind::Readiness { all.clone() } else { lethal.clone() };
                let target = sender.subscribe();
                tokio::spawn(async move { stop.run_until_cancelled(worker.run(target)).await });
            }
        }
        PodProbes { targets, _all: all.drop_guard(), lethal }
    }

    /// The pod is terminating: only readiness is still of interest.
    pub(crate) fn stop_liveness(&self, uid: &str) {
        if let Some(probes) = self.pods.lock().get(uid) {
            probes.lethal.cancel();
        }
    }

    /// Ends a pod's probes and forgets results of its containers.
    pub(crate) fn remove(&self, uid: &str, status: &PodRuntimeStatus) {
        self.pods.lock().remove(uid);
        let mut results = self.results.lock();
        for container in &status.containers {
            results.remove(&container.container.id);
        }
    }

    /// Results of a pod's containers.
    pub(crate) fn views(&self, status: &PodRuntimeStatus) -> ProbeViews {
        let results = self.results.lock();
        let ids = status.containers.iter().map(|s| &s.container.id);
        ids.filter_map(|id| Some((id.clone(), *results.get(id)?))).collect()
    }
}

struct Worker {
    kind: Kind,
    probe: Probe,
    container: Container,
    sort: Sort,
    pod: Arc<Pod>,
    runtime: Arc<dyn Runtime>,
    recorder: EventRecorder,
    results: Arc<Mutex<HashMap<String, ProbeView>>>,
    wake: Arc<Notify>,
    /// Told of every new result of the pod.
    changed: watch::Sender<()>,
}

impl Worker {
    async fn run(self, mut target: watch::Receiver<Option<Target>>) {
        loop {
            let Ok(running) = target.wait_for(Option::is_some).await.map(|target| target.clone()) else {
                return;
            };
            let Some(instance) = running else { continue };
            let settled = tokio::select! {
                () = self.probe_instance(&instance) => true,
                other = target.wait_for(|t| t.as_ref() != Some(&instance)) => {
                    if other.is_err() {
                        return;
                    }
                    false
                }
            };
            // A settled instance is left alone until there is another.
            if settled && target.wait_for(|t| t.as_ref().is_none_or(|t| t.id != instance.id)).await.is_err() {
                return;
            }
        }
    }

    /// Probes one instance until nothing more can come of it.
    async fn probe_instance(&self, target: &Target) {
        let seconds = |value: Option<i32>, default: i32| {
            Duration::from_secs(u64::try_from(value.unwrap_or(default)).unwrap_or(0))
        };
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        let due = target
            .started
            .saturating_add(seconds(self.probe.initial_delay_seconds, 0))
            .unwrap_or(target.started);
        let wait = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
        tokio::time::sleep(wait).await;
        if self.kind != Kind::Startup && self.container.startup_probe.is_some() {
            self.started(&target.id).await;
        }
        let mut state = State::new(
            self.kind,
            self.probe.success_threshold.unwrap_or(1),
            self.probe.failure_threshold.unwrap_or(3),
        );
        // A result that survived from before (the pod's address changed) is not put back to the initial one.
        self.set(&target.id, self.kind.initial(), false);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(success) = self.once(target).await else { continue };
            let result = state.record(success);
            self.set(&target.id, result, true);
            if state.is_settled() {
                return;
            }
        }
    }

    /// Waits until the startup probe has succeeded.
    async fn started(&self, id: &str) {
        let mut changes = self.changed.subscribe();
        while self.results.lock().get(id).and_then(|view| view.startup) != Some(true) {
            // Fails never: this worker holds a sender.
            let _ = changes.changed().await;
        }
    }

    fn set(&self, id: &str, result: Option<bool>, overwrite: bool) {
        let mut results = self.results.lock();
        let view = results.entry(id.to_owned()).or_default();
        let slot = match self.kind {
            Kind::Startup => &mut view.startup,
            Kind::Readiness => &mut view.readiness,
            Kind::Liveness => &mut view.liveness,
        };
        if *slot == result || (!overwrite && slot.is_some()) {
            return;
        }
        *slot = result;
        drop(results);
        self.changed.send_replace(());
        self.wake.notify_one();
    }

    /// One probe. `None` when it could not be carried out at all: that says nothing about the container.
    async fn once(&self, target: &Target) -> Option<bool> {
        let outcome = run(&self.probe, &self.container, target, &*self.runtime).await;
        let (message, answer) = match outcome {
            Ok(()) => return Some(true),
            Err(Failure::Failed(output)) => {
                (format!("{} probe failed: {output}", self.kind.title()), Some(false))
            }
            Err(Failure::Errored(error)) => {
                let title = self.kind.title();
                (format!("{title} probe errored and resulted in unknown state: {error}"), None)
            }
        };
        let object = self.pod.container_reference(self.sort, &self.container.name);
        self.recorder.event_for(object, EventType::Warning, "Unhealthy", message);
        answer
    }
}

enum Failure {
    Failed(String),
    Errored(String),
}

async fn run(
    probe: &Probe,
    container: &Container,
    target: &Target,
    runtime: &dyn Runtime,
) -> Result<(), Failure> {
    let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return match runtime.exec_sync(&target.id, &command, timeout).await {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => {
                let mut text = output.stdout;
                text.extend(output.stderr);
                text.truncate(10 << 10);
                Err(Failure::Failed(String::from_utf8_lossy(&text).into_owned()))
            }
            Err(CriError::DeadlineExceeded(_)) => {
                let seconds = crate::images::go_duration(timeout);
                Err(Failure::Failed(format!(
                    "command timed out: {:?} timed out after {seconds}",
                    command.join(" ")
                )))
            }
            Err(error) => Err(Failure::Errored(error.to_string())),
        };
    }
    if let Some(action) = &probe.http_get {
        return net::http_get(action, container, &target.pod_ip, AGENT, timeout)
            .await
            .map_err(Failure::Failed);
    }
    if let Some(action) = &probe.tcp_socket {
        return net::tcp(action, container, &target.pod_ip, timeout).await.map_err(Failure::Failed);
    }
    if let Some(action) = &probe.grpc {
        return net::grpc(action, &target.pod_ip, AGENT, timeout).await.map_err(Failure::Failed);
    }
    Err(Failure::Errored(format!("missing probe handler for {}", container.name)))
}
