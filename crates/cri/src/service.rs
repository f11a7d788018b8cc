//! The calls: CRI's `RuntimeService` and `ImageService` as one trait.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use crate::types::*;
use crate::{CriError, Result};

/// A terminal's size in character cells, as `kubectl exec -t` sends it on the resize channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The streams of an attached process. A stream that was not asked for is `None`.
pub struct AttachStreams {
    /// Write end of the process's stdin; dropping it closes stdin.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Read end of stdout (of the terminal, when there is one); ends when the process and its children closed it.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Read end of stderr; always `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal sizes are sent here; `None` without a terminal.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
}

/// A process started by [`Runtime::exec`]. Dropping it kills the process.
pub struct ExecSession {
    /// Its streams.
    pub streams: AttachStreams,
    /// Its exit code (128 + signal number when a signal ended it), or why it could not be waited for.
    pub exit: oneshot::Receiver<Result<i32, CriError>>,
}

/// A container runtime. All calls are idempotent where CRI says so: stopping or removing what is stopped or gone succeeds.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Name and version of the runtime.
    async fn version(&self) -> Result<RuntimeVersion>;
    /// `RuntimeReady` and `NetworkReady`.
    async fn status(&self) -> Result<RuntimeStatus>;

    /// Creates and starts a sandbox: namespaces, network, cgroup parent. Returns its id.
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String>;
    /// Kills what still runs in the sandbox and releases its network. Safe to repeat.
    async fn stop_pod_sandbox(&self, id: &str) -> Result<()>;
    /// Removes the sandbox and its containers, running or not.
    async fn remove_pod_sandbox(&self, id: &str) -> Result<()>;
    /// One sandbox's state.
    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus>;
    /// All sandboxes that match, ready or not.
    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandbox>>;

    /// Creates a container in a ready sandbox; it does not run yet. Returns its id.
    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String>;
    /// Starts a created container.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, waits at most `timeout`, then kills. Returns once the container has exited.
    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()>;
    /// Removes a container and its writable layer; kills it first when it runs. Its log file stays.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// One container's state.
    async fn container_status(&self, id: &str) -> Result<ContainerStatus>;
    /// All containers that match, in any state.
    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>>;
    /// Changes a running container's cgroup limits.
    async fn update_container_resources(&self, id: &str, resources: &LinuxContainerResources) -> Result<()>;
    /// Makes the container's log writer reopen its file after the kubelet has rotated it.
    async fn reopen_container_log(&self, id: &str) -> Result<()>;

    /// Runs a command to its end and returns its output (at most 16 MiB of each stream). `timeout` zero means none.
    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput>;
    /// Runs a command with live streams.
    async fn exec(&self, id: &str, options: ExecOptions) -> Result<ExecSession>;
    /// Attaches to the container's own process. Output is what is written from now on.
    async fn attach(&self, id: &str, options: AttachOptions) -> Result<AttachStreams>;
    /// Connects to a TCP port inside the sandbox's network namespace (on its loopback).
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn DuplexStream>>;

    /// Usage of all containers that match, one reading each.
    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>>;
    /// CPU, memory and processes alone, for those who ask often: sizes of writable layers may be left out (0), because
    /// finding them walks directories.
    async fn list_container_usage(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        self.list_container_stats(filter).await
    }

    /// Created, started, stopped and deleted events of containers and sandboxes, from now on. A consumer that falls
    /// behind gets [`ContainerEvent::Lagged`] and must list again.
    fn container_events(&self) -> BoxStream<'static, ContainerEvent>;

    /// Images that match `reference` (a name, digest or id), or all.
    async fn list_images(&self, reference: Option<&str>) -> Result<Vec<Image>>;
    /// One image by name, digest or id; `None` when absent.
    async fn image_status(&self, reference: &str) -> Result<Option<Image>>;
    /// Pulls an image; returns its id.
    async fn pull_image(&self, reference: &str, auth: Option<AuthConfig>) -> Result<String>;
    /// Removes an image by any of its names; its layers go when nothing uses them.
    async fn remove_image(&self, reference: &str) -> Result<()>;
    /// Imports an OCI or Docker archive (tar, optionally compressed) and returns the names it brought.
    async fn import_image(&self, archive: BoxStream<'static, std::io::Result<Bytes>>) -> Result<Vec<String>>;
    /// Bytes and inodes that images and writable layers use.
    async fn image_fs_info(&self) -> Result<FilesystemUsage>;
}

/// A two-way byte stream.
pub trait DuplexStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> DuplexStream for T {}
