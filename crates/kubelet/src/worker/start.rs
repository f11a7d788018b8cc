//! Carrying out a pod's actions: volumes, sandbox, images, containers, hooks. Answers to upstream's
//! `kuberuntime_manager.go` (`SyncPod`) and `kuberuntime_container.go` (`startContainer`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use orlop_client::EventType;
use orlop_cri::{ContainerConfig, ContainerMetadata, ContainerState, NamespaceMode};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::PodWorkers;
use super::kill::{Victim, grace_period, kill_container, kill_pod};
use crate::actions::PodActions;
use crate::backoff::Backoff;
use crate::config::{dns, hosts, mounts, sandbox, security};
use crate::context::Context;
use crate::env::{self, EnvContext, Environment};
use crate::expansion::expand;
use crate::hooks;
use crate::pod::{PodExt, Sort};
use crate::resources::container_resources;
use crate::runtime_status::{PodRuntimeStatus, container_annotations, container_labels, restart_count, time};
use crate::volumes::{Volumes, messages};

/// What a pod's worker and the task that acts for it share.
pub(super) struct Shared {
    /// Waiting reason and message by container.
    pub reasons: HashMap<String, (String, String)>,
    pub backoff: Backoff,
    /// Before this a container (or `""`: the sandbox) is not tried again.
    pub not_before: HashMap<String, Instant>,
    /// The mount errors that were told, and when.
    pub told: HashMap<String, Instant>,
    pub sandbox_failures: u32,
}

/// How soon the sandbox is tried again after `failures` failures.
fn sandbox_delay(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.min(3)).min(Duration::from_secs(10))
}

/// One run through the actions for a pod.
pub(super) struct Sync {
    pub context: Arc<Context>,
    pub pod: Arc<Pod>,
    pub status: PodRuntimeStatus,
    pub actions: PodActions,
    pub shared: Arc<Mutex<Shared>>,
    pub workers: Arc<PodWorkers>,
    /// The pod is to end: nothing new is begun.
    pub cancel: CancellationToken,
}

impl Sync {
    /// Acts. Returns when another run is due although nothing happens.
    pub(super) async fn run(mut self) -> Option<Duration> {
        let context = self.context.clone();
        let pod = self.pod.clone();
        if self.actions.kill_pod {
            let grace = grace_period(&pod);
            if let Err(error) = kill_pod(&context, &pod, &self.status, grace).await {
                warn!(pod = %pod.described(), %error, "pod not stopped; trying again");
                return Some(Duration::from_secs(5));
            }
            if !self.actions.create_sandbox {
                return None;
            }
        }
        for kill in std::mem::take(&mut self.actions.kill) {
            let Some((sort, container)) = pod.find_container(&kill.name) else { continue };
            let grace = probe_grace(&container, kill.by_probe).unwrap_or_else(|| grace_period(&pod));
            let ip = self.pod_ip();
            let victim = Victim { pod: &pod, container: &container, sort, id: &kill.id, pod_ip: &ip };
            if let Err(error) = kill_container(&context, victim, kill.message, grace).await {
                warn!(pod = %pod.described(), container = kill.name, %error, "container not stopped; trying again");
                return Some(Duration::from_secs(5));
            }
        }
        let volumes = match self.volumes().await {
            Ok(volumes) => volumes,
            Err(again) => return Some(again),
        };
        if self.cancel.is_cancelled() {
            return None;
        }
        if self.actions.create_sandbox
            && let Err(again) = self.create_sandbox().await
        {
            return Some(again);
        }
        if self.status.ready_sandbox().is_none() {
            return Some(Duration::from_secs(1));
        }
        if let Err(error) = self.write_hosts() {
            warn!(pod = %pod.described(), %error, "the pod's /etc/hosts is not written; trying again");
            return Some(Duration::from_secs(5));
        }
        let ephemeral = pod.ephemeral_containers();
        let spec = pod.pod_spec();
        let pick = |list: &[Container], indexes: &[usize], sort: Sort| {
            indexes.iter().filter_map(|i| list.get(*i)).map(|c| (sort, c.clone())).collect::<Vec<_>>()
        };
        let mut queue = pick(&ephemeral, &self.actions.start_ephemeral, Sort::Ephemeral);
        queue.extend(pick(pod.init_containers(), &self.actions.start_init, Sort::Init));
        queue.extend(pick(&spec.containers, &self.actions.start, Sort::Regular));
        let mut again: Option<Duration> = None;
        for (sort, container) in queue {
            if self.cancel.is_cancelled() {
                return None;
            }
            match self.start(sort, &container, &volumes).await {
                Ok(()) => {
                    let mut shared = self.shared.lock();
                    shared.reasons.remove(&container.name);
                    shared.not_before.remove(&container.name);
                }
                Err(failure) => {
                    debug!(pod = %pod.described(), container = container.name, reason = failure.reason, message = failure.message, "container not started");
                    let mut shared = self.shared.lock();
                    shared
                        .reasons
                        .insert(container.name.clone(), (failure.reason.to_owned(), failure.message));
                    shared.not_before.insert(container.name.clone(), Instant::now() + failure.not_before);
                    again = Some(again.map_or(failure.again, |known| known.min(failure.again)));
                    // An init container that cannot start holds up what comes after it.
                    if sort == Sort::Init {
                        break;
                    }
                }
            }
        }
        again
    }

    fn pod_ip(&self) -> String {
        let ips = if self.pod.host_network() { self.context.host_ips().to_vec() } else { self.status.ips() };
        ips.first().map(ToString::to_string).unwrap_or_default()
    }

    async fn volumes(&self) -> Result<Volumes, Duration> {
        let (context, pod) = (&self.context, &self.pod);
        let pod_dir = context.options.pod_dir(pod.uid());
        if let Err(error) = std::fs::create_dir_all(&pod_dir) {
            warn!(pod = %pod.described(), %error, dir = %pod_dir.display(), "the pod's directory cannot be made; free space or check the root directory");
            return Err(Duration::from_secs(10));
        }
        let fields = context.fields(pod, &self.status);
        match context.volumes.set_up(pod, &fields).await {
            Ok(volumes) => {
                self.shared.lock().told.clear();
                Ok(volumes)
            }
            Err(errors) => {
                for message in messages(&errors) {
                    let now = Instant::now();
                    let mut shared = self.shared.lock();
                    let known = shared.told.get(&message);
                    if known.is_none_or(|at| now.duration_since(*at) >= Duration::from_secs(60)) {
                        shared.told.insert(message.clone(), now);
                        drop(shared);
                        context.recorder.event(&**pod, EventType::Warning, "FailedMount", message);
                    }
                }
                // What is missing wakes the pod when it appears; this is for errors of the node.
                Err(Duration::from_secs(10))
            }
        }
    }

    async fn create_sandbox(&mut self) -> Result<(), Duration> {
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let fail = |reason: &str, message: String| {
            context.recorder.event(&*pod, EventType::Warning, reason, message);
            let mut shared = self.shared.lock();
            let delay = sandbox_delay(shared.sandbox_failures);
            shared.sandbox_failures += 1;
            shared.not_before.insert(String::new(), Instant::now() + delay);
            Err(delay)
        };
        if !pod.host_network()
            && let Err(why) = context.network.borrow().clone()
        {
            return fail("NetworkNotReady", format!("network is not ready: {why}"));
        }
        let (dns, missing) = dns::pod_dns(
            &pod,
            &context.host_dns(),
            &context.options.cluster_dns,
            &context.options.cluster_domain,
        );
        if missing {
            let message = "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.";
            context.recorder.event(&*pod, EventType::Warning, "MissingClusterDNS", message);
        }
        let config = match sandbox::config(&context.options, &pod, self.actions.attempt, dns) {
            Ok(config) => config,
            Err(error) => {
                return fail("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"));
            }
        };
        if let Err(error) = std::fs::create_dir_all(&config.log_directory) {
            let dir = config.log_directory.display();
            return fail(
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: log directory {dir}: {error}"),
            );
        }
        match context.runtime.run_pod_sandbox(config).await {
            Ok(_) => {}
            Err(error) => {
                return fail("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"));
            }
        }
        self.shared.lock().sandbox_failures = 0;
        // The runtime has made the class's cgroup with the first of its pods.
        self.workers.update_weights();
        match PodRuntimeStatus::read(&*context.runtime, pod.uid()).await {
            Ok(status) => {
                self.status = status;
                Ok(())
            }
            Err(error) => {
                warn!(pod = %pod.described(), %error, "new sandbox cannot be read; trying again");
                Err(Duration::from_secs(1))
            }
        }
    }

    fn write_hosts(&self) -> std::io::Result<()> {
        let path = self.context.options.pod_dir(self.pod.uid()).join("etc-hosts");
        let node = if self.pod.host_network() {
            std::fs::read_to_string("/etc/hosts").unwrap_or_default()
        } else {
            String::new()
        };
        let content =
            hosts::content(&self.pod, &self.status.ips(), &self.context.options.cluster_domain, &node);
        if std::fs::read_to_string(&path).is_ok_and(|known| known == content) {
            return Ok(());
        }
        // Written in place: running containers have this very file mounted.
        std::fs::write(path, content)
    }

    async fn start(&mut self, sort: Sort, container: &Container, volumes: &Volumes) -> Result<(), Failure> {
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let object = pod.container_reference(sort, &container.name);
        let failed = |message: &str| {
            context.recorder.event_for(
                object.clone(),
                EventType::Warning,
                "Failed",
                format!("Error: {message}"),
            );
        };
        let latest = self.status.latest(&container.name).cloned();
        if let Some(latest) = latest.as_ref().filter(|s| s.container.state == ContainerState::Exited) {
            let now = Timestamp::now();
            self.shared.lock().backoff.next(&container.name, time(latest.finished_at), now);
        } else if latest.is_some() {
            let now = Timestamp::now();
            self.shared.lock().backoff.next(&container.name, now, now);
        }
        let mut secrets = Vec::new();
        for reference in pod.pod_spec().image_pull_secrets.iter().flatten() {
            if let Ok(Some(secret)) =
                context.volumes.sources.secrets.get(pod.namespace(), &reference.name).await
            {
                secrets.push(secret);
            }
        }
        let (image, found) =
            context.images.ensure(&pod, container, &object, &secrets, &self.cancel).await.map_err(
                |error| {
                    let long = error.again.unwrap_or(Duration::from_secs(60));
                    // The first failure is shown as ErrImagePull for a moment, then as what it leads to.
                    let soon =
                        if error.reason == "ErrImagePull" { Duration::from_secs(2).min(long) } else { long };
                    Failure { reason: error.reason, message: error.message, again: soon, not_before: soon }
                },
            )?;
        let restarts = match &latest {
            Some(latest) => restart_count(latest) + 1,
            None => restarts_in_api(&pod, &container.name),
        };
        let config_error = |message: String| {
            failed(&message);
            Failure {
                reason: "CreateContainerConfigError",
                message,
                again: Duration::from_secs(10),
                not_before: Duration::from_secs(1),
            }
        };
        let environment = self.environment(container).await.map_err(config_error)?;
        if !environment.skipped.is_empty() {
            let message = format!(
                "Keys [{}] from the EnvFrom source were skipped since they are considered invalid environment variable names.",
                environment.skipped.join(", ")
            );
            context.recorder.event(&*pod, EventType::Warning, "InvalidEnvironmentVariableNames", message);
        }
        let mut rights =
            security::context(&pod, container, &found, &context.options.root_dir.join("seccomp"))
                .map_err(config_error)?;
        if sort == Sort::Ephemeral
            && let Some(target) = self.ephemeral_target(&container.name)
        {
            rights.namespaces.pid = NamespaceMode::Target(target);
        }
        let pod_dir = context.options.pod_dir(pod.uid());
        let hosts = pod_dir.join("etc-hosts");
        let mounts =
            mounts::mounts(&pod_dir, container, volumes, &environment, Some(&hosts)).map_err(config_error)?;
        let expanded = |list: &Option<Vec<String>>| {
            list.iter().flatten().map(|text| expand(text, |name| environment.get(name))).collect::<Vec<_>>()
        };
        let log_path = std::path::PathBuf::from(&container.name).join(format!("{restarts}.log"));
        let log_dir =
            context.options.pod_log_dir(pod.namespace(), pod.name(), pod.uid()).join(&container.name);
        std::fs::create_dir_all(&log_dir)
            .map_err(|error| config_error(format!("log directory {}: {error}", log_dir.display())))?;
        let config = ContainerConfig {
            metadata: ContainerMetadata { name: container.name.clone(), attempt: restarts },
            image,
            command: expanded(&container.command),
            args: expanded(&container.args),
            working_dir: container.working_dir.clone().unwrap_or_default(),
            envs: environment.variables,
            mounts,
            devices: Vec::new(),
            labels: container_labels(&pod, container),
            annotations: container_annotations(&pod, container, restarts),
            log_path,
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
            resources: container_resources(&pod, container, context.machine.memory_i64()),
            security: rights,
            stop_signal: container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
        };
        let Some(sandbox) = self.status.ready_sandbox().map(|s| s.sandbox.id.clone()) else {
            return Err(Failure::soon("CreateContainerError", "the pod's sandbox is not ready".to_owned()));
        };
        let id = context.runtime.create_container(&sandbox, config).await.map_err(|error| {
            failed(&error.to_string());
            let delay = Duration::from_secs(10);
            Failure {
                reason: "CreateContainerError",
                message: error.to_string(),
                again: delay,
                not_before: delay,
            }
        })?;
        context.recorder.event_for(object.clone(), EventType::Normal, "Created", "Container created");
        if let Err(error) = context.runtime.start_container(&id).await {
            failed(&error.to_string());
            return Err(Failure::soon("RunContainerError", error.to_string()));
        }
        info!(pod = %pod.described(), container = container.name, id, restarts, "container started");
        context.recorder.event_for(object.clone(), EventType::Normal, "Started", "Container started");
        self.post_start(sort, container, &id).await
    }

    async fn post_start(&self, sort: Sort, container: &Container, id: &str) -> Result<(), Failure> {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
            return Ok(());
        };
        let (context, pod) = (&self.context, &self.pod);
        let ip = self.pod_ip();
        let outcome = tokio::select! {
            outcome = hooks::run(&*context.runtime, id, container, &ip, hook) => outcome,
            () = self.cancel.cancelled() => return Ok(()),
        };
        let Err(error) = outcome else { return Ok(()) };
        warn!(pod = %pod.described(), container = container.name, %error, "postStart hook failed; the container is killed");
        let object = pod.container_reference(sort, &container.name);
        context.recorder.event_for(object, EventType::Warning, "FailedPostStartHook", "PostStartHook failed");
        let message = "FailedPostStartHook".to_owned();
        let victim = Victim { pod, container, sort, id, pod_ip: &ip };
        let killed = kill_container(context, victim, message, grace_period(pod)).await;
        if let Err(error) = killed {
            warn!(pod = %pod.described(), container = container.name, %error, "container not stopped after its hook failed");
        }
        Err(Failure::soon("PostStartHookError", error))
    }

    async fn environment(&self, container: &Container) -> Result<Environment, String> {
        let (context, pod) = (&self.context, &self.pod);
        let mut input = EnvContext { fields: context.fields(pod, &self.status), ..EnvContext::default() };
        let sources = env::sources(container);
        let stores = &context.volumes.sources;
        for name in sources.config_maps {
            let found = stores.config_maps.get(pod.namespace(), &name).await?;
            input.config_maps.insert(name, found);
        }
        for name in sources.secrets {
            let found = stores.secrets.get(pod.namespace(), &name).await?;
            input.secrets.insert(name, found);
        }
        // Without the Services a container would miss variables for good.
        let synced = tokio::time::timeout(Duration::from_secs(10), context.services.synced()).await;
        synced.map_err(|_| {
            "services have not yet been read at least once, cannot construct envvars".to_owned()
        })?;
        let services = context.services.list();
        let links = pod.pod_spec().enable_service_links.unwrap_or(true);
        input.services = env::service_variables(pod.namespace(), links, services.iter().map(|s| &**s));
        env::make(pod, container, &input)
    }

    fn ephemeral_target(&self, name: &str) -> Option<String> {
        let all = self.pod.pod_spec().ephemeral_containers.iter().flatten();
        let target = all.into_iter().find(|c| c.name == name)?.target_container_name.clone()?;
        let latest = self.status.latest(&target)?;
        (latest.container.state == ContainerState::Running).then(|| latest.container.id.clone())
    }
}

/// Why a container did not start.
struct Failure {
    reason: &'static str,
    message: String,
    /// Look again after this, whatever happens.
    again: Duration,
    /// Do not try again before this, whatever happens.
    not_before: Duration,
}

impl Failure {
    fn soon(reason: &'static str, message: String) -> Self {
        Self { reason, message, again: Duration::from_secs(1), not_before: Duration::from_secs(1) }
    }
}

/// The grace period that a failed probe brings.
fn probe_grace(container: &Container, by_probe: Option<&str>) -> Option<Duration> {
    let probe = match by_probe? {
        "livenessProbe" => container.liveness_probe.as_ref(),
        _ => container.startup_probe.as_ref(),
    };
    let seconds = probe?.termination_grace_period_seconds?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Restarts the API knows of a container the runtime has forgotten.
fn restarts_in_api(pod: &Pod, name: &str) -> u32 {
    let status = pod.pod_status();
    let all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let known = all.into_iter().find(|s| s.name == name && s.container_id.is_some());
    known.map_or(0, |s| u32::try_from(s.restart_count).unwrap_or(0) + 1)
}
