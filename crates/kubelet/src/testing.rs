//! A runtime in memory for tests: containers are records, commands are scripted, time is real.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use orlop_cri::*;
use parking_lot::Mutex;
use tokio::sync::broadcast;

/// What containers do by image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Runs until stopped.
    Run,
    /// Ends at once with this code.
    Exit(i32),
    /// Ignores the stop signal.
    Stubborn,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, (PodSandboxConfig, PodSandboxStatus)>,
    containers: BTreeMap<String, (ContainerConfig, ContainerStatus)>,
    images: HashMap<String, Behaviour>,
    /// Exit codes of exec by first word of the command.
    commands: HashMap<String, i32>,
    calls: Vec<String>,
    next: u32,
    network: Option<String>,
}

/// The fake.
pub(crate) struct FakeRuntime {
    state: Mutex<State>,
    events: broadcast::Sender<ContainerEvent>,
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap()
}

impl FakeRuntime {
    pub(crate) fn new(images: &[(&str, Behaviour)]) -> Arc<Self> {
        let images = images.iter().map(|(name, behaviour)| ((*name).to_owned(), *behaviour)).collect();
        let state = State { images, ..State::default() };
        Arc::new(Self { state: Mutex::new(state), events: broadcast::channel(1024).0 })
    }

    /// Calls so far, e.g. `create c`, `stop c`.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    pub(crate) fn set_network(&self, problem: Option<&str>) {
        self.state.lock().network = problem.map(str::to_owned);
    }

    pub(crate) fn set_command(&self, command: &str, code: i32) {
        self.state.lock().commands.insert(command.to_owned(), code);
    }

    pub(crate) fn add_image(&self, name: &str, behaviour: Behaviour) {
        self.state.lock().images.insert(name.to_owned(), behaviour);
    }

    /// The newest container of that name, with its configuration.
    pub(crate) fn container(&self, name: &str) -> Option<(ContainerConfig, ContainerStatus)> {
        let state = self.state.lock();
        let mut found: Vec<_> =
            state.containers.values().filter(|(c, _)| c.metadata.name == name).cloned().collect();
        found.sort_by_key(|(_, s)| s.container.created_at);
        found.pop()
    }

    pub(crate) fn sandbox_configs(&self) -> Vec<PodSandboxConfig> {
        self.state.lock().sandboxes.values().map(|(config, _)| config.clone()).collect()
    }

    pub(crate) fn containers_len(&self) -> usize {
        self.state.lock().containers.len()
    }

    /// A container ends by itself.
    pub(crate) fn exit(&self, name: &str, code: i32) {
        let id = self.container(name).unwrap().1.container.id;
        self.end(&id, code);
    }

    fn end(&self, id: &str, code: i32) {
        let event = {
            let mut state = self.state.lock();
            let Some((_, status)) = state.containers.get_mut(id) else { return };
            if status.container.state != ContainerState::Running {
                return;
            }
            status.container.state = ContainerState::Exited;
            status.exit_code = code;
            status.reason = if code == 0 { "Completed".into() } else { "Error".into() };
            status.finished_at = now();
            event(ContainerEventKind::Stopped, status)
        };
        let _ = self.events.send(event);
    }
}

fn event(kind: ContainerEventKind, status: &ContainerStatus) -> ContainerEvent {
    ContainerEvent::Container {
        kind,
        id: status.container.id.clone(),
        pod_sandbox_id: status.container.pod_sandbox_id.clone(),
        pod_uid: status.container.labels.get("io.kubernetes.pod.uid").cloned().unwrap_or_default(),
    }
}

fn has(labels: &StringMap, wanted: &StringMap) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn gone(what: &str, id: &str) -> CriError {
    CriError::NotFound(format!("{what} {id} not found"))
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        Ok(RuntimeVersion { runtime_name: "fake".into(), runtime_version: "1".into() })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        let network = self.state.lock().network.clone();
        Ok(RuntimeStatus { runtime_ready: Ok(()), network_ready: network.map_or(Ok(()), Err) })
    }

    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        let mut state = self.state.lock();
        state.next += 1;
        let id = format!("s{}", state.next);
        state.calls.push(format!("sandbox {}", config.metadata.name));
        let host = config.namespaces.network == NamespaceMode::Node;
        let status = PodSandboxStatus {
            sandbox: PodSandbox {
                id: id.clone(),
                metadata: config.metadata.clone(),
                state: PodSandboxState::Ready,
                created_at: now(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            },
            ips: if host { vec![] } else { vec!["127.0.0.1".parse().unwrap()] },
            namespaces: config.namespaces.clone(),
        };
        state.sandboxes.insert(id.clone(), (config, status));
        Ok(id)
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let ids: Vec<String> = {
            let mut state = self.state.lock();
            let name = match state.sandboxes.get_mut(id) {
                Some((config, status)) => {
                    status.sandbox.state = PodSandboxState::NotReady;
                    config.metadata.name.clone()
                }
                None => return Ok(()),
            };
            state.calls.push(format!("stop sandbox {name}"));
            state
                .containers
                .values()
                .filter(|(_, s)| s.container.pod_sandbox_id == id)
                .map(|(_, s)| s.container.id.clone())
                .collect()
        };
        ids.iter().for_each(|id| self.end(id, 137));
        Ok(())
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        state.sandboxes.remove(id);
        state.containers.retain(|_, (_, s)| s.container.pod_sandbox_id != id);
        Ok(())
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        self.state.lock().sandboxes.get(id).map(|(_, s)| s.clone()).ok_or_else(|| gone("sandbox", id))
    }

    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandbox>> {
        let state = self.state.lock();
        let all = state.sandboxes.values().map(|(_, s)| &s.sandbox);
        Ok(all.filter(|s| has(&s.labels, &filter.labels)).cloned().collect())
    }

    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        let mut state = self.state.lock();
        state.next += 1;
        let id = format!("c{}", state.next);
        let name = config.metadata.name.clone();
        state.calls.push(format!("create {name}"));
        let log_dir = state
            .sandboxes
            .get(sandbox_id)
            .ok_or_else(|| gone("sandbox", sandbox_id))?
            .0
            .log_directory
            .clone();
        let status = ContainerStatus {
            container: Container {
                id: id.clone(),
                pod_sandbox_id: sandbox_id.to_owned(),
                metadata: config.metadata.clone(),
                image: config.image.clone(),
                image_id: format!("sha256:{}", config.image),
                state: ContainerState::Created,
                created_at: now(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            },
            image_ref: format!("sha256:{}", config.image),
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            pid: None,
            mounts: config.mounts.clone(),
            log_path: log_dir.join(&config.log_path),
            user: Some((0, 0, vec![0])),
        };
        let _ = std::fs::write(
            &status.log_path,
            format!("2026-01-01T00:00:00.000000001Z stdout F hello from {name}\n"),
        );
        state.containers.insert(id.clone(), (config, status));
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let (behaviour, started) = {
            let mut state = self.state.lock();
            let images = state.images.clone();
            let (config, status) = state.containers.get_mut(id).ok_or_else(|| gone("container", id))?;
            status.container.state = ContainerState::Running;
            status.started_at = now();
            (
                images.get(&config.image).copied().unwrap_or(Behaviour::Run),
                event(ContainerEventKind::Started, status),
            )
        };
        let _ = self.events.send(started);
        if let Behaviour::Exit(code) = behaviour {
            self.end(id, code);
        }
        Ok(())
    }

    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        let behaviour = {
            let mut state = self.state.lock();
            let Some((config, _)) = state.containers.get(id) else { return Ok(()) };
            let (name, image) = (config.metadata.name.clone(), config.image.clone());
            state.calls.push(format!("stop {name} {}", timeout.as_secs()));
            state.images.get(&image).copied().unwrap_or(Behaviour::Run)
        };
        if behaviour == Behaviour::Stubborn {
            tokio::time::sleep(timeout).await;
            self.end(id, 137);
        } else {
            self.end(id, 143);
        }
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.state.lock().containers.remove(id);
        Ok(())
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        self.state.lock().containers.get(id).map(|(_, s)| s.clone()).ok_or_else(|| gone("container", id))
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>> {
        let state = self.state.lock();
        let all = state.containers.values().map(|(_, s)| &s.container);
        let wanted =
            |c: &&Container| has(&c.labels, &filter.labels) && filter.state.is_none_or(|s| s == c.state);
        Ok(all.filter(wanted).cloned().collect())
    }

    async fn update_container_resources(&self, _: &str, _: &LinuxContainerResources) -> Result<()> {
        Ok(())
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let log = self.container_status(id).await?.log_path;
        std::fs::write(log, "").map_err(|error| CriError::Internal(error.to_string()))
    }

    async fn exec_sync(&self, _: &str, command: &[String], _: Duration) -> Result<ExecOutput> {
        let mut state = self.state.lock();
        state.calls.push(format!("exec {}", command.join(" ")));
        let exit_code = command.first().and_then(|c| state.commands.get(c)).copied().unwrap_or(0);
        Ok(ExecOutput { stdout: b"said so".to_vec(), stderr: vec![], exit_code })
    }

    /// Echoes stdin to stdout and then exits as scripted.
    async fn exec(&self, _: &str, options: ExecOptions) -> Result<ExecSession> {
        let code =
            options.command.first().and_then(|c| self.state.lock().commands.get(c).copied()).unwrap_or(0);
        let (exit, done) = tokio::sync::oneshot::channel();
        let (stdin, mut input) = tokio::io::duplex(1024);
        let (mut output, stdout) = tokio::io::duplex(1024);
        let stdin_wanted = options.stdin;
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            let _ = output.write_all(options.command.join(" ").as_bytes()).await;
            if stdin_wanted {
                let _ = tokio::io::copy(&mut input, &mut output).await;
            }
            drop(output);
            let _ = exit.send(Ok(code));
        });
        let streams = AttachStreams {
            stdin: stdin_wanted.then(|| Box::new(stdin) as _),
            stdout: Some(Box::new(stdout)),
            stderr: None,
            resize: None,
        };
        Ok(ExecSession { streams, exit: done })
    }

    async fn attach(&self, _: &str, _: AttachOptions) -> Result<AttachStreams> {
        Err(CriError::Unimplemented("attach".into()))
    }

    async fn port_forward(&self, _: &str, _: u16) -> Result<Box<dyn DuplexStream>> {
        Err(CriError::Unimplemented("port forward".into()))
    }

    async fn list_container_stats(&self, _: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        Ok(vec![])
    }

    fn container_events(&self) -> BoxStream<'static, ContainerEvent> {
        let receiver = self.events.subscribe();
        Box::pin(futures::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((ContainerEvent::Lagged, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        }))
    }

    async fn list_images(&self, _: Option<&str>) -> Result<Vec<Image>> {
        Ok(vec![])
    }

    async fn image_status(&self, reference: &str) -> Result<Option<Image>> {
        let state = self.state.lock();
        let name = reference.trim_start_matches("sha256:");
        Ok(state.images.contains_key(name).then(|| Image {
            id: format!("sha256:{name}"),
            repo_tags: vec![name.to_owned()],
            repo_digests: vec![],
            size: 1,
            uid: Some(0),
            username: String::new(),
        }))
    }

    async fn pull_image(&self, reference: &str, _: Option<AuthConfig>) -> Result<String> {
        let mut state = self.state.lock();
        state.calls.push(format!("pull {reference}"));
        if state.images.contains_key(reference) {
            Ok(format!("sha256:{reference}"))
        } else {
            Err(CriError::ImagePull(format!("{reference}: not found")))
        }
    }

    async fn remove_image(&self, _: &str) -> Result<()> {
        Ok(())
    }

    async fn import_image(&self, _: BoxStream<'static, std::io::Result<Bytes>>) -> Result<Vec<String>> {
        Err(CriError::Unimplemented("import".into()))
    }

    async fn image_fs_info(&self) -> Result<FilesystemUsage> {
        Ok(FilesystemUsage { mountpoint: "/".into(), used_bytes: 0, inodes_used: 0 })
    }
}
