//! The CRI calls, each a line or two over the parts.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use orlop_cri::{
    AttachOptions, AttachStreams, AuthConfig, ContainerConfig, ContainerEvent, ContainerFilter,
    ContainerState, ContainerStats, ContainerStatus, DuplexStream, ExecOptions, ExecOutput, ExecSession,
    FilesystemUsage, Image, LinuxContainerResources, PodSandbox, PodSandboxConfig, PodSandboxFilter,
    PodSandboxState, PodSandboxStatus, Result, Runtime, RuntimeStatus, RuntimeVersion, StringMap,
};

use super::{Container, EmbeddedRuntime, Inner, Sandbox};
use crate::client::blocking;
use crate::error::RuntimeError;

#[async_trait]
impl Runtime for EmbeddedRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        Ok(RuntimeVersion {
            runtime_name: "orlop".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        Ok(RuntimeStatus {
            runtime_ready: runtime_ready(),
            network_ready: self.inner.options.network.ready().await,
        })
    }

    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        Ok(self.inner.run_sandbox(config).await?)
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        Ok(self.inner.stop_sandbox(id).await?)
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        Ok(self.inner.remove_sandbox(id).await?)
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        let sandbox = self.inner.sandbox(id)?;
        let line = sandbox.line();
        let record = sandbox.record.lock();
        Ok(PodSandboxStatus {
            sandbox: line,
            ips: record.ips.clone(),
            namespaces: record.config.namespaces.clone(),
        })
    }

    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandbox>> {
        let all: Vec<Arc<Sandbox>> = self.inner.sandboxes.lock().values().cloned().collect();
        let lines = all.iter().map(|sandbox| sandbox.line()).filter(|line| {
            filter.id.as_ref().is_none_or(|id| *id == line.id)
                && filter.state.is_none_or(|state| state == line.state)
                && has_labels(&line.labels, &filter.labels)
        });
        Ok(lines.collect())
    }

    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        Ok(self.inner.create_container(sandbox_id, config).await?)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        Ok(self.inner.start_container(id).await?)
    }

    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        Ok(self.inner.stop_container(id, timeout).await?)
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        Ok(self.inner.remove_container(id).await?)
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        Ok(self.inner.container(id)?.status())
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<orlop_cri::Container>> {
        Ok(self.inner.matching(filter).iter().map(|container| container.line()).collect())
    }

    async fn update_container_resources(&self, id: &str, resources: &LinuxContainerResources) -> Result<()> {
        Ok(self.inner.update_resources(id, resources)?)
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let container = self.inner.container(id)?;
        let socket = self.inner.socket(&container.record.sandbox_id);
        let request = crate::protocol::Request::ReopenLog { id: id.to_owned() };
        match crate::client::call(&socket, request).await? {
            (crate::protocol::Response::Error { message, gone: true }, _) => {
                Err(RuntimeError::Precondition(message).into())
            }
            (crate::protocol::Response::Error { message, .. }, _) => Err(RuntimeError::Shim(message).into()),
            _ => Ok(()),
        }
    }

    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        self.inner.exec_sync(id, command, timeout).await
    }

    async fn exec(&self, id: &str, options: ExecOptions) -> Result<ExecSession> {
        Ok(self.inner.exec(id, options).await?)
    }

    async fn attach(&self, id: &str, options: AttachOptions) -> Result<AttachStreams> {
        Ok(self.inner.attach(id, options).await?)
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn DuplexStream>> {
        Ok(self.inner.port_forward(sandbox_id, port).await?)
    }

    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        self.stats(filter, true).await
    }

    async fn list_container_usage(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        self.stats(filter, false).await
    }

    fn container_events(&self) -> BoxStream<'static, ContainerEvent> {
        let receiver = self.inner.events.subscribe();
        futures::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                    Some((ContainerEvent::Lagged, receiver))
                }
                Err(tokio::sync::broadcast::error::RecvError::Closed) => None,
            }
        })
        .boxed()
    }

    async fn list_images(&self, reference: Option<&str>) -> Result<Vec<Image>> {
        Ok(self.inner.images.list(reference))
    }

    async fn image_status(&self, reference: &str) -> Result<Option<Image>> {
        Ok(self.inner.images.list(Some(reference)).into_iter().next())
    }

    async fn pull_image(&self, reference: &str, auth: Option<AuthConfig>) -> Result<String> {
        Ok(self.inner.images.pull(reference, auth, &self.inner.pull_options).await?)
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        let reference = reference.to_owned();
        let work = blocking(move || {
            inner.images.remove(&reference)?;
            inner.images.collect(&inner.used_layers())
        });
        Ok(work.await?)
    }

    async fn import_image(&self, archive: BoxStream<'static, std::io::Result<Bytes>>) -> Result<Vec<String>> {
        Ok(self.inner.images.import(archive).await?)
    }

    async fn image_fs_info(&self) -> Result<FilesystemUsage> {
        let inner = Arc::clone(&self.inner);
        let usage = blocking(move || {
            let (images, writable) = (inner.images.usage(), inner.writable_usage());
            Ok(FilesystemUsage {
                mountpoint: inner.options.root.clone(),
                used_bytes: images.bytes + writable.bytes,
                inodes_used: images.inodes + writable.inodes,
            })
        });
        Ok(usage.await?)
    }
}

impl EmbeddedRuntime {
    async fn stats(&self, filter: &ContainerFilter, with_layers: bool) -> Result<Vec<ContainerStats>> {
        let inner = Arc::clone(&self.inner);
        let mut filter = filter.clone();
        filter.state = filter.state.or(Some(ContainerState::Running));
        let stats = blocking(move || {
            let containers = inner.matching(&filter);
            Ok(containers.iter().map(|container| inner.container_stats(container, with_layers)).collect())
        });
        Ok(stats.await?)
    }
}

/// What the kernel lacks, if anything.
fn runtime_ready() -> Result<(), String> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        Ok(())
    } else {
        Err("the kernel has no overlayfs: load it with `modprobe overlay`".to_owned())
    }
}

fn has_labels(labels: &StringMap, wanted: &StringMap) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

impl Inner {
    fn matching(&self, filter: &ContainerFilter) -> Vec<Arc<Container>> {
        let all: Vec<Arc<Container>> = self.containers.lock().values().cloned().collect();
        all.into_iter()
            .filter(|container| {
                filter.id.as_ref().is_none_or(|id| *id == container.record.id)
                    && filter.pod_sandbox_id.as_ref().is_none_or(|id| *id == container.record.sandbox_id)
                    && filter.state.is_none_or(|state| state == container.life.borrow().state())
                    && has_labels(&container.record.config.labels, &filter.labels)
            })
            .collect()
    }
}

impl Sandbox {
    fn line(&self) -> PodSandbox {
        let record = self.record.lock();
        PodSandbox {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            state: if *self.alive.borrow() { PodSandboxState::Ready } else { PodSandboxState::NotReady },
            created_at: record.created_at,
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }
    }
}

impl Container {
    fn line(&self) -> orlop_cri::Container {
        let record = &self.record;
        orlop_cri::Container {
            id: record.id.clone(),
            pod_sandbox_id: record.sandbox_id.clone(),
            metadata: record.config.metadata.clone(),
            image: record.config.image.clone(),
            image_id: record.image_id.clone(),
            state: self.life.borrow().state(),
            created_at: record.created_at,
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }
    }

    fn status(&self) -> ContainerStatus {
        let life = self.life.borrow().clone();
        let record = &self.record;
        let exit = life.exit.as_ref();
        let (uid, gid, groups) = &record.user;
        ContainerStatus {
            container: self.line(),
            image_ref: record.image_ref.clone(),
            started_at: life.started.as_ref().map_or(0, |started| started.started_at),
            finished_at: exit.map_or(0, |exit| exit.finished_at),
            exit_code: exit.map_or(0, |exit| exit.exit_code),
            reason: exit.map(crate::state::ExitRecord::reason).unwrap_or_default(),
            message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
            pid: life
                .started
                .as_ref()
                .filter(|_| exit.is_none())
                .and_then(|started| u32::try_from(started.pid).ok()),
            mounts: record.config.mounts.clone(),
            log_path: record.log_path.clone(),
            user: Some((
                i64::from(*uid),
                i64::from(*gid),
                groups.iter().map(|gid| i64::from(*gid)).collect(),
            )),
        }
    }
}
